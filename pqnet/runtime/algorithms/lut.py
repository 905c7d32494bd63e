"""Vector tables: every codeword times a tile of positions once, then additions of rows; see `kernels.products.lut`."""

from math import ceil

import numpy as np

from pqnet.kernels.products.lut import lut
from pqnet.runtime.algorithms.base import Algorithm, Call, Host, block_order, codeword_step
from pqnet.runtime.algorithms.lut_plan import VECTORS, Sizes, Tiles, choose_tiles, lut_codes, plan_lut, table_rows
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import View
from pqnet.runtime.windows import Windows, plane_cycles, windows_of


class Lut(Algorithm):
    """Tables of vectors, for layers that have enough positions to make them worth their while."""

    name = "lut"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether kernels can read the codes, and a tap is a shift of the lanes."""
        straight = layer.pointwise or layer.stride == layer.dilation == (1, 1)
        return layer.codes is not None and straight and not layer.depthwise

    def cost(self, layer: Layer) -> float:
        """Return the expected cycles, of dense images."""
        return choose_tiles(_dense_sizes(layer))[1] + plane_cycles(layer, narrow=False)

    def windows(self, b: Builder, layer: Layer, x: View) -> Windows:
        """Return windows on whole planes, on which a tap shifts the lanes."""
        return windows_of(b, layer, x, narrow=False)

    def steps(self, b: Builder, call: Call) -> None:
        """Append the step."""
        layer, windows, weight = call.layer, call.windows, call.layer.codes
        assert weight is not None
        offsets = windows.offsets[: layer.taps]
        sizes = _sizes(
            layer,
            [int(t) for t in offsets - offsets[0]],
            windows.batch,
            windows.height,
            windows.width,
            windows.pitch,
        )
        plan = plan_lut(sizes, _tiles(layer, sizes))
        key = "lut", layer.name, layer.groups, plan.arguments["in_pass"], plan.order
        arguments = plan.arguments | {
            "layer": windows.arguments(b, block_order(weight)),
            "end": call.end.arguments(b),
            "codes": b.code_bytes(key, lambda: lut_codes(weight.codes, layer.groups, plan)),
            "codebook": b.constant(("lut codebook", layer.name), lambda: lut_codebook(weight.codebook)),
            "stride": codeword_step(weight.codec.d),
            "tables": b.table(plan.tables),
            "shifts": b.table(plan.shifts),
            "steps": b.table(plan.steps),
        }
        b.emit(
            lut,
            layer.node.name,
            plan.tasks,
            arguments,
            reads=call.reads,
            writes=[call.end.out],
            scratch=plan.scratch,
            algorithm=self.name,
            stored=layer.stored_bytes,
        )


def _dense_sizes(layer: Layer) -> Sizes:
    """Return the sizes of a layer on windows as `windows_of` makes them of dense images."""
    batch, (height, width) = layer.batch, layer.out_size
    pitch = width + layer.kernel[1] - 1
    taps = [y * pitch + x for y in range(layer.kernel[0]) for x in range(layer.kernel[1])]
    if pitch == width:
        height, width = 1, height * width
        pitch = width
    if layer.pointwise:
        batch, width = 1, batch * width
        pitch = width
    return _sizes(layer, taps, batch, height, width, pitch)


def _tiles(layer: Layer, sizes: Sizes) -> Tiles:
    """Return how a layer is cut: into as many tiles as one of nearly its size, so that threads have equal shares."""
    near = _dense_sizes(layer.rounded)
    chosen, _ = choose_tiles(near)
    wide = near.lane_pitches.index(chosen.lane_pitch)
    lane_pitch = sizes.lane_pitches[min(wide, len(sizes.lane_pitches) - 1)]
    total = sizes.vectors(lane_pitch)
    tiles = max(ceil(near.vectors(chosen.lane_pitch) / chosen.vectors), ceil(total / VECTORS[-1]))
    return chosen._replace(lane_pitch=lane_pitch, vectors=ceil(total / min(tiles, total)))


def _sizes(layer: Layer, taps: list[int], batch: int, height: int, width: int, pitch: int) -> Sizes:
    """Return the sizes of a layer on windows; taps share tables only if a block is of channels."""
    weight = layer.codes
    assert weight is not None
    codec = weight.codec
    taps = taps if codec.layout == "channel" else [0]
    blocks = layer.reduction // len(taps) // codec.d
    images = layer.groups * batch
    return Sizes(tuple(taps), blocks, codec.k, codec.d, layer.outputs, images, height, width, pitch)


def lut_codebook(codebook: np.ndarray) -> np.ndarray:
    """Return a codebook (k, d) as `kernels.products.lut` reads it: float32, zeros behind each codeword and the last."""
    k, d = codebook.shape
    out = np.zeros((table_rows(k), codeword_step(d)), np.float32)
    out[:k, :d] = codebook
    return out
