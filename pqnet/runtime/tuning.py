"""Which way runs a layer fastest: a cost rule, and a table of measurements for this CPU where the rule is not sure."""

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pqnet import kernels
from pqnet._threads import default_threads
from pqnet.graph import Graph, GraphBuilder, Node, ValueInfo
from pqnet.runtime.builder import Choose

__all__ = ["Tuner", "fixed", "rule"]

DOUBT = 1.7  # a way is tried if the rule expects it to take at most this many times the least
RUNS = 3


def rule(graph: Graph, node: Node, shape: tuple[int, ...], ways: Mapping[str, float]) -> str:
    """Return the way that the cost rule expects to be fastest."""
    return min(ways, key=lambda way: ways[way])


def fixed(way: str) -> Choose:
    """Return a choice of this way wherever it is possible, of the rule's elsewhere."""

    def choose(graph: Graph, node: Node, shape: tuple[int, ...], ways: Mapping[str, float]) -> str:
        return way if way in ways else rule(graph, node, shape, ways)

    return choose


class Tuner:
    """Chooses by the rule where it is sure, else by a measurement that is kept on disk.

    ``PQNET_WAY`` names a way to take wherever it is possible; ``PQNET_TUNE=0`` leaves everything to the rule.
    """

    def __init__(self) -> None:
        self._table: dict[str, str] | None = None

    def __call__(self, graph: Graph, node: Node, shape: tuple[int, ...], ways: Mapping[str, float]) -> str:
        forced = os.environ.get("PQNET_WAY")
        if forced is not None and forced in ways:
            return forced
        least = min(ways.values())
        likely = sorted(way for way in ways if ways[way] <= DOUBT * least)
        if len(likely) == 1 or os.environ.get("PQNET_TUNE") == "0":
            return rule(graph, node, shape, ways)
        table = self._read()
        weight = graph.params[node.params["weight"]]
        codec = getattr(weight, "codec", None)
        key = f"{node.op} {shape} {weight.shape} {sorted(node.attrs.items())} {codec} {likely} {default_threads()}"
        if table.get(key) not in likely:
            table[key] = min(likely, key=lambda way: _seconds(graph, node, shape, way))
            self._write(table)
        return table[key]

    def _read(self) -> dict[str, str]:
        if self._table is None:
            try:
                table = json.loads(_table_path().read_text(encoding="utf-8"))
            except (OSError, ValueError):
                table = {}
            self._table = table if isinstance(table, dict) else {}
        return self._table

    def _write(self, table: Mapping[str, str]) -> None:
        path = _table_path()
        try:  # a machine without a place for it measures again in each process
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
                json.dump(table, file, indent=0)
            os.replace(file.name, path)
        except OSError:
            pass


def _table_path() -> Path:
    cpu = hashlib.sha256(f"{kernels.cpu.NAME} {platform.processor()} {os.cpu_count()}".encode()).hexdigest()
    return Path((kernels.cache.folders() or (".",))[0]) / f"ways-{cpu[:12]}.json"


def _seconds(graph: Graph, node: Node, shape: tuple[int, ...], way: str) -> float:
    """Return the time of one layer alone, run by one way."""
    from pqnet.runtime.builder import Store
    from pqnet.runtime.plan import Kernels, Plan, Workspace  # a plan chooses ways, a choice runs plans

    builder = GraphBuilder({"x": ValueInfo(shape)})
    params = {role: graph.params[name] for role, name in node.params.items()}
    layer = builder.build({"y": builder.add(node.op, "x", params=params, **node.attrs)})
    plan, space = Plan(layer, {}, Store(), fixed(way)), Workspace()
    threads = default_threads()
    inputs = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    plan.run(inputs, space, threads)
    best = np.inf
    for _ in range(RUNS):
        start = time.perf_counter()
        for segment in plan.segments:
            if isinstance(segment, Kernels):
                plan.run_kernels(segment, space, threads, 0, len(segment.steps))
        best = min(best, time.perf_counter() - start)
    return best
