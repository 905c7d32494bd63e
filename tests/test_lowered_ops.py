"""Operations that run as kernels, against their NumPy meaning: storage orders, broadcasts, chains, borders, memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import GuardedSpace, untouched
from test_engine import close

from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.runtime.execute import run_graph, values_to_free
from pqnet.runtime.memory import Store, Workspace
from pqnet.runtime.program import Program

RNG = np.random.default_rng(0)


def floats(shape):
    return RNG.standard_normal(shape).astype(np.float32)


def check(builder, outputs, inputs):
    """Compare a graph's program with NumPy, for 1, 2 and 4 threads, and look at the memory around its values."""
    graph = builder.build(outputs)
    want = run_graph(graph, values_to_free(graph), inputs)
    program, space = Program(graph, {}, Store()), GuardedSpace()
    got = program.run(inputs, space, 1)
    assert untouched(program, space.arena)
    for name, value in want.items():
        assert got[name].shape == value.shape, name
        assert np.array_equal(np.isnan(got[name]), np.isnan(value)), name
        assert close(np.nan_to_num(got[name]), np.nan_to_num(value)), name
    for threads in (2, 4):
        again = program.run(inputs, Workspace(), threads)
        assert all(np.array_equal(again[name], got[name], equal_nan=True) for name in want)
    assert not [s for s in program.segments if getattr(s, "node", None)], "a node was left to NumPy"


FUNCTIONS = {
    **{op: {} for op in ("relu", "sigmoid", "tanh", "silu", "hardsigmoid", "hardswish", "mish", "gelu")},
    "clamp": {"min": -0.5, "max": 1.5},
    "leaky_relu": {"negative_slope": 0.1},
    "elu": {"alpha": 0.7},
}


@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize("size", [1, 15, 16, 37, 1000])
def test_functions(op, size):
    x = floats((1, size)) * 4
    x.flat[: min(size, 6)] = [np.inf, -np.inf, np.nan, 0, 90, -90][: min(size, 6)]
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    check(b, {"y": b.add(op, "x", **FUNCTIONS[op])}, {"x": x})


def test_tanh_form_of_gelu_and_the_precision_of_all_functions():
    x = np.linspace(-30, 30, 4001, dtype=np.float32)[None]
    for op, attrs in [*FUNCTIONS.items(), ("gelu", {"approximate": "tanh"})]:
        b = GraphBuilder({"x": ValueInfo(x.shape)})
        graph = b.build({"y": b.add(op, "x", **attrs)})
        got = Program(graph, {}, Store()).run({"x": x}, Workspace(), 1)["y"]
        want = run_graph(graph, values_to_free(graph), {"x": x})["y"]
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=3e-7, err_msg=op)


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.permutations(["add", "sub", "mul", "maximum", "minimum", "div"]),
    st.integers(0, 2**32 - 1),
)
def test_chains_with_broadcasts(shape, ops, seed):
    rng = np.random.default_rng(seed)
    other = [s if rng.random() < 0.6 else 1 for s in shape]
    x, y = (rng.random(s).astype(np.float32) + 0.5 for s in (shape, other))
    b = GraphBuilder({"x": ValueInfo(x.shape), "y": ValueInfo(y.shape)})
    value = b.add("relu", "x")
    for op in ops[:3]:
        value = b.add(op, value, "y") if rng.random() < 0.5 else b.add(op, "y", value)
        if rng.random() < 0.5:
            value = b.add(ops[3], value, scalar=1.5, reverse=bool(rng.random() < 0.5))
    table = b.add("constant", params={"value": rng.random(shape[-1:]).astype(np.float32)})
    check(b, {"z": b.add("add", value, table)}, {"x": x, "y": y})


def test_chains_on_values_that_are_stored_feature_major():
    x = floats((2, 5, 12))
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    y = b.add("linear", "x", params={"weight": floats((9, 12))})
    table = b.add("constant", params={"value": floats((5, 9))})
    y = b.add("tanh", b.add("div", b.add("add", y, table), scalar=2.0))
    z = b.add("mul", b.add("reshape", y, shape=(10, 9)), scalar=3.0)
    check(b, {"y": y, "z": b.add("permute", z, axes=(1, 0))}, {"x": x})


def test_squeeze_and_excite():
    x = floats((2, 6, 5, 7))
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    s = b.add("mean", "x", axes=(2, 3), keepdims=True)
    s = b.add("conv2d", s, params={"weight": floats((3, 6, 1, 1)), "bias": floats(3)})
    s = b.add("sigmoid", b.add("conv2d", b.add("silu", s), params={"weight": floats((6, 3, 1, 1))}))
    y = b.add("mul", "x", s)
    norm = {role: RNG.random(6).astype(np.float32) + 0.5 for role in ("weight", "bias", "mean", "var")}
    check(b, {"y": y, "n": b.add("batch_norm", y, params=norm)}, {"x": x})


