"""The driver: runs the steps of a program, on as many threads as call it with the same ``state``.

A step is a kernel (its address), a number of tasks and its geometry. Threads take tasks by an atomic increment of one
word, ``step << 32 | next task``; whoever finishes the last task of a step opens the next. A thread that comes late
or is put to sleep delays nobody as long as it holds no task, so no thread ever waits for one that has not started,
and any number of callers, forks and threading layers get along.
"""

import os

from llvmlite import ir
from numba import njit, types
from numba.core import config
from numba.extending import intrinsic

STATE_WORDS = 32  # ticket at 0, finished tasks at 16: on cache lines of their own
TICKET, DONE = 0, 16

SIGNATURE = (
    types.intp,
    types.Array(types.int64, 1, "C"),
    types.Array(types.float32, 1, "C"),
    types.Array(types.float32, 1, "C"),
    types.Array(types.uint8, 1, "C"),
    types.Array(types.int32, 1, "C"),
    types.Array(types.float32, 1, "C"),
)


def kernel_address(kernel):
    """Return what the driver calls a task kernel by: the address of its machine code, compiled now if need be."""
    if config.DISABLE_JIT:
        return kernel
    if SIGNATURE not in kernel.overloads:
        kernel.compile(SIGNATURE)
    compiled = kernel.overloads[SIGNATURE]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)


def _caller():
    def twin(address, task, g, data, const, codes, index, scratch):
        address(task, g, data, const, codes, index, scratch)

    @intrinsic
    def call(context, address, task, g, data, const, codes, index, scratch):
        def codegen(context, builder, signature, values):
            kind = context.call_conv.get_function_type(types.void, SIGNATURE)
            function = builder.inttoptr(values[0], kind.as_pointer())
            context.call_conv.call_function(builder, function, types.void, SIGNATURE, values[1:])
            return context.get_dummy_value()

        return types.void(types.intp, *SIGNATURE), codegen

    return twin if config.DISABLE_JIT else call


def _word(builder, context, signature, values):
    data = context.make_array(signature.args[0])(context, builder, values[0]).data
    return builder.gep(data, [values[1]])


def _fetch_adder():
    def twin(array, i, value):
        before = array[i]
        array[i] += value
        return before

    @intrinsic
    def fetch_add(context, array, i, value):
        def codegen(context, builder, signature, values):
            return builder.atomic_rmw("add", _word(builder, context, signature, values), values[2], "seq_cst")

        return types.int64(array, types.intp, types.int64), codegen

    return twin if config.DISABLE_JIT else fetch_add


def _atomic_loader():
    def twin(array, i):
        return array[i]

    @intrinsic
    def load_word(context, array, i):
        def codegen(context, builder, signature, values):
            return builder.load_atomic(_word(builder, context, signature, values), "seq_cst", 8)

        return types.int64(array, types.intp), codegen

    return twin if config.DISABLE_JIT else load_word


def _atomic_storer():
    def twin(array, i, value):
        array[i] = value

    @intrinsic
    def store_word(context, array, i, value):
        def codegen(context, builder, signature, values):
            builder.store_atomic(values[2], _word(builder, context, signature, values), "seq_cst", 8)
            return context.get_dummy_value()

        return types.void(array, types.intp, types.int64), codegen

    return twin if config.DISABLE_JIT else store_word


def _yielder():
    """Return a function that lets another thread have the core."""

    def twin():
        pass

    name = "SwitchToThread" if os.name == "nt" else "sched_yield"

    @intrinsic
    def give_way(context):
        def codegen(context, builder, signature, values):
            kind = ir.FunctionType(ir.IntType(32), [])
            function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
            builder.call(function, [])
            return context.get_dummy_value()

        return types.void(), codegen

    return twin if config.DISABLE_JIT else give_way


call = _caller()
fetch_add, load_word, store_word = _fetch_adder(), _atomic_loader(), _atomic_storer()
give_way = _yielder()


@njit(cache=True, nogil=True, error_model="numpy")
def run_steps(kernels, tasks, geometry, last, data, const, codes, index, scratch, state):
    # IN kernels (S,): addresses; tasks (S,) i8 >= 1; geometry (S, G) i8; steps state[TICKET] >> 32 .. last are run
    # INOUT state (STATE_WORDS,) i8, shared by the threads; scratch (.,) f4, each thread's own
    waited = 0
    while True:
        step = load_word(state, TICKET) >> 32
        if step >= last:
            return
        if load_word(state, TICKET) & 0xFFFFFFFF < tasks[step]:
            ticket = fetch_add(state, TICKET, 1)
            step = ticket >> 32
            task = ticket & 0xFFFFFFFF
            if step < last and task < tasks[step]:
                call(kernels[step], task, geometry[step], data, const, codes, index, scratch)
                if fetch_add(state, DONE, 1) + 1 == tasks[step]:
                    store_word(state, DONE, 0)
                    store_word(state, TICKET, (step + 1) << 32)
                waited = 0
                continue
        waited += 1
        if waited > 200:
            give_way()
