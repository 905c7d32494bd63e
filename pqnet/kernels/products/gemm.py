"""Products with packed or dense weights: a panel of the weight is decoded, then used by the register tile.

Loops, from the outside: pieces of the reduction; packing of the task's positions; panels of ROWS outputs, decoded once
each; register tiles. The packed positions stay in the second-level cache, a decoded panel in the first: the decoded
weight never exists as a whole. Each sum runs over the pieces in their order, whatever the tasks are.
"""

import numpy as np
from numba import njit

from pqnet.kernels.abi import CONST, FLAG, MAYBE_CODES, SCRATCH, SIZE, Arguments, step
from pqnet.kernels.ops.activation import activate_row
from pqnet.kernels.products.decode import decode_panel
from pqnet.kernels.products.epilogue import (
    EPILOGUE,
    WINDOWS,
    clamp_limits,
    finish_column,
    finish_rows,
    place_of_tiles,
    put_factors,
)
from pqnet.kernels.products.tile import (
    LANES,
    ROWS,
    multiply_1,
    multiply_2,
    multiply_3,
    multiply_and_finish,
    multiply_listed_1,
    multiply_listed_2,
    multiply_listed_3,
    multiply_listed_and_finish,
)
from pqnet.kernels.simd import (
    WIDTH,
    fma,
    load,
    load_head,
    prefetch,
    splat,
    store,
    store_sums,
)

AHEAD = 4
DOT_POSITIONS = WIDTH // 3  # positions that dot products compute faster than a vector


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def pack(x, image_step, image, pitch, width, p, n, rows, i0, index, data, target, t, tile_step):
    # IN data: X[k, position] at x + image * image_step + y * pitch + column + index[i0 + k]; positions count the
    # pixels of all images, ``image`` of them each in rows of ``width``
    # OUT target from t: tiles of rows x LANES, tile_step apart, with positions p .. p + n; up to WIDTH more behind
    # Row after row through all tiles: the source is read in long runs, which the cache fetches ahead.
    b = p // image
    y = (p - b * image) // width
    column = p - b * image - y * width
    start = x + b * image_step + y * pitch + column
    if width - column >= n:
        for k in range(rows):
            at, to = start + index[i0 + k], t + k * LANES
            ahead = start + index[i0 + k + AHEAD] - at
            for _ in range(0, n, LANES):
                prefetch(data, at + ahead)
                prefetch(data, at + ahead + 16)
                prefetch(data, at + ahead + 32)
                store(target, to, load(data, at))
                store(target, to + WIDTH, load(data, at + WIDTH))
                store(target, to + 2 * WIDTH, load(data, at + 2 * WIDTH))
                at += LANES
                to += tile_step
        return
    height = image // width
    next_row, next_image = pitch - width, image_step - height * pitch
    for k in range(rows):
        at, row, left = start + index[i0 + k], y, width - column
        for first in range(0, n, LANES):
            # Whole vectors: what runs over the end of a row of pixels is overwritten by the next.
            to = t + first // LANES * tile_step + k * LANES
            end = to + min(LANES, n - first)
            while to < end:
                count = min(left, end - to)
                for j in range(0, count, WIDTH):
                    store(target, to + j, load(data, at + j))
                to += count
                at += count
                left -= count
                if left == 0:
                    left = width
                    at += next_row
                    row += 1
                    if row == height:
                        row = 0
                        at += next_image


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _dots(a, a0, row_step, x, x0, column_step, columns, k, sums, s, step, more):
    # A few positions: sums[s + c * step + r] (+)= sum_k A[r, k] * x[x0 + c * column_step + k], lanes along k
    zero, whole = splat(np.float32(0)), k - k % WIDTH
    for r in range(0, ROWS, 4):
        row = a0 + r * row_step
        row1, row2, row3 = row + row_step, row + 2 * row_step, row + 3 * row_step
        for c in range(0, columns, 2):
            at, beside = x0 + c * column_step, x0 + min(c + 1, columns - 1) * column_step
            u0, u1, u2, u3, v0, v1, v2, v3 = zero, zero, zero, zero, zero, zero, zero, zero
            for j in range(0, whole, WIDTH):
                u, v = load(x, at + j), load(x, beside + j)
                w0, w1, w2, w3 = load(a, row + j), load(a, row1 + j), load(a, row2 + j), load(a, row3 + j)
                u0, u1, u2, u3 = fma(w0, u, u0), fma(w1, u, u1), fma(w2, u, u2), fma(w3, u, u3)
                if c + 1 < columns:
                    v0, v1, v2, v3 = fma(w0, v, v0), fma(w1, v, v1), fma(w2, v, v2), fma(w3, v, v3)
            if whole < k:
                left, j = k - whole, whole
                u, v = load_head(x, at + j, left), load_head(x, beside + j, left)
                w0, w1 = load_head(a, row + j, left), load_head(a, row1 + j, left)
                w2, w3 = load_head(a, row2 + j, left), load_head(a, row3 + j, left)
                u0, u1, u2, u3 = fma(w0, u, u0), fma(w1, u, u1), fma(w2, u, u2), fma(w3, u, u3)
                v0, v1, v2, v3 = fma(w0, v, v0), fma(w1, v, v1), fma(w2, v, v2), fma(w3, v, v3)
            store_sums(u0, u1, u2, u3, sums, s + c * step + r, more)
            if c + 1 < columns:
                store_sums(v0, v1, v2, v3, sums, s + (c + 1) * step + r, more)


