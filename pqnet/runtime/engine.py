"""Programs by input shape, and the memory that their runs share."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import numpy as np

from pqnet._threads import blas_limit
from pqnet.graph import Graph
from pqnet.runtime.builder import Store
from pqnet.runtime.plan import Plan, StepTime, Workspace
from pqnet.runtime.tuning import Tuner

__all__ = ["Engine"]

_TUNER = Tuner()
PLANS = 16  # input shapes whose programs are kept


class Engine:
    """Runs a graph whose float parameters are float32; safe to call from any number of threads.

    Parameters
    ----------
    graph : Graph
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._store = Store()
        self._lock = threading.Lock()
        self._plans: OrderedDict[tuple[tuple[str, int], ...], Plan] = OrderedDict()
        self._spaces: list[Workspace] = []

    def plan(self, symbols: Mapping[str, int]) -> Plan:
        """Return the program for these sizes of the free axes."""
        key = tuple(sorted(symbols.items()))
        with self._lock:
            if key not in self._plans:
                self._plans[key] = Plan(self.graph, symbols, self._store, _TUNER)
                if len(self._plans) > PLANS:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(key)
            return self._plans[key]

    def run(self, arrays: Mapping[str, np.ndarray], threads: int) -> dict[str, np.ndarray]:
        """Compute the outputs for checked inputs; new arrays."""
        plan = self._plan_for(arrays)
        # What NumPy computes may not depend on the number of threads.
        with self._space() as space, blas_limit(1) if plan.uses_blas else nullcontext():
            return plan.run(arrays, space, threads)

    def profile(self, arrays: Mapping[str, np.ndarray], threads: int, runs: int) -> list[StepTime]:
        """Return the median seconds of every step alone, in the order of execution."""
        with self._space() as space:
            return self._plan_for(arrays).profile(arrays, space, threads, runs)

    def _plan_for(self, arrays: Mapping[str, np.ndarray]) -> Plan:
        return self.plan(self.graph.bind_symbols({name: array.shape for name, array in arrays.items()}))

    @contextmanager
    def _space(self) -> Iterator[Workspace]:
        with self._lock:
            space = self._spaces.pop() if self._spaces else Workspace()
        try:
            yield space
        finally:
            with self._lock:
                self._spaces.append(space)
