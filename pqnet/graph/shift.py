"""Adding a constant to the outputs of a layer where that costs no bytes."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from pqnet.graph.graph import Graph, Node

__all__ = ["find_shift"]


def find_shift(graph: Graph, layer: Node) -> Callable[[np.ndarray], None] | None:
    """Return what adds a float64 vector (O,) to the outputs of a layer, by changing ``graph.params``.

    It goes into the layer's bias, or into the running mean or the bias of the batch norm that alone reads the layer.
    None if there is neither, or if others share the parameter.
    """
    users = Counter(p for node in graph.nodes for p in node.params.values())

    def adder(name: str, sign: np.ndarray | float) -> Callable[[np.ndarray], None]:
        def add(shift: np.ndarray) -> None:
            old = np.asarray(graph.params[name])
            graph.params[name] = (old.astype(np.float64) + sign * shift).astype(old.dtype)

        return add

    if "bias" in layer.params:
        name = layer.params["bias"]
        return adder(name, 1.0) if users[name] == 1 else None
    readers = [node for node in graph.nodes if layer.outputs[0] in node.inputs]
    if len(readers) != 1 or readers[0].op != "batch_norm" or layer.outputs[0] in graph.outputs.values():
        return None
    norm = readers[0]
    if "mean" in norm.params:
        name = norm.params["mean"]
        return adder(name, -1.0) if users[name] == 1 else None
    if "bias" in norm.params and users[norm.params["bias"]] == 1:
        weight, var = norm.params.get("weight"), norm.params.get("var")
        scale = np.float64(1.0) if weight is None else np.asarray(graph.params[weight], np.float64)
        deviation = 1.0 if var is None else np.asarray(graph.params[var], np.float64)
        return adder(norm.params["bias"], scale / np.sqrt(deviation + norm.attrs["eps"]))
    return None
