"""Products with packed weights for one position at a time: codewords are multiplied where they are, nothing is decoded.

For few positions decoding costs more than the product, and tables of K products more still if K is above the outputs.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic

from pqnet.kernels.epilogue import finish_rows

UNROLL = 4  # codes at a time, each with its own running sums

_WORD, _LONG = ir.IntType(32), ir.IntType(64)


def _dotter(lanes):
    """Return dot(codes, c, n, wide, book, b, x, x0): the sum over j < n of codeword[code j] . x[x0 + j * lanes ..]."""

    def twin(codes, c, n, wide, book, b, x, x0):
        total = np.float32(0)
        for j in range(n):
            code = int(codes[c + 2 * j]) | int(codes[c + 2 * j + 1]) << 8 if wide else int(codes[c + j])
            word = book[b + code * lanes : b + (code + 1) * lanes]
            total += np.float32(word @ x[x0 + j * lanes : x0 + (j + 1) * lanes])
        return total

    @intrinsic
    def dot(context, codes, c, n, wide, book, b, x, x0):
        kind = ir.VectorType(ir.FloatType(), lanes)

        def codegen(context, builder, signature, values):
            def pointer(array, at):
                data = context.make_array(signature.args[array])(context, builder, values[array]).data
                return builder.gep(data, [values[at]])

            def vector(base, at):
                value = builder.load(builder.bitcast(builder.gep(base, [at]), kind.as_pointer()))
                value.align = 4
                return value

            first, words, inputs, n, wide = pointer(0, 1), pointer(4, 5), pointer(6, 7), values[2], values[3]
            fma = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fma.v{lanes}f32"
            )
            slots = [cgutils.alloca_once_value(builder, ir.Constant(kind, [0.0] * lanes)) for _ in range(UNROLL)]

            def step(j, slot, double):
                if double:
                    place = builder.bitcast(builder.gep(first, [builder.shl(j, _LONG(1))]), ir.IntType(16).as_pointer())
                    number = builder.load(place)
                    number.align = 1
                else:
                    number = builder.load(builder.gep(first, [j]))
                at = builder.mul(builder.zext(number, _LONG), _LONG(lanes))
                word, value = vector(words, at), vector(inputs, builder.mul(j, _LONG(lanes)))
                builder.store(builder.call(fma, [word, value, builder.load(slot)]), slot)

            whole = builder.and_(n, _LONG(-UNROLL))
            with builder.if_else(builder.icmp_signed("!=", wide, _LONG(0))) as branches:
                for double, branch in zip((True, False), branches, strict=True):
                    with branch:
                        with cgutils.for_range_slice(builder, _LONG(0), whole, _LONG(UNROLL)) as (j, _):
                            for u in range(UNROLL):
                                step(builder.add(j, _LONG(u)), slots[u], double)
                        with cgutils.for_range_slice(builder, whole, n, _LONG(1)) as (j, _):
                            step(j, slots[0], double)
            parts = [builder.load(slot) for slot in slots]
            total = builder.fadd(builder.fadd(parts[0], parts[1]), builder.fadd(parts[2], parts[3]))
            width = lanes
            while width > 1:
                width //= 2
                halves = [
                    builder.shuffle_vector(
                        total, total, ir.Constant(ir.VectorType(_WORD, width), list(range(start, start + width)))
                    )
                    for start in (0, width)
                ]
                total = builder.fadd(*halves)
            return builder.extract_element(total, _WORD(0))

        i = types.intp
        return types.float32(codes, i, i, i, book, i, x, i), codegen

    return twin if config.DISABLE_JIT else dot


dot_4, dot_8, dot_16 = _dotter(4), _dotter(8), _dotter(16)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def dots(task, g, data, const, codes, index, scratch):
    # A layer step (fields 0-22). 24 codes offset, 25 codebook, 26 d, 27 codeword stride: 4, 8 or 16, zeros behind d,
    # 28 bytes a code, 29 bytes a row of codes, 30 outputs a task, 31 tasks along the outputs of a group, 32 sums
    x, xb, xg, i0, k, outputs, batch = g[0], g[1], g[2], g[3], g[4], g[5], g[7]
    pitch, width, image = g[9], g[10], g[13]
    first_code, book, d, stride, wide, code_row = g[24], g[25], g[26], g[27], g[28] - 1, g[29]
    o_block, o_tasks, sums = g[30], g[31], g[32]
    group = task // o_tasks
    o_first = task % o_tasks * o_block
    o_last = min(o_first + o_block, outputs)
    for p in range(batch * image):
        b = p // image
        y = (p - b * image) // width
        start = x + group * xg + b * xb + y * pitch + p - b * image - y * width
        for m in range(k // d):
            for j in range(d):
                scratch[m * stride + j] = data[start + index[i0 + m * d + j]]
            for j in range(d, stride):
                scratch[m * stride + j] = 0
        for o in range(o_first, o_last):
            c = first_code + (group * outputs + o) * code_row
            if stride == 4:
                total = dot_4(codes, c, k // d, wide, const, book, scratch, 0)
            elif stride == 8:
                total = dot_8(codes, c, k // d, wide, const, book, scratch, 0)
            else:
                total = dot_16(codes, c, k // d, wide, const, book, scratch, 0)
            scratch[sums] = total
            finish_rows(scratch, sums, 0, 1, group * outputs + o, p, 1, g, data, const)
