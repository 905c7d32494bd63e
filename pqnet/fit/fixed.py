"""Finding scales and codes for the Fixed codec."""

from typing import Any

import numpy as np

from pqnet.codecs import FITTERS, Fit, Fixed, Packed, PackedScalar
from pqnet.fit.error import measured
from pqnet.fit.scales import best_scales, check_fit, nearest_codes, stored_scales

__all__ = ["fit_fixed"]


def fit_fixed(
    codec: Fixed,
    weight: Any,
    metric: Any = None,
    warm: Packed | None = None,
    seed: int = 0,
    *,
    row_weights: Any = None,
    threads: int | None = None,
) -> Fit:
    """Find scales and codes for a list of values.

    Parameters
    ----------
    codec : Fixed
    weight : array, shape (O, C, *kernel) or (O, I)
    metric : array, optional
        Second moments of the inputs, (1, 1), (I, 1, 1) or (G, I, 1, 1); the error of each weight counts as much.
    warm, seed
        Taken and checked; the result depends on neither.
    row_weights : array, shape (O,), optional
        Weight of each output (of each token of an embedding).
    threads : int, optional

    Returns
    -------
    Fit
    """
    codec, dense, importance = check_fit(codec, weight, metric, warm, seed, row_weights)
    grid = codec.scale_grid(dense.shape)
    rows = dense.reshape(grid[0] * grid[1], -1)
    h = None if importance is None else importance.reshape(rows.shape)
    scales = None
    if codec.scale == "closed":
        scales = closed_scales(rows, h, ternary=codec.values == "ternary")
    elif codec.scale == "learned":
        scales = best_scales(rows, codec.levels, h, threads=threads)[0]
    stored = None if scales is None else stored_scales(scales, codec).reshape(grid)
    codes = nearest_codes(rows, codec.levels, 1.0 if stored is None else stored.reshape(-1, 1))
    packed = PackedScalar(codec, dense.shape, codes.reshape(len(dense), -1), scales=stored)
    return measured(packed, dense, metric, row_weights, 0)


def closed_scales(rows: np.ndarray, importance: np.ndarray | None, ternary: bool) -> np.ndarray:
    """Return the best scale of each row (R, N) for values -1 and 1, or -1, 0 and 1, by its closed form.

    Binary: the weighted mean magnitude. Ternary: of the weights in order of magnitude, those that are not 0 are the
    first j, for the j that maximises the square of their weighted sum over the sum of their weights: whatever the
    weights, the codes of the best scale are cut off by magnitude.
    """
    size = np.abs(rows).astype(np.float64)
    h = np.ones_like(size) if importance is None else importance.astype(np.float64)
    h = np.where((h > 0).any(1, keepdims=True), h, 1.0)
    if not ternary:
        mean: np.ndarray = (h * size).sum(1) / h.sum(1)
        return mean
    order = np.argsort(-size, axis=1, kind="stable")
    mass = np.cumsum(np.take_along_axis(h, order, 1), 1)
    total = np.cumsum(np.take_along_axis(h * size, order, 1), 1)
    gain = np.divide(total**2, mass, out=np.zeros_like(mass), where=mass > 0)
    best = gain.argmax(1)[:, None]
    mass, total = (np.take_along_axis(a, best, 1)[:, 0] for a in (mass, total))
    out: np.ndarray = np.divide(total, mass, out=np.zeros(len(rows)), where=mass > 0)
    return out


FITTERS[Fixed.name] = fit_fixed
