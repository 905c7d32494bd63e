"""Products with packed weights for a few positions by scalar tables: a table of numbers a block, one look-up a code.

T[m, k] = block m of the position . codeword k; an output is the sum of T[m, code m]. Two steps: `fill_tables`, then
`look_up_outputs`, whose tasks share the tables. The numbers of up to four positions lie side by side and cost one load.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from pqnet.kernels.abi import CODES, CONST, DATA, SIZE, Arguments, step
from pqnet.kernels.llvm import BYTE, FLOAT, HALF, INDEX, LONG, compiled_or, element, offset, shuffle
from pqnet.kernels.llvm import load as emit_load
from pqnet.kernels.llvm import store as emit_store
from pqnet.kernels.ops.activation import activate_row
from pqnet.kernels.products.epilogue import EPILOGUE, WINDOWS, clamp_limits, finish_rows
from pqnet.kernels.simd import FLOATS, WIDTH, add, fma, load, maximum, minimum, splat, store, store_head

TURN = 8  # outputs whose sums run side by side: each of them waits for its last addition


def _look_up(width):
    # Gathers would do the same sixteen at a time, and no faster on processors whose firmware slows them down against
    # the leak of data known as Downfall.
    def reference(table, t, step, codes, c, wide, n, sums, s):
        for j in range(n):
            for o in range(TURN):
                at = c + (j * TURN + o) * (1 + wide)
                code = int(codes[at]) | int(codes[at + 1]) << 8 if wide else int(codes[at])
                row = t + j * step + code * width
                sums[s + o * width : s + (o + 1) * width] += table[row : row + width]

    def look_up(context, table, t, step, codes, c, wide, n, sums, s):
        kind = ir.VectorType(FLOAT, width) if width > 1 else FLOAT

        def codegen(context, builder, signature, values):
            start, first, target = (element(context, builder, signature, values, i, values[i + 1]) for i in (0, 3, 7))
            step, wide, n = values[2], values[5], values[6]
            targets = [offset(builder, target, o * width) for o in range(TURN)]
            totals = [cgutils.alloca_once_value(builder, emit_load(builder, at, kind)) for at in targets]
            with builder.if_else(builder.icmp_signed("!=", wide, LONG(0))) as branches:
                for code_kind, branch in zip((HALF, BYTE), branches, strict=True):
                    with branch, cgutils.for_range(builder, n) as loop:
                        at = builder.bitcast(first, code_kind.as_pointer())
                        at = offset(builder, at, builder.mul(loop.index, LONG(TURN)))
                        base = offset(builder, start, builder.mul(loop.index, step))
                        for o, total in enumerate(totals):
                            code = builder.zext(emit_load(builder, offset(builder, at, o), align=1), LONG)
                            row = offset(builder, base, builder.mul(code, LONG(width)))
                            builder.store(builder.fadd(builder.load(total), emit_load(builder, row, kind)), total)
            for at, total in zip(targets, totals, strict=True):
                emit_store(builder, builder.load(total), at)
            return context.get_dummy_value()

        i = INDEX
        return types.void(table, i, i, codes, i, i, i, sums, i), codegen

    return compiled_or(reference, look_up)


def _store_braided_reference(array, i, a, b, c, d):
    array[i : i + 4 * WIDTH] = np.stack([a, b, c, d], 1).reshape(-1)


def _emit_store_braided(context, array, i, a, b, c, d):
    def codegen(context, builder, signature, values):
        def halves(x, y):
            pairs = [lane for j in range(WIDTH) for lane in (j, WIDTH + j)]
            return [shuffle(builder, x, y, lanes) for lanes in (pairs[:WIDTH], pairs[WIDTH:])]

        target = element(context, builder, signature, values, 0, values[1])
        outer, inner = halves(values[2], values[4]), halves(values[3], values[5])
        braided = [v for x, y in zip(outer, inner, strict=True) for v in halves(x, y)]
        for j, v in enumerate(braided):
            emit_store(builder, v, offset(builder, target, j * WIDTH))
        return context.get_dummy_value()

    return types.void(array, INDEX, FLOATS, FLOATS, FLOATS, FLOATS), codegen


# (table, t, step, codes, c, wide, n, sums, s): TURN sums of 1 or 4 floats from s += n rows each. Of turn j, output o
# adds the row of so many floats at table[t + j * step + code * floats]; its code, of two bytes if ``wide``, is number
# j * TURN + o from c.
_look_up_1, _look_up_4 = _look_up(1), _look_up(4)
# (array, i, a, b, c, d): a0 b0 c0 d0 a1 b1 ..., four vectors long, at array[i:]
_store_braided = compiled_or(_store_braided_reference, _emit_store_braided)


# The positions of a layer, ``image`` of one image and at most four, lie side by side.
FILL_TABLES = Arguments(
    layer=WINDOWS,  # offsets in the order of the blocks
    codebook=CONST,  # number j of word k at j * words + k
    d=SIZE,
    words=SIZE,  # codewords, up to a multiple of 4 * WIDTH
    blocks=SIZE,  # of a group
    per_task=SIZE,  # blocks
    tables=DATA,  # OUT [group][block][word][position], of one position or four
)


@step(FILL_TABLES)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def fill_tables(task, g, data, const, codes, index, scratch):
    layer, book, d, words, blocks, some, tables = g.layer, g.codebook, g.d, g.words, g.blocks, g.per_task, g.tables
    positions = layer.image
    zero = splat(np.float32(0))
    for block in range(task * some, min((task + 1) * some, layer.groups * blocks)):
        group = block // blocks
        first = layer.offsets + (block - group * blocks) * d
        start = layer.x + group * layer.group_step
        if positions > 1:
            # Of two or three positions the last is computed again, and dropped.
            third, fourth = min(2, positions - 1), min(3, positions - 1)
            for k in range(0, words, 2 * WIDTH):
                a0, a1, a2, a3, b0, b1, b2, b3 = zero, zero, zero, zero, zero, zero, zero, zero
                for j in range(d):
                    at = start + index[first + j]
                    word = load(const, book + j * words + k)
                    more = load(const, book + j * words + k + WIDTH)
                    v = splat(data[at])
                    a0, b0 = fma(v, word, a0), fma(v, more, b0)
                    v = splat(data[at + 1])
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


LOOK_UP_OUTPUTS = Arguments(
    layer=WINDOWS,
    end=EPILOGUE,
    codes=CODES,  # [group][turn of outputs][block][output]
    code_bytes=SIZE,
    words=SIZE,  # rows of a table
    blocks=SIZE,  # of a group
    near=SIZE,  # blocks whose tables stay in the first-level cache
    turns=SIZE,  # a task
    o_tasks=SIZE,  # tasks along the outputs of a group
    tables=DATA,  # of `fill_tables`
)


@step(LOOK_UP_OUTPUTS)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def look_up_outputs(task, g, data, const, codes, index, scratch):
    outputs, positions = g.layer.outputs, g.layer.image
    size, words, blocks, near, turns, o_tasks = g.code_bytes, g.words, g.blocks, g.near, g.turns, g.o_tasks
    width = 1 if positions == 1 else 4
    group = task // o_tasks
    turn = (task - group * o_tasks) * turns
    n = min(turns * TURN, outputs - turn * TURN)
    c = g.codes + (group * ((outputs + TURN - 1) // TURN) + turn) * blocks * TURN * size
    for i in range(0, turns * TURN * width, WIDTH):
        store(scratch, i, splat(np.float32(0)))
    for block in range(0, blocks, near):
        count = min(near, blocks - block)
        t = g.tables + (group * blocks + block) * words * width
        for o in range(0, n, TURN):
            code = c + (o * blocks + block * TURN) * size
            if width == 1:
                _look_up_1(data, t, words, codes, code, size - 1, count, scratch, o)
            else:
                _look_up_4(data, t, 4 * words, codes, code, size - 1, count, scratch, 4 * o)
    o = group * outputs + turn * TURN
    if width == 1:
        finish_outputs(scratch, o, n, g.end, data, const)
    else:
        finish_rows(scratch, 0, width, n, o, 0, positions, g.end, data, const)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def finish_outputs(sums, o, n, e, data, const):
    # The epilogue (e: an EPILOGUE) of one position: sums[: n] are those of outputs o .., which may lie side by side
    kind, parameters, residual = e.activation, e.parameters, e.residual
    if e.out_step != 1 or (residual >= 0 and e.residual_step != 1):
        finish_rows(sums, 0, 1, n, o, 0, 1, e, data, const)
        return
    least, most = clamp_limits(e, const)
    low, high = splat(least), splat(most)
    one, zero = splat(np.float32(1)), splat(np.float32(0))
    for i in range(0, n, WIDTH):
        scale = load(const, e.scale + o + i) if e.scale >= 0 else one
        v = fma(load(sums, i), scale, load(const, e.shift + o + i) if e.shift >= 0 else zero)
        if residual >= 0:
            v = add(v, load(data, residual + o + i))
        store_head(data, e.out + o + i, minimum(maximum(v, low), high), n - i)
    if kind > 2:
        activate_row(kind, data, e.out + o, n, const, parameters)
