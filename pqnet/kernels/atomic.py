"""Words of memory that several threads change: each operation is whole, and all threads see them in one order.

Arguments are an array of int64 and the index of the word.
"""

from numba import types

from pqnet.kernels.llvm import INDEX, compiled_or, element


def _fetch_add_reference(array, i, value):
    before = array[i]
    array[i] += value
    return before


def _fetch_add(context, array, i, value):
    def codegen(context, builder, signature, values):
        word = element(context, builder, signature, values, 0, values[1])
        return builder.atomic_rmw("add", word, values[2], "seq_cst")

    return types.int64(array, INDEX, types.int64), codegen


def _load_word_reference(array, i):
    return array[i]


def _load_word(context, array, i):
    def codegen(context, builder, signature, values):
        return builder.load_atomic(element(context, builder, signature, values, 0, values[1]), "seq_cst", 8)

    return types.int64(array, INDEX), codegen


def _store_word_reference(array, i, value):
    array[i] = value


def _store_word(context, array, i, value):
    def codegen(context, builder, signature, values):
        word = element(context, builder, signature, values, 0, values[1])
        builder.store_atomic(values[2], word, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(array, INDEX, types.int64), codegen


def _swap_word_reference(array, i, before, after):
    if array[i] != before:
        return False
    array[i] = after
    return True


def _swap_word(context, array, i, before, after):
    def codegen(context, builder, signature, values):
        word = element(context, builder, signature, values, 0, values[1])
        return builder.extract_value(builder.cmpxchg(word, values[2], values[3], "seq_cst", "seq_cst"), 1)

    return types.boolean(array, INDEX, types.int64, types.int64), codegen


fetch_add = compiled_or(_fetch_add_reference, _fetch_add)  # adds a value, returns what was there before
load_word, store_word = compiled_or(_load_word_reference, _load_word), compiled_or(_store_word_reference, _store_word)
swap_word = compiled_or(_swap_word_reference, _swap_word)  # writes ``after`` if ``before`` is there; tells whether
