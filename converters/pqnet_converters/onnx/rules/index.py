"""Indexing by tensors, one-hot rows, writing at indices."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pqnet_converters.core.importer import Tensor, as_known
from pqnet_converters.core.sizes import Symbolic, compare
from pqnet_converters.onnx.importer import OnnxImporter, axis_of
from pqnet_converters.onnx.registry import rule


@rule("Gather")
def gather(b: OnnxImporter, x: Tensor, ids: Tensor) -> Tensor:
    axis = axis_of(b.attr("axis", 0), x.rank)
    if ids.data is not None and ids.data.size == 1 and ids.rank <= 1:
        return _row(b, x, axis, b.number(ids), ids.rank == 1)
    ids = b.cast(ids, "int64")
    if x.constant is not None and ids.data is None and x.rank == 2 and axis == 0 and x.dtype == "float32":
        ids = ids if _is_count(b, ids, {*b.builder.inputs}) else _from_front(b, ids, x.shape[axis])
        return b.emit("embedding", ids, name=b.layer(x), params={"weight": x})
    ids = _from_front(b, ids, x.shape[axis])
    flat = b.emit("index_select", x, b.reshape(ids, (-1,)), axis=axis)
    return b.reshape(flat, (*x.shape[:axis], *ids.shape, *x.shape[axis + 1 :]))


def _row(b: OnnxImporter, x: Tensor, axis: int, at: Any, keep: bool) -> Tensor:
    """Take one position of an axis: a slice."""
    last = not isinstance(at, Symbolic) and at == -1
    row = b.slice(x, axis, at, None if last else at + 1)
    if not isinstance(row.shape[axis], Symbolic) and row.shape[axis] != 1:
        raise b.refuse(f"expected an index of the {x.shape[axis]} positions of axis {axis}, got {at}")
    return b.reshape(row, (*x.shape[:axis], *((1,) if keep else ()), *x.shape[axis + 1 :]))


def _from_front(b: OnnxImporter, ids: Tensor, size: Any) -> Tensor:
    """Return indices counted from the front of an axis."""
    if ids.constant is not None and (not ids.constant.size or ids.constant.min() >= 0):
        return ids
    if ids.constant is not None and not isinstance(size, Symbolic):
        return as_known(np.where(ids.constant < 0, ids.constant + size, ids.constant), "int64", ids.origin)
    if ids.data is None and _is_count(b, ids, set()):
        return ids
    total = b.binary("add", ids, as_known(size, "int64"))
    return b.emit("where", b.binary("lt", ids, as_known(0, "int64")), total, ids)


def _is_count(b: OnnxImporter, ids: Tensor, trusted: set[str]) -> bool:
    """Tell whether indices are those of a range or trusted values: never counted from the end."""
    makers = {v: node for node in b.builder.nodes for v in node.outputs}
    value = ids.value or ""
    while value in makers and makers[value].op in ("reshape", "expand", "slice", "cast", "permute"):
        value = makers[value].inputs[0]
    if value in makers:
        return makers[value].op in ("argmax", "argmin", "topk") or _counts_up(makers[value])
    return value in trusted


def _counts_up(node: Any) -> bool:
    return bool(node.op == "arange" and node.attrs["start"] == 0 and node.attrs["step"] > 0)


def _positions(b: OnnxImporter, shape: Sequence[Any], axis: int) -> Tensor:
    """Return the positions of an axis, in a shape that broadcasts with others of that rank."""
    numbers = b.emit("arange", end=shape[axis])
    return b.reshape(numbers, (shape[axis], *(1,) * (len(shape) - 1 - axis)))


def _flat(b: OnnxImporter, shape: Sequence[Any], ids: Sequence[Tensor]) -> Tensor:
    """Return the index of elements in the flattened tensor from those along its first axes."""
    total = ids[0]
    for n, more in zip(shape[1:], ids[1:], strict=False):
        total = b.binary("add", b.binary("mul", total, as_known(n, "int64")), more)
    return total


@rule("GatherElements")
def gather_elements(b: OnnxImporter, x: Tensor, ids: Tensor) -> Tensor:
    axis = axis_of(b.attr("axis", 0), x.rank)
    own = _from_front(b, b.cast(ids, "int64"), x.shape[axis])
    every = [own if a == axis else _positions(b, ids.shape, a) for a in range(x.rank)]
    places = b.reshape(_flat(b, x.shape, every), (-1,))
    return b.reshape(b.emit("index_select", b.reshape(x, (-1,)), places, axis=0), ids.shape)


def _split_index(b: OnnxImporter, x: Tensor, ids: Tensor, batch: int) -> tuple[int, Tensor]:
    """Return how many axes of a tensor an index of the last axis of ``ids`` goes through, and the flat index."""
    depth = b.fixed(ids.shape[-1], "depth of the index")
    parts = []
    for i in range(depth):
        part = b.slice(b.cast(ids, "int64"), ids.rank - 1, i, i + 1)
        part = b.reshape(part, ids.shape[:-1])
        parts.append(_from_front(b, part, x.shape[batch + i]))
    leading = [_positions(b, ids.shape[:-1], a) for a in range(batch)]
    flat = _flat(b, x.shape, [*leading, *parts])
    if any(compare(n, m) != 0 for n, m in zip(flat.shape, ids.shape[:-1], strict=True)):
        flat = b.emit("expand", flat, shape=ids.shape[:-1])
    return batch + depth, flat


@rule("GatherND")
def gather_nd(b: OnnxImporter, x: Tensor, ids: Tensor) -> Tensor:
    depth, flat = _split_index(b, x, ids, b.attr("batch_dims", 0))
    source = b.reshape(x, (-1, *x.shape[depth:]))
    rows = b.emit("index_select", source, b.reshape(flat, (-1,)), axis=0)
    return b.reshape(rows, (*ids.shape[:-1], *x.shape[depth:]))


REDUCTIONS = ("none", "add", "mul", "max", "min")


@rule("ScatterElements", "Scatter")
def scatter_elements(b: OnnxImporter, x: Tensor, ids: Tensor, updates: Tensor) -> Tensor:
    axis = axis_of(b.attr("axis", 0), x.rank)
    own = _from_front(b, b.cast(ids, "int64"), x.shape[axis])
    return b.emit("scatter", x, own, updates, axis=axis, reduction=b.attr("reduction", "none"))


@rule("ScatterND")
def scatter_nd(b: OnnxImporter, x: Tensor, ids: Tensor, updates: Tensor) -> Tensor:
    """Write rows of the tensor whose indexed axes are one: one index for each number of a row."""
    depth, flat = _split_index(b, x, ids, 0)
    rest = x.shape[depth:]
    width: Any = 1
    for n in rest:
        width = width * n
    rows = b.reshape(updates, (-1, width))
    places = b.emit("expand", b.reshape(flat, (-1, 1)), shape=rows.shape)
    merged = b.reshape(x, (-1, width))
    written = b.emit("scatter", merged, places, rows, axis=0, reduction=b.attr("reduction", "none"))
    return b.reshape(written, x.shape)


@rule("OneHot")
def one_hot(b: OnnxImporter, ids: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    count = b.number(depth)
    count = count if isinstance(count, Symbolic) else int(count)
    axis = axis_of(b.attr("axis", -1), ids.rank + 1)
    shape = (*ids.shape[:axis], 1, *ids.shape[axis:])
    own = b.reshape(_from_front(b, b.cast(ids, "int64"), count), shape)
    numbers = b.reshape(b.emit("arange", end=count), (count, *(1,) * (ids.rank - axis)))
    here = b.emit("eq", own, numbers)
    off, on = (b.reshape(b.slice(values, 0, i, i + 1), ()) for i in (0, 1))
    return b.emit("where", here, on, off)


@rule("ReverseSequence")
def reverse_sequence(b: OnnxImporter, x: Tensor, lengths: Tensor) -> Tensor:
    batch, time = b.attr("batch_axis", 1), b.attr("time_axis", 0)
    position = _positions(b, x.shape, time)
    size = b.reshape(b.cast(lengths, "int64"), [n if a == batch else 1 for a, n in enumerate(x.shape)])
    backwards = b.emit("sub", b.binary("sub", size, as_known(1, "int64")), position)
    ids = b.emit("where", b.emit("lt", position, size), backwards, position)
    ids = b.emit("expand", ids, shape=x.shape)
    every = [ids if a == time else _positions(b, x.shape, a) for a in range(x.rank)]
    places = b.reshape(_flat(b, x.shape, every), (-1,))
    return b.reshape(b.emit("index_select", b.reshape(x, (-1,)), places, axis=0), x.shape)
