"""Norms and softmax of rows: lanes are rows that lie side by side in memory, or consecutive elements of one row.

The result has the storage order of x. Mean and variance come from two passes over a block of elements, or over the row.
"""

import numpy as np
from numba import njit

from pqnet.kernels.abi import CONST, FLAG, INDEX, SIZE, Arguments, step
from pqnet.kernels.ops.functions import at_least, constant, exp, log
from pqnet.kernels.ops.points import POINTS, place
from pqnet.kernels.pointers import pointer, put_at
from pqnet.kernels.simd import (
    WIDTH,
    add,
    divide,
    fma,
    keep,
    load,
    multiply,
    splat,
    sqrt,
    store,
    subtract,
    sum_lanes,
)

VECTORS = 16  # that go through the rows together, at most
ALONG = 64  # vectors of a row whose sum is added to that of the row
BLOCK = 16  # elements of a row whose two passes follow each other

# At each point, `norm_across` and `softmax_across` take ``adjacent`` rows side by side, each of ``parts`` elements;
# `norm_along` and `softmax_along` take one row, of ``parts`` runs of ``adjacent`` elements. index[offsets:] has a pair
# for each part: how far it is behind the start of the row in x and in the result.
ROWS = Arguments(
    points=POINTS,
    adjacent=SIZE,
    parts=SIZE,
    offsets=INDEX,
    per_task=SIZE,  # points
    lanes=SIZE,  # a task
    tile=SIZE,  # lanes at a time, at most VECTORS * WIDTH
)

NORM = Arguments(
    rows=ROWS,
    weight=CONST,  # of a part, or of each element of a run if ``each``
    bias=SIZE,  # how far the biases are behind the weights
    weight_outer=SIZE,  # steps of the weights along the outer axes
    weight_inner=SIZE,
    each=FLAG,
    centered=FLAG,  # whether the mean is taken away
    eps=CONST,
)

