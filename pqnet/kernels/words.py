"""Words: 32 bits that hold four integers of 8 bits, or two numbers in bfloat16, of neighbouring channels.

They lie where float32 numbers lie and are copied as these are. The integers of inputs have no sign, those of weights
have one, so that the products of a word are summed in 32 bits without loss: by the dot products of AVX-512 VNNI and
AVX-VNNI, elsewhere by multiplications of 16 bits, with the same sums. Products of bfloat16 are summed in float32.
"""

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types

from pqnet.kernels import cpu
from pqnet.kernels import llvm as emit
from pqnet.kernels.llvm import BYTE, HALF, INDEX, LONG, WORD, compiled_or, constant, element, shuffle
from pqnet.kernels.simd import FLOATS, INTS, WIDTH

INT8, BFLOAT16 = 0, 1  # kinds of words
NUMBERS = (4, 2)  # in a word of each kind
BYTES, HALVES = ir.VectorType(BYTE, 4 * WIDTH), ir.VectorType(HALF, 2 * WIDTH)
EACH_LLVM_TAKES = llvm.llvm_version_info[0] >= 22  # dot products: vectors of bytes, before of words


COPIER_PLACES = (0, 1), (3, 4), (5, 6)  # the arrays of `_copier` and where they begin, by number of argument


def _words(count):
    return ir.VectorType(WORD, count)


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, type(self))

    def __hash__(self):
        return hash(type(self))


# -- inputs -------------------------------------------------------------------------------------------------------


def _bytes_reference(a, b, c, d, factor, zero):
    integers = (np.rint(np.clip(np.nan_to_num(x * factor + zero, nan=0), 0, 255)) for x in (a, b, c, d))
    return np.stack([x.astype(np.uint8) for x in integers], -1).reshape(-1).view(np.float32)


def _bytes(context, a, b, c, d, factor, zero):
    def codegen(context, builder, signature, values):
        *numbers, factor, zero = values
        low, high = constant(FLOATS.llvm, 0.0), constant(FLOATS.llvm, 255.0)
        word = None
        for i, x in enumerate(numbers):
            x = emit.fma(builder, x, factor, zero)
            x = builder.select(builder.fcmp_ordered(">", x, low), x, low)  # NaN becomes 0
            x = builder.select(builder.fcmp_ordered("<", x, high), x, high)
            x = builder.fptosi(emit.call(builder, f"llvm.rint.v{WIDTH}f32", FLOATS.llvm, x), INTS.llvm)
            x = builder.shl(x, constant(INTS.llvm, 8 * i))
            word = x if word is None else builder.or_(word, x)
        return builder.bitcast(word, FLOATS.llvm)

    return FLOATS(*[FLOATS] * 6), codegen


