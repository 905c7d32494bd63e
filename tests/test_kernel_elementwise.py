"""Chains of element-wise operations against the NumPy meaning of their nodes; vector functions against float64."""

import hashlib

import numpy as np
import pytest
from forced import FORCED, run_forced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import GuardedSpace, run_tasks, untouched
from scipy import special

from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.graph.ops.activation import FUNCTIONS as ACTIVATIONS
from pqnet.kernels import simd
from pqnet.kernels.ops.elementwise import PIECE
from pqnet.runtime.execute import run_graph, values_to_free
from pqnet.runtime.memory import Store
from pqnet.runtime.program import HostStep, Program
from pqnet.runtime.tune import rule

BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")
UNARY = ("exp", "log", "sqrt", "rsqrt", "erf", "reciprocal", "floor", "ceil", "round", "neg", "abs", "sign")
ROUNDED_ONCE = ("expm1", "log1p", "log2", "log10", "sin", "cos")
SPECIAL = np.array(
    [np.inf, -np.inf, np.nan, 0, -0.0, 1, -1, 0.5, -2.5, 3.5, 1e-3, -1e-3, 1e30, -1e30, 88.5, -88.5, 100, -105, 21],
    np.float32,
)


def check(graph, inputs, algorithms=None, tolerance=1e-5):
    """Compare with NumPy, run the tasks of the last step in another order, look at the memory around the values."""
    with np.errstate(all="ignore"):
        want = run_graph(graph, values_to_free(graph), inputs)
        program = Program(graph, {}, Store())
        space = GuardedSpace()
        got = program.run(inputs, space, 1)
    assert not any(isinstance(s, HostStep) for s in program.segments)
    steps = list(program.kernel_steps())
    assert algorithms is None or [step.algorithm for _, _, step in steps] == algorithms
    assert untouched(program, space.arena)
    for name, value in want.items():
        finite = np.abs(value[np.isfinite(value)])
        np.testing.assert_allclose(
            got[name], value, rtol=tolerance, atol=tolerance * max(1, finite.max(initial=0)), strict=True
        )
    before = space.arena.copy()
    segment, i, step = steps[-1]
    tasks = list(reversed(range(step.tasks)))
    run_tasks(segment, i, tasks, program.pieces, program.index, space.arena, space.scratch[0])
    assert before.tobytes() == space.arena.tobytes()


