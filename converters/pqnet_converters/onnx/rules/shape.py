"""Operations that move or repeat elements, and those that tell sizes."""

from typing import Any

import numpy as np

from pqnet_converters.core.importer import Tensor, as_known
from pqnet_converters.core.sizes import Symbolic, compare
from pqnet_converters.onnx.importer import OnnxImporter, axes_of, axis_of
from pqnet_converters.onnx.registry import rule
from pqnet_converters.onnx.rules.elementwise import sizes

FAR = (1 << 31) - 1  # a limit of slices that is beyond any axis


@rule("Shape")
def shape(b: OnnxImporter, x: Tensor) -> Tensor:
    found = b.shape_of(x)[slice(b.attr("start", 0), b.attr("end"))]
    return as_known(found, "int64")


@rule("Size")
def size(b: OnnxImporter, x: Tensor) -> Tensor:
    return as_known(_product(b.shape_of(x)), "int64")


def _product(shape: Any) -> Any:
    total: Any = 1
    for n in shape:
        total = total * n
    return total


@rule("Reshape")
def reshape(b: OnnxImporter, x: Tensor, shape: Tensor | None = None) -> Tensor:
    wanted = list(sizes(b, shape)) if shape is not None else b.attr("shape")
    if not b.attr("allowzero", 0):
        wanted = [x.shape[i] if not isinstance(n, Symbolic) and n == 0 else n for i, n in enumerate(wanted)]
    if -1 in wanted and not any(isinstance(n, Symbolic) for n in x.shape):
        at = wanted.index(-1)
        others = _product(n for i, n in enumerate(wanted) if i != at)
        if not isinstance(others, Symbolic) and others and _product(x.shape) % others == 0:
            wanted[at] = _product(x.shape) // others
    return b.reshape(x, wanted)


@rule("Flatten")
def flatten(b: OnnxImporter, x: Tensor) -> Tensor:
    axis = b.attr("axis", 1)
    axis = axis + x.rank if axis < 0 else axis
    if axis == 1 and x.rank > 1:
        return b.reshape(x, (x.shape[0], -1 if 0 not in x.shape else 0))
    return b.reshape(x, (_product(x.shape[:axis]), _product(x.shape[axis:])))


@rule("Transpose")
def transpose(b: OnnxImporter, x: Tensor) -> Tensor:
    return b.permute(x, b.attr("perm", list(range(x.rank))[::-1]))


