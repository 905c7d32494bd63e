"""Convolutions and transposed convolutions over one to three axes, any stride, padding, dilation and groups."""

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod

import numpy as np

from pqnet.errors import PQNetError
from pqnet.graph.axes import Axes, Tracked, cut, fix, join, unify
from pqnet.graph.layers import WeightOp
from pqnet.graph.op import Arrays, Attr, Attrs, Info, Params, check_dtype, check_shape, register

__all__ = ["conv_windows", "convolve", "zero_stuffed"]

AT_A_TIME = 1 << 15  # outputs of a depthwise convolution
AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


def _check(x: Info, weight: Info, bias: Info | None, a: Attrs) -> None:
    n = len(a["stride"])
    if len(x.shape) != 2 + n or len(weight.shape) != 2 + n:
        names = ", ".join(("batch", "channels", *AXES[n]))
        raise PQNetError(f"expected {2 + n} axes ({names}), got {x.shape} and weight {weight.shape}")
    if min(weight.shape) < 1:
        raise PQNetError(f"weight: expected at least one output, channel and tap, got shape {weight.shape}")
    if min(a["stride"]) < 1 or min(a["dilation"]) < 1 or a["groups"] < 1:
        raise PQNetError("expected stride, dilation and groups of at least 1")
    o, c = weight.shape[:2]
    if o % a["groups"]:
        raise PQNetError(f"groups: expected a divisor of the {o} outputs, got {a['groups']}")
    if x.shape[1] != c * a["groups"]:
        raise PQNetError(
            f"expected {c * a['groups']} input channels (weight {weight.shape}, groups {a['groups']}), got {x.shape[1]}"
        )
    check_shape(bias, (o,), "bias")
    check_dtype(x, "float32")
    check_dtype(weight, "float32", name="weight")


