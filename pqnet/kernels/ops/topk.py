"""The largest or smallest elements of rows in order, and where they are."""

from numba import njit

from pqnet.kernels.abi import DATA, FLAG, SIZE, Arguments, step
from pqnet.kernels.ops.typed import FLOAT, INT, LONG, SHORT, SIGNED_BYTE
from pqnet.kernels.pointers import bytes_, ints, longs, shorts, signed_bytes


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _comes_before(source, x, x_step, i, j, largest):
    # Whether element i of a row comes before element j; NaN is above all numbers, equal ones keep their order
    a, b = source[x + i * x_step], source[x + j * x_step]
    if a == b or (a != a and b != b):
        return i < j
    return (a > b or a != a) == largest


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _sift(source, x, x_step, largest, heap, at, size):
    # Let heap[at] sink until none of its children comes after it
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and _comes_before(source, x, x_step, heap[child], heap[child + 1], largest):
            child += 1
        if _comes_before(source, x, x_step, heap[child], heap[at], largest):
            return
        heap[at], heap[child] = heap[child], heap[at]
        at = child


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _take(source, x, x_step, n, k, largest, heap, values, out, indices, places, step):
    # The root of the heap comes last among the elements taken so far; it goes when a better one is found
    for i in range(k):
        heap[i] = i
    for at in range(k // 2 - 1, -1, -1):
        _sift(source, x, x_step, largest, heap, at, k)
    for i in range(k, n):
        if _comes_before(source, x, x_step, i, heap[0], largest):
            heap[0] = i
            _sift(source, x, x_step, largest, heap, 0, k)
    for size in range(k - 1, 0, -1):
        heap[0], heap[size] = heap[size], heap[0]
        _sift(source, x, x_step, largest, heap, 0, size)
    for i in range(k):
        values[out + i * step] = source[x + heap[i] * x_step]
        indices[places + i * step] = heap[i]


# Rows of n elements, x_step apart, lie on three outer axes; values and indices have the same strides.
TOPK = Arguments(
    x=DATA,
    type=SIZE,
    values=DATA,
    indices=DATA,
    sizes=SIZE.repeated(3),
    x_steps=SIZE.repeated(3),
    steps=SIZE.repeated(3),
    n=SIZE,
    k=SIZE,
    x_step=SIZE,
    step=SIZE,
    largest=FLAG,
    per_task=SIZE,  # rows
)


@step(TOPK)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def topk(task, g, data, const, codes, index, scratch):
    # scratch: k int64
    n1, n2, n, top, x_step, step, kind = g.sizes[1], g.sizes[2], g.n, g.k, g.x_step, g.step, g.type
    largest, heap, whole = g.largest == 1, longs(scratch), longs(data)
    for row in range(task * g.per_task, min((task + 1) * g.per_task, g.sizes[0] * n1 * n2)):
        i, j, k = row // n2 // n1, row // n2 % n1, row % n2
        x = g.x + i * g.x_steps[0] + j * g.x_steps[1] + k * g.x_steps[2]
        at = i * g.steps[0] + j * g.steps[1] + k * g.steps[2]
        out, places = g.values + at, g.indices + at
        if kind == FLOAT:
            _take(data, x, x_step, n, top, largest, heap, data, out, whole, places, step)
        elif kind == LONG:
            _take(whole, x, x_step, n, top, largest, heap, whole, out, whole, places, step)
        elif kind == INT:
            _take(ints(data), x, x_step, n, top, largest, heap, ints(data), out, whole, places, step)
        elif kind == SHORT:
            _take(shorts(data), x, x_step, n, top, largest, heap, shorts(data), out, whole, places, step)
        elif kind == SIGNED_BYTE:
            _take(signed_bytes(data), x, x_step, n, top, largest, heap, signed_bytes(data), out, whole, places, step)
        else:
            _take(bytes_(data), x, x_step, n, top, largest, heap, bytes_(data), out, whole, places, step)
