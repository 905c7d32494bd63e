"""Model files: graphs and golden records come back as they were, and no forged model passes or crashes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forge import document_of, forge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pqnet.codecs import PQ, Packed, PackedPQ
from pqnet.errors import FormatError, PQNetError, UnsupportedOpError
from pqnet.graph import OPS, Graph, GraphBuilder, ValueInfo
from pqnet.io import Golden, load_graph, save_graph, write_container


def pack(rng: np.random.Generator, shape: tuple[int, ...], codec: PQ) -> PackedPQ:
    codec = codec.check(shape)
    m = int(np.prod(shape[1:])) // codec.d
    return PackedPQ(
        codec, shape, rng.integers(0, codec.k, (shape[0], m)), rng.standard_normal((codec.k, codec.d)) * 0.1
    )


def conv_net() -> Graph:
    """Parameters dense, packed, shared, float16 and bool; attributes of many kinds; two inputs and two outputs."""
    rng = np.random.default_rng(0)
    b = GraphBuilder(
        {"x": ValueInfo(("batch", 3, 8, 8)), "ids": ValueInfo(("batch", "length"), "int64")},
        {"batch": 2, "length": 3},
    )
    y = b.add(
        "conv2d",
        "x",
        name="stem",
        params={"weight": pack(rng, (8, 3, 3, 3), PQ(6, 9)), "bias": np.float16([0.5] * 8)},
        padding=(1, 1, 1, 1),
    )
    y = b.add("conv2d", y, name="c/2", params={"weight": pack(rng, (8, 8, 1, 1), PQ(16, 4, "channel", "float32"))})
    y = b.add("clamp", y, min=-1.5)
    z = b.add("reshape", y, shape=("batch", 512))
    z = b.add("linear", z, name="fc", params={"weight": rng.standard_normal((5, 512)).astype(np.float16)})
    e = b.add("embedding", "ids", name="table", params={"weight": pack(rng, (10, 8), PQ(3, 4))})
    e = b.add("add", e, b.add("embedding", "ids", name="again", params={"weight": "table.weight"}))
    mask = b.add("constant", name="mask", params={"value": np.array([True] * 8)})
    e = b.add("where", mask, e, b.add("full", name="low", shape=(8,), value=-np.inf, dtype="float32"))
    return b.build({"logits": z, "words": e}, {"labels": ["a", "ß"], "recipe": {"k": 256}, "note": None})


def assert_equal_graphs(a: Graph, b: Graph) -> None:
    assert (a.inputs, a.outputs, a.nodes, a.symbols, a.meta) == (b.inputs, b.outputs, b.nodes, b.symbols, b.meta)
    assert list(a.inputs) == list(b.inputs) and list(a.outputs) == list(b.outputs)
    assert set(a.params) == set(b.params)
    for name, p in a.params.items():
        q = b.params[name]
        if isinstance(p, Packed):
            assert p == q
        else:
            assert isinstance(q, np.ndarray) and p.dtype == q.dtype and np.array_equal(p, q)


def golden_of(graph: Graph) -> Golden:
    infos = graph.infer_shapes({"batch": 1, "length": 2})
    golden = Golden.draw({n: ValueInfo(infos[n].shape, infos[n].dtype) for n in graph.inputs}, seed=3)
    return golden.with_outputs({n: np.ones(infos[v].shape, infos[v].dtype) for n, v in graph.outputs.items()})


def test_graphs_come_back_as_they_were(tmp_path: Path) -> None:
    graph = conv_net()
    save_graph(tmp_path / "a.h5", graph)
    back, golden = load_graph(tmp_path / "a.h5")
    assert golden is None
    assert_equal_graphs(graph, back)
    save_graph(tmp_path / "b.h5", back)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_nodes_are_stored_without_defaults(tmp_path: Path) -> None:
    save_graph(tmp_path / "a.h5", conv_net())
    nodes = document_of(tmp_path / "a.h5")[0]["header"]["nodes"]
    assert nodes[0]["attrs"] == {"padding": [1, 1, 1, 1]}
    assert set(nodes[1]) == {"op", "name", "inputs", "outputs", "params"}
    assert nodes[2] == {
        "op": "clamp",
        "name": "clamp",
        "inputs": ["c/2"],
        "outputs": ["clamp"],
        "attrs": {"min": -1.5},
    }
    assert next(n for n in nodes if n["op"] == "full")["attrs"]["value"] == "-inf"


def test_golden_records_come_back_as_they_were(tmp_path: Path) -> None:
    graph = conv_net()
    golden = golden_of(graph)
    save_graph(tmp_path / "a.h5", graph, golden)
    back_graph, back = load_graph(tmp_path / "a.h5")
    assert_equal_graphs(graph, back_graph)
    assert back is not None and (back.seed, back.shapes) == (3, {"x": (1, 3, 8, 8)})
    for one, two in (
        (golden.inputs(), back.inputs()),
        (golden.outputs, back.outputs),
        (back.inputs(), back.inputs()),
    ):
        assert set(one) == set(two) and all(np.array_equal(one[n], two[n]) for n in one)
    assert {n: (a.shape, a.dtype.name) for n, a in back.inputs().items()} == {
        "x": ((1, 3, 8, 8), "float32"),
        "ids": ((1, 2), "int64"),
    }
    save_graph(tmp_path / "b.h5", back_graph, back)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_golden_inputs_are_those_of_numpy() -> None:
    golden = Golden.draw({"b": ValueInfo((2, 3)), "a": ValueInfo((4,)), "m": ValueInfo((2,), "bool")}, 7)
    rng = np.random.default_rng(7)
    assert np.array_equal(golden.inputs()["b"], rng.standard_normal((2, 3), dtype=np.float32))
    assert np.array_equal(golden.inputs()["a"], rng.standard_normal(4, dtype=np.float32))
    assert golden.inputs()["m"].tolist() == [True, True]
    given = Golden.draw({"b": ValueInfo((2, 3)), "ids": ValueInfo((2,), "int64")}, arrays={"b": np.ones((2, 3))})
    assert not given.shapes and given.seed is None and given.inputs()["ids"].tolist() == [0, 0]  # for any table


@pytest.mark.parametrize(
    ("got", "want", "difference"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([0.25, 0.0], [0.0, 0.0], 0.25),
        ([1.0, np.nan, np.inf], [2.0, np.nan, np.inf], 0.5),
        ([1.0, np.nan], [np.nan, 1.0], np.inf),
        ([1.0, np.nan], [1.0, 1.0], np.inf),
        ([1.0, np.inf], [1.0, -np.inf], np.inf),
        ([1.0, 1e30], [1.0, np.inf], np.inf),
        ([True, False], [True, True], 1.0),
        ([], [], 0.0),
    ],
)
def test_largest_difference(got: list[float], want: list[float], difference: float) -> None:
    golden = Golden({}).with_outputs({"y": np.array(want), "z": np.ones(2)})
    assert golden.largest_difference({"z": np.ones(2), "y": np.array(got)}) == difference


def test_largest_difference_of_other_outputs() -> None:
    golden = Golden({}).with_outputs({"y": np.ones((2, 3))})
    with pytest.raises(PQNetError, match=r"outputs: expected the names \['y'\], got \['z'\]"):
        golden.largest_difference({"z": np.ones((2, 3))})
    with pytest.raises(PQNetError, match=r"output 'y': expected shape \(2, 3\), got \(3,\)"):
        golden.largest_difference({"y": np.ones(3)})


def test_unusable_golden_records(tmp_path: Path) -> None:
    graph = conv_net()
    good = golden_of(graph)
    x, ids = np.ones((1, 3, 8, 8), np.float32), np.ones((1, 2), np.int64)
    for golden, message in [
        (Golden({}, None, {"x": x}, good.outputs), r"golden: expected the inputs \['ids', 'x'\], each once"),
        (Golden({"x": x.shape}, 0, {"x": x, "ids": ids}, good.outputs), "each once"),
        (Golden({"x": x.shape}, 0, {"ids": ids}), r"golden: expected the outputs .*fill in .outputs"),
        (Golden({"x": x.shape}, 0, {"ids": ids}, {"other": x}), r"golden: expected the outputs \['logits'.*'other'"),
        (Golden({"x": (1, 3, 8)}, 0, {"ids": ids}, good.outputs), "input 'x': expected shape"),
        (Golden({}, None, {"x": x, "ids": ids.astype(bool)}, good.outputs), "golden input 'ids': expected int64"),
        (
            Golden({"x": x.shape}, 0, {"ids": ids}, good.outputs | {"logits": x}),
            "golden output 'logits': expected",
        ),
    ]:
        with pytest.raises(PQNetError, match=message):
            save_graph(tmp_path / "a.h5", graph, golden)
    assert not list(tmp_path.iterdir())
    for shape, name in (((17, 3, 8, 8), "x"), ((3, 8, 8), "x"), ((1, 3, 8, 8), "y")):
        with pytest.raises(PQNetError, match=r"golden.images: expected inputs of shape \(N, C, H, W\), N at most 16"):
            Golden({"x": shape}, 0, images=[name])
    with pytest.raises(PQNetError, match=r"golden.seed: expected an integer"):
        Golden({"x": (1,)})
    with pytest.raises(PQNetError, match=r"golden.shapes: expected at most 268435456 numbers"):
        Golden({"x": (1 << 20, 1 << 20)}, 0)
    with pytest.raises(PQNetError, match="golden array 'x': expected an array, got list"):
        Golden({}, None, {"x": [1]})  # type: ignore[dict-item]
    with pytest.raises(PQNetError, match=r"inputs\['x'\].shape: expected an integer"):
        Golden.draw({"x": ValueInfo(("batch", 3))})


def test_graphs_that_cannot_be_saved(tmp_path: Path) -> None:
    graph = conv_net()
    for change, message in [
        ({"nodes": graph.nodes[:-1]}, "value 'where' is not defined"),
        ({"symbols": {"batch": 0, "length": 3}}, "symbol 'batch': expected an integer"),
        (
            {"symbols": {"batch": 2, "length": 3, "a b": 1}},
            "symbols: expected a size that works for each of",
        ),
        ({"meta": {"x": np.ones(3)}}, "header key 'x': expected plain data"),
        ({"meta": None}, "header.meta: expected dict"),
    ]:
        with pytest.raises(PQNetError, match=message):
            save_graph(tmp_path / "a.h5", replace(graph, **change))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def resnet50() -> Graph:
    """ResNet-50 with packed weights at 3x3: d=9, 1x1: d=4, K=256 and raw batch norms."""
    rng = np.random.default_rng(0)
    b = GraphBuilder({"input": ValueInfo(("batch", 3, 64, 64))}, {"batch": 2})

    def conv(x: str, name: str, norm: str, o: int, c: int, k: int, stride: int = 1) -> str:
        weight = pack(rng, (o, c, k, k), PQ(256, {1: 4, 3: 9, 7: 7}[k]))
        x = b.add("conv2d", x, name=name, params={"weight": weight}, stride=(stride,) * 2, padding=(k // 2,) * 4)
        vectors = {role: rng.random(o, np.float32) for role in ("weight", "bias", "mean", "var")}
        return b.add("batch_norm", x, name=norm, params=vectors)

    x = b.add("relu", conv("input", "conv1", "bn1", 64, 3, 7, 2))
    x = b.add("max_pool2d", x, kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        width = 32 << stage
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = b.add("relu", conv(x, f"{name}.conv1", f"{name}.bn1", width, channels, 1))
            y = b.add("relu", conv(y, f"{name}.conv2", f"{name}.bn2", width, width, 3, stride))
            y = conv(y, f"{name}.conv3", f"{name}.bn3", 4 * width, width, 1)
            if block == 0:
                x = conv(x, f"{name}.downsample.0", f"{name}.downsample.1", 4 * width, channels, 1, stride)
            x, channels = b.add("relu", b.add("add", y, x)), 4 * width
    x = b.add("reshape", b.add("adaptive_avg_pool2d", x, size=(1, 1)), shape=("batch", 2048))
    fc = {"weight": pack(rng, (1000, 2048), PQ(2048, 4)), "bias": np.zeros(1000, np.float32)}
    return b.build(
        {"output": b.add("linear", x, name="fc", params=fc)}, {"labels": [f"class {i}" for i in range(1000)]}
    )


def test_a_resnet50_takes_hardly_more_than_its_arrays(tmp_path: Path) -> None:
    graph = resnet50()
    save_graph(tmp_path / "a.h5", graph)
    arrays = sum(p.nbytes for p in graph.params.values())
    assert len(graph.params) == 267 and 5e6 < arrays < 7e6
    assert 0 < (tmp_path / "a.h5").stat().st_size - arrays < 16_000
    assert_equal_graphs(graph, load_graph(tmp_path / "a.h5")[0])


# -- forged models -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, bytes]]:
    path = tmp_path_factory.mktemp("model") / "model.h5"
    graph = conv_net()
    save_graph(path, graph, golden_of(graph))
    return document_of(path)


def set_at(document: Any, path: str, value: Any) -> Any:
    """Return a copy of JSON data with one place changed; the value DELETE removes it."""
    document = json.loads(json.dumps(document))
    *parents, last = (int(p) if p.isdigit() else p for p in path.split(">"))
    place = document
    for parent in parents:
        place = place[parent]
    if value is DELETE:
        del place[last]
    else:
        place[last] = value
    return document


DELETE = object()
STEM = "header>params>stem.weight"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("header>inputs", DELETE, "header: expected the keys"),
        ("header>more", 1, "header: expected the keys"),
        ("header>params", DELETE, "params: expected a JSON object"),
        ("header>inputs", [], "header.inputs: expected dict, got list"),
        ("header>inputs", {}, "expected inputs and outputs, got 0"),
        ("header>inputs>x", [], "input 'x': expected a JSON object"),
        ("header>inputs>x>more", 1, "input 'x': expected the keys"),
        ("header>inputs>x>dtype", "float64", "input 'x': expected dtype"),
        ("header>inputs>x>shape", 3, "input 'x'.shape: expected list"),
        ("header>inputs>x>shape>1", -3, "input 'x': expected sizes or symbols"),
        ("header>inputs>x>shape>1", True, "input 'x': expected sizes or symbols"),
        ("header>inputs>x>shape>1", [3], "input 'x': expected sizes or symbols"),
        ("header>inputs>x>shape>1", "other", "input 'x': expected sizes or symbols"),
        ("header>inputs>x>shape>1", 1 << 50, "input 'x': expected sizes or symbols"),
        ("header>inputs>x>shape", ["batch"], "expected 4 axes"),
        ("header>outputs>logits", "nothing", "value 'nothing' is not defined"),
        ("header>outputs>logits", 1, "output 'logits': expected a str"),
        ("header>outputs", {"": "fc"}, "name: expected a str of 1"),
        ("header>symbols>batch", 0, "symbol 'batch': expected an integer"),
        ("header>symbols>batch", 1.5, "symbol 'batch': expected an integer"),
        ("header>symbols", {"batch": 1}, "expected sizes or symbols among"),
        ("header>meta", 1, "header.meta: expected dict"),
        ("header>nodes", {}, "header.nodes: expected list"),
        ("header>nodes>0", 1, r"nodes\[0\]: expected a JSON object"),
        ("header>nodes>0>more", 1, r"nodes\[0\]: expected the keys"),
        ("header>nodes>0>name", "a\nb", r"nodes\[0\].name: expected a str"),
        ("header>nodes>0>op", ["conv2d"], r"nodes\[0\].op: expected str"),
        ("header>nodes>0>inputs", "x", r"nodes\[0\].inputs: expected list"),
        ("header>nodes>0>inputs", [1], "node 'stem': input: expected a str"),
        ("header>nodes>0>inputs", ["x", "x"], "expected 1 to 1 inputs"),
        ("header>nodes>0>outputs", ["stem", "b"], "expected 1 outputs, got 2"),
        ("header>nodes>0>outputs", [None], "node 'stem': output: expected a str"),
        ("header>nodes>0>params>weight", 1, "node 'stem': weight: expected a str"),
        ("header>nodes>0>params>weight", "x", "parameter 'x' is not in the graph"),
        ("header>nodes>0>params>weights", "stem:weight", "unknown parameter roles"),
        ("header>nodes>0>attrs>padding", [1, 1], "conv2d.padding: expected ints of length 4"),
        ("header>nodes>0>attrs>padding", [1, 1, 1, -1], "non-negative padding"),
        ("header>nodes>0>attrs>padding", "1111", "conv2d.padding: expected ints"),
        ("header>nodes>0>attrs>groups", 1.0, "conv2d.groups: expected int"),
        ("header>nodes>0>attrs>groups", 0, "at least 1"),
        ("header>nodes>0>attrs>colour", 1, "unknown attributes"),
        ("header>nodes>2>attrs>min", "low", "clamp.min: expected number"),
        ("header>nodes>2>attrs>min", {}, "clamp.min: expected number"),
        ("header>nodes>3>attrs>shape>0", "batch**9", "expected an integer expression"),
        ("header>nodes>3>attrs>shape>0", "(" * 1100, "expected a short integer expression"),
        ("header>nodes>3>attrs>shape", [-7, 7], "."),
        (STEM, 1, "parameter 'stem.weight': expected a JSON object"),
        (STEM, None, "parameter 'stem.weight': expected an array 'values', got .'codebook', 'codes'"),
        (STEM + ">more", 1, "parameter 'stem.weight': expected the keys"),
        (STEM + ">shape", [8, 3, 3], "parameter 'stem.weight': "),
        (STEM + ">shape", [8, 3, 3, -3], "parameter 'stem.weight': expected a shape"),
        (STEM + ">shape", [8, 3, 3, 0], "parameter 'stem.weight': .*no empty axes"),
        (STEM + ">shape", [8, 3, 3, 6], "parameter 'stem.weight': codes: expected"),
        (STEM + ">shape>0", 1 << 40, "parameter 'stem.weight': codes: expected"),
        (STEM + ">codec", "pq", "parameter 'stem.weight'.codec: expected dict"),
        (STEM + ">codec>codec", "zip", "parameter 'stem.weight': codec: expected one of"),
        (STEM + ">codec>codec", ["pq"], "parameter 'stem.weight': expected the name of a codec"),
        (STEM + ">codec>codec", DELETE, "parameter 'stem.weight': expected the name of a codec"),
        (STEM + ">codec>k", 8, "parameter 'stem.weight': codebook: expected shape"),
        (STEM + ">codec>k", 1 << 40, "parameter 'stem.weight': codec .*PQ.k"),
        (STEM + ">codec>d", 0, "parameter 'stem.weight': codec .*PQ.d"),
        (STEM + ">codec>layout", "rows", "parameter 'stem.weight': codec .*PQ.layout"),
        (STEM + ">codec>colour", "red", "parameter 'stem.weight': codec .*colour"),
        (STEM + ">codec>codebook_dtype", "float32", "codebook: expected float32, got float16"),
        (STEM + ">codec>clamp", "strict", "parameter 'stem.weight': "),
        (STEM + ">codec>codebook_dtype", DELETE, "expected the codec as it applies to shape"),
        ("header>params>other", None, "parameter 'other': expected an array 'values'"),
        (
            "header>params>fc.weight",
            {"codec": {"codec": "pq"}, "shape": [5, 512]},
            "expected arrays codes and codebook",
        ),
        ("header>params>fc.weight", DELETE, r"the arrays of \['fc.weight'\] belong to no parameter"),
        ("header>golden", None, "golden: expected a JSON object"),
        ("header>golden", DELETE, "array 'golden/inputs/ids' belongs to nothing"),
        ("header>golden>seed", None, "golden.seed: expected an integer"),
        ("header>golden>seed", -1, "golden.seed: expected an integer"),
        ("header>golden>shapes>x", [1, 3, 8, -8], "golden input 'x': expected a shape"),
        ("header>golden>shapes>x", [1 << 30, 3, 8, 8], "golden.shapes: expected at most"),
        ("header>golden>shapes>x", [1, 3, 8, 9], "input 'x': expected shape"),
        ("arrays>params/stem.weight/codes>0", "bool", "forged|codes: expected"),
        ("arrays>params/stem.weight/codes>1", [3, 3], "codes: expected 9 bytes, got"),
        ("arrays>params/stem.weight/codebook>1", [54], "codebook: expected shape"),
        ("arrays>params/stem.weight/codebook", DELETE, "forged"),
        ("arrays>params", ["uint8", [0]], "array 'params' belongs to nothing"),
        ("arrays>params/values", ["uint8", [0]], r"the arrays of \[''\] belong to no parameter"),
        ("arrays>params/stem.weight/more", ["uint8", [0]], "expected arrays codes and codebook, got"),
        ("arrays>other", ["uint8", [0]], "array 'other' belongs to nothing"),
        ("arrays>golden/inputs/y", ["float32", [0]], r"golden: expected the inputs \['ids', 'x'\], each once"),
    ],
)
def test_forged_models(
    tmp_path: Path, model: tuple[dict[str, Any], dict[str, bytes]], path: str, value: Any, message: str
) -> None:
    document, vectors = model
    file = forge(tmp_path / "a.h5", set_at(document, path, value), vectors)
    with pytest.raises(FormatError, match=rf"a\.h5: .*{message}"):
        load_graph(file)


def test_unknown_operations_say_so(tmp_path: Path, model: tuple[dict[str, Any], dict[str, bytes]]) -> None:
    document, vectors = model
    file = forge(tmp_path / "a.h5", set_at(document, "header>nodes>0>op", "exec"), vectors)
    with pytest.raises(
        UnsupportedOpError, match=r"a\.h5: op: expected one of the \d+ registered operations, got 'exec'"
    ):
        load_graph(file)


def test_shape_rules_that_fail_give_a_format_error(
    tmp_path: Path, model: tuple[dict[str, Any], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No rule is known to raise anything but PQNetError; should one, the file is to blame."""
    monkeypatch.setitem(OPS, "clamp", replace(OPS["clamp"], infer=lambda x, p, a: x[0].shape[7]))
    with pytest.raises(FormatError, match=r"a\.h5: node 'clamp' .*the network is not valid: tuple index out of range"):
        load_graph(forge(tmp_path / "a.h5", *model))


def test_statistics_are_no_model(tmp_path: Path) -> None:
    write_container(tmp_path / "a.h5", "statistics", {}, {})
    with pytest.raises(
        FormatError, match=r"expected a model file, got a statistics file; open it with pqnet.load_stat"
    ):
        load_graph(tmp_path / "a.h5")


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 9), st.sampled_from([1.5, 2**62, "x", "", "batch", "pq", "add"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abx"), inner, max_size=2)),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_forged_model_says_the_error_is_ours(
    tmp_path: Path, model: tuple[dict[str, Any], dict[str, bytes]], data: st.DataObject
) -> None:
    document, vectors = model
    document = json.loads(json.dumps(document))
    place: Any = document["header"]
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        inside = place[key]
        if not (isinstance(inside, dict | list) and inside) or data.draw(st.integers(0, 9)) == 0:
            place[key] = data.draw(JSON)
            break
        place = inside
    try:
        graph, golden = load_graph(forge(tmp_path / "a.h5", document, vectors))
    except (FormatError, UnsupportedOpError):
        return
    save_graph(tmp_path / "b.h5", graph, golden)
    assert_equal_graphs(graph, load_graph(tmp_path / "b.h5")[0])
