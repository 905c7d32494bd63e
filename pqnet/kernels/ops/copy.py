"""Copies between strided values: rows, transposition in registers, anything else one element at a time; and fills.

Elements of 4 bytes have kernel `copy`, those of other sizes `copy_elements`.
"""

import numpy as np
from numba import njit, types

from pqnet.kernels.abi import DATA, MAYBE_CONST, MAYBE_DATA, MAYBE_INDEX, SIZE, Arguments, step
from pqnet.kernels.llvm import INDEX, LONG, WORD, compiled_or, element, shuffle, undefined
from pqnet.kernels.llvm import load as emit_load
from pqnet.kernels.llvm import store as emit_store
from pqnet.kernels.pointers import bytes_, longs, shorts
from pqnet.kernels.simd import FLOATS, WIDTH, load, splat, store, store_head

ROWS, TRANSPOSED, SINGLE, FILL = 0, 1, 2, 3
AXES = 5


def _transpose_reference(source, x, x_step, target, to, step):
    tile = [source[x + i * x_step : x + i * x_step + WIDTH].copy() for i in range(WIDTH)]
    for j in range(WIDTH):
        target[to + j * step : to + j * step + WIDTH] = [row[j] for row in tile]


def _transpose(context, source, x, x_step, target, to, step):
    def codegen(context, builder, signature, values):
        def rows_of(array):
            start, distance = values[array + 1 : array + 3]
            starts = (builder.add(start, builder.mul(distance, LONG(i))) for i in range(WIDTH))
            return [element(context, builder, signature, values, array, at) for at in starts]

        sources, targets = rows_of(0), rows_of(3)
        rows = [emit_load(builder, row, FLOATS.llvm) for row in sources]
        distance = 1
        while distance < WIDTH:  # swap the two off-diagonal quarters of ever larger squares
            lanes = range(WIDTH)
            upper = [WIDTH + lane - distance if lane & distance else lane for lane in lanes]
            lower = [WIDTH + lane if lane & distance else lane + distance for lane in lanes]
            for i in (i for i in range(WIDTH) if not i & distance):
                a, b = rows[i], rows[i + distance]
                rows[i], rows[i + distance] = shuffle(builder, a, b, upper), shuffle(builder, a, b, lower)
            distance *= 2
        for row, target in zip(rows, targets, strict=True):
            emit_store(builder, row, target)
        return context.get_dummy_value()

    return types.void(source, INDEX, INDEX, target, INDEX, INDEX), codegen


def _load_steps_reference(array, index, step):
    return array[index + step * np.arange(WIDTH)]


def _load_steps(context, array, index, step):
    def codegen(context, builder, signature, values):
        value = undefined(FLOATS.llvm)
        pointer = element(context, builder, signature, values, 0, values[1])
        for lane in range(WIDTH):
            value = builder.insert_element(value, builder.load(pointer), WORD(lane))
            pointer = builder.gep(pointer, [values[2]])
        return value

    return FLOATS(array, INDEX, INDEX), codegen


load_steps = compiled_or(_load_steps_reference, _load_steps)  # WIDTH elements, ``step`` apart
# (source, x, x_step, target, to, step): target[to + j * step + i] = source[x + i * x_step + j]
transpose = compiled_or(_transpose_reference, _transpose)

# out[i] = x[i] over five axes. ROWS: the last axis has step 1 in both; TRANSPOSED: the last but one has it in x, the
# last one in the result; SINGLE: any steps; FILL: const[value] everywhere, the last axis has step 1 in the result.
COPY = Arguments(
    x=MAYBE_DATA,
    value=MAYBE_CONST,
    out=DATA,
    sizes=SIZE.repeated(AXES),
    x_steps=SIZE.repeated(AXES),
    steps=SIZE.repeated(AXES),
    mode=SIZE,
    block=SIZE,  # rows, which lie on the last axis but one
    per_task=SIZE,  # blocks
    last_row=SIZE,  # elements in the last row (ROWS, FILL)
)


