"""What each part of the search of codes brings: networks quantized without training, at the bytes of a preset.

Every row of the table differs in one thing from the row it is compared with: paper modes, metric, target, repair,
layout, codec, channel order, budget. Networks are the CIFAR-10 ResNets (1000 calibration images) and Tiny Darknet (each
half of 500 ImageNet images calibrated with the other); figures are right answers, squared relative errors of the
network's outputs and of the layers' outputs, bytes as the papers count them, and seconds. Needs the folder of real data
(``../shared/data``), PyTorch and the tests' network definitions. `plot_sizes.py` draws the table.

Example: ``python bench/bench_quality.py --csv bench/quality.csv > quality.jsonl``
"""

import argparse
import csv
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import emit, machine

import pqnet
from pqnet import PQ, Additive, Recipe
from pqnet.codecs import Codec
from pqnet.pipeline.rates import codec_nbytes
from pqnet.pipeline.recipe import resolve_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from realdata import cifar10, cifar_resnet_module, imagenet_dev, tiny_darknet

Kind = Callable[[int, tuple[int, ...]], Codec]  # of K and the shape of a weight
SIZES = (0.7, 1.0, 1.5, 2.5)  # of plans, in sizes of the preset small-blocks


@dataclass(frozen=True)
class Net:
    """A network, and pairs of calibration images and images with labels that it is judged on."""

    name: str
    model: pqnet.Model
    folds: list[tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Variant:
    """A row of the table: a recipe, made for the bytes of a preset, and options of `pqnet.quantize`."""

    name: str
    kind: Kind | None = None
    options: dict[str, Any] = field(default_factory=dict)


def cifar(name: str, test_images: int) -> Net:
    import torch

    from pqnet_converters import from_torch

    model = from_torch(cifar_resnet_module(name), torch.zeros(2, 3, 32, 32))
    pick = np.sort(np.random.default_rng(0).choice(20000, 1000, replace=False))
    return Net(name, model, [(cifar10("train")[0][pick], *cifar10("test", test_images))])


def darknet() -> Net:
    images, labels = imagenet_dev()
    x = np.ascontiguousarray((images.astype(np.float32) / 255).transpose(0, 3, 1, 2))
    halves = [slice(0, None, 2), slice(1, None, 2)]
    return Net("tiny-darknet", tiny_darknet(), [(x[a], x[b], labels[b]) for a, b in (halves, halves[::-1])])


def variants(preset: str) -> Iterator[Variant]:
    """Yield the rows of the table for the block sizes of a preset."""
    yield Variant("bgd", None, {"mode": "bgd"})
    yield Variant("bgd, norms re-estimated", None, {"mode": "bgd", "reestimate_norm": True})
    yield Variant("pqf", None, {"mode": "pqf"})
    yield Variant("ipq", None, {"mode": "ipq"})
    plain = {"target": "weight", "correct_bias": False}
    for metric in ("none", "pooled", "block", "full"):
        yield Variant(f"metric {metric}", None, {"metric": metric, **plain})
    yield Variant("metric block, norms re-estimated", None, {"metric": "block", "reestimate_norm": True})
    yield Variant("full, biases corrected", None, {"target": "weight"})
    yield Variant("full, teacher's outputs", None, {"correct_bias": False})
    yield Variant("full, both (default)")
    yield Variant("default, norms re-estimated", None, {"reestimate_norm": True})
    large = preset == "large-blocks"
    yield Variant("channel layout", lambda k, shape: channel(k, shape, 16 if large else 8))
    yield Variant(
        "channel layout, channels permuted", lambda k, s: channel(k, s, 16 if large else 8), {"permute": True}
    )
    yield Variant("int8 codewords", lambda k, shape: spatial(k, shape, large, "int8"))
    yield Variant("sum of two codebooks", lambda k, shape: Additive([spatial(k, shape, large)] * 2))


def spatial(k: int, shape: tuple[int, ...], large: bool, dtype: str = "float16") -> PQ:
    """Return the blocks of the presets."""
    taps = int(np.prod(shape[2:]))
    d = taps * (2 if large else 1) if taps > 1 else (8 if large and len(shape) == 4 else 4)
    return PQ(k, d, codebook_dtype=dtype, clamp="floor")  # type: ignore[arg-type]


def channel(k: int, shape: tuple[int, ...], d: int) -> PQ:
    return PQ(k, d if len(shape) == 4 else 4, "channel", clamp="floor")


def recipe_of(model: pqnet.Model, preset: str, kind: Kind | None) -> Recipe:
    """Return the preset, or the recipe of this kind with the largest K whose weights take no more bytes."""
    layers = model.graph.layers()
    chosen = {name: codec for name, codec in resolve_recipe(preset, model.graph).items() if codec is not None}
    shapes = {name: tuple(model.graph.params[layers[name].params["weight"]].shape) for name in chosen}
    if kind is None:
        return Recipe(chosen)

    def nbytes(codecs: dict[str, Codec]) -> int:
        parts = [(part, shapes[n]) for n, c in codecs.items() for part in (c.parts if isinstance(c, Additive) else [c])]
        return sum(codec_nbytes(part.check(shape), shape) for part, shape in parts)

    def of(k: int) -> dict[str, Codec]:
        return {name: kind(k, shape) for name, shape in shapes.items()}

    ks = range(2, 4097)
    return Recipe(of(ks[bisect_right(ks, nbytes(chosen), key=lambda k: nbytes(of(k))) - 1]))


def judge(net: Net, recipe: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Quantize with every fold's calibration images; return figures over all folds."""
    right = total = 0
    gaps, errors, seconds, size = [], [], 0.0, 0
    for calibration, images, labels in net.folds:
        start = time.perf_counter()
        chosen = recipe(calibration) if callable(recipe) else recipe
        small = pqnet.quantize(net.model, chosen, calibration, progress=False, **options)
        seconds += time.perf_counter() - start
        parts = [slice(i, i + 50) for i in range(0, len(images), 50)]
        wanted, got = (np.concatenate([model(images[part]) for part in parts]) for model in (net.model, small))
        right, total = right + int((got.argmax(1) == labels).sum()), total + len(labels)
        gaps.append(float(np.square(got - wanted).sum() / np.square(wanted).sum()))
        layers = small.graph.meta["quantization"]["layers"].values()
        errors.append(float(np.mean([layer["output_error"] for layer in layers])))
        size = max(size, small.size().total)
    return {
        "bytes": size,
        "ratio": net.model.size().total / size,
        "top1": 100 * right / total,
        "network_error": float(np.mean(gaps)),
        "layer_error": float(np.mean(errors)),
        "seconds": seconds / len(net.folds),
    }


def rows(net: Net) -> Iterator[dict[str, Any]]:
    right = [(net.model(images).argmax(1) == labels) for _, images, labels in net.folds]
    dense = net.model.size().total
    yield {"preset": "", "variant": "float32", "bytes": dense, "ratio": 1.0, "top1": 100 * float(np.mean(right))}
    for preset in ("small-blocks", "large-blocks"):
        budget = 0
        for variant in variants(preset):
            figures = judge(net, recipe_of(net.model, preset, variant.kind), variant.options)
            budget = budget or figures["bytes"]
            yield {"preset": preset, "variant": variant.name, **figures}
        for share in SIZES if preset == "small-blocks" else (1.0,):
            wanted = int(share * budget)
            figures = judge(net, lambda data, size=wanted: pqnet.plan(net.model, data, size, progress=False), {})
            yield {"preset": preset, "variant": f"plan, {share:g} of the bytes", **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=["resnet20", "resnet32", "tiny-darknet"])
    parser.add_argument("--test-images", type=int, default=10000)
    parser.add_argument("--csv")
    args = parser.parse_args()
    emit("machine", **machine())
    table = []
    for name in args.networks:
        net = darknet() if name == "tiny-darknet" else cifar(name, args.test_images)
        for row in rows(net):
            table.append({"network": name, **row})
            emit("quality", **table[-1])
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, list(table[1]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in table)


if __name__ == "__main__":
    main()
