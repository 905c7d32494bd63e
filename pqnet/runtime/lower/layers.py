"""Convolutions and linear layers, each by the algorithm that suits it."""

from pqnet.errors import PQNetError
from pqnet.graph import Node
from pqnet.runtime.algorithms import ALGORITHMS, HOST
from pqnet.runtime.algorithms.base import Algorithm
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import View


def choose_algorithm(b: Builder, layer: Layer) -> Algorithm:
    """Ask every algorithm that fits a layer for its cost and return the chosen one."""
    fitting = [a for a in ALGORITHMS.values() if a.fits(layer, b.compute, HOST)]
    if not fitting:
        raise PQNetError(f"node {layer.node.name!r} ({layer.node.op}): no algorithm computes it in {b.compute}")
    shape = b.info(layer.node.inputs[0]).shape
    return ALGORITHMS[b.choose(b.graph, layer.node, shape, {a.name: a.cost(layer) for a in fitting})]


@lowers("conv1d", "conv2d", "linear")
def lower_layer(b: Builder, node: Node, x: list[View]) -> View:
    """Lower a layer by the algorithm chosen for it."""
    layer = Layer.of(b, node)
    return choose_algorithm(b, layer).emit(b, layer, x[0])
