"""torchvision's ResNets (v1.5: the stride is in the 3x3 convolution) as graphs, for files that hold weights only."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from pqnet import ConfigError, FormatError, Packed
from pqnet.errors import did_you_mean
from pqnet.graph import Graph, GraphBuilder, ValueInfo

__all__ = ["RESNETS", "Layer", "resnet_graph", "resnet_layers"]

# blocks per stage, whether blocks are bottlenecks
RESNETS = {"resnet18": ((2, 2, 2, 2), False), "resnet50": ((3, 4, 6, 3), True)}

Param = np.ndarray | Packed


class Layer(NamedTuple):
    """A convolution with the batch norm behind it, or the classifier (kernel 0, no norm)."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    norm: str


def _architecture(arch: str) -> tuple[tuple[int, ...], bool]:
    if not isinstance(arch, str) or arch not in RESNETS:
        raise ConfigError(f"arch: expected one of {', '.join(RESNETS)}, got {arch!r}{did_you_mean(arch, RESNETS)}")
    return RESNETS[arch]


def _blocks(arch: str) -> Iterator[tuple[str, dict[str, Layer]]]:
    """Yield the residual blocks: name, and their layers by short name (downsample.0 where the shape changes)."""
    stages, bottleneck = _architecture(arch)
    inputs, expansion = 64, 4 if bottleneck else 1
    for s, count in enumerate(stages):
        width = 64 << s
        for b in range(count):
            stride, outputs = (2 if s and not b else 1), width * expansion
            if bottleneck:
                layers = {
                    "conv1": Layer(inputs, width, 1, 1, "bn1"),
                    "conv2": Layer(width, width, 3, stride, "bn2"),
                    "conv3": Layer(width, outputs, 1, 1, "bn3"),
                }
            else:
                layers = {
                    "conv1": Layer(inputs, width, 3, stride, "bn1"),
                    "conv2": Layer(width, outputs, 3, 1, "bn2"),
                }
            if stride != 1 or inputs != outputs:
                layers["downsample.0"] = Layer(inputs, outputs, 1, stride, "downsample.1")
            yield f"layer{s + 1}.{b}", layers
            inputs = outputs


def resnet_layers(arch: str) -> dict[str, Layer]:
    """Return every layer of an architecture by torchvision's name; ``fc`` has 0 outputs: the file decides."""
    layers = {"conv1": Layer(3, 64, 7, 2, "bn1")}
    width = 64
    for block, parts in _blocks(arch):
        for name, layer in parts.items():
            layers[f"{block}.{name}"] = layer._replace(norm=f"{block}.{layer.norm}")
            width = max(width, layer.outputs)
    return layers | {"fc": Layer(width, 0, 0, 1, "")}


def resnet_graph(arch: str, params: Mapping[str, Param], source: str) -> Graph:
    """Build the graph of an architecture from its parameters, by torchvision's names.

    Batch norms may be folded (weight and bias only) or raw (with running_mean and running_var). A missing, surplus or
    ill-shaped parameter is a FormatError.
    """
    left = dict(params)
    builder = GraphBuilder({"input": ValueInfo(("batch", 3, 224, 224))}, {"batch": 2})

    def take(name: str, shape: tuple[int | None, ...]) -> str:
        if name not in left:
            raise FormatError(f"{source}: parameter {name!r} of {arch} is missing")
        got = left.pop(name)
        if len(got.shape) != len(shape) or any(w not in (None, g) for w, g in zip(shape, got.shape, strict=True)):
            raise FormatError(f"{source}: {name}: expected shape {shape} for {arch}, got {tuple(got.shape)}")
        builder.params[name] = got
        return name

    def conv_norm(name: str, x: str, layer: Layer, norm: str) -> str:
        shape = (layer.outputs, layer.inputs, layer.kernel, layer.kernel)
        pad, stride = layer.kernel // 2, (layer.stride, layer.stride)
        weight = {"weight": take(f"{name}.weight", shape)}
        y = builder.add("conv2d", x, name=name, params=weight, stride=stride, padding=(pad, pad, pad, pad))
        roles = {"weight": "weight", "bias": "bias"}
        if f"{norm}.running_mean" in left or f"{norm}.running_var" in left:
            roles |= {"mean": "running_mean", "var": "running_var"}
        left.pop(f"{norm}.num_batches_tracked", None)
        names = {role: take(f"{norm}.{stored}", (layer.outputs,)) for role, stored in roles.items()}
        return builder.add("batch_norm", y, name=norm, params=names, eps=1e-5)

    layers = resnet_layers(arch)
    x = builder.add("relu", conv_norm("conv1", "input", layers["conv1"], "bn1"), name="relu")
    x = builder.add("max_pool2d", x, name="maxpool", kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    for block, parts in _blocks(arch):
        y = x
        main = [name for name in parts if name != "downsample.0"]
        for i, name in enumerate(main):
            y = conv_norm(f"{block}.{name}", y, parts[name], f"{block}.{parts[name].norm}")
            if i < len(main) - 1:
                y = builder.add("relu", y, name=f"{block}.relu{i + 1}")
        if "downsample.0" in parts:
            x = conv_norm(f"{block}.downsample.0", x, parts["downsample.0"], f"{block}.downsample.1")
        x = builder.add("relu", builder.add("add", y, x, name=f"{block}.add"), name=f"{block}.relu")
    x = builder.add("mean", x, name="avgpool", axes=(2, 3))
    head = {"weight": take("fc.weight", (None, layers["fc"].inputs)), "bias": take("fc.bias", (None,))}
    x = builder.add("linear", x, name="fc", params=head)
    if left:
        raise FormatError(f"{source}: parameters {sorted(left)[:5]} do not belong to {arch}")
    return builder.build({"output": x})
