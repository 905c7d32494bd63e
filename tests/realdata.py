"""Real images, checkpoints and text beside the repository (``../shared/data``), and the networks that go with them."""

import io
from pathlib import Path

import h5py
import numpy as np
import pytest

from pqnet import Model
from pqnet.graph import GraphBuilder, ValueInfo

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"the folder of real data {DATA.name} is not beside the repository"
)


def normalise(images):
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) with ImageNet's mean and deviation."""
    return np.ascontiguousarray(((images.astype(np.float32) / 255 - MEAN) / STD).transpose(0, 3, 1, 2))


def cifar10(split, n=None):
    """Normalised images and labels."""
    with h5py.File(DATA / "cifar10.h5") as f:
        return normalise(f[f"{split}_images"][:n]), f[f"{split}_labels"][:n].astype(np.int64)


def imagenet_dev(n=None):
    """uint8 images (N, 224, 224, 3) and labels."""
    from PIL import Image

    with h5py.File(DATA / "imagenet_dev.h5") as f:
        images = [np.asarray(Image.open(io.BytesIO(e.tobytes())).convert("RGB")) for e in f["images_encoded"][:n]]
        return np.stack(images), f["labels"][:n].astype(np.int64)


def cifar_resnet_module(name):
    """The float CIFAR-10 ResNets of akamaster/pytorch_resnet_cifar10, as a PyTorch module."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
            self.pad = 0 if stride == 1 else outputs // 4

        def forward(self, x):
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            if self.pad:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
            return F.relu(x + y)

    class ResNet(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            inputs = 16
            for stage, width in enumerate((16, 32, 64)):
                blocks = []
                for b in range(n):
                    blocks.append(Block(inputs, width, 2 if stage and not b else 1))
                    inputs = width
                setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            x = F.relu(self.bn1(self.conv1(x)))
            return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))

    module = ResNet({"resnet20": 3, "resnet32": 5}[name])
    path = next((DATA / "checkpoints").glob(f"{name}-*.th"))
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return module.eval()


def tiny_darknet():
    """Tiny Darknet with its ImageNet weights; input RGB in [0, 1]."""
    plan = "16,3 M 32,3 M 16,1 128,3 16,1 128,3 M 32,1 256,3 32,1 256,3 M 64,1 512,3 64,1 512,3 128,1 1000,1"
    builder = GraphBuilder({"input": ValueInfo(("batch", 3, 224, 224))}, {"batch": 2})
    x, conv = "input", 0
    with np.load(DATA / "checkpoints" / "tinydarknet_imagenet_fp32.npz") as arrays:
        for step in plan.split():
            if step == "M":
                x = builder.add("max_pool2d", x, kernel=(2, 2), stride=(2, 2), padding=(0, 0, 0, 0))
                continue
            pad = int(step.split(",")[1]) // 2
            params = {r: arrays[f"conv{conv}.{r}"] for r in ("weight", "bias") if f"conv{conv}.{r}" in arrays}
            x = builder.add("conv2d", x, name=f"conv{conv}", params=params, padding=(pad, pad, pad, pad))
            if f"bn{conv}.weight" in arrays:
                stored = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
                norm = {role: arrays[f"bn{conv}.{name}"] for role, name in stored.items()}
                x = builder.add("batch_norm", x, name=f"bn{conv}", params=norm, eps=1e-6)
                x = builder.add("leaky_relu", x, negative_slope=0.1)
            conv += 1
    return Model(builder.build({"output": builder.add("mean", x, axes=(2, 3))}))
