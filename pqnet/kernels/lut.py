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
from numba.core import cgutils, config
from numba.extending import intrinsic

from pqnet.kernels.epilogue import finish_rows
from pqnet.kernels.simd import FLOATS, ISA, WIDTH, load, splat, store
from pqnet.kernels.tile import LANES, ROWS, multiply_1, multiply_2, multiply_3

DEEP = 8 if ISA == "avx512" else 6  # vectors of an output in registers, and as many again for a group of codes

CHUNK = 4 * WIDTH  # lanes of inputs that are copied together

_BYTE, _HALF, _WORD, _LONG = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)


def _loop(builder, n, name):
    """Open a loop over 0 .. n; return its counter and a function that closes it."""
    before = builder.block
    head, body, after = (builder.append_basic_block(f"{name}{part}") for part in ("", ".body", ".end"))
    builder.branch(head)
    builder.position_at_end(head)
    counter = builder.phi(_LONG)
    counter.add_incoming(_LONG(0), before)
    builder.cbranch(builder.icmp_signed("<", counter, n), body, after)
    builder.position_at_end(body)

    def close():
        counter.add_incoming(builder.add(counter, _LONG(1)), builder.block)
        builder.branch(head)
        builder.position_at_end(after)

    return counter, close


def _shifted(builder, values, shift):
    """Return the lanes from ``shift`` on, 0 < shift < WIDTH, as one vector less than there are values."""
    word, lanes = ir.VectorType(_WORD, WIDTH), FLOATS.llvm
    if ISA == "avx512":  # a permutation of two registers that is known only when it runs
        kind = ir.FunctionType(lanes, [lanes, word, lanes])
        permute = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpermi2var.ps.512")
        first = builder.insert_element(ir.Constant(word, ir.Undefined), builder.trunc(shift, _WORD), _WORD(0))
        spread = builder.shuffle_vector(first, ir.Constant(word, ir.Undefined), ir.Constant(word, [0] * WIDTH))
        picked = builder.add(spread, ir.Constant(word, list(range(WIDTH))))
        return [builder.call(permute, [x, picked, y]) for x, y in pairwise(values)]
    done = builder.append_basic_block("shifted")
    blocks = [builder.append_basic_block(f"by{by}") for by in range(1, WIDTH)]
    choice = builder.switch(shift, blocks[0])
    results = []
    for by, block in enumerate(blocks, 1):
        builder.position_at_end(block)
        if by > 1:
            choice.add_case(_LONG(by), block)
        picked = ir.Constant(word, list(range(by, by + WIDTH)))
        results.append([builder.shuffle_vector(x, y, picked) for x, y in pairwise(values)])
        builder.branch(done)
    builder.position_at_end(done)
    merged = []
    for same in zip(*results, strict=True):
        value = builder.phi(lanes)
        for block, result in zip(blocks, same, strict=True):
            value.add_incoming(result, block)
        merged.append(value)
    return merged


