"""Pointwise convolutions with packed weights by vector tables, for codes of one byte.

As in `kernels.products.lut`, every codeword is multiplied with a tile of positions once, and every output adds the rows
of its codes. Here a window is one pixel, a tile one vector, and the numbers of a codeword and of the codes that an
output adds in a pass are known when LLVM compiles: a look-up is a shift, a mask and an addition.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types

from pqnet.kernels.abi import CODES, CONST, SCRATCH, SIZE, Arguments, step
from pqnet.kernels.llvm import (
    BYTE,
    FLOAT,
    LONG,
    compiled_or,
    element,
    fma,
    load,
    loop,
    new_function,
    offset,
    splat,
    store,
)
from pqnet.kernels.llvm import INDEX as POSITION
from pqnet.kernels.products.epilogue import EPILOGUE, WINDOWS, finish_rows, finish_vectors
from pqnet.kernels.simd import WIDTH
from pqnet.kernels.simd import load as load_vector
from pqnet.kernels.simd import splat as splat_vector
from pqnet.kernels.simd import store as store_vector

MOST_D, MOST_IN_PASS = 8, 8  # numbers of a codeword, blocks of a pass: the codes of an output are read as one word
WORDS_AT_ONCE, OUTPUTS_AT_ONCE = 4, 4  # rows of a table and outputs are padded to multiples of these
HALF = WIDTH // 2  # lanes of a tile that has no more positions

LUT_POINTWISE = Arguments(
    layer=WINDOWS,  # of one pixel, all positions side by side
    end=EPILOGUE,
    codes=CODES,  # [group][pass][output][block of the pass]
    codebook=CONST,  # (words, d)
    d=SIZE,
    words=SIZE,
    blocks=SIZE,
    in_pass=SIZE,
    outputs=SIZE,  # of a group, padded
    positions=SIZE,
    tiles=SIZE,
    o_block=SIZE,  # outputs a task
    o_tasks=SIZE,
    inputs=SCRATCH,  # (d, WIDTH)
    tables=SCRATCH,  # (in_pass, words, lanes)
    sums=SCRATCH,  # (o_block, lanes)
)


def _call_one(builder, number, most, wide, make, arguments):
    """Call the function ``make(n, lanes)`` for the n of 1 .. ``most`` that a number is, of WIDTH lanes if ``wide``."""
    done = builder.append_basic_block("done")
    choice = builder.switch(number, done)
    for n in range(1, most + 1):
        case = builder.append_basic_block(f"case{n}")
        choice.add_case(LONG(n), case)
        builder.position_at_end(case)
        with builder.if_else(builder.icmp_signed("!=", wide, LONG(0))) as (full, part):
            for branch, lanes in ((full, WIDTH), (part, HALF)):
                with branch:
                    builder.call(make(builder.module, n, lanes), arguments)
        builder.branch(done)
    builder.position_at_end(done)


def _fill_function(module, d, lanes):
    """Return the LLVM function of `_fill_table`."""
    name = f"pqnet_lut_pointwise_fill_{d}x{lanes}"
    if name in module.globals:
        return module.globals[name]
    floats, kind = FLOAT.as_pointer(), ir.VectorType(FLOAT, lanes)
    function, builder = new_function(module, name, [floats, LONG, floats, floats])
    book, words, x, table = function.args
    inputs = [load(builder, offset(builder, x, WIDTH * i), kind) for i in range(d)]
    turn, close = loop(builder, builder.sdiv(words, LONG(WORDS_AT_ONCE)), "words")
    word = offset(builder, book, builder.mul(turn, LONG(d * WORDS_AT_ONCE)))
    row = offset(builder, table, builder.mul(turn, LONG(lanes * WORDS_AT_ONCE)))
    for k in range(WORDS_AT_ONCE):
        numbers = [splat(builder, load(builder, offset(builder, word, k * d + i)), kind) for i in range(d)]
        total = builder.fmul(numbers[0], inputs[0])
        for number, values in zip(numbers[1:], inputs[1:], strict=True):
            total = fma(builder, number, values, total)
        store(builder, total, offset(builder, row, lanes * k))
    close()
    builder.ret_void()
    return function


def _fill_reference(d, wide, book, w, words, x, x0, table, t):
    lanes = WIDTH if wide else HALF
    rows = book[w : w + words * d].reshape(words, d) @ x[x0 : x0 + WIDTH * d].reshape(d, WIDTH)[:, :lanes]
    table[t : t + words * lanes] = rows.reshape(-1)


def _fill(context, d, wide, book, w, words, x, x0, table, t):
    def codegen(context, builder, signature, values):
        places = ((2, values[3]), (5, values[6]), (7, values[8]))
        book, x, table = (element(context, builder, signature, values, i, at) for i, at in places)
        _call_one(builder, values[0], MOST_D, values[1], _fill_function, [book, values[4], x, table])
        return context.get_dummy_value()

    n = POSITION
    return types.void(n, n, book, n, n, x, n, table, n), codegen


def _add_function(module, count, lanes):
    """Return the LLVM function of `_add_rows`."""
    name = f"pqnet_lut_pointwise_add_{count}x{lanes}"
    if name in module.globals:
        return module.globals[name]
    floats, bytes_, kind = FLOAT.as_pointer(), BYTE.as_pointer(), ir.VectorType(FLOAT, lanes)
    function, builder = new_function(module, name, [floats, LONG, bytes_, LONG, floats])
    table, step, codes, outputs, sums = function.args
    tables = [builder.bitcast(offset(builder, table, builder.mul(step, LONG(j))), bytes_) for j in range(count)]
    turn, close = loop(builder, builder.sdiv(outputs, LONG(OUTPUTS_AT_ONCE)), "outputs")
    code = offset(builder, codes, builder.mul(turn, LONG(count * OUTPUTS_AT_ONCE)))
    row = offset(builder, sums, builder.mul(turn, LONG(lanes * OUTPUTS_AT_ONCE)))
    shift = (4 * lanes).bit_length() - 1  # of a code to the offset of its row in bytes
    for o in range(OUTPUTS_AT_ONCE):
        place = offset(builder, row, lanes * o)
        total = load(builder, place, kind)
        word = load(builder, offset(builder, code, o * count), LONG, align=1)
        for j in range(count):
            right = 8 * j - shift
            moved = builder.lshr(word, LONG(right)) if right >= 0 else builder.shl(word, LONG(-right))
            entry = builder.gep(tables[j], [builder.and_(moved, LONG(255 << shift))])
            total = builder.fadd(total, load(builder, entry, kind))
        store(builder, total, place)
    close()
    builder.ret_void()
    return function


def _add_reference(count, wide, table, t, step, codes, c, outputs, sums, s):
    lanes = WIDTH if wide else HALF
    rows = sums[s : s + outputs * lanes].reshape(outputs, lanes)
    for j in range(count):
        words = table[t + j * step : t + (j + 1) * step].reshape(-1, lanes)
        rows += words[codes[c + j : c + outputs * count : count]]


def _add(context, count, wide, table, t, step, codes, c, outputs, sums, s):
    def codegen(context, builder, signature, values):
        places = ((2, values[3]), (5, values[6]), (8, values[9]))
        table, codes, sums = (element(context, builder, signature, values, i, at) for i, at in places)
        arguments = [table, values[4], codes, values[7], sums]
        _call_one(builder, values[0], MOST_IN_PASS, values[1], _add_function, arguments)
        return context.get_dummy_value()

    n = POSITION
    return types.void(n, n, table, n, n, codes, n, n, sums, n), codegen


# (d, wide, book, w, words, x, x0, table, t): row k of the table is codeword k . x, of WIDTH lanes or of HALF
_fill_table = compiled_or(_fill_reference, _fill)
# (count, wide, table, t, step, codes, c, outputs, sums, s): the sums of each output += a row of each of ``count``
# tables, ``step`` apart, by its codes from c on
_add_rows = compiled_or(_add_reference, _add)


@step(LUT_POINTWISE)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def lut_pointwise(task, g, data, const, codes, index, scratch):
    layer, d, words = g.layer, g.d, g.words
    tile = task % g.tiles
    o = task // g.tiles % g.o_tasks * g.o_block
    group = task // (g.tiles * g.o_tasks)
    count, p = min(g.o_block, g.outputs - o), tile * WIDTH
    n = min(WIDTH, g.positions - p)
    wide = np.int64(n > HALF)
    lanes = WIDTH if wide else HALF
    x, code = layer.x + group * layer.group_step + p, g.codes + group * g.blocks * g.outputs
    for j in range(0, count * lanes, WIDTH):
        store_vector(scratch, g.sums + j, splat_vector(np.float32(0)))
    for block in range(0, g.blocks, g.in_pass):
        some = min(g.in_pass, g.blocks - block)
        for i in range(some):
            first = layer.offsets + (block + i) * d
            for j in range(d):
                store_vector(scratch, g.inputs + j * WIDTH, load_vector(data, x + index[first + j]))
            table = g.tables + i * words * lanes
            _fill_table(d, wide, const, g.codebook, words, scratch, g.inputs, scratch, table)
        _add_rows(some, wide, scratch, g.tables, words * lanes, codes, code + o * some, count, scratch, g.sums)
        code += g.outputs * some
    used = min(count, layer.outputs - o)
    row = group * layer.outputs + o
    if n == WIDTH:
        finish_vectors(scratch, g.sums, used, row, p, g.end, data, const)
    else:
        finish_rows(scratch, g.sums, lanes, used, row, p, n, g.end, data, const)
