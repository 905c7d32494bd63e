"""Panels of packed weights: codewords are copied by their codes, side by side, row after row.

Blocks of 2, 4, 8, 9 and 16, the usual ones, have code of their own: codewords are joined in a register and written by
one store where they fit, and no store is wider than it has to be, for those that cross a cache line take twice as long.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types

from pqnet.kernels.llvm import FLOAT, INDEX, LONG, compiled_or, element, load, loop, offset, shuffle, store
from pqnet.kernels.products.lut_planes import table_numbers
from pqnet.kernels.simd import BYTE_TABLES, copy4, copy8

__all__ = ["decode_panel"]

GROUP = 4  # codewords that are copied at once
JOINED = 16  # numbers of one store


def _copy_words(builder, code, count, source, d, stride, target):
    """Emit the copy of ``count`` codewords whose codes begin at the pointer ``code``."""
    words = []
    for i in range(count):
        number = builder.zext(load(builder, offset(builder, code, i), align=1), LONG)
        words.append(offset(builder, source, builder.mul(number, LONG(stride))))
    whole = 8 if d == 9 else d  # 9 numbers are 8 and 1
    vectors = [load(builder, word, ir.VectorType(FLOAT, whole)) for word in words]
    while whole == d and len(vectors) > 1 and vectors[0].type.count < JOINED:
        lanes = range(2 * vectors[0].type.count)
        vectors = [shuffle(builder, a, b, lanes) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    step = d if whole < d else vectors[0].type.count
    for i, vector in enumerate(vectors):
        store(builder, vector, offset(builder, target, i * step))
        if whole < d:
            store(builder, load(builder, offset(builder, words[i], whole)), offset(builder, target, i * step + whole))


def _panel_copier(d, stride):
    """Return `decode_panel` for codes of one byte and codewords of d numbers, ``stride`` apart."""

    def reference(codes, first, step, outputs, n, source, book, target, t, row_step):
        for r in range(outputs):
            for m in range(n):
                word, to = book + int(codes[first + r * step + m]) * stride, t + r * row_step + m * d
                target[to : to + d] = source[word : word + d]

    def copy(context, codes, first, step, outputs, n, source, book, target, t, row_step):
        def codegen(context, builder, signature, values):
            code, source, target = (element(context, builder, signature, values, i, values[i + 1]) for i in (0, 5, 7))
            step, outputs, n, row_step = values[2], values[3], values[4], values[9]
            row, close_row = loop(builder, outputs, "decode.row")
            code = builder.gep(code, [builder.mul(row, step)])
            target = builder.gep(target, [builder.mul(row, row_step)])
            group, close = loop(builder, builder.sdiv(n, LONG(GROUP)), "decode.group")
            at = builder.mul(group, LONG(GROUP))
            to = builder.gep(target, [builder.mul(at, LONG(d))])
            _copy_words(builder, builder.gep(code, [at]), GROUP, source, d, stride, to)
            close()
            left, close = loop(builder, builder.srem(n, LONG(GROUP)), "decode.left")
            at = builder.sub(n, builder.add(left, LONG(1)))
            to = builder.gep(target, [builder.mul(at, LONG(d))])
            _copy_words(builder, builder.gep(code, [at]), 1, source, d, stride, to)
            close()
            close_row()
            return context.get_dummy_value()

        number = INDEX
        arguments = codes, number, number, number, number, source, number, target, number, number
        return types.void(*arguments), codegen

    return compiled_or(reference, copy)


_copy_2, _copy_4, _copy_8, _copy_9, _copy_16 = (
    _panel_copier(d, stride) for d, stride in ((2, 4), (4, 4), (8, 8), (9, 16), (16, 16))
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _copy_any(codes, first, step, outputs, n, wide, const, book, stride, d, target, t, row_step):
    for r in range(outputs):
        to, c = t + r * row_step, first + r * step
        for m in range(n):
            code = np.int64(codes[c + m])
            if wide:
                code = np.int64(codes[c + 2 * m]) | np.int64(codes[c + 2 * m + 1]) << 8
            if stride == 4:
                copy4(const, book + code * 4, target, to + m * d)
            else:
                for j in range(0, d, 8):
                    copy8(const, book + code * stride + j, target, to + m * d + j)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def decode_panel(codes, first, step, outputs, n, wide, const, book, stride, d, target, t, row_step):
    # IN codes: rows ``step`` bytes apart from byte ``first``, n codes each; const from book: codewords, stride apart,
    #    or in planes of bytes if stride is 1, see `kernels.products.lut_planes`
    # OUT target from t: ``outputs`` rows of n * d numbers, up to max(stride, 63) more behind each
    if stride == 1:
        if BYTE_TABLES:
            for r in range(outputs):
                table_numbers(const, book, codes, first + r * step, n, target, t + r * row_step)
    elif d == 4 and not wide:
        _copy_4(codes, first, step, outputs, n, const, book, target, t, row_step)
    elif d == 8 and not wide:
        _copy_8(codes, first, step, outputs, n, const, book, target, t, row_step)
    elif d == 9 and not wide:
        _copy_9(codes, first, step, outputs, n, const, book, target, t, row_step)
    elif d == 2 and not wide:
        _copy_2(codes, first, step, outputs, n, const, book, target, t, row_step)
    elif d == 16 and not wide:
        _copy_16(codes, first, step, outputs, n, const, book, target, t, row_step)
    else:
        _copy_any(codes, first, step, outputs, n, wide, const, book, stride, d, target, t, row_step)
