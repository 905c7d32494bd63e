"""What follows a product in the same pass: scale, shift, residual, activation, and the store."""

import numpy as np
from numba import njit

from pqnet.kernels.activation import activate_row
from pqnet.kernels.simd import WIDTH, add, fma, load, load_head, maximum, minimum, splat, store, store_head


@njit(cache=True, nogil=True, error_model="numpy")
def finish_row(sums, s, o, at, n, g, data, const):
    # IN sums (.,) f4 from s: n sums of output o at dense positions at .. at + n; g: fields 11-22 of a layer step
    # OUT data: the row of output o, nothing beside it
    target = g[11] + o * g[12] + at
    scale = splat(const[g[15] + o] if g[15] >= 0 else np.float32(1))
    shift = splat(const[g[16] + o] if g[16] >= 0 else np.float32(0))
    kind = g[21]
    low = splat(np.float32(-np.inf) if kind not in (1, 2) else const[g[22]] if kind == 2 else np.float32(0))
    high = splat(const[g[22] + 1] if kind == 2 else np.float32(np.inf))
    whole = n // WIDTH * WIDTH
    if g[17] < 0:
        for j in range(0, whole, WIDTH):
            v = fma(load(sums, s + j), scale, shift)
            store(data, target + j, minimum(maximum(v, low), high))
        if whole < n:
            v = fma(load(sums, s + whole), scale, shift)
            store_head(data, target + whole, minimum(maximum(v, low), high), n - whole)
    else:
        r = g[17] + o * g[18] + at
        for j in range(0, whole, WIDTH):
            v = add(fma(load(sums, s + j), scale, shift), load(data, r + j))
            store(data, target + j, minimum(maximum(v, low), high))
        if whole < n:
            v = add(fma(load(sums, s + whole), scale, shift), load_head(data, r + whole, n - whole))
            store_head(data, target + whole, minimum(maximum(v, low), high), n - whole)
    if kind > 2:
        activate_row(kind, data, target, n, const, g[22])


@njit(cache=True, nogil=True, error_model="numpy")
def finish_tile(sums, s, step, rows, o, b, q, n, g, data, const):
    # IN sums: rows x n sums, rows ``step`` apart, of outputs o.. at flat positions q.. of image b, junk columns and all
    pitch, width, image = g[9], g[10], g[13]
    for r in range(rows):
        p = q
        while p < q + n:
            y = p // pitch
            column = p - y * pitch
            if column < width:
                count = min(width - column, q + n - p)
                finish_row(sums, s + r * step + p - q, o + r, b * image + y * width + column, count, g, data, const)
            p = (y + 1) * pitch
