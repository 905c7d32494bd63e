"""Scaled dot-product attention: queries are the lanes, from the scores to the result.

For a head and LANES queries: scores[key][query] by the register tile, softmax down the keys, then the sum of the
values, again by the register tile. The scores never leave the cache.
"""

import numpy as np
from numba import njit

from pqnet.kernels.functions import exp
from pqnet.kernels.simd import (
    WIDTH,
    add,
    divide,
    load,
    maximum,
    multiply,
    select_less,
    splat,
    store,
    store_head,
    subtract,
)
from pqnet.kernels.tile import LANES, ROWS, multiply_3


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def attention(task, g, data, const, codes, index, scratch):
    # q, k, v and the result: offsets g[0:4]; steps of batch, head and feature of each in g[4:16]; tokens have step 1.
    # 16 heads, 17 queries, 18 keys, 19 features of q and k, 20 features of v, 21 const: scale, 22 causal,
    # 23 float mask: data offset or -1, its steps of batch 24, head 25, key 26; queries have step 1
    # scratch: LANES queries, scores, results of a panel
    q, k, v, out, heads, queries, keys, inner, outer = g[0], g[1], g[2], g[3], g[16], g[17], g[18], g[19], g[20]
    causal, mask = g[22] == 1, g[23]
    blocks = (queries + LANES - 1) // LANES
    first = task % blocks * LANES
    head = task // blocks % heads
    b = task // (blocks * heads)
    n = min(LANES, queries - first)
    q += b * g[4] + head * g[5] + first
    k += b * g[7] + head * g[8]
    v += b * g[10] + head * g[11]
    out += b * g[13] + head * g[14] + first
    scale = splat(const[g[21]])
    scores = inner * LANES
    sums = scores + (keys + ROWS) * LANES
    for e in range(inner):
        for j in range(0, LANES, WIDTH):
            store(scratch, e * LANES + j, multiply(load(data, q + e * g[6] + j), scale))
    for key in range(0, keys, ROWS):
        multiply_3(data, k + key, 1, g[9], scratch, 0, inner, scratch, scores + key * LANES, LANES, 0)
    lowest = splat(np.float32(-np.inf))
    for j in range(0, LANES, WIDTH):
        largest = lowest
        for key in range(keys):
            at = scores + key * LANES + j
            s = load(scratch, at)
            if mask >= 0:
                s = add(s, load(data, mask + b * g[24] + head * g[25] + key * g[26] + first + j))
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
    for e in range(0, outer, ROWS):
        multiply_3(data, v + e * g[12], g[12], 1, scratch, scores, keys, scratch, sums, LANES, 0)
        for r in range(min(ROWS, outer - e)):
            for j in range(0, n, WIDTH):
                s = multiply(load(scratch, sums + r * LANES + j), load(scratch, j))
                to = out + (e + r) * g[15] + j
                if j + WIDTH <= n:
                    store(data, to, s)
                else:
                    store_head(data, to, s, n - j)
