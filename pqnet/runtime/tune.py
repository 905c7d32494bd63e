"""Which algorithm runs a layer fastest: a cost rule, and measurements of this machine where the rule is not sure.

Measurements are kept for the processes that follow, and a process chooses by those that it found when it began. So the
first one goes by the rule alone, as does every one on a machine that keeps nothing: what a network computes, to the
last bit, depends on no measurement that happens to be taken now, nor on how many cores are free for it.
"""

import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pqnet._check import choice, error
from pqnet._threads import default_threads, reset_after_fork
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.graph.ranges import INPUT_RANGES, TOKEN_SCALES
from pqnet.kernels import cache
from pqnet.runtime.builder import Choose
from pqnet.runtime.layer import Layer, near

__all__ = ["Tuner", "fixed", "rule"]

DOUBT = 1.7  # an algorithm is measured if the rule expects it to take at most this many times the least
CLEARLY = 1.05  # and taken if the rule's takes more than this many times its time
SURE = 1.5  # one measurement is enough if it agrees with the rule, and all others take this many times the least
SESSIONS = 3  # otherwise this many processes measure a layer
RUNS = 3  # of each algorithm, in turns
SECONDS = 2.0  # that a process spends on measurements, unless PQNET_TUNE says otherwise
MOST_BYTES = 4 << 20  # of the file; 20,000 layers and shapes


def rule(layer: Layer, compute: str, costs: Mapping[str, float]) -> str:
    """Return the algorithm that the cost rule expects to be fastest."""
    return min(costs, key=lambda name: costs[name])


def fixed(algorithm: str) -> Choose:
    """Return a choice of this algorithm wherever it is possible, of the rule's elsewhere."""

    def choose(layer: Layer, compute: str, costs: Mapping[str, float]) -> str:
        return algorithm if algorithm in costs else rule(layer, compute, costs)

    return choose


@dataclass
class Measured:
    """The least seconds that each algorithm took for a layer, of how many sessions: what disturbs only adds to them."""

    seconds: dict[str, float] = field(default_factory=dict)
    sessions: Counter[str] = field(default_factory=Counter)

    def add(self, seconds: Mapping[str, float]) -> None:
        """Take a session into account."""
        self.sessions.update(seconds.keys())
        for name, value in seconds.items():
            self.seconds[name] = min(value, self.seconds.get(name, math.inf))

    def fastest(self, likely: list[str], default: str) -> str:
        """Return the fastest of those measured; the default if it never was, or none is clearly faster."""
        if default not in self.seconds:
            return default
        best = min(self.seconds.keys() & set(likely), key=lambda name: (self.seconds[name], name))
        return best if self.seconds[default] > CLEARLY * self.seconds[best] else default

    def is_settled(self, likely: list[str], default: str) -> bool:
        """Tell whether another session is not worth its time."""
        if not self.seconds.keys() >= set(likely):
            return False
        least = SURE * self.seconds[default]
        sure = all(self.seconds[name] > least for name in likely if name != default)
        return sure or min(self.sessions[name] for name in likely) >= SESSIONS


class Tuner:
    """Chooses by the rule where it is sure, else by the measurements that the process found.

    ``PQNET_ALGORITHM`` names an algorithm to take wherever it is possible, and the rule's elsewhere. ``PQNET_TUNE`` is
    the number of seconds that the process may spend on measurements for later ones; 0 leaves everything to the rule.
    """

    def __init__(self) -> None:
        self._found: dict[str, Measured] | None = None
        self._tried: set[str] = set()
        self._spent = 0.0

    def __call__(self, layer: Layer, compute: str, costs: Mapping[str, float]) -> str:
        forced = os.environ.get("PQNET_ALGORITHM")
        if forced is not None:
            return fixed(choice(forced, "PQNET_ALGORITHM", _algorithms()))(layer, compute, costs)
        default, budget = rule(layer, compute, costs), _budget()
        likely = sorted(name for name in costs if costs[name] <= DOUBT * costs[default])
        if len(likely) == 1 or budget == 0:
            return default
        weight, node = layer.params["weight"], layer.node
        codec = getattr(weight, "codec", None)
        sizes = tuple(near(size) for size in layer.in_shape)  # one measurement serves all near it
        # In any arithmetic an algorithm takes the time that it takes.
        tokens = "tokens " if layer.token_scales else ""
        key = f"{tokens}{node.op} {sizes} {weight.shape} {sorted(node.attrs.items())} {codec}"
        with _process.lock:
            if self._found is None:
                self._found = _read(_path())
            known = self._found.get(key, Measured())
            if not known.is_settled(likely, default) and key not in self._tried and self._spent < budget:
                self._tried.add(key)
                start = time.perf_counter()
                _measure(_path(), key, lambda: [_timed(layer, compute, name) for name in likely], likely)
                self._spent += time.perf_counter() - start
        return known.fastest(likely, default)


