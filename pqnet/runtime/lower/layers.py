"""Convolutions and linear layers, each by the algorithm that suits it."""

from pqnet.errors import PQNetError
from pqnet.graph import Node
from pqnet.runtime.algorithms import ALGORITHMS, HOST
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import View

__all__ = ["emit_layer"]


@lowers("conv1d", "conv2d", "linear")
def lower_layer(b: Builder, node: Node, x: list[View]) -> View:
    """Lower a layer."""
    return emit_layer(b, Layer.of(b, node), x[0])


def emit_layer(b: Builder, layer: Layer, x: View) -> View:
    """Ask every algorithm that fits for its cost, choose one and emit its steps; return the result."""
    fitting = [a for a in ALGORITHMS.values() if a.fits(layer, b.compute, HOST)]
    if not fitting:
        raise PQNetError(f"node {layer.node.name!r} ({layer.node.op}): no algorithm computes it in {b.compute}")
    chosen = b.choose(layer, b.compute, {a.name: a.cost(layer) for a in fitting})
    return ALGORITHMS[chosen].emit(b, layer, x)
