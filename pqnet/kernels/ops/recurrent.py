"""Steps in time of recurrent layers: gates from the products of the input and of the state, then the new state.

What belongs to one moment are vectors of n elements, one for each element of the state in each sample; the gates of a
moment follow each other, n elements apart. The rounds of a program count the tasks on: task number t * tasks + i is
part i of moment t.
"""

from numba import njit

from pqnet.kernels.abi import DATA, FLAG, SIZE, Arguments, step
from pqnet.kernels.ops.functions import at_least, constant, exp, tanh
from pqnet.kernels.pointers import load_at, pointer, put_at
from pqnet.kernels.simd import WIDTH, add, divide, fma, multiply, subtract

MOMENTS = Arguments(
    x=DATA,  # (steps, gates, n): products of the inputs
    product=DATA,  # (gates, n): of the state before
    state=DATA,  # (n,), what the next moment's product is of
    out=DATA,  # (steps, n): the state after each step
    n=SIZE,
    steps=SIZE,
    reverse=FLAG,  # whether the last moment comes first
    tasks=SIZE,  # a moment
    part=SIZE,  # elements a task, a multiple of WIDTH
)
RNN = Arguments(moments=MOMENTS, relu=FLAG)
LSTM = Arguments(moments=MOMENTS, memory=DATA)  # (n,)
GRU = Arguments(moments=MOMENTS)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _part(task, m):
    # Returns the moment of a task, and the elements first .. last that it computes
    t = task // m.tasks
    first = (task - t * m.tasks) * m.part
    return m.steps - 1 - t if m.reverse else t, first, min(first + m.part, m.n)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _sigmoid(v):
    one = constant(1.0)
    return divide(one, add(one, exp(subtract(constant(0.0), v))))


@step(RNN)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def rnn(task, g, data, const, codes, index, scratch):
    m = g.moments
    t, first, last = _part(task, m)
    n = m.n
    x, h = pointer(data, m.x + t * n), pointer(data, m.product)
    state, out = pointer(data, m.state), pointer(data, m.out + t * n)
    for i in range(first, last, WIDTH):
        v = add(load_at(x, i), load_at(h, i))
        v = at_least(v, constant(0.0)) if g.relu else tanh(v)
        put_at(state, i, v, last - i)
        put_at(out, i, v, last - i)


@step(LSTM)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def lstm(task, g, data, const, codes, index, scratch):
    # Gates: i, f, g, o
    m = g.moments
    t, first, last = _part(task, m)
    n = m.n
    x, h = pointer(data, m.x + 4 * t * n), pointer(data, m.product)
    state, out, memory = pointer(data, m.state), pointer(data, m.out + t * n), pointer(data, g.memory)
    for i in range(first, last, WIDTH):
        taken = _sigmoid(add(load_at(x, i), load_at(h, i)))
        kept = _sigmoid(add(load_at(x, n + i), load_at(h, n + i)))
        new = tanh(add(load_at(x, 2 * n + i), load_at(h, 2 * n + i)))
        shown = _sigmoid(add(load_at(x, 3 * n + i), load_at(h, 3 * n + i)))
        inner = fma(kept, load_at(memory, i), multiply(taken, new))
        v = multiply(shown, tanh(inner))
        put_at(memory, i, inner, last - i)
        put_at(state, i, v, last - i)
        put_at(out, i, v, last - i)


@step(GRU)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def gru(task, g, data, const, codes, index, scratch):
    # Gates: r, z, n
    m = g.moments
    t, first, last = _part(task, m)
    n = m.n
    x, h = pointer(data, m.x + 3 * t * n), pointer(data, m.product)
    state, out = pointer(data, m.state), pointer(data, m.out + t * n)
    for i in range(first, last, WIDTH):
        reset = _sigmoid(add(load_at(x, i), load_at(h, i)))
        update = _sigmoid(add(load_at(x, n + i), load_at(h, n + i)))
        new = tanh(fma(reset, load_at(h, 2 * n + i), load_at(x, 2 * n + i)))
        v = fma(update, subtract(load_at(state, i), new), new)
        put_at(state, i, v, last - i)
        put_at(out, i, v, last - i)
