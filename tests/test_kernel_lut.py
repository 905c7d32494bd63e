"""Table kernels against the sums that they stand for, term by term: any geometry, tile and order of tasks."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pqnet.codecs.layout import block_columns
from pqnet.kernels.lut import lut
from pqnet.kernels.lut_planes import look_up_planes, sum_parts
from pqnet.kernels.lut_rows import fill_tables, look_up_outputs
from pqnet.kernels.simd import BYTE_TABLES
from pqnet.kernels.tile import ROWS
from pqnet.runtime.builder import aligned
from pqnet.runtime.lower.lut import lut_codes, plan_lut, plan_rows, rows_codebook, rows_codes
from pqnet.runtime.lower.planes import plan_planes, planes_book, planes_codes
from pqnet.runtime.lower.product import codeword_step, round_up

SLACK = 64  # floats behind everything that kernels may read
GUARD = np.float32(-77.25)


def padded(array, dtype, slack=SLACK, fill=0):
    out = aligned(array.size + slack, dtype)
    out[:] = fill
    out[: array.size] = array.reshape(-1)
    return out


@dataclass
class Layer:
    """A layer step on random planes: fields 0-22, its weight and the sums that it must give."""

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
        stride = codeword_step(self.d)
        words = np.zeros((self.k, stride), np.float32)
        words[:, : self.d] = self.book
        transposed = rows_codebook(self.book)
        pieces = [factors.reshape(-1), clamp, transposed.reshape(-1), words.reshape(-1)]
        self.const = padded(np.concatenate(pieces), np.float32, (ROWS + 1) * stride + SLACK, np.nan)
        self.transposed, self.words = 2 * o + 2, 2 * o + 2 + transposed.size
        want = want * factors[0][:, None] if self.scale else want
        want = want + factors[1][:, None] if self.shift else want
        want = want + beside if self.residual else want
        self.want = np.maximum(want, 0) if self.kind == 1 else np.clip(want, *clamp) if self.kind == 2 else want
        self.inputs, self.channel, self.positions = inputs, channel, positions
        self.fields = [0, plane, c * channel, 0, c * kh * kw, o // self.groups, self.groups, self.batch, 0, self.pitch]
        self.fields += [self.width, self.out, self.out_step, image, self.width, 0 if self.scale else -1]
        self.fields += [o if self.shift else -1, self.residual_at if self.residual else -1, positions, 0, 0]
        self.fields += [self.kind, 2 * o, 0]

    def check(self, steps, index, code_bytes, scratch):
        """Run steps (kernel, tasks, own fields) in two orders; compare outputs, and what is around them."""
        results = []
        for order in (1, -1):
            data, const = self.data.copy(), self.const.copy()
            temporary = aligned(scratch + 16, np.float32)
            temporary[:] = np.nan
            temporary[scratch:] = GUARD
            for kernel, tasks, own in steps:
                g = np.zeros(48, np.int64)
                g[: len(self.fields)] = self.fields
                g[24 : 24 + len(own)] = own
                for task in range(tasks)[::order]:
                    kernel(task, g, data, const, code_bytes, index, temporary)
            assert (temporary[scratch:] == GUARD).all()
            assert np.array_equal(const, self.const, equal_nan=True)
            results.append(data)
        assert np.array_equal(*results, equal_nan=True)
        self.results = results
        rows = results[0][self.out : self.out + self.want.shape[0] * self.out_step].reshape(-1, self.out_step)
        scale = np.sqrt(self.fields[4]) * (1 + np.abs(self.want).max())
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
    d = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 9, 16, 18, 32]))
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
        draw(st.sampled_from([1, 2, 7, 100, 127, 128, 129, 200, 256] if one else [1, 2, 7, 16, 100, 256, 257, 1000])),
        **options,
        kind=draw(st.integers(0, 2)),
        seed=draw(st.integers(0, 99)),
    )


def check_vector(layer, **choice):
    o, c = layer.shape[:2]
    channel = layer.layout == "channel"
    inputs = np.arange(c) * layer.channel if channel else layer.inputs
    taps = layer.taps if channel else np.zeros(1, np.int64)
    sizes = layer.groups * layer.batch, layer.height, layer.width, layer.pitch
    plan = plan_lut(inputs, taps, layer.k, layer.d, o // layer.groups, *sizes, **choice)
    assert 1 <= plan.tasks <= 70 or choice
    parts = [plan.rows, plan.tables, plan.groups, plan.steps]
    at = np.cumsum([0, *(part.size for part in parts)])
    index = np.concatenate([part.reshape(-1) for part in parts]).astype(np.int32)
    size = layer.codes.itemsize
    own = [0, layer.words, layer.d, codeword_step(layer.d), round_up(layer.k, ROWS), (1 << 8 * size) - 1, size]
    own += [plan.blocks, 0, plan.in_pass, plan.taps, at[1], len(plan.tables), at[2], len(plan.groups), at[3], *plan.own]
    codes = padded(lut_codes(layer.codes, layer.groups, plan), np.uint8)
    layer.check([(lut, plan.tasks, own)], index, codes, plan.scratch)


@given(layers())
@settings(max_examples=60, deadline=None)
def test_vector_tables(layer):
    check_vector(layer)


@given(layers(), st.data())
@settings(max_examples=100, deadline=None)
def test_vector_tables_with_any_tiles(layer, data):
    reach = min(layer.width + int((layer.taps % layer.pitch).max()), layer.pitch)
    lane_pitch = st.sampled_from([reach, reach + 1, round_up(reach, 16)]) if layer.height > 1 else st.just(reach)
    check_vector(
        layer,
        lane_pitch=data.draw(lane_pitch),
        vectors=data.draw(st.integers(1, 18)),
        in_pass=data.draw(st.integers(1, 4)),
        parts=data.draw(st.integers(1, 3)),
    )


def test_neighbouring_taps_share_a_table():
    taps = np.array([y * 16 + x for y in range(3) for x in range(3)])
    plan = plan_lut(np.arange(64) * 300, taps, 256, 8, 64, 1, 14, 14, 16)
    assert len(plan.tables) == 1 and plan.taps == 9
    apart = np.array([0, 5000])
    assert len(plan_lut(np.arange(64) * 9000, apart, 256, 8, 64, 1, 14, 14, 16).tables) == 2


def check_scalar(layer):
    blocks = layer.codes.shape[1]
    plan = plan_rows(blocks, layer.k, layer.d, layer.shape[0] // layer.groups, layer.groups, layer.positions)
    tables = round_up(layer.residual_at + layer.want.size + SLACK, 16)
    layer.data = np.concatenate([layer.data[:tables], np.full(plan.floats + SLACK, np.nan, np.float32)])
    steps = [
        (fill_tables, plan.fill_tasks, [1, layer.transposed, *plan.filled, tables]),
        (look_up_outputs, plan.tasks, [0, *plan.looked_up, tables]),
    ]
    codes = padded(rows_codes(layer.codes, layer.groups), np.uint8)
    layer.check(steps, layer.inputs.astype(np.int32), codes, plan.scratch)


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
    layer.const = np.concatenate([layer.const, planes_book(layer.book).reshape(-1), np.full(SLACK, np.nan, np.float32)])
    steps = [
        (look_up_planes, plan.tasks, [0, at, *plan.looked_up, sums]),
        (sum_parts, plan.sum_tasks, [*plan.summed, sums]),
    ]
    codes = padded(planes_codes(layer.codes, groups), np.uint8, fill=255)
    layer.check(steps, layer.inputs.astype(np.int32), codes, plan.scratch)
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
    layer.fields[12] = 1
    plan = plan_rows(2, 20, 8, 37, 1, 1)
    tables = round_up(layer.residual_at + layer.want.size + SLACK, 16)
    data = np.concatenate([layer.data[:tables], np.zeros(plan.floats + SLACK, np.float32)])
    codes, scratch = padded(rows_codes(layer.codes, 1), np.uint8), aligned(plan.scratch, np.float32)
    g = np.zeros(48, np.int64)
    g[: len(layer.fields)] = layer.fields
    g[24:32] = [1, layer.transposed, *plan.filled, tables]
    fill_tables(0, g, data, layer.const, codes, layer.inputs.astype(np.int32), scratch)
    g[24:33] = [0, *plan.looked_up, tables]
    look_up_outputs(0, g, data, layer.const, codes, layer.inputs.astype(np.int32), scratch)
    np.testing.assert_allclose(data[layer.out : layer.out + 37], want, atol=2e-5)
    assert (data[layer.out + 37 : layer.residual_at] == GUARD).all()


def check_some():
    """A few layers, for other widths and without a compiler."""
    taps = np.array([y * 11 + x for y in range(3) for x in range(3)])
    for k, d in ((40, 8), (300, 3), (10, 9)):
        layer = Layer((24, 2 * d, 3, 3), "channel", 1, 2, 5, 9, 11, taps, d, k, True, True, True, 1, 0)
        check_vector(layer, vectors=3, in_pass=2)
        check_vector(layer)
        check_scalar(Layer((24, 2 * d, 1, 1), "spatial", 1, 1, 1, 3, 3, taps[:1], d, k, True, True, True, 1, 0))
        one = Layer((24, 2 * d, 1, 1), "spatial", 1, 1, 1, 1, 1, taps[:1], d, k, True, True, True, 1, 0)
        check_scalar(one)
        if BYTE_TABLES and k <= 256:
            check_planes(one)


OTHERS = [{"PQNET_SIMD": "avx512"}, {"PQNET_SIMD": "avx2"}, {"PQNET_SIMD": "generic"}, {"NUMBA_DISABLE_JIT": "1"}]


@pytest.mark.parametrize("environment", OTHERS)
def test_other_widths_and_the_plain_twin(environment):
    code = "import test_kernel_lut; test_kernel_lut.check_some()"
    folder = Path(__file__).parent
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=os.environ | environment, check=True)
