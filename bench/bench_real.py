"""The main job on real networks: CIFAR-10 ResNets quantized from 1000 images, published checkpoints, Tiny Darknet.

Needs the folder of real data (``../shared/data``), PyTorch and the tests' network definitions.

Example: ``python bench/bench_real.py --test-images 10000 > real.jsonl``
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import DATA, emit, machine

import pqnet

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from realdata import cifar10, cifar_resnet_module, imagenet_dev, normalise, tiny_darknet


def top1(model: pqnet.Model, images: np.ndarray, labels: np.ndarray, batch: int) -> float:
    logits = [model(images[i : i + batch]) for i in range(0, len(images), batch)]
    return 100 * float((np.concatenate(logits).argmax(1) == labels).mean())


def cifar(test_images: int, metrics: list[str]) -> None:
    import torch

    from pqnet_converters import from_torch

    images, labels = cifar10("test", test_images)
    pick = np.sort(np.random.default_rng(0).choice(20000, 1000, replace=False))
    calibration = cifar10("train")[0][pick]
    for network in ("resnet20", "resnet32"):
        model = from_torch(cifar_resnet_module(network), torch.zeros(2, 3, 32, 32))
        emit("cifar", network=network, preset="float32", top1=top1(model, images, labels, 100))
        for preset in ("small-blocks", "large-blocks"):
            for metric in metrics:
                start = time.perf_counter()
                small = pqnet.quantize(model, preset, calibration, metric=metric, progress=False)
                seconds = time.perf_counter() - start
                layers = small.graph.meta["quantization"]["layers"]
                errors = [e["output_error"] for name, e in layers.items() if name != "linear"]
                norm = pqnet.quantize(model, preset, calibration, metric=metric, reestimate_norm=True, progress=False)
                emit(
                    "cifar",
                    network=network,
                    preset=preset,
                    metric=metric,
                    mean_output_error=float(np.mean(errors)),
                    top1=top1(small, images, labels, 100),
                    top1_reestimated=top1(norm, images, labels, 100),
                    bytes=small.size().total,
                    ratio=small.size().ratio,
                    seconds=seconds,
                )


def published() -> None:
    import pqnet_converters as converters

    images, labels = imagenet_dev()
    x = normalise(images)
    for name, read, arch in (
        ("ktb_resnet18_small_blocks.pth", converters.from_kill_the_bits, "resnet18"),
        ("pqf_resnet18.pth", converters.from_pqf, "resnet18"),
        ("ktb_resnet50_large_blocks.pth", converters.from_kill_the_bits, "resnet50"),
    ):
        model = read(DATA / "checkpoints" / name, arch)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.h5"
            model.save(path)
            loaded, file_bytes = pqnet.load(path), os.path.getsize(path)
        right = top1(loaded, x, labels, 20) * len(x) / 100
        emit("published", file=name, right=round(right), bytes=model.size().total, file_bytes=file_bytes)
    rgb = np.ascontiguousarray((images.astype(np.float32) / 255).transpose(0, 3, 1, 2))
    emit("tiny-darknet", right=round(top1(tiny_darknet(), rgb, labels, 20) * len(rgb) / 100))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--test-images", type=int, default=10000)
    parser.add_argument("--metrics", nargs="*", default=["none", "pooled", "block"])
    args = parser.parse_args()
    emit("machine", **machine())
    cifar(args.test_images, args.metrics)
    published()


if __name__ == "__main__":
    main()
