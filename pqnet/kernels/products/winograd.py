"""3 x 3 convolutions of stride 1 by Winograd's F(2 x 2, 3 x 3): 16 products for 4 outputs instead of 36.

    Y = A' [ (G g G') * (B' d B) ] A

summed over channels between the brackets, for every 4 x 4 patch d, 2 apart, of the input; the 16 numbers of the
transformed patches make 16 matrix products. What makes it right for codes: a spatial codeword of 9 m numbers is m
whole filters, so the codebook is transformed once, when the model is loaded, and decoding reads transformed weights.
Codewords of channels are transformed after decoding, d channels at a time.
"""

import numpy as np
from numba import njit

from pqnet.kernels.abi import FLAG, SCRATCH, SIZE, Arguments, step
from pqnet.kernels.ops.activation import activate_row
from pqnet.kernels.ops.functions import at_least, at_most
from pqnet.kernels.products.epilogue import EPILOGUE, WINDOWS, clamp_limits
from pqnet.kernels.products.gemm import WEIGHT, even_part
from pqnet.kernels.products.tile import LANES, ROWS, multiply_1, multiply_2, multiply_3
from pqnet.kernels.simd import (
    WIDTH,
    add,
    copy16,
    fma,
    load,
    load_even,
    load_head,
    multiply,
    splat,
    store,
    store_head,
    subtract,
    sum_lanes,
    zip_first,
    zip_second,
)

