"""Running sums and products along rows: of floats in float64, of other numbers in int64."""

import numpy as np
from numba import njit

from pqnet.kernels.abi import DATA, FLAG, SIZE, Arguments, step
from pqnet.kernels.ops.typed import FLOAT, INT, LONG, SHORT, SIGNED_BYTE
from pqnet.kernels.pointers import bytes_, ints, longs, shorts, signed_bytes


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _run(product, wide, source, x, x_step, target, out, step, n):
    # wide: the type to add and multiply in
    total = wide(source[x])
    target[out] = total
    if product:
        for i in range(1, n):
            total *= wide(source[x + i * x_step])
            target[out + i * step] = total
    else:
        for i in range(1, n):
            total += wide(source[x + i * x_step])
            target[out + i * step] = total


# Rows of n elements, x_step apart, lie on three outer axes; results of floats are floats, all others int64.
RUNNING = Arguments(
    x=DATA,
    type=SIZE,
    out=DATA,
    sizes=SIZE.repeated(3),
    x_steps=SIZE.repeated(3),
    steps=SIZE.repeated(3),
    n=SIZE,
    x_step=SIZE,
    step=SIZE,
    product=FLAG,
    per_task=SIZE,  # rows
)


@step(RUNNING)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def running(task, g, data, const, codes, index, scratch):
    n1, n2, n, x_step, step, kind, product = g.sizes[1], g.sizes[2], g.n, g.x_step, g.step, g.type, g.product == 1
    whole = longs(data)
    for row in range(task * g.per_task, min((task + 1) * g.per_task, g.sizes[0] * n1 * n2)):
        i, j, k = row // n2 // n1, row // n2 % n1, row % n2
        x = g.x + i * g.x_steps[0] + j * g.x_steps[1] + k * g.x_steps[2]
        out = g.out + i * g.steps[0] + j * g.steps[1] + k * g.steps[2]
        if kind == FLOAT:
            _run(product, np.float64, data, x, x_step, data, out, step, n)
        elif kind == LONG:
            _run(product, np.int64, whole, x, x_step, whole, out, step, n)
        elif kind == INT:
            _run(product, np.int64, ints(data), x, x_step, whole, out, step, n)
        elif kind == SHORT:
            _run(product, np.int64, shorts(data), x, x_step, whole, out, step, n)
        elif kind == SIGNED_BYTE:
            _run(product, np.int64, signed_bytes(data), x, x_step, whole, out, step, n)
        else:
            _run(product, np.int64, bytes_(data), x, x_step, whole, out, step, n)
