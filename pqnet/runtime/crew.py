"""The helpers: threads that join whoever runs a program, shared by all callers of the process."""

import atexit
import os
import threading
from collections import deque
from typing import Any

import numpy as np

from pqnet._threads import default_threads
from pqnet.kernels.driver import SLOT_WORDS, WAKE, finish_job, retire, run_job, serve_jobs

__all__ = ["Crew", "crew"]

MOST = 256  # helpers
# Looks for another job, of some ten nanoseconds each: longer than what a caller does between two layers or two tokens,
# much shorter than waking a helper and putting it to sleep would take from others.
PATIENCE = 4000


class _Helper:
    """A thread; ``late`` keeps the jobs alive that callers left while it was still in them."""

    def __init__(self, mails: np.ndarray, number: int) -> None:
        self.mails, self.number, self.stopped = mails, number, False
        self.late: deque[Any] = deque()
        self.wake = threading.Lock()
        self.wake.acquire()
        self.thread = threading.Thread(target=self._serve, name=f"pqnet_{number}", daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            self.wake.acquire()  # released once for each time that the mailbox leaves ASLEEP
            if self.stopped:
                return
            serve_jobs(self.mails, self.number, PATIENCE)  # type: ignore[no-untyped-call]
            self.late.clear()


class Crew:
    """Runs jobs of `kernels.driver` with the help of threads that start when they are first needed."""

    def __init__(self) -> None:
        self._mails = np.zeros(MOST * SLOT_WORDS, np.int64)
        self._helpers: list[_Helper] = []
        self._lock = threading.Lock()

    def run(self, job: np.ndarray, extra: int, keep: Any) -> bool:
        """Run a job on this thread and at most ``extra`` others; tell whether it may be run again.

        It may not if a helper that was put to sleep is yet to look at it; ``keep`` then lives as long as it has to.
        """
        if extra > len(self._helpers):
            self._grow(extra)
        count = len(self._helpers)
        result = run_job(job, self._mails, count, extra)  # type: ignore[no-untyped-call]
        if result == 2:
            self._wake(count)
            result = finish_job(job, self._mails, count)  # type: ignore[no-untyped-call]
        if result:
            for helper in self._helpers:
                helper.late.append(keep)
        return not result

    def _grow(self, extra: int) -> None:
        """Have as many helpers as one caller may want; those of more callers have cores of their own."""
        with self._lock:
            for number in range(len(self._helpers), min(max(extra, default_threads() - 1), MOST)):
                self._helpers.append(_Helper(self._mails, number))

    def _wake(self, count: int) -> None:
        with self._lock:
            for i, helper in enumerate(self._helpers[:count]):
                if self._mails[i * SLOT_WORDS + WAKE]:
                    self._mails[i * SLOT_WORDS + WAKE] = 0
                    helper.wake.release()

    def stop(self) -> None:
        """End the helpers: one that comes back to an interpreter that is ending would be killed within machine code."""
        for i, helper in enumerate(self._helpers):
            helper.stopped = True
            if retire(self._mails, i):  # type: ignore[no-untyped-call]
                helper.wake.release()
            helper.thread.join(1)


_crews: list[Crew] = []
_lock = threading.Lock()


def crew() -> Crew:
    """Return the crew of this process."""
    if not _crews:
        with _lock:
            if not _crews:
                _crews.append(Crew())
    return _crews[0]


@atexit.register
def _stop() -> None:
    for each in _crews:
        each.stop()


def _forget() -> None:
    """Leave the parent's helpers behind: a forked child has none of its threads."""
    global _lock
    _lock = threading.Lock()
    _crews.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
