"""SIMD values for Numba: WIDTH float32 or int32 lanes that live in one register, as LLVM vectors.

Loads and stores take a one-dimensional C-contiguous array and the index of the first lane; nothing is checked. Every
operation has a twin on NumPy arrays of WIDTH numbers, which kernels use under ``NUMBA_DISABLE_JIT=1``.

The width is that of the instruction set (AVX-512: 16, AVX2: 8, others: 4), see `kernels.cpu`.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic, models, register_model

from pqnet.kernels.cpu import BYTE_TABLES as BYTE_TABLES
from pqnet.kernels.cpu import ISA as ISA
from pqnet.kernels.cpu import WIDTHS

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


FLOATS = _Vector("float32", ir.FloatType())
INTS = _Vector("int32", ir.IntType(32))
_SCALARS = {FLOATS: types.float32, INTS: types.int32}
_DTYPES = {FLOATS: np.float32, INTS: np.int32}


def _pointer(context, builder, array_type, array, index, vector):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.llvm.as_pointer())


def _loader(vector):
    def twin(array, index):
        return array[index : index + WIDTH].copy()

    @intrinsic
    def load(context, array, index):
        def codegen(context, builder, signature, values):
            value = builder.load(_pointer(context, builder, signature.args[0], *values, vector))
            value.align = 4
            return value

        return vector(array, types.intp), codegen

    return twin if config.DISABLE_JIT else load


def _storer(vector):
    def twin(array, index, value):
        array[index : index + WIDTH] = value

    @intrinsic
    def store(context, array, index, value):
        def codegen(context, builder, signature, values):
            target = _pointer(context, builder, signature.args[0], values[0], values[1], vector)
            builder.store(values[2], target).align = 4
            return context.get_dummy_value()

        return types.void(array, types.intp, vector), codegen

    return twin if config.DISABLE_JIT else store


def _splatter(vector):
    def twin(number):
        return np.full(WIDTH, number, _DTYPES[vector])

    @intrinsic
    def splat(context, number):
        def codegen(context, builder, signature, values):
            empty, zero = ir.Constant(vector.llvm, ir.Undefined), ir.Constant(ir.IntType(32), 0)
            first = builder.insert_element(empty, values[0], zero)
            return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH))

        return vector(_SCALARS[vector]), codegen

    return twin if config.DISABLE_JIT else splat


def _binary(vector, instruction, twin):
    @intrinsic
    def operation(context, a, b):
        def codegen(context, builder, signature, values):
            return getattr(builder, instruction)(*values)

        return vector(vector, vector), codegen

    return twin if config.DISABLE_JIT else operation


def _chooser(vector):
    """Return select_less(a, b, x, y): x in the lanes where a < b, else y; a and b are floats."""

    def twin(a, b, x, y):
        return np.where(a < b, x, y)

    @intrinsic
    def select_less(context, a, b, x, y):
        def codegen(context, builder, signature, values):
            return builder.select(builder.fcmp_ordered("<", *values[:2]), *values[2:])

        return vector(FLOATS, FLOATS, vector, vector), codegen

    return twin if config.DISABLE_JIT else select_less


def _fused():
    def twin(a, b, c):  # one rounding, but for double rounding in rare last bits
        return (a.astype(np.float64) * b + c).astype(np.float32)

    @intrinsic
    def fma(context, a, b, c):
        def codegen(context, builder, signature, values):
            kind = ir.FunctionType(FLOATS.llvm, [FLOATS.llvm] * 3)
            function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{WIDTH}f32")
            return builder.call(function, values)

        return FLOATS(FLOATS, FLOATS, FLOATS), codegen

    return twin if config.DISABLE_JIT else fma


def _head_mask(builder, vector, count):
    """Return the LLVM mask of the lanes below ``count``."""
    word = ir.IntType(32)
    lanes = ir.Constant(ir.VectorType(word, WIDTH), list(range(WIDTH)))
    empty = ir.Constant(ir.VectorType(word, WIDTH), ir.Undefined)
    first = builder.insert_element(empty, builder.trunc(count, word), ir.Constant(word, 0))
    spread = builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(word, WIDTH), [0] * WIDTH))
    return builder.icmp_signed("<", lanes, spread)


_MASKS = ir.VectorType(ir.IntType(1), WIDTH)


def _head_loader():
    def twin(array, index, count):
        out = np.zeros(WIDTH, np.float32)
        count = max(min(count, WIDTH), 0)
        out[:count] = array[index : index + count]
        return out

    @intrinsic
    def load_head(context, array, index, count):
        def codegen(context, builder, signature, values):
            pointer = _pointer(context, builder, signature.args[0], *values[:2], FLOATS)
            kind = ir.FunctionType(FLOATS.llvm, [pointer.type, ir.IntType(32), _MASKS, FLOATS.llvm])
            function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{WIDTH}f32.p0")
            zeros = ir.Constant(FLOATS.llvm, [0.0] * WIDTH)
            mask = _head_mask(builder, FLOATS, values[2])
            return builder.call(function, [pointer, ir.Constant(ir.IntType(32), 4), mask, zeros])

        return FLOATS(array, types.intp, types.intp), codegen

    return twin if config.DISABLE_JIT else load_head


def _head_storer():
    def twin(array, index, value, count):
        count = max(min(count, WIDTH), 0)
        array[index : index + count] = value[:count]

    @intrinsic
    def store_head(context, array, index, value, count):
        def codegen(context, builder, signature, values):
            pointer = _pointer(context, builder, signature.args[0], *values[:2], FLOATS)
            kind = ir.FunctionType(ir.VoidType(), [FLOATS.llvm, pointer.type, ir.IntType(32), _MASKS])
            function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.store.v{WIDTH}f32.p0")
            mask = _head_mask(builder, FLOATS, values[3])
            builder.call(function, [values[2], pointer, ir.Constant(ir.IntType(32), 4), mask])
            return context.get_dummy_value()

        return types.void(array, types.intp, FLOATS, types.intp), codegen

    return twin if config.DISABLE_JIT else store_head


def _keeper():
    def twin(a, first, last):
        lanes = np.arange(WIDTH)
        return np.where((lanes >= first) & (lanes < last), a, np.float32(0))

    @intrinsic
    def keep(context, a, first, last):
        def codegen(context, builder, signature, values):
            before, inside = (_head_mask(builder, FLOATS, count) for count in values[1:])
            zeros = ir.Constant(FLOATS.llvm, [0.0] * WIDTH)
            return builder.select(before, zeros, builder.select(inside, values[0], zeros))

        return FLOATS(FLOATS, types.intp, types.intp), codegen

    return twin if config.DISABLE_JIT else keep


def _unary(name, twin):
    """Return the lane-wise function of an LLVM intrinsic such as sqrt."""

    @intrinsic
    def operation(context, a):
        def codegen(context, builder, signature, values):
            kind = ir.FunctionType(FLOATS.llvm, [FLOATS.llvm])
            function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{WIDTH}f32")
            return builder.call(function, values)

        return FLOATS(FLOATS), codegen

    return twin if config.DISABLE_JIT else operation


def _larger_or_smaller(comparison, twin):
    """Return maximum or minimum; NaN if either is, as NumPy's."""

    @intrinsic
    def operation(context, a, b):
        def codegen(context, builder, signature, values):
            a, b = values
            chosen = builder.select(builder.fcmp_ordered(comparison, a, b), a, b)  # b if either is NaN
            return builder.select(builder.fcmp_unordered("uno", a, a), a, chosen)

        return FLOATS(FLOATS, FLOATS), codegen

    return twin if config.DISABLE_JIT else operation


