"""Resizing of images: interpolate, nearest and bilinear, at the positions that PyTorch reads."""

from collections.abc import Mapping, Sequence

import numpy as np

from pqnet.errors import PQNetError
from pqnet.graph.axes import keep_pixels
from pqnet.graph.op import REQUIRED, Arrays, Attr, Attrs, Info, Params, check_dtype, register


def _infer(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    check_dtype(x[0], "float32")
    shape = x[0].shape
    if len(shape) != 4 or min(shape[2:]) < 1:
        raise PQNetError(f"expected an input of 4 axes (batch, channels, height, width) with pixels, got {shape}")
    if min(a["size"]) < 1:
        raise PQNetError(f"size: expected at least 1, got {a['size']}")
    if a["align_corners"] and a["mode"] == "nearest":
        raise PQNetError("align_corners: expected only with mode 'bilinear', got 'nearest'")
    return Info((*shape[:2], *a["size"]))


def _positions(size: int, out: int, align_corners: bool) -> np.ndarray:
    """Return where in the input each output pixel lies: a float32 scale, and one rounding to float32 after it.

    This is what PyTorch computes (its multiply-subtract is fused); exact positions differ by up to 1e-4.
    """
    index: np.ndarray = np.arange(out, dtype=np.float64)
    if align_corners:
        position = index * np.float32((size - 1) / max(out - 1, 1))
    else:
        position = np.maximum((index + 0.5) * np.float32(size / out) - 0.5, 0)
    return position.astype(np.float32)


def taps_of(size: int, out: int, mode: str, align_corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels of an axis that each pixel of the result sees, and their float32 weights, shape (out, taps)."""
    if size == out:
        return np.arange(out)[:, None], np.ones((out, 1), np.float32)
    if mode == "nearest":
        scale = np.float32(size) / np.float32(out)
        index = (np.arange(out, dtype=np.float32) * scale).astype(np.int64)
        return np.minimum(index, size - 1)[:, None], np.ones((out, 1), np.float32)
    position = _positions(size, out, align_corners)
    low = np.minimum(position.astype(np.int64), size - 1)
    part = np.minimum(position - low, 1).astype(np.float32)
    return np.stack([low, np.minimum(low + 1, size - 1)], 1), np.stack([1 - part, part], 1)


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
        if sizes[axis] != x[0].shape[axis]:
            pixels, weights = taps_of(x[0].shape[axis], sizes[axis], a["mode"], a["align_corners"])
            result = _mixed(result, axis, pixels, weights)
    return result


register(
    "interpolate",
    infer=_infer,
    evaluate=_evaluate,
    order=keep_pixels,
    size=Attr("dims", REQUIRED, length=2),
    mode=Attr("str", "nearest", options=("nearest", "bilinear")),
    align_corners=Attr("bool", False),
)
