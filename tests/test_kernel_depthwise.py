"""Depthwise convolutions: any geometry against the NumPy meaning and PyTorch, and the memory around the values."""

import numpy as np
import pytest
from forced import FORCED, run_forced
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import GuardedSpace, run_tasks, untouched
from test_engine import close, packed_weight, reference
from test_kernel_sums import packed

from pqnet import PQ, Additive, IntN, Sparse
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.runtime.memory import Store, Workspace
from pqnet.runtime.program import Program

KINDS = ("float", "rows", "filters", "numbers", "sum")


@st.composite
def geometries(draw):
    """Draw a batch, channels, image and kernel size, and attributes that leave an output."""
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (5, 5), (5, 5), (7, 7), (3, 5), (2, 4)]))
    attrs = {
        "stride": draw(st.sampled_from([(1, 1), (1, 1), (1, 1), (2, 2), (2, 1), (1, 3), (3, 2)])),
        "dilation": draw(st.sampled_from([(1, 1), (1, 1), (1, 2), (2, 1), (3, 3)])),
        "padding": tuple(draw(st.integers(0, 4)) for _ in range(4)),
    }
    extent = [attrs["dilation"][i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    least = [max(extent[i] - attrs["padding"][i] - attrs["padding"][2 + i], 1) for i in (0, 1)]
    size = [draw(st.integers(least[0], least[0] + 30)), draw(st.integers(least[1], least[1] + 75))]
    return draw(st.integers(1, 3)), draw(st.integers(2, 5)), size, kernel, attrs


def filters(shape, seed, kind):
    """Return float filters, or packed ones: of rows, of whole filters, of numbers; or sums with scales of groups."""
    rng, taps = np.random.default_rng(seed), shape[2] * shape[3]
    if kind == "float":
        return rng.standard_normal(shape).astype(np.float32)
    if kind == "sum":
        blocks = PQ(5, taps, clamp="floor"), PQ(4, shape[3], clamp="floor")
        codec = Additive([blocks[0], IntN(3, "group", symmetric=False, group=shape[3]), Sparse(0.1), blocks[1]])
        return packed(codec, shape, seed)
    return packed_weight(
        rng, shape, {"rows": shape[3], "filters": taps, "numbers": 1}[kind], min(5, shape[0]), "spatial"
    )


def network(batch, channels, size, kernel, attrs, seed, tail, kind="float"):
    """Return a graph of one convolution with what may follow it, and its input."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, channels, *size)).astype(np.float32)
    shape = (channels, 1, *kernel)
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    params = {"weight": filters(shape, seed, kind), "bias": rng.standard_normal(channels).astype(np.float32)}
    y = b.add("conv2d", "x", params=params, groups=channels, **attrs)
    if tail in ("norm", "all"):
        norm = {role: rng.random(channels).astype(np.float32) + 0.5 for role in ("weight", "bias", "mean", "var")}
        y = b.add("batch_norm", y, params=norm)
    if tail == "all":
        y = b.add(
            "add", y, b.add("conv2d", "x", params={"weight": filters(shape, seed + 1, kind)}, groups=channels, **attrs)
        )
    if tail != "none":
        y = b.add("silu", y)
    return b.build({"y": y}), {"x": x}


def check(graph, inputs):
    program, space = Program(graph, {}, Store()), GuardedSpace()
    assert {step.algorithm for _, _, step in program.kernel_steps()} <= {"depthwise", "depthwise_down"}
    got = program.run(inputs, space, 1)["y"]
    assert close(got, reference(graph, inputs))
    assert untouched(program, space.arena)
    assert np.array_equal(program.run(inputs, Workspace(), 3)["y"], got)
    return got


@settings(max_examples=150)
@given(geometries(), st.sampled_from(["none", "norm", "all"]), st.integers(0, 2**32 - 1), st.sampled_from(KINDS))
def test_any_geometry(case, tail, seed, kind):
    check(*network(*case, seed, tail, kind))


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [1, 7, 16, 17, 33, 48, 65, 100, 300])
def test_every_number_of_vectors_and_several_bands(kernel, stride, width):
    attrs = {"stride": (stride, stride), "padding": (kernel // 2,) * 4}
    check(*network(2, 3, (40 if width > 60 else 9, width), (kernel, kernel), attrs, kernel, "norm"))


def test_tasks_in_any_order_give_the_same_bits():
    graph, inputs = network(1, 100, (30, 33), (3, 3), {"padding": (1, 1, 1, 1)}, 0, "norm")
    program, space = Program(graph, {}, Store()), Workspace()
    want = program.run(inputs, space, 1)["y"]
    (segment, i, step), *_ = program.kernel_steps()
    assert step.tasks > 3
    out = space.array(program.outputs[graph.outputs["y"]])
    out[:] = np.nan
    backwards = range(step.tasks)[::-1]
    run_tasks(segment, i, backwards, program.pieces, program.index, space.arena, space.scratch[0])
    assert np.array_equal(out, want)


def test_which_kernels_go_down_the_columns():
    for kernel, attrs, down in [
        ((3, 3), {"stride": (2, 2), "padding": (1, 1, 1, 1)}, True),
        ((5, 5), {"dilation": (1, 3), "padding": (2, 6, 2, 6)}, True),
        ((3, 3), {"padding": (100, 3, 100, 3)}, True),
        ((3, 3), {"dilation": (2, 2)}, False),
        ((3, 3), {"stride": (2, 1)}, False),
        ((3, 5), {}, False),
        ((3, 3), {"padding": (0, 300, 0, 0)}, False),  # what lies beside the values may be read so far, not further
        ((3, 3), {"padding": (0, 0, 0, 300)}, False),
    ]:
        graph, inputs = network(1, 3, (9, 20), kernel, attrs, 3, "all")
        program = Program(graph, {}, Store())
        assert ("depthwise_down" in {step.algorithm for _, _, step in program.kernel_steps()}) == down
        check(graph, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_many_channels_in_several_tasks(kind):
    for channels, size in ((701, (1, 1)), (163, (9, 8)), (5, (60, 60))):
        check(*network(2, channels, size, (3, 3), {"padding": (1, 1, 1, 1)}, 1, "none", kind))
        check(*network(1, channels, size, (3, 3), {"padding": (2, 2, 2, 2), "dilation": (2, 2)}, 1, "norm", kind))


def test_against_torch():
    torch = pytest.importorskip("torch")
    attrs = {"stride": (2, 1), "padding": (2, 3, 1, 0), "dilation": (1, 2)}
    graph, inputs = network(2, 6, (21, 40), (5, 5), attrs, 2, "none")
    weight, bias = (torch.from_numpy(next(p for p in graph.params.values() if p.ndim == n)) for n in (4, 1))
    x = torch.nn.functional.pad(torch.from_numpy(inputs["x"]), (3, 0, 2, 1))
    want = torch.nn.functional.conv2d(x, weight, bias, (2, 1), 0, (1, 2), 6).numpy()
    np.testing.assert_allclose(check(graph, inputs), want, rtol=1e-4, atol=1e-4)


SCRIPT = """
import test_kernel_depthwise as t
for kernel, stride, width in [(3, 1, 7), (3, 1, 19), (5, 1, 33), (7, 1, 20), (5, 2, 21), (3, 2, 9), (3, 3, 10)]:
    attrs = dict(stride=(stride,) * 2, padding=(1,) * 4)
    for kind in t.KINDS:
        t.check(*t.network(1, 3, (6, width), (kernel, kernel), attrs, 0, "norm", kind))
"""


@pytest.mark.parametrize("settings_", FORCED)
def test_the_same_under_each_instruction_set_and_without_a_compiler(settings_):
    run_forced(SCRIPT, settings_)
