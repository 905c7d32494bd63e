"""Products of two values."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from pqnet.graph import Node
from pqnet.graph.op import broadcast_shape
from pqnet.kernels.products.matmul import matmul, vector_matmul
from pqnet.kernels.products.tile import LANES, ROWS
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.copying import dense
from pqnet.runtime.fusion import Epilogue, fuse_product
from pqnet.runtime.memory import View, round_up

PIECE = 384  # of a sum
PACKED, SUMS = 48 * 1024, 32 * 1024  # floats a task, in the second-level cache
TASKS, WORK = 32, 65536  # tasks at most where they are small, multiply-adds a task at least
COPY = 1.5  # cycles of an element that is copied first


@dataclass(frozen=True)
class _Operand:
    """One of the two values as a batch of matrices; its lanes and rows lie along ``axis``, sums along ``inner``."""

    view: View
    axis: int
    inner: int

    @property
    def size(self) -> int:
        """Number of rows or lanes."""
        return self.view.shape[self.axis]

    @property
    def step(self) -> int:
        """Step of the rows or lanes; 1 if there is a single one."""
        return self.view.strides[self.axis] if self.size > 1 else 1

    @property
    def inner_step(self) -> int:
        """Step of the elements of a sum."""
        return self.view.strides[self.inner]

    def side_by_side(self, b: Builder) -> "_Operand":
        """Return the operand with its lanes side by side, copied if need be."""
        if self.step == 1:
            return self
        order = (*range(len(self.view.shape) - 2), self.inner, self.axis)
        return _Operand(dense(b, self.view, order), self.axis, self.inner)

    def places(self, batch: tuple[int, ...]) -> np.ndarray:
        """Return how far the matrices are behind the first one."""
        return _offsets(self.view.expand((*batch, *self.view.shape[-2:])), len(batch))


def _offsets(view: View, axes: int) -> np.ndarray:
    """Return the offsets of all points of the first axes."""
    offsets = np.zeros(1, np.int64)
    for size, step in zip(view.shape[:axes], view.strides[:axes], strict=True):
        offsets = (offsets[:, None] + np.arange(size) * step).reshape(-1)
    return offsets


@lowers("matmul")
def lower_matmul(b: Builder, node: Node, x: list[View]) -> View:
    """Lower a product; matrices of the first value that meet the same one become a single one."""
    shape = b.info(node.outputs[0]).shape
    left = x[0] if len(x[0].shape) > 1 else x[0].with_axes((1, *x[0].shape), (0, *x[0].strides))
    right = x[1] if len(x[1].shape) > 1 else x[1].with_axes((*x[1].shape, 1), (*x[1].strides, 0))
    if prod(right.shape[:-2]) == 1 < len(left.shape) - 1:
        flat = left.reshape((prod(left.shape[:-1]), left.shape[-1]))
        if flat is not None:
            left, right = flat, right.with_axes(right.shape[-2:], right.strides[-2:])
    batch = broadcast_shape(left.shape[:-2], right.shape[:-2])
    size = *batch, left.shape[-2], right.shape[-1]
    row, column = len(size) - 2, len(size) - 1
    first = _Operand(left, len(left.shape) - 2, len(left.shape) - 1)
    second = _Operand(right, len(right.shape) - 1, len(right.shape) - 2)
    rows_as_lanes = _cost(first, second) <= _cost(second, first)
    lanes, rows = (first, second) if rows_as_lanes else (second, first)
    inner_axes = (column, row) if rows_as_lanes else (row, column)
    # Results of heads are stored as attention stores them: heads, features, images, tokens.
    order = (1, inner_axes[0], 0, inner_axes[1]) if len(size) == 4 else (*range(len(batch)), *inner_axes)
    out = b.new(size, order)
    value = out.reshape(shape)
    assert value is not None  # only matrices that were one become several again
    end = fuse_product(b, node, value, rows.size, out.strides[inner_axes[0]])
    if rows.size == 1:
        _emit_vector(b, node, rows, lanes, batch, out, end)
    else:
        _emit_tiles(b, node, rows, lanes.side_by_side(b), batch, out, end)
    for each in end.nodes:
        b.finish(each, value)
    return value


def _cost(lanes: _Operand, rows: _Operand) -> float:
    """Return about how many cycles a product takes with these lanes."""
    inner, both = lanes.view.shape[lanes.inner], prod(lanes.view.shape[:-2])
    batch = max(both, prod(rows.view.shape[:-2]))
    if rows.size == 1:
        copied = 0 if 1 in (lanes.step, lanes.inner_step) else COPY * both
        return inner * lanes.size * (batch / WIDTH + copied)
    copied = 0 if lanes.step == 1 else COPY * both
    vectors = round_up(lanes.size, WIDTH) / WIDTH
    return inner * (lanes.size * copied + batch * vectors * (1 + round_up(rows.size, ROWS) / 2))


def _places(b: Builder, rows: _Operand, lanes: _Operand, batch: tuple[int, ...], out: View) -> int:
    each = rows.places(batch), lanes.places(batch), _offsets(out, len(batch))
    return b.table(np.stack(each, 1))


def _emit_tiles(
    b: Builder, node: Node, rows: _Operand, lanes: _Operand, batch: tuple[int, ...], out: View, end: Epilogue
) -> None:
    inner = rows.view.shape[rows.inner]
    cut, tasks, scratch = _cut(prod(batch), rows.size, lanes.size, inner)
    arguments: dict[str, Any] = {
        "end": end.arguments(b),
        "a": rows.view,
        "x": lanes.view,
        "places": _places(b, rows, lanes, batch, out),
        "batch": prod(batch),
        "rows": rows.size,
        "lanes": lanes.size,
        "inner": inner,
        "a_row": rows.step,
        "a_inner": rows.inner_step,
        "x_inner": lanes.inner_step,
    }
    reads = [rows.view, lanes.view, *end.reads]
    b.emit(matmul, node.name, tasks, arguments | cut, reads=reads, writes=[out], scratch=scratch)


@lru_cache(maxsize=1024)
def _cut(batch: int, rows: int, lanes: int, inner: int) -> tuple[dict[str, int], int, int]:
    """Return how work is cut: arguments of `kernels.products.matmul`, the number of tasks, the floats of scratch."""
    pieces = -(-inner // PIECE) if inner > PIECE + PIECE // 3 else 1
    piece = -(-inner // pieces)
    total = -(-lanes // LANES)
    tiles, row_block = min(total, max(PACKED // (piece * LANES), 1), 8), round_up(rows, ROWS)
    if pieces > 1:
        row_block = min(row_block, round_up(max(SUMS // (tiles * LANES), ROWS), ROWS))
    while batch * -(-total // tiles) * -(-rows // row_block) < TASKS and row_block * tiles * LANES * inner > 2 * WORK:
        if row_block > 4 * ROWS:
            row_block = round_up(row_block // 2, ROWS)
        elif tiles > 1:
            tiles = -(-tiles // 2)
        else:
            break
    row_tasks, lane_tasks = -(-rows // row_block), -(-total // tiles)
    units = batch * row_tasks * lane_tasks
    per_task = max(min(-(-WORK // (row_block * tiles * LANES * inner)), -(-units // 4)), 1)
    sums = tiles * (piece + 1) * LANES
    panel = sums + (row_block if pieces > 1 else ROWS) * tiles * LANES
    cut = {
        "piece": piece,
        "row_block": row_block,
        "tiles": tiles,
        "row_tasks": row_tasks,
        "lane_tasks": lane_tasks,
        "per_task": per_task,
        "sums": sums,
        "panel": panel,
    }
    return cut, -(-units // per_task), panel + ROWS * piece


def _emit_vector(
    b: Builder, node: Node, vector: _Operand, lanes: _Operand, batch: tuple[int, ...], out: View, end: Epilogue
) -> None:
    if 1 not in (lanes.step, lanes.inner_step):
        lanes = lanes.side_by_side(b)
    inner, products = vector.view.shape[vector.inner], prod(batch)
    blocks = max(min(-(-TASKS // products), lanes.size * inner // WORK), 1)
    block = round_up(-(-lanes.size // blocks), 4 * WIDTH)
    lane_tasks = -(-lanes.size // block)
    units = products * lane_tasks
    per_task = max(min(-(-WORK // (block * inner)), -(-units // 4)), 1)
    sums = round_up(inner, WIDTH)
    arguments = {
        "end": end.arguments(b),
        "a": vector.view,
        "x": lanes.view,
        "places": _places(b, vector, lanes, batch, out),
        "batch": products,
        "lanes": lanes.size,
        "inner": inner,
        "a_inner": vector.inner_step,
        "x_inner": lanes.inner_step,
        "x_lane": lanes.step,
        "block": block,
        "lane_tasks": lane_tasks,
        "per_task": per_task,
        "sums": sums,
    }
    reads = [vector.view, lanes.view, *end.reads]
    tasks, scratch = -(-units // per_task), sums + block + 4 * WIDTH
    b.emit(vector_matmul, node.name, tasks, arguments, reads=reads, writes=[out], scratch=scratch)
