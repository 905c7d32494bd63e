"""Register tiles that decode the next panel of the weight beside the products.

The multiply-add units are the limit of a tile, not loads, stores and integers: those of the next panel's codewords cost
next to nothing there. A tile of k steps decodes the whole panel, whose rows have k numbers, too.
"""

from llvmlite import ir
from numba import njit, types

from pqnet.kernels.llvm import FLOAT, INDEX, LONG, compiled_or, element, load, offset, store
from pqnet.kernels.products.tile import (
    PLACE,
    ROWS,
    VECTORS,
    accumulate,
    finish_reference,
    finish_tiles,
    put_reference,
    put_sums,
    sums_reference,
)
from pqnet.kernels.simd import ISA

__all__ = ["AHEAD", "AHEAD_SIZES", "NOTHING", "finish_ahead", "multiply_ahead"]

AHEAD = ISA == "avx512"  # others have no registers for it
AHEAD_SIZES = 4, 8, 9  # of codewords
# What is decoded: the size of codewords; codes of a byte each from ``first``, rows ``step`` apart; codewords from
# ``book``; a panel at t.
NEXT = 5
NOTHING = (0,) * NEXT


CODES, CONST, AHEAD_OF = 12, 13, 14  # numbers of these arguments of a tile; the first ones are a, a0, row_step