SINGLE_PATCHES = WIDTH // 8  # patches that are computed one by one


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _transform_input(x, channel, image, pitch, high, across, p, n, c_first, c_last, data, target, row, plane):
    # IN data: channel c of image b at x + c * channel + b * image, rows of ``pitch``; patches p .. p + n in the order
    # image, ``high``, ``across``. OUT target: number xi of patch p + j, channel c at row + xi * plane + c * LANES + j
    b = p // (high * across)
    y = (p - b * high * across) // across
    column = p - (b * high + y) * across
    start = x + b * image + 2 * y * pitch + 2 * column
    next_row, next_image = 2 * (pitch - across), image - 2 * high * pitch
    for c in range(c_first, c_last):
        lane, left, ty, patch = 0, across - column, y, start + c * channel
        while lane < n:
            count = min(left, n - lane)
            for j in range(0, count, WIDTH):
                at = patch + 2 * j
                to = row + (c - c_first) * LANES + lane + j
                # B' d down each column of the patch, then along the rows.
                d0, d1 = load_even(data, at), load_even(data, at + pitch)
                d2, d3 = load_even(data, at + 2 * pitch), load_even(data, at + 3 * pitch)
                e0, f0, g0, h0 = subtract(d0, d2), add(d1, d2), subtract(d2, d1), subtract(d1, d3)
                d0, d1 = load_even(data, at + 1), load_even(data, at + pitch + 1)
                d2, d3 = load_even(data, at + 2 * pitch + 1), load_even(data, at + 3 * pitch + 1)
                e1, f1, g1, h1 = subtract(d0, d2), add(d1, d2), subtract(d2, d1), subtract(d1, d3)
                d0, d1 = load_even(data, at + 2), load_even(data, at + pitch + 2)
                d2, d3 = load_even(data, at + 2 * pitch + 2), load_even(data, at + 3 * pitch + 2)
                e2, f2, g2, h2 = subtract(d0, d2), add(d1, d2), subtract(d2, d1), subtract(d1, d3)
                d0, d1 = load_even(data, at + 3), load_even(data, at + pitch + 3)
                d2, d3 = load_even(data, at + 2 * pitch + 3), load_even(data, at + 3 * pitch + 3)
                e3, f3, g3, h3 = subtract(d0, d2), add(d1, d2), subtract(d2, d1), subtract(d1, d3)
                # Whole vectors: what runs over the end of a row of patches is overwritten by the next.
                store(target, to, subtract(e0, e2))
                store(target, to + plane, add(e1, e2))
                store(target, to + 2 * plane, subtract(e2, e1))
                store(target, to + 3 * plane, subtract(e1, e3))
                store(target, to + 4 * plane, subtract(f0, f2))
                store(target, to + 5 * plane, add(f1, f2))
                store(target, to + 6 * plane, subtract(f2, f1))
                store(target, to + 7 * plane, subtract(f1, f3))
                store(target, to + 8 * plane, subtract(g0, g2))
                store(target, to + 9 * plane, add(g1, g2))
                store(target, to + 10 * plane, subtract(g2, g1))
                store(target, to + 11 * plane, subtract(g1, g3))
                store(target, to + 12 * plane, subtract(h0, h2))
                store(target, to + 13 * plane, add(h1, h2))
                store(target, to + 14 * plane, subtract(h2, h1))
                store(target, to + 15 * plane, subtract(h1, h3))
            lane += count
            patch += 2 * count + next_row
            left = across
            ty += 1
            if ty == high:
                ty = 0
                patch += next_image


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _decode_spatial(codes, first, n, wide, const, book, step, target, to):
    # Codewords of step / 16 transformed filters each, one after the other
    for m in range(n):
        code = np.int64(codes[first + m])
        if wide:
            code = np.int64(codes[first + 2 * m]) | np.int64(codes[first + 2 * m + 1]) << 8
        word = book + code * step
        for j in range(0, step, 16):
            copy16(const, word + j, target, to + j)
        to += step


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _codeword(codes, k, wide, const, book, step):
    # WIDTH numbers from ``book`` on, of the codeword whose number is codes[k], or of two bytes
    code = np.int64(codes[k]) | (np.int64(codes[k + 1]) << 8 if wide else 0)
    return load(const, book + code * step)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _middle(a, b, c):
    # The middle two rows of G (a, b, c)
    half = splat(np.float32(0.5))
    s, t = multiply(half, add(a, c)), multiply(half, b)
    return add(s, t), subtract(s, t)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _store_transformed(a, b, c, target, at, plane):
    # G (a, b, c), numbers plane apart
    one, two = _middle(a, b, c)
    store(target, at, a)
    store(target, at + plane, one)
    store(target, at + 2 * plane, two)
    store(target, at + 3 * plane, c)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _decode_channel(codes, first, tap, n, wide, const, book, step, d, target, to, plane):
    # Nine codewords of d channels, codes ``tap`` bytes apart, make 16 x d transformed weights, numbers plane apart
    size = 2 if wide else 1
    for m in range(n):
        for c in range(0, d, WIDTH):
            k, words = first + m * size, book + c
            g00 = _codeword(codes, k, wide, const, words, step)
            g01 = _codeword(codes, k + tap, wide, const, words, step)
            g02 = _codeword(codes, k + 2 * tap, wide, const, words, step)
            g10 = _codeword(codes, k + 3 * tap, wide, const, words, step)
            g11 = _codeword(codes, k + 4 * tap, wide, const, words, step)
            g12 = _codeword(codes, k + 5 * tap, wide, const, words, step)
            g20 = _codeword(codes, k + 6 * tap, wide, const, words, step)
            g21 = _codeword(codes, k + 7 * tap, wide, const, words, step)
            g22 = _codeword(codes, k + 8 * tap, wide, const, words, step)
            # G g down the columns, then along the rows
            p10, p20 = _middle(g00, g10, g20)
            p11, p21 = _middle(g01, g11, g21)
            p12, p22 = _middle(g02, g12, g22)
            at = to + m * d + c
            _store_transformed(g00, g01, g02, target, at, plane)
            _store_transformed(p10, p11, p12, target, at + 4 * plane, plane)
            _store_transformed(p20, p21, p22, target, at + 8 * plane, plane)
            _store_transformed(g20, g21, g22, target, at + 12 * plane, plane)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _put(v, scale, shift, low, high, data, at, beside, left):
    # OUT data from ``at``: up to ``left`` results of sums v, with those from ``beside`` on added if there are any
    v = fma(v, scale, shift)
    if beside >= 0:
        v = add(v, load(data, beside) if left >= WIDTH else load_head(data, beside, left))
    v = at_most(at_least(v, low), high)
    if left >= WIDTH:
        store(data, at, v)
    else:
        store_head(data, at, v, left)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _finish(sums, s, rows, o, p, n, height, width, high, across, e, data, const):
    # A' m A of patches p .. p + n for ``rows`` outputs: number xi of row r at s + (xi * ROWS + r) * LANES
    image, plane, kind, residual = height * width, ROWS * LANES, e.activation, e.residual
    first_image = p // (high * across)
    first_row = (p - first_image * high * across) // across
    first_column = p - (first_image * high + first_row) * across
    least, most = clamp_limits(e, const)
    low, top = splat(least), splat(most)
    for r in range(rows):
        lane, b, ty, tx = 0, first_image, first_row, first_column
        scale = splat(const[e.scale + o + r] if e.scale >= 0 else np.float32(1))
        shift = splat(const[e.shift + o + r] if e.shift >= 0 else np.float32(0))
        out, beside = e.out + (o + r) * e.out_step, residual + (o + r) * e.residual_step
        while lane < n:
            count = min(across - tx, n - lane)
            pixels, two = min(2 * count, width - 2 * tx), 2 * ty + 1 < height
            place = b * image + 2 * ty * width + 2 * tx
            for j in range(0, count, WIDTH):
                at = s + r * LANES + lane + j
                m0, m1 = load(sums, at), load(sums, at + 4 * plane)
                m2, m3 = load(sums, at + 8 * plane), load(sums, at + 12 * plane)
                u0, v0 = add(add(m0, m1), m2), subtract(subtract(m1, m2), m3)
                m0, m1 = load(sums, at + 1 * plane), load(sums, at + 5 * plane)
                m2, m3 = load(sums, at + 9 * plane), load(sums, at + 13 * plane)
                u1, v1 = add(add(m0, m1), m2), subtract(subtract(m1, m2), m3)
                m0, m1 = load(sums, at + 2 * plane), load(sums, at + 6 * plane)
                m2, m3 = load(sums, at + 10 * plane), load(sums, at + 14 * plane)
                u2, v2 = add(add(m0, m1), m2), subtract(subtract(m1, m2), m3)
                m0, m1 = load(sums, at + 3 * plane), load(sums, at + 7 * plane)
                m2, m3 = load(sums, at + 11 * plane), load(sums, at + 15 * plane)
                u3, v3 = add(add(m0, m1), m2), subtract(subtract(m1, m2), m3)
                to, near, left = out + place + 2 * j, beside + place + 2 * j if residual >= 0 else -1, pixels - 2 * j
                behind = near + WIDTH if near >= 0 else -1
                even, odd = add(add(u0, u1), u2), subtract(subtract(u1, u2), u3)
                _put(zip_first(even, odd), scale, shift, low, top, data, to, near, left)
                if left > WIDTH:
                    _put(zip_second(even, odd), scale, shift, low, top, data, to + WIDTH, behind, left - WIDTH)
                if two:
                    to += width
                    if near >= 0:
                        near, behind = near + width, behind + width
                    even, odd = add(add(v0, v1), v2), subtract(subtract(v1, v2), v3)
                    _put(zip_first(even, odd), scale, shift, low, top, data, to, near, left)
                    if left > WIDTH:
                        _put(zip_second(even, odd), scale, shift, low, top, data, to + WIDTH, behind, left - WIDTH)
            if kind > 2:
                activate_row(kind, data, out + place, pixels, const, e.parameters)
                if two:
                    activate_row(kind, data, out + place + width, pixels, const, e.parameters)
            lane += count
            tx = 0
            ty += 1
            if ty == high:
                ty = 0
                b += 1


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _one_patch(a, a0, row_step, number, k_step, x, x0, plane, k, rows, spare, sums, s, more):
    # One patch, whose transformed inputs are x[x0 + xi * plane + c * LANES]: sums[s + (xi * ROWS + r) * LANES] (+)=
    # sum_c A[r, xi, c] * input; lanes are the 16 numbers if they lie together in A, else channels. TMP sums from spare
    for xi in range(16):
        for c in range(k):
            to = c * 16 + xi if k_step == 16 else xi * k + c
            sums[spare + to] = x[x0 + xi * plane + c * LANES]
    for r in range(rows):
        row = a0 + r * row_step
        place = s + r * LANES
        if k_step == 16:
            for half in range(0, 16, WIDTH):
                total = splat(np.float32(0))
                for c in range(k):
                    total = fma(load(a, row + c * 16 + half), load(sums, spare + c * 16 + half), total)
                store(sums, spare + 16 * k + half, total)
        else:
            for xi in range(16):
                total = splat(np.float32(0))
                for c in range(0, k, WIDTH):
                    left, at = k - c, row + xi * number + c
                    if left >= WIDTH:
                        total = fma(load(a, at), load(sums, spare + xi * k + c), total)
                    else:
                        total = fma(load_head(a, at, left), load_head(sums, spare + xi * k + c, left), total)
                sums[spare + 16 * k + xi] = sum_lanes(total)
        for xi in range(16):
            at = place + xi * ROWS * LANES
            sums[at] = sums[spare + 16 * k + xi] + (sums[at] if more else np.float32(0))


