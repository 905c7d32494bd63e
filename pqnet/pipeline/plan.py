"""Which codec for which layer, so that the file has a wanted size and the network's outputs change least."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pqnet import _check
from pqnet._threads import blas_limit, default_threads
from pqnet.codecs import PQ, Codec, Packed
from pqnet.errors import ConfigError
from pqnet.graph import Node
from pqnet.graph.affine import FreeAffine
from pqnet.graph.passes import separate_norm_statistics
from pqnet.io import Golden, graph_nbytes
from pqnet.pipeline.allocate import allocations
from pqnet.pipeline.calibrate import calibrate
from pqnet.pipeline.moments import METRICS
from pqnet.pipeline.progress import progress_bar
from pqnet.pipeline.rates import Choice, LayerRates, codec_nbytes
from pqnet.pipeline.recipe import Recipe
from pqnet.pipeline.run import Options, finished_graph, layer_report
from pqnet.pipeline.sensitivity import network_gains, single_samples, some_samples
from pqnet.pipeline.statistics import Statistics
from pqnet.runtime import Model

__all__ = ["Measured", "Plan", "PlannedLayer", "measure", "parse_size", "plan"]

PREFER = ("error", "latency")
LEAST_SHARE = 0.99  # of the target that the file takes
AIM = 0.997  # of the target, up to which plans keep away from that share
CELLS = 16384  # of bytes; 400 for each layer if that is more
MOMENT_SAMPLES = 64  # blocks of d inputs need few
GAIN_SAMPLES = 8
UNITS = {"": 1, "b": 1} | {p + "b": 1000**i for i, p in enumerate("kmg", 1)}
UNITS |= {p + "ib": 1024**i for i, p in enumerate("kmg", 1)}


@dataclass(frozen=True)
class PlannedLayer:
    """What a plan makes of one layer.

    Attributes
    ----------
    shape : tuple of int
    codec : Codec or None
        None keeps float.
    nbytes : int
        Of the weight.
    error : float
        Predicted squared output error of the layer, relative to its outputs.
    gain : float
        Squared change of the network's outputs for one of this layer's outputs alone, both relative.
    """

    shape: tuple[int, ...]
    codec: Codec | None
    nbytes: int
    error: float
    gain: float


@dataclass(frozen=True)
class Plan:
    """A recipe and what it is predicted to lead to.

    Attributes
    ----------
    layers : dict of str to PlannedLayer
    nbytes : int
        Of the file, at most.
    target : int
        Wanted bytes of the file.
    """

    layers: dict[str, PlannedLayer]
    nbytes: int
    target: int

    @property
    def recipe(self) -> Recipe:
        """The codec of every layer."""
        return Recipe({name: layer.codec for name, layer in self.layers.items()})

    @property
    def error(self) -> float:
        """Predicted squared error of the network's outputs, relative: layers add up and repair nothing."""
        return sum(layer.gain * layer.error for layer in self.layers.values())


def parse_size(size: Any, name: str = "target_size") -> int:
    """Return a number of bytes, given as one or as text such as ``"5MB"``, ``"800 kB"`` or ``"1.5 MiB"``.

    kB, MB and GB are powers of 1000; KiB, MiB and GiB powers of 1024.
    """
    expected = "a number of bytes such as 5000000, '5MB', '800kB' or '1.5MiB'"
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", size, re.ASCII)
        if match is None or match[2].lower() not in UNITS or len(match[1]) > 15:
            raise ConfigError(str(_check.error(name, expected, _check.describe(size))))
        size = int(float(match[1]) * UNITS[match[2].lower()])
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ConfigError(str(_check.error(name, expected, _check.describe(size))))
    return int(size)


def plan(
    model: Model,
    calibration: Any,
    target_size: int | str,
    *,
    prefer: str = "error",
    metric: str = "full",
    golden: bool = False,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = True,
) -> Recipe:
    """Choose a codec for every layer, so that the file has a wanted size and the network's outputs change least.

    Every layer is tried with codebooks of several block sizes, layouts and K (powers of two and not), stored as
    float16 or int8, with integers of 4 to 8 bits, and in float; its output error is measured at some of them, on a
    sample of its outputs, and interpolated. With data, each layer is also made wrong once, alone, to measure how much
    of its error reaches the network's outputs. The choices of all layers are then made together, by a dynamic program.

    Parameters
    ----------
    model : Model
        The float network.
    calibration : array, dict of arrays, iterable of either, or Statistics
        Data, as for `quantize`; 64 samples of arrays are used. With statistics of `calibrate` only, a layer's
        relative output error counts the same in all layers.
    target_size : int or str
        Bytes of the file that ``quantize(model, recipe, ...).save(path)`` writes, or text like ``"5MB"`` (10**6 bytes),
        ``"800kB"``, ``"1.5MiB"``. The file is never larger, and from 10 kB on takes at least
        99 % of it.
    prefer : {"error", "latency"}
        What decides at the same bytes: the predicted error, or, before that, the layouts that kernels run fastest.
    metric : {"full", "block", "pooled", "none"}
        Of `quantize`: only with ``full`` do the errors of blocks make up for each other.
    golden : bool
        Leave room for the golden record that `pqnet quantize` adds.
    seed : int
    threads : int, optional
        Default: all cores. The result does not depend on it.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    Recipe

    Raises
    ------
    ConfigError
        A size that is none, or that no plan meets; the message names the smallest and the largest. Near the float
        network's size, where layers are integers or float, there are gaps between the sizes of plans.
    PQNetError
        Calibration data that do not fit the model, NaN.

    Examples
    --------
    >>> import os, pqnet
    >>> from pqnet.demo import load_images, model_path
    >>> model, images = pqnet.load(model_path()), load_images()[0][:200]
    >>> recipe = pqnet.plan(model, images, target_size="40kB")
    >>> pqnet.quantize(model, recipe, images, metric="block").save("small.h5")
    >>> 39_600 <= os.path.getsize("small.h5") <= 40_000
    True
    """
    target = parse_size(target_size)
    measured = measure(model, calibration, prefer=prefer, metric=metric, seed=seed, threads=threads, progress=progress)
    return measured.plan(target, golden=golden).recipe


