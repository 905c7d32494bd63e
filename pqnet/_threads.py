"""The thread budget: Numba's thread mask and the BLAS limit, set for one block of code and then restored."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import numba
import threadpoolctl

from pqnet._check import integer

__all__ = ["blas_limit", "default_threads", "ordered_map", "parallel_kernels"]

T = TypeVar("T")
R = TypeVar("R")

# Numba's workqueue layer aborts the process when two Python threads enter a parallel kernel at once.
_kernel_lock = threading.RLock()


class _BlasState:
    """The BLAS limit is one number per process: concurrent users share it, the last to leave restores it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.active: list[int] = []
        self.limiter: threadpoolctl.threadpool_limits | None = None


_blas = _BlasState()


@lru_cache(maxsize=1)
def _controller() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


def default_threads(threads: int | None = None, name: str = "threads") -> int:
    """Return the number of threads to use: the argument, or all the cores this process may run on."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return integer(threads, name, 1, 4096)


@contextmanager
def blas_limit(threads: int) -> Iterator[None]:
    """Limit BLAS to ``threads`` threads inside the block; with concurrent users the smallest limit holds."""
    with _blas.lock:
        _blas.active.append(threads)
        if _blas.limiter is None:
            _blas.limiter = _controller().limit(limits=threads, user_api="blas")
        elif threads < min(_blas.active[:-1]):
            _controller().limit(limits=threads, user_api="blas")
    try:
        yield
    finally:
        with _blas.lock:
            _blas.active.remove(threads)
            if not _blas.active:
                _blas.limiter.restore_original_limits()
                _blas.limiter = None
            elif threads < min(_blas.active):
                _controller().limit(limits=min(_blas.active), user_api="blas")


@contextmanager
def parallel_kernels(threads: int) -> Iterator[None]:
    """Enter Numba's parallel kernels with at most ``threads`` threads, one Python thread at a time."""
    with _kernel_lock:
        before = numba.get_num_threads()
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        try:
            yield
        finally:
            numba.set_num_threads(before)


def ordered_map(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Apply ``function`` to the items on ``threads`` threads, BLAS kept to one thread each; results in order.

    Which thread computes an item never changes its result: each is computed whole by one thread.
    """
    with blas_limit(1):
        if threads == 1:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[Future[R]] = deque()
            for item in items:  # no more results in memory than threads, and one to hand out
                waiting.append(pool.submit(function, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
