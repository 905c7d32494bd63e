"""A panel of the weight is decoded, then used by the register tile; dense weights are used where they are."""

from functools import lru_cache
from typing import Any

import numpy as np

from pqnet.codecs import Packed
from pqnet.kernels.gemm import gemm
from pqnet.kernels.simd import WIDTH
from pqnet.kernels.tile import LANES, ROWS
from pqnet.runtime.algorithms.base import Algorithm, Call, Host, block_order, code_arguments
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import round_up

PIECE = 384  # of the reduction: a panel and three lines of each packed row stay in the first-level cache
PACKED = 96 * 1024  # floats of packed positions a task: 384 KiB of the second-level cache
# Cycles for each element of the reduction: packing a tile, decoding a panel in blocks of one, a register tile; a task.
PACK, DECODE, MULTIPLY, START = 10.0, 16.0, 12.5, 8000.0
SUMS = 48 * 1024  # floats of unfinished sums a task
PARTS = (1, 2, 3, 4, 6, 8, 12, 16)  # of the outputs


class Decode(Algorithm):
    """Products with packed weights: decode + GEMM."""

    name = "decode"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether the weight has codes that kernels read."""
        return layer.codes is not None and not layer.depthwise

    def cost(self, layer: Layer) -> float:
        """Return the cost for blocks of the weight's size."""
        weight = layer.codes
        assert weight is not None
        return gemm_cost(layer.reduction, weight.codec.d, layer.outputs, layer.groups, layer.positions)

    def steps(self, b: Builder, call: Call) -> None:
        """Append the step."""
        weight = call.layer.codes
        assert weight is not None
        _emit(b, call, code_arguments(b, call.layer, weight), weight.codec.d, block_order(weight), self.name)


class Dense(Algorithm):
    """Products with float weights, and with those that have to be decoded when the program is built."""

    name = "dense"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether the weight is no codes that kernels read."""
        return layer.codes is None and not layer.depthwise

    def cost(self, layer: Layer) -> float:
        """Return the cost of a product without decoding."""
        return gemm_cost(layer.reduction, 1, layer.outputs, layer.groups, layer.positions)

    def steps(self, b: Builder, call: Call) -> None:
        """Append the step."""
        layer = call.layer

        def rows() -> np.ndarray:
            weight = layer.weight.decode() if isinstance(layer.weight, Packed) else layer.weight
            rows = np.asarray(weight, np.float32).reshape(-1, layer.reduction)
            # Behind the last output a tile reads rows of what follows.
            return np.concatenate([rows, np.zeros((ROWS, layer.reduction), np.float32)])

        weight = {"codes": -1, "weight": b.constant((layer.name, "dense"), rows)}
        weight |= {"d": 1, "stride": 0, "code_bytes": 0, "code_row": 0}
        _emit(b, call, weight, 1, slice(None), self.name)


def gemm_cost(k: int, d: int, outputs: int, groups: int, positions: int) -> float:
    """Return about how many cycles of one core the product takes."""
    cut = cut_gemm(k, d, outputs, groups, positions)[0]
    tiles, panels = cut["tiles"], -(-cut["o_block"] // ROWS)
    tasks = groups * cut["o_tasks"] * cut["q_tasks"]
    return k * tasks * (tiles * PACK + panels * (DECODE / min(d, 8) + tiles * MULTIPLY))


@lru_cache(maxsize=4096)
def cut_gemm(k: int, d: int, outputs: int, groups: int, positions: int) -> tuple[dict[str, int], int]:
    """Return how the work is cut, as arguments of `kernels.gemm`, and the floats of scratch: from its sizes alone."""
    pieces = -(-k // max(PIECE, d)) if k > PIECE + PIECE // 3 else 1
    piece = -(-(k // d) // pieces) * d
    total = -(-positions // LANES)
    best: tuple[float, int, int] | None = None
    o_blocks = [round_up(-(-outputs // parts), ROWS) for parts in PARTS]
    o_blocks = [o_block for o_block in o_blocks if o_block >= 2 * ROWS or o_block == o_blocks[0]]
    decode, start = DECODE / min(d, 8), START / k
    for tiles in range(1, min(total, max(PACKED // (piece * LANES), 1), 12) + 1):
        room = outputs if piece == k else max(SUMS // (tiles * LANES), ROWS)
        for o_block in o_blocks:
            if o_block > room + ROWS - 1:
                continue
            tasks = -(-total // tiles) * -(-outputs // o_block) * groups
            task = tiles * PACK + o_block // ROWS * (decode + tiles * MULTIPLY) + start
            cost = (-(-tasks // 2) * 2 + -(-tasks // 4) * 4) * task  # on two threads and on four
            if best is None or (cost, tiles, o_block) < best:
                best = cost, tiles, o_block
    assert best is not None  # one output block of ROWS always fits
    _, tiles, o_block = best
    o_block = min(o_block, round_up(outputs, ROWS))
    q_tasks, o_tasks = -(-total // tiles), -(-outputs // o_block)
    panel = tiles * (piece + 1) * LANES + LANES
    sums = panel + round_up(ROWS * (piece + 16) + 64, 16)
    column = sums + round_up((o_block if piece < k else ROWS) * tiles * LANES, 16)
    scratch = column + (WIDTH // 3 + 1) * (piece + 16) + 64
    cut = {
        "piece": piece,
        "o_block": o_block,
        "tiles": tiles,
        "o_tasks": o_tasks,
        "positions": positions,
        "q_tasks": q_tasks,
        "panel": panel,
        "sums": sums,
        "column": column,
    }
    return cut, scratch


def _emit(b: Builder, call: Call, weight: dict[str, Any], d: int, order: "np.ndarray | slice", algorithm: str) -> None:
    layer = call.layer
    cut, scratch = cut_gemm(layer.reduction, d, layer.outputs, layer.groups, layer.positions)
    b.emit(
        gemm,
        layer.node.name,
        cut["o_tasks"] * cut["q_tasks"] * layer.groups,
        {"layer": call.windows.arguments(b, order), "end": call.end.arguments(b), "weight": weight, **cut},
        reads=call.reads,
        writes=[call.end.out],
        scratch=scratch,
        algorithm=algorithm,
        stored=layer.stored_bytes,
    )
