"""A panel of the weight is decoded, then used by the register tile; dense weights are used where they are."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from pqnet.kernels.abi import StepKernel
from pqnet.kernels.products.ahead import AHEAD, AHEAD_SIZES
from pqnet.kernels.products.gemm import DOT_POSITIONS, gemm
from pqnet.kernels.products.tile import LANES, ROWS, VECTORS
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.algorithms.base import (
    HOST,
    Algorithm,
    Call,
    Host,
    block_order,
    code_arguments,
    codebook_arguments,
    in_planes,
)
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import round_up
from pqnet.runtime.windows import NARROW, plane_cycles

__all__ = [
    "PRODUCT",
    "Cut",
    "cut_arguments",
    "cut_gemm",
    "cut_layer",
    "decode_cycles",
    "emit_gemm",
    "most_tiles",
    "weight_arguments",
]

PIECE = 384  # of the reduction: a panel and three lines of each packed row stay in the first-level cache
PACKED = 96 * 1024  # floats of packed positions a task: 384 KiB of the second-level cache
# Cycles for each element of the reduction: packing a tile, decoding a panel in blocks of one (of the usual sizes, which
# have code of their own, below), the same by tables in registers, a register tile; a task.
PACK, DECODE, DECODE_PLANES, MULTIPLY, START = 12.5, 14.0, 3.5, 12.5, 8000.0
DECODE_USUAL = {2: 3.3, 4: 1.8, 8: 1.2, 9: 1.8, 16: 0.8}
# Outputs of a task, or outputs times positions, that do not repay packing: tiles read where they lie take a little
# longer, and much longer if all rows begin in the same lines of the caches.
STRAIGHT = 224, 32 * 1024
SAME_LINES = 1024, 32  # floats between rows, a multiple of which is bad; outputs that do not repay packing then
LISTED = 1.04  # times the cycles of a packed tile
PRODUCT = 23.0 if HOST.halves else MULTIPLY  # cycles of a register tile, to compare algorithms
# Cycles of the epilogue of a register tile; of two dot products of a panel, for each element and for their sums.
FINISH, PAIR, SUM_PAIR = 80.0, 0.85 * ROWS * 16 / (8 * WIDTH), 60.0
SUMS = 48 * 1024  # floats of unfinished sums a task
MOST_TILES = 12  # of positions a task
PART = 0.0, 0.42, 0.7  # of the time of a register tile, for some of its vectors
WIDER, NEAR = 2, 512 * 1024  # times the reduction; floats
PARTS = (1, 2, 3, 4, 6, 8, 12, 16)  # of the outputs


class Decode(Algorithm):
    """Products with packed weights: decode + GEMM."""

    name = "decode"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether the weight has codes that kernels read."""
        return layer.codes is not None and not layer.depthwise

    def cost(self, layer: Layer) -> float:
        """Return the cost for blocks of the weight's size."""
        return _cut_decode(layer).cost

    def steps(self, b: Builder, call: Call) -> None:
        """Append the step."""
        weight, order = weight_arguments(b, call.layer)
        emit_gemm(b, call, gemm, _cut_decode(call.layer, call.end.by_channel), {"weight": weight}, order, self.name)


class Dense(Algorithm):
    """Products with float weights."""

    name = "dense"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether the weight is an array."""
        return isinstance(layer.weight, np.ndarray) and not layer.depthwise

    def cost(self, layer: Layer) -> float:
        """Return the cost of a product without decoding."""
        return _cut_dense(layer).cost

    def steps(self, b: Builder, call: Call) -> None:
        """Append the step."""
        weight, order = weight_arguments(b, call.layer)
        emit_gemm(b, call, gemm, _cut_dense(call.layer, call.end.by_channel), {"weight": weight}, order, self.name)


class Cut(NamedTuple):
    """How work is cut: the arguments of `kernels.products.gemm.CUT`, tasks, floats of scratch, cycles of one core."""

    arguments: Mapping[str, int]
    tasks: int
    scratch: int
    cost: float


def decode_cycles(d: int) -> float:
    """Return the cycles that an element of the reduction takes in a panel of codewords of d numbers."""
    return DECODE_USUAL.get(d, DECODE / min(d, 8))


def weight_arguments(b: Builder, layer: Layer) -> tuple[dict[str, Any], "np.ndarray | slice"]:
    """Return the arguments `kernels.products.gemm.WEIGHT`, and the order of a window's elements in the weight."""
    weight = layer.codes
    if weight is not None:
        at, stride = codebook_arguments(b, (layer.name,), weight.codebook)
        return code_arguments(b, layer, weight) | {"weight": at, "stride": stride}, block_order(weight)

    def rows() -> np.ndarray:
        rows = np.asarray(layer.weight, np.float32).reshape(-1, layer.reduction)
        # Behind the last output a tile reads rows of what follows.
        return np.concatenate([rows, np.zeros((ROWS, layer.reduction), np.float32)])

    dense = {"codes": -1, "weight": b.constant((layer.name, "dense"), rows)}
    return dense | {"d": 1, "stride": 0, "code_bytes": 0, "code_row": 0}, slice(None)


