"""Which inputs of a network are indices, and into how many rows, say word ids; which outputs count detections."""

from collections.abc import Mapping

from pqnet.graph.graph import Graph
from pqnet.graph.op import Info, get_op

__all__ = ["detection_counts", "index_limits"]

# What hands integers on as they are.
PASSING = ("cast", "concat", "expand", "permute", "reshape", "slice", "split")


def index_limits(graph: Graph, infos: Mapping[str, Info]) -> dict[str, int]:
    """Return the number of rows that each input picks from, of inputs that pick rows of tables.

    Parameters
    ----------
    graph : Graph
    infos : dict of str to Info
        Of its values.

    Returns
    -------
    dict of str to int
        By name of the input: the least of all tables that it goes to unchanged.
    """
    producers = {value: node for node in graph.nodes for value in node.outputs}
    limits: dict[str, int] = {}
    for node in graph.nodes:
        rule = get_op(node.op).weight
        if rule is not None and rule.looked_up:
            ids, rows = node.inputs[0], graph.params[node.params["weight"]].shape[0]
        elif node.op in ("index_select", "scatter"):
            ids, rows = node.inputs[1], infos[node.inputs[0]].shape[node.attrs["axis"]]
        elif node.op == "roi_align":
            ids, rows = node.inputs[1], sum(infos[maps].shape[0] for maps in node.inputs[2:])
        else:
            continue
        waiting = [ids]
        while waiting:
            value = waiting.pop()
            if value in graph.inputs:
                limits[value] = min(rows, limits.get(value, rows))
            elif (source := producers[value]).op in PASSING:
                waiting += source.inputs
    return limits


def detection_counts(graph: Graph) -> list[str]:
    """Return the names of outputs that say whether a detector found something, none of other networks.

    Those that count what `nms` kept; of a detector without, all its outputs.
    """
    counts = {node.outputs[1] for node in graph.nodes if node.op == "nms"}
    return [name for name, value in graph.outputs.items() if value in counts] or list(graph.outputs if counts else ())