def _adder_function(module, vectors):
    """Return the LLVM function of `_adder`; on its own, for its loops need all registers."""
    name = f"pqnet_lut_add_{vectors}x{WIDTH}"
    if name in module.globals:
        return module.globals[name]
    floats, bytes_, words = ir.FloatType().as_pointer(), _BYTE.as_pointer(), _WORD.as_pointer()
    arguments = [floats, bytes_, _LONG, _WORD, _LONG, words, _LONG, words, _LONG, _LONG, _LONG, floats, _LONG, _LONG]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    table, codes, size, mask, whole, groups, n_groups, steps, count, lanes, outputs, sums, step, fresh = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    kind = FLOATS.llvm
    zeros = ir.Constant(kind, [0.0] * WIDTH)
    totals = [builder.alloca(kind) for _ in range(vectors)]  # LLVM turns them into registers
    parts = [builder.alloca(kind) for _ in range(vectors + 1)]
    at = builder.alloca(_LONG)
    builder.store(_LONG(0), at)

    def place(base, v):
        return builder.bitcast(builder.gep(base, [_LONG(v * WIDTH)]), kind.as_pointer())

    def loaded(pointer):
        value = builder.load(pointer)
        value.align = 4
        return value

    def add_codes(into, first, n, width):
        j, close = _loop(builder, n, "code")
        position = builder.load(at)
        half = builder.load(builder.bitcast(builder.gep(codes, [position]), _HALF.as_pointer()))
        half.align = 1  # one byte too many of one-byte codes: there is slack behind the last
        builder.store(builder.add(position, size), at)
        entry = builder.gep(steps, [builder.shl(builder.add(first, j), _LONG(1))])
        code = builder.and_(builder.zext(half, _WORD), mask)
        start = builder.add(builder.mul(code, builder.load(entry)), builder.load(builder.gep(entry, [_LONG(1)])))
        row = builder.gep(table, [builder.zext(start, _LONG)])
        for v in range(width):
            builder.store(builder.fadd(builder.load(into[v]), loaded(place(row, v))), into[v])
        close()

    output, close_outputs = _loop(builder, outputs, "output")
    target = builder.gep(sums, [builder.mul(output, step)])
    with builder.if_else(builder.icmp_signed("!=", fresh, _LONG(0))) as (new, old):
        with new:
            for v in range(vectors):
                builder.store(zeros, totals[v])
        with old:
            for v in range(vectors):
                builder.store(loaded(place(target, v)), totals[v])
    add_codes(totals, _LONG(0), builder.mul(whole, count), vectors)
    group, close_groups = _loop(builder, n_groups, "group")
    entry = builder.gep(groups, [builder.mul(group, _LONG(3))])
    shift, each, first = (builder.sext(builder.load(builder.gep(entry, [_LONG(i)])), _LONG) for i in range(3))
    n = builder.mul(each, count)
    for v in range(vectors + 1):
        builder.store(zeros, parts[v])
    spills = builder.icmp_signed(">", builder.add(lanes, shift), _LONG(vectors * WIDTH))
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
        builder.store(builder.load(totals[v]), place(target, v)).align = 4
    close_outputs()
    builder.ret_void()
    return function


def _adder():
    """Return add_rows(vectors, s, t, codes, c, index, g, whole, count, lanes, outputs, a, step, fresh).

    INOUT s: ``outputs`` rows of 1 to DEEP ``vectors``, ``step`` apart from a, each (+)= the rows of its codes in the
    tables at t. The codes of an output, from c, are those without a shift, ``whole`` for each of ``count`` blocks, then
    g[38] groups with one: index[g[37] + 3 * i ..] = (shift, codes a block, first step). Step j is
    index[g[39] + 2 * j ..] = (distance of the table's rows, place of its first). ``lanes`` lanes of the sums count.
    """

    def twin(vectors, s, t, codes, c, index, g, whole, count, lanes, outputs, a, step, fresh):
        width, mask, size, steps = vectors * WIDTH, int(g[29]), int(g[30]), int(g[39])
        listed = [(0, whole, 0)] + [tuple(index[g[37] + 3 * i : g[37] + 3 * i + 3]) for i in range(g[38])]
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

    @intrinsic
    def add_rows(context, vectors, s, t, codes, c, index, g, whole, count, lanes, outputs, a, step, fresh):
        def codegen(context, builder, signature, values):
            def pointer(array, at):
                data = context.make_array(signature.args[array])(context, builder, values[array]).data
                return builder.gep(data, [at])

            mask, size, groups, n_groups, steps = (builder.load(pointer(6, _LONG(f))) for f in (29, 30, 37, 38, 39))
            vectors, _, t, _, c, _, _, whole, count, lanes, outputs, a, step, fresh = values
            arguments = [pointer(1, t), pointer(3, c), size, builder.trunc(mask, _WORD), whole, pointer(5, groups)]
            arguments += [n_groups, pointer(5, steps), count, lanes, outputs, pointer(1, a), step, fresh]
            done = builder.append_basic_block("added")
            choice = builder.switch(vectors, done)
            for v in range(1, DEEP + 1):
                choice.add_case(_LONG(v), builder.append_basic_block(f"vectors{v}"))
                builder.position_at_end(choice.cases[-1][1])
                builder.call(_adder_function(builder.module, v), arguments)
                builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        i = types.intp
        return types.void(i, s, i, codes, i, index, g, i, i, i, i, i, i, i), codegen

    return twin if config.DISABLE_JIT else add_rows


_add_rows = _adder()