def _exponent():
    def twin(a):
        return ((a.astype(np.int32) + 127) << 23).view(np.float32)

    @intrinsic
    def power_of_two(context, a):
        def codegen(context, builder, signature, values):
            def constant(number):
                return ir.Constant(INTS.llvm, [number] * WIDTH)

            whole = builder.fptosi(values[0], INTS.llvm)
            return builder.bitcast(builder.shl(builder.add(whole, constant(127)), constant(23)), FLOATS.llvm)

        return FLOATS(FLOATS), codegen

    return twin if config.DISABLE_JIT else power_of_two


def _summer():
    def twin(a):
        a = a.copy()
        while a.size > 1:
            a = a[: a.size // 2] + a[a.size // 2 :]
        return a[0]

    @intrinsic
    def sum_lanes(context, a):
        def codegen(context, builder, signature, values):
            value, lanes = values[0], WIDTH
            while lanes > 1:  # halves are added to halves: the order never depends on LLVM
                lanes //= 2
                word = ir.IntType(32)
                halves = [
                    builder.shuffle_vector(
                        value, value, ir.Constant(ir.VectorType(word, lanes), list(range(start, start + lanes)))
                    )
                    for start in (0, lanes)
                ]
                value = builder.fadd(*halves)
            return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

        return types.float32(FLOATS), codegen

    return twin if config.DISABLE_JIT else sum_lanes


def _even_loader():
    def twin(array, index):
        return array[index : index + 2 * WIDTH : 2].copy()

    @intrinsic
    def load_even(context, array, index):
        def codegen(context, builder, signature, values):
            first = _pointer(context, builder, signature.args[0], *values, FLOATS)
            halves = [builder.load(first), builder.load(builder.gep(first, [ir.IntType(64)(1)]))]
            for half in halves:
                half.align = 4
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [2 * i for i in range(WIDTH)])
            return builder.shuffle_vector(*halves, lanes)

        return FLOATS(array, types.intp), codegen

    return twin if config.DISABLE_JIT else load_even


