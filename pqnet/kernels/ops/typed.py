"""Comparisons, logic, choice, conversion and integer arithmetic on elements of any types, with broadcasting.

Operands are read in pieces of PIECE elements and converted on the way, to int64 or to float32; what is computed is
converted to the type of the result as it is stored: integers wrap.
"""

import numpy as np
from numba import njit

from pqnet.kernels.abi import DATA, FLAG, MAYBE_CODES, MAYBE_CONST, MAYBE_DATA, MAYBE_INDEX, SIZE, Arguments, step
from pqnet.kernels.pointers import bytes_, ints, longs, shorts, signed_bytes

PIECE = 512
SCRATCH = 6 * PIECE  # floats: three pieces of int64
# Types of elements; bool is BYTE.
(FLOAT, LONG, INT, SHORT, SIGNED_BYTE, BYTE) = range(6)
(ADD, SUBTRACT, MULTIPLY, DIVIDE, MAXIMUM, MINIMUM, NEGATIVE, ABSOLUTE, SIGN, SAME, CHOOSE) = range(11)
(FLOOR_DIVIDE, TRUNCATE_DIVIDE, REMAINDER, TRUNCATE_REMAINDER) = range(11, 15)
(BIT_AND, BIT_OR, BIT_XOR, BIT_NOT, SHIFT_LEFT, SHIFT_RIGHT) = range(15, 21)  # of integers only
FIRST_TRUTH = 21  # from here on the result is 0 or 1
(EQUAL, NOT_EQUAL, LESS, LESS_EQUAL, GREATER, GREATER_EQUAL, AND, OR, NOT, TRUTH) = range(FIRST_TRUTH, FIRST_TRUTH + 10)
WHOLE, WHOLE_32 = 31, 32  # a float without its fraction; what int64, or int32, does not hold becomes its least number


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _spread(source, at, step, n, target, to):
    if step == 1:
        for i in range(n):
            target[to + i] = source[at + i]
    else:
        for i in range(n):
            target[to + i] = source[at + i * step]


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _fetch(o, first, at, n, data, const, codes, index, target, to):
    # target[to : to + n] = elements of an operand from element ``first`` of the last axis on
    step = o.steps[3]
    at += first * step
    if o.in_const >= 0:
        _spread(const, o.in_const + at, step, n, target, to)
    elif o.in_codes >= 0:
        _spread(codes, o.in_codes + at, step, n, target, to)
    elif o.in_index >= 0:
        _spread(index, o.in_index + at, step, n, target, to)
    elif o.type == FLOAT:
        _spread(data, o.in_data + at, step, n, target, to)
    elif o.type == LONG:
        _spread(longs(data), o.in_data + at, step, n, target, to)
    elif o.type == INT:
        _spread(ints(data), o.in_data + at, step, n, target, to)
    elif o.type == SHORT:
        _spread(shorts(data), o.in_data + at, step, n, target, to)
    elif o.type == SIGNED_BYTE:
        _spread(signed_bytes(data), o.in_data + at, step, n, target, to)
    else:
        _spread(bytes_(data), o.in_data + at, step, n, target, to)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _compute_longs(op, v, x, y, z, n):
    # v[x + i] = v[x + i] op v[y + i]; CHOOSE: v[y + i] where v[z + i] is 0
    if op == ADD:
        for i in range(n):
            v[x + i] += v[y + i]
    elif op == SUBTRACT:
        for i in range(n):
            v[x + i] -= v[y + i]
    elif op == MULTIPLY:
        for i in range(n):
            v[x + i] *= v[y + i]
    elif op == MAXIMUM:
        for i in range(n):
            v[x + i] = max(v[x + i], v[y + i])
    elif op == MINIMUM:
        for i in range(n):
            v[x + i] = min(v[x + i], v[y + i])
    elif op == NEGATIVE:
        for i in range(n):
            v[x + i] = -v[x + i]
    elif op == ABSOLUTE:
        for i in range(n):
            v[x + i] = v[x + i] if v[x + i] >= 0 else -v[x + i]
    elif op == SIGN:
        for i in range(n):
            v[x + i] = np.int64(v[x + i] > 0) - np.int64(v[x + i] < 0)
    elif op == CHOOSE:
        for i in range(n):
            v[x + i] = v[x + i] if v[z + i] != 0 else v[y + i]


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _divided(op, a, b):
    # Quotient or remainder; 0 of a division by 0. The least number has no negative: its quotient by -1 wraps
    if b == 0:
        return np.int64(0)
    if b == -1:
        return np.int64(0) if op in (REMAINDER, TRUNCATE_REMAINDER) else -a
    quotient = a // b
    rest = a - quotient * b
    truncated = op in (TRUNCATE_DIVIDE, TRUNCATE_REMAINDER) and rest != 0 and (a < 0) != (b < 0)
    if op in (REMAINDER, TRUNCATE_REMAINDER):
        return rest - b if truncated else rest
    return quotient + 1 if truncated else quotient


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _divided_floats(op, a, b):
    # Quotient or remainder as NumPy has them: the remainder is exact, a quotient is that of a without the remainder
    zero, one = np.float32(0), np.float32(1)
    rest = np.float32(np.fmod(np.float64(a), np.float64(b)))
    if op == TRUNCATE_REMAINDER or (op == REMAINDER and b == zero):
        return rest
    if op == TRUNCATE_DIVIDE:
        return np.trunc(a / b)
    if b == zero:
        return a / b
    quotient = (a - rest) / b
    if rest == zero:
        rest = np.copysign(zero, b)
    elif (b < zero) != (rest < zero):
        rest, quotient = rest + b, quotient - one
    if op == REMAINDER:
        return rest
    if quotient == zero:
        return np.copysign(zero, a / b)
    whole = np.floor(quotient)
    return whole + one if quotient - whole > np.float32(0.5) else whole


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _compute_bits(op, v, x, y, n):
    # A shift by less than 0 or by more bits than there are takes all bits out
    if op == BIT_AND:
        for i in range(n):
            v[x + i] &= v[y + i]
    elif op == BIT_OR:
        for i in range(n):
            v[x + i] |= v[y + i]
    elif op == BIT_XOR:
        for i in range(n):
            v[x + i] ^= v[y + i]
    elif op == BIT_NOT:
        for i in range(n):
            v[x + i] = ~v[x + i]
    elif op == SHIFT_LEFT:
        for i in range(n):
            v[x + i] = v[x + i] << v[y + i] if 0 <= v[y + i] < 64 else 0
    elif op == SHIFT_RIGHT:
        for i in range(n):
            v[x + i] = v[x + i] >> (v[y + i] if 0 <= v[y + i] < 64 else 63)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _compute_floats(op, f, x, y, z, n, v):
    # f[x + i] = f[x + i] op f[y + i]; CHOOSE: f[y + i] where v[z + i] is 0
    if op == ADD:
        for i in range(n):
            f[x + i] += f[y + i]
    elif op == SUBTRACT:
        for i in range(n):
            f[x + i] -= f[y + i]
    elif op == MULTIPLY:
        for i in range(n):
            f[x + i] *= f[y + i]
    elif op == DIVIDE:
        for i in range(n):
            f[x + i] /= f[y + i]
    elif op == MAXIMUM:  # NaN if either is
        for i in range(n):
            f[x + i] = f[x + i] if f[x + i] > f[y + i] or f[x + i] != f[x + i] else f[y + i]
    elif op == MINIMUM:
        for i in range(n):
            f[x + i] = f[x + i] if f[x + i] < f[y + i] or f[x + i] != f[x + i] else f[y + i]
    elif op == CHOOSE:
        for i in range(n):
            f[x + i] = f[x + i] if v[z + i] != 0 else f[y + i]
    elif op >= FLOOR_DIVIDE:
        for i in range(n):
            f[x + i] = _divided_floats(op, f[x + i], f[y + i])


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _truth(op, a, x, y, n, v, z):
    # v[z + i] = whether a[x + i] op a[y + i]; a has int64 or float32
    if op == EQUAL:
        for i in range(n):
            v[z + i] = a[x + i] == a[y + i]
    elif op == NOT_EQUAL:
        for i in range(n):
            v[z + i] = a[x + i] != a[y + i]
    elif op == LESS:
        for i in range(n):
            v[z + i] = a[x + i] < a[y + i]
    elif op == LESS_EQUAL:
        for i in range(n):
            v[z + i] = a[x + i] <= a[y + i]
    elif op == GREATER:
        for i in range(n):
            v[z + i] = a[x + i] > a[y + i]
    elif op == GREATER_EQUAL:
        for i in range(n):
            v[z + i] = a[x + i] >= a[y + i]
    elif op == AND:
        for i in range(n):
            v[z + i] = (a[x + i] != 0) & (a[y + i] != 0)
    elif op == OR:
        for i in range(n):
            v[z + i] = (a[x + i] != 0) | (a[y + i] != 0)
    elif op == NOT:
        for i in range(n):
            v[z + i] = a[x + i] == 0
    else:
        for i in range(n):
            v[z + i] = a[x + i] != 0


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _without_fraction(op, f, x, n, v, z):
    least = np.int64(-(2**63)) if op == WHOLE else np.int64(-(2**31))
    limit = -np.float32(least)
    for i in range(n):
        a = f[x + i]
        v[z + i] = np.int64(a) if a >= -limit and a < limit else least


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _put(kind, values, x, n, data, out):
    # Integers of fewer bits take the low bits.
    if kind == LONG:
        _spread(values, x, 1, n, longs(data), out)
    elif kind == INT:
        _spread(values, x, 1, n, ints(data), out)
    elif kind == SHORT:
        _spread(values, x, 1, n, shorts(data), out)
    elif kind == SIGNED_BYTE:
        _spread(values, x, 1, n, signed_bytes(data), out)
    else:
        _spread(values, x, 1, n, bytes_(data), out)


