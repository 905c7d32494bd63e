"""Threads: how many there are to be, a pool of them for Python functions, BLAS on one thread, and forked children.

Everything here may be used by any number of threads at once, and within itself: whoever asks for help does the work
alone if no other thread is free, so that nothing waits for a thread that has not begun.
"""

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import count, product
from queue import SimpleQueue
from typing import Any, TypeVar

import threadpoolctl

from pqnet._cgroup import cpu_quota
from pqnet._check import integer

__all__ = [
    "blas_limit",
    "call_on_threads",
    "default_threads",
    "ordered_map",
    "reset_after_fork",
    "thread_limits",
    "until_done",
]

T = TypeVar("T")
R = TypeVar("R")

LARGEST = 4096  # number of threads


def default_threads(threads: int | None = None, name: str = "threads") -> int:
    """Return the number of threads to use.

    The argument, if there is one. Else the environment variable ``PQNET_NUM_THREADS``, if it is a positive integer
    or a list of such, of which the first counts. Else the number of CPUs that this process may use: of those that its
    affinity names, no more than the quota of its container (cgroup versions 1 and 2, rounded up, see `cpu_quota`), and
    no more than ``OMP_NUM_THREADS``, written as above. Variables that hold anything else are ignored.

    Parameters
    ----------
    threads : int, optional
    name : str
        What the argument is called in an error message.

    Raises
    ------
    PQNetError
        ``threads`` is not an integer from 1 to 4096.

    Examples
    --------
    >>> default_threads(3)
    3
    """
    if threads is not None:
        return integer(threads, name, 1, LARGEST)
    if (wanted := _number_in_environment("PQNET_NUM_THREADS")) is not None:
        return wanted
    return min(LARGEST, *(limit for limit in thread_limits().values() if limit is not None))


def thread_limits() -> dict[str, int | None]:
    """Return by name what `default_threads` goes by; None where nothing is set."""
    return {
        "affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "quota": cpu_quota(),
        **{name: _number_in_environment(name) for name in ("OMP_NUM_THREADS", "PQNET_NUM_THREADS")},
    }


def _number_in_environment(name: str) -> int | None:
    text = os.environ.get(name, "").partition(",")[0].strip()
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    return min(number, LARGEST) or None


# -- forks -----------------------------------------------------------------------------------------------------

_resets: dict[int, Callable[[], Callable[[], None] | None]] = {}
_numbers = count()


def reset_after_fork(reset: Callable[[], None]) -> None:
    """Have ``reset`` called in every forked child, before anything else runs there.

    A child has only the thread that forked. A lock that another thread held would stay locked in it for ever, and a
    pool would wait for threads that are not there: ``reset`` makes such locks and pools anew, and drops what other
    threads had begun.

    Parameters
    ----------
    reset : callable
        Without arguments; it must not raise, and not wait for any other thread. A bound method is not called any more
        once its object is gone; this does not keep the object alive.

    Examples
    --------
    >>> class Table:
    ...     def __init__(self):
    ...         self._renew()
    ...         reset_after_fork(self._renew)
    ...     def _renew(self):
    ...         self.lock = threading.Lock()
    >>> Table().lock.locked()
    False
    """
    number = next(_numbers)
    owner, method = getattr(reset, "__self__", None), getattr(reset, "__func__", None)
    if owner is None or method is None:
        _resets[number] = lambda: reset
    else:
        forget = partial(_forget, _resets, number)
        _resets[number] = partial(_bound, weakref.ref(owner, forget), method)


def _forget(resets: dict[int, Any], number: int, _: object) -> None:
    resets.pop(number, None)


def _bound(find: Callable[[], object], method: Callable[[Any], None]) -> Callable[[], None] | None:
    owner = find()
    return None if owner is None else partial(method, owner)


def _reset_child() -> None:
    for find in list(_resets.values()):
        if (reset := find()) is not None:
            reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_child)


# -- exceptions of signal handlers -----------------------------------------------------------------------------


def until_done(step: Callable[[], None]) -> None:
    """Call ``step`` again until it returns, however often a signal handler raises; then raise what was raised first.

    ``step`` puts something in order that must not stay half done when the user presses Ctrl-C, or a handler of another
    signal raises: it may be called any number of times, and raises nothing itself.
    """
    raised: BaseException | None = None
    while True:
        try:
            step()
            break
        except BaseException as error:
            raised = raised or error
    try:
        if raised is not None:
            raise raised
    finally:
        del raised  # see `_Task.run`


