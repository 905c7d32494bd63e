"""The register tile of every matrix product: ROWS outputs times up to three vectors of positions.

C[r, j] (+)= sum_k A[r, k] * X[k, j], with A[r, k] at a[a0 + r * row_step + k * k_step] and X packed: X[k, j] at
x[x0 + k * LANES + j], at best on a 64-byte boundary.

The accumulators fill the register file (8 x 3 of 32 AVX-512 registers, 4 x 3 of 16 otherwise), so that every load of a
row of x serves ROWS products and every load of a weight three: the multiply-add units are the limit, not the loads.
Numba cannot keep 24 named vectors in a loop over rows, hence LLVM code written out here.
"""

import numpy as np
from numba import types

from pqnet.kernels.llvm import (
    INDEX,
    LONG,
    compiled_or,
    constant,
    element,
    fma,
    in_order,
    load,
    loop,
    offset,
    splat,
    store,
)
from pqnet.kernels.simd import FLOATS, ISA, WIDTH

ROWS = 8 if ISA == "avx512" else 4
VECTORS = 3
LANES = VECTORS * WIDTH
SMALL_ROWS = 4  # rows of the smaller tile
PLACE = 4  # where finished tiles go: out, out_step, residual, residual_step


def accumulate(builder, a, row_step, k_step, x, k, vectors, count, places, beside=None):
    """Emit the loop over k from pointers a and x; return the ``count`` x vectors sums.

    Row k of x begins ``places[k]`` behind x, or k * LANES if ``places`` is None; x may be the places of all vectors.
    ``beside`` emits what else is done in each round, given the block before the loop.
    """
    rows = [offset(builder, a, builder.mul(row_step, LONG(r))) for r in range(count)]
    zeros = constant(FLOATS.llvm, 0.0)
    before = builder.block
    body, after = builder.append_basic_block("tile.k"), builder.append_basic_block("tile.end")
    builder.cbranch(builder.icmp_signed(">", k, LONG(0)), body, after)
    builder.position_at_end(body)
    step, at = builder.phi(LONG), builder.phi(LONG)
    sums = [builder.phi(FLOATS.llvm) for _ in range(count * vectors)]
    if beside is not None:
        beside(before)
    row = builder.mul(step, LONG(LANES)) if places is None else load(builder, offset(builder, places, step), align=8)
    starts = x if isinstance(x, list) else [offset(builder, x, v * WIDTH) for v in range(vectors)]
    loaded = [load(builder, offset(builder, start, row), FLOATS.llvm) for start in starts]
    results, ordered = [], ISA == "avx512" and (beside is not None or isinstance(x, list))
    for r in range(count):
        weight = splat(builder, load(builder, offset(builder, rows[r], at)), FLOATS.llvm)
        products = [fma(builder, weight, loaded[v], sums[r * vectors + v]) for v in range(vectors)]
        if ordered and r % 2 == 1 and r + 1 < count:
            # LLVM would load all weights before any product, for which there are no registers.
            products = [in_order(builder, product) for product in products]
        results += products
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


def sums_reference(a, a0, row_step, k_step, x, x0, index, places, k, vectors, count):
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
        put_reference(sums_reference(a, a0, row_step, k_step, x, x0, None, 0, k, vectors, count), c, c0, c_step, add)

    def multiply(context, a, a0, row_step, k_step, x, x0, k, c, c0, c_step, add):
        def codegen(context, builder, signature, values):
            a0, row_step, k_step, _, x0, k, _, c0, c_step, add = values[1:]
            a, x, c = (element(context, builder, signature, values, i, at) for i, at in ((0, a0), (4, x0), (7, c0)))
            sums = accumulate(builder, a, row_step, k_step, x, k, vectors, count, None)
            put_sums(builder, sums, c, c_step, add, vectors, count)
            return context.get_dummy_value()

        n = INDEX
        return types.void(a, n, n, n, x, n, n, c, n, n, n), codegen

    return compiled_or(reference, multiply)


def _listed_tile(vectors):
    def reference(a, a0, row_step, x, x0, index, places, k, c, c0, c_step, add):
        put_reference(sums_reference(a, a0, row_step, 1, x, x0, index, places, k, vectors, ROWS), c, c0, c_step, add)

    def multiply(context, a, a0, row_step, x, x0, index, places, k, c, c0, c_step, add):
        def codegen(context, builder, signature, values):
            row_step, k, c_step, add = (values[i] for i in (2, 7, 10, 11))
            a, x, index, c = (element(context, builder, signature, values, i, values[i + 1]) for i in (0, 3, 5, 8))
            sums = accumulate(builder, a, row_step, LONG(1), x, k, vectors, ROWS, index)
            put_sums(builder, sums, c, c_step, add, vectors, ROWS)
            return context.get_dummy_value()

        n = INDEX
        return types.void(a, n, n, x, n, index, n, n, c, n, n, n), codegen

    return compiled_or(reference, multiply)


