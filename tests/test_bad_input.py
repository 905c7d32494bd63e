"""Bad calls of the library: each gives an error of the PQNetError family that says what is wrong."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pqnet
from pqnet import PQ, Model, PackedPQ, PQNetError, Recipe, Statistics, assign, calibrate, quantize
from pqnet import weighted_kmeans as kmeans
from pqnet.graph import Graph, GraphBuilder, Node, ValueInfo

# Short, so that a row of a table is a line.
P, C, F, U = PQNetError, pqnet.ConfigError, pqnet.FormatError, pqnet.UnsupportedOpError

RNG = np.random.default_rng(0)
BLOCKS = RNG.standard_normal((40, 4)).astype(np.float32)
WEIGHT = RNG.standard_normal((16, 8)).astype(np.float32)
FILTERS = RNG.standard_normal((8, 4, 3, 3)).astype(np.float32)
PACKED, PACKED_FILTERS = PQ(4, 4).fit(WEIGHT), PQ(4, 9).fit(FILTERS)
IMAGE = np.ones((1, 4, 5, 5), np.float32)
NAN, EYES = np.full((40, 4), np.nan, np.float32), np.eye(4)[None]


def convnet() -> Model:
    b = GraphBuilder({"image": ValueInfo(("batch", 3, 8, 8))}, {"batch": 2})
    x = b.add("conv2d", "image", name="stem", params={"weight": RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)})
    norm = {role: np.ones(4, np.float32) for role in ("weight", "bias", "mean", "var")}
    x = b.add("relu", b.add("batch_norm", x, name="norm", params=norm))
    x = b.add("conv2d", x, name="conv", params={"weight": FILTERS})
    x = b.add("linear", b.add("mean", x, axes=(2, 3)), name="fc", params={"weight": WEIGHT})
    return Model(b.build({"logits": x}))


def textnet(weight: Any = WEIGHT) -> Model:
    b = GraphBuilder({"ids": ValueInfo(("batch", 4), "int64"), "mask": ValueInfo(("batch", 4), "bool")}, {"batch": 2})
    x = b.add("embedding", "ids", name="tokens", params={"weight": weight})
    return Model(b.build({"vectors": x, "none": b.add("logical_not", "mask")}))


NET, TEXT, PACKED_TEXT = convnet(), textnet(), textnet(PACKED)
X = RNG.standard_normal((6, 3, 8, 8)).astype(np.float32)
IDS, MASK = np.zeros((2, 4), np.int64), np.ones((2, 4), np.bool_)
RECIPE = {"conv": PQ(8, 4), "fc": PQ(4, 4)}
STATISTICS, TEXT_STATISTICS = calibrate(NET, X), calibrate(TEXT, {"ids": IDS, "mask": MASK})

Row = tuple[str, Callable[[], Any], type[PQNetError], str]


def check(call: Callable[[], Any], kind: type[PQNetError], match: str) -> None:
    """The class is exactly ``kind``, and nothing else than the error gets out: pytest makes warnings errors."""
    with pytest.raises(PQNetError, match=match) as caught:
        call()
    assert caught.type is kind


def table(*parts: list[Row]) -> Any:
    rows = [row for part in parts for row in part]
    return pytest.mark.parametrize(("call", "kind", "match"), [pytest.param(*row[1:], id=row[0]) for row in rows])


# -- arrays and numbers: every place an array enters gets every kind of wrong array ------------------------------

ARRAYS: list[tuple[str, Any, str]] = [
    ("text", "abc", "an array of real numbers, got str 'abc'"),
    ("none", None, "an array of real numbers, got NoneType None"),
    ("strings", [["1", "2"]], "an array of real numbers, got <U1 array"),
    ("ragged", [[1, 2], [3]], r"an array of numbers, got list \[\[1, 2\], \[3\]\]"),
    ("bool", np.ones((40, 4), np.bool_), "an array of real numbers, got bool array"),
    ("complex", BLOCKS.astype(complex), "an array of real numbers, got complex128 array"),
    ("object", BLOCKS.astype(object), "an array of real numbers, got object array"),
]
TAKERS: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("weighted_kmeans", "blocks", lambda a: kmeans(a, 2)),
    ("weighted_kmeans", "weights", lambda a: kmeans(BLOCKS, 2, weights=a)),
    ("weighted_kmeans", "metric", lambda a: kmeans(BLOCKS, 2, metric=a)),
    ("assign", "codebook", lambda a: assign(BLOCKS, a)),
    ("PQ.fit", "weight", lambda a: PQ(2, 4).fit(a)),
    ("PQ.fit", "metric", lambda a: PQ(2, 4).fit(WEIGHT, metric=a)),
    ("PQ.fit", "row_weights", lambda a: PQ(2, 4).fit(WEIGHT, row_weights=a)),
    ("linear", "x", lambda a: pqnet.linear(a, PACKED)),
    ("linear", "bias", lambda a: pqnet.linear(np.ones((2, 8)), PACKED, a)),
    ("conv2d", "x", lambda a: pqnet.conv2d(a, PACKED_FILTERS)),
    ("Model", "input 'image'", lambda a: NET(a)),
    ("calibrate", "input 'image'", lambda a: calibrate(NET, [a])),
]
OPTIONAL = {("weights", "none"), ("metric", "none"), ("row_weights", "none"), ("bias", "none")}


@pytest.mark.parametrize(
    ("call", "name", "value", "got"),
    [
        pytest.param(call, name, value, got, id=f"{function}-{name}-{kind}")
        for function, name, call in TAKERS
        for kind, value, got in ARRAYS
        if (name, kind) not in OPTIONAL
    ],
)
def test_wrong_arrays_are_refused_everywhere(call: Callable[[Any], Any], name: str, value: Any, got: str) -> None:
    check(lambda: call(value), P, f"^{name}: expected {got}")


KMEANS: list[Row] = [
    ("nan", lambda: kmeans(NAN, 2), P, "blocks: expected finite float32 .*, got 160 NaN or inf"),
    ("inf", lambda: assign(BLOCKS, BLOCKS[:3] * np.inf), P, "codebook: expected finite float32"),
    ("float64 over", lambda: kmeans(BLOCKS.astype(float) * 1e300, 2), P, "blocks: expected finite float32"),
    ("square over", lambda: kmeans(BLOCKS * 1e30, 2), P, r"blocks: expected numbers whose .*scale"),
    ("metric over", lambda: assign(BLOCKS, BLOCKS, metric=3e38 * EYES[0]), P, "blocks: .* the metric stay"),
    ("words over", lambda: assign(BLOCKS, BLOCKS * 1e30), P, "codebook: expected numbers whose products"),
    ("empty", lambda: kmeans(BLOCKS[:0], 1), P, r"blocks: expected at least one .*\(0, 4\)"),
    ("1 axis", lambda: kmeans(BLOCKS[0], 1), P, r"blocks: expected 2 axes, got shape \(4,\)"),
    ("empty words", lambda: assign(BLOCKS, BLOCKS[:0]), P, "codebook: expected at least one element"),
    ("width", lambda: assign(BLOCKS, BLOCKS[:, :3]), P, r"codebook: expected shape \(any, 4\), got .*40, 3"),
    ("k over", lambda: kmeans(BLOCKS, 41), P, r"k: expected an integer in \[1, 40\], got 41"),
    ("k 0", lambda: kmeans(BLOCKS, 0), P, r"k: expected an integer in \[1, 40\], got 0"),
    ("k float", lambda: kmeans(BLOCKS, 2.0), P, r"k: expected .*, got float 2\.0"),
    ("k bool", lambda: kmeans(BLOCKS, True), P, "k: expected .*, got bool True"),
    ("seed", lambda: kmeans(BLOCKS, 2, seed=-1), P, r"seed: expected an integer in \[0, .*got -1"),
    ("n_iter", lambda: kmeans(BLOCKS, 2, n_iter=-1), P, "n_iter: expected an integer >= 0, got -1"),
    ("threads", lambda: kmeans(BLOCKS, 2, threads=0), P, r"threads: expected .*4096\], got 0"),
    ("negative weights", lambda: kmeans(BLOCKS, 2, weights=-np.ones(40)), P,
     "weights: expected non-negative numbers, not all zero, got minimum -1"),
    ("zero weights", lambda: kmeans(BLOCKS, 2, weights=np.zeros(40)), P, "weights: .*not all zero"),
    ("few weights", lambda: kmeans(BLOCKS, 2, weights=np.ones(39)), P,
     r"weights: expected shape \(40,\), got shape \(39,\)"),
    ("not symmetric", lambda: kmeans(BLOCKS, 2, metric=np.triu(np.ones((4, 4)))), P,
     "metric: expected symmetric positive semi-definite"),
    ("not definite", lambda: kmeans(BLOCKS, 2, metric=-EYES[0]), P,
     "metric: expected symmetric positive semi-definite matrices, got one that is not; a second moment"),
    ("metric shape", lambda: kmeans(BLOCKS, 2, metric=np.eye(3)), P,
     r"metric: expected shape \(4, 4\) or \(M, 4, 4\), got shape \(3, 3\)"),
    ("groups alone", lambda: kmeans(BLOCKS, 2, groups=np.zeros(40, int)), P,
     "groups: expected None when metric is None"),
    ("no groups", lambda: kmeans(BLOCKS, 2, metric=EYES), P, "groups: .* and groups None"),
    ("groups over", lambda: kmeans(BLOCKS, 2, metric=EYES, groups=np.ones(40, int)), P,
     r"groups: expected entries in \[0, 1\), got range \[1, 1\]"),
    ("groups float", lambda: kmeans(BLOCKS, 2, metric=EYES, groups=np.zeros(40)), P,
     "groups: expected an array of integers, got float64 array .*; floats and booleans are never converted silently"),
    ("groups shape", lambda: kmeans(BLOCKS, 2, metric=EYES, groups=[0]), P,
     r"groups: expected shape \(40,\), got shape \(1,\)"),
    ("groups ragged", lambda: kmeans(BLOCKS, 2, metric=EYES, groups=[[0], [0, 0]]), P,
     "groups: expected an array of numbers, got list"),
    ("groups uint64", lambda: assign(BLOCKS, BLOCKS, metric=EYES, groups=np.full(40, 2**64 - 1, np.uint64)),
     P, "groups: expected integers of int64, from .* to 9223372036854775807, got 18446744073709551615 to 18446"),
    ("init", lambda: kmeans(BLOCKS, 2, init="best"), C,
     r"init: expected one of 'k-means\+\+', 'random', got str 'best'"),
    ("init empty", lambda: kmeans(BLOCKS, 2, init=""), C, "init: expected one of .*, got str ''"),
    ("init shape", lambda: kmeans(BLOCKS, 2, init=BLOCKS[:3]), P,
     r"init: expected shape \(2, 4\), got shape \(3, 4\)"),
]  # fmt: skip

CODECS: list[Row] = [
    ("k 0", lambda: PQ(k=0), P, r"PQ.k: expected an integer in \[1, 65536\], got 0"),
    ("k float", lambda: PQ(k=256.0), P, r"PQ.k: expected .*, got float 256\.0"),
    ("d", lambda: PQ(d="8"), P, r"PQ.d: expected an integer in \[1, 4096\], got str '8'"),
    ("layout", lambda: PQ(layout="rows"), C, "PQ.layout: expected one of 'spatial', 'channel', got str 'rows'"),
    ("dtype", lambda: PQ(codebook_dtype="int4"), C, "PQ.codebook_dtype: expected one of 'float16', 'float32', 'int8'"),
    ("clamp", lambda: PQ(clamp=True), C, "PQ.clamp: expected one of 'floor', 'strict', None, got bool True"),
    ("d divides", lambda: PQ(2, 3).fit(WEIGHT), C, r"d: expected a divisor of 8 .*divisors up to 64 are \[1, 2"),
    ("k over", lambda: PQ(64, 4).fit(WEIGHT), C, "k: expected at most 32, .*got 64; use a smaller k or clamp="),
    ("6 axes", lambda: PQ(2, 4).fit(np.ones((2, 4, 3, 1, 1, 1))), P, "weight: expected 2 or 3 or 4 or 5 axes, got"),
    ("nan", lambda: PQ(2, 4).fit(NAN), P, "weight: expected finite float32"),
    ("empty", lambda: PQ(2, 4).fit(WEIGHT[:0]), P, r"weight: expected at least one element, got shape \(0, 8\)"),
    ("half", lambda: PQ(2, 4).fit(WEIGHT * 1e6), P, "weight: .* within float16's 65504.*use codebook_dtype='float32'"),
    ("metric", lambda: PQ(2, 4).fit(WEIGHT, metric=np.ones((3, 4, 4))), P,
     r"metric: expected shape \(4, 4\), \(2, 4, 4\), \(G, 2, 4, 4\) or \(G, 1, 8, 8\), got shape \(3, 4, 4\)"),
    ("warm", lambda: PQ(2, 4).fit(WEIGHT, warm=PACKED), P, r"warm: expected .*\(2, 4\), got PackedPQ"),
    ("warm array", lambda: PQ(2, 4).fit(WEIGHT, warm=BLOCKS), P, "warm: expected a PackedPQ .* got float32 array"),
    ("seed", lambda: PQ(2, 4).fit(WEIGHT, seed=0.5), P, r"seed: expected .*, got float 0\.5"),
    ("row weights", lambda: PQ(2, 4).fit(WEIGHT, row_weights=np.ones(3)), P, r"row_weights: expected shape \(16,\)"),
    ("packed codec", lambda: PackedPQ(None, (16, 8), [], []), P, "codec: expected a PQ, got NoneType None"),
    ("packed shape", lambda: PackedPQ(PQ(4, 4), (16.5, 8), PACKED.codes, PACKED.codebook), P,
     r"shape: expected an integer >= 1, got float 16\.5"),
    ("packed codes", lambda: PackedPQ(PQ(4, 4), (16, 8), PACKED.codes + 4, PACKED.codebook), P,
     r"codes: expected entries in \[0, 4\), got range"),
    ("packed words", lambda: PackedPQ(PQ(4, 4), (16, 8), PACKED.codes, np.full((4, 4), "a")), P,
     "codebook: expected an array of real numbers, got <U1 array"),
    ("packed overflow", lambda: PackedPQ(PQ(4, 4), (16, 8), PACKED.codes, np.full((4, 4), 1e9)), P,
     "codebook: expected finite float16 numbers, got 16 NaN or infinite of 16"),
    ("rows", lambda: PACKED.decode_rows([16]), P, r"rows: expected entries in \[0, 16\), got range \[16, 16\]"),
]  # fmt: skip

LAYERS: list[Row] = [
    ("linear packed", lambda: pqnet.linear(np.ones((2, 8)), WEIGHT), P,
     r"packed: expected a packed weight, got float32 array .*; codec.fit\(weight\) gives one"),
    ("linear shape", lambda: pqnet.linear(np.ones((2, 7)), PACKED), P, r"last axis has size 8, got shape \(2, 7\)"),
    ("linear filters", lambda: pqnet.linear(np.ones((2, 36)), PACKED_FILTERS), P, "weight: expected .* of 2 axes"),
    ("linear bias", lambda: pqnet.linear(np.ones((2, 8)), PACKED, np.ones(3)), P,
     r"bias: expected shape \(16,\), got shape \(3,\)"),
    ("linear nan", lambda: pqnet.linear(np.full((1, 8), np.nan), PACKED), P, "x: expected finite float32"),
    ("linear threads", lambda: pqnet.linear(np.ones((1, 8)), PACKED, threads=1.0), P, "threads: .*got float 1.0"),
    ("conv axes", lambda: pqnet.conv2d(IMAGE[0], PACKED_FILTERS), P, "x: expected 4 axes, got shape"),
    ("conv channels", lambda: pqnet.conv2d(IMAGE[:, :3], PACKED_FILTERS), P, "expected 4 input channels .* got 3"),
    ("conv matrix", lambda: pqnet.conv2d(IMAGE, PACKED), P, r"expected 4 axes .* and weight \(16, 8\)"),
    ("conv small", lambda: pqnet.conv2d(IMAGE[..., :2], PACKED_FILTERS), P, "kernel .* larger than the padded"),
    ("conv stride", lambda: pqnet.conv2d(IMAGE, PACKED_FILTERS, stride=0), P, r"stride: expected .*\[1, 65535\]"),
    ("conv strides", lambda: pqnet.conv2d(IMAGE, PACKED_FILTERS, stride=(1, 1, 1)), P, "stride: .* pair of ints"),
    ("conv padding", lambda: pqnet.conv2d(IMAGE, PACKED_FILTERS, padding="same"), P, "padding: .* got str 'same'"),
    ("conv dilation", lambda: pqnet.conv2d(IMAGE, PACKED_FILTERS, dilation=10**30), P, r"dilation: .*65535\]"),
    ("conv groups", lambda: pqnet.conv2d(np.ones((1, 12, 5, 5)), PACKED_FILTERS, groups=3), P,
     "groups: expected a divisor of the 8 outputs, got 3"),
    ("ids over", lambda: pqnet.embedding([16], PACKED), P, r"ids: expected entries in \[0, 16\), got range \[16"),
    ("ids negative", lambda: pqnet.embedding([-1], PACKED), P, r"ids: expected entries in \[0, 16\), .*\[-1, -1\]"),
    ("ids float", lambda: pqnet.embedding([1.0], PACKED), P, "ids: expected an array of integers, got float64 array"),
    ("ids packed", lambda: pqnet.embedding([1], WEIGHT), P, "packed: expected a packed weight, got float32 array"),
]  # fmt: skip


@table(KMEANS, CODECS, LAYERS)
def test_bad_calls_on_arrays(call: Callable[[], Any], kind: type[PQNetError], match: str) -> None:
    check(call, kind, match)


# -- models ----------------------------------------------------------------------------------------------------

MODEL: list[Row] = [
    ("not a graph", lambda: Model("model.h5"), P, "graph: expected a Graph, got str 'model.h5'; pqnet.load reads"),
    ("golden", lambda: Model(NET.graph, "golden"), P, "golden: expected a Golden record or None, got str"),
    ("golden seed", lambda: NET.draw_golden(-1), P, "seed: expected an integer in .*, got -1"),
    ("no input", lambda: NET(), P, r"inputs: expected 1 \(\['image'\]\), got 0"),
    ("two inputs", lambda: NET(X, X), P, r"inputs: expected 1 \(\['image'\]\), got 2"),
    ("array to run", lambda: NET.run(X), P, r"inputs: expected a dict with exactly the keys \['image'\], got float32"),
    ("wrong name", lambda: NET.run({"x": X}), P, r"exactly the keys \['image'\], got \['x'\]"),
    ("missing", lambda: TEXT.run({"ids": IDS}), P, r"exactly the keys \['ids', 'mask'\], got \['ids'\]"),
    ("twice", lambda: NET(X, image=X), P, r"inputs: expected \['image'\], each once, got 1 and \['image'\]"),
    ("axes", lambda: NET(X[0]), P, r"input 'image': expected shape \(any > 0, 3, 8, 8\), got \(3, 8, 8\)"),
    ("channels", lambda: NET(X[:, :2]), P, r"expected shape \(any > 0, 3, 8, 8\), got \(6, 2, 8, 8\)"),
    ("no samples", lambda: NET(X[:0]), P, r"expected shape \(any > 0, 3, 8, 8\), got \(0, 3, 8, 8\)"),
    ("nan", lambda: NET(X * np.nan), P, "input 'image': expected finite .*1152 NaN or infinite of 1152"),
    ("overflow", lambda: NET(X.astype(float) * 1e300), P, "input 'image': expected finite float32 numbers, got 1152"),
    ("ids float", lambda: TEXT(IDS * 1.0, MASK), P, "input 'ids': expected an array of integers, got float64"),
    ("ids bool", lambda: TEXT(MASK, MASK), P, "input 'ids': expected an array of integers, got bool"),
    ("ids ragged", lambda: TEXT([[1], [2, 3]], MASK), P, "input 'ids': expected an array of numbers, got list"),
    ("ids uint64", lambda: TEXT(np.full((2, 4), 2**63, np.uint64), MASK), P, "'ids': expected integers of int64"),
    ("ids over", lambda: TEXT(IDS + 16, MASK), P, r"node 'tokens' \(embedding\): ids: expected entries in \[0, 16\)"),
    ("ids packed", lambda: PACKED_TEXT(IDS - 1, MASK), P, r"'tokens' .*ids: expected entries in \[0, 16\), got .*-1"),
    ("mask int", lambda: TEXT(IDS, IDS + 2), P, "input 'mask': expected an array of booleans, got int64 array"),
    ("batches", lambda: TEXT(IDS, MASK[:1]), P, r"input 'mask': expected shape \(any > 0, 4\), got \(1, 4\)"),
    ("threads", lambda: NET(X, threads=0), P, r"threads: expected an integer in \[1, 4096\], got 0"),
    ("compute", lambda: pqnet.load("m.h5", compute="int4"), C, "compute: expected one of 'float32', .* 'int4'"),
]  # fmt: skip

PIPELINE: list[Row] = [
    ("model", lambda: quantize(NET.graph, RECIPE, X), P, "model: expected a pqnet.Model, got Graph"),
    ("metric", lambda: quantize(NET, RECIPE, X, metric="half"), C, "metric: .*'block', 'full', got str 'half'"),
    ("target", lambda: quantize(NET, RECIPE, X, target="student"), C, "target: .*'weight', got str 'student'"),
    ("preset", lambda: quantize(NET, "tiny", X), C, "recipe: expected one of 'small-blocks', .* got str 'tiny'"),
    ("recipe list", lambda: quantize(NET, [PQ()], X), C, "recipe: expected a dict of patterns, got list"),
    ("recipe text", lambda: quantize(NET, {"fc": "pq"}, X), C, "recipe: expected .* a codec or None, got 'fc': str"),
    ("recipe key", lambda: quantize(NET, {1: PQ()}, X), C, "recipe: expected name patterns .*, got 1"),
    ("no match", lambda: quantize(NET, {"layer*": PQ(4, 4)}, X), C,
     r"recipe: pattern 'layer\*' matches no layer; the layers are stem, conv, fc"),
    ("nothing", lambda: quantize(NET, {"*": None}, X), C, "recipe: expected a codec for at least one layer"),
    ("d", lambda: quantize(NET, {"fc": PQ(4, 3)}, X), C, "layer 'fc': d: expected a divisor of 8"),
    ("k", lambda: quantize(NET, {"fc": PQ(400, 4)}, X), C, "layer 'fc': k: expected at most 32, .*got 400"),
    ("seed", lambda: quantize(NET, RECIPE, X, seed=-1), P, "seed: expected .*, got -1"),
    ("threads", lambda: quantize(NET, RECIPE, X, threads=0), P, "threads: expected .*, got 0"),
    ("no data", lambda: quantize(NET, RECIPE), C, "calibration: expected data or statistics for metric='full'"),
    ("norms without data", lambda: quantize(NET, RECIPE, STATISTICS, reestimate_norm=True), C,
     "reestimate_norm: expected calibration data, got none; statistics are not enough"),
    ("norms", lambda: quantize(NET, RECIPE, X, reestimate_norm="no"), C, "reestimate_norm: .* False, True, got"),
    ("no file", lambda: quantize(NET, RECIPE, "x.npy"), P, "x.npy: expected a readable .npy, .npz or .h5 file of numb"),
    ("text", lambda: quantize(NET, RECIPE, b"x.npy"), P, "calibration: expected an array, .*, got bytes b'x.npy'"),
    ("number", lambda: calibrate(NET, 3), P, "calibration: expected an array, a dict of arrays or an iterable"),
    ("no batch", lambda: calibrate(NET, iter([])), P, "calibration: expected at least one batch, got an empty"),
    ("no samples", lambda: calibrate(NET, X[:0]), P, "calibration: expected the same positive number of samples"),
    ("one sample", lambda: calibrate(NET, X[0]), P, r"'image': expected shape \(any > 0, 3, 8, 8\), got \(3, 8, 8\)"),
    ("second batch", lambda: calibrate(NET, [X, X[:, :2]]), P, r"expected shape .*, got \(6, 2, 8, 8\)"),
    ("names", lambda: calibrate(NET, {"x": X}), P, r"exactly the keys \['image'\], got \['x'\]"),
    ("unnamed", lambda: calibrate(TEXT, IDS), P, r"calibration: expected dicts with the keys \['ids', 'mask'\]"),
    ("lengths", lambda: calibrate(TEXT, {"ids": IDS, "mask": MASK[:1]}), P, "the same positive number of samples"),
    ("ids over", lambda: calibrate(TEXT, {"ids": IDS + 16, "mask": MASK}), P, r"ids: expected entries in \[0, 16\)"),
    ("ids negative", lambda: quantize(TEXT, {"tokens": PQ(4, 4)}, {"ids": IDS - 1, "mask": MASK}), P,
     r"ids: expected entries in \[0, 16\), got range \[-1, -1\]"),
    ("overflow", lambda: calibrate(NET, np.full_like(X, 3e38)), P,
     r"calibration: expected inputs of layer 'stem' up to 1e\+12, got 0 to 3e\+38; scale the data"),
    ("overflow inside", lambda: quantize(NET, RECIPE, np.full_like(X, 3e38)), P, "inputs of layer 'conv' up to"),
    ("other statistics", lambda: quantize(NET, RECIPE, TEXT_STATISTICS), P,
     "calibration: expected statistics of this network, got those of one with other weights or nodes; calibrate"),
    ("statistics", lambda: Statistics({"fc": np.eye(3)}), P, "layers: expected a dict of Moments by layer name, got d"),
    ("merge", lambda: STATISTICS.merge(TEXT_STATISTICS), P, "statistics: expected .* of the same layers and shapes"),
    ("twice", lambda: quantize(quantize(NET, RECIPE, X), RECIPE, X), C,
     "layer 'conv': expected a float weight, got a packed one; quantize the float model"),
]  # fmt: skip

BOMB = "fc: {codec: [&a0 [" + ",".join("x" * 10) + "]"
BOMB += "".join(f", &a{i} [" + ",".join([f"*a{i - 1}"] * 10) + "]" for i in range(1, 8)) + "]}"
YAML: list[tuple[str, Any, str]] = [
    ("broken", "fc: [1", "recipe: expected YAML, got text that does not parse"),
    ("nested", "fc: " + "[" * 5000, "recipe: expected YAML, got text that does not parse"),
    ("code", "fc: !!python/object/apply:os.mkdir [pwned]", "recipe: expected YAML, .*not determine a constructor"),
    ("list", "- fc", "recipe: expected a mapping of patterns to codecs, got list"),
    ("nothing", "", "recipe: expected a mapping of patterns to codecs, got NoneType None"),
    ("twice", "fc: null\nfc: null", "recipe: expected every pattern once, got one twice"),
    ("word", "fc: pq", "recipe: 'fc': expected codec fields or null, got str 'pq'"),
    ("codec", "fc: {codec: zip}", r"recipe: 'fc': codec: expected one of \[.*'pq', .*\], got str 'zip'"),
    ("codec list", "fc: {codec: [pq]}", r"recipe: 'fc': codec: expected one of \[.*'pq', .*\], got list \['pq'\]"),
    ("no codec", "fc: {k: 3}", r"recipe: 'fc': codec: expected one of \[.*'pq', .*\], got NoneType None"),
    ("field", "fc: {codec: pq, kk: 3}", r"'fc': codec 'pq': expected fields among \['k', 'd', .*\], got str 'kk'"),
    ("value", "fc: {codec: pq, k: '3'}", r"recipe: 'fc': codec .*: PQ.k: expected an integer in .*, got str '3'"),
    ("key", "1: {codec: pq}", "recipe: expected name patterns, got int 1"),
    ("a bomb", BOMB, r"recipe: expected at most 100000 values, aliases written out, got 1\.23e\+08"),
    ("part of itself", "fc: &a {codec: additive, parts: [*a, *a]}", "expected at most 100000 values, .* got inf"),
    ("long", "#" * (1 << 20) + "\n", "recipe: expected at most 1048576 characters of YAML, got 1048577"),
    ("no date", "fc: 2001-13-45", "recipe: expected YAML, .* ValueError: month must be in 1..12"),
    ("no number", "fc: {codec: pq, k: 0x_}", "recipe: expected YAML, .* ValueError: invalid literal"),
    ("no boolean", "fc: !!bool foo", "recipe: expected YAML, .* KeyError: 'foo'"),
    ("no integer", "fc: !!int ''", "recipe: expected YAML, .* IndexError"),
    ("no time", "fc: !!timestamp foo", "recipe: expected YAML, .* AttributeError"),
    ("an integer as a mapping", "!!int {=: 5}", "recipe: expected a mapping of patterns to codecs, got int 5"),
    ("nothing as a mapping", "!!null {=: }", "recipe: expected a mapping of patterns to codecs, got NoneType None"),
    ("many digits", "fc: {codec: pq, k: " + "9" * 5000 + "}", "expected YAML, .* ValueError: Exceeds the limit"),
    ("many bits", "fc: {codec: intn, bits: 0x" + "f" * 5000 + "}", "IntN.bits: .* got of 20000 bits"),
    ("no text", None, "recipe: expected YAML text, got NoneType None"),
]  # fmt: skip


@table(MODEL, PIPELINE)
def test_bad_calls_on_models(call: Callable[[], Any], kind: type[PQNetError], match: str) -> None:
    check(call, kind, match)


@pytest.mark.parametrize(("text", "match"), [pytest.param(*row[1:], id=row[0]) for row in YAML])
def test_bad_recipes(text: Any, match: str) -> None:
    check(lambda: Recipe.from_yaml(text), C, match)
    assert not os.listdir()


def test_recipe_files_must_be_readable() -> None:
    Path("recipe.yaml").write_bytes(b"\xff\xfe\xff")
    for path in ("missing.yaml", ".", "recipe.yaml", None):
        check(lambda path=path: Recipe.read(path), P, f"recipe: expected a readable YAML file, got {path}")


# -- graphs ----------------------------------------------------------------------------------------------------


def graph(*nodes: Node, params: Mapping[str, Any] | None = None, **fields: Any) -> Graph:
    default = Graph({"x": ValueInfo(("batch", 8))}, {"y": "y"}, list(nodes), dict(params or {}), {"batch": 2})
    return replace(default, **fields)


def relu(name: str = "n", inputs: tuple[str, ...] = ("x",), output: str = "y", **attrs: Any) -> Node:
    return Node("relu", name, inputs, (output,), attrs)


def linear(**roles: str) -> Node:
    return Node("linear", "n", ("x",), ("y",), {}, roles)


GRAPHS: list[tuple[str, Graph, type[PQNetError], str]] = [
    ("operation", graph(Node("magic", "n", ("x",), ("y",))), U, "op: expected one of the .*, got 'magic'"),
    ("attribute", graph(relu(slope=1)), P, r"node 'n' \(relu\): relu: unknown attributes \['slope'\]"),
    ("attribute type", graph(Node("softmax", "n", ("x",), ("y",), {"axis": "1"})), P,
     r"node 'n' \(softmax\): softmax.axis: expected int .*, got str '1'"),
    ("no attribute", graph(Node("softmax", "n", ("x",), ("y",))), P, "'n' .*: attribute 'axis' is missing"),
    ("undefined", graph(relu(inputs=("z",))), P, r"node 'n' \(relu\): input value 'z' is not defined before it"),
    ("name twice", graph(relu(output="z"), relu(inputs=("z",))), P, r"node 'n' \(relu\): the name is used twice"),
    ("value twice", graph(relu(), relu("m")), P, r"node 'm' \(relu\): value 'y' is defined twice"),
    ("unused", graph(relu(), params={"w": WEIGHT}), P, r"parameters \['w'\] are used by no node"),
    ("inputs", graph(relu(inputs=("x", "x"))), P, r"node 'n' \(relu\): expected 1 to 1 inputs, got 2"),
    ("outputs", graph(Node("relu", "n", ("x",), ("y", "z"))), P, "node 'n': expected 1 outputs, got 2"),
    ("no output", graph(), P, "output 'y': value 'y' is not defined"),
    ("no inputs", graph(inputs={}), P, "graph: expected inputs and outputs, got 0 and 1"),
    ("dtype", graph(relu(), inputs={"x": ValueInfo((2,), "float64")}), P,
     "input 'x': expected dtype float32 or int64 or .* or bool, got 'float64'"),
    ("symbol", graph(relu(), symbols={}), P, r"symbols: expected a size .* for each of \['batch'\], .*, got \{\}"),
    ("no role", graph(linear()), P, r"node 'n' \(linear\): parameter 'weight' is missing"),
    ("no parameter", graph(linear(weight="w")), P, r"node 'n' \(linear\): parameter 'w' is not in the graph"),
    ("role", graph(linear(weight="w", scale="w"), params={"w": WEIGHT}), P, r"unknown parameter roles \['scale'\]"),
    ("packed", graph(linear(weight="w", bias="b"), params={"w": PACKED, "b": PACKED}), P,
     "parameter 'b' is packed, but only weights of .*'linear', 'embedding'.* may be"),
    ("packed activation", graph(Node("prelu", "n", ("x",), ("y",), {}, {"weight": "w"}), params={"w": PACKED}), P,
     r"node 'n' \(prelu\): parameter 'w' is packed"),
    ("float64", graph(linear(weight="w"), params={"w": np.ones((3, 8))}), P,
     "parameter 'w': expected a float32, int64, .*bool, float16 or packed array, got float64 array"),
    ("list", graph(linear(weight="w"), params={"w": [[1.0]]}), P, r"parameter 'w': .*, got list \[\[1.0\]\]"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "kind", "match"), [pytest.param(*row[1:], id=row[0]) for row in GRAPHS])
def test_bad_graphs(bad: Graph, kind: type[PQNetError], match: str) -> None:
    check(lambda: Model(bad), kind, match)
