"""Sums, means and extremes along axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from pqnet.graph import Node
from pqnet.kernels.ops.pool import MAXIMUM, MINIMUM, SUM, reduce_axis
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.copying import dense
from pqnet.runtime.memory import View, merge_axes

WORK = 16384  # elements a task, at least


@dataclass
class Rows:
    """A value as rows of ``n`` elements, ``step`` apart, in two outer axes and lanes; ``kept`` has the other axes."""

    x: View
    kept: tuple[int, ...]  # axes that are not of the row, from outermost to innermost storage
    n: int
    step: int
    outer: list[tuple[int, ...]]  # (size, step), two of them
    lanes: int


def _rows(b: Builder, x: View, axes: tuple[int, ...]) -> Rows:
    """Return a value as rows along ``axes``, copied if its storage does not allow it."""
    order = x.order()
    row = [a for a in order if a in axes and x.shape[a] > 1]
    kept = [a for a in order if a not in axes and x.shape[a] > 1]
    merged, outer = (merge_axes([x.shape[a] for a in axes_], [x.strides[a] for a in axes_]) for axes_ in (row, kept))
    lanes = outer.pop() if outer and outer[-1][1] == 1 else (1, 0)
    if len(merged) > 1 or len(outer) > 2 or (lanes[0] == 1 and merged and merged[0][1] != 1):
        others = tuple(a for a in range(len(x.shape)) if a not in axes)
        return _rows(b, dense(b, x, (*sorted(axes), *others)), axes)
    n, step = merged[0] if merged else (1, 1)
    outer = [(1, 0)] * (2 - len(outer)) + outer
    missing = tuple(a for a in range(len(x.shape)) if a not in axes and a not in kept)
    return Rows(x, (*missing, *kept), n, step, outer, lanes[0])


def points_of(x: View, out: View, axes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Return the arguments of `kernels.ops.points.POINTS` for two axes: size, step in x, step in the result."""
    (outer, x_outer, out_outer), (inner, x_inner, out_inner) = axes
    return {
        "x": x,
        "out": out,
        "outer": outer,
        "inner": inner,
        "x_outer": x_outer,
        "x_inner": x_inner,
        "out_outer": out_outer,
        "out_inner": out_inner,
    }


KINDS = {
    "mean": SUM,
    "sum": SUM,
    "max": MAXIMUM,
    "min": MINIMUM,
}


@lowers(*KINDS)
def reduce(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a reduction along axes."""
    shape = x[0].shape
    axes = tuple(sorted({a % max(len(shape), 1) for a in b.attrs(node)["axes"]}))
    if prod(shape[a] for a in axes) == 1:
        return x[0].reshape(b.info(node.outputs[0]).shape)
    full = reduce_axes(b, node.name, x[0], axes, KINDS[node.op], mean=node.op == "mean")
    return full.reshape(b.info(node.outputs[0]).shape)


def reduce_axes(b: Builder, label: str, x: View, axes: tuple[int, ...], kind: int, *, mean: bool) -> View:
    """Append the step that reduces a value along axes, which keep a size of 1, and return its result."""
    shape, r = x.shape, _rows(b, x, axes)
    kept_order = (*axes, *r.kept)
    full = b.new([1 if a in axes else s for a, s in enumerate(shape)], kept_order)
    rows = r.outer[0][0] * r.outer[1][0]
    # The result is dense in the order of the axes that stay.
    (n0, s0), (n1, s1) = r.outer
    per_task = min(max(WORK // (r.n * r.lanes), 1, -(-rows // 64)), rows)
    count = prod(shape[a] for a in axes) if mean else 1
    arguments = {
        "points": points_of(r.x, full, [(n0, s0, n1 * r.lanes), (n1, s1, r.lanes)]),
        "lanes": r.lanes,
        "n": r.n,
        "x_step": r.step,
        "kind": kind,
        "factor": b.numbers(1 / count),
        "per_task": per_task,
    }
    b.emit(reduce_axis, label, -(-rows // per_task), arguments, reads=[r.x], writes=[full], scratch=4 * WIDTH)
    return full
