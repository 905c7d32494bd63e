"""Swaps of channels that lower the determinants of the blocks' second moments, kept up block by block."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def add_block(gram, at, block, width, taps, sign, total):
    """Add the moment of a block of ``width`` channels, times ``sign``, to the lower triangle of the total (d, d)."""
    for i in range(width):
        row = at[block * width + i] * taps
        for j in range(i + 1):
            column = at[block * width + j] * taps
            for s in range(taps):
                for t in range(taps):
                    total[i * taps + s, j * taps + t] += sign * gram[row + s, column + t]


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def root_determinant(total, d, damping, scratch):
    """Return the d-th root of the determinant of a symmetric matrix, of which it reads the lower triangle."""
    logarithm = 0.0
    for i in range(d):
        for j in range(i + 1):
            value = total[i, j] + (damping if i == j else 0.0)
            for k in range(j):
                value -= scratch[i, k] * scratch[j, k]
            if i > j:
                scratch[i, j] = value / scratch[j, j]
            else:
                scratch[i, i] = np.sqrt(max(value, damping))
                logarithm += np.log(max(value, damping))
    return np.exp(logarithm / d)


@njit(cache=True, nogil=True, error_model="numpy")
def swap_channels(swaps, places, grams, gram_at, at, first_at, widths, taps, order, values):
    """Try swaps of channels of one set in all weights that see it; keep each that lowers the sum over the weights.

    Weight n has its Gram matrix in ``grams`` from ``gram_at[n]`` on, and ``at`` says from ``first_at[n]`` on which of
    its channels is where; ``places`` are weight and first channel of the set. ``values`` become the terms of the sum:
    roots of determinants, each divided by the mean of its matrix's diagonal. Returns their sum before.
    """
    weights = len(widths)
    d = np.max(widths * taps)
    totals, scratch = np.zeros((weights, d, d)), np.zeros((d, d))
    scales, changed, saved = np.zeros(weights), np.zeros(weights), np.zeros((weights, d, d))
    for n in range(weights):
        size = first_at[n + 1] - first_at[n]
        gram = grams[gram_at[n] : gram_at[n + 1]].reshape(size * taps[n], size * taps[n])
        for block in range(size // widths[n]):
            add_block(gram, at[first_at[n] : first_at[n + 1]], block, widths[n], taps[n], 1.0, totals[n])
        scales[n] = np.trace(totals[n]) / (widths[n] * taps[n]) + 1e-300
        values[n] = root_determinant(totals[n], widths[n] * taps[n], 1e-9 * scales[n], scratch) / scales[n]
    before = values.sum()
    saved[:], changed[:] = totals, values
    for s in range(len(swaps)):
        i, j = swaps[s]
        for p in range(len(places)):
            n, start = places[p]
            size = first_at[n + 1] - first_at[n]
            gram = grams[gram_at[n] : gram_at[n + 1]].reshape(size * taps[n], size * taps[n])
            now = at[first_at[n] : first_at[n + 1]]
            first, second = (start + i) // widths[n], (start + j) // widths[n]
            for sign in (-1.0, 1.0):
                add_block(gram, now, first, widths[n], taps[n], sign, totals[n])
                if second != first:
                    add_block(gram, now, second, widths[n], taps[n], sign, totals[n])
                if sign < 0:
                    now[start + i], now[start + j] = now[start + j], now[start + i]
            changed[n] = root_determinant(totals[n], widths[n] * taps[n], 1e-9 * scales[n], scratch) / scales[n]
        if changed.sum() < values.sum():
            saved[:], values[:] = totals, changed
            order[i], order[j] = order[j], order[i]
        else:
            totals[:], changed[:] = saved, values
            for p in range(len(places)):
                n, start = places[p]
                now = at[first_at[n] : first_at[n + 1]]
                now[start + i], now[start + j] = now[start + j], now[start + i]
    return before


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def root_of_covariance(total, sums, d, count, damping, matrix, scratch):
    """Return the d-th root of the determinant of a covariance, from moments and sums over ``count`` blocks."""
    for i in range(d):
        for j in range(i + 1):
            matrix[i, j] = total[i, j] / count - sums[i] / count * (sums[j] / count)
    return root_determinant(matrix, d, damping, scratch)


@njit(cache=True, nogil=True, error_model="numpy")
def swap_for_covariance(swaps, start, gram, channel_sums, rows, width, taps, at):
    """Try swaps of channels of one weight; keep each that lowers the determinant of its blocks' covariance.

    ``gram`` (C taps, C taps) and ``channel_sums`` (C taps,) are over ``rows`` numbers of each channel and tap; ``at``
    (C,) says which channel is where and is changed; swaps are of places from ``start`` on. Returns the d-th root of the
    determinant before and after.
    """
    d, blocks = width * taps, len(at) // width
    total, saved, matrix, scratch = np.zeros((d, d)), np.zeros((d, d)), np.zeros((d, d)), np.zeros((d, d))
    sums = np.zeros(d)
    for block in range(blocks):
        add_block(gram, at, block, width, taps, 1.0, total)
        for i in range(d):
            sums[i] += channel_sums[at[block * width + i // taps] * taps + i % taps]
    count = rows * blocks
    damping = 1e-12 * (np.trace(total) / (count * d) + 1e-300)
    best = before = root_of_covariance(total, sums, d, count, damping, matrix, scratch)
    for n in range(len(swaps)):
        i, j = start + swaps[n, 0], start + swaps[n, 1]
        saved[:] = total
        for sign in (-1.0, 1.0):
            add_block(gram, at, i // width, width, taps, sign, total)
            if i // width != j // width:
                add_block(gram, at, j // width, width, taps, sign, total)
            for t in range(taps):
                sums[i % width * taps + t] += sign * channel_sums[at[i] * taps + t]
                sums[j % width * taps + t] += sign * channel_sums[at[j] * taps + t]
            if sign < 0:
                at[i], at[j] = at[j], at[i]
        found = root_of_covariance(total, sums, d, count, damping, matrix, scratch)
        if found < best:
            best = found
            continue
        total[:] = saved
        for t in range(taps):
            moved = channel_sums[at[i] * taps + t] - channel_sums[at[j] * taps + t]
            sums[i % width * taps + t] -= moved
            sums[j % width * taps + t] += moved
        at[i], at[j] = at[j], at[i]
    return before, best
