"""A graph at known sizes as a program: compiled once for each input shape, then run without planning anything."""

import os
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from pqnet.graph import Graph
from pqnet.graph.heads import share_heads
from pqnet.graph.op import Info, get_op
from pqnet.kernels import driver
from pqnet.kernels.abi import StepKernel
from pqnet.kernels.llvm import COMPILED
from pqnet.runtime import lower as lower
from pqnet.runtime.builder import LOWERINGS, TYPED, Builder, Choose, HostStep, Step, Upload
from pqnet.runtime.checks import check_step
from pqnet.runtime.execute import dense_param, evaluate_node, node_params
from pqnet.runtime.memory import SLACK, Piece, Store, View, Workspace, place_buffers
from pqnet.runtime.threads import thread_pool
from pqnet.runtime.tune import rule

__all__ = ["Program", "Segment", "StepTime"]


class StepTime(NamedTuple):
    """How long a step takes, all its rounds: what it computes, by which algorithm, the bytes it moves (0: unknown)."""

    label: str
    algorithm: str
    seconds: float
    nbytes: int


class StepInfo(NamedTuple):
    """What is known of a kernel step when it runs."""

    kernel: StepKernel
    label: str
    algorithm: str
    tasks: int
    nbytes: int
    scratch: int
    at: int  # number of its first round among the steps of the driver
    times: int


class Segment:
    """Consecutive kernel steps in the form of the driver, which knows no rounds: it has a step for each.

    All rounds of a step share one record of arguments.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        order, rounds = _unroll(steps)
        self.size = len(order)  # steps of the driver
        first = np.zeros(len(steps), np.int64)
        first[order[::-1]] = np.arange(self.size)[::-1]
        self.steps = [
            StepInfo(s.kernel, s.label, s.algorithm, s.tasks, s.nbytes, s.scratch, int(at), _times(s))
            for s, at in zip(steps, first, strict=True)
        ]
        values = [_words(step) for step in steps]
        ends = np.cumsum([0, *map(len, values)])
        self._words = np.array([v for each in values for v in each], np.int64)
        addresses: list[Any] = [step.kernel.address() for step in steps]
        if COMPILED:
            self.kernels: Any = np.array(addresses, np.int64)[order]
            self.records: Any = (self._words.ctypes.data + 8 * ends[:-1])[order]
        else:
            records = [self.record(i, *ends[i : i + 2]) for i in range(len(steps))]
            self.kernels, self.records = [addresses[i] for i in order], [records[i] for i in order]
        self.checks = [step.check for step in steps if step.check]
        self.tasks = np.array([step.tasks for step in steps], np.int64)[order]
        numbered = np.array([step.numbered for step in steps])[order]
        self.numbers = np.where(numbered, rounds * self.tasks, 0)

    def record(self, i: int, first: int, last: int) -> Any:
        """Return the arguments of step ``i``, words ``first`` .. ``last``, for a kernel that is not compiled."""
        return self._words[first:last].view(np.dtype((np.record, self.steps[i].kernel.arguments.dtype)))[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the arguments, and of what the driver knows of each step."""
        return int(self._words.nbytes + 4 * self.tasks.nbytes)


def _times(step: Step) -> int:
    return step.rounds.times if step.rounds else 1


def _unroll(steps: Sequence[Step]) -> tuple[np.ndarray, np.ndarray]:
    """Return for each step of the driver which of the steps it is, and in which round."""
    if not any(step.rounds for step in steps):
        return np.arange(len(steps)), np.zeros(len(steps), np.int64)
    order, rounds, done = [], [], 0
    for _, each in groupby(steps, lambda step: step.rounds or step):
        group = list(each)
        order.append(np.tile(np.arange(done, done + len(group)), _times(group[0])))
        rounds.append(np.repeat(np.arange(_times(group[0])), len(group)))
        done += len(group)
    return np.concatenate(order), np.concatenate(rounds)


