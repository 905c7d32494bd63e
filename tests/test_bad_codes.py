"""Models of every codec: recipes, files and what a forger may write into them."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
from forge import document_of, forge

import pqnet
from pqnet import PQ, Additive, Fixed, FormatError, IntN, Model, Recipe, Scalar, Sparse
from pqnet.graph import GraphBuilder, ValueInfo

CODECS = {
    "scalar": Scalar(5),
    "ternary": Fixed("ternary", "closed", "channel"),
    "list": Fixed([-1.0, 0.5, 2.0], "learned"),
    "plain": Fixed("pow2", "none", exponent=2),
    "affine": IntN(3, "channel", symmetric=False),
    "group": IntN(4, "group", group=4, scale_dtype="float32"),
    "small": PQ(6, 4, codebook_dtype="int8"),
    "sparse": Sparse(0.1),
    "sum": Additive([PQ(4, 2), Scalar(3), Sparse(0.1)]),
}
SHAPE = (8, 8)


def network():
    rng = np.random.default_rng(0)
    b = GraphBuilder({"ids": ValueInfo(("batch",), "int64")}, {"batch": 2})
    y = b.add("embedding", "ids", name="table", params={"weight": rng.standard_normal((16, 8)).astype(np.float32)})
    for name in CODECS:
        weight = rng.standard_normal(SHAPE).astype(np.float32) / 3
        y = b.add("linear", y, name=name, params={"weight": weight, "bias": np.ones(8, np.float32)})
        y = b.add("tanh", y)
    return Model(b.build({"output": y}))


IDS = np.arange(16)


@pytest.fixture(scope="module")
def packed():
    return pqnet.quantize(network(), Recipe(CODECS), IDS, progress=False)


@pytest.fixture(scope="module")
def file(packed, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.h5"
    packed.save(path)
    return document_of(path)


@pytest.mark.parametrize("metric", ["none", "pooled", "block"])
@pytest.mark.parametrize("statistics", [False, True])
def test_networks_of_all_codecs(metric, statistics, tmp_path):
    model = network()
    data = pqnet.calibrate(model, IDS) if statistics else IDS
    for codec in CODECS.values():
        recipe = Recipe.from_yaml(Recipe({"table": codec, **CODECS}).to_yaml())
        assert recipe == Recipe({"table": codec, **CODECS})
        small = pqnet.quantize(model, recipe, data, metric=metric, progress=False)
        small.save(tmp_path / "small.h5")
        again = pqnet.load(tmp_path / "small.h5")
        assert np.array_equal(again(IDS), small(IDS)) and again.size() == small.size()
        report = small.graph.meta["quantization"]["layers"]
        for name, node in small.graph.layers().items():
            weight = small.graph.params[node.params["weight"]]
            assert again.graph.params[node.params["weight"]] == weight
            assert report[name]["bytes"] == weight.nbytes and report[name]["codec"] == weight.codec.to_attrs()
        dense = {n: p.decode() if isinstance(p, pqnet.Packed) else p for n, p in small.graph.params.items()}
        plain = Model(replace(small.graph, params=dense))
        assert small(IDS) == pytest.approx(plain(IDS), abs=1e-4)


def change(file, name, key, make):
    """Return a file whose array ``params/name.weight/key`` is what ``make`` gives for it."""
    document, vectors = json.loads(json.dumps(file[0])), dict(file[1])
    path, at = f"params/{name}.weight/{key}", {}
    arrays = {}
    for other, (dtype, shape) in document["arrays"].items():
        n = prod(shape)
        values = np.frombuffer(vectors[dtype], dtype)[at.get(dtype, 0) : at.get(dtype, 0) + n].reshape(shape)
        at[dtype] = at.get(dtype, 0) + n
        arrays[other] = make(values.copy()) if other == path else values
    assert path in arrays
    vectors = {}
    for array in arrays.values():
        vectors[array.dtype.name] = vectors.get(array.dtype.name, b"") + array.tobytes()
    document["arrays"] = {other: [a.dtype.name, list(a.shape)] for other, a in arrays.items()}
    return document, vectors


def put(value, *place):
    def make(array):
        array[place or (0,) * array.ndim] = value
        return array

    return make


BAD = [
    ("scalar", "codes", lambda a: a[:-1], "codes: expected 24 bytes, got shape"),
    ("scalar", "codes", lambda a: np.append(a, 0).astype(np.uint8), "codes: expected 24 bytes"),
    ("scalar", "codes", lambda a: a | 255, r"codes: expected entries in \[0, 5\)"),
    ("scalar", "codes", lambda a: a.astype(np.uint16), "codes: expected uint8, got uint16"),
    ("scalar", "codebook", put(np.nan), "codebook: expected finite"),
    ("scalar", "codebook", lambda a: a[:, 0], r"codebook: expected shape \(5, 1\)"),
    ("scalar", "codebook", lambda a: a.astype(np.float32), "codebook: expected float16, got float32"),
    ("ternary", "codes", lambda a: a | 255, r"codes: expected entries in \[0, 3\)"),
    ("ternary", "scales", lambda a: a[:-1], r"scales: expected shape \(8, 1\), got shape \(7, 1\)"),
    ("ternary", "scales", lambda a: a.T, r"scales: expected shape \(8, 1\), got shape \(1, 8\)"),
    ("ternary", "scales", put(np.inf), "scales: expected finite"),
    ("list", "scales", lambda a: a[:0], r"scales: expected shape \(1, 1\)"),
    ("plain", "codes", lambda a: a[:0], "codes: expected 24 bytes"),
    ("affine", "zeros", put(8), r"zeros: expected entries in \[0, 8\)"),
    ("affine", "zeros", lambda a: a.astype(np.int64), "zeros: expected uint8, got int64"),
    ("affine", "zeros", lambda a: a[:4], r"zeros: expected shape \(8, 1\)"),
    ("group", "scales", lambda a: a[:, :1], r"scales: expected shape \(8, 2\)"),
    ("group", "scales", put(np.nan), "scales: expected finite"),
    ("group", "scales", put(3e38), "scales: expected products with the values up to 1e.38"),
    ("small", "scale", put(0.0), "scale: expected one positive float32 number"),
    ("small", "scale", put(np.inf), "scale: expected one positive float32 number"),
    ("small", "scale", put(np.nan), "scale: expected one positive float32 number"),
    ("small", "scale", put(3e38), "scale: expected one positive float32 number up to 1e.36"),
    ("small", "scale", lambda a: a[:0], "scale: expected one positive float32 number"),
    ("small", "codebook", put(128), "codebook: expected integers from -127 to 127, got -128"),
    ("small", "codebook", lambda a: a.view(np.float16), "codebook: expected int8, got float16"),
    ("small", "codebook", lambda a: a[:-1], r"codebook: expected shape \(6, 4\)"),
    ("sparse", "gaps", lambda a: a[:-1], "gaps: expected those of 6 entries"),
    ("sparse", "gaps", lambda a: np.append(a, 0).astype(np.uint8), "gaps: expected the shortest form"),
    ("sparse", "gaps", put(17), "gaps: expected those of 6 entries"),
    ("sparse", "gaps", put(0), "gaps: expected those of 6 entries"),
    ("sparse", "gaps", lambda a: a[:0], "gaps: expected those of 6 entries"),
    ("sparse", "gaps", lambda a: a[None], "gaps: expected a row of bytes"),
    ("sparse", "gaps", lambda a: np.uint8([16] + [254, 255] * 6), r"positions: expected entries in \[0, 64\)"),
    ("sparse", "gaps", lambda a: np.uint8([8] + [0] * 6), "gaps: expected the shortest form"),
    ("sparse", "values", put(np.nan), "values: expected finite"),
    ("sparse", "values", lambda a: a[:-1], "values: expected shape"),
    ("sparse", "values", lambda a: a.astype(np.float64), "values: expected float16, got float64"),
    ("sum", "0.codes", lambda a: a[:-1], "part 0: codes: expected 8 bytes"),
    ("sum", "1.codebook", put(np.inf), "part 1: codebook: expected finite"),
    ("sum", "2.gaps", put(0), "part 2: gaps: expected those of 6 entries"),
]


@pytest.mark.parametrize(("name", "key", "make", "match"), BAD)
def test_forged_arrays(file, tmp_path: Path, name, key, make, match):
    with pytest.raises(FormatError, match=rf"parameter '{name}.weight': .*({match})"):
        pqnet.load(forge(tmp_path / "a.h5", *change(file, name, key, make)))


MISSING = object()
FIELDS = [
    ("scalar", "k", 6, "codebook: expected shape"),
    ("scalar", "k", 1, "Scalar.k: expected an integer"),
    ("scalar", "method", "x", "Scalar.method"),
    ("scalar", "bits", 3, "expected fields among"),
    ("scalar", "codec", "fixed", "expected fields among"),
    ("ternary", "per", "tensor", "scales: expected shape"),
    ("ternary", "per", ["channel"], "Fixed.per"),
    ("ternary", "values", "binary", "codes: expected 8 bytes"),
    ("ternary", "values", [1, None], "Fixed.values"),
    ("ternary", "values", [[1.0]], "Fixed.values"),
    ("ternary", "values", {}, "Fixed.values"),
    ("ternary", "scale", "none", "Fixed.per: expected 'tensor'"),
    ("list", "values", [2.0, 0.5, -1.0], "expected the codec as it applies"),
    ("list", "values", [0.5, 2.0], "codes: expected 8 bytes"),
    ("plain", "exponent", 1 << 40, "Fixed.exponent"),
    ("plain", "exponent", None, "expected the codec as it applies|Fixed.exponent|codes: expected"),
    ("affine", "symmetric", True, "expected arrays"),
    ("affine", "symmetric", 0, "IntN.symmetric"),
    ("affine", "bits", 4, "codes: expected 32 bytes"),
    ("group", "group", 3, "group: expected a divisor of 8"),
    ("group", "group", 1 << 40, "group: expected a divisor of 8"),
    ("small", "codebook_dtype", "float16", "expected arrays codes and codebook, got"),
    ("sparse", "count", 5, "gaps: expected|values: expected"),
    ("sparse", "count", 1 << 40, "count: expected 1 to 64 entries"),
    ("sparse", "fraction", 0.1, "either fraction or count"),
    ("sum", "parts", MISSING, "expected the field 'parts'"),
    ("sum", "parts", [], "Additive.parts: expected 2 to 16 codecs"),
    ("sum", "parts", [{"codec": "pq"}, 3], "Additive.parts"),
    ("sum", "parts", {"codec": "pq"}, "Additive.parts"),
    ("sum", "parts", [{"codec": "additive", "parts": []}] * 2, "Additive.parts"),
    ("sum", "refits", -1, "Additive.refits"),
]


@pytest.mark.parametrize(("name", "field", "value", "match"), FIELDS)
def test_forged_codecs(file, tmp_path: Path, name, field, value, match):
    document = json.loads(json.dumps(file[0]))
    codec = document["header"]["params"][f"{name}.weight"]["codec"]
    codec |= {field: value}
    if value is MISSING:
        del codec[field]
    with pytest.raises(FormatError, match=rf"parameter '{name}.weight': .*({match})"):
        pqnet.load(forge(tmp_path / "a.h5", document, file[1]))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("shape", [[1 << 40, 8], [8], [8] * 6, [8, 0], [1 << 20, 1 << 20]])
def test_forged_shapes(file, tmp_path: Path, name, shape):
    document = json.loads(json.dumps(file[0]))
    document["header"]["params"][f"{name}.weight"]["shape"] = shape
    with pytest.raises(FormatError, match=rf"parameter '{name}.weight': "):
        pqnet.load(forge(tmp_path / "a.h5", document, file[1]))


def test_one_codeword_is_no_bomb():
    attrs = {"codes": np.zeros(0, np.uint8), "codebook": np.zeros((1, 4), np.float16)}
    with pytest.raises(FormatError, match="shape: expected at most 16777216 blocks of one codeword"):
        pqnet.PackedPQ.from_arrays(PQ(1, 4), (1 << 40, 4), attrs)


def test_arrays_that_belong_to_no_part(packed):
    weight = packed.graph.params["sum.weight"]
    for name in ("3.codes", "x.codes", "codes", "00.codes"):
        with pytest.raises(FormatError, match=f"packed sum: expected arrays of 3 parts, got '{name}'"):
            type(weight).from_arrays(weight.codec, SHAPE, {**weight.arrays(), name: np.zeros(1, np.uint8)})


def test_inspect_names_every_codec(packed, capsys):
    from pqnet.cli.main import main

    packed.save("small.h5")
    assert main(["inspect", "small.h5"]) in (0, None)
    text = capsys.readouterr().out
    for words in (
        "scalar k=5",
        "fixed ternary channel",
        "fixed 3 values tensor",
        "intn bits=4 group",
        "sparse count=6",
    ):
        assert words in text
    assert "pq k=4 d=2 spatial + scalar k=3 + sparse count=6" in text
