"""Products in 8-bit integers and bfloat16: against the same network with rounded numbers, and bit for bit."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from forced import FORCED, run_forced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive import round_bfloat16, round_inputs, round_weight
from numba import njit
from programs import GuardedSpace, untouched
from test_engine import close, conv_graph, convolutions, packed_weight, reference
from test_kernel_gemm import network

import pqnet
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.graph.ranges import INPUT_RANGES, OUTPUT_SHIFTS, pack_shift
from pqnet.kernels import cpu
from pqnet.kernels import words as words_module
from pqnet.runtime.memory import Store, Workspace
from pqnet.runtime.program import Program
from pqnet.runtime.tune import fixed

KINDS = ["int8", "bfloat16"]
LIMITS = (-1.5, 2.25)


def with_ranges(graph, limits=LIMITS):
    """Return a graph whose layers all have a range of their inputs."""
    ranges = {node.name: list(limits) for node in graph.nodes if node.op in ("conv2d", "linear")}
    return replace(graph, meta={INPUT_RANGES: ranges})


def rounded(graph, inputs, kind, limits=LIMITS):
    """Return a graph of layers that read x, and its inputs, with the numbers that low precision computes with."""
    params = dict(graph.params)
    for node in graph.nodes:
        if node.op in ("conv2d", "linear"):
            name = node.params["weight"]
            params[name] = round_weight(params[name], kind)
    x = round_bfloat16(inputs["x"]) if kind == "bfloat16" else round_inputs(inputs["x"], *limits)
    return replace(graph, params=params), inputs | {"x": x}


def run(graph, inputs, kind):
    """Run a program of one kind with 1, 2 and 4 threads, and return the result and the algorithms."""
    program, space = Program(graph, {}, Store(), fixed(kind), kind), GuardedSpace()
    got = program.run(inputs, space, 1)["y"]
    assert untouched(program, space.arena)
    for threads in (2, 4):
        assert np.array_equal(program.run(inputs, Workspace(), threads)["y"], got, equal_nan=True)
    return got, {step.algorithm for _, _, step in program.kernel_steps()}


def check(graph, inputs, kind, limits=LIMITS):
    graph = with_ranges(graph, limits)
    got, algorithms = run(graph, inputs, kind)
    if kind in algorithms:
        assert close(got, reference(*rounded(graph, inputs, kind, limits)))
    return kind in algorithms


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(case=convolutions(), tail=st.integers(0, 1))
def test_convolutions(kind, case, tail):
    check(*conv_graph(*case, tail), kind)


def conv(weight, size, *, batch=1, tail="relu", seed=0, **attrs):
    rng = np.random.default_rng(seed)
    groups = attrs.get("groups", 1)
    x = rng.standard_normal((batch, weight.shape[1] * groups, *size)).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    bias = rng.standard_normal(weight.shape[0]).astype(np.float32)
    y = b.add("conv2d", "x", params={"weight": weight, "bias": bias}, **attrs)
    return b.build({"y": b.add(tail, y)}), {"x": x}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", ["none", "clamp", "relu", "silu"])
def test_what_follows_in_the_same_pass(kind, tail):
    for size in ((6, 8), (5, 13), (14, 14)):
        for outputs, groups, kernel in ((16, 1, 1), (19, 1, 3), (16, 3, 3)):
            assert check(*network(size, outputs, groups, kernel, tail, "decode"), kind)


def weights():
    """Yield weights whose codes become words in every way, with attributes of a convolution."""
    rng = np.random.default_rng(5)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32) / 8  # noqa: E731
    for d in (4, 8, 16, 32):  # copied
        yield packed_weight(rng, (21, 64, 1, 1), d, 40, "channel"), {}
        yield packed_weight(rng, (21, 64, 1, 1), d, 40, "spatial"), {}
        yield packed_weight(rng, (9, 64, 3, 3), d, 40, "channel"), {"padding": (1, 1, 1, 1), "stride": (2, 2)}
    yield packed_weight(rng, (80, 64, 1, 1), 8, 300, "channel"), {}
    for channels in (4, 7, 9):  # mixed
        yield packed_weight(rng, (9, channels, 3, 3), 9, 10, "spatial"), {"padding": (1, 1, 1, 1)}
        yield packed_weight(rng, (80, channels, 2, 2), 4, 270, "spatial"), {"stride": (2, 2)}
    yield packed_weight(rng, (16, 8, 3, 3), 9, 10, "spatial"), {"groups": 2}
    yield packed_weight(rng, (24, 16, 3, 3), 8, 10, "channel"), {"groups": 3}
    yield packed_weight(rng, (16, 64, 4, 4), 16, 32, "channel"), {"stride": (4, 4)}
    yield packed_weight(rng, (70, 200, 3, 3), 8, 60, "channel"), {"padding": (1, 1, 1, 1)}  # in pieces
    for channels, kernel in ((12, 1), (7, 3), (8, 3)):  # number by number
        yield pqnet.IntN(8).fit(draw(53, channels, kernel, kernel)), {}
        yield pqnet.IntN(4).fit(draw(53, channels, kernel, kernel)), {}
        yield pqnet.Scalar(16).fit(draw(53, channels, kernel, kernel)), {}
        yield packed_weight(rng, (20, channels, kernel, kernel), 1, 20, "channel"), {}
    for channels, kernel in ((3, 7), (33, 1), (8, 3)):  # dense
        yield draw(17, channels, kernel, kernel), {}


@pytest.mark.parametrize("kind", KINDS)
def test_codes_become_words_in_every_way(kind):
    for weight, attrs in weights():
        for size in ((16, 16), (7, 7)):
            assert check(*conv(weight, size, **attrs), kind), (weight, attrs)


def test_leftover_positions():
    """One to five positions behind whole vectors are dot products along the reduction, whatever the reduction is."""
    rng = np.random.default_rng(3)
    for channels, kernel, outputs in ((64, 1, 21), (12, 3, 16), (200, 3, 9), (20, 1, 8)):
        weight = packed_weight(rng, (outputs, channels, kernel, kernel), 4, 40, "channel")
        for columns in (1, 5, 17, 49, 51, 85, 100):
            assert check(*conv(weight, (kernel, columns + kernel - 1), batch=1, tail="silu"), "int8")


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("words", [1, 2, 4, 8])
def test_copies_of_codewords(words, wide):
    rng, k = np.random.default_rng(words), 300 if wide else 256
    codes = rng.integers(0, k, 8 * 5).astype(np.uint16 if wide else np.uint8)
    book = rng.standard_normal(k * words + 3).astype(np.float32)
    target = np.full(2 + len(codes) * words + 1, 7, np.float32)
    groups = len(codes) // (4 if wide else 8)
    kernels = words_module.copy_1, words_module.copy_2, words_module.copy_4, words_module.copy_8
    wide_ones = words_module.copy_1_wide, words_module.copy_2_wide, words_module.copy_4_wide, words_module.copy_8_wide
    copy = (wide_ones if wide else kernels)[words.bit_length() - 1]

    @njit
    def run_copy(codes, groups, book, target):
        copy(codes, 1, groups, book, 3, target, 2)

    run_copy(np.append(np.uint8(0), codes.view(np.uint8)), groups, book, target)
    assert np.array_equal(target[2:-1], book[3:].reshape(k, words)[codes].reshape(-1))
    assert (target[[0, 1, -1]] == 7).all()


def test_shifts_are_added_to_integers_alone():
    weight = packed_weight(np.random.default_rng(1), (16, 16, 3, 3), 8, 20, "channel")
    graph, inputs = conv(weight, (9, 9), padding=(1, 1, 1, 1), tail="neg")
    graph = with_ranges(graph)
    name = next(iter(graph.meta[INPUT_RANGES]))
    shift = np.linspace(-1.27, 1.27, 16).astype(np.float32)
    shifted = replace(graph, meta=graph.meta | {OUTPUT_SHIFTS: {name: pack_shift(shift)}})
    steps = np.rint(shift / 0.01) * 0.01
    for kind in ("int8", "bfloat16", "float32"):
        before, after = (run(g, inputs, kind)[0] for g in (graph, shifted))
        want = before - (steps[:, None, None] if kind == "int8" else 0)
        assert np.allclose(after, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_words_cannot_hold_stays_float(kind):
    rng = np.random.default_rng(0)
    for weight, attrs in [
        (packed_weight(rng, (8, 1, 3, 3), 9, 4, "spatial"), {"groups": 8}),  # depthwise
        (packed_weight(rng, (8, 5, 3, 3), 9, 4, "spatial"), {"groups": 2}),  # channels of a group share no words
        (packed_weight(rng, (8, 6, 1, 1), 6, 4, "channel"), {}),
        (packed_weight(rng, (8, 6, 3, 3), 3, 4, "spatial"), {}),
        (
            pqnet.Additive([pqnet.PQ(8, 4), pqnet.PQ(8, 4)]).fit(rng.standard_normal((8, 8, 1, 1)).astype(np.float32)),
            {},
        ),
    ]:
        graph, inputs = conv(weight, (7, 7), **attrs)
        got, algorithms = run(with_ranges(graph), inputs, kind)
        assert kind not in algorithms and close(got, reference(graph, inputs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3, 49, 130])
def test_linear_layers(kind, rows):
    rng = np.random.default_rng(rows)
    for weight in (packed_weight(rng, (40, 96), 8, 30, "channel"), rng.standard_normal((40, 30)).astype(np.float32)):
        x = rng.standard_normal((rows, weight.shape[1])).astype(np.float32)
        b = GraphBuilder({"x": ValueInfo(x.shape)})
        graph = b.build({"y": b.add("silu", b.add("linear", "x", params={"weight": weight}))})
        assert check(graph, {"x": x}, kind)


@pytest.mark.parametrize("limits", [(0.0, 3.0), (-3.0, 0.0), (-1e-3, 1e-3), (-100.0, 100.0), (-0.001, 100.0)])
def test_zero_points_at_both_ends_and_saturation(limits):
    weight = packed_weight(np.random.default_rng(1), (16, 16, 3, 3), 8, 20, "channel")
    assert check(*conv(weight, (9, 9), padding=(1, 1, 1, 1), tail="relu"), "int8", limits)


def test_inputs_that_are_no_numbers_become_ends_of_the_range():
    weight = packed_weight(np.random.default_rng(1), (16, 16, 1, 1), 8, 20, "channel")
    graph, inputs = conv(weight, (8, 8))
    x = inputs["x"].copy()
    x[0, :, 0, :3] = np.inf, -np.inf, np.nan
    got, _ = run(with_ranges(graph), {"x": x}, "int8")
    x[0, :, 0, :3] = LIMITS[1], LIMITS[0], LIMITS[0]
    assert np.array_equal(got, run(with_ranges(graph), {"x": x}, "int8")[0])
    x[0, 0, 0, 0] = np.nan
    assert np.isnan(run(graph, {"x": x}, "bfloat16")[0]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_a_batch_are_those_alone(kind):
    weight = packed_weight(np.random.default_rng(1), (40, 48, 3, 3), 8, 20, "channel")
    graph, inputs = conv(weight, (9, 9), batch=5, padding=(1, 1, 1, 1))
    whole, _ = run(with_ranges(graph), inputs, kind)
    alone = replace(graph, inputs={"x": ValueInfo((1, *inputs["x"].shape[1:]))})
    for i in range(5):
        assert np.array_equal(run(with_ranges(alone), {"x": inputs["x"][i : i + 1]}, kind)[0], whole[i : i + 1])


def digest_of_integers():
    """Return a hash of results in integers, whose last operation is exact on every CPU."""
    found = hashlib.sha256()
    for weight, attrs in weights():
        graph, inputs = conv(weight, (8, 9), **attrs)
        found.update(run(with_ranges(graph), inputs, "int8")[0].tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("settings_", FORCED)
def test_integers_give_the_same_bits_under_each_instruction_set(settings_):
    code = "import test_kernel_words as t\nfrom pqnet.kernels.llvm import COMPILED\n"
    code += "print(t.digest_of_integers() if COMPILED else '')\n"
    code += "for weight, attrs in list(t.weights())[::3]:\n"
    code += "    assert all(t.check(*t.conv(weight, (5, 6), **attrs), kind) for kind in t.KINDS)"
    printed = run_forced(code, settings_)
    assert printed in ("", digest_of_integers())  # NumPy does not fuse multiplications and additions
    assert bool(printed) == ("PQNET_SIMD" in settings_)


def test_the_precision_of_a_layer_is_the_fastest_here():
    weight = packed_weight(np.random.default_rng(1), (64, 64, 3, 3), 8, 20, "channel")
    graph = with_ranges(conv(weight, (28, 28), padding=(1, 1, 1, 1))[0])
    integers = cpu.has("avx512_vnni" if cpu.ISA == "avx512" else "avx_vnni")
    either = {"bfloat16", "decode", "winograd", "lut"}
    for compute, fast in (
        ("float32", either - {"bfloat16"}),
        ("bfloat16", either),
        ("int8", {"int8"} if integers else either),
        ("auto", {"int8"} if integers else either),
    ):
        program = Program(graph, {}, Store(), compute=compute)
        assert {step.algorithm for _, _, step in program.kernel_steps()} & fast, compute
