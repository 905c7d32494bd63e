"""Convolutions and linear layers, each by the algorithm that suits it."""

from pqnet.errors import PQNetError
from pqnet.graph import Node
from pqnet.runtime.algorithms import ALGORITHMS, HOST
from pqnet.runtime.algorithms.base import Algorithm, fitting
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.layer import Layer, near
from pqnet.runtime.memory import View

__all__ = ["choose_algorithm", "emit_layer"]


@lowers("conv1d", "conv2d", "linear")
def lower_layer(b: Builder, node: Node, x: list[View]) -> View:
    """Lower a layer."""
    return emit_layer(b, Layer.of(b, node), x[0])


def emit_layer(b: Builder, layer: Layer, x: View) -> View:
    """Append the steps of a layer by the algorithm chosen for it, and return the result."""
    return choose_algorithm(b, layer).emit(b, layer, x)


def choose_algorithm(b: Builder, layer: Layer) -> Algorithm:
    """Return the algorithm for a layer, chosen once for all inputs of nearly these sizes."""
    sizes = (layer.batch, *layer.size, *layer.out_size)
    key = layer.node.name, layer.name, *(near(size) for size in sizes)
    chosen = b.store.chosen.get(key)
    if chosen is None or not ALGORITHMS[chosen].fits(layer, b.compute, HOST):
        chosen = b.store.chosen[key] = _choose(b, layer)
    return ALGORITHMS[chosen]


def _choose(b: Builder, layer: Layer) -> str:
    """Ask every algorithm that fits for its cost and return the name of the best."""
    node = layer.node
    possible = fitting(layer, b.compute)
    if not possible:
        raise PQNetError(f"node {node.name!r} ({node.op}): no algorithm computes it in {b.compute}")
    return b.choose(layer, b.compute, {a.name: a.cost(layer.rounded) for a in possible})
