"""The filters of depthwise convolutions, as `kernels.products.filters` reads them."""

from typing import Any

import numpy as np

from pqnet.runtime.algorithms.summed import UNUSED, SummedWeight, summed_arguments
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import round_up

__all__ = ["filter_arguments"]


def filter_arguments(b: Builder, layer: Layer, per_task: int, at: int = 0) -> tuple[dict[str, Any], int]:
    """Return the arguments of `kernels.products.filters.FILTERS`, and the floats of scratch up to their end.

    A task has so many channels; packed filters are decoded to scratch from ``at`` on.
    """
    taps, dense, name = layer.taps, layer.weight, (layer.name, "filters")
    if isinstance(dense, np.ndarray):
        own = {"dense": b.constant(name, lambda: dense), "weight": UNUSED, "step": taps, "decoded": 0}
        return own | {"taps": taps}, at
    weight = SummedWeight(layer)
    # Of plain codes filters are rows of blocks, one behind another.
    plain = len(weight.lookups) == 1 and not weight.entries and weight.lookups[0].scales is None
    plain = plain and weight.blocks(weight.lookups[0], taps).firsts is None
    step = taps if plain else taps + 16
    part = round_up(at + per_task * step + 64, 16)
    own, scratch = summed_arguments(b, name, weight, taps, per_task, part)
    return {"dense": -1, "weight": own, "taps": taps, "step": step, "decoded": at}, part + (0 if plain else scratch)
