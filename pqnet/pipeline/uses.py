"""What the weight of a layer is multiplied with, wherever in the network it is used."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pqnet.graph import Graph, Node
from pqnet.graph.graph import Param
from pqnet.pipeline.moments import operand
from pqnet.runtime.execute import evaluate_node, node_params, values_to_free

__all__ = ["Uses"]


class Uses:
    """Computes what the nodes that share a layer's weight are given, from the values at the first of them."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self._uses = graph, graph.uses()
        self._free = values_to_free(graph)
        self._at = {node.name: i for i, node in enumerate(graph.nodes)}

    def of(self, layer: Node) -> list[Node]:
        """Return the nodes that compute with a layer's weight as it does, itself first."""
        return [layer, *self._uses[layer.name][1:]]

    def operands(
        self,
        layer: Node,
        params: Mapping[str, Param],
        values: Mapping[str, np.ndarray],
        symbols: Mapping[str, int],
    ) -> list[np.ndarray]:
        """Return what each use multiplies the weight with in one batch, in a network with these parameters.

        ``values`` are those of one batch when the layer is about to be computed; the network runs on to the last use.
        """
        uses, graph = self.of(layer), replace(self.graph, params=dict(params))
        found = [operand(graph, layer, values)]
        if len(uses) == 1:
            return found
        first, last = (self._at[node.name] for node in (uses[0], uses[-1]))
        others, now = {node.name for node in uses[1:]}, dict(values)
        for node, done in zip(graph.nodes[first : last + 1], self._free[first : last + 1], strict=True):
            if node.name in others:
                found.append(operand(graph, node, now))
            if node.name == uses[-1].name:
                break
            results = evaluate_node(node, [now[v] for v in node.inputs], node_params(graph, node), symbols)
            now.update(zip(node.outputs, results, strict=True))
            for value in done:
                now.pop(value, None)
        return found
