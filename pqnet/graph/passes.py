"""Rewrites that leave the function of a graph unchanged."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, count

import numpy as np

from pqnet.codecs import Packed
from pqnet.graph.affine import norm_behind
from pqnet.graph.graph import Graph, Node, Param, used_params

__all__ = ["fold_norm_statistics", "merge_batch_norm", "separate_norm_statistics"]


def _affine(graph: Graph, node: Node) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and shift, float64, of a batch_norm node: y = scale * x + shift."""

    def param(role: str) -> np.ndarray | None:
        name = node.params.get(role)
        return None if name is None else np.asarray(graph.params[name], np.float64)

    weight, bias, mean, var = (param(role) for role in ("weight", "bias", "mean", "var"))
    channels = next((len(p) for p in (weight, bias, mean, var) if p is not None), 1)
    scale = (np.ones(channels) if weight is None else weight) / np.sqrt(
        (np.ones(channels) if var is None else var) + node.attrs["eps"]
    )
    shift = np.zeros(channels) if bias is None else bias
    return scale, shift if mean is None else shift - mean * scale


def _prune(graph: Graph) -> Graph:
    used = used_params(graph.nodes)
    return replace(graph, params={n: p for n, p in graph.params.items() if n in used})


def _fresh(params: Mapping[str, Param], name: str) -> str:
    """Return ``name``, with a number appended if a parameter has it."""
    numbered = (f"{name}_{i}" for i in count(1))
    return next(n for n in chain((name,), numbered) if n not in params)


def _users(graph: Graph) -> Counter[str]:
    return Counter(p for node in graph.nodes for p in node.params.values())


def fold_norm_statistics(graph: Graph) -> Graph:
    """Return a graph whose batch norms hold only weight and bias, the running statistics folded into them.

    That is the form in which the papers store and count them. Folding is undone by measuring mean and variance of the
    norm's inputs again.
    """
    params, nodes, users = dict(graph.params), [], _users(graph)
    for node in graph.nodes:
        if node.op == "batch_norm" and ("mean" in node.params or "var" in node.params):
            names = {}
            for role, values in zip(("weight", "bias"), _affine(graph, node), strict=True):
                name = node.params.get(role)
                names[role] = name if name and users[name] == 1 else _fresh(params, f"{node.name}.{role}")
                params[names[role]] = values.astype(np.float32)
            node = replace(node, params=names, attrs={**node.attrs, "eps": 0.0})
        nodes.append(node)
    return _prune(replace(graph, nodes=nodes, params=params))


def separate_norm_statistics(graph: Graph) -> Graph:
    """Return a graph in which no two batch norms share running statistics, so that each can be measured again."""
    params, nodes, users = dict(graph.params), [], _users(graph)
    for node in graph.nodes:
        if node.op == "batch_norm":
            names = dict(node.params)
            for role in ("mean", "var"):
                if role in names and users[names[role]] > 1:
                    names[role] = _fresh(params, f"{node.name}.{role}")
                    params[names[role]] = graph.params[node.params[role]]
            node = replace(node, params=names)
        nodes.append(node)
    return _prune(replace(graph, nodes=nodes, params=params))


def merge_batch_norm(graph: Graph) -> Graph:
    """Return a graph whose batch norms that follow a dense convolution or linear layer are part of its weights.

    A norm after a packed layer stays: its scale cannot enter the codes.
    """
    params, nodes, renamed = dict(graph.params), list(graph.nodes), {}
    dropped = set()
    for at, layer in enumerate(graph.nodes):
        norm = norm_behind(graph, layer)
        if norm is None or any(isinstance(graph.params[p], Packed) for p in layer.params.values()):
            continue
        scale, shift = _affine(graph, norm)
        weight = np.asarray(graph.params[layer.params["weight"]], np.float64)
        bias = np.asarray(graph.params[layer.params["bias"]], np.float64) if "bias" in layer.params else 0.0
        names = {
            "weight": layer.params["weight"],
            "bias": layer.params.get("bias") or _fresh(params, f"{layer.name}.bias"),
        }
        params[names["weight"]] = (weight * scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
        params[names["bias"]] = np.broadcast_to(bias * scale + shift, len(weight)).astype(np.float32)
        nodes[at] = replace(layer, params=names)
        renamed[norm.outputs[0]] = layer.outputs[0]
        dropped.add(norm.name)
    kept = [replace(n, inputs=tuple(renamed.get(v, v) for v in n.inputs)) for n in nodes if n.name not in dropped]
    outputs = {name: renamed.get(v, v) for name, v in graph.outputs.items()}
    return _prune(replace(graph, nodes=kept, params=params, outputs=outputs))
