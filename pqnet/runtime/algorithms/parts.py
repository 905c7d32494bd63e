"""Sums of weights as sums of layers: each part by the algorithm that suits it, added to those before it."""

from dataclasses import replace

import numpy as np

from pqnet.codecs import PackedAdditive
from pqnet.runtime.algorithms.base import Algorithm, Call, Host, cheapest, fitting
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import View
from pqnet.runtime.windows import Windows


class Parts(Algorithm):
    """Products with each part of a weight in turn, where other algorithms read the codes of all of them."""

    name = "parts"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether the weight is a sum, and an algorithm fits each part."""
        if not isinstance(layer.weight, PackedAdditive) or layer.depthwise:
            return False
        words = [part.codewords() for part in layer.weight.parts]
        return all(words) and all(fitting(part, compute, host) for part in _layers(layer))

    def cost(self, layer: Layer) -> float:
        """Return the cost of all parts."""
        return sum(cheapest(part, "float32").cost(part) for part in _layers(layer))

    def windows(self, b: Builder, layer: Layer, x: View) -> Windows:
        """Take the input as it is: each part has windows of its own."""
        return Windows(layer, x, x.strides[0], 0, np.zeros(0, np.int64), layer.batch, *layer.out_size, x.strides[2])

    def steps(self, b: Builder, call: Call) -> None:
        """Append the steps of all parts: the first takes over what is added to the sum, the last the activation."""
        end, parts = call.end, _layers(call.layer)
        for i, part in enumerate(parts):
            chosen = cheapest(part, b.compute)
            factors = [scale for scale in (part.scale, end.scale) if scale is not None]
            own = replace(
                end,
                part=part.part,
                scale=np.prod(factors, axis=0, dtype=np.float32) if factors else None,
                shift=end.shift if i == 0 else None,
                residual=end.residual if i == 0 else end.out,
                activation=end.activation if i == len(parts) - 1 else 0,
                parameters=end.parameters if i == len(parts) - 1 else (),
            )
            chosen.steps(b, Call(part, chosen.windows(b, part, call.windows.x), own))


def _layers(layer: Layer) -> list[Layer]:
    """Return the layers of the parts, whose codes kernels read."""
    assert isinstance(layer.weight, PackedAdditive)
    found = []
    for i, part in enumerate(layer.weight.parts):
        words = part.codewords()
        assert words is not None
        found.append(replace(layer, weight=words[0], scale=words[1], part=i))
    return found
