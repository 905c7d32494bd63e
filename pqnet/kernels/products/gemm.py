"""Products with packed or dense weights: a panel of the weight is decoded, then used by the register tile.

Loops, from the outside: pieces of the reduction; packing of the task's positions; panels of ROWS outputs, decoded once
each; register tiles. The packed positions stay in the second-level cache, a decoded panel in the first: the decoded
weight never exists as a whole. Each sum runs over the pieces in their order, whatever the tasks are.
"""

import numpy as np
from numba import njit

from pqnet.kernels.abi import CONST, FLAG, INDEX, MAYBE_CODES, SCRATCH, SIZE, Arguments, step
from pqnet.kernels.ops.activation import activate_row
from pqnet.kernels.products.ahead import AHEAD, AHEAD_SIZES, NOTHING, finish_ahead, multiply_ahead
from pqnet.kernels.products.decode import decode_panel
from pqnet.kernels.products.epilogue import (
    EPILOGUE,
    WINDOWS,
    finish_column,
    finish_rows,
    place_of_tiles,
    put_factors,
)
from pqnet.kernels.products.tile import (
    LANES,
    ROWS,
    multiply_and_finish,
    multiply_listed_1,
    multiply_listed_2,
    multiply_listed_3,
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
    sums_of_8,
)
from pqnet.kernels.simd import add as add_lanes

ROWS_AHEAD = 4
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
            ahead = start + index[i0 + k + ROWS_AHEAD] - at
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


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=True)
def _dots_of_one(a, a0, row_step, x, x0, k):
    # The sums of eight rows at one position, in the first lanes of a vector
    zero, last, half = splat(np.float32(0)), k - k % WIDTH, a0 + 4 * row_step
    u0, u1, u2, u3, v0, v1, v2, v3 = zero, zero, zero, zero, zero, zero, zero, zero
    for j in range(0, last, WIDTH):
        u, row, below = load(x, x0 + j), a0 + j, half + j
        u0, u1 = fma(load(a, row), u, u0), fma(load(a, row + row_step), u, u1)
        u2, u3 = fma(load(a, row + 2 * row_step), u, u2), fma(load(a, row + 3 * row_step), u, u3)
        v0, v1 = fma(load(a, below), u, v0), fma(load(a, below + row_step), u, v1)
        v2, v3 = fma(load(a, below + 2 * row_step), u, v2), fma(load(a, below + 3 * row_step), u, v3)
    if last < k:
        n, row, below = k - last, a0 + last, half + last
        u = load_head(x, x0 + last, n)
        u0, u1 = fma(load_head(a, row, n), u, u0), fma(load_head(a, row + row_step, n), u, u1)
        u2 = fma(load_head(a, row + 2 * row_step, n), u, u2)
        u3 = fma(load_head(a, row + 3 * row_step, n), u, u3)
        v0, v1 = fma(load_head(a, below, n), u, v0), fma(load_head(a, below + row_step, n), u, v1)
        v2 = fma(load_head(a, below + 2 * row_step, n), u, v2)
        v3 = fma(load_head(a, below + 3 * row_step, n), u, v3)
    return sums_of_8(u0, u1, u2, u3, v0, v1, v2, v3)


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
    rows=INDEX,  # where the rows of a packed tile begin in it
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


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=True)
def _multiply_few(end, few, a, a0, a_step, scratch, x0, x_step, k, s, add, ends, used, row, at, data, const):
    # The sums of a few positions from ``at`` on, x_step apart from x0, wait in scratch from s, LANES apart, or are
    # finished if the reduction ends
    if few == 1 and ROWS == 8:
        v = _dots_of_one(a, a0, a_step, scratch, x0, k)
        if add:
            v = add_lanes(v, load(scratch, s))
        if ends:
            finish_column(v, scratch, s, used, row, at, end, data, const)
        else:
            store(scratch, s, v)
        return
    _dots(a, a0, a_step, scratch, x0, x_step, few, k, scratch, s, LANES, add)
    if ends:
        for c in range(few):
            to = s + c * LANES
            finish_column(load(scratch, to), scratch, to, used, row, at + c, end, data, const)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _multiply_tile(a, a0, a_step, x, x0, index, places, k, scratch, s, wide, add):
    # OUT scratch from s: sums of ``wide`` positions; ``add``: to what is there
    if wide > 2 * WIDTH:
        multiply_listed_3(a, a0, a_step, x, x0, index, places, k, scratch, s, LANES, add)
    elif wide > WIDTH:
        multiply_listed_2(a, a0, a_step, x, x0, index, places, k, scratch, s, LANES, add)
    else:
        multiply_listed_1(a, a0, a_step, x, x0, index, places, k, scratch, s, LANES, add)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=True)
