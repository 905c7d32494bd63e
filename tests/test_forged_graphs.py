"""Files with the right digest whose networks make no sense: refused with one error, or run as NumPy runs them."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forge import document_of, forge
from random_graphs import random_graph, reference, same

import pqnet
from pqnet import Model, PQNetError
from pqnet.graph import Graph, GraphBuilder, ValueInfo
from pqnet.graph.graph import Node
from pqnet.graph.op import OPS, REQUIRED
from pqnet.graph.symbols import output_signature

X, Y = (2, 4, 6, 6), (2, 3)
INTEGERS = (0, 1, 2, 3, 7, -1, -2, 1 << 24, 1 << 31, 1 << 40, -(1 << 62), (1 << 63) - 1)
OTHERS = (None, True, False, 0.5, 1e300, "nan", "-inf", "", "n", "2*n", "n//2", "n-1", "n//0", "\ufb01", [], [1, 1], {})
LARGEST = 1 << 20  # elements of a value that a test is ready to compute


def one_node(size: tuple[Any, ...], op: str, params: dict[str, Any] | None = None, **attrs: Any) -> Graph:
    builder = GraphBuilder({"x": ValueInfo(size)}, {d: 2 for d in size if isinstance(d, str)})
    return builder.build({"y": builder.add(op, "x", params=params, **attrs)})


def weight(*shape: int) -> dict[str, np.ndarray]:
    return {"weight": np.ones(shape, np.float32)}


@pytest.mark.parametrize(
    ("size", "op", "params", "attrs", "match"),
    [
        (X, "conv2d", weight(5, 4, 0, 3), {}, "weight: expected at least one output, channel and tap"),
        (X, "conv2d", weight(4, 1, 3, 0), {"groups": 4}, "weight: expected at least one output, channel and tap"),
        (X, "conv2d", weight(0, 4, 3, 3), {}, "weight: expected at least one output, channel and tap"),
        ((2, 0, 6, 6), "conv2d", weight(5, 0, 3, 3), {}, "weight: expected at least one output, channel and tap"),
        (X, "conv_transpose2d", weight(5, 4, 0, 3), {}, "weight: expected at least one output, channel and tap"),
        (Y, "linear", weight(0, 3), {}, "weight: expected at least one number"),
        ((2, 0), "linear", weight(5, 0), {}, "weight: expected at least one number"),
        (X, "conv2d", weight(5, 4, 3, 3), {"padding": (1 << 62, 0, 0, 0)}, "padding: expected ints of length 4 from"),
        (X, "conv2d", weight(5, 4, 1, 1), {"stride": (1 << 25, 1)}, "stride: expected ints of length 2 from"),
        (
            X,
            "conv2d",
            weight(5, 4, 1, 1),
            {"groups": True},
            "groups: expected int from -16777216 to 16777216, got b",
        ),
        (X, "conv2d", weight(5, 4, 3, 3), {"padding": (1 << 24,) * 4}, "expected at most 1099511627776 elements"),
        (Y, "expand", None, {"shape": (1,) * 38 + Y}, "expected at most 32 axes, got 40"),
        (Y, "reshape", None, {"shape": (1,) * 68 + Y}, "expected at most 32 axes, got 70"),
        (Y, "slice", None, {"axis": 1, "step": 1 << 62}, "step: expected int from"),
        (Y, "slice", None, {"axis": 1, "stop": 1 << 64}, "stop: expected dim"),
        (("n", 3), "expand", None, {"shape": ("n*0+10**12", "n", 3)}, "expected an integer expression"),
        (("n", 3), "expand", None, {"shape": ("n*1000000000000", "n", 3)}, "expected at most 1099511627776 elements"),
        (("n", 3), "expand", None, {"shape": ("*".join(["9999999999"] * 9), "n", 3)}, "expected a number of 62 bits"),
        (("n", 3), "slice", None, {"axis": 0, "stop": "n//(n-n)"}, "expected an integer expression"),
        (("n", 3), "slice", None, {"axis": 0, "stop": "n" * 1001}, "expected a short integer expression"),
        (Y, "mul", None, {"scalar": 10**400}, "scalar: expected number"),
        ((1 << 41, 3), "relu", None, {}, "input 'x': expected at most 1099511627776 elements"),
        ((True, 3), "relu", None, {}, "input 'x': expected sizes that are numbers or names of free symbols, got bool"),
        ((2.0, 3), "relu", None, {}, "input 'x': expected sizes that are numbers or names of free symbols, got float"),
    ],
)
def test_impossible_sizes_are_refused_when_a_graph_is_made(
    size: tuple[Any, ...], op: str, params: Any, attrs: dict[str, Any], match: str
) -> None:
    with pytest.raises(PQNetError, match=match):
        one_node(size, op, params, **attrs)


def test_parameters_of_foreign_byte_order_are_refused() -> None:
    with pytest.raises(PQNetError, match="parameter 'linear.weight': expected a float32"):
        one_node(Y, "linear", {"weight": np.ones((4, 3), ">f4")})


@pytest.mark.parametrize("symbols", [{}, {"n": 0}, {"n": 2.0}, {"n": True}, {"n": 1 << 41}, {"n": 2, "m": 2}])
def test_symbols_need_a_size_and_a_place_in_the_inputs(symbols: dict[str, Any]) -> None:
    node = Node("relu", "r", ("x",), ("r",))
    with pytest.raises(PQNetError, match="symbol"):
        Graph({"x": ValueInfo(("n", 3))}, {"y": "r"}, [node], {}, symbols).validate()


def test_symbols_are_their_characters() -> None:
    """Python's parser takes the ligature for the two letters, and True for a number."""
    for one, other in (("\ufb01", "fi"), ("True", "x"), ("if", "\u00aa")):
        builder = GraphBuilder({"x": ValueInfo((one, 3)), "z": ValueInfo((other, 3))}, {one: 2, other: 2})
        y = builder.add("slice", "x", axis=0, stop=f"{one}*2 - {one}")
        z = builder.add("slice", "z", axis=0, stop=f"({other}//1)")
        model = Model(builder.build({"y": y, "z": z}))
        got = model.run({"x": np.ones((1, 3), np.float32), "z": np.ones((5, 3), np.float32)})
        assert {name: array.shape for name, array in got.items()} == {"y": (1, 3), "z": (5, 3)}


