"""A graph at known sizes as a program: compiled once for each input shape, then run without planning anything."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from pqnet._threads import helpers
from pqnet.graph import Graph
from pqnet.graph.op import Info
from pqnet.kernels.program import DONE, STATE_WORDS, TICKET, kernel_address, run_steps
from pqnet.runtime import lower as lower
from pqnet.runtime.builder import LOWERINGS, Builder, Choose, HostStep, Step, Store, Upload, aligned
from pqnet.runtime.execute import dense_param, evaluate_node, node_params
from pqnet.runtime.tuning import rule
from pqnet.runtime.views import SLACK, View, place_buffers

__all__ = ["Kernels", "Plan", "StepTime", "Workspace"]

BLAS_OPS = ("attention", "conv2d", "conv_transpose2d", "linear", "matmul")
VIEWS = 1024  # NumPy views of the arena that a workspace keeps
FIELDS = 48  # of a step's geometry


class Workspace:
    """The memory of one run at a time: the arena, and each thread's scratch."""

    def __init__(self) -> None:
        self.arena = aligned(SLACK, np.float32)
        self.scratch: list[np.ndarray] = []
        self._arrays: dict[View, np.ndarray] = {}

    def fit(self, floats: int, scratch: int, threads: int) -> None:
        """Make room for a plan; memory only grows."""
        if self.arena.size < floats + SLACK:
            self.arena = aligned(floats + SLACK, np.float32)
            self._arrays.clear()
        if len(self.scratch) < threads or self.scratch[0].size < scratch:
            self.scratch = [aligned(scratch, np.float32) for _ in range(max(threads, len(self.scratch)))]

    def array(self, view: View) -> np.ndarray:
        """Return a value as a NumPy view of the arena."""
        if view not in self._arrays:
            if len(self._arrays) > VIEWS:
                self._arrays.clear()
            self._arrays[view] = view.array(self.arena)
        return self._arrays[view]


class StepTime(NamedTuple):
    """How long one step takes: what it computes, in which way, and the bytes that it reads and writes (0: unknown)."""

    label: str
    way: str
    seconds: float
    nbytes: int


