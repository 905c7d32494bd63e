"""Products with windows that are read where they lie, row by row: for few outputs, which packing does not pay for.

A register tile has three vectors of positions, each in a row of an image; the last of a row begins where the row has
a whole vector left, so that some positions are computed twice.
"""

import numpy as np
from numba import njit, types

from pqnet.kernels.abi import SCRATCH, SIZE, Arguments, step
from pqnet.kernels.llvm import INDEX, LONG, compiled_or, element
from pqnet.kernels.ops.activation import activate_row
from pqnet.kernels.products.decode import decode_panel
from pqnet.kernels.products.epilogue import EPILOGUE, WINDOWS, put_factors
from pqnet.kernels.products.gemm import WEIGHT
from pqnet.kernels.products.tile import LANES, ROWS, SMALL_ROWS, VECTORS, accumulate, finish_sums
from pqnet.kernels.simd import WIDTH
from pqnet.kernels.simd import load as load_lanes
from pqnet.kernels.simd import store as store_lanes

__all__ = ["DIRECT", "direct"]

DIRECT = Arguments(
    layer=WINDOWS,
    end=EPILOGUE,
    weight=WEIGHT,
    across=SIZE,  # vectors of a row
    vectors=SIZE,  # of all images
    q_tasks=SIZE,  # tasks along the vectors
    panel=SCRATCH,  # ROWS decoded outputs, ``panel_step`` apart
    panel_step=SIZE,
    factors=SCRATCH,
    sums=SCRATCH,  # a tile, where its results wait for what else is done with them
)


def _tile(count):
    def reference(a, a0, row_step, data, x, index, places, k, c, out, c_step, residual, residual_step, factors, f):
        for v in range(VECTORS):
            total = np.zeros((count, WIDTH), np.float32)
            for j in range(k):
                at = x[v] + index[places + j]
                for r in range(count):
                    total[r] += a[a0 + r * row_step + j] * data[at : at + WIDTH]
            for r in range(count):
                row = total[r] * factors[f + r] + factors[f + ROWS + r]
                if residual[0] >= 0:
                    beside = residual[v] + r * residual_step
                    row = row + data[beside : beside + WIDTH]
                to = out[v] + r * c_step
                c[to : to + WIDTH] = np.clip(row, factors[f + 2 * ROWS], factors[f + 2 * ROWS + 1])

    def multiply(
        context, a, a0, row_step, data, x, index, places, k, c, out, c_step, residual, residual_step, factors, f
    ):
        def codegen(context, builder, signature, values):
            def at(array, number):
                return element(context, builder, signature, values, array, number)

            def each(array, number):
                return [at(array, builder.extract_value(values[number], v)) for v in range(VECTORS)]

            a, index, factors = at(0, values[1]), at(5, values[6]), at(13, values[14])
            sums = accumulate(builder, a, values[2], LONG(1), each(3, 4), values[7], VECTORS, count, index)
            some = builder.icmp_signed(">=", builder.extract_value(values[11], 0), LONG(0))
            with builder.if_else(some) as (adding, writing):
                with adding:
                    finish_sums(builder, sums, each(8, 9), values[10], each(3, 11), values[12], factors)
                with writing:
                    finish_sums(builder, sums, each(8, 9), values[10], None, values[12], factors)
            return context.get_dummy_value()

        n, three = INDEX, types.UniTuple(INDEX, VECTORS)
        return types.void(a, n, n, data, three, index, n, n, c, three, n, three, n, factors, n), codegen

    return compiled_or(reference, multiply)


multiply_few, multiply_rows = _tile(SMALL_ROWS), _tile(ROWS)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=True)
def _first(layer, across, v):
    # Where vector v is: its row behind the first window's element, the row's first position of those of all images,
    # the row of its image, the column
    y, height = v // across, layer.image // layer.width
    image = y // height
    row = y - image * height
    return image * layer.image_step + row * layer.pitch, y * layer.width, row, (v - y * across) * WIDTH


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=True)
def _next(layer, place):
    # The same of the vector behind
    x, position, row, column = place
    column += WIDTH
    if column >= layer.width:
        x, position, row, column = x + layer.pitch, position + layer.width, row + 1, 0
        if row * layer.width == layer.image:
            x, row = x + layer.image_step - row * layer.pitch, 0
    return x, position, row, column


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _finish_waiting(g, s, row, used, outs, data, const, scratch):
    # OUT data: the results that wait in scratch from s on
    e, rows = g.end, SMALL_ROWS if used <= SMALL_ROWS else ROWS
    if e.activation > 2:
        activate_row(e.activation, scratch, s, rows * LANES, const, e.parameters)
    for r in range(used):
        for v in range(VECTORS):
            to = e.out + (row + r) * e.out_step + outs[v]
            store_lanes(data, to, load_lanes(scratch, s + r * LANES + v * WIDTH))


@step(DIRECT)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def direct(task, g, data, const, codes, index, scratch):
    layer, w, e, k, outputs, s = g.layer, g.weight, g.end, g.layer.reduction, g.layer.outputs, g.sums
    group, q = task // g.q_tasks, task % g.q_tasks
    first, last = q * g.vectors // g.q_tasks, (q + 1) * g.vectors // g.q_tasks
    start, i0, f = layer.x + group * layer.group_step, layer.offsets, g.factors
    for o in range(0, outputs, ROWS):
        row, used = group * outputs + o, min(ROWS, outputs - o)
        a, a0, a_step = const, w.weight + row * k, k
        if w.codes >= 0:
            a, a0, a_step = scratch, g.panel, g.panel_step
            c, wide = w.codes + row * w.code_row, w.code_bytes == 2
            decode_panel(
                codes, c, w.code_row, used, k // w.d, wide, const, w.weight, w.stride, w.d, scratch, a0, a_step
            )
        put_factors(e, row, const, scratch, f)
        waits = e.activation > 2 or (used != ROWS and used != SMALL_ROWS)
        out, out_step = e.out + row * e.out_step, e.out_step
        beside = e.residual + row * e.residual_step
        place, right = _first(layer, g.across, first), layer.width - WIDTH
        for v in range(first, last, VECTORS):
            x0, p0 = place[0] + min(place[3], right), place[1] + min(place[3], right)
            place = _next(layer, place)
            x1, p1, x2, p2 = x0, p0, x0, p0  # behind the last vector once more the first
            if v + 1 < last:
                x1, p1 = place[0] + min(place[3], right), place[1] + min(place[3], right)
                place = _next(layer, place)
            if v + 2 < last:
                x2, p2 = place[0] + min(place[3], right), place[1] + min(place[3], right)
                place = _next(layer, place)
            x, residual = (start + x0, start + x1, start + x2), (-1, -1, -1)
            if e.residual >= 0:
                residual = beside + p0, beside + p1, beside + p2
            c, to, c_step = data, (out + p0, out + p1, out + p2), out_step
            if waits:
                c, to, c_step = scratch, (s, s + WIDTH, s + 2 * WIDTH), LANES
            if used <= SMALL_ROWS:
                multiply_few(a, a0, a_step, data, x, index, i0, k, c, to, c_step, residual, e.residual_step, scratch, f)
            else:
                multiply_rows(
                    a, a0, a_step, data, x, index, i0, k, c, to, c_step, residual, e.residual_step, scratch, f
                )
            if waits:
                _finish_waiting(g, s, row, used, (p0, p1, p2), data, const, scratch)
