"""The driver: runs the steps of a program, on as many threads as call it with the same job.

A step is a kernel (its address), a number of tasks and a record of arguments. Threads take tasks from both ends, by an
atomic addition to one word that counts the tasks taken from each end: with two threads, each works on the same half of
the channels or positions step after step, which then lies in the caches of its own core. Whoever finishes the last task
of a step opens the next. A thread that comes late or is put to sleep delays nobody as long as it holds no task, so no
thread ever waits for one that has not started, and any number of callers and forks get along.

A run is a job: one array of words with the state and the addresses of everything. Workers are threads in `serve_jobs`,
each with a slot: callers post a job to the slots that are free, and withdraw it from those whose worker has not begun
when the job is done. A worker looks for jobs for a while after the last one, for calls that follow each other, and then
goes to sleep.

While steps run, denormal numbers count as zero where the processor can do that: arithmetic on them would take a hundred
times as long.
"""

import os
import platform

import numpy as np
from llvmlite import ir
from numba import njit, types

from pqnet.kernels.abi import signature_of
from pqnet.kernels.atomic import fetch_add, load_word, store_word, swap_word
from pqnet.kernels.llvm import BYTE, INDEX, LONG, WORD, call, compiled_or, load
from pqnet.kernels.sleep import (
    SET_WORDS,
    current_cpu,
    get_cpus,
    set_cpus,
    sleep_while,
    wake_sleeper,
    without_cpu,
)

# Words of a job. The state comes first: ticket and number of finished tasks, on cache lines of their own. Then the
# steps to run, the number of all steps, the job's own address, the addresses of the arrays that describe the steps,
# address and size of data and index, the size of a scratch, room for two sets of CPUs, and from SCRATCH on the address
# of each thread's scratch.
TICKET, DONE = 0, 16
# The ticket: the step, how often tasks were taken from the end, and how often from the start; the first bits of the
# former two. Of steps with very many tasks several are taken at once.
STEP, END = 40, 20
COUNT = (1 << END) - 1
MANY = END - 1  # bits: threads that come when nothing is left count, too
STATE_WORDS = 32
(FIRST, LAST, STEPS, SELF, KERNELS, TASKS, NUMBERS, RECORDS) = range(STATE_WORDS, STATE_WORDS + 8)
(DATA, DATA_SIZE, INDEX_AT, INDEX_SIZE, SCRATCH_SIZE, ALLOWED) = range(STATE_WORDS + 8, STATE_WORDS + 14)
FREE = ALLOWED + SET_WORDS
SCRATCH = FREE + SET_WORDS

# Words of a worker's slot: what the worker does, the address of its job, the number of its scratch in the job, its
# number in the system, the CPU that it was last seen on, whether it is to come back to the interpreter before it sleeps
# next: once, for good.
SLOT_WORDS = 16
DOES, JOB, PLACE, THREAD, CPU, RETURN, STOP = range(7)
ASLEEP, IDLE, TAKEN, POSTED, RUNNING = 0, 1, 2, 3, 4  # TAKEN: a caller is writing to the slot
LEAVING = 2000  # looks at a worker that is about to leave a job

# Offsets into ``const`` and ``codes`` are addresses counted in elements: these arrays begin at address 0 and have no
# end, so that parameters lie wherever there is room and are never moved.
EVERYTHING = 1 << 62
_POINTER = signature_of(types.voidptr)


def _call_reference(kernel, task, record, data, const, codes, index, scratch):
    kernel(task, record, data, const, codes, index, scratch)


def _call(context, kernel, task, record, data, const, codes, index, scratch):
    def codegen(context, builder, signature, values):
        kind = context.call_conv.get_function_type(types.void, _POINTER)
        function = builder.inttoptr(values[0], kind.as_pointer())
        record = builder.inttoptr(values[2], BYTE.as_pointer())
        context.call_conv.call_function(builder, function, types.void, _POINTER, [values[1], record, *values[3:]])
        return context.get_dummy_value()

    return types.void(INDEX, INDEX, INDEX, *_POINTER[2:]), codegen


X86 = platform.machine() in ("x86_64", "AMD64")


def _nothing():
    pass


def _pause(context):
    def codegen(context, builder, signature, values):
        if X86:
            call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        return context.get_dummy_value()

    return types.void(), codegen


