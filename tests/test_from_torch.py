"""`from_torch`: whole networks and single operations against PyTorch, names, sharing, and every refusal."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import nets  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from realdata import minilm_folder  # noqa: E402
from torch import nn  # noqa: E402

import pqnet  # noqa: E402
from pqnet import Model, PQNetError, UnsupportedOpError  # noqa: E402
from pqnet_converters import from_torch, statistics_from_activations  # noqa: E402
from pqnet_converters.torch.aten import RULES, rule  # noqa: E402


class Fn(nn.Module):
    """A module that computes a function of itself and the inputs; its keywords are its sub-modules and weights."""

    def __init__(self, function: Callable[..., Any], **members: Any) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def flat(output: Any) -> list[np.ndarray]:
    if isinstance(output, dict):
        output = tuple(output.values())
    outputs = output if isinstance(output, tuple | list) else (output,)
    return [x.numpy() for x in outputs if x is not None]


def compare(model: Model, module: nn.Module, inputs: dict[str, Any], tolerance: float = 1e-4, **keywords: Any) -> None:
    """Run both and compare every output: shape, kind of dtype, and values relative to the largest."""
    with torch.no_grad():
        wanted = flat(module(**inputs) if keywords else module(*inputs.values()))
    got = list(model.run({name: x.numpy() for name, x in inputs.items()}).values())
    assert len(got) == len(wanted)
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a.shape == b.shape, f"output {i}"
        assert a.dtype == (np.float32 if b.dtype.kind == "f" else b.dtype), f"output {i}"
        error = np.abs(a.astype(np.float64) - b).max()
        assert error <= tolerance * np.abs(b.astype(np.float64)).max(), f"output {i}: {error}"


# ---- whole networks

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (nets.resnet18, (3, 224, 224)),
    "resnet50": (nets.resnet50, (3, 64, 64)),
    "mobilenet_v2": (nets.mobilenet_v2, (3, 64, 64)),
    "mobilenet_v3": (nets.mobilenet_v3, (3, 64, 64)),
    "vision transformer": (nets.VisionTransformer, (3, 32, 32)),
    "u-net": (nets.SmallUNet, (3, 16, 24)),
    "language model": (nets.TiedLanguageModel, (12,)),
}


@pytest.mark.parametrize("name", NETS)
def test_networks_give_what_pytorch_gives(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NETS[name]
    net = nets.randomise(make())
    ids = name == "language model"
    model = from_torch(net, torch.zeros(1, *shape, dtype=torch.int64 if ids else torch.float32))
    for batch in (1, 5):
        x = torch.randint(0, 50, (batch, *shape)) if ids else torch.randn(batch, *shape)
        compare(model, net, {"input": x})


def test_parameters_and_layers_have_the_names_of_the_module() -> None:
    net = nets.randomise(nets.resnet18(10))
    graph = from_torch(net, torch.zeros(1, 3, 32, 32)).graph
    wanted = {n: x.numpy() for n, x in net.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert set(graph.params) == set(wanted)
    assert all(np.array_equal(graph.params[n], wanted[n]) for n in wanted)
    layers = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert set(graph.layers()) == set(layers)
    assert {"bn1", "layer1.0.bn2", "layer1.0.add", "relu.relu"} <= {n.name for n in graph.nodes}
    assert graph.symbols == {"batch": 2}
    assert graph.meta == {"source": "torch ResNet"}


def test_an_imported_network_survives_its_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = nets.randomise(nets.SmallUNet())
    from_torch(net, torch.zeros(1, 3, 16, 16)).save(tmp_path / "net.h5")
    compare(pqnet.load(tmp_path / "net.h5"), net, {"input": torch.randn(3, 3, 16, 16)})


# ---- MiniLM, the sentence encoder of a PyPI package


@pytest.fixture(scope="module")
def minilm() -> Any:
    pytest.importorskip("safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        folder = minilm_folder()
        return lambda kind: transformers.BertModel.from_pretrained(folder, attn_implementation=kind)


def sentences(batch: int, token_types: bool) -> dict[str, Any]:
    """Return token ids of random sentences, padded to 32 tokens."""
    generator = torch.Generator().manual_seed(batch)
    lengths = torch.randint(4, 33, (batch, 1), generator=generator)
    inputs = {"input_ids": torch.randint(1000, 30000, (batch, 32), generator=generator)}
    inputs["attention_mask"] = (torch.arange(32) < lengths).long()
    inputs["input_ids"] *= inputs["attention_mask"]
    if token_types:
        inputs["token_type_ids"] = torch.randint(0, 2, (batch, 32), generator=generator)
    return inputs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "token_types"), [("sdpa", False), ("eager", True)])
def test_minilm_gives_what_pytorch_gives(minilm: Any, kind: str, token_types: bool) -> None:
    net = minilm(kind)
    model = from_torch(net, sentences(1, token_types), output_names=["tokens", "pooled"])
    assert ("attention" in {n.op for n in model.graph.nodes}) == (kind == "sdpa")
    for batch in (1, 5):
        inputs = sentences(batch, token_types)
        with torch.no_grad():
            wanted = net(**inputs)
        got = model.run({name: x.numpy() for name, x in inputs.items()})
        for name, reference in (("tokens", wanted[0]), ("pooled", wanted[1])):
            assert np.abs(got[name] - reference.numpy()).max() <= 1e-4 * reference.abs().max().item()


# ---- operations, many to a module because an export takes its time

WIDE, TALL = torch.arange(24.0).reshape(4, 6) / 24 - 0.5, torch.arange(72.0).reshape(4, 3, 6).sin()
LOWER = torch.ones(6, 6).tril().bool()

OPERATIONS: dict[str, list[Callable[[Any], Any]]] = {
    "activation": [
        *(F.relu, torch.sigmoid, torch.tanh, F.silu, F.hardswish, F.hardsigmoid, F.mish, F.gelu, F.relu6, F.softplus),
        *(F.selu, F.elu, F.softsign, F.logsigmoid, F.hardtanh),
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: F.leaky_relu(x, 0.2),
        lambda x: F.celu(x, 1.7),
        lambda x: F.softplus(x, 2.0, 1.0),
        lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3, 0.4])),
        lambda x: F.softmax(x, 1) + F.log_softmax(x, -1),
        lambda x: F.glu(x, 1),
        lambda x: x.clamp(max=0.5),
        lambda x: x.clamp_min(0.1),
        lambda x: x.long().clamp(0, 1),
        lambda x: torch.clamp(x, torch.tensor(-0.5), x.abs() / 2),
        lambda x: F.threshold(x, 0.1, 20.0),
        lambda x: F.dropout(x, 0.5, training=True) * 0,  # always inactive
    ],
    "arithmetic": [
        lambda x: torch.add(x, x, alpha=3) - torch.sub(x, 2, alpha=3) + torch.rsub(x, x, alpha=0.5),
        lambda x: 1 - x,
        lambda x: 2 / x.exp(),
        lambda x: 2**x,
        lambda x: x.abs() ** x + x**2,
        lambda x: x.long() * 2.0,  # becomes float, although 2 is whole
        lambda x: x.long() + 1.5,
        lambda x: x.long() / 2,
        lambda x: (x > 0) * 2,
        lambda x: x * torch.tensor(0.3) + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        lambda x: torch.maximum(x, x.flip(1)) + torch.minimum(x, torch.tensor(0.5)),
        lambda x: torch.div(x, 0.3, rounding_mode="floor") + torch.div(x, 0.3, rounding_mode="trunc"),
        lambda x: x.abs().log1p() + x.expm1() + (x.abs() + 1).log2() + (x.abs() + 1).log10(),
        lambda x: (x.abs() + 1).rsqrt() + (x.abs() + 1).sqrt() + x.erf() + x.sin() * x.cos() - x.sign(),
        lambda x: x.floor() + x.ceil() * 2 + x.round() * 3 + (x.abs() + 1).reciprocal() + (x.abs() + 1).log(),
        lambda x: x.long().abs() - x.long().sign(),
        lambda x: torch.lerp(x, x.flip(1), 0.3) + torch.addcmul(x, x, x, value=2),
        lambda x: x.round().half().float().double() * torch.tensor(3.0, dtype=torch.float64),
        lambda x: x.int(),
    ],
    "logic": [
        lambda x: (x > 0) & (x < 1) | ~(x >= -1) ^ (x <= 0.5),
        lambda x: torch.logical_and(x.long(), x > 0).logical_or(x.long() == 1).logical_not(),
        lambda x: (x != x.flip(1)) == (x > 0),
        lambda x: torch.where(x > 0, x, 0.0) + torch.where(x > 0, x, -x),
        lambda x: torch.where(x > 0, x > 1, x < -1),
        lambda x: x.masked_fill(x > 0, -1.0) + x.masked_fill(x > 1, torch.tensor(2.0)),
        lambda x: torch.nan_to_num(torch.where(x > 0, float("nan"), x)),
        lambda x: x.triu(1) + x.tril(),
    ],
    "reduction": [
        lambda x: x.mean((2, 3)) + x.sum((-1, -2)) + x.amax((2, 3)) - x.amin((2, 3)),
        lambda x: x.mean() + x.sum() + x.max() - x.min(),
        lambda x: x.max(2)[0] + x.min(2)[1] + x.max(2, keepdim=True)[1].squeeze(2),
        lambda x: x.argmax(1) + x.argmin(-3),
        lambda x: x[:1].argmax() * 0 + x[:1].argmin(),
        lambda x: x.std(-1) + x.var(1, correction=0).mean(-1, keepdim=True).expand(-1, -1, 6)[:, :4],
        lambda x: torch.stack(torch.var_mean(x, (1, 2))),
        lambda x: (x > 0).any(1) ^ (x > -1).all(1),
        lambda x: (x > 9).any() | (x > -99).all(),
        lambda x: (x > 0).sum(1) + x.long().sum((1, 2, 3))[:, None, None],
        lambda x: (x > 0).amax(1),
        lambda x: F.normalize(x, dim=1) + x.norm(p=1, dim=1, keepdim=True) + x.norm(p=3, dim=1, keepdim=True),
        lambda x: x.norm(p=float("inf"), dim=1) + x.logsumexp(1),
        lambda x: F.cosine_similarity(x, x.flip(2)),
        lambda x: x.cumsum(1) + (x > 0).cumsum(3),
        lambda x: x.topk(2)[0] + x.topk(2, dim=1, largest=False)[1].sum((1, 3))[:, None, None, :2],
        lambda x: x.sort(2)[0] + x.argsort(dim=3, descending=True, stable=True) + x.sort(0)[0],
        lambda x: (x > 0).sort(1)[0],
    ],
    "shape": [
        lambda x: x.flatten(1).unflatten(1, (2, -1)),
        lambda x: x.permute(0, 2, 3, 1).transpose(1, 3).mT.movedim(1, -1),
        lambda x: x.unsqueeze(1).squeeze(1)[:, None, ::2, 1:-1],
        lambda x: x[:, -1] + x.select(1, 0) + x.narrow(1, 1, 2).sum(1),
        lambda x: x[:, :1].expand(-1, 7, -1, -1),
        lambda x: x.repeat(2, 1, 1, 2, 1)[0],
        lambda x: x.repeat_interleave(2, 1),
        lambda x: torch.cat([x, x.long(), torch.zeros(x.shape[0], 1, 6, 6)], 1),
        lambda x: torch.stack(torch.unbind(x, 2), -1),
        lambda x: torch.cat(x.split([1, 3], -3)[::-1] + x.chunk(2, 1), 1),
        lambda x: F.pad(x, (1, -1, 0, 2), value=3.0),
        lambda x: F.pad(x, (1, 2, 1, 0), "reflect") + F.pad(x, (1, 2, 1, 0), "replicate"),
        lambda x: F.pad(x.flatten(2), (2, 1), "reflect") + F.pad(x.flatten(2), (2, 1), "replicate"),
        lambda x: F.pad(x, (1, 2, 1, 0), "circular"),
        lambda x: torch.roll(x, (1, 2), (2, 3)) + x.flip(-1, 1),
        lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 3),
        lambda x: F.unfold(x, 3, stride=2),
        lambda x: assigned(x, (slice(None), slice(1, 3)), x[:, :2] * 2),
        lambda x: assigned(torch.zeros(x.shape[0], 4, 6, 6), (slice(None), slice(0, 2)), x[:, :2]),
        lambda x: assigned(x, (slice(None), 0), 0.0),
    ],
    "index": [
        lambda x: x[:, torch.tensor([-1, 0])],
        lambda x: x[:, :, torch.tensor([[0], [-1]]), torch.tensor([1, 2, 3])],
        lambda x: x[:, torch.tensor([1, 0]), :, torch.tensor([2, 3])],
        lambda x: x[torch.arange(x.shape[0]), (x[:, 0, 0, 0] > 0).long()],
        lambda x: x[:, :, (x[0, 0, 0] > 0).long(), (x[0, 0, 1] > 0).long() - 1],
        lambda x: x.index_select(2, torch.tensor([3, 1])),
        lambda x: x.gather(1, (x[:, :2, 1:] > 0).long() * 3),
        lambda x: F.embedding((x[:, :, 0, 0] > 0).long(), WIDE),
        lambda x: torch.arange(x.shape[0]).float() + torch.full((x.shape[0],), 2.0) + x.new_empty(x.shape[0]).fill_(1),
        lambda x: torch.ones_like(x[:, :1], dtype=torch.int64),
        lambda x: x[x.shape[0] - 1],
        lambda x: F.interpolate(x.flatten(2), scale_factor=2, mode="linear"),
    ],
    "window": [
        lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True) + F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        lambda x: F.avg_pool2d(x, (3, 2), 1, 1, count_include_pad=False) + F.avg_pool2d(x, (3, 2), 1, 1) * 2,
        lambda x: F.avg_pool2d(x, 2, divisor_override=3) + F.max_pool2d(x, 2, dilation=(1, 1)),
        lambda x: F.max_pool1d(x.flatten(2), 2) + F.avg_pool1d(x.flatten(2), 2),
        lambda x: F.adaptive_avg_pool2d(x, (4, 5)) + F.adaptive_max_pool2d(x, (4, 5)),
        lambda x: F.adaptive_avg_pool1d(x.flatten(2), 5) + F.adaptive_max_pool1d(x.flatten(2), 5),
        lambda x: F.interpolate(x, (7, 9)) + F.interpolate(x, (7, 9), mode="bilinear"),
        lambda x: F.interpolate(x, scale_factor=1.3, mode="bilinear", align_corners=True),
        lambda x: F.interpolate(x, scale_factor=1.3) + F.interpolate(x, scale_factor=1.3, mode="bilinear"),
        lambda x: F.interpolate(x, (9, 4), mode="bicubic") + F.interpolate(x, (9, 4), mode="bicubic", antialias=True),
        lambda x: (
            F.interpolate(x, (9, 4), mode="bicubic", align_corners=True)
            + F.interpolate(x, (9, 4), mode="bilinear", antialias=True)
        ),
        lambda x: (
            F.interpolate(x, scale_factor=1.3, mode="bicubic")
            + F.interpolate(x, scale_factor=(1.3, 1.2), mode="bicubic", antialias=True)
        ),
        lambda x: F.interpolate(x, scale_factor=1.7, recompute_scale_factor=True),
        lambda x: F.interpolate(x, scale_factor=1.5) + F.interpolate(x, scale_factor=(1.5, 1.5), mode="bilinear"),
    ],
    "norm": [
        lambda x: F.layer_norm(x, (6, 6), torch.ones(6, 6) * 2) + F.group_norm(x, 2, torch.arange(4.0)),
        lambda x: F.instance_norm(x),
        lambda x: F.instance_norm(x, torch.ones(4), torch.ones(4) * 2, use_input_stats=False),
        lambda x: F.batch_norm(x, torch.ones(4), torch.ones(4) * 2, eps=0.1),
        lambda x: F.rms_norm(x, (6,)),
    ],
    "product": [
        lambda x: x @ WIDE.t() + F.linear(x, WIDE, torch.arange(4.0)),
        lambda x: x @ TALL.mT,
        lambda x: WIDE @ x.mT @ x @ torch.ones(6),
        lambda x: F.linear(x[0, 0], x[1, 1], x[0, 0, 0]) + F.linear(x[0, 0], x[1, 1]),
        lambda x: torch.addmm(torch.arange(4.0), x.flatten(2)[0, :, :6], WIDE.t()),
        lambda x: torch.addmm(torch.arange(4.0), x[0, 0], WIDE.t(), beta=0.5, alpha=2),
        lambda x: torch.baddbmm(x[:, 0], x[:, 1], x[:, 2]) + torch.baddbmm(x[:, 0], x[:, 1], x[:, 2], beta=0),
        lambda x: torch.einsum("bchw,bdhw->bcd", x, x) + torch.einsum("bchw,dc->bd", x, WIDE[:, :4])[:, None],
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=LOWER),
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=x),
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3),
        lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, 2:], enable_gqa=True),
        lambda x: F.scaled_dot_product_attention(x, x, x, enable_gqa=True),
    ],
    "convolution": [
        lambda x: F.conv2d(x[:, :3], TALL.unflatten(2, (2, 3)), torch.arange(4.0), (1, 2), (0, 1), (2, 1)),
        lambda x: F.conv2d(x, TALL[:, :2].unflatten(2, (3, 2)), padding="same", groups=2),
        lambda x: F.conv_transpose2d(x, TALL.unflatten(2, (2, 3)), stride=2, padding=1, dilation=2, groups=2),
        lambda x: F.conv_transpose2d(x, TALL.unflatten(2, (2, 3)), stride=3, output_padding=(1, 2)),
        lambda x: F.conv1d(x.flatten(2), TALL[:, :2], torch.arange(4.0), stride=2, padding=1, groups=2),
        lambda x: F.conv_transpose1d(x.flatten(2), TALL, stride=2, output_padding=1, groups=2),
    ],
}


def assigned(x: Any, where: Any, value: Any) -> Any:
    x = x.clone()
    x[where] = value
    return x


@pytest.mark.parametrize("family", OPERATIONS)
def test_operations_give_what_pytorch_gives(family: str) -> None:
    module = Fn(lambda _, x: tuple(f(x) for f in OPERATIONS[family]))
    model = from_torch(module, torch.zeros(2, 4, 6, 6))
    generator = torch.Generator().manual_seed(0)
    for batch in (2, 5):
        compare(model, module, {"input": torch.randn(batch, 4, 6, 6, generator=generator) * 2}, tolerance=1e-5)


def test_attention_that_returns_its_weights() -> None:
    torch.manual_seed(2)
    module = Fn(lambda m, x: m.attention(x, x, x), attention=nn.MultiheadAttention(8, 2, batch_first=True)).eval()
    model = from_torch(module, torch.zeros(1, 5, 8))
    compare(model, module, {"input": torch.randn(3, 5, 8)}, tolerance=1e-5)
    assert model.graph.layers().keys() == {"attention.in_proj", "attention.out_proj"}


# ---- statistics of recorded layer inputs


class TokensAsImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(20, 8), nn.Linear(8, 6)
        self.conv, self.fc = nn.Conv2d(6, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.mix(self.embed(ids))).transpose(1, 2).unflatten(2, (3, 4))
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def test_statistics_of_recorded_inputs_are_those_of_calibration() -> None:
    torch.manual_seed(0)
    net = TokensAsImage().eval()
    ids = torch.randint(0, 20, (150, 12))
    model = from_torch(net, ids[:1])
    recorded = {}
    for name in model.graph.layers():
        module = net.get_submodule(name)
        module.register_forward_hook(lambda m, x, y, name=name: recorded.update({name: x[0].detach()}))
    with torch.no_grad():
        net(ids)
    with h5py.File("acts.h5", "w") as file:
        for name, x in recorded.items():
            file[name] = x.numpy()
    want = pqnet.calibrate(model, ids.numpy())
    assert set(want.layers) == {"embed", "mix", "conv", "fc"}
    for activations in (recorded, "acts.h5", Path("acts.h5")):
        got = statistics_from_activations(model, activations)
        assert got.layers.keys() == want.layers.keys()
        for name, moments in want.layers.items():
            assert got.layers[name].count == moments.count
            np.testing.assert_allclose(got.layers[name].mean, moments.mean, rtol=1e-4, atol=1e-6)


# ---- parameters: forms, sharing, types


def params(module: nn.Module, *inputs: Any) -> dict[str, Any]:
    return dict(from_torch(module, inputs).graph.params)


def test_tied_weights_are_stored_once() -> None:
    graph = from_torch(nets.TiedLanguageModel(), torch.zeros(1, 12, dtype=torch.int64)).graph
    assert "head.weight" not in graph.params
    users = [(n.name, n.op) for n in graph.nodes if n.params.get("weight") == "embed.weight"]
    assert users == [("embed", "embedding"), ("head", "linear")]


@pytest.mark.parametrize("project", [lambda y, w: y @ w.t(), F.linear, lambda y, w: torch.einsum("bld,vd->blv", y, w)])
def test_a_weight_used_as_a_matrix_is_the_stored_one(project: Callable[..., Any]) -> None:
    module = Fn(lambda m, ids: project(m.embed(ids), m.embed.weight), embed=nn.Embedding(9, 4))
    assert params(module, torch.zeros(1, 3, dtype=torch.int32)).keys() == {"embed.weight"}


def test_a_module_called_twice_has_one_weight() -> None:
    graph = from_torch(Fn(lambda m, x: m.fc(m.fc(x)), fc=nn.Linear(3, 3)), torch.zeros(1, 3)).graph
    assert [n.name for n in graph.nodes] == ["fc", "fc_1"]
    assert graph.params.keys() == {"fc.weight", "fc.bias"}


def test_a_layer_that_is_the_whole_module_is_called_after_its_operation() -> None:
    for layer, x, name in [
        (nn.Linear(3, 2), torch.zeros(1, 3), "linear"),
        (nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 4, 4), "conv2d"),
        (nn.Embedding(3, 2), torch.zeros(1, 3, dtype=torch.int64), "embedding"),
    ]:
        assert list(from_torch(layer, x).graph.layers()) == [name]


def test_weights_come_in_filter_form() -> None:
    up, weight = nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Parameter(torch.randn(3, 5))
    stored = params(up, torch.zeros(1, 4, 3, 3))["weight"]
    assert np.array_equal(stored[:3], up.weight[:2].transpose(0, 1).detach().numpy())
    assert np.array_equal(stored[3:], up.weight[2:].transpose(0, 1).detach().numpy())
    stored = params(
        Fn(lambda m, x: torch.addmm(m.bias, x, m.w), w=weight, bias=nn.Parameter(torch.ones(5))), torch.ones(1, 3)
    )
    assert np.array_equal(stored["w"], weight.t().detach().numpy())
    assert params(nn.Conv1d(2, 4, 3), torch.zeros(1, 2, 5))["weight"].shape == (4, 2, 3)


def test_one_weight_in_two_forms_is_stored_twice() -> None:
    module = Fn(lambda m, x: F.conv_transpose2d(F.conv2d(x, m.w), m.w), w=nn.Parameter(torch.randn(5, 3, 2, 2)))
    model = from_torch(module, torch.zeros(1, 3, 4, 4))
    assert {n: p.shape for n, p in model.graph.params.items()} == {"w": (5, 3, 2, 2), "w_1": (3, 5, 2, 2)}
    compare(model, module, {"input": torch.randn(2, 3, 4, 4)}, tolerance=1e-5)


def test_computed_weights_and_constants_are_folded() -> None:
    fc = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    module = Fn(lambda m, x: m.fc(x) * m.scale.exp() + m.table(torch.arange(3)).sum(1), fc=fc)
    module.scale, module.table = nn.Parameter(torch.randn(3)), nn.Embedding(3, 2)
    model = from_torch(module, torch.zeros(1, 4))
    assert [(n.op, n.name) for n in model.graph.nodes if n.params] == [
        ("linear", "fc"),
        ("constant", "constant"),
        ("constant", "constant_1"),
    ]
    assert np.array_equal(model.graph.params["fc.weight"], fc.weight.detach().numpy())
    compare(model, module, {"input": torch.randn(2, 4)}, tolerance=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype: Any) -> None:
    module = nn.Linear(4, 3).to(dtype)
    model = from_torch(module, torch.zeros(1, 4, dtype=dtype))
    assert {p.dtype for p in model.graph.params.values()} == {np.dtype(np.float32)}
    assert model.inputs["input"][1] == "float32"
    assert np.array_equal(model.graph.params["weight"], module.weight.detach().float().numpy())


def test_the_module_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.BatchNorm1d(3)).train()
    module[2].eval()
    before, x = copy.deepcopy(module.state_dict()), np.ones((2, 4), np.float32)
    model = from_torch(module, torch.ones(2, 4))
    assert [m.training for m in module] == [True, True, False]
    assert all(torch.equal(before[n], p) for n, p in module.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()
    y = model(x)
    with torch.no_grad():
        module[0].weight.zero_()
    assert np.array_equal(model(x), y)  # the model has its own copy


# ---- inputs, outputs, batch


class Difference(nn.Module):
    def forward(self, a: Any, b: Any) -> Any:
        return {"difference": a - b, "nothing": None, "rows": (a.reshape(-1, 2), b)}


def test_names_of_inputs_and_outputs() -> None:
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    model = from_torch(Difference(), [a, b])
    assert list(model.inputs) == ["input0", "input1"]
    assert list(model.outputs) == ["output0", "output1", "output2"]
    assert model.outputs["output1"] == ((None, 2), "float32")
    compare(model, Fn(lambda _, a, b: (a - b, a.reshape(-1, 2), b)), {"input0": a, "input1": b})
    model = from_torch(Difference(), {"b": b, "a": a}, output_names=["x", "y", "z"])
    assert np.array_equal(model.run({"a": a.numpy(), "b": b.numpy()})["x"], (a - b).numpy())
    assert np.array_equal(model(b.numpy(), a.numpy())[0], (a - b).numpy())  # in the order given
    model = from_torch(Difference(), {"b": b, "a": a}, input_names=["right", "left"])
    assert np.array_equal(model.run({"left": a.numpy(), "right": b.numpy()})["output0"], (a - b).numpy())


def test_a_fixed_batch() -> None:
    module = Fn(lambda _, x: (x.reshape(3, -1), x.sum(0)))
    model = from_torch(module, torch.zeros(1, 6), dynamic_batch=False)
    assert model.inputs == {"input": ((1, 6), "float32")}
    compare(model, module, {"input": torch.randn(1, 6)})


def test_a_network_without_operations() -> None:
    x = np.ones((2, 3), np.float32)
    assert np.array_equal(from_torch(nn.Identity(), torch.zeros(1, 3))(x), x)
    assert np.array_equal(from_torch(Fn(lambda _, x: torch.arange(3.0)), torch.zeros(1, 3))(x), [0, 1, 2])


def test_a_rule_for_a_custom_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    @torch.library.custom_op("pqnet_test::scaled_tanh", mutates_args=())
    def scaled_tanh(x: torch.Tensor, scale: float = 3.0) -> torch.Tensor:
        return x.tanh() * scale

    scaled_tanh.register_fake(lambda x, scale=3.0: torch.empty_like(x))
    module = Fn(lambda _, x: scaled_tanh(x) + scaled_tanh(x, 0.5))
    with pytest.raises(UnsupportedOpError, match=r"@rule\(\"pqnet_test\.scaled_tanh\.default\"\)"):
        from_torch(module, torch.zeros(1, 3))
    monkeypatch.setitem(RULES, "pqnet_test.scaled_tanh.default", None)  # so that it is taken out at the end

    @rule("pqnet_test.scaled_tanh.default")
    def translate(b: Any, x: Any, scale: float) -> str:
        return b.emit("mul", b.emit("tanh", x), scalar=scale)

    compare(from_torch(module, torch.zeros(1, 3)), module, {"input": torch.randn(2, 3)}, tolerance=1e-5)


# ---- refusals


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.kthvalue(2)[0], r'aten\.kthvalue\.default in the top module: .* @rule\("aten\.kthvalue\.default"'),
        (lambda x: F.max_pool2d(x, 2, return_indices=True), "max_pool2d_with_indices.* its output 1 is not supported"),
        (lambda x: F.conv2d(x, x[:1]), "constant weight, got one that is computed from the network's input"),
        (lambda x: F.batch_norm(x, None, None, training=True), "running statistics, got one that uses those of the"),
        (lambda x: x.var(1, correction=0.5), "whole correction of the variance, got 0.5"),
        (lambda x: x.norm(p=0, dim=1), "norm of an order other than 0"),
        (lambda x: assigned(x, (slice(None), slice(0, 4, 2)), x[:, :2]), "adjacent rows, got a step of 2"),
        (
            lambda x: x * x.sum().item(),
            r"fixed number, got one that depends on the values of the input \(.*; convert the",
        ),
        (lambda x: x * x.shape[0] ** 0.5, "a fixed number, or a quotient of free sizes, got the size "),
        (lambda x: x[x > 0], "integers as indices, got booleans"),
        (
            lambda x: x.kthvalue(2)[0] + x.kthvalue(2)[0].median(),
            "; nor are there rules for aten.median.default in the",
        ),
        (lambda x: x + torch.rand_like(x), "it draws random numbers in every run; pass them as an input"),
    ],
)
def test_refused_operations(function: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(UnsupportedOpError, match=message):
        from_torch(Fn(lambda _, x: function(x)), torch.zeros(2, 4, 6, 6))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: x + torch.ones(2, 1, 1, 1),
            r"works for every batch size, got one whose .* constant \(2\); pass dynamic_batch=False",
        ),
        (lambda x: x if x.sum() > 0 else -x, "module: expected one that torch.export takes, got: .*data-dependent"),
        (lambda x: x.add_(1), "forward without side effects, got one that changes"),
        (lambda x: (x, 3), "forward that returns tensors, got one that returns 3"),
        (lambda x: (x, x.shape[0]), "forward that returns tensors, got one that returns sym_size"),
    ],
)
def test_refused_modules(function: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(PQNetError, match=message):
        from_torch(Fn(lambda _, x: function(x)), torch.zeros(2, 4, 6, 6))


def test_refused_dtypes() -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(PQNetError, match="w: expected a tensor of real floats, int64, .*bool, got torch.comp"):
        from_torch(Fn(lambda m, x: x * m.w.abs(), w=weight), torch.zeros(1, 3))
    with pytest.raises(PQNetError, match="example_inputs 'input': expected a tensor of real floats, .*complex64"):
        from_torch(Fn(lambda _, x: x.real), torch.zeros(2, 3, dtype=torch.complex64))
    with pytest.raises(PQNetError, match="complex64; a Fourier transform of a fixed size can be written as products"):
        from_torch(Fn(lambda _, x: torch.fft.fft2(x).real), torch.zeros(2, 3, 4))


def test_refused_arguments() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(PQNetError, match=r"module: expected a torch\.nn\.Module, got function"):
        from_torch(lambda x: x, x)  # type: ignore[arg-type]
    for inputs, got in ((None, "NoneType"), ([], "list"), ([x, 1], r"\['Tensor', 'int'\]"), ("x", r"\['str'\]")):
        with pytest.raises(PQNetError, match=f"example_inputs: expected a tensor, .*, got {got}"):
            from_torch(nn.Identity(), inputs)  # type: ignore[arg-type]
    for inputs in (torch.tensor(1.0), [x, torch.zeros(3, 3)], torch.zeros(0, 3)):
        with pytest.raises(PQNetError, match=r"one batch size along axis 0 of all, got \{.*; pass dynamic_batch=False"):
            from_torch(nn.Identity(), inputs)
    with pytest.raises(PQNetError, match=r"input_names: expected 1 different names, got \['a', 'b'\]"):
        from_torch(nn.Identity(), x, input_names=["a", "b"])
    with pytest.raises(PQNetError, match="output_names: expected 1 different names, got 'y'"):
        from_torch(nn.Identity(), x, output_names="y")


class Repeats(torch.nn.Module):
    """Numbers of 90 classes beside those of many boxes, as detectors have them."""

    def forward(self, x):
        return x + torch.arange(1, 91).repeat(400), x.shape[0] + torch.ones(3, 1, 1).expand(3, 80, 90)


def test_repetitions_are_not_stored():
    x = torch.randn(2, 36000)
    model = from_torch(Repeats(), x)
    assert sum(p.size for p in model.graph.params.values()) < 200
    for got, want in zip(model(x.numpy()), Repeats()(x), strict=True):
        np.testing.assert_allclose(got, want.numpy(), atol=1e-6)
