"""Finding scales, zero points and codes for the IntN codec."""

from typing import Any

import numpy as np

from pqnet._progress import ticking
from pqnet._threads import blas_limit, default_threads
from pqnet.codecs import FITTERS, Fit, IntN, Packed, PackedScalar
from pqnet.fit.error import measured
from pqnet.fit.parallel import run_chunks
from pqnet.fit.scales import best_scales, check_fit, nearest_codes, stored_scales
from pqnet.kernels.fit import scales as kernels

__all__ = ["fit_intn"]

BINS = 2048
STEP = 1e-5  # of the mass, which a try of the histogram observer leaves out
GRID = 51  # scales, from half to one and a half times that of least error, that observer "output" tries
ALL_ZEROS = 4  # bits up to which every zero point is tried


def fit_intn(
    codec: IntN,
    weight: Any,
    metric: Any = None,
    warm: Packed | None = None,
    seed: int = 0,
    *,
    row_weights: Any = None,
    threads: int | None = None,
) -> Fit:
    """Find scales, zero points and codes of integers.

    Parameters
    ----------
    codec : IntN
    weight : array, shape (O, C, *kernel) or (O, I)
    metric : array, optional
        Second moments of the inputs, (1, 1), (I, 1, 1) or (G, I, 1, 1), or whole ones, (I, I), (1, I, I) or
        (G, 1, I, I); observer "output" uses them.
    warm, seed
        Taken and checked; the result depends on neither.
    row_weights : array, shape (O,), optional
        Weight of each output, for observer "output".
    threads : int, optional

    Returns
    -------
    Fit
    """
    codec, dense, importance = check_fit(codec, weight, metric, warm, seed, row_weights)
    grid = codec.scale_grid(dense.shape)
    rows = dense.reshape(grid[0] * grid[1], -1)
    zeros = None
    whole = codec.observer == "output" and metric is not None and np.shape(metric)[-1] > 1 and codec.per != "group"
    if codec.observer in ("minmax", "histogram"):
        low, high = rows.min(1).astype(np.float64), rows.max(1).astype(np.float64)
        if codec.observer == "histogram":
            low, high = _shrunk(rows, low, high, codec.k, default_threads(threads))
        scales, zeros = _of_range(codec, low, high)
    else:
        weighted = importance is not None and codec.observer == "output" and not whole
        h = importance.reshape(rows.shape) if importance is not None and weighted else None
        if codec.symmetric:
            scales = best_scales(rows, codec.levels, h, threads=threads)[0]
        else:
            scales, zeros = _best_affine(codec, rows, h, threads)
    offset = 0.0 if zeros is None else zeros[:, None].astype(np.float64)
    if whole:
        moments = np.asarray(metric, np.float32).reshape(-1, *np.shape(metric)[-2:])
        scales, codes = _least_output(codec, dense.reshape(len(dense), -1), scales, offset, moments, row_weights)
        stored = stored_scales(scales, codec)
    else:
        stored = stored_scales(scales, codec)
        codes = nearest_codes(rows, codec.levels, stored[:, None], offset)
    packed = PackedScalar(
        codec,
        dense.shape,
        codes.reshape(len(dense), -1),
        scales=stored.reshape(grid),
        zeros=None if zeros is None else zeros.reshape(grid),
    )
    return measured(packed, dense, metric, row_weights, 0)


