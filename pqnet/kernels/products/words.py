"""Products of words, see `kernels.words`: inputs become words once, panels of the weight are decoded to words.

The loops are those of `products.gemm` with words in the place of numbers. Sums of integers are exact in each piece of
the reduction, and whole pieces are added in float32, in their order: every instruction set gives the same results.
"""

import numpy as np
from numba import njit, types

from pqnet.kernels.abi import CONST, FLAG, MAYBE_CODES, MAYBE_CONST, SIZE, Arguments, step
from pqnet.kernels.llvm import FLOAT, LONG, WORD, call, compiled_or, element, load, offset, splat
from pqnet.kernels.llvm import INDEX as POSITION
from pqnet.kernels.llvm import store as put
from pqnet.kernels.ops.activation import activate_row
from pqnet.kernels.products.epilogue import EPILOGUE, WINDOWS, finish_rows, place_of_tiles, put_factors
from pqnet.kernels.products.gemm import CUT, few_of, pack, part_of_task
from pqnet.kernels.products.prepare import PLANES
from pqnet.kernels.products.tile import (
    LANES,
    PLACE,
    ROWS,
    VECTORS,
    finish_reference,
    finish_tiles,
    put_reference,
    put_sums,
)
from pqnet.kernels.products.tokens import scale_tokens
from pqnet.kernels.simd import FLOATS, INTS, WIDTH, copy2, copy4, copy8, keep, load_even, store, store_head
from pqnet.kernels.simd import load as load_lanes
from pqnet.kernels.simd import splat as fill
from pqnet.kernels.words import (
    BFLOAT16,
    INT8,
    copy_1,
    copy_1_wide,
    copy_2,
    copy_2_wide,
    copy_4,
    copy_4_wide,
    copy_8,
    copy_8_wide,
    dots_of_words,
    dots_reference,
    interleave_2,
    interleave_4,
    look_up_2,
    look_up_4,
    words_of_bytes,
    words_of_halves,
    zero_sums,
)

