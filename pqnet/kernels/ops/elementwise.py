"""Chains of element-wise operations in one pass: a small machine that works on pieces of PIECE lanes.

An instruction changes a whole piece of the result in place, with an operand from memory if it takes one. The piece
stays in the first-level cache from the first instruction to the last.
"""

from numba import njit

from pqnet.kernels.abi import DATA, INDEX, MAYBE_CONST, MAYBE_DATA, SIZE, Arguments, step
from pqnet.kernels.ops.activation import activate_at
from pqnet.kernels.ops.doubles import cos, expm1, log1p, log_2, log_10, power, sin
from pqnet.kernels.ops.functions import at_least, at_most, constant, erf_argument, exp, log, tanh
from pqnet.kernels.pointers import load_at, pointer, put_at, spread_at
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
# v op operand, or operand op v if REVERSED. ACTIVATE and FUNCTION take no operand, and they and powers no bounds.
(ADD, MULTIPLY, FMA, SUBTRACT, REVERSED_SUBTRACT, DIVIDE, REVERSED_DIVIDE, MAXIMUM, MINIMUM, PRELU) = range(10)
ACTIVATE, FUNCTION, POWER, REVERSED_POWER = range(10, 14)
# Functions beside the activations.
(EXP, LOG, SQRT, RSQRT, RECIPROCAL, ERF, FLOOR, CEIL, ROUND, NEG, ABS, SIGN, SQUARE, CUBE) = range(14)
(EXPM1, LOG1P, LOG2, LOG10, SIN, COS) = range(14, 20)  # by `_in_doubles`


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _combined(op, a, b, c):
    if op == ADD:
        return add(a, b)
    if op == MULTIPLY:
        return multiply(a, b)
    if op == FMA:
        return fma(a, b, c)
    if op in (SUBTRACT, REVERSED_SUBTRACT):
        return subtract(a, b) if op == SUBTRACT else subtract(b, a)
    if op in (DIVIDE, REVERSED_DIVIDE):
        return divide(a, b) if op == DIVIDE else divide(b, a)
    if op in (MAXIMUM, MINIMUM):
        return maximum(a, b) if op == MAXIMUM else minimum(a, b)
    zero = constant(0.0)
    return fma(at_most(a, zero), b, at_least(a, zero))


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _in_doubles(kind, x, y, wide, out, n):
    # OUT n elements at pointer out: a function of x, or a power of x and y, one y for all lanes if not wide. Apart from
    # the others, whose loops the calls would slow down
    b = spread_at(y)
    for p in range(0, n, WIDTH):
        v = load_at(x, p)
        if wide:
            b = load_at(y, p)
        if kind == POWER:
            v = power(v, b)
        elif kind == REVERSED_POWER:
            v = power(b, v)
        elif kind == EXPM1:
            v = expm1(v)
        elif kind == LOG1P:
            v = log1p(v)
        elif kind == LOG2:
            v = log_2(v)
        elif kind == LOG10:
            v = log_10(v)
        else:
            v = sin(v) if kind == SIN else cos(v)
        put_at(out, p, v, n - p)


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
    negative = multiply(v, constant(-1.0))
    if kind == NEG:
        return negative
    if kind == ABS:
        return add(maximum(v, negative), zero)  # no -0
    if kind == CEIL:
        v = negative
    whole = round_even(v)
    if kind == ROUND:
        return whole
    whole = select_less(v, whole, subtract(whole, one), whole)
    return multiply(whole, constant(-1.0)) if kind == CEIL else whole


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _combine(op, x, y, z, wide, low, high, out, n):
    # OUT n elements at pointer out: x op y, bounded, with a third operand z; one y and z for all lanes if not wide.
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


# Four axes; rows are the combinations of the first three, one behind another in the result. The chain begins with x,
# whose last axis has step 1. Operand k lies in data or in const, its position in the other is -1; index[steps + 4 * k:]
# has its steps along the four axes, of which the last is 0 or 1. index[table:] has instructions (operation, operand, p,
# bounds). p of FMA: how far the terms are behind the factors; of ACTIVATE, whose operand is the kind: two parameters in
# const. Instructions that combine end with bounds: const[bounds : bounds + 2].
ELEMENTWISE = Arguments(
    x=DATA,
    out=DATA,
    sizes=SIZE.repeated(4),
    x_steps=SIZE.repeated(3),
    per_task=SIZE,  # pieces
    table=INDEX,
    instructions=SIZE,
    in_data=MAYBE_DATA.repeated(OPERANDS),
    in_const=MAYBE_CONST.repeated(OPERANDS),
    steps=INDEX,
)


@step(ELEMENTWISE)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def elementwise(task, g, data, const, codes, index, scratch):
    n1, n2, n3 = g.sizes[1], g.sizes[2], g.sizes[3]
    table, instructions, per_task = g.table, g.instructions, g.per_task
    pieces = (n3 + PIECE - 1) // PIECE
    row = task * per_task // pieces
    first = (task * per_task - row * pieces) * PIECE
    i0, i1, i2 = row // n2 // n1, row // n2 % n1, row % n2
    for _ in range(min(per_task, g.sizes[0] * n1 * n2 * pieces - task * per_task)):
        n = min(PIECE, n3 - first)
        out = g.out + row * n3 + first
        v = pointer(data, g.x + i0 * g.x_steps[0] + i1 * g.x_steps[1] + i2 * g.x_steps[2] + first)
        target = pointer(data, out)
        for k in range(table, table + 4 * instructions, 4):
            op, operand, p, bounds = index[k], index[k + 1], index[k + 2], index[k + 3]
            if op == ACTIVATE:
                activate_at(operand, v, target, n, const[p], const[p + 1])
            elif op == FUNCTION and operand >= EXPM1:
                _in_doubles(operand, v, v, False, target, n)
            elif op == FUNCTION:
                _apply(operand, v, target, n)
            else:
                f = g.steps + 4 * operand
                wide = index[f + 3] != 0
                at = i0 * index[f] + i1 * index[f + 1] + i2 * index[f + 2] + (first if wide else 0)
                in_const = g.in_const[operand] + at
                y = pointer(data, g.in_data[operand] + at) if g.in_data[operand] >= 0 else pointer(const, in_const)
                z = y if p == 0 else pointer(const, in_const + p)
                if op >= POWER:
                    _in_doubles(op, v, y, wide, target, n)
                else:
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
