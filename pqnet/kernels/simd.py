"""SIMD values for Numba: WIDTH float32 or int32 lanes that live in one register, as LLVM vectors.

Loads and stores take a one-dimensional C-contiguous array and the index of the first lane; nothing is checked. Every
operation has a reference on NumPy arrays of WIDTH elements, which kernels use under ``NUMBA_DISABLE_JIT=1``.

The width is that of the instruction set (AVX-512: 16, AVX2: 8, others: 4), see `kernels.cpu`.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import models, register_model

from pqnet.kernels import llvm as emit
from pqnet.kernels.cpu import BYTE_TABLES as BYTE_TABLES
from pqnet.kernels.cpu import ISA as ISA
from pqnet.kernels.cpu import WIDTHS
from pqnet.kernels.llvm import FLOAT, INDEX, WORD, compiled_or, constant, element, offset

WIDTH = WIDTHS[ISA]


class _Vector(types.Type):
    """Numba type of a vector; ``element`` is the LLVM type of a lane."""

    def __init__(self, name, element):
        super().__init__(name=f"{name}x{WIDTH}")
        self.element = element
        self.llvm = ir.VectorType(element, WIDTH)


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, fe_type.llvm)


FLOATS = _Vector("float32", FLOAT)
INTS = _Vector("int32", WORD)
_SCALARS = {FLOATS: types.float32, INTS: types.int32}
_DTYPES = {FLOATS: np.float32, INTS: np.int32}


def _loader(vector):
    def reference(array, index):
        return array[index : index + WIDTH].copy()

    def load(context, array, index):
        def codegen(context, builder, signature, values):
            return emit.load(builder, element(context, builder, signature, values, 0, values[1]), vector.llvm)

        return vector(array, INDEX), codegen

    return compiled_or(reference, load)


def _storer(vector):
    def reference(array, index, value):
        array[index : index + WIDTH] = value

    def store(context, array, index, value):
        def codegen(context, builder, signature, values):
            emit.store(builder, values[2], element(context, builder, signature, values, 0, values[1]))
            return context.get_dummy_value()

        return types.void(array, INDEX, vector), codegen

    return compiled_or(reference, store)


def _splatter(vector):
    def reference(number):
        return np.full(WIDTH, number, _DTYPES[vector])

    def splat(context, number):
        def codegen(context, builder, signature, values):
            return emit.splat(builder, values[0], vector.llvm)

        return vector(_SCALARS[vector]), codegen

    return compiled_or(reference, splat)


def _binary(vector, instruction, reference):
    def operation(context, a, b):
        def codegen(context, builder, signature, values):
            return getattr(builder, instruction)(*values)

        return vector(vector, vector), codegen

    return compiled_or(reference, operation)


def _chooser(vector):
    """Return select_less(a, b, x, y): x in the lanes where a < b, else y; a and b are floats."""

    def reference(a, b, x, y):
        return np.where(a < b, x, y)

    def select_less(context, a, b, x, y):
        def codegen(context, builder, signature, values):
            return builder.select(builder.fcmp_ordered("<", *values[:2]), *values[2:])

        return vector(FLOATS, FLOATS, vector, vector), codegen

    return compiled_or(reference, select_less)


def _fma_reference(a, b, c):  # one rounding, but for double rounding in rare last bits
    return (a.astype(np.float64) * b + c).astype(np.float32)


def _fma(context, a, b, c):
    def codegen(context, builder, signature, values):
        return emit.fma(builder, *values)

    return FLOATS(FLOATS, FLOATS, FLOATS), codegen


def _load_head_reference(array, index, count):
    out = np.zeros(WIDTH, np.float32)
    count = max(min(count, WIDTH), 0)
    out[:count] = array[index : index + count]
    return out


def _load_head(context, array, index, count):
    def codegen(context, builder, signature, values):
        first = element(context, builder, signature, values, 0, values[1])
        return emit.load_head(builder, first, values[2], FLOATS.llvm)

    return FLOATS(array, INDEX, INDEX), codegen


def _store_head_reference(array, index, value, count):
    count = max(min(count, WIDTH), 0)
    array[index : index + count] = value[:count]


def _store_head(context, array, index, value, count):
    def codegen(context, builder, signature, values):
        first = element(context, builder, signature, values, 0, values[1])
        emit.store_head(builder, values[2], first, values[3])
        return context.get_dummy_value()

    return types.void(array, INDEX, FLOATS, INDEX), codegen


def _keep_reference(a, first, last):
    lanes = np.arange(WIDTH)
    return np.where((lanes >= first) & (lanes < last), a, np.float32(0))


def _keep(context, a, first, last):
    def codegen(context, builder, signature, values):
        before, inside = (emit.head_mask(builder, count, WIDTH) for count in values[1:])
        zeros = constant(FLOATS.llvm, 0.0)
        return builder.select(before, zeros, builder.select(inside, values[0], zeros))

    return FLOATS(FLOATS, INDEX, INDEX), codegen


def _unary(name, reference):
    """Return the lane-wise function of an LLVM intrinsic such as sqrt."""

    def operation(context, a):
        def codegen(context, builder, signature, values):
            return emit.call(builder, f"llvm.{name}.v{WIDTH}f32", FLOATS.llvm, *values)

        return FLOATS(FLOATS), codegen

    return compiled_or(reference, operation)


def _larger_or_smaller(comparison, reference):
    """Return maximum or minimum; NaN if either is, as NumPy's."""

    def operation(context, a, b):
        def codegen(context, builder, signature, values):
            a, b = values
            chosen = builder.select(builder.fcmp_ordered(comparison, a, b), a, b)  # b if either is NaN
            return builder.select(builder.fcmp_unordered("uno", a, a), a, chosen)

        return FLOATS(FLOATS, FLOATS), codegen

    return compiled_or(reference, operation)


