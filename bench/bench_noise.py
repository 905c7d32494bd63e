"""What quantization noise in training is worth: accuracy after quantization, by the rate p of the noise.

A convolutional net (5000 images of CIFAR-10 at 16x16) and a transformer (SST-2 phrases) are trained without noise, then
trained on with noise at rate p, zeros (``proxy``) or the codec's own values (``exact``), and then quantized without
further training: all weights but the first convolution's, as integers of 4 or 8 bits or by PQ. Figures are shares of
right answers on test data that training has not seen, before and after quantization. p = 0 trains on as long, without
noise; p = 1 exact is quantization-aware training. Needs the folder of real data (``../shared/data``) and PyTorch;
matplotlib for the plot. Rows that the CSV file has already are not made again.

Example: ``NUMBA_NUM_THREADS=1 python bench/bench_noise.py --csv bench/noise.csv --plot bench/noise.svg > noise.jsonl``
"""

import argparse
import copy
import csv
import itertools
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import DATA, emit, machine
from torch import Tensor, nn

from pqnet import PQ, IntN
from pqnet.codecs import Codec
from pqnet.train import QuantNoise, attach

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from realdata import cifar10

RATES = (0.05, 0.1, 0.2, 0.5, 1.0)
NAMES = {"pq": "product quantization", "int4": "4-bit integers", "int8": "8-bit integers"}
FIELDS = ("task", "codec", "phi", "p", "seed", "before", "after", "seconds")
INTEGERS: dict[str, dict[str, Codec | None]] = {
    f"int{bits}": {"default": IntN(bits, "tensor", "minmax", symmetric=False)} for bits in (4, 8)
}


@dataclass(frozen=True)
class Task:
    """A network, its data, how long it is trained, and the codecs of its weights by name."""

    name: str
    make: Callable[[], nn.Module]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    steps: tuple[int, int]  # without noise, and then with it
    codecs: dict[str, dict[str, Codec | None]]


def images() -> Task:
    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU()]

    def make() -> nn.Module:
        layers = [*block(3, 32, 1), *block(32, 64, 2), *block(64, 64, 2), nn.AvgPool2d(2), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(256, 10))

    data = []
    for split, n in (("train", 5000), ("test", 4000)):
        pixels, labels = map(torch.from_numpy, cifar10(split, n))
        data.append((F.avg_pool2d(pixels, 2), labels))
    pq = {"default": PQ(32, 9), "11": PQ(32, 8), "0": None}
    codecs = {"pq": pq} | {name: {**what, "0": None} for name, what in INTEGERS.items()}
    return Task("images", make, *data, (400, 200), codecs)  # type: ignore[arg-type]


