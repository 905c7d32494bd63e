"""Functions of vectors in float32: exp, log, tanh and the like, within a few units of the last place.

Infinities and NaN behave as in NumPy; exp reaches denormal numbers and infinity.
"""

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import config
from numba.extending import intrinsic

from pqnet.kernels.simd import (
    FLOATS,
    INTS,
    WIDTH,
    add,
    divide,
    fma,
    maximum,
    minimum,
    multiply,
    power_of_two,
    round_even,
    select_less,
    splat,
    subtract,
)

LOG2E = np.float32(1.44269504)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
INF, NAN = np.float32(np.inf), np.float32(np.nan)


def _parts_of_bits(twin, codegen_of):
    @intrinsic
    def operation(context, a):
        def codegen(context, builder, signature, values):
            def constant(number):
                return ir.Constant(INTS.llvm, [number] * WIDTH)

            return codegen_of(builder, builder.bitcast(values[0], INTS.llvm), constant)

        return FLOATS(FLOATS), codegen

    return twin if config.DISABLE_JIT else operation


# exponent(a): the whole e with 2**e <= a < 2**(e + 1); mantissa(a): a / 2**e; for positive normal numbers.
exponent = _parts_of_bits(
    lambda a: ((a.view(np.int32) >> 23) - 127).astype(np.float32),
    lambda b, bits, number: b.sitofp(b.sub(b.ashr(bits, number(23)), number(127)), FLOATS.llvm),
)
mantissa = _parts_of_bits(
    lambda a: (a.view(np.int32) & 0x7FFFFF | 0x3F800000).view(np.float32),
    lambda b, bits, number: b.bitcast(b.or_(b.and_(bits, number(0x7FFFFF)), number(0x3F800000)), FLOATS.llvm),
)


@njit(cache=True, nogil=True, error_model="numpy")
def exp(v):
    # exp(r) for |r| <= ln(2) / 2, times 2**n in two steps: n passes what one factor can be at both ends
    low, high = splat(np.float32(-104.0)), splat(np.float32(89.0))
    v = select_less(v, low, low, v)  # one instruction each, and NaN stays
    v = select_less(high, v, high, v)
    n = round_even(multiply(v, splat(LOG2E)))
    r = fma(n, splat(-LN2_LOW), fma(n, splat(-LN2_HIGH), v))
    p = fma(splat(np.float32(1.9875691500e-4)), r, splat(np.float32(1.3981999507e-3)))
    p = fma(p, r, splat(np.float32(8.3334519073e-3)))
    p = fma(p, r, splat(np.float32(4.1665795894e-2)))
    p = fma(p, r, splat(np.float32(1.6666665459e-1)))
    p = fma(p, r, splat(np.float32(0.5)))
    p = fma(multiply(p, r), r, add(r, splat(np.float32(1.0))))
    half = round_even(multiply(n, splat(np.float32(0.5))))
    return multiply(multiply(p, power_of_two(half)), power_of_two(subtract(n, half)))


@njit(cache=True, nogil=True, error_model="numpy")
def one_plus_exp(v):
    # 1 + exp(v): what is below the least normal number does not count, infinity is the factor 2**128
    low, high = splat(np.float32(-87.0)), splat(np.float32(89.0))
    v = select_less(v, low, low, v)
    v = select_less(high, v, high, v)
    n = round_even(multiply(v, splat(LOG2E)))
    r = fma(n, splat(-LN2_LOW), fma(n, splat(-LN2_HIGH), v))
    p = fma(splat(np.float32(1.9875691500e-4)), r, splat(np.float32(1.3981999507e-3)))
    p = fma(p, r, splat(np.float32(8.3334519073e-3)))
    p = fma(p, r, splat(np.float32(4.1665795894e-2)))
    p = fma(p, r, splat(np.float32(1.6666665459e-1)))
    p = fma(p, r, splat(np.float32(0.5)))
    p = fma(multiply(p, r), r, add(r, splat(np.float32(1.0))))
    return fma(p, power_of_two(n), splat(np.float32(1.0)))


@njit(cache=True, nogil=True, error_model="numpy")
def twice_atanh(s):
    # 2 atanh(s) = log((1 + s) / (1 - s)) for |s| <= 1/3
    q = multiply(s, s)
    p = fma(splat(np.float32(2 / 15)), q, splat(np.float32(2 / 13)))
    p = fma(p, q, splat(np.float32(2 / 11)))
    p = fma(p, q, splat(np.float32(2 / 9)))
    p = fma(p, q, splat(np.float32(2 / 7)))
    p = fma(p, q, splat(np.float32(2 / 5)))
    p = fma(p, q, splat(np.float32(2 / 3)))
    return fma(multiply(p, q), s, add(s, s))


@njit(cache=True, nogil=True, error_model="numpy")
def log(v):
    one, zero, tiny = splat(np.float32(1.0)), splat(np.float32(0.0)), splat(np.float32(1.1754944e-38))
    normal = select_less(v, tiny, multiply(v, splat(np.float32(2.0**24))), v)
    k = subtract(exponent(normal), select_less(v, tiny, splat(np.float32(24.0)), zero))
    m = mantissa(normal)
    high = splat(np.float32(1.41421356))
    k = select_less(high, m, add(k, one), k)
    m = select_less(high, m, multiply(m, splat(np.float32(0.5))), m)
    y = twice_atanh(divide(subtract(m, one), add(m, one)))
    y = fma(k, splat(LN2_HIGH), fma(k, splat(LN2_LOW), y))
    y = select_less(v, zero, splat(NAN), select_less(zero, v, y, splat(-INF)))
    return select_less(v, splat(INF), y, v)


@njit(cache=True, nogil=True, error_model="numpy")
def tanh(v):
    # an odd rational function, 1 within float32 at the limit
    limit = splat(np.float32(7.90531110763549805))
    v = minimum(maximum(v, multiply(limit, splat(np.float32(-1.0)))), limit)
    q = multiply(v, v)
    p = fma(splat(np.float32(-2.76076847742355e-16)), q, splat(np.float32(2.00018790482477e-13)))
    p = fma(p, q, splat(np.float32(-8.60467152213735e-11)))
    p = fma(p, q, splat(np.float32(5.12229709037114e-08)))
    p = fma(p, q, splat(np.float32(1.48572235717979e-05)))
    p = fma(p, q, splat(np.float32(6.37261928875436e-04)))
    p = fma(p, q, splat(np.float32(4.89352455891786e-03)))
    d = fma(splat(np.float32(1.19825839466702e-06)), q, splat(np.float32(1.18534705686654e-04)))
    d = fma(d, q, splat(np.float32(2.26843463243900e-03)))
    d = fma(d, q, splat(np.float32(4.89352518554385e-03)))
    return divide(multiply(p, v), d)


@njit(cache=True, nogil=True, error_model="numpy")
def erf_argument(v):
    # y with erf(v) = tanh(y), within 3e-7; the polynomial of graph.ops.elementwise
    q = minimum(multiply(v, v), splat(np.float32(15.6025)))
    p = fma(splat(np.float32(1.41837660e-7)), q, splat(np.float32(-5.66820011e-6)))
    p = fma(p, q, splat(np.float32(8.76354939e-5)))
    p = fma(p, q, splat(np.float32(-6.19779342e-4)))
    p = fma(p, q, splat(np.float32(-1.91837547e-4)))
    p = fma(p, q, splat(np.float32(0.102769059)))
    p = fma(p, q, splat(np.float32(1.12837927)))
    return multiply(v, p)
