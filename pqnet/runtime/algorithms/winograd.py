"""Winograd's algorithm for convolutions: geometry, transformed weights, cost."""

from math import lcm
from typing import Any

import numpy as np

from pqnet.kernels.products.tile import LANES, ROWS, VECTORS
from pqnet.kernels.products.winograd import SINGLE_PATCHES, winograd
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.algorithms.base import Algorithm, Call, Host, code_arguments
from pqnet.runtime.algorithms.gemm import PRODUCT, most_tiles
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import View, round_up
from pqnet.runtime.windows import Windows, pad_planes, plane_cycles

TRANSFORM = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
WHOLE = 128  # channels up to which transformed patches fit the second-level cache beside the rest
PIECE = 64
CHUNK = {
    0: 32,
    1: 64,
}  # channels of a decoded panel, by layout (1: channel): spatial weights lie 16 apart, in more cache lines
OUTPUTS = 64

# Cycles: the register tile with strided weights against the plain one; a weight's 16 elements, a channel's 48 patches,
# an output's 48 patches.
STRIDED, DECODE_SPATIAL, DECODE_CHANNEL, PATCHES, FINISH = 1.2, 8.0, 14.0, 300.0, 250.0


class Winograd(Algorithm):
    """F(2 x 2, 3 x 3): 16 products for 4 outputs instead of 36."""

    name = "winograd"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether a convolution is 3 x 3 of stride 1, and its weight an array, or of whole filters or channels."""
        weight = layer.codes
        plain = layer.kernel == (3, 3) and layer.stride == layer.dilation == (1, 1) and layer.groups == 1
        if weight is None:
            return plain and isinstance(layer.weight, np.ndarray)
        return plain and (weight.codec.layout == "channel" or weight.codec.d % 9 == 0)

    def cost(self, layer: Layer) -> float:
        """Return the cost of transforms, decoding and products."""
        outputs, channels, weight = layer.outputs, layer.channels, layer.codes
        high, across = _patches(layer)
        patches, panels = layer.batch * high * across, -(-outputs // ROWS)
        # The last tile may be narrow; a single vector takes as long as two.
        tasks, tiles = -(-patches // LANES), max(-(-patches // WIDTH), 2) / VECTORS
        decode = 0.0
        if weight is not None:
            decode = DECODE_CHANNEL if weight.codec.layout == "channel" else DECODE_SPATIAL
        inner = panels * (tiles * 16 * PRODUCT * STRIDED + tasks * ROWS * decode)
        return plane_cycles(layer, narrow=False) + channels * (inner + tasks * PATCHES) + tasks * outputs * FINISH

    def windows(self, b: Builder, layer: Layer, x: View) -> Windows:
        """Pad the input to whole patches."""
        high, across = _patches(layer)
        x = pad_planes(b, layer, x, (2 * high + 2, 2 * across + 2), [(0, 0)])
        channel, image_step, _, pitch, _ = x.strides
        offsets = np.repeat(np.arange(layer.channels) * channel, layer.taps)
        return Windows(layer, x, image_step, layer.channels * channel, offsets, layer.batch, *layer.out_size, pitch)

    def steps(self, b: Builder, call: Call) -> None:
        """Append the step."""
        layer, weight, (high, across) = call.layer, call.layer.codes, _patches(call.layer)
        outputs, channels = layer.outputs, layer.channels
        unit = 1
        if weight is not None:
            unit = weight.codec.d if weight.codec.layout == "channel" else weight.codec.d // 9
        channel_layout = int(weight is None or weight.codec.layout == "channel")
        chunk = min(round_up(CHUNK[channel_layout], unit), channels)
        piece = channels if channels <= WHOLE else min(round_up(PIECE, lcm(unit, chunk)), channels)
        patches = layer.batch * high * across
        vectors = patches // WIDTH + (patches % WIDTH > SINGLE_PATCHES)
        p_tasks = max(-(-vectors // (VECTORS * (2 if piece <= PIECE else 1))), 1)
        if 1 < p_tasks < vectors:
            p_tasks = round_up(p_tasks, 2)  # as many for each of two threads
        tiles = most_tiles(patches, vectors, p_tasks)
        wanted = max(-(-4 // p_tasks), 1)  # blocks of outputs repeat the transform
        o_block = min(round_up(-(-outputs // wanted), ROWS), round_up(outputs, ROWS))
        if piece < channels:
            o_block = min(o_block, OUTPUTS)
        o_tasks = -(-outputs // o_block)
        panel = round_up(16 * tiles * (piece * LANES + WIDTH) + WIDTH, 16)
        sums = panel + round_up(ROWS * 16 * (chunk + 16) + 64, 16)
        spare = sums + 16 * tiles * (round_up(o_block, ROWS) if piece < channels else ROWS) * LANES + 64
        arguments = {
            "layer": call.windows.arguments(b),
            "end": call.end.arguments(b),
            "weight": _weight_arguments(b, layer),
            "channels": channels,
            "channel_step": call.windows.x.strides[0],
            "height": layer.out_size[0],
            "piece": piece,
            "chunk": chunk,
            "o_block": o_block,
            "o_tasks": o_tasks,
            "patches": patches,
            "vectors": vectors,
            "p_tasks": p_tasks,
            "high": high,
            "across": across,
            "channel_layout": channel_layout,
            "tiles": tiles,
            "panel": panel,
            "sums": sums,
            "spare": spare,
        }
        b.emit(
            winograd,
            layer.node.name,
            p_tasks * o_tasks,
            arguments,
            reads=call.reads,
            writes=[call.end.out],
            scratch=spare + 16 * (chunk + 2),
            algorithm=self.name,
            stored=layer.stored_bytes,
        )


def _patches(layer: Layer) -> tuple[int, int]:
    """Return rows and columns of patches of 2 x 2 outputs."""
    return (layer.out_size[0] + 1) // 2, (layer.out_size[1] + 1) // 2


def transformed(filters: np.ndarray) -> np.ndarray:
    """Return G g G' of filters (..., 3, 3), shape (..., 16)."""
    numbers = TRANSFORM @ filters.astype(np.float64) @ TRANSFORM.T
    return np.asarray(numbers, np.float32).reshape(*filters.shape[:-2], 16)


def _weight_arguments(b: Builder, layer: Layer) -> dict[str, Any]:
    """Return where codes and codebook are, or the transformed weight."""
    weight = layer.codes
    if weight is None:

        def rows() -> np.ndarray:
            rows = transformed(np.asarray(layer.weight, np.float32)).transpose(0, 2, 1).reshape(layer.outputs, -1)
            return np.concatenate([rows, np.zeros((ROWS, rows.shape[1]), np.float32)])

        at = b.constant((layer.name, "transformed rows"), rows)
        return {"codes": -1, "weight": at, "d": 1, "stride": 0, "code_bytes": 0, "code_row": 0}
    own = code_arguments(b, layer, weight)
    if weight.codec.layout == "channel":
        return own
    filters = weight.codec.d // 9
    words = weight.codebook.reshape(-1, filters, 3, 3)
    own["weight"] = b.constant((layer.name, "transformed codebook"), lambda: transformed(words))
    return own | {"stride": 16 * filters}