@step(COPY)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def copy(task, g, data, const, codes, index, scratch):
    # scratch: two tiles of WIDTH vectors
    sizes, x_steps, steps, mode, block = g.sizes, g.x_steps, g.steps, g.mode, g.block
    n1, n2, n3, n4 = sizes[1], sizes[2], sizes[3], sizes[4]
    x3, x4, o3, o4 = x_steps[3], x_steps[4], steps[3], steps[4]
    blocks = (n3 + block - 1) // block
    value = splat(const[g.value] if mode == FILL else np.float32(0))
    for unit in range(task * g.per_task, min((task + 1) * g.per_task, sizes[0] * n1 * n2 * blocks)):
        outer = unit // blocks
        first = (unit - outer * blocks) * block
        i, rest = outer // (n1 * n2), outer % (n1 * n2)
        j, k = rest // n2, rest % n2
        x = g.x + i * x_steps[0] + j * x_steps[1] + k * x_steps[2]
        out = g.out + i * steps[0] + j * steps[1] + k * steps[2]
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
            if mode == SINGLE:
                whole = n4 // WIDTH * WIDTH if o4 == 1 else 0
                for p in range(0, whole, WIDTH):
                    store(data, to + p, load_steps(data, at + p * x4, x4))
                for p in range(whole, n4):
                    data[to + p * o4] = data[at + p * x4]
                continue
            wide = g.last_row if r == n3 - 1 else n4
            for p in range(0, wide, WIDTH):
                v = value if mode == FILL else load(data, at + p)
                if p + WIDTH <= wide:
                    store(data, to + p, v)
                else:
                    store_head(data, to + p, v, wide - p)


# The same over four outer axes and one inner axis, for elements of 1, 2 or 8 bytes; a fill is with index[value].
COPY_ELEMENTS = Arguments(
    x=MAYBE_DATA,
    value=MAYBE_INDEX,
    out=DATA,
    sizes=SIZE.repeated(AXES),
    x_steps=SIZE.repeated(AXES),
    steps=SIZE.repeated(AXES),
    element=SIZE,  # bytes
    per_task=SIZE,  # rows, which lie on the last axis
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def move_row(source, x, x_step, target, out, step, n):
    # target[out + i * step] = source[x + i * x_step]
    if x_step == 1 and step == 1:
        for i in range(n):
            target[out + i] = source[x + i]
    else:
        for i in range(n):
            target[out + i * step] = source[x + i * x_step]


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def move_elements(element, data, x, x_step, out, step, n):
    # move_row for elements of so many bytes, in data
    if element == 8:
        move_row(longs(data), x, x_step, longs(data), out, step, n)
    elif element == 4:
        move_row(data, x, x_step, data, out, step, n)
    elif element == 2:
        move_row(shorts(data), x, x_step, shorts(data), out, step, n)
    else:
        move_row(bytes_(data), x, x_step, bytes_(data), out, step, n)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _fill_elements(element, data, value, out, step, n):
    if element == 8:
        for i in range(n):
            longs(data)[out + i * step] = value
    elif element == 2:
        for i in range(n):
            shorts(data)[out + i * step] = np.int16(value)
    else:
        for i in range(n):
            bytes_(data)[out + i * step] = np.uint8(value)


@step(COPY_ELEMENTS)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def copy_elements(task, g, data, const, codes, index, scratch):
    sizes, x_steps, steps = g.sizes, g.x_steps, g.steps
    n1, n2, n3 = sizes[1], sizes[2], sizes[3]
    for row in range(task * g.per_task, min((task + 1) * g.per_task, sizes[0] * n1 * n2 * n3)):
        h, i, j, k = row // (n1 * n2 * n3), row // (n2 * n3) % n1, row // n3 % n2, row % n3
        out = g.out + h * steps[0] + i * steps[1] + j * steps[2] + k * steps[3]
        if g.value >= 0:
            _fill_elements(g.element, data, index[g.value], out, steps[4], sizes[4])
        else:
            x = g.x + h * x_steps[0] + i * x_steps[1] + j * x_steps[2] + k * x_steps[3]
            move_elements(g.element, data, x, x_steps[4], out, steps[4], sizes[4])
