"""Scalar tables in registers as a way to run a layer for one position: plan-time half of `kernels.lut_planes`."""

from dataclasses import dataclass
from math import ceil

import numpy as np

from pqnet.codecs import PackedPQ
from pqnet.codecs.layout import block_columns
from pqnet.kernels.lut_planes import TILE, look_up_planes, order_codes, sum_parts
from pqnet.kernels.simd import BYTE_TABLES
from pqnet.runtime.builder import Builder
from pqnet.runtime.lower.product import Product, round_up, stored_bytes
from pqnet.runtime.views import View

__all__ = ["PlanesPlan", "emit_planes", "plan_planes", "planes_book", "planes_codes", "planes_fit"]

TASK = 10_000  # cycles, at least, of a task that looks up parts of the blocks
PARTS = (8, 4, 2, 1)
CHUNK = 64  # tiles whose sums stay in the first-level cache
LAST = 32  # tiles a task of the last step
# Fitted cycles: of sixteen numbers of a table, for each of their d; of a tile; of a tile of a part; of both steps.
NUMBER, LOOK, SUM, STEPS = 0.75, 8.5, 6.0, 4000.0


@dataclass
class PlanesPlan:
    """How `kernels.lut_planes` computes a layer.

    Attributes
    ----------
    floats : int
        Of sums, in the arena.
    looked_up, summed : list of int
        Fields 26-32 of `look_up_planes` and 24-26 of `sum_parts`.
    tasks, sum_tasks, scratch : int
        Tasks of the two steps, and floats of scratch of either.
    cost : float
        Estimated cycles of one core.
    """

    floats: int
    looked_up: list[int]
    summed: list[int]
    tasks: int
    sum_tasks: int
    scratch: int
    cost: float


def planes_fit(k: int, positions: int) -> bool:
    """Tell whether this CPU can run a layer with k codewords so."""
    return BYTE_TABLES and positions == 1 and k <= 256


def plan_planes(blocks: int, k: int, d: int, outputs: int, groups: int, parts: int | None = None) -> PlanesPlan:
    """Cut the work of one position; ``blocks`` and ``outputs`` are those of a group."""
    words, tiles = 128 if k <= 128 else 256, ceil(outputs / TILE)
    chunk = ceil(tiles / ceil(tiles / CHUNK))
    chunks = ceil(tiles / chunk)
    work = blocks * (chunks * words / 16 * (NUMBER * d + 1) + tiles * LOOK * words / 256)
    if parts is None:
        parts = next((p for p in PARTS if p <= blocks and work >= p * chunks * TASK), 1)
    some = ceil(blocks / parts)
    parts = ceil(blocks / some)
    last = ceil(tiles / ceil(tiles / LAST))
    return PlanesPlan(
        parts * groups * tiles * TILE,
        [d, words, blocks, some, parts, chunk, chunks],
        [parts, last, ceil(tiles / last)],
        groups * chunks * parts,
        groups * ceil(tiles / last),
        max(2 * words, last * TILE),
        groups * (work + parts * tiles * SUM) + STEPS,
    )


def planes_codes(codes: np.ndarray, groups: int) -> np.ndarray:
    """Return codes (O, M) in the order of `look_up_planes`: group, block, tile, output as `order_codes` has them."""
    cube = codes.reshape(groups, -1, codes.shape[1])
    padded = np.zeros((groups, codes.shape[1], round_up(cube.shape[1], TILE)), np.uint8)
    padded[:, :, : cube.shape[1]] = cube.transpose(0, 2, 1)
    tiles = padded.reshape(groups, codes.shape[1], -1, TILE)
    ordered: np.ndarray = order_codes(tiles)  # type: ignore[no-untyped-call]
    return ordered.reshape(-1)


def planes_book(codebook: np.ndarray) -> np.ndarray:
    """Return a codebook (k, d) in float32 as `look_up_planes` reads it: transposed, padded with zeros."""
    k, d = codebook.shape
    out = np.zeros((d, 128 if k <= 128 else 256), np.float32)
    out[:, :k] = codebook.T
    return out


def emit_planes(b: Builder, p: Product) -> None:
    """Append the two steps."""
    weight = p.weight
    assert isinstance(weight, PackedPQ)
    name, codec = p.node.params["weight"], weight.codec
    plan = plan_planes(weight.n_blocks // weight.shape[0], codec.k, codec.d, p.outputs, p.groups)
    sums = b.new((plan.floats,))
    shared = p.fields(b, p.offsets[block_columns(weight.shape, codec.layout)])
    book = b.constant((name, "planes codebook"), lambda: planes_book(weight.codebook.astype(np.float32)))
    codes = b.code_bytes((name, "planes"), lambda: planes_codes(weight.codes, p.groups))
    b.emit(
        look_up_planes,
        p.node.name,
        plan.tasks,
        [*shared, codes, book, *plan.looked_up, sums],
        reads=[p.x],
        writes=[sums],
        scratch=plan.scratch + TILE,
        way="rows",
        stored=stored_bytes(weight),
    )
    b.emit(
        sum_parts,
        f"{p.node.name} (sums)",
        plan.sum_tasks,
        [*shared, *plan.summed, sums],
        reads=[sums, *(v for v in p.tail if isinstance(v, View))],
        writes=[p.out],
        scratch=plan.scratch + TILE,
        way="rows",
    )
