"""One forward pass over many batches in lockstep, node by node, with a visit before each node is computed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pqnet._threads import ordered_map
from pqnet.graph import Graph, Node
from pqnet.graph.op import get_op, resolve_attrs
from pqnet.pipeline.batches import Batch
from pqnet.runtime.execute import evaluate_node, node_params, values_to_free

__all__ = ["Values", "Visit", "sweep"]

Values = Mapping[str, list[np.ndarray]]
Visit = Callable[[Node, Values, Values], None]


def sweep(graph: Graph, batches: Sequence[Batch], visit: Visit, threads: int, teacher: Graph | None = None) -> None:
    """Run a graph on all batches, node by node; only values that a later node needs are kept.

    ``visit(node, values, taught)`` is called before a node is computed, with the values that are needed now or later,
    by name, for every batch; what it puts into ``graph.params`` is what the node then computes with. Nodes without
    inputs are not visited. ``taught`` are the values of the teacher, a graph of the same nodes with other parameters,
    which runs along; they are the same lists where nothing differs yet, or without a teacher.
    """
    symbols = [graph.bind_symbols({n: a.shape for n, a in batch.items()}) for batch in batches]
    for distinct in {tuple(s.items()): s for s in symbols}.values():
        graph.infer_shapes(distinct)  # a network may fit some batch sizes only
    values: dict[str, list[np.ndarray]] = {name: [batch[name] for batch in batches] for name in graph.inputs}
    taught = dict(values)

    def compute(node: Node, params: dict[str, np.ndarray], given: dict[str, list[np.ndarray]]) -> None:
        def one(i: int) -> tuple[np.ndarray, ...]:
            return evaluate_node(node, [given[v][i] for v in node.inputs], params, symbols[i])

        results = list(ordered_map(one, range(len(batches)), threads))
        given |= {v: list(column) for v, column in zip(node.outputs, zip(*results, strict=True), strict=True)}

    for node, done in zip(list(graph.nodes), values_to_free(graph), strict=True):
        if node.inputs:
            known = replace(node, attrs=resolve_attrs(get_op(node.op), node.attrs, symbols[0]))
            visit(known, values, taught)
        compute(node, node_params(graph, node), values)
        if teacher is None or (
            all(teacher.params[p] is graph.params[p] for p in node.params.values())
            and all(values[v] is taught[v] for v in node.inputs)
        ):
            taught |= {v: values[v] for v in node.outputs}
        else:
            compute(node, node_params(teacher, node), taught)
        for value in done:
            del values[value], taught[value]
