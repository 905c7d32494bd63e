"""Swaps of channels that lower the determinants of the blocks' second moments, kept up block by block."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def add_block(gram, level, at, block, width, taps, sign, total):
    """Add the moment of one block of ``width`` channels to the lower triangle of the total (d, d)."""
    mean = 0.0
    for i in range(width):
        mean += level[at[block * width + i]]
    factor = sign * np.exp(mean / width)
    for i in range(width):
        row = at[block * width + i] * taps
        for j in range(i + 1):
            column = at[block * width + j] * taps
            for s in range(taps):
                for t in range(taps):
                    total[i * taps + s, j * taps + t] += factor * gram[row + s, column + t]


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def root_determinant(total, damping, scratch):
    """Return the d-th root of the determinant of a symmetric matrix (its lower triangle) by Cholesky."""
    d = len(total)
    logarithm = 0.0
    for i in range(d):
        for j in range(i + 1):
            value = total[i, j]
            if i == j:
                value += damping
            for k in range(j):
                value -= scratch[i, k] * scratch[j, k]
            if i > j:
                scratch[i, j] = value / scratch[j, j]
            else:
                value = max(value, damping)
                scratch[i, i] = np.sqrt(value)
                logarithm += np.log(value)
    return np.exp(logarithm / d)


@njit(cache=True, nogil=True, error_model="numpy")
def swap_channels(swaps, places, grams, gram_at, levels, at, level_at, widths, taps, weights, order, trace):
    """Try swaps of channels of one set in all layers that see it; keep those that lower the sum over layers."""
    layers = len(widths)
    d = 0
    for n in range(layers):
        d = max(d, widths[n] * taps[n])
    totals, saved, scratch = np.zeros((layers, d, d)), np.zeros((layers, d, d)), np.zeros((d, d))
    values, damping, fresh = np.zeros(layers), np.zeros(layers), np.zeros(layers)
    for n in range(layers):
        size, w, t = level_at[n + 1] - level_at[n], widths[n], taps[n]
        gram = grams[gram_at[n] : gram_at[n + 1]].reshape(size * t, size * t)
        level, now = levels[level_at[n] : level_at[n + 1]], at[level_at[n] : level_at[n + 1]]
        for b in range(size // w):
            add_block(gram, level, now, b, w, t, 1.0, totals[n])
        for i in range(w * t):
            damping[n] += 1e-9 * totals[n, i, i] / (w * t)
        values[n] = weights[n] * root_determinant(totals[n, : w * t, : w * t], damping[n], scratch)
    before = values.sum()
    for s in range(len(swaps)):
        i, j = swaps[s]
        saved[:] = totals
        fresh[:] = values
        for step in range(len(places)):
            n, start = places[step]
            size, w, t = level_at[n + 1] - level_at[n], widths[n], taps[n]
            gram = grams[gram_at[n] : gram_at[n + 1]].reshape(size * t, size * t)
            level, now = levels[level_at[n] : level_at[n + 1]], at[level_at[n] : level_at[n + 1]]
            first, second = (start + i) // w, (start + j) // w
            for sign in (-1.0, 1.0):
                add_block(gram, level, now, first, w, t, sign, totals[n])
                if second != first:
                    add_block(gram, level, now, second, w, t, sign, totals[n])
                if sign < 0:
                    now[start + i], now[start + j] = now[start + j], now[start + i]
            fresh[n] = weights[n] * root_determinant(totals[n, : w * t, : w * t], damping[n], scratch)
        if fresh.sum() < before * (1 - 1e-9):
            before = fresh.sum()
            values[:] = fresh
            order[i], order[j] = order[j], order[i]
        else:
            totals[:] = saved
            for step in range(len(places)):
                n, start = places[step]
                now = at[level_at[n] : level_at[n + 1]]
                now[start + i], now[start + j] = now[start + j], now[start + i]
        trace[s] = before
