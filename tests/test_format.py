"""The specification of the file is enough for a reader: one that shares nothing with pqnet gives the same weights."""

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
import reader

import pqnet
from pqnet import PQ, Additive, Fixed, IntN, Scalar, Sparse
from pqnet.codecs import Packed
from pqnet.demo import load_images, model_path
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.io import Golden, save_graph

CODECS = {
    "spatial": PQ(k=6, d=9),
    "channel": PQ(k=16, d=4, layout="channel"),
    "float32 codewords": PQ(k=3, d=12, codebook_dtype="float32"),
    "int8 codewords": PQ(k=5, d=6, layout="channel", codebook_dtype="int8"),
    "256 codewords": PQ(k=256, d=2),
    "more than 256": PQ(k=300, d=1),
    "one codeword": PQ(k=1, d=3),
    "scalar": Scalar(k=5),
    "scalar float32": Scalar(k=16, codebook_dtype="float32"),
    "binary": Fixed("binary", scale="closed"),
    "ternary": Fixed("ternary", scale="learned", per="channel"),
    "powers": Fixed("pow2", scale="none", exponent=3),
    "list": Fixed([-0.3, 0.0, 0.05, 0.2, 0.4], scale="learned", per="group", group=27),
    "int4": IntN(4, per="tensor", scale_dtype="float32"),
    "int8": IntN(8, per="channel"),
    "int3 with zero points": IntN(3, per="group", group=12, symmetric=False),
    "int5 with zero points": IntN(5, per="tensor", symmetric=False),
    "sparse": Sparse(count=7),
    "sparse float32": Sparse(fraction=0.3, value_dtype="float32"),
    "two codebooks": Additive([PQ(k=8, d=9), PQ(k=8, d=4, layout="channel")]),
    "corrected": Additive([Sparse(count=9), IntN(2, per="channel"), Sparse(fraction=0.05), PQ(k=4, d=2)]),
    "entries alone": Additive([Sparse(count=3), Sparse(count=4)]),
}
SHAPES = [(16, 12, 3, 3), (24, 108)]


def save_all(path, scale=1.0):
    """Save a network whose layers have each codec, a float16 weight and a bias; return its packed weights."""
    rng, weights = np.random.default_rng(0), {}
    b = GraphBuilder({"x": ValueInfo(("batch", 12, 5, 5)), "v": ValueInfo(("batch", 108))}, {"batch": 1})
    outputs = {}
    for name, codec in CODECS.items():
        for shape in SHAPES:
            weight = np.float32(scale * 0.1 * rng.standard_t(4, shape))
            packed = weights[f"{name}/{len(shape)}"] = codec.fit(weight, threads=1)
            op, source = ("conv2d", "x") if len(shape) == 4 else ("linear", "v")
            outputs[f"y{len(outputs)}"] = b.add(op, source, name=f"{name}/{len(shape)}", params={"weight": packed})
    half = np.float16(rng.standard_normal((3, 108)))
    outputs["float"] = b.add("linear", "v", name="int4", params={"weight": half, "bias": np.zeros(3, np.float32)})
    golden = Golden.draw({"x": ValueInfo((1, 12, 5, 5)), "v": ValueInfo((1, 108))})
    graph = b.build(outputs, {"labels": ["ß"]})
    infos = graph.infer_shapes({"batch": 1})
    golden = golden.with_outputs({n: np.ones(infos[v].shape, infos[v].dtype) for n, v in graph.outputs.items()})
    save_graph(path, graph, golden)
    return {f"{name}.weight": packed for name, packed in weights.items()}, half


@pytest.mark.parametrize("scale", [1.0, 1e-6])  # at 1e-6, float16 numbers have an exponent
def test_reader_of_another_hand_gives_the_same_weights(tmp_path, scale):
    packed, half = save_all(tmp_path / "all.h5", scale)
    found = reader.weights(tmp_path / "all.h5")
    assert found.keys() == {*packed, "int4.weight", "int4.bias"}
    exponents = 0
    for name, weight in packed.items():
        assert found[name].dtype == np.float32 and np.array_equal(found[name], weight.decode()), name
        exponents += any(key.endswith("exponent") for key in weight.arrays())
    assert np.array_equal(found["int4.weight"], half) and not found["int4.bias"].any()
    assert exponents > 20 if scale < 1 else exponents < 5
    document, arrays = reader.read(tmp_path / "all.h5")
    assert document["header"]["meta"]["labels"] == ["ß"]
    assert arrays["golden/outputs/y0"].shape == (1, 16, 3, 3)


def test_reader_takes_whole_networks(tmp_path):
    small = pqnet.quantize(
        pqnet.load(model_path()),
        "small-blocks",
        load_images()[0][:64],
        progress=False,
        permute=True,
        activations="int8",
    )
    small.save("small.h5")
    found = reader.weights("small.h5")
    assert found.keys() == small.graph.params.keys()
    for name, param in small.graph.params.items():
        assert np.array_equal(found[name], param.decode() if isinstance(param, Packed) else param), name
    assert reader.read("small.h5")[0]["header"]["meta"]["input_ranges"]


def test_reader_takes_statistics(tmp_path):
    statistics = pqnet.calibrate(pqnet.load(model_path()), load_images()[0][:32])
    statistics.save("stats.h5")
    document, arrays = reader.read("stats.h5")
    assert document["kind"] == "statistics"
    assert arrays.keys() == document["arrays"].keys()


def test_reader_notices_damage(tmp_path):
    save_all(tmp_path / "a.h5")
    data = (tmp_path / "a.h5").read_bytes()
    for place in (7, 30, 300, 560, len(data) // 2, len(data) - 1):
        damaged = bytearray(data)
        damaged[place] ^= 4
        (tmp_path / "b.h5").write_bytes(damaged)
        with pytest.raises(AssertionError, match="damaged|pqnet file"):
            reader.read(tmp_path / "b.h5")
    (tmp_path / "b.h5").write_bytes(data[:-1])
    with pytest.raises(AssertionError, match="whole"):
        reader.read(tmp_path / "b.h5")


def test_reader_is_independent_and_short():
    source = Path(reader.__file__).read_text("utf-8")
    names = {n.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for n in node.names}
    assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    assert names - sys.stdlib_module_names == {"h5py", "numpy"}
    assert len(source.splitlines()) < 130