def finish_reference(total, data, at, place, factors, f):
    out, out_step, residual, residual_step = place
    for r, row in enumerate(total):
        row = row * factors[f + r] + factors[f + ROWS + r]
        if residual >= 0:
            beside = residual + at + r * residual_step
            row += data[beside : beside + row.size]
        to = out + at + r * out_step
        data[to : to + row.size] = np.clip(row, factors[f + 2 * ROWS], factors[f + 2 * ROWS + 1])


def finish_sums(builder, sums, targets, out_step, beside, residual_step, factors):
    """Emit the end of sums up to their store.

    ``targets`` are the places of the vectors of the first row; ``beside`` is None or those of the residual.
    """

    def number(i):  # from memory: kept in registers, which have the sums, they would cost more
        return splat(builder, load(builder, offset(builder, factors, i)), FLOATS.llvm)

    def behind(place, row_step, r):
        return offset(builder, place, builder.mul(row_step, LONG(r)))

    low, high = number(2 * ROWS), number(2 * ROWS + 1)
    for r in range(len(sums) // len(targets)):
        factor, term = number(r), number(ROWS + r)
        for v, target in enumerate(targets):
            value = fma(builder, sums[r * len(targets) + v], factor, term)
            if beside is not None:
                place = behind(beside[v], residual_step, r)
                value = builder.fadd(value, load(builder, place, FLOATS.llvm))
            value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
            value = builder.select(builder.fcmp_ordered(">", value, high), high, value)
            store(builder, value, behind(target, out_step, r))


def finish_tiles(context, builder, signature, values, tiles, data, sums_of):
    """Emit a loop over tiles up to their store.

    The arguments from number ``data`` on are data, place, factors, f; ``sums_of`` emits the ROWS x VECTORS sums of a
    tile, given its number.
    """
    out, out_step, residual, residual_step = (builder.extract_value(values[data + 1], i) for i in range(PLACE))
    factors = element(context, builder, signature, values, data + 2, values[data + 3])
    tile, close = loop(builder, tiles, "tiles")
    sums = sums_of(tile)
    at = builder.mul(tile, LONG(LANES))
    firsts = (element(context, builder, signature, values, data, builder.add(place, at)) for place in (out, residual))
    targets, beside = ([offset(builder, first, v * WIDTH) for v in range(VECTORS)] for first in firsts)
    with builder.if_else(builder.icmp_signed(">=", residual, LONG(0))) as (adding, writing):
        with adding:
            finish_sums(builder, sums, targets, out_step, beside, residual_step, factors)
        with writing:
            finish_sums(builder, sums, targets, out_step, None, residual_step, factors)
    close()


def _finished_tiles():
    def reference(a, a0, row_step, x, x0, x_step, index, places, k, tiles, data, place, factors, f):
        for tile in range(tiles):
            at = x0 + tile * x_step
            total = sums_reference(a, a0, row_step, 1, x, at, index, places, k, VECTORS, ROWS)
            finish_reference(total, data, tile * LANES, place, factors, f)

    def multiply(context, a, a0, row_step, x, x0, x_step, index, places, k, tiles, data, place, factors, f):
        def codegen(context, builder, signature, values):
            a, x, places = (element(context, builder, signature, values, i, values[i + 1]) for i in (0, 3, 6))

            def sums_of(tile):
                from_x = offset(builder, x, builder.mul(tile, values[5]))
                return accumulate(builder, a, values[2], LONG(1), from_x, values[8], VECTORS, ROWS, places)

            finish_tiles(context, builder, signature, values, values[9], 10, sums_of)
            return context.get_dummy_value()

        n, place = INDEX, types.UniTuple(INDEX, PLACE)
        return types.void(a, n, n, x, n, n, index, n, n, n, data, place, factors, n), codegen

    return compiled_or(reference, multiply)


# (a, a0, row_step, k_step, x, x0, k, c, c0, c_step, add); rows of c are c_step apart, add != 0 adds to them.
multiply_1, multiply_2, multiply_3 = _tile(1), _tile(2), _tile(3)
# The same for one row and for SMALL_ROWS.
multiply_one, multiply_small = _tile(VECTORS, 1), _tile(VECTORS, SMALL_ROWS)
# (a, a0, row_step, x, x0, index, places, k, c, c0, c_step, add): X is not packed, row k begins at
# x[x0 + index[places + k]]; weights of a row lie side by side.
multiply_listed_1, multiply_listed_2, multiply_listed_3 = _listed_tile(1), _listed_tile(2), _listed_tile(3)
# (a, a0, row_step, x, x0, x_step, index, places, k, tiles, data, place, factors, f): listed, too; so many tiles, which
# begin x_step apart in x. The sums of row r times factors[f + r] plus factors[f + ROWS + r] plus data[residual ..], at
# least factors[f + 2 * ROWS] and at most the number behind that, go to data[out ..], the next tile's behind them.
multiply_and_finish = _finished_tiles()
