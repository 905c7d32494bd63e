"""Indexing by tensors, and what can be expressed by it."""

import math
from typing import Any

import torch

from pqnet_converters.torch.aten.registry import rule
from pqnet_converters.torch.importer import Dim, Importer, Tensor

VIEWS = ("aten.unsqueeze", "aten.view", "aten.slice", "aten.expand", "aten.clone", "aten.alias")


@rule("aten.index_select.default")
def index_select(b: Importer, x: Tensor, axis: int, ids: Tensor) -> str:
    return b.emit("index_select", x, b.cast(ids, "int64"), axis=axis % x.rank)


@rule("aten.index.Tensor")
def index(b: Importer, x: Tensor, indices: Any) -> str:
    if any(ids is not None and ids.dtype in ("bool", "uint8") for ids in indices):
        raise b.refuse("expected integers as indices, got booleans, whose result has no fixed size")
    nodes = b.node.args[1]
    axes = [i for i, ids in enumerate(indices) if ids is not None]
    return _select(b, x, {a: _non_negative(b, b.cast(indices[a], "int64"), x.shape[a], nodes[a]) for a in axes})


@rule("aten.gather.default")
def gather(b: Importer, x: Tensor, axis: int, ids: Tensor, *_: Any) -> str:
    """Index every other axis by its own positions."""
    axis %= x.rank
    indices: dict[int, Tensor | str] = {}
    for a, size in enumerate(ids.shape):
        own = ids if a == axis else b.emit("arange", end=size)
        indices[a] = own if a == axis else b.emit("reshape", own, shape=(size,) + (1,) * (ids.rank - 1 - a))
    return _select(b, x, indices)


def _select(b: Importer, x: Tensor, indices: dict[int, Tensor | str]) -> str:
    """Merge the indexed axes into one, select from it, and give the result the shape that torch says."""
    axes = list(indices)
    first = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0  # torch puts the result there
    rest = [a for a in range(x.rank) if a not in axes]
    order = (*rest[:first], *axes, *rest[first:])
    source: Tensor | str = x if order == tuple(range(x.rank)) else b.emit("permute", x, axes=order)
    if len(axes) > 1:
        shape = [x.shape[a] for a in order]
        source = b.emit("reshape", source, shape=(*shape[:first], -1, *shape[first + len(axes) :]))
    flat = indices[axes[0]]
    for axis in axes[1:]:
        flat = b.emit("add", counted(b, "mul", flat, x.shape[axis]), indices[axis])
    ids = b.emit("reshape", flat, shape=(-1,))
    return b.emit("reshape", b.emit("index_select", source, ids, axis=first), shape=b.out_shape())


def _non_negative(b: Importer, ids: Tensor, size: Dim, node: Any) -> Tensor | str:
    """Return the indices counted from the front of an axis."""
    if ids.data is not None and isinstance(size, int):
        return Tensor(ids.shape, ids.dtype, data=torch.remainder(ids.data, size))
    while str(node.target).startswith(VIEWS):
        node = node.args[0]
    if str(node.target) == "aten.arange.start_step" and isinstance(node.args[0], int) and node.args[0] >= 0:
        return ids
    return b.emit("where", b.emit("lt", ids, scalar=0), counted(b, "add", ids, size), ids)


def counted(b: Importer, op: str, ids: Tensor | str, size: Dim) -> str:
    """Emit an operation of indices with the size of an axis."""
    return b.emit(op, ids, b.size(size)) if isinstance(size, str) else b.emit(op, ids, scalar=size)


