"""Copies between strided values: rows, transposition in registers, anything else one number at a time; and fills."""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import config
from numba.extending import intrinsic

from pqnet.kernels.simd import FLOATS, WIDTH, load, splat, store, store_head

ROWS, TRANSPOSED, NUMBERS, FILL = 0, 1, 2, 3


def _transposer():
    def twin(source, x, x_step, target, to, step):
        tile = [source[x + i * x_step : x + i * x_step + WIDTH].copy() for i in range(WIDTH)]
        for j in range(WIDTH):
            target[to + j * step : to + j * step + WIDTH] = [row[j] for row in tile]

    @intrinsic
    def transpose(context, source, x, x_step, target, to, step):
        def codegen(context, builder, signature, values):
            source, x, x_step, target, to, step = values
            places = []
            for at, array, start, distance in ((0, source, x, x_step), (3, target, to, step)):
                data = context.make_array(signature.args[at])(context, builder, array).data
                for i in range(WIDTH):
                    place = builder.gep(data, [builder.add(start, builder.mul(distance, ir.IntType(64)(i)))])
                    places.append(builder.bitcast(place, FLOATS.llvm.as_pointer()))
            rows = []
            for place in places[:WIDTH]:
                rows.append(builder.load(place))
                rows[-1].align = 4
            distance = 1
            while distance < WIDTH:  # swap the two off-diagonal quarters of ever larger squares
                masks = [[], []]
                for lane in range(WIDTH):
                    right = lane & distance
                    masks[0].append(WIDTH + lane - distance if right else lane)
                    masks[1].append(WIDTH + lane if right else lane + distance)
                masks = [ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), mask) for mask in masks]
                for i in (i for i in range(WIDTH) if not i & distance):
                    a, b = rows[i], rows[i + distance]
                    rows[i], rows[i + distance] = (builder.shuffle_vector(a, b, mask) for mask in masks)
                distance *= 2
            for row, place in zip(rows, places[WIDTH:], strict=True):
                builder.store(row, place).align = 4
            return context.get_dummy_value()

        n = types.intp
        return types.void(source, n, n, target, n, n), codegen

    return twin if config.DISABLE_JIT else transpose


def _step_loader():
    def twin(array, index, step):
        return array[index + step * np.arange(WIDTH)]

    @intrinsic
    def load_steps(context, array, index, step):
        def codegen(context, builder, signature, values):
            array, index, step = values
            data = context.make_array(signature.args[0])(context, builder, array).data
            value, place = ir.Constant(FLOATS.llvm, ir.Undefined), builder.gep(data, [index])
            for lane in range(WIDTH):
                value = builder.insert_element(value, builder.load(place), ir.IntType(32)(lane))
                place = builder.gep(place, [step])
            return value

        return FLOATS(array, types.intp, types.intp), codegen

    return twin if config.DISABLE_JIT else load_steps


load_steps = _step_loader()  # WIDTH numbers, ``step`` apart
transpose = (
    _transposer()
)  # (source, x, x_step, target, to, step): target[to + j * step + i] = source[x + i * x_step + j]


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def copy(task, g, data, const, codes, index, scratch):
    # out[i] = x[i] over five axes: sizes g[2:7], steps of x (at g[0]) g[7:12], steps of the result (at g[1]) g[12:17]
    # g[17] ROWS: the last axis has step 1 in both; TRANSPOSED: axis 3 has it in x, the last one in the result;
    # NUMBERS: any steps; FILL: const[g[0]] everywhere, the last axis has step 1. g[18] rows (of axis 3) and g[19]
    # blocks of rows a task, g[20] numbers in the last row (ROWS, FILL); scratch: two tiles of WIDTH vectors
    n1, n2, n3, n4, mode, block = g[3], g[4], g[5], g[6], g[17], g[18]
    x3, x4, o3, o4 = g[10], g[11], g[15], g[16]
    blocks = (n3 + block - 1) // block
    value = splat(const[g[0]] if mode == FILL else const[0])
    for unit in range(task * g[19], min((task + 1) * g[19], g[2] * n1 * n2 * blocks)):
        outer = unit // blocks
        first = (unit - outer * blocks) * block
        i, rest = outer // (n1 * n2), outer % (n1 * n2)
        j, k = rest // n2, rest % n2
        x = g[0] + i * g[7] + j * g[8] + k * g[9]
        out = g[1] + i * g[12] + j * g[13] + k * g[14]
        last = min(first + block, n3)
        if mode == TRANSPOSED:
            for r in range(first, last, WIDTH):
                high = min(WIDTH, last - r)
                for p in range(0, n4, WIDTH):
                    wide = min(WIDTH, n4 - p)
                    at, to = x + r + p * x4, out + r * o3 + p
                    if high == WIDTH and wide == WIDTH:
                        transpose(data, at, x4, data, to, o3)
                        continue
                    for q in range(WIDTH):
                        store(scratch, q * WIDTH, load(data, at + min(q, wide - 1) * x4))
                    transpose(scratch, 0, WIDTH, scratch, WIDTH * WIDTH, WIDTH)
                    for q in range(high):
                        store_head(data, to + q * o3, load(scratch, (WIDTH + q) * WIDTH), wide)
            continue
        for r in range(first, last):
            at, to = x + r * x3, out + r * o3
            if mode == NUMBERS:
                whole = n4 // WIDTH * WIDTH if o4 == 1 else 0
                for p in range(0, whole, WIDTH):
                    store(data, to + p, load_steps(data, at + p * x4, x4))
                for p in range(whole, n4):
                    data[to + p * o4] = data[at + p * x4]
                continue
            wide = g[20] if r == n3 - 1 else n4
            for p in range(0, wide, WIDTH):
                v = value if mode == FILL else load(data, at + p)
                if p + WIDTH <= wide:
                    store(data, to + p, v)
                else:
                    store_head(data, to + p, v, wide - p)
