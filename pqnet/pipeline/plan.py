"""Which codec for which layer, so that the file has a wanted size and the network's outputs change least."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from pqnet import _check
from pqnet._progress import progress_bar
from pqnet._threads import blas_limit, default_threads
from pqnet.codecs import PQ, Codec
from pqnet.errors import ConfigError, enough_memory, of_layer
from pqnet.graph import Node
from pqnet.graph.affine import FreeAffine
from pqnet.pipeline.allocate import allocations
from pqnet.pipeline.batches import Batch, hold_out
from pqnet.pipeline.calibrate import calibrate
from pqnet.pipeline.cluster import Tasks
from pqnet.pipeline.moments import METRICS
from pqnet.pipeline.rates import Choice, Gain, LayerRates, codec_nbytes
from pqnet.pipeline.recipe import Recipe
from pqnet.pipeline.run import layer_costs
from pqnet.pipeline.sensitivity import network_gains, single_samples, some_samples
from pqnet.pipeline.statistics import Moments, Statistics
from pqnet.pipeline.target import FileSizes, float_weights
from pqnet.runtime import Model

if TYPE_CHECKING:
    from pqnet.pipeline.cluster import Client

__all__ = ["Measured", "Plan", "PlannedLayer", "measure", "plan"]

PREFER = ("error", "latency")
LEAST_SHARE = 0.99  # of the target that the file takes
AIM = 0.997  # of the target, up to which plans keep away from that share
TRIED = 8  # choices, best first, whose files are looked at before what is beside the weights is estimated anew
CELLS = 16384  # of bytes; 400 for each layer if that is more
MOMENT_SAMPLES = 64  # blocks of d inputs need few
GAIN_SAMPLES = 8


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
        """Predicted squared error of the network's outputs, relative: the sum over layers; gains are 1 without data."""
        return sum(layer.gain * layer.error for layer in self.layers.values())


def plan(
    model: Model,
    calibration: Any,
    target_size: int | str,
    *,
    prefer: str = "error",
    metric: str = "full",
    golden: bool = False,
    client: "Client | None" = None,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = True,
) -> Recipe:
    """Choose a codec for every layer, so that the file has a wanted size and the network's outputs change least.

    Every layer is tried with codebooks of several block sizes (from single weights on), layouts and K (powers of two
    and not), stored as float16 or int8, also with a sparse correction; with integers of 2 to 8 bits, binary and ternary
    weights, as float16, and in float. Its output error is measured at some of them, on a sample of its outputs, and
    interpolated. With data, each layer is also made wrong, alone, by much and by little, in the way of quantization, to
    measure how much of its error reaches the network's outputs. The choices of all layers are then made together, by a
    dynamic program.

    Parameters
    ----------
    model : Model
        The float network.
    calibration : array, dict of arrays, path, iterable of any of these, or Statistics
        Data, as for `quantize`; 64 samples of arrays are used. With statistics of `calibrate` only, a layer's
        relative output error counts the same in all layers.
    target_size : int or str
        Bytes of the file that ``quantize(model, recipe, ...).save(path)`` writes, or text like ``"5MB"`` (10**6 bytes),
        ``"800kB"``, ``"1.5MiB"``, or ``"10x"``, a tenth of the float network's file. The file is never larger, and from
        10 kB on takes at least 99 % of it.
    prefer : {"error", "latency"}
        What decides at the same bytes: the predicted error, or, before that, the layouts that kernels run fastest.
    metric : {"full", "block", "pooled", "none"}
        Of `quantize`: only with ``full`` do the errors of blocks make up for each other.
    golden : bool
        Leave room for the golden record that `pqnet quantize` adds.
    client : distributed.Client, optional
        Measure layers on the workers of a Dask cluster, to the same plan.
    seed : int
    threads : int, optional
        Default: all cores, on a cluster those of a worker. The result does not depend on it.
    progress : bool
        Show how far it is: a bar on a terminal, a line every 30 seconds elsewhere.

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
    fast, golden = _is_fast(prefer), _check.choice(golden, "golden", (False, True))
    float_weights(model)
    target = FileSizes(model, golden, _check.rng_seed(seed)).target(target_size, fast)  # before work
    measured = measure(
        model,
        calibration,
        prefer=prefer,
        metric=metric,
        client=client,
        seed=seed,
        threads=threads,
        progress=progress,
    )
    return measured.plan(target, golden=golden).recipe


@dataclass(frozen=True)
class Measured:
    """What plans of any size are made from.

    Attributes
    ----------
    model : Model
    options : dict of str to list of Choice
        What each layer may become.
    gains : dict of str to Gain
        How much of each layer's error reaches the outputs.
    fast : bool
        Only layouts that kernels run fastest.
    seed : int
    """

    model: Model
    options: dict[str, list[Choice]]
    gains: dict[str, Gain]
    fast: bool
    seed: int
    _files: dict[bool, FileSizes] = field(default_factory=dict, init=False, repr=False, compare=False)

    def files(self, golden: bool) -> FileSizes:
        """Return the sizes of this network's files, with a golden record or without."""
        if golden not in self._files:
            self._files[golden] = FileSizes(self.model, golden, self.seed)
        return self._files[golden]

    def plan(self, target_size: int | str, *, golden: bool = False, share: float = LEAST_SHARE) -> Plan:
        """Return what `pqnet.plan` decides, with its predictions; ``share`` of the target at least is used."""
        files = self.files(_check.choice(golden, "golden", (False, True)))
        target = files.target(target_size, self.fast)
        chosen, nbytes = _choose(self.options, self.gains, files, target, share)
        layers = {
            n: PlannedLayer(files.shape(n), c.codec, c.nbytes, c.error, self.gains[n](c.codec, c.error))
            for n, c in chosen.items()
        }
        return Plan(layers, nbytes, target)


