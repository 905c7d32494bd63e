"""Sums, means and extremes along axes."""

from dataclasses import dataclass
from math import prod

from pqnet.graph import Node
from pqnet.kernels.pool import reduce_axis
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.lower.copy import dense
from pqnet.runtime.views import View

WORK = 16384  # numbers a task, at least


@dataclass
class Rows:
    """A value as rows of ``n`` numbers, ``step`` apart, in two outer axes and lanes; ``kept`` has the other axes."""

    x: View
    kept: tuple[int, ...]  # axes that are not of the row, from outermost to innermost storage
    n: int
    step: int
    outer: list[tuple[int, int]]  # (size, step), two of them
    lanes: int


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
