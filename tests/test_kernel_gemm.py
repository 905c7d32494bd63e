"""Products of panels and tiles: positions where they lie or packed, tiles in registers or in pieces, any epilogue."""

from types import SimpleNamespace

import numpy as np
import pytest
from forced import FORCED, run_forced
from hypothesis import given
from hypothesis import strategies as st
from programs import GuardedSpace, untouched
from test_engine import close, packed_weight, reference

from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.kernels.products.gemm import part_of_task
from pqnet.kernels.products.tile import LANES
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.algorithms import base, gemm
from pqnet.runtime.memory import Store, Workspace
from pqnet.runtime.program import Program
from pqnet.runtime.tune import fixed

# Images of one tile, of a tile and one position more, which dot products compute, and of some tiles and a part.
SIZES = [(6, 8), (7, 7), (5, 13), (14, 14)]


def network(size, outputs, groups, kernel, tail, algorithm, seed=0):
    """Return a graph of one convolution of 8 channels a group with what may follow it, and its input."""
    rng = np.random.default_rng(seed)
    shape = (outputs * groups, 8, kernel, kernel)
    weight = packed_weight(rng, shape, 8, 8, "channel")
    if algorithm == "dense":
        weight = weight.decode()
    x = rng.standard_normal((1, 8 * groups, *size)).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(x.shape), "z": ValueInfo((1, shape[0], *size))})
    y = b.add("conv2d", "x", params={"weight": weight}, groups=groups, padding=(kernel // 2,) * 4)
    if tail != "none":
        norm = {role: rng.random(shape[0]).astype(np.float32) + 0.5 for role in ("weight", "bias", "mean", "var")}
        y = b.add("batch_norm", y, params=norm)
        y = b.add("add", y, "z") if tail != "clamp" else y
        y = b.add("clamp", y, min=-0.5, max=1.0) if tail == "clamp" else b.add(tail, y)
    z = rng.standard_normal((1, shape[0], *size)).astype(np.float32)
    return b.build({"y": y}), {"x": x, "z": z}


def check(graph, inputs, algorithm):
    program, space = Program(graph, {}, Store(), fixed(algorithm)), GuardedSpace()
    assert algorithm in {step.algorithm for _, _, step in program.kernel_steps()}
    got = program.run(inputs, space, 1)["y"]
    assert close(got, reference(graph, inputs))
    assert untouched(program, space.arena)
    assert np.array_equal(program.run(inputs, Workspace(), 2)["y"], got)
    return got


@pytest.mark.parametrize("algorithm", ["decode", "dense"])
@pytest.mark.parametrize(("outputs", "groups", "kernel"), [(16, 1, 1), (19, 1, 3), (16, 3, 3)])
@pytest.mark.parametrize("tail", ["none", "clamp", "relu", "silu"])
def test_where_positions_lie_changes_no_bit(outputs, groups, kernel, tail, algorithm, monkeypatch):
    for size in SIZES:
        graph, inputs = network(size, outputs, groups, kernel, tail, algorithm)
        monkeypatch.setattr(gemm, "STRAIGHT", (1 << 20, 0))
        straight = check(graph, inputs, algorithm)
        monkeypatch.setattr(gemm, "STRAIGHT", (0, 0))
        assert np.array_equal(check(graph, inputs, algorithm), straight)


@pytest.mark.parametrize("size", [(7, 7), (40, 40)])
def test_outputs_that_are_read_by_channel_are_computed_in_halves(size, monkeypatch):
    rng = np.random.default_rng(0)
    filters = rng.standard_normal((72, 1, 3, 3)).astype(np.float32)
    x = rng.standard_normal((1, 16, *size)).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    y = b.add("conv2d", "x", params={"weight": packed_weight(rng, (72, 16, 1, 1), 16, 4, "spatial")})
    graph = b.build({"y": b.add("conv2d", b.add("relu", y), params={"weight": filters}, groups=72)})
    cuts, cut_gemm = [], gemm.cut_gemm
    monkeypatch.setattr(gemm, "cut_gemm", lambda *args: cuts.append(cut_gemm(*args)) or cuts[-1])
    halves = check(graph, {"x": x}, "decode")
    cut = cuts[-1].arguments
    assert cut["o_tasks"] % 2 == 0 and cut["o_turn"] == cut["q_tasks"] and cut["q_turn"] == 1
    monkeypatch.setattr(gemm, "WIDER", 100)
    assert np.array_equal(check(graph, {"x": x}, "decode"), halves)
    assert cuts[-1].arguments["o_turn"] == 1


@pytest.mark.parametrize("reduction", [5, 64, 130, 1100])
@pytest.mark.parametrize("k", [2, 200, 256])
def test_numbers_of_a_table_are_the_same_from_planes(reduction, k, monkeypatch):
    rng = np.random.default_rng(k)
    x = rng.standard_normal((1, reduction, 5, 11)).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    weight = packed_weight(rng, (67, reduction, 1, 1), 1, k, "spatial")
    graph = b.build({"y": b.add("conv2d", "x", params={"weight": weight})})
    planes = check(graph, {"x": x}, "decode")
    for module in (base, gemm):
        monkeypatch.setattr(module, "in_planes", lambda codebook: False)
    assert np.array_equal(check(graph, {"x": x}, "decode"), planes)


@given(
    *(st.integers(1, 2000), st.integers(1, 300), st.integers(1, 4), st.integers(1, 4000)),
    *(st.booleans(), st.booleans()),
)
def test_tasks_have_every_result_once_and_nearly_equal_parts(k, outputs, groups, positions, halves, listed):
    cut = gemm.cut_gemm(k, 1, 3.0, outputs, groups, positions, halves, listed)
    g, part = SimpleNamespace(**cut.arguments), getattr(part_of_task, "py_func", part_of_task)
    seen, lengths = np.zeros((groups, outputs, positions), np.int8), set()
    for task in range(cut.tasks):
        group, o, o_last, p, p_last = part(task, g, outputs)
        seen[group, o:o_last, p:p_last] += 1
        lengths.add((p_last - p + WIDTH - 1 - gemm.DOT_POSITIONS) // WIDTH)
        assert 0 < p_last - p <= g.tiles * LANES
    assert (seen == 1).all()
    assert max(lengths) - min(lengths) <= 1


DECODED = """
import numpy as np
from pqnet.kernels.products.decode import decode_panel
from pqnet.runtime.algorithms.base import codebook_floats, codeword_step
rng = np.random.default_rng(0)
for d in (1, 2, 3, 4, 5, 8, 9, 10, 12, 16, 20, 36):
    for k in (200, 300):
        for n in (1, 3, 4, 7, 8, 21):
            book = rng.standard_normal((k, d)).astype(np.float32)
            codes = rng.integers(0, k, (11, n)).astype(np.uint8 if k <= 256 else np.uint16)
            const, step = np.append(codebook_floats(book).reshape(-1), np.zeros(64, np.float32)), n * d + 64
            out = np.full(9 * step, 7, np.float32)
            size = codes.itemsize
            decode_panel(codes.view(np.uint8).reshape(-1), 2 * n * size, n * size, 8, n, size == 2, const, 0,
                         codeword_step(d), d, out, 0, step)
            got = out.reshape(9, step)
            assert np.array_equal(got[:8, : n * d], book[codes[2:10]].reshape(8, -1)), (d, k, n)
            assert (got[8] == 7).all() and (got[:8, n * d + max(codeword_step(d), 63):] == 7).all(), (d, k, n)
"""


@pytest.mark.parametrize("settings_", [{}, *FORCED])
def test_panels_are_the_codewords_of_their_codes(settings_):
    run_forced(DECODED, settings_)


def test_heads_of_large_vocabularies():
    """Their outputs take more parts than those of other layers where the reduction is summed up in pieces."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, 520), np.float32), rng.standard_normal((17000, 520), np.float32)
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    check(b.build({"y": b.add("linear", "x", params={"weight": weight})}), {"x": x}, "dense")


SCRIPT = """
import test_kernel_gemm as t
for size, tail in [((6, 8), "silu"), ((7, 7), "clamp"), ((5, 13), "relu")]:
    for groups, kernel in [(1, 1), (2, 3)]:
        t.check(*t.network(size, 9, groups, kernel, tail, "decode"), "decode")
"""


@pytest.mark.parametrize("settings_", FORCED)
def test_the_same_under_each_instruction_set_and_without_a_compiler(settings_):
    run_forced(SCRIPT, settings_)