def _words(step: Step) -> list[int]:
    """Return the arguments of a step, its views as positions in the arena."""
    values = step.kernel.arguments.values(step.arguments)
    return [value.position if isinstance(value, View) else value for value in values]


class Everything:
    """All pieces of a program as one array that begins at address 0, for kernels that are not compiled."""

    def __init__(self, pieces: Sequence[Piece], dtype: type[np.generic]) -> None:
        self.pieces = sorted((p for p in pieces if p.array.dtype == dtype), key=lambda p: p.position)
        self.starts = [piece.position for piece in self.pieces]

    def __getitem__(self, at: Any) -> Any:
        first = at.start if isinstance(at, slice) else at
        piece = self.pieces[bisect_right(self.starts, first) - 1]
        if isinstance(at, slice):
            stop = None if at.stop is None else at.stop - piece.position
            return piece.array[first - piece.position : stop : at.step]
        return piece.array[at - piece.position]


class Job:
    """Steps first .. last of a segment in one workspace, as `kernels.driver` takes them."""

    def __init__(
        self, program: "Program", segment: Segment, space: Workspace, threads: int, first: int, last: int
    ) -> None:
        self.first, self.program, self.segment, self.arena = first, program, segment, space.arena
        self.extra = min(threads, int(segment.tasks[first:last].max())) - 1
        data, index = space.arena.view(np.float32), program.index
        if not COMPILED:
            pieces = list(program.pieces)
            const, codes = Everything(pieces, np.float32), Everything(pieces, np.uint8)
            steps = segment.kernels, segment.tasks, segment.numbers, segment.records, last
            self.arguments = (*steps, data, const, codes, index, space.scratch[0])
            return
        self.scratch = space.scratch[:threads]
        words = np.zeros(driver.SCRATCH + threads, np.int64)
        words[driver.FIRST], words[driver.LAST], words[driver.STEPS] = first, last, segment.size
        words[driver.SELF] = words.ctypes.data
        for word, array in (
            (driver.KERNELS, segment.kernels),
            (driver.TASKS, segment.tasks),
            (driver.NUMBERS, segment.numbers),
            (driver.RECORDS, segment.records),
        ):
            words[word] = array.ctypes.data
        words[driver.DATA], words[driver.DATA_SIZE] = data.ctypes.data, data.size
        words[driver.INDEX_AT], words[driver.INDEX_SIZE] = index.ctypes.data, index.size
        words[driver.SCRATCH_SIZE] = space.scratch[0].size
        words[driver.SCRATCH :] = [s.ctypes.data for s in self.scratch]
        self.words = words

    def run(self) -> bool:
        """Run the steps; tell whether the job may be used again."""
        if not COMPILED:
            state = np.zeros(driver.STATE_WORDS, np.int64)
            state[driver.TICKET] = self.first << driver.STEP
            driver.run_steps(*self.arguments, state, False)
            return True
        return thread_pool().run(self.words, self.extra, self)


class Bound:
    """A program in one workspace: where its inputs and outputs are there, and its jobs."""

    def __init__(self, program: "Program", space: Workspace, threads: int) -> None:
        self.arena, self.threads = space.arena, threads
        self.jobs: dict[tuple[Segment, int, int], Job] = {}
        self.uploads = {s.value: space.array(s.view) for s in program.segments if isinstance(s, Upload)}
        self.outputs = [
            (name, value, None if (view := program.outputs[value]) is None else space.array(view))
            for name, value in program.graph.outputs.items()
        ]


