"""How threads share the chunks of one kernel: each thread calls the kernel, which takes chunk after chunk."""

from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic

COMPILED = not config.DISABLE_JIT  # without compilation a chunk may be taken twice: one thread must do it all


def _chunk_taker():
    def twin(counter):
        chunk = counter[0]
        counter[0] += 1
        return chunk

    @intrinsic
    def next_chunk(context, counter):
        def codegen(context, builder, signature, values):
            data = context.make_array(signature.args[0])(context, builder, values[0]).data
            return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

        return types.int64(counter), codegen

    return twin if config.DISABLE_JIT else next_chunk


# (counter): the number of the next chunk, which nobody else gets. INOUT counter (1,) i8, 0 at first, of all threads
next_chunk = _chunk_taker()
