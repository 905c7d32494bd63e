"""Blocks whose nearest codewords float32 does not tell apart: how they are found, and what decides.

Half distances are computed as h = v' G v / 2 + c' G c / 2 - v' G c, of which float32 loses up to ``r`` = g s |c|
(|c| + 2 |v|) / 2, with g some units of its rounding and s the norm of |G|. Of two codewords that is of no account while
the smaller half distance is more than ``2 r`` / TOLERANCE: then the one that is taken for the nearest is no more than
TOLERANCE farther than the nearest. Other blocks are in doubt: their candidates, all codewords whose h is within ``2 r``
of the least, are compared by direct differences in float64.

No codeword of half distance H is longer than |v| + sqrt(2 H / e), with e the least eigenvalue of G, or than the longest
codeword: that makes ``2 r`` / TOLERANCE the lesser of share |v|^2 and base + slope |v|.
"""

import numpy as np
from numba import njit

from pqnet.kernels.fit.kmeans_search import append_up_to
from pqnet.kernels.simd import WIDTH, fma, load, minimum, multiply, splat, sqrt, store, subtract

TOLERANCE = np.float32(0.01)  # by how much the half distance of a code may be more than the least
SURE = np.float32(-1e-37)  # zeros, which are as near to zero as can be, are in no doubt


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def measure_tile(x, y, d, tile, out_size, out_norm, at):
    # OUT size, norm f4, from ``at``: |v|^2 and v' G v of the blocks of a tile
    for p in range(0, tile, WIDTH):
        size, norm = splat(np.float32(0.0)), splat(np.float32(0.0))
        for j in range(d):
            a = load(x, j * tile + p)
            size, norm = fma(a, a, size), fma(a, load(y, j * tile + p), norm)
        store(out_size, at + p, size)
        store(out_norm, at + p, norm)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def list_doubtful(size, norm, at, tile, doubt, g, best, out_below, out_lanes):
    # List the lanes whose codeword is in doubt, and the half distances below which they are; return how many are.
    # IN size, norm f4 from ``at``, doubt (M, 3) f4, g: metric of the tile, best (tile,) f4: least h less v' G v / 2;
    # OUT below (tile,) f4, lanes (tile + WIDTH,) i4
    share, base, slope = splat(doubt[g, 0]), splat(doubt[g, 1]), splat(doubt[g, 2])
    n = 0
    for p in range(0, tile, WIDTH):
        square = load(size, at + p)
        below = minimum(multiply(share, square), fma(slope, sqrt(square), base))
        store(out_below, p, below)
        half = fma(splat(np.float32(0.5)), load(norm, at + p), load(best, p))
        n = append_up_to(out_lanes, n, p, subtract(half, below), splat(SURE))
    return n


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def nearest_of(blocks, book, row, group, code, ids, begin, end, tmp):
    # The nearest of listed codewords, the first of equals, by (v - c)' G (v - c) in float64; ``code`` if none is near.
    # IN ids (begin..end,) i4; TMP (D,) f8
    d, least = blocks.given.shape[1], np.inf
    for p in range(begin, end):
        for j in range(d):
            v = (np.float64(blocks.given[row, j]) - blocks.shift[j]) * blocks.unit
            tmp[j] = v - book.exact[ids[p], j]
        total = np.float64(0.0)
        for i in range(d):
            if blocks.metric.size:
                seen = np.float64(0.0)
                for j in range(d):
                    seen += np.float64(blocks.metric[group, i, j]) * tmp[j]
                total += tmp[i] * seen
            else:
                total += tmp[i] * tmp[i]
        if total < least:
            least, code = total, ids[p]
    return code


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def settle_tile(n, blocks, book, offsets, rows, first, g, y, y_at, tile, best, below, ids, tmp, codes):
    # INOUT codes (tile,) i4: what the search of a tile found. IN offsets f4: all of the book in a row, rows: block of
    # every lane, or of size 0: those from ``first``; y from y_at, ids (tile + KP + 2 * WIDTH,) i4: n lanes in doubt,
    # the rest TMP, tmp (D,) f8
    kp, d = book.offset.shape[1], book.exact.shape[1]
    start = tile + WIDTH
    for i in range(n):
        lane = ids[i]
        row = rows[first + lane] if rows.size else first + lane
        if 0 <= row < len(blocks.given):
            limit = splat(best[lane] + TOLERANCE * below[lane])
            end = start
            for k in range(0, kp, WIDTH):
                half = load(offsets, g * kp + k)
                for j in range(d):
                    half = fma(splat(y[y_at + j * tile + lane]), load(book.by_coordinate, j * kp + k), half)
                end = append_up_to(ids, end, k, half, limit)
            if end > start + 1:
                codes[lane] = nearest_of(blocks, book, row, g, codes[lane], ids, start, end, tmp)
