"""Running the nodes of a graph on arrays."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pqnet import _check
from pqnet.codecs import Packed
from pqnet.errors import PQNetError, did_you_mean
from pqnet.graph import Graph, Node
from pqnet.graph.op import get_op, resolve_attrs

__all__ = ["check_inputs", "dense_param", "evaluate_node", "node_params", "run_from", "run_graph", "values_to_free"]


def check_inputs(graph: Graph, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the inputs as checked arrays, or raise PQNetError naming the one that does not fit.

    What the network does not read is left out with a warning; booleans and integers that are 0 or 1 stand for each
    other, as in masks.
    """
    if not isinstance(inputs, dict | Mapping) or not graph.inputs.keys() <= inputs.keys():
        got = sorted(map(str, inputs)) if isinstance(inputs, Mapping) else _check.describe(inputs)
        wrong = [name for name in inputs if name not in graph.inputs] if isinstance(inputs, Mapping) else []
        near = did_you_mean(wrong[0], graph.inputs) if wrong else ""
        raise PQNetError(f"inputs: expected a dict with exactly the keys {list(graph.inputs)}, got {got}{near}")
    if len(inputs) > len(graph.inputs):
        others = sorted(str(name) for name in inputs if name not in graph.inputs)
        warnings.warn(f"inputs: the network does not read {', '.join(others)}: ignored", stacklevel=4)
    arrays = {}
    for name, info in graph.inputs.items():
        if info.dtype == "float32" and _check.is_plain(inputs[name]):
            arrays[name] = inputs[name]
            continue
        where = f"input {name!r}"
        given = _as_mask(graph, name, inputs[name])
        if info.dtype == "float32":
            arrays[name] = _check.float_array(given, where, empty=True, infinite=True)
        elif info.dtype == "bool":
            arrays[name] = _check.bool_array(given, where)
        else:
            arrays[name] = _check.int_array(given, where, info.dtype)
    return arrays


def _as_mask(graph: Graph, name: str, value: Any) -> Any:
    """Return booleans as numbers and zeros and ones as booleans, where the input is of the other kind."""
    wanted, kind = graph.inputs[name].dtype, getattr(getattr(value, "dtype", None), "kind", "")
    if (
        kind == "b"
        and wanted not in ("bool", "float32")
        and not any(_looks_up(node, name) for node in graph.readers.values.get(name, ()))
    ):
        return np.asarray(value).astype(wanted)
    if kind in ("i", "u") and wanted == "bool" and np.isin(value, (0, 1)).all():
        return np.asarray(value).astype(bool)
    return value


def _looks_up(node: Node, ids: str) -> bool:
    """Tell whether a node takes a value for numbers of rows, which booleans are not."""
    weight = get_op(node.op).weight
    return (weight is not None and weight.looked_up) or (node.op == "index_select" and node.inputs[1] == ids)


def node_params(graph: Graph, node: Node) -> dict[str, Any]:
    """Return the parameters that a node computes with: decoded, but for tables, of which rows only are decoded."""
    weight = get_op(node.op).weight
    keep = weight is not None and weight.looked_up
    params = {role: graph.params[name] for role, name in node.params.items()}
    return {role: p if keep and isinstance(p, Packed) else dense_param(p) for role, p in params.items()}


def evaluate_node(
    node: Node, inputs: Sequence[np.ndarray], params: Mapping[str, Any], symbols: Mapping[str, int]
) -> tuple[np.ndarray, ...]:
    """Compute the outputs of one node; ``params`` are those of `node_params`."""
    op = get_op(node.op)
    try:
        if isinstance(params.get("weight"), Packed):
            ids = _check.index_array(inputs[0], "ids", below=params["weight"].shape[0])
            return (params["weight"].decode_rows(ids),)
        result = op.evaluate(inputs, params, resolve_attrs(op, node.attrs, symbols))
    except PQNetError as reason:
        raise type(reason)(f"node {node.name!r} ({node.op}): {reason}") from None
    return result if isinstance(result, tuple) else (result,)


def dense_param(param: np.ndarray | Packed) -> np.ndarray:
    """Return a parameter as operations compute with it: decoded, stored float16 as float32."""
    if isinstance(param, Packed):
        return param.decode()
    return param.astype(np.float32) if param.dtype == np.float16 else param


def values_to_free(graph: Graph) -> list[list[str]]:
    """Return for each node the values that nothing needs after it."""
    last: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        last.update(dict.fromkeys((*node.inputs, *node.outputs), i))
    kept = set(graph.outputs.values())
    free: list[list[str]] = [[] for _ in graph.nodes]
    for value, i in last.items():
        if value not in kept:
            free[i].append(value)
    return free


def run_graph(graph: Graph, free: list[list[str]], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute the outputs for checked inputs; intermediate values live only until their last use."""
    symbols = graph.bind_symbols({name: array.shape for name, array in inputs.items()})
    graph.infer_shapes(symbols)  # a network may fit some batch sizes only
    return run_from(graph, free, 0, dict(inputs), symbols)


def run_from(
    graph: Graph, free: list[list[str]], start: int, values: dict[str, np.ndarray], symbols: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Compute the nodes from number ``start`` on; ``values``, which holds what they need, is used up."""
    for node, done in zip(graph.nodes[start:], free[start:], strict=True):
        results = evaluate_node(node, [values[v] for v in node.inputs], node_params(graph, node), symbols)
        values.update(zip(node.outputs, results, strict=True))
        for value in done:
            values.pop(value, None)
    return {name: values[value] for name, value in graph.outputs.items()}