def _copier(context, builder, signature, values, d):
    """Return what emits the copy of codewords of d numbers into ``a`` in each round of the loop over k.

    Of each column of codes the rows are copied one after another, two at once if d is 4, the last one twice if d is 9.
    """
    _, first, step, book, t = (builder.extract_value(values[AHEAD_OF], i) for i in range(NEXT))
    row_step, arrays = values[2], ((CODES, first), (CONST, book), (0, t))
    first_code, source, first_target = (element(context, builder, signature, values, i, at) for i, at in arrays)
    at_once, stride = 2 if d == 4 else 1, 16 if d == 9 else d
    rounds = max(ROWS // at_once, d)

    def move(pointer, width, row, count):
        """Return where the next round finds its code, or puts its codeword."""
        forward = builder.mul(row, LONG(at_once))
        if rounds * at_once > ROWS:
            forward = builder.select(builder.icmp_signed("==", count, LONG(ROWS)), LONG(0), forward)
        back = builder.sub(LONG(width), builder.mul(row, LONG(ROWS - at_once)))
        return offset(builder, pointer, builder.select(builder.icmp_signed("==", count, LONG(rounds)), back, forward))

    def copy(before):
        starts = LONG(0), first_code, first_target
        phis = count, code, target = [builder.phi(start.type) for start in starts]
        for phi, start in zip(phis, starts, strict=True):
            phi.add_incoming(start, before)
        for r in range(at_once):
            at, to = (
                offset(builder, pointer, builder.mul(row, LONG(r)))
                for pointer, row in ((code, step), (target, row_step))
            )
            number = builder.zext(load(builder, at, align=1), LONG)
            word = offset(builder, source, builder.mul(number, LONG(stride)))
            store(builder, load(builder, word, ir.VectorType(FLOAT, min(d, 8))), to)
            if d == 9:
                store(builder, load(builder, offset(builder, word, 8)), offset(builder, to, 8))
        done = builder.add(count, LONG(1))
        over = builder.icmp_signed("==", done, LONG(rounds))
        code.add_incoming(move(code, 1, step, done), builder.block)
        target.add_incoming(move(target, d, row_step, done), builder.block)
        count.add_incoming(builder.select(over, LONG(0), done), builder.block)

    return copy


def _decode_reference(d, panel, row_step, k, codes, const, ahead):
    _, first, step, book, t = ahead
    for r in range(ROWS):
        for m in range(k // d):
            word, to = book + int(codes[first + r * step + m]) * (16 if d == 9 else d), t + r * row_step + m * d
            panel[to : to + d] = const[word : word + d]


def _sums_ahead(d):
    def reference(a, a0, row_step, x, x0, index, places, k, c, c0, c_step, add, codes, const, ahead):
        put_reference(sums_reference(a, a0, row_step, 1, x, x0, index, places, k, VECTORS, ROWS), c, c0, c_step, add)
        _decode_reference(d, a, row_step, k, codes, const, ahead)

    def multiply(context, a, a0, row_step, x, x0, index, places, k, c, c0, c_step, add, codes, const, ahead):
        def codegen(context, builder, signature, values):
            copy = _copier(context, builder, signature, values, d)
            a, x, index, c = (element(context, builder, signature, values, i, values[i + 1]) for i in (0, 3, 5, 8))
            sums = accumulate(builder, a, values[2], LONG(1), x, values[7], VECTORS, ROWS, index, copy)
            put_sums(builder, sums, c, values[10], values[11], VECTORS, ROWS)
            return context.get_dummy_value()

        n = INDEX
        return types.void(a, n, n, x, n, index, n, n, c, n, n, n, codes, const, types.UniTuple(n, NEXT)), codegen

    return compiled_or(reference, multiply)


def _finished_ahead(d):
    def reference(a, a0, row_step, x, x0, index, places, k, data, place, factors, f, codes, const, ahead):
        total = sums_reference(a, a0, row_step, 1, x, x0, index, places, k, VECTORS, ROWS)
        finish_reference(total, data, 0, place, factors, f)
        _decode_reference(d, a, row_step, k, codes, const, ahead)

    def multiply(context, a, a0, row_step, x, x0, index, places, k, data, place, factors, f, codes, const, ahead):
        def codegen(context, builder, signature, values):
            copy = _copier(context, builder, signature, values, d)
            a, x, index = (element(context, builder, signature, values, i, values[i + 1]) for i in (0, 3, 5))

            def sums_of(_):
                return accumulate(builder, a, values[2], LONG(1), x, values[7], VECTORS, ROWS, index, copy)

            finish_tiles(context, builder, signature, values, LONG(1), 8, sums_of)
            return context.get_dummy_value()

        n, place, ahead = INDEX, types.UniTuple(INDEX, PLACE), types.UniTuple(INDEX, NEXT)
        return types.void(a, n, n, x, n, index, n, n, data, place, factors, n, codes, const, ahead), codegen

    return compiled_or(reference, multiply)


_sums_4, _sums_8, _sums_9 = (_sums_ahead(d) for d in AHEAD_SIZES)
_finished_4, _finished_8, _finished_9 = (_finished_ahead(d) for d in AHEAD_SIZES)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=True)
def multiply_ahead(a, a0, a_step, x, x0, index, places, k, c, c0, c_step, add, codes, const, ahead):
    # As `multiply_3`; the panel that ``ahead`` tells of, goes into ``a``
    if ahead[0] == 4:
        _sums_4(a, a0, a_step, x, x0, index, places, k, c, c0, c_step, add, codes, const, ahead)
    elif ahead[0] == 8:
        _sums_8(a, a0, a_step, x, x0, index, places, k, c, c0, c_step, add, codes, const, ahead)
    else:
        _sums_9(a, a0, a_step, x, x0, index, places, k, c, c0, c_step, add, codes, const, ahead)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=True)
def finish_ahead(a, a0, a_step, x, x0, index, places, k, data, place, factors, f, codes, const, ahead):
    # As `multiply_and_finish` of one tile
    if ahead[0] == 4:
        _finished_4(a, a0, a_step, x, x0, index, places, k, data, place, factors, f, codes, const, ahead)
    elif ahead[0] == 8:
        _finished_8(a, a0, a_step, x, x0, index, places, k, data, place, factors, f, codes, const, ahead)
    else:
        _finished_9(a, a0, a_step, x, x0, index, places, k, data, place, factors, f, codes, const, ahead)
