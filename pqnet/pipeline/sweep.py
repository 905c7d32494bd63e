"""One forward pass over many batches in lockstep, node by node, with a visit before each node is computed."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pqnet._threads import ordered_map
from pqnet.graph import Graph, Node
from pqnet.graph.op import get_op, resolve_attrs
from pqnet.pipeline.batches import Batch
from pqnet.runtime.execute import evaluate_node, node_params, values_to_free

__all__ = ["Visit", "sweep"]

Visit = Callable[[Node, list[np.ndarray]], None]


def sweep(graph: Graph, batches: Sequence[Batch], visit: Visit, threads: int) -> None:
    """Run a graph on all batches, node by node; only values that a later node needs are kept.

    ``visit(node, inputs)`` is called before a node is computed, with the node's first input for every batch; what it
    puts into ``graph.params`` is what the node then computes with. Nodes without inputs are not visited.
    """
    symbols = [graph.bind_symbols({n: a.shape for n, a in batch.items()}) for batch in batches]
    for distinct in {tuple(s.items()): s for s in symbols}.values():
        graph.infer_shapes(distinct)  # a network may fit some batch sizes only
    values: dict[str, list[np.ndarray]] = {name: [batch[name] for batch in batches] for name in graph.inputs}
    for node, done in zip(list(graph.nodes), values_to_free(graph), strict=True):
        if node.inputs:
            visit(replace(node, attrs=resolve_attrs(get_op(node.op), node.attrs, symbols[0])), values[node.inputs[0]])
        params = node_params(graph, node)

        def compute(i: int, node: Node = node, params: dict[str, np.ndarray] = params) -> tuple[np.ndarray, ...]:
            return evaluate_node(node, [values[v][i] for v in node.inputs], params, symbols[i])

        results = list(ordered_map(compute, range(len(batches)), threads))
        for output, column in zip(node.outputs, zip(*results, strict=True), strict=True):
            values[output] = list(column)
        for value in done:
            del values[value]
