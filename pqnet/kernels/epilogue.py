"""What follows a product in the same pass: scale, shift, residual, activation, and the store."""

import numpy as np
from numba import njit

from pqnet.kernels.activation import activate_row
from pqnet.kernels.simd import WIDTH, add, fma, load, load_head, maximum, minimum, splat, store, store_head


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def finish_rows(sums, s, step, rows, o, at, n, g, data, const):
    # IN sums (.,) f4: rows x n sums, rows ``step`` apart from s, of outputs o.. at dense positions at .. at + n
    # IN g: fields 11, 12 and 15-22 of a layer step; OUT data: the rows of these outputs, nothing beside them
    out, out_step, scale_at, shift_at = g[11], g[12], g[15], g[16]
    residual, residual_step, kind, parameters = g[17], g[18], g[21], g[22]
    low = splat(np.float32(-np.inf) if kind not in (1, 2) else const[parameters] if kind == 2 else np.float32(0))
    high = splat(const[parameters + 1] if kind == 2 else np.float32(np.inf))
    for r in range(rows):
        target = out + (o + r) * out_step + at
        scale = splat(const[scale_at + o + r] if scale_at >= 0 else np.float32(1))
        shift = splat(const[shift_at + o + r] if shift_at >= 0 else np.float32(0))
        c = s + r * step
        beside = residual + (o + r) * residual_step + at
        for j in range(0, n, WIDTH):
            v = fma(load(sums, c + j), scale, shift)
            left = n - j
            if residual >= 0:
                v = add(v, load(data, beside + j) if left >= WIDTH else load_head(data, beside + j, left))
            v = minimum(maximum(v, low), high)
            if left >= WIDTH:
                store(data, target + j, v)
            else:
                store_head(data, target + j, v, left)
        if kind > 2:
            activate_row(kind, data, target, n, const, parameters)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def finish_tile(sums, s, step, rows, o, b, q, n, g, data, const):
    # IN sums: rows x n sums, rows ``step`` apart, of outputs o.. at flat positions q.. of image b, junk columns and all
    pitch, width, image = g[9], g[10], g[13]
    p = q
    while p < q + n:
        y = p // pitch
        column = p - y * pitch
        if column < width:
            count = min(width - column, q + n - p)
            finish_rows(sums, s + p - q, step, rows, o, b * image + y * width + column, count, g, data, const)
        p = (y + 1) * pitch
