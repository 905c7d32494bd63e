"""Scales of weights that are rounded to a list of values: the best of all, by what changes from one to the next."""

from typing import Any, TypeVar

import numpy as np

from pqnet import _check
from pqnet._progress import tick
from pqnet._threads import default_threads
from pqnet.codecs import Codec, Packed
from pqnet.codecs.halves import Halves
from pqnet.codecs.layout import FILTER_AXES
from pqnet.codecs.scalar import ScalarCodec
from pqnet.fit.parallel import run_chunks
from pqnet.kernels.fit import scales as kernels

__all__ = ["best_scales", "check_fit", "input_importance", "nearest_codes", "stored_floats", "stored_scales"]

C = TypeVar("C", bound=Codec)

MAX_CHANGES = 1 << 20  # of codes, in a weight, up to which all are looked at
CHANGES_AT_A_TIME = 1 << 19
GRID_SCALES = 64
BEYOND_ANY_CHANGE = 1e30  # times the largest weight: a scale at which no code changes any more
SERIAL = 1 << 20  # roundings below which waking other threads costs more than it saves


def check_fit(
    codec: C, weight: Any, metric: Any, warm: Packed | None, seed: int, row_weights: Any
) -> tuple[C, np.ndarray, np.ndarray | None]:
    """Return the codec as it applies, the weight, and what the error of each number weighs; check ``warm``."""
    dense = _check.float_array(weight, "weight", ndim=FILTER_AXES)
    codec = codec.check(dense.shape)
    if warm is not None and (not isinstance(warm, Packed) or type(warm.codec) is not type(codec)):
        raise _check.error("warm", f"a weight packed by {type(codec).__name__}", _check.describe(warm))
    _check.rng_seed(seed)
    return codec, dense, input_importance(dense.shape, metric, row_weights)


def input_importance(shape: tuple[int, ...], metric: Any, row_weights: Any) -> np.ndarray | None:
    """Return what the squared error of each weight weighs, float32 (O, I), from the diagonal of a metric.

    Parameters
    ----------
    shape : tuple of int
    metric : array, optional
        (1, 1), (I, 1, 1) or (G, I, 1, 1), see `pqnet.fit.fit_pq`; or the whole second moment, (I, I), (1, I, I) or
        (G, 1, I, I).
    row_weights : array, shape (O,), optional
    """
    o, n = shape[0], int(np.prod(shape[1:]))
    if metric is None and row_weights is None:
        return None
    out: np.ndarray = np.ones((o, n), np.float32)
    if metric is not None:
        metric = _check.float_array(metric, "metric", ndim=(2, 3, 4))
        groups = metric.shape[0] if metric.ndim == 4 else 1
        d = metric.shape[-1]
        if metric.shape[-2] != d or d not in (1, n) or (metric.ndim > 2 and metric.shape[-3] * d != n) or o % groups:
            wanted = (
                f"shape (1, 1), ({n}, 1, 1), (G, {n}, 1, 1) or that of whole moments, ({n}, {n}) or (G, 1, {n}, {n})"
            )
            raise _check.error("metric", wanted, f"shape {metric.shape}")
        diagonal = np.diagonal(metric, axis1=-2, axis2=-1)
        out.reshape(groups, -1, n)[:] = diagonal.reshape(groups, 1, -1)
    if row_weights is not None:
        out *= _check.float_array(row_weights, "row_weights", shape=(o,))[:, None]
    if out.min() < 0:
        raise _check.error("metric", "non-negative second moments and weights of rows", f"minimum {out.min()}")
    return out if out.max() > 0 else np.ones((o, n), np.float32)


def stored_scales(scales: np.ndarray, codec: ScalarCodec) -> np.ndarray:
    """Return scales, or the values of a codec that learns them, as they are stored, or raise if they leave float16."""
    learned = codec.levels is None
    option = "codebook_dtype" if learned else "scale_dtype"
    return stored_floats(scales, codec.value_dtype, "scales", option, alone=not learned)


def stored_floats(values: np.ndarray, dtype: str, what: str, option: str, *, alone: bool = False) -> np.ndarray:
    """Return numbers found for a weight in the dtype that stores them, or raise if they leave float16.

    Those that are too small for float16 are stored with a power of two; ``alone``: see `pqnet.codecs.halves`.
    """
    if dtype != "float16":
        return values.astype(dtype)
    largest = np.abs(values).max()
    if largest > float(np.finfo(np.float16).max):
        raise _check.error("weight", f"{what} within float16's 65504", f"{largest:.3g}", f"use {option}='float32'")
    return Halves.nearest(values, what, alone=alone).floats()


