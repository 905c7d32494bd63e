"""Windows that are read row by row: rows of whole vectors and of parts, few outputs, images, strides, any epilogue."""

import numpy as np
import pytest
from forced import FORCED, run_forced
from test_engine import packed_weight
from test_kernel_gemm import check

from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.memory import Store
from pqnet.runtime.program import Program
from pqnet.runtime.tune import rule


def network(wide, outputs, *, groups=1, channels=4, batch=1, stride=1, tail="none", dense=False, kernel=(3, 3)):
    """Return a graph of one convolution and what may follow it, and its inputs; a row has ``wide`` results."""
    rng = np.random.default_rng(0)
    size = (5 * stride, wide * stride)
    weight = packed_weight(rng, (outputs * groups, channels, *kernel), kernel[0] * kernel[1], 8, "spatial")
    x = rng.standard_normal((batch, channels * groups, *size)).astype(np.float32)
    z = rng.standard_normal((batch, outputs * groups, 5, wide)).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(x.shape), "z": ValueInfo(z.shape)})
    padding = (kernel[0] // 2, kernel[1] // 2) * 2
    params = {"weight": weight.decode() if dense else weight}
    y = b.add("conv2d", "x", params=params, groups=groups, padding=padding, stride=(stride, stride))
    if tail != "none":
        y = b.add("add", y, "z")
        y = b.add("clamp", y, min=-0.5, max=1.0) if tail == "clamp" else b.add(tail, y)
    return b.build({"y": y}), {"x": x, "z": z}


@pytest.mark.parametrize("wide", [16, 17, 31, 56])
@pytest.mark.parametrize("outputs", [3, 4, 8, 13, 24])
def test_rows_of_any_width_and_any_number_of_outputs(wide, outputs):
    check(*network(wide, outputs), "direct")


@pytest.mark.parametrize("kernel", [(3, 1), (1, 3), (5, 1)])
@pytest.mark.parametrize("batch", [1, 2])
def test_rows_that_follow_each_other_are_one(kernel, batch):
    # A kernel of one column needs no padding beside the rows.
    check(*network(21, 6, batch=batch, kernel=kernel), "direct")


@pytest.mark.parametrize("tail", ["relu", "clamp", "silu", "hardswish"])
@pytest.mark.parametrize(("groups", "batch", "stride"), [(3, 1, 1), (1, 3, 2), (4, 2, 1)])
def test_what_follows_is_done_once_at_each_position(tail, groups, batch, stride):
    # Vectors of a row overlap, also at the border of two tasks: activations change what they are applied to twice.
    check(*network(37, 4, groups=groups, batch=batch, stride=stride, tail=tail), "direct")
    check(*network(37, 11, groups=groups, batch=batch, stride=stride, tail=tail), "direct")


@pytest.mark.parametrize("outputs", [4, 10])
def test_dense_weights_and_codes_give_the_same_bits(outputs):
    packed, dense = (check(*network(40, outputs, dense=dense), "direct") for dense in (False, True))
    np.testing.assert_array_equal(packed, dense)


@pytest.mark.parametrize(
    ("wide", "channels", "fits"),
    [(WIDTH, 4, True), (WIDTH - 1, 4, False), (60, 56, True), (60, 58, False)],  # 504 and 522 elements of a window
)
def test_it_is_for_rows_of_whole_vectors_and_reductions_in_one_piece(wide, channels, fits):
    seen = []

    def choose(layer, compute, costs):
        seen.append("direct" in costs)
        return rule(layer, compute, costs)

    Program(network(wide, 4, channels=channels)[0], {}, Store(), choose)
    assert seen == [fits]


@pytest.mark.parametrize("settings", FORCED)
def test_other_instruction_sets(settings):
    code = """
import test_kernel_direct as t
for outputs, tail in [(3, "none"), (4, "relu"), (11, "silu")]:
    for dense in (False, True):
        t.check(*t.network(21, outputs, groups=2, batch=2, tail=tail, dense=dense), "direct")
print("equal")"""
    assert run_forced(code, settings) == "equal"
