"""Published checkpoints, run from their codes, and Tiny Darknet in float: right answers on 500 ImageNet images.

Needs the folder of real data (``../shared/data``), PyTorch and the tests' network definitions.

Example: ``python bench/bench_real.py > real.jsonl``
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import DATA, emit, machine

import pqnet

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from realdata import imagenet_dev, normalise, tiny_darknet


def top1(model: pqnet.Model, images: np.ndarray, labels: np.ndarray, batch: int) -> float:
    logits = [model(images[i : i + batch]) for i in range(0, len(images), batch)]
    return 100 * float((np.concatenate(logits).argmax(1) == labels).mean())


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
    emit("machine", **machine())
    published()


if __name__ == "__main__":
    main()
