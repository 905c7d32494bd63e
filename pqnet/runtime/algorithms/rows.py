"""Tables as a way to run a layer: vectors of many positions, or numbers of a few."""

from functools import lru_cache

import numpy as np

from pqnet.codecs import PackedPQ
from pqnet.codecs.layout import block_columns
from pqnet.kernels.lut import lut
from pqnet.kernels.lut_rows import fill_tables, look_up_outputs
from pqnet.kernels.tile import ROWS
from pqnet.runtime.builder import Builder
from pqnet.runtime.lower.lut import LutPlan, RowsPlan, lut_codes, plan_lut, plan_rows, rows_codebook, rows_codes
from pqnet.runtime.lower.planes import emit_planes, plan_planes, planes_fit
from pqnet.runtime.lower.product import Product, codebook_floats, codeword_step, round_up, stored_bytes
from pqnet.runtime.views import View

__all__ = ["ROW_POSITIONS", "emit_lut", "emit_rows", "lut_cost", "rows_cost"]

ROW_POSITIONS = 4  # at most, of scalar tables


@lru_cache(maxsize=256)
def _cut(
    inputs: tuple[int, ...], taps: tuple[int, ...], k: int, d: int, outputs: int, sizes: tuple[int, int, int, int]
) -> LutPlan:
    return plan_lut(np.array(inputs), np.array(taps), k, d, outputs, *sizes)


def lut_cost(weight: PackedPQ, outputs: int, images: int, size: tuple[int, int], pitch: int) -> float:
    """Return about how many cycles of one core a layer takes by tables; the taps are those of a k x k kernel."""
    channel = weight.codec.layout == "channel" and len(weight.shape) == 4
    taps = [y * pitch + x for y in range(weight.shape[2]) for x in range(weight.shape[3])] if channel else [0]
    reduction = int(np.prod(weight.shape[1:])) // len(taps)
    sizes = (images, *size, pitch)
    plan = _cut(tuple(range(reduction)), tuple(taps), weight.codec.k, weight.codec.d, outputs, sizes)
    return plan.cost / 2  # two multiply-adds a cycle


def emit_lut(b: Builder, p: Product) -> None:
    """Append the step; in ``channel`` layout the positions lie on planes on which a tap is a shift."""
    weight = p.weight
    assert isinstance(weight, PackedPQ)
    name, codec, size = p.node.params["weight"], weight.codec, weight.codes.itemsize
    if codec.layout == "channel" and len(weight.shape) == 4:
        offsets = p.offsets.reshape(weight.shape[1], -1)
        inputs, taps = offsets[:, 0] - offsets[0, 0], offsets[0]
    else:
        inputs, taps = p.offsets[block_columns(weight.shape, codec.layout)], np.zeros(1, np.int64)
    sizes = (p.groups * p.batch, p.image // p.width, p.width, p.pitch)
    plan = _cut(tuple(map(int, inputs)), tuple(map(int, taps)), codec.k, codec.d, p.outputs, sizes)
    own = [
        b.code_bytes((name, "lut", plan.in_pass, str(plan.shifts)), lambda: lut_codes(weight.codes, p.groups, plan)),
        b.constant((name, "codebook"), lambda: codebook_floats(weight)),
        *(codec.d, codeword_step(codec.d), round_up(codec.k, ROWS), (1 << 8 * size) - 1, size, plan.blocks),
        *(b.indices(plan.rows), plan.in_pass, plan.taps, b.indices(plan.tables.reshape(-1)), len(plan.tables)),
        *(b.indices(plan.groups.reshape(-1)), len(plan.groups), b.indices(plan.steps.reshape(-1)), *plan.own),
    ]
    b.emit(
        lut,
        p.node.name,
        plan.tasks,
        [*p.fields(b, p.offsets)[:24], *own],
        reads=[p.x, *(v for v in p.tail if isinstance(v, View))],
        writes=[p.out],
        scratch=plan.scratch + 64,
        way="lut",
        stored=stored_bytes(weight),
    )


def _rows_plan(weight: PackedPQ, outputs: int, groups: int, positions: int) -> RowsPlan:
    blocks = weight.n_blocks // weight.shape[0]
    return plan_rows(blocks, weight.codec.k, weight.codec.d, outputs, groups, positions)


def rows_cost(weight: PackedPQ, outputs: int, groups: int, positions: int) -> float:
    """Return about how many cycles of one core a layer takes by scalar tables."""
    if planes_fit(weight.codec.k, positions):
        blocks = weight.n_blocks // weight.shape[0]
        return plan_planes(blocks, weight.codec.k, weight.codec.d, outputs, groups).cost
    return _rows_plan(weight, outputs, groups, positions).cost


def emit_rows(b: Builder, p: Product) -> None:
    """Append the two steps; the positions, at most ROW_POSITIONS, are contiguous."""
    weight = p.weight
    assert isinstance(weight, PackedPQ)
    if planes_fit(weight.codec.k, p.positions):
        emit_planes(b, p)
        return
    name, codec = p.node.params["weight"], weight.codec
    plan = _rows_plan(weight, p.outputs, p.groups, p.positions)
    tables = b.new((plan.floats,))
    shared = p.fields(b, p.offsets[block_columns(weight.shape, codec.layout)])
    book = b.constant((name, "rows codebook"), lambda: rows_codebook(weight.codebook.astype(np.float32)))
    fields = [*shared, 1, book, *plan.filled, tables]
    b.emit(fill_tables, f"{p.node.name} (tables)", plan.fill_tasks, fields, reads=[p.x], writes=[tables], way="rows")
    codes = b.code_bytes((name, "rows turns"), lambda: rows_codes(weight.codes, p.groups))
    b.emit(
        look_up_outputs,
        p.node.name,
        plan.tasks,
        [*shared, codes, *plan.looked_up, tables],
        reads=[tables, *(v for v in p.tail if isinstance(v, View))],
        writes=[p.out],
        scratch=plan.scratch + 64,
        way="rows",
        stored=stored_bytes(weight),
    )
