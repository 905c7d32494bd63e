"""Products with packed weights by vector tables: every codeword times a tile of positions, once for all outputs.

For a tile of positions (the lanes) and a block of d inputs, T[k] = codeword k . block is a row of vectors; every output
then adds the row of its code, one vector addition in place of d multiply-adds. In the ``channel`` layout a tap of a
convolution only shifts the lanes, so that the table of a block of channels serves all taps that lie close together.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import config
from numba.extending import intrinsic

from pqnet.kernels.epilogue import finish_tile
from pqnet.kernels.simd import FLOATS, WIDTH, load, store
from pqnet.kernels.tile import LANES, ROWS, multiply_1, multiply_2, multiply_3

DEEP = 8  # accumulators of an output that stay in registers over all codes of a pass

_BYTE, _HALF, _WORD, _LONG = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)


def _adder(vectors):
    """Return add_rows(table, t, codes, c, size, mask, index, s, n, sums, a, fresh) for sums of ``vectors`` vectors.

    sums[a ..] (+)= sum over j < n of the table's row at t + code_j * index[s + 2 * j] + index[s + 2 * j + 1].
    """

    def twin(table, t, codes, c, size, mask, index, s, n, sums, a, fresh):
        total = np.zeros(vectors * WIDTH, np.float32) if fresh else sums[a : a + vectors * WIDTH].copy()
        for j in range(n):
            code = (int(codes[c + j * size]) | int(codes[c + j * size + 1]) << 8) & mask
            at = t + code * int(index[s + 2 * j]) + int(index[s + 2 * j + 1])
            total += table[at : at + vectors * WIDTH]
        sums[a : a + vectors * WIDTH] = total

    @intrinsic
    def add_rows(context, table, t, codes, c, size, mask, index, s, n, sums, a, fresh):
        def codegen(context, builder, signature, values):
            def pointer(array, at):
                data = context.make_array(signature.args[array])(context, builder, values[array]).data
                return builder.gep(data, [values[at]])

            lanes = FLOATS.llvm
            rows, code, steps, target = pointer(0, 1), pointer(2, 3), pointer(6, 7), pointer(9, 10)
            size, mask, n, fresh = values[4], builder.trunc(values[5], _WORD), values[8], values[11]

            def vector(base, v):
                return builder.bitcast(builder.gep(base, [_LONG(v * WIDTH)]), lanes.as_pointer())

            def loaded(place):
                value = builder.load(place)
                value.align = 4
                return value

            zeros = ir.Constant(lanes, [0.0] * WIDTH)
            start = builder.block
            old = builder.append_basic_block("lut.old")
            before = builder.append_basic_block("lut.before")
            body, after = builder.append_basic_block("lut.code"), builder.append_basic_block("lut.end")
            builder.cbranch(builder.icmp_signed("!=", fresh, _LONG(0)), before, old)
            builder.position_at_end(old)
            olds = [loaded(vector(target, v)) for v in range(vectors)]
            builder.branch(before)
            builder.position_at_end(before)
            first = []
            for v in range(vectors):
                value = builder.phi(lanes)
                value.add_incoming(zeros, start)
                value.add_incoming(olds[v], old)
                first.append(value)
            builder.branch(body)
            builder.position_at_end(body)
            j, at = builder.phi(_LONG), builder.phi(_LONG)
            sums = [builder.phi(lanes) for _ in range(vectors)]
            half = builder.load(builder.bitcast(builder.gep(code, [at]), _HALF.as_pointer()))
            half.align = 1  # one byte too many of one-byte codes: there is slack behind the last
            number = builder.and_(builder.zext(half, _WORD), mask)
            twice = builder.shl(j, _LONG(1))
            step = builder.load(builder.gep(steps, [twice]))
            shift = builder.load(builder.gep(steps, [builder.add(twice, _LONG(1))]))
            row = builder.gep(rows, [builder.zext(builder.add(builder.mul(number, step), shift), _LONG)])
            results = [builder.fadd(sums[v], loaded(vector(row, v))) for v in range(vectors)]
            next_j, next_at = builder.add(j, _LONG(1)), builder.add(at, size)
            for phi, initial, following in (
                (j, _LONG(0), next_j),
                (at, _LONG(0), next_at),
                *zip(sums, first, results, strict=True),
            ):
                phi.add_incoming(initial, before)
                phi.add_incoming(following, body)
            builder.cbranch(builder.icmp_signed("<", next_j, n), body, after)
            builder.position_at_end(after)
            for v in range(vectors):
                builder.store(results[v], vector(target, v)).align = 4
            return context.get_dummy_value()

        i = types.intp
        return types.void(table, i, codes, i, i, i, index, i, i, sums, i, i), codegen

    return twin if config.DISABLE_JIT else add_rows


_add_1, _add_2, _add_3, _add_4, _add_5, _add_6, _add_7, _add_8 = (_adder(v) for v in range(1, DEEP + 1))


@njit(cache=True, nogil=True, error_model="numpy")
def _build(data, start, d, rows, index, const, book, stride, words, scratch, packed, t, step, lanes):
    # OUT scratch from t: rows ``step`` apart, row k = sum_j codeword_k[j] * data[start + index[rows + j] + lane] for
    # ``lanes`` lanes and ``words`` codewords, multiples of WIDTH and ROWS; TMP d * LANES from packed
    for lane in range(0, lanes, LANES):
        left = lanes - lane
        for j in range(d):
            at, to = start + index[rows + j] + lane, packed + j * LANES
            store(scratch, to, load(data, at))
            if left > WIDTH:
                store(scratch, to + WIDTH, load(data, at + WIDTH))
            if left > 2 * WIDTH:
                store(scratch, to + 2 * WIDTH, load(data, at + 2 * WIDTH))
        for k in range(0, words, ROWS):
            word, to = book + k * stride, t + k * step + lane
            if left > 2 * WIDTH:
                multiply_3(const, word, stride, 1, scratch, packed, d, scratch, to, step, 0)
            elif left > WIDTH:
                multiply_2(const, word, stride, 1, scratch, packed, d, scratch, to, step, 0)
            else:
                multiply_1(const, word, stride, 1, scratch, packed, d, scratch, to, step, 0)


@njit(cache=True, nogil=True, error_model="numpy")
def _accumulate(scratch, t, codes, c, size, mask, index, s, n, outputs, a, vectors, fresh):
    # INOUT scratch from a: ``outputs`` rows of ``vectors`` vectors, row o (+)= the rows of its n codes, from c + o * n
    for v in range(0, vectors, DEEP):
        left = min(vectors - v, DEEP)
        table, target, code = t + v * WIDTH, a + v * WIDTH, c
        for _ in range(outputs):
            if left == 8:
                _add_8(scratch, table, codes, code, size, mask, index, s, n, scratch, target, fresh)
            elif left == 7:
                _add_7(scratch, table, codes, code, size, mask, index, s, n, scratch, target, fresh)
            elif left == 6:
                _add_6(scratch, table, codes, code, size, mask, index, s, n, scratch, target, fresh)
            elif left == 5:
                _add_5(scratch, table, codes, code, size, mask, index, s, n, scratch, target, fresh)
            elif left == 4:
                _add_4(scratch, table, codes, code, size, mask, index, s, n, scratch, target, fresh)
            elif left == 3:
                _add_3(scratch, table, codes, code, size, mask, index, s, n, scratch, target, fresh)
            elif left == 2:
                _add_2(scratch, table, codes, code, size, mask, index, s, n, scratch, target, fresh)
            else:
                _add_1(scratch, table, codes, code, size, mask, index, s, n, scratch, target, fresh)
            code += n * size
            target += vectors * WIDTH


@njit(cache=True, nogil=True, error_model="numpy")
def lut(task, g, data, const, codes, index, scratch):
    # A layer step (fields 0-22). 24 codes: [group][pass][output][block of the pass][tap], 25 codebook, 26 d,
    # 27 codeword stride, 28 codewords (up to a multiple of ROWS), 29 mask of a code, 30 bytes a code, 31 blocks of a
    # group, 32 index: offsets of their d inputs each, 33 blocks a pass, 34 taps, 35 index: (offset, lanes, place) of
    # each table of a block, 36 tables a block, 37 index: (row step, place) of each code of a pass, 38 floats of the
    # tables of a block, 39 vectors a tile, 40 tiles an image, 41 tiles a task, 42 outputs a task (of a group),
    # 43 tasks along the outputs, 44 scratch: tables, 45 scratch: sums; scratch from 0: packed inputs
    x, xb, xg, outputs, groups, batch, flat = g[0], g[1], g[2], g[5], g[6], g[7], g[8]
    first_code, book, d, stride, words, mask, size = g[24], g[25], g[26], g[27], g[28], g[29], g[30]
    blocks, rows, in_pass, taps, tables, n_tables, steps = g[31], g[32], g[33], g[34], g[35], g[36], g[37]
    block_floats, vectors, image_tiles, task_tiles, o_block, o_tasks = g[38], g[39], g[40], g[41], g[42], g[43]
    t, a = g[44], g[45]
    o_first = task % o_tasks * o_block
    o_count = min(o_block, outputs - o_first)
    tile = task // o_tasks * task_tiles
    for tile in range(tile, min(tile + task_tiles, groups * batch * image_tiles)):
        group = tile // (batch * image_tiles)
        image = tile // image_tiles - group * batch
        q = tile % image_tiles * vectors * WIDTH
        n = min(vectors * WIDTH, flat - q)
        used = (n + WIDTH - 1) // WIDTH
        start = x + group * xg + image * xb + q
        code = first_code + group * blocks * outputs * taps * size
        for block in range(0, blocks, in_pass):
            count = min(in_pass, blocks - block)
            for i in range(count):
                for j in range(n_tables):
                    entry = tables + 3 * j
                    _build(data, start + index[entry], d, rows + (block + i) * d, index, const, book, stride, words,
                           scratch, 0, t + i * block_floats + index[entry + 2], index[entry + 1],
                           index[entry + 1] - (vectors - used) * WIDTH)
            _accumulate(scratch, t, codes, code + o_first * count * taps * size, size, mask, index, steps,
                        count * taps, o_count, a, used, np.int64(block == 0))
            code += outputs * count * taps * size
        finish_tile(scratch, a, used * WIDTH, o_count, group * outputs + o_first, image, q, n, g, data, const)
