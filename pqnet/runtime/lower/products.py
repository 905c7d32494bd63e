"""Convolutions and linear layers as layer steps, each by the way that suits it."""

from collections.abc import Callable
from math import prod

import numpy as np

from pqnet.codecs import Packed, PackedPQ
from pqnet.graph import Node
from pqnet.kernels.prepare import prepare
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.lower.copy import dense
from pqnet.runtime.lower.dots import dots_cost, emit_dots
from pqnet.runtime.lower.epilogue import absorb
from pqnet.runtime.lower.gemm import emit_gemm, gemm_cost
from pqnet.runtime.lower.product import Product, block_size, weight_and_scale
from pqnet.runtime.lower.tables import ROW_POSITIONS, emit_lut, emit_rows, lut_cost, rows_cost
from pqnet.runtime.lower.winograd import emit_winograd, winograd_cost, winograd_fits
from pqnet.runtime.views import View

NARROW = 40  # columns of images of which packing would copy too short pieces


def _planes(
    b: Builder, node: Node, x: View, size: tuple[int, int], phases: list[tuple[int, int]], label: str = "padding"
) -> View:
    """Emit zero padding to planes (C, B, phase, rows, columns) of the given size; see `kernels.prepare`."""
    a = b.attrs(node)
    batch, channels, height, width = x.shape
    out = b.new((channels, batch, len(phases), *size))
    plane = batch * len(phases) * size[0] * size[1]
    per_task = max(-(-channels // 16), min(channels, -(-16384 // plane)))
    fields: list[int | View] = [x, out, x.strides[1], x.strides[0], height, width, x.strides[2], *size]
    fields += [*a["padding"][:2], *a["stride"], batch, len(phases), b.indices(phases), channels, per_task]
    b.emit(prepare, f"{node.name} ({label})", -(-channels // per_task), fields, reads=[x], writes=[out])
    return out


def _tap_planes(
    b: Builder, node: Node, x: View, kernel: tuple[int, ...], size: tuple[int, int], narrow: bool
) -> tuple[View, np.ndarray]:
    """Emit the planes in which every tap is a shift of the output's positions; return them and the shifts."""
    a = b.attrs(node)
    (sh, sw), (dh, dw) = a["stride"], a["dilation"]
    taps = [(i * dh, j * dw) for i in range(kernel[0]) for j in range(kernel[1])]
    rows, columns = size[0] + (kernel[0] - 1) * dh // sh, size[1] + (kernel[1] - 1) * dw // sw
    # Narrow images get a copy for each column of the kernel, cut to the output's width: whole images are contiguous
    # then. In wide ones a tap is a shift of the columns, and packing skips the margins.
    narrow = narrow and columns > size[1] and size[1] < NARROW
    columns = size[1] if narrow else columns
    places = [(y % sh, x if narrow else x % sw, y // sh, 0 if narrow else x // sw) for y, x in taps]
    phases = sorted({place[:2] for place in places})
    planes = _planes(b, node, x, (rows, columns), phases)
    shifts = [phases.index((py, px)) * rows * columns + row * columns + column for py, px, row, column in places]
    return planes, np.array(shifts)


@lowers("conv2d")
def conv2d(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a convolution to padding, if it needs any, and a layer step."""
    weight, scale = weight_and_scale(b, node)
    a, groups = b.attrs(node), b.attrs(node)["groups"]
    o, c, *kernel = weight.shape
    batch, _, height, width = b.info(node.outputs[0]).shape
    source = x[0] if x[0].strides[3] == 1 or x[0].shape[3] == 1 else dense(b, x[0], (1, 0, 2, 3))
    patches = (height + 1) // 2, (width + 1) // 2
    plain = tuple(kernel) == (1, 1) and tuple(a["stride"]) == (1, 1) and not any(a["padding"])
    ways = _ways(weight, o // groups, groups, batch * height * width)
    pitch = width + (kernel[1] - 1) * a["dilation"][1]
    if isinstance(weight, PackedPQ) and (plain or (tuple(a["stride"]) == (1, 1) and tuple(a["dilation"]) == (1, 1))):
        size = (1, batch * height * width) if plain else (height, width)
        ways["lut"] = lut_cost(
            weight, o // groups, groups if plain else groups * batch, size, size[1] if plain else pitch
        )
    if winograd_fits(weight, a):
        ways["winograd"] = winograd_cost(weight, batch * patches[0] * patches[1])
    way = b.choose(b.graph, node, x[0].shape, ways)
    if way == "winograd":
        source = _planes(b, node, source, (2 * patches[0] + 2, 2 * patches[1] + 2), [(0, 0)])
        channel, image_step, _, pitch = source.strides[:4]
        shifts = np.zeros(1, np.int64)
    elif plain:
        image_step, channel, pitch = source.strides[:3]
        shifts = np.zeros(1, np.int64)
    else:
        source, shifts = _tap_planes(b, node, source, tuple(kernel), (height, width), narrow=way != "lut")
        channel, image_step, _, pitch = source.strides[:4]
    out = b.new((batch, o, height, width), (1, 0, 2, 3))

    def fits(view: View) -> bool:
        return all(view.strides[axis] == out.strides[axis] for axis in (0, 2, 3) if view.shape[axis] > 1)

    tail = absorb(b, node, fits, 1, scale)
    own = tail.fields(b, node.name, 0 if tail.residual is None else tail.residual.strides[1])
    offsets = (np.arange(c)[:, None] * channel + shifts).reshape(-1)
    rows = _Rows(batch, height, width, image_step, pitch, whole=way != "winograd")
    product = Product(
        *(node, weight, source, rows.image_step, c * channel, offsets, o // groups, groups),
        *(rows.batch, (rows.height - 1) * rows.pitch + rows.width, rows.pitch, rows.width, rows.height * rows.width),
        *(out, out.strides[1], own),
    )
    if way == "rows" and (rows.batch, rows.height) != (1, 1):
        way = "decode"
    if way == "winograd":
        emit_winograd(b, product, source, patches, height)
    else:
        EMIT[way](b, product)
    for absorbed in tail.nodes:
        b.finish(absorbed, out)
    return out


EMIT: dict[str, Callable[[Builder, Product], None]] = {
    "decode": emit_gemm,
    "dots": emit_dots,
    "lut": emit_lut,
    "rows": emit_rows,
}


def _ways(weight: np.ndarray | Packed, outputs: int, groups: int, positions: int) -> dict[str, float]:
    """Return the ways to multiply any positions by a weight, with their expected costs."""
    ways = {"decode": gemm_cost(prod(weight.shape[1:]), block_size(weight), outputs, groups, positions)}
    if isinstance(weight, PackedPQ) and weight.codec.d <= 16 and positions <= 16:
        ways["dots"] = dots_cost(weight, positions)
    if isinstance(weight, PackedPQ) and positions <= ROW_POSITIONS:
        ways["rows"] = rows_cost(weight, outputs, groups, positions)
    return ways


class _Rows:
    """The positions of an output, in the longest contiguous runs that its input has."""

    def __init__(self, batch: int, height: int, width: int, image_step: int, pitch: int, whole: bool) -> None:
        if whole and (height == 1 or pitch == width):
            height, width = 1, height * width
            pitch = width
            if batch == 1 or image_step == width:
                batch, width = 1, batch * width
                pitch = width
        self.batch, self.height, self.width, self.image_step, self.pitch = batch, height, width, image_step, pitch


@lowers("linear")
def linear(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a linear layer to a layer step whose positions are the rows."""
    weight, scale = weight_and_scale(b, node)
    *lead, inputs = x[0].shape
    rows, o = prod(lead), weight.shape[0]
    last = len(lead)
    order = (last, *range(last))
    flat = x[0].reshape((rows, inputs))
    if flat is None or (flat.strides[0] != 1 and rows > 1):
        flat = dense(b, x[0], order).reshape((rows, inputs))
        assert flat is not None
    out = b.new((*lead, o), order)

    def fits(view: View) -> bool:
        other = view.reshape((rows, o))
        return other is not None and (rows == 1 or other.strides[0] == 1)

    tail = absorb(b, node, fits, 1 if last == 1 else -1, scale)
    other = None if tail.residual is None else tail.residual.reshape((rows, o))
    offsets = np.arange(inputs) * flat.strides[1]
    own = tail.fields(b, node.name, 0 if other is None else other.strides[1])
    ways = _ways(weight, o, 1, rows)
    if isinstance(weight, PackedPQ):
        ways["lut"] = lut_cost(weight, o, 1, (1, rows), rows)
    way = b.choose(b.graph, node, x[0].shape, ways)
    EMIT[way](b, Product(node, weight, flat, 0, 0, offsets, o, 1, 1, rows, rows, rows, rows, out, rows, own))
    for absorbed in tail.nodes:
        b.finish(absorbed, out)
    return out