# -- the pool --------------------------------------------------------------------------------------------------


class _Task:
    """A call of a function that whoever claims it first makes: a worker of the pool, or the thread that wants it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function: Callable[[], Any] | None = function
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = False
        self._claims: list[object] = []  # the first has it; appending is atomic, and may be repeated
        self._end = threading.Lock()
        self._end.acquire()

    def claim(self, who: object) -> bool:
        """Tell whether the call is left to ``who``."""
        self._claims.append(who)
        return self._claims[0] is who

    def run(self) -> None:
        """Make the call; its result or exception is kept."""
        try:
            assert self.function is not None
            self.result = self.function()
        except BaseException as error:
            self.error = error
        self.function, self.ended = None, True
        self._end.release()
        del self  # the exception holds this frame: nothing that was cut off in it is to live on by a cycle

    def wait(self) -> None:
        """Wait for the end of a call that another thread has begun."""
        while not self.ended:
            self._end.acquire()

    def withdraw(self) -> None:
        """Have the call not made any more; if it has begun, wait for its end."""
        if self.claim(self):
            self.function = None
        else:
            self.wait()


class _Pool:
    """Threads that make calls for whoever asks, started when they are first needed."""

    def __init__(self) -> None:
        self._renew()
        reset_after_fork(self._renew)

    def _renew(self) -> None:
        self._tasks: SimpleQueue[_Task] = SimpleQueue()
        self._lock = threading.Lock()
        self._size = 0

    def offer(self, task: _Task, workers: int) -> None:
        """Let a worker make the call: of at least ``workers`` or, if more, all that CPUs are for."""
        if self._size < workers:
            with self._lock:
                for _ in range(self._size, max(workers, default_threads() - 1)):
                    threading.Thread(target=_work, args=(self._tasks,), name="pqnet_pool", daemon=True).start()
                    self._size += 1
        self._tasks.put(task)


def _work(tasks: "SimpleQueue[_Task]") -> None:
    me = object()
    while True:
        task = tasks.get()
        if task.claim(me):
            task.run()
        del task  # what it holds may be large, and the next one far


_pool = _Pool()


def call_on_threads(function: Callable[[], object], threads: int) -> None:
    """Call a function on this thread and at the same time on up to ``threads - 1`` others, and wait for all.

    It is for functions that share work among those who call them: other threads that are busy elsewhere may come too
    late to call it at all.

    Parameters
    ----------
    function : callable
    threads : int

    Raises
    ------
    BaseException
        What the function raised, on any of the threads.
    """
    tasks = [_Task(function) for _ in range(threads - 1)]
    try:
        for task in tasks:
            _pool.offer(task, threads - 1)
        function()
    finally:
        until_done(lambda: _withdraw(tasks))
    for task in tasks:
        if task.error is not None:
            raise task.error


def _withdraw(tasks: Iterable[_Task]) -> None:
    for task in tasks:
        task.withdraw()


def ordered_map(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Apply ``function`` to the items on ``threads`` threads, BLAS kept to one thread each; results in order.

    Which thread computes an item never changes its result: each is computed whole by one thread. This thread is one of
    them, while it waits for a result. When the iterator ends, is closed or raises, no item is being computed any more.

    Parameters
    ----------
    function : callable
    items : iterable
        Taken one by one by this thread, ``threads`` ahead of the results.
    threads : int

    Yields
    ------
    result of the function

    Raises
    ------
    BaseException
        What the function raised, in place of the result.
    """
    results: deque[_Task] = deque()  # the calls in order, begun or not: no more than threads, and one to hand out
    waiting: deque[_Task] = deque()  # those that have not begun; taking one off is atomic
    offered: list[_Task] = []  # calls of compute_waiting by workers

    def compute(item: T) -> R:
        with blas_limit(1):
            return function(item)

    def compute_waiting() -> None:
        while (task := _take(waiting)) is not None:
            task.run()

    def stop() -> None:
        waiting.clear()
        _withdraw(offered)
        results.clear()  # see `_Task.run`

    def result(task: _Task) -> R:
        other: _Task | None = None
        try:
            while not task.ended:
                if (other := _take(waiting)) is None:
                    task.wait()
                else:
                    other.run()
                    if other.error is not None and not isinstance(other.error, Exception):
                        raise other.error  # a KeyboardInterrupt is not for later
            if task.error is not None:
                raise task.error
            found: R = task.result
            return found
        finally:
            del task, other  # see `_Task.run`

    try:
        for item in items:
            results.append(_Task(partial(compute, item)))
            waiting.append(results[-1])
            offered = [call for call in offered if not call.ended]
            if len(offered) < threads - 1:
                offered.append(_Task(compute_waiting))
                _pool.offer(offered[-1], threads - 1)
            if len(results) >= threads + (threads > 1):
                yield result(results.popleft())
        while results:
            yield result(results.popleft())
    finally:
        until_done(stop)