def _cut_decode(layer: Layer, by_channel: bool = False) -> Cut:
    weight = layer.codes
    assert weight is not None
    d, k = weight.codec.d, weight.codec.k
    decode = DECODE_PLANES if in_planes(weight.codebook) else decode_cycles(d)
    return cut_layer(layer, d, decode, by_channel, AHEAD and d in AHEAD_SIZES and k <= 256)


def _cut_dense(layer: Layer, by_channel: bool = False) -> Cut:
    return cut_layer(layer, 1, decode_cycles(1), by_channel)


def cut_layer(layer: Layer, unit: int, decode: float, by_channel: bool = False, ahead: bool = False) -> Cut:
    """Cut the work of a layer, whose result may be read channel by channel; see `cut_gemm`."""
    # Then each half of the outputs had better be computed by one core, unless that reads more than it saves, or the
    # result leaves the caches of both anyway.
    near = layer.outputs * layer.positions <= NEAR
    halves = by_channel and near and layer.groups == 1 and WIDER * layer.reduction <= layer.outputs
    listed = layer.batch == 1 and (layer.pointwise or layer.out_size[1] < NARROW)
    cut = cut_gemm(layer.reduction, unit, decode, layer.outputs, layer.groups, layer.positions, halves, listed, ahead)
    return cut._replace(cost=cut.cost + plane_cycles(layer))


