"""Products with packed weights for as many positions as a vector has lanes: codewords are multiplied where they are.

The inputs of a block stay in registers, each a vector of positions, while the codes of OUTPUTS outputs pass by: every
number of a codeword is one multiply-add. With so few positions decoding a panel would cost a fourth of its product.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types

from pqnet.kernels.abi import CODES, CONST, SIZE, Arguments, step
from pqnet.kernels.llvm import BYTE, FLOAT, HALF, INDEX, LONG, compiled_or, constant, element, offset
from pqnet.kernels.llvm import fma as emit_fma
from pqnet.kernels.llvm import load as emit_load
from pqnet.kernels.llvm import loop as emit_loop
from pqnet.kernels.llvm import splat as emit_splat
from pqnet.kernels.llvm import store as emit_store
from pqnet.kernels.products.epilogue import EPILOGUE, WINDOWS, finish_rows
from pqnet.kernels.simd import FLOATS, WIDTH

OUTPUTS = 16  # whose sums are in registers
TOGETHER = 4  # of them whose multiply-adds alternate, for each waits for the one before it
NUMBERS = (2, 4, 8)  # of a codeword


def _function(module, numbers):
    """Return the LLVM function of `_multiply` for codewords of so many numbers."""
    name = f"pqnet_lanes_{numbers}x{WIDTH}"
    if name in module.globals:
        return module.globals[name]
    floats, bytes_, longs = (kind.as_pointer() for kind in (FLOAT, BYTE, LONG))
    kinds = [bytes_, LONG, floats, LONG, floats, longs, LONG, floats]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    function.linkage = "internal"
    function.attributes.add("noinline")  # its loop needs all registers
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    codes, size, words, stride, x, places, blocks, sums = function.args
    kind = FLOATS.llvm
    totals = [builder.alloca(kind) for _ in range(OUTPUTS)]  # LLVM turns them into registers
    for total in totals:
        builder.store(constant(kind, 0.0), total)
    mask = builder.sub(builder.shl(LONG(1), builder.shl(size, LONG(3))), LONG(1))
    block, close = emit_loop(builder, blocks, "block")
    first = offset(builder, places, builder.mul(block, LONG(numbers)))
    inputs = [
        emit_load(builder, offset(builder, x, emit_load(builder, offset(builder, first, j), align=8)), kind)
        for j in range(numbers)
    ]
    row = offset(builder, codes, builder.mul(builder.mul(block, LONG(OUTPUTS)), size))
    for start in range(0, OUTPUTS, TOGETHER):
        outputs, found = range(start, start + TOGETHER), []
        for o in outputs:
            at = offset(builder, row, builder.mul(size, LONG(o)))
            half = emit_load(builder, at, HALF, align=1)  # of one-byte codes a byte too many
            code = builder.and_(builder.zext(half, LONG), mask)
            found.append(offset(builder, words, builder.mul(code, stride)))
        for j in range(numbers):
            for o, word in zip(outputs, found, strict=True):
                number = emit_splat(builder, emit_load(builder, offset(builder, word, j)), kind)
                builder.store(emit_fma(builder, number, inputs[j], builder.load(totals[o])), totals[o])
    close()
    for o, total in enumerate(totals):
        emit_store(builder, builder.load(total), offset(builder, sums, o * WIDTH))
    builder.ret_void()
    return function


def _multiply_reference(numbers, codes, c, size, words, w, stride, x, x0, index, i0, blocks, sums):
    total = np.zeros((OUTPUTS, WIDTH), np.float32)
    for block in range(blocks):
        for o in range(OUTPUTS):
            at = c + (block * OUTPUTS + o) * size
            word = w + (int(codes[at]) | (int(codes[at + 1]) << 8 if size == 2 else 0)) * stride
            for j in range(numbers):
                first = x0 + index[i0 + block * numbers + j]
                total[o] += words[word + j] * x[first : first + WIDTH]
    sums[: total.size] = total.reshape(-1)


def _emit_multiply(context, numbers, codes, c, size, words, w, stride, x, x0, index, i0, blocks, sums):
    def codegen(context, builder, signature, values):
        def pointer(array, at):
            return element(context, builder, signature, values, array, at)

        numbers, _, c, size, _, w, stride, _, x0, _, i0, blocks, _ = values
        arguments = [pointer(1, c), size, pointer(4, w), stride, pointer(7, x0), pointer(9, i0), blocks]
        arguments.append(pointer(12, LONG(0)))
        done = builder.append_basic_block("multiplied")
        choice = builder.switch(numbers, done)
        for each in NUMBERS:
            choice.add_case(LONG(each), builder.append_basic_block(f"numbers{each}"))
            builder.position_at_end(choice.cases[-1][1])
            builder.call(_function(builder.module, each), arguments)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    n = INDEX
    return types.void(n, codes, n, n, words, n, n, x, n, index, n, n, sums), codegen


# (numbers, codes, c, size, words, w, stride, x, x0, index, i0, blocks, sums)
# OUT sums[: OUTPUTS * WIDTH]: of each output, WIDTH positions, the sum over blocks of its codeword times the inputs.
# The code of output o in a block, of ``size`` bytes, is number block * OUTPUTS + o from byte c on, codewords are
# ``stride`` apart from words[w:]; number j of the inputs of a block is x[x0 + index[i0 + block * numbers + j] + lane].
_multiply = compiled_or(_multiply_reference, _emit_multiply)


# All positions follow each other. Codes are read panel by panel: [group][OUTPUTS outputs][block][output of the panel].
IN_LANES = Arguments(
    layer=WINDOWS,
    end=EPILOGUE,
    codes=CODES,
    code_bytes=SIZE,
    codebook=CONST,
    stride=SIZE,  # of codewords
    d=SIZE,
    positions=SIZE,
    panels=SIZE,  # of a group
    per_task=SIZE,  # panels
    o_tasks=SIZE,  # tasks along the panels of a group
)


@step(IN_LANES)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def multiply_in_lanes(task, g, data, const, codes, index, scratch):
    layer, d, size, outputs = g.layer, g.d, g.code_bytes, g.layer.outputs
    group, blocks = task // g.o_tasks, g.layer.reduction // g.d
    first = task % g.o_tasks * g.per_task
    x0 = layer.x + group * layer.group_step
    for panel in range(first, min(first + g.per_task, g.panels)):
        c = g.codes + (group * g.panels + panel) * blocks * OUTPUTS * size
        _multiply(d, codes, c, size, const, g.codebook, g.stride, data, x0, index, layer.offsets, blocks, scratch)
        used = min(OUTPUTS, outputs - panel * OUTPUTS)
        o = group * outputs + panel * OUTPUTS
        finish_rows(scratch, 0, WIDTH, used, o, 0, g.positions, g.end, data, const)