def nearest_codes(weights: np.ndarray, levels: np.ndarray, scales: Any, offset: Any = 0.0) -> np.ndarray:
    """Return the index of the level whose multiple, less the offset, is nearest to each weight.

    ``levels`` ascends; ``scales`` and ``offset`` are numbers or (R, 1) for weights (R, N). A scale of 0 makes all
    weights 0.
    """
    wide = np.asarray(scales, np.float64)
    x = np.divide(weights, wide, out=np.zeros(np.broadcast_shapes(weights.shape, wide.shape)), where=wide != 0)
    codes: np.ndarray = np.searchsorted(_middles(levels), x + offset, side="right")
    return codes


def best_scales(
    weights: np.ndarray,
    levels: np.ndarray,
    importance: np.ndarray | None = None,
    offset: np.ndarray | None = None,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the scale of each row of weights that leaves the least squared error after rounding to the levels.

    The error falls short of that of a scale of 0 by ``first**2 / second``, of the sums of h w c and h c c over the
    weights with their levels c. Levels change at known scales only, so that one sweep over these, sorted, sees all
    cases. Where a weight has more than a million of them, a grid of scales comes first, then one around the best, and
    the sweep is over what lies between the neighbours of the best of these.

    Parameters
    ----------
    weights : array, shape (R, N), float32
    levels : array, shape (K,)
        Ascending; levels that are not symmetric get scales of either sign, unless there is an offset.
    importance : array, shape (R, N), optional
        Weight of the squared error of each; rows of zeros count as rows of ones.
    offset : array, shape (R,), optional
        Whole numbers subtracted from the levels, which are whole numbers too.
    threads : int, optional

    Returns
    -------
    scales, gains : arrays, shape (R,), float64
        The gain is what a scale saves of the error of a scale of 0.

    Examples
    --------
    >>> import numpy as np
    >>> from pqnet.fit.scales import best_scales
    >>> best_scales(np.float32([[0.1, 2.0, -1.0, 1.5]]), np.array([-1.0, 0.0, 1.0]))[0].tolist()
    [1.5]
    """
    levels = levels.astype(np.float64)
    h = np.ones_like(weights) if importance is None else importance.astype(np.float32, copy=True)
    h[~(h > 0).any(1)] = 1.0
    size = h.max(1, keepdims=True)
    h /= size  # rows share running sums: none may drown the others
    unit = np.exp2(np.frexp(np.abs(weights).max(1, keepdims=True))[1].astype(np.float64))
    weights = (weights / unit).astype(np.float32)
    shift = np.zeros(len(weights)) if offset is None else offset.astype(np.float64)
    search = _Search(h, levels, shift, default_threads(threads))
    scales, gains = search.best(weights)
    if offset is None and not np.array_equal(levels, -levels[::-1]):
        negative, other = search.best(-weights)
        better = other > gains
        scales, gains = np.where(better, -negative, scales), np.where(better, other, gains)
    return scales * unit[:, 0], gains * unit[:, 0] ** 2 * size[:, 0]


def _middles(levels: np.ndarray) -> np.ndarray:
    wide = levels.astype(np.float64)
    return 0.5 * (wide[1:] + wide[:-1])


class _Search:
    """Rows whose scales are looked for."""

    def __init__(self, importance: np.ndarray, levels: np.ndarray, offset: np.ndarray, threads: int) -> None:
        self.h, self.levels, self.offset, self.threads = importance, levels, offset, threads
        self.middles = _middles(levels)
        self.even = int(np.array_equal(levels, np.arange(len(levels)) + levels[0]))
        self.reach = float(np.abs(levels[[0, -1]]).max() + np.abs(offset).max() + 1)

    def sums(self, w: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of h w c and of h c c for scales (R, T)."""
        first, second = np.empty(scales.shape), np.empty(scales.shape)
        threads = self.threads if w.size * scales.shape[1] > SERIAL else 1
        levels = self.levels, self.middles, self.offset, self.even
        run_chunks(threads, kernels.scale_sums, w, self.h, *levels, np.ascontiguousarray(scales), first, second)
        return first, second

    def best(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the best positive scale of each row and its gain; 0 for rows that have none."""
        w = np.ascontiguousarray(w, np.float32)
        size = np.abs(w).astype(np.float64)
        largest = size.max(1)
        least = np.where(size > 0, size, np.inf).min(1)
        live = largest > 0
        low = np.where(live, least, 1.0) / (2 * self.reach)
        high = np.where(live, largest, 1.0) * BEYOND_ANY_CHANGE
        up = [(self.middles > 0).sum(), (self.middles < 0).sum()] if not self.offset.any() else [len(self.middles)] * 2
        per_row = (w > 0).sum(1) * up[0] + (w < 0).sum(1) * up[1]
        if per_row.sum() > MAX_CHANGES:
            low, high = self._bracket(w, size, largest, live)
            per_row = np.full(len(w), w.shape[1])
        rows = min(max(CHANGES_AT_A_TIME // max(int(per_row.max()), 1), 1), 1 << 16)
        scales, at = np.zeros(len(w)), 0
        while at < len(w):
            tick("scales, row", at, len(w))
            part = slice(at, at + rows)
            scales[part] = self._sweep(part, w[part].astype(np.float64), low[part], high[part])
            at += rows
        for _ in range(2):  # the sums of a sweep lose digits
            scales = np.where(live & (scales > 0), scales, 1.0)
            first, second = (s[:, 0] for s in self.sums(w, scales[:, None]))
            good = live & (first > 0) & (second > 0)
            scales = np.divide(first, second, out=np.zeros(len(w)), where=good)
        gains: np.ndarray = first * scales
        return scales, gains

    def _bracket(
        self, w: np.ndarray, size: np.ndarray, largest: np.ndarray, live: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the neighbours, in a grid around the best of a coarser one, of the best scale."""
        mean = np.where(live, (self.h * size).sum(1) / self.h.sum(1), 1.0)
        mean = np.where(mean > 0, mean, np.where(live, largest, 1.0))
        least = np.abs(self.levels[self.levels != 0]).min() if not self.offset.any() else 1.0
        low = 0.5 * mean / self.reach
        high = np.maximum(2 * np.where(live, largest, 1.0) / least, 4 * low)
        for _ in range(2):
            grid = np.geomspace(low, high, GRID_SCALES, axis=1)
            first, second = self.sums(w, grid)
            gains = np.divide(first * np.abs(first), second, out=np.full(grid.shape, -np.inf), where=second > 0)
            best = gains.argmax(1)[:, None]
            low = np.take_along_axis(grid, np.maximum(best - 1, 0), 1)[:, 0]
            high = np.take_along_axis(grid, np.minimum(best + 1, GRID_SCALES - 1), 1)[:, 0]
        return low, high

    def _sweep(self, part: slice, w: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the best scale of each of some rows for codes as any scale between low and high gives them."""
        h, offset = self.h[part].astype(np.float64), self.offset[part, None]
        start = np.searchsorted(self.middles, w / low[:, None] + offset, side="right")
        end = np.searchsorted(self.middles, w / high[:, None] + offset, side="right")
        counts = np.abs(start - end).reshape(-1)
        which = np.repeat(np.arange(w.size), counts)
        turn = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        row, value = which // w.shape[1], w.reshape(-1)[which]
        step = np.where(value > 0, -1, 1)  # towards 0
        old = start.reshape(-1)[which] + step * turn
        new = old + step
        scale = value / (self.middles[np.minimum(old, new)] - offset[row, 0])
        before, after = self.levels[old] - offset[row, 0], self.levels[new] - offset[row, 0]
        weight = h.reshape(-1)[which]
        c = self.levels[start] - offset
        begin = [(h * w * c).sum(1), (h * c * c).sum(1)]
        changes = [weight * value * (after - before), weight * (after**2 - before**2)]
        # Every row begins with a change that is none.
        rows = np.concatenate([np.arange(len(w)), row])
        order = np.argsort(np.concatenate([np.zeros(len(w)), scale]), kind="stable")
        order = order[np.argsort(rows[order].astype(np.uint16), kind="stable")]  # a radix sort
        rows = rows[order]
        edges = np.flatnonzero(np.diff(rows, prepend=-1))
        first, second = (
            _running(np.concatenate([b, c])[order], edges, rows) for b, c in zip(begin, changes, strict=True)
        )
        good = (first > 0) & (second > 1e-12 * second.max(initial=0.0))
        gains = np.divide(first**2, second, out=np.zeros(len(first)), where=good)
        most = np.maximum.reduceat(gains, edges)
        _, place = np.unique(rows[hits := np.flatnonzero(gains == most[rows])], return_index=True)
        best = hits[place]
        scales: np.ndarray = np.divide(first[best], second[best], out=np.zeros(len(w)), where=good[best])
        return scales


def _running(values: np.ndarray, edges: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return running sums that begin anew at each edge."""
    total = np.cumsum(values)
    sums: np.ndarray = total - (total[edges] - values[edges])[rows]
    return sums
