"""Bytes of a network, counted exactly as the papers count them."""

from dataclasses import dataclass

import numpy as np

from pqnet.codecs import Packed
from pqnet.graph.graph import WEIGHT_OPS, Graph

__all__ = ["LayerSize", "SizeReport", "measure_size"]

# Running statistics fold into weight and bias: the papers neither store nor count them.
FOLDED_ROLES = ("mean", "var")


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


def measure_size(graph: Graph) -> SizeReport:
    """Count the bytes of a graph; a shared parameter counts once."""
    counted: dict[str, LayerSize] = {}
    per_layer: dict[str, LayerSize] = {}
    for node in graph.nodes:
        for role, name in node.params.items():
            if node.op == "batch_norm" and role in FOLDED_ROLES:
                continue
            if name not in counted:
                param = graph.params[name]
                dense = 4 * int(np.prod(param.shape))
                if isinstance(param, Packed):
                    counted[name] = LayerSize(param.code_nbytes, param.codebook_nbytes, 0, dense)
                else:
                    counted[name] = LayerSize(0, 0, dense, dense)
                if role == "weight" and node.op in WEIGHT_OPS:
                    per_layer[node.name] = counted[name]
    sizes = counted.values()
    return SizeReport(
        sum(s.codes for s in sizes),
        sum(s.codebooks for s in sizes),
        sum(s.other for s in sizes),
        sum(s.dense for s in sizes),
        per_layer,
    )