# An operand lies in data, where its elements have a type, or is a constant: floats in const, bytes in codes, int64 in
# index; its position in the others is -1, and all are -1 if there is no such operand.
OPERAND = Arguments(
    in_data=MAYBE_DATA,
    in_const=MAYBE_CONST,
    in_codes=MAYBE_CODES,
    in_index=MAYBE_INDEX,
    type=SIZE,
    steps=SIZE.repeated(4),
)

# out = x op y over four axes, dense; CHOOSE: x where the condition is true, else y.
TYPED = Arguments(
    x=OPERAND,
    y=OPERAND,
    condition=OPERAND,
    out=DATA,
    out_type=SIZE,
    operation=SIZE,
    floats=FLAG,  # whether x and y are computed with as float32, else as int64
    sizes=SIZE.repeated(4),
    per_task=SIZE,  # pieces
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _start(o, i, j, k):
    return i * o.steps[0] + j * o.steps[1] + k * o.steps[2]


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _exists(o):
    return o.in_data >= 0 or o.in_const >= 0 or o.in_codes >= 0 or o.in_index >= 0


@step(TYPED)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def typed(task, g, data, const, codes, index, scratch):
    # scratch: three pieces: x, y, and the condition or a result of another type than x
    n1, n2, n3, op, values = g.sizes[1], g.sizes[2], g.sizes[3], g.operation, longs(scratch)
    pieces = (n3 + PIECE - 1) // PIECE
    two, choose = _exists(g.y), op == CHOOSE
    for unit in range(task * g.per_task, min((task + 1) * g.per_task, g.sizes[0] * n1 * n2 * pieces)):
        row, first = unit // pieces, unit % pieces * PIECE
        i, j, k, n = row // n2 // n1, row // n2 % n1, row % n2, min(PIECE, n3 - first)
        out = g.out + row * n3 + first
        if choose:
            at = _start(g.condition, i, j, k)
            _fetch(g.condition, first, at, n, data, const, codes, index, values, 2 * PIECE)
        if g.floats == 1:
            _fetch(g.x, first, _start(g.x, i, j, k), n, data, const, codes, index, scratch, 0)
            if two:
                _fetch(g.y, first, _start(g.y, i, j, k), n, data, const, codes, index, scratch, 2 * PIECE)
            if op >= WHOLE:
                _without_fraction(op, scratch, 0, n, values, 2 * PIECE)
            elif op >= FIRST_TRUTH:
                _truth(op, scratch, 0, 2 * PIECE, n, values, 2 * PIECE)
            else:
                _compute_floats(op, scratch, 0, 2 * PIECE, 2 * PIECE, n, values)
                _spread(scratch, 0, 1, n, data, out)
                continue
            _put(g.out_type, values, 2 * PIECE, n, data, out)
            continue
        _fetch(g.x, first, _start(g.x, i, j, k), n, data, const, codes, index, values, 0)
        if two:
            _fetch(g.y, first, _start(g.y, i, j, k), n, data, const, codes, index, values, PIECE)
        if op >= FIRST_TRUTH:
            _truth(op, values, 0, PIECE, n, values, 0)
        elif op >= BIT_AND:
            _compute_bits(op, values, 0, PIECE, n)
        elif op >= FLOOR_DIVIDE:
            for at in range(n):
                values[at] = _divided(op, values[at], values[PIECE + at])
        else:
            _compute_longs(op, values, 0, PIECE, 2 * PIECE, n)
        _put(g.out_type, values, 0, n, data, out)