def _table_function(module, vectors):
    """Return the LLVM function of `_table_builder`."""
    name = f"pqnet_lut_table_{vectors}x{WIDTH}"
    if name in module.globals:
        return module.globals[name]
    floats = ir.FloatType().as_pointer()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [floats, _LONG, floats, floats, _LONG]), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    words, n, x, table, step = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    kind, none = FLOATS.llvm, ir.Constant(ir.VectorType(_WORD, WIDTH), [0] * WIDTH)
    fma = cgutils.get_or_insert_function(module, ir.FunctionType(kind, [kind] * 3), f"llvm.fma.v{WIDTH}f32")
    lanes = []
    for j in range(8):
        for v in range(vectors):
            value = builder.load(builder.bitcast(builder.gep(x, [_LONG(j * CHUNK + v * WIDTH)]), kind.as_pointer()))
            value.align = 4
            lanes.append(value)
    at_once = 8 // vectors
    turn, close = _loop(builder, builder.sdiv(n, _LONG(at_once)), "words")
    word = builder.gep(words, [builder.mul(turn, _LONG(8 * at_once))])
    sums = [ir.Constant(kind, [0.0] * WIDTH)] * 8
    for j in range(8):
        for i in range(at_once):
            number = builder.insert_element(
                ir.Constant(kind, ir.Undefined), builder.load(builder.gep(word, [_LONG(8 * i + j)])), _WORD(0)
            )
            spread = builder.shuffle_vector(number, ir.Constant(kind, ir.Undefined), none)
            for v in range(vectors):
                s = i * vectors + v
                if j:
                    sums[s] = builder.call(fma, [spread, lanes[j * vectors + v], sums[s]])
                else:
                    sums[s] = builder.fmul(spread, lanes[v])
    for i in range(at_once):
        row = builder.gep(table, [builder.mul(builder.add(builder.mul(turn, _LONG(at_once)), _LONG(i)), step)])
        for v in range(vectors):
            target = builder.bitcast(builder.gep(row, [_LONG(v * WIDTH)]), kind.as_pointer())
            builder.store(sums[i * vectors + v], target).align = 4
    close()
    builder.ret_void()
    return function


def _table_builder(vectors):
    """Return build(words, w, n, x, x0, table, t, step): table[t + k * step + lane] = word k . x, for words of eight.

    Word k is words[w + 8 * k ..], number j of x is x[x0 + j * CHUNK + lane]; n is a multiple of 8. The inputs stay in
    registers and the words pass by: without a loop over the eight, which would cost as much as its multiply-adds.
    """

    def twin(words, w, n, x, x0, table, t, step):
        width = vectors * WIDTH
        inputs = np.stack([x[x0 + j * CHUNK : x0 + j * CHUNK + width] for j in range(8)])
        for k in range(n):
            table[t + k * step : t + k * step + width] = words[w + 8 * k : w + 8 * k + 8] @ inputs

    @intrinsic
    def build(context, words, w, n, x, x0, table, t, step):
        def codegen(context, builder, signature, values):
            def pointer(array, at):
                data = context.make_array(signature.args[array])(context, builder, values[array]).data
                return builder.gep(data, [values[at]])

            arguments = [pointer(0, 1), values[2], pointer(3, 4), pointer(5, 6), values[7]]
            builder.call(_table_function(builder.module, vectors), arguments)
            return context.get_dummy_value()

        i = types.intp
        return types.void(words, i, i, x, i, table, i, i), codegen

    return twin if config.DISABLE_JIT else build


