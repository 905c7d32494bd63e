"""Presets: recipes that follow from a network's layers by the rules of the papers."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pqnet.codecs import PQ, Codec, Packed
from pqnet.codecs.halves import exponent_for
from pqnet.graph import Graph, Node, weight_op
from pqnet.graph.op import get_op

__all__ = ["PRESETS", "first_conv", "with_half_stem"]

Layers = dict[str, Codec | None]


def first_conv(layers: Mapping[str, Node]) -> str | None:
    """Return the name of the first convolution, which the papers keep in float."""
    rules = {name: weight_op(node.op) for name, node in layers.items()}
    return next((name for name, rule in rules.items() if rule.kind == "conv" and not rule.transposed), None)


def with_half_stem(graph: Graph) -> Graph:
    """Return a graph whose first convolution is stored as float16, if that is no loss beside a preset's codes.

    It computes in float32 as before; of a small ResNet-50 it is .4 % of the file.
    """
    name = first_conv(graph.layers())
    key = None if name is None else graph.layers()[name].params["weight"]
    weight = None if key is None else graph.params[key]
    if key is None or weight is None or isinstance(weight, Packed) or weight.dtype != np.float32:
        return graph
    fits = np.abs(weight).max(initial=0) < np.finfo(np.float16).max and exponent_for(weight, alone=False) == 0
    return replace(graph, params={**graph.params, key: weight.astype(np.float16)}) if fits else graph


@dataclass(frozen=True)
class Blocks:
    """Blocks of "And the Bit Goes Down" and "Permute, Quantize, and Fine-tune", with K = 256 but for the classifier.

    Parameters
    ----------
    kernels : int
        Whole k x k kernels of a block.
    channels : int
        Input channels of a block of 1 x 1 and linear weights.
    classifier_k : int, optional
        Codewords of the last linear layer behind convolutions; its blocks are of 4. Default as the papers': 2048, and
        1024 where it has 2048 inputs or more.
    clamp : {"floor", "strict"}
        Limit on K for small weights, see `clamp_k`: the first paper's is ``"strict"``, the second's ``"floor"``.
    wide : int, optional
        Input channels of a block of linear weights of more than `WIDE` inputs, if others than ``channels``.
    """

    kernels: int
    channels: int
    classifier_k: int | None = None
    clamp: Literal["floor", "strict"] = "floor"
    wide: int | None = None

    def __call__(self, graph: Graph) -> Layers:
        layers = graph.layers()
        stem, linears = first_conv(layers), [n for n, node in layers.items() if weight_op(node.op).kind == "linear"]
        recipe: Layers = {}
        for name, node in layers.items():
            shape = graph.params[node.params["weight"]].shape
            taps, k = math.prod(shape[2:]), 256
            if taps > 1:
                d = taps * _divisor(shape[1], self.kernels)
            elif name in linears[-1:] and stem is not None:
                d, k = _divisor(shape[1], 4), self.classifier_k or (1024 if shape[1] >= 2048 else 2048)
            elif self.wide is not None and len(shape) == 2 and shape[1] > WIDE:
                d = _divisor(shape[1], self.wide)
            else:
                d = _divisor(shape[1], self.channels)
            recipe[name] = None if name == stem else PQ(k, d, clamp=self.clamp)
        return recipe


WIDE = 1024  # inputs from which on 1 x 1 and linear weights have large blocks: EfficientNet-B3 takes 3.2 MB


def _quant_noise_images(graph: Graph) -> Layers:
    """Blocks for EfficientNets at the bytes of "Training with Quantization Noise": whole depthwise kernels, else d=4.

    The paper does not say which blocks of 8 it had; here they are those of the widest layers.
    """
    layers = graph.layers()
    stem = first_conv(layers)
    recipe: Layers = {}
    for name, node in layers.items():
        shape = graph.params[node.params["weight"]].shape
        taps = math.prod(shape[2:])
        d = taps if taps > 1 else _divisor(shape[1], 8 if shape[1] >= WIDE else 4)
        recipe[name] = None if name == stem else PQ(256, d, clamp="floor")
    return recipe


def _quant_noise_texts(graph: Graph) -> Layers:
    """Blocks of "Training with Quantization Noise" for texts: feed-forward d=8, attention d=4, embeddings d=8."""
    layers, attention = graph.layers(), _attention_layers(graph)
    stem = first_conv(layers)
    recipe: Layers = {}
    for name, node in layers.items():
        width = graph.params[node.params["weight"]].shape[1]
        recipe[name] = None if name == stem else PQ(256, _divisor(width, 4 if name in attention else 8), clamp="floor")
    return recipe


# What may stand between a projection and the attention it feeds or follows.
_PASSING = ("reshape", "permute", "slice", "split", "expand", "concat", "mul", "div", "cast")


def _attention_layers(graph: Graph) -> set[str]:
    """Return the linear layers that directly feed an attention (or matmul), or follow one."""
    producer = {value: node for node in graph.nodes for value in node.outputs}
    found: set[str] = set()
    after: set[str] = set()
    for node in graph.nodes:
        if node.op in ("attention", "matmul"):
            after.update(node.outputs)
            stack = list(node.inputs)
            while stack:
                source = producer.get(stack.pop())
                if source is not None and _is_linear(source):
                    found.add(source.name)
                elif source is not None and source.op in _PASSING:
                    stack.extend(source.inputs)
        elif after.intersection(node.inputs):
            if _is_linear(node):
                found.add(node.name)
            elif node.op in _PASSING:
                after.update(node.outputs)
    return found


def _is_linear(node: Node) -> bool:
    rule = get_op(node.op).weight
    return rule is not None and rule.kind == "linear"


def _divisor(n: int, wanted: int) -> int:
    """Return the largest divisor of n that is at most ``wanted``."""
    return next(d for d in range(min(n, wanted), 0, -1) if n % d == 0)


PRESETS: dict[str, Callable[[Graph], Layers]] = {
    "small-blocks": Blocks(kernels=1, channels=4),
    "large-blocks": Blocks(kernels=2, channels=8),
    "transformer": _quant_noise_texts,
    "bgd-resnet18-small": Blocks(kernels=1, channels=4, clamp="strict"),
    "bgd-resnet18-large": Blocks(kernels=2, channels=4, clamp="strict"),
    "bgd-resnet50-small": Blocks(kernels=1, channels=4, classifier_k=1024, clamp="strict"),
    "bgd-resnet50-large": Blocks(kernels=2, channels=8, classifier_k=1024, clamp="strict"),
    "pqf-resnet18-small": Blocks(kernels=1, channels=4),
    "pqf-resnet18-large": Blocks(kernels=2, channels=4),
    "pqf-resnet50-small": Blocks(kernels=1, channels=4, classifier_k=1024),
    "pqf-resnet50-large": Blocks(kernels=2, channels=8, classifier_k=1024),
    "bgd-mask-rcnn": Blocks(kernels=1, channels=4, classifier_k=256, clamp="strict", wide=16),
    "ipq-efficientnet": _quant_noise_images,
    "ipq-transformer": _quant_noise_texts,
}
