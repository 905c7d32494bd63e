"""Products of two values: by the register tile, and those with a vector, which are limited by the memory.

One of the two axes of a product is that of the lanes: there the elements of ``x`` and of the result lie side by side.
The other one is that of the rows, those of ``a``, which may lie in any way.
"""

import numpy as np
from numba import njit

from pqnet.kernels.abi import DATA, INDEX, SCRATCH, SIZE, Arguments, step
from pqnet.kernels.products.epilogue import EPILOGUE, finish_rows
from pqnet.kernels.products.tile import LANES, ROWS, multiply_1, multiply_2, multiply_3
from pqnet.kernels.simd import WIDTH, fma, load, load_head, splat, store, sum_lanes

# result[row, lane] = sum over k of a[row, k] * x[k, lane], for each product of a batch. index[places:] has three
# offsets for each product: how far its a, x and result are behind the first one's.
MATMUL = Arguments(
    end=EPILOGUE,
    a=DATA,
    x=DATA,
    places=INDEX,
    batch=SIZE,
    rows=SIZE,
    lanes=SIZE,
    inner=SIZE,  # elements of a sum
    a_row=SIZE,  # steps
    a_inner=SIZE,
    x_inner=SIZE,
    piece=SIZE,  # of a sum
    row_block=SIZE,  # rows a task, a multiple of ROWS
    tiles=SIZE,  # of LANES a task
    row_tasks=SIZE,
    lane_tasks=SIZE,
    per_task=SIZE,  # such blocks
    sums=SCRATCH,  # behind the packed x
    panel=SCRATCH,
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _pack_lanes(data, x, x_step, n, tiles, scratch, tile_step):
    # IN data: n rows of lanes, x_step apart; OUT scratch: tiles of n x LANES, tile_step apart
    for k in range(n):
        at, to = x + k * x_step, k * LANES
        for _ in range(tiles):
            store(scratch, to, load(data, at))
            store(scratch, to + WIDTH, load(data, at + WIDTH))
            store(scratch, to + 2 * WIDTH, load(data, at + 2 * WIDTH))
            at += LANES
            to += tile_step


@step(MATMUL)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def matmul(task, g, data, const, codes, index, scratch):
    inner, piece, tiles, row_block, sums, panel = g.inner, g.piece, g.tiles, g.row_block, g.sums, g.panel
    blocks = g.row_tasks * g.lane_tasks
    tile_step = (piece + 1) * LANES
    for unit in range(task * g.per_task, min((task + 1) * g.per_task, g.batch * blocks)):
        product = unit // blocks
        rest = unit - product * blocks
        place = g.places + 3 * product
        first = rest % g.row_tasks * row_block
        last = min(first + row_block, g.rows)
        p_first = rest // g.row_tasks * tiles * LANES
        p_last = min(p_first + tiles * LANES, g.lanes)
        used_tiles = (p_last - p_first + LANES - 1) // LANES
        a, x = g.a + index[place], g.x + index[place + 1] + p_first
        for k in range(0, inner, piece):
            n = min(piece, inner - k)
            _pack_lanes(data, x + k * g.x_inner, g.x_inner, n, used_tiles, scratch, tile_step)
            for r in range(first, last, ROWS):
                rows = min(ROWS, last - r)
                b, b0, row_step, step = data, a + r * g.a_row + k * g.a_inner, g.a_row, g.a_inner
                if rows < ROWS:  # behind the last row there may be no memory
                    for i in range(rows):
                        for j in range(n):
                            scratch[panel + i * piece + j] = data[b0 + i * row_step + j * step]
                    b, b0, row_step, step = scratch, panel, piece, 1
                for t in range(used_tiles):
                    lanes = min(LANES, p_last - p_first - t * LANES)
                    s = sums + ((r - first if inner > piece else 0) * tiles + t * ROWS) * LANES
                    x0, add = t * tile_step, np.int64(k > 0)
                    if lanes > 2 * WIDTH:
                        multiply_3(b, b0, row_step, step, scratch, x0, n, scratch, s, LANES, add)
                    elif lanes > WIDTH:
                        multiply_2(b, b0, row_step, step, scratch, x0, n, scratch, s, LANES, add)
                    else:
                        multiply_1(b, b0, row_step, step, scratch, x0, n, scratch, s, LANES, add)
                    if k + piece >= inner:
                        at = index[place + 2] + p_first + t * LANES
                        finish_rows(scratch, s, LANES, rows, r, at, lanes, g.end, data, const)


# result[lane] = sum over k of a[k] * x[k, lane], for each product of a batch.
VECTOR_MATMUL = Arguments(
    end=EPILOGUE,
    a=DATA,
    x=DATA,
    places=INDEX,
    batch=SIZE,
    lanes=SIZE,
    inner=SIZE,
    a_inner=SIZE,  # steps, of which x_inner or x_lane is 1
    x_inner=SIZE,
    x_lane=SIZE,
    block=SIZE,  # lanes a task, a multiple of 4 * WIDTH
    lane_tasks=SIZE,
    per_task=SIZE,  # such blocks
    sums=SCRATCH,  # behind the vector
)


@step(VECTOR_MATMUL)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def vector_matmul(task, g, data, const, codes, index, scratch):
    inner, x_inner, x_lane, sums = g.inner, g.x_inner, g.x_lane, g.sums
    zero = splat(np.float32(0))
    for unit in range(task * g.per_task, min((task + 1) * g.per_task, g.batch * g.lane_tasks)):
        product = unit // g.lane_tasks
        place = g.places + 3 * product
        first = (unit - product * g.lane_tasks) * g.block
        n = min(g.block, g.lanes - first)
        a, x = g.a + index[place], g.x + index[place + 1] + first * x_lane
        for k in range(inner):
            scratch[k] = data[a + k * g.a_inner]
        if x_lane == 1:
            for j in range(0, n, 4 * WIDTH):
                # Whole vectors: there is slack behind values, and room behind the sums.
                u0, u1, u2, u3 = zero, zero, zero, zero
                for k in range(inner):
                    at, v = x + k * x_inner + j, splat(scratch[k])
                    u0, u1 = fma(v, load(data, at), u0), fma(v, load(data, at + WIDTH), u1)
                    u2, u3 = fma(v, load(data, at + 2 * WIDTH), u2), fma(v, load(data, at + 3 * WIDTH), u3)
                store(scratch, sums + j, u0)
                store(scratch, sums + j + WIDTH, u1)
                store(scratch, sums + j + 2 * WIDTH, u2)
                store(scratch, sums + j + 3 * WIDTH, u3)
        else:
            for j in range(0, n, 4):
                x0 = x + j * x_lane
                x1, x2, x3 = (
                    x + min(j + 1, n - 1) * x_lane,
                    x + min(j + 2, n - 1) * x_lane,
                    x + min(j + 3, n - 1) * x_lane,
                )
                u0, u1, u2, u3 = zero, zero, zero, zero
                whole = inner // WIDTH * WIDTH
                for k in range(0, whole, WIDTH):
                    v = load(scratch, k)
                    u0, u1 = fma(v, load(data, x0 + k), u0), fma(v, load(data, x1 + k), u1)
                    u2, u3 = fma(v, load(data, x2 + k), u2), fma(v, load(data, x3 + k), u3)
                left = inner - whole
                if left > 0:
                    v = load_head(scratch, whole, left)
                    u0 = fma(v, load_head(data, x0 + whole, left), u0)
                    u1 = fma(v, load_head(data, x1 + whole, left), u1)
                    u2 = fma(v, load_head(data, x2 + whole, left), u2)
                    u3 = fma(v, load_head(data, x3 + whole, left), u3)
                scratch[sums + j] = sum_lanes(u0)
                scratch[sums + j + 1] = sum_lanes(u1)
                scratch[sums + j + 2] = sum_lanes(u2)
                scratch[sums + j + 3] = sum_lanes(u3)
        finish_rows(scratch, sums, 0, 1, 0, index[place + 2] + first, n, g.end, data, const)
