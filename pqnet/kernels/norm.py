"""Norms and softmax: lanes across the numbers of a row where another axis is contiguous, else lanes along the row.

Rows lie on two outer axes, of sizes g[2] and g[6]; fields 3-5 and 7-9 are the steps of x, of the result and of the
weights along them. Results are in the order of x. Mean and variance come from two passes, of a block of numbers or
of the whole row.
"""

import numpy as np
from numba import njit

from pqnet.kernels.functions import at_least, constant, exp, log
from pqnet.kernels.places import place, put_at
from pqnet.kernels.simd import (
    WIDTH,
    add,
    divide,
    fma,
    keep,
    load,
    multiply,
    splat,
    sqrt,
    store,
    subtract,
    sum_lanes,
)

VECTORS = 16  # that go through the rows together, at most
BLOCK = 16  # numbers of a row whose two passes follow each other


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def norm_across(task, g, data, const, codes, index, scratch):
    # x at g[0], result at g[1]; g[10] lanes; g[11] numbers a row, whose offsets in x and in the result are pairs in
    # index at g[12]; weights in const at g[13], biases g[14] behind, one of each a number, eps at g[15];
    # 16 rows a task, 17 lanes a task, 19 lanes at a time, at most VECTORS * WIDTH
    inner, lanes, n, table, eps = g[6], g[10], g[11], g[12], splat(const[g[15]])
    part, zero, one, span = splat(np.float32(1.0 / n)), constant(0.0), constant(1.0), VECTORS * WIDTH
    lane_tasks = (lanes + g[17] - 1) // g[17]
    start = task % lane_tasks * g[17]
    for r in range(task // lane_tasks * g[16], min((task // lane_tasks + 1) * g[16], g[2] * inner)):
        i, j = r // inner, r % inner
        weight, bias = g[13] + i * g[5] + j * g[9], g[14]
        for first in range(start, min(start + g[17], lanes), g[19]):
            x, out = g[0] + i * g[3] + j * g[7] + first, g[1] + i * g[4] + j * g[8] + first
            m = min(g[19], min(start + g[17], lanes) - first)
            for p in range(0, m, WIDTH):
                store(scratch, p, zero)
                store(scratch, p + span, zero)
                store(scratch, p + 2 * span, zero)
            for k in range(0, n, BLOCK):
                # Mean and squared distances of a block, joined with those of all numbers before it; all from the mean
                # of the first block on, which may be large.
                count, stop = min(BLOCK, n - k), table + 2 * min(k + BLOCK, n)
                each = splat(np.float32(1.0 / count))
                share, both = splat(np.float32(count / (k + count))), splat(np.float32(count * k / (k + count)))
                for p in range(x, x + m, WIDTH):
                    total, squares, origin = zero, zero, load(scratch, p - x + 2 * span)
                    for q in range(table + 2 * k, stop, 2):
                        total = add(total, subtract(load(data, p + index[q]), origin))
                    mean = multiply(total, each)
                    for q in range(table + 2 * k, stop, 2):
                        v = subtract(subtract(load(data, p + index[q]), origin), mean)
                        squares = fma(v, v, squares)
                    if k == 0:
                        store(scratch, p - x + 2 * span, mean)
                        mean = zero
                    before = load(scratch, p - x)
                    apart = subtract(mean, before)
                    squares = add(squares, load(scratch, p - x + span))
                    store(scratch, p - x, fma(apart, share, before))
                    store(scratch, p - x + span, fma(multiply(apart, apart), both, squares))
            for p in range(0, m, WIDTH):
                variance = multiply(load(scratch, p + span), part)
                store(scratch, p, add(load(scratch, p), load(scratch, p + 2 * span)))
                store(scratch, p + span, divide(one, sqrt(add(variance, eps))))
            for k in range(n):
                w, c, at = splat(const[weight + k]), splat(const[weight + bias + k]), index[table + 2 * k]
                target = place(data, out + index[table + 2 * k + 1])
                for p in range(0, m, WIDTH):
                    v = multiply(subtract(load(data, x + at + p), load(scratch, p)), load(scratch, p + span))
                    put_at(target, p, fma(v, w, c), m - p)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def norm_along(task, g, data, const, codes, index, scratch):
    # As norm_across, with rows of g[11] runs of g[10] contiguous numbers; 18: weights of each number, else of each run
    inner, size, runs, table = g[6], g[10], g[11], g[12]
    each, eps = np.float32(1.0 / (size * runs)), const[g[15]]
    for r in range(task * g[16], min((task + 1) * g[16], g[2] * inner)):
        i, j = r // inner, r % inner
        x, out = g[0] + i * g[3] + j * g[7], g[1] + i * g[4] + j * g[8]
        weight, bias = g[13] + i * g[5] + j * g[9], g[14]
        mean, scale = np.float32(0.0), np.float32(0.0)
        for _ in range(2):
            total, squares, m = constant(0.0), constant(0.0), splat(mean)
            for k in range(runs):
                at = x + index[table + 2 * k]
                for p in range(0, size, WIDTH):
                    v = subtract(load(data, at + p), m)
                    if size - p < WIDTH:
                        v = keep(v, 0, size - p)
                    total = add(total, v)
                    squares = fma(v, v, squares)
            off = sum_lanes(total) * each
            mean += off
            scale = np.float32(1.0) / np.sqrt(sum_lanes(squares) * each - off * off + eps)
        m, s = splat(mean), splat(scale)
        for k in range(runs):
            at, target = x + index[table + 2 * k], place(data, out + index[table + 2 * k + 1])
            w, c = splat(const[weight + k]), splat(const[weight + bias + k])
            for p in range(0, size, WIDTH):
                if g[18]:
                    w, c = load(const, weight + k * size + p), load(const, weight + bias + k * size + p)
                put_at(target, p, fma(multiply(subtract(load(data, at + p), m), s), w, c), size - p)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def softmax_across(task, g, data, const, codes, index, scratch):
    # Fields as of norm_across but 13-15; 18: whether to return the logarithm
    inner, lanes, n, table, span = g[6], g[10], g[11], g[12], VECTORS * WIDTH
    lane_tasks = (lanes + g[17] - 1) // g[17]
    start = task % lane_tasks * g[17]
    for r in range(task // lane_tasks * g[16], min((task // lane_tasks + 1) * g[16], g[2] * inner)):
        i, j = r // inner, r % inner
        for first in range(start, min(start + g[17], lanes), g[19]):
            x, out = g[0] + i * g[3] + j * g[7] + first, g[1] + i * g[4] + j * g[8] + first
            m = min(g[19], min(start + g[17], lanes) - first)
            for p in range(0, m, WIDTH):
                top = constant(-np.inf)
                for q in range(table, table + 2 * n, 2):
                    top = at_least(load(data, x + index[q] + p), top)  # NaN will be in the sum
                store(scratch, p, top)
                store(scratch, p + span, constant(0.0))
            for k in range(n):
                at, target = index[table + 2 * k], place(data, out + index[table + 2 * k + 1])
                for p in range(0, m, WIDTH):
                    v = subtract(load(data, x + at + p), load(scratch, p))
                    e = exp(v)
                    store(scratch, p + span, add(load(scratch, p + span), e))
                    put_at(target, p, v if g[18] else e, m - p)
            for p in range(0, m, WIDTH):
                total = load(scratch, p + span)
                store(scratch, p, log(total) if g[18] else divide(constant(1.0), total))
            for k in range(n):
                at = out + index[table + 2 * k + 1]
                target = place(data, at)
                for p in range(0, m, WIDTH):
                    v, last = load(data, at + p), load(scratch, p)
                    put_at(target, p, subtract(v, last) if g[18] else multiply(v, last), m - p)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def softmax_along(task, g, data, const, codes, index, scratch):
    # As softmax_across, with rows of g[10] contiguous numbers
    inner, size = g[6], g[10]
    whole = size // WIDTH * WIDTH
    for r in range(task * g[16], min((task + 1) * g[16], g[2] * inner)):
        i, j = r // inner, r % inner
        x, out = g[0] + i * g[3] + j * g[7], g[1] + i * g[4] + j * g[8]
        target, top = place(data, out), constant(-np.inf)
        for p in range(0, whole, WIDTH):
            top = at_least(load(data, x + p), top)
        store(scratch, 0, top)
        largest = np.float32(-np.inf)
        for p in range(WIDTH + size - whole):
            number = scratch[p] if p < WIDTH else data[x + whole + p - WIDTH]
            if number > largest:
                largest = number
        top, total = splat(largest), constant(0.0)
        for p in range(0, size, WIDTH):
            v = subtract(load(data, x + p), top)
            e = exp(v)
            total = add(total, e if size - p >= WIDTH else keep(e, 0, size - p))
            put_at(target, p, v if g[18] else e, size - p)
        store(scratch, 0, splat(sum_lanes(total)))
        last = load(scratch, 0)
        last = log(last) if g[18] else divide(constant(1.0), last)
        for p in range(0, size, WIDTH):
            v = load(data, out + p)
            put_at(target, p, subtract(v, last) if g[18] else multiply(v, last), size - p)