_table_1, _table_2 = _table_builder(1), _table_builder(2)


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
def _build(rows, start, q, step, lanes, t, g, data, const, index, s):
    # OUT s from t: rows ``step`` apart, row k = sum_j codeword_k[j] * (lanes q .. of input index[rows + j]), ``lanes``
    # lanes, a multiple of WIDTH; TMP s[: max(d, 8) * CHUNK + WIDTH]
    pitch, lane_pitch, book, d, stride, words = g[9], g[41], g[25], g[26], g[27], g[28]
    eight = stride == 8
    chunk = CHUNK if eight else LANES
    if eight:
        for j in range(d * CHUNK, 8 * CHUNK, WIDTH):
            store(s, j, splat(np.float32(0)))
    for lane in range(0, lanes, chunk):
        n = min(lanes - lane, chunk)
        y = (q + lane) // lane_pitch
        column = q + lane - y * lane_pitch
        for j in range(d):
            _copy_lanes(data, start + index[rows + j] + y * pitch, pitch, lane_pitch, column, n, s, j * chunk)
        if eight and d < 8:  # the last copy may have run into the zeros
            store(s, d * CHUNK, splat(np.float32(0)))
        to = t + lane
        if eight:
            for v in range(0, n - WIDTH, 2 * WIDTH):
                _table_2(const, book, words, s, v, s, to + v, step)
            if n // WIDTH % 2:
                _table_1(const, book, words, s, n - WIDTH, s, to + n - WIDTH, step)
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
def lut(task, g, data, const, codes, index, scratch):
    # A layer step (fields 0-22). 24 codes: [group][pass][output][shift][block of the pass][tap of that shift],
    # 25 codebook, 26 d, 27 codeword stride, 28 codewords (up to a multiple of ROWS), 29 mask of a code, 30 bytes a
    # code, 31 blocks of a group, 32 index: offsets of their d inputs each, 33 blocks a pass, 34 taps, 35 index:
    # (first row of pixels, lanes, place) of each table of a block, 36 tables a block, 37 index: (shift, taps, first
    # step) of each group of shifted taps, 38 such groups, 39 index: steps, 40 floats of the tables of a block, 41 lanes
    # of a row of pixels, 42 vectors a tile at most, 43 tiles an image, 44 tiles a task, 45 outputs a task (of a group),
    # 46 tasks along the outputs, 47 scratch: tables; the sums follow them; scratch from 0: packed inputs
    x, xb, xg, outputs, groups, batch = g[0], g[1], g[2], g[5], g[6], g[7]
    pitch, width, image_size, size = g[9], g[10], g[13], g[30]
    d, blocks, rows, in_pass, taps, tables, n_tables = g[26], g[31], g[32], g[33], g[34], g[35], g[36]
    block_floats, lane_pitch, vectors, image_tiles, task_tiles = g[40], g[41], g[42], g[43], g[44]
    o_block, o_tasks, t = g[45], g[46], g[47]
    a = t + in_pass * block_floats
    whole = taps  # of them that need no shift
    for i in range(g[38]):
        whole -= index[g[37] + 3 * i + 1]
    height = image_size // width
    flat = (height - 1) * lane_pitch + width
    total = (flat + WIDTH - 1) // WIDTH
    o_first = task % o_tasks * o_block
    o_count = min(o_block, outputs - o_first)
    first = task // o_tasks * task_tiles
    for tile in range(first, min(first + task_tiles, groups * batch * image_tiles)):
        group = tile // (batch * image_tiles)
        image = tile // image_tiles - group * batch
        part = tile % image_tiles
        used = (part + 1) * total // image_tiles - part * total // image_tiles
        q = part * total // image_tiles * WIDTH
        n = min(used * WIDTH, flat - q)
        chunks = (used + DEEP - 1) // DEEP
        start = x + group * xg + image * xb
        code = g[24] + group * blocks * outputs * taps * size
        for block in range(0, blocks, in_pass):
            count = min(in_pass, blocks - block)
            for i in range(count):
                for entry in range(tables, tables + 3 * n_tables, 3):
                    top, step, place = index[entry], index[entry + 1], t + i * block_floats + index[entry + 2]
                    lanes = step - (vectors - used) * WIDTH
                    _build(
                        rows + (block + i) * d,
                        start + top * pitch,
                        q,
                        step,
                        lanes,
                        place,
                        g,
                        data,
                        const,
                        index,
                        scratch,
                    )
            c = code + o_first * count * taps * size
            v, fresh = 0, np.int64(block == 0)
            for left in range(chunks, 0, -1):
                some, to = (used - v + left - 1) // left, a + v * WIDTH
                m = n - v * WIDTH
                _add_rows(
                    some, scratch, t + v * WIDTH, codes, c, index, g, whole, count, m, o_count, to, used * WIDTH, fresh
                )
                v += some
            code += outputs * count * taps * size
        p = q
        while p < q + n:
            y = p // lane_pitch
            column = p - y * lane_pitch
            if column < width:
                at, some = image * image_size + y * width + column, min(width - column, q + n - p)
                o = group * outputs + o_first
                finish_rows(scratch, a + p - q, used * WIDTH, o_count, o, at, some, g, data, const)
            p = (y + 1) * lane_pitch