def _of_range(codec: IntN, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return scales and zero points of ranges, widened to hold 0, as PyTorch's observers have them."""
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    steps = codec.k - 1
    if codec.symmetric:
        scales = np.maximum(-low, high) / (steps / 2)
        return np.where(scales > 0, scales, 1.0), None
    scales = (high - low) / steps
    scales = np.where(scales > 0, scales, 1.0)
    return scales, np.clip(np.rint(-low / scales), 0, steps).astype(np.int64)


def _shrunk(
    rows: np.ndarray, low: np.ndarray, high: np.ndarray, levels: int, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the range of each row that the histogram observer keeps."""
    width = np.where(high > low, (high - low) / BINS, 1.0)
    counts = np.empty((len(rows), BINS))
    for r, row in enumerate(rows):
        at = np.clip(((row - low[r]) / width[r]).astype(np.int64), 0, BINS - 1)
        counts[r] = np.bincount(at, minlength=BINS)
    kept = np.empty((len(rows), 2), np.int64)
    run_chunks(threads, kernels.shrink_range, counts, levels, STEP, kept)
    flat = high <= low
    return np.where(flat, low, low + width * kept[:, 0]), np.where(flat, high, low + width * (kept[:, 1] + 1))


def _best_affine(
    codec: IntN, rows: np.ndarray, importance: np.ndarray | None, threads: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best scale and zero point of each row.

    Up to 4 bits every zero point has its best scale found. Above, those around that of the least and largest weight
    have, and around the best of them, until no neighbour is better.
    """
    _, start = _of_range(codec, rows.min(1).astype(np.float64), rows.max(1).astype(np.float64))
    assert start is not None
    zeros, scales, gains = start.copy(), np.zeros(len(rows)), np.full(len(rows), -np.inf)

    def attempt(which: np.ndarray, tried: np.ndarray) -> np.ndarray:
        h = None if importance is None else importance[which]
        found, gain = best_scales(rows[which], codec.levels, h, tried[which].astype(np.float64), threads)
        better = gain > gains[which]
        improved: np.ndarray = which[better]
        scales[improved], gains[improved], zeros[improved] = found[better], gain[better], tried[improved]
        return improved

    everyone = np.arange(len(rows))
    if codec.bits <= ALL_ZEROS:
        for zero in range(codec.k):
            attempt(everyone, np.full(len(rows), zero))
        return scales, zeros
    attempt(everyone, start)
    for step in (-1, 1):
        moving, at = everyone, zeros.copy()
        while len(moving):
            at = at + step
            moving = moving[(at[moving] >= 0) & (at[moving] < codec.k)]
            if len(moving):
                moving = attempt(moving, at)
    return scales, zeros


@blas_limit(1)
def _least_output(
    codec: IntN, weight: np.ndarray, scales: np.ndarray, offset: Any, moments: np.ndarray, row_weights: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return scales and codes (O, I) of the least output error that a grid of scales leads to.

    For fixed codes with numbers c the best scale is w'Hc / c'Hc, and saves (w'Hc)**2 / c'Hc of the error of zeros.
    """
    levels = codec.levels.astype(np.float64)
    share = 1.0 if row_weights is None else np.asarray(row_weights, np.float64)
    inputs = weight.shape[1]

    def seen(rows: np.ndarray) -> np.ndarray:
        grouped = rows.reshape(len(moments), -1, inputs)
        outputs: np.ndarray = np.matmul(grouped, moments).reshape(rows.shape)
        return outputs

    targets = seen(weight)
    best: np.ndarray = np.full(len(scales), -np.inf)
    out, codes = scales.copy(), nearest_codes(weight, levels, scales[:, None], offset)
    for factor in ticking("scale", (*np.linspace(0.5, 1.5, GRID), 1.0), GRID + 1):
        tried = nearest_codes(weight, levels, factor * scales[:, None], offset)
        numbers = (levels[tried] - offset).astype(np.float32)
        first = share * np.einsum("oi,oi->o", targets, numbers, dtype=np.float64)
        second = share * np.einsum("oi,oi->o", seen(numbers), numbers, dtype=np.float64)
        if codec.per == "tensor":
            first, second = first.sum(keepdims=True), second.sum(keepdims=True)
        gains = np.divide(first**2, second, out=np.full(len(first), -np.inf), where=second > 0)
        better = gains > best
        best[better], out[better] = gains[better], first[better] / second[better]
        which = np.broadcast_to(better, len(weight))
        codes[which] = tried[which]
    return out, codes


FITTERS[IntN.name] = fit_intn