@rule("aten.unfold.default")
def unfold(b: Importer, x: Tensor, axis: int, size: int, step: int) -> Tensor | str:
    """Select the elements of all windows, one after the other, then put those of a window into the last axis."""
    if x.rank == 0:
        return b.emit("reshape", x, shape=b.out_shape())
    axis %= x.rank
    count = b.out_shape()[axis]
    starts = b.emit("reshape", b.emit("mul", b.emit("arange", end=count), scalar=step), shape=(count, 1))
    ids = b.emit("reshape", b.emit("add", starts, b.emit("arange", end=size)), shape=(-1,))
    windows = b.emit("index_select", x, ids, axis=axis)
    apart = b.emit("reshape", windows, shape=(*x.shape[:axis], count, size, *x.shape[axis + 1 :]))
    if axis == x.rank - 1:
        return apart
    return b.emit("permute", apart, axes=(*range(axis + 1), *range(axis + 2, x.rank + 1), axis + 1))


@rule("aten.flip.default")
def flip(b: Importer, x: Tensor, axes: Any) -> Tensor | str:
    y: Tensor | str = x
    for axis in axes:
        y = b.emit("slice", y, axis=axis % x.rank, start=-1, step=-1)
    return y


@rule("aten.roll.default")
def roll(b: Importer, x: Tensor, shifts: Any, axes: Any) -> Tensor | str:
    """Take the last elements of each axis first; without axes those of all elements in a row."""
    if not axes:
        row = b.emit("reshape", x, shape=(-1,))
        return b.emit("reshape", _rolled(b, row, 0, shifts[0], math.prod(map(b.fixed, x.shape))), shape=x.shape)
    y: Tensor | str = x
    for shift, axis in zip(shifts, axes, strict=True):
        y = _rolled(b, y, axis % x.rank, shift, x.shape[axis])
    return y


def _rolled(b: Importer, x: Tensor | str, axis: int, shift: Any, size: Dim) -> Tensor | str:
    """Swap the elements before and behind the place that comes first."""
    if isinstance(shift, int) and isinstance(size, int):
        first: Dim = -shift % max(size, 1)
        if first == 0:
            return x
    else:
        first = f"(-{shift})-({size})*((-{shift})//({size}))"
    return b.emit(
        "concat", b.emit("slice", x, axis=axis, start=first), b.emit("slice", x, axis=axis, stop=first), axis=axis
    )


@rule("aten.index_put.default")
def index_put(b: Importer, x: Tensor, indices: Any, value: Tensor, accumulate: bool) -> str:
    """Choose one value where a mask says so, or at places along the first axes, which are made into a mask."""
    ids = [i for i in indices if i is not None]
    if accumulate or (value.rank > 0 and any(size != 1 for size in value.shape)) or len(ids) != len(indices):
        raise b.refuse("expected one value that is written along the first axes, got several")
    if len(ids) == 1 and ids[0].dtype in ("bool", "uint8"):
        mask: Tensor | str = b.cast(ids[0], "bool")
        shape = ids[0].shape
    else:
        mask, shape = _places(b, x, ids), x.shape[: len(ids)]
    mask = b.emit("reshape", mask, shape=(*shape, *(1,) * (x.rank - len(shape))))
    written = b.cast(value, x.dtype)
    return b.emit("where", mask, b.emit("reshape", written, shape=()) if value.rank else written, x)


def _places(b: Importer, x: Tensor, ids: list[Tensor]) -> str:
    """Return a mask over the first axes that is true at the places that lists of indices name together."""
    if any(i.rank > 1 for i in ids):
        raise b.refuse("expected lists of indices, got indices with several axes")
    found: str | None = None
    for axis, i in enumerate(ids):
        numbers = _non_negative(b, b.cast(i, "int64"), x.shape[axis], b.node.args[1][axis])
        column = b.emit("reshape", numbers, shape=(-1, *(1,) * len(ids)))
        own = (1, *(x.shape[axis] if a == axis else 1 for a in range(len(ids))))
        same = b.emit("eq", column, b.emit("reshape", b.emit("arange", end=x.shape[axis]), shape=own))
        found = same if found is None else b.emit("logical_and", found, same)
    assert found is not None
    return b.emit("max", found, axes=(0,), keepdims=False)