@dataclass(frozen=True)
class Measured:
    """What plans of any size are made from.

    Attributes
    ----------
    model : Model
    options : dict of str to list of Choice
        What each layer may become.
    gains : dict of str to float
        See `PlannedLayer`.
    seed : int
    """

    model: Model
    options: dict[str, list[Choice]]
    gains: dict[str, float]
    seed: int

    def plan(self, target_size: int | str, *, golden: bool = False) -> Plan:
        """Return what `pqnet.plan` decides, with its predictions."""
        target = parse_size(target_size)
        files = _Files(self.model, _check.choice(golden, "golden", (False, True)), self.seed)
        chosen, nbytes = _choose(self.options, self.gains, files, target)
        layers = {n: PlannedLayer(files.shape(n), c.codec, c.nbytes, c.error, self.gains[n]) for n, c in chosen.items()}
        return Plan(layers, nbytes, target)


def measure(
    model: Model,
    calibration: Any,
    *,
    prefer: str = "error",
    metric: str = "full",
    seed: int = 0,
    threads: int | None = None,
    progress: bool = True,
) -> Measured:
    """Measure what `plan` decides from, for any number of sizes; the arguments are the same."""
    if not isinstance(model, Model):
        raise _check.error("model", "a pqnet.Model", _check.describe(model))
    fast = _check.choice(prefer, "prefer", PREFER) == "latency"
    second_order = _check.choice(metric, "metric", METRICS) == "full"
    seed, threads = _check.rng_seed(seed), default_threads(threads)
    graph, layers = model.graph, model.graph.layers()
    weights = {name: graph.params[node.params["weight"]] for name, node in layers.items()}
    if not layers:
        raise ConfigError("model: expected layers with weights to quantize, got none")
    for name, weight in weights.items():
        if isinstance(weight, Packed):
            raise ConfigError(f"layer {name!r}: expected a float weight, got a packed one; plan for the float model")
    only_statistics = isinstance(calibration, Statistics)
    samples = [] if only_statistics else some_samples(graph, calibration, MOMENT_SAMPLES)
    statistics = calibration if only_statistics else calibrate(model, samples, seed=seed, threads=threads)
    moments = {name: statistics.for_layer(node, weights[name].shape) for name, node in layers.items()}  # before work
    # `quantize` gives their outputs the means back, where it knows those of the inputs.
    known = {name for name in layers if second_order and moments[name].first is not None}
    corrected = {name for name in known if FreeAffine.find(graph, layers[name]) is not None}
    rates: dict[str, LayerRates] = {}
    options: dict[str, list[Choice]] = {}
    steps = len(layers) * (1 if only_statistics else 2)
    with blas_limit(1), progress_bar(progress, "plan", "layer", steps) as bar:
        for name, node in layers.items():
            bar.set_postfix_str(name, refresh=False)
            dense = np.asarray(weights[name], np.float32)
            rates[name] = LayerRates(
                node,
                dense,
                moments[name],
                seed,
                threads,
                fast=fast,
                second_order=second_order,
                corrected=name in corrected,
            )
            options[name] = rates[name].choices()
            bar.update()

        def perturb(node: Node) -> np.ndarray:
            bar.update()
            return rates[node.name].perturbed()

        some = single_samples(graph, samples, GAIN_SAMPLES) if samples else []
        gains = network_gains(graph, some, perturb, layers, threads, corrected) if some else dict.fromkeys(layers, 1.0)
    return Measured(model, options, gains, seed)


# -- the size of the file --------------------------------------------------------------------------------------


