"""Query heads that share keys and values: attention over groups of them instead of over copies."""

from collections.abc import Mapping
from dataclasses import replace

from pqnet.graph.graph import Graph, Node
from pqnet.graph.op import Info, complete_attrs, get_op

__all__ = ["share_heads"]


def share_heads(graph: Graph, symbols: Mapping[str, int]) -> Graph:
    """Return a graph whose attention reads each key and value head once for all query heads that share it.

    Exporters repeat the heads of grouped queries, by an expansion and a reshape, before attention: the copy of a long
    cache costs more than the attention of one token to it.

    Parameters
    ----------
    graph : Graph
        Checked.
    symbols : dict of str to int
        Free sizes; the new nodes are for these.
    """
    makers = {value: node for node in graph.nodes for value in node.outputs}
    if not any(node.op == "attention" and _expansion(makers, node.inputs[1]) for node in graph.nodes):
        return graph
    infos, nodes = graph.infer_shapes(symbols), list[Node]()
    for node in graph.nodes:
        shared = _shared(makers, infos, node) if node.op == "attention" else None
        nodes += [node] if shared is None else _grouped(node, infos, *shared)
    if len(nodes) == len(graph.nodes):
        return graph
    wanted, kept = set(graph.outputs.values()), []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    return replace(graph, nodes=kept[::-1])


def _shared(makers: Mapping[str, Node], infos: Mapping[str, Info], node: Node) -> tuple[str, str] | None:
    """Return keys and values (.., heads, 1, tokens, features) before they are repeated in the same way."""
    found = [_before(makers, infos, value) for value in node.inputs[1:3]]
    lead = infos[node.outputs[0]].shape[:-2]
    if found[0] is None or found[1] is None or any(infos[v].shape[:-2] != lead for v in node.inputs[:3]):
        return None
    same = infos[found[0]].shape[:-2] == infos[found[1]].shape[:-2]
    return (found[0], found[1]) if same else None


def _before(makers: Mapping[str, Node], infos: Mapping[str, Info], value: str) -> str | None:
    """Return what a value (.., heads * groups, tokens, features) repeats, with an axis of 1 in the place of groups."""
    expand = _expansion(makers, value)
    if expand is None:
        return None
    few, wide, merged = (infos[v].shape for v in (expand.inputs[0], expand.outputs[0], value))
    *lead, heads, groups, tokens, features = wide if len(wide) > 3 else (0,) * 4
    fits = few == (*lead, heads, 1, tokens, features) and merged == (*lead, heads * groups, tokens, features)
    return expand.inputs[0] if fits and groups > 1 else None


def _expansion(makers: Mapping[str, Node], value: str) -> Node | None:
    """Return the expansion that a value is another shape of."""
    reshape = makers.get(value)
    node = makers.get(reshape.inputs[0]) if reshape is not None and reshape.op == "reshape" else None
    return node if node is not None and node.op == "expand" else None


def _grouped(node: Node, infos: Mapping[str, Info], keys: str, values: str) -> list[Node]:
    """Return attention in which query heads are (key heads, groups)."""
    heads, (*lead, queries, features) = infos[keys].shape[-4], infos[node.inputs[0]].shape
    groups = lead[-1] // heads

    def reshape(value: str, shape: tuple[int, ...], name: str, output: str | None = None) -> Node:
        attrs = complete_attrs(get_op("reshape"), {"shape": shape})
        return Node("reshape", f"{node.name}.{name}", (value,), (output or f"{node.outputs[0]}.{name}",), attrs, {})

    made = [reshape(node.inputs[0], (*lead[:-1], heads, groups, queries, features), "grouped queries")]
    masks = list(node.inputs[3:])
    if masks and len(shape := infos[masks[0]].shape) > 2:
        apart = (heads, groups) if shape[-3] > 1 else (1, 1)
        made.append(reshape(masks[0], (*shape[:-3], *apart, *shape[-2:]), "grouped mask"))
        masks = list(made[-1].outputs)
    result = f"{node.outputs[0]}.grouped"
    inputs = (made[0].outputs[0], keys, values, *masks)
    shape = infos[node.outputs[0]].shape
    return [
        *made,
        replace(node, inputs=inputs, outputs=(result,)),
        reshape(result, shape, "heads", node.outputs[0]),
    ]