@enough_memory("give fewer calibration samples, or pqnet.Statistics")
def measure(
    model: Model,
    calibration: Any,
    *,
    prefer: str = "error",
    metric: str = "full",
    client: "Client | None" = None,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = True,
) -> Measured:
    """Measure what `plan` decides from, for any number of sizes; the arguments are the same."""
    weights, fast = float_weights(model), _is_fast(prefer)
    second_order = _check.choice(metric, "metric", METRICS) == "full"
    tasks = Tasks(client)
    _check.rng_seed(seed)
    default_threads(threads)  # raises before work
    graph, layers = model.graph, model.graph.layers()
    only_statistics = isinstance(calibration, Statistics)
    if only_statistics:
        calibration.check(graph)
    samples = [] if only_statistics else some_samples(graph, calibration, MOMENT_SAMPLES)
    samples, learned = hold_out(graph, samples)
    costs = layer_costs(graph, layers)
    reaching = dict.fromkeys(map(_REACHING.format, layers), sum(costs.values()) / len(costs)) if samples else {}
    steps, ways = costs | reaching, _Ways(fast, second_order, seed, threads)
    with blas_limit(1), progress_bar(progress, "plan", "step", len(steps), steps) as bar:

        def measured(batches: list[Batch]) -> Statistics:
            return calibrate(model, batches, client=client, seed=seed, threads=threads)

        def begin(name: str) -> None:
            if bar.name:
                bar.update()
            bar.begin(name)

        statistics = calibration if only_statistics else measured(samples[:learned])
        apart = samples[learned:]
        others = measured(apart).layers if apart else {}
        known = {n: (statistics.for_layer(node, weights[n].shape), others.get(n)) for n, node in layers.items()}
        some = single_samples(graph, samples, GAIN_SAMPLES) if samples else []
        if client is None:
            options, gains = _measure_layers(ways, known, model, some, begin)
        else:
            options, gains = {}, {}
            parts = list(_parts(known, tasks.capacity()))
            shared = tasks.share(model), tasks.share(some)
            for part, found in zip(parts, tasks.map(partial(_measure_layers, ways), parts, *shared), strict=True):
                options |= found[0]
                gains |= found[1]
                for name in part:
                    begin(name)
                    if some:
                        begin(_REACHING.format(name))
        bar.update()
    return Measured(model, options, gains, fast, seed)


@dataclass(frozen=True)
class _Ways:
    """How layers are measured."""

    fast: bool
    second_order: bool
    seed: int
    threads: int | None


Known = Mapping[str, tuple[Moments, Moments | None]]  # by layer: of its inputs, and of other samples
_REACHING = "what reaches the outputs of {}"


def _parts(known: Known, n: int) -> Iterator[Known]:
    """Cut layers into n parts of neighbours, or one for each layer; what is found does not depend on it."""
    for names in np.array_split(list(known), min(n, len(known))):
        yield {str(name): known[str(name)] for name in names}


def _measure_layers(
    ways: _Ways, known: Known, model: Model, some: list[Batch], begin: Callable[[str], object] = str
) -> tuple[dict[str, list[Choice]], dict[str, Gain]]:
    """Return the choices of some layers, and how much of their errors reaches the outputs: all without samples."""
    graph, layers, threads = model.graph, model.graph.layers(), default_threads(ways.threads)
    # `quantize` gives their outputs the means back, where it knows those of the inputs.
    names = [name for name, (moments, _) in known.items() if ways.second_order and moments.first is not None]
    affines = {name: found for name in names if (found := FreeAffine.find(graph, layers[name])) is not None}
    rates: dict[str, LayerRates] = {}
    options: dict[str, list[Choice]] = {}
    for name, (moments, others) in known.items():
        begin(name)
        node = layers[name]
        rates[name] = LayerRates(
            node,
            np.asarray(graph.params[node.params["weight"]], np.float32),
            moments,
            ways.seed,
            threads,
            fast=ways.fast,
            second_order=ways.second_order,
            affine=affines.get(name),
            others=others,
        )
        with of_layer(name):
            options[name] = rates[name].choices()
    if not some:
        return options, dict.fromkeys(known, Gain())

    def perturb(node: Node) -> list[np.ndarray]:
        begin(_REACHING.format(node.name))
        return rates[node.name].perturbed()

    factors = {name: affine.gain for name, affine in affines.items()}
    reached = network_gains(graph, some, perturb, known, threads, factors)
    return options, {name: Gain.of(errors) for name, errors in reached.items()}


