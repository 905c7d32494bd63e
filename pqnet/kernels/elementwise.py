"""Chains of element-wise operations in one pass: a small machine whose registers are pieces of PIECE lanes.

An instruction works on a whole piece, so that choosing what to do costs little; pieces stay in the first-level
cache from the operands to the result.
"""

import numpy as np
from numba import njit

from pqnet.kernels.activation import activate
from pqnet.kernels.simd import (
    WIDTH,
    add,
    divide,
    fma,
    load,
    maximum,
    minimum,
    multiply,
    splat,
    store,
    store_head,
    subtract,
)

PIECE = 512

ADD, SUBTRACT, MULTIPLY, DIVIDE, MAXIMUM, MINIMUM, FMA, ACTIVATE = range(8)
OPERANDS = 5  # at most; each has a register from the first on
OPERAND_FIELDS = 6


@njit(cache=True, nogil=True, error_model="numpy")
def elementwise(task, g, data, const, codes, index, scratch):
    # Four axes of sizes g[0:4], the last of step 1 in the result; rows are the combinations of the first three.
    # 4 rows a task, 5 operands, 6 instructions in index, 7 how many; 8 result, 9-11 its steps along the first axes.
    # Operand i from 13 + 6 i: 0 data / 1 const, offset, steps along the four axes; the last is 0 or 1.
    # An instruction is (operation, target, a, b, c) with registers a, b, c; of ACTIVATE, b is the kind and c the
    # offset in const of two parameters. The result is in the target of the last one.
    n1, n2, n3 = g[1], g[2], g[3]
    rows = g[0] * n1 * n2
    operands, table, instructions, out = g[5], g[6], g[7], g[8]
    step = PIECE + WIDTH
    for row in range(task * g[4], min((task + 1) * g[4], rows)):
        i2 = row % n2
        rest = row // n2
        i1 = rest % n1
        i0 = rest // n1
        target = out + i0 * g[9] + i1 * g[10] + i2 * g[11]
        for first in range(0, n3, PIECE):
            n = min(PIECE, n3 - first)
            for i in range(operands):
                f = 13 + OPERAND_FIELDS * i
                at = g[f + 1] + i0 * g[f + 2] + i1 * g[f + 3] + i2 * g[f + 4]
                source = data if g[f] == 0 else const
                if g[f + 5] == 0:
                    v = splat(source[at])
                    for j in range(0, n, WIDTH):
                        store(scratch, i * step + j, v)
                else:
                    for j in range(0, n, WIDTH):
                        store(scratch, i * step + j, load(source, at + first + j))
            t = 0
            for k in range(instructions):
                f = table + 5 * k
                operation, t = index[f], index[f + 1] * step
                a, b, c = index[f + 2] * step, index[f + 3] * step, index[f + 4] * step
                if operation == ADD:
                    for j in range(0, n, WIDTH):
                        store(scratch, t + j, add(load(scratch, a + j), load(scratch, b + j)))
                elif operation == SUBTRACT:
                    for j in range(0, n, WIDTH):
                        store(scratch, t + j, subtract(load(scratch, a + j), load(scratch, b + j)))
                elif operation == MULTIPLY:
                    for j in range(0, n, WIDTH):
                        store(scratch, t + j, multiply(load(scratch, a + j), load(scratch, b + j)))
                elif operation == DIVIDE:
                    for j in range(0, n, WIDTH):
                        store(scratch, t + j, divide(load(scratch, a + j), load(scratch, b + j)))
                elif operation == MAXIMUM:
                    for j in range(0, n, WIDTH):
                        store(scratch, t + j, maximum(load(scratch, a + j), load(scratch, b + j)))
                elif operation == MINIMUM:
                    for j in range(0, n, WIDTH):
                        store(scratch, t + j, minimum(load(scratch, a + j), load(scratch, b + j)))
                elif operation == FMA:
                    for j in range(0, n, WIDTH):
                        v = fma(load(scratch, a + j), load(scratch, b + j), load(scratch, c + j))
                        store(scratch, t + j, v)
                else:
                    kind, p = np.int64(index[f + 3]), index[f + 4]
                    for j in range(0, n, WIDTH):
                        store(
                            scratch, t + j, activate(kind, load(scratch, a + j), splat(const[p]), splat(const[p + 1]))
                        )
            for j in range(0, n, WIDTH):
                if j + WIDTH <= n:
                    store(data, target + first + j, load(scratch, t + j))
                else:
                    store_head(data, target + first + j, load(scratch, t + j), n - j)
