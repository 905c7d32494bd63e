"""Transposed convolutions as ordinary ones of stride 1, one for each phase of the result."""

from dataclasses import dataclass, replace
from math import gcd

import numpy as np

from pqnet.graph import Node
from pqnet.runtime.algorithms.base import Call
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.fusion import fuse
from pqnet.runtime.layer import Layer, pair, readable_weight
from pqnet.runtime.lower.layers import choose_algorithm
from pqnet.runtime.memory import View
from pqnet.runtime.mixing import Mixture, emit_mixture


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


@lowers("conv_transpose1d", "conv_transpose2d")
def transposed(b: Builder, node: Node, x: list[View]) -> View:
    """Lower a transposed convolution: a convolution for each phase, then the phases are put together."""
    layers = _layers(b, node)
    first = layers[0][0]
    images = first.input(b, x[0])
    rows, columns = first.out_size
    whole = len(layers) == len(layers[0]) == 1
    if whole:
        value = first.result(b)
        found = first.result_images(value)
        assert found is not None  # a dense value can take this shape
        parts = found.with_axes((1, 1, *found.shape), (0, 0, *found.strides))
    else:
        channels = first.weight.shape[0]
        shape = len(layers), len(layers[0]), first.batch, channels, rows, columns
        parts = b.new(shape, (0, 1, 3, 2, 4, 5))
    end = fuse(b, first, _part(parts, 0, 0))
    for i, row in enumerate(layers):
        for j, layer in enumerate(row):
            algorithm, out = choose_algorithm(b, layer), _part(parts, i, j)
            call = Call(layer, algorithm.windows(b, layer, images), replace(end, out=out))
            algorithm.steps(b, call)
    if not whole:
        value = _put_together(b, node, parts)
    for each in end.nodes:
        b.finish(each, value)
    return value


def _part(parts: View, i: int, j: int) -> View:
    return parts.with_axes(parts.shape[2:], parts.strides[2:], i * parts.strides[0] + j * parts.strides[1])


def _layers(b: Builder, node: Node) -> list[list[Layer]]:
    """Return a layer for each phase of the rows and of the columns, all with results of one size."""
    a = b.attrs(node)
    weight, scale = readable_weight(b, node)
    (batch, _, *axes), out = b.info(node.inputs[0]).shape, b.info(node.outputs[0]).shape
    size, kernel, stride, dilation = (pair(each) for each in (axes, weight.shape[2:], a["stride"], a["dilation"]))
    padding = pair(a["padding"][: len(axes)], missing=0)
    geometry = list(zip(size, pair(out[2:]), kernel, stride, dilation, padding, strict=True))
    down, across = (_phases(*axis) for axis in geometry)
    high, wide = (max(phase.count for phase in phases) for phases in (down, across))
    steps = tuple(
        dilation // gcd(dilation, stride) for dilation, stride in zip(a["dilation"], a["stride"], strict=True)
    )
    whole = Layer(
        node,
        weight,
        scale,
        groups=a["groups"],
        batch=batch,
        channels=weight.shape[1],
        size=size,
        out_size=(high, wide),
        kernel=kernel,
        stride=(1, 1),
        dilation=(dilation[0] // gcd(dilation[0], stride[0]), dilation[1] // gcd(dilation[1], stride[1])),
        padding=(0, 0),
        shape=(batch, weight.shape[0], *(high, wide)[-len(axes) :]),
    )

    def layer(rows: _Phase, columns: _Phase) -> Layer:
        taken = whole.take_taps(rows.taps, columns.taps)
        if taken is None:  # no codes say it
            floats = b.floats(node, "weight")
            assert floats is not None  # every convolution has a weight
            taken = replace(whole, weight=floats, scale=None).take_taps(rows.taps, columns.taps)
        assert taken is not None  # numbers can always be taken
        return replace(taken, padding=(rows.padding, columns.padding)).without_unseen_taps()

    return [[layer(rows, columns) for columns in across] for rows in down]


def _put_together(b: Builder, node: Node, parts: View) -> View:
    """Emit the step that takes every pixel of the result from the phase that has it."""
    shape, places = b.info(node.outputs[0]).shape, []
    for axis, size in enumerate(pair(shape[2:])):
        position, phase = np.divmod(np.arange(size), parts.shape[axis])
        places.append(phase * parts.strides[axis] + position * parts.strides[4 + axis])
    rows, columns = (Mixture(each[:, None]) for each in places)
    value = emit_mixture(b, node.name, _part(parts, 0, 0), rows, columns).reshape(shape)
    assert value is not None  # a dense value can take this shape
    return value
