"""Programs in guarded memory, and single tasks of their steps."""

import numpy as np
from numba import njit

from pqnet.kernels import driver
from pqnet.kernels.llvm import COMPILED
from pqnet.runtime.memory import SLACK, Workspace, aligned, round_up
from pqnet.runtime.program import Everything

GUARD = np.float32(-7.25e33)


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

    def spoil(self):
        """Leave the guard values where they are."""


def untouched(program, arena):
    """Tell whether only the buffers of a program were written."""
    free = np.ones(arena.size, bool)
    for buffer in program.buffers:
        free[buffer.offset : buffer.offset + buffer.nbytes] = False
    guards = np.zeros(arena.size // 4, np.float32)
    guards[:] = GUARD
    return bool((arena[free] == guards.view(np.uint8)[free]).all())


@njit
def _run_compiled(kernel, tasks, record, data, index, scratch):
    const, codes = driver._floats(0, driver.EVERYTHING), driver._bytes(0, driver.EVERYTHING)
    for task in tasks:
        driver.call_kernel(kernel, task, record, data, const, codes, index, scratch)


def run_tasks(segment, i, tasks, pieces, index, arena, scratch):
    """Run tasks of step ``i`` of a segment in the given order, in an arena as it is."""
    data = arena.view(np.float32)
    if COMPILED:
        _run_compiled(segment.kernels[i], np.array(list(tasks)), segment.records[i], data, index, scratch)
        return
    const, codes = (Everything(pieces, dtype) for dtype in (np.float32, np.uint8))
    for task in tasks:
        segment.steps[i].kernel.function(task, segment.records[i], data, const, codes, index, scratch)
