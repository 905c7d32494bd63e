"""Scaled dot-product attention.

`attention`: queries are the lanes, from the scores to the result. For a head and LANES queries: scores[key][query] by
the register tile, softmax down the keys, then the sum of the values, again by the register tile. The scores never leave
the cache.

`attention_of_few`: for a few queries, one after the other, features are the lanes of the products and keys those of the
softmax.
"""

import numpy as np
from numba import njit

from pqnet.kernels.abi import CONST, DATA, FLAG, MAYBE_DATA, SIZE, Arguments, step
from pqnet.kernels.ops.functions import constant, exp
from pqnet.kernels.products.tile import LANES, ROWS, multiply_3
from pqnet.kernels.simd import (
    WIDTH,
    add,
    divide,
    fma,
    keep,
    load,
    maximum,
    multiply,
    select_less,
    splat,
    store,
    store_head,
    subtract,
    sum_lanes,
)

ATTENTION = Arguments(
    q=DATA,
    k=DATA,
    v=DATA,
    out=DATA,
    mask=MAYBE_DATA,  # added to the scores
    heads=SIZE,
    groups=SIZE,  # of queries with the same keys and values, or further heads
    queries=SIZE,
    keys=SIZE,
    inner=SIZE,  # features of queries and keys
    outer=SIZE,  # features of values and result
    q_steps=SIZE.repeated(5),  # from batch to batch, head, group, token, feature
    k_steps=SIZE.repeated(5),
    v_steps=SIZE.repeated(5),
    out_steps=SIZE.repeated(5),
    mask_steps=SIZE.repeated(5),  # the last two: query, key
    scale=CONST,
    causal=FLAG,  # queries do not see the keys behind them
)


@step(ATTENTION)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def attention(task, g, data, const, codes, index, scratch):
    # Tokens of queries, keys, values and the result lie side by side, and the queries of the mask.
    # scratch: LANES queries, scores, results of a panel
    queries, keys, inner, outer = g.queries, g.keys, g.inner, g.outer
    causal, mask, q_step, k_step, v_step = g.causal == 1, g.mask, g.q_steps[4], g.k_steps[4], g.v_steps[4]
    blocks = (queries + LANES - 1) // LANES
    first = task % blocks * LANES
    group = task // blocks % g.groups
    head = task // (blocks * g.groups) % g.heads
    b = task // (blocks * g.groups * g.heads)
    n = min(LANES, queries - first)
    q = g.q + b * g.q_steps[0] + head * g.q_steps[1] + group * g.q_steps[2] + first
    k = g.k + b * g.k_steps[0] + head * g.k_steps[1] + group * g.k_steps[2]
    v = g.v + b * g.v_steps[0] + head * g.v_steps[1] + group * g.v_steps[2]
    out = g.out + b * g.out_steps[0] + head * g.out_steps[1] + group * g.out_steps[2] + first
    if mask >= 0:
        mask += b * g.mask_steps[0] + head * g.mask_steps[1] + group * g.mask_steps[2] + first
    scale = splat(const[g.scale])
    scores = inner * LANES
    sums = scores + (keys + ROWS) * LANES
    for e in range(inner):
        for j in range(0, LANES, WIDTH):
            store(scratch, e * LANES + j, multiply(load(data, q + e * q_step + j), scale))
    for key in range(0, keys, ROWS):
        multiply_3(data, k + key, 1, k_step, scratch, 0, inner, scratch, scores + key * LANES, LANES, 0)
    lowest = splat(np.float32(-np.inf))
    for j in range(0, LANES, WIDTH):
        largest = lowest
        for key in range(keys):
            at = scores + key * LANES + j
            s = load(scratch, at)
            if mask >= 0:
                s = add(s, load(data, mask + key * g.mask_steps[4] + j))
            if causal:
                for i in range(WIDTH):  # the queries before a key do not see it
                    if first + j + i < key:
                        scratch[at + i] = np.float32(-np.inf)
                s = load(scratch, at)
            else:
                store(scratch, at, s)
            largest = maximum(largest, s)
        # A query that may attend to nothing gets zeros.
        largest = select_less(lowest, largest, largest, splat(np.float32(0)))
        total = splat(np.float32(0))
        for key in range(keys):
            at = scores + key * LANES + j
            s = exp(subtract(load(scratch, at), largest))
            store(scratch, at, s)
            total = add(total, s)
        one = splat(np.float32(1))
        total = select_less(splat(np.float32(0)), total, total, one)
        store(scratch, j, divide(one, total))  # the queries are no longer needed
    # The last panel begins early enough that no feature behind the last one is read; few features come one by one.
    panel = ROWS if outer >= ROWS else 1
    step = v_step if outer >= ROWS else 0
    for e in range(0, outer, panel):
        first = min(e, outer - panel)
        at = v + first * v_step
        multiply_3(data, at, step, 1, scratch, scores, keys, scratch, sums, LANES, 0)
        for r in range(e - first, min(panel, outer - first)):
            for j in range(0, n, WIDTH):
                s = multiply(load(scratch, sums + r * LANES + j), load(scratch, j))
                to = out + (first + r) * g.out_steps[4] + j
                if j + WIDTH <= n:
                    store(data, to, s)
                else:
                    store_head(data, to, s, n - j)


