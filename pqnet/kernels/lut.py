"""Products with packed weights by vector tables: every codeword times a tile of positions, once for all outputs.

For a tile of positions (the lanes) and a block of d inputs, T[k] = codeword k . block is a row of vectors; every output
then adds the row of its code, one vector addition in place of d multiply-adds. In the ``channel`` layout a tap of a
convolution only shifts the lanes, so that the table of a block of channels serves all taps that lie close together.

Loads that straddle cache lines would cost as much again. So the lanes get a row pitch of their own, at best a whole
number of vectors; the codes of taps with equal shift modulo the vector are added up on aligned vectors, and their sum is
shifted in registers.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import config
from numba.extending import intrinsic

from pqnet.kernels.epilogue import finish_rows
from pqnet.kernels.simd import FLOATS, ISA, WIDTH, load, store
from pqnet.kernels.tile import LANES, ROWS, multiply_1, multiply_2, multiply_3

DEEP = 8 if ISA == "avx512" else 6  # vectors of an output in registers, and as many again for a group of codes

_BYTE, _HALF, _WORD, _LONG = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)


def _loop(builder, n, name):
    """Open a loop over 0 .. n with n > 0; return its counter and a function that closes it."""
    before, body = builder.block, builder.append_basic_block(name)
    builder.branch(body)
    builder.position_at_end(body)
    counter = builder.phi(_LONG)
    counter.add_incoming(_LONG(0), before)

    def close():
        following = builder.add(counter, _LONG(1))
        counter.add_incoming(following, builder.block)
        after = builder.append_basic_block(f"{name}.end")
        builder.cbranch(builder.icmp_signed("<", following, n), body, after)
        builder.position_at_end(after)

    return counter, close


def _adder_function(module, vectors):
    """Return the LLVM function of `_adder`; on its own, for its loops need all registers."""
    name = f"pqnet_lut_add_{vectors}x{WIDTH}"
    if name in module.globals:
        return module.globals[name]
    floats, bytes_, words = ir.FloatType().as_pointer(), _BYTE.as_pointer(), _WORD.as_pointer()
    arguments = [floats, bytes_, _LONG, _WORD, words, _LONG, words, _LONG, _LONG, _LONG, floats, _LONG, _LONG]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    table, codes, size, mask, groups, n_groups, steps, count, lanes, outputs, sums, step, fresh = function.args
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

    def add_codes(first, n, width):
        for v in range(vectors + 1):
            builder.store(zeros, parts[v])
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
            builder.store(builder.fadd(builder.load(parts[v]), loaded(place(row, v))), parts[v])
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
    group, close_groups = _loop(builder, n_groups, "group")
    entry = builder.gep(groups, [builder.mul(group, _LONG(3))])
    shift, each, first = (
        builder.sext(builder.load(builder.gep(entry, [_LONG(i)])), _LONG) for i in range(3)
    )
    n = builder.mul(each, count)
    spills = builder.icmp_signed(">", builder.add(lanes, shift), _LONG(vectors * WIDTH))
    with builder.if_else(builder.and_(spills, builder.icmp_signed("!=", shift, _LONG(0)))) as (longer, plain):
        with longer:
            add_codes(first, n, vectors + 1)
        with plain:
            add_codes(first, n, vectors)
    done = builder.append_basic_block("shifted")
    whole = builder.append_basic_block("whole")
    choice = builder.switch(shift, whole)
    for by in range(WIDTH):
        block = whole if by == 0 else builder.append_basic_block(f"by{by}")
        builder.position_at_end(block)
        if by:
            choice.add_case(_LONG(by), block)
        picked = ir.Constant(ir.VectorType(_WORD, WIDTH), list(range(by, by + WIDTH)))
        values = [builder.load(part) for part in parts]
        for v in range(vectors):
            shifted = builder.shuffle_vector(values[v], values[v + 1], picked) if by else values[v]
            builder.store(builder.fadd(builder.load(totals[v]), shifted), totals[v])
        builder.branch(done)
    builder.position_at_end(done)
    close_groups()
    for v in range(vectors):
        builder.store(builder.load(totals[v]), place(target, v)).align = 4
    close_outputs()
    builder.ret_void()
    return function


def _adder(vectors):
    """Return add_rows(table, t, codes, c, size, mask, index, groups, n_groups, steps, count, lanes, outputs, sums, a,
    step, fresh): ``outputs`` rows of ``vectors`` vectors, ``step`` apart from sums[a], each (+)= its codes' table rows.

    Group i of the codes is index[groups + 3 * i ..] = (shift, codes a block, first step); step j is index[steps + 2 *
    j ..] = (distance of the table's rows, place of its first). Of the sums, ``lanes`` lanes count.
    """

    def twin(table, t, codes, c, size, mask, index, groups, n_groups, steps, count, lanes, outputs, sums, a, step, fresh):
        width = vectors * WIDTH
        for o in range(outputs):
            out = sums[a + o * step : a + o * step + width]
            total = np.zeros(width, np.float32) if fresh else out.copy()
            for i in range(n_groups):
                shift, each, first = (int(v) for v in index[groups + 3 * i : groups + 3 * i + 3])
                more = WIDTH if shift and lanes + shift > width else 0
                part = np.zeros(width + WIDTH, np.float32)
                for j in range(first, first + each * count):
                    code = (int(codes[c]) | int(codes[c + 1]) << 8) & mask
                    at = t + code * int(index[steps + 2 * j]) + int(index[steps + 2 * j + 1])
                    part[: width + more] += table[at : at + width + more]
                    c += size
                total += part[shift : shift + width]
            out[:] = total

    @intrinsic
    def add_rows(
        context, table, t, codes, c, size, mask, index, groups, n_groups, steps, count, lanes, outputs, sums, a, step, fresh
    ):
        def codegen(context, builder, signature, values):
            def pointer(array, at):
                data = context.make_array(signature.args[array])(context, builder, values[array]).data
                return builder.gep(data, [values[at]])

            arguments = [pointer(0, 1), pointer(2, 3), values[4], builder.trunc(values[5], _WORD), pointer(6, 7)]
            arguments += [values[8], pointer(6, 9), *values[10:13], pointer(13, 14), *values[15:]]
            builder.call(_adder_function(builder.module, vectors), arguments)
            return context.get_dummy_value()

        i = types.intp
        return types.void(table, i, codes, i, i, i, index, i, i, i, i, i, i, sums, i, i, i), codegen

    return twin if config.DISABLE_JIT else add_rows


_add_1, _add_2, _add_3, _add_4, _add_5, _add_6 = (_adder(v) for v in range(1, 7))
_add_7, _add_8 = (_adder(v) for v in (7, 8)) if DEEP == 8 else (_add_6, _add_6)


@njit(cache=True, nogil=True, error_model="numpy")
def _copy_lanes(data, start, pitch, lane_pitch, q, n, target, t):
    # OUT target from t: lanes q .. q + n, up to WIDTH - 1 more behind; lane y * lane_pitch + column is
    # data[start + y * pitch + column]
    y = q // lane_pitch
    column = q - y * lane_pitch
    done = 0
    while done < n:
        count = min(lane_pitch - column, n - done)
        at = start + y * pitch + column
        for j in range(0, count, WIDTH):  # what runs over the end of a row is overwritten by the next
            store(target, t + done + j, load(data, at + j))
        done += count
        column = 0
        y += 1


@njit(cache=True, nogil=True, error_model="numpy")
def _build(data, start, pitch, lane_pitch, q, d, rows, index, const, book, stride, words, scratch, packed, t, step, lanes):
    # OUT scratch from t: rows ``step`` apart, row k = sum_j codeword_k[j] * (lanes q .. of input index[rows + j]) for
    # ``lanes`` lanes and ``words`` codewords, multiples of WIDTH and ROWS; TMP d * LANES and a vector from packed
    for lane in range(0, lanes, LANES):
        left = lanes - lane
        for j in range(d):
            _copy_lanes(data, start + index[rows + j], pitch, lane_pitch, q + lane, min(left, LANES), scratch,
                        packed + j * LANES)
        for k in range(0, words, ROWS):
            word, to = book + k * stride, t + k * step + lane
            if left > 2 * WIDTH:
                multiply_3(const, word, stride, 1, scratch, packed, d, scratch, to, step, 0)
            elif left > WIDTH:
                multiply_2(const, word, stride, 1, scratch, packed, d, scratch, to, step, 0)
            else:
                multiply_1(const, word, stride, 1, scratch, packed, d, scratch, to, step, 0)


@njit(cache=True, nogil=True, error_model="numpy")
def _accumulate(s, t, codes, c, size, mask, index, p, ng, steps, count, n, outputs, a, vectors, fresh):
    # INOUT s from a: ``outputs`` rows of ``vectors`` vectors, n lanes of which count, row o (+)= its codes' table rows
    chunks = (vectors + DEEP - 1) // DEEP
    v = 0
    for chunk in range(chunks):
        width = (vectors - v + chunks - chunk - 1) // (chunks - chunk)
        x, y, m, z = t + v * WIDTH, a + v * WIDTH, n - v * WIDTH, vectors * WIDTH
        if width == 8:
            _add_8(s, x, codes, c, size, mask, index, p, ng, steps, count, m, outputs, s, y, z, fresh)
        elif width == 7:
            _add_7(s, x, codes, c, size, mask, index, p, ng, steps, count, m, outputs, s, y, z, fresh)
        elif width == 6:
            _add_6(s, x, codes, c, size, mask, index, p, ng, steps, count, m, outputs, s, y, z, fresh)
        elif width == 5:
            _add_5(s, x, codes, c, size, mask, index, p, ng, steps, count, m, outputs, s, y, z, fresh)
        elif width == 4:
            _add_4(s, x, codes, c, size, mask, index, p, ng, steps, count, m, outputs, s, y, z, fresh)
        elif width == 3:
            _add_3(s, x, codes, c, size, mask, index, p, ng, steps, count, m, outputs, s, y, z, fresh)
        elif width == 2:
            _add_2(s, x, codes, c, size, mask, index, p, ng, steps, count, m, outputs, s, y, z, fresh)
        else:
            _add_1(s, x, codes, c, size, mask, index, p, ng, steps, count, m, outputs, s, y, z, fresh)
        v += width


@njit(cache=True, nogil=True, error_model="numpy")
def lut(task, g, data, const, codes, index, scratch):
    # A layer step (fields 0-22). 24 codes: [group][pass][output][shift][block of the pass][tap of that shift],
    # 25 codebook, 26 d, 27 codeword stride, 28 codewords (up to a multiple of ROWS), 29 mask of a code, 30 bytes a
    # code, 31 blocks of a group, 32 index: offsets of their d inputs each, 33 blocks a pass, 34 taps, 35 index:
    # (first row of pixels, lanes, place) of each table of a block, 36 tables a block, 37 index: shifts, 38 shifts,
    # 39 index: steps, 40 floats of the tables of a block, 41 lanes of a row of pixels, 42 vectors a tile, 43 tiles an
    # image, 44 tiles a task, 45 outputs a task (of a group), 46 tasks along the outputs, 47 scratch: tables; the sums
    # follow them; scratch from 0: packed inputs
    x, xb, xg, outputs, groups, batch = g[0], g[1], g[2], g[5], g[6], g[7]
    pitch, width, image_size = g[9], g[10], g[13]
    first_code, book, d, stride, words, mask, size = g[24], g[25], g[26], g[27], g[28], g[29], g[30]
    blocks, rows, in_pass, taps, tables, n_tables = g[31], g[32], g[33], g[34], g[35], g[36]
    shifts, n_shifts, steps, block_floats, lane_pitch = g[37], g[38], g[39], g[40], g[41]
    vectors, image_tiles, task_tiles, o_block, o_tasks, t = g[42], g[43], g[44], g[45], g[46], g[47]
    a = t + in_pass * block_floats
    height = image_size // width
    flat = (height - 1) * lane_pitch + width
    o_first = task % o_tasks * o_block
    o_count = min(o_block, outputs - o_first)
    first = task // o_tasks * task_tiles
    for tile in range(first, min(first + task_tiles, groups * batch * image_tiles)):
        group = tile // (batch * image_tiles)
        image = tile // image_tiles - group * batch
        q = tile % image_tiles * vectors * WIDTH
        n = min(vectors * WIDTH, flat - q)
        used = (n + WIDTH - 1) // WIDTH
        start = x + group * xg + image * xb
        code = first_code + group * blocks * outputs * taps * size
        for block in range(0, blocks, in_pass):
            count = min(in_pass, blocks - block)
            for i in range(count):
                for j in range(n_tables):
                    entry = tables + 3 * j
                    _build(data, start + index[entry] * pitch, pitch, lane_pitch, q, d, rows + (block + i) * d, index,
                           const, book, stride, words, scratch, 0, t + i * block_floats + index[entry + 2],
                           index[entry + 1], index[entry + 1] - (vectors - used) * WIDTH)
            _accumulate(scratch, t, codes, code + o_first * count * taps * size, size, mask, index, shifts, n_shifts,
                        steps, count, n, o_count, a, used, np.int64(block == 0))
            code += outputs * count * taps * size
        p = q
        while p < q + n:
            y = p // lane_pitch
            column = p - y * lane_pitch
            if column < width:
                finish_rows(scratch, a + p - q, used * WIDTH, o_count, group * outputs + o_first,
                            image * image_size + y * width + column, min(width - column, q + n - p), g, data, const)
            p = (y + 1) * lane_pitch
