"""LeNet300 on MNIST, compressed directly (DC), by iterated direct compression (iDC) and by learning-compression (LC).

784-300-100-10 with tanh, from a float network of 2.13 % test error; every layer has a learned list of 2 to 64 values,
or a fixed one. iDC and LC see the same batches at the same learning rates (but for LC's limit of 1/mu): SGD with
Nesterov momentum, of which the first step takes twice the epochs. The ratio is as the papers count: ceil(log2 K) bits
for a weight, 32 for each value or scale and each bias. Rows in the file of ``--csv`` are kept and not computed again.
Needs the folder of real data (``../shared/data``) and PyTorch; matplotlib for the plot.

Example: ``python bench/bench_lc.py --csv bench/lc.csv --plot bench/lc.svg``
"""

import argparse
import csv
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from common import DATA, emit, machine
from torch import Tensor, nn
from torch.nn import functional as F

from pqnet import Fixed, Scalar
from pqnet.codecs import Codec
from pqnet.train import LC, find_weights

CODECS: dict[str, Codec] = {
    **{f"K={k}": Scalar(k) for k in (2, 4, 8, 16, 32, 64)},
    "binary, scaled": Fixed("binary", "closed"),
    "ternary, scaled": Fixed("ternary", "closed"),
    "powers of two": Fixed("pow2", "none"),
}
Split = tuple[Tensor, Tensor]


def mnist() -> tuple[Split, Split]:
    """Return images less the mean of the training images, and labels, of both splits."""
    with h5py.File(DATA / "mnist.h5") as f:
        images = [f[f"{s}_images"][:].reshape(-1, 784).astype(np.float32) / 255 for s in ("train", "test")]
        labels = [torch.from_numpy(f[f"{s}_labels"][:].astype(np.int64)) for s in ("train", "test")]
    x = [torch.from_numpy(i - images[0].mean(0)) for i in images]
    return (x[0], labels[0]), (x[1], labels[1])


def lenet300() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(784, 300), nn.Tanh(), nn.Linear(300, 100), nn.Tanh(), nn.Linear(100, 10))
    with np.load(DATA / "checkpoints" / "lenet300_mnist.npz") as arrays:
        for i in range(3):
            for role in ("weight", "bias"):
                net[2 * i].get_parameter(role).data = torch.from_numpy(arrays[f"output.compressible_{i}.{role}"])
    return net


@torch.no_grad()
def test_error(net: nn.Module, split: Split) -> float:
    """Return the test error in percent."""
    return 100 * float((net.eval()(split[0]).argmax(1) != split[1]).double().mean())


def ratio(net: nn.Module, codec: Codec) -> float:
    """Return how much smaller the network is, as the papers count."""
    weights = sum(math.prod(weight.form.shape) for weight in find_weights(net).values())
    other = sum(p.numel() for p in net.parameters()) - weights
    values = codec.k if isinstance(codec, Scalar) else int(codec.scaled)  # type: ignore[attr-defined]
    bits = math.ceil(math.log2(codec.k))  # type: ignore[attr-defined]
    return 32 * (weights + other) / (weights * bits + 32 * (other + values * len(find_weights(net))))


def batches(train: Split, size: int, generator: torch.Generator) -> Iterator[Split]:
    """Yield the batches of one epoch."""
    order = torch.randperm(len(train[0]), generator=generator)
    for at in range(0, len(order), size):
        rows = order[at : at + size]
        yield train[0][rows], train[1][rows]


def schedule(args: argparse.Namespace) -> Iterator[tuple[float, int]]:
    """Yield what mu grows by after each L step, and the epochs of the step."""
    mu, first = args.mu, 2
    while mu < args.last_mu:
        slow = mu < args.turn
        growth = args.growth if slow else args.late_growth
        yield growth, first * (args.epochs if slow else args.late_epochs)
        mu, first = mu * growth, 1


