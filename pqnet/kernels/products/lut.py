"""Products with packed weights by vector tables: every codeword times a tile of positions, once for all outputs.

For a tile of positions (the lanes) and a block of d inputs, T[k] = codeword k . block is a row of vectors; every output
then adds the row of its code, one vector addition in place of d multiply-adds. In the ``channel`` layout a tap of a
convolution only shifts the lanes, so that the table of a block of channels serves all taps that lie close together.

Loads that straddle cache lines would cost as much again. So the lanes get a row pitch of their own, at best a whole
number of vectors; the codes of taps with equal shift modulo the vector are added up on aligned vectors, and their sum
is shifted in registers.
"""

from itertools import pairwise

import numpy as np
from llvmlite import ir
from numba import njit, types

from pqnet.kernels.abi import CODES, CONST, INDEX, SCRATCH, SIZE, Arguments, step
from pqnet.kernels.cpu import has
from pqnet.kernels.llvm import (
    BYTE,
    FLOAT,
    HALF,
    LONG,
    WORD,
    compiled_or,
    constant,
    element,
    new_function,
    offset,
    shuffle,
)
from pqnet.kernels.llvm import INDEX as POSITION
from pqnet.kernels.llvm import call as emit_call
from pqnet.kernels.llvm import fma as emit_fma
from pqnet.kernels.llvm import load as emit_load
from pqnet.kernels.llvm import loop as emit_loop
from pqnet.kernels.llvm import splat as emit_splat
from pqnet.kernels.llvm import store as emit_store
from pqnet.kernels.products.epilogue import EPILOGUE, WINDOWS, finish_rows, finish_vectors
from pqnet.kernels.products.tile import LANES, ROWS, multiply_1, multiply_2, multiply_3
from pqnet.kernels.simd import FLOATS, ISA, WIDTH, load, splat, store

DEEP = 8 if ISA == "avx512" else 6  # vectors of an output in registers, and as many again for a shift

CHUNK = 4 * WIDTH  # lanes of inputs that are copied together

SHORT = 8  # numbers of a codeword that `_build_1` and `_build_2` multiply
# Tables have a multiple of so many rows, codebooks as many codewords: those of a turn of `_build_1`, two of `_build_2`,
# one or two of ROWS.
WORDS_AT_ONCE = 8


def _shifted(builder, values, shift):
    """Return the lanes from ``shift`` on, 0 < shift < WIDTH, as one vector less than there are values."""
    kind = FLOATS.llvm
    if has("avx512f"):  # a permutation of two registers that is known only when it runs
        words = ir.VectorType(WORD, WIDTH)
        first = emit_splat(builder, builder.trunc(shift, WORD), words)
        picked = builder.add(first, constant(words, range(WIDTH)))
        return [
            emit_call(builder, "llvm.x86.avx512.vpermi2var.ps.512", kind, x, picked, y) for x, y in pairwise(values)
        ]
    done = builder.append_basic_block("shifted")
    blocks = [builder.append_basic_block(f"by{by}") for by in range(1, WIDTH)]
    choice = builder.switch(shift, blocks[0])
    results = []
    for by, block in enumerate(blocks, 1):
        builder.position_at_end(block)
        if by > 1:
            choice.add_case(LONG(by), block)
        results.append([shuffle(builder, x, y, range(by, by + WIDTH)) for x, y in pairwise(values)])
        builder.branch(done)
    builder.position_at_end(done)
    merged = []
    for same in zip(*results, strict=True):
        value = builder.phi(kind)
        for block, result in zip(blocks, same, strict=True):
            value.add_incoming(result, block)
        merged.append(value)
    return merged


