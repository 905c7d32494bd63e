"""Resizing of images: interpolate, at the positions that PyTorch reads."""

from collections.abc import Mapping, Sequence

import numpy as np

from pqnet.errors import PQNetError
from pqnet.graph.axes import keep_pixels
from pqnet.graph.op import REQUIRED, Arrays, Attr, Attrs, Info, Params, check_dtype, register

# What height and width were multiplied by, where that is not the quotient of the sizes: 1.3 makes 7 pixels of 6.
SCALES = ("scale_height", "scale_width")


def _infer(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    check_dtype(x[0], "float32")
    shape = x[0].shape
    if len(shape) != 4 or min(shape[2:]) < 1:
        raise PQNetError(f"expected an input of 4 axes (batch, channels, height, width) with pixels, got {shape}")
    if min(a["size"]) < 1:
        raise PQNetError(f"size: expected at least 1, got {a['size']}")
    for name in ("align_corners", "antialias"):
        if a[name] and a["mode"] == "nearest":
            raise PQNetError(f"{name}: expected only with mode 'bilinear' or 'bicubic', got 'nearest'")
    for name, before, after in zip(SCALES, shape[2:], a["size"], strict=True):
        _check_scale(name, a[name], before, after, a["align_corners"])
    return Info((*shape[:2], *a["size"]))


def _check_scale(name: str, scale: float | None, before: int, after: int, align_corners: bool) -> None:
    if scale is None:
        return
    if align_corners:
        raise PQNetError(f"{name}: expected none together with align_corners, got {scale}")
    if not after <= int(before) * scale < int(after) + 1:
        raise PQNetError(f"{name}: expected one that makes {after} pixels of {before}, got {scale}")


def _step(size: int, out: int, a: Attrs, scale: float | None) -> np.float32:
    """Return how far apart in the input two neighbours of the result lie."""
    if a["align_corners"]:
        return np.float32((size - 1) / (out - 1) if out > 1 else 0)
    return np.float32(size / out if scale is None else 1 / scale)


def taps_of(size: int, out: int, a: Attrs, scale: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels of an axis that each pixel of the result sees, and their weights.

    Positions are a float32 step times a number, rounded once to float32, which is what PyTorch computes (its
    multiply-subtract is fused); exact ones differ by up to 1e-4.

    Parameters
    ----------
    size, out : int
        Pixels of the axis before and after.
    a : mapping
        Attributes of the node.
    scale : float, optional
        What the size was multiplied by; by default the quotient of the sizes.

    Returns
    -------
    int64 array, shape (out, taps)
        The pixels, in ascending order.
    float32 array, shape (out, taps)

    Examples
    --------
    >>> attrs = {"mode": "bilinear", "align_corners": False, "antialias": False}
    >>> [array.tolist() for array in taps_of(3, 2, attrs)]
    [[[0, 1], [1, 2]], [[0.75, 0.25], [0.25, 0.75]]]
    """
    copies = a["antialias"] or a["mode"] != "bicubic"
    if (copies and out == size) or (a["mode"] == "nearest" and out == 2 * size):
        scale = None  # PyTorch does not look at it then
    if size == out and scale in (None, 1):
        return np.arange(out)[:, None], np.ones((out, 1), np.float32)
    step = _step(size, out, a, scale)
    if a["mode"] == "nearest":
        below = (np.arange(out, dtype=np.float32) * step).astype(np.int64)
        return np.minimum(below, size - 1)[:, None], np.ones((out, 1), np.float32)
    if a["antialias"]:
        return _wide_taps(size, out, a["mode"], step)
    index = np.arange(out, dtype=np.float64)
    position = (index * step if a["align_corners"] else (index + 0.5) * step - 0.5).astype(np.float32)
    if a["mode"] == "bilinear":
        position = np.maximum(position, 0)
    low = np.minimum(np.floor(position).astype(np.int64), size - 1)
    part = np.clip(position - low, 0, 1).astype(np.float32)[:, None]
    if a["mode"] == "bilinear":
        return np.stack([low, np.minimum(low + 1, size - 1)], 1), np.concatenate([1 - part, part], 1)
    taps = np.arange(-1, 3)
    return np.clip(low[:, None] + taps, 0, size - 1), _cubic(part - taps, -0.75).astype(np.float32)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Return Keys' cubic kernel, whose slope at a distance of 1 is ``a``."""
    x = np.abs(distance, dtype=np.float64)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.asarray(np.where(x <= 1, near, np.where(x < 2, far, 0)))


def _wide_taps(size: int, out: int, mode: str, step: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels and weights of a filter that is as wide as a pixel of the result, if that is larger."""
    width = max(step, np.float32(1))
    support = (1 if mode == "bilinear" else 2) * width
    center = ((np.arange(out) + 0.5) * step).astype(np.float32)[:, None]
    half = np.float64(0.5)  # PyTorch adds it in this precision
    first = np.maximum((center - support + half).astype(np.int64), 0)
    count = np.minimum((center + support + half).astype(np.int64), size) - first
    taps = np.arange(count.max())
    distance = (first + taps - center + 0.5) / width
    weights = np.maximum(1 - np.abs(distance), 0) if mode == "bilinear" else _cubic(distance, -0.5)
    weights = np.where(taps < count, weights, 0)
    # Where there are fewer pixels, the last one comes again and its weight is cut among its copies: no weight of
    # nothing meets an infinity.
    last = np.take_along_axis(weights, count - 1, 1) / (len(taps) - count + 1)
    weights = np.where(taps < count - 1, weights, last) / weights.sum(1, keepdims=True)
    return first + np.minimum(taps, count - 1), weights.astype(np.float32)


def _mixed(x: np.ndarray, axis: int, pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the sum of the pixels of an axis, times their weights unless there is one for each pixel only."""
    result: np.ndarray = np.take(x, pixels[:, 0], axis)
    if pixels.shape[1] == 1:
        return result
    factors = weights.T.reshape(-1, weights.shape[0], *(1,) * (3 - axis))
    result *= factors[0]
    for tap, factor in enumerate(factors[1:], 1):
        term = np.take(x, pixels[:, tap], axis)
        term *= factor
        result += term
    return result


def _evaluate(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    result, sizes = x[0], {2: a["size"][0], 3: a["size"][1]}
    for axis in sorted(sizes, key=lambda i: sizes[i] / x[0].shape[i]):  # shrinking first: less to do for the other
        result = _mixed(result, axis, *taps_of(x[0].shape[axis], sizes[axis], a, a[SCALES[axis - 2]]))
    return result


register(
    "interpolate",
    infer=_infer,
    evaluate=_evaluate,
    order=keep_pixels,
    size=Attr("dims", REQUIRED, length=2),
    mode=Attr("str", "nearest", options=("nearest", "bilinear", "bicubic")),
    align_corners=Attr("bool", False),
    antialias=Attr("bool", False),
    scale_height=Attr("float", None),
    scale_width=Attr("float", None),
)
