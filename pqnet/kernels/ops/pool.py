"""Pooling by windows, and sums, means and extremes along an axis."""

import numpy as np
from numba import njit

from pqnet.kernels.abi import CONST, DATA, MAYBE_CONST, SIZE, Arguments, step
from pqnet.kernels.ops.points import POINTS, place
from pqnet.kernels.simd import (
    WIDTH,
    add,
    load,
    load_even,
    load_head,
    maximum,
    minimum,
    multiply,
    select_less,
    splat,
    store,
    store_head,
    subtract,
    sum_lanes,
)

LARGEST, AVERAGE = 0, 1

# Windows of planes of height x width pixels whose rows are ``row_step`` apart; the result is dense:
# [channel][image][rows][columns]. A plane is padded to padded_height x padded_width pixels first, ``top`` of them above
# and ``left`` on the left. An average is a sum times the factors of its row and of its column.
POOL = Arguments(
    x=DATA,
    out=DATA,
    channel_step=SIZE,
    image_step=SIZE,
    row_step=SIZE,
    height=SIZE,
    width=SIZE,
    channels=SIZE,
    batch=SIZE,
    per_task=SIZE,  # planes
    rows=SIZE,
    columns=SIZE,
    kernel=SIZE.repeated(2),
    stride=SIZE.repeated(2),
    dilation=SIZE.repeated(2),
    top=SIZE,
    left=SIZE,
    padded_height=SIZE,
    padded_width=SIZE,
    mode=SIZE,  # LARGEST, AVERAGE
    row_factors=MAYBE_CONST,
    column_factors=MAYBE_CONST,
)


@step(POOL)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def pool(task, g, data, const, codes, index, scratch):
    # scratch: the padded plane, with room behind it for windows that reach out of it, and a vector
    height, width, row, channels, batch, rows, columns = (
        g.height,
        g.width,
        g.row_step,
        g.channels,
        g.batch,
        g.rows,
        g.columns,
    )
    kh, kw, sy, sx, dy, dx = g.kernel[0], g.kernel[1], g.stride[0], g.stride[1], g.dilation[0], g.dilation[1]
    top, left, average, high, across = g.top, g.left, g.mode == AVERAGE, g.padded_height, g.padded_width
    empty = np.float32(0) if average else np.float32(-np.inf)
    for j in range(0, high * across, WIDTH):
        store(scratch, j, splat(empty))
    for plane in range(task * g.per_task, min((task + 1) * g.per_task, channels * batch)):
        x = g.x + plane // batch * g.channel_step + plane % batch * g.image_step
        for i in range(min(height, high - top)):
            to, n = (i + top) * across + left, min(width, across - left)
            for j in range(0, n, WIDTH):
                if j + WIDTH <= n:
                    store(scratch, to + j, load(data, x + i * row + j))
                else:
                    store_head(scratch, to + j, load_head(data, x + i * row + j, n - j), n - j)
        for i in range(rows):
            out = g.out + (plane * rows + i) * columns
            for j in range(0, columns, WIDTH):
                v = splat(empty)
                for ky in range(kh):
                    at = (i * sy + ky * dy) * across + j * sx
                    for kx in range(kw):
                        if sx == 1:
                            w = load(scratch, at + kx * dx)
                        elif sx == 2:
                            w = load_even(scratch, at + kx * dx)
                        else:
                            spare = high * across + 2 * WIDTH * (sx + 1)
                            for q in range(min(WIDTH, columns - j)):
                                scratch[spare + q] = scratch[at + kx * dx + q * sx]
                            w = load(scratch, spare)
                        v = add(v, w) if average else maximum(v, w)
                if average:
                    v = multiply(multiply(v, splat(const[g.row_factors + i])), load(const, g.column_factors + j))
                if j + WIDTH <= columns:
                    store(data, out + j, v)
                else:
                    store_head(data, out + j, v, columns - j)


SUM, MAXIMUM, MINIMUM = 0, 1, 2