def _adder_function(module, vectors):
    """Return the LLVM function of `_add_rows` for so many vectors."""
    name = f"pqnet_lut_add_{vectors}x{WIDTH}"
    if name in module.globals:
        return module.globals[name]
    floats, bytes_, longs = (kind.as_pointer() for kind in (FLOAT, BYTE, LONG))
    kinds = [floats, bytes_, LONG, WORD, LONG, longs, LONG, longs, LONG, LONG, LONG, floats, LONG, LONG]
    function, builder = new_function(module, name, kinds)
    table, codes, size, mask, whole, shifts, n_shifts, steps, count, lanes, outputs, sums, step, fresh = function.args
    kind = FLOATS.llvm
    zeros = constant(kind, 0.0)
    totals = [builder.alloca(kind) for _ in range(vectors)]  # LLVM turns them into registers
    parts = [builder.alloca(kind) for _ in range(vectors + 1)]
    at = builder.alloca(LONG)
    builder.store(LONG(0), at)

    def vector(base, v):
        return offset(builder, base, v * WIDTH)

    def long(base, index):
        return emit_load(builder, offset(builder, base, index), align=8)

    def add_codes(into, first, n, width):
        j, close = emit_loop(builder, n, "code")
        position = builder.load(at)
        half = emit_load(builder, offset(builder, codes, position), HALF, align=1)  # of one-byte codes a byte too many
        builder.store(builder.add(position, size), at)
        entry = offset(builder, steps, builder.shl(builder.add(first, j), LONG(1)))
        code = builder.and_(builder.zext(half, WORD), mask)
        distance, first_row = (builder.trunc(long(entry, i), WORD) for i in range(2))  # in 32 bits
        row = offset(builder, table, builder.zext(builder.add(builder.mul(code, distance), first_row), LONG))
        for v in range(width):
            builder.store(builder.fadd(builder.load(into[v]), emit_load(builder, vector(row, v), kind)), into[v])
        close()

    output, close_outputs = emit_loop(builder, outputs, "output")
    target = offset(builder, sums, builder.mul(output, step))
    with builder.if_else(builder.icmp_signed("!=", fresh, LONG(0))) as (new, old):
        with new:
            for v in range(vectors):
                builder.store(zeros, totals[v])
        with old:
            for v in range(vectors):
                builder.store(emit_load(builder, vector(target, v), kind), totals[v])
    add_codes(totals, LONG(0), builder.mul(whole, count), vectors)
    group, close_groups = emit_loop(builder, n_shifts, "group")
    entry = offset(builder, shifts, builder.mul(group, LONG(3)))
    shift, each, first = (long(entry, i) for i in range(3))
    n = builder.mul(each, count)
    for v in range(vectors + 1):
        builder.store(zeros, parts[v])
    spills = builder.icmp_signed(">", builder.add(lanes, shift), LONG(vectors * WIDTH))
    with builder.if_else(spills) as (longer, plain):
        with longer:
            add_codes(parts, first, n, vectors + 1)
        with plain:
            add_codes(parts, first, n, vectors)
    values = [builder.load(part) for part in parts]
    for v, moved in enumerate(_shifted(builder, values, shift)):
        builder.store(builder.fadd(builder.load(totals[v]), moved), totals[v])
    close_groups()
    for v in range(vectors):
        emit_store(builder, builder.load(totals[v]), vector(target, v))
    close_outputs()
    builder.ret_void()
    return function


def _add_rows_reference(
    vectors, s, t, codes, c, size, index, shifts, n_shifts, steps, whole, count, lanes, outputs, a, step, fresh
):
    width, mask = vectors * WIDTH, (1 << 8 * size) - 1
    listed = [(0, whole, 0)] + [tuple(index[shifts + 3 * i : shifts + 3 * i + 3]) for i in range(n_shifts)]
    for o in range(outputs):
        out = s[a + o * step : a + o * step + width]
        total = np.zeros(width, np.float32) if fresh else out.copy()
        for shift, each, first in listed:
            more = WIDTH if lanes + shift > width and shift else 0
            part = np.zeros(width + WIDTH, np.float32)
            for j in range(first, first + each * count):
                code = (int(codes[c]) | int(codes[c + 1]) << 8) & mask
                at = t + code * int(index[steps + 2 * j]) + int(index[steps + 2 * j + 1])
                part[: width + more] += s[at : at + width + more]
                c += size
            total += part[shift : shift + width]
        out[:] = total


