"""Activation functions."""

from collections.abc import Callable
from typing import Any

from pqnet_converters.torch.aten.elementwise import as_float, as_number, clamp_tensor
from pqnet_converters.torch.aten.registry import rule
from pqnet_converters.torch.importer import Importer, Tensor
from pqnet_converters.torch.sizes import Expression

PLAIN = ("sigmoid", "tanh", "silu", "hardswish", "hardsigmoid", "mish")


def _plain(op: str) -> Callable[[Importer, Tensor], str]:
    return lambda b, x: b.emit(op, as_float(b, x))


for _op in PLAIN:
    rule(f"aten.{_op}.default")(_plain(_op))


@rule("aten.relu.default")
def relu(b: Importer, x: Tensor) -> str:
    return b.emit("relu", x) if x.dtype == "float32" else b.emit("clamp", x, min=0)


@rule("aten.gelu.default")
def gelu(b: Importer, x: Tensor, approximate: str) -> str:
    return b.emit("gelu", x, approximate=approximate)


@rule("aten.leaky_relu.default")
def leaky_relu(b: Importer, x: Tensor, slope: Any) -> str:
    return b.emit("leaky_relu", x, negative_slope=b.number(slope))


@rule("aten.elu.default")
def elu(b: Importer, x: Tensor, alpha: Any, scale: Any, input_scale: Any) -> Tensor | str:
    """alpha (exp(s x) - 1) is the plain ELU of s x, with alpha s, over s: for positive x the two s cancel too."""
    s = b.number(input_scale) or 1
    y: Tensor | str = x if s == 1 else b.emit("mul", x, scalar=s)
    y = b.emit("elu", y, alpha=(b.number(alpha) or 0) * s)
    factor = (b.number(scale) or 0) / s
    return y if factor == 1 else b.emit("mul", y, scalar=factor)


@rule("aten.softplus.default")
def softplus(b: Importer, x: Tensor, beta: Any, threshold: Any) -> str:
    return b.emit("softplus", x, beta=b.number(beta), threshold=b.number(threshold))


@rule("aten.prelu.default")
def prelu(b: Importer, x: Tensor, weight: Tensor) -> str:
    return b.emit("prelu", x, params={"weight": b.param(weight, "weight")})


@rule("aten.clamp.default", "aten.hardtanh.default")
def clamp(b: Importer, x: Tensor, low: Any, high: Any) -> Tensor | str:
    dtype = b.out_dtype()
    if isinstance(low, Expression) or isinstance(high, Expression):
        return clamp_tensor(b, x, low, high)
    given = {"min": b.number(low), "max": b.number(high)}
    limits: dict[str, Any] = {end: as_number(v, dtype) for end, v in given.items() if v is not None}
    return b.emit("clamp", b.cast(x, dtype), **limits)


@rule("aten.clamp_min.default")
def clamp_min(b: Importer, x: Tensor, low: Any) -> Tensor | str:
    return clamp(b, x, low, None)


@rule("aten.softmax.int", "aten._softmax.default")
def softmax(b: Importer, x: Tensor, axis: int, *_: Any) -> str:
    return b.emit("softmax", as_float(b, x), axis=axis % x.rank)


@rule("aten.log_softmax.int", "aten._log_softmax.default")
def log_softmax(b: Importer, x: Tensor, axis: int, *_: Any) -> str:
    return b.emit("log_softmax", as_float(b, x), axis=axis % x.rank)


@rule("aten.native_dropout.default")
def dropout(b: Importer, x: Tensor, *_: Any) -> tuple[Tensor, None]:
    """Dropout that is on even in eval mode: the network is imported for inference, where it changes nothing."""
    return x, None
