"""Programs in guarded memory, and single tasks of their steps."""

import ctypes

import numpy as np

from pqnet.kernels import driver
from pqnet.runtime.memory import SLACK, Workspace, aligned, round_up
from pqnet.runtime.program import Everything

GUARD = np.float32(-7.25e33)
END = 1 << 46  # of what an array that begins at address 0 spans, in bytes


def guarded_arena(nbytes):
    """Return an arena of so many bytes and the slack behind, full of guard values."""
    arena = aligned(round_up(nbytes + 4 * SLACK, 8), np.uint8)
    arena.view(np.float32)[:] = GUARD
    return arena


class GuardedSpace(Workspace):
    """A workspace whose arena is full of guard values before every run."""

    def fit(self, arena, scratch, threads):
        self.arena = guarded_arena(arena)
        self._arrays.clear()
        self.scratch = [np.full(scratch, np.nan, np.float32) for _ in range(threads)]


def untouched(program, arena):
    """Tell whether only the buffers of a program were written."""
    free = np.ones(arena.size, bool)
    for buffer in program.buffers:
        free[buffer.offset : buffer.offset + buffer.nbytes] = False
    guards = np.zeros(arena.size // 4, np.float32)
    guards[:] = GUARD
    return bool((arena[free] == guards.view(np.uint8)[free]).all())


def run_tasks(segment, i, tasks, pieces, index, arena, scratch):
    """Run tasks of step ``i`` of a segment in the given order, in an arena as it is."""
    kernel = segment.steps[i].kernel
    if driver.COMPILED:
        words = (ctypes.c_int64 * (kernel.arguments.dtype.itemsize // 8)).from_address(int(segment.records[i]))
        record = np.frombuffer(words, np.dtype((np.record, kernel.arguments.dtype)))[0]
        memory = (ctypes.c_char * END).from_address(0)
        const, codes = (np.frombuffer(memory, dtype) for dtype in (np.float32, np.uint8))
    else:
        record = segment.records[i]
        const, codes = (Everything(pieces, dtype) for dtype in (np.float32, np.uint8))
    for task in tasks:
        kernel.function(task, record, arena.view(np.float32), const, codes, index, scratch)
