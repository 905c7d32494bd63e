"""Some taps of a weight; transposed convolutions by phases; convolutions whose outer taps see only padding."""

import numpy as np
import pytest
from forced import FORCED, run_forced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_engine import check_algorithms, divisors, packed_weight

from pqnet.codecs import PackedPQ
from pqnet.errors import PQNetError
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import Store
from pqnet.runtime.program import Program
from pqnet.runtime.taps import Selection, with_taps
from pqnet.runtime.tune import fixed, rule

RNG = np.random.default_rng(0)


@settings(max_examples=100)
@given(st.data())
def test_some_taps_of_a_weight(data):
    kernel = data.draw(st.sampled_from([(2, 2), (3, 3), (4, 4), (5, 3)]))
    c, layout = data.draw(st.integers(1, 12)), data.draw(st.sampled_from(["spatial", "channel"]))
    d = data.draw(st.sampled_from(divisors(c if layout == "channel" else c * kernel[0] * kernel[1])))
    weight = packed_weight(RNG, (5, c, *kernel), d, 3, layout)
    rows, columns = (data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True)) for n in kernel)
    chosen, size = [i * kernel[1] + j for i in rows for j in columns], (len(rows), len(columns))
    want = with_taps(weight.decode(), chosen, size)
    assert np.array_equal(want, weight.decode()[:, :, rows][:, :, :, columns])
    got = with_taps(weight, chosen, size)
    taps = kernel[0] * kernel[1]
    if layout == "channel" or d % taps == 0 or d == 1:
        assert isinstance(got, PackedPQ)
    if got is not None:
        assert np.array_equal(got.decode(), want)
        assert got.codec.k == weight.codec.k and got.code_nbytes <= weight.code_nbytes
    whole = weight.decode().reshape(5, -1)
    selected = with_taps(Selection.of(weight), chosen, size)
    assert np.array_equal(whole[:, selected.inputs].reshape(selected.shape), want)
    once_more = with_taps(selected, [len(chosen) - 1], (1, 1))
    assert np.array_equal(whole[:, once_more.inputs].reshape(once_more.shape)[:, :, 0, 0], want[:, :, -1, -1])


def test_blocks_that_taps_would_cut_in_different_ways_are_refused():
    assert with_taps(packed_weight(RNG, (5, 5, 3, 3), 5, 3, "spatial"), [4], (1, 1)) is None


@st.composite
def layers(draw, op):
    """Draw a graph of one layer, some of whose outputs may see nothing but padding."""
    n, groups = int(op[-2]), draw(st.sampled_from([1, 1, 2, 3]))
    c, o = draw(st.integers(1, 12)), groups * draw(st.integers(1, 10))
    c, o = draw(st.sampled_from([(c, o), (c, o), (1, groups)]))
    kernel = draw(st.sampled_from([(1, 1, 1), (2, 2, 2), (3, 3, 3), (2, 4, 4), (1, 5, 3), (3, 1, 1)]))[-n:]
    few, many = st.integers(1, 3), st.sampled_from([1, 1, 2, 3, 7])
    most = 3 if "transpose" in op else 9
    attrs = {
        "stride": tuple(draw(few) for _ in range(n)),
        "dilation": tuple(draw(many) for _ in range(n)),
        "padding": tuple(draw(st.integers(0, most)) for _ in range(2 * n)),
        "groups": groups,
    }
    if "transpose" in op:
        attrs["output_padding"] = tuple(draw(st.integers(0, 2)) for _ in range(n))
    layout = draw(st.sampled_from(["spatial", "channel"]))
    d = draw(st.sampled_from(divisors(c if layout == "channel" else c * int(np.prod(kernel)))))
    k = min(draw(st.sampled_from([2, 16, 256, 300])), o * c * int(np.prod(kernel)) // d)
    rng, shape = np.random.default_rng(draw(st.integers(0, 999))), (o, c, *kernel)
    dense = draw(st.integers(0, 3)) == 0
    weight = rng.standard_normal(shape).astype(np.float32) if dense else packed_weight(rng, shape, d, k, layout)
    size = [draw(st.integers(1, 11 if n < 3 else 6)) for _ in range(n)]
    x = rng.standard_normal((draw(st.integers(1, 3)), c * groups, *size)).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    y = b.add(op, "x", params={"weight": weight, "bias": rng.standard_normal(o).astype(np.float32)}, **attrs)
    if draw(st.booleans()):
        roles = ("weight", "bias", "mean", "var")
        norm = {role: rng.random(o).astype(np.float32) + 0.5 for role in roles}
        y = b.add("silu", b.add("batch_norm", y, params=norm))
    try:
        return b.build({"y": y}), {"x": x}
    except PQNetError:  # the padding leaves nothing
        return None


SLOW = {"suppress_health_check": [HealthCheck.too_slow], "deadline": None}


@pytest.mark.parametrize(
    "op", ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]
)
@settings(max_examples=40, **SLOW)
@given(st.data())
def test_layers_by_every_algorithm(op, data):
    case = data.draw(layers(op))
    if case is not None:
        check_algorithms(*case)
        steps = Program(case[0], {}, Store()).segments
        assert not [s for s in steps if getattr(s, "node", None)], "a node was left to NumPy"