def _sizes(padded: Sequence[int], kernel: Sequence[int], a: Attrs) -> tuple[int, ...]:
    """Return the number of positions along each axis."""
    steps = zip(padded, kernel, a["stride"], a["dilation"], strict=True)
    return tuple((size - dilation * (taps - 1) - 1) // stride + 1 for size, taps, stride, dilation in steps)


def _infer(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    weight = p["weight"]
    _check(x[0], weight, p.get("bias"), a)
    if min(a["padding"]) < 0:
        raise PQNetError(f"expected non-negative padding, got {a['padding']}")
    n = len(a["stride"])
    padded = [x[0].shape[2 + i] + a["padding"][i] + a["padding"][n + i] for i in range(n)]
    size = _sizes(padded, weight.shape[2:], a)
    if min(size) < 1:
        raise PQNetError(f"the kernel {weight.shape[2:]} is larger than the padded input {x[0].shape}")
    return Info((x[0].shape[0], weight.shape[0], *size))


def conv_windows(x: np.ndarray, kernel: tuple[int, ...], a: Attrs) -> np.ndarray:
    """Return a view of the padded input, (B, C, *kernel, *positions): what every tap sees at every position."""
    n = len(kernel)
    if any(a["padding"]):
        x = np.pad(x, ((0, 0), (0, 0), *zip(a["padding"][:n], a["padding"][n:], strict=True)))
    taps = (s * dilation for s, dilation in zip(x.strides[2:], a["dilation"], strict=True))
    steps = (s * stride for s, stride in zip(x.strides[2:], a["stride"], strict=True))
    shape = (*x.shape[:2], *kernel, *_sizes(x.shape[2:], kernel, a))
    return np.lib.stride_tricks.as_strided(x, shape, (*x.strides[:2], *taps, *steps), writeable=False)


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, a: Attrs) -> np.ndarray:
    """Convolve checked arrays: one sample at a time, its patches gathered and multiplied by the filters."""
    groups = a["groups"]
    o, c, *kernel = weight.shape
    windows = conv_windows(x, tuple(kernel), a)
    (batch, channels), size = windows.shape[:2], windows.shape[2 + len(kernel) :]
    out = np.empty((batch, o, prod(size)), np.float32)
    if c == 1 and o == channels:
        _depthwise(windows, weight, out.reshape(batch, o, *size))
    elif prod(kernel) == groups == 1 and _is_flat(size, windows.strides[-len(size) :]):
        np.matmul(weight.reshape(o, c), windows.reshape(batch, c, prod(size)), out=out)
    else:
        filters = weight.reshape(groups, o // groups, c * prod(kernel))
        patches = np.empty((groups, c * prod(kernel), prod(size)), np.float32)
        for sample in range(batch):
            patches.reshape(windows.shape[1:])[...] = windows[sample]
            np.matmul(filters, patches, out=out[sample].reshape(groups, o // groups, -1))
    if bias is not None:
        out += bias[:, None]
    return out.reshape(batch, o, *size)


def _is_flat(size: Sequence[int], strides: Sequence[int]) -> bool:
    """Tell whether axes of these sizes and strides make one without a copy."""
    return all(strides[i] == size[i + 1] * strides[i + 1] for i in range(len(size) - 1))


def _depthwise(windows: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """Sum tap after tap over so few channels at a time that they stay in the cache."""
    batch, channels = out.shape[:2]
    many, column = max(1, AT_A_TIME // max(1, prod(out.shape[2:]))), (-1, *(1,) * (weight.ndim - 2))
    for sample, first in product(range(batch), range(0, channels, many)):
        some = slice(first, first + many)
        seen, total = windows[sample, some], out[sample, some]
        term = np.empty_like(total)
        for i, tap in enumerate(np.ndindex(weight.shape[2:])):
            factor = weight[some, 0, *tap].reshape(column)
            np.multiply(seen[:, *tap], factor, out=term if i else total)
            if i:
                total += term


def _evaluate(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return convolve(x[0], p["weight"], p.get("bias"), a)


def _order(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    weight, groups = p["weight"], a["groups"]
    outputs, inputs = weight.axes[:2]
    for axis in (*x[0].axes[2:], *weight.axes[2:]):
        fix(axis)
    if weight.shape[:2] == (groups, 1):
        unify(x[0].axes[1], outputs)
    else:  # every group sees its channels in the one order that the weight has
        unify(x[0].axes[1], join([inputs] * groups))
        for g in range(1, groups):
            cut(outputs, g * weight.shape[0] // groups)
    if "bias" in p:
        unify(outputs, p["bias"].axes[0])
    return x[0].axes[0], outputs, *((),) * (len(x[0].shape) - 2)


def _infer_transpose(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    weight, n = p["weight"], len(a["stride"])
    _check(x[0], weight, p.get("bias"), a)
    size = tuple(
        (x[0].shape[2 + i] - 1) * a["stride"][i]
        + a["dilation"][i] * (weight.shape[2 + i] - 1)
        + 1
        - a["padding"][i]
        - a["padding"][n + i]
        + a["output_padding"][i]
        for i in range(n)
    )
    if min(size) < 1:
        raise PQNetError(f"the padding {a['padding']} leaves no output for input {x[0].shape}")
    if min(a["output_padding"]) < 0 or min(a["padding"]) < 0:
        raise PQNetError("expected non-negative padding and output_padding")
    return Info((x[0].shape[0], weight.shape[0], *size))


def zero_stuffed(x: np.ndarray, kernel: tuple[int, ...], a: Attrs) -> tuple[np.ndarray, dict[str, object]]:
    """Return input and attributes of the plain convolution (kernel flipped) that a transposed one amounts to.

    Zeros are put between the pixels, so that every output is a dot product of a patch with a filter; the second
    moments of transposed convolutions are those of these patches.
    """
    n = len(kernel)
    full = np.zeros((*x.shape[:2], *((x.shape[2 + i] - 1) * a["stride"][i] + 1 for i in range(n))), np.float32)
    full[:, :, *(slice(None, None, stride) for stride in a["stride"])] = x
    reach = [a["dilation"][i] * (kernel[i] - 1) for i in range(n)]
    before = [reach[i] - a["padding"][i] for i in range(n)]
    after = [reach[i] - a["padding"][n + i] + a["output_padding"][i] for i in range(n)]
    full = full[:, :, *(slice(max(-before[i], 0), full.shape[2 + i] - max(-after[i], 0)) for i in range(n))]
    padding = tuple(max(margin, 0) for margin in (*before, *after))
    return full, {"stride": (1,) * n, "padding": padding, "dilation": a["dilation"], "groups": a["groups"]}


def _flipped(array: np.ndarray, n: int) -> np.ndarray:
    """Return an array with its axes 2 .. 1 + n reversed."""
    return array[:, :, *(slice(None, None, -1),) * n]


def _transposed_windows(x: np.ndarray, kernel: tuple[int, ...], a: Attrs) -> np.ndarray:
    """Return what every tap sees at every position of the output, as `conv_windows`."""
    full, attrs = zero_stuffed(x, kernel, a)
    return _flipped(conv_windows(full, kernel, attrs), len(kernel))


def _evaluate_transpose(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    weight = p["weight"]
    full, attrs = zero_stuffed(x[0], weight.shape[2:], a)
    return convolve(full, np.ascontiguousarray(_flipped(weight, weight.ndim - 2)), p.get("bias"), attrs)


def _each(value: int, n: int) -> Attr:
    """Return an attribute of n integers, by default all the same."""
    return Attr("ints", (value,) * n, length=n)


for _n in AXES:
    register(
        f"conv{_n}d",
        infer=_infer,
        evaluate=_evaluate,
        order=_order,
        params={"weight": True, "bias": False},
        weight=WeightOp("conv", conv_windows, _n, channels_first=True),
        stride=_each(1, _n),
        padding=_each(0, 2 * _n),  # before every axis, then after every axis
        dilation=_each(1, _n),
        groups=Attr("int", 1),
    )
    register(
        f"conv_transpose{_n}d",
        infer=_infer_transpose,
        evaluate=_evaluate_transpose,
        order=_order,
        params={"weight": True, "bias": False},
        weight=WeightOp("conv", _transposed_windows, _n, channels_first=True, transposed=True),
        stride=_each(1, _n),
        padding=_each(0, 2 * _n),
        output_padding=_each(0, _n),
        dilation=_each(1, _n),
        groups=Attr("int", 1),
    )
