"""The networks of the benchmarks, with random codes: speed does not depend on which codes, and drawing them is quick.

Weights have the scale of trained ones (outputs as large as inputs), so that activations stay finite.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
from common import DATA

from pqnet import PQ, Packed, PackedPQ
from pqnet.graph import Graph, GraphBuilder, ValueInfo

K = 256
Param = np.ndarray | Packed


class Draw:
    """Draws parameters from one seeded generator."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def dense(self, shape: tuple[int, ...], gain: float) -> np.ndarray:
        deviation = (gain / np.prod(shape[1:])) ** 0.5
        return (self.rng.standard_normal(shape, np.float32) * deviation).astype(np.float32)

    def packed(self, shape: tuple[int, ...], d: int, layout: str, gain: float) -> PackedPQ:
        """Return a weight of random codes whose products have ``gain`` times the variance of their inputs."""
        codec = PQ(K, d, layout, clamp="floor").check(shape)  # type: ignore[arg-type]
        codebook = self.rng.standard_normal((codec.k, d)) * (gain / np.prod(shape[1:])) ** 0.5
        codes = self.rng.integers(0, codec.k, (shape[0], int(np.prod(shape[1:])) // d))
        return PackedPQ(codec, shape, codes, codebook.astype(codec.codebook_dtype))

    def weight(self, shape: tuple[int, ...], sizes: tuple[int, ...], gain: float = 1.0) -> Param:
        """Return a weight in channel blocks of the first size that divides the channels, else a float one."""
        for d in sizes:
            if shape[1] % d == 0:
                return self.packed(shape, d, "channel", gain)
        return self.dense(shape, gain)

    def norm(self, channels: int, scale: float = 1.0) -> dict[str, np.ndarray]:
        """Return a batch norm of near ``scale``, of the form that published checkpoints have."""
        weight = scale * (1 + 0.1 * self.rng.standard_normal(channels, np.float32))
        return {"weight": weight.astype(np.float32), "bias": 0.1 * self.rng.standard_normal(channels, np.float32)}


def resnet_published() -> Graph:
    """ResNet-50 of "And the Bit Goes Down", large blocks (d = 18 and 8, spatial), as published."""
    from pqnet_converters import from_kill_the_bits

    return from_kill_the_bits(DATA / "checkpoints" / "ktb_resnet50_large_blocks.pth", "resnet50").graph


def resnet_channel(arch: str) -> Graph:
    """A ResNet whose layers but the first are channel blocks of d = 8, K = 256."""
    from pqnet_converters.checkpoints.resnet import resnet_graph, resnet_layers

    draw = Draw(0)
    params: dict[str, Param] = {}
    for name, layer in resnet_layers(arch).items():
        if name == "fc":
            params |= {
                "fc.weight": draw.packed((1000, layer.inputs), 8, "channel", 1),
                "fc.bias": np.zeros(1000, np.float32),
            }
            continue
        shape = (layer.outputs, layer.inputs, layer.kernel, layer.kernel)
        params[f"{name}.weight"] = draw.weight(shape, (8,), gain=2)  # 2: half of a rectified input is zero
        last = name.endswith("conv3") or (arch == "resnet18" and name.endswith("conv2"))
        params |= {f"{layer.norm}.{role}": a for role, a in draw.norm(layer.outputs, 0.3 if last else 1).items()}
    return resnet_graph(arch, params, "random codes")


# EfficientNet-B3: expansion, output channels, blocks, stride, kernel of each stage.
STAGES = (
    *((1, 24, 2, 1, 3), (6, 32, 3, 2, 3), (6, 48, 3, 2, 5), (6, 96, 5, 2, 3)),
    *((6, 136, 5, 1, 5), (6, 232, 6, 2, 5), (6, 384, 2, 1, 3)),
)


def efficientnet_b3(size: int = 300) -> Graph:
    """EfficientNet-B3 in shape: 1x1 and squeeze layers in channel blocks of 8 or 4, a depthwise kernel is a block."""
    draw = Draw(1)
    b = GraphBuilder({"input": ValueInfo(("batch", 3, size, size))}, {"batch": 1})

    def conv(x: str, weight: Param, scale: float, stride: int = 1, groups: int = 1, act: bool = True) -> str:
        pad = (weight.shape[2] // 2,) * 4
        y = b.add("conv2d", x, params={"weight": weight}, stride=(stride,) * 2, padding=pad, groups=groups)
        y = b.add("batch_norm", y, params=dict(draw.norm(weight.shape[0], scale)), eps=1e-3)
        return b.add("silu", y) if act else y

    def point(x: str, inputs: int, outputs: int, scale: float, act: bool = True) -> str:
        return conv(x, draw.weight((outputs, inputs, 1, 1), (8, 4), gain=2), scale, act=act)

    def excite(x: str, channels: int, squeezed: int) -> str:
        y = b.add("mean", x, axes=(2, 3), keepdims=True)
        for i, o, act in ((channels, squeezed, "silu"), (squeezed, channels, "sigmoid")):
            weight = draw.weight((o, i, 1, 1), (8, 4))
            y = b.add(act, b.add("conv2d", y, params={"weight": weight, "bias": np.zeros(o, np.float32)}))
        return b.add("mul", x, y)

    x, inputs = conv("input", draw.dense((40, 3, 3, 3), 1), 1.0, stride=2), 40
    for expansion, outputs, blocks, first, kernel in STAGES:
        for i in range(blocks):
            stride, wide = first if i == 0 else 1, inputs * expansion
            y = point(x, inputs, wide, 1.0) if expansion > 1 else x
            filters = draw.packed((wide, 1, kernel, kernel), kernel * kernel, "spatial", 2)
            y = excite(conv(y, filters, 1.0, stride, wide), wide, max(1, inputs // 4))
            y = point(y, wide, outputs, 1.0, act=False)
            x, inputs = (b.add("add", y, x) if stride == 1 and inputs == outputs else y), outputs
    x = b.add("mean", point(x, inputs, 1536, 1.0), axes=(2, 3))
    head: dict[str, Param | str] = {
        "weight": draw.packed((1000, 1536), 8, "channel", 1),
        "bias": np.zeros(1000, np.float32),
    }
    return b.build({"output": b.add("linear", x, params=head)})


# MobileNet-v2: expansion, output channels, blocks, stride of each stage.
MOBILE_STAGES = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


def mobilenet_v2(size: int = 224) -> Graph:
    """MobileNet-v2 in shape: 1x1 layers in channel blocks of 8, a depthwise kernel is a block."""
    draw = Draw(3)
    b = GraphBuilder({"input": ValueInfo(("batch", 3, size, size))}, {"batch": 1})

    def conv(x: str, weight: Param, stride: int = 1, groups: int = 1, act: bool = True) -> str:
        pad = (weight.shape[2] // 2,) * 4
        y = b.add("conv2d", x, params={"weight": weight}, stride=(stride,) * 2, padding=pad, groups=groups)
        y = b.add("batch_norm", y, params=dict(draw.norm(weight.shape[0])), eps=1e-5)
        return b.add("clamp", y, min=0.0, max=6.0) if act else y

    def point(x: str, inputs: int, outputs: int, act: bool = True) -> str:
        return conv(x, draw.weight((outputs, inputs, 1, 1), (8,), gain=2), act=act)

    x, inputs = conv("input", draw.dense((32, 3, 3, 3), 1), stride=2), 32
    for expansion, outputs, blocks, first in MOBILE_STAGES:
        for i in range(blocks):
            stride, wide = first if i == 0 else 1, inputs * expansion
            y = point(x, inputs, wide) if expansion > 1 else x
            y = conv(y, draw.packed((wide, 1, 3, 3), 9, "spatial", 2), stride, wide)
            y = point(y, wide, outputs, act=False)
            x, inputs = (b.add("add", y, x) if stride == 1 and inputs == outputs else y), outputs
    x = b.add("mean", point(x, inputs, 1280), axes=(2, 3))
    head: dict[str, Param | str] = {
        "weight": draw.packed((1000, 1280), 8, "channel", 1),
        "bias": np.zeros(1000, np.float32),
    }
    return b.build({"output": b.add("linear", x, params=head)})


def roberta(
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    inner: int = 3072,
    tokens: int = 128,
) -> Graph:
    """A RoBERTa-base-shaped encoder, from the sum of embeddings on. Blocks: feed-forward d = 8, attention d = 4."""
    draw = Draw(2)
    b = GraphBuilder({"hidden": ValueInfo(("batch", tokens, width))}, {"batch": 1})

    def linear(x: str, name: str, inputs: int, outputs: int, d: int) -> str:
        bias = 0.02 * draw.rng.standard_normal(outputs, np.float32)
        b.params |= {f"{name}.weight": draw.packed((outputs, inputs), d, "channel", 1), f"{name}.bias": bias}
        return b.add("linear", x, params={role: f"{name}.{role}" for role in ("weight", "bias")})

    def norm(x: str, name: str) -> str:
        b.params |= {f"{name}.{role}": array for role, array in draw.norm(width).items()}
        return b.add("layer_norm", x, params={role: f"{name}.{role}" for role in ("weight", "bias")}, eps=1e-5)

    x = norm("hidden", "norm")
    for i in range(layers):
        own = f"layer{i}"
        split: list[str] = []
        for role in "qkv":
            y = linear(x, f"{own}.{role}", width, width, 4)
            y = b.add("reshape", y, shape=("batch", tokens, heads, width // heads))
            split.append(b.add("permute", y, axes=(0, 2, 1, 3)))
        y = b.add("permute", b.add("attention", *split), axes=(0, 2, 1, 3))
        y = linear(b.add("reshape", y, shape=("batch", tokens, width)), f"{own}.out", width, width, 4)
        x = norm(b.add("add", x, y), f"{own}.norm1")
        y = b.add("gelu", linear(x, f"{own}.up", width, inner, 8))
        x = norm(b.add("add", x, linear(y, f"{own}.down", inner, width, 8)), f"{own}.norm2")
    return b.build({"output": x})


# Row name: network, batch, and how it is quantized.
NETS: dict[str, tuple[Callable[[], Graph], int, str]] = {
    "resnet50-spatial": (resnet_published, 1, "published large blocks: 3x3 d=18, 1x1 d=8, fc d=4 K=2048"),
    "resnet50-spatial-batch8": (resnet_published, 8, "published large blocks: 3x3 d=18, 1x1 d=8, fc d=4 K=2048"),
    "resnet50-channel": (partial(resnet_channel, "resnet50"), 1, "channel d=8 K=256"),
    "resnet50-channel-batch8": (partial(resnet_channel, "resnet50"), 8, "channel d=8 K=256"),
    "resnet18-channel": (partial(resnet_channel, "resnet18"), 1, "channel d=8 K=256"),
    "efficientnet-b3-300": (efficientnet_b3, 1, "300x300, 1x1 d=8, depthwise d=9 or 25, squeeze d=8 or 4 or float"),
    "mobilenet-v2": (mobilenet_v2, 1, "1x1 d=8, depthwise d=9"),
    "roberta-base-128": (roberta, 1, "128 tokens, float hidden states in, feed-forward d=8, attention d=4"),
}


def decoded(graph: Graph) -> Graph:
    """Return the same network with float weights."""
    params: dict[str, Param] = {n: p.decode() if isinstance(p, Packed) else p for n, p in graph.params.items()}
    return dataclasses.replace(graph, params=params)


def sample(graph: Graph, batch: int) -> dict[str, np.ndarray]:
    """Return standard normal inputs."""
    rng, infos = np.random.default_rng(3), graph.infer_shapes({**graph.symbols, "batch": batch})
    return {name: rng.standard_normal(infos[name].shape, np.float32) for name in graph.inputs}