@pytest.mark.parametrize("shape", [(2, 5, 12), (3, 40), (2, 6, 5, 7), (1, 1000), (40, 3), (2, 3, 33, 2)])
def test_along_every_axis(shape):
    x = floats(shape)
    for axis in range(len(shape)):
        b = GraphBuilder({"x": ValueInfo(shape)})
        outputs = {"softmax": b.add("softmax", "x", axis=axis)}
        for op in ("mean", "sum", "max", "min"):
            outputs[op] = b.add(op, "x", axes=(axis,))
            outputs[f"{op} kept"] = b.add(op, "x", axes=(axis,), keepdims=True)
        if axis == len(shape) - 1:
            params = {"weight": floats(shape[-1]), "bias": floats(shape[-1])}
            outputs["layer_norm"] = b.add("layer_norm", "x", params=params)
            outputs["plain"] = b.add("layer_norm", "x", eps=0.1)
        check(b, outputs, {"x": x})
    if len(shape) == 4:
        b = GraphBuilder({"x": ValueInfo(shape)})
        outputs = {op: b.add(op, "x", size=(1, 1)) for op in ("adaptive_avg_pool2d", "adaptive_max_pool2d")}
        outputs["both"] = b.add("mean", "x", axes=(2, 3))
        outputs["outer"] = b.add("sum", "x", axes=(0, 2))
        check(b, outputs, {"x": x})


def test_extremes_see_nan():
    x = floats((3, 50))
    x[1, 33] = np.nan
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    check(b, {op: b.add(op, "x", axes=(1,)) for op in ("max", "min", "sum")}, {"x": x})


@settings(max_examples=40)
@given(
    st.sampled_from(["max_pool2d", "avg_pool2d"]),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 4)),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.tuples(st.integers(5, 23), st.integers(5, 40)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.booleans(),
)
def test_pooling(op, kernel, stride, padding, size, dilation, flag):
    padding = tuple(min(p, kernel[i % 2] // 2) for i, p in enumerate(padding))
    size = tuple(max(s, (k - 1) * d + 1) for s, k, d in zip(size, kernel, dilation, strict=True))
    x = floats((2, 3, *size))
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    extra = {"count_include_pad": flag} if op == "avg_pool2d" else {"dilation": dilation}
    check(b, {"y": b.add(op, "x", kernel=kernel, stride=stride, padding=padding, **extra)}, {"x": x})


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from([1, 3, 8, 16, 24, 64]),
    st.sampled_from([1, 5, 16, 64, 80]),
    st.sampled_from(["", "causal", "terms", "seen"]),
)
def test_attention_of_few_queries(lead, queries, keys, inner, outer, masked):
    """Of up to eight queries, keys and values joined from two parts, as from a cache."""
    inputs = {
        "q": floats((*lead, queries, inner)),
        "k": floats((*lead, keys, inner)),
        "v": floats((*lead, keys, outer)),
    }
    for name in "kv":
        inputs[f"more_{name}"] = inputs[name] * -0.5
    if masked in ("terms", "seen"):
        inputs["m"] = floats((*lead[:1], *(1 for _ in lead[1:]), queries, 2 * keys))
        inputs["m"][0, ..., 0, :] = -np.inf  # a query that may attend to nothing
        inputs["m"] = inputs["m"] > -1 if masked == "seen" else inputs["m"]
    b = GraphBuilder({name: ValueInfo(a.shape, a.dtype.name) for name, a in inputs.items()})
    joined = [b.add("concat", name, f"more_{name}", axis=len(lead)) for name in "kv"]
    more = ["m"] if "m" in inputs else []
    check(b, {"y": b.add("attention", "q", *joined, *more, causal=masked == "causal")}, inputs)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "sizes", [((2, 3), 50, 50, 8, 8), ((1, 12), 128, 128, 64, 64), ((2,), 7, 9, 5, 11), ((1, 2), 70, 70, 12, 3)]
)
def test_attention(sizes, causal):
    lead, queries, keys, inner, outer = sizes
    inputs = {
        "q": floats((*lead, queries, inner)),
        "k": floats((*lead, keys, inner)),
        "v": floats((*lead, keys, outer)),
    }
    b = GraphBuilder({name: ValueInfo(a.shape) for name, a in inputs.items()})
    check(b, {"y": b.add("attention", *inputs, causal=causal)}, inputs)


