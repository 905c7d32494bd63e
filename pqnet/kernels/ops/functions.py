"""Functions of vectors in float32: exp, log, tanh and the like, within a few units of the last place.

Infinities and NaN behave as in NumPy; exp reaches denormal numbers and infinity.
"""

import numpy as np
from numba import njit, types

from pqnet.kernels.cpu import has
from pqnet.kernels.llvm import FLOAT, HALF, WORD, call, compiled_or, splat
from pqnet.kernels.llvm import constant as constant_vector
from pqnet.kernels.simd import (
    FLOATS,
    INTS,
    WIDTH,
    add,
    divide,
    fma,
    multiply,
    power_of_two,
    round_even,
    select_less,
    subtract,
)

LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4


def _constant_reference(number):
    return np.full(WIDTH, number, np.float32)


def _constant(context, number):
    def codegen(context, builder, signature, values):
        return splat(builder, builder.fptrunc(values[0], FLOAT), FLOATS.llvm)

    return FLOATS(types.float64), codegen


constant = compiled_or(_constant_reference, _constant)  # the same number in all lanes; simd.splat takes a float32


def _of_bits(reference, codegen_of):
    def operation(context, a):
        def codegen(context, builder, signature, values):
            def number(n):
                return constant_vector(INTS.llvm, n)

            return codegen_of(builder, builder.bitcast(values[0], INTS.llvm), number)

        return FLOATS(FLOATS), codegen

    return compiled_or(reference, operation)


def _scaler():
    def scale(context, a, n):
        def codegen(context, builder, signature, values):
            a, n = values
            all_lanes, current_rounding = HALF(-1), WORD(4)
            return call(
                builder, "llvm.x86.avx512.mask.scalef.ps.512", FLOATS.llvm, a, n, a, all_lanes, current_rounding
            )

        return FLOATS(FLOATS, FLOATS), codegen

    @njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
    def in_two_steps(a, n):  # n passes what one factor can be at both ends
        half = round_even(multiply(n, constant(0.5)))
        return multiply(multiply(a, power_of_two(half)), power_of_two(subtract(n, half)))

    return compiled_or(in_two_steps, scale) if has("avx512f") else in_two_steps


scale = _scaler()  # a * 2**n for whole n in -200 .. 200, with one rounding
# exponent(a): the whole e with 2**e <= a < 2**(e + 1); mantissa(a): a / 2**e; for positive normal numbers.
exponent = _of_bits(
    lambda a: ((a.view(np.int32) >> 23) - 127).astype(np.float32),
    lambda b, bits, number: b.sitofp(b.sub(b.ashr(bits, number(23)), number(127)), FLOATS.llvm),
)
mantissa = _of_bits(
    lambda a: (a.view(np.int32) & 0x7FFFFF | 0x3F800000).view(np.float32),
    lambda b, bits, number: b.bitcast(b.or_(b.and_(bits, number(0x7FFFFF)), number(0x3F800000)), FLOATS.llvm),
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def at_least(v, low):
    # maximum for bounds that are no NaN: one instruction; NaN in v stays
    return select_less(v, low, low, v)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def at_most(v, high):
    return select_less(high, v, high, v)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def exp(v):
    # exp(r) for |r| <= ln(2) / 2, times 2**n
    v = at_most(at_least(v, constant(-104.0)), constant(89.0))
    n = round_even(multiply(v, constant(1.44269504)))
    r = fma(n, constant(-LN2_LOW), fma(n, constant(-LN2_HIGH), v))
    square = multiply(r, r)
    p = fma(constant(1.9875691500e-4), r, constant(1.3981999507e-3))
    p = fma(p, square, fma(constant(8.3334519073e-3), r, constant(4.1665795894e-2)))
    p = fma(p, square, fma(constant(1.6666665459e-1), r, constant(0.5)))
    p = fma(p, square, add(r, constant(1.0)))
    return scale(p, n)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def twice_atanh(s):
    # 2 atanh(s) = log((1 + s) / (1 - s)) for |s| <= 1/3
    q = multiply(s, s)
    p = fma(constant(2 / 15), q, constant(2 / 13))
    p = fma(p, q, constant(2 / 11))
    p = fma(p, q, constant(2 / 9))
    p = fma(p, q, constant(2 / 7))
    p = fma(p, q, constant(2 / 5))
    p = fma(p, q, constant(2 / 3))
    return fma(multiply(p, q), s, add(s, s))


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def log(v):
    one, zero, tiny, inf = constant(1.0), constant(0.0), constant(1.1754944e-38), constant(np.inf)
    normal = select_less(v, tiny, multiply(v, constant(2.0**24)), v)
    k = subtract(exponent(normal), select_less(v, tiny, constant(24.0), zero))
    m = mantissa(normal)
    high = constant(1.41421356)
    k = select_less(high, m, add(k, one), k)
    m = select_less(high, m, multiply(m, constant(0.5)), m)
    y = twice_atanh(divide(subtract(m, one), add(m, one)))
    y = fma(k, constant(LN2_HIGH), fma(k, constant(LN2_LOW), y))
    y = select_less(v, zero, constant(np.nan), select_less(zero, v, y, constant(-np.inf)))
    return select_less(v, inf, y, v)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def tanh(v):
    # an odd rational function, 1 in float32 at the limit
    limit = constant(7.99881172180175781)
    inside = at_most(at_least(v, constant(-7.99881172180175781)), limit)
    q = multiply(inside, inside)
    p = fma(constant(-2.76076847742355e-16), q, constant(2.00018790482477e-13))
    p = fma(p, q, constant(-8.60467152213735e-11))
    p = fma(p, q, constant(5.12229709037114e-08))
    p = fma(p, q, constant(1.48572235717979e-05))
    p = fma(p, q, constant(6.37261928875436e-04))
    p = fma(p, q, constant(4.89352455891786e-03))
    d = fma(constant(1.19825839466702e-06), q, constant(1.18534705686654e-04))
    d = fma(d, q, constant(2.26843463243900e-03))
    d = fma(d, q, constant(4.89352518554385e-03))
    return divide(multiply(p, inside), d)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def erf_argument(v):
    # y with erf(v) = tanh(y), within 3e-7; the polynomial of graph.ops.elementwise
    q = at_most(multiply(v, v), constant(15.6025))
    square = multiply(q, q)  # pairs of terms: a shorter way than one after another
    low = fma(constant(-6.19779342e-4), q, constant(-1.91837547e-4))
    low = fma(low, square, fma(constant(0.102769059), q, constant(1.12837927)))
    p = fma(fma(constant(1.41837660e-7), q, constant(-5.66820011e-6)), q, constant(8.76354939e-5))
    p = fma(p, multiply(square, square), low)
    return multiply(v, p)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def silu(v):
    # v / (1 + exp(-v))
    return divide(v, add(constant(1.0), exp(subtract(constant(0.0), v))))


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def quick_gate(v, u):
    # v / (1 + exp(u)) within 1e-5 of it, with the same bits everywhere
    u = at_most(at_least(u, constant(-87.0)), constant(87.0))
    t = multiply(u, constant(1.44269504))
    n = round_even(t)
    f = subtract(t, n)
    p = fma(constant(9.47963e-3), f, constant(5.590641e-2))
    p = fma(p, f, constant(0.24026893))
    p = fma(p, f, constant(0.69312384))
    return divide(v, add(constant(1.0), scale(fma(p, f, constant(0.99999868)), n)))
