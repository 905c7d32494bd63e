"""What builds a graph from the operations of another format: values, folding, sizes, parameters stored once."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from typing import Any

import numpy as np

from pqnet._progress import tick
from pqnet.errors import UnsupportedOpError
from pqnet.graph import GraphBuilder
from pqnet.graph.graph import param_info
from pqnet.graph.op import DTYPES, Info, complete_attrs, get_op
from pqnet.graph.sizes import check_shape_limits
from pqnet_converters.core import sizes
from pqnet_converters.core.sizes import Comparison, Symbolic, SymInt, Undecided
from pqnet_converters.core.tied import Tied

__all__ = ["Importer", "Tensor", "as_known", "graph_dtype"]

FOLDED = 1 << 14  # elements of a folded result that may be more than those of what it is made from

# The dtypes of other formats in the graph's terms.
WIDENED = {
    **dict.fromkeys(("float16", "float64", "bfloat16"), "float32"),
    "uint16": "int32",
    "uint32": "int64",
    "uint64": "int64",
    "int4": "int8",
    "uint4": "uint8",
    "int2": "int8",
    "uint2": "uint8",
}


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value of the graph being built, or one that is known.

    ``data`` is an array of the dtype or, if elements depend on free symbols, an array of objects: numbers and sizes.
    ``origin`` is the name under which the source stores it.
    """

    shape: tuple[Any, ...]
    dtype: str
    value: str | None = None
    data: np.ndarray | None = None
    origin: str | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)

    @cached_property
    def symbolic(self) -> bool:
        """Whether elements are known that depend on free symbols."""
        return self.data is not None and self.data.dtype == object

    @property
    def constant(self) -> np.ndarray | None:
        """The elements, if they are numbers."""
        return None if self.symbolic else self.data


def graph_dtype(name: str, where: str) -> str:
    """Return the graph's dtype for that of a source: real floats are float32, integers keep or gain width."""
    found = "float32" if name.startswith("float8") else WIDENED.get(name, name)
    if found not in DTYPES:
        raise UnsupportedOpError(f"{where}: expected real numbers or booleans, got {name}")
    return found


def as_known(elements: Any, dtype: str, origin: str | None = None) -> Tensor:
    """Return known elements as a tensor: an array of the dtype, or of objects if one depends on symbols."""
    array = elements if isinstance(elements, np.ndarray) else np.asarray(elements, object)  # keeps sizes as they are
    if array.dtype == object:
        flat = array.reshape(-1)
        if not any(isinstance(e, Symbolic | Comparison) for e in flat):
            array = np.asarray(array.tolist(), dtype)
    else:
        array = np.asarray(array, dtype)
    return Tensor(array.shape, dtype, data=array, origin=origin)


