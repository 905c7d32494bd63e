"""Activation functions and softmax."""

from collections.abc import Callable
from math import isclose
from typing import Any

from pqnet_converters.core.importer import Tensor, as_known
from pqnet_converters.onnx.importer import OnnxImporter, axis_of
from pqnet_converters.onnx.registry import rule


def _plain(op: str) -> Callable[[OnnxImporter, Tensor], Tensor]:
    return lambda b, x: b.emit(op, x)


for _onnx, _op in {
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "HardSwish": "hardswish",
    "Mish": "mish",
}.items():
    rule(_onnx)(_plain(_op))


@rule("Relu")
def relu(b: OnnxImporter, x: Tensor) -> Tensor:
    return b.emit("relu", x) if x.dtype == "float32" else b.emit("clamp", x, min=0)


@rule("LeakyRelu")
def leaky_relu(b: OnnxImporter, x: Tensor) -> Tensor:
    return b.emit("leaky_relu", x, negative_slope=b.attr("alpha", 0.01))


@rule("Elu")
def elu(b: OnnxImporter, x: Tensor) -> Tensor:
    return b.emit("elu", x, alpha=b.attr("alpha", 1.0))


@rule("Selu")
def selu(b: OnnxImporter, x: Tensor) -> Tensor:
    alpha, gamma = b.attr("alpha", 1.6732632423543772), b.attr("gamma", 1.0507009873554805)
    return b.emit("mul", b.emit("elu", x, alpha=alpha), scalar=gamma)


@rule("Celu")
def celu(b: OnnxImporter, x: Tensor) -> Tensor:
    """alpha (exp(x / alpha) - 1) is the plain ELU of x / alpha, times alpha."""
    alpha = b.attr("alpha", 1.0)
    return b.emit("mul", b.emit("elu", b.emit("div", x, scalar=alpha)), scalar=alpha)


@rule("HardSigmoid")
def hard_sigmoid(b: OnnxImporter, x: Tensor) -> Tensor:
    alpha, beta = b.attr("alpha", 0.2), b.attr("beta", 0.5)
    if isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return b.emit("hardsigmoid", x)
    line = b.emit("add", b.emit("mul", x, scalar=alpha), scalar=beta)
    return b.emit("clamp", line, min=0.0, max=1.0)


@rule("Softplus")
def softplus(b: OnnxImporter, x: Tensor) -> Tensor:
    return b.emit("softplus", x)


@rule("Softsign")
def softsign(b: OnnxImporter, x: Tensor) -> Tensor:
    return b.emit("div", x, b.emit("add", b.emit("abs", x), scalar=1.0))


@rule("Gelu", "com.microsoft::Gelu")
def gelu(b: OnnxImporter, x: Tensor) -> Tensor:
    return b.emit("gelu", x, approximate=b.attr("approximate", "none"))


@rule("Swish")
def swish(b: OnnxImporter, x: Tensor) -> Tensor:
    alpha = b.attr("alpha", 1.0)
    if alpha == 1:
        return b.emit("silu", x)
    return b.emit("mul", x, b.emit("sigmoid", b.emit("mul", x, scalar=alpha)))


@rule("PRelu")
def prelu(b: OnnxImporter, x: Tensor, slope: Tensor) -> Tensor:
    array = slope.constant
    if array is not None:
        shape = (1,) * (x.rank - array.ndim) + array.shape
        if array.size == 1 or (x.rank > 1 and shape[1] == array.size == x.shape[1]):
            weight = as_known(array.reshape(-1), "float32", slope.origin)
            return b.emit("prelu", x, params={"weight": weight})
    negative = b.emit("mul", b.emit("clamp", x, max=0.0), slope)
    return b.emit("add", b.emit("relu", x), negative)


@rule("ThresholdedRelu")
def thresholded_relu(b: OnnxImporter, x: Tensor) -> Tensor:
    above = b.emit("gt", x, scalar=b.attr("alpha", 1.0))
    return b.emit("where", above, x, as_known(0.0, "float32"))


@rule("Shrink")
def shrink(b: OnnxImporter, x: Tensor) -> Tensor:
    limit, bias = b.attr("lambd", 0.5), b.attr("bias", 0.0)
    zero, numbers = as_known(0.0, "float32"), b.cast(x, "float32")
    high = b.emit("where", b.emit("gt", numbers, scalar=limit), b.emit("sub", numbers, scalar=bias), zero)
    low = b.emit("where", b.emit("lt", numbers, scalar=-limit), b.emit("add", numbers, scalar=bias), zero)
    return b.cast(b.emit("add", high, low), x.dtype)


def _along_axis(op: str) -> Callable[[OnnxImporter, Tensor], Tensor]:
    def function(b: OnnxImporter, x: Tensor) -> Tensor:
        return _flattened(b, x, lambda y, axis: b.emit(op, y, axis=axis))

    return function


def _flattened(b: OnnxImporter, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Apply a function along an axis; before opset 13, along all from that axis on, as one."""
    axis = axis_of(b.attr("axis", -1 if b.opset >= 13 else 1), x.rank)
    if b.opset >= 13 or axis == x.rank - 1:
        return function(x, axis)
    flat = b.reshape(x, (*x.shape[:axis], -1))
    return b.reshape(function(flat, axis), x.shape)


rule("Softmax")(_along_axis("softmax"))
rule("LogSoftmax")(_along_axis("log_softmax"))


@rule("Hardmax")
def hardmax(b: OnnxImporter, x: Tensor) -> Tensor:
    def one_hot(y: Tensor, axis: int) -> Tensor:
        place = b.emit("argmax", y, axis=axis, keepdims=True)
        shape: tuple[Any, ...] = (y.shape[axis], *(1,) * (y.rank - 1 - axis))
        numbers = b.reshape(b.emit("arange", end=y.shape[axis]), shape)
        return b.cast(b.emit("eq", place, numbers), "float32")

    return _flattened(b, x, one_hot)