@step(ATTENTION)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def attention_of_few(task, g, data, const, codes, index, scratch):
    # Features of keys and values lie side by side. scratch: a query, its scores, the sums of values
    keys, inner, outer, k_step, v_step = g.keys, g.inner, g.outer, g.k_steps[3], g.v_steps[3]
    group, head, b = task % g.groups, task // g.groups % g.heads, task // (g.groups * g.heads)
    q = g.q + b * g.q_steps[0] + head * g.q_steps[1] + group * g.q_steps[2]
    k = g.k + b * g.k_steps[0] + head * g.k_steps[1] + group * g.k_steps[2]
    v = g.v + b * g.v_steps[0] + head * g.v_steps[1] + group * g.v_steps[2]
    out = g.out + b * g.out_steps[0] + head * g.out_steps[1] + group * g.out_steps[2]
    mask = g.mask
    if mask >= 0:
        mask += b * g.mask_steps[0] + head * g.mask_steps[1] + group * g.mask_steps[2]
    whole = inner - inner % WIDTH
    scores = (inner + WIDTH - 1) // WIDTH * WIDTH
    sums = scores + (keys + WIDTH - 1) // WIDTH * WIDTH
    for i in range(g.queries):
        for e in range(inner):
            scratch[e] = data[q + i * g.q_steps[3] + e * g.q_steps[4]] * const[g.scale]
        seen = min(i + 1, keys) if g.causal == 1 else keys
        largest = np.float32(-np.inf)
        for key in range(seen):
            at, total = k + key * k_step, constant(0.0)
            for e in range(0, whole, WIDTH):
                total = fma(load(data, at + e), load(scratch, e), total)
            if whole < inner:
                rest = inner - whole
                ours = keep(load(scratch, whole), 0, rest)
                total = fma(keep(load(data, at + whole), 0, rest), ours, total)
            s = sum_lanes(total)
            if mask >= 0:
                s += data[mask + i * g.mask_steps[3] + key * g.mask_steps[4]]
            scratch[scores + key] = s
            largest = max(largest, s)
        if largest == np.float32(-np.inf):  # a query that may attend to nothing gets zeros
            largest = np.float32(0)
        parts = constant(0.0)
        for key in range(0, seen, WIDTH):
            n = min(WIDTH, seen - key)
            s = keep(exp(keep(subtract(load(scratch, scores + key), splat(largest)), 0, n)), 0, n)
            store(scratch, scores + key, s)
            parts = add(parts, s)
        share = sum_lanes(parts)
        share = np.float32(1) / share if share > 0 else np.float32(1)
        for first in range(0, outer, 4 * WIDTH):
            a0, a1, a2, a3 = constant(0.0), constant(0.0), constant(0.0), constant(0.0)
            for key in range(seen):
                at, p = v + key * v_step + first, splat(scratch[scores + key])
                a0 = fma(load(data, at), p, a0)
                a1 = fma(load(data, at + WIDTH), p, a1)
                a2 = fma(load(data, at + 2 * WIDTH), p, a2)
                a3 = fma(load(data, at + 3 * WIDTH), p, a3)
            store(scratch, sums, a0)
            store(scratch, sums + WIDTH, a1)
            store(scratch, sums + 2 * WIDTH, a2)
            store(scratch, sums + 3 * WIDTH, a3)
            for e in range(first, min(first + 4 * WIDTH, outer)):
                data[out + i * g.out_steps[3] + e * g.out_steps[4]] = scratch[sums + e - first] * share