@rule("Squeeze")
def squeeze(b: OnnxImporter, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = b.ints("axes", axes)
    if given is None:
        given = [i for i, n in enumerate(x.shape) if not isinstance(n, Symbolic) and n == 1]
    gone = axes_of(given, x.rank)
    if wrong := [i for i in gone if compare(x.shape[i], 1) not in (0, None)]:
        raise b.refuse(f"expected size 1 along axes {wrong}, got shape {x.shape}")
    return b.reshape(x, [n for i, n in enumerate(x.shape) if i not in gone])


@rule("Unsqueeze")
def unsqueeze(b: OnnxImporter, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = b.ints("axes", axes, [])
    new = axes_of(given, x.rank + len(given))
    old = iter(x.shape)
    return b.reshape(x, [1 if i in new else next(old) for i in range(x.rank + len(given))])


@rule("Concat")
def concat(b: OnnxImporter, *tensors: Tensor) -> Tensor:
    axis = axis_of(b.attr("axis"), tensors[0].rank)
    for x in tensors[1:]:
        for i, n in enumerate(x.shape):
            if i != axis and i < tensors[0].rank:
                b.same(tensors[0].shape[i], n)
    parts = [x for x in tensors if isinstance(x.shape[axis], Symbolic) or x.shape[axis] != 0]
    return parts[0] if len(parts) == 1 else b.emit("concat", *(parts or tensors), axis=axis)


@rule("Split")
def split(b: OnnxImporter, x: Tensor, split: Tensor | None = None) -> tuple[Tensor, ...]:
    axis, given = axis_of(b.attr("axis", 0), x.rank), b.ints("split", split)
    n = len(b.node.outputs)
    if given is None:
        each = -(-x.shape[axis] // b.attr("num_outputs", n))
        given = [each] * (n - 1) + [x.shape[axis] - each * (n - 1)]
    if n == 1:
        return (x,)
    return b.emit_many("split", (x,), n, axis=axis, sizes=tuple(given))


@rule("Slice")
def slice_(
    b: OnnxImporter,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = b.ints("starts", starts), b.ints("ends", ends)
    along = b.ints("axes", axes, list(range(len(first))))
    by = b.ints("steps", steps, [1] * len(first))
    for axis, start, stop, step in zip(along, first, last, by, strict=True):
        at, step = axis_of(b.fixed(axis, "axis"), x.rank), b.fixed(step, "step")
        x = b.slice(x, at, None if _is_far(start) else start, None if _is_far(stop) else stop, step)
    return x


def _is_far(limit: Any) -> bool:
    """Tell whether a limit stands for the end of any axis."""
    return not isinstance(limit, Symbolic) and abs(limit) >= FAR


MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


@rule("Pad")
def pad(
    b: OnnxImporter,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    given, mode = b.ints("pads", pads), b.attr("mode", "constant")
    along = axes_of_order(b, axes, x.rank)
    before, after = [0] * x.rank, [0] * x.rank
    for i, axis in enumerate(along):
        before[axis], after[axis] = given[i], given[len(along) + i]
    if any(isinstance(n, Symbolic) for n in (*before, *after)):
        return _pad_by_parts(b, x, before, after, mode, value)
    fill = b.attr("value", 0.0) if value is None else b.number(value)
    if mode == "wrap":
        return _wrap(b, x, before, after)
    if mode != "constant" and x.dtype != "float32":
        y = b.emit("pad", b.cast(x, "float32"), padding=_pairs(before, after), mode=MODES[mode])
        return b.cast(y, x.dtype)
    if mode != "constant" and min(*before, *after) < 0:
        crop = b.emit("pad", x, padding=_pairs([min(n, 0) for n in before], [min(n, 0) for n in after]))
        before, after, x = [max(n, 0) for n in before], [max(n, 0) for n in after], crop
    if not any(before) and not any(after):
        return x
    more: dict[str, Any] = {"value": float(fill) if x.dtype == "float32" else int(fill)} if mode == "constant" else {}
    return b.emit("pad", x, padding=_pairs(before, after), mode=MODES[mode], **more)


def axes_of_order(b: OnnxImporter, axes: Tensor | None, rank: int) -> list[int]:
    """Return axes counted from the front, in the order given; all if none are."""
    return list(range(rank)) if axes is None else [axis_of(int(a), rank) for a in b.numbers(axes, "axes") or []]


def _pairs(before: list[int], after: list[int]) -> tuple[int, ...]:
    return tuple(n for pair in zip(before, after, strict=True) for n in pair)


def _pad_by_parts(
    b: OnnxImporter, x: Tensor, before: list[Any], after: list[Any], mode: str, value: Tensor | None
) -> Tensor:
    """Pad by sizes that depend on symbols: with blocks of the fill value."""
    if mode != "constant":
        raise b.refuse(f"expected known padding for mode {mode}, got {before}, {after}")
    fill = 0 if value is None else b.number(value)
    for axis, ends in enumerate(zip(before, after, strict=True)):
        parts: list[Tensor | None] = []
        for n in ends:
            if not isinstance(n, Symbolic) and n == 0:
                parts.append(None)
                continue
            shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
            parts.append(b.emit("full", shape=shape, value=fill, dtype=x.dtype))
        present = [p for p in (parts[0], x, parts[1]) if p is not None]
        x = present[0] if len(present) == 1 else b.emit("concat", *present, axis=axis)
    return x


def _wrap(b: OnnxImporter, x: Tensor, before: list[int], after: list[int]) -> Tensor:
    for axis, (head, tail) in enumerate(zip(before, after, strict=True)):
        if head or tail:
            ids = np.arange(-head, b.fixed(x.shape[axis]) + tail) % b.fixed(x.shape[axis])
            x = b.emit("index_select", x, as_known(ids, "int64"), axis=axis)
    return x


@rule("Expand")
def expand(b: OnnxImporter, x: Tensor, shape: Tensor) -> Tensor:
    wanted = list(sizes(b, shape))
    have = [1] * (len(wanted) - x.rank) + list(x.shape)
    wanted = [1] * (len(have) - len(wanted)) + wanted
    out = [n if not isinstance(w, Symbolic) and w == 1 else w for n, w in zip(have, wanted, strict=True)]
    if len(out) == x.rank and all(compare(n, w) == 0 for n, w in zip(x.shape, out, strict=True)):
        return x
    return b.emit("expand", x, shape=tuple(out))


@rule("Tile")
def tile(b: OnnxImporter, x: Tensor, repeats: Tensor) -> Tensor:
    """Give every axis a unit axis before it, widen that one, and merge the two."""
    counts = sizes(b, repeats)
    if all(not isinstance(n, Symbolic) and n == 1 for n in counts):
        return x
    apart = [d for n in x.shape for d in (1, n)]
    wide = [d for pair in zip(counts, x.shape, strict=True) for d in pair]
    copies = b.emit("expand", b.reshape(x, apart), shape=tuple(wide))
    return b.reshape(copies, [k * n for k, n in zip(counts, x.shape, strict=True)])


@rule("DepthToSpace")
def depth_to_space(b: OnnxImporter, x: Tensor) -> Tensor:
    n, (batch, channels, height, width) = b.attr("blocksize"), x.shape
    if b.attr("mode", "DCR") == "DCR":
        apart = b.reshape(x, (batch, n, n, channels // (n * n), height, width))
        moved = b.permute(apart, (0, 3, 4, 1, 5, 2))
    else:
        apart = b.reshape(x, (batch, channels // (n * n), n, n, height, width))
        moved = b.permute(apart, (0, 1, 4, 2, 5, 3))
    return b.reshape(moved, (batch, channels // (n * n), height * n, width * n))


@rule("SpaceToDepth")
def space_to_depth(b: OnnxImporter, x: Tensor) -> Tensor:
    n, (batch, channels, height, width) = b.attr("blocksize"), x.shape
    apart = b.reshape(x, (batch, channels, height // n, n, width // n, n))
    return b.reshape(b.permute(apart, (0, 3, 5, 1, 2, 4)), (batch, channels * n * n, height // n, width // n))


@rule("Trilu")
def trilu(b: OnnxImporter, x: Tensor, k: Tensor | None = None) -> Tensor:
    rows, columns = x.shape[-2:]
    row = b.reshape(b.emit("arange", end=rows), (rows, 1))
    column, diagonal = b.emit("arange", end=columns), b.number(k, 0)
    distance = b.binary("sub", column, row)
    kept = b.emit("ge" if b.attr("upper", 1) else "le", distance, scalar=diagonal)
    return b.emit("where", kept, x, as_known(0, x.dtype))


@rule("Reverse")
def reverse(b: OnnxImporter, x: Tensor) -> Tensor:
    return b.slice(x, axis_of(b.attr("axis", 0), x.rank), None, None, -1)


@rule("NonZero", "Unique", "Compress")
def data_dependent(b: OnnxImporter, x: Tensor, *more: Tensor) -> Tensor:
    """Their results have sizes that depend on what is in the input: computed where that is known."""
    if x.constant is not None and b.node.op == "NonZero":
        return as_known(np.array(np.nonzero(x.constant)), "int64")
    if b.node.op == "Compress" and more and more[0].constant is not None:
        axis, places = b.attr("axis"), np.flatnonzero(more[0].constant)
        x = b.reshape(x, (-1,)) if axis is None else x
        return b.emit("index_select", x, as_known(places, "int64"), axis=axis_of(axis or 0, x.rank))
    raise b.refuse(
        "the size of its result depends on what is in the input; cut the network before it (onnx.utils.extract_model)"
    )


@rule("StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "TfIdfVectorizer")
def strings(b: OnnxImporter, *_: Any) -> Tensor:
    raise b.refuse("strings have no rule; tokenize before the network")
