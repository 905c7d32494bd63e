"""Selection of elements by indices that lie in the arena, and the range of such indices."""

from numba import njit

from pqnet.kernels.abi import DATA, MAYBE_DATA, MAYBE_INDEX, SIZE, Arguments, step
from pqnet.kernels.ops.copy import move_elements
from pqnet.kernels.pointers import longs

# The least and the largest of n int64 numbers.
RANGE = Arguments(ids=DATA, out=DATA, n=SIZE)


@step(RANGE)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def find_range(task, g, data, const, codes, index, scratch):
    ids, at = longs(data), g.ids
    low = high = ids[at]
    for i in range(1, g.n):
        low, high = min(low, ids[at + i]), max(high, ids[at + i])
    ids[g.out], ids[g.out + 1] = low, high


# out[.., i, ..] = x[.., ids[i], ..] for elements of ``element`` bytes. Four axes beside that of the ids, which are in
# data or in index; of those axes the last is copied at once. Indices outside of [0, below) read the nearest element:
# whoever checks their range reports them.
GATHER = Arguments(
    x=DATA,
    out=DATA,
    ids=MAYBE_DATA,
    table=MAYBE_INDEX,
    n=SIZE,  # ids
    below=SIZE,
    x_step=SIZE,  # along the axis of the ids
    step=SIZE,
    sizes=SIZE.repeated(4),
    x_steps=SIZE.repeated(4),
    steps=SIZE.repeated(4),
    element=SIZE,
    per_task=SIZE,  # rows along the last axis
)


@step(GATHER)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def gather(task, g, data, const, codes, index, scratch):
    sizes, x_steps, steps, n = g.sizes, g.x_steps, g.steps, g.n
    n1, n2 = sizes[1], sizes[2]
    for row in range(task * g.per_task, min((task + 1) * g.per_task, sizes[0] * n1 * n2 * n)):
        outer, i = row // n, row % n
        h, j, k = outer // n2 // n1, outer // n2 % n1, outer % n2
        at = index[g.table + i] if g.table >= 0 else longs(data)[g.ids + i]
        at = min(max(at, 0), g.below - 1)
        x = g.x + at * g.x_step + h * x_steps[0] + j * x_steps[1] + k * x_steps[2]
        out = g.out + i * g.step + h * steps[0] + j * steps[1] + k * steps[2]
        move_elements(g.element, data, x, x_steps[3], out, steps[3], sizes[3])
