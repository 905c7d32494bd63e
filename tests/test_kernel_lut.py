"""Table kernels against the sums that they stand for, term by term: any geometry, tile and order of tasks."""

from dataclasses import dataclass

import numpy as np
import pytest
from forced import FORCED, run_forced
from hypothesis import given, settings
from hypothesis import strategies as st

from pqnet.codecs.layout import block_columns
from pqnet.kernels.products.lut import LUT, WORDS_AT_ONCE, lut
from pqnet.kernels.products.lut_planes import LOOK_UP_PLANES, SUM_PARTS, look_up_planes, sum_parts
from pqnet.kernels.products.lut_rows import FILL_TABLES, LOOK_UP_OUTPUTS, fill_tables, look_up_outputs
from pqnet.kernels.simd import BYTE_TABLES, WIDTH
from pqnet.runtime.algorithms.base import codeword_step
from pqnet.runtime.algorithms.lut import lut_codebook
from pqnet.runtime.algorithms.lut_plan import (
    IN_PASS,
    TABLES,
    Costs,
    Sharing,
    Sizes,
    Tiles,
    choose_tiles,
    lut_codes,
    plan_lut,
)
from pqnet.runtime.algorithms.planes import plan_planes, planes_codes
from pqnet.runtime.algorithms.rows import plan_rows, rows_codebook, rows_codes
from pqnet.runtime.memory import aligned, round_up

SLACK = 64  # floats behind everything that kernels may read
GUARD = np.float32(-77.25)


def padded(array, dtype, slack=SLACK, fill=0):
    out = aligned(array.size + slack, dtype)
    out[:] = fill
    out[: array.size] = array.reshape(-1)
    return out


