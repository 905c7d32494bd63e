"""The register tile of every matrix product: ROWS outputs times up to three vectors of positions.

C[r, j] (+)= sum_k A[r, k] * X[k, j], with A[r, k] at a[a0 + r * row_step + k * k_step] and X packed: X[k, j] at
x[x0 + k * LANES + j], at best on a 64-byte boundary.

The accumulators fill the register file (8 x 3 of 32 AVX-512 registers, 4 x 3 of 16 otherwise), so that every load of a
row of x serves ROWS products and every load of a weight three: the multiply-add units are the limit, not the loads.
Numba cannot keep 24 named vectors in a loop over rows, hence LLVM code written out here.
"""

import numpy as np
from numba import types

from pqnet.kernels.llvm import FLOAT, INDEX, LONG, compiled_or, constant, element, fma, load, offset, splat, store
from pqnet.kernels.simd import FLOATS, ISA, WIDTH

ROWS = 8 if ISA == "avx512" else 4
VECTORS = 3
LANES = VECTORS * WIDTH
SMALL_ROWS = 4  # rows of the smaller tile
PLACE = 7  # where a finished tile goes


def _accumulate(builder, a, row_step, k_step, x, k, vectors, count, places):
    """Emit the loop over k from pointers a and x; return the ``count`` x vectors sums.

    Row k of x begins ``places[k]`` behind x, or k * LANES if ``places`` is None.
    """
    rows = [offset(builder, a, builder.mul(row_step, LONG(r))) for r in range(count)]
    zeros = constant(FLOATS.llvm, 0.0)
    before = builder.block
    body, after = builder.append_basic_block("tile.k"), builder.append_basic_block("tile.end")
    builder.cbranch(builder.icmp_signed(">", k, LONG(0)), body, after)
    builder.position_at_end(body)
    step, at = builder.phi(LONG), builder.phi(LONG)
    sums = [builder.phi(FLOATS.llvm) for _ in range(count * vectors)]
    if places is None:
        row = offset(builder, x, builder.mul(step, LONG(LANES)))
    else:
        row = offset(builder, x, load(builder, offset(builder, places, step), align=8))
    loaded = [load(builder, offset(builder, row, v * WIDTH), FLOATS.llvm) for v in range(vectors)]
    results = []
    for r in range(count):
        weight = splat(builder, load(builder, offset(builder, rows[r], at)), FLOATS.llvm)
        results += [fma(builder, weight, loaded[v], sums[r * vectors + v]) for v in range(vectors)]
    following, next_at = builder.add(step, LONG(1)), builder.add(at, k_step)
    started = [(step, LONG(0), following), (at, LONG(0), next_at)]
    started += [(phi, zeros, result) for phi, result in zip(sums, results, strict=True)]
    for phi, first_value, next_value in started:
        phi.add_incoming(first_value, before)
        phi.add_incoming(next_value, builder.block)
    inner = builder.block
    builder.cbranch(builder.icmp_signed("<", following, k), body, after)
    builder.position_at_end(after)
    totals = [builder.phi(FLOATS.llvm) for _ in sums]
    for total, result in zip(totals, results, strict=True):
        total.add_incoming(zeros, before)
        total.add_incoming(result, inner)
    return totals


def _sums_reference(a, a0, row_step, k_step, x, x0, index, places, k, vectors, count):
    """Return sums (count, vectors * WIDTH); row j of x begins at x0 + index[places + j], or x0 + j * LANES."""
    total = np.zeros((count, vectors * WIDTH), np.float32)
    for j in range(k):
        at = x0 + (j * LANES if index is None else index[places + j])
        for r in range(count):
            total[r] += a[a0 + r * row_step + j * k_step] * x[at : at + vectors * WIDTH]
    return total


def put_reference(total, c, c0, c_step, add):
    for r, row in enumerate(total):
        out = c[c0 + r * c_step : c0 + r * c_step + row.size]
        out[:] = out + row if add else row


def put_sums(builder, sums, first, c_step, add, vectors, count):
    rows = [offset(builder, first, builder.mul(c_step, LONG(r))) for r in range(count)]
    places = [offset(builder, row, v * WIDTH) for row in rows for v in range(vectors)]
    with builder.if_else(builder.icmp_signed("!=", add, LONG(0))) as (adding, writing):
        with adding:
            for total, place in zip(sums, places, strict=True):
                store(builder, builder.fadd(load(builder, place, FLOATS.llvm), total), place)
        with writing:
            for total, place in zip(sums, places, strict=True):
                store(builder, total, place)


def _tile(vectors, count=ROWS):
    def reference(a, a0, row_step, k_step, x, x0, k, c, c0, c_step, add):
        put_reference(_sums_reference(a, a0, row_step, k_step, x, x0, None, 0, k, vectors, count), c, c0, c_step, add)

    def multiply(context, a, a0, row_step, k_step, x, x0, k, c, c0, c_step, add):
        def codegen(context, builder, signature, values):
            a0, row_step, k_step, _, x0, k, _, c0, c_step, add = values[1:]
            a, x, c = (element(context, builder, signature, values, i, at) for i, at in ((0, a0), (4, x0), (7, c0)))
            sums = _accumulate(builder, a, row_step, k_step, x, k, vectors, count, None)
            put_sums(builder, sums, c, c_step, add, vectors, count)
            return context.get_dummy_value()

        n = INDEX
        return types.void(a, n, n, n, x, n, n, c, n, n, n), codegen

    return compiled_or(reference, multiply)


