"""Products with packed or dense weights: a panel of the weight is decoded, then used by the register tile.

Loops, from the outside: pieces of the reduction; packing of the task's positions; panels of ROWS outputs, decoded once
each; register tiles. The packed positions stay in the second-level cache, a decoded panel in the first: the decoded
weight never exists as a whole. Each sum runs over the pieces in their order, whatever the tasks are.
"""

import numpy as np
from numba import njit

from pqnet.kernels.epilogue import finish_row
from pqnet.kernels.simd import WIDTH, copy4, copy8, copy16, fma, load, load_head, splat, store, store_head, sum_lanes
from pqnet.kernels.tile import LANES, ROWS, multiply_1, multiply_2, multiply_3


@njit(cache=True, nogil=True, error_model="numpy")
def pack(x, image_step, image, pitch, width, p, n, rows, i0, index, data, target, t):
    # IN data: X[k, position] at x + image * image_step + y * pitch + column + index[i0 + k]; positions count the
    # image * ... pixels of all images, ``image`` of them each in rows of ``width``
    # OUT target from t: rows x LANES, row k holds positions p .. p + n
    lane = 0
    while lane < n:
        b = (p + lane) // image
        rest = (p + lane) - b * image
        y = rest // width
        column = rest - y * width
        count = min(n - lane, width - column)
        start = x + b * image_step + y * pitch + column
        if count == LANES:
            for k in range(rows):
                at, to = start + index[i0 + k], t + k * LANES
                store(target, to, load(data, at))
                store(target, to + WIDTH, load(data, at + WIDTH))
                store(target, to + 2 * WIDTH, load(data, at + 2 * WIDTH))
        else:
            for j in range(0, count, WIDTH):
                for k in range(rows):
                    value = load(data, start + index[i0 + k] + j)
                    store_head(target, t + k * LANES + lane + j, value, count - j)
        lane += count


@njit(cache=True, nogil=True, error_model="numpy")
def decode_panel(codes, first, step, outputs, n, wide, const, book, stride, d, target, t, row_step):
    # IN codes: rows ``step`` bytes apart from byte ``first``, n codes each; const from book: codewords, stride apart
    # OUT target from t: ``outputs`` rows of n * d numbers, up to stride more behind each
    for r in range(outputs):
        to = t + r * row_step
        c = first + r * step
        for m in range(n):
            code = np.int64(codes[c + m])
            if wide:
                code = np.int64(codes[c + 2 * m]) | np.int64(codes[c + 2 * m + 1]) << 8
            word = book + code * stride
            if stride == 8:
                copy8(const, word, target, to)
            elif stride == 4:
                copy4(const, word, target, to)
            else:
                for j in range(0, d, 16):
                    copy16(const, word + j, target, to + j)
            to += d


@njit(cache=True, nogil=True, error_model="numpy")
def _dots(a, a0, row_step, x, x0, k, sums, s, step, fresh):
    # One position: sums[s + r * step] (+)= sum_k A[r, k] * x[x0 + k], lanes along k
    for r in range(ROWS):
        row = a0 + r * row_step
        u = splat(np.float32(0))
        v = u
        whole = k // (2 * WIDTH) * (2 * WIDTH)
        for j in range(0, whole, 2 * WIDTH):
            u = fma(load(a, row + j), load(x, x0 + j), u)
            v = fma(load(a, row + j + WIDTH), load(x, x0 + j + WIDTH), v)
        for j in range(whole, k, WIDTH):
            u = fma(load_head(a, row + j, k - j), load_head(x, x0 + j, k - j), u)
        total = sum_lanes(u) + sum_lanes(v)
        sums[s + r * step] = total if fresh else sums[s + r * step] + total


@njit(cache=True, nogil=True, error_model="numpy")
def gemm(task, g, data, const, codes, index, scratch):
    # A layer step (fields 0-22). 24 codes offset or -1: dense weight; 25 codebook or dense weight, 26 d, 27 codeword
    # stride, 28 bytes a code, 29 bytes a row of codes, 30 length of a piece of the reduction (a multiple of d),
    # 31 outputs a task (a multiple of ROWS), 32 tiles a task, 33 tasks along the outputs of a group, 34 positions in
    # all, 35 tasks along the positions, 36 scratch: panel, 37 scratch: sums, 38 scratch: column
    x, xb, xg, i0, k, outputs, batch = g[0], g[1], g[2], g[3], g[4], g[5], g[7]
    pitch, width, image = g[9], g[10], g[13]
    first_code, weight, d, stride, code_bytes, code_row = g[24], g[25], g[26], g[27], g[28], g[29]
    piece, o_block, tiles, o_tasks, positions, q_tasks = g[30], g[31], g[32], g[33], g[34], g[35]
    panel, sums, column = g[36], g[37], g[38]
    group = task // (o_tasks * q_tasks)
    rest = task - group * o_tasks * q_tasks
    o_first = rest % o_tasks * o_block
    o_last = min(o_first + o_block, outputs)
    p_first = rest // o_tasks * tiles * LANES
    p_last = min(p_first + tiles * LANES, positions)
    n_tiles = (p_last - p_first + LANES - 1) // LANES
    x += group * xg
    row_step = piece + 16
    for k_first in range(0, max(k, 1), piece):
        rows = min(piece, k - k_first)
        last_piece = k_first + piece >= k
        for t in range(n_tiles):
            p = p_first + t * LANES
            pack(x, xb, image, pitch, width, p, min(LANES, p_last - p), rows, i0 + k_first, index, data, scratch,
                 t * piece * LANES)
        single = (p_last - p_first) % LANES == 1
        if single:
            for j in range(rows):
                scratch[column + j] = scratch[(n_tiles - 1) * piece * LANES + j * LANES]
        for o in range(o_first, o_last, ROWS):
            if first_code >= 0:
                c = first_code + (group * outputs + o) * code_row + k_first // d * code_bytes
                used = min(ROWS, outputs - o)  # the other rows of the tile are computed from what is there and dropped
                decode_panel(codes, c, code_row, used, rows // d, code_bytes == 2, const, weight, stride, d, scratch,
                             panel, row_step)
                a, a0, a_step = scratch, panel, row_step
            else:
                a, a0, a_step = const, weight + (group * outputs + o) * k + k_first, k
            for t in range(n_tiles):
                p = p_first + t * LANES
                n = min(LANES, p_last - p)
                s = sums + ((o - o_first if k > piece else 0) * tiles + t * ROWS) * LANES
                x0 = t * piece * LANES
                add = np.int64(k_first > 0)
                if n == 1 and single:
                    _dots(a, a0, a_step, scratch, column, rows, scratch, s, LANES, k_first == 0)
                elif n <= WIDTH:
                    multiply_1(a, a0, a_step, 1, scratch, x0, rows, scratch, s, LANES, add)
                elif n <= 2 * WIDTH:
                    multiply_2(a, a0, a_step, 1, scratch, x0, rows, scratch, s, LANES, add)
                else:
                    multiply_3(a, a0, a_step, 1, scratch, x0, rows, scratch, s, LANES, add)
                if last_piece:
                    for r in range(min(ROWS, o_last - o)):
                        finish_row(scratch, s + r * LANES, group * outputs + o + r, p, n, g, data, const)
