"""Bytes of a network, counted exactly as the papers count them."""

import math
from dataclasses import dataclass

from pqnet._html import table
from pqnet.codecs import Packed
from pqnet.graph.graph import Graph, Node, Param

__all__ = ["LayerSize", "SizeReport", "measure_size"]


@dataclass(frozen=True)
class LayerSize:
    """Bytes of one layer's weight: ``codes`` and ``codebooks`` (0 for a float weight), ``dense`` as float32."""

    codes: int
    codebooks: int
    other: int
    dense: int


@dataclass(frozen=True)
class SizeReport:
    """Bytes of a network as the papers count them.

    Attributes
    ----------
    codes : int
        Packed codes, ceil(log2 K) bits each, every layer rounded up to a whole byte.
    codebooks : int
        Codebooks in their stored dtype.
    other : int
        Everything that stays float, 4 bytes a number; running statistics of batch norms are folded and not counted.
    total, dense : int
        ``codes + codebooks + other``; the same for the float32 network.
    ratio : float
        ``dense / total``.
    per_layer : dict of str to LayerSize
    """

    codes: int
    codebooks: int
    other: int
    dense: int
    per_layer: dict[str, LayerSize]

    @property
    def total(self) -> int:
        return self.codes + self.codebooks + self.other

    @property
    def ratio(self) -> float:
        return self.dense / self.total if self.total else 1.0

    def _repr_html_(self) -> str:
        """Return a table for notebooks: bytes of each layer, and of all."""
        rows = [[n, s.codes, s.codebooks, s.other, s.dense] for n, s in self.per_layer.items()]
        rows.append(["all, with biases and norms", self.codes, self.codebooks, self.other, self.dense])
        caption = f"{self.total:,} bytes, {self.ratio:.1f}x smaller than float32"
        return table(caption, ["layer", "codes", "codebooks", "float", "as float32"], rows)


def measure_size(graph: Graph) -> SizeReport:
    """Count the bytes of a graph; a shared parameter counts once."""
    counted: dict[str, LayerSize] = {}
    for node in graph.nodes:
        for name in node.params.values():
            if node.op != "batch_norm":
                counted[name] = _param_size(graph.params[name])
        if node.op == "batch_norm" and node.params:
            counted |= _norm_size(graph, node)
    sizes = counted.values()
    return SizeReport(
        sum(s.codes for s in sizes),
        sum(s.codebooks for s in sizes),
        sum(s.other for s in sizes),
        sum(s.dense for s in sizes),
        {name: counted[node.params["weight"]] for name, node in graph.layers().items()},
    )


def _param_size(param: Param) -> LayerSize:
    dense = 4 * math.prod(param.shape)
    if isinstance(param, Packed):
        return LayerSize(param.code_nbytes, param.codebook_nbytes, 0, dense)
    bytes_ = dense if param.dtype.kind == "f" else param.nbytes
    return LayerSize(0, 0, bytes_, bytes_)


def _norm_size(graph: Graph, node: Node) -> dict[str, LayerSize]:
    """Count weight and bias of a batch norm, present or to be made when its running statistics are folded."""
    channels = 4 * graph.params[next(iter(node.params.values()))].shape[0]
    folds = "mean" in node.params or "var" in node.params
    names = [node.params.get(r) or (f"{node.name}.{r}" if folds else None) for r in ("weight", "bias")]
    return {name: LayerSize(0, 0, channels, channels) for name in names if name}
