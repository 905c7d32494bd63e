"""Layer norm and softmax along an axis: lanes across it where another axis is contiguous, else lanes along it."""

import numpy as np
from numba import njit

from pqnet.kernels.functions import exp
from pqnet.kernels.simd import (
    WIDTH,
    add,
    divide,
    fma,
    load,
    load_head,
    maximum,
    multiply,
    splat,
    sqrt,
    store,
    store_head,
    subtract,
    sum_lanes,
)


@njit(cache=True, nogil=True, error_model="numpy")
def layer_norm(task, g, data, const, codes, index, scratch):
    # x at g[0], result at g[1]; two outer axes: sizes g[2], g[5], steps of x g[3], g[6], of the result g[4], g[7];
    # g[8] lanes of step 1 in both; g[9] numbers, g[10] apart in x, g[11] in the result (1 only if there is one lane),
    # make a row. 12 const: weights, bias, one of each a number; 14 const: eps; 15 rows a task, 16 lanes a task
    inner, lanes, n, step, out_step, weight, bias = g[5], g[8], g[9], g[10], g[11], g[12], g[13]
    eps, size = const[g[14]], splat(np.float32(n))
    lane_tasks = (lanes + g[16] - 1) // g[16]
    first = task % lane_tasks * g[16]
    for r in range(task // lane_tasks * g[15], min((task // lane_tasks + 1) * g[15], g[2] * inner)):
        i, j = r // inner, r % inner
        x, out = g[0] + i * g[3] + j * g[6], g[1] + i * g[4] + j * g[7]
        if lanes == 1 and step == 1:
            total = splat(np.float32(0))
            for k in range(0, n, WIDTH):
                total = add(total, load(data, x + k) if k + WIDTH <= n else load_head(data, x + k, n - k))
            mean = sum_lanes(total) / np.float32(n)
            total = splat(np.float32(0))
            for k in range(0, n, WIDTH):
                v = subtract(load(data, x + k), splat(mean))
                store(scratch, k, v)
                v = v if k + WIDTH <= n else load_head(scratch, k, n - k)
                total = fma(v, v, total)
            scale = splat(np.float32(1) / np.sqrt(sum_lanes(total) / np.float32(n) + eps))
            for k in range(0, n, WIDTH):
                v = fma(multiply(load(scratch, k), scale), load(const, weight + k), load(const, bias + k))
                if k + WIDTH <= n:
                    store(data, out + k, v)
                else:
                    store_head(data, out + k, v, n - k)
            continue
        for p in range(first, min(first + g[16], lanes), WIDTH):
            total = splat(np.float32(0))
            for k in range(n):
                total = add(total, load(data, x + p + k * step))
            mean = divide(total, size)
            total = splat(np.float32(0))
            for k in range(n):
                v = subtract(load(data, x + p + k * step), mean)
                total = fma(v, v, total)
            scale = divide(splat(np.float32(1)), sqrt(add(divide(total, size), splat(eps))))
            for k in range(n):
                v = multiply(subtract(load(data, x + p + k * step), mean), scale)
                v = fma(v, splat(const[weight + k]), splat(const[bias + k]))
                if p + WIDTH <= lanes:
                    store(data, out + p + k * out_step, v)
                else:
                    store_head(data, out + p + k * out_step, v, lanes - p)


@njit(cache=True, nogil=True, error_model="numpy")
def softmax(task, g, data, const, codes, index, scratch):
    # Fields 0-11, 15, 16 as of layer_norm
    inner, lanes, n, step, out_step = g[5], g[8], g[9], g[10], g[11]
    least = splat(np.float32(-np.inf))
    lane_tasks = (lanes + g[16] - 1) // g[16]
    first = task % lane_tasks * g[16]
    for r in range(task // lane_tasks * g[15], min((task // lane_tasks + 1) * g[15], g[2] * inner)):
        i, j = r // inner, r % inner
        x, out = g[0] + i * g[3] + j * g[6], g[1] + i * g[4] + j * g[7]
        if lanes == 1 and step == 1:
            top = np.float32(-np.inf)
            for k in range(n):
                number = data[x + k]
                if number > top or number != number:
                    top = number
            total = splat(np.float32(0))
            for k in range(0, n, WIDTH):
                store(scratch, k, exp(subtract(load(data, x + k), splat(top))))
                total = add(total, load(scratch, k) if k + WIDTH <= n else load_head(scratch, k, n - k))
            whole = splat(sum_lanes(total))
            for k in range(0, n, WIDTH):
                v = divide(load(scratch, k), whole)
                if k + WIDTH <= n:
                    store(data, out + k, v)
                else:
                    store_head(data, out + k, v, n - k)
            continue
        for p in range(first, min(first + g[16], lanes), WIDTH):
            largest = least
            for k in range(n):
                largest = maximum(largest, load(data, x + p + k * step))
            total = splat(np.float32(0))
            for k in range(n):
                v = exp(subtract(load(data, x + p + k * step), largest))
                store(scratch, k * WIDTH, v)
                total = add(total, v)
            for k in range(n):
                v = divide(load(scratch, k * WIDTH), total)
                if p + WIDTH <= lanes:
                    store(data, out + p + k * out_step, v)
                else:
                    store_head(data, out + p + k * out_step, v, lanes - p)
