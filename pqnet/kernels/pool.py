"""Pooling by windows, and sums, means and extremes along an axis."""

import numpy as np
from numba import njit

from pqnet.kernels.simd import (
    WIDTH,
    add,
    load,
    load_even,
    load_head,
    maximum,
    minimum,
    multiply,
    splat,
    store,
    store_head,
    sum_lanes,
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def pool(task, g, data, const, codes, index, scratch):
    # Planes of g[4] x g[5] pixels, g[6] columns apart, at g[0] + c * g[2] + b * g[3], c < g[7], b < g[8]; planes a task
    # g[9]. Result at g[1], dense [c][b][g[10]][g[11]]; kernel g[12] x g[13], stride g[14], g[15], dilation g[16],
    # g[17], padding above g[18], on the left g[19]; 20: 0 largest, 1 average; 21, 22 const: factors of its rows and
    # columns; 23, 24 rows and columns of the padded plane
    height, width, row, channels, batch = g[4], g[5], g[6], g[7], g[8]
    rows, columns, kh, kw, sy, sx, dy, dx = g[10], g[11], g[12], g[13], g[14], g[15], g[16], g[17]
    top, left, average, high, across = g[18], g[19], g[20] == 1, g[23], g[24]
    empty = np.float32(0) if average else np.float32(-np.inf)
    for j in range(0, high * across, WIDTH):
        store(scratch, j, splat(empty))
    for plane in range(task * g[9], min((task + 1) * g[9], channels * batch)):
        x = g[0] + plane // batch * g[2] + plane % batch * g[3]
        for i in range(min(height, high - top)):
            to, n = (i + top) * across + left, min(width, across - left)
            for j in range(0, n, WIDTH):
                if j + WIDTH <= n:
                    store(scratch, to + j, load(data, x + i * row + j))
                else:
                    store_head(scratch, to + j, load_head(data, x + i * row + j, n - j), n - j)
        for i in range(rows):
            out = g[1] + (plane * rows + i) * columns
            for j in range(0, columns, WIDTH):
                v = splat(empty)
                for ky in range(kh):
                    at = (i * sy + ky * dy) * across + j * sx
                    for kx in range(kw):
                        if sx == 1:
                            w = load(scratch, at + kx * dx)
                        elif sx == 2:
                            w = load_even(scratch, at + kx * dx)
                        else:
                            spare = high * across + 2 * WIDTH * (sx + 1)
                            for q in range(min(WIDTH, columns - j)):
                                scratch[spare + q] = scratch[at + kx * dx + q * sx]
                            w = load(scratch, spare)
                        v = add(v, w) if average else maximum(v, w)
                if average:
                    v = multiply(multiply(v, splat(const[g[21] + i])), load(const, g[22] + j))
                if j + WIDTH <= columns:
                    store(data, out + j, v)
                else:
                    store_head(data, out + j, v, columns - j)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def reduce_axis(task, g, data, const, codes, index, scratch):
    # x at g[0], result at g[1]; two outer axes: sizes g[2], g[5], steps of x g[3], g[6], of the result g[4], g[7];
    # g[8] lanes of step 1 in both; g[9] numbers, g[10] apart (1 only if there is one lane) are reduced;
    # 11: 0 sum, 1 largest, 2 least; 12 const: factor of the sum; 13 rows a task
    inner, lanes, n, step, kind = g[5], g[8], g[9], g[10], g[11]
    start = np.float32(0) if kind == 0 else np.float32(-np.inf) if kind == 1 else np.float32(np.inf)
    factor = const[g[12]]
    for r in range(task * g[13], min((task + 1) * g[13], g[2] * inner)):
        i, j = r // inner, r % inner
        x, out = g[0] + i * g[3] + j * g[6], g[1] + i * g[4] + j * g[7]
        if step == 1:
            v, w = splat(start), splat(start)
            whole = n // (2 * WIDTH) * (2 * WIDTH)
            for k in range(0, whole, 2 * WIDTH):
                a, b = load(data, x + k), load(data, x + k + WIDTH)
                if kind == 0:
                    v, w = add(v, a), add(w, b)
                elif kind == 1:
                    v, w = maximum(v, a), maximum(w, b)
                else:
                    v, w = minimum(v, a), minimum(w, b)
            if kind == 0:
                for k in range(whole, n, WIDTH):
                    v = add(v, load_head(data, x + k, n - k))
                data[out] = sum_lanes(add(v, w)) * factor
            else:
                store(scratch, 0, maximum(v, w) if kind == 1 else minimum(v, w))
                best = start
                for k in range(WIDTH + n - whole):
                    number = scratch[k] if k < WIDTH else data[x + whole + k - WIDTH]
                    if number != number or (number > best if kind == 1 else number < best):
                        best = number
                        if number != number:
                            break
                data[out] = best
        else:
            for p in range(0, lanes, WIDTH):
                v = splat(start)
                for k in range(n):
                    a = load(data, x + p + k * step)
                    v = add(v, a) if kind == 0 else maximum(v, a) if kind == 1 else minimum(v, a)
                if kind == 0:
                    v = multiply(v, splat(factor))
                if p + WIDTH <= lanes:
                    store(data, out + p, v)
                else:
                    store_head(data, out + p, v, lanes - p)
