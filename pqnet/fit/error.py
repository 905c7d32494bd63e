"""The error that a fit leaves, of which all codecs have one definition."""

from typing import Any

import numpy as np

from pqnet._threads import blas_limit
from pqnet.codecs import Fit, Packed
from pqnet.codecs.layout import to_blocks

__all__ = ["measured", "squared_error"]


def measured(
    packed: Packed, weight: np.ndarray, metric: Any, row_weights: Any, n_iter: int, layout: str = "spatial"
) -> Fit:
    """Return what was found for a weight, with the error that it leaves under the metric and row weights of the fit."""
    metric = None if metric is None else np.asarray(metric, np.float32)
    return Fit(packed, squared_error(weight - packed.decode(), metric, row_weights, layout), n_iter)


@blas_limit(1)
def squared_error(change: np.ndarray, metric: np.ndarray | None, row_weights: Any, layout: str) -> float:
    """Return ``sum_o a_o e_o' H e_o``, the error of a weight that is wrong by e.

    Parameters
    ----------
    change : float32 ndarray, shape (O, C, *kernel) or (O, I)
    metric : float32 ndarray, optional
        H by its blocks along the inputs in the order of the layout: (D, D) for all of them, (M, D, D), or (G, M, D, D)
        for each convolution group; D may be all inputs. None is the identity.
    row_weights : array, shape (O,), optional
        a, default 1.
    layout : {"spatial", "channel"}
    """
    d = 1 if metric is None else metric.shape[-1]
    e = to_blocks(change, 1, layout).reshape(len(change), -1, d)
    seen = e
    if metric is not None and metric.ndim == 2:
        seen = e @ metric
    elif metric is not None:
        grouped = e.reshape(metric.shape[0] if metric.ndim == 4 else 1, -1, *e.shape[1:]).swapaxes(1, 2)
        seen = np.matmul(grouped, metric).swapaxes(1, 2).reshape(e.shape)
    rows = np.einsum("omd,omd->o", seen, e, dtype=np.float64)
    return float(rows.sum() if row_weights is None else rows @ np.asarray(row_weights, np.float64))
