"""What an operation is: its attributes, its shape rule and its NumPy meaning, in one registry."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pqnet._check import describe
from pqnet.errors import PQNetError, UnsupportedOpError
from pqnet.graph.axes import Axes, Tracked
from pqnet.graph.sizes import MAX_ATTRIBUTE, resolve_dim

if TYPE_CHECKING:
    from pqnet.graph.layers import WeightOp

__all__ = [
    *("DTYPES", "INTEGERS", "NUMERIC", "OPS", "REQUIRED", "Attr", "Info", "Op", "get_op", "register"),
    *("broadcast_shape", "check_axes", "check_dtype", "check_shape"),
]

INTEGERS = ("int64", "int32", "int16", "int8", "uint8")
NUMERIC = ("float32", *INTEGERS)
DTYPES = (*NUMERIC, "bool")
REQUIRED = object()
OPS: dict[str, "Op"] = {}

Attrs = Mapping[str, Any]
Arrays = Sequence[np.ndarray]
Params = Mapping[str, np.ndarray]


class Info(NamedTuple):
    """Shape and dtype of a value, all sizes known."""

    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Attr:
    """One attribute of an operation.

    ``kind``: ``int float bool str``; ``number`` (an int of 64 bits, which stays one, or a float); ``ints`` (tuple of
    ints; ``length`` fixes how many); ``dims`` (tuple of sizes: ints or integer expressions of the graph's free symbols
    such as ``"12*batch"``); ``dim`` (one such size). The magnitude of an int is at most
    `pqnet.graph.sizes.MAX_ATTRIBUTE`.
    ``default`` REQUIRED means that a node must give it; None as a default means that it may be absent.
    """

    kind: str
    default: Any = REQUIRED
    length: int | None = None
    options: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Op:
    """An operation: how many inputs, which parameters (role -> required), attributes, shape rule, meaning.

    ``infer(inputs: list[Info], params: dict[role, Info], attrs) -> Info | tuple[Info, ...]`` checks and gives the
    outputs' shapes. ``evaluate(inputs, params, attrs) -> array | tuple`` computes them; it never changes its inputs,
    but may return a view of one. ``order(inputs, params, attrs) -> Axes`` (a list of them for several outputs) says
    how the order of elements goes through, see `pqnet.graph.axes`; an axis of another size than the output's keeps its
    own, and without a rule all inputs and outputs keep theirs. ``weight`` says how it computes with its parameter
    ``"weight"``, if that is one that codecs may replace, see `pqnet.graph.layers`.
    """

    name: str
    min_inputs: int
    max_inputs: int
    params: Mapping[str, bool]
    attrs: Mapping[str, Attr]
    infer: Callable[[Sequence[Info], Mapping[str, Info], Attrs], Info | tuple[Info, ...]]
    evaluate: Callable[[Arrays, Params, Attrs], np.ndarray | tuple[np.ndarray, ...]]
    order: Callable[[Sequence[Tracked], Mapping[str, Tracked], Attrs], Axes | list[Axes]] | None
    weight: "WeightOp | None"


def register(
    name: str,
    *,
    infer: Callable[..., Any],
    evaluate: Callable[..., Any],
    inputs: int | tuple[int, int] = 1,
    params: Mapping[str, bool] | None = None,
    order: Callable[..., Any] | None = None,
    weight: "WeightOp | None" = None,
    **attrs: Attr,
) -> None:
    """Add an operation to the registry; infinities and NaN in its arithmetic are results, not warnings."""
    low, high = (inputs, inputs) if isinstance(inputs, int) else inputs
    OPS[name] = Op(name, low, high, params or {}, attrs, infer, np.errstate(all="ignore")(evaluate), order, weight)


def get_op(name: str) -> Op:
    """Return a registered operation, or raise UnsupportedOpError."""
    if name not in OPS:
        raise UnsupportedOpError(f"op: expected one of the {len(OPS)} registered operations, got {name!r}")
    return OPS[name]


def check_dtype(info: Info, *dtypes: str, name: str = "input") -> None:
    """Raise unless a value has one of the dtypes."""
    if info.dtype not in dtypes:
        raise PQNetError(f"{name}: expected {' or '.join(dtypes)}, got {info.dtype}; put a cast before it")


def check_shape(info: Info | None, shape: tuple[int, ...], name: str) -> None:
    """Raise unless an optional parameter is float32 of the given shape."""
    if info is not None and info != (shape, "float32"):
        raise PQNetError(f"{name}: expected float32 of shape {shape}, got {info.dtype} of shape {info.shape}")


def check_axes(axes: Iterable[int], rank: int) -> None:
    """Raise unless the axes exist, count from the front and differ."""
    axes = tuple(axes)
    if len(set(axes)) < len(axes) or not all(0 <= axis < rank for axis in axes):
        raise PQNetError(f"axes: expected distinct numbers in [0, {rank}), got {axes}")


def broadcast_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape to which the shapes broadcast, or raise; of equal sizes, one that no symbol changes.

    Sizes that symbols change are of their own kinds of integers.
    """
    out = []
    for i in range(-max(map(len, shapes), default=0), 0):
        sizes = [shape[i] for shape in shapes if len(shape) >= -i]
        wide = [size for size in sizes if size != 1]
        if any(size != wide[0] for size in wide[1:]):
            raise PQNetError(f"shapes {', '.join(map(str, shapes))} do not broadcast")
        if wide:
            out.append(next((size for size in wide if type(size) is int), wide[0]))
        else:
            out.append(next((size for size in sizes if type(size) is not int), 1))
    return tuple(out)