def _emit_add_rows(
    context, vectors, s, t, codes, c, size, index, shifts, n_shifts, steps, whole, count, lanes, outputs, a, step, fresh
):
    def codegen(context, builder, signature, values):
        def pointer(array, at):
            return element(context, builder, signature, values, array, at)

        vectors, _, t, _, c, size, _, shifts, n_shifts, steps, whole, count, lanes, outputs, a, step, fresh = values
        mask = builder.sub(builder.shl(WORD(1), builder.trunc(builder.mul(size, LONG(8)), WORD)), WORD(1))
        arguments = [pointer(1, t), pointer(3, c), size, mask, whole, pointer(6, shifts), n_shifts, pointer(6, steps)]
        arguments += [count, lanes, outputs, pointer(1, a), step, fresh]
        done = builder.append_basic_block("added")
        choice = builder.switch(vectors, done)
        for v in range(1, DEEP + 1):
            choice.add_case(LONG(v), builder.append_basic_block(f"vectors{v}"))
            builder.position_at_end(choice.cases[-1][1])
            builder.call(_adder_function(builder.module, v), arguments)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    n = POSITION
    return types.void(n, s, n, codes, n, n, index, n, n, n, n, n, n, n, n, n, n), codegen


# (vectors, s, t, codes, c, size, index, shifts, n_shifts, steps, whole, count, lanes, outputs, a, step, fresh)
# INOUT s: ``outputs`` rows of 1 to DEEP ``vectors``, ``step`` apart from a, each (+)= the rows of its codes in the
# tables at t. The codes of an output, from c, of ``size`` bytes, are those without a shift, ``whole`` for each of
# ``count`` blocks, then n_shifts groups with one: index[shifts + 3 * i ..] = (shift, codes a block, first step). Step j
# is index[steps + 2 * j ..] = (distance of the table's rows, offset of its first). ``lanes`` lanes of the sums count.
_add_rows = compiled_or(_add_rows_reference, _emit_add_rows)


def _build_function(module, vectors):
    """Return the LLVM function of `_builder`."""
    name = f"pqnet_lut_table_{vectors}x{WIDTH}"
    if name in module.globals:
        return module.globals[name]
    floats = FLOAT.as_pointer()
    function, builder = new_function(module, name, [floats, LONG, floats, floats, LONG])
    words, n, x, table, step = function.args
    kind, at_once = FLOATS.llvm, WORDS_AT_ONCE // vectors
    lanes = [
        [emit_load(builder, offset(builder, x, j * CHUNK + v * WIDTH), kind) for v in range(vectors)]
        for j in range(SHORT)
    ]
    turn, close = emit_loop(builder, builder.sdiv(n, LONG(at_once)), "words")
    word = offset(builder, words, builder.mul(turn, LONG(SHORT * at_once)))
    sums = {}
    for j in range(SHORT):
        for i in range(at_once):
            spread = emit_splat(builder, emit_load(builder, offset(builder, word, SHORT * i + j)), kind)
            for v in range(vectors):
                number = lanes[j][v]
                sums[i, v] = emit_fma(builder, spread, number, sums[i, v]) if j else builder.fmul(spread, number)
    for i in range(at_once):
        row = offset(builder, table, builder.mul(builder.add(builder.mul(turn, LONG(at_once)), LONG(i)), step))
        for v in range(vectors):
            emit_store(builder, sums[i, v], offset(builder, row, v * WIDTH))
    close()
    builder.ret_void()
    return function