@lru_cache(maxsize=4096)
def cut_gemm(
    k: int,
    unit: int,
    decode: float,
    outputs: int,
    groups: int,
    positions: int,
    halves: bool = False,
    listed: bool = False,
    ahead: bool = False,
) -> Cut:
    """Cut the work, from its sizes alone.

    Parameters
    ----------
    k : int
        The reduction, of which pieces are multiples of ``unit``; they depend on nothing else.
    unit : int
    decode : float
        Cycles that an element of the reduction takes in a panel.
    outputs, groups, positions : int
    halves : bool
        Whether the first tasks have the first half of the outputs, and not of the positions.
    listed : bool
        Whether positions may be read where they lie.
    ahead : bool
        Whether whole tiles decode the next panel.
    """
    pieces = -(-k // max(PIECE, unit)) if k > PIECE + PIECE // 3 else 1
    piece = -(-(k // unit) // pieces) * unit
    few = positions % WIDTH if positions % WIDTH <= DOT_POSITIONS else 0  # computed in pairs, as dot products
    vectors = -(-(positions - few) // WIDTH)
    q_tasks, o_block = _tasks_of(k, piece, decode, outputs, groups, vectors, halves, listed, ahead)
    o_block = min(o_block, round_up(outputs, ROWS))
    o_tasks = -(-outputs // o_block)
    tiles = most_tiles(positions, vectors, q_tasks)
    panel = tiles * (piece + 1) * LANES + LANES
    sums = panel + round_up(2 * ROWS * (piece + 16) + 64, 16)  # two panels: one is decoded beside the other
    column = sums + round_up((o_block if piece < k else ROWS) * tiles * LANES, 16)
    scratch = column + (WIDTH // 3 + 1) * (piece + 16) + 64
    arguments = {
        "piece": piece,
        "o_block": o_block,
        "tiles": tiles,
        "o_tasks": o_tasks,
        "positions": positions,
        "vectors": vectors,
        "q_tasks": q_tasks,
        "o_turn": q_tasks if halves else 1,
        "q_turn": 1 if halves else o_tasks,
        "panel": panel,
        "sums": sums,
        "column": column,
    }
    wide, pairs = q_tasks * _tile_times(-(-vectors // q_tasks)), -(-few // 2)
    pack = 0.0 if listed and o_block <= STRAIGHT[0] else PACK * -(-positions // LANES)
    panels = -(-o_block // ROWS)
    decoded = q_tasks * k * decode * _decoded_apart(panels, -(-vectors // q_tasks), ahead)
    panel_cost = wide * (k * PRODUCT + FINISH) + pairs * (k * PAIR + SUM_PAIR)
    cost = groups * o_tasks * (k * pack + decoded + panels * panel_cost)
    return Cut(arguments, groups * o_tasks * q_tasks, scratch, cost)


def most_tiles(total: int, vectors: int, tasks: int) -> int:
    """Return the tiles of the largest part of ``total`` positions, as `kernels.products.gemm.even_part` cuts them."""
    last = total - (tasks - 1) * vectors // tasks * WIDTH
    return -(-max(-(-vectors // tasks) * WIDTH, last) // LANES)


def _decoded_apart(panels: int, vectors: int, ahead: bool) -> int:
    """Return how many panels of a task are decoded on their own, and not beside the tiles of the panel before."""
    return 1 if ahead and vectors >= VECTORS else panels


def _tile_times(vectors: int) -> float:
    """Return how many times as long as a whole register tile those of some vectors of positions take."""
    return vectors // VECTORS + PART[vectors % VECTORS]


def _tasks_of(
    k: int,
    piece: int,
    decode: float,
    outputs: int,
    groups: int,
    vectors: int,
    halves: bool,
    listed: bool,
    ahead: bool,
) -> tuple[int, int]:
    """Return how many tasks there are along the positions, and the outputs of a task, as `cut_gemm` takes them."""
    best: tuple[float, int, int] | None = None
    o_blocks = [round_up(-(-outputs // parts), ROWS) for parts in PARTS if not halves or parts % 2 == 0]
    o_blocks = [o_block for o_block in o_blocks if o_block >= 2 * ROWS or o_block == o_blocks[0]]
    if piece < k:  # more parts than that for the largest vocabularies: sums of all pieces stay in the cache
        o_blocks.append(min(o_blocks[-1], SUMS // LANES // ROWS * ROWS))
    start = START / k
    for q_tasks in _position_tasks(vectors, min(max(PACKED // (piece * LANES), 1), MOST_TILES)):
        each = -(-vectors // q_tasks)
        tiles = _tile_times(each)
        room = outputs if piece == k else max(SUMS // (max(-(-each // VECTORS), 1) * LANES), ROWS)
        for o_block in o_blocks:
            if o_block > room + ROWS - 1:
                continue
            tasks = q_tasks * -(-outputs // o_block) * groups
            unpacked = listed and o_block <= STRAIGHT[0]
            multiply, pack = (MULTIPLY * LISTED, 0.0) if unpacked else (MULTIPLY, PACK * each / VECTORS)
            panels = o_block // ROWS
            task = pack + decode * _decoded_apart(panels, each, ahead) + panels * tiles * multiply + start
            cost = (-(-tasks // 2) * 2 + -(-tasks // 4) * 4) * task  # on two threads and on four
            if best is None or (cost, q_tasks, o_block) < best:
                best = cost, q_tasks, o_block
    assert best is not None  # one output block of ROWS always fits
    return best[1:]


def _position_tasks(vectors: int, most: int) -> list[int]:
    """Return into how many tasks, of at most so many tiles of positions each, vectors of positions may be cut."""
    found = {1} if vectors <= VECTORS * most else set()
    for tiles in range(1, most + 1):
        tasks = -(-vectors // (VECTORS * tiles))
        found |= {round_up(tasks, threads) for threads in (1, 2, 4)}  # the same number for each thread
    return sorted(tasks for tasks in found if 1 <= tasks <= max(vectors, 1))


def cut_arguments(b: Builder, cut: Cut, straight: bool = False) -> dict[str, Any]:
    """Return the arguments `kernels.products.gemm.CUT`; ``straight``: positions are not packed."""
    rows = b.table(np.arange(cut.arguments["piece"]) * LANES)
    return {**cut.arguments, "straight": int(straight), "rows": rows}


def emit_gemm(
    b: Builder,
    call: Call,
    kernel: StepKernel,
    cut: Cut,
    weight: Mapping[str, Any],
    order: "np.ndarray | slice",
    algorithm: str,
    scratch: int = 0,
) -> None:
    """Append the step; ``order`` is that of a window's elements in the weight, ``scratch`` floats are needed beside."""
    windows = call.windows
    one_run = windows.batch == windows.height == 1
    outputs = min(cut.arguments["o_block"], call.layer.outputs)
    between = windows.group_step // call.layer.channels
    most = min(SAME_LINES[1], STRAIGHT[0]) if between % SAME_LINES[0] == 0 else STRAIGHT[0]
    straight = one_run and outputs <= max(most, STRAIGHT[1] // call.layer.positions)
    b.emit(
        kernel,
        call.layer.node.name,
        cut.tasks,
        {
            "layer": windows.arguments(b, order),
            "end": call.end.arguments(b),
            "cut": cut_arguments(b, cut, straight),
            **weight,
        },
        reads=call.reads,
        writes=[call.end.out],
        scratch=cut.scratch + scratch,
        algorithm=algorithm,
        stored=call.layer.stored_bytes,
    )
