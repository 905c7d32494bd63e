"""Convolutions: conv2d and conv_transpose2d, any stride, padding, dilation and groups."""

from collections.abc import Mapping, Sequence

import numpy as np

from pqnet.errors import PQNetError
from pqnet.graph.axes import Axes, Tracked, cut, fix, join, unify
from pqnet.graph.op import Arrays, Attr, Attrs, Info, Params, check_dtype, check_shape, register

__all__ = ["conv2d", "conv_windows", "zero_stuffed"]


def _out_size(size: int, before: int, after: int, kernel: int, stride: int, dilation: int) -> int:
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def _check(x: Info, weight: Info, bias: Info | None, a: Attrs) -> None:
    if len(x.shape) != 4 or len(weight.shape) != 4:
        raise PQNetError(f"expected 4 axes (batch, channels, height, width), got {x.shape} and weight {weight.shape}")
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


def _infer_conv2d(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    weight = p["weight"]
    _check(x[0], weight, p.get("bias"), a)
    top, left, bottom, right = a["padding"]
    if min(a["padding"]) < 0:
        raise PQNetError(f"expected non-negative padding, got {a['padding']}")
    size = (
        _out_size(x[0].shape[2], top, bottom, weight.shape[2], a["stride"][0], a["dilation"][0]),
        _out_size(x[0].shape[3], left, right, weight.shape[3], a["stride"][1], a["dilation"][1]),
    )
    if min(size) < 1:
        raise PQNetError(f"the kernel {weight.shape[2:]} is larger than the padded input {x[0].shape}")
    return Info((x[0].shape[0], weight.shape[0], *size))


def conv_windows(x: np.ndarray, kernel: tuple[int, ...], a: Attrs) -> np.ndarray:
    """Return a view of the padded input of shape (B, C, kh, kw, Ho, Wo): what every tap sees at every position."""
    top, left, bottom, right = a["padding"]
    if any(a["padding"]):
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    (kh, kw), (sh, sw), (dh, dw) = kernel, a["stride"], a["dilation"]
    height = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    b, c, h, w = x.strides
    return np.lib.stride_tricks.as_strided(
        x,
        (x.shape[0], x.shape[1], kh, kw, height, width),
        (b, c, h * dh, w * dw, h * sh, w * sw),
        writeable=False,
    )


def conv2d(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, a: Attrs) -> np.ndarray:
    """Convolve checked arrays: one image at a time, its patches gathered and multiplied by the filters."""
    groups = a["groups"]
    o, c, kh, kw = weight.shape
    windows = conv_windows(x, (kh, kw), a)
    batch, channels, _, _, height, width = windows.shape
    out = np.empty((batch, o, height * width), np.float32)
    if c == 1 and o == channels:
        _depthwise(windows, weight, out.reshape(batch, o, height, width))
    elif (kh, kw) == (1, 1) and windows.strides[-2] == width * windows.strides[-1] and groups == 1:
        np.matmul(weight.reshape(o, c), windows.reshape(batch, c, height * width), out=out)
    else:
        filters = weight.reshape(groups, o // groups, c * kh * kw)
        patches = np.empty((groups, c * kh * kw, height * width), np.float32)
        for image in range(batch):
            patches.reshape(windows.shape[1:])[...] = windows[image]
            np.matmul(filters, patches, out=out[image].reshape(groups, o // groups, -1))
    if bias is not None:
        out += bias[:, None]
    return out.reshape(batch, o, height, width)


def _depthwise(windows: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    term = np.empty_like(out)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            tap = weight[:, 0, i, j, None, None]
            if (i, j) == (0, 0):
                np.multiply(windows[:, :, 0, 0], tap, out=out)
            else:
                np.multiply(windows[:, :, i, j], tap, out=term)
                np.add(out, term, out=out)


def _eval_conv2d(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return conv2d(x[0], p["weight"], p.get("bias"), a)


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
    return x[0].axes[0], outputs, (), ()


register(
    "conv2d",
    infer=_infer_conv2d,
    evaluate=_eval_conv2d,
    order=_order,
    params={"weight": True, "bias": False},
    stride=Attr("ints", (1, 1), length=2),
    padding=Attr("ints", (0, 0, 0, 0), length=4),
    dilation=Attr("ints", (1, 1), length=2),
    groups=Attr("int", 1),
)


def _infer_transpose(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    weight = p["weight"]
    _check(x[0], weight, p.get("bias"), a)
    size = tuple(
        (x[0].shape[2 + i] - 1) * a["stride"][i]
        + a["dilation"][i] * (weight.shape[2 + i] - 1)
        + 1
        - a["padding"][i]
        - a["padding"][2 + i]
        + a["output_padding"][i]
        for i in (0, 1)
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
    (sh, sw), (dh, dw) = a["stride"], a["dilation"]
    batch, channels, height, width = x.shape
    full = np.zeros((batch, channels, (height - 1) * sh + 1, (width - 1) * sw + 1), np.float32)
    full[:, :, ::sh, ::sw] = x
    margin = [
        dh * (kernel[0] - 1) - a["padding"][0],
        dw * (kernel[1] - 1) - a["padding"][1],
        dh * (kernel[0] - 1) - a["padding"][2] + a["output_padding"][0],
        dw * (kernel[1] - 1) - a["padding"][3] + a["output_padding"][1],
    ]
    crop = [max(-m, 0) for m in margin]
    full = full[:, :, crop[0] : full.shape[2] - crop[2], crop[1] : full.shape[3] - crop[3]]
    padding = tuple(max(m, 0) for m in margin)
    return full, {"stride": (1, 1), "padding": padding, "dilation": (dh, dw), "groups": a["groups"]}


def _eval_transpose(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    weight = p["weight"]
    full, attrs = zero_stuffed(x[0], weight.shape[2:], a)
    return conv2d(full, np.ascontiguousarray(weight[:, :, ::-1, ::-1]), p.get("bias"), attrs)


register(
    "conv_transpose2d",
    infer=_infer_transpose,
    evaluate=_eval_transpose,
    order=_order,
    params={"weight": True, "bias": False},
    stride=Attr("ints", (1, 1), length=2),
    padding=Attr("ints", (0, 0, 0, 0), length=4),
    output_padding=Attr("ints", (0, 0), length=2),
    dilation=Attr("ints", (1, 1), length=2),
    groups=Attr("int", 1),
)
