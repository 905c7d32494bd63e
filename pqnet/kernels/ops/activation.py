"""Activation functions, for the rows that a product has just stored and for the chains of `kernels.ops.elementwise`.

Kinds and their parameters (a, b): 1 relu, 2 clamp(low, high), 3 silu, 4 sigmoid, 5 gelu by erf, 6 gelu by tanh,
7 hardswish, 8 hardsigmoid, 9 tanh, 10 leaky_relu(slope), 11 elu(alpha), 12 mish, 13 softplus(beta, threshold).
In low precision, within 1e-5 of the value and in two thirds of the time: 14 silu, 15 gelu by erf.
"""

from numba import njit

from pqnet.kernels.ops.functions import (
    at_least,
    at_most,
    constant,
    erf_argument,
    exp,
    quick_gate,
    silu,
    tanh,
    twice_atanh,
)
from pqnet.kernels.pointers import load_at, pointer, put_at
from pqnet.kernels.simd import WIDTH, add, divide, fma, multiply, select_less, splat, subtract


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def activate_at(kind, x, out, n, first, second):
    # IN pointer x, parameters first, second; OUT n elements at pointer out, which may be x
    # The choice is made within the loop: one copy of exp for all kinds, which is what takes time.
    if kind == 3:  # the most frequent one
        for p in range(0, n, WIDTH):
            put_at(out, p, silu(load_at(x, p)), n - p)
        return
    if kind >= 14:
        for p in range(0, n, WIDTH):
            v = load_at(x, p)
            u = subtract(constant(0.0), v)
            if kind == 15:
                u = multiply(erf_argument(multiply(v, constant(0.70710678))), constant(-2.0))
            put_at(out, p, quick_gate(v, u), n - p)
        return
    a, b, zero, one = splat(first), splat(second), constant(0.0), constant(1.0)
    for p in range(0, n, WIDTH):
        v = load_at(x, p)
        if 4 <= kind <= 6 or kind >= 11:
            # By exp of u: of -v, but for what comes here.
            u = subtract(zero, v)
            if kind == 5:
                u = multiply(erf_argument(multiply(v, constant(0.70710678))), constant(-2.0))
            elif kind == 6:
                u = multiply(multiply(v, constant(-2 * 0.7978845608)), fma(multiply(v, v), constant(0.044715), one))
            elif kind == 11:
                u = at_most(v, zero)
            elif kind == 12:
                u = at_most(v, constant(20.0))
            elif kind == 13:
                v = multiply(v, a)
                u = select_less(v, zero, v, subtract(zero, v))
            e = exp(u)
            if kind == 11:  # exp(u) - 1 = tanh(u / 2) (exp(u) + 1), which loses nothing near 0
                t = multiply(tanh(multiply(u, constant(0.5))), add(e, one))
                v = fma(t, a, at_least(v, zero))
            elif kind == 12:  # tanh(log(1 + e)) = m / (m + 2)
                m = fma(e, e, add(e, e))
                v = multiply(v, divide(m, add(m, constant(2.0))))
            elif kind == 13:  # log(1 + exp(v)) = max(v, 0) + log(1 + exp(-|v|))
                y = add(at_least(v, zero), twice_atanh(divide(e, add(e, constant(2.0)))))
                v = divide(select_less(b, v, v, y), a)
            else:
                v = divide(one if kind == 4 else v, add(one, e))
        elif kind == 1:
            v = at_least(v, zero)
        elif kind == 2:
            v = at_most(at_least(v, a), b)
        elif kind == 9:
            v = tanh(v)
        elif kind == 10:
            v = fma(at_most(v, zero), a, at_least(v, zero))
        else:
            gate = multiply(at_most(at_least(add(v, constant(3.0)), zero), constant(6.0)), constant(1 / 6))
            v = multiply(v, gate) if kind == 7 else gate
        put_at(out, p, v, n - p)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def activate_row(kind, array, i, n, const, p):
    # INOUT array[i : i + n]; IN const[p], const[p + 1]: the parameters, if the kind has any
    at = pointer(array, i)
    activate_at(kind, at, at, n, const[p], const[p + 1])
