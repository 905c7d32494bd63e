"""Everything that a report shows, measured and as plain data; how it looks is decided elsewhere."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import pqnet
from pqnet import Model, PQNetError, Recipe
from pqnet._progress import tick
from pqnet.codecs import Packed, codec_from_attrs
from pqnet.graph.ranges import INPUT_RANGES, OUTPUT_SHIFTS, TOKEN_SCALES
from pqnet.io import network_digest
from pqnet.pipeline.batches import check_samples, named_inputs
from pqnet.pipeline.evaluate import accuracies, class_scores, fixed_batch, run_batches
from pqnet.report.layers import CodeUse, code_use, describe_layers, recorded

__all__ = ["Histogram", "Layer", "OutputRow", "Report", "Step", "gather", "provenance", "recipe_text"]

BINS = 60
RUNS = 5  # of which the median time of a step is taken
INNER = 8  # samples for the outputs of all layers, which are kept at once


class Histogram(NamedTuple):
    """Shares of numbers in equal bins: of this network, and of the float network if there is one to compare with."""

    edges: np.ndarray
    now: np.ndarray
    before: np.ndarray | None


@dataclass
class Layer:
    """A layer: what `describe_layers` says, and what was measured."""

    name: str
    op: str
    shape: list[int]
    codec: str
    codes: int
    codebooks: int
    other: int
    dense_bytes: int
    output_error: float | None
    use: CodeUse | None
    weights: Histogram
    weight_error: float | None = None  # squared, relative to the float network's weight
    drift: float | None = None  # of its outputs in the running network, with all errors of layers before it
    seconds: float | None = None
    algorithm: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self.codes + self.codebooks + self.other

    @property
    def rate(self) -> float:
        """Bits that a weight takes."""
        return 32 * self.nbytes / self.dense_bytes


class Step(NamedTuple):
    """A step of the running network; those that prepare a layer's input count as the layer's."""

    label: str
    algorithm: str
    seconds: float


class OutputRow(NamedTuple):
    """An output of the network: its accuracy, and how it compares with the float network's."""

    name: str
    numbers: Histogram
    accuracy: dict[str, float]
    accuracy_before: dict[str, float]
    error: float | None  # squared, relative
    same_class: float | None


@dataclass
class Report:
    """All that a page is made of."""

    title: str
    model: Model
    layers: list[Layer]
    steps: list[Step]
    timed: str  # what the times are of, or why there are none
    permuted: bool = False  # channels are in another order than the float network's: what is inside does not compare
    file_bytes: int | None = None
    outputs: list[OutputRow] = field(default_factory=list)
    samples: int = 0
    compared: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    recipe: str = ""


def gather(
    model: Model | str | Path,
    against: Model | str | Path | None = None,
    inputs: Any = None,
    labels: Any = None,
    *,
    batch: int = 32,
    seed: int = 0,
    threads: int | None = None,
) -> Report:
    """Measure a network for a report, see `write_report` for the arguments."""
    path = None if isinstance(model, Model) else Path(model)
    model = model if isinstance(model, Model) else pqnet.load(model)
    reference = pqnet.load(against) if isinstance(against, str | Path) else against
    if labels is not None and inputs is None:
        raise PQNetError("labels: expected inputs with them, the samples that they are of, got none")
    if reference is not None:
        _check_alike(model, reference)
    arrays, samples = _samples(model, inputs)
    tick("times of steps")
    title = "a network" if path is None else path.name
    steps, timed = _profile(model, arrays, batch, seed, threads)
    report = Report(title, model, _layers(model, reference), _merged(steps, model), timed, samples=samples)
    for layer in report.layers:
        own = [step for step in steps if _base(step.label) == layer.name]
        layer.seconds = sum(step.seconds for step in own) if own else None
        layer.algorithm = next((step.algorithm for step in own if step.label == layer.name), "")
    report.permuted = bool(recorded(model).get("permute"))
    if path is not None:
        report.file_bytes = os.path.getsize(path)
    if reference is not None:
        report.compared = Path(against).name if isinstance(against, str | Path) else "the float network"
    if arrays:
        report.outputs = _outputs(model, reference, arrays, _labels(labels, samples), batch, threads)
        if reference is not None and not report.permuted:
            _measure_drift(report.layers, model, reference, arrays, threads)
    report.provenance, report.recipe = provenance(model), recipe_text(model)
    return report


