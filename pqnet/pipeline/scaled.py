"""Codes of a weight whose filters are brought to one size first, where what follows a layer gives each its own back."""

import numpy as np

from pqnet.graph import Node
from pqnet.graph.affine import FreeAffine
from pqnet.pipeline.moments import doubted, layer_metric
from pqnet.pipeline.run import Run

__all__ = ["by_filter", "filter_sizes", "pack_scaled"]

SIZE_DAMPING = 1e-2  # of the inputs' mean square, where the sizes of filters are measured
LEAST_IMPORTANCE = 1e-6  # of an output, as a share of the mean of all


def pack_scaled(
    run: Run, node: Node, target: np.ndarray, moment: np.ndarray, doubt: float, affine: FreeAffine | None
) -> tuple[np.ndarray, np.ndarray]:
    """Pack a layer under whole second moments; return the weight as it then is, scaled, and the scale of each filter.

    Errors of outputs count by the squares of the gains behind them.

    Parameters
    ----------
    run : Run
    node : Node
        The layer.
    target : float32 ndarray, shape (O, C, *kernel)
        What is to be packed, in filter form.
    moment : float64 ndarray, shape (G, Kin, Kin)
        Of the inputs; about their means where something makes up for the mean error of each output.
    doubt : float
        Share of the moments that is chance, see `pqnet.pipeline.moments.doubted`.
    affine : FreeAffine, optional
        What takes the scales; without, or if it takes none, these are 1.

    Returns
    -------
    dense : float32 ndarray of the target's shape
    scale : float64 ndarray, shape (O,)
    """
    metric = layer_metric("full", moment, target.shape, run.codecs[node.name], doubt)
    moment = doubted(moment, doubt)
    scalable = affine is not None and affine.scalable and not run.options.reestimate_norm
    size, importance = filter_sizes(moment, target, affine, scalable)
    dense = run.pack(node, target / by_filter(size, target), metric, importance).decode()
    if not scalable:
        return dense, size
    fitted = _products(moment, target, dense) / np.maximum(_products(moment, dense, dense), 1e-30)
    scale = np.where(fitted > 0, fitted, size)
    return (dense * by_filter(scale, target)).astype(np.float32), scale


def filter_sizes(
    moment: np.ndarray, weight: np.ndarray, affine: FreeAffine | None, scalable: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return what filters are divided by before they are packed, and how much errors of these outputs count then.

    Sizes, 1 if nothing takes scales, are for outputs of about one size from inputs of mean square 1; filters that no
    input reaches, or hardly one, are measured by their weights. What counts is 1 in the mean. Both float64, (O,).
    """
    size = _sizes(moment, weight) if scalable else np.ones(len(weight))
    importance = np.square(size if affine is None else size * affine.gain)
    return size, np.maximum(importance / max(importance.mean(), 1e-30), LEAST_IMPORTANCE)


def _sizes(moment: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the root mean square of outputs from inputs of mean square 1, 1 of those that are always zero."""
    n = moment.shape[1]
    level = np.maximum(np.trace(moment, axis1=1, axis2=2) / n, 1e-30)[:, None, None]
    energy = _products(moment / level + SIZE_DAMPING * np.eye(n), weight, weight)
    return np.where(energy > 0, np.sqrt(energy), 1.0)


def _products(moment: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a_o' E[s s'] b_o for every filter, (O,)."""
    left, right = (w.reshape(len(moment), -1, moment.shape[1]) for w in (a, b))
    total: np.ndarray = np.einsum("goi,goi->go", np.matmul(left, moment), right).reshape(-1)
    return total


def by_filter(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return one value for each filter in a shape that multiplies weights."""
    return values.reshape(-1, *[1] * (weight.ndim - 1))