# A weight is dense (const[weight:], a row of ``reduction`` numbers for each output), or its codes are at codes[codes:]
# and const[weight:] has the codewords.
WEIGHT = Arguments(
    codes=MAYBE_CODES,
    weight=CONST,
    d=SIZE,
    stride=SIZE,  # of codewords; 1: they are one number each, in planes
    code_bytes=SIZE,
    code_row=SIZE,  # bytes of the codes of an output
)

# How the work is cut into tasks, and where each thread's scratch holds what.
CUT = Arguments(
    piece=SIZE,  # of the reduction, a multiple of d
    o_block=SIZE,  # outputs a task, a multiple of ROWS
    tiles=SIZE,  # of LANES positions a task at most
    o_tasks=SIZE,  # tasks along the outputs of a group
    positions=SIZE,  # of all images
    vectors=SIZE,  # of positions, without those of `few_of`
    q_tasks=SIZE,  # tasks along the positions, of as nearly the same number of vectors as can be
    o_turn=SIZE,  # how many tasks with the same outputs follow each other
    q_turn=SIZE,  # how many with the same positions
    panel=SCRATCH,  # the decoded weight: rows ``piece`` + 16 apart
    sums=SCRATCH,
    column=SCRATCH,  # positions that dot products compute
    straight=FLAG,  # positions are not packed: all of a row of X follow each other, and few outputs need them
)

