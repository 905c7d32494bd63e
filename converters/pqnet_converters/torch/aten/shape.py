"""Operations that move or repeat elements."""

import sys
from typing import Any

from pqnet_converters.torch.aten.elementwise import as_number
from pqnet_converters.torch.aten.registry import rule
from pqnet_converters.torch.importer import Dim, Importer, Tensor


@rule(
    *("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default", "aten.unsqueeze.default"),
    *("aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze.default", "aten.flatten.using_ints", "aten.unflatten.int"),
)
def reshape(b: Importer, x: Tensor, *_: Any) -> Tensor | str:
    shape = b.out_shape()
    return x if shape == x.shape else b.emit("reshape", x, shape=shape)


@rule("aten.permute.default")
def permute(b: Importer, x: Tensor, axes: Any) -> str:
    return b.emit("permute", x, axes=tuple(a % x.rank for a in axes))


@rule("aten.expand.default", "aten.expand_as.default")
def expand(b: Importer, x: Tensor, *_: Any) -> Tensor | str:
    shape = b.out_shape()
    return x if shape == x.shape else b.emit("expand", x, shape=shape)


@rule("aten.repeat.default")
def repeat(b: Importer, x: Tensor, repeats: Any) -> str:
    """Give every axis a unit axis before it, widen that one, and merge the two."""
    sizes = (1,) * (len(repeats) - x.rank) + x.shape
    apart: tuple[Dim, ...] = tuple(d for size in sizes for d in (1, size))
    wide: tuple[Dim, ...] = tuple(d for pair in zip(repeats, sizes, strict=True) for d in pair)
    copies = b.emit("expand", b.emit("reshape", x, shape=apart), shape=wide)
    return b.emit("reshape", copies, shape=b.out_shape())


@rule("aten.slice.Tensor")
def slice_axis(b: Importer, x: Tensor, axis: int, start: Any, stop: Any, step: int) -> Tensor | str:
    if start in (0, None) and stop in (sys.maxsize, None) and step == 1:
        return x
    return b.emit("slice", x, axis=axis % x.rank, step=step, **_bounds(start, stop))


def _bounds(start: Any, stop: Any) -> dict[str, Any]:
    bounds: dict[str, Any] = {"start": 0 if start is None else start}
    return bounds if stop in (sys.maxsize, None) else {**bounds, "stop": stop}


@rule("aten.select.int")
def select(b: Importer, x: Tensor, axis: int, index: Any) -> str:
    stop = None if index == -1 else f"{index}+1" if isinstance(index, str) else index + 1
    row = b.emit("slice", x, axis=axis % x.rank, **_bounds(index, stop))
    return b.emit("reshape", row, shape=b.out_shape())


@rule("aten.slice_scatter.default")
def slice_scatter(b: Importer, x: Tensor, source: Tensor, axis: int, start: Any, stop: Any, step: int) -> Tensor | str:
    axis %= x.rank
    if source.shape == x.shape:
        return source
    if step != 1:
        raise b.refuse(f"expected an assignment to adjacent rows, got a step of {step}")
    size, written = x.shape[axis], source.shape[axis]
    parts: list[Tensor | str] = [source]
    if isinstance(size, int) and isinstance(written, int) and not isinstance(start, str):
        begin = slice(start, None).indices(size)[0]
        first: Dim = begin
        behind: Dim = begin + written
    else:  # parts of no elements are right
        first = 0 if start is None else f"({size})+{start}" if isinstance(start, int) and start < 0 else start
        behind = f"({first})+{written}"
    if first != 0:
        parts.insert(0, b.emit("slice", x, axis=axis, start=0, stop=first))
    if behind != size:
        parts.append(b.emit("slice", x, axis=axis, start=behind))
    return b.emit("concat", *parts, axis=axis)


@rule("aten.copy.default")
def copy(b: Importer, x: Tensor, source: Tensor, *_: Any) -> Tensor | str:
    value = b.cast(source, x.dtype)
    return value if source.shape == x.shape else b.emit("expand", value, shape=x.shape)


