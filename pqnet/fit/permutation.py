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

__all__ = ["Reader", "SwapResult", "search_order"]

TRIALS = 100  # swaps tried for each channel


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
    rng = np.random.default_rng(seed)
    first = rng.integers(0, size, TRIALS * size)
    swaps = np.stack([first, (first + rng.integers(1, size, len(first))) % size], 1)
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
