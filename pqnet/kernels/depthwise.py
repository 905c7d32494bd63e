"""Depthwise convolutions: a plane at a time, padded into scratch so that every tap is a shift of flat lanes.

A plane is cut in bands of output rows whose padded input fits in the first-level cache, one plane for each phase of
the stride. Position q = y * pitch + column of a band then sees tap t at plane[shift[t] + q]; positions with a column
behind the width are junk and are dropped. The zeros on the right of a row are those on the left of the next one.
"""

import numpy as np
from numba import njit

from pqnet.kernels.epilogue import finish_rows
from pqnet.kernels.simd import WIDTH, fma, load, load_even, prefetch, splat, store, store_head

VECTORS = 8  # of positions that a tap's weight is loaded for
AHEAD = 1024  # floats that are prefetched
WIDE = 3 * WIDTH  # rows of at least as many columns are finished one by one


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _copy_rows(source, x, row, rows, n, step, target, to, pitch):
    # OUT target[to + i * pitch + j] = source[x + i * row + j * step] for i < rows, j < n; in place downwards, too
    whole = n // WIDTH * WIDTH
    for i in range(rows):
        at, out = x + i * row, to + i * pitch
        if step == 1:
            for j in range(0, whole, WIDTH):
                prefetch(source, at + j + AHEAD)
                store(target, out + j, load(source, at + j))
            store_head(target, out + whole, load(source, at + whole), n - whole)
        elif step == 2:
            for j in range(0, whole, WIDTH):
                prefetch(source, at + 2 * j + AHEAD)
                prefetch(source, at + 2 * j + AHEAD + WIDTH)
                store(target, out + j, load_even(source, at + 2 * j))
            store_head(target, out + whole, load_even(source, at + 2 * whole), n - whole)
        else:
            for j in range(n):
                target[out + j] = source[at + j * step]


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _sum_taps(scratch, n, const, weight, taps, index, shifts, sums):
    # OUT scratch from ``sums``: n sums of taps over the plane at 0, up to VECTORS vectors more
    zero = splat(np.float32(0))
    for q in range(0, n, VECTORS * WIDTH):
        a0, a1, a2, a3, a4, a5, a6, a7 = zero, zero, zero, zero, zero, zero, zero, zero
        s = sums + q
        if n - q > VECTORS // 2 * WIDTH:
            for t in range(taps):
                w = splat(const[weight + t])
                p = q + index[shifts + t]
                a0, a1 = fma(w, load(scratch, p), a0), fma(w, load(scratch, p + WIDTH), a1)
                a2, a3 = fma(w, load(scratch, p + 2 * WIDTH), a2), fma(w, load(scratch, p + 3 * WIDTH), a3)
                a4, a5 = fma(w, load(scratch, p + 4 * WIDTH), a4), fma(w, load(scratch, p + 5 * WIDTH), a5)
                a6, a7 = fma(w, load(scratch, p + 6 * WIDTH), a6), fma(w, load(scratch, p + 7 * WIDTH), a7)
            store(scratch, s + 4 * WIDTH, a4)
            store(scratch, s + 5 * WIDTH, a5)
            store(scratch, s + 6 * WIDTH, a6)
            store(scratch, s + 7 * WIDTH, a7)
        else:
            for t in range(taps):
                w = splat(const[weight + t])
                p = q + index[shifts + t]
                a0, a1 = fma(w, load(scratch, p), a0), fma(w, load(scratch, p + WIDTH), a1)
                a2, a3 = fma(w, load(scratch, p + 2 * WIDTH), a2), fma(w, load(scratch, p + 3 * WIDTH), a3)
        store(scratch, s, a0)
        store(scratch, s + WIDTH, a1)
        store(scratch, s + 2 * WIDTH, a2)
        store(scratch, s + 3 * WIDTH, a3)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def depthwise(task, g, data, const, codes, index, scratch):
    # IN data: images of g[23] x g[24] pixels, padded by g[25] rows above and g[26] columns on the left
    # IN const from g[5]: weights (channels, taps); index from g[3]: shifts of the taps; from g[30]: g[29] phases
    # (py, px, first, last): phase pixel (i, j) is the padded input's (i * sy + py, j * sx + px), inside for columns
    # first <= j < last; OUT fields 11-13 and 15-22 as in a layer step, of g[14] rows; g[32] channels a task
    # scratch: phases of g[31] floats, sums from g[33]
    x, image_step, channel_step, shifts, taps, weight = g[0], g[1], g[2], g[3], g[4], g[5]
    channels, batch, band, pitch, width, image, out_height = g[6], g[7], g[8], g[9], g[10], g[13], g[14]
    height, top, left, row_step, sy, sx = g[23], g[25], g[26], g[34], g[27], g[28]
    phases, table, plane, per_task, sums = g[29], g[30], g[31], g[32], g[33]
    extra = g[35]  # rows of a phase that a band needs beyond its own
    zero = splat(np.float32(0))
    for i in range(0, sums, WIDTH):
        store(scratch, i, zero)
    for c in range(task * per_task, min((task + 1) * per_task, channels)):
        for b in range(batch):
            source = x + c * channel_step + b * image_step - left
            for y in range(0, out_height, band):
                rows = min(band, out_height - y)
                for phase in range(phases):
                    at = table + 4 * phase
                    py, px, first, last = index[at], index[at + 1], index[at + 2], index[at + 3]
                    # Phase rows low .. high lie in the image.
                    begin = y * sy + py - top
                    low = min(max((sy - 1 - begin) // sy, 0), rows + extra)
                    high = max(min((height - 1 - begin) // sy + 1, rows + extra), low)
                    to, n = phase * plane + first, last - first
                    if band < out_height:  # else the rows outside have never been written
                        for i in range(low):
                            scratch[to + i * pitch : to + i * pitch + n] = np.float32(0)
                        for i in range(high, rows + extra):
                            scratch[to + i * pitch : to + i * pitch + n] = np.float32(0)
                    at = source + (begin + low * sy) * row_step + px + first * sx
                    _copy_rows(data, at, sy * row_step, high - low, n, sx, scratch, to + low * pitch, pitch)
                _sum_taps(scratch, rows * pitch, const, weight + c * taps, taps, index, shifts, sums)
                at = b * image + y * width
                if width >= WIDE:
                    for i in range(rows):
                        finish_rows(scratch, sums + i * pitch, 0, 1, c, at + i * width, width, g, data, const)
                else:
                    _copy_rows(scratch, sums, pitch, rows, width, 1, scratch, sums, width)
                    finish_rows(scratch, sums, 0, 1, c, at, rows * width, g, data, const)
