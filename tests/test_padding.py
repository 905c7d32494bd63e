"""Padding of texts counts for nothing: padded batches give what the same texts give one by one, each in its length."""

from dataclasses import replace

import numpy as np
import pytest

import pqnet
from pqnet import PQ, Model, PQNetError
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.pipeline.sensitivity import network_gains

RECIPE = {"words": PQ(8, 2, "channel"), "default": PQ(32, 2, "channel")}


def rand(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    """Embedding, attention among the positions that are no padding, two linear layers around a norm."""
    shape = ("batch", "length")
    b = GraphBuilder(
        {"ids": ValueInfo(shape, "int64"), "attention_mask": ValueInfo(shape, "int64")}, {"batch": 2, "length": 5}
    )
    mask = b.add("reshape", b.add("cast", "attention_mask", dtype="bool"), shape=("batch", 1, "length"))
    x = b.add("embedding", "ids", name="words", params={"weight": rand(50, 12)})
    x = b.add("attention", x, x, x, mask)
    x = b.add("linear", x, name="inner", params={"weight": rand(16, 12), "bias": rand(16)})
    x = b.add(
        "layer_norm", b.add("relu", x), name="norm", params={"weight": rand(16), "bias": rand(16, seed=1)}, axes=1
    )
    return Model(b.build({"output": b.add("linear", x, name="outer", params={"weight": rand(8, 16), "bias": rand(8)})}))


@pytest.fixture(scope="module")
def texts():
    """Texts of 1 to 11 tokens, alone and padded in batches of 16 with tokens that occur nowhere else."""
    rng = np.random.default_rng(0)
    alone = [rng.integers(0, 40, (1, rng.integers(1, 12))) for _ in range(64)]
    ids = np.full((64, 11), 45)
    for i, text in enumerate(alone):
        ids[i, : text.size] = text
    lengths = np.array([text.size for text in alone])
    mask = (np.arange(11) < lengths[:, None]).astype(np.int64)
    return (
        [{"ids": text, "attention_mask": np.ones_like(text)} for text in alone],
        [{"ids": ids[i : i + 16], "attention_mask": mask[i : i + 16]} for i in range(0, 64, 16)],
    )


def test_statistics_are_of_the_texts_alone(model, texts):
    alone, padded = (pqnet.calibrate(model, batches) for batches in texts)
    assert alone.layers["words"].mean[45] == padded.layers["words"].mean[45] == 0
    for name, moments in alone.layers.items():
        assert padded.layers[name].count == moments.count == sum(b["ids"].size for b in texts[0])
        assert np.allclose(padded.layers[name].mean, moments.mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", ["full", "block"])
def test_codes_are_those_of_the_texts_alone(model, texts, metric):
    alone, padded = (
        pqnet.quantize(model, RECIPE, batches, metric=metric, progress=False).graph.meta["quantization"]["layers"]
        for batches in texts
    )
    for name, layer in alone.items():
        assert padded[name]["output_error"] == pytest.approx(layer["output_error"], rel=2e-3), name


@pytest.mark.parametrize("corrected", [None, {"inner": np.ones(1), "outer": np.linspace(0.5, 2, 8)}])
def test_gains_are_those_of_the_texts_alone(model, texts, corrected):
    def perturb(node):
        weight = model.graph.params[node.params["weight"]]
        return [weight + 0.1 * rand(*weight.shape, seed=2)]

    found = (network_gains(model.graph, part, perturb, ["inner", "outer"], 1, corrected) for part in texts)
    alone, padded = ({name: reach.gain for name, [reach] in part.items()} for part in found)
    assert padded == pytest.approx(alone, rel=1e-4)


def test_plans_and_presets_are_made_from_padded_texts(model, texts):
    """Biases make up for the mean errors of the layers, which are those of the words."""
    data = {name: np.concatenate([batch[name] for batch in texts[1]]) for name in ("ids", "attention_mask")}
    measured = pqnet.pipeline.measure(model, data, progress=False)
    assert all(0 < measured.gains[name](None, 0.01) < 100 for name in ("words", "inner", "outer"))
    small = pqnet.quantize(model, "small-blocks", data, progress=False)
    assert small.graph.meta["quantization"]["layers"]


def test_a_batch_of_nothing_but_padding_is_refused(model, texts):
    batch = {**texts[1][0], "attention_mask": np.zeros_like(texts[1][0]["attention_mask"])}
    for use in (pqnet.calibrate, lambda m, b: pqnet.quantize(m, RECIPE, b, progress=False)):
        with pytest.raises(PQNetError, match="attention_mask.*batch of zeros"):
            use(model, [batch])


def renamed(model, name):
    """The network with another name for its mask."""
    graph, mask = model.graph, "attention_mask"
    inputs = {name if n == mask else n: info for n, info in graph.inputs.items()}
    nodes = [replace(n, inputs=tuple(name if v == mask else v for v in n.inputs)) for n in graph.nodes]
    return Model(replace(graph, inputs=inputs, nodes=nodes))


def test_a_mask_by_another_name_is_noticed(model, texts):
    alone, padded = ([{"ids": b["ids"], "mask": b["attention_mask"]} for b in batches] for batches in texts)
    other = renamed(model, "mask")
    with pytest.warns(UserWarning, match="input 'mask' looks like the mask of padded texts"):
        pqnet.calibrate(other, padded)
    pqnet.calibrate(other, alone)  # no zeros, nothing to leave out
    pairs = [{"ids": b["ids"], "token_type_ids": b["mask"]} for b in padded]
    pqnet.calibrate(renamed(model, "token_type_ids"), pairs)


def test_golden_texts_are_words_without_padding(model):
    """They were zeros, mask included: a network that was ruined gave what was recorded."""
    golden = model.draw_golden()
    inputs = golden.inputs()
    assert (inputs["attention_mask"] == 1).all() and len(np.unique(inputs["ids"])) > 5 and inputs["ids"].max() < 50
    again = model.draw_golden()
    assert all(np.array_equal(again.inputs()[name], a) for name, a in inputs.items())
    ruined = pqnet.quantize(model, {"*": PQ(1, 2)}, metric="none", progress=False)
    assert golden.largest_difference(ruined.run(inputs)) > 0.1


def test_golden_integers_that_a_network_refuses_are_zero():
    b = GraphBuilder({"ids": ValueInfo(("batch",), "int64")}, {"batch": 64})
    moved = b.add("add", "ids", scalar=9)
    picked = b.add("embedding", moved, params={"weight": rand(10, 3)})
    golden = Model(b.build({"output": picked})).draw_golden()
    assert not golden.inputs()["ids"].any()
