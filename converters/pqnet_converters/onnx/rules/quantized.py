"""Quantized operations: weights are dequantized at import, activations rounded as the file says."""

from typing import Any

import numpy as np

from pqnet_converters.core.importer import Tensor, as_known
from pqnet_converters.onnx.importer import OnnxImporter, axis_of
from pqnet_converters.onnx.reader import element_dtype
from pqnet_converters.onnx.registry import rule
from pqnet_converters.onnx.rules.layers import conv, matmul


def _along(b: OnnxImporter, x: Tensor, p: Tensor, axis: int, block: int) -> Tensor:
    """Return scales or zero points in a shape that broadcasts with a tensor."""
    if p.rank == 0 or p.shape == (1,):
        return b.reshape(p, ())
    axis = axis_of(axis, x.rank)
    if block:
        wide = np.repeat(b.known(p, "scale"), block, axis)
        return as_known(wide[(slice(None),) * axis + (slice(0, b.fixed(x.shape[axis])),)], p.dtype)
    return b.reshape(p, [p.shape[0] if i == axis else 1 for i in range(x.rank)])


def dequantized(
    b: OnnxImporter, x: Tensor, scale: Tensor, zero: Tensor | None, axis: int = 1, block: int = 0
) -> Tensor:
    """Return (x - zero) scale."""
    numbers = b.cast(x, "float32")
    if zero is not None and not (zero.constant is not None and not zero.constant.any()):
        numbers = b.binary("sub", numbers, b.cast(_along(b, x, zero, axis, block), "float32"))
    y = b.binary("mul", numbers, _along(b, x, b.cast(scale, "float32"), axis, block))
    return y if y.data is None else as_known(y.data, "float32", x.origin)


def quantized(b: OnnxImporter, x: Tensor, scale: Tensor, zero: Tensor | None, dtype: str, axis: int = 1) -> Tensor:
    """Return round(x / scale) + zero, within the limits of the dtype."""
    y = b.emit("round", b.binary("div", b.cast(x, "float32"), _along(b, x, b.cast(scale, "float32"), axis, 0)))
    if zero is not None and not (zero.constant is not None and not zero.constant.any()):
        y = b.binary("add", y, b.cast(_along(b, x, zero, axis, 0), "float32"))
    limits = np.iinfo(dtype)
    return b.cast(b.emit("clamp", y, min=float(limits.min), max=float(limits.max)), dtype)


@rule("DequantizeLinear", "com.microsoft::DequantizeLinear")
def dequantize(b: OnnxImporter, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    return dequantized(b, x, scale, zero, b.attr("axis", 1), b.attr("block_size", 0))


@rule("QuantizeLinear", "com.microsoft::QuantizeLinear")
def quantize(b: OnnxImporter, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    kind = b.attr("output_dtype", 0)
    dtype = zero.dtype if zero is not None else element_dtype(kind, "QuantizeLinear") if kind else "uint8"
    if dtype == "float32" or b.attr("block_size", 0):
        raise b.refuse(
            "expected integers with one scale, or one for each channel; small floats and blocks have no rule"
        )
    return quantized(b, x, scale, zero, dtype, b.attr("axis", 1))


@rule("DynamicQuantizeLinear")
def dynamic_quantize(b: OnnxImporter, x: Tensor) -> tuple[Tensor, ...]:
    over: dict[str, Any] = {"axes": tuple(range(x.rank)), "keepdims": False}
    low = b.emit("clamp", b.emit("min", x, **over), max=0.0)
    high = b.emit("clamp", b.emit("max", x, **over), min=0.0)
    scale = b.emit("mul", b.emit("sub", high, low), scalar=1 / 255)
    scale = b.emit("where", b.emit("eq", scale, scalar=0.0), as_known(1.0, "float32"), scale)
    point = b.emit("clamp", b.emit("round", b.emit("neg", b.emit("div", low, scale))), min=0.0, max=255.0)
    y = b.emit("add", b.emit("round", b.emit("div", x, scale)), point)
    return b.cast(b.emit("clamp", y, min=0.0, max=255.0), "uint8"), scale, b.cast(point, "uint8")


@rule("QLinearConv")
def qlinear_conv(
    b: OnnxImporter,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    weight = dequantized(b, w, w_scale, w_zero, 0)
    if bias is not None:
        steps = b.known(x_scale, "scale").reshape(-1) * b.known(w_scale, "scale").reshape(-1)
        bias = as_known(b.known(bias, "bias") * steps, "float32", bias.origin)
    y = conv(b, dequantized(b, x, x_scale, x_zero), weight, bias)
    return quantized(b, y, y_scale, y_zero, y_zero.dtype)


@rule("QLinearMatMul")
def qlinear_matmul(
    b: OnnxImporter,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    y: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    scale: Tensor,
    zero: Tensor,
) -> Tensor:
    left = dequantized(b, x, x_scale, x_zero, -2)
    right = dequantized(b, y, y_scale, y_zero, -1)
    return quantized(b, matmul(b, left, right), scale, zero, zero.dtype)


@rule("QLinearAdd", "com.microsoft::QLinearAdd")
def qlinear_add(
    b: OnnxImporter,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    y: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    scale: Tensor,
    zero: Tensor,
) -> Tensor:
    total = b.binary("add", dequantized(b, x, x_scale, x_zero), dequantized(b, y, y_scale, y_zero))
    return quantized(b, total, scale, zero, zero.dtype)


def _shifted(b: OnnxImporter, x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    one = as_known(1.0, "float32")
    return dequantized(b, x, one, zero, axis)


@rule("MatMulInteger")
def matmul_integer(
    b: OnnxImporter, x: Tensor, y: Tensor, x_zero: Tensor | None = None, y_zero: Tensor | None = None
) -> Tensor:
    product = matmul(b, _shifted(b, x, x_zero, -2), _shifted(b, y, y_zero, -1))
    return b.cast(b.emit("round", product), "int32")


@rule("ConvInteger")
def conv_integer(
    b: OnnxImporter, x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    y = conv(b, _shifted(b, x, x_zero, 1), _shifted(b, w, w_zero, 0), None)
    return b.cast(b.emit("round", y), "int32")
