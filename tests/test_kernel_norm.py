"""Norms and softmax in every storage order against float64 and the NumPy meaning of the nodes."""

import numpy as np
import pytest
from forced import FORCED, run_forced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_kernel_elementwise import check

from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.kernels import simd
from pqnet.runtime.memory import Store, Workspace
from pqnet.runtime.program import Program

SIZES = st.sampled_from([1, 2, 3, 7, 16, 17, 40])


@st.composite
def values(draw):
    """A shape, the order in which it lies in memory, how it is cut out of a larger value, and a seed."""
    shape = tuple(draw(st.lists(SIZES, min_size=1, max_size=4)))
    return shape, draw(st.permutations(range(len(shape)))), draw(st.booleans()), draw(st.integers(0, 2**32 - 1))


def stored(shape, order, cut, seed):
    """Return a graph builder, the name of a value of this shape in the given storage order, and the inputs."""
    rng = np.random.default_rng(seed)
    sizes = [shape[a] for a in order]
    sizes[-1] += 2 * cut
    x = (rng.standard_normal(sizes) * 3 + 5).astype(np.float32)
    # In networks products give values of any order; here permuted views of an input do.
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    y = b.add("slice", "x", axis=len(sizes) - 1, start=1, stop=1 + shape[order[-1]], step=1) if cut else "x"
    return b, b.add("permute", y, axes=tuple(int(a) for a in np.argsort(order))), {"x": x}, rng


def affine(rng, shape, with_them):
    return {role: rng.standard_normal(shape).astype(np.float32) for role in ("weight", "bias")} if with_them else {}


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(values(), st.integers(1, 4), st.booleans(), st.sampled_from(["layer_norm", "rms_norm"]))
def test_layer_norm(value, axes, with_weights, op):
    shape = value[0]
    b, y, inputs, rng = stored(*value)
    axes = min(axes, len(shape))
    params = affine(rng, shape[len(shape) - axes :], with_weights)
    params = {role: p for role, p in params.items() if op == "layer_norm" or role == "weight"}
    check(b.build({"y": b.add(op, y, params=params, axes=axes, eps=1e-3)}), inputs, tolerance=2e-5)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(values(), st.integers(0, 5), st.booleans())
def test_group_norm(value, pick, with_weights):
    shape = value[0]
    if len(shape) < 2:
        return
    b, y, inputs, rng = stored(*value)
    divisors = [g for g in range(1, shape[1] + 1) if shape[1] % g == 0]
    groups = divisors[pick % len(divisors)]
    params = affine(rng, shape[1:2], with_weights)
    check(b.build({"y": b.add("group_norm", y, params=params, groups=groups, eps=1e-3)}), inputs, tolerance=2e-5)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(values(), st.integers(0, 3), st.sampled_from(["softmax", "log_softmax"]))
def test_softmax(value, axis, op):
    b, y, inputs, _ = stored(*value)
    check(b.build({"y": b.add(op, y, axis=axis % len(value[0]))}), inputs)


def run(op, x, order, **attrs):
    """Return the result of one node; two-dimensional inputs lie in memory with their last axis outermost."""
    b = GraphBuilder({"x": ValueInfo(x.transpose(order).shape)})
    graph = b.build({"y": b.add(op, b.add("permute", "x", axes=tuple(np.argsort(order))), **attrs)})
    program = Program(graph, {}, Store())
    results = [program.run({"x": x.transpose(order)}, Workspace(), threads)["y"] for threads in (1, 3)]
    assert np.array_equal(*results, equal_nan=True)
    return results[0], [step.algorithm for _, _, step in program.kernel_steps()]


@pytest.mark.parametrize(("order", "algorithm"), [((0, 1), "norm_across"), ((1, 0), "norm_along")])
def test_layer_norm_of_long_rows_is_exact(order, algorithm):
    """Means far from 0, many tasks, rows of several thousands."""
    x = (np.random.default_rng(0).standard_normal((300, 3001)) + 100).astype(np.float32)
    got, algorithms = run("layer_norm", x, order)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(1, keepdims=True)) / np.sqrt(exact.var(1, keepdims=True) + 1e-5)
    assert algorithms == [algorithm]
    assert np.abs(got - exact).max() < 1e-5
    got, algorithms = run("rms_norm", x, order)
    exact = x / np.sqrt(np.square(x, dtype=np.float64).mean(1, keepdims=True) + 1e-5)
    assert algorithms == [algorithm]
    assert np.abs(got - exact).max() < 1e-5


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
@pytest.mark.parametrize(("order", "algorithm"), [((0, 1), "softmax_across"), ((1, 0), "softmax_along")])
def test_softmax_of_many_rows_and_of_special_numbers(op, order, algorithm):
    x = np.random.default_rng(0).standard_normal((300, 1003)).astype(np.float32) * 20
    x[0, 5], x[1, 7], x[2, :], x[3, 1000], x[4, :900] = np.inf, np.nan, -np.inf, 3e38, -np.inf
    got, algorithms = run(op, x, order, axis=1)
    with np.errstate(all="ignore"):
        exact = x.astype(np.float64) - x.max(1, keepdims=True)
        log = exact - np.log(np.exp(exact).sum(1, keepdims=True))
    assert algorithms == [algorithm]
    np.testing.assert_allclose(got, log if op == "log_softmax" else np.exp(log), rtol=2e-6, atol=1e-6)


SCRIPT = """
import test_kernel_norm as t
for order in ((0, 1, 2), (2, 0, 1)):
    norms = ("layer_norm", dict(axes=1)), ("rms_norm", dict(axes=1)), ("group_norm", dict(groups=2))
    for op, attrs in (*norms, ("softmax", dict(axis=2))):
        b, y, inputs, _ = t.stored((3, 4, 19), order, True, 0)
        t.check(b.build({"y": b.add(op, y, **attrs)}), inputs, tolerance=2e-5)
print(t.simd.ISA)
"""


@pytest.mark.parametrize("settings_", FORCED)
def test_the_same_under_each_instruction_set_and_without_a_compiler(settings_):
    assert run_forced(SCRIPT, settings_) == settings_.get("PQNET_SIMD", simd.ISA)
