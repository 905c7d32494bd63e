"""A graph at known sizes as a program: compiled once for each input shape, then run without planning anything."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from pqnet.graph import Graph
from pqnet.graph.op import Info
from pqnet.kernels.program import COMPILED, FIRST, SCRATCH, STATE_WORDS, TICKET, kernel_address, run_steps
from pqnet.runtime import lower as lower
from pqnet.runtime.builder import LOWERINGS, Builder, Choose, HostStep, Step, Store, Upload, aligned
from pqnet.runtime.execute import dense_param, evaluate_node, node_params
from pqnet.runtime.threads import thread_pool
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


class Job:
    """Steps first .. last of a segment in one workspace, as `kernels.program` takes them."""

    def __init__(self, plan: "Plan", segment: Kernels, space: Workspace, threads: int, first: int, last: int) -> None:
        self.first, self.last, self.threads, self.arena = first, last, threads, space.arena
        self.extra = min(threads, int(segment.tasks[first:last].max())) - 1
        shared = segment.kernels, segment.tasks, segment.geometry
        arrays = space.arena, plan.const, plan.codes, plan.index
        self.arguments = (*shared, last, *arrays, space.scratch[0])
        if not COMPILED:
            return
        self.scratch = space.scratch[:threads]
        self.words = np.zeros(SCRATCH + threads, np.int64)
        self.words[FIRST : FIRST + 4] = first, last, len(segment.steps), self.words.ctypes.data
        self.words[FIRST + 4 : FIRST + 8] = *(a.ctypes.data for a in shared), FIELDS
        self.words[FIRST + 8 : FIRST + 16] = [word for a in arrays for word in (a.ctypes.data, a.size)]
        self.words[SCRATCH - 1 :] = space.scratch[0].size, *(a.ctypes.data for a in self.scratch)

    def run(self) -> bool:
        """Run the steps; tell whether the job may be used again."""
        if not COMPILED:
            state = np.zeros(STATE_WORDS, np.int64)
            state[TICKET] = self.first << 32
            run_steps(*self.arguments, state)
            return True
        return thread_pool().run(self.words, self.extra, self)


class Bound:
    """A plan in one workspace: where its inputs and outputs are there, and its jobs."""

    def __init__(self, plan: "Plan", space: Workspace, threads: int) -> None:
        self.arena, self.threads = space.arena, threads
        self.jobs: dict[tuple[Kernels, int, int], Job] = {}
        self.uploads = {s.value: space.array(s.view) for s in plan.segments if isinstance(s, Upload)}
        self.outputs = [
            (name, value, None if (view := plan.outputs[value]) is None else space.array(view))
            for name, value in plan.graph.outputs.items()
        ]


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
        self._bound: dict[Workspace, Bound] = {}
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
        bound = self._bind(space, threads)
        host: dict[str, np.ndarray] = {**self.known, **inputs}
        for segment, done in zip(self.segments, self.last_use, strict=True):
            self._run_segment(segment, host, space, bound)
            for value in done:
                host.pop(value, None)
        return {
            name: np.array(host[value], order="C") if array is None else array.copy()
            for name, value, array in bound.outputs
        }

    def _bind(self, space: Workspace, threads: int) -> Bound:
        """Return the plan's arrays and jobs in a workspace, which is used by one run at a time."""
        bound = self._bound.get(space)
        space.fit(self.floats, self.scratch, threads)
        if bound is None or bound.arena is not space.arena or bound.threads != threads:
            bound = self._bound[space] = Bound(self, space, threads)
        return bound

    def _run_segment(
        self, segment: Kernels | HostStep | Upload, host: dict[str, np.ndarray], space: Workspace, bound: Bound
    ) -> None:
        if isinstance(segment, Kernels):
            self._run_kernels(segment, space, bound, 0, len(segment.steps))
        elif isinstance(segment, Upload):
            np.copyto(bound.uploads[segment.value], host[segment.value])
        else:
            node = segment.node
            arrays = [space.array(self.views[v]) if v in self.views and v not in host else host[v] for v in node.inputs]
            results = evaluate_node(node, arrays, node_params(self.graph, node), self.symbols)
            for value, result in zip(node.outputs, results, strict=True):
                # A result may be a view of the arena, whose memory other values will use.
                host[value] = result.copy() if np.may_share_memory(result, space.arena) else result

    def run_kernels(self, segment: Kernels, space: Workspace, threads: int, first: int, last: int) -> None:
        """Run kernel steps first .. last of a segment on up to ``threads`` threads, this one included."""
        self._run_kernels(segment, space, self._bind(space, threads), first, last)

    def _run_kernels(self, segment: Kernels, space: Workspace, bound: Bound, first: int, last: int) -> None:
        key = segment, first, last
        job = bound.jobs.get(key)
        if job is None:
            job = bound.jobs[key] = Job(self, segment, space, bound.threads, first, last)
        if not job.run():
            del bound.jobs[key]

    def profile(self, inputs: Mapping[str, np.ndarray], space: Workspace, threads: int, runs: int) -> list[StepTime]:
        """Return the median seconds of every step alone, in the order of execution."""
        bound = self._bind(space, threads)
        host = {**self.known, **inputs}
        times = []
        for segment in self.segments:
            if isinstance(segment, Kernels):
                for i, step in enumerate(segment.steps):
                    seconds = _median(lambda s=segment, i=i: self._run_kernels(s, space, bound, i, i + 1), runs)  # type: ignore[misc]
                    times.append(StepTime(step.label, step.way, seconds, step.nbytes))
                continue
            label = segment.value if isinstance(segment, Upload) else segment.label
            way = "upload" if isinstance(segment, Upload) else "numpy"
            seconds = _median(lambda s=segment: self._run_segment(s, host, space, bound), runs)  # type: ignore[misc]
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
