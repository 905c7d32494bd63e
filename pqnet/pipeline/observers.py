"""Ranges of numbers that become 8-bit integers, from histograms of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pqnet import _check
from pqnet._threads import ordered_map
from pqnet.runtime.integers import LEVELS, input_scaling

__all__ = ["BINS", "INTEGER_OPS", "OBSERVERS", "Histogram", "range_of", "to_integers"]

INTEGER_OPS = ("conv1d", "conv2d", "linear")  # whose inputs may be integers

BINS = 2048
STEPS = 64  # ends that are tried on each side of zero
PERCENTILE = 99.99  # of the numbers lie within such a range


@dataclass(frozen=True)
class Histogram:
    """Inputs of one layer in numbers.

    Attributes
    ----------
    counts : int64 ndarray, shape (2048,)
        Of numbers in equal parts of [low, high].
    low, high : float
        The least and the largest number, or 0.
    """

    counts: np.ndarray
    low: float
    high: float

    def __post_init__(self) -> None:
        good = isinstance(self.counts, np.ndarray) and self.counts.dtype == np.int64 and self.counts.shape == (BINS,)
        if not good or (self.counts < 0).any():
            raise _check.error(
                "Histogram.counts", f"int64, 0 or more, of shape ({BINS},)", _check.describe(self.counts)
            )
        most = float(np.finfo(np.float32).max)
        if not -most <= self.low <= 0 <= self.high <= most:
            raise _check.error("Histogram", "low <= 0 <= high, finite in float32", f"{self.low}, {self.high}")

    @classmethod
    def of(cls, inputs: Sequence[np.ndarray], threads: int) -> "Histogram":
        """Count the numbers of arrays."""
        low = min(0.0, *(float(x.min(initial=0)) for x in inputs))
        high = max(0.0, *(float(x.max(initial=0)) for x in inputs))
        parts = ordered_map(lambda x: np.histogram(x, BINS, (low, high))[0].astype(np.int64), inputs, threads)
        return cls(sum(parts, np.zeros(BINS, np.int64)), low, high)

    def merge(self, other: "Histogram") -> "Histogram":
        """Return the histogram of the numbers of both, those of a narrower one where the middle of their part lies."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        counts = np.zeros(BINS, np.int64)
        for part in (self, other):
            if (part.low, part.high) == (low, high):
                counts += part.counts
            else:
                centres = part.low + (part.high - part.low) / BINS * (np.arange(BINS) + 0.5)
                np.add.at(
                    counts, ((centres - low) / (high - low) * BINS).astype(np.int64).clip(0, BINS - 1), part.counts
                )
        return Histogram(counts, low, high)

    def range(self, observer: str) -> list[float] | None:
        """Return the range that one of OBSERVERS finds, as files have it; None of nothing but zeros."""
        if self.low == self.high:
            return None
        return [float(f"{end:.6g}") for end in range_of(self.counts, self.low, self.high, observer)]


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