def _is_fast(prefer: str) -> bool:
    return bool(_check.choice(prefer, "prefer", PREFER) == "latency")


# -- the choice ------------------------------------------------------------------------------------------------


def _choose(
    options: dict[str, list[Choice]], gains: dict[str, Gain], files: FileSizes, target: int, share: float
) -> tuple[dict[str, Choice], int]:
    """Return the choices of least error whose file takes a share of the target at least, and its size."""
    useful = {n: _useful(o, gains[n]) for n, o in options.items()}
    smallest = {n: min(o, key=lambda c: (c.nbytes, c.error)) for n, o in useful.items()}
    found = _choose_with(useful, smallest, dict.fromkeys(options, 0), gains, files, target, share)
    if found is None:
        # Beside its weight a packed layer takes an entry in the header, which matters for small networks only.
        entries = files.entries({n: c.codec for n, c in smallest.items()})
        found = _choose_with(useful, smallest, entries, gains, files, target, share)
    if found is None:
        raise ConfigError(
            f"target_size: no plan takes between {share:.0%} and 100 % of {target} bytes; choose another size"
        )
    return found


def _choose_with(
    useful: dict[str, list[Choice]],
    smallest: dict[str, Choice],
    entries: dict[str, int],
    gains: dict[str, Gain],
    files: FileSizes,
    target: int,
    share: float,
) -> tuple[dict[str, Choice], int] | None:
    """Return the choices of least error and the size of their file, if any are found, for entries of some bytes."""
    names = list(useful)

    def counted(name: str, choice: Choice) -> int:
        return choice.nbytes + (entries[name] if choice.codec else 0)

    def total(choices: dict[str, Choice]) -> int:
        return sum(counted(n, c) for n, c in choices.items())

    overhead = files.nbytes({n: c.codec for n, c in smallest.items()}) - total(smallest)
    sizes = [np.array([counted(n, c) for c in useful[n]]) for n in names]
    errors = [np.array([gains[n](c.codec, c.error) * c.error for c in useful[n]]) for n in names]
    # The size is an upper bound; what reports may take less is left in the first place, where that can be.
    firm = min(share * target + 10 * len(names) + 16, AIM * target)
    for start, enough in ((firm, firm), ((share - 0.02) * target, share * target)):
        for _ in range(4):
            low, high = max(0, int(start) - overhead), target - overhead
            if high < low:
                break
            better = None
            for choice in islice(allocations(sizes, errors, low, high, max(CELLS, 400 * len(names))), TRIED):
                chosen = {n: useful[n][i] for n, i in zip(names, choice, strict=True)}
                if not any(c.codec for c in chosen.values()):
                    continue
                chosen, nbytes = _filled(chosen, gains, files, target)
                if enough <= nbytes <= target:
                    return chosen, nbytes
                better = nbytes - total(chosen) if better is None else better
            if better is None:
                break
            overhead = better
    return None


def _useful(options: list[Choice], gain: Gain) -> list[Choice]:
    """Return the options that no smaller one matches in what reaches the outputs, from the smallest."""
    kept, least = list[Choice](), math.inf
    reached = {c: gain(c.codec, c.error) * c.error for c in options}
    for choice in sorted(options, key=lambda c: (c.nbytes, reached[c])):
        if reached[choice] < least:
            kept.append(choice)
            least = reached[choice]
    return kept


def _filled(
    chosen: dict[str, Choice], gains: dict[str, Gain], files: FileSizes, target: int
) -> tuple[dict[str, Choice], int]:
    """Raise K within the bits of its codes, as far as the file has room, where the network gains most a byte."""
    before = files.nbytes({n: c.codec for n, c in chosen.items()})
    room, filled = target - before, dict(chosen)
    codecs = {n: c.codec for n, c in chosen.items() if isinstance(c.codec, PQ)}  # no others have a K to raise
    worth = {  # the slope of an error that falls as K**(-2 / d)
        n: gains[n](codec, chosen[n].error) * chosen[n].error * 2 / (codec.d * codec.k * codec.codeword_nbytes)
        for n, codec in codecs.items()
    }
    for name in sorted(worth, key=lambda n: -worth[n]):
        codec, shape = codecs[name], files.shape(name)
        more = codec.grown(shape, room)
        error = chosen[name].error * (more.k / codec.k) ** (-2 / codec.d)
        filled[name] = Choice(more, codec_nbytes(more, shape), error)
        room -= filled[name].nbytes - chosen[name].nbytes
    after = files.nbytes({n: c.codec for n, c in filled.items()})
    return (filled, after) if after <= target else (chosen, before)
