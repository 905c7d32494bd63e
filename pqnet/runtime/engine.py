"""Programs by input shape, and the memory that their runs share."""

import threading
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from pqnet._threads import blas_limit
from pqnet.graph import Graph
from pqnet.runtime.builder import Choose, Store
from pqnet.runtime.plan import Plan, StepTime, Workspace
from pqnet.runtime.tune import Tuner

__all__ = ["Engine"]

_TUNER = Tuner()
PLANS = 16  # input shapes whose programs are kept


class Engine:
    """Runs a graph whose float parameters are float32; safe to call from any number of threads.

    Parameters
    ----------
    graph : Graph
    choose : callable
        Says which way runs a layer; by default the fastest, by measurement where the cost rule is not sure.
    """

    def __init__(self, graph: Graph, choose: Choose = _TUNER) -> None:
        self.graph, self.choose = graph, choose
        self._store = Store()
        self._lock = threading.Lock()
        self._plans: OrderedDict[tuple[tuple[str, int], ...], Plan] = OrderedDict()
        self._by_shapes: dict[tuple[tuple[int, ...], ...], tuple[tuple[tuple[str, int], ...], Plan]] = {}
        self._spaces: list[Workspace] = []  # append and pop are atomic

    def plan(self, symbols: Mapping[str, int]) -> Plan:
        """Return the program for these sizes of the free axes."""
        key = tuple(sorted(symbols.items()))
        with self._lock:
            if key not in self._plans:
                self._plans[key] = Plan(self.graph, symbols, self._store, self.choose)
                if len(self._plans) > PLANS:
                    self._plans.popitem(last=False)
                    self._by_shapes.clear()
            self._plans.move_to_end(key)
            return self._plans[key]

    def run(self, arrays: Mapping[str, np.ndarray], threads: int) -> dict[str, np.ndarray]:
        """Compute the outputs for checked inputs; new arrays."""
        plan = self._plan_for(arrays)
        space = self._take_space()
        try:
            if not plan.uses_blas:
                return plan.run(arrays, space, threads)
            with blas_limit(1):  # what NumPy computes may not depend on the number of threads
                return plan.run(arrays, space, threads)
        finally:
            self._spaces.append(space)

    def profile(self, arrays: Mapping[str, np.ndarray], threads: int, runs: int) -> list[StepTime]:
        """Return the median seconds of every step alone, in the order of execution."""
        space = self._take_space()
        try:
            return self._plan_for(arrays).profile(arrays, space, threads, runs)
        finally:
            self._spaces.append(space)

    def _plan_for(self, arrays: Mapping[str, np.ndarray]) -> Plan:
        shapes = tuple([array.shape for array in arrays.values()])  # in the order of the graph's inputs
        with self._lock:
            known = self._by_shapes.get(shapes)
            if known is not None:
                self._plans.move_to_end(known[0])
                return known[1]
        symbols = self.graph.bind_symbols({name: array.shape for name, array in arrays.items()})
        plan = self.plan(symbols)
        with self._lock:
            key = tuple(sorted(symbols.items()))
            if self._plans.get(key) is plan:
                self._by_shapes[shapes] = key, plan
        return plan

    def _take_space(self) -> Workspace:
        try:
            return self._spaces.pop()
        except IndexError:
            return Workspace()