# On planes padded by `prepare` to whole patches. A dense weight is transformed: [output][number][channel].
WINOGRAD = Arguments(
    layer=WINDOWS,
    end=EPILOGUE,
    weight=WEIGHT,
    channels=SIZE,
    channel_step=SIZE,  # of the input
    height=SIZE,  # of the output
    piece=SIZE,  # channels of a piece of the sum
    chunk=SIZE,  # channels of a panel
    o_block=SIZE,  # outputs a task
    o_tasks=SIZE,  # tasks along the outputs
    patches=SIZE,  # of all images
    vectors=SIZE,  # of patches, without those that are computed one by one at the end
    p_tasks=SIZE,  # tasks along the patches, of as nearly the same number of vectors as can be
    high=SIZE,  # rows of patches of an image
    across=SIZE,  # columns of patches
    channel_layout=FLAG,  # else spatial
    tiles=SIZE,  # of LANES patches a task at most
    panel=SCRATCH,
    sums=SCRATCH,
    spare=SCRATCH,  # a patch
)


@step(WINOGRAD)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def winograd(task, g, data, const, codes, index, scratch):
    layer, w = g.layer, g.weight
    x, image, pitch, channels, outputs = layer.x, layer.image_step, layer.pitch, g.channels, layer.outputs
    first_code, book, d, stride, wide, code_row = w.codes, w.weight, w.d, w.stride, w.code_bytes == 2, w.code_row
    piece, chunk, o_block, o_tasks, patches, high, across = (
        g.piece,
        g.chunk,
        g.o_block,
        g.o_tasks,
        g.patches,
        g.high,
        g.across,
    )
    channel_layout, channel, panel, sums = g.channel_layout == 1, g.channel_step, g.panel, g.sums
    tiles, spare = g.tiles, g.spare
    p_first, p_last = even_part(task // o_tasks, g.p_tasks, g.vectors, patches)
    o_first = task % o_tasks * o_block
    o_last = min(o_first + o_block, outputs)
    plane = piece * LANES + WIDTH
    size = 2 if wide else 1
    for c_first in range(0, channels, piece):
        c_last = min(c_first + piece, channels)
        for p in range(p_first, p_last, LANES):
            to = (p - p_first) // LANES * 16 * plane
            n = min(LANES, p_last - p)
            _transform_input(x, channel, image, pitch, high, across, p, n, c_first, c_last, data, scratch, to, plane)
        for o in range(o_first, o_last, ROWS):
            used = min(ROWS, o_last - o)
            s = sums + (16 * (o - o_first) * tiles * LANES if piece < channels else 0)
            for c in range(c_first, c_last, chunk):
                k = min(chunk, c_last - c)
                if first_code < 0:
                    a, a0, row_step, number, k_step = const, book + o * 16 * channels + c, 16 * channels, channels, 1
                else:
                    a, a0 = scratch, panel
                    if channel_layout:
                        row_step, number, k_step = 16 * (chunk + 16), chunk + 16, 1
                    else:
                        row_step, number, k_step = 16 * chunk + 16, 1, 16
                    for r in range(used):
                        row = first_code + (o + r) * code_row
                        to = panel + r * row_step
                        if channel_layout:
                            _decode_channel(
                                codes,
                                row + c // d * size,
                                channels // d * size,
                                k // d,
                                wide,
                                const,
                                book,
                                stride,
                                d,
                                scratch,
                                to,
                                number,
                            )
                        else:
                            _decode_spatial(
                                codes, row + c * 9 // d * size, k * 9 // d, wide, const, book, stride, scratch, to
                            )
                for p in range(p_first, p_last, LANES):
                    n, tile, more = p_last - p, (p - p_first) // LANES, np.int64(c > 0)
                    if n % WIDTH <= SINGLE_PATCHES and n < LANES:  # planes of 14 x 14 leave one patch
                        for i in range(n - n % WIDTH, n):
                            at = tile * 16 * plane + (c - c_first) * LANES + i
                            to = s + tile * 16 * ROWS * LANES + i
                            _one_patch(
                                a, a0, row_step, number, k_step, scratch, at, plane, k, used, spare, scratch, to, more
                            )
                        n -= n % WIDTH
                    for xi in range(16):
                        at = (tile * 16 + xi) * plane + (c - c_first) * LANES
                        to, a1 = s + (tile * 16 + xi) * ROWS * LANES, a0 + xi * number
                        if n > 2 * WIDTH:
                            multiply_3(a, a1, row_step, k_step, scratch, at, k, scratch, to, LANES, more)
                        elif n > WIDTH:
                            multiply_2(a, a1, row_step, k_step, scratch, at, k, scratch, to, LANES, more)
                        elif n > 0:
                            multiply_1(a, a1, row_step, k_step, scratch, at, k, scratch, to, LANES, more)
            if c_last == channels:
                for p in range(p_first, p_last, LANES):
                    to = s + (p - p_first) // LANES * 16 * ROWS * LANES
                    n = min(LANES, p_last - p)
                    _finish(scratch, to, used, o, p, n, g.height, layer.width, high, across, g.end, data, const)
