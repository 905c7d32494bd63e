"""Sizes that follow from free symbols: expressions, and which axes of outputs are free."""

from typing import Any

import numpy as np
import pytest

from pqnet import PQNetError
from pqnet.graph import Graph, GraphBuilder, ValueInfo
from pqnet.graph.sizes import Size, resolve_dim
from pqnet.graph.symbols import output_signature


@pytest.mark.parametrize(
    "text",
    [
        "n",
        "12*n",
        "n//2+1",
        "-n + m",
        "(n-1)//2*2",
        "n - m - 1",
        "2*-n",
        "--n",
        "n//m//2",
        "n*(m-(2-n))",
        " 007 ",
        "-7//2",
    ],
)
def test_expressions_are_those_of_python(text: str) -> None:
    for n, m in ((1, 1), (7, 3), (10, 4)):
        assert resolve_dim(text, {"n": n, "m": m}) == eval(text.strip().lstrip("0") or "0", {"n": n, "m": m})


@pytest.mark.parametrize(
    "text",
    ["", "n m", "n/2", "n**2", "1.5", "n+", "(n", "n)", "()", "2 (n)", "n//0", "k", "+n", "0x1", "\u0662", "n%2"],
)
def test_other_expressions_are_refused(text: str) -> None:
    with pytest.raises(PQNetError, match="expected an integer expression of"):
        resolve_dim(text, {"n": 7, "m": 3})


def test_sizes_know_what_they_are_elsewhere() -> None:
    n = Size.of(6, (1, 12))
    assert isinstance(n, Size) and (n, n.elsewhere) == (6, (1, 12))
    for got, want, elsewhere in [
        ((2 * n + 1) // 3, 4, (1, 8)),
        (-(1 - n) * n, 30, (0, 132)),
        (24 // (n - 1), 4, (None, 2)),
        (7 // n - n, -5, (6, -12)),
    ]:
        assert isinstance(got, Size) and (got, got.elsewhere) == (want, elsewhere)
    assert type(4 * n // n) is int and type(n - n) is int


def network(shape: tuple[Any, ...], symbols: dict[str, int], *nodes: tuple[str, dict[str, Any]]) -> Graph:
    builder = GraphBuilder({"x": ValueInfo(shape)}, symbols)
    value = "x"
    for op, attrs in nodes:
        value = builder.add(op, value, **attrs)
    return builder.build({"y": value})


CONV = {"params": {"weight": np.ones((3, 2, 4, 1), np.float32)}}
POOL = {"kernel": (3, 3), "stride": (2, 2), "ceil_mode": True}


@pytest.mark.parametrize(
    ("graph", "shape"),
    [
        (network(("n", 4), {"n": 5}, ("slice", {"axis": 0, "stop": "n//2+1"})), (None, 4)),
        (network(("n", 4), {"n": 2000}, ("slice", {"axis": 0, "stop": "n//1000"})), (None, 4)),
        (network(("n", 4), {"n": 5}, ("slice", {"axis": 0, "stop": "n-n+2"})), (None, 4)),  # 1 of 1
        (network(("n", 4), {"n": 5}, ("slice", {"axis": 0, "stop": 1})), (1, 4)),
        (network(("n", 4), {"n": 2}, ("slice", {"axis": 0, "stop": 2})), (None, 4)),
        (network(("n", 4), {"n": 1}, ("slice", {"axis": 0, "start": -2})), (None, 4)),
        (network(("n", 4), {"n": 5}, ("reshape", {"shape": ("n", -1, 2)})), (None, 2, 2)),
        (network(("n", 4), {"n": 5}, ("reshape", {"shape": (2, -1)})), (2, None)),
        (network(("n", 4), {"n": 3}, ("expand", {"shape": ("2*n", "n", 4)})), (None, None, 4)),
        (network((1, 2, "h", "w"), {"h": 9, "w": 7}, ("avg_pool2d", POOL)), (1, 2, None, None)),
        (network((1, 2, "h", 4), {"h": 9}, ("conv2d", CONV), ("slice", {"axis": 2, "stop": 1})), (1, 3, 1, 4)),
        (network(("n", 5), {"n": 4}, ("reshape", {"shape": (4, 5)})), (4, 5)),  # takes no other n
        (network(("n", 1), {"n": 1}, ("expand", {"shape": ("n", 3)})), (None, 3)),
        (network(("n",), {"n": 1}, ("add", {"scalar": 1.0}), ("expand", {"shape": (2, "n")})), (2, None)),
        (network((2, 3), {}, ("relu", {})), (2, 3)),
    ],
)
def test_free_axes_of_outputs(graph: Graph, shape: tuple[int | None, ...]) -> None:
    assert output_signature(graph) == {"y": (shape, "float32")}


def test_constant_sizes_meet_free_ones() -> None:
    builder = GraphBuilder({"x": ValueInfo(("n", 4)), "z": ValueInfo(("m", 4))}, {"n": 1, "m": 3})
    table = builder.add("constant", params={"value": np.ones((5, 4), np.float32)})
    positions = builder.add("slice", table, axis=0, stop="m")
    outputs = {"a": builder.add("add", "x", table), "b": builder.add("add", "z", positions)}
    outputs["c"] = builder.add("concat", "x", "z", axis=0)
    outputs["d"] = builder.add("argmax", "x", axis=0)
    assert output_signature(builder.build(outputs)) == {
        "a": ((5, 4), "float32"),
        "b": ((None, 4), "float32"),
        "c": ((None, 4), "float32"),
        "d": ((4,), "int64"),
    }
