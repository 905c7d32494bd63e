"""Sums and extremes of integers and booleans; positions of extremes, products and variances of any numbers.

All along rows. Products and variances of floats are computed in float64.
"""

import numpy as np
from numba import njit

from pqnet.kernels.abi import DATA, FLAG, SIZE, Arguments, step
from pqnet.kernels.ops.typed import BYTE, FLOAT, INT, LONG, SHORT, SIGNED_BYTE
from pqnet.kernels.pointers import bytes_, doubles, ints, longs, shorts, signed_bytes

SUM, MAXIMUM, MINIMUM, FIRST_MAXIMUM, FIRST_MINIMUM, PRODUCT = range(6)
LANES = 64  # rows of floats that are reduced together
SCRATCH = 2 * 2 * LANES  # floats: two float64 for each of them


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _reduced(operation, source, x, step, n):
    # The sum, product, an extreme, or the position of the first one, of n elements; NaN is beyond all other numbers
    total = np.int64(0)
    if operation == SUM:
        for i in range(n):
            total += np.int64(source[x + i * step])
        return total
    if operation == PRODUCT:
        total = np.int64(1)
        for i in range(n):
            total *= np.int64(source[x + i * step])
        return total
    best = source[x]
    largest = operation in (MAXIMUM, FIRST_MAXIMUM)
    for i in range(1, n):
        value = source[x + i * step]
        if (value > best if largest else value < best) or (value != value and best == best):
            best, total = value, np.int64(i)
    return np.int64(best) if operation <= MINIMUM else total


# Rows of n elements, x_step apart, lie on three outer axes; the result is dense.
REDUCE_TYPED = Arguments(
    x=DATA,
    type=SIZE,
    out=DATA,
    out_type=SIZE,
    sizes=SIZE.repeated(3),
    x_steps=SIZE.repeated(3),
    n=SIZE,
    x_step=SIZE,
    operation=SIZE,
    per_task=SIZE,  # rows
)


@step(REDUCE_TYPED)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def reduce_typed(task, g, data, const, codes, index, scratch):
    n1, n2, n, step, op, kind = g.sizes[1], g.sizes[2], g.n, g.x_step, g.operation, g.type
    for row in range(task * g.per_task, min((task + 1) * g.per_task, g.sizes[0] * n1 * n2)):
        i, j, k = row // n2 // n1, row // n2 % n1, row % n2
        x, out = g.x + i * g.x_steps[0] + j * g.x_steps[1] + k * g.x_steps[2], g.out + row
        if kind == FLOAT:
            result = _reduced(op, data, x, step, n)
        elif kind == LONG:
            result = _reduced(op, longs(data), x, step, n)
        elif kind == INT:
            result = _reduced(op, ints(data), x, step, n)
        elif kind == SHORT:
            result = _reduced(op, shorts(data), x, step, n)
        elif kind == SIGNED_BYTE:
            result = _reduced(op, signed_bytes(data), x, step, n)
        else:
            result = _reduced(op, bytes_(data), x, step, n)
        if g.out_type == LONG:
            longs(data)[out] = result
        elif g.out_type == INT:
            ints(data)[out] = np.int32(result)
        elif g.out_type == SHORT:
            shorts(data)[out] = np.int16(result)
        elif g.out_type == SIGNED_BYTE:
            signed_bytes(data)[out] = np.int8(result)
        elif g.out_type == BYTE:
            bytes_(data)[out] = np.uint8(result)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _multiply_up(x, at, step, n, lane_step, lanes, totals):
    # OUT totals: the products of n elements, for each lane
    totals[:lanes] = 1
    for i in range(n):
        for lane in range(lanes):
            totals[lane] *= np.float64(x[at + i * step + lane * lane_step])


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _square_up(x, at, step, n, lane_step, lanes, totals, divisor):
    # OUT totals: the squared distances from the mean of n elements divided, for each lane; behind them the means
    totals[: LANES + lanes] = 0
    for i in range(n):
        for lane in range(lanes):
            totals[LANES + lane] += np.float64(x[at + i * step + lane * lane_step])
    for lane in range(lanes):
        totals[LANES + lane] /= np.float64(n)
    for i in range(n):
        for lane in range(lanes):
            deviation = np.float64(x[at + i * step + lane * lane_step]) - totals[LANES + lane]
            totals[lane] += deviation * deviation
    for lane in range(lanes):
        totals[lane] /= np.float64(divisor)


# As above, of floats. Rows that follow each other on the last outer axis are reduced together, so that no addition has
# to wait for the one before it.
REDUCE_WIDE = Arguments(
    x=DATA,
    out=DATA,
    sizes=SIZE.repeated(3),
    x_steps=SIZE.repeated(3),
    n=SIZE,
    x_step=SIZE,
    product=FLAG,  # else the variance
    divisor=SIZE,  # of a variance
    per_task=SIZE,  # pieces of LANES rows
)


@step(REDUCE_WIDE)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def reduce_wide(task, g, data, const, codes, index, scratch):
    n1, n2, n, step, lane_step, totals = g.sizes[1], g.sizes[2], g.n, g.x_step, g.x_steps[2], doubles(scratch)
    pieces = (n2 + LANES - 1) // LANES
    for unit in range(task * g.per_task, min((task + 1) * g.per_task, g.sizes[0] * n1 * pieces)):
        row, first = unit // pieces, unit % pieces * LANES
        lanes = min(LANES, n2 - first)
        x = g.x + row // n1 * g.x_steps[0] + row % n1 * g.x_steps[1] + first * lane_step
        if g.product == 1:
            _multiply_up(data, x, step, n, lane_step, lanes, totals)
        elif lane_step == 1:  # neighbours: the compiler makes vectors of them
            _square_up(data, x, step, n, 1, lanes, totals, g.divisor)
        else:
            _square_up(data, x, step, n, lane_step, lanes, totals, g.divisor)
        out = g.out + row * n2 + first
        for lane in range(lanes):
            data[out + lane] = np.float32(totals[lane])