class _Files:
    """Sizes of files before they exist: those that stand-ins of the right codecs and shapes would make."""

    def __init__(self, model: Model, golden: bool, seed: int) -> None:
        self.graph = separate_norm_statistics(model.graph)
        self.layers, self.seed = self.graph.layers(), seed
        self.golden: Golden | None = model.with_golden(model.draw_golden(seed)).golden if golden else None
        self._made: dict[tuple[str, Codec], Packed] = {}

    def nbytes(self, codecs: Mapping[str, Codec | None]) -> int:
        """Return what the file of a network with these codecs takes at most."""
        chosen = {name: codec for name, codec in codecs.items() if codec is not None}
        student = replace(self.graph, params=dict(self.graph.params))
        options = Options(None, "pooled", "teacher", False, False, False, self.seed)
        report: dict[str, dict[str, Any]] = {}
        rng = np.random.default_rng(0)
        for name, codec in chosen.items():
            packed = self._stand_in(name, codec, self.shape(name))
            student.params[self.layers[name].params["weight"]] = packed
            # Digits that compress as badly as any, in numbers of the longest text.
            errors = [float(f"{x:.3e}") for x in rng.uniform(1e-5, 9.999e-5, 2)]
            report[name] = layer_report(packed, errors[0], int(rng.integers(10, 99))) | {"output_error": errors[1]}
        return graph_nbytes(finished_graph(student, options, report), self.golden) + len(chosen) + 16

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a layer's weight."""
        return tuple(self.graph.params[self.layers[name].params["weight"]].shape)

    def _stand_in(self, name: str, codec: Codec, shape: tuple[int, ...]) -> Packed:
        key = (name, codec)
        if key not in self._made:
            self._made[key] = codec.largest(shape)
        return self._made[key]


# -- the choice ------------------------------------------------------------------------------------------------


def _choose(
    options: dict[str, list[Choice]], gains: dict[str, float], files: _Files, target: int
) -> tuple[dict[str, Choice], int]:
    """Return the choices of least error whose file fits the target, and its size."""
    names = list(options)
    useful = {n: _useful(o) for n, o in options.items()}
    smallest = {n: min(o, key=lambda c: (c.nbytes, c.error)) for n, o in useful.items()}
    least = files.nbytes({n: c.codec for n, c in smallest.items()})
    most = graph_nbytes(files.graph, files.golden)
    if not least <= target < most:
        raise ConfigError(
            f"target_size: expected {least} bytes (the smallest plan) to {most} (the float network), got {target}; "
            "choose a size between them"
        )
    overhead = least - sum(c.nbytes for c in smallest.values())
    sizes = [np.array([c.nbytes for c in useful[n]]) for n in names]
    errors = [np.array([gains[n] * c.error for c in useful[n]]) for n in names]
    # The size is an upper bound; what reports may take less is left in the first place, where that can be.
    firm = min(LEAST_SHARE * target + 10 * len(names) + 16, AIM * target)
    for start, enough in ((firm, firm), ((LEAST_SHARE - 0.02) * target, LEAST_SHARE * target)):
        for _ in range(4):
            low, high = max(0, int(start) - overhead), target - overhead
            choices = allocations(sizes, errors, low, high, max(CELLS, 400 * len(names)))
            choice = next((c for c in choices if any(useful[n][i].codec for n, i in zip(names, c, strict=True))), None)
            if choice is None:
                break
            chosen = {n: useful[n][i] for n, i in zip(names, choice, strict=True)}
            chosen, nbytes = _filled(chosen, gains, files, target)
            if enough <= nbytes <= target:
                return chosen, nbytes
            overhead = nbytes - sum(c.nbytes for c in chosen.values())
    raise ConfigError(f"target_size: no plan takes between 99 % and 100 % of {target} bytes; choose another size")


def _useful(options: list[Choice]) -> list[Choice]:
    """Return the options that no smaller one matches in error, from the smallest."""
    kept: list[Choice] = []
    for choice in sorted(options, key=lambda c: (c.nbytes, c.error)):
        if not kept or choice.error < kept[-1].error:
            kept.append(choice)
    return kept


def _filled(
    chosen: dict[str, Choice], gains: dict[str, float], files: _Files, target: int
) -> tuple[dict[str, Choice], int]:
    """Raise K within the bits of its codes, as far as the file has room, where the network gains most a byte."""
    before = files.nbytes({n: c.codec for n, c in chosen.items()})
    room, filled = target - before, dict(chosen)
    codecs = {n: c.codec for n, c in chosen.items() if isinstance(c.codec, PQ)}  # no others have a K to raise
    worth = {  # the slope of an error that falls as K**(-2 / d)
        n: gains[n] * chosen[n].error * 2 / (codec.d * codec.k * codec.codeword_nbytes) for n, codec in codecs.items()
    }
    for name in sorted(worth, key=lambda n: -worth[n]):
        codec, shape = codecs[name], files.shape(name)
        more = codec.grown(shape, room)
        error = chosen[name].error * (more.k / codec.k) ** (-2 / codec.d)
        filled[name] = Choice(more, codec_nbytes(more, shape), error)
        room -= filled[name].nbytes - chosen[name].nbytes
    after = files.nbytes({n: c.codec for n, c in filled.items()})
    return (filled, after) if after <= target else (chosen, before)
