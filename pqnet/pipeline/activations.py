"""8-bit integer inputs of layers: their ranges, and which layers have to do without."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pqnet import _check
from pqnet._progress import tick
from pqnet._threads import default_threads, ordered_map
from pqnet.codecs import PackedPQ
from pqnet.errors import ConfigError
from pqnet.graph import Graph, Node
from pqnet.graph.ranges import INPUT_RANGES
from pqnet.pipeline.agreement import Agreement
from pqnet.pipeline.batches import Batch
from pqnet.pipeline.padding import masked, real_positions
from pqnet.pipeline.sweep import Values, sweep
from pqnet.runtime import Model
from pqnet.runtime.engine import Engine, prepared
from pqnet.runtime.execute import evaluate_node, node_params
from pqnet.runtime.integers import LEVELS, input_scaling, weight_integers
from pqnet.runtime.layer import readable
from pqnet.runtime.tune import fixed

__all__ = ["check_activations", "integer_inputs"]

BINS = 2048
STEPS = 64  # ends that are tried on each side of zero
SAMPLES, JUDGED = 16, 256  # by which the errors of layers, and of the network, are measured


def check_activations(activations: str | None, max_drop: float, has_data: bool) -> None:
    """Raise ConfigError for arguments of `quantize` that do not fit each other."""
    _check.choice(activations, "activations", (None, "int8"))
    if isinstance(max_drop, bool) or not isinstance(max_drop, int | float) or not 0 <= max_drop <= 1:
        raise ConfigError(f"max_drop: expected a number from 0 to 1, got {_check.describe(max_drop)}")
    if activations is not None and not has_data:
        raise ConfigError("activations: expected calibration data to measure ranges of inputs, got none")


def integer_inputs(model: Model, batches: Sequence[Batch], max_drop: float, threads: int) -> Model:
    """Give a network the ranges of the inputs of its layers that 8-bit integers stand for.

    The range of a layer rounds the numbers that calibration data give it with the least squared error. Layers are left
    without a range, first those whose outputs change most, until the outputs of the network keep 1 - ``max_drop`` of
    what they are in float32, on average over 256 samples at most; see `Agreement`.
    """
    found = _Inputs(model.graph, threads)
    sweep(model.graph, batches, {node.name for node in found.nodes}, found.visit, threads)
    judged = list(_first(batches, JUDGED))
    samples = sum(len(next(iter(batch.values()))) for batch in judged)
    agreement = Agreement.of(model, judged, None, threads)
    order = sorted(found.ranges, key=lambda name: (found.errors[name], name))

    def kept_with(integers: int) -> float:
        tick(f"outputs with {integers} layers in integers")
        graph = _with_ranges(model.graph, {name: found.ranges[name] for name in order[:integers]})
        return float(agreement.scores(_AsIntegers(graph), model, judged, threads).mean()) if integers else 1.0

    # The more layers, the less is kept: the most that keep enough are ``integers``, or between that and ``more``.
    integers, more, kept = 0, len(order) + 1, 1.0
    tried = len(order)
    while more - integers > 1:
        now = kept_with(tried)
        if now >= 1 - max_drop - 1 / samples:  # one sample may be chance
            integers, kept = tried, now
        else:
            more = tried
        tried = (integers + more) // 2
    ranges = {name: found.ranges[name] for name in sorted(order[:integers])}
    about = {
        "dtype": "int8",
        "max_drop": max_drop,
        "kept": round(kept, 6),
        "measure": agreement.parts,
        "float": sorted(order[integers:]),
        "errors": {name: float(f"{found.errors[name]:.4g}") for name in sorted(order)},
    }
    graph = _with_ranges(model.graph, ranges)
    return Model(replace(graph, meta={**graph.meta, "activations": about}), model.golden)


def _with_ranges(graph: Graph, ranges: dict[str, list[float]]) -> Graph:
    return replace(graph, meta={**graph.meta, INPUT_RANGES: ranges})


def _first(batches: Sequence[Batch], n: int) -> Iterator[Batch]:
    """Yield about the first n samples."""
    for batch in batches:
        if n > 0:
            yield batch
        n -= len(next(iter(batch.values())))


class _AsIntegers:
    """A network in integers wherever there is a range, whether this CPU is faster so or not."""

    def __init__(self, graph: Graph) -> None:
        self._engine = Engine(prepared(graph), fixed("int8"), "int8")

    def run(self, inputs: Mapping[str, np.ndarray], *, threads: int | None = None) -> dict[str, np.ndarray]:
        return self._engine.run(inputs, default_threads(threads))


class _Inputs:
    """Ranges of the inputs of layers, and the relative squared errors of their outputs with integers."""

    def __init__(self, graph: Graph, threads: int) -> None:
        self.graph, self.threads = graph, threads
        ops = ("conv1d", "conv2d", "linear")
        self.nodes = [node for node in graph.nodes if node.op in ops and "weight" in node.params]
        self.ranges: dict[str, list[float]] = {}
        self.errors: dict[str, float] = {}

    def visit(self, node: Node, values: Values, _: Values) -> None:
        """Measure a layer."""
        inputs = [self._real(value, value[node.inputs[0]]) for value in values]
        low = min(0.0, *(float(x.min(initial=0)) for x in inputs))
        high = max(0.0, *(float(x.max(initial=0)) for x in inputs))
        if low == high:
            return
        counts = sum(
            ordered_map(lambda x: np.histogram(x, BINS, (low, high))[0].astype(np.float64), inputs, self.threads),
            np.zeros(BINS),
        )
        ends = least_squares_range(counts, low, high)
        self.ranges[node.name] = [float(f"{end:.6g}") for end in ends]
        self.errors[node.name] = self._error(node, values)

    def _real(self, value: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        mask = masked(x, real_positions(dict(value)))
        return x if mask is None else x[mask]

    def _error(self, node: Node, values: Values) -> float:
        """Return the squared error of a layer's outputs, relative to these, that integers make; and of its weight."""
        params, (low, high) = node_params(self.graph, node), self.ranges[node.name]
        error = energy = 0.0
        left = SAMPLES
        for value in values:
            x = value[node.inputs[0]][:left]
            inputs = [x, *(value[name] for name in node.inputs[1:])]
            y = evaluate_node(node, inputs, params, {})[0]
            inputs[0] = _rounded(x, low, high).astype(np.float32)
            other = evaluate_node(node, inputs, params, {})[0]
            error += float(np.square(y - other, dtype=np.float64).sum())
            energy += float(np.square(y, dtype=np.float64).sum())
            left -= len(x)
            if left <= 0:
                break
        weight = readable(self.graph.params[node.params["weight"]])[0]
        rounded = weight_integers(weight).error if isinstance(weight, np.ndarray | PackedPQ) else 0.0
        return error / max(energy, 1e-30) + rounded


def least_squares_range(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Return the range within [low, high] that rounds the numbers of a histogram over it with the least squared error.

    First the upper end moves towards zero, then the lower one; zero stays between them.
    """
    centres = low + (high - low) / BINS * (np.arange(BINS) + 0.5)
    shares = np.linspace(1 / STEPS, 1, STEPS)
    for end in ("high", "low"):
        ends = [(low, high * share) if end == "high" else (low * share, high) for share in shares[::-1]]
        errors = [_rounding_error(centres, counts, *tried) if tried[0] < tried[1] else np.inf for tried in ends]
        low, high = ends[int(np.argmin(errors))]  # of equal ones the widest
    return low, high


def _rounding_error(x: np.ndarray, counts: np.ndarray, low: float, high: float) -> float:
    return float((np.square(_rounded(x, low, high) - x) * counts).sum())


def _rounded(x: np.ndarray, low: float, high: float) -> np.ndarray:
    factor, zero = input_scaling((low, high))
    rounded: np.ndarray = (np.rint(np.clip(x * factor + zero, 0, LEVELS)) - zero) / factor
    return rounded