def _builder(vectors):
    # The inputs stay in registers and the words pass by: without a loop over a word's numbers, which would cost as much
    # as their multiply-adds.
    def reference(words, w, n, x, x0, table, t, step):
        width = vectors * WIDTH
        inputs = np.stack([x[x0 + j * CHUNK : x0 + j * CHUNK + width] for j in range(SHORT)])
        for k in range(n):
            table[t + k * step : t + k * step + width] = words[w + SHORT * k : w + SHORT * (k + 1)] @ inputs

    def build(context, words, w, n, x, x0, table, t, step):
        def codegen(context, builder, signature, values):
            def pointer(array):
                return element(context, builder, signature, values, array, values[array + 1])

            arguments = [pointer(0), values[2], pointer(3), pointer(5), values[7]]
            builder.call(_build_function(builder.module, vectors), arguments)
            return context.get_dummy_value()

        i = POSITION
        return types.void(words, i, i, x, i, table, i, i), codegen

    return compiled_or(reference, build)


# (words, w, n, x, x0, table, t, step): table[t + k * step + lane] = word k . x for k < n, a multiple of WORDS_AT_ONCE.
# Word k is words[w + SHORT * k ..], number j of x is x[x0 + j * CHUNK + lane].
_build_1, _build_2 = _builder(1), _builder(2)


