"""Layer and group norms, softmax: what is reckoned from rows of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from pqnet.graph import Node
from pqnet.kernels import norm as kernel
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.lower.copy import dense
from pqnet.runtime.views import View

CACHE = 96 * 1024  # floats of the rows that are read again from the second-level cache
TASKS, WORK = 32, 16384  # tasks of a step at most, numbers a task at least


@dataclass
class _Rows:
    """Rows of a value, and of the result, which has its order.

    ``outer`` are two axes of rows, (size, step in x, step in the result); ``lanes`` contiguous rows go together, or
    each row consists of runs of ``size`` contiguous numbers. ``places`` are the numbers or the runs.
    """

    x: View
    out: View
    outer: list[tuple[int, int, int]]
    lanes: int
    size: int
    places: np.ndarray
    order: list[int]  # of the axes of a row in storage

    def fields(self, b: Builder, weight_steps: Sequence[int], own: Sequence[int], last: int) -> tuple[list[Any], int]:
        """Return all fields, and the number of tasks; ``own`` are fields 13-15."""
        fields: list[int | View] = [self.x, self.out]
        for outer, step in zip(self.outer, weight_steps, strict=True):
            fields += [*outer, step]
        rows, lanes, n = self.outer[0][0] * self.outer[1][0], self.lanes, len(self.places) * self.size
        if rows < TASKS and lanes > WIDTH:
            wanted = min(-(-TASKS // rows), max(rows * lanes * n // WORK, 1))
            lanes = -(-lanes // (wanted * WIDTH)) * WIDTH
        per_task = min(max(-(-WORK // (n * lanes)), -(-rows // TASKS)), rows)
        fields += [self.lanes if self.lanes > 1 else self.size, len(self.places), b.indices(self.places)]
        tasks = -(-rows // per_task) * -(-self.lanes // lanes)
        tile = min(max(CACHE // (n * WIDTH), 1), kernel.VECTORS) * WIDTH
        return [*fields, *own, per_task, lanes, last, tile], tasks


def _merge(views: Sequence[View], axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return sizes and steps of the axes from outermost to innermost, those put together that all views can."""
    out: list[tuple[int, ...]] = []
    for a in axes:
        steps = tuple(view.strides[a] for view in views)
        size = views[0].shape[a]
        if out and out[-1][1:] == tuple(s * size for s in steps):
            out[-1] = (out[-1][0] * size, *steps)
        elif size > 1:
            out.append((size, *steps))
    return out


def _offsets(merged: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Return the pairs of offsets, of x and of the result, of all places on the axes."""
    pairs = np.zeros((1, 2), np.int64)
    for size, *steps in merged:
        pairs = (pairs[:, None] + np.arange(size)[None, :, None] * np.array(steps)).reshape(-1, 2)
    return pairs


def _rows(b: Builder, x: View, axes: Sequence[int]) -> _Rows:
    """Return a value as rows along ``axes``, copied if its storage does not allow it."""
    order = x.order()
    kept, row = [a for a in order if a not in axes], [a for a in order if a in axes]
    out = b.new(x.shape, order)
    outer, inside = _merge((x, out), kept), _merge((x, out), row)
    lanes = size = 1
    if outer and outer[-1][1:] == (1, 1):
        lanes = outer.pop()[0]
    elif inside and inside[-1][1:] == (1, 1):
        size = inside.pop()[0]
    if len(outer) > 2 or (lanes == size == 1 and x.size > 1):
        return _rows(b, dense(b, x, [*kept, *row]), axes)
    return _Rows(x, out, _two(outer), lanes, size, _offsets(inside), row)


def _two(outer: Sequence[tuple[int, ...]]) -> list[tuple[int, int, int]]:
    return [(1, 0, 0)] * (2 - len(outer)) + [(o[0], o[1], o[2]) for o in outer]


def _affine(b: Builder, node: Node, order: Sequence[int], shape: Sequence[int]) -> list[int]:
    """Return fields 13-15: weights and biases of a norm, stored in the order of a row, and eps."""
    weight, bias = b.floats(node, "weight"), b.floats(node, "bias")
    eps = b.attrs(node)["eps"]

    def stored() -> np.ndarray:
        both = [np.ones(shape) if weight is None else weight, np.zeros(shape) if bias is None else bias]
        return np.stack([p.transpose(order).reshape(-1) for p in both])

    at = b.constant((node.name, "weights and biases", tuple(order)), stored)
    return [at, prod(shape), b.constant(("scalar", eps), lambda: eps)]


def _emit(b: Builder, node: Node, kernels: tuple[Any, Any], r: _Rows, fields: list[Any], tasks: int) -> View:
    chosen = kernels[0] if r.lanes > 1 else kernels[1]
    scratch = 3 * kernel.VECTORS * WIDTH
    b.emit(chosen, node.name, tasks, fields, reads=[r.x], writes=[r.out], scratch=scratch)
    return r.out


@lowers("layer_norm")
def layer_norm(b: Builder, node: Node, x: list[View]) -> View:
    """Lower a layer norm."""
    shape = x[0].shape
    first = len(shape) - b.attrs(node)["axes"]
    r = _rows(b, x[0], range(first, len(shape)))
    own = _affine(b, node, [a - first for a in r.order], shape[first:])
    return _emit(b, node, (kernel.norm_across, kernel.norm_along), r, *r.fields(b, (0, 0), own, 1))


@lowers("group_norm")
def group_norm(b: Builder, node: Node, x: list[View]) -> View:
    """Lower a group norm: a row is made of the channels of a group."""
    order = (1, 0, *range(2, len(x[0].shape)))
    out = b.new(x[0].shape, order)
    inside = _merge((x[0], out), order[2:])
    if len(inside) > 1 or (inside and inside[0][1] != 1):
        result: View = group_norm(b, node, [dense(b, x[0], order)])
        return result
    (batch, channels), strides, groups = x[0].shape[:2], (x[0].strides, out.strides), b.attrs(node)["groups"]
    step = channels // groups
    outer = [(batch, *(s[0] for s in strides)), (groups, *(s[1] * step for s in strides))]
    places = np.arange(step)[:, None] * np.array([s[1] for s in strides])
    r = _Rows(x[0], out, _two(outer), 1, inside[0][0] if inside else 1, places, [1])
    own = _affine(b, node, (0,), (channels,))
    return _emit(b, node, (None, kernel.norm_along), r, *r.fields(b, (0, step), own, 0))


@lowers("softmax", "log_softmax")
def softmax(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a softmax or its logarithm."""
    if not x[0].shape:
        return None
    r = _rows(b, x[0], (b.attrs(node)["axis"] % len(x[0].shape),))
    fields, tasks = r.fields(b, (0, 0), (0, 0, 0), int(node.op == "log_softmax"))
    return _emit(b, node, (kernel.softmax_across, kernel.softmax_along), r, fields, tasks)