SOFTMAX = Arguments(
    rows=ROWS,
    logarithm=FLAG,  # whether to return the logarithm
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _part_of_task(task, rows):
    # The points and the lanes of a task, each from .. to
    tasks = (rows.adjacent + rows.lanes - 1) // rows.lanes  # of the same points
    first, lane = task // tasks * rows.per_task, task % tasks * rows.lanes
    last = min(first + rows.per_task, rows.points.outer * rows.points.inner)
    return first, last, lane, min(lane + rows.lanes, rows.adjacent)


@step(NORM)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def norm_across(task, g, data, const, codes, index, scratch):
    # scratch: VECTORS vectors each of means, of sums of squares and of means of the first block
    rows, points = g.rows, g.rows.points
    n, table, eps = rows.parts, rows.offsets, splat(const[g.eps])
    part, zero, one, span = splat(np.float32(1.0 / n)), constant(0.0), constant(1.0), VECTORS * WIDTH
    begin, end, start, stop_lane = _part_of_task(task, rows)
    for r in range(begin, end):
        at_x, at_out = place(points, r)
        weight, bias = g.weight + r // points.inner * g.weight_outer + r % points.inner * g.weight_inner, g.bias
        for first in range(start, stop_lane, rows.tile):
            x, out, m = at_x + first, at_out + first, min(rows.tile, stop_lane - first)
            for p in range(0, m, WIDTH):
                store(scratch, p, zero)
                store(scratch, p + span, zero)
                store(scratch, p + 2 * span, zero)
            for k in range(0, n, BLOCK):
                # Mean and squared distances of a block, joined with those of all elements before it; all from the mean
                # of the first block on, which may be large.
                count, stop = min(BLOCK, n - k), table + 2 * min(k + BLOCK, n)
                each = splat(np.float32(1.0 / count))
                share, both = splat(np.float32(count / (k + count))), splat(np.float32(count * k / (k + count)))
                for p in range(x, x + m, WIDTH):
                    total, squares, origin = zero, zero, load(scratch, p - x + 2 * span)
                    for q in range(table + 2 * k, stop, 2):
                        total = add(total, subtract(load(data, p + index[q]), origin))
                    mean = multiply(total, each) if g.centered else zero
                    for q in range(table + 2 * k, stop, 2):
                        v = subtract(subtract(load(data, p + index[q]), origin), mean)
                        squares = fma(v, v, squares)
                    if k == 0:
                        store(scratch, p - x + 2 * span, mean)
                        mean = zero
                    before = load(scratch, p - x)
                    apart = subtract(mean, before)
                    squares = add(squares, load(scratch, p - x + span))
                    store(scratch, p - x, fma(apart, share, before))
                    store(scratch, p - x + span, fma(multiply(apart, apart), both, squares))
            for p in range(0, m, WIDTH):
                variance = multiply(load(scratch, p + span), part)
                store(scratch, p, add(load(scratch, p), load(scratch, p + 2 * span)))
                store(scratch, p + span, divide(one, sqrt(add(variance, eps))))
            for k in range(n):
                w, c, at = splat(const[weight + k]), splat(const[weight + bias + k]), index[table + 2 * k]
                target = pointer(data, out + index[table + 2 * k + 1])
                for p in range(0, m, WIDTH):
                    v = multiply(subtract(load(data, x + at + p), load(scratch, p)), load(scratch, p + span))
                    put_at(target, p, fma(v, w, c), m - p)


@step(NORM)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def norm_along(task, g, data, const, codes, index, scratch):
    rows, points = g.rows, g.rows.points
    size, runs, table = rows.adjacent, rows.parts, rows.offsets
    each, eps = np.float32(1.0 / (size * runs)), const[g.eps]
    for r in range(task * rows.per_task, min((task + 1) * rows.per_task, points.outer * points.inner)):
        x, out = place(points, r)
        weight, bias = g.weight + r // points.inner * g.weight_outer + r % points.inner * g.weight_inner, g.bias
        mean, scale = np.float32(0.0), np.float32(0.0)
        for _ in range(2 if g.centered else 1):
            total, squares, m = constant(0.0), constant(0.0), splat(mean)
            for k in range(runs):
                at = x + index[table + 2 * k]
                # Blocks are summed up alone: a sum over thousands of elements would lose digits of each.
                for first in range(0, size, ALONG * WIDTH):
                    block, block_squares = constant(0.0), constant(0.0)
                    for p in range(first, min(first + ALONG * WIDTH, size), WIDTH):
                        v = subtract(load(data, at + p), m)
                        if size - p < WIDTH:
                            v = keep(v, 0, size - p)
                        block = add(block, v)
                        block_squares = fma(v, v, block_squares)
                    total, squares = add(total, block), add(squares, block_squares)
            off = sum_lanes(total) * each if g.centered else np.float32(0.0)
            mean += off
            scale = np.float32(1.0) / np.sqrt(sum_lanes(squares) * each - off * off + eps)
        m, s = splat(mean), splat(scale)
        for k in range(runs):
            at, target = x + index[table + 2 * k], pointer(data, out + index[table + 2 * k + 1])
            w, c = splat(const[weight + k]), splat(const[weight + bias + k])
            for p in range(0, size, WIDTH):
                if g.each:
                    w, c = load(const, weight + k * size + p), load(const, weight + bias + k * size + p)
                put_at(target, p, fma(multiply(subtract(load(data, at + p), m), s), w, c), size - p)


@step(SOFTMAX)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def softmax_across(task, g, data, const, codes, index, scratch):
    # scratch: VECTORS vectors each of largest elements and of sums
    rows, points, logarithm, span = g.rows, g.rows.points, g.logarithm, VECTORS * WIDTH
    n, table = rows.parts, rows.offsets
    begin, end, start, stop_lane = _part_of_task(task, rows)
    for r in range(begin, end):
        at_x, at_out = place(points, r)
        for first in range(start, stop_lane, rows.tile):
            x, out, m = at_x + first, at_out + first, min(rows.tile, stop_lane - first)
            for p in range(0, m, WIDTH):
                top = constant(-np.inf)
                for q in range(table, table + 2 * n, 2):
                    top = at_least(load(data, x + index[q] + p), top)  # NaN will be in the sum
                store(scratch, p, top)
                store(scratch, p + span, constant(0.0))
            for k in range(n):
                at, target = index[table + 2 * k], pointer(data, out + index[table + 2 * k + 1])
                for p in range(0, m, WIDTH):
                    v = subtract(load(data, x + at + p), load(scratch, p))
                    e = exp(v)
                    store(scratch, p + span, add(load(scratch, p + span), e))
                    put_at(target, p, v if logarithm else e, m - p)
            for p in range(0, m, WIDTH):
                total = load(scratch, p + span)
                store(scratch, p, log(total) if logarithm else divide(constant(1.0), total))
            for k in range(n):
                at = out + index[table + 2 * k + 1]
                target = pointer(data, at)
                for p in range(0, m, WIDTH):
                    v, last = load(data, at + p), load(scratch, p)
                    put_at(target, p, subtract(v, last) if logarithm else multiply(v, last), m - p)


@step(SOFTMAX)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def softmax_along(task, g, data, const, codes, index, scratch):
    # A row is a single run; scratch: a vector
    rows, points, logarithm, size = g.rows, g.rows.points, g.logarithm, g.rows.adjacent
    whole = size // WIDTH * WIDTH
    for r in range(task * rows.per_task, min((task + 1) * rows.per_task, points.outer * points.inner)):
        x, out = place(points, r)
        target, top = pointer(data, out), constant(-np.inf)
        for p in range(0, whole, WIDTH):
            top = at_least(load(data, x + p), top)
        store(scratch, 0, top)
        largest = np.float32(-np.inf)
        for p in range(WIDTH + size - whole):
            element = scratch[p] if p < WIDTH else data[x + whole + p - WIDTH]
            if element > largest:
                largest = element
        top, total = splat(largest), constant(0.0)
        for p in range(0, size, WIDTH):
            v = subtract(load(data, x + p), top)
            e = exp(v)
            total = add(total, e if size - p >= WIDTH else keep(e, 0, size - p))
            put_at(target, p, v if logarithm else e, size - p)
        store(scratch, 0, splat(sum_lanes(total)))
        last = load(scratch, 0)
        last = log(last) if logarithm else divide(constant(1.0), last)
        for p in range(0, size, WIDTH):
            v = load(data, out + p)
            put_at(target, p, subtract(v, last) if logarithm else multiply(v, last), size - p)
