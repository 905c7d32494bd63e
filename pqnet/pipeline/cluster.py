"""Work given to the workers of a Dask cluster, or without one done here: everything in pqnet that knows Dask.

How work is cut into tasks, and the order in which results are put together, never depends on who does it. So results
are the same, to the last byte, for any number of workers of one kind of CPU, and without any.
"""

import logging
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from pqnet import _check
from pqnet._threads import blas_limit, default_threads
from pqnet.errors import PQNetError
from pqnet.kernels import cpu

if TYPE_CHECKING:
    from distributed import Client as Client
    from distributed import Future

__all__ = ["Shared", "Tasks", "connected", "dask", "dask_blocks"]

T = TypeVar("T")
_Warning = tuple[str, type[Warning], str, int]  # message, category, file and line

SECONDS = 5.0  # to wait for a scheduler, and for its first worker
AHEAD = 2  # tasks for each thread of the workers that are given out before their results are taken
# For workers that are started here: Ctrl-C reaches them too, but it is the command that ends them.
UNINTERRUPTED = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
"""
ATTEMPTS = 8  # of a step that fails as workers go away, 13 s in all


def dask(name: str = "distributed") -> Any:
    """Import a part of Dask, or say how to install it."""
    try:
        if name == "dask.array":
            import dask.array

            return dask.array
        import distributed

        return distributed
    except ModuleNotFoundError as missing:
        raise PQNetError(f"client: needs the package {missing.name!r}; pip install 'pqnet[cluster]'") from None


@dataclass
class Shared(Generic[T]):
    """A value that all tasks take, sent to workers once."""

    value: T
    future: "Future | None" = None


@dataclass
class _Task:
    function: Callable[..., Any]
    item: Any
    shared: tuple[Shared[Any], ...]
    future: "Future"


class Tasks:
    """Makes calls of a function for many items, on the workers of a cluster or, without one, in this process.

    Parameters
    ----------
    client : distributed.Client or None
    """

    def __init__(self, client: "Client | None") -> None:
        self.client = client
        self._warned: dict[Any, int] = {}  # what is said once is, however many workers say it
        if client is not None:
            distributed = dask()
            if not isinstance(client, distributed.Client) or client.asynchronous:
                raise _check.error("client", "a distributed.Client that is not asynchronous", _check.describe(client))
            _check_workers(client)

    def share(self, value: T) -> Shared[T]:
        """Return a value such that `map` sends it to each worker only once."""
        return Shared(value)

    @property
    def _client(self) -> "Client":
        assert self.client is not None
        return self.client

    def capacity(self) -> int:
        """Return how many tasks are under way at most."""
        return 1 if self.client is None else AHEAD * max(1, sum(self.client.nthreads().values()))

    def begin(self, function: Callable[..., T], item: Any) -> Callable[[], T]:
        """Begin a call, without a cluster only when its result is asked for; return what returns the result."""
        if self.client is None:
            return lambda: function(item)
        task = self._begin(function, item, ())
        return lambda: self._result(task)

    def map(self, function: Callable[..., T], items: Iterable[Any], *shared: Shared[Any]) -> Iterator[T]:
        """Yield ``function(item, *shared values)`` of each item, in order.

        Items are taken as results are: on a cluster a few more for each worker are under way. What a worker had begun
        when it was killed is done again by another. ``function`` must be one that can be pickled.
        """
        if self.client is None:
            values = [one.value for one in shared]
            for item in items:
                yield function(item, *values)
            return
        waiting: deque[_Task] = deque()
        try:
            for item in items:
                waiting.append(self._begin(function, item, shared))
                if len(waiting) >= self.capacity():
                    yield self._result(waiting.popleft())
            while waiting:
                yield self._result(waiting.popleft())
        finally:
            if waiting and self.client.status == "running":
                self.client.cancel([task.future for task in waiting])

    def _begin(self, function: Callable[..., Any], item: Any, shared: tuple[Shared[Any], ...]) -> _Task:
        return _again(self._client, lambda: self._submit(function, item, shared))

    def _submit(self, function: Callable[..., Any], item: Any, shared: tuple[Shared[Any], ...]) -> _Task:
        client = self._client
        for one in shared:
            if one.future is None or one.future.status != "finished" or not any(client.who_has([one.future]).values()):
                one.future = _scattered(client, one.value, broadcast=True)
        futures = [_scattered(client, item), *(one.future for one in shared)]
        return _Task(function, item, shared, client.submit(_call_recorded, function, *futures, pure=False))

    def _result(self, task: _Task) -> Any:
        """Return what a task returns, and warn as it warned.

        One whose inputs are gone with the last worker that had them is begun again.
        """
        tried = [task]

        def result() -> Any:
            if tried[-1].future.cancelled():
                tried.append(self._submit(task.function, task.item, task.shared))
            return tried[-1].future.result()

        found, said = _again(self._client, result)
        for message, category, file, line in said:
            warnings.warn_explicit(message, category, file, line, registry=self._warned)
        return found


def _again(client: "Client", step: Callable[[], T]) -> T:
    """Return the result of a step that is repeated while workers go away under it."""
    distributed = dask()
    lost = (distributed.client.FutureCancelledError, distributed.client.FuturesCancelledError)
    for attempt in range(ATTEMPTS):
        try:
            return step()
        except distributed.scheduler.KilledWorker as reason:
            raise PQNetError(
                f"client: expected workers that survive a task, but {reason.allowed_failures + 1} of them died in the "
                "same one; most likely memory: give each worker more, or run fewer on a machine"
            ) from None
        except (*lost, distributed.comm.CommClosedError) as reason:
            if client.status != "running":
                raise PQNetError(f"client: the connection to the scheduler was lost: {reason}") from None
            time.sleep(0.05 * 2**attempt)
    raise PQNetError(f"client: expected workers that stay, but {ATTEMPTS} times what one had been sent was lost")


def _call(function: Callable[..., T], item: Any, *shared: Any) -> T:
    with blas_limit(1):
        return function(item, *shared)


def _call_recorded(function: Callable[..., T], *values: Any) -> tuple[T, list[_Warning]]:
    """Return what a function returns, and what warnings it raised."""
    with _RECORDER.recorded() as said:
        return _call(function, *values), said


class _Recorder:
    """Warnings of this process, where several tasks may be at work at once.

    Each belongs to the task that ends first: threads that help a task cannot be told apart, and all tasks go to who
    asked for them.
    """

    def __init__(self) -> None:
        self.lock, self.tasks = threading.Lock(), 0
        self.said: list[warnings.WarningMessage] = []

    @contextmanager
    def recorded(self) -> Iterator[list[_Warning]]:
        """Give a list that holds the warnings when the block has ended."""
        found: list[_Warning] = []
        with self.lock:
            self.tasks += 1
            if self.tasks == 1:
                self.catching = warnings.catch_warnings(record=True)
                said = self.catching.__enter__()
                assert said is not None
                self.said = said
                warnings.simplefilter("always")  # filters are those of the client
        try:
            yield found
        finally:
            with self.lock:
                found += [(str(each.message), each.category, each.filename, each.lineno) for each in self.said]
                self.said.clear()
                self.tasks -= 1
                if self.tasks == 0:
                    self.catching.__exit__(None, None, None)


_RECORDER = _Recorder()


def _scattered(client: "Client", value: Any, broadcast: bool = False) -> "Future":
    [future] = client.scatter([value], broadcast=broadcast, hash=False)  # a dict alone would become many
    return future


# -- workers -----------------------------------------------------------------------------------------------------


def _software() -> tuple[str, str, str]:
    import pqnet

    return pqnet.__version__, np.__version__, f"{cpu.NAME} {cpu.ISA}"


def _check_workers(client: "Client") -> None:
    """Raise unless there is a worker, and all have this version of pqnet; warn where bytes may differ."""
    distributed = dask()
    try:
        client.wait_for_workers(1, timeout=SECONDS)
    except (TimeoutError, distributed.TimeoutError):
        where = client.scheduler.address if client.scheduler else "the scheduler"
        raise PQNetError(
            f"client: expected workers, got none within {SECONDS:g} s; start some, on each machine: "
            f"dask worker {where} --nworkers CORES --nthreads 1"
        ) from None
    ours = _software()
    for address, theirs in client.run(_software, on_error="return").items():
        if isinstance(theirs, ModuleNotFoundError):
            raise PQNetError(f"client: expected pqnet on every worker, got none on {address}; install it there")
        if not isinstance(theirs, tuple):
            continue  # it died just now
        if theirs[0] != ours[0]:
            raise PQNetError(f"client: expected pqnet {ours[0]} on every worker, got {theirs[0]} on {address}")
        if theirs[1:] != ours[1:]:
            got = f"NumPy {theirs[1]} on {theirs[2]}, here NumPy {ours[1]} on {ours[2]}"
            warnings.warn(f"client: worker {address} has {got}: last digits of results may differ", stacklevel=5)


@contextmanager
def connected(scheduler: str | None, workers: int | None) -> "Iterator[Client | None]":
    """Connect to a scheduler, or start workers on this machine for as long as the block lasts; None without either.

    Parameters
    ----------
    scheduler : str, optional
        Address such as ``tcp://10.0.0.1:8786``.
    workers : int, optional
        Processes to start here, each for one task at a time, to which the cores are shared out.
    """
    if scheduler is not None and workers is not None:
        raise PQNetError("expected --scheduler or --workers, got both")
    if scheduler is None and workers is None:
        yield None
        return
    distributed = dask()
    if workers is not None:
        options: dict[str, Any] = {
            "dashboard_address": "127.0.0.1:0",
            "memory_limit": 0,
            "silence_logs": logging.CRITICAL,
        }
        options["preload"] = [UNINTERRUPTED]
        options["env"] = {"PQNET_NUM_THREADS": str(max(1, default_threads() // workers))}
        with (
            distributed.LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, **options) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client
        return
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # errors are said once, by exceptions
    try:
        client = distributed.Client(scheduler, timeout=SECONDS)
    except (OSError, ValueError, TimeoutError) as reason:
        raise PQNetError(
            f"--scheduler: expected a Dask scheduler at {scheduler}, got no answer within {SECONDS:g} s ({reason}); "
            "start one by: dask scheduler"
        ) from None
    with client:
        yield client


# -- Dask arrays -------------------------------------------------------------------------------------------------


def dask_blocks(
    function: Callable[[Mapping[str, np.ndarray], Any], Mapping[str, np.ndarray]],
    arrays: Mapping[str, Any],
    outputs: Callable[[Mapping[str, tuple[int, ...]]], Mapping[str, tuple[tuple[int, ...], str]]],
    shared: Any,
    client: "Client | None",
) -> dict[str, Any]:
    """Return Dask arrays of what a function makes of the blocks of others, which are cut along axis 0 only.

    Parameters
    ----------
    function : callable
        Given the blocks by name and ``shared``, returns arrays by name.
    arrays : dict of str to dask.array.Array
    outputs : callable
        Given the shapes of blocks, returns shapes and dtypes of what the function returns.
    shared : object
        Sent to workers once.
    client : distributed.Client or None
    """
    array, first = dask("dask.array"), next(iter(arrays.values()))
    if any(np.isnan(size) for size in first.chunks[0]):
        raise PQNetError("inputs: expected a Dask array of known sizes, got unknown ones; call compute_chunk_sizes()")
    arrays = {n: a.rechunk({0: first.chunks[0], **dict.fromkeys(range(1, a.ndim), -1)}) for n, a in arrays.items()}
    from dask import delayed

    Tasks(client)
    held = delayed(shared, traverse=False) if client is None else _scattered(client, shared, broadcast=True)
    whole = delayed(_call, pure=False)
    blocks: dict[str, list[Any]] = {}
    for i, rows in enumerate(first.chunks[0]):
        block = {n: a.blocks[(i,) + (0,) * (a.ndim - 1)] for n, a in arrays.items()}
        found = whole(function, block, held)
        for name, (shape, dtype) in outputs({n: (rows, *a.shape[1:]) for n, a in arrays.items()}).items():
            blocks.setdefault(name, []).append(array.from_delayed(found[name], shape, dtype))
    return {name: array.concatenate(parts) for name, parts in blocks.items()}
