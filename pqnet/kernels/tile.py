"""The register tile of every matrix product: ROWS outputs times up to three vectors of positions.

C[r, j] (+)= sum_k A[r, k] * X[k, j], with A[r, k] at a[a0 + r * row_step + k * k_step] and X packed: X[k, j] at
x[x0 + k * LANES + j], at best on a 64-byte boundary.

The accumulators fill the register file (8 x 3 of 32 AVX-512 registers, 4 x 3 of 16 otherwise), so that every load of a
row of x serves ROWS products and every load of a weight three: the multiply-add units are the limit, not the loads.
Numba cannot keep 24 named vectors in a loop over rows, hence LLVM code written out here.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from pqnet.kernels.simd import FLOATS, ISA, WIDTH

ROWS = 8 if ISA == "avx512" else 4
VECTORS = 3
LANES = VECTORS * WIDTH

_WORD, _LONG = ir.IntType(32), ir.IntType(64)


def _accumulate(builder, context, signature, values, vectors):
    """Emit the loop over k; return the ROWS x vectors sums."""
    _, a0, row_step, k_step, _, x0, k = values[:7]
    data = [context.make_array(signature.args[i])(context, builder, values[i]).data for i in (0, 4)]
    rows = [builder.gep(data[0], [builder.add(a0, builder.mul(row_step, _LONG(r)))]) for r in range(ROWS)]
    start = builder.gep(data[1], [x0])
    lanes = FLOATS.llvm
    zeros, none = ir.Constant(lanes, [0.0] * WIDTH), ir.Constant(ir.VectorType(_WORD, WIDTH), [0] * WIDTH)
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(lanes, [lanes] * 3), f"llvm.fma.v{WIDTH}f32")
    before = builder.block
    body, after = builder.append_basic_block("tile.k"), builder.append_basic_block("tile.end")
    builder.cbranch(builder.icmp_signed(">", k, _LONG(0)), body, after)
    builder.position_at_end(body)
    step, at = builder.phi(_LONG), builder.phi(_LONG)
    sums = [builder.phi(lanes) for _ in range(ROWS * vectors)]
    row = builder.gep(start, [builder.mul(step, _LONG(LANES))])
    loaded = []
    for v in range(vectors):
        value = builder.load(builder.bitcast(builder.gep(row, [_LONG(v * WIDTH)]), lanes.as_pointer()))
        value.align = 4
        loaded.append(value)
    results = []
    for r in range(ROWS):
        weight = builder.load(builder.gep(rows[r], [at]))
        first = builder.insert_element(ir.Constant(lanes, ir.Undefined), weight, _WORD(0))
        splat = builder.shuffle_vector(first, ir.Constant(lanes, ir.Undefined), none)
        results += [builder.call(fma, [splat, loaded[v], sums[r * vectors + v]]) for v in range(vectors)]
    following, next_at = builder.add(step, _LONG(1)), builder.add(at, k_step)
    step.add_incoming(_LONG(0), before)
    step.add_incoming(following, builder.block)
    at.add_incoming(_LONG(0), before)
    at.add_incoming(next_at, builder.block)
    for phi, result in zip(sums, results, strict=True):
        phi.add_incoming(zeros, before)
        phi.add_incoming(result, builder.block)
    inner = builder.block
    builder.cbranch(builder.icmp_signed("<", following, k), body, after)
    builder.position_at_end(after)
    totals = [builder.phi(lanes) for _ in sums]
    for total, result in zip(totals, results, strict=True):
        total.add_incoming(zeros, before)
        total.add_incoming(result, inner)
    return totals


def _tile(vectors):
    def twin(a, a0, row_step, k_step, x, x0, k, c, c0, c_step, add):
        for r in range(ROWS):
            out = c[c0 + r * c_step : c0 + r * c_step + vectors * WIDTH]
            total = np.zeros(vectors * WIDTH, np.float32)
            for j in range(k):
                at = x0 + j * LANES
                total += a[a0 + r * row_step + j * k_step] * x[at : at + vectors * WIDTH]
            out[:] = out + total if add else total

    @intrinsic
    def multiply(context, a, a0, row_step, k_step, x, x0, k, c, c0, c_step, add):
        def codegen(context, builder, signature, values):
            sums = _accumulate(builder, context, signature, values, vectors)
            c, c0, c_step, add = values[7:]
            out = context.make_array(signature.args[7])(context, builder, c).data
            kind = FLOATS.llvm.as_pointer()
            places = [
                builder.bitcast(
                    builder.gep(out, [builder.add(builder.add(c0, builder.mul(c_step, _LONG(r))), _LONG(v * WIDTH))]),
                    kind,
                )
                for r in range(ROWS)
                for v in range(vectors)
            ]
            with builder.if_else(builder.icmp_signed("!=", add, _LONG(0))) as (adding, writing):
                with adding:
                    for total, place in zip(sums, places, strict=True):
                        old = builder.load(place)
                        old.align = 4
                        builder.store(builder.fadd(old, total), place).align = 4
                with writing:
                    for total, place in zip(sums, places, strict=True):
                        builder.store(total, place).align = 4
            return context.get_dummy_value()

        n = types.intp
        return types.void(a, n, n, n, x, n, n, c, n, n, n), codegen

    return twin if config.DISABLE_JIT else multiply


# (a, a0, row_step, k_step, x, x0, k, c, c0, c_step, add); rows of c are c_step apart, add != 0 adds to them.
multiply_1, multiply_2, multiply_3 = _tile(1), _tile(2), _tile(3)
