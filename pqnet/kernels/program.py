"""The driver: runs the steps of a program, on as many threads as call it with the same ``state``.

A step is a kernel (its address), a number of tasks and its geometry. Threads take tasks by an atomic increment of one
word, ``step << 32 | next task``; whoever finishes the last task of a step opens the next. A thread that comes late
or is put to sleep delays nobody as long as it holds no task, so no thread ever waits for one that has not started,
and any number of callers, forks and threading layers get along.

A run is a job: one array of words with the state and the addresses of everything. Helpers are threads in `serve_jobs`,
each with a mailbox: callers post a job to those that are free, and take it back from those that have not begun when it
is done. A helper looks for jobs for a while after the last, for calls that follow each other, and then goes to sleep.
"""

import os
import platform

from llvmlite import ir
from numba import carray, njit, types
from numba.core import config
from numba.extending import intrinsic

COMPILED = not config.DISABLE_JIT
STATE_WORDS = 32  # ticket at 0, finished tasks at 16: on cache lines of their own
TICKET, DONE = 0, 16

# A job: the state, then first step, last step, steps, own address; addresses of kernels, tasks and geometry, fields of
# a step; address and size of data, const, codes and index; size of a scratch, and from SCRATCH on the
# addresses of each.
FIRST, LAST, STEPS, SELF, KERNELS, TASKS, GEOMETRY, FIELDS, ARRAYS = 32, 33, 34, 35, 36, 37, 38, 39, 40
SCRATCH_SIZE, SCRATCH = 48, 49

# A mailbox: what its helper does, the address of the job, the number of the helper's scratch in it, whether the caller
# has yet to wake the helper.
MAIL_WORDS = 16
DOES, JOB, PLACE, WAKE = 0, 1, 2, 3
ASLEEP, IDLE, TAKEN, POSTED, RUNNING = 0, 1, 2, 3, 4  # TAKEN: a caller is writing to the mailbox
LEAVING = 2000  # looks at a helper that is about to leave a job

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


def _swapper():
    def twin(array, i, before, after):
        if array[i] != before:
            return False
        array[i] = after
        return True

    @intrinsic
    def swap_word(context, array, i, before, after):
        def codegen(context, builder, signature, values):
            place = _word(builder, context, signature, values)
            pair = builder.cmpxchg(place, values[2], values[3], "seq_cst", "seq_cst")
            return builder.extract_value(pair, 1)

        return types.boolean(array, types.intp, types.int64, types.int64), codegen

    return twin if config.DISABLE_JIT else swap_word


def _pauser():
    """Return a function that a loop of waiting calls: it leaves the core's units to others for some cycles."""

    def twin():
        pass

    name = {"x86_64": "llvm.x86.sse2.pause", "AMD64": "llvm.x86.sse2.pause"}.get(platform.machine())

    @intrinsic
    def pause(context):
        def codegen(context, builder, signature, values):
            if name is not None:
                kind = ir.FunctionType(ir.VoidType(), [])
                builder.call(builder.module.globals.get(name) or ir.Function(builder.module, kind, name), [])
            return context.get_dummy_value()

        return types.void(), codegen

    return twin if config.DISABLE_JIT else pause


def _pointer_maker(kind):
    @intrinsic
    def pointer(context, address):
        def codegen(context, builder, signature, values):
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.intp), codegen

    return pointer


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
give_way, pause, swap_word = _yielder(), _pauser(), _swapper()
_longs, _floats, _bytes, _ints = (
    _pointer_maker(kind) for kind in (types.int64, types.float32, types.uint8, types.int32)
)


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
        pause()
        if waited > 200:
            give_way()


@njit(cache=True, nogil=True, error_model="numpy")
def _work(address, place):
    # IN address of a job, place: number of this thread's scratch in it
    job = carray(_longs(address), (SCRATCH + place + 1,))
    steps, fields = job[STEPS], job[FIELDS]
    run_steps(
        carray(_longs(job[KERNELS]), (steps,)),
        carray(_longs(job[TASKS]), (steps,)),
        carray(_longs(job[GEOMETRY]), (steps, fields)),
        job[LAST],
        carray(_floats(job[ARRAYS]), (job[ARRAYS + 1],)),
        carray(_floats(job[ARRAYS + 2]), (job[ARRAYS + 3],)),
        carray(_bytes(job[ARRAYS + 4]), (job[ARRAYS + 5],)),
        carray(_ints(job[ARRAYS + 6]), (job[ARRAYS + 7],)),
        carray(_floats(job[SCRATCH + place]), (job[SCRATCH_SIZE],)),
        job,
    )


@njit(cache=True, nogil=True, error_model="numpy")
def _post(job, mails, helpers, free, posted, extra):
    # Post the job to helpers that are ``free`` (IDLE or ASLEEP) until ``extra`` have it; returns how many have
    for i in range(helpers):
        at = i * MAIL_WORDS
        if posted < extra and load_word(mails, at + DOES) == free and swap_word(mails, at + DOES, free, TAKEN):
            posted += 1
            mails[at + JOB], mails[at + PLACE] = job[SELF], posted
            if free == ASLEEP:
                mails[at + WAKE] = 1
            store_word(mails, at + DOES, POSTED)
    return posted


@njit(cache=True, nogil=True, error_model="numpy")
def finish_job(job, mails, helpers):
    # Run a job that is posted; returns whether a helper is still about to leave it
    _work(job[SELF], 0)
    late = False
    for i in range(helpers):
        at = i * MAIL_WORDS
        if mails[at + JOB] != job[SELF]:
            continue
        # Should another caller use the mailbox by now, his job is taken back: he does without the helper.
        swap_word(mails, at + DOES, POSTED, IDLE)
        waited = 0
        while load_word(mails, at + DOES) == RUNNING and mails[at + JOB] == job[SELF] and waited < LEAVING:
            pause()
            waited += 1
        late |= waited == LEAVING
    return late


@njit(cache=True, nogil=True, error_model="numpy")
def run_job(job, mails, helpers, extra):
    # INOUT job, mails (helpers * MAIL_WORDS,) i8. Returns 2 if it has yet to be run, by `finish_job`: there are helpers
    # to be woken; else it is done, and the result is that of `finish_job`
    store_word(job, DONE, 0)
    store_word(job, TICKET, job[FIRST] << 32)
    posted = _post(job, mails, helpers, IDLE, 0, extra)
    if posted < extra and _post(job, mails, helpers, ASLEEP, posted, extra) > posted:
        return 2
    return 1 if finish_job(job, mails, helpers) else 0


@njit(cache=True, nogil=True, error_model="numpy")
def serve_jobs(mails, helper, patience):
    # Run the jobs that come to a mailbox, until none has come for ``patience`` looks
    at = helper * MAIL_WORDS
    waited = 0
    while True:
        if load_word(mails, at + DOES) == POSTED and swap_word(mails, at + DOES, POSTED, RUNNING):
            _work(mails[at + JOB], mails[at + PLACE])
            store_word(mails, at + DOES, IDLE)
            waited = 0
            continue
        pause()
        waited += 1
        if waited > patience and swap_word(mails, at + DOES, IDLE, ASLEEP):
            return


@njit(cache=True, nogil=True, error_model="numpy")
def retire(mails, helper):
    # Tell whether a helper was asleep; it will find no job when it wakes
    return swap_word(mails, helper * MAIL_WORDS + DOES, ASLEEP, IDLE)