# Images as in `products.prepare`, whose channels become words: groups of 4 or 2, the last one filled up by its last.
TO_WORDS = Arguments(
    planes=PLANES,
    channels=SIZE,
    per_task=SIZE,  # words of channels
    kind=FLAG,  # of words
    scaling=CONST,  # factor and zero point of integers
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _lanes_of(data, at, step, first, last):
    # A vector of columns, ``step`` apart from ``at``, in lanes first .. last, zeros elsewhere
    if step == 1:
        return keep(load_lanes(data, at), first, last)
    return keep(load_even(data, at), first, last)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _column(data, at, step, left, scratch, first, last):
    # `_lanes_of` for steps of more than 2, through scratch
    for j in range(WIDTH):
        scratch[j] = data[at + j * step] if first <= j < min(last, left) else np.float32(0)
    return load_lanes(scratch, 0)


@step(TO_WORDS)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def to_words(task, g, data, const, codes, index, scratch):
    planes = g.planes
    rows, columns, phases, sy, sx, left = (
        planes.rows,
        planes.columns,
        planes.phases,
        planes.stride_y,
        planes.stride_x,
        planes.left,
    )
    numbers = 2 if g.kind == BFLOAT16 else 4
    factor, offset_ = fill(const[g.scaling]), fill(const[g.scaling + 1])
    zero = fill(np.float32(0))
    size = planes.batch * phases * rows * columns
    words = (g.channels + numbers - 1) // numbers
    for c in range(task * g.per_task, min((task + 1) * g.per_task, words)):
        to = planes.out + c * size
        end = to + size
        # Where the channels of a word begin, seen from the first.
        most = g.channels - 1 - c * numbers
        c1, c2, c3 = (
            min(1, most) * planes.channel_step,
            min(2, most) * planes.channel_step,
            min(3, most) * planes.channel_step,
        )
        for b in range(planes.batch):
            for phase in range(phases):
                py, px = index[planes.table + 2 * phase], index[planes.table + 2 * phase + 1]
                low, high = -((py - planes.top) // sy), (planes.height - 1 - (py - planes.top)) // sy + 1
                first = max(-((px - left) // sx), 0)
                last = min((planes.width - 1 - (px - left)) // sx + 1, columns)
                start = (
                    planes.x
                    + c * numbers * planes.channel_step
                    + b * planes.image_step
                    + (py - planes.top) * planes.row_step
                    + px
                    - left
                )
                for i in range(rows):
                    inside = low <= i < high
                    at = start + i * sy * planes.row_step
                    for j in range(0, columns, WIDTH):
                        x0, x1, x2, x3 = zero, zero, zero, zero
                        here, begin, stop = at + j * sx, first - j, last - j
                        if inside and sx <= 2 and stop > 0:
                            x0, x1 = _lanes_of(data, here, sx, begin, stop), _lanes_of(data, here + c1, sx, begin, stop)
                            if g.kind == INT8:
                                x2 = _lanes_of(data, here + c2, sx, begin, stop)
                                x3 = _lanes_of(data, here + c3, sx, begin, stop)
                        elif inside and sx > 2:
                            n = columns - j
                            x0 = _column(data, here, sx, n, scratch, begin, stop)
                            x1 = _column(data, here + c1, sx, n, scratch, begin, stop)
                            if g.kind == INT8:
                                x2 = _column(data, here + c2, sx, n, scratch, begin, stop)
                                x3 = _column(data, here + c3, sx, n, scratch, begin, stop)
                        if g.kind == INT8:
                            word = words_of_bytes(x0, x1, x2, x3, factor, offset_)
                        else:
                            word = words_of_halves(x0, x1)
                        # What runs over the end of a row is overwritten by the next.
                        if to + j + WIDTH <= end:
                            store(data, to + j, word)
                        else:
                            store_head(data, to + j, word, min(columns - j, end - to - j))
                    to += columns


# -- register tiles -----------------------------------------------------------------------------------------------


def _accumulate(builder, kind, a, row_step, x, k, vectors):
    """Emit the loop over k words of ROWS outputs from pointer a and of positions from x; return sums in float32."""
    rows = [offset(builder, a, builder.mul(row_step, LONG(r))) for r in range(ROWS)]
    of, zero = zero_sums(kind)
    before = builder.block
    body, after = builder.append_basic_block("words.k"), builder.append_basic_block("words.end")
    builder.cbranch(builder.icmp_signed(">", k, LONG(0)), body, after)
    builder.position_at_end(body)
    step = builder.phi(LONG)
    sums = [builder.phi(of) for _ in range(ROWS * vectors)]
    row = offset(builder, x, builder.mul(step, LONG(LANES)))
    loaded = [load(builder, offset(builder, row, v * WIDTH), INTS.llvm) for v in range(vectors)]
    results = []
    for r in range(ROWS):
        weight = load(builder, builder.bitcast(offset(builder, rows[r], step), WORD.as_pointer()))
        weight = splat(builder, weight, INTS.llvm)
        results += [dots_of_words(builder, kind, loaded[v], weight, sums[r * vectors + v]) for v in range(vectors)]
    following = builder.add(step, LONG(1))
    step.add_incoming(LONG(0), before)
    step.add_incoming(following, builder.block)
    for total, result in zip(sums, results, strict=True):
        total.add_incoming(zero, before)
        total.add_incoming(result, builder.block)
    inner = builder.block
    builder.cbranch(builder.icmp_signed("<", following, k), body, after)
    builder.position_at_end(after)
    totals = [builder.phi(of) for _ in sums]
    for total, result in zip(totals, results, strict=True):
        total.add_incoming(zero, before)
        total.add_incoming(result, inner)
    return [builder.sitofp(total, FLOATS.llvm) for total in totals] if kind == INT8 else totals


def _sums_reference(kind, a, a0, row_step, x, x0, k, vectors):
    total = np.zeros((ROWS, vectors * WIDTH), np.int32 if kind == INT8 else np.float32)
    for j in range(k):
        words = x[x0 + j * LANES : x0 + j * LANES + vectors * WIDTH]
        for r in range(ROWS):
            at = a0 + r * row_step + j
            total[r] += dots_reference(kind, words, a[at : at + 1])
    return total.astype(np.float32)


def _tile(kind, vectors):
    def reference(a, a0, row_step, x, x0, k, c, c0, c_step, add):
        put_reference(_sums_reference(kind, a, a0, row_step, x, x0, k, vectors), c, c0, c_step, add)

    def multiply(context, a, a0, row_step, x, x0, k, c, c0, c_step, add):
        def codegen(context, builder, signature, values):
            a, x, c = (element(context, builder, signature, values, i, values[i + 1]) for i in (0, 3, 6))
            sums = _accumulate(builder, kind, a, values[2], x, values[5], vectors)
            put_sums(builder, sums, c, values[8], values[9], vectors, ROWS)
            return context.get_dummy_value()

        n = POSITION
        return types.void(a, n, n, x, n, n, c, n, n, n), codegen

    return compiled_or(reference, multiply)


def _finished_tiles(kind):
    def reference(a, a0, row_step, x, x0, x_step, k, tiles, data, place, factors, f):
        for tile in range(tiles):
            total = _sums_reference(kind, a, a0, row_step, x, x0 + tile * x_step, k, VECTORS)
            finish_reference(total, data, tile * LANES, place, factors, f)

    def multiply(context, a, a0, row_step, x, x0, x_step, k, tiles, data, place, factors, f):
        def codegen(context, builder, signature, values):
            a, x = (element(context, builder, signature, values, i, values[i + 1]) for i in (0, 3))

            def sums_of(tile):
                from_x = offset(builder, x, builder.mul(tile, values[5]))
                return _accumulate(builder, kind, a, values[2], from_x, values[6], VECTORS)

            finish_tiles(context, builder, signature, values, values[7], 8, sums_of)
            return context.get_dummy_value()

        n, place = POSITION, types.UniTuple(POSITION, PLACE)
        return types.void(a, n, n, x, n, n, n, n, data, place, factors, n), codegen

    return compiled_or(reference, multiply)


def _few_reference(a, a0, row_step, x, x0, k, c, c0, c_step, add):
    for r in range(ROWS):
        weights = a[a0 + r * row_step : a0 + r * row_step + k].view(np.int8).astype(np.int32)
        total = np.float32((x[x0 : x0 + k].view(np.uint8) * weights).sum())
        c[c0 + r * c_step] = c[c0 + r * c_step] + total if add else total


def _few(context, a, a0, row_step, x, x0, k, c, c0, c_step, add):
    """Emit ROWS sums of bytes at one position whose words follow each other: lanes along the reduction."""

    def codegen(context, builder, signature, values):
        row_step, k, c_step, add = (values[i] for i in (2, 5, 8, 9))
        a, x, c = (element(context, builder, signature, values, i, values[i + 1]) for i in (0, 3, 6))
        before, zero = builder.block, zero_sums(INT8)[1]
        body, after = builder.append_basic_block("few.k"), builder.append_basic_block("few.end")
        builder.cbranch(builder.icmp_signed(">", k, LONG(0)), body, after)
        builder.position_at_end(body)
        at, sums = builder.phi(LONG), [builder.phi(INTS.llvm) for _ in range(ROWS)]
        loaded = load(builder, offset(builder, x, at), INTS.llvm)
        rows = [builder.add(builder.mul(row_step, LONG(r)), at) for r in range(ROWS)]
        weights = [load(builder, offset(builder, a, row), INTS.llvm) for row in rows]
        results = [dots_of_words(builder, INT8, loaded, w, total) for w, total in zip(weights, sums, strict=True)]
        started = [(at, LONG(0), builder.add(at, LONG(WIDTH)))]
        started += [(total, zero, result) for total, result in zip(sums, results, strict=True)]
        for phi, first_value, next_value in started:
            phi.add_incoming(first_value, before)
            phi.add_incoming(next_value, builder.block)
        inner = builder.block
        builder.cbranch(builder.icmp_signed("<", started[0][2], k), body, after)
        builder.position_at_end(after)
        for r, result in enumerate(results):
            total = builder.phi(INTS.llvm)
            total.add_incoming(zero, before)
            total.add_incoming(result, inner)
            results[r] = total
        for r, result in enumerate(results):
            whole = call(builder, f"llvm.vector.reduce.add.v{WIDTH}i32", WORD, result)
            to = offset(builder, c, builder.mul(c_step, LONG(r)))
            there = builder.select(builder.icmp_signed("!=", add, LONG(0)), load(builder, to), FLOAT(0.0))
            put(builder, builder.fadd(there, builder.sitofp(whole, FLOAT)), to)
        return context.get_dummy_value()

    n = POSITION
    return types.void(a, n, n, x, n, n, c, n, n, n), codegen


# c[c0 + r * c_step] (+)= sum_k A[r, k] * x[x0 + k]; x is 0 behind its end, up to a whole vector.
few_bytes = compiled_or(_few_reference, _few)

# As those of `products.tile`, of words.
bytes_1, bytes_2, bytes_3 = (_tile(INT8, vectors) for vectors in (1, 2, 3))
halves_1, halves_2, halves_3 = (_tile(BFLOAT16, vectors) for vectors in (1, 2, 3))
bytes_and_finish, halves_and_finish = _finished_tiles(INT8), _finished_tiles(BFLOAT16)


# -- the product --------------------------------------------------------------------------------------------------

COPIED, INTERLEAVED, LOOKED_UP, DENSE = 0, 1, 2, 3  # how codes become words

# The words of a codeword, ``stride`` apart at const[weight:], are words of the panel; or the elements of 4 (or 2)
# codewords that follow each other, each of all taps of a channel, are mixed: element j of them makes word j. Or a code
# stands for a number, and those of the channels of a word, ``words`` taps apart, make it. A dense weight has its words
# at const[weight:].
WORD_WEIGHT = Arguments(
    form=FLAG,
    codes=MAYBE_CODES,
    weight=CONST,
    stride=SIZE,  # words from codeword to codeword
    words=SIZE,  # of the panel that a codeword, or a group of them, gives
    blocks=SIZE,  # codes of an output
    code_bytes=SIZE,
    spare=SIZE,  # the codeword of zeros that fills the last group up
    channels=SIZE,
    channel_step=SIZE,  # from the code of a channel to that of the next, and from tap to tap
    tap_step=SIZE,
    kind=FLAG,
)

# Of inputs with a scale for each token, behind whose words these lie (`products.tokens`), the sums of the weights.
WORD_GEMM = Arguments(layer=WINDOWS, end=EPILOGUE, weight=WORD_WEIGHT, cut=CUT, token_sums=MAYBE_CONST)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _code(codes, at, m, wide):
    if wide:
        return np.int64(codes[at + 2 * m]) | np.int64(codes[at + 2 * m + 1]) << 8
    return np.int64(codes[at + m])


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _copy_groups(wide, words, codes, at, groups, const, book, target, to):
    # OUT target from ``to``: codewords of at most 8 words for groups of 8 codes, or of 4 of two bytes
    if wide:
        if words == 1:
            copy_1_wide(codes, at, groups, const, book, target, to)
        elif words == 2:
            copy_2_wide(codes, at, groups, const, book, target, to)
        elif words == 4:
            copy_4_wide(codes, at, groups, const, book, target, to)
        elif words == 8:
            copy_8_wide(codes, at, groups, const, book, target, to)
    elif words == 1:
        copy_1(codes, at, groups, const, book, target, to)
    elif words == 2:
        copy_2(codes, at, groups, const, book, target, to)
    elif words == 4:
        copy_4(codes, at, groups, const, book, target, to)
    elif words == 8:
        copy_8(codes, at, groups, const, book, target, to)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def decode_words(w, codes, row, first, n, const, target, to):
    # OUT target from ``to``: words first .. first + n of an output; up to 16 more behind
    wide, at, book, stride, words = (
        w.code_bytes == 2,
        w.codes + row * w.blocks * w.code_bytes,
        w.weight,
        w.stride,
        w.words,
    )
    if w.form == COPIED:
        start, last = first // words, (first + n) // words
        groups = (last - start) // (4 if wide else 8) if words <= 8 else 0
        _copy_groups(wide, words, codes, at + start * w.code_bytes, groups, const, book, target, to)
        done = groups * (4 if wide else 8)
        to += done * words
        for m in range(start + done, last):
            place = book + _code(codes, at, m, wide) * stride
            if words == 2:
                copy2(const, place, target, to)
            elif words == 4:
                copy4(const, place, target, to)
            elif words == 1:
                target[to] = const[place]
            else:
                for j in range(0, words, 8):
                    copy8(const, place + j, target, to + j)
            to += words
        return
    numbers = 2 if w.kind == BFLOAT16 else 4
    if w.form == LOOKED_UP:
        for i in range(first, first + n):  # word i: channels from c on at tap i % words
            c = i // words * numbers
            m, step, left, spare = (
                c * w.channel_step + i % words * w.tap_step,
                w.channel_step,
                w.channels - c,
                book + w.spare,
            )
            p0 = book + _code(codes, at, m, wide)
            p1 = book + _code(codes, at, m + step, wide) if left > 1 else spare
            if w.kind == BFLOAT16:
                look_up_2(const, (p0, p1), target, to)
            else:
                p2 = book + _code(codes, at, m + 2 * step, wide) if left > 2 else spare
                p3 = book + _code(codes, at, m + 3 * step, wide) if left > 3 else spare
                look_up_4(const, (p0, p1, p2, p3), target, to)
            to += 1
        return
    for m in range(first // words * numbers, (first + n) // words * numbers, numbers):
        last, spare = w.blocks, book + w.spare * stride
        p0 = book + _code(codes, at, m, wide) * stride
        p1 = book + _code(codes, at, m + 1, wide) * stride if m + 1 < last else spare
        if w.kind == BFLOAT16:
            interleave_2(const, (p0, p1), target, to)
        else:
            p2 = book + _code(codes, at, m + 2, wide) * stride if m + 2 < last else spare
            p3 = book + _code(codes, at, m + 3, wide) * stride if m + 3 < last else spare
            interleave_4(const, (p0, p1, p2, p3), target, to)
        to += words


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=True)
def _multiply(kind, a, a0, a_step, scratch, x0, k, s, wide, add):
    # OUT scratch from s: sums of ``wide`` positions
    if kind == INT8:
        if wide > 2 * WIDTH:
            bytes_3(a, a0, a_step, scratch, x0, k, scratch, s, LANES, add)
        elif wide > WIDTH:
            bytes_2(a, a0, a_step, scratch, x0, k, scratch, s, LANES, add)
        else:
            bytes_1(a, a0, a_step, scratch, x0, k, scratch, s, LANES, add)
    elif wide > 2 * WIDTH:
        halves_3(a, a0, a_step, scratch, x0, k, scratch, s, LANES, add)
    elif wide > WIDTH:
        halves_2(a, a0, a_step, scratch, x0, k, scratch, s, LANES, add)
    else:
        halves_1(a, a0, a_step, scratch, x0, k, scratch, s, LANES, add)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=True)
def _finish(kind, a, a0, a_step, k, scratch, x_step, tiles, row, at, f, e, data, const):
    # OUT data: the results of ROWS outputs from ``row`` on at so many tiles of positions from ``at`` on, as an
    # EPILOGUE e says; scratch from f is used
    place = place_of_tiles(e, row, at)
    put_factors(e, row, const, scratch, f)
    if kind == INT8:
        bytes_and_finish(a, a0, a_step, scratch, 0, x_step, k, tiles, data, place, scratch, f)
    else:
        halves_and_finish(a, a0, a_step, scratch, 0, x_step, k, tiles, data, place, scratch, f)
    if e.activation > 2:
        for r in range(ROWS):
            activate_row(e.activation, data, place[0] + r * e.out_step, tiles * LANES, const, e.parameters)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _few_columns(kind, cut, n, rows, tile_step, scratch):
    # OUT scratch: the words of the last positions one behind another, of those that dot products compute; how many
    few, last = few_of(n) if kind == INT8 else 0, (n - 1) // LANES
    for c in range(few):
        at, to = last * tile_step + n - few - last * LANES + c, cut.column + c * (cut.piece + 16)
        for i in range(rows):
            scratch[to + i] = scratch[at + i * LANES]
        store(scratch, to + rows, fill(np.float32(0)))
    return few


@step(WORD_GEMM)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def word_gemm(task, g, data, const, codes, index, scratch):
    w, cut, layer, k, outputs, piece = g.weight, g.cut, g.layer, g.layer.reduction, g.layer.outputs, g.cut.piece
    group, first, last, p, p_last = part_of_task(task, cut, outputs)
    one_scale, scales = g.token_sums < 0, layer.x + k * layer.image
    x, n, tile_step = layer.x + group * layer.group_step, p_last - p, (piece + 1) * LANES
    for k_first in range(0, max(k, 1), piece):
        rows = min(piece, k - k_first)
        i0 = layer.offsets + k_first
        pack(
            x,
            layer.image_step,
            layer.image,
            layer.pitch,
            layer.width,
            p,
            n,
            rows,
            i0,
            index,
            data,
            scratch,
            0,
            tile_step,
        )
        few = _few_columns(w.kind, cut, n, rows, tile_step, scratch)
        for o in range(first, last, ROWS):
            row, used = group * outputs + o, min(ROWS, last - o)
            if w.form == DENSE:
                a, a0, a_step = const, w.weight + row * k + k_first, k
            else:
                a, a0, a_step = scratch, cut.panel, piece + 16
                for r in range(used):  # the other rows are computed from what is there and dropped
                    decode_words(w, codes, row + r, k_first, rows, const, scratch, cut.panel + r * a_step)
            whole = n // LANES if rows == k and used == ROWS and one_scale else 0
            if whole > 0:
                _finish(w.kind, a, a0, a_step, rows, scratch, tile_step, whole, row, p, cut.sums, g.end, data, const)
            for t in range(whole, (n + LANES - 1) // LANES):
                tile, at, x0 = min(LANES, n - t * LANES), p + t * LANES, t * tile_step
                wide = tile - few if (t + 1) * LANES >= n else tile
                s = cut.sums + ((o - first if k > piece else 0) * cut.tiles + t * ROWS) * LANES
                add = np.int64(k_first > 0)
                if wide > 0:
                    _multiply(w.kind, a, a0, a_step, scratch, x0, rows, s, wide, add)
                for c in range(wide, tile):
                    column = cut.column + (c - wide) * (piece + 16)
                    few_bytes(a, a0, a_step, scratch, column, rows, scratch, s + c, LANES, add)
                if k_first + piece >= k:
                    if not one_scale:
                        scale_tokens(scratch, s, used, tile, data, scales + at, layer.image, const, g.token_sums + row)
                    finish_rows(scratch, s, LANES, used, row, at, tile, g.end, data, const)
