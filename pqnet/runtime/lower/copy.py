"""Copies between views, and the operations that are copies: concat, pad, whole enlargements by the nearest pixel."""

from collections.abc import Sequence
from math import prod

from pqnet.graph import Node
from pqnet.kernels.copy import FILL, NUMBERS, ROWS, TRANSPOSED, copy
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.builder import Builder, channel_major, lowers
from pqnet.runtime.views import View

__all__ = ["dense", "emit_copy", "emit_fill"]

AXES = 5
WORK = 16384  # numbers a task, at least
TASKS = 32

Axis = tuple[int, int, int]  # size, step of the source, step of the target


def _merged(shape: Sequence[int], source: Sequence[int], target: Sequence[int]) -> list[Axis]:
    """Return the axes from outermost to innermost in the target, those that follow each other in both as one."""
    axes = [axis for axis in zip(shape, source, target, strict=True) if axis[0] != 1]
    out: list[Axis] = []
    for size, x, to in sorted(axes, key=lambda axis: (-abs(axis[2]), -axis[0])):
        if out and out[-1][1] == x * size and out[-1][2] == to * size:
            out[-1] = out[-1][0] * size, x, to
        else:
            out.append((size, x, to))
    return out


def emit_copy(b: Builder, source: View, target: View, label: str) -> None:
    """Append the steps that copy a view into another of its shape; they may not share elements."""
    _emit(b, source, _merged(source.shape, source.strides, target.strides), source, target, label, fill=False)


def dense(b: Builder, view: View, order: Sequence[int]) -> View:
    """Return a copy of a view, stored densely with its axes in ``order``."""
    out = b.new(view.shape, order)
    emit_copy(b, view, out, "copy")
    return out


def emit_fill(b: Builder, value: float, target: View, label: str) -> None:
    """Append the steps that set every element of a view."""
    at = b.constant(("scalar", value), lambda: value)
    _emit(b, at, _merged(target.shape, [0] * len(target.shape), target.strides), None, target, label, fill=True)


def _emit(
    b: Builder, x: int | View, axes: list[Axis], source: View | None, target: View, label: str, fill: bool
) -> None:
    if 0 in target.shape:
        return
    if not axes or (fill and axes[-1][2] != 1):
        axes = [*axes, (1, 1, 1)]
    if len(axes) > AXES:  # one step for each index of the outermost axis
        (size, x_step, step), *rest = axes
        for i in range(size):
            part = View(target.buffer, target.offset + i * step, target.shape, target.strides)
            moved = source and View(source.buffer, source.offset + i * x_step, source.shape, source.strides)
            _emit(b, moved or x, rest, moved, part, label, fill)
        return
    inner, mode = axes[-1], FILL if fill else NUMBERS
    across = [axis for axis in axes[:-1] if axis[1] == 1 and min(axis[0], inner[0]) >= WIDTH // 2]
    if not fill and inner[1:] == (1, 1):
        mode = ROWS
    elif not fill and inner[2] == 1 and across:
        mode = TRANSPOSED
        axes = [*(axis for axis in axes[:-1] if axis != across[-1]), across[-1], inner]
    elif not fill and inner[0] < WIDTH:  # the inner loop is the next axis of some length, if there is one
        at = next((i for i in reversed(range(len(axes))) if axes[i][0] >= WIDTH), -1)
        axes = [*axes[:at], *axes[at + 1 :], axes[at]] if at >= 0 else axes
    tail = inner[0]
    if mode in (ROWS, FILL) and inner[0] > 2 * WORK and len(axes) < AXES:  # a long row is cut in several
        tail = (inner[0] - 1) % WORK + 1
        axes = [*axes[:-1], (-(-inner[0] // WORK), WORK * inner[1], WORK), (WORK, *inner[1:])]
    axes = [(1, 0, 0)] * (AXES - len(axes)) + axes
    sizes, x_steps, steps = (list(t) for t in zip(*axes, strict=True))
    _, _, _, rows, columns = sizes
    # Blocks of rows, so that a single large matrix makes several tasks, too.
    outer = prod(sizes[:3])
    total = outer * rows * columns
    least = max(WORK, -(-total // TASKS))
    grain = WIDTH if mode == TRANSPOSED else 1
    block = min(-(-max(least // columns, 1) // grain) * grain, rows)
    units = outer * -(-rows // block)
    per_task = max(least // (block * columns), 1)
    fields: list[int | View] = [x, target, *sizes, *x_steps, *steps, mode, block, per_task, tail]
    reads = [source] if source else []
    b.emit(copy, label, -(-units // per_task), fields, reads=reads, writes=[target], scratch=2 * WIDTH * WIDTH)


@lowers("concat")
def concat(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a concatenation: each input is copied to its place."""
    axis, start = b.attrs(node)["axis"], 0
    shape = b.info(node.outputs[0]).shape
    out = b.new(shape, channel_major(len(shape)))
    for view in x:
        emit_copy(b, view, out.slice(axis, start, view.shape[axis]), node.name)
        start += view.shape[axis]
    return out


@lowers("pad")
def pad(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower padding: the input is copied to its place, then the borders are made axis by axis."""
    a = b.attrs(node)
    shape = b.info(node.outputs[0]).shape
    out = b.new(shape, channel_major(len(shape)))
    source, inside = x[0], out
    for axis, (before, after) in enumerate(zip(a["padding"][::2], a["padding"][1::2], strict=True)):
        source = source.slice(axis, max(-before, 0), source.shape[axis] + min(before, 0) + min(after, 0))
        inside = inside.slice(axis, max(before, 0), source.shape[axis])
    emit_copy(b, source, inside, node.name)
    done = inside
    for axis, (before, after) in enumerate(zip(a["padding"][::2], a["padding"][1::2], strict=True)):
        size = done.shape[axis]
        for count, first, near in ((before, -before, 0), (after, size, size - 1)):
            if count <= 0:
                continue
            border = done.slice(axis, first, count)
            if a["mode"] == "constant":
                emit_fill(b, a["value"], border, node.name)
            elif a["mode"] == "replicate":
                emit_copy(b, done.slice(axis, near, 1).expand(border.shape), border, node.name)
            else:  # a mirror at the last pixel
                start = count if first < 0 else size - 2
                emit_copy(b, done.slice(axis, start, count, -1), border, node.name)
        grown = max(before, 0) + size + max(after, 0)
        done = done.slice(axis, -max(before, 0), grown)
    return out


@lowers("interpolate")
def enlarge(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower an enlargement by whole factors, each pixel copied to a rectangle."""
    a = b.attrs(node)
    batch, channels, height, width = x[0].shape
    rows, columns = a["size"]
    if a["mode"] != "nearest" or rows % height or columns % width:
        return None
    out = b.new((batch, channels, rows, columns), (1, 0, 2, 3))
    fine = (batch, channels, height, rows // height, width, columns // width)
    flat = View(x[0].buffer, x[0].offset, (batch, channels, height, 1, width, 1), _spread(x[0].strides))
    target = out.reshape(fine)
    assert target is not None
    emit_copy(b, flat.expand(fine), target, node.name)
    return out


def _spread(strides: tuple[int, ...]) -> tuple[int, ...]:
    return (*strides[:3], 0, strides[3], 0)
