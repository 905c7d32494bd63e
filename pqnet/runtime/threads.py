"""The pool of threads that help whoever runs a program: one for the process, shared by all callers.

Every worker has a slot, some words of memory that say what it does. A caller writes the address of its job to the
slots of workers that are free, runs the job itself, and takes it out of the slots whose workers have not begun. A
worker looks at its slot for a while after each job, for calls that follow each other, and then sleeps until it is
woken. All of that is machine code, see `pqnet.kernels.driver`.
"""

import atexit
import threading
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np

from pqnet._threads import default_threads, reset_after_fork, until_done
from pqnet.kernels.driver import (
    DOES,
    JOB,
    RETURN,
    RUNNING,
    SCRATCH,
    SELF,
    SLOT_WORDS,
    THREAD,
    finish_job,
    retire,
    run_job,
    serve_jobs,
)
from pqnet.kernels.locks import renew_compiler_locks

__all__ = ["ThreadPool", "thread_pool"]

MOST_WORKERS = 256
# How often a worker looks at its slot before it sleeps. A look takes some ten nanoseconds: longer in all than what a
# caller does between two layers or two tokens, much shorter than what a worker that never sleeps takes from others.
LOOKS_BEFORE_SLEEP = 4000


class Worker:
    """A thread that runs the jobs in its slot.

    A caller does not wait long for a worker that is slow to leave a job: what the job needs is put into ``leaving``,
    which the worker clears once it is surely out of it.
    """

    def __init__(self, slots: np.ndarray, number: int) -> None:
        self._slots, self._number = slots, number
        self._threads: list[threading.Thread] = []  # the first serves; others ended at once
        self._stopped = False
        self.leaving: deque[Any] = deque()

    def start(self) -> None:
        """Start the thread, unless it runs. It may be called again if an interrupt leaves it unknown."""
        if not self._threads:
            threading.Thread(target=self._serve, name=f"pqnet_worker_{self._number}", daemon=True).start()

    def keep(self, what: Any, job: int) -> None:
        """Keep what the job at an address needs until the worker is out of it, if it is not yet."""
        slot = self._slots[self._number * SLOT_WORDS :]
        self.leaving.append(what)
        slot[RETURN] = 1
        # Looked at after the object was kept: a worker that has left by now may have cleared its list before.
        if slot[DOES] != RUNNING or slot[JOB] != job:
            with suppress(ValueError):
                self.leaving.remove(what)

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        retire(self._slots, self._number)  # type: ignore[no-untyped-call]
        for thread in self._threads:
            thread.join(1)

    def _serve(self) -> None:
        self._threads.append(threading.current_thread())
        if self._threads[0] is not threading.current_thread():
            return
        self._slots[self._number * SLOT_WORDS + THREAD] = threading.get_native_id()
        while not self._stopped:
            serve_jobs(self._slots, self._number, LOOKS_BEFORE_SLEEP)  # type: ignore[no-untyped-call]
            self.leaving.clear()


class ThreadPool:
    """Runs jobs of `pqnet.kernels.driver` with the help of workers that are started when they are first needed."""

    def __init__(self) -> None:
        self._slots = np.zeros(MOST_WORKERS * SLOT_WORDS, np.int64)
        self._workers: list[Worker] = []
        self._started = 0  # how many of them can be given jobs
        self._lock = threading.Lock()
        # Compiled before there is a job that an interrupt of the compiler could leave half begun: one without steps.
        job = np.zeros(SCRATCH + 1, np.int64)
        job[SELF] = job.ctypes.data
        run_job(job, self._slots, 0, 0)  # type: ignore[no-untyped-call]
        finish_job(job, self._slots, 0)  # type: ignore[no-untyped-call]

    def run(self, job: np.ndarray, extra: int, keep: Any) -> bool:
        """Run a job on this thread and at most ``extra`` others.

        Parameters
        ----------
        job : int64 ndarray
            In the form of `pqnet.kernels.driver`.
        extra : int
        keep : object
            Holds the memory of the job; kept alive until no worker looks at it any more.

        Returns
        -------
        bool
            Whether the job may be run again. It may not while a worker that had it is yet to leave it: one that the
            system has put to sleep meanwhile, say.

        Raises
        ------
        BaseException
            What a signal handler raised meanwhile. The job is done then, and no worker has it.
        """
        if extra > self._started:
            self._grow(extra)
        count = self._started
        try:
            left = run_job(job, self._slots, count, extra)  # type: ignore[no-untyped-call]
            if left:
                for worker in self._workers[:count]:
                    worker.keep(keep, job[SELF])
        except BaseException:
            until_done(lambda: self._clear(job, count))
            raise
        return not left

    def _clear(self, job: np.ndarray, count: int) -> None:
        """Finish a job whose caller was interrupted, until no worker has it."""
        while finish_job(job, self._slots, count):  # type: ignore[no-untyped-call]
            pass

    def _grow(self, extra: int) -> None:
        """Start workers: as many as one caller may want, for those of more callers have no CPUs."""
        # Compiled on this thread, with a slot of no worker: a process may end while a worker compiles, keeping nothing.
        slot = np.zeros(SLOT_WORDS, np.int64)
        retire(slot, 0)  # type: ignore[no-untyped-call]
        serve_jobs(slot, 0, 0)  # type: ignore[no-untyped-call]
        with self._lock:
            wanted = min(max(extra, default_threads() - 1), MOST_WORKERS)
            while len(self._workers) < wanted:
                self._workers.append(Worker(self._slots, len(self._workers)))
            for worker in self._workers:
                worker.start()
            self._started = len(self._workers)

    def stop(self) -> None:
        """End the workers: one that comes back to an interpreter that has ended would be killed in machine code."""
        for worker in self._workers:
            worker.stop()


class _Process:
    """What this process has of pools: one, made when it is first asked for. A forked child has none of the threads."""

    def __init__(self) -> None:
        self._renew()
        reset_after_fork(self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self.pool: ThreadPool | None = None

    def get(self) -> ThreadPool:
        if self.pool is None:
            with self._lock:
                if self.pool is None:
                    self.pool = ThreadPool()
        return self.pool


_process = _Process()
reset_after_fork(renew_compiler_locks)


def thread_pool() -> ThreadPool:
    """Return the pool of this process."""
    return _process.pool or _process.get()


@atexit.register
def _stop() -> None:
    if _process.pool is not None:
        _process.pool.stop()