# -- random forgeries ------------------------------------------------------------------------------------------


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) below a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in ((value, key), *places(item))]


def forged(rng: np.random.Generator, header: dict[str, Any]) -> dict[str, Any]:
    """Return a header that differs in one to three places, most of them attributes of nodes."""
    header = copy.deepcopy(header)
    for _ in range(rng.choice([1, 1, 2, 3])):
        some = everywhere = places(header)
        if not everywhere:
            break
        nodes = header.get("nodes")
        if rng.random() < 0.7 and isinstance(nodes, list) and nodes:
            node = nodes[rng.integers(len(nodes))]
            if isinstance(node, dict) and str(node.get("op")) in OPS and isinstance(node.setdefault("attrs", {}), dict):
                fitting = {n: a.default for n, a in OPS[node["op"]].attrs.items() if a.default is not REQUIRED}
                node["attrs"] = json.loads(json.dumps(fitting)) | node["attrs"]
                some = places(node["attrs"]) or everywhere
        container, key = some[rng.integers(len(some))]
        change(rng, container, key, everywhere)
    return header


def change(rng: np.random.Generator, container: Any, key: Any, everywhere: list[tuple[Any, Any]]) -> None:
    source, other = everywhere[rng.integers(len(everywhere))]
    old, way = container[key], rng.random()
    if type(old) is bool and way < 0.7:
        container[key] = not old
    elif isinstance(old, int) and way < 0.9:
        container[key] = old + int(rng.integers(-2, 3)) if way < 0.6 else INTEGERS[rng.integers(len(INTEGERS))]
    elif isinstance(old, float) and way < 0.8:
        container[key] = [0.0, -1.0, 1e30, 1e-30, 3, "inf", "nan"][rng.integers(7)]
    elif isinstance(old, str) and way < 0.8:
        strings = [c[k] for c, k in everywhere if isinstance(c[k], str)]
        container[key] = strings[rng.integers(len(strings))]
    elif isinstance(container, list) and way < 0.5:
        container.insert(int(rng.integers(len(container) + 1)), copy.deepcopy(old))
    elif way < 0.6:
        del container[key]
    elif way < 0.8:
        container[key] = copy.deepcopy(source[other])
    else:
        container[key] = copy.deepcopy(OTHERS[rng.integers(len(OTHERS))])


def magnitude(array: np.ndarray) -> float:
    """Return the largest magnitude of an array, infinite where it is not a number."""
    if array.dtype != np.float32:
        return 0.0
    return float(np.abs(np.nan_to_num(array, nan=np.inf)).max(initial=0))


def has_denormals(array: np.ndarray) -> bool:
    """Tell whether numbers of an array are so small that they have fewer digits."""
    return array.dtype == np.float32 and bool(((array != 0) & (np.abs(array) < np.finfo(np.float32).tiny)).any())


def attempt(path: Path, rng: np.random.Generator) -> str:
    """Load a file and run its network; say what came of it, and raise if it is neither refused nor right."""
    try:
        model = pqnet.load(path)
    except PQNetError:
        return "refused"
    infos = model.graph.infer_shapes(model.graph.symbols)
    signature = output_signature(model.graph)
    if max(math.prod(info.shape) for info in infos.values()) > LARGEST:
        return "too large to run here"
    inputs = {}
    for name in model.graph.inputs:
        shape, dtype = infos[name]
        draw = rng.standard_normal(shape) if dtype == "float32" else rng.integers(0, 2, shape)
        inputs[name] = np.asarray(draw, dtype)
    try:
        want = reference(model.graph, inputs)
    except PQNetError:  # indices without a row
        with pytest.raises(PQNetError):
            model.run(inputs)
        return "refused its inputs"
    got = model.run(inputs)
    moved = {
        n: np.asarray(a * np.float32(1 + 1e-6), a.dtype) if a.dtype == np.float32 else a for n, a in inputs.items()
    }
    values = {value: value for node in model.graph.nodes for value in node.outputs}
    inner = reference(replace(model.graph, outputs=values), inputs).values()
    largest = max(map(magnitude, inner), default=0)
    if any(map(has_denormals, inner)):  # which count as zero here
        largest = np.inf
    near = reference(model.graph, moved)
    for name, array in want.items():
        assert (got[name].shape, got[name].dtype) == (array.shape, array.dtype), name
        shape, dtype = signature[name]
        assert dtype == array.dtype and all(a in (None, b) for a, b in zip(shape, array.shape, strict=True)), name
        if largest < 1e6 and same(near[name], array):
            assert same(got[name], array), name
    return "run"


@pytest.mark.parametrize("seed", range(5))
def test_forged_networks_are_refused_or_run_right(seed: int, tmp_path: Path) -> None:
    outcomes = set()
    for i in range(seed * 10, seed * 10 + 10):
        rng = np.random.default_rng(i)
        Model(random_graph(i)[0]).save(tmp_path / "good.h5")
        document, vectors = document_of(tmp_path / "good.h5")
        for _ in range(8):
            header = forged(rng, document["header"])
            outcomes.add(attempt(forge(tmp_path / "bad.h5", document | {"header": header}, vectors), rng))
    assert {"refused", "run"} <= outcomes
