"""The 8-bit integers that inputs and weights of layers become."""

from typing import NamedTuple

import numpy as np

from pqnet.codecs import PackedPQ

__all__ = ["LEVELS", "Integers", "input_scaling", "tokens_as_integers", "weight_integers"]

LEVELS = 255  # of inputs: 0 .. 255
LARGEST = 127  # of weights; the least is one less than its negative
STEPS = 40  # scales of a codebook that are tried


class Integers(NamedTuple):
    """A weight in 8-bit integers.

    Attributes
    ----------
    numbers : int8 array
        The rows of a weight, or the codewords of a codebook.
    scale : float64 array
        What the integers are multiples of: a number for each row of a weight, or one for a codebook, shape (1,).
    sums : int64 array, shape (O,)
        Of the integers of each output.
    error : float
        Squared error of the weight, relative to its squares.
    """

    numbers: np.ndarray
    scale: np.ndarray
    sums: np.ndarray
    error: float


def input_scaling(limits: tuple[float, float]) -> tuple[float, float]:
    """Return factor and zero point of inputs in a range: x becomes round(x * factor + zero), within 0 .. 255."""
    low, high = limits
    factor = LEVELS / (high - low)
    return factor, float(np.rint(-low * factor))


def tokens_as_integers(x: np.ndarray) -> np.ndarray:
    """Return rows of features, the last axis, rounded as integers stand for them that have a scale for each row.

    Zero is in the range of each row; see `kernels.products.tokens`.
    """
    low, high = x.min(-1, keepdims=True, initial=0), x.max(-1, keepdims=True, initial=0)
    size = np.where(high > low, high - low, np.float32(1))
    factor, zero = LEVELS / size, np.rint(-low * (LEVELS / size))
    rounded: np.ndarray = (np.rint(np.clip(x * factor + zero, 0, LEVELS)) - zero) * (size / LEVELS)
    return rounded


def weight_integers(weight: np.ndarray | PackedPQ) -> Integers:
    """Round a weight.

    Each row of an array has a scale of its own, by which its largest number fits. A codebook has one, by which the
    blocks of the weight have the least squared error: rare codewords far from zero may be cut off.
    """
    if not isinstance(weight, PackedPQ):
        rows = weight.reshape(len(weight), -1).astype(np.float64)
        scale = _fitting_scale(rows.max(1), rows.min(1))
        numbers = _rounded(rows, scale[:, None])
        error = np.square(numbers * scale[:, None] - rows).sum() / max(np.square(rows).sum(), 1e-300)
        return Integers(numbers.reshape(weight.shape), scale, numbers.sum(1, dtype=np.int64), float(error))
    book = weight.codebook.astype(np.float64)
    count = np.bincount(weight.codes.reshape(-1), minlength=len(book))[:, None]
    whole = float(_fitting_scale(book.max(), book.min()))
    tried = [whole * share for share in np.linspace(1, 1 / STEPS, STEPS)]  # of equal ones the largest
    errors = [float((count * np.square(_rounded(book, scale) * scale - book)).sum()) for scale in tried]
    best = int(np.argmin(errors))
    numbers = _rounded(book, tried[best])
    energy = max(float((count * np.square(book)).sum()), 1e-300)
    sums = numbers.sum(1, dtype=np.int64)[weight.codes].sum(1)
    return Integers(numbers, np.array([tried[best]]), sums, errors[best] / energy)


def _fitting_scale(largest: np.ndarray, least: np.ndarray) -> np.ndarray:
    scale = np.maximum(largest / LARGEST, -least / (LARGEST + 1))
    return np.where(scale > 0, scale, 1.0)


def _rounded(weight: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    return np.clip(np.rint(weight / scale), -LARGEST - 1, LARGEST).astype(np.int8)
