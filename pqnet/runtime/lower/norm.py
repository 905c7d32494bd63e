"""Layer norms, group norms and softmax: every row of a value is scaled by what is computed from that row alone.

A row is what an operation looks at together: the elements along the axes of a layer norm or of a softmax, or the
channels of a group in one image. Where rows lie side by side in memory, each lane of a vector takes a row of its own
(kernels ``across``), else the lanes take consecutive elements of one row (kernels ``along``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from pqnet.graph import Node
from pqnet.kernels.abi import StepKernel
from pqnet.kernels.ops import norm as kernel
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.copying import dense
from pqnet.runtime.lower.axis import points_of
from pqnet.runtime.memory import View, merge_axes

CACHE = 96 * 1024  # floats of the rows that are read again from the second-level cache
TASKS, WORK = 32, 16384  # tasks of a step at most, elements a task at least


@dataclass
class _Rows:
    """Rows of a value, and of the result, which is stored in the same order.

    At each point of two ``outer`` axes (size, step in x, step in the result) there are ``lanes`` rows side by side; or
    there is one row, which consists of runs of ``size`` elements side by side. ``offsets`` has a pair for each element
    or run of a row: how far it is behind the start of the row in x and in the result.
    """

    x: View
    out: View
    outer: list[tuple[int, ...]]
    lanes: int
    size: int
    offsets: np.ndarray
    order: list[int]  # of the axes of a row in storage

    def arguments(self, b: Builder) -> tuple[dict[str, Any], int]:
        """Return the arguments of `kernels.ops.norm.ROWS`, and the number of tasks."""
        points, lanes, n = prod(size for size, *_ in self.outer), self.lanes, len(self.offsets) * self.size
        if points < TASKS and lanes > WIDTH:
            wanted = min(-(-TASKS // points), max(points * lanes * n // WORK, 1))
            lanes = -(-lanes // (wanted * WIDTH)) * WIDTH
        per_task = min(max(-(-WORK // (n * lanes)), -(-points // TASKS)), points)
        arguments = {
            "points": points_of(self.x, self.out, self.outer),
            "adjacent": self.lanes if self.lanes > 1 else self.size,
            "parts": len(self.offsets),
            "offsets": b.table(self.offsets),
            "per_task": per_task,
            "lanes": lanes,
            "tile": min(max(CACHE // (n * WIDTH), 1), kernel.VECTORS) * WIDTH,
        }
        return arguments, -(-points // per_task) * -(-self.lanes // lanes)


def _axes(views: Sequence[View], axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return sizes and steps of axes of views of one shape, from outermost to innermost, as few as possible."""
    return merge_axes([views[0].shape[a] for a in axes], *([view.strides[a] for a in axes] for view in views))


def _offsets(merged: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Return the pairs of offsets, in x and in the result, of all points of the axes."""
    pairs = np.zeros((1, 2), np.int64)
    for size, *steps in merged:
        pairs = (pairs[:, None] + np.arange(size)[None, :, None] * np.array(steps)).reshape(-1, 2)
    return pairs


def _rows(b: Builder, x: View, axes: Sequence[int]) -> _Rows:
    """Return a value as rows along ``axes``, copied if its storage does not allow it."""
    order = x.order()
    kept, row = [a for a in order if a not in axes], [a for a in order if a in axes]
    views = x, View.dense_in(x.buffer, x.shape, order)  # the second has the strides of the result
    outer, inside = _axes(views, kept), _axes(views, row)
    lanes = size = 1
    if outer and outer[-1][1:] == (1, 1):
        lanes = outer.pop()[0]
    elif inside and inside[-1][1:] == (1, 1):
        size = inside.pop()[0]
    if len(outer) > 2 or (lanes == size == 1 and x.size > 1):
        return _rows(b, dense(b, x, [*kept, *row]), axes)
    return _Rows(x, b.new(x.shape, order), _two(outer), lanes, size, _offsets(inside), row)


def _two(outer: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [(1, 0, 0)] * (2 - len(outer)) + outer


def _affine(b: Builder, node: Node, order: Sequence[int], shape: Sequence[int]) -> dict[str, Any]:
    """Return where weights and biases of a norm are, stored in the order of a row, and eps."""
    weight, bias = b.floats(node, "weight"), b.floats(node, "bias")

    def stored() -> np.ndarray:
        both = [np.ones(shape) if weight is None else weight, np.zeros(shape) if bias is None else bias]
        return np.stack([p.transpose(order).reshape(-1) for p in both])

    at = b.constant((node.name, "weights and biases", tuple(order), tuple(shape)), stored)
    return {"weight": at, "bias": prod(shape), "eps": b.numbers(b.attrs(node)["eps"])}


def _emit(b: Builder, node: Node, across: StepKernel, along: StepKernel, r: _Rows, own: dict[str, Any]) -> View:
    rows, tasks = r.arguments(b)
    chosen, scratch = across if r.lanes > 1 else along, 3 * kernel.VECTORS * WIDTH
    b.emit(chosen, node.name, tasks, {"rows": rows, **own}, reads=[r.x], writes=[r.out], scratch=scratch)
    return r.out


@lowers("layer_norm", "rms_norm")
def layer_norm(b: Builder, node: Node, x: list[View]) -> View:
    """Lower a layer norm, or one that keeps the mean."""
    shape = x[0].shape
    first = len(shape) - b.attrs(node)["axes"]
    r = _rows(b, x[0], range(first, len(shape)))
    own = _affine(b, node, [a - first for a in r.order], shape[first:])
    own |= {"weight_outer": 0, "weight_inner": 0, "each": 1, "centered": int(node.op == "layer_norm")}
    return _emit(b, node, kernel.norm_across, kernel.norm_along, r, own)


@lowers("group_norm")
def group_norm(b: Builder, node: Node, x: list[View]) -> View:
    """Lower a group norm: a row is made of the channels of a group in one image."""
    order = (1, 0, *range(2, len(x[0].shape)))
    inside = _axes((x[0],), order[2:])
    if len(inside) > 1 or (inside and inside[0][1] != 1):
        result: View = group_norm(b, node, [dense(b, x[0], order)])
        return result
    out = b.new(x[0].shape, order)
    (batch, channels), strides, groups = x[0].shape[:2], (x[0].strides, out.strides), b.attrs(node)["groups"]
    step = channels // groups
    outer = [(batch, *(s[0] for s in strides)), (groups, *(s[1] * step for s in strides))]
    offsets = np.arange(step)[:, None] * np.array([s[1] for s in strides])
    r = _Rows(x[0], out, outer, 1, inside[0][0] if inside else 1, offsets, [1])
    own = _affine(b, node, (0,), (channels,)) | {"weight_outer": 0, "weight_inner": step, "each": 0, "centered": 1}
    return _emit(b, node, kernel.norm_across, kernel.norm_along, r, own)


@lowers("softmax", "log_softmax")
def softmax(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a softmax or its logarithm."""
    if not x[0].shape:
        return None
    r = _rows(b, x[0], (b.attrs(node)["axis"] % len(x[0].shape),))
    own = {"logarithm": int(node.op == "log_softmax")}
    return _emit(b, node, kernel.softmax_across, kernel.softmax_along, r, own)