class Program:
    """The program of a graph for one set of input sizes.

    Parameters
    ----------
    graph : Graph
        Checked; its float parameters are float32.
    symbols : dict of str to int
        Sizes of the free axes.
    store : Store
        Parameters as kernels read them, shared by the programs of a model.
    choose : callable
        Picks the algorithm for a layer, see `runtime.tune`.
    compute : {"float32"}
        Arithmetic of the layers.

    With ``PQNET_CHECK=1`` every argument of every step is compared with the arrays that it points into, and every run
    begins in memory full of NaN.
    """

    def __init__(
        self, graph: Graph, symbols: Mapping[str, int], store: Store, choose: Choose = rule, compute: str = "float32"
    ) -> None:
        self.graph, self.symbols = share_heads(graph, symbols), dict(symbols)
        b = Builder(self.graph, symbols, store, choose, compute)
        for node in self.graph.nodes:
            if not b.is_done(node):
                _lower(b, node)
        self.outputs = {value: b.place(value) for value in graph.outputs.values()}
        for view in self.outputs.values():
            if view is not None:
                view.buffer.last = len(b.steps)
        for step in b.steps:
            if isinstance(step, Step) and step.check:
                step.check.view.buffer.last = len(b.steps)
        _arrange_uploads(b)
        on_host = [s.node for s in b.steps if isinstance(s, HostStep)]
        self.views = {v: view for node in on_host for v in node.inputs if (view := b.place(v)) is not None}
        self.known, self.pieces, self.buffers = b.known, tuple(b.pieces.values()), b.buffers
        self.arena = place_buffers(b.buffers)
        self.scratch = max((s.scratch for s in b.steps if isinstance(s, Step)), default=0) + SLACK
        self.index = b.index.array()
        self.checked = os.environ.get("PQNET_CHECK") == "1"
        for step in b.steps:
            if self.checked and isinstance(step, Step):
                check_step(step, self.arena, self.pieces, self.index, self.scratch)
        self.segments: list[Segment | HostStep | Upload] = []
        for compiled, steps in groupby(b.steps, lambda s: isinstance(s, Step)):
            batch = list(steps)
            self.segments += [Segment([s for s in batch if isinstance(s, Step)])] if compiled else batch  # type: ignore[arg-type]
        self.last_use = self._last_uses()
        self._bound: WeakKeyDictionary[Workspace, Bound] = WeakKeyDictionary()
        self.uses_blas = any(_uses_blas(node.op) for node in on_host)

    @property
    def nbytes(self) -> int:
        """Bytes that the program takes beside the parameters and the workspaces that it shares with others."""
        segments = sum(s.nbytes for s in self.segments if isinstance(s, Segment))
        return self.index.nbytes + segments + sum(a.nbytes for a in self.known.values())

    def _last_uses(self) -> list[list[str]]:
        """Return for each segment the host values that nothing needs after it."""
        last: dict[str, int] = {}
        for i, segment in enumerate(self.segments):
            if isinstance(segment, HostStep):
                last.update(dict.fromkeys((*segment.node.inputs, *segment.node.outputs), i))
            elif isinstance(segment, Upload):
                last[segment.value] = i
        free: list[list[str]] = [[] for _ in self.segments]
        returned = set(self.graph.outputs.values())
        for value, i in last.items():
            if value not in returned:
                free[i].append(value)
        return free

    def run(self, inputs: Mapping[str, np.ndarray], space: Workspace, threads: int) -> dict[str, np.ndarray]:
        """Compute the outputs for checked inputs; new arrays."""
        bound = self._bind(space, threads)
        if self.checked:
            space.spoil()
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
        """Return the program's arrays and jobs in a workspace, which is used by one run at a time."""
        bound = self._bound.get(space)
        space.fit(self.arena, self.scratch, threads)
        if bound is None or bound.arena is not space.arena or bound.threads != threads:
            bound = self._bound[space] = Bound(self, space, threads)
        return bound

    def _run_segment(
        self, segment: Segment | HostStep | Upload, host: dict[str, np.ndarray], space: Workspace, bound: Bound
    ) -> None:
        if isinstance(segment, Segment):
            self._run_kernels(segment, space, bound, 0, segment.size)
            for check in segment.checks:
                check.verify(space.array(check.view))
        elif isinstance(segment, Upload):
            np.copyto(bound.uploads[segment.value], host[segment.value])
        else:
            node = segment.node
            arrays = [space.array(self.views[v]) if v in self.views and v not in host else host[v] for v in node.inputs]
            results = evaluate_node(node, arrays, node_params(self.graph, node), self.symbols)
            for value, result in zip(node.outputs, results, strict=True):
                # A result may be a view of the arena, whose memory other values will use.
                host[value] = result.copy() if np.may_share_memory(result, space.arena) else result

    def run_kernels(self, segment: Segment, space: Workspace, threads: int, first: int, last: int) -> None:
        """Run kernel steps first .. last of a segment on up to ``threads`` threads, this one included."""
        self._run_kernels(segment, space, self._bind(space, threads), first, last)

    def _run_kernels(self, segment: Segment, space: Workspace, bound: Bound, first: int, last: int) -> None:
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
            if isinstance(segment, Segment):
                for step in segment.steps:
                    seconds = _median(lambda s=segment, i=step.at: self._run_kernels(s, space, bound, i, i + 1), runs)  # type: ignore[misc]
                    times.append(StepTime(step.label, step.algorithm, step.times * seconds, step.times * step.nbytes))
                continue
            label = segment.value if isinstance(segment, Upload) else segment.label
            algorithm = "upload" if isinstance(segment, Upload) else "numpy"
            seconds = _median(lambda s=segment: self._run_segment(s, host, space, bound), runs)  # type: ignore[misc]
            times.append(StepTime(label, algorithm, seconds, 0))
        return times

    def kernel_steps(self) -> Iterator[tuple[Segment, int, StepInfo]]:
        """Yield every kernel step with its segment and place there."""
        for segment in self.segments:
            if isinstance(segment, Segment):
                yield from ((segment, step.at, step) for step in segment.steps)


