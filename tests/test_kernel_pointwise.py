"""Vector tables of pointwise convolutions: any sizes, groups, batches and epilogues, and how work is cut."""

import numpy as np
import pytest
from forced import FORCED, run_forced
from programs import GuardedSpace, untouched
from test_engine import close, packed_weight, reference

from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.kernels.products.lut_pointwise import HALF, MOST_D, MOST_IN_PASS
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.algorithms import lut_pointwise
from pqnet.runtime.memory import Store, Workspace
from pqnet.runtime.program import Program
from pqnet.runtime.tune import fixed

# Positions: one, half a vector and one more, a vector, one more, some and a part; of one image or of several.
SHAPES = [(1, 1, 1), (1, 1, HALF), (1, 1, HALF + 1), (1, 4, WIDTH // 4), (1, 1, WIDTH + 1), (1, 7, 7), (3, 2, 5)]


def network(shape, blocks, d, k, outputs, groups, tail, seed=0):
    rng = np.random.default_rng(seed)
    batch, *size = shape
    weight = packed_weight(rng, (outputs * groups, blocks * d, 1, 1), d, k, "channel")
    x = rng.standard_normal((batch, blocks * d * groups, *size)).astype(np.float32)
    z = rng.standard_normal((batch, outputs * groups, *size)).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(x.shape), "z": ValueInfo(z.shape)})
    y = b.add("conv2d", "x", params={"weight": weight}, groups=groups)
    if tail != "none":
        norm = {role: rng.random(len(z[0])).astype(np.float32) + 0.5 for role in ("weight", "bias", "mean", "var")}
        y = b.add("batch_norm", y, params=norm)
        y = b.add("add", y, "z") if tail != "clamp" else y
        y = b.add("clamp", y, min=-0.5, max=1.0) if tail == "clamp" else b.add(tail, y)
    return b.build({"y": y}), {"x": x, "z": z}


def check(graph, inputs):
    program, space = Program(graph, {}, Store(), fixed("lut_pointwise")), GuardedSpace()
    assert "lut_pointwise" in {step.algorithm for _, _, step in program.kernel_steps()}
    got = program.run(inputs, space, 1)["y"]
    assert close(got, reference(graph, inputs))
    assert untouched(program, space.arena)
    assert np.array_equal(program.run(inputs, Workspace(), 2)["y"], got)
    return got


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tail", ["none", "clamp", "relu", "silu"])
@pytest.mark.parametrize(("outputs", "groups"), [(9, 1), (4, 3), (33, 2)])
def test_any_positions_outputs_groups_and_epilogue(shape, outputs, groups, tail):
    check(*network(shape, 5, 4, 16, outputs, groups, tail))


@pytest.mark.parametrize("d", range(2, MOST_D + 1))
@pytest.mark.parametrize("k", [2, 7, 128, 256])
@pytest.mark.parametrize("blocks", [1, MOST_IN_PASS - 1, MOST_IN_PASS, 2 * MOST_IN_PASS + 3])
def test_any_codewords(d, k, blocks):
    check(*network((1, 2, 9), blocks, d, k, 258, 1, "none", seed=d))


def test_parts_of_outputs_change_no_bit(monkeypatch):
    graph, inputs = network((1, 3, 3), 6, 4, 64, 50, 2, "relu")
    results, tasks = [], set()
    for parts in (1, 2, 4):
        monkeypatch.setattr(lut_pointwise, "PARTS", (parts,))
        lut_pointwise.plan_pointwise.cache_clear()
        tasks.add(lut_pointwise.plan_pointwise(6, 64, 4, 50, 2, 9).tasks)
        results.append(check(graph, inputs))
    lut_pointwise.plan_pointwise.cache_clear()
    assert len(tasks) == 3 and all(np.array_equal(result, results[0]) for result in results)


SCRIPT = """
import test_kernel_pointwise as t
for shape, tail in zip(t.SHAPES, 2 * ["none", "clamp", "relu", "silu"]):
    t.check(*t.network(shape, 11, 3, 31, 9, 2, tail))
"""


@pytest.mark.parametrize("settings_", FORCED)
def test_the_same_under_each_instruction_set_and_without_a_compiler(settings_):
    run_forced(SCRIPT, settings_)
