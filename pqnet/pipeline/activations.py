"""8-bit integer inputs of layers: their ranges, and which layers have to do without."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pqnet import _check
from pqnet._progress import tick
from pqnet._threads import default_threads
from pqnet.codecs import Packed, PackedPQ
from pqnet.errors import ConfigError
from pqnet.graph import Graph, Node, weight_op
from pqnet.graph.ranges import INPUT_RANGES, OUTPUT_SHIFTS, TOKEN_SCALES, pack_shift
from pqnet.pipeline.agreement import Agreement
from pqnet.pipeline.batches import Batch
from pqnet.pipeline.observers import INTEGER_OPS, OBSERVERS, Histogram, to_integers
from pqnet.pipeline.padding import real_positions, without_padding
from pqnet.pipeline.statistics import Statistics
from pqnet.pipeline.sweep import Values, sweep
from pqnet.runtime import Model
from pqnet.runtime.engine import Engine, prepared
from pqnet.runtime.execute import evaluate_node, node_params
from pqnet.runtime.integers import LARGEST, tokens_as_integers, weight_integers
from pqnet.runtime.layer import readable
from pqnet.runtime.tune import fixed

__all__ = ["check_activations", "integer_inputs", "ranges_of_statistics"]

SAMPLES, JUDGED = 16, 256  # by which the errors of layers, and of the network, are measured
REPAYS = 0.5  # of the squared error of outputs with one scale: what scales of rows have to come below


def check_activations(activations: str | None, observer: str, max_drop: float, calibration: object) -> None:
    """Raise ConfigError for arguments of `quantize` that do not fit each other."""
    _check.choice(activations, "activations", (None, "int8"))
    _check.choice(observer, "observer", tuple(OBSERVERS))
    if isinstance(max_drop, bool) or not isinstance(max_drop, int | float) or not 0 <= max_drop <= 1:
        raise ConfigError(f"max_drop: expected a number from 0 to 1, got {_check.describe(max_drop)}")
    if activations is not None and calibration is None:
        raise ConfigError("activations: expected calibration data to measure ranges of inputs, got none")
    if activations is not None and isinstance(calibration, Statistics) and not calibration.inputs:
        raise ConfigError(
            "activations: expected statistics that know the ranges of inputs, got those without; calibrate with "
            "activations='int8', or give calibration data"
        )


def ranges_of_statistics(model: Model, statistics: Statistics, observer: str) -> Model:
    """Give a network the ranges of the inputs of layers that statistics know; no layer is judged, nothing shifted."""
    found = {name: seen.range(observer) for name, seen in statistics.inputs.items()}
    ranges = {name: ends for name, ends in sorted(found.items()) if ends is not None}
    about = {"dtype": "int8", "observer": observer}
    meta = model.graph.meta | {INPUT_RANGES: ranges, OUTPUT_SHIFTS: {}, TOKEN_SCALES: [], "activations": about}
    return Model(replace(model.graph, meta=meta), model.golden)


def integer_inputs(model: Model, batches: Sequence[Batch], observer: str, max_drop: float, threads: int) -> Model:
    """Give a network what its layers need to compute with 8-bit integers.

    These are the ranges of their inputs, which the ``observer`` finds for the numbers that calibration data give them,
    and shifts of their outputs, by which integers are wrong on average. Linear layers whose outputs have half the
    squared error or less so get a scale for each row of the input (token) when they run. Layers are left without a
    range, first those whose outputs change most, until the outputs of the network keep 1 - ``max_drop`` of what they
    are in float32, on average over 256 samples at most; see `Agreement`.
    """
    graph = prepared(model.graph)  # as it will run: shifts are those of outputs behind norms that are merged
    found = _Inputs(graph, batches, observer, threads)
    sweep(graph, batches, {node.name for node in found.nodes}, found.visit, threads)
    judged = list(_first(batches, JUDGED))
    samples = sum(len(next(iter(batch.values()))) for batch in judged)
    agreement = Agreement.of(model, judged, None, threads)
    order = sorted(found.ranges, key=lambda name: (found.errors[name], name))

    def kept_with(integers: int) -> float:
        tick(f"outputs with {integers} layers in integers")
        graph = found.given_to(model.graph, order[:integers])
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
    about = {
        "dtype": "int8",
        "observer": observer,
        "max_drop": max_drop,
        "kept": round(kept, 6),
        "measure": agreement.parts,
        "float": sorted(order[integers:]),
        "errors": {name: float(f"{found.errors[name]:.4g}") for name in sorted(order)},
    }
    graph = found.given_to(model.graph, order[:integers])
    return Model(replace(graph, meta={**graph.meta, "activations": about}), model.golden)


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
    """What integers need to know of layers, and the relative squared errors that they make in their outputs."""

    def __init__(self, graph: Graph, batches: Sequence[Batch], observer: str, threads: int) -> None:
        self.graph, self.observer, self.threads = graph, observer, threads
        self.masks = [real_positions(batch) for batch in batches]  # of which later layers know nothing
        self.nodes = [node for node in graph.nodes if node.op in INTEGER_OPS and "weight" in node.params]
        self.ranges: dict[str, list[float]] = {}
        self.shifts: dict[str, list[float | str]] = {}
        self.by_row: set[str] = set()
        self.errors: dict[str, float] = {}

    def given_to(self, graph: Graph, layers: Iterable[str]) -> Graph:
        """Return a graph with what some layers need."""
        names = sorted(layers)
        shifts = {name: self.shifts[name] for name in names if name in self.shifts}
        ranges = {name: self.ranges[name] for name in names}
        tokens = [name for name in names if name in self.by_row]
        return replace(graph, meta=graph.meta | {INPUT_RANGES: ranges, OUTPUT_SHIFTS: shifts, TOKEN_SCALES: tokens})

    def visit(self, node: Node, values: Values, _: Values) -> None:
        """Measure a layer."""
        inputs = [self._real(i, value[node.inputs[0]]) for i, value in enumerate(values)]
        ends = Histogram.of(inputs, self.threads).range(self.observer)
        if ends is None:
            return
        self.ranges[node.name] = ends
        self._compare(node, values)

    def _real(self, batch: int, x: np.ndarray) -> np.ndarray:
        """Return what is no padding, of the first samples of a batch."""
        real = self.masks[batch]
        return without_padding(x, None if real is None else real[: len(x)])

    def _compare(self, node: Node, values: Values) -> None:
        """Measure the squared error of a layer's outputs, relative to these, that integers make, and its mean."""
        low, high = self.ranges[node.name]
        error, shift = self._errors(node, values, lambda x: to_integers(x, low, high))
        if weight_op(node.op).kind == "linear":
            by_row = self._errors(node, values, tokens_as_integers)
            if by_row[0] < REPAYS * error:
                self.by_row.add(node.name)
                error, shift = by_row
        self.errors[node.name] = error
        if shift.any():
            self.shifts[node.name] = pack_shift(shift)

    def _errors(
        self, node: Node, values: Values, rounding: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[float, np.ndarray]:
        """Return the relative squared error of outputs for a rounding of inputs, and the mean error of each output."""
        params = node_params(self.graph, node)
        rounded = {**params, "weight": _rounded_weight(self.graph.params[node.params["weight"]], params["weight"])}
        wrong, energy, left = [], 0.0, SAMPLES
        for i, value in enumerate(values):
            x = value[node.inputs[0]][:left]
            inputs = [x, *(value[name] for name in node.inputs[1:])]
            y = evaluate_node(node, inputs, params, {})[0]
            inputs[0] = rounding(x).astype(np.float32)
            difference = y - evaluate_node(node, inputs, rounded, {})[0]
            energy += float(np.square(self._real(i, y), dtype=np.float64).sum())
            axis = weight_op(node.op).channel_axis(y.ndim)
            wrong.append(np.moveaxis(self._real(i, difference), axis - y.ndim, -1).reshape(-1, y.shape[axis]))
            left -= len(x)
            if left <= 0:
                break
        errors = np.concatenate(wrong)
        shift = _mean_error(errors)
        return float(np.square(errors - shift, dtype=np.float64).sum()) / max(energy, 1e-30), shift


def _mean_error(errors: np.ndarray) -> np.ndarray:
    """Return what errors, shape (n, O), are on average, 0 where that is chance, or comes from a few large ones."""
    mean = errors.mean(0, dtype=np.float64)
    chance = errors.var(0, dtype=np.float64) / max(len(errors) - 1, 1)  # the variance of the mean
    shift = (mean * np.maximum(1 - chance / np.maximum(mean**2, 1e-300), 0)).astype(np.float32)
    # Clipped outliers of a few positions move the mean, and would make all others wrong.
    nearer: np.ndarray = np.abs(errors - shift).sum(0, dtype=np.float64) < np.abs(errors).sum(0, dtype=np.float64)
    return np.where(nearer, shift, np.float32(0))


def _rounded_weight(param: np.ndarray | Packed, dense: np.ndarray) -> np.ndarray:
    """Return a weight, ``dense`` if it is decoded, as its integers stand for it."""
    weight, own = readable(param)
    if not isinstance(weight, np.ndarray | PackedPQ):
        return dense
    factors = weight_integers(weight).scale * (1.0 if own is None else own)
    rows = np.broadcast_to(factors, len(dense)).reshape(-1, *[1] * (dense.ndim - 1))
    rounded: np.ndarray = (np.rint(dense / np.where(rows == 0, 1, rows)).clip(-LARGEST - 1, LARGEST) * rows).astype(
        np.float32
    )
    return rounded
