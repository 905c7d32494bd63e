"""What is done to the outputs of a layer: scales and shifts that cost no bytes, and the shortcut that they join."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pqnet.graph.graph import Graph, Node
from pqnet.graph.layers import weight_op
from pqnet.graph.op import get_op

__all__ = ["FreeAffine", "norm_behind", "shortcut_of"]


def norm_behind(graph: Graph, layer: Node) -> Node | None:
    """Return the batch norm that scales and shifts what each filter of a layer gives, and that alone; None without one.

    It is the only reader of the layer's output, and works on the axis of the filters: a norm works on axis 1, a linear
    layer writes its last axis. The layer shares no parameter, so that no other layer has a norm of its own behind them.
    """
    rule = get_op(layer.op).weight
    if rule is None or not rule.is_product or rule.looked_up:
        return None
    norm = _only_reader(graph, layer.outputs[0])
    if norm is None or norm.op != "batch_norm" or any(graph.readers.params[p] > 1 for p in layer.params.values()):
        return None
    return norm if rule.channel_axis(graph.readers.axes[layer.outputs[0]]) == 1 else None


@dataclass(frozen=True)
class FreeAffine:
    """What may be done to the outputs y of a layer by changing other parameters: y to scale * y + shift.

    Parameters
    ----------
    graph : Graph
    node : Node
        The layer itself, whose bias takes shifts, or the batch norm that alone reads it.
    gain : float64 ndarray, shape (O,)
        The factors of that norm, by which errors of y reach the rest of the network; 1 without a norm.
    scalable : bool
        Whether scale may be other than 1.
    """

    graph: Graph
    node: Node
    gain: np.ndarray
    scalable: bool

    @classmethod
    def find(cls, graph: Graph, layer: Node) -> "FreeAffine | None":
        """Return it, or None if there is no such parameter, or others share it or the weight."""
        users = graph.readers.params
        if users[layer.params["weight"]] > 1:
            return None
        norm = norm_behind(graph, layer)
        ones = np.ones(graph.params[layer.params["weight"]].shape[0])
        if norm is None or any(users[p] > 1 for p in norm.params.values()):
            own = "bias" in layer.params and users[layer.params["bias"]] == 1
            return cls(graph, layer, ones, False) if own else None
        if "mean" not in norm.params and "bias" not in norm.params:
            return None
        found = cls(graph, norm, ones, "weight" in norm.params and "bias" not in layer.params)
        weight = found._get("weight") if "weight" in norm.params else 1.0
        return replace(found, gain=weight / found._deviation() * ones)

    def apply(self, scale: Any, shift: np.ndarray) -> None:
        """Change ``graph.params`` so that what follows sees scale * y + shift; scale must be 1 unless scalable."""
        params = self.node.params
        if self.node.op != "batch_norm":
            self._set("bias", self._get("bias") + shift)
            return
        weight = self._get("weight") if "weight" in params else 1.0
        if "mean" in params:
            self._set("mean", (self._get("mean") - shift) / scale)
        else:
            self._set("bias", self._get("bias") + weight / self._deviation() * shift)
        if self.scalable:
            self._set("weight", weight * scale)

    def _deviation(self) -> Any:
        var = self._get("var") if "var" in self.node.params else 1.0
        return np.sqrt(var + self.node.attrs["eps"])

    def _get(self, role: str) -> np.ndarray:
        return np.asarray(self.graph.params[self.node.params[role]], np.float64)

    def _set(self, role: str, values: np.ndarray) -> None:
        name = self.node.params[role]
        self.graph.params[name] = values.astype(np.asarray(self.graph.params[name]).dtype)


def _only_reader(graph: Graph, value: str) -> Node | None:
    readers = graph.readers.values.get(value, [])
    return readers[0] if len(readers) == 1 and value not in graph.outputs.values() else None


def shortcut_of(graph: Graph, layer: Node, affine: FreeAffine | None) -> str | None:
    """Return the value to which the outputs of a layer, after the norm of its `FreeAffine`, are added, if any."""
    if not weight_op(layer.op).is_product:
        return None
    value = layer.outputs[0] if affine is None or affine.node.name == layer.name else affine.node.outputs[0]
    reader = _only_reader(graph, value)
    if reader is None or reader.op != "add" or len(reader.inputs) != 2:
        return None
    shortcut = reader.inputs[1 - reader.inputs.index(value)]
    return shortcut if shortcut != value else None