def _take(waiting: deque[_Task]) -> _Task | None:
    try:
        return waiting.popleft()
    except IndexError:
        return None


# -- BLAS ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _controller() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


class _Library:
    """A BLAS library, and how its number of threads is read and set."""

    def __init__(self, library: Any) -> None:
        self.read, self.set = library.get_num_threads, library.set_num_threads
        # Libraries on OpenMP and Intel's have a number for each thread, others one for the process.
        self.for_each_thread = library.internal_api == "mkl" or getattr(library, "threading_layer", "") == "openmp"
        if library.internal_api == "openblas" and not self.for_each_thread:
            # From version 3.8 on, threadpoolctl ignores all threads but the first that set OpenBLAS's number.
            affixes = product(("", "scipy_"), ("", "64_", "_64"))
            names = [f"{first}openblas_set_num_threads{last}" for first, last in affixes]
            self.set = next(filter(None, (getattr(library.dynlib, name, None) for name in names)), self.set)


@lru_cache(maxsize=1)
def _libraries() -> list[_Library]:
    return [_Library(library) for library in _controller().lib_controllers if library.user_api == "blas"]


class _Limit:
    """One use of `blas_limit`: by which thread, and how many threads BLAS may have."""

    def __init__(self, threads: int) -> None:
        self.threads, self.user = threads, threading.get_ident()


class _Blas:
    """The limits that hold now. Libraries have their own number back when there are none."""

    def __init__(self) -> None:
        self._limits: list[weakref.ref[_Limit]] = []  # one whose end an exception of a signal handler cut off is gone
        self._before: list[tuple[_Library, int]] = []  # the libraries and their numbers
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._hold, after_in_parent=self._release)
        reset_after_fork(self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        if self._limits:
            me = threading.get_ident()
            self._limits = [ref for ref in self._limits if (limit := ref()) is not None and limit.user == me]
            self._apply()

    def _hold(self) -> None:
        # OpenBLAS ends its threads before a fork, and starts them under a lock of its own when its number is set next:
        # by another thread just before the process is copied, and the child waits for that lock for ever. Nobody sets
        # the number until the fork is over. (A signal handler that forks may have cut off who holds our lock.)
        self._held = self._lock.acquire(timeout=1)

    def _release(self) -> None:
        if self._held:
            self._lock.release()

    def enter(self, limit: _Limit) -> None:
        with self._lock:
            self._limits = [*self._limits, weakref.ref(limit)]
            self._apply()

    def leave(self, limit: _Limit) -> None:
        with self._lock:
            self._limits = [ref for ref in self._limits if ref() not in (limit, None)]
            self._apply()

    def _apply(self) -> None:
        limits = [limit for ref in self._limits if (limit := ref()) is not None]
        if limits and not self._before:
            self._before = [(library, library.read()) for library in _libraries()]
        me = threading.get_ident()
        for library, number in self._before:
            mine = [limit.threads for limit in limits if limit.user == me or not library.for_each_thread]
            library.set(min([*mine, number]))
        if not limits:
            self._before = []


_blas = _Blas()


@contextmanager
def blas_limit(threads: int) -> Iterator[None]:
    """Limit BLAS to ``threads`` threads inside the block; with several users at once the smallest limit holds.

    The bits of most products depend on the number of BLAS threads, which most libraries have one of for the whole
    process: any number that is set back while another thread computes would change its results. All that pqnet
    computes by BLAS is therefore computed inside ``blas_limit(1)``, entered once for each public call: calls that
    overlap change nothing for one another. What other code computes meanwhile has one BLAS thread, too.

    Parameters
    ----------
    threads : int
    """
    limit = _Limit(threads)
    try:
        _blas.enter(limit)
        yield
    finally:
        try:
            until_done(partial(_blas.leave, limit))
        except BaseException:  # maybe from before `until_done` caught any
            until_done(partial(_blas.leave, limit))
            raise
