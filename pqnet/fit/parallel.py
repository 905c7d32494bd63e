"""Kernels whose chunks are shared by several threads."""

from typing import Any

import numpy as np

from pqnet._threads import call_on_threads
from pqnet.kernels.llvm import COMPILED

__all__ = ["run_chunks"]


def run_chunks(threads: int, kernel: Any, *arguments: Any) -> None:
    """Run a kernel that takes chunks by `pqnet.kernels.fit.chunks.next_chunk`, on up to ``threads`` threads.

    What a chunk computes depends on neither the thread nor the order: the result has the same bits for any number.

    Parameters
    ----------
    threads : int
    kernel : compiled function
    arguments
        All but the first, the counter of chunks.
    """
    counter = np.zeros(1, np.int64)
    if threads == 1 or not COMPILED:  # without compilation a chunk may be taken twice: one thread must do it all
        kernel(counter, *arguments)
        return
    if not kernel.overloads:  # compiled by this thread alone, with no chunk left to take
        kernel(np.full(1, np.iinfo(np.int64).max // 2), *arguments)
    call_on_threads(lambda: kernel(counter, *arguments), threads)
