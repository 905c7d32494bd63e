"""What layers need to compute with 8-bit integers, as a network's ``meta`` holds it.

The ranges of their inputs that integers stand for, or that each row of features (token) has a range of its own, and
what is added to their outputs because integers are wrong on average.
"""

import base64
import math
from collections.abc import Mapping

import numpy as np

from pqnet._check import error
from pqnet.graph.graph import Graph
from pqnet.graph.op import get_op

__all__ = [
    *("INPUT_RANGES", "OUTPUT_SHIFTS", "TOKEN_SCALES"),
    *("check_ranges", "input_ranges", "output_shift", "pack_shift", "token_scales"),
]

INPUT_RANGES, OUTPUT_SHIFTS, TOKEN_SCALES = "input_ranges", "output_shifts", "token_scales"
MOST = 127  # steps of a shift


def input_ranges(graph: Graph) -> Mapping[str, tuple[float, float]]:
    """Return layer name to least and largest number of its input; a layer without a range computes in floats."""
    ranges: Mapping[str, tuple[float, float]] = graph.meta.get(INPUT_RANGES, {})
    return ranges


def token_scales(graph: Graph) -> list[str]:
    """Return the linear layers each row of whose input has a range of its own, which it gets when they run."""
    layers: list[str] = graph.meta.get(TOKEN_SCALES, [])
    return layers


def pack_shift(shift: np.ndarray) -> list[float | str]:
    """Return numbers, shape (O,), as ``meta`` holds them: a step and, as text, one byte of steps for each."""
    step = float(f"{np.abs(shift).max(initial=0.0) / MOST:.6g}")
    steps = np.rint(shift / step if step > 0 else 0 * shift).clip(-MOST, MOST).astype(np.int8)
    return [step, base64.b64encode(steps.tobytes()).decode()]


def output_shift(graph: Graph, name: str) -> np.ndarray | None:
    """Return what is added to the outputs of a layer if it computes with integers, float32 of shape (O,), or None."""
    found = graph.meta.get(OUTPUT_SHIFTS, {}).get(name)
    if found is None:
        return None
    shift: np.ndarray = np.frombuffer(base64.b64decode(found[1]), np.int8) * np.float32(found[0])
    return shift


def check_ranges(graph: Graph) -> None:
    """Raise PQNetError if ranges or shifts are not those of layers.

    Ranges are finite, with 0 inside, and not empty; shifts one finite number for each output. Rows have ranges of their
    own only in linear layers, which have one for all, too.
    """
    ranges, layers = input_ranges(graph), {node.name for node in graph.nodes if "weight" in node.params}
    if not isinstance(ranges, dict) or not layers.issuperset(ranges):
        raise error(f"meta {INPUT_RANGES!r}", "a dict of ranges by names of layers", ranges)
    for name, limits in ranges.items():
        numbers = isinstance(limits, list | tuple) and len(limits) == 2 and all(type(n) in (int, float) for n in limits)
        if not numbers or not -math.inf < limits[0] <= 0 <= limits[1] < math.inf or limits[0] == limits[1]:
            raise error(f"meta {INPUT_RANGES!r}: {name!r}", "[low, high], finite, with 0 between them", limits)
    _check_token_scales(graph)
    shifts = graph.meta.get(OUTPUT_SHIFTS, {})
    if not isinstance(shifts, dict) or not shifts.keys() <= ranges.keys():
        raise error(f"meta {OUTPUT_SHIFTS!r}", "a dict of shifts by names of layers that have a range", shifts)
    outputs = {node.name: graph.params[node.params["weight"]].shape[0] for node in graph.nodes if node.name in shifts}
    for name, given in shifts.items():
        pair = isinstance(given, list | tuple) and len(given) == 2 and type(given[0]) in (int, float)
        if not pair or not 0 <= given[0] < 1e30 or _n_bytes(given[1]) != outputs[name]:
            want = f"[step, {outputs[name]} bytes in base 64]"
            raise error(f"meta {OUTPUT_SHIFTS!r}: {name!r}", want, given)


def _check_token_scales(graph: Graph) -> None:
    given, ranges = token_scales(graph), input_ranges(graph)
    rules = {node.name: get_op(node.op).weight for node in graph.nodes if node.name in ranges}
    rows = {name for name, rule in rules.items() if rule is not None and rule.kind == "linear"}
    if not isinstance(given, list) or not all(isinstance(name, str) and name in rows for name in given):
        raise error(f"meta {TOKEN_SCALES!r}", "a list of linear layers that have a range", given)


def _n_bytes(text: object) -> int:
    try:
        return len(base64.b64decode(text, validate=True)) if isinstance(text, str) else -1
    except ValueError:
        return -1