def _check_alike(model: Model, reference: Any) -> None:
    if not isinstance(reference, Model):
        raise PQNetError(f"against: expected a Model or the path of one, got {type(reference).__name__}")
    for what in ("inputs", "outputs"):
        ours, theirs = getattr(model, what), getattr(reference, what)
        if ours != theirs:
            raise PQNetError(f"against: expected a network with the {what} {ours}, as the model has, got {theirs}")


def _samples(model: Model, inputs: Any) -> tuple[dict[str, np.ndarray], int]:
    if inputs is None:
        return {}, 0
    return check_samples(model.graph, named_inputs(model.graph, inputs, "inputs"), "inputs")


def _labels(labels: Any, samples: int) -> np.ndarray | None:
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.dtype.kind not in "iu" or array.shape != (samples,):
        got = f"{array.dtype} of shape {array.shape}"
        raise PQNetError(f"labels: expected one integer for each of {samples} samples, got {got}")
    return array.astype(np.int64)


def _layers(model: Model, reference: Model | None) -> list[Layer]:
    others = {} if reference is None else reference.graph.layers()
    permuted = bool(recorded(model).get("permute"))
    sizes, nodes, found = model.size().per_layer, model.graph.layers(), []
    for name, facts in describe_layers(model).items():
        tick(f"weights of {name}")
        param = model.graph.params[nodes[name].params["weight"]]
        now, before = _dense(param), None
        if reference is not None and name in others:
            before = _dense(reference.graph.params[others[name].params["weight"]])
        part = sizes[name]
        found.append(
            Layer(
                name,
                facts["op"],
                facts["shape"],
                str(param.codec) if isinstance(param, Packed) else "float",
                part.codes,
                part.codebooks,
                part.other,
                part.dense,
                _number(facts["output_error"]),
                code_use(param),
                histogram(now, before),
                weight_error=None if before is None or permuted else relative_error(now, before),
            )
        )
    return found


def _dense(param: Any) -> np.ndarray:
    return np.asarray(param.decode() if isinstance(param, Packed) else param, np.float32)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


def histogram(now: np.ndarray, before: np.ndarray | None) -> Histogram:
    """Return the shares of numbers in bins that all of both fit in; NaN and infinities are left out."""
    arrays = [a[np.isfinite(a)].astype(np.float64) for a in (now, *([] if before is None else [before]))]
    joined = np.concatenate([a for a in arrays if a.size] or [np.zeros(1)])
    low, high = float(joined.min()), float(joined.max())
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    edges = np.linspace(low, high, BINS + 1)
    shares = [np.histogram(a, edges)[0] / max(1, a.size) for a in arrays]
    return Histogram(edges, shares[0], shares[1] if len(shares) > 1 else None)


def relative_error(now: np.ndarray, before: np.ndarray) -> float | None:
    """Return the squared error relative to the squares of what was before; None if there is nothing to compare."""
    if now.shape != before.shape:
        return None
    a, b = now.astype(np.float64), before.astype(np.float64)
    energy, error = float(np.square(b).sum()), float(np.square(a - b).sum())
    return error / energy if energy > 0 and np.isfinite(error) else None


def _base(label: str) -> str:
    return label.partition(" (")[0]