@dataclass
class Layer:
    """A layer on random planes as kernels see it, and the sums that it must give."""

    shape: tuple  # (O, C, kh, kw)
    layout: str
    groups: int
    batch: int
    height: int
    width: int
    pitch: int
    taps: np.ndarray  # offsets
    d: int
    k: int
    scale: bool
    shift: bool
    residual: bool
    kind: int
    seed: int

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        o, c, kh, kw = self.shape
        kind = np.uint8 if self.k <= 256 else np.uint16
        self.codes = rng.integers(0, self.k, (o, c * kh * kw // self.d)).astype(kind)
        self.book = rng.standard_normal((self.k, self.d)).astype(np.float32)
        plane = (self.height - 1) * self.pitch + self.width + int(self.taps.max()) + 3
        channel = self.batch * plane + 1
        size = self.groups * c * channel
        image = self.height * self.width
        positions = self.batch * image
        self.out, self.out_step = round_up(size + SLACK, 16) + 5, positions + 3
        self.residual_at = self.out + o * self.out_step + SLACK
        # Everything that no position reads is NaN, which would spread.
        self.data = aligned(self.residual_at + o * positions + SLACK + 40_000, np.float32)
        self.data[:] = np.nan
        inputs = (np.arange(c)[:, None] * channel + self.taps).reshape(-1)[block_columns(self.shape, self.layout)]
        y, x = np.divmod(np.arange(image), self.width)
        at = np.arange(self.batch)[:, None] * plane + (y * self.pitch + x)
        every = (np.arange(self.groups) * c * channel)[:, None, None] + inputs[:, None] + at.reshape(-1)
        self.data[every] = rng.standard_normal(every.shape)
        self.data[self.out - 16 : self.residual_at] = GUARD
        beside = rng.standard_normal((o, positions)).astype(np.float32)
        self.data[self.residual_at : self.residual_at + o * positions] = beside.reshape(-1)
        weight = self.book[self.codes].reshape(self.groups, o // self.groups, -1)
        want = np.einsum("gok,gkp->gop", weight.astype(np.float64), self.data[every]).reshape(o, positions)
        factors = rng.standard_normal((2, o)).astype(np.float32)
        clamp = np.array([-0.5, 0.75], np.float32)
        transposed, words = rows_codebook(self.book, round_up(self.k, 4 * WIDTH)), lut_codebook(self.book)
        pieces = [factors.reshape(-1), clamp, transposed.reshape(-1), words.reshape(-1)]
        self.const = padded(np.concatenate(pieces), np.float32, SLACK, np.nan)
        self.transposed, self.words = 2 * o + 2, 2 * o + 2 + transposed.size
        want = want * factors[0][:, None] if self.scale else want
        want = want + factors[1][:, None] if self.shift else want
        want = want + beside if self.residual else want
        self.want = np.maximum(want, 0) if self.kind == 1 else np.clip(want, *clamp) if self.kind == 2 else want
        self.inputs, self.channel, self.positions = inputs, channel, positions
        self.windows = {
            "x": 0,
            "image_step": plane,
            "group_step": c * channel,
            "offsets": 0,
            "reduction": c * kh * kw,
            "outputs": o // self.groups,
            "groups": self.groups,
            "batch": self.batch,
            "pitch": self.pitch,
            "width": self.width,
            "image": image,
        }
        self.end = {
            "out": self.out,
            "out_step": self.out_step,
            "scale": 0 if self.scale else -1,
            "shift": o if self.shift else -1,
            "residual": self.residual_at if self.residual else -1,
            "residual_step": positions,
            "activation": self.kind,
            "parameters": 2 * o,
        }

    def check(self, steps, index, code_bytes, scratch):
        """Run steps (kernel, tasks, record) in two orders; compare outputs, and what is around them."""
        results = []
        for order in (1, -1):
            data, const = self.data.copy(), self.const.copy()
            temporary = aligned(scratch + 16, np.float32)
            temporary[:] = np.nan
            temporary[scratch:] = GUARD
            for kernel, tasks, record in steps:
                for task in range(tasks)[::order]:
                    kernel.function(task, record, data, const, code_bytes, index, temporary)
            assert (temporary[scratch:] == GUARD).all()
            assert np.array_equal(const, self.const, equal_nan=True)
            results.append(data)
        assert np.array_equal(*results, equal_nan=True)
        self.results = results
        rows = results[0][self.out : self.out + self.want.shape[0] * self.out_step].reshape(-1, self.out_step)
        scale = np.sqrt(self.windows["reduction"]) * (1 + np.abs(self.want).max())
        np.testing.assert_allclose(rows[:, : self.positions], self.want, rtol=0, atol=2e-6 * scale)
        assert (rows[:, self.positions :] == GUARD).all()
        assert (results[0][self.out - 16 : self.out] == GUARD).all()
        behind = self.out + self.want.shape[0] * self.out_step
        residual = slice(behind, self.residual_at + self.want.size)
        assert np.array_equal(results[0][residual], self.data[residual])
        assert np.array_equal(results[0][: self.out - 16], self.data[: self.out - 16], equal_nan=True)


@st.composite
def layers(draw, few=False, one=False):
    layout = draw(st.sampled_from(["channel", "spatial"]))
    kh, kw = draw(st.sampled_from([(1, 1), (3, 3), (1, 3), (2, 2)]))
    groups = draw(st.integers(1, 3))
    d = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 18, 32]))
    c = d * draw(st.integers(1, 5))
    if few:
        batch, height, width = 1, 1, 1 if one else draw(st.integers(1, 4))
    else:
        batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 40))
    pitch = width + draw(st.integers(0, 5))
    phase = draw(st.sampled_from([0, 0, (height + 4) * pitch]))  # as of a stride: taps on other planes
    taps = [y * pitch + x + (x % 2) * phase for y in range(kh) for x in range(kw)]
    options = {name: draw(st.booleans()) for name in ("scale", "shift", "residual")}
    return Layer(
        (draw(st.integers(1, 300 if one else 40)) * groups, c, kh, kw),
        layout,
        groups,
        batch,
        height,
        width,
        pitch,
        np.array(taps),
        d,
        draw(
            st.sampled_from(
                [1, 2, 7, 100, 127, 128, 129, 200, 256] if one else [1, 2, 7, 10, 12, 16, 19, 100, 256, 257, 1000]
            )
        ),
        **options,
        kind=draw(st.integers(0, 2)),
        seed=draw(st.integers(0, 99)),
    )


def sizes_of(layer):
    channel = layer.layout == "channel"
    taps = tuple(map(int, layer.taps)) if channel else (0,)
    blocks = layer.shape[1] // layer.d if channel else layer.codes.shape[1]
    outputs, images = layer.shape[0] // layer.groups, layer.groups * layer.batch
    return Sizes(taps, blocks, layer.k, layer.d, outputs, images, layer.height, layer.width, layer.pitch)


def check_vector(layer, **choice):
    sizes = sizes_of(layer)
    tiles = choose_tiles(sizes)[0]._replace(**choice)
    plan = plan_lut(sizes, tiles)
    assert 1 <= plan.tasks <= 70 or choice
    assert plan.arguments["words"] % WORDS_AT_ONCE == 0 <= plan.arguments["words"] - layer.k < WORDS_AT_ONCE
    parts = [layer.inputs, plan.tables, plan.shifts, plan.steps]
    at = np.cumsum([0, *(part.size for part in parts)])
    index = np.concatenate([part.reshape(-1) for part in parts])
    values = {"layer": layer.windows, "end": layer.end, "codes": 0, "codebook": layer.words}
    values |= {"stride": codeword_step(layer.d), "tables": at[1], "shifts": at[2], "steps": at[3]}
    codes = padded(lut_codes(layer.codes, layer.groups, plan), np.uint8)
    layer.check([(lut, plan.tasks, LUT.record(values | plan.arguments))], index, codes, plan.scratch)


