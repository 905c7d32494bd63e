"""Normalisations."""

from typing import Any

import numpy as np

from pqnet_converters.core.importer import Tensor, as_known
from pqnet_converters.onnx.importer import OnnxImporter, axes_of, axis_of
from pqnet_converters.onnx.registry import rule


@rule("BatchNormalization")
def batch_norm(b: OnnxImporter, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    if b.attr("training_mode", 0):
        raise b.refuse("expected a network for inference, got a batch norm in training mode")
    params = {"weight": weight, "bias": bias, "mean": mean, "var": var}
    return b.emit("batch_norm", x, name=b.layer(weight), params=params, eps=b.attr("epsilon", 1e-5))


def _named(b: OnnxImporter, weight: Tensor | None) -> str:
    return "" if weight is None or weight.origin is None else b.layer(weight)


@rule("InstanceNormalization")
def instance_norm(b: OnnxImporter, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    params, eps = {"weight": weight, "bias": bias}, b.attr("epsilon", 1e-5)
    groups = b.fixed(x.shape[1], "number of channels")
    return b.emit("group_norm", x, name=_named(b, weight), params=params, groups=groups, eps=eps)


@rule("GroupNormalization")
def group_norm(b: OnnxImporter, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    groups, eps, params = b.attr("num_groups"), b.attr("epsilon", 1e-5), {"weight": weight, "bias": bias}
    if b.opset < 21:  # a weight for each group then
        each = b.fixed(x.shape[1], "number of channels") // groups
        params = {role: as_known(np.repeat(b.known(p, role), each), "float32") for role, p in params.items()}
    return b.emit("group_norm", x, name=_named(b, weight), params=params, groups=groups, eps=eps)


def affine(b: OnnxImporter, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Multiply by a weight and add a bias, if there are any."""
    x = x if weight is None else b.binary("mul", x, weight)
    return x if bias is None else b.binary("add", x, bias)


def layer_norm_over(
    b: OnnxImporter, x: Tensor, axis: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Emit a layer norm over the axes from ``axis`` on, affine by known arrays of their shape or by any others."""
    trailing = x.shape[axis:]
    fits = all(p is None or (p.constant is not None and p.shape == tuple(trailing)) for p in (weight, bias))
    params = {"weight": weight, "bias": bias} if fits else {}
    y = b.emit("layer_norm", x, name=_named(b, weight), params=params, axes=x.rank - axis, eps=eps)
    return y if fits else affine(b, y, weight, bias)


@rule("LayerNormalization")
def layer_norm(
    b: OnnxImporter, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    axis, eps = axis_of(b.attr("axis", -1), x.rank), b.attr("epsilon", 1e-5)
    y = layer_norm_over(b, x, axis, weight, bias, eps)
    if not b.wanted(1) and not b.wanted(2):
        return (y,)
    axes = tuple(range(axis, x.rank))
    mean = b.emit("mean", x, axes=axes, keepdims=True)
    var = b.emit("var", x, axes=axes, keepdims=True, correction=0)
    return y, mean, b.emit("rsqrt", b.emit("add", var, scalar=eps))


@rule("RMSNormalization", "SimplifiedLayerNormalization")
def rms_norm(b: OnnxImporter, x: Tensor, weight: Tensor | None = None) -> Tensor:
    axis, eps = axis_of(b.attr("axis", -1), x.rank), b.attr("epsilon", 1e-5)
    square = b.emit("mean", b.emit("mul", x, x), axes=tuple(range(axis, x.rank)), keepdims=True)
    y = b.emit("mul", x, b.emit("rsqrt", b.emit("add", square, scalar=eps)))
    return affine(b, y, weight, None)


@rule("MeanVarianceNormalization")
def mean_variance_norm(b: OnnxImporter, x: Tensor) -> Tensor:
    over: dict[str, Any] = {"axes": axes_of(b.attr("axes", [0, 2, 3]), x.rank), "keepdims": True}
    deviation = b.emit("sub", x, b.emit("mean", x, **over))
    var = b.emit("mean", b.emit("mul", deviation, deviation), **over)
    return b.emit("div", deviation, b.emit("add", b.emit("sqrt", var), scalar=1e-9))


@rule("LpNormalization")
def lp_norm(b: OnnxImporter, x: Tensor) -> Tensor:
    axis = axis_of(b.attr("axis", -1), x.rank)
    if b.attr("p", 2) == 1:
        norm = b.emit("sum", b.emit("abs", x), axes=(axis,), keepdims=True)
    else:
        norm = b.emit("sqrt", b.emit("sum", b.emit("mul", x, x), axes=(axis,), keepdims=True))
    return b.emit("div", x, b.emit("clamp", norm, min=1e-30))  # rows of zeros stay zeros


@rule("LRN")
def local_response_norm(b: OnnxImporter, x: Tensor) -> Tensor:
    """Mean squares of neighbouring channels are those of a pooling over the channel axis."""
    size, alpha, beta, bias = b.attr("size"), b.attr("alpha", 1e-4), b.attr("beta", 0.75), b.attr("bias", 1.0)
    square = b.reshape(b.emit("mul", x, x), (x.shape[0], 1, x.shape[1], -1))
    pads = ((size - 1) // 2, 0, size // 2, 0)
    mean = b.emit("avg_pool2d", square, kernel=(size, 1), stride=(1, 1), padding=pads, divisor=size)
    line = b.emit("add", b.emit("mul", b.reshape(mean, x.shape), scalar=alpha), scalar=bias)
    return b.emit("mul", x, b.emit("pow", line, scalar=-beta))