def _power_of_two_reference(a):
    return ((a.astype(np.int32) + 127) << 23).view(np.float32)


def _power_of_two(context, a):
    def codegen(context, builder, signature, values):
        exponent = builder.add(builder.fptosi(values[0], INTS.llvm), constant(INTS.llvm, 127))
        return builder.bitcast(builder.shl(exponent, constant(INTS.llvm, 23)), FLOATS.llvm)

    return FLOATS(FLOATS), codegen


def _sum_reference(a):
    a = a.copy()
    while a.size > 1:
        a = a[: a.size // 2] + a[a.size // 2 :]
    return a[0]


def _sum(context, a):
    def codegen(context, builder, signature, values):
        return emit.sum_halves(builder, values[0])

    return types.float32(FLOATS), codegen


def _store_sums_reference(a, b, c, d, array, i, more):
    sums = [_sum_reference(v) for v in (a, b, c, d)]
    array[i : i + 4] = array[i : i + 4] + sums if more else sums


def _sums_of(builder, vectors):
    """Emit the sums of the lanes of 2, 4 or 8 vectors, at most as many as there are lanes; return a vector of them."""
    # Halves are added to halves, as for a single vector, of all at once
    size, count = WIDTH, len(vectors)
    while len(vectors) > 1:  # each holds the parts of one vector, then of two, then of all
        half, joined = size // 2, []
        for v, w in zip(vectors[::2], vectors[1::2], strict=True):
            low = [start + i for start in range(0, 2 * WIDTH, size) for i in range(half)]
            joined.append(builder.fadd(*(emit.shuffle(builder, v, w, [i + at for i in low]) for at in (0, half))))
        size, vectors = half, joined
    (v,) = vectors
    while size > 1:
        size //= 2
        v = builder.fadd(v, emit.shuffle(builder, v, v, [(i + size) % WIDTH for i in range(WIDTH)]))
    return emit.shuffle(builder, v, v, range(0, WIDTH, WIDTH // count))


def _sums_of_8_reference(a, b, c, d, e, f, g, h):
    out = np.zeros(WIDTH, np.float32)
    out[:8] = [_sum_reference(v) for v in (a, b, c, d, e, f, g, h)]
    return out


def _sums_of_8(context, a, b, c, d, e, f, g, h):
    def codegen(context, builder, signature, values):
        sums = _sums_of(builder, list(values))
        return emit.shuffle(builder, sums, sums, [i % 8 for i in range(WIDTH)])

    return FLOATS(*[FLOATS] * 8), codegen


def _store_sums(context, a, b, c, d, array, i, more):
    def codegen(context, builder, signature, values):
        sums = _sums_of(builder, list(values[:4]))
        place = element(context, builder, signature, values, 4, values[5])
        with builder.if_else(builder.icmp_signed("!=", values[6], emit.LONG(0))) as (adding, writing):
            with adding:
                emit.store(builder, builder.fadd(emit.load(builder, place, sums.type), sums), place)
            with writing:
                emit.store(builder, sums, place)
        return context.get_dummy_value()

    return types.void(FLOATS, FLOATS, FLOATS, FLOATS, array, INDEX, INDEX), codegen


def _load_even_reference(array, index):
    return array[index : index + 2 * WIDTH : 2].copy()


def _load_even(context, array, index):
    def codegen(context, builder, signature, values):
        first = element(context, builder, signature, values, 0, values[1])
        halves = [emit.load(builder, offset(builder, first, at), FLOATS.llvm) for at in (0, WIDTH)]
        return emit.shuffle(builder, *halves, range(0, 2 * WIDTH, 2))

    return FLOATS(array, INDEX), codegen


def _zipper(start):
    """Return zip(a, b): a0 b0 a1 b1 .. of the first halves of two vectors, or of the second."""

    def reference(a, b):
        return np.stack([a, b], 1).reshape(-1)[2 * start : 2 * start + WIDTH]

    def zipped(context, a, b):
        def codegen(context, builder, signature, values):
            lanes = [lane for i in range(start, start + WIDTH // 2) for lane in (i, WIDTH + i)]
            return emit.shuffle(builder, *values, lanes)

        return FLOATS(FLOATS, FLOATS), codegen

    return compiled_or(reference, zipped)


def _prefetch_reference(array, index):
    pass


def _prefetch(context, array, index):
    def codegen(context, builder, signature, values):
        emit.prefetch(builder, element(context, builder, signature, values, 0, values[1]))
        return context.get_dummy_value()

    return types.void(array, INDEX), codegen


def _lane_copier(lanes):
    """Return copy(source, i, target, j): exactly ``lanes`` floats, whatever WIDTH is."""

    def reference(source, i, target, j):
        target[j : j + lanes] = source[i : i + lanes]

    def copy(context, source, i, target, j):
        def codegen(context, builder, signature, values):
            first, to = (element(context, builder, signature, values, at, values[at + 1]) for at in (0, 2))
            emit.store(builder, emit.load(builder, first, ir.VectorType(FLOAT, lanes)), to)
            return context.get_dummy_value()

        return types.void(source, INDEX, target, INDEX), codegen

    return compiled_or(reference, copy)


load, store, splat = _loader(FLOATS), _storer(FLOATS), _splatter(FLOATS)
load_int, store_int, splat_int = _loader(INTS), _storer(INTS), _splatter(INTS)
# The lanes below a count; loads give 0 in the others.
load_head, store_head = compiled_or(_load_head_reference, _load_head), compiled_or(_store_head_reference, _store_head)
keep = compiled_or(_keep_reference, _keep)  # a in the lanes first <= lane < last, 0 in the others
prefetch = compiled_or(_prefetch_reference, _prefetch)  # bring the cache line of an element near; any index will do
zip_first, zip_second = _zipper(0), _zipper(WIDTH // 2)  # a0 b0 a1 b1 .. of the first or the second halves of a and b
load_even = compiled_or(_load_even_reference, _load_even)  # every other one of 2 * WIDTH floats
add, subtract, multiply, divide = (
    _binary(FLOATS, name, reference)
    for name, reference in (("fadd", np.add), ("fsub", np.subtract), ("fmul", np.multiply), ("fdiv", np.divide))
)
maximum, minimum = _larger_or_smaller(">", np.maximum), _larger_or_smaller("<", np.minimum)
sqrt, round_even = _unary("sqrt", np.sqrt), _unary("rint", np.rint)
sum_lanes = compiled_or(_sum_reference, _sum)  # a float32
store_sums = compiled_or(
    _store_sums_reference, _store_sums
)  # those of four vectors, added to what is there if ``more``
power_of_two = compiled_or(_power_of_two_reference, _power_of_two)  # 2 ** a for whole a in -126..127
sums_of_8 = compiled_or(_sums_of_8_reference, _sums_of_8)  # those of eight vectors in the first eight lanes
copy2, copy4, copy8, copy16 = (_lane_copier(lanes) for lanes in (2, 4, 8, 16))
add_int = _binary(INTS, "add", np.add)
fma = compiled_or(_fma_reference, _fma)  # a * b + c
select_less, select_less_int = _chooser(FLOATS), _chooser(INTS)