def _finish_tiles(
    end, tiles, a, a0, a_step, x, x0, x_step, index, places, k, row, at, data, const, codes, scratch, f, ahead
):
    # OUT data: the results of ROWS outputs from ``row`` on at so many whole tiles of positions from ``at`` on; scratch
    # from f is used, and gets the panel that ``ahead`` tells of, unless it is `NOTHING`
    put_factors(end, row, const, scratch, f)
    place, left = place_of_tiles(end, row, at), tiles
    out, out_step = place[0], place[1]
    if ahead[0] > 0:
        finish_ahead(a, a0, a_step, x, x0, index, places, k, data, place, scratch, f, codes, const, ahead)
        place, left, x0 = place_of_tiles(end, row, at + LANES), tiles - 1, x0 + x_step
    multiply_and_finish(a, a0, a_step, x, x0, x_step, index, places, k, left, data, place, scratch, f)
    if end.activation > 2:
        for r in range(ROWS):
            activate_row(end.activation, data, out + r * out_step, tiles * LANES, const, end.parameters)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=True)
def multiply_panel(
    layer,
    end,
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
    codes,
    index,
    scratch,
    ahead,
):
    # IN a: weights of ROWS outputs from o on, a_step apart from a0; scratch: as `pack_task` leaves it. The task has the
    # outputs first .. last; sums of reductions in several pieces wait in scratch, those of the last one are finished
    # OUT scratch: the panel that ``ahead`` tells of, unless it is `NOTHING`; there has to be a whole tile then
    piece, tiles, column = cut.piece, cut.tiles, cut.column
    k, row, add, few = layer.reduction, group * layer.outputs + o, np.int64(k_first > 0), few_of(n)
    if cut.straight:
        x, x0, x_step, places = data, layer.x + group * layer.group_step + p, LANES, layer.offsets + k_first
    else:
        x, x0, x_step, places = scratch, 0, (piece + 1) * LANES, cut.rows
    whole = n // LANES if rows == k and last - o >= ROWS else 0
    if whole > 0:
        f = cut.sums
        _finish_tiles(
            end, whole, a, a0, a_step, x, x0, x_step, index, places, k, row, p, data, const, codes, scratch, f, ahead
        )
    for t in range(whole, (n + LANES - 1) // LANES):
        tile, at, from_x = min(LANES, n - t * LANES), p + t * LANES, x0 + t * x_step
        s = cut.sums + ((o - first if k > piece else 0) * tiles + t * ROWS) * LANES
        wide, used, ends = tile, min(ROWS, last - o), k_first + piece >= k
        if few and (t + 1) * LANES >= n:
            wide -= few
            _multiply_few(
                end,
                few,
                a,
                a0,
                a_step,
                scratch,
                column,
                piece + 16,
                rows,
                s + 2 * WIDTH,
                add,
                ends,
                used,
                row,
                at + wide,
                data,
                const,
            )
        if t == 0 and ahead[0] > 0:
            multiply_ahead(a, a0, a_step, x, from_x, index, places, rows, scratch, s, LANES, add, codes, const, ahead)
        elif wide > 0:
            _multiply_tile(a, a0, a_step, x, from_x, index, places, rows, scratch, s, wide, add)
        if ends and wide > 0:
            finish_rows(scratch, s, LANES, used, row, at, wide, end, data, const)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=True)
def _next_panel(w, cut, a0, n, o, last, outputs, row, k_first):
    # What the tiles of the panel at a0 decode beside: the next one, into the room of the one before
    if w.code_bytes != 1 or w.d not in AHEAD_SIZES:
        return NOTHING
    if not AHEAD or w.codes < 0 or n < LANES or o + ROWS >= last or o + 2 * ROWS > outputs:
        return NOTHING
    first = w.codes + (row + ROWS) * w.code_row + k_first // w.d
    return w.d, first, w.code_row, w.weight, 2 * cut.panel + ROWS * (cut.piece + 16) - a0


@step(GEMM)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def gemm(task, g, data, const, codes, index, scratch):
    w, cut, k, outputs, piece = g.weight, g.cut, g.layer.reduction, g.layer.outputs, g.cut.piece
    group, first, last, p, p_last = part_of_task(task, cut, outputs)
    n = p_last - p
    for k_first in range(0, max(k, 1), piece):
        rows = min(piece, k - k_first)
        pack_task(g.layer, cut, group, p, n, k_first, rows, index, data, scratch)
        ahead = NOTHING
        for o in range(first, last, ROWS):
            row = group * outputs + o
            a, a0, a_step = scratch, cut.panel, piece + 16
            if w.codes < 0:
                a, a0, a_step = const, w.weight + row * k + k_first, k
            elif ahead[0] > 0:
                a0 = ahead[4]
            else:
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
            ahead = _next_panel(w, cut, a0, n, o, last, outputs, row, k_first)
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
                codes,
                index,
                scratch,
                ahead,
            )
