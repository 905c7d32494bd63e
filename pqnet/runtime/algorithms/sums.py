"""Weights that are sums, have scales of groups of inputs, or single entries: a panel is put together from the parts."""

from math import prod

import numpy as np

from pqnet.codecs.decoding import Lookup
from pqnet.kernels.products import sums as kernel
from pqnet.kernels.products.tile import ROWS
from pqnet.runtime.algorithms.base import Algorithm, Call, Host
from pqnet.runtime.algorithms.gemm import Cut, cut_layer, decode_cycles, emit_gemm
from pqnet.runtime.algorithms.summed import SummedWeight, summed_arguments
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer

SCALE, ADD, MOVE, ENTRY = 4.0, 1.0, 12.0, 6.0  # cycles of an element of the reduction in a panel; of an entry


class Sums(Algorithm):
    """Products with packed weights that are no codes of one codebook: decode + GEMM."""

    name = "sums"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether the weight is packed, but has no codes that other algorithms read."""
        return not isinstance(layer.weight, np.ndarray) and layer.codes is None and not layer.depthwise

    def cost(self, layer: Layer) -> float:
        """Return the cost of a product and of all parts of the weight."""
        return _cut(layer, SummedWeight(layer)).cost

    def steps(self, b: Builder, call: Call) -> None:
        """Append the step."""
        weight = SummedWeight(call.layer)
        cut = _cut(call.layer, weight)
        own, scratch = summed_arguments(b, call.layer.name, weight, cut.arguments["piece"], ROWS, cut.scratch)
        emit_gemm(b, call, kernel.sums, cut, {"weight": own}, weight.order, self.name, scratch)


def _cut(layer: Layer, weight: SummedWeight) -> Cut:
    decode = sum(_cycles(weight, lookup) for lookup in weight.lookups)
    entries = sum(len(entries.values) for entries in weight.entries)
    decode += ADD * max(len(weight.lookups) - 1, 1) + ENTRY * ROWS * entries / prod(weight.whole)
    return cut_layer(layer, weight.unit, round(decode, 3))


def _cycles(weight: SummedWeight, lookup: Lookup) -> float:
    """Return the cycles that an element of the reduction takes in a panel for one lookup."""
    d, blocks = int(lookup.codebook.shape[1]), weight.blocks(lookup, weight.inputs)
    decoded = decode_cycles(d) * d * len(blocks.numbers) / weight.inputs
    return decoded + (SCALE if lookup.scales is not None else 0) + (0 if blocks.sources is None else MOVE)
