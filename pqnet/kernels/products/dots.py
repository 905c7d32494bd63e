"""Products with packed weights for one position at a time: codewords are multiplied where they are, nothing is decoded.

For few positions decoding costs more than the product, and tables of K products more still if K is above the outputs.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from pqnet.kernels.abi import SCRATCH, SIZE, Arguments, step
from pqnet.kernels.llvm import FLOAT, HALF, INDEX, LONG, compiled_or, constant, element, fma, load, offset, sum_halves
from pqnet.kernels.products.epilogue import EPILOGUE, WINDOWS, finish_rows
from pqnet.kernels.products.gemm import WEIGHT

UNROLL = 4  # codes at a time, each with its own running sums


def _dot(lanes):
    """Return dot(codes, c, n, wide, book, b, x, x0): the sum over j < n of codeword[code j] . x[x0 + j * lanes ..]."""

    def reference(codes, c, n, wide, book, b, x, x0):
        total = np.float32(0)
        for j in range(n):
            code = int(codes[c + 2 * j]) | int(codes[c + 2 * j + 1]) << 8 if wide else int(codes[c + j])
            word = book[b + code * lanes : b + (code + 1) * lanes]
            total += np.float32(word @ x[x0 + j * lanes : x0 + (j + 1) * lanes])
        return total

    def dot(context, codes, c, n, wide, book, b, x, x0):
        kind = ir.VectorType(FLOAT, lanes)

        def codegen(context, builder, signature, values):
            pointers = (element(context, builder, signature, values, i, values[i + 1]) for i in (0, 4, 6))
            first, words, inputs = pointers
            n, wide = values[2], values[3]
            slots = [cgutils.alloca_once_value(builder, constant(kind, 0.0)) for _ in range(UNROLL)]

            def add(j, slot, double):
                if double:
                    number = load(builder, offset(builder, first, builder.shl(j, LONG(1))), HALF, align=1)
                else:
                    number = builder.load(offset(builder, first, j))
                at = builder.mul(builder.zext(number, LONG), LONG(lanes))
                word = load(builder, offset(builder, words, at), kind)
                value = load(builder, offset(builder, inputs, builder.mul(j, LONG(lanes))), kind)
                builder.store(fma(builder, word, value, builder.load(slot)), slot)

            whole = builder.and_(n, LONG(-UNROLL))
            with builder.if_else(builder.icmp_signed("!=", wide, LONG(0))) as branches:
                for double, branch in zip((True, False), branches, strict=True):
                    with branch:
                        with cgutils.for_range_slice(builder, LONG(0), whole, LONG(UNROLL)) as (j, _):
                            for u in range(UNROLL):
                                add(builder.add(j, LONG(u)), slots[u], double)
                        with cgutils.for_range_slice(builder, whole, n, LONG(1)) as (j, _):
                            add(j, slots[0], double)
            parts = [builder.load(slot) for slot in slots]
            return sum_halves(builder, builder.fadd(builder.fadd(*parts[:2]), builder.fadd(*parts[2:])))

        i = INDEX
        return types.float32(codes, i, i, i, book, i, x, i), codegen

    return compiled_or(reference, dot)


dot_4, dot_8, dot_16 = _dot(4), _dot(8), _dot(16)

DOTS = Arguments(
    layer=WINDOWS,
    end=EPILOGUE,
    weight=WEIGHT,  # codewords 4, 8 or 16 apart, zeros behind their d numbers
    o_block=SIZE,  # outputs a task
    o_tasks=SIZE,  # tasks along the outputs of a group
    sums=SCRATCH,
)


@step(DOTS)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def dots(task, g, data, const, codes, index, scratch):
    layer, w = g.layer, g.weight
    i0, k, outputs, image, width = layer.offsets, layer.reduction, layer.outputs, layer.image, layer.width
    book, d, stride, wide = w.weight, w.d, w.stride, w.code_bytes - 1
    group = task // g.o_tasks
    o_first = task % g.o_tasks * g.o_block
    o_last = min(o_first + g.o_block, outputs)
    for p in range(layer.batch * image):
        b = p // image
        y = (p - b * image) // width
        start = layer.x + group * layer.group_step + b * layer.image_step + y * layer.pitch + p - b * image - y * width
        for m in range(k // d):
            for j in range(d):
                scratch[m * stride + j] = data[start + index[i0 + m * d + j]]
            for j in range(d, stride):
                scratch[m * stride + j] = 0
        for o in range(o_first, o_last):
            c = w.codes + (group * outputs + o) * w.code_row
            if stride == 4:
                total = dot_4(codes, c, k // d, wide, const, book, scratch, 0)
            elif stride == 8:
                total = dot_8(codes, c, k // d, wide, const, book, scratch, 0)
            else:
                total = dot_16(codes, c, k // d, wide, const, book, scratch, 0)
            scratch[g.sums] = total
            finish_rows(scratch, g.sums, 0, 1, group * outputs + o, p, 1, g.end, data, const)
