"""The bytes of presets, moved between layers."""

import sys
from itertools import product

import numpy as np
import pytest
from test_calibration import X, error, thin_net
from test_pipeline import rand

import pqnet
from pqnet import PQ, ConfigError, IntN, Model
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.pipeline.balance import _choose, balance
from pqnet.pipeline.recipe import resolve_recipe


def two_paths(share):
    """Return two convolutions side by side, of the second of which the outputs are smaller by a factor."""
    b = GraphBuilder({"input": ValueInfo(("batch", 64, 4, 4))}, {"batch": 2})
    attrs = {"stride": (1, 1), "dilation": (1, 1), "padding": (0, 0, 0, 0), "groups": 1}
    paths = []
    for i, (name, size) in enumerate({"much": 1.0, "little": share}.items(), 1):
        y = b.add("conv2d", "input", name=name, params={"weight": rand(64, 64, 1, 1, seed=i)}, **attrs)
        factor = {"weight": np.full(64, size, np.float32), "bias": np.zeros(64, np.float32)}
        paths.append(b.add("batch_norm", y, name=f"{name}_norm", params=factor, eps=0.0))
    return Model(b.build({"output": b.add("concat", *paths, axis=1)}))


def test_codewords_go_where_the_outputs_gain_from_them():
    model, images = two_paths(0.2), rand(64, 64, 4, 4, seed=3)
    codecs = {name: PQ(128, 4, "channel") for name in ("much", "little")}
    found = balance(model.graph, codecs, [{"input": images}], 0, 1)
    bits = {name: c.bits if isinstance(c, IntN) else np.log2(c.k) / c.d for name, c in found.items()}
    assert bits["much"] > bits["little"]
    shape = (64, 64, 1, 1)
    assert sum(c.nbytes(shape).total for c in found.values()) <= sum(c.nbytes(shape).total for c in codecs.values())
    better, plain = (pqnet.quantize(model, recipe, images, progress=False) for recipe in (found, codecs))
    others = rand(64, 64, 4, 4, seed=4)
    assert error(better, model, others) < 0.8 * error(plain, model, others)


def test_filters_count_as_they_are_packed(monkeypatch):
    """A norm gives filters of any sizes back what they are packed without: the same function, the same errors."""
    b = GraphBuilder({"input": ValueInfo(("batch", 64, 4, 4))}, {"batch": 2})
    attrs = {"stride": (1, 1), "dilation": (1, 1), "padding": (0, 0, 0, 0), "groups": 1}
    weights = rand(64, 64, 1, 1, seed=1), rand(64, 64, 1, 1, seed=2)
    paths = []
    for name, size in {"even": np.ones(64), "uneven": np.geomspace(1e-3, 1e3, 64)}.items():
        x = "input"
        for i, (weight, factor) in enumerate(zip(weights, (1.0, 0.2), strict=True)):
            scaled = (size[:, None, None, None] * weight).astype(np.float32)
            x = b.add("conv2d", x, name=f"{name}{i}", params={"weight": scaled}, **attrs)
            norm = {"weight": (factor / size / 8).astype(np.float32), "bias": np.zeros(64, np.float32)}
            x = b.add("batch_norm", x, name=f"{name}{i}_norm", params=norm, eps=0.0)
        paths.append(x)
    model, images = Model(b.build({"output": b.add("concat", *paths, axis=1)})), rand(64, 64, 4, 4, seed=3)
    codecs = {name: PQ(128, 4, "channel") for name in ("even0", "even1", "uneven0", "uneven1")}
    rated = []
    monkeypatch.setattr(sys.modules["pqnet.pipeline.balance"], "_choose", lambda *args: rated.append(args[1]))
    balance(model.graph, codecs, [{"input": images}], 0, 1)
    for i in "01":
        for codec, expected in rated[0][f"even{i}"].items():
            assert rated[0][f"uneven{i}"][codec] == pytest.approx(expected, rel=0.3), (i, codec)


def test_choice_is_the_best_of_all():
    rng = np.random.default_rng(0)
    shapes = dict.fromkeys("abc", (32, 32))
    codecs = [PQ(k, d) for k in (8, 16, 32, 64) for d in (2, 4)]
    now = dict.fromkeys(shapes, PQ(16, 2))
    options = {name: {codec: 2.0 if codec == now[name] else rng.random() for codec in codecs} for name in shapes}
    room = sum(now[name].nbytes(shape).total for name, shape in shapes.items())

    def total(choice):
        fits = sum(c.nbytes((32, 32)).total for c in choice) <= room
        return sum(options[name][c] for name, c in zip(shapes, choice, strict=True)) if fits else np.inf

    best = min(product(codecs, repeat=3), key=total)
    assert tuple(_choose(now, options, shapes).values()) == best
    assert _choose(dict(zip(shapes, best, strict=True)), options, shapes) is None  # nothing to gain


def test_presets_are_balanced_by_default_and_tell(tmp_path):
    model = thin_net(dead=False)
    small, same = (
        pqnet.quantize(model, "small-blocks", X, progress=False, threads=n, checkpoint=tmp_path) for n in (1, 2)
    )
    plain = pqnet.quantize(model, "small-blocks", X, progress=False, balanced=False)
    for name, param in small.graph.params.items():
        decoded = [p.decode() if hasattr(p, "decode") else p for p in (param, same.graph.params[name])]
        np.testing.assert_array_equal(*decoded)
    told = [m.graph.meta["quantization"]["balanced"] for m in (small, plain)]
    assert told == [True, False]
    preset = resolve_recipe("small-blocks", model.graph)
    weights = {n: model.graph.params[node.params["weight"]].shape for n, node in model.graph.layers().items()}
    room = sum(codec.nbytes(weights[name]).total for name, codec in preset.items() if codec)
    assert sum(e["bytes"] for e in small.graph.meta["quantization"]["layers"].values()) <= room
    named = pqnet.quantize(model, {n: c for n, c in preset.items() if c}, X, progress=False)
    assert not named.graph.meta["quantization"]["balanced"]  # as asked for


def test_modes_have_the_codewords_of_the_papers():
    model = thin_net(dead=False)
    with pytest.raises(ConfigError, match="balanced: expected None with mode='ipq'"):
        pqnet.quantize(model, "small-blocks", mode="ipq", balanced=True, progress=False)
    assert not pqnet.quantize(model, "small-blocks", mode="ipq", progress=False).graph.meta["quantization"]["balanced"]


def test_checkpoint_tells_integers_tried_instead_from_codecs_asked_for(tmp_path):
    model = thin_net(dead=False)
    statistics = pqnet.calibrate(model, X, progress=False)
    codecs = {name: codec for name, codec in resolve_recipe("small-blocks", model.graph).items() if codec}

    def names(recipe, folder):
        small = pqnet.quantize(model, recipe, statistics, progress=False, checkpoint=folder)
        return [entry["codec"]["codec"] for entry in small.graph.meta["quantization"]["layers"].values()]

    preset = names("small-blocks", tmp_path)
    assert "intn" in preset and names(codecs, tmp_path) == ["pq"] * len(codecs)