# Rows of ``n`` elements, ``x_step`` apart, are reduced. At each point ``lanes`` of them lie side by side, in x and in
# the result; if ``x_step`` is 1, there is a single one.
REDUCE = Arguments(
    points=POINTS,
    lanes=SIZE,
    n=SIZE,
    x_step=SIZE,
    kind=SIZE,  # SUM, MAXIMUM, MINIMUM
    factor=CONST,  # of a sum
    per_task=SIZE,  # points
)


BLOCK = 16  # vectors that are added up before their sum is added, compensated, to that of all others


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _sum_along(data, x, n):
    # The sum of n elements from x on
    zero = splat(np.float32(0))
    total, lost = zero, zero
    for first in range(x, x + n, BLOCK * WIDTH):
        v, w = zero, zero
        stop = min(first + BLOCK * WIDTH, x + n)
        whole = stop - (stop - first) % (2 * WIDTH)
        for k in range(first, whole, 2 * WIDTH):
            v, w = add(v, load(data, k)), add(w, load(data, k + WIDTH))
        for k in range(whole, stop, WIDTH):
            v = add(v, load_head(data, k, stop - k))
        total, lost = _add_compensated(total, lost, add(v, w))
    return sum_lanes(total)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _sum_across(data, x, n, x_step):
    # The sums of WIDTH columns of n elements, x_step apart, from x on
    zero = splat(np.float32(0))
    total, lost = zero, zero
    for first in range(0, n, BLOCK):
        v = zero
        for k in range(first, min(first + BLOCK, n)):
            v = add(v, load(data, x + k * x_step))
        total, lost = _add_compensated(total, lost, v)
    return total


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _add_compensated(total, lost, v):
    # Kahan's sum: what was lost when total was rounded is taken from the next term; infinities lose nothing
    v = subtract(v, lost)
    after = add(total, v)
    lost = subtract(subtract(after, total), v)
    zero, inf = splat(np.float32(0)), splat(np.float32(np.inf))
    lost = select_less(lost, inf, lost, zero)
    return after, select_less(splat(np.float32(-np.inf)), lost, lost, zero)


@step(REDUCE)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def reduce_axis(task, g, data, const, codes, index, scratch):
    points, lanes, n, x_step, kind = g.points, g.lanes, g.n, g.x_step, g.kind
    start = np.float32(-np.inf) if kind == MAXIMUM else np.float32(np.inf)
    factor = const[g.factor]
    for r in range(task * g.per_task, min((task + 1) * g.per_task, points.outer * points.inner)):
        x, out = place(points, r)
        if x_step == 1 and kind == SUM:
            data[out] = _sum_along(data, x, n) * factor
        elif x_step == 1:
            v, w = splat(start), splat(start)
            whole = n // (2 * WIDTH) * (2 * WIDTH)
            for k in range(0, whole, 2 * WIDTH):
                a, b = load(data, x + k), load(data, x + k + WIDTH)
                if kind == MAXIMUM:
                    v, w = maximum(v, a), maximum(w, b)
                else:
                    v, w = minimum(v, a), minimum(w, b)
            store(scratch, 0, maximum(v, w) if kind == MAXIMUM else minimum(v, w))
            best = start
            for k in range(WIDTH + n - whole):
                value = scratch[k] if k < WIDTH else data[x + whole + k - WIDTH]
                if value != value or (value > best if kind == MAXIMUM else value < best):
                    best = value
                    if value != value:
                        break
            data[out] = best
        else:
            for p in range(0, lanes, WIDTH):
                if kind == SUM:
                    v = multiply(_sum_across(data, x + p, n, x_step), splat(factor))
                else:
                    v = splat(start)
                    for k in range(n):
                        a = load(data, x + p + k * x_step)
                        v = maximum(v, a) if kind == MAXIMUM else minimum(v, a)
                if p + WIDTH <= lanes:
                    store(data, out + p, v)
                else:
                    store_head(data, out + p, v, lanes - p)
