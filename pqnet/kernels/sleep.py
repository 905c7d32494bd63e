"""Sleeping until a word of memory changes, and waking who sleeps on a CPU that is free.

On Linux a thread sleeps in the kernel (futex) and takes no time; elsewhere it looks again every millisecond.
"""

import platform
import sys
import time

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from pqnet.kernels.llvm import BYTE, INDEX, LONG, WORD, call, compiled_or, element

# Linux's number of the system call, by the kind of machine; it compares 32 bits, of a word whose first bytes are these.
FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98}.get(platform.machine(), 0) if sys.platform == "linux" else 0
WAIT, WAKE = 128, 129  # of threads of this process only
CPUS = 1024  # that a set of CPUs has room for
SET_WORDS = CPUS // 64


def _sleep_reference(array, i, value):
    if array[i] == value:
        time.sleep(1e-3)


def _sleep(context, array, i, value):
    def codegen(context, builder, signature, values):
        word = element(context, builder, signature, values, 0, values[1])
        if FUTEX:
            _futex(builder, word, WAIT, builder.trunc(values[2], WORD))
        elif sys.platform == "win32":
            call(builder, "Sleep", ir.VoidType(), WORD(1))
        else:
            call(builder, "usleep", WORD, WORD(1000))
        return context.get_dummy_value()

    return types.void(array, INDEX, types.int64), codegen


def _wake_reference(array, i):
    pass


def _wake(context, array, i):
    def codegen(context, builder, signature, values):
        if FUTEX:
            _futex(builder, element(context, builder, signature, values, 0, values[1]), WAKE, WORD(1))
        return context.get_dummy_value()

    return types.void(array, INDEX), codegen


def _futex(builder, word, operation, value):
    kind = ir.FunctionType(LONG, [LONG], var_arg=True)
    function = cgutils.get_or_insert_function(builder.module, kind, "syscall")
    nothing = ir.Constant(BYTE.as_pointer(), None)
    builder.call(function, [LONG(FUTEX), word, WORD(operation), value, nothing, nothing, WORD(0)])


def _current_cpu_reference():
    return -1


def _current_cpu(context):
    def codegen(context, builder, signature, values):
        return builder.sext(call(builder, "sched_getcpu", WORD), LONG) if FUTEX else LONG(-1)

    return types.int64(), codegen


def _cpus_reference(array, i, thread):
    return False


def _affinity(name):
    def emitted(context, array, i, thread):
        def codegen(context, builder, signature, values):
            if not FUTEX:
                return ir.Constant(ir.IntType(1), 0)
            cpus = builder.bitcast(element(context, builder, signature, values, 0, values[1]), BYTE.as_pointer())
            result = call(builder, name, WORD, builder.trunc(values[2], WORD), LONG(CPUS // 8), cpus)
            return builder.icmp_signed(">=", result, WORD(0))

        return types.boolean(array, INDEX, types.int64), codegen

    return emitted


# (array, i, value): return when array[i] is not ``value``, or any time before
sleep_while = compiled_or(_sleep_reference, _sleep)
wake_sleeper = compiled_or(_wake_reference, _wake)  # (array, i): wakes a thread that sleeps on array[i]
current_cpu = compiled_or(_current_cpu_reference, _current_cpu)  # -1: not known
# (array, i, thread): read or set the CPUs that the system lets a thread run on, a bit each from array[i] on; tell
# whether that could be done
get_cpus = compiled_or(_cpus_reference, _affinity("sched_getaffinity"))
set_cpus = compiled_or(_cpus_reference, _affinity("sched_setaffinity"))


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def without_cpu(cpus, i, cpu):
    # Take a CPU out of a set, unless it is not in it or the only one; tell whether that was done
    at, bit = i + cpu // 64, np.int64(1) << np.int64(cpu % 64)
    if cpu < 0 or cpu >= CPUS or cpus[at] & bit == 0:
        return False
    others = cpus[at] & ~bit
    for j in range(i, i + SET_WORDS):
        if j != at:
            others |= cpus[j]
    if others != 0:
        cpus[at] &= ~bit
    return others != 0
