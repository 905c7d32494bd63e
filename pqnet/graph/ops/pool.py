"""Pooling: largest or mean value of windows (max_pool2d, avg_pool2d) or of a grid of bins (adaptive)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pqnet.errors import PQNetError
from pqnet.graph.axes import keep_pixels
from pqnet.graph.op import REQUIRED, Arrays, Attr, Attrs, Info, Params, check_dtype, register


def _check(x: Info) -> None:
    check_dtype(x, "float32")
    if len(x.shape) != 4 or min(x.shape[2:]) < 1:
        raise PQNetError(f"expected an input of 4 axes (batch, channels, height, width) with pixels, got {x.shape}")


def _pooled_size(shape: tuple[int, ...], a: Attrs) -> tuple[int, int]:
    """Return the number of windows of each axis; a window must start on the input or on the padding before it."""
    sizes = []
    for i in (0, 1):
        size, before, stride = shape[2 + i], a["padding"][i], a["stride"][i]
        room = size + before + a["padding"][2 + i] - a.get("dilation", (1, 1))[i] * (a["kernel"][i] - 1) - 1
        if a["ceil_mode"]:
            windows = -(-room // stride) + 1
            sizes.append(windows - (windows > 1 and (windows - 1) * stride >= size + before))
        else:
            sizes.append(room // stride + 1)
    return sizes[0], sizes[1]


def _infer_pool(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    _check(x[0])
    kernel, dilation = a["kernel"], a.get("dilation", (1, 1))
    if min(*kernel, *a["stride"], *dilation) < 1:
        raise PQNetError("expected kernel, stride and dilation of at least 1")
    reach = tuple(dilation[i] * (kernel[i] - 1) for i in (0, 1))
    if min(a["padding"]) < 0 or any(pad > r for pad, r in zip(a["padding"], reach * 2, strict=True)):
        raise PQNetError(f"padding: expected from 0 to less than the kernel's extent, got {a['padding']}")
    size = _pooled_size(x[0].shape, a)
    if min(size) < 1:
        raise PQNetError(f"the kernel {kernel} is larger than the padded input {x[0].shape}")
    if a.get("divisor") == 0:
        raise PQNetError("divisor: expected another number than 0")
    return Info((*x[0].shape[:2], *size))


def _combine(ufunc: np.ufunc, start: float, dtype: type[np.generic], x: np.ndarray, a: Attrs) -> np.ndarray:
    """Combine the pixels of every window with a ufunc: along the columns, then along the rows.

    kh + kw passes instead of kh * kw. Each tap is applied where it falls on the input, so that nothing is padded.
    """
    for i, windows in enumerate(_pooled_size(x.shape, a)):
        axis, stride, size = 2 + i, a["stride"][i], x.shape[2 + i]
        out = np.full((*x.shape[:axis], windows, *x.shape[axis + 1 :]), start, dtype)
        for tap in range(a["kernel"][i]):
            shift = tap * a.get("dilation", (1, 1))[i] - a["padding"][i]
            first = max(-(shift // stride), 0)
            last = min((size - 1 - shift) // stride, windows - 1)
            if first <= last:
                before = (slice(None),) * axis
                seen = x[(*before, slice(first * stride + shift, last * stride + shift + 1, stride))]
                target = out[(*before, slice(first, last + 1))]
                ufunc(target, seen, out=target)
        x = out
    return x


def _eval_max(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return _combine(np.maximum, -np.inf, np.float32, x[0], a)


def _eval_avg(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    out = _combine(np.add, 0, np.float64, x[0], a)
    if a["divisor"] is not None:
        out /= a["divisor"]
    else:
        rows, columns = (window_sizes(x[0].shape[2 + i], out.shape[2 + i], i, a) for i in (0, 1))
        out /= rows[:, None] * columns
    return out.astype(np.float32)


def window_sizes(size: int, windows: int, i: int, a: Attrs) -> np.ndarray:
    """Return how many pixels of axis ``i`` each window averages; never those beyond the padding (ceil_mode)."""
    start = np.arange(windows) * a["stride"][i] - a["padding"][i]
    stop = np.minimum(start + a["kernel"][i], size + a["padding"][2 + i])
    if not a["count_include_pad"]:
        start, stop = np.maximum(start, 0), np.minimum(stop, size)
    sizes: np.ndarray = (stop - start).astype(np.float32)
    return sizes


def _infer_adaptive(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    _check(x[0])
    if min(a["size"]) < 1:
        raise PQNetError(f"size: expected at least 1, got {a['size']}")
    return Info((*x[0].shape[:2], *a["size"]))


def bins(size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the bins of adaptive pooling begin and where they end, int64 each."""
    numbers = np.arange(count)
    return numbers * size // count, -(-(numbers + 1) * size // count)


def _eval_adaptive(ufunc: np.ufunc, x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    values = x[0].reshape(*x[0].shape[:2], 1, -1) if a["size"] == (1, 1) else x[0]
    dtype = np.float64 if ufunc is np.add else np.float32
    for axis, count in ((3, a["size"][1]), (2, a["size"][0])):
        parts = []
        for start, stop in zip(*(ends.tolist() for ends in bins(values.shape[axis], count)), strict=True):
            part = ufunc.reduce(values[(slice(None),) * axis + (slice(start, stop),)], axis, dtype, keepdims=True)
            parts.append(part / (stop - start) if ufunc is np.add else part)
        values = np.concatenate(parts, axis)
    return values.astype(np.float32, copy=False)


_windows: dict[str, Any] = {
    "order": keep_pixels,
    "kernel": Attr("ints", REQUIRED, length=2),
    "stride": Attr("ints", REQUIRED, length=2),
    "padding": Attr("ints", (0, 0, 0, 0), length=4),
    "ceil_mode": Attr("bool", False),
}
register("max_pool2d", infer=_infer_pool, evaluate=_eval_max, **_windows, dilation=Attr("ints", (1, 1), length=2))
register(
    "avg_pool2d",
    infer=_infer_pool,
    evaluate=_eval_avg,
    **_windows,
    count_include_pad=Attr("bool", True),
    divisor=Attr("int", None),
)
for _name, _ufunc in {"adaptive_avg_pool2d": np.add, "adaptive_max_pool2d": np.maximum}.items():
    register(
        _name,
        infer=_infer_adaptive,
        evaluate=partial(_eval_adaptive, _ufunc),
        order=keep_pixels,
        size=Attr("ints", REQUIRED, length=2),
    )