def test_attention_with_masks():
    inputs = {
        "q": floats((2, 3, 20, 8)),
        "k": floats((2, 3, 31, 8)),
        "v": floats((2, 3, 31, 8)),
        "m": floats((2, 1, 20, 31)),
    }
    inputs["m"][inputs["m"] > 1] = -np.inf
    inputs["m"][0, 0, 3] = -np.inf  # a query that may attend to nothing
    b = GraphBuilder({name: ValueInfo(a.shape) for name, a in inputs.items()})
    check(b, {"y": b.add("attention", *inputs)}, inputs)
    inputs["m"] = inputs["m"] > 0
    b = GraphBuilder({name: ValueInfo(a.shape, a.dtype.name) for name, a in inputs.items()})
    check(b, {"y": b.add("attention", *inputs)}, inputs)


@pytest.mark.parametrize("shape", [(20, 31), (31,), (1, 20, 31), (2, 1, 31), (2, 20, 1)])
def test_masks_that_broadcast_to_attention_without_heads(shape):
    inputs = {"q": floats((2, 20, 8)), "k": floats((2, 31, 8)), "v": floats((2, 31, 8)), "m": floats(shape)}
    b = GraphBuilder({name: ValueInfo(a.shape) for name, a in inputs.items()})
    check(b, {"y": b.add("attention", *inputs)}, inputs)


@settings(max_examples=40)
@given(
    st.integers(1, 40),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.tuples(st.integers(9, 30), st.integers(9, 60)),
    st.integers(1, 3),
)
def test_depthwise_convolutions(channels, kernel, stride, dilation, padding, size, batch):
    x = floats((batch, channels, *size))
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    params = {"weight": floats((channels, 1, *kernel)), "bias": floats(channels)}
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": channels}
    y = b.add("silu", b.add("conv2d", "x", params=params, **attrs))
    check(b, {"y": y}, {"x": x})


def steps_of(graph):
    return [step for _, _, step in Program(graph, {}, Store()).kernel_steps()]


def test_concatenations_are_computed_in_place():
    """As in networks whose layers read all layers before: each value is written once, where all of them are read."""
    x, rng = floats((2, 8, 5, 7)), np.random.default_rng(0)
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    values, outputs = [b.add("relu", "x")], {}
    for i in range(3):
        joined = b.add("concat", *values, axis=1) if i else values[0]
        weight = rng.standard_normal((4, 8 + 4 * i, 3, 3)).astype(np.float32)
        values.append(b.add("conv2d", b.add("tanh", joined), params={"weight": weight}, padding=(1,) * 4))
    outputs["all"], outputs["first"] = b.add("relu", b.add("concat", *values, axis=1)), values[1]
    check(b, outputs, {"x": x})
    assert "copy" not in {step.algorithm for step in steps_of(b.build(outputs))}


@pytest.mark.parametrize("case", ["twice", "turned", "rows", "part", "both", "input"])
def test_concatenations_that_values_do_not_fit_into(case):
    x = floats((1, 6, 4, 5))
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    y, z = b.add("relu", "x"), b.add("tanh", "x")
    left, right = b.add_many("split", (y,), 2, axis=1, sizes=(2, 4))
    cases = {
        "twice": ((y, y), 1),
        "turned": ((right, left), 1),  # the parts of one value in another order
        "rows": ((y, z), 2),
        "part": ((left, z), 1),  # the rest of the value lies where the other is to be
        "both": ((left, right, z), 1),
        "input": (("x", z, "x"), 1),
    }
    values, axis = cases[case]
    outputs = {"y": b.add("sigmoid", b.add("concat", *values, axis=axis)), "z": b.add("neg", y), "w": b.add("neg", z)}
    if case != "input":
        outputs["again"] = b.add("concat", z, *values, axis=axis)  # z cannot be in two places
    check(b, outputs, {"x": x})


def test_views_and_what_they_cannot_say():
    x = floats((2, 6, 4, 5))
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    left, right = b.add_many("split", ("x",), 2, axis=1, sizes=(2, 4))
    every = b.add("slice", right, axis=3, start=1, stop=None, step=2)
    outputs = {
        "flat": b.add("reshape", b.add("permute", "x", axes=(0, 2, 3, 1)), shape=(2, 120)),
        "part": b.add("relu", left),
        "every": b.add("mul", every, scalar=2.0),
        "back": b.add("relu", b.add("slice", "x", axis=2, start=3, stop=None, step=-2)),
        "wide": b.add("add", b.add("expand", b.add("slice", "x", axis=1, start=0, stop=1), shape=(2, 6, 4, 5)), "x"),
        "joined": b.add("relu", b.add("concat", left, right, axis=1)),
    }
    check(b, outputs, {"x": x})