@st.composite
def chains(draw):
    """A shape, and nodes: the operation, what its other operand is, which of its axes have size 1."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 5, 16, 17, 40]), min_size=1, max_size=4)))
    others = [*sorted(set(ACTIVATIONS)), "clamp", "square", "batch_norm", "prelu"]
    narrow = st.tuples(st.integers(0, 15), st.integers(0, 3))
    operand = st.sampled_from(["input", "reversed", "constant", "scalar", "reverse", "itself"])
    node = st.one_of(
        st.tuples(st.sampled_from(BINARY), operand, narrow),
        st.tuples(st.sampled_from(others), st.none(), narrow),
    )
    return shape, draw(st.lists(node, min_size=1, max_size=7)), draw(st.integers(0, 2**32 - 1))


def build(shape, nodes, seed):
    """Return the graph of a chain and its inputs."""
    rng = np.random.default_rng(seed)
    inputs = {"x": rng.standard_normal(shape).astype(np.float32)}
    for i, (_, _, (mask, missing)) in enumerate(nodes):
        sizes = [1 if mask >> a & 1 else s for a, s in enumerate(shape)][min(missing, len(shape) - 1) :]
        inputs[f"v{i}"] = (rng.random(sizes) * rng.choice([-1, 1]) + 0.5).astype(np.float32) + np.float32(1)
    b = GraphBuilder({name: ValueInfo(array.shape) for name, array in inputs.items()})
    constants = [b.add("constant", params={"value": inputs[f"v{i}"]}) for i in range(len(nodes))]
    y = "x"
    for i, (op, other, _) in enumerate(nodes):
        if op == "div" and other in ("reversed", "reverse", "itself"):  # not by what is nearly 0
            y = b.add("add", b.add("abs", y), scalar=0.5)
        if other in ("scalar", "reverse"):
            y = b.add(op, y, scalar=0.75, reverse=other == "reverse")
        elif other is not None:
            x = {"constant": constants[i], "itself": y}.get(other, f"v{i}")
            y = b.add(op, x, y) if other == "reversed" else b.add(op, y, x)
        elif op in ("batch_norm", "prelu"):
            if len(shape) < 2:
                continue
            roles = ("weight", "bias", "mean", "var") if op == "batch_norm" else ("weight",)
            y = b.add(op, y, params={role: rng.random(shape[1]).astype(np.float32) + 0.5 for role in roles})
        elif op == "clamp":
            y = b.add("clamp", y, min=-0.75, max=None if seed % 2 else 0.9)
        else:
            y = b.add("pow", y, scalar=2.0) if op == "square" else b.add(op, y)
    return b.build({"y": b.add("neg", y)}), inputs


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(chains())
def test_chains(case):
    check(*build(*case))


def test_a_chain_is_one_step_and_long_ones_are_cut():
    nodes = [
        ("add", "input", (0, 0)),
        ("relu", None, (0, 0)),
        ("mul", "reversed", (12, 0)),
        ("batch_norm", None, (0, 0)),
    ]
    check(*build((2, 5, 3, 7), nodes, 0), algorithms=["elementwise"])
    check(*build((2, 3), [("add", "input", (0, 0))] * 9, 0), algorithms=["elementwise"] * 2)


@pytest.mark.parametrize("shape", [(3, PIECE + 5), (2 * PIECE + 1,), (70, 3, 29), (1, 40, 60, 60)])
def test_rows_of_several_pieces_and_steps_of_several_tasks(shape):
    nodes = [("mul", "input", (15 - 8, 0)), ("silu", None, (0, 0)), ("add", "constant", (1, 0)), ("relu", None, (0, 0))]
    check(*build(shape, nodes, 1), algorithms=["elementwise"])


@pytest.mark.parametrize("op", [*UNARY, *ROUNDED_ONCE, *ACTIVATIONS, "clamp"])
def test_special_numbers(op):
    x = np.concatenate([SPECIAL, np.linspace(-30, 30, 1000, dtype=np.float32)])
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    attrs = {"min": -1.5, "max": 2.0} if op == "clamp" else {}
    graph = b.build({"y": b.add(op, "x", **attrs)})
    program = Program(graph, {}, Store())
    with np.errstate(all="ignore"):
        want = run_graph(graph, values_to_free(graph), {"x": x})["y"]
        got = program.run({"x": x}, GuardedSpace(), 1)["y"]
    assert [step.algorithm for _, _, step in program.kernel_steps()] == ["elementwise"]
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)


def test_powers_and_views_of_other_storage():
    shape = (3, 4, 5)
    x = {name: np.random.default_rng(0).random(shape).astype(np.float32) for name in ("a", "b")}
    b = GraphBuilder({name: ValueInfo(shape) for name in x})
    permuted = b.add("permute", "b", axes=(1, 0, 2))
    y = {f"p{p}": b.add("pow", b.add("mul", "a", "b"), scalar=p) for p in (2.0, 3.0, 0.5, -0.5, -1.0)}
    y["permuted"] = b.add("add", b.add("permute", "a", axes=(1, 0, 2)), permuted)
    y["strided"] = b.add("mul", b.add("slice", "a", axis=2, start=0, stop=5, step=2), scalar=3.0)
    y["mixed"] = b.add(
        "sub", b.add("permute", "a", axes=(2, 1, 0)), b.add("exp", b.add("permute", "b", axes=(2, 1, 0)))
    )
    y["outer"] = b.add(
        "mul",
        b.add("slice", "a", axis=2, start=0, stop=1, step=1),
        b.add("slice", "b", axis=0, start=1, stop=2, step=1),
    )
    check(b.build(y), x)


def vector(name):
    """Return the compiled function of an array."""

    def run(x):
        b = GraphBuilder({"x": ValueInfo(x.shape)})
        return Program(b.build({"y": b.add(name, "x")}), {}, Store()).run({"x": x}, GuardedSpace(), 1)["y"]

    return run


@pytest.mark.parametrize(
    ("name", "low", "high"), [("exp", -87, 88.5), ("tanh", -10, 10), ("log", 1e-6, 1e6), ("erf", -4, 4)]
)
def test_accuracy_against_float64(name, low, high):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(low, high, 1 << 15), rng.uniform(0.9, 1.1, 1 << 12), rng.uniform(1e-20, 1e-3, 999)])
    x = x.astype(np.float32)
    want = getattr(special if name == "erf" else np, name)(x.astype(np.float64))
    error = np.abs(vector(name)(x) - want) / np.maximum(np.abs(want), 1e-37)
    assert error.max() < (4e-7 if name == "erf" else 3e-7)


def units(got, want):
    """Return the distance from float64 numbers in units of the last place of float32; denormal numbers count as 0."""
    with np.errstate(all="ignore"):
        rounded = want.astype(np.float32)
        distance = np.abs(got.astype(np.float64) - want) / np.spacing(np.abs(rounded))
    tiny = np.finfo(np.float32).tiny
    equal = (got == rounded) & ((got != 0) | (np.signbit(got) == np.signbit(rounded)))
    equal |= (np.isnan(got) & np.isnan(rounded)) | ((np.abs(got) <= tiny) & (np.abs(rounded) <= tiny))
    return np.where(equal, 0, np.where(np.isfinite(distance), distance, np.inf))


def flushed(x):
    """Return numbers in float64 as steps take them: denormal ones are 0."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(0.0, x), x.astype(np.float64))