class Reader(nn.Module):  # type: ignore[misc]
    """A transformer that tells the sentiment of up to `LENGTH` words."""

    LENGTH = 16

    def __init__(self, words: int, width: int = 32) -> None:
        super().__init__()
        self.tokens = nn.Embedding(words, width, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(self.LENGTH, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        empty = ids == 0
        x = self.layers(self.tokens(ids) + self.places, src_key_padding_mask=empty)
        mask = ~empty[:, :, None]
        return self.head((x * mask).sum(1) / mask.sum(1))


def texts() -> Task:
    found = {}
    for split in ("train", "dev"):
        lines = (DATA / "text" / f"sst2_alps_{split}.tsv").read_text("utf-8").splitlines()[1:]
        rows = [line.split("\t") for line in lines]
        found[split] = [re.findall(r"\w+|[^\w\s]", row[0]) or ["?"] for row in rows], [int(row[1]) for row in rows]
    counts = Counter(word for words in found["train"][0] for word in words)
    index = {word: i + 2 for i, (word, _) in enumerate(counts.most_common(3000))}
    data = []
    for split, n in (("train", 20000), ("dev", 4000)):
        order = np.random.default_rng(0).permutation(len(found[split][0]))[:n]
        ids = np.zeros((len(order), Reader.LENGTH), np.int64)
        for row, i in zip(ids, order, strict=True):
            words = found[split][0][i][: Reader.LENGTH]
            row[: len(words)] = [index.get(word, 1) for word in words]
        data.append((torch.from_numpy(ids), torch.tensor([found[split][1][i] for i in order])))
    codecs = {"pq": {"default": PQ(64, 8, clamp="floor")}} | INTEGERS
    return Task("texts", lambda: Reader(len(index) + 2), *data, (400, 200), codecs)  # type: ignore[arg-type]


def train(net: nn.Module, task: Task, steps: int, rate: float, seed: int) -> None:
    """Train with Adam, the learning rate falling to 0."""
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    inputs, labels = task.train
    net.train()
    for _ in range(steps):
        batch = torch.randint(len(inputs), (64,))
        x = inputs[batch]
        if x.ndim == 4 and torch.rand(()) < 0.5:
            x = x.flip(3)
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels[batch]).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(net: nn.Module, task: Task) -> float:
    inputs, labels = task.test
    net.eval()
    guesses = torch.cat([net(part).argmax(1) for part in inputs.split(500)])
    return float((guesses == labels).float().mean())


def quantized(net: nn.Module, task: Task, codec: str) -> float:
    """Return the accuracy after quantization, the mean of a few starts of k-means."""
    found = []
    for seed in range(3 if codec == "pq" else 1):
        small = copy.deepcopy(net)
        attach(small, task.codecs[codec], seed=seed)
        found.append(accuracy(small, task))
    return float(np.mean(found))


def runs(task: Task, rates: list[float]) -> Iterator[tuple[str, float, list[str]]]:
    """Yield phi, p and the codecs that a training serves: without noise all, with zeros of single weights integers."""
    yield "none", 0.0, list(task.codecs)
    for codecs in (["pq"], list(INTEGERS)):
        for p in rates:
            yield "proxy", p, codecs
            yield from (("exact", p, [codec]) for codec in codecs)


def sweep(task: Task, rates: list[float], seed: int, done: set[tuple]) -> Iterator[dict[str, Any]]:
    """Yield a row for each codec, phi and p that is not done."""
    wanted = [
        (phi, p, left)
        for phi, p, codecs in runs(task, rates)
        if (left := [c for c in codecs if (task.name, c, phi, p, seed) not in done])
    ]
    if not wanted:
        return
    torch.manual_seed(seed)
    start = task.make()
    train(start, task, task.steps[0], 3e-3, seed)
    emit("noise start", task=task.name, seed=seed, accuracy=accuracy(start, task))
    for phi, p, codecs in wanted:
        net, began = copy.deepcopy(start), time.perf_counter()
        noise = None
        if p > 0:
            noise = QuantNoise(net, task.codecs[codecs[0]], p, phi=phi, refresh=50, seed=seed)  # type: ignore[arg-type]
        train(net, task, task.steps[1], 3e-3, seed + 1000)
        if noise is not None:
            noise.remove()
        seconds, right = time.perf_counter() - began, accuracy(net, task)
        for codec in codecs:
            values = task.name, codec, phi, p, seed, right, quantized(net, task, codec), seconds
            yield dict(zip(FIELDS, values, strict=True))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy after quantization over p, the mean of the seeds, for each task and codec."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "pqnet"
    from matplotlib import pyplot

    tasks, codecs = (list(dict.fromkeys(row[key] for row in rows)) for key in ("task", "codec"))
    figure, axes = pyplot.subplots(
        len(tasks), len(codecs), figsize=(3.4 * len(codecs), 2.9 * len(tasks)), squeeze=False
    )
    for line, task in zip(axes, tasks, strict=True):
        for axis, codec in zip(line, codecs, strict=True):
            here = [row for row in rows if (row["task"], row["codec"]) == (task, codec)]
            for phi, name, style in (("proxy", "zeros", "o-"), ("exact", "quantized", "s--")):
                rates = sorted({float(row["p"]) for row in here})
                mine = [(float(row["p"]), 100 * float(row["after"])) for row in here if row["phi"] in (phi, "none")]
                groups = [[value for at, value in mine if at == p] for p in rates]
                axis.plot(range(len(rates)), [np.mean(group) for group in groups], style, label=name)
                for at, group in enumerate(groups):
                    axis.plot([at] * len(group), group, ".", color="0.7", zorder=0)
                axis.set_xticks(range(len(rates)), [f"{p:g}" for p in rates])
            axis.set_title(f"{task}, {NAMES[codec]}")
            axis.set_xlabel("share of the blocks quantized in a step")
        line[0].set_ylabel("right answers, %")
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=["images", "texts"], default=["images", "texts"])
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path, help="rows are added to this file as they come")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    emit("machine", **machine(["torch"]))
    rows: list[dict[str, Any]] = []
    if args.csv and args.csv.exists():
        with args.csv.open(newline="") as file:
            rows = list(csv.DictReader(file))
    done = {(r["task"], r["codec"], r["phi"], float(r["p"]), int(r["seed"])) for r in rows}
    tasks = [{"images": images, "texts": texts}[name]() for name in args.tasks]
    for seed, task in itertools.product(args.seeds, tasks):
        for row in sweep(task, args.rates, seed, done):
            emit("noise", **row)
            rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
            if args.csv:
                new = not args.csv.exists()
                with args.csv.open("a", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                    if new:
                        writer.writeheader()
                    writer.writerow(rows[-1])
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
