"""One forward pass over many batches in lockstep, with a visit before each of some nodes is computed."""

import ctypes
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pqnet._progress import ticking
from pqnet._threads import ordered_map
from pqnet.graph import Graph, Node
from pqnet.graph.op import get_op, resolve_attrs
from pqnet.pipeline.batches import Batch
from pqnet.runtime.execute import evaluate_node, node_params, values_to_free

__all__ = ["Values", "Visit", "sweep"]

Values = Sequence[Mapping[str, np.ndarray]]
Visit = Callable[[Node, Values, Values], None]


def sweep(
    graph: Graph,
    batches: Sequence[Batch],
    visited: Collection[str],
    visit: Visit,
    threads: int,
    teacher: Graph | None = None,
) -> None:
    """Run a graph on all batches, from one visited node to the next.

    ``visit(node, values, taught)`` is called before a node of ``visited`` is computed, with the values that are needed
    now or later, by name, of every batch; what it puts into ``graph.params`` is what nodes compute with from then on.
    Only these values stay in memory: between two visits a batch goes through all nodes at once. ``taught`` are the
    values of the teacher, a graph of the same nodes with other parameters, which runs along; they are the same arrays
    where nothing differs yet, or without a teacher.
    """
    symbols = [graph.bind_symbols({n: a.shape for n, a in batch.items()}) for batch in batches]
    for distinct in {tuple(s.items()): s for s in symbols}.values():
        graph.infer_shapes(distinct)  # a network may fit some batch sizes only
    values = [dict(batch) for batch in batches]
    taught = values if teacher is None else [dict(batch) for batch in batches]
    for stretch in _stretches(graph, visited):
        first = stretch[0][0]
        if first.name in visited:
            visit(replace(first, attrs=resolve_attrs(get_op(first.op), first.attrs, symbols[0])), values, taught)
        steps = [_Step.of(node, done, graph, teacher or graph) for node, done in stretch]
        work = partial(_advance, steps, values, taught, symbols)
        for _ in ticking("forward, batch", ordered_map(work, range(len(batches)), threads), len(batches)):
            pass
        _release_memory()


def _release_memory() -> None:
    """Give memory of freed values back to the system; glibc keeps what lies between values that are in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@dataclass(frozen=True)
class _Step:
    node: Node
    done: list[str]  # values that nothing needs after it
    params: dict[str, Any]
    taught_params: dict[str, Any]  # the same object if no parameter differs

    @classmethod
    def of(cls, node: Node, done: list[str], graph: Graph, teacher: Graph) -> "_Step":
        params = node_params(graph, node)
        same = all(teacher.params[p] is graph.params[p] for p in node.params.values())
        return cls(node, done, params, params if same else node_params(teacher, node))


def _advance(
    steps: list[_Step],
    values: list[dict[str, np.ndarray]],
    taught: list[dict[str, np.ndarray]],
    symbols: list[dict[str, int]],
    i: int,
) -> None:
    """Take batch i through the nodes of a stretch, on both sides."""
    ours, theirs = values[i], taught[i]
    for step in steps:
        seen, wanted = ([side[v] for v in step.node.inputs] for side in (ours, theirs))
        results = evaluate_node(step.node, seen, step.params, symbols[i])
        if theirs is not ours:
            shared = step.params is step.taught_params and all(a is b for a, b in zip(seen, wanted, strict=True))
            other = results if shared else evaluate_node(step.node, wanted, step.taught_params, symbols[i])
            theirs.update(zip(step.node.outputs, other, strict=True))
        ours.update(zip(step.node.outputs, results, strict=True))
        for value in step.done:
            del ours[value]
            theirs.pop(value, None)


def _stretches(graph: Graph, visited: Collection[str]) -> Iterator[list[tuple[Node, list[str]]]]:
    """Yield runs of nodes of which none but the first is visited, with the values that nothing needs after each."""
    stretch: list[tuple[Node, list[str]]] = []
    for node, done in zip(list(graph.nodes), values_to_free(graph), strict=True):
        if stretch and node.name in visited:
            yield stretch
            stretch = []
        stretch.append((node, done))
    if stretch:
        yield stretch
