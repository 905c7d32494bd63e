"""Products of two values: which axis the lanes are, broadcasts, pieces, vectors, what follows in the same step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lowered_ops import check, floats

from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.kernels.products.tile import ROWS
from pqnet.runtime.memory import Store, Workspace
from pqnet.runtime.program import Program


def product(left, right, *, stored=(None, None)):
    """Compare a product with NumPy's; values ``stored`` with their axes in another order are permuted first."""
    orders = [order or range(len(shape)) for order, shape in zip(stored, (left, right), strict=True)]
    inputs = {
        name: floats([shape[axis] for axis in order])
        for name, order, shape in zip("xy", orders, (left, right), strict=True)
    }
    b = GraphBuilder({name: ValueInfo(array.shape) for name, array in inputs.items()})
    values = [
        b.add("permute", name, axes=tuple(int(i) for i in np.argsort(order)))
        for name, order in zip("xy", orders, strict=True)
    ]
    check(b, {"z": b.add("matmul", *values)}, inputs)


def transposed(shape):
    """Return the storage order with the columns of a matrix outside of its rows."""
    return [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]


@settings(max_examples=60)
@given(st.data())
def test_products(data):
    sizes = st.one_of(st.integers(1, 9), st.integers(1, 70))
    lead = data.draw(st.lists(st.integers(1, 3), max_size=3))
    m, k, n = (data.draw(sizes) for _ in range(3))
    shapes = []
    for matrix in ((m, k), (k, n)):
        dropped = data.draw(st.integers(0, len(lead)))
        kept = [size if data.draw(st.booleans()) else 1 for size in lead[dropped:]]
        shapes.append((*kept, *matrix))
    left, right = shapes
    left = left[1:] if len(left) == 2 and m == 1 and data.draw(st.booleans()) else left
    right = right[:1] if len(right) == 2 and n == 1 and data.draw(st.booleans()) else right
    product(left, right, stored=[data.draw(st.permutations(range(len(s)))) for s in (left, right)])


@pytest.mark.parametrize(
    "left, right",
    [
        ((3, 7, 1100), (3, 1100, 60)),  # sums in pieces
        ((130, 40), (40, 200)),  # several tasks
        ((2, 1, 900), (900, 500)),  # a vector and the columns of a matrix
        ((2, 300, 700), (2, 700, 1)),  # a vector and its rows
        ((40, 2, 9, 16), (40, 2, 16, 9)),  # several products a task
    ],
)
def test_large_and_many_products(left, right):
    product(left, right)
    product(left, right, stored=(transposed(left), transposed(right)))


def test_scale_residual_and_activation_are_computed_along():
    inputs = {"x": floats((2, 3, 20, 8)), "y": floats((2, 3, 8, 31)), "w": floats((2, 3, 8, 31))}
    b = GraphBuilder({name: ValueInfo(a.shape) for name, a in inputs.items()})
    beside = b.add("matmul", "x", "w")
    scaled = b.add("div", b.add("mul", b.add("matmul", "x", "y"), scalar=3.0), scalar=4.0)
    out = b.add("gelu", b.add("add", scaled, beside))
    vectors = b.add("matmul", b.add("slice", "x", axis=2, start=0, stop=1), "y")
    outputs = {"z": out, "v": b.add("relu", b.add("mul", vectors, scalar=0.5))}
    check(b, outputs, inputs)
    steps = [step.kernel.name for _, _, step in Program(b.build(outputs), {}, Store()).kernel_steps()]
    assert steps == ["matmul", "matmul", "vector_matmul"]


def test_rows_behind_the_last_one_are_not_read():
    """The last panel of a matrix has few rows, far apart: those behind them would lie out of the arena."""
    x, y = floats((ROWS + 1, 3)), floats((3, 50))
    inputs = {"x": np.ascontiguousarray(np.concatenate([x, floats((ROWS + 1, 4000))], 1)), "y": y}
    b = GraphBuilder({name: ValueInfo(a.shape) for name, a in inputs.items()})
    check(b, {"z": b.add("matmul", b.add("slice", "x", axis=1, start=0, stop=3), "y")}, inputs)


def test_products_see_infinities_and_nan():
    inputs = {"x": floats((4, 6)), "y": floats((6, 5))}
    inputs["x"][1, 2], inputs["x"][3, 0] = np.inf, np.nan
    inputs["y"][2] = np.abs(inputs["y"][2])
    b = GraphBuilder({name: ValueInfo(a.shape) for name, a in inputs.items()})
    graph = b.build({"z": b.add("matmul", "x", "y")})
    got = Program(graph, {}, Store()).run(inputs, Workspace(), 1)["z"]
    want = np.where(np.arange(4)[:, None] == 1, np.inf, np.full((4, 5), np.nan))
    want[::2] = inputs["x"][::2] @ inputs["y"]
    np.testing.assert_allclose(got, want, rtol=1e-5)
