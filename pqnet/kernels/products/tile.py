"""The register tile of every matrix product: ROWS outputs times up to three vectors of positions.

C[r, j] (+)= sum_k A[r, k] * X[k, j], with A[r, k] at a[a0 + r * row_step + k * k_step] and X packed: X[k, j] at
x[x0 + k * LANES + j], at best on a 64-byte boundary.

The accumulators fill the register file (8 x 3 of 32 AVX-512 registers, 4 x 3 of 16 otherwise), so that every load of a
row of x serves ROWS products and every load of a weight three: the multiply-add units are the limit, not the loads.
Numba cannot keep 24 named vectors in a loop over rows, hence LLVM code written out here.
"""

import numpy as np
from numba import types

from pqnet.kernels.llvm import INDEX, LONG, compiled_or, constant, element, fma, load, offset, splat, store
from pqnet.kernels.simd import FLOATS, ISA, WIDTH

ROWS = 8 if ISA == "avx512" else 4
VECTORS = 3
LANES = VECTORS * WIDTH
SMALL_ROWS = 4  # rows of the smaller tile


def _accumulate(builder, context, signature, values, vectors, count):
    """Emit the loop over k; return the ``count`` x vectors sums."""
    _, a0, row_step, k_step, _, x0, k = values[:7]
    first = element(context, builder, signature, values, 0, a0)
    rows = [offset(builder, first, builder.mul(row_step, LONG(r))) for r in range(count)]
    start = element(context, builder, signature, values, 4, x0)
    zeros = constant(FLOATS.llvm, 0.0)
    before = builder.block
    body, after = builder.append_basic_block("tile.k"), builder.append_basic_block("tile.end")
    builder.cbranch(builder.icmp_signed(">", k, LONG(0)), body, after)
    builder.position_at_end(body)
    step, at = builder.phi(LONG), builder.phi(LONG)
    sums = [builder.phi(FLOATS.llvm) for _ in range(count * vectors)]
    row = offset(builder, start, builder.mul(step, LONG(LANES)))
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


def _tile(vectors, count=ROWS):
    def reference(a, a0, row_step, k_step, x, x0, k, c, c0, c_step, add):
        for r in range(count):
            out = c[c0 + r * c_step : c0 + r * c_step + vectors * WIDTH]
            total = np.zeros(vectors * WIDTH, np.float32)
            for j in range(k):
                at = x0 + j * LANES
                total += a[a0 + r * row_step + j * k_step] * x[at : at + vectors * WIDTH]
            out[:] = out + total if add else total

    def multiply(context, a, a0, row_step, k_step, x, x0, k, c, c0, c_step, add):
        def codegen(context, builder, signature, values):
            sums = _accumulate(builder, context, signature, values, vectors, count)
            c0, c_step, add = values[8:]
            first = element(context, builder, signature, values, 7, c0)
            rows = [offset(builder, first, builder.mul(c_step, LONG(r))) for r in range(count)]
            places = [offset(builder, row, v * WIDTH) for row in rows for v in range(vectors)]
            with builder.if_else(builder.icmp_signed("!=", add, LONG(0))) as (adding, writing):
                with adding:
                    for total, place in zip(sums, places, strict=True):
                        store(builder, builder.fadd(load(builder, place, FLOATS.llvm), total), place)
                with writing:
                    for total, place in zip(sums, places, strict=True):
                        store(builder, total, place)
            return context.get_dummy_value()

        n = INDEX
        return types.void(a, n, n, n, x, n, n, c, n, n, n), codegen

    return compiled_or(reference, multiply)


# (a, a0, row_step, k_step, x, x0, k, c, c0, c_step, add); rows of c are c_step apart, add != 0 adds to them.
multiply_1, multiply_2, multiply_3 = _tile(1), _tile(2), _tile(3)
# The same for one row and for SMALL_ROWS.
multiply_one, multiply_small = _tile(VECTORS, 1), _tile(VECTORS, SMALL_ROWS)
