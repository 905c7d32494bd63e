"""Rows of features in 8-bit integers with a scale for each row: against rounded numbers, and bit for bit."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from forced import FORCED, run_forced
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import round_tokens, round_weight
from test_engine import close, packed_weight, reference
from test_kernel_words import run

import pqnet
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.graph.ranges import INPUT_RANGES, OUTPUT_SHIFTS, TOKEN_SCALES, pack_shift
from pqnet.runtime.integers import tokens_as_integers


def linear(weight, shape, tail="silu", seed=0):
    """Return a network of one layer, each row of whose input has a range of its own, and an input of unequal rows."""
    rng = np.random.default_rng(seed)
    b = GraphBuilder({"x": ValueInfo((*shape, weight.shape[1])), "z": ValueInfo((*shape, weight.shape[0]))})
    bias = rng.standard_normal(weight.shape[0]).astype(np.float32)
    y = b.add("linear", "x", name="fc", params={"weight": weight, "bias": bias})
    y = b.add("add", y, "z") if tail == "add" else b.add(tail, y)
    meta = {INPUT_RANGES: {"fc": [-1.0, 1.0]}, TOKEN_SCALES: ["fc"]}
    graph = replace(b.build({"y": y}), meta=meta)
    x = rng.standard_normal((*shape, weight.shape[1])) * np.exp(2 * rng.standard_normal((*shape, 1)))
    x += rng.choice([-5, 0, 5], (*shape, 1))  # zero points at both ends
    z = rng.standard_normal((*shape, weight.shape[0]))
    return graph, {"x": x.astype(np.float32), "z": z.astype(np.float32)}


def check(graph, inputs):
    weight = graph.params["fc.weight"]
    rounded = replace(graph, params=graph.params | {"fc.weight": round_weight(weight, "int8")})
    got, algorithms = run(graph, inputs, "int8")
    assert "int8" in algorithms and close(got, reference(rounded, inputs | {"x": round_tokens(inputs["x"])}))


def weights():
    """Yield weights whose codes become words in every way."""
    rng = np.random.default_rng(5)
    for d in (4, 8, 32):
        yield packed_weight(rng, (21, 96), d, 40, "channel")
    yield packed_weight(rng, (24, 2304), 8, 300, "channel")  # in pieces
    yield pqnet.IntN(8).fit(rng.standard_normal((53, 30)).astype(np.float32))
    yield rng.standard_normal((16, 33)).astype(np.float32)


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(list(weights())),
    st.lists(st.integers(1, 60), min_size=1, max_size=2),
    st.sampled_from(["relu", "silu", "add"]),
)
def test_linear_layers(seed, weight, shape, tail):
    check(*linear(weight, shape, tail, seed))


def test_rows_do_not_depend_on_each_other():
    weight = packed_weight(np.random.default_rng(1), (40, 48), 8, 20, "channel")
    graph, inputs = linear(weight, (37,))
    whole, _ = run(graph, inputs, "int8")
    for rows in (slice(0, 1), slice(5, 36)):
        part = {name: array[rows] for name, array in inputs.items()}
        smaller = replace(graph, inputs={name: ValueInfo(array.shape) for name, array in part.items()})
        assert np.array_equal(run(smaller, part, "int8")[0], whole[rows])


def test_rows_of_zeros_and_of_no_numbers():
    weight = packed_weight(np.random.default_rng(1), (40, 48), 8, 20, "channel")
    graph, inputs = linear(weight, (9,), "neg")
    usual, _ = run(graph, inputs, "int8")
    x = inputs["x"].copy()
    x[0], x[1], x[2, 3], x[3, 3], x[4, 4], x[5] = 0, 1e-35, np.nan, np.inf, -np.inf, np.nan
    got, _ = run(graph, inputs | {"x": x}, "int8")
    bias = -graph.params["fc.bias"]
    assert all(np.array_equal(got[row], bias) for row in (0, 1, 5))  # 1e-35 is as good as 0; NaN counts as nothing
    assert np.array_equal(got[6:], usual[6:]) and np.isfinite(got[2]).all()
    x[3, 3], x[4, 4] = 1e38, -1e38
    assert np.array_equal(got, run(graph, inputs | {"x": x}, "int8")[0])


def test_shifts_are_added_behind_the_scales():
    weight = np.random.default_rng(1).standard_normal((16, 20)).astype(np.float32)
    graph, inputs = linear(weight, (5, 3), "neg")
    shift = np.linspace(-1.27, 1.27, 16).astype(np.float32)
    shifted = replace(graph, meta=graph.meta | {OUTPUT_SHIFTS: {"fc": pack_shift(shift)}})
    before, after = (run(g, inputs, "int8")[0] for g in (graph, shifted))
    assert np.allclose(after, before - np.rint(shift / 0.01) * 0.01, rtol=0, atol=1e-5)


def test_calibration_rounds_as_kernels_do():
    x = linear(np.zeros((1, 40), np.float32), (50,))[1]["x"]
    x[3] = 0
    step = np.maximum(np.ptp(np.append(x, 0 * x[:, :1], 1), axis=1, keepdims=True), 1e-30) / 255
    found, want = tokens_as_integers(x), round_tokens(x)
    assert (np.abs(found - want) < 1.01 * step).all() and (np.abs(found - want) < 1e-3 * step).mean() > 0.999


def digest():
    """Return a hash of results whose last operation is exact on every CPU."""
    found = hashlib.sha256()
    for weight in weights():
        for rows in (3, 33):
            found.update(run(*linear(weight, (rows,), "relu"), "int8")[0].tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("settings_", FORCED)
def test_the_same_bits_under_each_instruction_set(settings_):
    code = "import test_kernel_tokens as t\nfrom pqnet.kernels.llvm import COMPILED\n"
    code += "print(t.digest() if COMPILED else '')\n"
    code += "for weight in t.weights(): t.check(*t.linear(weight, (7,)))"
    printed = run_forced(code, settings_)
    assert printed in ("", digest())  # NumPy rounds twice where kernels multiply and add at once
    assert bool(printed) == ("PQNET_SIMD" in settings_)
