"""Convolutions many of whose taps see padding: a product for each tap, over those positions alone that see the image.

Such are those whose dilation is nearly as large as the image: of 14 rows, a tap 12 rows apart sees two.
"""

from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import numpy as np

from pqnet.codecs import PackedPQ
from pqnet.kernels.products.taps import add_taps
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.algorithms.base import Algorithm, Call, Host, cheapest
from pqnet.runtime.builder import Builder
from pqnet.runtime.copying import dense
from pqnet.runtime.fusion import Epilogue
from pqnet.runtime.layer import IMAGE, Layer
from pqnet.runtime.memory import View, round_up
from pqnet.runtime.windows import NARROW, Windows

SEEN = 0.9  # an axis is not divided if its taps see more than this part of the positions on an average
# Cycles for a number of a product and for a row of a rectangle in the last step; for the steps of a product.
NUMBER, ROW, START = 0.3, 6.0, 10500.0
TASKS, WORK = 16, 16384  # tasks at most, numbers a task at least


class Run(NamedTuple):
    """Neighbouring taps of an axis, and the rows (or columns) of the result that see the image by each of them."""

    taps: range
    seeing: range


class Part(NamedTuple):
    """The layer with some of its taps on some of its positions; its image begins in row and column ``corner``."""

    layer: Layer
    corner: tuple[int, int]
    rows: range
    columns: range


class Taps(Algorithm):
    """A product for each tap where it sees the image, by the algorithm that suits it, and then their sum."""

    name = "taps"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether many taps see padding, and the codes of each can be taken from those of the weight."""
        if layer.taps == 1 or layer.depthwise or not isinstance(layer.weight, np.ndarray | PackedPQ):
            return False
        rows, columns = (_runs(layer, axis) for axis in (0, 1))
        return len(rows) * len(columns) > 1 and bool(_parts(layer))

    def cost(self, layer: Layer) -> float:
        """Return the cost of all products and of their sum."""
        total = 0.0
        for part in _parts(layer):
            rows = part.layer.weight.shape[0] * layer.batch * len(part.rows)
            total += cheapest(part.layer, "float32").cost(part.layer)
            total += START + rows * (ROW + NUMBER * len(part.columns))
        return total

    def windows(self, b: Builder, layer: Layer, x: View) -> Windows:
        """Take the input as it is: each product has windows of its own."""
        return Windows(layer, x, x.strides[0], 0, np.zeros(0, np.int64), layer.batch, *layer.out_size, x.strides[2])

    def steps(self, b: Builder, call: Call) -> None:
        """Append the steps of all products, and the one that adds them."""
        layer, parts = call.layer, _parts(call.layer)
        outputs, batch, (_, width) = layer.weight.shape[0], layer.batch, layer.out_size
        length = sum(part.layer.positions for part in parts)
        sums, done = b.new((outputs, length)), 0
        rectangles = []
        for part in parts:
            high, wide = part.layer.out_size
            out = sums.with_axes((batch, outputs, high, wide), (high * wide, length, wide, 1), done)
            _multiply(b, part, call.windows.x, replace(call.end, out=out))
            for image in range(batch):
                first = image * layer.image + part.rows.start * width + part.columns.start
                # Whole rows of the result follow each other.
                size = (1, high * wide) if wide == width else (high, wide)
                rectangles.append((done + image * high * wide, first, *size))
            done += part.layer.positions
        per_task = max(-(-outputs // TASKS), min(outputs, -(-WORK // length)))
        arguments = {
            "sums": sums,
            "length": length,
            "rectangles": b.table(rectangles),
            "count": len(rectangles),
            "width": width,
            "positions": layer.positions,
            "outputs": outputs,
            "per_task": per_task,
            "end": call.end.arguments(b),
        }
        b.emit(
            add_taps,
            f"{layer.node.name} (sums)",
            -(-outputs // per_task),
            arguments,
            reads=[sums, *call.end.reads],
            writes=[call.end.out],
            scratch=round_up(layer.positions, WIDTH),
            algorithm=self.name,
        )


def _multiply(b: Builder, part: Part, x: View, end: Epilogue) -> None:
    """Append the steps of one product; its sums are stored as they are."""
    layer = part.layer
    for axis in (0, 1):
        x = x.slice(2 + axis, part.corner[axis], layer.size[axis])
    if layer.size[1] < NARROW and x.strides[2] != layer.size[1] and layer.size[0] > 1:
        x = dense(b, x, IMAGE)
    own = replace(end, scale=None, shift=None, residual=None, activation=0, parameters=())
    algorithm = cheapest(layer, b.compute)
    algorithm.steps(b, Call(layer, algorithm.windows(b, layer, x), own))


def _runs(layer: Layer, axis: int) -> list[Run]:
    """Return the taps of an axis that see the image from the same positions, or all if it is not worth while."""
    seeing = [layer.seeing(axis, tap) for tap in range(layer.kernel[axis])]
    every = layer.kernel[axis] * layer.out_size[axis]
    if sum(map(len, seeing)) > SEEN * every:
        return [Run(range(layer.kernel[axis]), range(layer.out_size[axis]))]
    runs = []
    for positions, group in groupby(range(layer.kernel[axis]), lambda tap: seeing[tap]):
        taps = list(group)
        if positions:
            runs.append(Run(range(taps[0], taps[-1] + 1), positions))
    return runs


def _parts(layer: Layer) -> list[Part]:
    """Return the products of a layer; none if the codes of its weight do not give those of some taps."""
    parts = []
    for rows in _runs(layer, 0):
        for columns in _runs(layer, 1):
            taken = layer.take_taps(rows.taps, columns.taps)
            if taken is None:
                return []
            spans = [_span(layer, axis, run) for axis, run in enumerate((rows, columns))]
            corner, size, padding = zip(*spans, strict=True)
            out_size = len(rows.seeing), len(columns.seeing)
            taken = replace(taken, size=size, padding=padding, out_size=out_size)
            if taken.kernel == (1, 1) and size == out_size:
                taken = replace(taken, stride=(1, 1))
            parts.append(Part(taken, corner, rows.seeing, columns.seeing))
    return parts


def _span(layer: Layer, axis: int, run: Run) -> tuple[int, int, int]:
    """Return the first row (or column) of the image that some taps see, how many they see, and the padding before."""
    stride, dilation = layer.stride[axis], layer.dilation[axis]
    start = run.taps.start * dilation + run.seeing.start * stride - layer.padding[axis]
    last = start + (len(run.seeing) - 1) * stride + (len(run.taps) - 1) * dilation
    first, end = max(start, 0), min(last + 1, layer.size[axis])
    return first, end - first, first - start
