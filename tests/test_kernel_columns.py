"""Float weights for a few positions: against NumPy, with all that follows a layer."""

import numpy as np
import pytest
from forced import FORCED, run_forced
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import check_algorithms

from pqnet.graph import Graph, GraphBuilder, ValueInfo


def layer(
    batch: int, size: int, groups: int, outputs: int, channels: int, tail: int, act: str
) -> tuple[Graph, dict[str, np.ndarray]]:
    """Return a 2 x 1 convolution to ``size`` rows of pixels, with a norm, a sum and an activation behind it."""
    rng = np.random.default_rng(batch + size + outputs)

    def numbers(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    x = {"x": numbers(batch, channels * groups, size + 1, 1), "z": numbers(batch, outputs * groups, size, 1)}
    b = GraphBuilder({name: ValueInfo(array.shape) for name, array in x.items()})
    params = {"weight": numbers(outputs * groups, channels, 2, 1), "bias": numbers(outputs * groups)}
    y = b.add("conv2d", "x", params=params, groups=groups)
    if tail % 2:
        y = b.add(
            "batch_norm",
            y,
            params={"mean": numbers(outputs * groups), "weight": numbers(outputs * groups)}
            | {"var": rng.uniform(0.5, 2, outputs * groups).astype(np.float32)},
        )
    limits = {"min": -0.5} if act == "clamp" else {}
    y = b.add("add", y, "z") if tail >= 2 else b.add("mul", b.add(act, y, **limits), "z")
    return b.build({"y": b.add(act, y, **limits)}), x


@settings(max_examples=40)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 110),
    st.integers(1, 30),
    st.integers(0, 3),
    st.sampled_from(["relu", "hardswish", "clamp"]),
)
def test_layers_of_few_positions(
    batch: int, size: int, groups: int, outputs: int, channels: int, tail: int, act: str
) -> None:
    seen = check_algorithms(*layer(batch, size, groups, outputs, channels, tail, act))
    depthwise = outputs == channels == 1 and groups > 1
    assert any("columns" in algorithms for algorithms in seen) == (batch * size <= 4 and not depthwise)


def test_outputs_of_several_tasks() -> None:
    for batch in (1, 3):
        check_algorithms(*layer(batch, 1, 2, 1000, 90, 2, "relu"))


SCRIPT = """
from test_kernel_columns import check_algorithms, layer
for batch in (1, 2):
    for tail in (1, 3):
        check_algorithms(*layer(batch, 2, 2, 13, 5, tail, "hardswish"))
        check_algorithms(*layer(batch, 1, 1, 53, 3, tail, "relu"))
"""


@pytest.mark.parametrize("settings_", FORCED)
def test_the_same_under_each_instruction_set_and_without_a_compiler(settings_: dict[str, str]) -> None:
    run_forced(SCRIPT, settings_)
