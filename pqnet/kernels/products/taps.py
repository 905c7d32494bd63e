"""Sums of products, each of which only a rectangle of the positions has, and what follows the whole sums."""

import numpy as np
from numba import njit

from pqnet.kernels.abi import DATA, INDEX, SIZE, Arguments, step
from pqnet.kernels.products.epilogue import EPILOGUE, finish_rows
from pqnet.kernels.simd import WIDTH, add, load, splat, store, store_head

# Output o has ``length`` numbers from data[sums + o * length] on: those of each rectangle row by row. A rectangle is
# index[rectangles + 4 * i:]: its first number, its first position, its rows and columns. Rows of positions are
# ``width`` apart.
ADD_TAPS = Arguments(
    sums=DATA,
    length=SIZE,
    rectangles=INDEX,
    count=SIZE,  # of rectangles
    width=SIZE,
    positions=SIZE,
    outputs=SIZE,
    per_task=SIZE,  # outputs
    end=EPILOGUE,
)


@step(ADD_TAPS)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def add_taps(task, g, data, const, codes, index, scratch):
    zero = splat(np.float32(0))
    for o in range(task * g.per_task, min((task + 1) * g.per_task, g.outputs)):
        for j in range(0, g.positions, WIDTH):
            store(scratch, j, zero)
        for i in range(g.count):
            at = g.rectangles + 4 * i
            first, to, columns = g.sums + o * g.length + index[at], index[at + 1], index[at + 3]
            for _ in range(index[at + 2]):
                for j in range(0, columns, WIDTH):
                    v = add(load(scratch, to + j), load(data, first + j))
                    if columns - j >= WIDTH:
                        store(scratch, to + j, v)
                    else:
                        store_head(scratch, to + j, v, columns - j)
                first += columns
                to += g.width
        finish_rows(scratch, 0, 0, 1, o, 0, g.positions, g.end, data, const)