class Kernels:
    """Consecutive kernel steps in the form of the driver."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps
        addresses: list[Any] = [kernel_address(step.kernel) for step in steps]  # type: ignore[no-untyped-call]
        self.kernels: Any = addresses if callable(addresses[0]) else np.array(addresses, np.int64)
        self.tasks = np.array([step.tasks for step in steps], np.int64)
        self.geometry = np.zeros((len(steps), FIELDS), np.int64)
        for row, step in zip(self.geometry, steps, strict=True):
            row[: len(step.fields)] = [f.buffer.offset + f.offset if isinstance(f, View) else f for f in step.fields]


class Plan:
    """The program of a graph for one set of input sizes.

    Parameters
    ----------
    graph : Graph
        Checked; its float parameters are float32.
    symbols : dict of str to int
        Sizes of the free axes.
    store : Store
        Parameters as kernels read them, shared by the plans of a model.
    choose : callable
        Picks the way to run a layer, see `runtime.tuning`.
    """

    def __init__(self, graph: Graph, symbols: Mapping[str, int], store: Store, choose: Choose = rule) -> None:
        self.graph, self.symbols = graph, dict(symbols)
        b = Builder(graph, symbols, store, choose)
        for node in graph.nodes:
            if not b.is_done(node):
                _lower(b, node)
        self.outputs = {value: b.place(value) for value in graph.outputs.values()}
        for view in self.outputs.values():
            if view is not None:
                view.buffer.last = len(b.steps)
        self.views = {value: view for node in graph.nodes for value in node.outputs if (view := b.place(value))}
        self.known = b.known
        self.floats = place_buffers(b.buffers)
        self.scratch = max((s.scratch for s in b.steps if isinstance(s, Step)), default=0) + SLACK
        self.const, self.codes, self.index = store.const.array(), store.codes.array(), b.index.array()
        self.segments: list[Kernels | HostStep | Upload] = []
        for compiled, steps in groupby(b.steps, lambda s: isinstance(s, Step)):
            batch = list(steps)
            self.segments += [Kernels([s for s in batch if isinstance(s, Step)])] if compiled else batch  # type: ignore[arg-type]
        self.last_use = self._last_uses()
        self.uses_blas = any(isinstance(s, HostStep) and s.node.op in BLAS_OPS for s in self.segments)

    def _last_uses(self) -> list[list[str]]:
        """Return for each segment the host values that nothing needs after it."""
        last: dict[str, int] = {}
        for i, segment in enumerate(self.segments):
            if isinstance(segment, HostStep):
                last.update(dict.fromkeys((*segment.node.inputs, *segment.node.outputs), i))
            elif isinstance(segment, Upload):
                last[segment.value] = i
        free: list[list[str]] = [[] for _ in self.segments]
        for value, i in last.items():
            if value not in self.graph.outputs.values():
                free[i].append(value)
        return free

    def run(self, inputs: Mapping[str, np.ndarray], space: Workspace, threads: int) -> dict[str, np.ndarray]:
        """Compute the outputs for checked inputs; new arrays."""
        space.fit(self.floats, self.scratch, threads)
        host = {**self.known, **inputs}
        for segment, done in zip(self.segments, self.last_use, strict=True):
            self._run_segment(segment, host, space, threads)
            for value in done:
                host.pop(value, None)
        return {name: self._fetch(value, host, space) for name, value in self.graph.outputs.items()}

    def _fetch(self, value: str, host: Mapping[str, np.ndarray], space: Workspace) -> np.ndarray:
        view = self.outputs[value]
        return np.array(host[value] if view is None else space.array(view), order="C")

    def _run_segment(
        self, segment: Kernels | HostStep | Upload, host: dict[str, np.ndarray], space: Workspace, threads: int
    ) -> None:
        if isinstance(segment, Kernels):
            self.run_kernels(segment, space, threads, 0, len(segment.steps))
        elif isinstance(segment, Upload):
            np.copyto(space.array(segment.view), host[segment.value])
        else:
            node = segment.node
            arrays = [space.array(self.views[v]) if v in self.views and v not in host else host[v] for v in node.inputs]
            results = evaluate_node(node, arrays, node_params(self.graph, node), self.symbols)
            for value, result in zip(node.outputs, results, strict=True):
                # A result may be a view of the arena, whose memory other values will use.
                host[value] = result.copy() if np.may_share_memory(result, space.arena) else result

    def run_kernels(self, segment: Kernels, space: Workspace, threads: int, first: int, last: int) -> None:
        """Run kernel steps first .. last of a segment on up to ``threads`` threads, this one included."""
        state = aligned(STATE_WORDS, np.int64)
        state[TICKET], state[DONE] = first << 32, 0
        shared = (
            segment.kernels,
            segment.tasks,
            segment.geometry,
            last,
            space.arena,
            self.const,
            self.codes,
            self.index,
        )
        extra = threads - 1 if segment.tasks[first:last].max() > 1 else 0
        waiting: list[Future[None]] = [
            helpers().submit(partial(run_steps, *shared, space.scratch[i + 1], state)) for i in range(extra)
        ]
        run_steps(*shared, space.scratch[0], state)
        for future in waiting:  # one that comes late finds no task and touches nothing
            future.cancel()

    def profile(self, inputs: Mapping[str, np.ndarray], space: Workspace, threads: int, runs: int) -> list[StepTime]:
        """Return the median seconds of every step alone, in the order of execution."""
        space.fit(self.floats, self.scratch, threads)
        host = {**self.known, **inputs}
        times = []
        for segment in self.segments:
            if isinstance(segment, Kernels):
                for i, step in enumerate(segment.steps):
                    seconds = _median(lambda s=segment, i=i: self.run_kernels(s, space, threads, i, i + 1), runs)  # type: ignore[misc]
                    times.append(StepTime(step.label, step.way, seconds, step.nbytes))
                continue
            label = segment.value if isinstance(segment, Upload) else segment.label
            way = "upload" if isinstance(segment, Upload) else "numpy"
            seconds = _median(lambda s=segment: self._run_segment(s, host, space, threads), runs)  # type: ignore[misc]
            times.append(StepTime(label, way, seconds, 0))
        return times

    def kernel_steps(self) -> Iterator[tuple[Kernels, int, Step]]:
        """Yield every kernel step with its segment and place."""
        for segment in self.segments:
            if isinstance(segment, Kernels):
                yield from ((segment, i, step) for i, step in enumerate(segment.steps))


def _median(run: Callable[[], None], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _lower(b: Builder, node: Any) -> None:
    infos: list[Info] = [b.info(v) for v in (*node.inputs, *node.outputs)]
    if all(v in b.known for v in node.inputs):
        params = {r: dense_param(b.graph.params[n]) for r, n in node.params.items()}
        results = evaluate_node(node, [b.known[v] for v in node.inputs], params, b.symbols)
        b.known.update(zip(node.outputs, results, strict=True))
        b.forget(node)
        return
    way = LOWERINGS.get(node.op)
    if way is not None and all(i.dtype == "float32" and 0 not in i.shape for i in infos):
        views = way(b, node, [b.view(v) for v in node.inputs])
        if views is not None:
            b.finish(node, *(views if isinstance(views, tuple) else (views,)))
            return
    b.finish_on_host(node)