def _listed_tile(vectors):
    def reference(a, a0, row_step, x, x0, index, places, k, c, c0, c_step, add):
        put_reference(_sums_reference(a, a0, row_step, 1, x, x0, index, places, k, vectors, ROWS), c, c0, c_step, add)

    def multiply(context, a, a0, row_step, x, x0, index, places, k, c, c0, c_step, add):
        def codegen(context, builder, signature, values):
            row_step, k, c_step, add = (values[i] for i in (2, 7, 10, 11))
            a, x, index, c = (element(context, builder, signature, values, i, values[i + 1]) for i in (0, 3, 5, 8))
            sums = _accumulate(builder, a, row_step, LONG(1), x, k, vectors, ROWS, index)
            put_sums(builder, sums, c, c_step, add, vectors, ROWS)
            return context.get_dummy_value()

        n = INDEX
        return types.void(a, n, n, x, n, index, n, n, c, n, n, n), codegen

    return compiled_or(reference, multiply)


def finish_reference(total, data, const, place, limits):
    out, out_step, scale, shift, residual, residual_step, _ = place
    for r, row in enumerate(total):
        row = row * (const[scale + r] if scale >= 0 else 1) + (const[shift + r] if shift >= 0 else 0)
        if residual >= 0:
            row += data[residual + r * residual_step : residual + r * residual_step + row.size]
        data[out + r * out_step : out + r * out_step + row.size] = np.clip(row, *limits)


def finish_sums(context, builder, signature, values, sums, data):
    """Emit the end of ROWS x VECTORS sums up to their store; ``data`` is the number of that argument."""

    def number(first, r, default):
        some = builder.icmp_signed(">=", first, LONG(0))
        at = builder.select(some, builder.add(first, LONG(r)), spare)
        found = load(builder, element(context, builder, signature, values, data + 1, at))
        return splat(builder, builder.select(some, found, FLOAT(default)), FLOATS.llvm)

    def write(beside):
        for r in range(ROWS):
            factor, term = number(scale, r, 1.0), number(shift, r, 0.0)
            for v in range(VECTORS):
                value = fma(builder, sums[r * VECTORS + v], factor, term)
                if beside is not None:
                    row = offset(builder, beside, builder.mul(residual_step, LONG(r)))
                    value = builder.fadd(value, load(builder, offset(builder, row, v * WIDTH), FLOATS.llvm))
                value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
                value = builder.select(builder.fcmp_ordered(">", value, high), high, value)
                row = offset(builder, target, builder.mul(out_step, LONG(r)))
                store(builder, value, offset(builder, row, v * WIDTH))

    place, limits = values[data + 2 : data + 4]
    out, out_step, scale, shift, residual, residual_step, spare = (
        builder.extract_value(place, i) for i in range(PLACE)
    )
    low, high = (splat(builder, builder.extract_value(limits, i), FLOATS.llvm) for i in range(2))
    target = element(context, builder, signature, values, data, out)
    with builder.if_else(builder.icmp_signed(">=", residual, LONG(0))) as (adding, writing):
        with adding:
            write(element(context, builder, signature, values, data, residual))
        with writing:
            write(None)


def _finishing_tile(listed):
    def reference(a, a0, row_step, x, x0, index, places, k, data, const, place, limits):
        index = index if listed else None
        total = _sums_reference(a, a0, row_step, 1, x, x0, index, places, k, VECTORS, ROWS)
        finish_reference(total, data, const, place, limits)

    def multiply(context, a, a0, row_step, x, x0, index, places, k, data, const, place, limits):
        def codegen(context, builder, signature, values):
            a, x, index = (element(context, builder, signature, values, i, values[i + 1]) for i in (0, 3, 5))
            places = index if listed else None
            sums = _accumulate(builder, a, values[2], LONG(1), x, values[7], VECTORS, ROWS, places)
            finish_sums(context, builder, signature, values, sums, 8)
            return context.get_dummy_value()

        n, tuples = INDEX, (types.UniTuple(INDEX, PLACE), types.UniTuple(types.float32, 2))
        return types.void(a, n, n, x, n, index, n, n, data, const, *tuples), codegen

    return compiled_or(reference, multiply)


# (a, a0, row_step, k_step, x, x0, k, c, c0, c_step, add); rows of c are c_step apart, add != 0 adds to them.
multiply_1, multiply_2, multiply_3 = _tile(1), _tile(2), _tile(3)
# The same for one row and for SMALL_ROWS.
multiply_one, multiply_small = _tile(VECTORS, 1), _tile(VECTORS, SMALL_ROWS)
# (a, a0, row_step, x, x0, index, places, k, c, c0, c_step, add): X is not packed, row k begins at
# x[x0 + index[places + k]]; weights of a row lie side by side.
multiply_listed_1, multiply_listed_2, multiply_listed_3 = _listed_tile(1), _listed_tile(2), _listed_tile(3)
# (a, a0, row_step, x, x0, index, places, k, data, const, place, limits): the sums times const[scale ..] plus
# const[shift ..] plus data[residual ..], within the limits, go to data[out ..]; place has out, out_step, scale, shift,
# residual, residual_step, -1 for what there is not, and a position of const that there is. X is packed or listed.
multiply_and_finish, multiply_listed_and_finish = _finishing_tile(False), _finishing_tile(True)
