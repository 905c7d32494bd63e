"""Pooling over one to three axes, and over all."""

from typing import Any

from pqnet_converters.core.importer import Tensor
from pqnet_converters.onnx.importer import OnnxImporter
from pqnet_converters.onnx.registry import rule
from pqnet_converters.onnx.rules.layers import windows

Window = dict[str, tuple[int, ...]]


def _pooled(b: OnnxImporter, op: str, x: Tensor, window: Window, **attrs: Any) -> Tensor:
    """Pool over all axes behind the channels; one axis gets a unit axis before it, of three the first goes alone."""
    n = len(window["kernel"])
    if n == 2:
        return b.emit(op, x, **window, **attrs)
    if n == 1:
        wide = {k: _beside(k, v) for k, v in window.items()}
        flat = b.reshape(x, (x.shape[0], x.shape[1], 1, x.shape[2]))
        y = b.emit(op, flat, **wide, **attrs)
        return b.reshape(y, (y.shape[0], y.shape[1], y.shape[3]))
    if n != 3:
        raise b.refuse(f"expected pooling over 1 to 3 axes, got {n}")
    batch, channels, depth, height, width = x.shape
    first = {k: (v[0], 0, v[3], 0) if k == "padding" else (v[0], 1) for k, v in window.items()}
    rest = {k: (*v[1:3], *v[4:]) if k == "padding" else v[1:] for k, v in window.items()}
    y = b.emit(op, b.reshape(x, (batch, channels, depth, height * width)), **first, **attrs)
    planes = b.reshape(y, (batch, channels * y.shape[2], height, width))
    z = b.emit(op, planes, **rest, **attrs)
    return b.reshape(z, (batch, channels, y.shape[2], *z.shape[2:]))


def _beside(name: str, value: tuple[int, ...]) -> tuple[int, ...]:
    return (0, value[0], 0, value[1]) if name == "padding" else (1, value[0])


@rule("MaxPool")
def max_pool(b: OnnxImporter, x: Tensor) -> tuple[Tensor, None] | Tensor:
    kernel = tuple(b.attr("kernel_shape"))
    if b.attr("storage_order", 0):
        raise b.refuse("expected positions in row-major order, got storage_order 1")
    dtype = x.dtype
    window = {"kernel": kernel, **windows(b, x, kernel)}
    y = _pooled(b, "max_pool2d", b.cast(x, "float32"), window, ceil_mode=bool(b.attr("ceil_mode", 0)))
    return b.cast(y, dtype), None


@rule("AveragePool")
def average_pool(b: OnnxImporter, x: Tensor) -> Tensor:
    kernel = tuple(b.attr("kernel_shape"))
    window = {"kernel": kernel, **windows(b, x, kernel)}
    if set(window.pop("dilation")) != {1}:
        raise b.refuse("an average pooling with dilation has no rule")
    count, ceil = bool(b.attr("count_include_pad", 0)), bool(b.attr("ceil_mode", 0))
    return _pooled(b, "avg_pool2d", x, window, ceil_mode=ceil, count_include_pad=count)


@rule("GlobalAveragePool")
def global_average_pool(b: OnnxImporter, x: Tensor) -> Tensor:
    if x.rank == 4:
        return b.emit("adaptive_avg_pool2d", x, size=(1, 1))
    return b.emit("mean", x, axes=tuple(range(2, x.rank)), keepdims=True)


@rule("GlobalMaxPool")
def global_max_pool(b: OnnxImporter, x: Tensor) -> Tensor:
    return b.emit("max", x, axes=tuple(range(2, x.rank)), keepdims=True)


@rule("GlobalLpPool")
def global_lp_pool(b: OnnxImporter, x: Tensor) -> Tensor:
    p = b.attr("p", 2)
    total = b.emit("sum", b.emit("pow", b.emit("abs", x), scalar=p), axes=tuple(range(2, x.rank)), keepdims=True)
    return b.emit("pow", total, scalar=1 / p)


@rule("LpPool")
def lp_pool(b: OnnxImporter, x: Tensor) -> Tensor:
    kernel, p = tuple(b.attr("kernel_shape")), b.attr("p", 2)
    window = {"kernel": kernel, **windows(b, x, kernel)}
    if set(window.pop("dilation")) != {1}:
        raise b.refuse("a pooling with dilation has no rule")
    if len(kernel) > 2:
        raise b.refuse("expected pooling over 1 or 2 axes")
    power = b.emit("pow", b.emit("abs", x), scalar=p)
    total = _pooled(b, "avg_pool2d", power, window, ceil_mode=bool(b.attr("ceil_mode", 0)), divisor=1)
    return b.emit("pow", total, scalar=1 / p)
