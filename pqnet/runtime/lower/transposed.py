"""Transposed convolutions as ordinary ones of stride 1, one for each phase of the result."""

from dataclasses import dataclass, replace
from math import gcd

import numpy as np

from pqnet.graph import Node
from pqnet.runtime.algorithms.base import Call
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.copying import emit_copy
from pqnet.runtime.fusion import fuse
from pqnet.runtime.layer import Layer
from pqnet.runtime.lower.layers import choose_algorithm
from pqnet.runtime.lower.volumes import images_of_depths
from pqnet.runtime.memory import View
from pqnet.runtime.mixing import Mixture, emit_mixture
from pqnet.runtime.taps import depth_as_channels, with_taps


@dataclass(frozen=True)
class _Phase:
    """What the rows (or columns) see that lie ``stride`` apart from the one at ``first`` on, ``count`` of them.

    These taps of the filter, from the one that sees the first pixel on; ``padding`` is that of the input.
    """

    first: int
    count: int
    taps: tuple[int, ...]
    padding: int


def _phases(size: int, out: int, kernel: int, stride: int, dilation: int, padding: int) -> list[_Phase]:
    """Return the phases of an axis, one for each of the first ``stride`` rows of the result.

    Row y sees pixel (y + padding - tap * dilation) / stride by those taps for which this is a whole number.
    """
    phases = []
    for first in range(min(stride, out)):
        taps = [t for t in reversed(range(kernel)) if (first + padding - t * dilation) % stride == 0]
        count = len(range(first, out, stride))
        pad = (taps[0] * dilation - first - padding) // stride if taps else 0
        if not taps or -pad >= size:
            taps, pad = taps or [0], count + kernel * dilation  # sees nothing but padding
        phases.append(_Phase(first, count, tuple(taps), pad))
    return phases


@lowers("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed(b: Builder, node: Node, x: list[View]) -> View:
    """Lower a transposed convolution: a convolution for each phase, then the phases are put together."""
    whole = Layer.of_node(b, node)
    value, along = _volumes(b, whole, x[0]) if len(x[0].shape) == 5 else _images(b, whole, x[0])
    result = value.reshape(whole.shape)
    assert result is not None  # images and volumes of this shape but for an axis of size 1
    for each in along:
        b.finish(each, result)
    return result


def _images(b: Builder, whole: Layer, x: View) -> tuple[View, list[Node]]:
    """Emit a transposed convolution over two axes; return its result as images, and the nodes computed along."""
    layers = _layers(whole)
    first = layers[0][0]
    images = first.input(b, x)
    shape = len(layers), len(layers[0]), first.batch, first.weight.shape[0], *first.out_size
    parts = b.new(shape, (0, 1, 3, 2, 4, 5))
    end = fuse(b, first, _part(parts, 0, 0))
    for i, row in enumerate(layers):
        for j, layer in enumerate(row):
            algorithm, out = choose_algorithm(b, layer), _part(parts, i, j)
            call = Call(layer, algorithm.windows(b, layer, images), replace(end, out=out))
            algorithm.steps(b, call)
    one = len(layers) == len(layers[0]) == 1
    return _part(parts, 0, 0) if one else _put_together(b, whole, parts), end.nodes


def _volumes(b: Builder, whole: Layer, x: View) -> tuple[View, list[Node]]:
    """Emit a transposed convolution over three axes: one over two for each phase of the depths of the result."""
    a, (batch, _, size, *_), depth = b.attrs(whole.node), x.shape, whole.weight.shape[2]
    stride, dilation, padding = (a[name][0] for name in ("stride", "dilation", "padding"))
    phases = _phases(size, whole.shape[2], depth, stride, dilation, padding)
    step, (kh, kw) = dilation // gcd(dilation, stride), whole.kernel
    out = None if len(phases) == 1 else b.new(whole.shape, (1, 0, 2, 3, 4))
    for phase in phases:
        taps = [tap * kh * kw + i for tap in phase.taps for i in range(kh * kw)]
        kernel = len(phase.taps), kh, kw
        taken = with_taps(whole.weight, taps, kernel)
        if taken is None:  # no codes say it
            taken = with_taps(whole.by_inputs().weight, taps, kernel)
        assert taken is not None  # inputs can always be taken
        weight, outside = depth_as_channels(taken)
        layer = replace(whole, weight=weight, channels=weight.shape[1], batch=batch * phase.count)
        layer = replace(layer, depths_taken=phase.taps)
        shifts = [i * step - phase.padding for i in range(len(phase.taps))]
        images = images_of_depths(b, whole.node, x, whole.groups, 1, shifts, phase.count, outside)
        value, along = _images(b, layer, images)
        parts = value.reshape((batch, phase.count, *value.shape[1:]))
        assert parts is not None  # an axis of a dense value becomes two
        value = parts.permute((0, 2, 1, 3, 4))
        if out is not None:
            emit_copy(b, value, out.slice(2, phase.first, phase.count, stride), f"{whole.node.name} (depths)")
    return value if out is None else out, along


def _part(parts: View, i: int, j: int) -> View:
    return parts.with_axes(parts.shape[2:], parts.strides[2:], i * parts.strides[0] + j * parts.strides[1])


def _layers(whole: Layer) -> list[list[Layer]]:
    """Return a layer for each phase of the rows and of the columns, all with results of one size."""
    geometry = zip(
        *(whole.size, whole.out_size, whole.kernel, whole.stride, whole.dilation, whole.padding), strict=True
    )
    down, across = (_phases(*axis) for axis in geometry)
    high, wide = (max(phase.count for phase in phases) for phases in (down, across))
    steps = [d // gcd(d, s) for d, s in zip(whole.dilation, whole.stride, strict=True)]

    def layer(rows: _Phase, columns: _Phase) -> Layer:
        taken = whole.take_taps(rows.taps, columns.taps)
        if taken is None:  # no codes say it
            taken = whole.by_inputs().take_taps(rows.taps, columns.taps)
        assert taken is not None  # inputs can always be taken
        taken = replace(taken, stride=(1, 1), dilation=(steps[0], steps[1]), out_size=(high, wide))
        return replace(taken, padding=(rows.padding, columns.padding)).without_unseen_taps()

    return [[layer(rows, columns) for columns in across] for rows in down]


def _put_together(b: Builder, whole: Layer, parts: View) -> View:
    """Emit the step that takes every pixel of the result from the phase that has it."""
    places = []
    for axis, size in enumerate(whole.out_size):
        position, phase = np.divmod(np.arange(size), parts.shape[axis])
        places.append(phase * parts.strides[axis] + position * parts.strides[4 + axis])
    rows, columns = (Mixture(each[:, None]) for each in places)
    return emit_mixture(b, whole.node.name, _part(parts, 0, 0), rows, columns)
