"""Distillation without labels: CIFAR-10 ResNets at the bytes of the presets, trained to give the float outputs.

For each network and preset, students quantized as "And the Bit Goes Down" does (mode bgd), by default, and by the plan
for a file of no more bytes, all distilled by the same number of steps on 19,000 training images, moved and mirrored,
1000 others to judge by; right answers on the 10,000 test images. Rows that the CSV has already are not run again. Needs
the folder of real data (``../shared/data``) and PyTorch; matplotlib for the plot. One thread each for PyTorch and Numba
(``OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1``) and a network in each of two processes is faster than two threads.

Example: ``python bench/bench_distill.py --steps 600 --csv bench/distill.csv --plot bench/distill.svg > distill.jsonl``
"""

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import emit, machine

import pqnet
from pqnet.io import graph_nbytes

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from realdata import cifar10, cifar_resnet_module

NETWORKS, PRESETS = ("resnet20", "resnet32"), ("small-blocks", "large-blocks")
CODES = ("bgd", "default", "plan")
NAMES = {"bgd": "And the Bit Goes Down", "default": "pqnet", "plan": "pqnet, planned"}
FIELDS = (
    "network",
    "preset",
    "codes",
    "steps",
    "seed",
    "file_bytes",
    "float",
    "before",
    "after",
    "quantize_s",
    "distill_s",
)
HELD_OUT = 1000
SETTINGS: dict[str, Any] = {"temperature": 4.0, "lr": 0.005, "every": 100}


def right(model: pqnet.Model) -> float:
    """Return the share of right answers on the test images, in percent."""
    images, labels = cifar10("test")
    found = np.concatenate([model(images[i : i + 500]).argmax(1) for i in range(0, len(images), 500)])
    return 100 * float((found == labels).mean())


def row(teacher: pqnet.Model, network: str, preset: str, codes: str, steps: int, seed: int) -> dict[str, Any]:
    from pqnet.train import distill, image_batches

    images = cifar10("train")[0]
    pick = np.sort(np.random.default_rng(seed).choice(len(images), 1000, replace=False))
    options: dict[str, Any] = {"mode": "bgd"} if codes == "bgd" else {}
    start = time.perf_counter()
    recipe: Any = preset
    if codes == "plan":
        even = pqnet.quantize(teacher, preset, metric="none", progress=False)
        recipe = pqnet.plan(teacher, images[pick], graph_nbytes(even.graph), seed=seed)
    student = pqnet.quantize(teacher, recipe, images[pick], seed=seed, progress=False, **options)
    middle = time.perf_counter()
    draw = image_batches(images[:-HELD_OUT], seed=seed)
    better = distill(student, teacher, draw, steps=steps, held_out=images[-HELD_OUT:], seed=seed, **SETTINGS)
    end = time.perf_counter()
    figures = (right(teacher), right(student), right(better), middle - start, end - middle)
    return dict(zip(FIELDS, (network, preset, codes, steps, seed, graph_nbytes(better.graph), *figures), strict=True))


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Draw right answers before and after, a group of bars for each network and preset."""
    import matplotlib.pyplot as plt

    groups = list(dict.fromkeys((r["network"], r["preset"]) for r in rows))
    figure, axes = plt.subplots(figsize=(8, 4))
    for i, codes in enumerate(CODES):
        for j, when in enumerate(("before", "after")):
            chosen = {(r["network"], r["preset"]): float(r[when]) for r in rows if r["codes"] == codes}
            at = [k for k, group in enumerate(groups) if group in chosen]
            bars = [k + 0.14 * (2 * i + j) for k in at], [chosen[groups[k]] for k in at], 0.13
            axes.bar(*bars, color=f"C{i}", alpha=1 if j else 0.45, label=f"{NAMES[codes]}, {when}")
    axes.set_xticks(
        np.arange(len(groups)) + 0.3,
        [f"{network.replace('resnet', 'ResNet-')}\n{preset}" for network, preset in groups],
    )
    axes.set_ylabel("right answers, %")
    axes.legend(ncols=3, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--presets", nargs="+", default=PRESETS, choices=PRESETS)
    parser.add_argument("--codes", nargs="+", default=CODES, choices=CODES)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", help="table to add rows to")
    parser.add_argument("--plot", help="SVG file")
    args = parser.parse_args()

    import torch

    from pqnet_converters import from_torch

    emit("machine", **machine(["torch"]))
    rows: list[dict[str, Any]] = []
    if args.csv and Path(args.csv).exists():
        with open(args.csv, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    done = {tuple(str(r[name]) for name in FIELDS[:5]) for r in rows}
    for network in args.networks:
        teacher = from_torch(cifar_resnet_module(network), torch.zeros(2, 3, 32, 32))
        for preset in args.presets:
            for codes in args.codes:
                if (network, preset, codes, str(args.steps), str(args.seed)) in done:
                    continue
                rows.append(row(teacher, network, preset, codes, args.steps, args.seed))
                emit("distill", **rows[-1])
                if args.csv:
                    with open(args.csv, "w", newline="", encoding="utf-8") as file:
                        table = csv.DictWriter(file, FIELDS, lineterminator="\n")
                        table.writeheader()
                        short = [{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows]
                        table.writerows(short)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
