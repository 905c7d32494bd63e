"""Selection of elements by indices that lie in the arena, and the range of such indices."""

import numpy as np
from numba import njit

from pqnet.kernels.abi import DATA, MAYBE_CONST, MAYBE_DATA, MAYBE_INDEX, SIZE, Arguments, step
from pqnet.kernels.ops.copy import move_elements, move_row
from pqnet.kernels.pointers import bytes_, ints, longs, shorts

# The least and the largest of n int64 numbers.
RANGE = Arguments(ids=DATA, out=DATA, n=SIZE)


@step(RANGE)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def find_range(task, g, data, const, codes, index, scratch):
    ids, at = longs(data), g.ids
    low = high = ids[at]
    for i in range(1, g.n):
        low, high = min(low, ids[at + i]), max(high, ids[at + i])
    ids[g.out], ids[g.out + 1] = low, high


# out[.., i, ..] = x[.., ids[i], ..] for elements of ``element`` bytes. Four axes beside that of the ids, which are in
# data or in index; of those axes the last is copied at once. The source is in data, or known: floats in const, other
# numbers as int64 in index. Indices outside of [0, below) read the nearest element:
# whoever checks their range reports them.
GATHER = Arguments(
    x=MAYBE_DATA,
    floats=MAYBE_CONST,
    numbers=MAYBE_INDEX,
    out=DATA,
    ids=MAYBE_DATA,
    table=MAYBE_INDEX,
    n=SIZE,  # ids
    below=SIZE,
    x_step=SIZE,  # along the axis of the ids
    step=SIZE,
    sizes=SIZE.repeated(4),
    x_steps=SIZE.repeated(4),
    steps=SIZE.repeated(4),
    element=SIZE,
    per_task=SIZE,  # rows along the last axis
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _put_numbers(element, index, x, x_step, data, out, step, n):
    # move_row from int64 to integers of so many bytes
    for i in range(n):
        number, to = index[x + i * x_step], out + i * step
        if element == 8:
            longs(data)[to] = number
        elif element == 4:
            ints(data)[to] = np.int32(number)
        elif element == 2:
            shorts(data)[to] = np.int16(number)
        else:
            bytes_(data)[to] = np.uint8(number & 255)


@step(GATHER)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def gather(task, g, data, const, codes, index, scratch):
    sizes, x_steps, steps, n = g.sizes, g.x_steps, g.steps, g.n
    n1, n2 = sizes[1], sizes[2]
    for row in range(task * g.per_task, min((task + 1) * g.per_task, sizes[0] * n1 * n2 * n)):
        outer, i = row // n, row % n
        h, j, k = outer // n2 // n1, outer // n2 % n1, outer % n2
        at = index[g.table + i] if g.table >= 0 else longs(data)[g.ids + i]
        at = min(max(at, 0), g.below - 1)
        x = at * g.x_step + h * x_steps[0] + j * x_steps[1] + k * x_steps[2]
        out = g.out + i * g.step + h * steps[0] + j * steps[1] + k * steps[2]
        if g.x >= 0:
            move_elements(g.element, data, g.x + x, x_steps[3], out, steps[3], sizes[3])
        elif g.floats >= 0:
            move_row(const, g.floats + x, x_steps[3], data, out, steps[3], sizes[3])
        else:
            _put_numbers(g.element, index, g.numbers + x, x_steps[3], data, out, steps[3], sizes[3])
