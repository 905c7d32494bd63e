"""Ranges of numbers that become 8-bit integers, from histograms of them."""

from collections.abc import Callable

import numpy as np

from pqnet.runtime.integers import LEVELS, input_scaling

__all__ = ["BINS", "OBSERVERS", "range_of", "to_integers"]

BINS = 2048
STEPS = 64  # ends that are tried on each side of zero
PERCENTILE = 99.99  # of the numbers lie within such a range


def range_of(counts: np.ndarray, low: float, high: float, observer: str) -> tuple[float, float]:
    """Return the range, zero in it, for the numbers of a histogram over [low, high], as one of OBSERVERS finds it."""
    return OBSERVERS[observer](counts, low, high)


def to_integers(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return numbers rounded as the integers of a range stand for them."""
    factor, zero = input_scaling((low, high))
    rounded: np.ndarray = (np.rint(np.clip(x * factor + zero, 0, LEVELS)) - zero) / factor
    return rounded


def _minmax(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    return low, high


def _percentile(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Return the range that as many numbers exceed as fall below, and PERCENTILE of them neither."""
    edges, below = np.linspace(low, high, BINS + 1), np.append(0, np.cumsum(counts))
    outside = (100 - PERCENTILE) / 200
    first, last = (float(end) for end in np.interp([outside * below[-1], (1 - outside) * below[-1]], below, edges))
    first, last = min(first, 0.0), max(last, 0.0)
    return (first, last) if first < last else (low, high)


def _least_squares(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Return the range that rounds the numbers with the least squared error.

    First the upper end moves towards zero, then the lower one; zero stays between them.
    """
    centres = low + (high - low) / BINS * (np.arange(BINS) + 0.5)
    shares = np.linspace(1 / STEPS, 1, STEPS)
    for end in ("high", "low"):
        ends = [(low, high * share) if end == "high" else (low * share, high) for share in shares[::-1]]
        errors = [_error(centres, counts, *tried) if tried[0] < tried[1] else np.inf for tried in ends]
        low, high = ends[int(np.argmin(errors))]  # of equal ones the widest
    return low, high


def _error(x: np.ndarray, counts: np.ndarray, low: float, high: float) -> float:
    return float((np.square(to_integers(x, low, high) - x) * counts).sum())


OBSERVERS: dict[str, Callable[[np.ndarray, float, float], tuple[float, float]]] = {
    "mse": _least_squares,
    "minmax": _minmax,
    "percentile": _percentile,
}