class Importer:
    """Builds a graph; rules of a source call `emit`, which computes what is known and appends a node for the rest.

    Parameters
    ----------
    builder : GraphBuilder
        Its inputs are declared.
    symbols : dict of str to SymInt
        The free sizes of the inputs.
    """

    def __init__(self, builder: GraphBuilder, symbols: Mapping[str, Any]) -> None:
        self.builder, self.symbols = builder, dict(symbols)
        self.emitted = 0  # nodes, also those that became constants
        self.path = ""  # what unnamed nodes are called after
        self._tied = Tied()
        self._constants: dict[str, str] = {}  # parameter -> value that a constant node gives it

    # ---- values

    def input(self, name: str) -> Tensor:
        """Return an input of the graph."""
        info = self.builder.inputs[name]
        return Tensor(tuple(self.symbols.get(str(d), d) for d in info.shape), info.dtype, value=name)

    def emit(self, op: str, *inputs: Tensor, **more: Any) -> Tensor:
        """Return the result of an operation with one output; see `emit_many`."""
        return self.emit_many(op, inputs, 1, **more)[0]

    def emit_many(
        self,
        op: str,
        inputs: Iterable[Tensor],
        n_outputs: int,
        *,
        name: str = "",
        params: Mapping[str, Tensor | None] | None = None,
        result_shape: tuple[Any, ...] | None = None,
        fold: bool = True,
        **attrs: Any,
    ) -> tuple[Tensor, ...]:
        """Append a node and return its results; of known inputs and parameters they are computed at once.

        Parameters
        ----------
        op : str
            Operation of the graph.
        inputs : iterable of Tensor
        n_outputs : int
        name : str, optional
            Default: after the current path.
        params : dict of str to Tensor or None, optional
            Known, by role; None is left out.
        result_shape : tuple, optional
            Of the one result, where the shape rule cannot see how it depends on symbols.
        fold : bool
            Compute what is known at once.
        attrs
            Sizes may be `SymInt`.
        """
        self.emitted += 1
        tick(f"{op}, node", self.emitted)
        inputs = tuple(inputs)
        roles = {role: x for role, x in (params or {}).items() if x is not None}
        stored = {role: self.known(x, role) for role, x in roles.items()}
        rule = get_op(op)
        complete = complete_attrs(rule, {k: _texts(v) for k, v in attrs.items()})
        known = {k: attrs.get(k, v) if rule.attrs[k].kind in ("dim", "dims") else v for k, v in complete.items()}
        infos = rule.infer(
            [Info(x.shape, x.dtype) for x in inputs], {r: param_info(p) for r, p in stored.items()}, known
        )
        results = (infos,) if isinstance(infos, Info) else infos
        for info in results:
            check_shape_limits(info.shape, op)
        if result_shape is not None:
            results = (Info(result_shape, results[0].dtype),)
        folded = self._fold(op, inputs, stored, known, results) if fold else None
        if folded is not None:
            return folded
        name = name or (f"{self.path}.{op}" if self.path else op)
        names = {role: self.param(x, role, name) for role, x in roles.items()}
        values = self.builder.add_many(op, map(self.value, inputs), n_outputs, name=name, params=names, **complete)
        return tuple(Tensor(i.shape, i.dtype, value=v) for i, v in zip(results, values, strict=True))

    def value(self, x: Tensor) -> str:
        """Return the name of a tensor's value; what is known gets a `constant` node, sizes one that computes them."""
        if x.value is not None:
            return x.value
        if x.symbolic:
            return self._computed(x)
        name = self.param(x, "constant", self.path)
        if name not in self._constants:
            self._constants[name] = self.builder.add("constant", name=name, params={"value": name})
        return self._constants[name]

    def _computed(self, x: Tensor) -> str:
        """Make a value of elements that depend on symbols: each is the start of a range of one."""
        assert x.data is not None
        parts = []
        for element in x.data.reshape(-1):
            one = self._element(element)
            parts.append(one if one.dtype == x.dtype else self._appended("cast", one, dtype=x.dtype))
        joined = parts[0] if len(parts) == 1 else self._appended("concat", *parts, axis=0)
        return str(self._appended("reshape", joined, shape=x.shape).value)

    def _element(self, element: Any) -> Tensor:
        if isinstance(element, Comparison):
            return self._appended(element.op, self._element(element.x), self._element(element.y))
        if isinstance(element, SymInt):
            return self._appended("arange", start=element, end=element + 1)
        if isinstance(element, Symbolic):
            scale = sizes.common_denominator(element)
            whole = self._appended("cast", self._element(element * scale), dtype="float32")
            return self._appended("div", whole, scalar=float(scale))
        dtype = "float32" if isinstance(element, float) or int(element) != element else "int64"
        return as_known(np.array([element]), dtype)

    def _appended(self, op: str, *inputs: Tensor, **attrs: Any) -> Tensor:
        """Append a node whatever is known of its inputs."""
        return self.emit(op, *inputs, fold=False, **attrs)

    # ---- folding

    def _fold(
        self,
        op: str,
        inputs: tuple[Tensor, ...],
        params: Mapping[str, np.ndarray],
        attrs: Mapping[str, Any],
        results: Iterable[Info],
    ) -> tuple[Tensor, ...] | None:
        """Compute an operation of known tensors, unless that would make much out of little."""
        arrays = [x.data for x in inputs]
        sizes_free = any(_is_symbolic(v) for v in attrs.values())
        if any(a is None for a in arrays) or (sizes_free and op != "arange"):
            return None
        known = [a for a in arrays if a is not None]
        if any(isinstance(s, SymInt) for info in results for s in info.shape) or op == "constant":
            return None
        elements = sum(int(np.prod(info.shape)) for info in results)
        if elements > max(FOLDED, sum(a.size for a in (*known, *params.values()))):
            return None
        if any(x.symbolic for x in inputs) or sizes_free:
            return self._fold_sizes(op, known, attrs, tuple(results))
        found = get_op(op).evaluate(known, params, attrs)
        outputs = found if isinstance(found, tuple) else (found,)
        return tuple(Tensor(a.shape, a.dtype.name, data=a) for a in outputs)

    def _fold_sizes(
        self, op: str, arrays: list[np.ndarray], attrs: Mapping[str, Any], results: tuple[Info, ...]
    ) -> tuple[Tensor, ...] | None:
        """Compute with elements that depend on symbols; None if the operation does not stay among sizes."""
        objects = [a.astype(object) for a in arrays]
        scalar = attrs.get("scalar")
        if scalar is not None:
            objects.insert(0 if attrs.get("reverse") else 1, np.array(scalar, object))
        try:
            if op in _MOVES:
                found = get_op(op).evaluate(arrays if op == "index_select" else objects, {}, attrs)
            elif op in _ELEMENTS:
                found = np.frompyfunc(_ELEMENTS[op], len(objects), 1)(*objects)
            elif op in ("sum", "prod"):
                ufunc = np.add if op == "sum" else np.multiply
                found = ufunc.reduce(objects[0], attrs["axes"], keepdims=attrs["keepdims"])
            elif op == "cast" and attrs["dtype"] in ("float32", "int64", "int32"):
                found = np.frompyfunc(_truncated if attrs["dtype"] != "float32" else lambda e: e, 1, 1)(objects[0])
            elif op == "arange" and not isinstance(attrs["end"] - attrs["start"], SymInt):
                steps = range(0, attrs["end"] - attrs["start"], attrs["step"])
                found = np.array([attrs["start"] + i for i in steps], object)
            else:
                return None
        except Undecided:
            return None
        outputs = found if isinstance(found, tuple) else (found,)
        if any(isinstance(e, float) and e != e for o in outputs for e in np.ravel(np.asarray(o, object))):
            return None
        return tuple(as_known(np.asarray(o, object), i.dtype) for o, i in zip(outputs, results, strict=True))

    # ---- parameters

    def known(self, x: Tensor, role: str) -> np.ndarray:
        """Return the elements of a tensor that must be known."""
        if x.constant is None:
            raise self.refuse(f"expected a constant {role}, got one that is computed from the network's input")
        return x.constant

    def param(self, x: Tensor, role: str, layer: str) -> str:
        """Store a known tensor as a parameter, equal ones of some size once, and return its name."""
        array = self.known(x, role)

        def store(array: np.ndarray) -> str:
            stem, i = x.origin or (f"{layer}.{role}" if layer else role), 1
            name = stem
            while name in self.builder.params:
                name, i = f"{stem}_{i}", i + 1
            self.builder.params[name] = array
            return name

        return self._tied.name(array, store)

    # ---- what rules ask

    def number(self, x: Tensor | None, default: Any = None) -> Any:
        """Return the number that a tensor of one known element is; a size if it depends on symbols."""
        if x is None:
            return default
        if x.data is None or x.data.size != 1:
            raise self.refuse(f"expected one known number, got a value of shape {x.shape}")
        return x.data.reshape(-1)[0] if x.symbolic else x.data.reshape(-1)[0].item()

    def numbers(self, x: Tensor | None, what: str) -> list[Any] | None:
        """Return the known elements of a tensor of one axis: ints, floats, sizes."""
        if x is None:
            return None
        if x.data is None:
            raise self.refuse(f"expected known {what}, got values that are computed from the network's input")
        return list(x.data.reshape(-1)) if x.symbolic else list(x.data.reshape(-1).tolist())

    def fixed(self, size: Any, what: str = "size") -> int:
        """Return a size that must not depend on symbols."""
        if isinstance(size, Symbolic):
            raise self.refuse(f"expected a fixed {what}, got {size}, which depends on free sizes of the inputs")
        return int(size)

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        """Return a tensor in another dtype."""
        return x if x.dtype == dtype else _as_stored(self.emit("cast", x, dtype=dtype), x)

    def refuse(self, reason: str) -> UnsupportedOpError:
        """Build the error for what the graph cannot express."""
        return UnsupportedOpError(f"{self.path or 'the network'}: {reason}")

    # ---- operations whose shapes or operands need a word more than `emit`

    def binary(self, op: str, x: Tensor, y: Tensor, dtype: str | None = None) -> Tensor:
        """Emit a two-operand operation; a known single number becomes a scalar."""
        dtype = dtype or x.dtype
        for one, other, reverse in ((y, x, False), (x, y, True)):
            array = one.constant
            if array is not None and array.size == 1 and one.rank <= other.rank and other.constant is None:
                scalar: Any = array.reshape(-1)[0].item()
                flag = {"reverse": True} if reverse and "reverse" in get_op(op).attrs else {}
                if reverse and not flag:
                    op = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}.get(op, op)
                return self.emit(op, self.cast(other, dtype), scalar=scalar, **flag)
        return self.emit(op, self.cast(x, dtype), self.cast(y, dtype))

    def total(self, tensors: Sequence[Tensor]) -> Tensor:
        """Add tensors up."""
        return reduce(partial(self.binary, "add"), tensors)

    def reshape(self, x: Tensor, shape: Iterable[Any]) -> Tensor:
        """Give a tensor another shape, of which one size may be -1."""
        shape = tuple(shape)
        same = len(shape) == x.rank and all(
            a == b and isinstance(a, SymInt) == isinstance(b, SymInt) for a, b in zip(shape, x.shape, strict=True)
        )
        return x if same else _as_stored(self.emit("reshape", x, shape=shape), x)

    def permute(self, x: Tensor, axes: Iterable[int]) -> Tensor:
        """Move the axes of a tensor."""
        axes = tuple(axes)
        return x if axes == tuple(range(x.rank)) else _as_stored(self.emit("permute", x, axes=axes), x)

    def slice(self, x: Tensor, axis: int, start: Any, stop: Any, step: int = 1) -> Tensor:
        """Take part of an axis, with the limits of Python's slices; limits may be sizes."""
        size = x.shape[axis]
        if not any(isinstance(v, Symbolic) for v in (size, start, stop)):
            first, last, step = slice(start, stop, step).indices(size)
            if (first, last, step) == (0, size, 1):
                return x
            return self.emit("slice", x, axis=axis, start=first, stop=None if last < 0 else last, step=step)
        count = _taken(size, start, stop, step)
        if step == 1 and isinstance(count, SymInt) and sizes.compare(count, size) == 0:
            return x
        shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
        first = (0 if step > 0 else -1) if start is None else start
        return self.emit("slice", x, axis=axis, start=first, stop=stop, step=step, result_shape=shape)