def _profile(
    model: Model, arrays: Mapping[str, np.ndarray], batch: int, seed: int, threads: int | None
) -> tuple[list[Step], str]:
    """Time every step of a batch of the inputs, or of inputs that are drawn."""
    try:
        if arrays:
            size = fixed_batch(model) or batch
            some = {name: a[:size] for name, a in arrays.items()}
        else:
            some = dict((model.golden or model.draw_golden(seed)).inputs())
        steps = model.profile(some, threads=threads, runs=RUNS)
    except PQNetError as reason:
        if arrays:
            raise
        return [], f"Not timed: the network does not run on inputs that are drawn ({reason}); give some of its own."
    shapes = ", ".join(f"{name} {'x'.join(map(str, a.shape))}" for name, a in some.items())
    drawn = "" if arrays else ", drawn at random"
    timed = f"Median of {RUNS} runs on this machine, each step alone; inputs: {shapes}{drawn}."
    return [Step(step.label, step.algorithm, step.seconds) for step in steps], timed


def _merged(steps: Iterable[Step], model: Model) -> list[Step]:
    """Add the steps that prepare a layer's input to the layer's."""
    layers, found = model.graph.layers(), dict[str, Step]()
    for step in steps:
        label = _base(step.label) if _base(step.label) in layers else step.label
        before = found.get(label)
        if before is None:
            found[label] = Step(label, step.algorithm, step.seconds)
        else:
            main = step.algorithm if step.label == label else before.algorithm
            found[label] = Step(label, main, before.seconds + step.seconds)
    return list(found.values())


def _outputs(
    model: Model,
    reference: Model | None,
    arrays: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    batch: int,
    threads: int | None,
) -> list[OutputRow]:
    ours = run_batches(model, arrays, batch, threads)
    theirs = {} if reference is None else run_batches(reference, arrays, batch, threads)
    scored = {} if labels is None else class_scores(ours)
    rows = []
    for name, now in ours.items():
        before = theirs.get(name)
        classes = before is not None and before.dtype.kind == "f" and before.ndim == 2 and before.shape[1] > 1
        same = float(np.mean(now.argmax(1) == before.argmax(1))) if before is not None and classes else None
        right = accuracies(now, labels) if labels is not None and name in scored else {}
        right_before = accuracies(before, labels) if labels is not None and right and before is not None else {}
        error = None if before is None else relative_error(now, before)
        rows.append(OutputRow(name, histogram(now, before), right, right_before, error, same))
    return rows


def _measure_drift(
    layers: list[Layer], model: Model, reference: Model, arrays: Mapping[str, np.ndarray], threads: int | None
) -> None:
    """Compare the outputs of every layer on a few samples, in the network as it runs."""
    both = [(m, m.graph.layers()) for m in (model, reference)]
    shared = [layer for layer in layers if all(layer.name in nodes for _, nodes in both)]
    few = {name: a[: fixed_batch(model) or INNER] for name, a in arrays.items()}
    found = []
    for m, nodes in both:
        graph = replace(m.graph, outputs={f"{i}": nodes[layer.name].outputs[0] for i, layer in enumerate(shared)})
        found.append(Model(graph).run(few, threads=threads) if shared else {})
    for i, layer in enumerate(shared):
        layer.drift = relative_error(found[0][str(i)], found[1][str(i)])


def provenance(model: Model) -> dict[str, Any]:
    """Return what the file says of where the network is from and how it was made small, and its digest."""
    left_out = ("quantization", INPUT_RANGES, OUTPUT_SHIFTS, TOKEN_SCALES)
    meta = {key: value for key, value in model.graph.meta.items() if key not in left_out}
    options = {key: value for key, value in recorded(model).items() if key not in ("layers", "blocks")}
    made = {f"quantization: {key}": value for key, value in options.items()}
    return {
        **meta,
        **made,
        "digest of the network": network_digest(model.graph),
        "read by": f"pqnet {pqnet.__version__}",
    }


def recipe_text(model: Model) -> str:
    """Return the codec of every layer, as a recipe file has them; nothing for a float network."""
    codecs = {name: facts["codec"] for name, facts in describe_layers(model).items()}
    if not any(codecs.values()):
        return ""
    return Recipe({name: attrs and codec_from_attrs(attrs) for name, attrs in codecs.items()}).to_yaml()
