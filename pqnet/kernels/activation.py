"""Activation functions, for the rows that a product has just stored and for the chains of `kernels.elementwise`.

Kinds and their parameters (a, b): 1 relu, 2 clamp(low, high), 3 silu, 4 sigmoid, 5 gelu by erf, 6 gelu by tanh,
7 hardswish, 8 hardsigmoid, 9 tanh, 10 leaky_relu(slope), 11 elu(alpha), 12 mish, 13 softplus(beta, threshold).
"""

import numpy as np
from numba import njit

from pqnet.kernels.functions import erf_argument, exp, one_plus_exp, tanh, twice_atanh
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
    select_less,
    splat,
    store,
    store_head,
    subtract,
)


@njit(cache=True, nogil=True, error_model="numpy")
def activate(kind, v, a, b):
    zero, one = splat(np.float32(0.0)), splat(np.float32(1.0))
    if kind == 2:
        return minimum(maximum(v, a), b)
    if kind == 7 or kind == 8:
        gate = minimum(maximum(add(v, splat(np.float32(3.0))), zero), splat(np.float32(6.0)))
        gate = divide(gate, splat(np.float32(6.0)))
        return multiply(v, gate) if kind == 7 else gate
    positive, negative = maximum(v, zero), minimum(v, zero)
    if kind == 1:
        return positive
    if kind == 10:
        return fma(negative, a, positive)
    # The others share one exp: of u, that of a logistic function unless changed below.
    u = multiply(v, splat(np.float32(-1.0)))
    if kind == 5:
        u = multiply(erf_argument(multiply(v, splat(np.float32(np.sqrt(0.5))))), splat(np.float32(-2.0)))
    elif kind == 6:
        factor = np.float32(-2 * np.sqrt(2 / np.pi))
        u = multiply(multiply(v, splat(factor)), fma(multiply(v, v), splat(np.float32(0.044715)), one))
    elif kind == 11:
        u = negative
    elif kind == 12:
        u = minimum(v, splat(np.float32(20.0)))
    elif kind == 13:
        scaled = multiply(v, a)
        u = minimum(scaled, subtract(zero, scaled))
    if kind == 9 or kind == 11:
        t = tanh(v if kind == 9 else multiply(u, splat(np.float32(0.5))))
        if kind == 9:
            return t
        # exp(u) - 1 = tanh(u / 2) (exp(u) + 1), which loses nothing near 0
        return fma(multiply(t, add(exp(u), one)), a, positive)
    if kind < 7:  # by the logistic function
        return divide(one if kind == 4 else v, one_plus_exp(u))
    e = exp(u)
    if kind == 12:  # tanh(log(1 + e)) = n / (n + 2)
        n = multiply(e, add(e, splat(np.float32(2.0))))
        return multiply(v, divide(n, add(n, splat(np.float32(2.0)))))
    if kind == 13:  # log(1 + exp(z)) = max(z, 0) + log(1 + exp(-|z|))
        scaled = multiply(v, a)
        y = add(maximum(scaled, zero), twice_atanh(divide(e, add(e, splat(np.float32(2.0))))))
        return select_less(b, scaled, v, divide(y, a))
    return v


@njit(cache=True, nogil=True, error_model="numpy")
def activate_row(kind, array, i, n, const, p):
    # INOUT array[i : i + n]; IN const[p], const[p + 1]: the parameters, if the kind has any
    a, b = splat(const[p]), splat(const[p + 1])
    if kind == 3:  # the most frequent one, without a choice for each vector
        zero = splat(np.float32(0.0))
        whole = i + n // WIDTH * WIDTH
        for j in range(i, whole, WIDTH):
            v = load(array, j)
            store(array, j, divide(v, one_plus_exp(subtract(zero, v))))
        i, n = whole, i + n - whole
    for j in range(i, i + n, WIDTH):
        left = i + n - j
        v = activate(kind, load(array, j) if left >= WIDTH else load_head(array, j, left), a, b)
        if left >= WIDTH:
            store(array, j, v)
        else:
            store_head(array, j, v, left)