def _as_stored(y: Tensor, x: Tensor) -> Tensor:
    """Let what has the elements of a stored tensor be called like it."""
    return y if y.data is None or x.origin is None else replace(y, origin=x.origin)


def _taken(size: Any, start: Any, stop: Any, step: int) -> Any:
    """Return the number of elements of a slice whose limits or axis depend on symbols."""
    if step > 0:
        first = 0 if start is None else sizes.minimum(_from_front(start, size, 0), size)
        last = size if stop is None else sizes.minimum(_from_front(stop, size, 0), size)
        count = sizes.maximum(last - first, 0)
        return count if step == 1 else -(-count // step)
    first = size - 1 if start is None else sizes.minimum(_from_front(start, size, -1), size - 1)
    last = -1 if stop is None else _from_front(stop, size, -1)
    return sizes.maximum(-((first - last) // step), 0)


def _from_front(end: Any, size: Any, least: int) -> Any:
    """Return a limit counted from the front, at least ``least``; one that depends on symbols is as at their sample."""
    return end if end >= 0 else sizes.maximum(size + end, least)


def _compared(op: str) -> Callable[[Any, Any], Any]:
    def compare(x: Any, y: Any) -> Any:
        sign = sizes.compare(x, y)
        if sign is not None:
            return getattr(operator, op)(sign, 0)
        if op in ("eq", "ne") and sizes.differ(x, y):
            return op == "ne"
        return Comparison(op, x, y)

    return compare


def _negated(x: Any) -> Any:
    return x.inverse() if isinstance(x, Comparison) else not x


def _chosen(condition: Any, x: Any, y: Any) -> Any:
    return x if condition else y


def _quotient(x: Any, y: Any) -> Any:
    found = x / y if isinstance(x, Symbolic) else x * (1 / y) if not isinstance(y, Symbolic) else NotImplemented
    if found is NotImplemented:
        raise Undecided
    return found


def _truncated(x: Any) -> Any:
    if not isinstance(x, Symbolic):
        return int(x)
    if x.expr.limits()[0] < 0:
        raise Undecided
    return sizes.floor(x)


def _truncated_quotient(x: Any, y: Any) -> Any:
    """Divide integers; what is not negative is rounded down, what has no rest is not rounded."""
    if not isinstance(x, Symbolic) and not isinstance(y, Symbolic):
        return int(x / y)
    if sizes.compare(x, 0) == -1 and not isinstance(y, Symbolic):
        return -(-x // y)
    return x // y


_ELEMENTS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": _quotient,
    "floor_div": lambda x, y: x // y,
    "trunc_div": _truncated_quotient,
    "remainder": lambda x, y: x - (x // y) * y,
    "fmod": lambda x, y: x - (x // y) * y,
    "maximum": sizes.maximum,
    "minimum": sizes.minimum,
    "neg": lambda x: -x,
    "floor": sizes.floor,
    "ceil": sizes.ceil,
    **{op: _compared(op) for op in ("eq", "ne", "lt", "le", "gt", "ge")},
    "logical_not": _negated,
    "where": _chosen,
}
_MOVES = {"reshape", "permute", "slice", "concat", "split", "expand", "index_select"}


def _is_symbolic(value: Any) -> bool:
    return any(isinstance(v, Symbolic) for v in (value if isinstance(value, tuple | list) else (value,)))


def _texts(value: Any) -> Any:
    """Return an attribute as graphs store it: expressions as text."""
    if isinstance(value, SymInt):
        return value.text
    return tuple(map(_texts, value)) if isinstance(value, tuple | list) else value
