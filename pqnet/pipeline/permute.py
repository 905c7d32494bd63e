"""The channels of a float network in the order that suits product quantization best; the function stays."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from pqnet._progress import tick
from pqnet.codecs import Codec
from pqnet.errors import PQNetError
from pqnet.fit.permutation import Reader, published_order, search_order
from pqnet.graph import Graph, Node, ValueInfo, weight_op
from pqnet.graph.permute import Channels
from pqnet.io import Golden, relative_differences
from pqnet.pipeline.batches import Batch
from pqnet.pipeline.moments import operand
from pqnet.pipeline.statistics import Moments, Statistics
from pqnet.pipeline.sweep import Values, sweep
from pqnet.runtime.execute import run_graph, values_to_free

__all__ = ["Permutation"]

# Of the mean squares of inputs, by which weights are scaled for the search. 1/2 would make them shares of the output;
# but a codebook holds weights as they are, and halfway between gave the least errors.
EXPONENT = 0.25
TOLERANCE = 1e-3  # of outputs, relative: sums in another order


class Permutation:
    """Orders of the channels of a float network, found for the codecs of its layers.

    Parameters
    ----------
    graph : Graph
    codecs : dict of str to Codec
        By layer name.
    data : list of Batch, Statistics or None
        Whose second moments tell how much every channel matters.
    seed : int
    threads : int
        The result does not depend on it.
    published : bool
        As "Permute, Quantize, and Fine-tune": of the layers that read a set of channels only the first counts.
    """

    def __init__(
        self,
        graph: Graph,
        codecs: Mapping[str, Codec],
        data: Sequence[Batch] | Statistics | None,
        seed: int,
        threads: int,
        published: bool = False,
    ) -> None:
        self.graph, self.codecs, self.channels = graph, codecs, Channels.find(graph)
        self.readers = [n for n in graph.layers().values() if _channels_in_block(graph, n, codecs.get(n.name)) > 1]
        energies = _energies(graph, self.readers, data, threads)
        self.orders: dict[int, np.ndarray] = {}
        for number, size in enumerate(self.channels.sizes):
            tick("order of channels", number + 1, len(self.channels.sizes))
            readers = []
            for node in self.readers:
                starts = self.channels.starts(node.params["weight"], 1, number)
                if starts:
                    readers.append(self._reader(node, energies.get(node.name), starts))
            if published:
                readers = [reader for reader in readers if len(reader.starts) == 1][:1]
            if readers:
                search = partial(published_order, readers[0]) if published else partial(search_order, readers)
                self.orders[number] = search(size, seed=(seed, number)).order

    def _reader(self, node: Node, energy: np.ndarray | None, starts: tuple[int, ...]) -> Reader:
        weight = np.asarray(self.graph.params[node.params["weight"]], np.float32)
        if energy is not None:
            scale = np.maximum(energy, 1e-6 * max(energy.max(), 1e-30)) ** EXPONENT
            weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 2)).astype(np.float32)
        weight = np.take(weight, self._inputs(node), 1)
        rows = weight.reshape(*weight.shape[:2], -1).transpose(1, 2, 0)
        codec = self.codecs[node.name]
        width = _channels_in_block(self.graph, node, codec)
        if codec.metric_blocks(weight.shape)[0] == width:  # one tap in a block
            rows = rows.reshape(len(rows), 1, -1)
        return Reader(np.ascontiguousarray(rows), width, starts)

    def _inputs(self, node: Node) -> np.ndarray:
        name = node.params["weight"]
        return self.channels.order(name, 1, self.graph.params[name].shape[1], self.orders)

    def apply(self) -> Graph:
        """Return the network with its channels in the new orders, or raise if it is another function."""
        permuted = self.channels.apply(self.graph, self.orders)
        infos = self.graph.infer_shapes(self.graph.symbols)
        inputs = Golden.draw({name: ValueInfo(*infos[name]) for name in self.graph.inputs}, 0).inputs()
        expected, found = (run_graph(g, values_to_free(g), inputs) for g in (self.graph, permuted))
        differences = relative_differences(found, expected)
        if worst := {name: d for name, d in differences.items() if not d <= TOLERANCE}:
            raise PQNetError(
                f"permute: expected the outputs of the float network within {TOLERANCE}, got {worst}; "
                "pass permute=False"
            )
        return permuted

    def statistics(self, found: Statistics) -> Statistics:
        """Return the moments of the inputs of the layers that have a codec, in the new orders."""
        layers = {}
        for node in self.graph.layers().values():
            if node.name not in self.codecs:
                continue
            name, shape = node.params["weight"], self.graph.params[node.params["weight"]].shape
            moments = found.for_layer(node, shape)
            if weight_op(node.op).looked_up:
                layers[node.name] = moments
                continue
            taps, groups = math.prod(shape[2:]), np.arange(len(moments.mean))
            if len(groups) == shape[0]:
                groups = self.channels.order(name, 0, shape[0], self.orders)
            inputs = (self._inputs(node)[:, None] * taps + np.arange(taps)).reshape(-1)
            first = None if moments.first is None else moments.first[np.ix_(groups, inputs)]
            pairs = np.ix_(groups, inputs, inputs)
            covariance = None if moments.covariance is None else moments.covariance[pairs]
            mean = np.ascontiguousarray(moments.mean[pairs])
            layers[node.name] = Moments(mean, moments.count, first, covariance)
        return Statistics(layers, inputs=found.inputs)


def _channels_in_block(graph: Graph, node: Node, codec: Codec | None) -> int:
    """Return how many input channels make a block of a layer; 1 where their order does not matter."""
    if codec is None:
        return 1
    d, layout = codec.blocks
    taps = math.prod(graph.params[node.params["weight"]].shape[2:])
    if layout == "channel":
        return d
    return d // taps if d % taps == 0 else 1


def _energies(
    graph: Graph, layers: Sequence[Node], data: Sequence[Batch] | Statistics | None, threads: int
) -> dict[str, np.ndarray]:
    """Return the mean square of every input channel of the layers; nothing for embeddings and without data."""
    layers = [node for node in layers if not weight_op(node.op).looked_up]
    shapes = {node.name: graph.params[node.params["weight"]].shape for node in layers}
    found: dict[str, np.ndarray] = {}
    if isinstance(data, Statistics):
        for node in layers:
            mean = data.for_layer(node, shapes[node.name]).mean.mean(0)
            found[node.name] = np.diagonal(mean).reshape(shapes[node.name][1], -1).mean(1, dtype=np.float64)
    elif data is not None:

        def visit(node: Node, values: Values, _: Values) -> None:
            x = operand(graph, node, values[0])
            axis = weight_op(node.op).channel_axis(x.ndim)
            square = np.square(x, dtype=np.float64).mean(tuple(i for i in range(x.ndim) if i != axis))
            found[node.name] = square.reshape(-1, shapes[node.name][1]).mean(0)

        sweep(graph, data[:1], shapes, visit, threads)
    return found