# The codes of an output are read pass by pass: [group][pass][output][shift][block of the pass][tap of that shift].
# The inputs of the blocks are the first blocks * d of the window: all of it, or those at its first tap.
LUT = Arguments(
    layer=WINDOWS,
    end=EPILOGUE,
    codes=CODES,
    code_bytes=SIZE,
    codebook=CONST,
    d=SIZE,
    stride=SIZE,  # of codewords
    words=SIZE,  # rows of a table, a multiple of WORDS_AT_ONCE
    blocks=SIZE,
    in_pass=SIZE,  # blocks whose tables exist at once
    taps=SIZE,  # codes of an output for each block
    tables=INDEX,  # (first row of pixels, lanes, offset) of each table of a block
    n_tables=SIZE,
    shifts=INDEX,  # (shift, taps, first step) of each group of taps that are shifted
    n_shifts=SIZE,
    steps=INDEX,  # (distance of the table's rows, offset of its first) for each code of a pass
    block_floats=SIZE,  # of the tables of a block
    lane_pitch=SIZE,  # lanes of a row of pixels
    vectors=SIZE,  # of a tile at most
    image_tiles=SIZE,
    task_tiles=SIZE,
    o_block=SIZE,  # outputs a task
    o_tasks=SIZE,  # tasks along the outputs of a group
    first_table=SCRATCH,  # packed inputs are before the tables, sums behind them
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _copy_lanes(data, start, pitch, lane_pitch, column, n, target, t):
    # OUT target from t: n lanes from ``column`` on, up to WIDTH - 1 more behind; lane y * lane_pitch + column is
    # data[start + y * pitch + column]
    done = 0
    while done < n:
        count = min(lane_pitch - column, n - done)
        for j in range(0, count, WIDTH):  # what runs over the end of a row is overwritten by the next
            store(target, t + done + j, load(data, start + column + j))
        done += count
        column = 0
        start += pitch


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _build(inputs, start, q, step, lanes, t, g, data, const, index, s):
    # OUT s from t: rows ``step`` apart, row k = sum_j codeword_k[j] * (lanes q .. of the input at index[inputs + j]),
    # ``lanes`` lanes, a multiple of WIDTH; TMP s[: max(d, SHORT) * CHUNK + WIDTH]
    pitch, lane_pitch, book, d, stride, words = g.layer.pitch, g.lane_pitch, g.codebook, g.d, g.stride, g.words
    short = stride == SHORT
    chunk = CHUNK if short else LANES
    if short:
        for j in range(d * CHUNK, SHORT * CHUNK, WIDTH):
            store(s, j, splat(np.float32(0)))
    for lane in range(0, lanes, chunk):
        n = min(lanes - lane, chunk)
        y = (q + lane) // lane_pitch
        column = q + lane - y * lane_pitch
        for j in range(d):
            _copy_lanes(data, start + index[inputs + j] + y * pitch, pitch, lane_pitch, column, n, s, j * chunk)
        if short and d < SHORT:  # the last copy may have run into the zeros
            store(s, d * CHUNK, splat(np.float32(0)))
        to = t + lane
        if short:
            for v in range(0, n - WIDTH, 2 * WIDTH):
                _build_2(const, book, words, s, v, s, to + v, step)
            if n // WIDTH % 2:
                _build_1(const, book, words, s, n - WIDTH, s, to + n - WIDTH, step)
            continue
        for k in range(0, words, ROWS):
            word, row = book + k * stride, to + k * step
            if n > 2 * WIDTH:
                multiply_3(const, word, stride, 1, s, 0, d, s, row, step, 0)
            elif n > WIDTH:
                multiply_2(const, word, stride, 1, s, 0, d, s, row, step, 0)
            else:
                multiply_1(const, word, stride, 1, s, 0, d, s, row, step, 0)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _build_tables(first, count, used, start, q, g, data, const, index, scratch):
    # OUT scratch: the tables of ``count`` blocks from ``first`` on, for ``used`` vectors of positions from q on
    for i in range(count):
        inputs = g.layer.offsets + (first + i) * g.d
        for entry in range(g.tables, g.tables + 3 * g.n_tables, 3):
            top, step, at = index[entry], index[entry + 1], g.first_table + i * g.block_floats + index[entry + 2]
            lanes = step - (g.vectors - used) * WIDTH
            _build(inputs, start + top * g.layer.pitch, q, step, lanes, at, g, data, const, index, scratch)


@step(LUT)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def lut(task, g, data, const, codes, index, scratch):
    layer, size, blocks, taps, shifts, t = g.layer, g.code_bytes, g.blocks, g.taps, g.shifts, g.first_table
    outputs, batch, width, image_tiles, lane_pitch = (
        layer.outputs,
        layer.batch,
        layer.width,
        g.image_tiles,
        g.lane_pitch,
    )
    a = t + g.in_pass * g.block_floats
    whole = taps  # of them that need no shift
    for i in range(g.n_shifts):
        whole -= index[shifts + 3 * i + 1]
    height = layer.image // width
    flat = (height - 1) * lane_pitch + width
    total = (flat + WIDTH - 1) // WIDTH
    o_first = task % g.o_tasks * g.o_block
    o_count = min(g.o_block, outputs - o_first)
    first = task // g.o_tasks * g.task_tiles
    for tile in range(first, min(first + g.task_tiles, layer.groups * batch * image_tiles)):
        group = tile // (batch * image_tiles)
        image = tile // image_tiles - group * batch
        part = tile % image_tiles
        used = (part + 1) * total // image_tiles - part * total // image_tiles
        q = part * total // image_tiles * WIDTH
        n = min(used * WIDTH, flat - q)
        chunks = (used + DEEP - 1) // DEEP
        start = layer.x + group * layer.group_step + image * layer.image_step
        code = g.codes + group * blocks * outputs * taps * size
        for block in range(0, blocks, g.in_pass):
            count = min(g.in_pass, blocks - block)
            _build_tables(block, count, used, start, q, g, data, const, index, scratch)
            c = code + o_first * count * taps * size
            v, fresh = 0, np.int64(block == 0)
            for left in range(chunks, 0, -1):
                some, to = (used - v + left - 1) // left, a + v * WIDTH
                _add_rows(
                    some,
                    scratch,
                    t + v * WIDTH,
                    codes,
                    c,
                    size,
                    index,
                    shifts,
                    g.n_shifts,
                    g.steps,
                    whole,
                    count,
                    n - v * WIDTH,
                    o_count,
                    to,
                    used * WIDTH,
                    fresh,
                )
                v += some
            code += outputs * count * taps * size
        p = q
        while p < q + n:
            y = p // lane_pitch
            column = p - y * lane_pitch
            if column < width:
                at, some = image * layer.image + y * width + column, min(width - column, q + n - p)
                o, sums = group * outputs + o_first, a + p - q
                if used == 1 and some == WIDTH:
                    finish_vectors(scratch, sums, o_count, o, at, g.end, data, const)
                else:
                    finish_rows(scratch, sums, used * WIDTH, o_count, o, at, some, g.end, data, const)
            p = (y + 1) * lane_pitch
