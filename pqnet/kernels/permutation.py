"""Swaps of channels that lower the log determinant of the blocks' second moment, updated block by block."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def add_block(gram, level, block, width, taps, sign, total):
    """Add the moment of a block of ``width`` channels to the total (d, d), times the geometric mean of its levels."""
    mean = 0.0
    for i in range(block * width, (block + 1) * width):
        mean += level[i]
    factor = sign * np.exp(mean / width)
    d, start = width * taps, block * width * taps
    for i in range(d):
        for j in range(i + 1):
            total[i, j] += factor * gram[start + i, start + j]


def dummy():
    pass
