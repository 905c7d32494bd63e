"""Places in arrays as plain numbers, for functions that get many of them.

A call with arrays counts references to each, which takes as long as twenty vectors; one with places does not. Whoever
makes places keeps the arrays alive. Without a compiler a place is a NumPy view.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from pqnet.kernels.simd import FLOATS, WIDTH, _head_mask, load, store, store_head


def _placer():
    def twin(array, i):
        return array[i:]

    @intrinsic
    def place(context, array, i):
        def codegen(context, builder, signature, values):
            data = context.make_array(signature.args[0])(context, builder, values[0]).data
            return builder.ptrtoint(builder.gep(data, [values[1]]), ir.IntType(64))

        return types.intp(array, types.intp), codegen

    return twin if config.DISABLE_JIT else place


def _pointer(builder, at, index):
    floats = builder.inttoptr(at, ir.FloatType().as_pointer())
    return builder.bitcast(builder.gep(floats, [index]), FLOATS.llvm.as_pointer())


def _loader():
    @intrinsic
    def load_at(context, at, index):
        def codegen(context, builder, signature, values):
            value = builder.load(_pointer(builder, *values))
            value.align = 4
            return value

        return FLOATS(types.intp, types.intp), codegen

    return load if config.DISABLE_JIT else load_at


def _spreader():
    def twin(at):
        return np.full(WIDTH, at[0], np.float32)

    @intrinsic
    def spread_at(context, at):
        def codegen(context, builder, signature, values):
            word = ir.IntType(32)
            number = builder.load(builder.inttoptr(values[0], ir.FloatType().as_pointer()))
            empty = ir.Constant(FLOATS.llvm, ir.Undefined)
            first = builder.insert_element(empty, number, word(0))
            return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(word, WIDTH), [0] * WIDTH))

        return FLOATS(types.intp), codegen

    return twin if config.DISABLE_JIT else spread_at


def _storer():
    def twin(at, index, value, left):
        if left >= WIDTH:
            store(at, index, value)
        else:
            store_head(at, index, value, left)

    @intrinsic
    def put_at(context, at, index, value, left):
        def codegen(context, builder, signature, values):
            target = _pointer(builder, *values[:2])
            whole = builder.icmp_signed(">=", values[3], ir.Constant(values[3].type, WIDTH))
            with builder.if_else(whole, likely=True) as (then, otherwise):
                with then:
                    builder.store(values[2], target).align = 4
                with otherwise:
                    word, mask = ir.IntType(32), _head_mask(builder, FLOATS, values[3])
                    kind = ir.FunctionType(ir.VoidType(), [FLOATS.llvm, target.type, word, mask.type])
                    name = f"llvm.masked.store.v{WIDTH}f32.p0"
                    function = cgutils.get_or_insert_function(builder.module, kind, name)
                    builder.call(function, [values[2], target, ir.Constant(word, 4), mask])
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, FLOATS, types.intp), codegen

    return twin if config.DISABLE_JIT else put_at


place = _placer()  # of array[i]
load_at = _loader()  # WIDTH lanes from number ``index`` behind a place
spread_at = _spreader()  # the number at a place in all lanes
put_at = _storer()  # stores the first ``left`` lanes there, or all of them if there are that many
