"""The main job on real float networks and data."""

import numpy as np
import pytest
from realdata import (
    MiniLM,
    cifar10,
    cifar_resnet_module,
    imagenet_dev,
    minilm_folder,
    needs_data,
    sst2,
    stsb,
    tiny_darknet,
)

import pqnet
from pqnet.pipeline import measure
from pqnet.pipeline.recipe import resolve_recipe

PRESETS = ["small-blocks", pytest.param("large-blocks", marks=pytest.mark.exhaustive)]
# Mean relative output error of the quantized convolutions that a rough prototype reached, by preset and metric.
REACHED = {
    "small-blocks": {"none": 0.087, "pooled": 0.050, "block": 0.041},
    "large-blocks": {"none": 0.198, "pooled": 0.090, "block": 0.067},
}


def top1(model, images, labels):
    logits = np.concatenate([model(images[i : i + 100]) for i in range(0, len(images), 100)])
    return float((logits.argmax(1) == labels).mean())


@pytest.fixture(scope="module")
def cifar():
    """ResNet-20 and -32 converted, 1000 calibration images, test images with labels."""
    torch = pytest.importorskip("torch")
    from pqnet_converters import from_torch

    models = {n: from_torch(cifar_resnet_module(n), torch.zeros(2, 3, 32, 32)) for n in ("resnet20", "resnet32")}
    pick = np.sort(np.random.default_rng(0).choice(20000, 1000, replace=False))
    return models, cifar10("train")[0][pick], cifar10("test", 2000)


@needs_data
def test_float_accuracy_is_the_published_one(cifar):
    models, _, (images, labels) = cifar
    assert top1(models["resnet20"], images, labels) == pytest.approx(0.9173, abs=0.012)  # on the first 2000
    assert top1(models["resnet32"], images, labels) == pytest.approx(0.9263, abs=0.012)


@needs_data
@pytest.mark.parametrize("preset", PRESETS)
def test_output_errors_on_cifar(cifar, preset):
    models, calibration, (images, labels) = cifar
    accuracy = {}
    for metric, bound in REACHED[preset].items():
        small = pqnet.quantize(models["resnet20"], preset, calibration, metric=metric, progress=False)
        layers = small.graph.meta["quantization"]["layers"]
        errors = [entry["output_error"] for name, entry in layers.items() if name != "linear"]
        assert len(errors) == 18
        assert np.mean(errors) <= bound, metric
        accuracy[metric] = top1(small, images, labels)
    assert accuracy["block"] > max(accuracy["none"], accuracy["pooled"])


@needs_data
def test_reestimated_norms_win_accuracy_back(cifar):
    models, calibration, (images, labels) = cifar
    small = pqnet.quantize(models["resnet20"], "small-blocks", calibration, reestimate_norm=True, progress=False)
    assert top1(small, images, labels) > 0.78
    assert small.size().ratio > 11


@needs_data
def test_tiny_darknet_gives_its_324_right_answers():
    model = tiny_darknet()
    images, labels = imagenet_dev()
    x = np.ascontiguousarray((images.astype(np.float32) / 255).transpose(0, 3, 1, 2))
    logits = np.concatenate([model(x[i : i + 20]) for i in range(0, 500, 20)])
    assert int((logits.argmax(1) == labels).sum()) == 324


# Top-1 on the 10,000 test images that a rough prototype kept without training (ResNet-20), or as many points lost.
FLOORS = {
    ("resnet20", "small-blocks"): 89.7,
    ("resnet20", "large-blocks"): 85.8,
    ("resnet32", "small-blocks"): 90.6,
    ("resnet32", "large-blocks"): 86.7,
}


@needs_data
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("network", ["resnet20", pytest.param("resnet32", marks=pytest.mark.exhaustive)])
def test_the_full_metric_keeps_accuracy_without_training(cifar, network, preset):
    models, calibration, _ = cifar
    small = pqnet.quantize(models[network], preset, calibration, progress=False)
    assert 100 * top1(small, *cifar10("test")) >= FLOORS[network, preset]


@needs_data
@pytest.mark.parametrize("preset", PRESETS)
def test_the_full_metric_leaves_half_of_the_error_at_equal_bytes(cifar, preset):
    """Weights as targets and no repair, against "And the Bit Goes Down"."""
    models, calibration, _ = cifar
    options = {"full": {"target": "weight"}, "bgd": {"mode": "bgd"}}
    codecs = resolve_recipe(preset, models["resnet20"].graph)  # by name: none is replaced by integers
    found = {
        n: pqnet.quantize(models["resnet20"], codecs, calibration, progress=False, **o) for n, o in options.items()
    }
    errors = {
        name: np.mean([e["output_error"] for n, e in m.graph.meta["quantization"]["layers"].items() if n != "linear"])
        for name, m in found.items()
    }
    assert found["full"].size().total == found["bgd"].size().total
    assert errors["full"] <= 0.55 * errors["bgd"]


@needs_data
@pytest.mark.exhaustive
def test_tiny_darknet_keeps_its_right_answers():
    """Half of the images calibrate, the other half is asked."""
    model = tiny_darknet()
    images, labels = imagenet_dev()
    x = np.ascontiguousarray((images.astype(np.float32) / 255).transpose(0, 3, 1, 2))

    def right(network):
        return np.concatenate(
            [network(x[i : i + 50 : 2]).argmax(1) == labels[i : i + 50 : 2] for i in range(1, 500, 50)]
        )

    measured, before = measure(model, x[::2], progress=False), right(model)
    for ratio, kept in ((8, 0.90), (16, 0.75)):
        recipe = measured.plan(model.size().dense // ratio).recipe
        small = pqnet.quantize(model, recipe, x[::2], progress=False)
        assert small.size().ratio >= ratio
        assert (right(small) & before).sum() >= kept * before.sum()


@needs_data
def test_sentence_embeddings_stay_with_attention_from_codes():
    """In one layer of a sentence encoder, from padded sentences."""
    pytest.importorskip("transformers")
    minilm_folder()  # skips without it
    encoder = MiniLM(length=32)
    recipe = {"*layer.0.attention*": pqnet.PQ(256, 2, "channel")}
    small = pqnet.quantize(encoder.model, recipe, encoder.tokens(sst2(100)), progress=False)
    sentences = stsb("dev")[0][:60]
    cosine = (encoder.embed(encoder.model, sentences) * encoder.embed(small, sentences)).sum(1)
    assert cosine.mean() >= 0.999


@needs_data
@pytest.mark.exhaustive
def test_sentence_embeddings_stay_near_at_a_tenth_of_the_bytes():
    """All linear layers and embeddings of a sentence encoder, from padded sentences."""
    pytest.importorskip("transformers")
    minilm_folder()  # skips without it
    encoder = MiniLM(length=32)
    recipe = {"default": pqnet.PQ(256, 2, "channel"), "*_embeddings": pqnet.PQ(512, 4, "channel", clamp="floor")}
    small = pqnet.quantize(encoder.model, recipe, encoder.tokens(sst2(400)), progress=False)
    layers = small.size().per_layer.values()
    assert sum(s.dense for s in layers) >= 10 * sum(s.codes + s.codebooks + s.other for s in layers)
    sentences = stsb("dev")[0][:300]
    cosine = (encoder.embed(encoder.model, sentences) * encoder.embed(small, sentences)).sum(1)
    assert cosine.mean() >= 0.96  # 0.97 from 2000 texts of 64 tokens: bench/bench_minilm.py
