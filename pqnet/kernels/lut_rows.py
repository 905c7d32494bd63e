"""Products with packed weights for a few positions by scalar tables: a table of numbers a block, one look-up a code.

T[m, k] = block m of the position . codeword k; an output is the sum of T[m, code m]. Two steps: `fill_tables`, then
`look_up_outputs`, whose tasks share the tables. The numbers of up to four positions lie side by side and cost one load.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic

from pqnet.kernels.activation import activate_row
from pqnet.kernels.epilogue import finish_rows
from pqnet.kernels.simd import FLOATS, WIDTH, add, fma, load, maximum, minimum, splat, store, store_head

_WORD, _LONG = ir.IntType(32), ir.IntType(64)


TURN = 8  # outputs whose sums run side by side: each of them waits for its last addition


def _looker(width):
    """Return look_up(table, t, step, codes, c, wide, n, sums, s): TURN sums of ``width`` floats from s += n rows each.

    Of turn j, output o adds the row of ``width`` floats at table[t + j * step + code * width]; its code has one or two
    bytes and the place j * TURN + o from c. Gathers would do the same sixteen at a time, and no faster where the
    processor had to be mended against data sampling.
    """

    def twin(table, t, step, codes, c, wide, n, sums, s):
        for j in range(n):
            for o in range(TURN):
                at = c + (j * TURN + o) * (1 + wide)
                code = int(codes[at]) | int(codes[at + 1]) << 8 if wide else int(codes[at])
                row = t + j * step + code * width
                sums[s + o * width : s + (o + 1) * width] += table[row : row + width]

    @intrinsic
    def look_up(context, table, t, step, codes, c, wide, n, sums, s):
        kind = ir.VectorType(ir.FloatType(), width) if width > 1 else ir.FloatType()

        def codegen(context, builder, signature, values):
            def pointer(array, at):
                data = context.make_array(signature.args[array])(context, builder, values[array]).data
                return builder.gep(data, [values[at]])

            def place(base, at):
                return builder.bitcast(builder.gep(base, [at]), kind.as_pointer())

            def loaded(at):
                value = builder.load(at)
                value.align = 4
                return value

            start, first, target = pointer(0, 1), pointer(3, 4), pointer(7, 8)
            step, wide, n = values[2], values[5], values[6]
            targets = [place(target, _LONG(o * width)) for o in range(TURN)]
            totals = [cgutils.alloca_once_value(builder, loaded(at)) for at in targets]
            with builder.if_else(builder.icmp_signed("!=", wide, _LONG(0))) as branches:
                for bits, branch in zip((16, 8), branches, strict=True):
                    with branch, cgutils.for_range(builder, n) as loop:
                        at = builder.bitcast(first, ir.IntType(bits).as_pointer())
                        at = builder.gep(at, [builder.mul(loop.index, _LONG(TURN))])
                        base = builder.gep(start, [builder.mul(loop.index, step)])
                        for o, total in enumerate(totals):
                            code = builder.load(builder.gep(at, [_LONG(o)]))
                            code.align = 1
                            row = place(base, builder.mul(builder.zext(code, _LONG), _LONG(width)))
                            builder.store(builder.fadd(builder.load(total), loaded(row)), total)
            for at, total in zip(targets, totals, strict=True):
                builder.store(builder.load(total), at).align = 4
            return context.get_dummy_value()

        i = types.intp
        return types.void(table, i, i, codes, i, i, i, sums, i), codegen

    return twin if config.DISABLE_JIT else look_up


def _braider():
    """Return store_braided(array, i, a, b, c, d): a0 b0 c0 d0 a1 b1 ..., four vectors long."""

    def twin(array, i, a, b, c, d):
        array[i : i + 4 * WIDTH] = np.stack([a, b, c, d], 1).reshape(-1)

    @intrinsic
    def store_braided(context, array, i, a, b, c, d):
        def codegen(context, builder, signature, values):
            def halves(x, y):
                pairs = [lane for j in range(WIDTH) for lane in (j, WIDTH + j)]
                some = (pairs[:WIDTH], pairs[WIDTH:])
                return [builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(_WORD, WIDTH), h)) for h in some]

            target = builder.gep(context.make_array(array)(context, builder, values[0]).data, [values[1]])
            outer, inner = halves(values[2], values[4]), halves(values[3], values[5])
            braided = [v for x, y in zip(outer, inner, strict=True) for v in halves(x, y)]
            for j, v in enumerate(braided):
                at = builder.bitcast(builder.gep(target, [_LONG(j * WIDTH)]), FLOATS.llvm.as_pointer())
                builder.store(v, at).align = 4
            return context.get_dummy_value()

        return types.void(array, types.intp, FLOATS, FLOATS, FLOATS, FLOATS), codegen

    return twin if config.DISABLE_JIT else store_braided


_look_up_1, _look_up_4, _store_braided = _looker(1), _looker(4), _braider()


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def fill_tables(task, g, data, const, codes, index, scratch):
    # Fields 0-8 of a layer step. 24 distance of two positions, 25 codebook, transposed: number j of word k at
    # j * words + k, 26 d, 27 words: codewords up to a multiple of 4 * WIDTH, 28 positions, at most four, 29 blocks of a
    # group, 30 blocks a task; OUT data from 31: tables [group][block][word][position], of one position or four
    x, xg, i0, groups = g[0], g[2], g[3], g[6]
    apart, book, d, words, positions, blocks, some, tables = g[24], g[25], g[26], g[27], g[28], g[29], g[30], g[31]
    zero = splat(np.float32(0))
    for block in range(task * some, min((task + 1) * some, groups * blocks)):
        group = block // blocks
        first = i0 + (block - group * blocks) * d
        start = x + group * xg
        if positions > 1:
            # Of two or three positions the last is computed again, and dropped.
            second, third, fourth = apart, min(2, positions - 1) * apart, min(3, positions - 1) * apart
            for k in range(0, words, 2 * WIDTH):
                a0, a1, a2, a3, b0, b1, b2, b3 = zero, zero, zero, zero, zero, zero, zero, zero
                for j in range(d):
                    at = start + index[first + j]
                    word = load(const, book + j * words + k)
                    more = load(const, book + j * words + k + WIDTH)
                    v = splat(data[at])
                    a0, b0 = fma(v, word, a0), fma(v, more, b0)
                    v = splat(data[at + second])
                    a1, b1 = fma(v, word, a1), fma(v, more, b1)
                    v = splat(data[at + third])
                    a2, b2 = fma(v, word, a2), fma(v, more, b2)
                    v = splat(data[at + fourth])
                    a3, b3 = fma(v, word, a3), fma(v, more, b3)
                to = tables + 4 * (block * words + k)
                _store_braided(data, to, a0, a1, a2, a3)
                _store_braided(data, to + 4 * WIDTH, b0, b1, b2, b3)
            continue
        for k in range(0, words, 4 * WIDTH):
            a0, a1, a2, a3 = zero, zero, zero, zero
            for j in range(d):
                v = splat(data[start + index[first + j]])
                at = book + j * words + k
                a0, a1 = fma(v, load(const, at), a0), fma(v, load(const, at + WIDTH), a1)
                a2, a3 = fma(v, load(const, at + 2 * WIDTH), a2), fma(v, load(const, at + 3 * WIDTH), a3)
            to = tables + block * words + k
            store(data, to, a0)
            store(data, to + WIDTH, a1)
            store(data, to + 2 * WIDTH, a2)
            store(data, to + 3 * WIDTH, a3)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def look_up_outputs(task, g, data, const, codes, index, scratch):
    # A layer step (fields 0-22). 24 codes: [group][turn of outputs][block][output], 25 bytes a code, 26 words,
    # 27 positions, 28 blocks of a group, 29 blocks whose tables stay in the first-level cache, 30 turns a task,
    # 31 tasks along the outputs of a group, 32 data: tables
    outputs = g[5]
    first_code, size, words, positions, blocks, some = g[24], g[25], g[26], g[27], g[28], g[29]
    turns, o_tasks, tables = g[30], g[31], g[32]
    width = 1 if positions == 1 else 4
    group = task // o_tasks
    turn = (task - group * o_tasks) * turns
    n = min(turns * TURN, outputs - turn * TURN)
    c = first_code + (group * ((outputs + TURN - 1) // TURN) + turn) * blocks * TURN * size
    for i in range(0, turns * TURN * width, WIDTH):
        store(scratch, i, splat(np.float32(0)))
    for block in range(0, blocks, some):
        count = min(some, blocks - block)
        t = tables + (group * blocks + block) * words * width
        for o in range(0, n, TURN):
            code = c + (o * blocks + block * TURN) * size
            if width == 1:
                _look_up_1(data, t, words, codes, code, size - 1, count, scratch, o)
            else:
                _look_up_4(data, t, 4 * words, codes, code, size - 1, count, scratch, 4 * o)
    o = group * outputs + turn * TURN
    if width == 1:
        finish_outputs(scratch, o, n, g, data, const)
    else:
        finish_rows(scratch, 0, width, n, o, 0, positions, g, data, const)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def finish_outputs(sums, o, n, g, data, const):
    # The epilogue of a single position: sums[: n] are those of outputs o .., which may lie side by side
    if g[12] != 1 or (g[17] >= 0 and g[18] != 1):
        finish_rows(sums, 0, 1, n, o, 0, 1, g, data, const)
        return
    scale_at, shift_at, kind, parameters = g[15] + o, g[16] + o, g[21], g[22]
    low = splat(np.float32(-np.inf) if kind not in (1, 2) else const[parameters] if kind == 2 else np.float32(0))
    high = splat(const[parameters + 1] if kind == 2 else np.float32(np.inf))
    one, zero = splat(np.float32(1)), splat(np.float32(0))
    for i in range(0, n, WIDTH):
        scale = load(const, scale_at + i) if g[15] >= 0 else one
        v = fma(load(sums, i), scale, load(const, shift_at + i) if g[16] >= 0 else zero)
        if g[17] >= 0:
            v = add(v, load(data, g[17] + o + i))
        store_head(data, g[11] + o + i, minimum(maximum(v, low), high), n - i)
    if kind > 2:
        activate_row(kind, data, g[11] + o, n, const, parameters)