def _give_way(context):
    def codegen(context, builder, signature, values):
        call(builder, "SwitchToThread" if os.name == "nt" else "sched_yield", WORD)
        return context.get_dummy_value()

    return types.void(), codegen


FLUSH_DENORMALS = 0x8040  # of the control register of SSE: results and operands


def _control_register():
    return 0


def _get_control_register(context):
    def codegen(context, builder, signature, values):
        if not X86:
            return LONG(0)
        word = builder.alloca(WORD)
        call(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), builder.bitcast(word, BYTE.as_pointer()))
        return builder.zext(load(builder, word), LONG)

    return types.int64(), codegen


def _ignore(value):
    pass


def _set_control_register(context, value):
    def codegen(context, builder, signature, values):
        if X86:
            word = builder.alloca(WORD)
            builder.store(builder.trunc(values[0], WORD), word)
            call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), builder.bitcast(word, BYTE.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _array_of(kind, itemsize):
    def array_at(context, address, size):
        array_type = types.Array(kind, 1, "C")

        def codegen(context, builder, signature, values):
            from numba.np.arrayobj import populate_array  # loads what only compiling needs

            array = context.make_array(array_type)(context, builder)
            data = builder.inttoptr(values[0], context.get_data_type(kind).as_pointer())
            shape, strides = [values[1]], [LONG(itemsize)]
            populate_array(array, data=data, shape=shape, strides=strides, itemsize=LONG(itemsize), meminfo=None)
            return array._getvalue()

        return array_type(INDEX, INDEX), codegen

    return compiled_or(_ignore, array_at)


call_kernel = compiled_or(_call_reference, _call)
pause = compiled_or(_nothing, _pause)  # leaves the core's units to others for some cycles
give_way = compiled_or(_nothing, _give_way)  # lets another thread have the core
get_control_register = compiled_or(_control_register, _get_control_register)
set_control_register = compiled_or(_ignore, _set_control_register)
# (address, size): the array there
_longs, _floats, _bytes = _array_of(types.int64, 8), _array_of(types.float32, 4), _array_of(types.uint8, 1)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _turns(tasks):
    # How often threads take tasks of a step, (tasks >> MANY) + 1 of them at once
    return tasks if tasks >> MANY == 0 else (tasks + (tasks >> MANY)) // ((tasks >> MANY) + 1)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def run_steps(kernels, tasks, numbers, records, last, data, const, codes, index, scratch, state, backward):
    # IN kernels (S,): addresses; tasks (S,) i8 >= 1; numbers (S,) i8: by which kernels call the first task of a step;
    #    records (S,): addresses; steps state[TICKET] >> STEP .. last are run;
    #    backward: whether this thread takes tasks from the end
    # INOUT state (STATE_WORDS,) i8, shared by the threads; scratch (.,) f4, each thread's own
    one = np.int64(1) << (END if backward else 0)
    waited = 0
    while True:
        ticket = load_word(state, TICKET)
        step = ticket >> STEP
        if step >= last:
            return
        if (ticket & COUNT) + (ticket >> END & COUNT) < _turns(tasks[step]):
            ticket = fetch_add(state, TICKET, one)
            step = ticket >> STEP
            first, behind = ticket & COUNT, ticket >> END & COUNT
            if step < last and first + behind < _turns(tasks[step]):
                if backward:
                    first = _turns(tasks[step]) - 1 - behind
                each = (tasks[step] >> MANY) + 1
                for task in range(first * each, min(first * each + each, tasks[step])):
                    call_kernel(kernels[step], numbers[step] + task, records[step], data, const, codes, index, scratch)
                if fetch_add(state, DONE, 1) + 1 == _turns(tasks[step]):
                    store_word(state, DONE, 0)
                    store_word(state, TICKET, (step + 1) << STEP)
                waited = 0
                continue
        waited += 1
        pause()
        if waited > 200:
            give_way()


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _work(address, place):
    # IN address of a job, place: number of this thread's scratch in it
    job = _longs(address, SCRATCH + place + 1)
    steps = job[STEPS]
    control = get_control_register()
    set_control_register(control | FLUSH_DENORMALS)
    run_steps(
        _longs(job[KERNELS], steps),
        _longs(job[TASKS], steps),
        _longs(job[NUMBERS], steps),
        _longs(job[RECORDS], steps),
        job[LAST],
        _floats(job[DATA], job[DATA_SIZE]),
        _floats(0, EVERYTHING),
        _bytes(0, EVERYTHING),
        _longs(job[INDEX_AT], job[INDEX_SIZE]),
        _floats(job[SCRATCH + place], job[SCRATCH_SIZE]),
        job,
        place & 1,
    )
    set_control_register(control)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _wake(job, slots, workers, worker):
    # Wake a worker that the job was posted to, on a CPU where neither the caller nor another worker is. Left to itself,
    # the system may put it beside the caller, above all in virtual machines, whose idle CPUs it takes for busy: there
    # the two wait for each other until it notices, after some milliseconds.
    at = worker * SLOT_WORDS
    thread, moved = slots[at + THREAD], False
    if thread > 0 and get_cpus(job, ALLOWED, thread):
        for j in range(SET_WORDS):
            job[FREE + j] = job[ALLOWED + j]
        moved = without_cpu(job, FREE, current_cpu())
        for j in range(workers):
            if moved and j != worker and load_word(slots, j * SLOT_WORDS + DOES) != ASLEEP:
                without_cpu(job, FREE, slots[j * SLOT_WORDS + CPU])
        moved = moved and set_cpus(job, FREE, thread)
    wake_sleeper(slots, at + DOES)
    if moved:
        set_cpus(job, ALLOWED, thread)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _post(job, slots, workers, free, posted, extra):
    # Post the job to workers that are ``free`` (IDLE or ASLEEP) until ``extra`` have it; returns how many have
    for i in range(workers):
        at = i * SLOT_WORDS
        if posted < extra and load_word(slots, at + DOES) == free and swap_word(slots, at + DOES, free, TAKEN):
            posted += 1
            slots[at + JOB], slots[at + PLACE] = job[SELF], posted
            store_word(slots, at + DOES, POSTED)
            if free == ASLEEP:
                _wake(job, slots, workers, i)
    return posted


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def finish_job(job, slots, workers):
    # Run a job that is posted; returns whether a worker is still about to leave it
    _work(job[SELF], 0)
    late = False
    for i in range(workers):
        at = i * SLOT_WORDS
        if slots[at + JOB] != job[SELF]:
            continue
        # If another caller has posted to the slot in the meantime, its job is withdrawn; that caller's own thread does
        # the work alone.
        swap_word(slots, at + DOES, POSTED, IDLE)
        waited = 0
        while load_word(slots, at + DOES) == RUNNING and slots[at + JOB] == job[SELF] and waited < LEAVING:
            pause()
            waited += 1
        late |= waited == LEAVING
    return late


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def run_job(job, slots, workers, extra):
    # INOUT job, slots (workers * SLOT_WORDS,) i8. Runs the job; the result is that of `finish_job`
    store_word(job, DONE, 0)
    store_word(job, TICKET, job[FIRST] << STEP)
    posted = _post(job, slots, workers, IDLE, 0, extra)
    if posted < extra:
        _post(job, slots, workers, ASLEEP, posted, extra)
    return finish_job(job, slots, workers)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def serve_jobs(slots, worker, patience):
    # Run the jobs that come to a slot, and sleep when none has come for ``patience`` looks; returns before it would
    # sleep if it is to
    at = worker * SLOT_WORDS
    waited = 0
    while True:
        does = load_word(slots, at + DOES)
        if does == POSTED and swap_word(slots, at + DOES, POSTED, RUNNING):
            _work(slots[at + JOB], slots[at + PLACE])
            slots[at + CPU] = current_cpu()
            store_word(slots, at + DOES, IDLE)
            waited = 0
        elif does == ASLEEP:
            if load_word(slots, at + STOP) or swap_word(slots, at + RETURN, 1, 0):
                return
            sleep_while(slots, at + DOES, ASLEEP)
            slots[at + CPU] = current_cpu()
            waited = 0
        elif waited > patience:
            swap_word(slots, at + DOES, IDLE, ASLEEP)
        else:
            pause()
            waited += 1


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def retire(slots, worker):
    # Have a worker come back from `serve_jobs` when it finds no job
    store_word(slots, worker * SLOT_WORDS + STOP, 1)
    if swap_word(slots, worker * SLOT_WORDS + DOES, ASLEEP, IDLE):
        wake_sleeper(slots, worker * SLOT_WORDS + DOES)
