"""Weights wrong in the way in which quantization makes them wrong, without the search for codes."""

import numpy as np

from pqnet.pipeline.moments import output_squares

__all__ = ["quantized_alike", "weakened", "white_alike"]

# Of moments, as a share of their mean diagonal: what is weaker is not coded at all. Any from .03 to .3 serves.
DAMPING = 0.1


def quantized_alike(weight: np.ndarray, moment: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return a weight whose outputs have the error that the second-order search leaves, of a given size.

    Two things tell it from noise on weights. The search lets errors of blocks make up for each other until what is left
    is alike in all directions of the inputs: the error of the weight is white noise times the inverse of a factor of
    the moment, so that outputs are wrong without a pattern over positions, which later layers average away. And
    codewords are means of what they stand for: the weight is too small by as much as it is wrong.

    Parameters
    ----------
    weight : float32 ndarray
        In filter form.
    moment : ndarray, shape (G, Kin, Kin)
        Second moments of the layer's inputs.
    share : float
        Squared error of the outputs, relative to theirs; below 1.
    seed : int

    Returns
    -------
    float32 ndarray
    """
    groups, n = moment.shape[:2]
    wide = moment.astype(np.float64)
    level = np.maximum(np.trace(wide, axis1=1, axis2=2) / n, 1e-30)
    factor = np.linalg.cholesky(wide + DAMPING * level[:, None, None] * np.eye(n))
    white = np.random.default_rng(seed).standard_normal((groups, len(weight) // groups, n))
    noise = np.linalg.solve(factor.swapaxes(1, 2), white.swapaxes(1, 2)).swapaxes(1, 2).reshape(weight.shape)
    energy, size = (float(output_squares(wide, w).sum()) for w in (weight, noise))
    factor_of_noise = np.sqrt(share * (1 - share) * max(energy, 0.0) / max(size, 1e-30))
    result: np.ndarray = ((1 - share) * weight + factor_of_noise * noise).astype(np.float32)
    return result


def weakened(weight: np.ndarray, noisy: np.ndarray, share: float, less: float) -> np.ndarray:
    """Return a weight with the noise that `quantized_alike` gave another for a share of error, at less of it."""
    factor = np.sqrt(less * (1 - less) / (share * (1 - share)))
    result: np.ndarray = ((1 - less) * weight + factor * (noisy - (1 - share) * weight)).astype(np.float32)
    return result


def white_alike(weight: np.ndarray, moment: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return a weight with errors of one size everywhere, as those of integers are; arguments as `quantized_alike`."""
    noise = np.random.default_rng(seed).standard_normal(weight.shape)
    energy, size = (float(output_squares(moment.astype(np.float64), w).sum()) for w in (weight, noise))
    result: np.ndarray = (weight + np.sqrt(share * max(energy, 0.0) / max(size, 1e-30)) * noise).astype(np.float32)
    return result
