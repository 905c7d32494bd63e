"""The LLVM instructions that kernels emit beside what Numba compiles: pointers, vectors, loops, calls of intrinsics.

Functions take an ``llvmlite`` builder first. `compiled_or` picks what a kernel calls: the emitted function, or its
reference in NumPy under ``NUMBA_DISABLE_JIT=1``.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

BYTE, HALF, WORD, LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOAT = ir.FloatType()
INDEX = types.intp  # Numba's type of positions, sizes and flags


COMPILED = not config.DISABLE_JIT


def compiled_or(reference, emitted):
    """Return an emitted function (of the arguments of an intrinsic), or its reference where nothing is compiled."""
    return intrinsic(emitted) if COMPILED else reference


def element(context, builder, signature, values, array, index):
    """Return a pointer to an element of the array that is argument number ``array``; ``index`` is an LLVM value."""
    data = context.make_array(signature.args[array])(context, builder, values[array]).data
    return builder.gep(data, [index])


def offset(builder, pointer, index):
    """Return the pointer ``index`` elements further; a Python number is a constant."""
    return builder.gep(pointer, [LONG(index) if isinstance(index, int) else index])


def load(builder, pointer, kind=None, align=4):
    """Return the value at a pointer, read as type ``kind``."""
    value = builder.load(pointer if kind is None else builder.bitcast(pointer, kind.as_pointer()))
    value.align = align
    return value


def store(builder, value, pointer, align=4):
    """Write a value of any type to a pointer."""
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = align


def call(builder, name, result, *values):
    """Call an LLVM intrinsic or a function of the C library."""
    kind = ir.FunctionType(result, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


def constant(kind, elements):
    """Return a constant vector; a single number fills it."""
    elements = elements if isinstance(elements, list | tuple | range) else [elements] * kind.count
    return ir.Constant(kind, list(elements))


def undefined(kind):
    """Return a vector whose elements do not matter."""
    return ir.Constant(kind, ir.Undefined)


def splat(builder, number, kind):
    """Return a vector of type ``kind`` with the number in all lanes."""
    first = builder.insert_element(undefined(kind), number, WORD(0))
    return shuffle(builder, first, undefined(kind), [0] * kind.count)


def shuffle(builder, a, b, lanes):
    """Return the named lanes of two vectors, those of the second counted on from the end of the first."""
    return builder.shuffle_vector(a, b, constant(ir.VectorType(WORD, len(lanes)), list(lanes)))


def fma(builder, a, b, c):
    """Return a * b + c of float32 vectors, rounded once."""
    return call(builder, f"llvm.fma.v{a.type.count}f32", a.type, a, b, c)


def in_order(builder, value):
    """Return the value, computed before any load that is emitted later; only where there is AVX-512."""
    kind = ir.FunctionType(value.type, [value.type])
    return builder.asm(kind, "", "=v,0,~{memory}", [value], True)


def sum_halves(builder, vector):
    """Return the sum of the lanes, halves added to halves: an order that does not depend on LLVM."""
    while vector.type.count > 1:
        half = vector.type.count // 2
        parts = [shuffle(builder, vector, vector, range(start, start + half)) for start in (0, half)]
        vector = builder.fadd(*parts)
    return builder.extract_element(vector, WORD(0))


def prefetch(builder, pointer, locality=3):
    """Bring the cache line of a pointer near; any pointer will do. Locality 3 is the first-level cache."""
    line = builder.bitcast(pointer, BYTE.as_pointer())
    call(builder, "llvm.prefetch.p0", ir.VoidType(), line, WORD(0), WORD(locality), WORD(1))


def head_mask(builder, count, lanes):
    """Return the mask of the lanes below ``count``."""
    kind = ir.VectorType(WORD, lanes)
    return builder.icmp_signed("<", constant(kind, range(lanes)), splat(builder, builder.trunc(count, WORD), kind))


def store_head(builder, value, pointer, count):
    """Write the lanes of a float32 vector below ``count``, without touching what is behind them."""
    place = builder.bitcast(pointer, value.type.as_pointer())
    mask = head_mask(builder, count, value.type.count)
    call(builder, f"llvm.masked.store.v{value.type.count}f32.p0", ir.VoidType(), value, place, WORD(4), mask)


def load_head(builder, pointer, count, kind):
    """Return the lanes of a float32 vector below ``count``, zeros in the others, without reading behind them."""
    place, mask = builder.bitcast(pointer, kind.as_pointer()), head_mask(builder, count, kind.count)
    name = f"llvm.masked.load.v{kind.count}f32.p0"
    return call(builder, name, kind, place, WORD(4), mask, constant(kind, 0.0))


def loop(builder, n, name):
    """Open a loop over 0 .. n; return its counter and a function that closes it."""
    before = builder.block
    head, body, after = (builder.append_basic_block(f"{name}{part}") for part in ("", ".body", ".end"))
    builder.branch(head)
    builder.position_at_end(head)
    counter = builder.phi(LONG)
    counter.add_incoming(LONG(0), before)
    builder.cbranch(builder.icmp_signed("<", counter, n), body, after)
    builder.position_at_end(body)

    def close():
        counter.add_incoming(builder.add(counter, LONG(1)), builder.block)
        builder.branch(head)
        builder.position_at_end(after)

    return counter, close


def new_function(module, name, kinds):
    """Return a new LLVM function without a result, on its own, for its loops need all registers; and a builder."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    return function, ir.IRBuilder(function.append_basic_block("entry"))