def _zip_storer():
    def twin(array, index, a, b):
        array[index : index + 2 * WIDTH : 2] = a
        array[index + 1 : index + 2 * WIDTH : 2] = b

    @intrinsic
    def store_zipped(context, array, index, a, b):
        def codegen(context, builder, signature, values):
            target = _pointer(context, builder, signature.args[0], *values[:2], FLOATS)
            for half in range(2):
                pairs = [i // 2 + (WIDTH if i % 2 else 0) for i in range(half * WIDTH, (half + 1) * WIDTH)]
                lanes = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), pairs)
                value = builder.shuffle_vector(values[2], values[3], lanes)
                builder.store(value, builder.gep(target, [ir.IntType(64)(half)])).align = 4
            return context.get_dummy_value()

        return types.void(array, types.intp, FLOATS, FLOATS), codegen

    return twin if config.DISABLE_JIT else store_zipped


def _prefetcher():
    def twin(array, index):
        pass

    @intrinsic
    def prefetch(context, array, index):
        def codegen(context, builder, signature, values):
            data = context.make_array(signature.args[0])(context, builder, values[0]).data
            place = builder.bitcast(builder.gep(data, [values[1]]), ir.IntType(8).as_pointer())
            word = ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [place.type, word, word, word])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            builder.call(function, [place, word(0), word(3), word(1)])
            return context.get_dummy_value()

        return types.void(array, types.intp), codegen

    return twin if config.DISABLE_JIT else prefetch


def _lane_copier(lanes):
    """Return copy(source, i, target, j): exactly ``lanes`` floats, whatever WIDTH is."""

    def twin(source, i, target, j):
        target[j : j + lanes] = source[i : i + lanes]

    @intrinsic
    def copy(context, source, i, target, j):
        def codegen(context, builder, signature, values):
            kind = ir.VectorType(ir.FloatType(), lanes).as_pointer()
            pointers = []
            for at in (0, 2):
                data = context.make_array(signature.args[at])(context, builder, values[at]).data
                pointers.append(builder.bitcast(builder.gep(data, [values[at + 1]]), kind))
            value = builder.load(pointers[0])
            value.align = 4
            builder.store(value, pointers[1]).align = 4
            return context.get_dummy_value()

        return types.void(source, types.intp, target, types.intp), codegen

    return twin if config.DISABLE_JIT else copy


load, store, splat = _loader(FLOATS), _storer(FLOATS), _splatter(FLOATS)
load_int, store_int, splat_int = _loader(INTS), _storer(INTS), _splatter(INTS)
load_head, store_head = _head_loader(), _head_storer()  # the lanes below a count; loads give 0 in the others
keep = _keeper()  # a in the lanes first <= lane < last, 0 in the others
store_zipped = _zip_storer()  # a0 b0 a1 b1 ..: 2 * WIDTH floats
prefetch = _prefetcher()  # bring the cache line of an element near; any index will do
load_even = _even_loader()  # every other one of 2 * WIDTH floats
add, subtract, multiply, divide = (
    _binary(FLOATS, name, twin)
    for name, twin in (("fadd", np.add), ("fsub", np.subtract), ("fmul", np.multiply), ("fdiv", np.divide))
)
maximum, minimum = _larger_or_smaller(">", np.maximum), _larger_or_smaller("<", np.minimum)
sqrt, round_even = _unary("sqrt", np.sqrt), _unary("rint", np.rint)
sum_lanes = _summer()  # a float32
power_of_two = _exponent()  # 2 ** a for whole a in -126..127
copy4, copy8, copy16 = (_lane_copier(lanes) for lanes in (4, 8, 16))
add_int = _binary(INTS, "add", np.add)
fma = _fused()  # a * b + c
select_less, select_less_int = _chooser(FLOATS), _chooser(INTS)
