"""The ranges of the inputs of layers that 8-bit integers stand for, as a network's ``meta`` holds them."""

import math
from collections.abc import Mapping

from pqnet._check import error
from pqnet.graph.graph import Graph

__all__ = ["INPUT_RANGES", "check_ranges", "input_ranges"]

INPUT_RANGES = "input_ranges"


def input_ranges(graph: Graph) -> Mapping[str, tuple[float, float]]:
    """Return layer name to least and largest number of its input; a layer without a range computes in floats."""
    ranges: Mapping[str, tuple[float, float]] = graph.meta.get(INPUT_RANGES, {})
    return ranges


def check_ranges(graph: Graph) -> None:
    """Raise PQNetError if the ranges are not those of layers, each finite, with 0 inside, and not empty."""
    ranges, layers = input_ranges(graph), {node.name for node in graph.nodes if "weight" in node.params}
    if not isinstance(ranges, dict) or not layers.issuperset(ranges):
        raise error(f"meta {INPUT_RANGES!r}", "a dict of ranges by names of layers", ranges)
    for name, limits in ranges.items():
        numbers = isinstance(limits, list | tuple) and len(limits) == 2 and all(type(n) in (int, float) for n in limits)
        if not numbers or not -math.inf < limits[0] <= 0 <= limits[1] < math.inf or limits[0] == limits[1]:
            raise error(f"meta {INPUT_RANGES!r}: {name!r}", "[low, high], finite, with 0 between them", limits)