GEMM = Arguments(layer=WINDOWS, end=EPILOGUE, weight=WEIGHT, cut=CUT)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def even_part(i, tasks, vectors, total):
    # The first and the last of ``total`` positions that part i of ``tasks`` has: as nearly the same number of vectors
    # as can be; the last part also has the positions behind all vectors
    last = (i + 1) * vectors // tasks * WIDTH
    return i * vectors // tasks * WIDTH, last if i + 1 < tasks else total


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def part_of_task(task, cut, outputs):
    # Returns the group of a task, its outputs o .. o_last within the group and its positions p .. p_last
    group = task // (cut.o_tasks * cut.q_tasks)
    o = task // cut.o_turn % cut.o_tasks * cut.o_block
    p, p_last = even_part(task // cut.q_turn % cut.q_tasks, cut.q_tasks, cut.vectors, cut.positions)
    return group, o, min(o + cut.o_block, outputs), p, p_last


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def few_of(n):
    # Of n positions, those at the end that cost less as dot products than as a vector: planes of 7 x 7 leave one
    few = n % WIDTH
    return few if few <= DOT_POSITIONS else 0


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def pack_task(layer, cut, group, p, n, k_first, rows, index, data, scratch):
    # OUT scratch: positions p .. p + n of elements k_first .. k_first + rows in tiles; those of `few_of` in rows, too
    # or only the latter
    piece, column, i0 = cut.piece, cut.column, layer.offsets + k_first
    x = layer.x + group * layer.group_step
    step = (piece + 1) * LANES
    if cut.straight:
        few = few_of(n)
        for c in range(few):
            for i in range(rows):
                scratch[column + c * (piece + 16) + i] = data[x + p + n - few + c + index[i0 + i]]
        return
    pack(x, layer.image_step, layer.image, layer.pitch, layer.width, p, n, rows, i0, index, data, scratch, 0, step)
    few, last = few_of(n), (n - 1) // LANES
    for c in range(few):
        at = last * step + n - few - last * LANES + c
        for i in range(rows):
            scratch[column + c * (piece + 16) + i] = scratch[at + i * LANES]


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _multiply_tile(straight, a, a0, a_step, data, x, index, i0, k, scratch, x0, s, wide, add):
    # OUT scratch from s: sums of ``wide`` positions, which lie in data from x on if ``straight``, else packed in
    # scratch from x0 on; ``add``: to what is there
    if straight and wide > 2 * WIDTH:
        multiply_listed_3(a, a0, a_step, data, x, index, i0, k, scratch, s, LANES, add)
    elif straight and wide > WIDTH:
        multiply_listed_2(a, a0, a_step, data, x, index, i0, k, scratch, s, LANES, add)
    elif straight:
        multiply_listed_1(a, a0, a_step, data, x, index, i0, k, scratch, s, LANES, add)
    elif wide > 2 * WIDTH:
        multiply_3(a, a0, a_step, 1, scratch, x0, k, scratch, s, LANES, add)
    elif wide > WIDTH:
        multiply_2(a, a0, a_step, 1, scratch, x0, k, scratch, s, LANES, add)
    else:
        multiply_1(a, a0, a_step, 1, scratch, x0, k, scratch, s, LANES, add)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def multiply_panel(
    layer, end, cut, a, a0, a_step, group, o, first, last, p, n, k_first, rows, data, const, index, scratch
):
    # IN a: weights of ROWS outputs from o on, a_step apart from a0; scratch: as `pack_task` leaves it. The task has the
    # outputs first .. last; sums of reductions in several pieces wait in scratch, those of the last one are finished
    piece, tiles, column = cut.piece, cut.tiles, cut.column
    k, outputs = layer.reduction, layer.outputs
    few, add, x = few_of(n), np.int64(k_first > 0), layer.x + group * layer.group_step + p
    first_row, x_step, i0 = group * outputs + o, (piece + 1) * LANES, layer.offsets + k_first
    whole = n // LANES if rows == k and last - o >= ROWS else 0
    if whole > 0:
        place, limits, factors = place_of_tiles(end, first_row, p), clamp_limits(end, const), cut.sums
        put_factors(end, first_row, const, scratch, factors)
        if cut.straight:
            multiply_listed_and_finish(
                a, a0, a_step, data, x, LANES, index, i0, rows, whole, data, place, scratch, factors, limits
            )
        else:
            multiply_and_finish(
                a, a0, a_step, scratch, 0, x_step, index, i0, rows, whole, data, place, scratch, factors, limits
            )
        if end.activation > 2:
            for r in range(ROWS):
                to = place[0] + r * end.out_step
                activate_row(end.activation, data, to, whole * LANES, const, end.parameters)
    for t in range(whole, (n + LANES - 1) // LANES):
        tile, at = min(LANES, n - t * LANES), p + t * LANES
        s = cut.sums + ((o - first if k > piece else 0) * tiles + t * ROWS) * LANES
        x0, from_data = t * x_step, x + t * LANES
        wide = tile
        if few and (t + 1) * LANES >= n:
            wide -= few
            _dots(a, a0, a_step, scratch, column, piece + 16, few, rows, scratch, s + 2 * WIDTH, LANES, add)
        if wide > 0:
            _multiply_tile(cut.straight, a, a0, a_step, data, from_data, index, i0, rows, scratch, x0, s, wide, add)
        if k_first + piece >= k:
            used = min(ROWS, last - o)
            if wide > 0:
                finish_rows(scratch, s, LANES, used, first_row, at, wide, end, data, const)
            for c in range(tile - wide):
                sums = s + 2 * WIDTH + c * LANES
                finish_column(scratch, sums, used, first_row, at + wide + c, end, data, const)


@step(GEMM)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def gemm(task, g, data, const, codes, index, scratch):
    w, cut, k, outputs, piece = g.weight, g.cut, g.layer.reduction, g.layer.outputs, g.cut.piece
    group, first, last, p, p_last = part_of_task(task, cut, outputs)
    for k_first in range(0, max(k, 1), piece):
        rows = min(piece, k - k_first)
        pack_task(g.layer, cut, group, p, p_last - p, k_first, rows, index, data, scratch)
        for o in range(first, last, ROWS):
            row = group * outputs + o
            if w.codes >= 0:
                decode_panel(
                    codes,
                    w.codes + row * w.code_row + k_first // w.d * w.code_bytes,
                    w.code_row,
                    min(ROWS, outputs - o),  # the other rows are computed from what is there and dropped
                    rows // w.d,
                    w.code_bytes == 2,
                    const,
                    w.weight,
                    w.stride,
                    w.d,
                    scratch,
                    cut.panel,
                    piece + 16,
                )
                a, a0, a_step = scratch, cut.panel, piece + 16
            else:
                a, a0, a_step = const, w.weight + row * k + k_first, k
            n = p_last - p
            multiply_panel(
                g.layer,
                g.end,
                cut,
                a,
                a0,
                a_step,
                group,
                o,
                first,
                last,
                p,
                n,
                k_first,
                rows,
                data,
                const,
                index,
                scratch,
            )