def complete_attrs(op: Op, attrs: Attrs) -> dict[str, Any]:
    """Return the attributes of a node, defaults filled in, in canonical types; raise on unknown or ill-typed ones."""
    unknown = set(attrs) - set(op.attrs)
    if unknown:
        raise PQNetError(f"{op.name}: unknown attributes {sorted(unknown)}; expected among {sorted(op.attrs)}")
    out: dict[str, Any] = {}
    for name, attr in op.attrs.items():
        value = attrs.get(name, attr.default)
        if value is REQUIRED:
            raise PQNetError(f"{op.name}: attribute {name!r} is missing")
        if value is not None or attr.default is not None:
            value = _canonical(value, attr, f"{op.name}.{name}")
        out[name] = value
    return out


def _canonical(value: Any, attr: Attr, where: str) -> Any:
    kind = attr.kind
    if kind == "bool" and isinstance(value, bool | np.bool_):
        return bool(value)
    if kind == "int" and _is_int(value, MAX_ATTRIBUTE):
        return int(value)
    if kind == "float" and (_is_int(value, 1 << 63) or isinstance(value, float | np.floating)):
        return float(value)
    if kind == "number" and _is_int(value, 1 << 63) and value < 2**63:
        return int(value)
    if kind == "number" and isinstance(value, float | np.floating):
        return float(value)
    if kind == "str" and isinstance(value, str) and (attr.options is None or value in attr.options):
        return value
    if kind == "dim" and (_is_int(value, 1 << 63) or isinstance(value, str)):
        return value if isinstance(value, str) else int(value)
    if kind in ("ints", "dims") and isinstance(value, tuple | list):
        most = 1 << 63 if kind == "dims" else MAX_ATTRIBUTE
        fits = all(_is_int(v, most) or (kind == "dims" and isinstance(v, str)) for v in value)
        if fits and attr.length in (None, len(value)):
            return tuple(v if isinstance(v, str) else int(v) for v in value)
    size = f" of length {attr.length}" if attr.length is not None else ""
    limit = f" from {-MAX_ATTRIBUTE} to {MAX_ATTRIBUTE}" if kind in ("int", "ints") else ""
    raise PQNetError(f"{where}: expected {attr.options or kind + size + limit}, got {describe(value)}")


def _is_int(value: Any, most: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_) and abs(int(value)) <= most


def resolve_attrs(op: Op, attrs: Attrs, symbols: Mapping[str, int]) -> dict[str, Any]:
    """Return the attributes with every size expression replaced by its value."""
    out = dict(attrs)
    for name, attr in op.attrs.items():
        if out[name] is None:
            continue
        if attr.kind == "dims":
            out[name] = tuple(resolve_dim(d, symbols) for d in out[name])
        elif attr.kind == "dim":
            out[name] = resolve_dim(out[name], symbols)
    return out
