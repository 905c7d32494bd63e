"""Winograd's algorithm as a way to run a convolution: geometry, transformed weights, cost."""

from math import lcm

import numpy as np

from pqnet.codecs import Packed, PackedPQ
from pqnet.graph import Node
from pqnet.graph.op import Attrs
from pqnet.kernels.simd import WIDTH
from pqnet.kernels.tile import LANES, ROWS
from pqnet.kernels.winograd import winograd
from pqnet.runtime.builder import Builder
from pqnet.runtime.lower.gemm import MULTIPLY
from pqnet.runtime.lower.product import Product, code_rows, codebook_floats, codeword_step, round_up, stored_bytes
from pqnet.runtime.views import View

__all__ = ["emit_winograd", "winograd_cost", "winograd_fits"]

TRANSFORM = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
WHOLE = 128  # channels up to which transformed patches fit the second-level cache beside the rest
PIECE = 64
CHUNK = {0: 32, 1: 64}  # channels of a decoded panel, by layout: spatial weights lie 16 apart, in more cache lines
OUTPUTS = 64

# Cycles: the register tile with strided weights against the plain one; a weight's 16 numbers, a channel's 48 patches,
# an output's 48 patches.
STRIDED, DECODE_SPATIAL, DECODE_CHANNEL, PATCHES, FINISH = 1.2, 8.0, 14.0, 300.0, 600.0


def winograd_fits(weight: np.ndarray | Packed, a: Attrs) -> bool:
    """Tell whether the algorithm applies to a convolution."""
    if weight.shape[2:] != (3, 3) or tuple(a["stride"]) != (1, 1) or tuple(a["dilation"]) != (1, 1) or a["groups"] != 1:
        return False
    if isinstance(weight, PackedPQ):
        d = weight.codec.d
        return weight.codec.layout == "channel" or d % 9 == 0
    return True


def winograd_cost(weight: np.ndarray | Packed, patches: int) -> float:
    """Return about how many cycles of one core the convolution takes."""
    outputs, channels = weight.shape[:2]
    tasks, panels = -(-patches // LANES), -(-outputs // ROWS)
    decode = 0.0
    if isinstance(weight, PackedPQ):
        decode = DECODE_CHANNEL if weight.codec.layout == "channel" else DECODE_SPATIAL
    inner = panels * (16 * MULTIPLY * STRIDED + ROWS * decode)
    return tasks * (channels * (inner + PATCHES) + outputs * FINISH)


def transformed(filters: np.ndarray) -> np.ndarray:
    """Return G g G' of filters (..., 3, 3), shape (..., 16)."""
    numbers = TRANSFORM @ filters.astype(np.float64) @ TRANSFORM.T
    return np.asarray(numbers, np.float32).reshape(*filters.shape[:-2], 16)


def _weight_fields(b: Builder, node: Node, weight: np.ndarray | Packed) -> list[int | View]:
    """Return fields 24-29: where codes and codebook are."""
    name = node.params["weight"]
    outputs, channels = weight.shape[:2]
    if not isinstance(weight, PackedPQ):

        def rows() -> np.ndarray:
            dense = np.asarray(weight.decode() if isinstance(weight, Packed) else weight, np.float32)
            numbers = transformed(dense).transpose(0, 2, 1).reshape(outputs, 16 * channels)
            return np.concatenate([numbers, np.zeros((ROWS, 16 * channels), np.float32)])

        return [-1, b.constant((name, "transformed rows"), rows), 1, 0, 0, 0]
    d, codes = weight.codec.d, b.code_bytes((name, "rows"), lambda: code_rows(weight))
    if weight.codec.layout == "channel":
        book, step = b.constant((name, "codebook"), lambda: codebook_floats(weight)), codeword_step(d)
    else:
        words = weight.codebook.reshape(-1, d // 9, 3, 3)
        book, step = b.constant((name, "transformed"), lambda: transformed(words)), 16 * d // 9
    size = weight.codes.itemsize
    return [codes, book, d, step, size, size * channels * 9 // d]


def emit_winograd(b: Builder, p: Product, planes: View, patches: tuple[int, int], height: int) -> None:
    """Append the step; ``planes`` are the prepared input (C, B, 1, rows, columns), ``patches`` those of an image."""
    weight = p.weight
    outputs, channels = weight.shape[:2]
    unit = 1
    if isinstance(weight, PackedPQ):
        unit = weight.codec.d if weight.codec.layout == "channel" else weight.codec.d // 9
    layout = int(not isinstance(weight, PackedPQ) or weight.codec.layout == "channel")
    chunk = min(round_up(CHUNK[layout], unit), channels)
    piece = channels if channels <= WHOLE else min(round_up(PIECE, lcm(unit, chunk)), channels)
    total = p.batch * patches[0] * patches[1]
    tiles = min(2 if piece <= PIECE else 1, -(-total // LANES))
    p_tasks = -(-total // (LANES * tiles))
    wanted = max(-(-4 // p_tasks), 1)  # blocks of outputs repeat the transform
    o_block = min(round_up(-(-outputs // wanted), ROWS), round_up(outputs, ROWS))
    if piece < channels:
        o_block = min(o_block, OUTPUTS)
    o_tasks = -(-outputs // o_block)
    panel = round_up(16 * tiles * (piece * LANES + WIDTH) + WIDTH, 16)
    sums = panel + round_up(ROWS * 16 * (chunk + 16) + 64, 16)
    stage = sums + 16 * tiles * (round_up(o_block, ROWS) if piece < channels else ROWS) * LANES + 64
    spare = round_up(stage + 6 * LANES + 8 * WIDTH, 16)
    own = [
        piece,
        chunk,
        o_block,
        o_tasks,
        total,
        *patches,
        layout,
        planes.strides[0],
        height,
        panel,
        sums,
        stage,
        tiles,
        spare,
    ]
    b.emit(
        winograd,
        p.node.name,
        p_tasks * o_tasks,
        [*p.fields(b, p.offsets)[:23], channels, *_weight_fields(b, p.node, weight), *own],
        reads=[planes, *(v for v in p.tail if isinstance(v, View))],
        writes=[p.out],
        scratch=spare + 16 * (chunk + 2),
        way="winograd",
        stored=stored_bytes(weight),
    )
