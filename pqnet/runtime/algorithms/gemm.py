"""Decode + GEMM, and products with dense weights: how the work is cut."""

import numpy as np

from pqnet.codecs import Packed, PackedPQ
from pqnet.codecs.layout import block_columns
from pqnet.kernels.gemm import gemm
from pqnet.kernels.simd import WIDTH
from pqnet.kernels.tile import LANES, ROWS
from pqnet.runtime.builder import Builder
from pqnet.runtime.lower.product import Product, code_rows, codebook_floats, codeword_step, round_up, stored_bytes
from pqnet.runtime.views import View

__all__ = ["MULTIPLY", "emit_gemm", "gemm_cost"]

PIECE = 384  # of the reduction: a panel and three lines of each packed row stay in the first-level cache
PACKED = 96 * 1024  # floats of packed positions a task: 384 KiB of the second-level cache
# Cycles for each number of the reduction: packing a tile, decoding a panel in blocks of one, a register tile; a task.
PACK, DECODE, MULTIPLY, START = 10.0, 16.0, 12.5, 8000.0
SUMS = 48 * 1024  # floats of unfinished sums a task


def gemm_cost(k: int, d: int, outputs: int, groups: int, positions: int) -> float:
    """Return about how many cycles of one core the product takes."""
    (_, o_block, tiles, o_tasks, _, q_tasks, *_), _ = gemm_blocks(k, d, outputs, groups, positions)
    panels = -(-o_block // ROWS)
    return groups * k * o_tasks * q_tasks * (tiles * PACK + panels * (DECODE / min(d, 8) + tiles * MULTIPLY))


def gemm_blocks(k: int, d: int, outputs: int, groups: int, positions: int) -> tuple[list[int], int]:
    """Return fields 30-38 of `kernels.gemm` and the floats of scratch: how the work is cut, from its sizes alone."""
    pieces = -(-k // max(PIECE, d)) if k > PIECE + PIECE // 3 else 1
    piece = -(-(k // d) // pieces) * d
    total = -(-positions // LANES)
    best: tuple[float, int, int] | None = None
    for tiles in range(1, min(total, max(PACKED // (piece * LANES), 1), 12) + 1):
        room = outputs if piece == k else max(SUMS // (tiles * LANES), ROWS)
        for parts in (1, 2, 3, 4, 6, 8, 12, 16):
            o_block = round_up(-(-outputs // parts), ROWS)
            if o_block > round_up(room, ROWS) or (parts > 1 and o_block < 2 * ROWS):
                continue
            tasks = -(-total // tiles) * -(-outputs // o_block) * groups
            panels = o_block // ROWS
            task = tiles * PACK + panels * (DECODE / min(d, 8) + tiles * MULTIPLY) + START / k
            cost = sum(-(-tasks // threads) * threads * task for threads in (2, 4))
            best = min(best, (cost, tiles, o_block)) if best else (cost, tiles, o_block)
    assert best is not None  # one output block of ROWS always fits
    _, tiles, o_block = best
    o_block = min(o_block, round_up(outputs, ROWS))
    q_tasks, o_tasks = -(-total // tiles), -(-outputs // o_block)
    panel = tiles * (piece + 1) * LANES + LANES
    sums = panel + round_up(ROWS * (piece + 16) + 64, 16)
    column = sums + round_up((o_block if piece < k else ROWS) * tiles * LANES, 16)
    scratch = column + (WIDTH // 3 + 1) * (piece + 16) + 64
    return [piece, o_block, tiles, o_tasks, positions, q_tasks, panel, sums, column], scratch


def emit_gemm(b: Builder, p: Product) -> None:
    """Append decode + GEMM, or the dense product."""
    name, weight = p.node.params["weight"], p.weight
    k = p.reduction
    if isinstance(weight, PackedPQ):
        d, order = weight.codec.d, block_columns(weight.shape, weight.codec.layout)
        own: list[int | View] = [
            b.code_bytes((name, "rows"), lambda: code_rows(weight)),
            b.constant((name, "codebook"), lambda: codebook_floats(weight)),
            *(d, codeword_step(d), weight.codes.itemsize, weight.codes.itemsize * (k // d)),
        ]
    else:
        d, order = 1, np.arange(k)

        def dense() -> np.ndarray:
            rows = np.asarray(weight.decode() if isinstance(weight, Packed) else weight, np.float32).reshape(-1, k)
            return np.concatenate([rows, np.zeros((ROWS, k), np.float32)])

        # Behind the last output a tile reads rows of what follows; there is slack for them.
        own = [
            -1,
            b.constant((name, "dense"), dense),
            1,
            0,
            0,
            0,
        ]
    blocks, scratch = gemm_blocks(k, d, p.outputs, p.groups, p.positions)
    b.emit(
        gemm,
        p.node.name,
        blocks[3] * blocks[5] * p.groups,
        [*p.fields(b, p.offsets[order]), *own, *blocks],
        reads=[p.x, *(v for v in p.tail if isinstance(v, View))],
        writes=[p.out],
        scratch=scratch,
        way="decode" if isinstance(weight, PackedPQ) else "dense",
        stored=stored_bytes(weight),
    )
