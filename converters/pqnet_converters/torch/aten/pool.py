"""Pooling over two axes; torch.export already gives pooling over one axis a unit height."""

from typing import Any

from pqnet_converters.torch.aten.registry import rule
from pqnet_converters.torch.importer import Importer, Tensor


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[-1])


def _window(kernel: Any, stride: Any, padding: Any) -> dict[str, Any]:
    return {"kernel": _pair(kernel), "stride": _pair(stride or kernel), "padding": _pair(padding) * 2}


@rule("aten.max_pool2d_with_indices.default")
def max_pool2d(
    b: Importer, x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[str, None]:
    window = _window(kernel, stride, padding)
    return b.emit("max_pool2d", x, **window, dilation=_pair(dilation), ceil_mode=ceil_mode), None


@rule("aten.avg_pool2d.default")
def avg_pool2d(
    b: Importer,
    x: Tensor,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> str:
    attrs: dict[str, Any] = {} if divisor is None else {"divisor": divisor}
    window = _window(kernel, stride, padding)
    return b.emit("avg_pool2d", x, **window, ceil_mode=ceil_mode, count_include_pad=count_include_pad, **attrs)


@rule("aten.adaptive_avg_pool2d.default")
def adaptive_avg_pool2d(b: Importer, x: Tensor, size: Any) -> str:
    return b.emit("adaptive_avg_pool2d", x, size=_pair(size))


@rule("aten.adaptive_max_pool2d.default")
def adaptive_max_pool2d(b: Importer, x: Tensor, size: Any) -> tuple[str, None]:
    return b.emit("adaptive_max_pool2d", x, size=_pair(size)), None
