"""Scaled dot-product attention: queries are the lanes, from the scores to the result.

For a head and LANES queries: scores[key][query] by the register tile, softmax down the keys, then the sum of the
values, again by the register tile. The scores never leave the cache.
"""

import numpy as np
from numba import njit

from pqnet.kernels.abi import CONST, DATA, FLAG, MAYBE_DATA, SIZE, Arguments, step
from pqnet.kernels.ops.functions import exp
from pqnet.kernels.products.tile import LANES, ROWS, multiply_3
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

# Tokens of queries, keys, values and the result lie side by side. The mask is added to the scores; its queries lie side
# by side, too.
ATTENTION = Arguments(
    q=DATA,
    k=DATA,
    v=DATA,
    out=DATA,
    batch_steps=SIZE.repeated(4),  # of queries, keys, values, result
    head_steps=SIZE.repeated(4),
    feature_steps=SIZE.repeated(4),
    heads=SIZE,
    queries=SIZE,
    keys=SIZE,
    inner=SIZE,  # features of queries and keys
    outer=SIZE,  # features of values and result
    scale=CONST,
    causal=FLAG,  # queries do not see the keys behind them
    mask=MAYBE_DATA,
    mask_batch=SIZE,  # steps of the mask
    mask_head=SIZE,
    mask_key=SIZE,
)


@step(ATTENTION)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def attention(task, g, data, const, codes, index, scratch):
    # scratch: LANES queries, scores, results of a panel
    heads, queries, keys, inner, outer = g.heads, g.queries, g.keys, g.inner, g.outer
    causal, mask, feature_steps = g.causal == 1, g.mask, g.feature_steps
    blocks = (queries + LANES - 1) // LANES
    first = task % blocks * LANES
    head = task // blocks % heads
    b = task // (blocks * heads)
    n = min(LANES, queries - first)
    q = g.q + b * g.batch_steps[0] + head * g.head_steps[0] + first
    k = g.k + b * g.batch_steps[1] + head * g.head_steps[1]
    v = g.v + b * g.batch_steps[2] + head * g.head_steps[2]
    out = g.out + b * g.batch_steps[3] + head * g.head_steps[3] + first
    scale = splat(const[g.scale])
    scores = inner * LANES
    sums = scores + (keys + ROWS) * LANES
    for e in range(inner):
        for j in range(0, LANES, WIDTH):
            store(scratch, e * LANES + j, multiply(load(data, q + e * feature_steps[0] + j), scale))
    for key in range(0, keys, ROWS):
        multiply_3(data, k + key, 1, feature_steps[1], scratch, 0, inner, scratch, scores + key * LANES, LANES, 0)
    lowest = splat(np.float32(-np.inf))
    for j in range(0, LANES, WIDTH):
        largest = lowest
        for key in range(keys):
            at = scores + key * LANES + j
            s = load(scratch, at)
            if mask >= 0:
                s = add(s, load(data, mask + b * g.mask_batch + head * g.mask_head + key * g.mask_key + first + j))
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
    step = feature_steps[2] if outer >= ROWS else 0
    for e in range(0, outer, panel):
        first = min(e, outer - panel)
        at = v + first * feature_steps[2]
        multiply_3(data, at, step, 1, scratch, scores, keys, scratch, sums, LANES, 0)
        for r in range(e - first, min(panel, outer - first)):
            for j in range(0, n, WIDTH):
                s = multiply(load(scratch, sums + r * LANES + j), load(scratch, j))
                to = out + (first + r) * feature_steps[3] + j
                if j + WIDTH <= n:
                    store(data, to, s)
                else:
                    store_head(data, to, s, n - j)
