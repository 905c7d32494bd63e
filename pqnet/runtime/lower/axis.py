"""What runs along an axis: layer norm, softmax, sums, means and extremes."""

from dataclasses import dataclass
from math import prod

import numpy as np

from pqnet.graph import Node
from pqnet.kernels.norm import layer_norm, softmax
from pqnet.kernels.pool import reduce_axis
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.lower.copy import dense
from pqnet.runtime.views import View

WORK = 16384  # numbers a task, at least
TASKS = 16


@dataclass
class Rows:
    """A value as rows of ``n`` numbers, ``step`` apart, in two outer axes and lanes; ``kept`` has the other axes."""

    x: View
    kept: tuple[int, ...]  # axes that are not of the row, from outermost to innermost storage
    n: int
    step: int
    outer: list[tuple[int, int]]  # (size, step), two of them
    lanes: int

    @property
    def per_task(self) -> tuple[int, int]:
        """Rows and lanes a task."""
        rows = self.outer[0][0] * self.outer[1][0]
        lanes = self.lanes
        if rows < TASKS and lanes > WIDTH:
            wanted = min(-(-TASKS // rows), max(rows * lanes * self.n // WORK, 1))
            lanes = -(-lanes // (wanted * WIDTH)) * WIDTH
        least = max(WORK // (self.n * lanes), 1)
        return min(max(least, -(-rows // 64)), rows), lanes


def _rows(b: Builder, x: View, axes: tuple[int, ...]) -> Rows:
    """Return a value as rows along ``axes``, copied if its storage does not allow it."""
    order = x.order()
    row = [a for a in order if a in axes and x.shape[a] > 1]
    kept = [a for a in order if a not in axes and x.shape[a] > 1]
    merged = _merge(x, row)
    outer = _merge(x, kept)
    lanes = outer.pop() if outer and outer[-1][1] == 1 else (1, 0)
    if len(merged) > 1 or len(outer) > 2 or (lanes[0] == 1 and merged and merged[0][1] != 1):
        others = tuple(a for a in range(len(x.shape)) if a not in axes)
        return _rows(b, dense(b, x, (*sorted(axes), *others)), axes)
    n, step = merged[0] if merged else (1, 1)
    outer = [(1, 0)] * (2 - len(outer)) + outer
    missing = tuple(a for a in range(len(x.shape)) if a not in axes and a not in kept)
    return Rows(x, (*missing, *kept), n, step, outer, lanes[0])


def _merge(x: View, axes: list[int]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for a in axes:
        if out and out[-1][1] == x.strides[a] * x.shape[a]:
            out[-1] = out[-1][0] * x.shape[a], x.strides[a]
        else:
            out.append((x.shape[a], x.strides[a]))
    return out


def _same_fields(b: Builder, r: Rows, out: View) -> list[int | View]:
    (n0, s0), (n1, s1) = r.outer
    return [r.x, out, n0, s0, s0, n1, s1, s1, r.lanes, r.n, r.step, r.step]


def _whole(b: Builder, r: Rows) -> Rows:
    """Return rows of a dense value: the result has its strides then."""
    return r if r.x.dense else _rows_of_dense(b, r)


def _rows_of_dense(b: Builder, r: Rows) -> Rows:
    axes = tuple(a for a in range(len(r.x.shape)) if a not in r.kept)
    return _rows(b, dense(b, r.x, r.x.order()), axes)


def _emit_rows(b: Builder, kernel: object, node: Node, r: Rows, own: list[int | View]) -> View:
    out = b.new(r.x.shape, r.x.order())
    rows, lanes = r.per_task
    tasks = -(-(r.outer[0][0] * r.outer[1][0]) // rows) * -(-r.lanes // lanes)
    fields = [*_same_fields(b, r, out), *own, rows, lanes]
    b.emit(kernel, node.name, tasks, fields, reads=[r.x], writes=[out], scratch=(r.n + 2) * WIDTH)
    return out


@lowers("layer_norm")
def lower_layer_norm(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a norm over the last axis."""
    attrs = b.attrs(node)
    last = len(x[0].shape) - 1
    if attrs["axes"] != 1 or x[0].shape[last] < 2:
        return None
    size = x[0].shape[last]
    weight, bias = b.floats(node, "weight"), b.floats(node, "bias")
    own: list[int | View] = [
        b.constant((node.name, "norm weight"), lambda: np.ones(size) if weight is None else weight),
        b.constant((node.name, "norm bias"), lambda: np.zeros(size) if bias is None else bias),
        b.constant(("scalar", attrs["eps"]), lambda: attrs["eps"]),
    ]
    return _emit_rows(b, layer_norm, node, _whole(b, _rows(b, x[0], (last,))), own)


@lowers("softmax")
def lower_softmax(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a softmax."""
    axis = b.attrs(node)["axis"] % max(len(x[0].shape), 1)
    if not x[0].shape or x[0].shape[axis] < 2:
        return None
    return _emit_rows(b, softmax, node, _whole(b, _rows(b, x[0], (axis,))), [0, 0, 0])


KINDS = {"mean": 0, "sum": 0, "max": 1, "min": 2, "adaptive_avg_pool2d": 0, "adaptive_max_pool2d": 1}


@lowers(*KINDS)
def reduce(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a reduction along axes, and adaptive pooling to one pixel."""
    attrs = b.attrs(node)
    shape = x[0].shape
    if node.op.startswith("adaptive"):
        if tuple(attrs["size"]) != (1, 1):
            return None
        axes: tuple[int, ...] = (2, 3)
    else:
        axes = tuple(sorted({a % max(len(shape), 1) for a in attrs["axes"]}))
    if not axes or prod(shape[a] for a in axes) < 2:
        return None
    r = _rows(b, x[0], axes)
    kept_order = (*axes, *r.kept)
    full = b.new([1 if a in axes else s for a, s in enumerate(shape)], kept_order)
    rows = r.outer[0][0] * r.outer[1][0]
    # The result is dense in the order of the axes that stay.
    (n0, s0), (n1, s1) = r.outer
    per_task = min(max(WORK // (r.n * r.lanes), 1, -(-rows // 64)), rows)
    count = prod(shape[a] for a in axes) if node.op in ("mean", "adaptive_avg_pool2d") else 1
    fields: list[int | View] = [r.x, full, n0, s0, n1 * r.lanes, n1, s1, r.lanes, r.lanes, r.n, r.step, KINDS[node.op]]
    fields += [b.constant(("scalar", 1 / count), lambda: 1 / count), per_task]
    b.emit(reduce_axis, node.name, -(-rows // per_task), fields, reads=[r.x], writes=[full], scratch=4 * WIDTH)
    return full.reshape(b.info(node.outputs[0]).shape)
