"""Addresses of elements as plain integers, for functions that take many of them; the arena seen as other types.

A call with arrays counts references to each, which takes as long as twenty vectors; one with addresses does not.
Whoever takes addresses keeps the arrays alive. Without a compiler an address is a NumPy view.
"""

import numpy as np
from numba import types
from numba.core import cgutils

from pqnet.kernels.llvm import FLOAT, INDEX, LONG, compiled_or, element, load, splat, store, store_head
from pqnet.kernels.simd import FLOATS, WIDTH
from pqnet.kernels.simd import load as load_lanes
from pqnet.kernels.simd import store as store_lanes
from pqnet.kernels.simd import store_head as store_first_lanes


def _pointer_reference(array, i):
    return array[i:]


def _pointer(context, array, i):
    def codegen(context, builder, signature, values):
        return builder.ptrtoint(element(context, builder, signature, values, 0, values[1]), LONG)

    return types.intp(array, INDEX), codegen


def _lanes(builder, address, index):
    return builder.gep(builder.inttoptr(address, FLOAT.as_pointer()), [index])


def _load_at(context, address, index):
    def codegen(context, builder, signature, values):
        return load(builder, _lanes(builder, *values), FLOATS.llvm)

    return FLOATS(INDEX, INDEX), codegen


def _spread_reference(address):
    return np.full(WIDTH, address[0], np.float32)


def _spread_at(context, address):
    def codegen(context, builder, signature, values):
        return splat(builder, load(builder, _lanes(builder, values[0], LONG(0))), FLOATS.llvm)

    return FLOATS(INDEX), codegen


def _put_reference(address, index, value, left):
    if left >= WIDTH:
        store_lanes(address, index, value)
    else:
        store_first_lanes(address, index, value, left)


def _put_at(context, address, index, value, left):
    def codegen(context, builder, signature, values):
        target = _lanes(builder, *values[:2])
        with builder.if_else(builder.icmp_signed(">=", values[3], LONG(WIDTH)), likely=True) as (then, otherwise):
            with then:
                store(builder, values[2], target)
            with otherwise:
                store_head(builder, values[2], target, values[3])
        return context.get_dummy_value()

    return types.void(INDEX, INDEX, FLOATS, INDEX), codegen


def _seen_as(kind, dtype):
    """Return a function that gives the memory of a float32 array from its start as an array of another type."""

    def seen(context, array):
        def codegen(context, builder, signature, values):
            source = context.make_array(signature.args[0])(context, builder, values[0])
            result = context.make_array(signature.return_type)(context, builder)
            size = dtype.itemsize
            pointer = builder.bitcast(source.data, result.data.type)
            shape = cgutils.pack_array(builder, [LONG(2**62)])
            strides = cgutils.pack_array(builder, [LONG(size)])
            context.populate_array(
                result, data=pointer, shape=shape, strides=strides, itemsize=LONG(size), meminfo=None
            )
            return result._getvalue()

        return types.Array(kind, 1, "C")(array), codegen

    def reference(array):
        return array[: array.nbytes // dtype.itemsize * dtype.itemsize // array.itemsize].view(dtype)

    return compiled_or(reference, seen)


pointer = compiled_or(_pointer_reference, _pointer)  # to array[i]
load_at = compiled_or(load_lanes, _load_at)  # WIDTH lanes from element ``index`` behind a pointer
spread_at = compiled_or(_spread_reference, _spread_at)  # the element at a pointer in all lanes
put_at = compiled_or(_put_reference, _put_at)  # stores the first ``left`` lanes there, or all if there are that many
doubles = _seen_as(types.float64, np.dtype(np.float64))
longs = _seen_as(types.int64, np.dtype(np.int64))
ints = _seen_as(types.int32, np.dtype(np.int32))
shorts = _seen_as(types.int16, np.dtype(np.int16))
bytes_ = _seen_as(types.uint8, np.dtype(np.uint8))
signed_bytes = _seen_as(types.int8, np.dtype(np.int8))
