"""Packed weights for as many positions as a vector has lanes: against NumPy, and where they are taken."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import check_algorithms, packed_weight

from pqnet.graph import Graph, GraphBuilder, ValueInfo
from pqnet.kernels.simd import ISA
from pqnet.runtime.memory import Store
from pqnet.runtime.program import Program

LANES = ISA == "avx512"


def layer(
    positions: int, outputs: int, channels: int, groups: int, d: int, k: int
) -> tuple[Graph, dict[str, np.ndarray]]:
    """Return a pointwise convolution and an activation behind it that takes time."""
    rng = np.random.default_rng(positions + outputs)
    x = rng.standard_normal((1, channels * groups, 1, positions)).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    shape = (outputs * groups, channels, 1, 1)
    bias = rng.standard_normal(outputs * groups).astype(np.float32)
    weight = packed_weight(rng, shape, d, min(k, outputs * groups * channels // d), "channel")
    y = b.add("conv2d", "x", params={"weight": weight, "bias": bias}, groups=groups)
    return b.build({"y": b.add("gelu", y)}), {"x": x}


@settings(max_examples=15)
@given(
    st.integers(1, 17),
    st.integers(1, 50),
    st.integers(1, 5),
    st.sampled_from([1, 1, 2]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([16, 256, 300]),
)
def test_layers_of_as_many_positions_as_lanes(
    positions: int, outputs: int, blocks: int, groups: int, d: int, k: int
) -> None:
    seen = check_algorithms(*layer(positions, outputs, blocks * d, groups, d, k))
    assert any("lanes" in algorithms for algorithms in seen) == (LANES and d > 1 and positions <= 16)


@pytest.mark.parametrize("outputs, inputs, d", [(384, 384, 8), (384, 1536, 8), (768, 768, 4)])
def test_sentences_take_them(outputs: int, inputs: int, d: int) -> None:
    rng = np.random.default_rng(0)
    b = GraphBuilder({"x": ValueInfo((1, 12, inputs))})
    weight = packed_weight(rng, (outputs, inputs), d, 256, "channel")
    program = Program(b.build({"y": b.add("linear", "x", params={"weight": weight})}), {}, Store())
    assert ([step.algorithm for _, _, step in program.kernel_steps()] == ["lanes"]) == LANES
