"""Blocks of a network: stretches of nodes between places where all that depends on weights flows as one value."""

from collections.abc import Collection
from typing import NamedTuple

from pqnet.graph.graph import Graph

__all__ = ["Block", "find_blocks"]


class Block(NamedTuple):
    """Nodes ``start`` to ``stop`` - 1 of a graph, the chosen layers among them, and the values that others read."""

    start: int
    stop: int
    layers: tuple[str, ...]
    outputs: tuple[str, ...]


def find_blocks(graph: Graph, layers: Collection[str], least: int = 2) -> list[Block]:
    """Cut a graph into blocks of at least so many of some layers: residual blocks, layers of a transformer.

    Cuts are at narrow places: the nodes behind read one value of those before, and else only what no weight has a part
    in, such as inputs, masks and constants. Nodes without layers belong to the block before them, and so do too few
    layers at the end. Outputs of the last block are those of the graph that it writes.

    Parameters
    ----------
    graph : Graph
    layers : collection of str
        Names of layers.
    least : int
        Layers of a block; of narrow places between them there is no use.

    Examples
    --------
    >>> import pqnet
    >>> from pqnet.demo import model_path
    >>> graph = pqnet.load(model_path()).graph
    >>> [block.layers[-1] for block in find_blocks(graph, graph.layers())]
    ['layer1.0.conv2', 'fc']
    """
    blocks: list[Block] = []
    for piece in _pieces(graph, layers):
        if blocks and (not piece.layers or len(blocks[-1].layers) < least):
            before = blocks.pop()
            piece = Block(before.start, piece.stop, before.layers + piece.layers, piece.outputs)
        blocks.append(piece)
    if len(blocks) > 1 and len(blocks[-1].layers) < least:
        last = blocks.pop()
        blocks[-1] = Block(blocks[-1].start, last.stop, blocks[-1].layers + last.layers, last.outputs)
    return blocks if blocks and blocks[0].layers else []


def _pieces(graph: Graph, layers: Collection[str]) -> list[Block]:
    """Return the stretches between one narrow place and the next."""
    last = {value: i for i, node in enumerate(graph.nodes) for value in node.inputs}
    weighted: set[str] = set()  # values that a layer has a part in, of those that are still read
    pieces, start = [], 0
    for i, node in enumerate(graph.nodes):
        of_weights = node.params.keys() >= {"weight"} or any(value in weighted for value in node.inputs)
        weighted = {value for value in weighted if last[value] > i}
        if of_weights:
            weighted |= {value for value in node.outputs if last.get(value, -1) > i}
        end = i == len(graph.nodes) - 1
        if end or len(weighted) == 1:
            part = graph.nodes[start : i + 1]
            made = {value for n in part for value in n.outputs}
            outputs = [v for v in graph.outputs.values() if v in made] if end else list(weighted)
            pieces.append(Block(start, i + 1, tuple(n.name for n in part if n.name in layers), tuple(outputs)))
            start = i + 1
    return pieces