def one_layer(weight, size, op="conv2d", **attrs):
    x = RNG.standard_normal((1, weight.shape[1], *size)).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    return b.build({"y": b.add(op, "x", params={"weight": weight}, **attrs)}), {"x": x}


@pytest.mark.parametrize("layout, d", [("channel", 8), ("spatial", 9)])
def test_dilated_convolutions_on_small_images_become_pointwise(layout, d, monkeypatch):
    graph, inputs = one_layer(
        packed_weight(RNG, (24, 16, 3, 3), d, 16, layout), (7, 7), dilation=(12, 12), padding=(12,) * 4
    )
    found = []
    monkeypatch.setattr(Layer, "of", classmethod(spy(Layer.of.__func__, found)))
    steps = [step.kernel.name for _, _, step in Program(graph, {}, Store()).kernel_steps()]
    assert "prepare" not in steps and found[0].pointwise and found[0].codes is not None
    check_algorithms(graph, inputs)


@pytest.mark.parametrize("batch, stride, groups", [(1, 1, 1), (3, 1, 2), (2, 2, 1)])
@pytest.mark.parametrize("layout, d", [("channel", 8), ("spatial", 9), (None, 0)])
def test_taps_are_products_of_the_positions_that_see_the_image(layout, d, batch, stride, groups):
    shape = (32, 64, 3, 3)
    weight = RNG.standard_normal(shape, np.float32) if layout is None else packed_weight(RNG, shape, d, 16, layout)
    x = RNG.standard_normal((batch, 64 * groups, 14, 15)).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    attrs = {"dilation": (12, 11), "padding": (12, 11, 11, 10), "stride": (stride, stride), "groups": groups}
    y, z = (b.add("conv2d", "x", params={"weight": weight, "bias": RNG.random(32, np.float32)}, **attrs) for _ in "yz")
    graph = b.build({"y": b.add("hardswish", b.add("add", y, z))})
    program = Program(graph, {}, Store(), rule if stride == 1 else fixed("taps"))
    assert [step.kernel.name for _, _, step in program.kernel_steps()].count("add_taps") == 2
    check_algorithms(graph, {"x": x})


def test_taps_stay_together_along_an_axis_where_they_see_nearly_everything():
    graph, inputs = one_layer(
        RNG.standard_normal((16, 32, 3, 3), np.float32), (8, 40), dilation=(7, 1), padding=(7, 1) * 2
    )
    program = Program(graph, {}, Store(), fixed("taps"))
    names = [step.kernel.name for _, _, step in program.kernel_steps()]
    assert sum(name in ("gemm", "direct") for name in names) == 3
    check_algorithms(graph, inputs)


def spy(function, found):
    def wrapped(cls, *args):
        found.append(function(cls, *args))
        return found[-1]

    return wrapped


def test_a_residual_of_a_transposed_convolution():
    for stride in (1, 2):
        x = RNG.standard_normal((2, 6, 5, 7)).astype(np.float32)
        b = GraphBuilder({"x": ValueInfo(x.shape)})
        attrs = {"stride": (stride, stride), "padding": (1, 1, 1, 1)}
        y, z = (
            b.add(
                "conv_transpose2d", "x", params={"weight": packed_weight(RNG, (8, 6, 4, 4), 2, 16, "channel")}, **attrs
            )
            for _ in range(2)
        )
        check_algorithms(b.build({"y": b.add("relu", b.add("add", y, z))}), {"x": x})


SCRIPT = """
import numpy as np
import test_taps as t, test_kernel_matmul as m
from test_lowered_ops import check, floats
from pqnet.graph import GraphBuilder, ValueInfo
weight = t.packed_weight(t.RNG, (5, 4, 3, 3), 4, 16, "channel")
t.check_algorithms(*t.one_layer(weight, (3, 4), "conv_transpose2d", stride=(2, 2), padding=(1, 1, 1, 1)))
t.check_algorithms(*t.one_layer(weight, (6, 7), dilation=(5, 5), padding=(5, 5, 5, 5)))
m.product((2, 9, 5), (2, 5, 18))
m.product((1, 5), (5, 18))
m.product((7, 5), (5, 1))
x = floats((1, 2, 4, 5))
b = GraphBuilder({"x": ValueInfo(x.shape)})
outputs = {mode: b.add("interpolate", "x", size=(7, 9), mode=mode) for mode in ("nearest", "bilinear")}
outputs |= {op: b.add(op, "x", size=(3, 3)) for op in ("adaptive_avg_pool2d", "adaptive_max_pool2d")}
check(b, outputs, {"x": x})
"""


@pytest.mark.parametrize("settings_", FORCED)
def test_the_same_under_each_instruction_set_and_without_a_compiler(settings_):
    run_forced(SCRIPT, settings_)