@given(layers())
@settings(max_examples=60, deadline=None)
def test_vector_tables(layer):
    check_vector(layer)


@given(layers(), st.data())
@settings(max_examples=100, deadline=None)
def test_vector_tables_with_any_tiles(layer, data):
    reach = min(layer.width + int((layer.taps % layer.pitch).max()), layer.pitch)
    lane_pitch = st.sampled_from([reach, reach + 1, round_up(reach, 16)]) if layer.height > 1 else st.just(reach)
    choice = Tiles(data.draw(lane_pitch), data.draw(st.integers(1, 18)), data.draw(st.integers(1, 4)), 1)
    parts, sizes = data.draw(st.integers(1, 3)), sizes_of(layer)
    vectors = min(choice.vectors, sizes.vectors(choice.lane_pitch))
    check_vector(layer, **choice._replace(vectors=vectors, o_block=-(-sizes.outputs // parts))._asdict())


@pytest.mark.parametrize("d", [5, 6, 7, 8])
@pytest.mark.parametrize("k", [9, 10, 11, 12, 19, 76])
def test_all_codewords_have_rows_in_tables(k, d):
    """Also those behind the last multiple of eight, in tables of one vector and of a few."""
    for vectors in (1, 2, 3, 5):
        shape, width = (12, 3 * d, 1, 1), vectors * WIDTH - 1
        layer = Layer(shape, "spatial", 1, 1, 1, width, width, np.zeros(1, np.int64), d, k, False, False, False, 0, k)
        check_vector(layer, vectors=vectors)


def test_neighbouring_taps_share_a_table():
    taps = tuple(y * 16 + x for y in range(3) for x in range(3))
    near = Sizes(taps, 8, 256, 8, 64, 1, 14, 14, 16)
    plan = plan_lut(near, choose_tiles(near)[0])
    assert len(plan.tables) == 1 and plan.arguments["taps"] == 9
    apart = near._replace(taps=(0, 5000))
    assert len(plan_lut(apart, choose_tiles(apart)[0]).tables) == 2


@pytest.mark.parametrize("blocks, k, outputs, size", [(12, 76, 300, 9), (64, 256, 64, 42), (7, 4096, 1000, 5)])
def test_the_blocks_of_a_pass_are_the_best_of_all(blocks, k, outputs, size):
    """Those that are not tried, because others are never worse, are not better."""
    sizes = Sizes((0, 1, 11, 12), blocks, k, 8, outputs, 2, size, size, size + 2)
    for lane_pitch in sizes.lane_pitches:
        total, sharing = sizes.vectors(lane_pitch), Sharing(sizes, lane_pitch)
        for vectors in range(1, min(total, 32) + 1):
            runs = sharing.runs(vectors * WIDTH)
            costs = Costs(sizes, total, vectors, runs, sharing.shifts(runs))
            fitting = [n for n in IN_PASS if n == 1 or n * costs.floats <= TABLES]
            least = min(costs.cost(n, outputs, 1) for n in fitting)
            assert costs.best(list(IN_PASS), outputs, 1)[0] == least


def check_scalar(layer):
    blocks = layer.codes.shape[1]
    plan = plan_rows(blocks, layer.k, layer.d, layer.shape[0] // layer.groups, layer.groups, layer.positions)
    tables = round_up(layer.residual_at + layer.want.size + SLACK, 16)
    layer.data = np.concatenate([layer.data[:tables], np.full(plan.floats + SLACK, np.nan, np.float32)])
    filled = {"layer": layer.windows, "codebook": layer.transposed, "tables": tables}
    looked_up = {"layer": layer.windows, "end": layer.end, "codes": 0, "tables": tables}
    steps = [
        (fill_tables, plan.fill_tasks, FILL_TABLES.record(filled | plan.fill)),
        (look_up_outputs, plan.tasks, LOOK_UP_OUTPUTS.record(looked_up | plan.look_up)),
    ]
    codes = padded(rows_codes(layer.codes, layer.groups), np.uint8)
    layer.check(steps, layer.inputs, codes, plan.scratch)


@given(layers(few=True))
@settings(max_examples=100, deadline=None)
def test_scalar_tables(layer):
    check_scalar(layer)


def check_planes(layer, parts=None):
    groups = layer.groups
    plan = plan_planes(layer.codes.shape[1], layer.k, layer.d, layer.shape[0] // groups, groups, parts)
    assert parts is None or plan.tasks >= groups * parts
    sums = round_up(layer.residual_at + layer.want.size + SLACK, 16)
    layer.data = np.concatenate([layer.data[:sums], np.full(plan.floats + SLACK, np.nan, np.float32)])
    at = layer.const.size
    codebook = rows_codebook(layer.book, plan.look_up["words"])
    layer.const = np.concatenate([layer.const, codebook.reshape(-1), np.full(SLACK, np.nan, np.float32)])
    values = {"layer": layer.windows, "codes": 0, "codebook": at, "sums": sums}
    steps = [
        (look_up_planes, plan.tasks, LOOK_UP_PLANES.record(values | plan.look_up)),
        (sum_parts, plan.sum_tasks, SUM_PARTS.record({"end": layer.end, "sums": sums} | plan.add)),
    ]
    codes = padded(planes_codes(layer.codes, groups), np.uint8, fill=255)
    layer.check(steps, layer.inputs, codes, plan.scratch)
    assert np.isnan(layer.results[0][sums + plan.floats :]).all()


registers = pytest.mark.skipif(not BYTE_TABLES, reason="this CPU has no AVX-512 VBMI")


@registers
@given(layers(few=True, one=True))
@settings(max_examples=150, deadline=None)
def test_tables_in_registers(layer):
    check_planes(layer)


@registers
@pytest.mark.parametrize("outputs, k, parts", [(63, 256, 7), (64, 129, 1), (65, 128, 2), (200, 250, 4), (9000, 3, 2)])
@pytest.mark.parametrize("groups", [1, 2])
def test_tables_in_registers_cut_in_tasks(outputs, k, parts, groups):
    shape = (outputs * groups, 56, 1, 1)
    for residual in (False, True):
        layer = Layer(shape, "spatial", groups, 1, 1, 1, 1, np.zeros(1, np.int64), 8, k, True, True, residual, 2, 0)
        check_planes(layer, parts)


@registers
def test_sums_of_tables_in_registers_are_those_of_tables_in_memory():
    """Not close, equal: the bytes of a number come together unchanged, and blocks are added in the same order."""
    layer = Layer((130, 64, 1, 1), "spatial", 1, 1, 1, 1, 1, np.zeros(1, np.int64), 8, 200, True, True, False, 0, 3)
    results = []
    for check in (check_scalar, check_planes):
        check(layer)
        results.append(layer.results[-1][layer.out : layer.out + 130 * layer.out_step])
    assert np.array_equal(*results)


@pytest.mark.parametrize("residual", [False, True])
def test_outputs_of_one_position_that_lie_side_by_side(residual):
    layer = Layer((37, 16, 1, 1), "spatial", 1, 1, 1, 1, 1, np.zeros(1, np.int64), 8, 20, True, True, residual, 2, 0)
    want = layer.want[:, 0]
    end = layer.end | {"out_step": 1}
    plan = plan_rows(2, 20, 8, 37, 1, 1)
    tables = round_up(layer.residual_at + layer.want.size + SLACK, 16)
    data = np.concatenate([layer.data[:tables], np.zeros(plan.floats + SLACK, np.float32)])
    codes, scratch = padded(rows_codes(layer.codes, 1), np.uint8), aligned(plan.scratch, np.float32)
    shared = {"layer": layer.windows, "tables": tables}
    g = FILL_TABLES.record({**shared, **plan.fill, "codebook": layer.transposed})
    fill_tables.function(0, g, data, layer.const, codes, layer.inputs, scratch)
    g = LOOK_UP_OUTPUTS.record({**shared, **plan.look_up, "end": end, "codes": 0})
    look_up_outputs.function(0, g, data, layer.const, codes, layer.inputs, scratch)
    np.testing.assert_allclose(data[layer.out : layer.out + 37], want, atol=2e-5)
    assert (data[layer.out + 37 : layer.residual_at] == GUARD).all()


def check_some():
    """A few layers, for other widths and without a compiler."""
    taps = np.array([y * 11 + x for y in range(3) for x in range(3)])
    for k, d in ((40, 8), (300, 3), (10, 9), (10, 8), (19, 5)):
        layer = Layer((24, 2 * d, 3, 3), "channel", 1, 2, 5, 9, 11, taps, d, k, True, True, True, 1, 0)
        check_vector(layer, vectors=3, in_pass=2)
        check_vector(layer)
        check_scalar(Layer((24, 2 * d, 1, 1), "spatial", 1, 1, 1, 3, 3, taps[:1], d, k, True, True, True, 1, 0))
        one = Layer((24, 2 * d, 1, 1), "spatial", 1, 1, 1, 1, 1, taps[:1], d, k, True, True, True, 1, 0)
        check_scalar(one)
        if BYTE_TABLES and k <= 256:
            check_planes(one)


@pytest.mark.parametrize("settings_", FORCED)
def test_other_widths_and_the_reference(settings_):
    run_forced("import test_kernel_lut; test_kernel_lut.check_some()", settings_)
