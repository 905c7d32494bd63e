"""The order of channels in which the blocks of the weights that read them are told apart best.

Of blocks with second moment S, d numbers each, K codewords leave an error of about K^(-2/d) det(S)^(1/d): the less the
positions of a block have in common with one size and independence, the better. Swaps of two channels change two blocks
of every weight, whose moments are sums over pairs of channels that are known from the start.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pqnet._threads import blas_limit
from pqnet.kernels.fit import permutation as kernels

__all__ = ["Reader", "SwapResult", "published_order", "search_order"]

TRIALS = 100  # swaps tried for each channel
PUBLISHED_TRIALS = 10_000  # of "Permute, Quantize, and Fine-tune", for each set of channels


class Reader(NamedTuple):
    """A weight that reads the channels.

    Parameters
    ----------
    rows : float32 ndarray, shape (C, taps, n)
        Of each of its input channels n times the ``taps`` numbers that lie in one block.
    width : int
        Channels of a block, a divisor of C.
    starts : tuple of int
        Where among its channels those to be ordered begin; more than once if they occur more than once.
    """

    rows: np.ndarray
    width: int
    starts: tuple[int, ...]


class SwapResult(NamedTuple):
    """The order found (which channel comes where), and the sums over the readers before and after."""

    order: np.ndarray
    before: float
    after: float


def search_order(readers: Sequence[Reader], size: int, *, seed: int | Sequence[int] = 0) -> SwapResult:
    """Swap channels at random, where that lowers the sum over the readers of det(S)^(1/d), relative to trace(S) / d.

    Parameters
    ----------
    readers : sequence of Reader
    size : int
        Number of channels to be ordered.
    seed : int or sequence of int

    Returns
    -------
    SwapResult
        It does not depend on the number of threads.
    """
    swaps = _draw_swaps(size, TRIALS * size, seed)
    places = np.array([(n, start) for n, reader in enumerate(readers) for start in reader.starts])
    with blas_limit(1):
        grams = [flat @ flat.T for flat in (r.rows.reshape(-1, r.rows.shape[2]) for r in readers)]
    channels = [len(reader.rows) for reader in readers]
    order, values = np.arange(size), np.zeros(len(readers))
    before = kernels.swap_channels(
        swaps,
        places,
        np.concatenate([gram.reshape(-1) for gram in grams]),
        np.cumsum([0, *(gram.size for gram in grams)]),
        np.concatenate([np.arange(n) for n in channels]),
        np.cumsum([0, *channels]),
        np.array([reader.width for reader in readers]),
        np.array([reader.rows.shape[1] for reader in readers]),
        order,
        values,
    )
    return SwapResult(order, float(before), float(values.sum()))


def published_order(reader: Reader, size: int, *, seed: int | Sequence[int] = 0) -> SwapResult:
    """Search the order that "Permute, Quantize, and Fine-tune" gives the channels of one weight.

    Channels, those of the largest variance first, are dealt to the positions of a block, each to the position of least
    variance so far that has room; of several taps the determinant of their covariance stands for the variance. Then
    swaps of two channels at random are kept where they lower the determinant of the covariance of all blocks.

    Parameters
    ----------
    reader : Reader
        One that has the channels once.
    size : int
        Number of channels to be ordered.
    seed : int or sequence of int

    Returns
    -------
    SwapResult
        The old order if none was better; ``before`` and ``after`` are d-th roots of the determinant.
    """
    (start,) = reader.starts
    channels, taps, count = reader.rows.shape
    at = np.arange(channels)
    at[start : start + size] = start + _dealt_order(reader, size)
    flat = reader.rows.reshape(channels * taps, count)
    swaps = _draw_swaps(size, PUBLISHED_TRIALS, seed)
    with blas_limit(1):
        gram = flat.astype(np.float64) @ flat.T.astype(np.float64)
    weight = (gram, flat.sum(1, dtype=np.float64), count, reader.width, taps)
    unchanged, _ = kernels.swap_for_covariance(swaps[:0], start, *weight, np.arange(channels))
    _, after = kernels.swap_for_covariance(swaps, start, *weight, at)
    if not after < unchanged:
        return SwapResult(np.arange(size), float(unchanged), float(unchanged))
    return SwapResult(at[start : start + size] - start, float(unchanged), float(after))


def _draw_swaps(size: int, count: int, seed: int | Sequence[int]) -> np.ndarray:
    """Return pairs of different places at random, (count, 2); of a single place, it and itself."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, size, count)
    return np.stack([first, (first + rng.integers(1, max(size, 2), count)) % size], 1)


def _dealt_order(reader: Reader, size: int) -> np.ndarray:
    """Return the channels dealt to the positions of blocks: which comes where."""
    (start,), width = reader.starts, reader.width
    places = [[i for i in range(size) if (start + i) % width == position] for position in range(width)]
    rows = reader.rows[start : start + size].astype(np.float64)
    sums, moments = rows.sum(2), rows @ rows.transpose(0, 2, 1)
    dealt: list[list[int]] = [[] for _ in range(width)]
    spread = np.zeros(width)

    def spread_of(channels: list[int]) -> float:
        """Return the determinant of the covariance of the taps of channels; of one tap the variance."""
        count = max(rows.shape[2] * len(channels), 1)
        mean = sums[channels].sum(0) / count
        return float(np.linalg.det(moments[channels].sum(0) / count - np.outer(mean, mean)))

    alone = [spread_of([channel]) for channel in range(size)]
    for channel in np.argsort(np.negative(alone), kind="stable"):
        free = [position for position in range(width) if len(dealt[position]) < len(places[position])]
        position = min(free, key=lambda p: spread[p])
        dealt[position].append(int(channel))
        spread[position] = spread_of(dealt[position])
    order = np.zeros(size, np.int64)
    for position, indices in enumerate(places):
        order[indices] = dealt[position]
    return order
