"""Chains of element-wise operations in one pass: a small machine that works on pieces of PIECE lanes.

An instruction changes a whole piece of the result in place, with an operand from memory if it takes one. The piece
stays in the first-level cache from the first instruction to the last.
"""

import numpy as np
from numba import njit

from pqnet.kernels.activation import activate_at
from pqnet.kernels.functions import at_least, at_most, constant, erf_argument, exp, log, tanh
from pqnet.kernels.places import load_at, place, put_at, spread_at
from pqnet.kernels.simd import (
    WIDTH,
    add,
    divide,
    fma,
    maximum,
    minimum,
    multiply,
    round_even,
    select_less,
    splat,
    sqrt,
    subtract,
)

PIECE = 1024
OPERANDS = 6  # at most, beside the first value
# v op operand, or operand op v if TURNED; the last two take no operand.
(ADD, MULTIPLY, FMA, SUBTRACT, TURNED_SUBTRACT, DIVIDE, TURNED_DIVIDE, MAXIMUM, MINIMUM, PRELU) = range(10)
ACTIVATE, FUNCTION = 10, 11
# Functions beside the activations.
(EXP, LOG, SQRT, RSQRT, RECIPROCAL, ERF, FLOOR, CEIL, ROUND, NEG, ABS, SIGN, SQUARE, CUBE) = range(14)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _combined(op, a, b, c):
    if op == ADD:
        return add(a, b)
    if op == MULTIPLY:
        return multiply(a, b)
    if op == FMA:
        return fma(a, b, c)
    if op in (SUBTRACT, TURNED_SUBTRACT):
        return subtract(a, b) if op == SUBTRACT else subtract(b, a)
    if op in (DIVIDE, TURNED_DIVIDE):
        return divide(a, b) if op == DIVIDE else divide(b, a)
    if op in (MAXIMUM, MINIMUM):
        return maximum(a, b) if op == MAXIMUM else minimum(a, b)
    zero = constant(0.0)
    return fma(at_most(a, zero), b, at_least(a, zero))


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _function(kind, v):
    zero, one = constant(0.0), constant(1.0)
    if kind == EXP:
        return exp(v)
    if kind == LOG:
        return log(v)
    if kind == SQRT:
        return sqrt(v)
    if kind in (RSQRT, RECIPROCAL):
        return divide(one, sqrt(v) if kind == RSQRT else v)
    if kind == ERF:
        return tanh(erf_argument(v))
    if kind in (SQUARE, CUBE):
        square = multiply(v, v)
        return square if kind == SQUARE else multiply(square, v)
    if kind == SIGN:
        return select_less(v, zero, constant(-1.0), select_less(zero, v, one, zero))
    turned = multiply(v, constant(-1.0))
    if kind == NEG:
        return turned
    if kind == ABS:
        return add(maximum(v, turned), zero)  # no -0
    if kind == CEIL:
        v = turned
    whole = round_even(v)
    if kind == ROUND:
        return whole
    whole = select_less(v, whole, subtract(whole, one), whole)
    return multiply(whole, constant(-1.0)) if kind == CEIL else whole


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _combine(op, x, y, z, wide, low, high, out, n):
    # OUT n numbers at place out: x op y, bounded, with a third operand z; one y and z for all lanes if not wide.
    # The frequent operations have loops of their own.
    b, c, bottom, top = spread_at(y), spread_at(z), splat(low), splat(high)
    if wide and op == ADD:
        for p in range(0, n, WIDTH):
            v = add(load_at(x, p), load_at(y, p))
            put_at(out, p, at_most(at_least(v, bottom), top), n - p)
        return
    if not wide and (op in (FMA, MULTIPLY)):
        if op == MULTIPLY:
            c = constant(-0.0)
        for p in range(0, n, WIDTH):
            v = fma(load_at(x, p), b, c)
            put_at(out, p, at_most(at_least(v, bottom), top), n - p)
        return
    for p in range(0, n, WIDTH):
        if wide:
            b, c = load_at(y, p), load_at(z, p)
        v = _combined(op, load_at(x, p), b, c)
        put_at(out, p, at_most(at_least(v, bottom), top), n - p)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _apply(kind, x, out, n):
    for p in range(0, n, WIDTH):
        put_at(out, p, _function(kind, load_at(x, p)), n - p)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def elementwise(task, g, data, const, codes, index, scratch):
    # Four axes of sizes g[0:4]; rows are the combinations of the first three, one behind another in the result at g[7].
    # 4 pieces a task; 5 in index: instructions (operation, operand, p, bounds), g[6] of them. x at g[8], steps g[9:12]
    # along the first three axes and 1 along the last. Operand k from 12 + 6 k: 0 data / 1 const, offset, steps along
    # the four axes, the last 0 or 1. p of FMA: how far the terms are behind the factors; of ACTIVATE, whose operand is
    # the kind: two parameters in const. Instructions with an operand end with bounds: const[bounds : bounds + 2].
    n1, n2, n3 = g[1], g[2], g[3]
    table, instructions = g[5], g[6]
    pieces = (n3 + PIECE - 1) // PIECE
    row = task * g[4] // pieces
    first = (task * g[4] - row * pieces) * PIECE
    i0, i1, i2 = row // n2 // n1, row // n2 % n1, row % n2
    for _ in range(min(g[4], g[0] * n1 * n2 * pieces - task * g[4])):
        n = min(PIECE, n3 - first)
        out = g[7] + row * n3 + first
        v = place(data, g[8] + i0 * g[9] + i1 * g[10] + i2 * g[11] + first)
        target = place(data, out)
        for k in range(table, table + 4 * instructions, 4):
            op, operand, p, bounds = np.intp(index[k]), np.intp(index[k + 1]), np.intp(index[k + 2]), index[k + 3]
            if op == ACTIVATE:
                activate_at(operand, v, target, n, const[p], const[p + 1])
            elif op == FUNCTION:
                _apply(operand, v, target, n)
            else:
                f = 12 + 6 * operand
                wide = g[f + 5] != 0
                at = g[f + 1] + i0 * g[f + 2] + i1 * g[f + 3] + i2 * g[f + 4] + (first if wide else 0)
                y = place(data, at) if g[f] == 0 else place(const, at)
                z = y if p == 0 else place(const, at + p)
                _combine(op, v, y, z, wide, const[bounds], const[bounds + 1], target, n)
            v = target
        first += PIECE
        if first >= n3:
            first = 0
            row += 1
            i2 += 1
            if i2 == n2:
                i2 = 0
                i1 += 1
                if i1 == n1:
                    i1 = 0
                    i0 += 1
