"""Programs by input shape, and the memory that their runs share."""

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pqnet._threads import blas_limit, reset_after_fork
from pqnet.codecs import Packed
from pqnet.graph import Graph
from pqnet.graph.passes import merge_batch_norm
from pqnet.runtime.builder import Choose
from pqnet.runtime.execute import dense_param
from pqnet.runtime.memory import Store, Workspace
from pqnet.runtime.program import Program, StepTime
from pqnet.runtime.tune import Tuner

__all__ = ["Engine"]

_TUNER = Tuner()
PROGRAMS, PROGRAM_BYTES = 96, 32 << 20  # that are kept, the last used ones
RECENT = 32  # runs whose needs decide how large a workspace may stay
SMALL_WORKSPACE = 16 << 20  # bytes that a workspace may keep in any case

Shapes = tuple[tuple[int, ...], ...]


class _Pending:
    """A program that a thread is making, for the others that need it."""

    def __init__(self) -> None:
        self.made = threading.Event()
        self.program: Program | None = None
        self.reason: BaseException | None = None  # why there is none

    def wait(self) -> Program:
        """Return the program once it is made, or raise what its maker raised."""
        self.made.wait()
        if self.program is None:
            assert self.reason is not None
            raise self.reason
        return self.program


def prepared(graph: Graph) -> Graph:
    """Return a checked graph as engines run it: batch norms in the float weights before them, floats as float32."""
    merged = merge_batch_norm(graph)
    params = {name: p if isinstance(p, Packed) else dense_param(p) for name, p in merged.params.items()}
    return replace(merged, params=params)


class Engine:
    """Runs a graph whose float parameters are float32; safe to call from any number of threads.

    Parameters
    ----------
    graph : Graph
    choose : callable
        Says which algorithm runs a layer; by default the fastest, by measurement where the cost rule is not sure.
    compute : str
        Arithmetic of the layers, see `Model`.
    """

    def __init__(self, graph: Graph, choose: Choose = _TUNER, compute: str = "float32") -> None:
        self.graph, self.choose, self.compute = graph, choose, compute
        self._store = Store()
        self._programs: OrderedDict[Shapes, Program | _Pending] = OrderedDict()
        self._spaces: list[Workspace] = []  # append and pop are atomic
        self._needs: deque[int] = deque(maxlen=RECENT)
        self._renew()
        reset_after_fork(self._renew)

    def _renew(self) -> None:
        """Begin without locks and without programs that threads of a parent process are making."""
        self._lock = threading.Lock()  # held for moments only, never while a program is made or run
        made = [(shapes, found) for shapes, found in list(self._programs.items()) if isinstance(found, Program)]
        self._programs = OrderedDict(made)

    def run(self, arrays: Mapping[str, np.ndarray], threads: int) -> dict[str, np.ndarray]:
        """Compute the outputs for checked inputs; new arrays."""
        program = self.program(arrays)
        space = self._take_space()
        try:
            if not program.uses_blas:
                return program.run(arrays, space, threads)
            with blas_limit(1):  # what NumPy computes may not depend on the number of threads
                return program.run(arrays, space, threads)
        finally:
            self._give_back(space)

    def profile(self, arrays: Mapping[str, np.ndarray], threads: int, runs: int) -> list[StepTime]:
        """Return the median seconds of every step alone, in the order of execution."""
        program = self.program(arrays)
        space = self._take_space()
        try:
            program.run(arrays, space, threads)
            return program.profile(arrays, space, threads, runs)
        finally:
            self._give_back(space)

    def program(self, arrays: Mapping[str, np.ndarray]) -> Program:
        """Return the program for inputs of these shapes; whoever asks first makes it, others wait for it."""
        shapes = tuple([array.shape for array in arrays.values()])  # in the order of the graph's inputs
        with self._lock:
            found = self._programs.get(shapes)
            if isinstance(found, Program):
                self._programs.move_to_end(shapes)
                return found
            mine = None if found else _Pending()
            if mine:
                self._programs[shapes] = mine
        if mine:
            return self._make(shapes, mine, arrays)
        assert found is not None
        return found.wait()

    def _make(self, shapes: Shapes, pending: _Pending, arrays: Mapping[str, np.ndarray]) -> Program:
        try:
            symbols = self.graph.bind_symbols({name: array.shape for name, array in arrays.items()})
            program = Program(self.graph, symbols, self._store, self.choose, self.compute)
            with self._lock:
                self._programs[shapes] = pending.program = program
                self._drop_programs()
        except BaseException as reason:  # an interrupt, too, must leave nobody waiting
            pending.reason = reason
            if pending.program is None:
                self._programs.pop(shapes, None)
            raise
        finally:
            pending.made.set()
        return program

    def _drop_programs(self) -> None:
        """Forget the programs that were not used for the longest time until the others fit."""
        made = [(shapes, found.nbytes) for shapes, found in self._programs.items() if isinstance(found, Program)]
        total = sum(nbytes for _, nbytes in made)
        for shapes, nbytes in made[:-1]:
            if len(self._programs) <= PROGRAMS and total <= PROGRAM_BYTES:
                return
            del self._programs[shapes]
            total -= nbytes

    def _take_space(self) -> Workspace:
        try:
            return self._spaces.pop()
        except IndexError:
            return Workspace()

    def _give_back(self, space: Workspace) -> None:
        """Keep a workspace for the next run, unless it is much larger than what the last runs needed."""
        self._needs.append(space.used)
        if space.nbytes <= max(SMALL_WORKSPACE, 2 * max(self._needs)):
            self._spaces.append(space)
