"""Modules as PyTorch's exporter writes them: layers that it takes apart are put together, outputs are PyTorch's."""

import io
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqnet import Model
from pqnet_converters import from_onnx

torch.manual_seed(0)


class Attention(nn.Module):
    """Attention by its parts, the mask added; by parts, hidden with -inf; or as one function."""

    def __init__(self, kind: str, dim: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.kind, self.heads = kind, heads

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        shape = (x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        seen = mask[:, None, None, :]
        if self.kind == "function":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen.bool())
        else:
            scores = q @ k.transpose(-1, -2) / shape[-1] ** 0.5
            added = scores + (1 - seen.float()) * -1e4
            scores = added if self.kind == "added" else scores.masked_fill(~seen.bool(), float("-inf"))
            y = scores.softmax(-1) @ v
        return self.o(y.transpose(1, 2).reshape(x.shape))


class RootMeanSquare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.fc = nn.Parameter(torch.rand(32)), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight)


class Gates(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        gate = F.relu6(x + 3) / 6
        own = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
        return (gate, x * gate, F.silu(x), F.mish(x), F.gelu(x), F.gelu(x, approximate="tanh"), own, F.hardswish(x))


class UpAndDown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.up, self.out = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(11, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = F.relu(self.norm(self.down(x)))
        z = F.interpolate(self.up(y), size=x.shape[2:], mode="bilinear")
        return self.out(torch.cat([x, z], 1)), F.adaptive_avg_pool2d(y, 1).flatten(1), F.interpolate(y, scale_factor=2)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True), nn.GRU(32, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.lstm(x)[0])[0][:, -1]


class Moves(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        ids = (x[:, :, 0] * 3).long().clamp(0, 4)
        parts = torch.einsum("bij,bkj->bik", x, x), x.cumsum(1), x.flip(1), torch.tril(x), x.chunk(2, 1)[1]
        chosen = torch.topk(x, 3, -1)[0], F.one_hot(ids, 5).float(), x.gather(1, ids[:, :, None])
        return (*parts, *chosen, F.pad(x, (1, 2), mode="reflect"), F.normalize(x, dim=-1), x.flatten(1).std(1))


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.prelu = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.GroupNorm(2, 8), nn.PReLU(8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        b, c, h, w = x.shape
        y = self.prelu(self.norm(self.conv(x))).view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        pooled = F.max_pool2d(y, 3, 2, 1, ceil_mode=True), F.avg_pool2d(y, 3, 2, 1)
        return F.pixel_shuffle(y, 2), *pooled, F.softplus(y), F.elu(y), F.leaky_relu(y, 0.2), F.instance_norm(y)


def masked(n: int, t: int) -> tuple[Tensor, Tensor]:
    mask = torch.ones(n, t)
    mask[0, t // 2 :] = 0
    return torch.randn(n, t, 32), mask


FREE, TEXT, IMAGE = {0: "b"}, {0: "b", 1: "t"}, {0: "b", 2: "h", 3: "w"}
CONVNET = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Hardswish(), nn.Flatten(), nn.Linear(288, 5))
NORMED = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))
# Module, inputs of the export and others, free axes of each input, operations that must be there and how often.
MODULES: dict[str, tuple[nn.Module, list[tuple[Tensor, ...]], dict[int, str], dict[str, int]]] = {
    "convnet": (CONVNET, [(torch.randn(n, 3, 8, 8),) for n in (2, 3)], FREE, {"hardswish": 1, "linear": 1}),
    "layer norm": (NORMED, [(torch.randn(n, 8),) for n in (2, 5)], FREE, {"layer_norm": 1, "gelu": 1, "linear": 2}),
    **{
        f"attention {kind}": (Attention(kind), [masked(2, 6), masked(3, 9)], TEXT, {"attention": 1, "linear": 4})
        for kind in ("added", "hidden", "function")
    },
    "rms norm": (RootMeanSquare(), [(torch.randn(2, t, 32),) for t in (6, 4)], TEXT, {"rms_norm": 1, "linear": 1}),
    "gates": (Gates(), [(4 * torch.randn(2, 9),)], FREE, {"silu": 1, "mish": 1, "hardswish": 2, "gelu": 3}),
    "u-net": (UpAndDown(), [(torch.randn(1, 3, n, 24),) for n in (16, 20)], IMAGE, {"interpolate": 2, "conv2d": 2}),
    "recurrent": (Recurrent(), [(torch.randn(n, t, 8),) for n, t in ((2, 5), (3, 9))], TEXT, {"lstm": 4, "gru": 1}),
    "moves": (Moves(), [(torch.randn(n, 6, 6),) for n in (2, 3)], FREE, {"topk": 1, "cumsum": 1}),
    "shuffle": (Shuffle(), [(torch.randn(n, 8, 6, 6),) for n in (2, 3)], FREE, {"group_norm": 2, "prelu": 1}),
}


def exported(module: nn.Module, inputs: tuple[Tensor, ...], axes: dict[int, str], opset: int) -> bytes:
    file, names = io.BytesIO(), [f"x{i}" for i in range(len(inputs))]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        free = dict.fromkeys(names, axes)
        torch.onnx.export(module, inputs, file, dynamo=False, opset_version=opset, input_names=names, dynamic_axes=free)
    return file.getvalue()


@pytest.mark.parametrize("opset", [14, 17])
@pytest.mark.parametrize("name", MODULES)
def test_modules_as_exporters_write_them(name: str, opset: int) -> None:
    module, inputs, axes, ops = MODULES[name]
    model = from_onnx(exported(module.eval(), inputs[0], axes, opset))
    counted = Counter(node.op for node in model.graph.nodes)
    assert {op: counted[op] for op in ops} == ops
    for tensors in inputs:
        with torch.no_grad():
            wanted = module(*tensors)
        assert_close(model, tensors, wanted)


def assert_close(model: Model, tensors: tuple[Tensor, ...], wanted: Any) -> None:
    got = model(*(t.numpy() for t in tensors))
    pairs = zip(got, wanted, strict=True) if isinstance(wanted, tuple) else [(got, wanted)]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


def test_layers_have_the_names_of_modules() -> None:
    data = exported(Attention("added").eval(), masked(2, 6), TEXT, 17)
    assert list(from_onnx(data).graph.layers()) == ["q", "k", "v", "o"]
    data = exported(NORMED.eval(), (torch.randn(2, 8),), FREE, 17)
    assert [n.name for n in from_onnx(data).graph.nodes if n.params] == ["0", "1", "3"]
