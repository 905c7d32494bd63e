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
# [channel][image][rows][columns]. A plane is padded by ``top`` rows above and to a width of padded_width pixels,
# ``left`` of them on the left. An average is a sum times the factors of its row and of its column.
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
    padded_width=SIZE,
    mode=SIZE,  # LARGEST, AVERAGE
    row_factors=MAYBE_CONST,
    column_factors=MAYBE_CONST,
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _pool_columns(g, x, average, data, scratch):
    # OUT scratch: for each row of results the sums, or the largest, of the windows' rows of the plane at x
    row, height, across, dy, reach = g.row_step, g.height, g.padded_width, g.dilation[0], g.kernel[0] * g.dilation[0]
    n, rows, top, left, sy, step = min(g.width, across - g.left), g.rows, g.top, g.left, g.stride[0], dy * row
    for i in range(rows):
        first, to = i * sy - top, i * across + left
        taps = (min(first + reach, height) - first + dy - 1) // dy
        if first < 0:  # rows of padding do not count
            outside = (dy - 1 - first) // dy
            first, taps = first + outside * dy, taps - outside
        if taps < 1:
            continue  # of a window of nothing but padding, scratch has the result since the start
        at = x + first * row
        for j in range(0, n, WIDTH):
            if n - j < WIDTH:
                v = load_head(data, at, n - j)
                for k in range(1, taps):
                    w = load_head(data, at + k * step, n - j)
                    v = add(v, w) if average else maximum(v, w)
                store_head(scratch, to + j, v, n - j)
                continue
            v = load(data, at)
            if taps == 3:
                w, u = load(data, at + step), load(data, at + 2 * step)
                v = add(add(v, w), u) if average else maximum(maximum(v, w), u)
            elif taps == 2:
                w = load(data, at + step)
                v = add(v, w) if average else maximum(v, w)
            else:
                for k in range(1, taps):
                    w = load(data, at + k * step)
                    v = add(v, w) if average else maximum(v, w)
            store(scratch, to + j, v)
            at += WIDTH


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _every(scratch, at, step, left, spare):
    # Numbers of scratch from ``at`` on, ``step`` apart, as many as there are lanes, of which ``left`` count
    if step == 1:
        return load(scratch, at)
    if step == 2:
        return load_even(scratch, at)
    for q in range(min(WIDTH, left)):
        scratch[spare + q] = scratch[at + q * step]
    return load(scratch, spare)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _pool_rows(g, out, average, data, const, scratch):
    # OUT data from ``out``: the plane of results, from what `_pool_columns` left in scratch
    rows, columns, across, sx, dx, kw = g.rows, g.columns, g.padded_width, g.stride[1], g.dilation[1], g.kernel[1]
    row_factors, column_factors, spare = g.row_factors, g.column_factors, rows * across + 2 * WIDTH * (sx + 1)
    for i in range(rows):
        factor = splat(const[row_factors + i] if average else np.float32(1))
        for j in range(0, columns, WIDTH):
            at, left = i * across + j * sx, columns - j
            if kw == 3 and sx == 2 and dx == 1:
                v, w, u = load_even(scratch, at), load_even(scratch, at + 1), load_even(scratch, at + 2)
                v = add(add(v, w), u) if average else maximum(maximum(v, w), u)
            elif kw == 2 and sx == 2 and dx == 1:
                v, w = load_even(scratch, at), load_even(scratch, at + 1)
                v = add(v, w) if average else maximum(v, w)
            elif kw == 3 and sx == 1:
                v, w, u = load(scratch, at), load(scratch, at + dx), load(scratch, at + 2 * dx)
                v = add(add(v, w), u) if average else maximum(maximum(v, w), u)
            else:
                v = _every(scratch, at, sx, left, spare)
                for k in range(1, kw):
                    w = _every(scratch, at + k * dx, sx, left, spare)
                    v = add(v, w) if average else maximum(v, w)
            if average:
                v = multiply(multiply(v, factor), load(const, column_factors + j))
            if left >= WIDTH:
                store(data, out + j, v)
            else:
                store_head(data, out + j, v, left)
        out += columns


@step(POOL)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def pool(task, g, data, const, codes, index, scratch):
    # First down the columns, then along the rows: of a window of 3 x 3, 6 numbers are read instead of 9, and only 3 of
    # them are not side by side. scratch: all rows of a plane's results, each padded_width wide, and a vector
    empty = np.float32(0) if g.mode == AVERAGE else np.float32(-np.inf)
    for j in range(0, g.rows * g.padded_width, WIDTH):
        store(scratch, j, splat(empty))
    for plane in range(task * g.per_task, min((task + 1) * g.per_task, g.channels * g.batch)):
        x = g.x + plane // g.batch * g.channel_step + plane % g.batch * g.image_step
        out = g.out + plane * g.rows * g.columns
        if g.mode == AVERAGE:
            _pool_columns(g, x, True, data, scratch)
            _pool_rows(g, out, True, data, const, scratch)
        else:
            _pool_columns(g, x, False, data, scratch)
            _pool_rows(g, out, False, data, const, scratch)


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
