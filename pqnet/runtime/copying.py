"""Copies between views, and fills, as steps."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from pqnet.kernels.ops.copy import AXES, FILL, ROWS, SINGLE, TRANSPOSED, copy, copy_elements
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.builder import Builder
from pqnet.runtime.memory import ITEMSIZE, View, merge_axes

__all__ = ["dense", "emit_copy", "emit_fill"]

WORK = 16384  # elements a task, at least
TASKS = 32

Axis = tuple[int, ...]  # size, step of the source, step of the target


def _axes(shape: Sequence[int], source: Sequence[int], target: Sequence[int]) -> list[Axis]:
    """Return the axes from outermost to innermost in the target, those that follow each other in both as one."""
    order = sorted(range(len(shape)), key=lambda a: (-abs(target[a]), -shape[a]))
    return merge_axes(*([each[a] for a in order] for each in (shape, source, target)))


def emit_copy(b: Builder, source: View, target: View, label: str) -> None:
    """Append the steps that copy a view into another of its shape; they may not share elements."""
    _emit(b, source, _axes(source.shape, source.strides, target.strides), target, label)


def dense(b: Builder, view: View, order: Sequence[int]) -> View:
    """Return a copy of a view, stored densely with its axes in ``order``."""
    out = b.new(view.shape, order, view.dtype)
    emit_copy(b, view, out, "copy")
    return out


def emit_fill(b: Builder, value: Any, target: View, label: str) -> None:
    """Append the steps that set every element of a view to a number of its dtype."""
    number = np.array([value]).astype(target.dtype)
    if number.itemsize == 4:
        at = b.constant(("numbers", number.tobytes()), lambda: number.view(np.float32))
    else:
        at = b.table(number)
    _emit(b, at, _axes(target.shape, [0] * len(target.shape), target.strides), target, label)


def _emit(b: Builder, source: View | int, axes: list[Axis], target: View, label: str) -> None:
    """Append the steps that copy a view along axes, or fill the target with a constant."""
    if 0 in target.shape:
        return
    fill = not isinstance(source, View)
    if not axes or (fill and axes[-1][2] != 1):
        axes = [*axes, (1, 1, 1)]
    if len(axes) > AXES:  # one step for each index of the outermost axis
        (size, x_step, step), *rest = axes
        shape, x_steps, steps = zip(*rest, strict=True)
        for i in range(size):
            part = source.with_axes(shape, x_steps, i * x_step) if isinstance(source, View) else source
            _emit(b, part, rest, target.with_axes(shape, steps, i * step), label)
        return
    if ITEMSIZE[target.dtype] != 4:
        _emit_elements(b, source, axes, target, label)
        return
    inner, mode = axes[-1], FILL if fill else SINGLE
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
    sizes = [size for size, _, _ in axes]
    rows, columns = sizes[-2:]
    # Blocks of rows, so that a single large matrix makes several tasks, too.
    outer = prod(sizes[:3])
    total = outer * rows * columns
    least = max(WORK, -(-total // TASKS))
    grain = WIDTH if mode == TRANSPOSED else 1
    block = min(-(-max(least // columns, 1) // grain) * grain, rows)
    units = outer * -(-rows // block)
    per_task = max(least // (block * columns), 1)
    arguments = _operands(source, axes, target) | {
        "mode": mode,
        "block": block,
        "per_task": per_task,
        "last_row": tail,
    }
    reads = [source] if isinstance(source, View) else []
    tasks, scratch = -(-units // per_task), 2 * WIDTH * WIDTH
    b.emit(copy, label, tasks, arguments, reads=reads, writes=[target], scratch=scratch)


def _operands(source: View | int, axes: list[Axis], target: View) -> dict[str, Any]:
    """Return the arguments that the kernels of copies have in common; ``axes`` are AXES."""
    sizes, x_steps, steps = zip(*axes, strict=True)
    x, value = (source, -1) if isinstance(source, View) else (-1, source)
    return {"x": x, "value": value, "out": target, "sizes": sizes, "x_steps": x_steps, "steps": steps}


def _emit_elements(b: Builder, source: View | int, axes: list[Axis], target: View, label: str) -> None:
    """Append the step that copies, or fills, elements that do not have 4 bytes."""
    axes = [(1, 0, 0)] * (AXES - len(axes)) + axes
    rows = prod(size for size, _, _ in axes[:-1])
    per_task = min(max(WORK // axes[-1][0], -(-rows // TASKS), 1), rows)
    arguments = _operands(source, axes, target) | {
        "element": ITEMSIZE[target.dtype],
        "per_task": per_task,
    }
    reads = [source] if isinstance(source, View) else []
    b.emit(copy_elements, label, -(-rows // per_task), arguments, reads=reads, writes=[target])
