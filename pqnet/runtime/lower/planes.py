"""Scalar tables in registers as a way to run a layer for one position: plan-time half of `kernels.lut_planes`."""

from dataclasses import dataclass
from math import ceil

import numpy as np

from pqnet.codecs import PackedPQ
from pqnet.codecs.layout import block_columns
from pqnet.kernels.lut_planes import TILE, fill_planes, look_up_planes, order_codes
from pqnet.kernels.simd import BYTE_TABLES
from pqnet.runtime.builder import Builder
from pqnet.runtime.lower.product import Product, round_up, stored_bytes
from pqnet.runtime.views import View

__all__ = ["PlanesPlan", "emit_planes", "plan_planes", "planes_book", "planes_codes", "planes_fit"]

TASK = 5000  # cycles that a task should take: some times what it takes to begin one
# Fitted cycles: of sixteen numbers of a table, for each of their d; of a table's loads; of a tile; of both steps.
NUMBER, LOADS, LOOK, STEPS = 0.75, 40.0, 8.5, 4000.0


@dataclass
class PlanesPlan:
    """How `kernels.lut_planes` computes a layer.

    Attributes
    ----------
    words : int
        Numbers of a table: 128 or 256.
    floats : int
        Of all tables, in the arena.
    filled, looked_up : list of int
        Fields 25-28 of `fill_planes` and 25-28 of `look_up_planes`.
    fill_tasks, tasks, scratch : int
        Tasks of the two steps, and floats of scratch of the second.
    cost : float
        Estimated cycles of one core.
    """

    words: int
    floats: int
    filled: list[int]
    looked_up: list[int]
    fill_tasks: int
    tasks: int
    scratch: int
    cost: float


def planes_fit(k: int, positions: int) -> bool:
    """Tell whether this CPU can run a layer with k codewords so."""
    return BYTE_TABLES and positions == 1 and k <= 256


def plan_planes(blocks: int, k: int, d: int, outputs: int, groups: int) -> PlanesPlan:
    """Cut the work of one position; ``blocks`` and ``outputs`` are those of a group."""
    words, tiles = 128 if k <= 128 else 256, ceil(outputs / TILE)
    table, tile = words / 16 * (NUMBER * d + 1), blocks * LOOK * words / 256
    some = ceil(groups * blocks / max(round(groups * blocks * table / TASK), 1))
    parts = min(max(round(tiles * tile / TASK), 1), tiles)
    per_task = ceil(tiles / parts)
    o_tasks = ceil(tiles / per_task)
    return PlanesPlan(
        words,
        groups * blocks * words,
        [d, words, blocks, some],
        [words, blocks, per_task, o_tasks],
        ceil(groups * blocks / some),
        groups * o_tasks,
        per_task * TILE,
        groups * (blocks * (table + o_tasks * LOADS) + tiles * tile) + STEPS,
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
    """Return a codebook (k, d) in float32 as `fill_planes` reads it: transposed, padded with zeros."""
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
    tables = b.new((plan.floats,))
    shared = p.fields(b, p.offsets[block_columns(weight.shape, codec.layout)])
    book = b.constant((name, "planes codebook"), lambda: planes_book(weight.codebook.astype(np.float32)))
    fields = [*shared, book, *plan.filled, tables]
    b.emit(fill_planes, f"{p.node.name} (tables)", plan.fill_tasks, fields, reads=[p.x], writes=[tables], way="rows")
    codes = b.code_bytes((name, "planes"), lambda: planes_codes(weight.codes, p.groups))
    b.emit(
        look_up_planes,
        p.node.name,
        plan.tasks,
        [*shared, codes, *plan.looked_up, tables],
        reads=[tables, *(v for v in p.tail if isinstance(v, View))],
        writes=[p.out],
        scratch=plan.scratch + TILE,
        way="rows",
        stored=stored_bytes(weight),
    )