class _Process:
    """What is one for the process: one thread measures at a time, lest they disturb each other."""

    def __init__(self) -> None:
        self._renew()
        reset_after_fork(self._renew)

    def _renew(self) -> None:
        self.lock = threading.Lock()


_process = _Process()


def _algorithms() -> list[str]:
    from pqnet.runtime.algorithms import ALGORITHMS  # algorithms choose nothing, but programs choose algorithms

    return sorted(ALGORITHMS)


def _budget() -> float:
    """Return the seconds that the process may spend on measurements."""
    text = os.environ.get("PQNET_TUNE")
    try:
        seconds = SECONDS if text is None else float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise error("PQNET_TUNE", "a number of seconds, 0 or more", repr(text))
    return seconds


def _path() -> Path | None:
    """Return the file of measurements: beside the kernels that were measured, one for each number of cores."""
    folders = cache.folders()
    return folders[0] / f"algorithms-{os.cpu_count()}.jsonl" if folders else None


def _read(path: Path | None) -> dict[str, Measured]:
    """Return what the lines of a file tell; whatever is no sound line is passed over."""
    try:
        if path is None:
            return {}
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES)
    except OSError:
        return {}
    found: dict[str, Measured] = {}
    for line in data.split(b"\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("key"), str) and _is_times(record.get("seconds")):
            found.setdefault(record["key"], Measured()).add(record["seconds"])
    return found


def _is_times(value: Any) -> bool:
    return isinstance(value, dict) and all(type(each) is float and 0 < each < math.inf for each in value.values())


def _measure(path: Path | None, key: str, prepare: Callable[[], list[Callable[[], float]]], names: list[str]) -> None:
    """Add a line with a measurement to the file, if it can be kept.

    The system puts each line whole behind those of other processes. Should a full disk cut one off, it is passed over:
    the next begins on a line of its own.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError:
        return
    try:
        if os.fstat(file).st_size < MOST_BYTES:
            runs = prepare()
            seconds = np.min([[run() for run in runs] for _ in range(RUNS)], axis=0)
            record = {"key": key, "seconds": dict(zip(names, seconds.tolist(), strict=True))}
            os.write(file, f"\n{json.dumps(record)}\n".encode())
    except OSError:
        pass
    finally:
        os.close(file)


def _timed(layer: Layer, compute: str, algorithm: str) -> Callable[[], float]:
    """Return a function that runs one layer alone, by one algorithm, and returns the seconds that it took."""
    from pqnet.runtime.memory import Store, Workspace
    from pqnet.runtime.program import Program, Segment  # a program chooses algorithms, a choice runs programs

    builder = GraphBuilder({"x": ValueInfo(layer.in_shape)})
    node = builder.add(layer.node.op, "x", params=dict(layer.params), **layer.node.attrs)
    name = builder.nodes[-1].name
    ranges = {} if layer.input_range is None else {name: layer.input_range}
    graph = builder.build({"y": node}, {INPUT_RANGES: ranges, TOKEN_SCALES: [name] if layer.token_scales else []})
    program = Program(graph, {}, Store(), fixed(algorithm), compute)
    space, shape = Workspace(), layer.in_shape
    threads = default_threads()
    program.run({"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}, space, threads)

    def run() -> float:
        start = time.perf_counter()
        for segment in program.segments:
            if isinstance(segment, Segment):
                program.run_kernels(segment, space, threads, 0, segment.size)
        return time.perf_counter() - start

    return run