@rule("aten.cat.default")
def cat(b: Importer, tensors: Any, axis: int) -> str:
    """Join tensors; those of shape (0,), caches that are empty yet, fit to any."""
    dtype, rank = b.out_dtype(), len(b.out_shape())
    parts = [b.cast(x, dtype) for x in tensors if x.rank == rank and x.shape != (0,)]
    return b.emit("concat", *parts, axis=axis % rank) if len(parts) > 1 else b.value(parts[0])


@rule("aten.stack.default")
def stack(b: Importer, tensors: Any, axis: int) -> str:
    """Join tensors along a new axis."""
    dtype, shape = b.out_dtype(), b.out_shape()
    axis %= len(shape)
    wide = (*shape[:axis], 1, *shape[axis + 1 :])
    parts = [b.emit("reshape", b.cast(x, dtype), shape=wide) for x in tensors]
    return b.emit("concat", *parts, axis=axis) if len(parts) > 1 else parts[0]


@rule("aten.split_with_sizes.default", "aten.split.Tensor", "aten.unbind.int")
def split(b: Importer, x: Tensor, *arguments: Any) -> tuple[str, ...]:
    parts = range(len(b.node.meta["val"]))
    axis = arguments[-1] % x.rank
    if len(arguments) == 2:
        sizes = tuple(b.out_shape(i)[axis] for i in parts)
        return b.emit_many("split", (x,), len(sizes), axis=axis, sizes=sizes)
    rows = b.emit_many("split", (x,), len(parts), axis=axis, sizes=(1,) * len(parts))
    return tuple(b.emit("reshape", row, shape=b.out_shape(i)) for i, row in enumerate(rows))


def _pad(b: Importer, x: Tensor, padding: Any, **attrs: Any) -> str:
    """torch lists the padding of the last axis first, the graph that of the first axis."""
    pairs = [(padding[i], padding[i + 1]) for i in range(0, len(padding), 2)]
    every = [(0, 0)] * (x.rank - len(pairs)) + pairs[::-1]
    return b.emit("pad", x, padding=tuple(n for pair in every for n in pair), **attrs)


@rule("aten.constant_pad_nd.default")
def constant_pad(b: Importer, x: Tensor, padding: Any, value: Any) -> str:
    return _pad(b, x, padding, value=as_number(b.number(value), x.dtype))


@rule("aten.reflection_pad1d.default", "aten.reflection_pad2d.default")
def reflection_pad(b: Importer, x: Tensor, padding: Any) -> str:
    return _pad(b, x, padding, mode="reflect")


@rule("aten.replication_pad1d.default", "aten.replication_pad2d.default")
def replication_pad(b: Importer, x: Tensor, padding: Any) -> str:
    return _pad(b, x, padding, mode="replicate")


def circular_pad(b: Importer, x: Tensor, padding: Any) -> Tensor | str:
    """Put the last elements of each axis before it and the first behind it."""
    y: Tensor | str = x
    for i in range(0, len(padding), 2):
        axis = x.rank - 1 - i // 2
        before, behind = b.fixed(padding[i]), b.fixed(padding[i + 1])
        parts = [y]
        if before > 0:
            parts.insert(0, b.emit("slice", y, axis=axis, start=-before))
        if behind > 0:
            parts.append(b.emit("slice", y, axis=axis, stop=behind))
        y = b.emit("concat", *parts, axis=axis) if len(parts) > 1 else y
        if min(before, behind) < 0:
            raise b.refuse(f"expected circular padding that is not negative, got {padding}")
    return y


PADS = {"reflect": reflection_pad, "replicate": replication_pad, "circular": circular_pad}


@rule("aten.pad.default")
def pad(b: Importer, x: Tensor, padding: Any, mode: str, value: Any) -> Tensor | str:
    if mode == "constant":
        return constant_pad(b, x, padding, 0 if value is None else value)
    return PADS[mode](b, x, padding)
