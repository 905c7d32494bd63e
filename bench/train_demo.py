"""Trains the network of ``pqnet demo``, a residual net on scikit-learn's 8x8 digits; a minute at most on one core.

Writes ``pqnet/demo/digits.h5`` (float weights, raw batch norm) and ``pqnet/demo/digits_images.npz`` (the training
images as calibration set, 500 held-out images with labels). The network takes float32 (batch, 1, 8, 8) in [0, 1],
pixels 0..16 divided by 16. The split is fixed; the same seed gives the same weights on the same kind of machine.

Example: ``python bench/train_demo.py --seed 0 --epochs 40``
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import pqnet
from pqnet.graph import Graph, GraphBuilder, ValueInfo

HELD_OUT = 500
WIDTHS = (64, 80)
LEVELS = 16  # the data set's brightest pixel
DEMO = Path(pqnet.__file__).parent / "demo"


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut, as in ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


class DigitsNet(nn.Module):
    """Stem, one residual block at 8x8, one with stride 2 at 4x4, global average, classifier."""

    def __init__(self) -> None:
        super().__init__()
        narrow, wide = WIDTHS
        self.conv1 = nn.Conv2d(1, narrow, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.layer1 = nn.Sequential(Block(narrow, narrow, 1))
        self.layer2 = nn.Sequential(Block(narrow, wide, 2))
        self.fc = nn.Linear(wide, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training images, their labels, held-out images and theirs: uint8 (n, 8, 8) of 0..16, uint8 (n,)."""
    images, labels = (array.astype(np.uint8) for array in load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(images))  # one split, whatever the seed of the training
    train, held = order[HELD_OUT:], order[:HELD_OUT]
    images = images.reshape(-1, 8, 8)
    return images[train], labels[train], images[held], labels[held]


def to_input(images: np.ndarray) -> Tensor:
    """Return images as the network takes them."""
    return torch.from_numpy(images[:, None].astype(np.float32) / LEVELS)


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by -1, 0 or 1 pixel along both axes, zeros coming in."""
    padded = F.pad(x[:, 0], (1, 1, 1, 1))
    rows, columns = torch.randint(0, 3, (2, len(x), 1), generator=generator) + torch.arange(8)
    return padded[torch.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]][:, None]


def train(images: np.ndarray, labels: np.ndarray, epochs: int, seed: int) -> DigitsNet:
    """Train from random weights with SGD, a one-cycle rate and shifted images."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net, batch = DigitsNet(), 64
    x, y = to_input(images), torch.from_numpy(labels).long()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    steps = len(x) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * steps)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x), generator=generator)[: steps * batch].split(batch):
            loss = F.cross_entropy(net(shifted(x[rows], generator)), y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        if epoch % 5 == 4:
            print(f"epoch {epoch + 1}/{epochs}: mean loss {total / steps:.4f}", flush=True)
    return net.eval()


def to_graph(state: Mapping[str, Tensor], meta: Mapping[str, object]) -> Graph:
    """Build the pqnet graph of the network by hand; node names are those of the modules."""
    b = GraphBuilder({"input": ValueInfo(("batch", 1, 8, 8))}, {"batch": 2})

    def param(name: str) -> np.ndarray:
        return state[name].numpy().copy()

    def conv_bn(x: str, conv: str, bn: str, stride: int = 1) -> str:
        weight = param(f"{conv}.weight")
        margin = weight.shape[2] // 2
        x = b.add("conv2d", x, name=conv, params={"weight": weight}, stride=(stride,) * 2, padding=(margin,) * 4)
        names = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
        return b.add("batch_norm", x, name=bn, params={role: param(f"{bn}.{key}") for role, key in names.items()})

    x = b.add("relu", conv_bn("input", "conv1", "bn1"))
    for block, stride in (("layer1.0", 1), ("layer2.0", 2)):
        y = b.add("relu", conv_bn(x, f"{block}.conv1", f"{block}.bn1", stride))
        y = conv_bn(y, f"{block}.conv2", f"{block}.bn2")
        if stride != 1:
            x = conv_bn(x, f"{block}.downsample.0", f"{block}.downsample.1", stride)
        x = b.add("relu", b.add("add", y, x))
    x = b.add("reshape", b.add("adaptive_avg_pool2d", x, size=(1, 1)), shape=("batch", WIDTHS[-1]))
    x = b.add("linear", x, name="fc", params={"weight": param("fc.weight"), "bias": param("fc.bias")})
    return b.build({"logits": x}, meta)


def main() -> None:
    """Train, write both files, and check the saved network against PyTorch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default 0)")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the 1297 training images (default 40)")
    parser.add_argument("-o", "--output", type=Path, default=DEMO, help="folder to write to (default pqnet/demo)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    images, labels, held, held_labels = split()
    net = train(images, labels, options.epochs, options.seed)
    meta = {
        "source": f"bench/train_demo.py --seed {options.seed} --epochs {options.epochs}",
        "data": "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, 1998, doi 10.24432/C50P49",
        "preprocessing": "float32 (batch, 1, 8, 8): pixels 0..16 divided by 16",
        "labels": [str(digit) for digit in range(10)],
    }
    model = pqnet.Model(to_graph(net.state_dict(), meta))
    model.with_golden(model.draw_golden()).save(options.output / "digits.h5")
    np.savez_compressed(
        options.output / "digits_images.npz", calibration=images, held_out=held, held_out_labels=held_labels
    )

    with torch.no_grad():
        expected = net(to_input(held)).numpy()
    got = pqnet.load(options.output / "digits.h5")(to_input(held).numpy())
    top1 = 100 * float((got.argmax(1) == held_labels).mean())
    print(f"held-out top-1 {top1:.1f} %, {sum(p.numel() for p in net.parameters())} parameters")
    print(f"largest difference to PyTorch {np.abs(got - expected).max():.2e}")
    for name in ("digits.h5", "digits_images.npz"):
        print(f"{options.output / name}: {(options.output / name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