def round_bfloat16(x: np.ndarray) -> np.ndarray:
    """Return float32 numbers rounded to the nearest bfloat16, ties to even, as the upper halves of words (uint16)."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    halves: np.ndarray = np.where(np.isnan(x), np.uint32(0x7FC0), rounded).astype(np.uint16)
    return halves


def _halves_reference(a, b):
    return np.stack([round_bfloat16(a), round_bfloat16(b)], -1).reshape(-1).view(np.float32)


def _halves(context, a, b):
    def rounded(builder, x):
        bits = builder.bitcast(x, INTS.llvm)
        odd = builder.and_(builder.lshr(bits, constant(INTS.llvm, 16)), constant(INTS.llvm, 1))
        bits = builder.add(builder.add(bits, constant(INTS.llvm, 0x7FFF)), odd)
        return builder.select(builder.fcmp_unordered("uno", x, x), constant(INTS.llvm, 0x7FC00000), bits)

    def codegen(context, builder, signature, values):
        low = builder.lshr(rounded(builder, values[0]), constant(INTS.llvm, 16))
        high = builder.and_(rounded(builder, values[1]), constant(INTS.llvm, 0xFFFF0000))
        return builder.bitcast(builder.or_(low, high), FLOATS.llvm)

    return FLOATS(FLOATS, FLOATS), codegen


# -- weights ------------------------------------------------------------------------------------------------------


def _interleaver(count):
    """Return interleave(book, i, target, t): element j of ``count`` codewords makes word target[t + j], 16 words.

    ``i`` has where the codewords begin in book, seen as words.
    """
    kind = ir.VectorType(BYTE if count == 4 else HALF, 16)
    dtype = np.uint8 if count == 4 else np.uint16

    def reference(book, i, target, t):
        words = [book[at : at + 64 // 4].view(dtype)[:16] for at in i]
        target[t : t + 16] = np.stack(words, -1).reshape(-1).view(np.float32)

    def interleave(context, book, i, target, t):
        def codegen(context, builder, signature, values):
            places = [builder.extract_value(values[1], n) for n in range(count)]
            words = [element(context, builder, signature, values, 0, place) for place in places]
            words = [emit.load(builder, word, kind) for word in words]
            lanes = [j // 2 + (16 if j % 2 else 0) for j in range(32)]
            if count == 4:  # pairs of pairs
                even, odd = (shuffle(builder, words[n], words[n + 2], lanes) for n in (0, 1))
                lanes = [j // 2 + (32 if j % 2 else 0) for j in range(64)]
                mixed = shuffle(builder, even, odd, lanes)
            else:
                mixed = shuffle(builder, *words, lanes)
            emit.store(builder, mixed, element(context, builder, signature, values, 2, values[3]))
            return context.get_dummy_value()

        return types.void(book, types.UniTuple(INDEX, count), target, INDEX), codegen

    return compiled_or(reference, interleave)


def _looker_up(count):
    """Return look_up(book, codes, target, t): one word of the numbers that ``count`` codes stand for.

    ``codes`` has where they lie in book, whose words have their number in their lowest bits.
    """
    dtype = np.uint8 if count == 4 else np.uint16

    def reference(book, codes, target, t):
        numbers = [book[at : at + 1].view(dtype)[0] for at in codes]
        target[t] = np.array(numbers, dtype).view(np.float32)[0]

    def look_up(context, book, codes, target, t):
        def codegen(context, builder, signature, values):
            word = None
            for n in range(count):
                place = element(context, builder, signature, values, 0, builder.extract_value(values[1], n))
                number = emit.load(builder, builder.bitcast(place, WORD.as_pointer()))
                number = builder.shl(number, WORD(32 // count * n))
                word = number if word is None else builder.or_(word, number)
            emit.store(builder, word, element(context, builder, signature, values, 2, values[3]))
            return context.get_dummy_value()

        return types.void(book, types.UniTuple(INDEX, count), target, INDEX), codegen

    return compiled_or(reference, look_up)


def _copier(words, size):
    """Return copy(codes, at, groups, book, b, target, t): the words of 8 / ``size`` codes of ``size`` bytes a group.

    Codes follow each other from byte ``at``, codewords, of so many words, from book[b:], their copies from target[t:].
    """
    codes_at_once = 8 // size

    def reference(codes, at, groups, book, b, target, t):
        for i in range(groups * codes_at_once):
            code = sum(int(codes[at + i * size + byte]) << 8 * byte for byte in range(size))
            target[t + i * words : t + (i + 1) * words] = book[b + code * words : b + (code + 1) * words]

    def copy(context, codes, at, groups, book, b, target, t):
        def codegen(context, builder, signature, values):
            from_, source, to = (element(context, builder, signature, values, i, values[j]) for i, j in COPIER_PLACES)
            group, close = emit.loop(builder, values[2], "codes")
            place = emit.offset(builder, from_, builder.mul(group, LONG(8)))
            all_codes = emit.load(builder, place, LONG, align=1)  # one load: loads are what takes time
            found = []
            for i in range(codes_at_once):
                code = builder.and_(builder.lshr(all_codes, LONG(8 * size * i)), LONG(256**size - 1))
                word = emit.offset(builder, source, builder.mul(code, LONG(words)))
                found.append(emit.load(builder, word, ir.IntType(32 * words) if words <= 2 else _words(words)))
            target = emit.offset(builder, to, builder.mul(group, LONG(words * codes_at_once)))
            for i, value in enumerate(found):
                emit.store(builder, value, emit.offset(builder, target, words * i))
            close()
            return context.get_dummy_value()

        return types.void(codes, INDEX, INDEX, book, INDEX, target, INDEX), codegen

    return compiled_or(reference, copy)


# -- products -----------------------------------------------------------------------------------------------------


def _sums_of_pairs(builder, a, b):
    """Return a0 * b0 + a1 * b1, .. of vectors of 16-bit integers, in 32 bits: LLVM knows pmaddwd by this form."""
    wide = ir.VectorType(WORD, 2 * WIDTH)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    even, odd = (shuffle(builder, products, products, range(start, 2 * WIDTH, 2)) for start in (0, 1))
    return builder.add(even, odd)


def _dots_of_bytes(builder, words, weights, sums):
    """Emit sums + dot products of words of unsigned integers with words of signed ones."""
    bits = 32 * WIDTH
    if cpu.has("avx512_vnni" if WIDTH == 16 else "avx_vnni"):
        if EACH_LLVM_TAKES:
            words, weights = (builder.bitcast(x, BYTES) for x in (words, weights))
        return emit.call(builder, f"llvm.x86.avx512.vpdpbusd.{bits}", INTS.llvm, sums, words, weights)
    low, eight = constant(INTS.llvm, 0x00FF00FF), constant(HALVES, 8)
    x, w = builder.bitcast(words, HALVES), builder.bitcast(weights, HALVES)
    even = _sums_of_pairs(
        builder, builder.bitcast(builder.and_(words, low), HALVES), builder.ashr(builder.shl(w, eight), eight)
    )
    odd = _sums_of_pairs(builder, builder.lshr(x, eight), builder.ashr(w, eight))
    return builder.add(sums, builder.add(even, odd))


def _dots_of_halves(builder, words, weights, sums):
    """Emit sums + dot products of words of bfloat16."""
    if cpu.has("avx512_bf16"):
        pairs = ir.VectorType(_BFloat(), 2 * WIDTH)
        words, weights = (builder.bitcast(x, pairs) for x in (words, weights))
        return emit.call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS.llvm, sums, words, weights)
    sixteen, high = constant(INTS.llvm, 16), constant(INTS.llvm, 0xFFFF0000)
    for part in (lambda x: builder.shl(x, sixteen), lambda x: builder.and_(x, high)):
        x, w = (builder.bitcast(part(values), FLOATS.llvm) for values in (words, weights))
        sums = emit.fma(builder, w, x, sums)
    return sums


def dots_of_words(builder, kind, words, weights, sums):
    """Emit sums + dot products of words; the sums are int32 or float32, as `zero_sums` gives them."""
    return (_dots_of_bytes if kind == INT8 else _dots_of_halves)(builder, words, weights, sums)


def cost_of_dots(kind: int) -> float:
    """Return how many multiply-adds of float32 vectors take as long as the dot products of a vector of words."""
    if kind == INT8:
        return 1.0 if cpu.has("avx512_vnni" if WIDTH == 16 else "avx_vnni") else 5.0
    return 2.1 if cpu.has("avx512_bf16") else 2.5  # one takes as long as two multiply-adds


def zero_sums(kind):
    """Return the type of sums of words, and their value before the first word."""
    return (INTS.llvm, constant(INTS.llvm, 0)) if kind == INT8 else (FLOATS.llvm, constant(FLOATS.llvm, 0.0))


def dots_reference(kind, words, weight):
    """Return the dot products of words (n,) with one word of a weight, in NumPy."""
    if kind == INT8:
        return words.view(np.uint8).reshape(-1, 4).astype(np.int32) @ weight.view(np.int8).astype(np.int32)
    x, w = ((v.view(np.uint16).astype(np.uint32) << 16).view(np.float32) for v in (words, weight))
    return x.reshape(-1, 2) @ w


# (a, b, c, d, factor, zero): words of round(x * factor + zero), within 0 .. 255; (a, b): words of bfloat16.
words_of_bytes, words_of_halves = compiled_or(_bytes_reference, _bytes), compiled_or(_halves_reference, _halves)
interleave_4, interleave_2 = _interleaver(4), _interleaver(2)
look_up_4, look_up_2 = _looker_up(4), _looker_up(2)
# Copies of codewords of 1, 2, 4 and 8 words, for codes of one byte and of two.
(copy_1, copy_1_wide), (copy_2, copy_2_wide), (copy_4, copy_4_wide), (copy_8, copy_8_wide) = (
    (_copier(words, 1), _copier(words, 2)) for words in (1, 2, 4, 8)
)