def _arrange_uploads(b: Builder) -> None:
    """Drop the uploads that no step reads, and move those of inputs to the start: others would divide segments."""
    read = {id(view.buffer) for s in b.steps if isinstance(s, Step) for view in s.reads}
    uploaded = {s.value for s in b.steps if isinstance(s, Upload)}  # NumPy has these itself, but not views of them
    by_numpy = [v for s in b.steps if isinstance(s, HostStep) for v in s.node.inputs if v not in uploaded]
    read |= {id(view.buffer) for v in (*b.graph.outputs.values(), *by_numpy) if (view := b.place(v)) is not None}
    uploads = [s for s in b.steps if isinstance(s, Upload)]
    unread = {id(s.view.buffer) for s in uploads if read.isdisjoint(id(each) for each, _ in s.view.buffer.within)}
    early = [s for s in uploads if s.value in b.graph.inputs and id(s.view.buffer) not in unread]
    for upload in early:
        upload.view.buffer.first = 0
    others = [s for s in b.steps if not isinstance(s, Upload) or (s not in early and id(s.view.buffer) not in unread)]
    b.steps, b.buffers = [*early, *others], [buffer for buffer in b.buffers if id(buffer) not in unread]


def _uses_blas(op: str) -> bool:
    """Tell whether NumPy computes an operation by BLAS, whose bits may depend on its number of threads."""
    weight = get_op(op).weight
    return op in ("attention", "matmul") or (weight is not None and not weight.looked_up)


def _median(run: Callable[[], None], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _lower(b: Builder, node: Any) -> None:
    if all(v in b.known for v in node.inputs):
        params = {r: dense_param(b.graph.params[n]) for r, n in node.params.items()}
        results = evaluate_node(node, [b.known[v] for v in node.inputs], params, b.symbols)
        b.known.update(zip(node.outputs, results, strict=True))
        b.forget(node)
        return
    infos: list[Info] = [b.info(v) for v in (*node.inputs, *node.outputs)]
    floats, empty = all(i.dtype == "float32" for i in infos), any(0 in i.shape for i in infos)
    for lowering in (LOWERINGS.get(node.op) if floats else None, TYPED.get(node.op)):
        if lowering is None or empty:
            continue
        views = lowering.emit(b, node, [b.view(v) for v in node.inputs])
        if views is not None:
            b.finish(node, *(views if isinstance(views, tuple) else (views,)))
            return
    b.finish_on_host(node)
