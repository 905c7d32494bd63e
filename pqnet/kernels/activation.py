"""Activation functions and their parts on SIMD values, in float32: within a few units in the last place of NumPy's.

Kinds: 0 none, 1 relu, 2 clamp(low, high), 3 silu, 4 sigmoid, 5 gelu, 6 gelu by tanh, 7 hardswish, 8 hardsigmoid,
9 tanh, 10 leaky_relu(slope), 11 elu(alpha), 12 mish; further 13 exp, 14 erf, 15 neg, 16 abs, 17 sqrt, 18 rsqrt,
19 reciprocal. Parameters are the first and second number.
"""

import numpy as np
from numba import njit

from pqnet.kernels.simd import (
    WIDTH,
    add,
    divide,
    fma,
    load,
    load_head,
    maximum,
    minimum,
    multiply,
    power_of_two,
    round_even,
    select_less,
    splat,
    sqrt,
    store,
    store_head,
    subtract,
)


@njit(cache=True, nogil=True, error_model="numpy")
def exp(x):
    # 2 ** n * exp(r) with |r| <= log(2) / 2; below the least normal number 0, above the largest infinity
    low, high = splat(np.float32(-87.33654)), splat(np.float32(88.722839))
    y = minimum(maximum(x, low), high)
    n = round_even(multiply(y, splat(np.float32(1.44269504))))
    r = fma(n, splat(np.float32(-0.693359375)), y)
    r = fma(n, splat(np.float32(2.12194440e-4)), r)
    p = splat(np.float32(1.9875691500e-4))
    p = fma(p, r, splat(np.float32(1.3981999507e-3)))
    p = fma(p, r, splat(np.float32(8.3334519073e-3)))
    p = fma(p, r, splat(np.float32(4.1665795894e-2)))
    p = fma(p, r, splat(np.float32(1.6666665459e-1)))
    p = fma(p, r, splat(np.float32(5.0000001201e-1)))
    one = splat(np.float32(1))
    p = add(fma(p, multiply(r, r), r), one)
    # In two factors: 2 ** 128 is no float.
    half = round_even(multiply(n, splat(np.float32(0.5))))
    value = multiply(multiply(p, power_of_two(half)), power_of_two(subtract(n, half)))
    value = select_less(x, low, splat(np.float32(0)), value)
    return select_less(high, x, splat(np.float32(np.inf)), value)


@njit(cache=True, nogil=True, error_model="numpy")
def tanh(x):
    one = splat(np.float32(1))
    large = subtract(one, divide(splat(np.float32(2)), add(exp(add(x, x)), one)))
    z = multiply(x, x)
    p = splat(np.float32(-5.70498872745e-3))
    p = fma(p, z, splat(np.float32(2.06390887954e-2)))
    p = fma(p, z, splat(np.float32(-5.37397155531e-2)))
    p = fma(p, z, splat(np.float32(1.33314422036e-1)))
    p = fma(p, z, splat(np.float32(-3.33332819422e-1)))
    return select_less(z, splat(np.float32(0.390625)), fma(multiply(p, z), x, x), large)


@njit(cache=True, nogil=True, error_model="numpy")
def _erf(x):
    # tanh(x P(x * x)), as the operation erf
    z = minimum(multiply(x, x), splat(np.float32(15.6025)))
    p = splat(np.float32(1.41837660e-7))
    p = fma(p, z, splat(np.float32(-5.66820011e-6)))
    p = fma(p, z, splat(np.float32(8.76354939e-5)))
    p = fma(p, z, splat(np.float32(-6.19779342e-4)))
    p = fma(p, z, splat(np.float32(-1.91837547e-4)))
    p = fma(p, z, splat(np.float32(0.102769059)))
    p = fma(p, z, splat(np.float32(1.12837927)))
    return multiply(p, x)


@njit(cache=True, nogil=True, error_model="numpy")
def activate(kind, x, first, second):
    # One exp and one tanh for all kinds that need them: they are most of the code.
    zero, one, half = splat(np.float32(0)), splat(np.float32(1)), splat(np.float32(0.5))
    if kind == 0:
        return x
    if kind == 1:
        return maximum(x, zero)
    if kind == 2:
        return minimum(maximum(x, splat(first)), splat(second))
    if kind == 3 or kind == 4 or kind == 12 or kind == 13:
        if kind == 12:
            e = exp(minimum(x, splat(np.float32(20))))
            n = multiply(e, add(e, splat(np.float32(2))))
            return multiply(x, divide(n, add(n, splat(np.float32(2)))))
        e = exp(x if kind == 13 else subtract(zero, x))
        if kind == 13:
            return e
        return divide(x if kind == 3 else one, add(one, e))
    if kind == 5 or kind == 6 or kind == 9 or kind == 11 or kind == 14:
        inner = x
        if kind == 5:
            inner = _erf(multiply(x, splat(np.float32(0.70710678))))
        elif kind == 6:
            inner = multiply(fma(multiply(x, x), splat(np.float32(0.044715)), one), x)
            inner = multiply(inner, splat(np.float32(0.79788456)))
        elif kind == 11:
            inner = multiply(minimum(x, zero), half)
        elif kind == 14:
            inner = _erf(x)
        t = tanh(inner)
        if kind == 5 or kind == 6:
            return multiply(multiply(x, half), add(t, one))
        if kind == 11:  # exp(x) - 1 = 2 tanh(x / 2) / (1 - tanh(x / 2))
            return add(maximum(x, zero), multiply(splat(first), divide(add(t, t), subtract(one, t))))
        return t
    if kind == 7 or kind == 8:
        gate = minimum(maximum(add(x, splat(np.float32(3))), zero), splat(np.float32(6)))
        gate = divide(gate, splat(np.float32(6)))
        return multiply(x, gate) if kind == 7 else gate
    if kind == 10:
        return add(maximum(x, zero), multiply(splat(first), minimum(x, zero)))
    if kind == 15:
        return subtract(zero, x)
    if kind == 16:
        return maximum(x, subtract(zero, x))
    if kind == 17:
        return sqrt(x)
    return divide(one, sqrt(x) if kind == 18 else x)


@njit(cache=True, nogil=True, error_model="numpy")
def activate_row(kind, array, i, n, const, p):
    # INOUT array[i : i + n]; parameters at const[p], const[p + 1]
    first, second = const[p], const[p + 1]
    for j in range(0, n, WIDTH):
        left = n - j
        if left >= WIDTH:
            store(array, i + j, activate(kind, load(array, i + j), first, second))
        else:
            store_head(array, i + j, activate(kind, load_head(array, i + j, left), first, second), left)