def learn(codec: Codec, method: str, train: Split, args: argparse.Namespace) -> tuple[nn.Module, dict[str, Any]]:
    """Return the packed network, CPU seconds and epochs, and of LC the gap before packing."""
    net = lenet300()
    lc = LC(net, {"*": codec}, mu=args.mu if method == "lc" else 0, seed=args.seed)
    if method == "idc":
        lc.compress()  # it trains from what is packed
    generator = torch.Generator().manual_seed(args.seed)
    start, epochs = time.process_time(), 0
    for step, (lc.growth, passes) in enumerate(schedule(args)):
        optimizer = torch.optim.SGD(net.parameters(), args.lr * args.decay**step, momentum=0.9, nesterov=True)
        lc.clip_lr(optimizer)
        for _ in range(passes):
            total = 0.0
            for x, y in batches(train, args.batch, generator):
                optimizer.zero_grad()
                loss = F.cross_entropy(net(x), y)
                (loss + lc.penalty()).backward()
                optimizer.step()
                total += float(loss.detach()) * len(y)
        epochs += passes
        lc.compress()
        emit("step", method=method, step=step, next_mu=lc.mu, loss=total / len(train[0]), gap=lc.gap)
    gap = {"lc_gap": lc.gap} if method == "lc" else {}
    lc.finish()
    return net, {"epochs": epochs, f"{method}_seconds": time.process_time() - start, **gap}


def row_of(name: str, data: tuple[Split, Split], args: argparse.Namespace) -> dict[str, Any]:
    """Compute a row of the table: one codec, three methods."""
    codec, net = CODECS[name], lenet300()
    train, test = data
    row: dict[str, Any] = {"codec": name, "ratio": ratio(net, codec), "reference_error": test_error(net, test)}
    biases = sum(p.nbytes for name, p in net.named_parameters() if name.endswith("bias"))
    packed = LC(net, {"*": codec}, seed=args.seed).finish()
    row |= {"bytes": biases + sum(w.packed().nbytes for w in packed.values()), "dc_error": test_error(net, test)}
    for method in ("lc", "idc"):
        net, figures = learn(codec, method, train, args)
        row |= {f"{method}_error": test_error(net, test), **figures}
    return row


def draw(table: list[dict[str, Any]], path: str) -> None:
    """Plot test errors over compression ratios."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "pqnet"
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator

    figure, axis = pyplot.subplots(figsize=(6, 4))
    axis.axhline(float(table[0]["reference_error"]), color="black", linewidth=0.8, label="float32")
    for color, method in enumerate(("dc", "idc", "lc")):
        for marker, line, learned in (("o", "-", True), ("x", "", False)):
            rows = [r for r in table if r["codec"].startswith("K=") == learned]
            points = [(float(r["ratio"]), float(r[f"{method}_error"])) for r in rows]
            label = f"{method.upper().replace('IDC', 'iDC')}, {'learned' if learned else 'fixed'} values"
            x, y = zip(*points, strict=True) if points else ((), ())
            axis.plot(x, y, color=f"C{color}", marker=marker, linestyle=line, label=label)
    axis.set(xlabel="compression ratio", ylabel="test error, %", xscale="log", yscale="log")
    for ticks, at in ((axis.xaxis, (5, 8, 10, 15, 30)), (axis.yaxis, (2, 3, 5, 10, 20))):
        ticks.set_major_locator(FixedLocator(at))
        ticks.set_minor_locator(NullLocator())
        ticks.set_major_formatter("{x:g}")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codecs", nargs="*", choices=CODECS, default=list(CODECS))
    parser.add_argument("--mu", type=float, default=1e-4, help="of the first L step")
    parser.add_argument("--growth", type=float, default=1.25)
    parser.add_argument("--turn", type=float, default=0.1, help="mu from which on it grows by --late-growth")
    parser.add_argument("--late-growth", type=float, default=2.0)
    parser.add_argument("--last-mu", type=float, default=10.0)
    parser.add_argument("--epochs", type=int, default=3, help="of an L step up to the turn")
    parser.add_argument("--late-epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--decay", type=float, default=0.94, help="of the learning rate from step to step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", help="rows are added as they come")
    parser.add_argument("--plot", help="file for the plot; needs matplotlib")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    emit("machine", **machine(["torch"]))
    table: list[dict[str, Any]] = []
    if args.csv and Path(args.csv).exists():
        with open(args.csv, newline="") as file:
            table = list(csv.DictReader(file))
    data = mnist()
    for name in args.codecs:
        if name not in [row["codec"] for row in table]:
            row = row_of(name, data, args)
            emit("lc", **row)
            table.append({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
            if args.csv:
                write(table, args.csv)
    if args.plot:
        draw(table, args.plot)


def write(table: list[dict[str, Any]], path: str) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
