"""Graphs as ONNX models: every operation, every codec, whole networks, in ONNX Runtime."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import nets
import numpy as np
import pytest
from onnxfiles import assert_agrees, noise, outputs, runtime
from test_ops import CASES, build, evaluate

import pqnet
from pqnet import Additive, Fixed, IntN, Model, PQNetError, Scalar, UnsupportedOpError
from pqnet.codecs import Codec, PackedPQ, Sparse
from pqnet.graph import OPS, GraphBuilder, ValueInfo
from pqnet_converters import from_onnx, to_onnx
from pqnet_converters.onnx.writer.writer import WRITERS

# Where a runtime may do as it likes: NaN among numbers that are compared, integers to negative powers.
UNDEFINED = {"sign", "max", "min", "argmax", "argmin"}
WITHOUT = {"cumprod", "shift_left", "shift_right", "heatmap_peaks"}
# Where boxes may be upside down or none, see below.
ELSEWHERE = {"nms", "roi_align", "paste_masks"}


def test_every_operation_has_a_form_but_few() -> None:
    assert set(OPS) - set(WRITERS) == WITHOUT


def _defined(op: str, inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> bool:
    if any(x.size == 0 for x in inputs) or op in WITHOUT | ELSEWHERE:
        return False
    if op in UNDEFINED and any(x.dtype.kind == "f" and np.isnan(x).any() for x in inputs):
        return False
    whole = all(x.dtype.kind == "i" for x in inputs)
    return not (op == "pow" and whole and (len(inputs) == 2 or (attrs["scalar"] < 0)))


DEFINED = [case for case in CASES if _defined(case[0], case[1], case[3])]


@pytest.mark.parametrize(
    ("op", "inputs", "params", "attrs"), DEFINED, ids=[f"{i}-{c[0]}" for i, c in enumerate(DEFINED)]
)
def test_operations(
    op: str, inputs: tuple[np.ndarray, ...], params: dict[str, np.ndarray], attrs: dict[str, Any]
) -> None:
    n_outputs = len(attrs["sizes"]) if op == "split" else 2 if op == "topk" else 1
    graph = build(op, [x.copy() for x in inputs], params, n_outputs, **attrs)
    feed = dict(zip(graph.inputs, inputs, strict=True)) if inputs else {"unused": np.zeros(1, np.float32)}
    session = runtime(to_onnx(graph))
    got = outputs(session, {value.name: feed[value.name] for value in session.get_inputs()})
    for name, want in evaluate(graph, [x.copy() for x in inputs]).items():
        assert got[name].shape == want.shape and got[name].dtype == want.dtype
        np.testing.assert_allclose(got[name], want, rtol=2e-5, atol=2e-6)


def window(n: int) -> dict[str, Any]:
    return {"stride": (2, 1, 1)[:n], "padding": (1, 0, 1)[:n] + (0, 1, 1)[:n], "dilation": (1, 2, 1)[:n], "groups": 2}


DRAWN: list[tuple[str, tuple[np.ndarray, ...], dict[str, np.ndarray], dict[str, Any], int]] = [
    *(
        (f"conv{n}d", (noise(2, 6, *(7,) * n),), {"weight": noise(8, 3, *(2,) * n), "bias": noise(8)}, window(n), 1)
        for n in (1, 2, 3)
    ),
    *(
        (
            f"conv_transpose{n}d",
            (noise(2, 6, *(5,) * n),),
            {"weight": noise(8, 3, *(2,) * n)},
            window(n) | {"output_padding": (1, 0, 0)[:n]},
            1,
        )
        for n in (1, 2, 3)
    ),
    ("max_pool2d", (noise(1, 2, 9, 8),), {}, {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 0, 1, 1)}, 1),
    (
        "avg_pool2d",
        (noise(1, 2, 9, 8),),
        {},
        {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 0, 1, 1), "count_include_pad": False},
        1,
    ),
    ("avg_pool2d", (noise(1, 2, 9, 8),), {}, {"kernel": (3, 2), "stride": (2, 2), "divisor": 5}, 1),
    *(
        ("interpolate", (noise(1, 2, 5, 6),), {}, {"size": (9, 4), "mode": m, "align_corners": c}, 1)
        for m in ("bilinear", "bicubic")
        for c in (False, True)
    ),
    ("interpolate", (noise(1, 2, 5, 6),), {}, {"size": (10, 18)}, 1),
    ("interpolate", (noise(1, 2, 8, 8),), {}, {"size": (4, 5), "mode": "bilinear", "antialias": True}, 1),
    ("slice", (noise(4, 9),), {}, {"axis": 1, "start": -2, "stop": None, "step": -3}, 1),
    *(
        ("rnn", (noise(2, 4, 3), noise(2, 3)), {"weight": noise(3, 3)}, {"nonlinearity": k}, 2)
        for k in ("tanh", "relu")
    ),
    (
        "lstm",
        (noise(2, 4, 12), noise(2, 3), noise(2, 3, seed=1)),
        {"weight": noise(12, 3), "bias": noise(12)},
        {"reverse": True},
        3,
    ),
    ("gru", (noise(2, 4, 9),), {"weight": noise(9, 3), "bias": noise(9)}, {}, 2),
]


@pytest.mark.parametrize(
    ("op", "inputs", "params", "attrs", "n_outputs"), DRAWN, ids=[f"{i}-{c[0]}" for i, c in enumerate(DRAWN)]
)
def test_layers(
    op: str, inputs: tuple[np.ndarray, ...], params: dict[str, np.ndarray], attrs: dict[str, Any], n_outputs: int
) -> None:
    graph = build(op, [x.copy() for x in inputs], params, n_outputs, **attrs)
    got = outputs(runtime(to_onnx(graph)), dict(zip(graph.inputs, inputs, strict=True)))
    for name, want in evaluate(graph, [x.copy() for x in inputs]).items():
        np.testing.assert_allclose(got[name], want, rtol=1e-4, atol=1e-5)


CODECS: list[Codec] = [
    *(pqnet.PQ(k=k, d=4, layout=layout) for k in (16, 256) for layout in ("spatial", "channel")),
    pqnet.PQ(k=100, d=4, codebook_dtype="int8"),
    pqnet.PQ(k=1, d=4),
    pqnet.PQ(k=300, d=2, codebook_dtype="float32"),
    Scalar(5),
    Fixed("ternary"),
    Fixed("pow2", scale="none", exponent=3),
    *(IntN(bits, per="channel", symmetric=symmetric) for bits in (3, 8) for symmetric in (True, False)),
    IntN(4, per="group", group=18),
    Additive([pqnet.PQ(k=32, d=4), Sparse(fraction=0.05)]),
]


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_packed_weights_stay_codes(codec: Codec) -> None:
    b = GraphBuilder({"x": ValueInfo(("batch", 8, 6, 6)), "ids": ValueInfo(("batch", 3), "int64")}, {"batch": 2})
    h = b.add("conv2d", "x", params={"weight": codec.fit(noise(32, 8, 3, 3))})
    flat = b.add("reshape", b.add("slice", h, axis=1, stop=8), shape=("batch", -1))
    y = b.add(
        "linear", b.add("slice", flat, axis=1, stop=72), params={"weight": codec.fit(noise(64, 72)), "bias": noise(64)}
    )
    rows = b.add("embedding", "ids", params={"weight": codec.fit(noise(60, 36))})
    model = Model(b.build({"h": h, "y": y, "rows": rows}))
    feed = {"x": noise(3, 8, 6, 6), "ids": np.random.default_rng(0).integers(0, 60, (3, 3))}
    proto = to_onnx(model)
    assert_agrees(model, runtime(proto), feed)
    stored = sum(len(t.raw_data) or 4 * len(t.float_data) for t in proto.graph.initializer)
    weights = [p for p in model.graph.params.values() if not isinstance(p, np.ndarray)]
    assert stored < 1.35 * sum(p.code_nbytes + 4 * p.codebook_nbytes for p in weights) + 1000


def test_float16_parameters_stay_so() -> None:
    b = GraphBuilder({"x": ValueInfo(("batch", 8))}, {"batch": 2})
    y = b.add("linear", "x", params={"weight": noise(64, 8).astype(np.float16)})
    model = Model(b.build({"y": y}))
    proto = to_onnx(model)
    assert proto.ByteSize() < 64 * 8 * 2 + 500
    assert_agrees(model, runtime(proto), {"x": noise(3, 8)})


def test_sizes_that_depend_on_others() -> None:
    b = GraphBuilder({"x": ValueInfo(("n", "m"))}, {"n": 4, "m": 6})
    rows = b.add("slice", "x", axis=0, stop="n//2 max 1")
    wide = b.add("expand", b.add("reshape", rows, shape=("n//2 max 1", 1, "m")), shape=("n//2 max 1", "m-n+12", "m"))
    count = b.add("arange", start="-n", end="(m-1)//4*2")
    model = Model(b.build({"wide": wide, "count": count, "filled": b.add("full", shape=("n*m", 2), value=1.5)}))
    session = runtime(to_onnx(model))
    for shape in ((4, 6), (1, 9), (7, 2)):
        assert_agrees(model, session, {"x": noise(*shape)})


@pytest.mark.parametrize("name", ["residual", "attention"])
def test_an_output_that_is_an_input_or_a_parameter(name: str) -> None:
    b = GraphBuilder({"x": ValueInfo((2, 3))})
    constant = b.add("constant", params={"value": noise(4)})
    model = Model(b.build({"same": "x", name: constant, "again": constant}))
    assert_agrees(model, runtime(to_onnx(model)), {"x": noise(2, 3)})


def test_what_has_no_onnx_form_is_listed() -> None:
    b = GraphBuilder({"x": ValueInfo((2, 3)), "i": ValueInfo((2,), "int64")})
    y, z = b.add("cumprod", "x", name="a", axis=0), b.add("shift_left", "i", name="b", scalar=1)
    with pytest.raises(UnsupportedOpError, match=r"without an ONNX form: cumprod \(a\); shift_left \(b\)"):
        to_onnx(b.build({"y": y, "z": z}))
    with pytest.raises(PQNetError, match="model: expected a pqnet.Model or a Graph, got str"):
        to_onnx("model.h5")


def boxes(rng: np.random.Generator, *shape: int, size: float = 20.0) -> np.ndarray:
    corners = np.sort(rng.random((*shape, 2, 2)) * size, -2)
    return corners.reshape(*shape, 4).astype(np.float32)


@pytest.mark.parametrize("in_classes", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_suppression_keeps_the_same_boxes(in_classes: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = {"boxes": ("n", "m", 4), "scores": ("n", "m")}
    b = GraphBuilder(
        {n: ValueInfo(s) for n, s in shape.items()} | {"c": ValueInfo(("n", "m"), "int64")}, {"n": 2, "m": 40}
    )
    values = ["boxes", "scores", "c"][: 3 if in_classes else 2]
    places, count = b.add_many("nms", values, 2, k="m min 12", iou_threshold=0.2)
    model = Model(b.build({"places": places, "count": count}))
    session = runtime(to_onnx(model))
    for n, m in ((2, 40), (1, 5), (3, 200)):
        scores = rng.standard_normal((n, m)).astype(np.float32).round(1)  # some are equal
        scores[rng.random((n, m)) < 0.3] = -np.inf
        if m == 40:
            scores[1] = -np.inf
        feed = {"boxes": boxes(rng, n, m), "scores": scores, "c": rng.integers(-1, 3, (n, m))}
        got, want = outputs(session, feed), model.run(feed)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])
        assert want["count"].all() == (m != 40)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
def test_regions_of_several_maps(aligned: bool, ratio: int) -> None:
    infos = {"rois": ValueInfo(("r", 4)), "of": ValueInfo(("r",), "int64")}
    infos |= {"fine": ValueInfo(("n", 3, "h", "w")), "coarse": ValueInfo(("n", 3, 6, 5))}
    b = GraphBuilder(infos, {"r": 7, "n": 2, "h": 12, "w": 10})
    attrs = {"size": (3, 2), "sampling_ratio": ratio, "aligned": aligned}
    model = Model(b.build({"y": b.add("roi_align", "rois", "of", "fine", "coarse", **attrs)}))
    session, rng = runtime(to_onnx(model)), np.random.default_rng(0)
    for r, n in ((7, 2), (20, 1)):
        feed = {"rois": boxes(rng, r, size=9.0), "of": rng.integers(0, 2 * n, r)}
        feed |= {"fine": noise(n, 3, 12, 10), "coarse": noise(n, 3, 6, 5)}
        assert_agrees(model, session, feed)


def test_pasted_masks() -> None:
    b = GraphBuilder({"masks": ValueInfo(("r", 5, 5)), "boxes": ValueInfo(("r", 4))}, {"r": 2})
    model = Model(b.build({"y": b.add("paste_masks", "masks", "boxes", size=(30, 24))}))
    rng = np.random.default_rng(0)
    found = np.concatenate([boxes(rng, 12, size=30.0) - 3, [[0, 0, 0, 0], [5, 5, 5.2, 9], [-50, 2, -40, 9]]])
    feed = {"masks": rng.random((15, 5, 5)).astype(np.float32), "boxes": found.astype(np.float32)}
    assert_agrees(model, runtime(to_onnx(model)), feed)


NETS = {
    "resnet": (lambda: nets.resnet18(10), (3, 32, 32), "float32"),
    "mobilenet": (nets.mobilenet_v3, (3, 64, 64), "float32"),
    "unet": (nets.SmallUNet, (3, 32, 32), "float32"),
    "vit": (nets.VisionTransformer, (3, 32, 32), "float32"),
    "language model": (nets.TiedLanguageModel, (12,), "int64"),
}


def imported(name: str) -> tuple[Model, dict[str, np.ndarray]]:
    """Return a network with random weights and three samples for it."""
    import torch

    from pqnet_converters import from_torch

    make, shape, dtype = NETS[name]
    torch.manual_seed(0)
    x = noise(3, *shape) if dtype == "float32" else np.random.default_rng(0).integers(0, 50, (3, *shape))
    net = nets.randomise(make())
    with torch.no_grad():
        for parameter in net.parameters():  # copies of one layer start out equal
            parameter += 0.01 * torch.randn_like(parameter)
    return from_torch(net, torch.from_numpy(x[:2])), {"input": x}


@pytest.mark.parametrize("name", NETS)
def test_networks(name: str) -> None:
    """There and back: what is imported from ONNX has the layers and the outputs of what was exported."""
    model, feed = imported(name)
    proto = to_onnx(model)
    assert_agrees(model, runtime(proto), feed)
    again = from_onnx(proto.SerializeToString())
    assert_agrees(again, runtime(proto), feed)
    assert list(again.graph.layers()) == list(model.graph.layers())
    for layer, node in model.graph.layers().items():
        ours, theirs = (
            m.graph.params[n.params["weight"]] for m, n in ((model, node), (again, again.graph.layers()[layer]))
        )
        assert np.array_equal(ours, theirs)


def test_a_quantized_network_stays_small() -> None:
    model, feed = imported("resnet")
    rng, params = np.random.default_rng(0), dict(model.graph.params)
    for node in list(model.graph.layers().values())[1:]:
        shape = tuple(params[node.params["weight"]].shape)
        codec = pqnet.PQ(256, 4 if shape[-1] == 1 or len(shape) == 2 else 9, clamp="floor").check(shape)
        codes = rng.integers(0, codec.k, (shape[0], math.prod(shape[1:]) // codec.d))
        book = rng.standard_normal((codec.k, codec.d)) / math.sqrt(math.prod(shape[1:]))
        params[node.params["weight"]] = PackedPQ(codec, shape, codes, book.astype(np.float16))
    small = Model(replace(model.graph, params=params))
    proto = to_onnx(small)
    assert proto.ByteSize() < 1.02 * small.size().total + 60_000  # statistics of norms, nodes and names
    assert_agrees(small, runtime(proto), feed)