def all_magnitudes(seed, count=1 << 14):
    """Return float32 numbers of all exponents, special ones, and neighbours of multiples of pi / 2, small and large."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 1 << 32, count, np.uint64).astype(np.uint32).view(np.float32)
    bits = np.where(np.isnan(bits), np.float32(np.nan), bits)  # none that signals
    whole = np.concatenate([np.arange(1 << 12), rng.integers(0, 1 << 50, 1 << 12)])
    angles = (whole * np.pi / 2).astype(np.float32)
    near = np.concatenate([angles, np.nextafter(angles, np.float32(0)), [2.0**24, 1e5, -1e5, 16777214, 3.4e38]])
    return np.concatenate(
        [SPECIAL, bits, *(part.astype(np.float32) for part in (near, -near, rng.uniform(-3, 3, 1 << 12)))]
    )


@pytest.mark.parametrize("name", ROUNDED_ONCE)
def test_functions_that_are_rounded_once(name):
    x = all_magnitudes(0)
    with np.errstate(all="ignore"):
        assert units(vector(name)(x), getattr(np, name)(flushed(x))).max() < 0.51


def check_powers(seed=0):
    rng, n = np.random.default_rng(seed), 1 << 13
    pairs = np.stack(np.meshgrid(SPECIAL, [*SPECIAL, 2, 3, 4, -3, 2**24, 2**24 + 2, 2**23 + 1, 2**60]), -1)
    x = np.concatenate([pairs[..., 0].reshape(-1), rng.uniform(0, 10, n), rng.uniform(-5, 5, n), all_magnitudes(1, n)])
    y = np.concatenate([pairs[..., 1].reshape(-1), rng.uniform(-9, 9, n), rng.integers(-9, 9, n)])
    x, y = x.astype(np.float32), np.append(y, rng.uniform(-2, 2, len(x) - len(y))).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(x.shape), "y": ValueInfo(y.shape)})
    results = {"both": b.add("pow", "x", "y"), "scalar": b.add("pow", "x", scalar=-1.7)}
    graph = b.build(results | {"reverse": b.add("pow", "x", scalar=0.3, reverse=True)})
    program = Program(graph, {}, Store())
    with np.errstate(all="ignore"):
        got = program.run({"x": x, "y": y}, GuardedSpace(), 1)
        x, y = flushed(x), flushed(y)
        wanted = {"both": x**y, "scalar": x ** np.float32(-1.7), "reverse": np.float64(np.float32(0.3)) ** x}
    assert not any(isinstance(s, HostStep) for s in program.segments)
    for name, want in wanted.items():
        assert units(got[name], want).max() < 0.51, name


def test_powers():
    check_powers()


def test_functions_within_chains():
    rng = np.random.default_rng(0)
    x = {
        "x": rng.uniform(0.5, 3, (2, 5, 7, 9)),
        "row": rng.uniform(-2, 2, (5, 1, 1)),
        "all": rng.uniform(-2, 2, (2, 5, 7, 9)),
    }
    x = {name: array.astype(np.float32) for name, array in x.items()}
    b = GraphBuilder({name: ValueInfo(array.shape) for name, array in x.items()})
    y = b.add("relu", b.add("sub", b.add("pow", "x", "row"), scalar=0.5))
    y = b.add("clamp", b.add("pow", b.add("add", y, scalar=0.1), "all"), min=0.25, max=2.0)
    y = b.add("relu", b.add("cos", b.add("log1p", b.add("mul", y, "row"))))
    check(
        b.build({"y": b.add("clamp", b.add("pow", y, scalar=2.5, reverse=True), min=None, max=2.0)}),
        x,
        ["elementwise"],
    )


def test_silu_against_float64():
    x = np.concatenate([np.linspace(-60, 60, 1 << 16), 10.0 ** np.linspace(-37, 38, 1 << 12)]).astype(np.float32)
    want = x / (1 + np.exp(-x.astype(np.float64)))
    error = np.abs(vector("silu")(x) - want)
    assert (error[np.abs(x) < 12] <= 3e-7 * np.abs(want[np.abs(x) < 12])).all()
    assert (error <= 3e-7 * np.maximum(np.abs(want), 1)).all()


@pytest.mark.parametrize("op", ["silu", "gelu"])
def test_gates_of_low_precision(op):
    x = np.concatenate([np.linspace(-80, 80, 1 << 16), 10.0 ** np.linspace(-30, 30, 1 << 10)]).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    graph = b.build({"y": b.add(op, "x")})
    with np.errstate(all="ignore"):
        want = x / (1 + np.exp(-x.astype(np.float64))) if op == "silu" else x * special.ndtr(x.astype(np.float64))
    got = [Program(graph, {}, Store(), rule, c).run({"x": x}, GuardedSpace(), 1)["y"] for c in ("int8", "bfloat16")]
    near = np.abs(x) < (12 if op == "silu" else 2)  # beyond, erf loses digits of its difference from 1
    assert (np.abs(got[0] - want)[near] <= 3e-5 * np.abs(want[near])).all()
    assert (np.abs(got[0] - want) <= 3e-5 * np.maximum(np.abs(want), 0.1)).all()
    assert np.array_equal(*got)
    digest = {"silu": "0fa71a1c510d0921", "gelu": "09b69ec2619fc999"}[op]
    assert hashlib.sha256(got[0]).hexdigest()[:16] == digest  # the same bits everywhere


SCRIPT = """
import os
import test_kernel_elementwise as t
nodes = [("add", "input", (0, 0)), ("gelu", None, (0, 0)), ("mul", "constant", (2, 0)), ("batch_norm", None, (0, 0))]
t.check(*t.build((3, 5, 7), nodes, 0))
for op in ("silu", "elu", "mish", "softplus", "tanh", "log", *t.ROUNDED_ONCE):
    t.test_special_numbers(op)
if not os.environ.get('NUMBA_DISABLE_JIT'):
    for op in t.ROUNDED_ONCE:
        t.test_functions_that_are_rounded_once(op)
    t.test_silu_against_float64()
    for op in ("silu", "gelu"):
        t.test_gates_of_low_precision(op)
    t.check_powers()
print(t.simd.ISA)
"""


@pytest.mark.parametrize("settings_", FORCED)
def test_the_same_under_each_instruction_set_and_without_a_compiler(settings_):
    assert run_forced(SCRIPT, settings_) == settings_.get("PQNET_SIMD", simd.ISA)
