"""Streaming calibration: second moments of every layer's inputs in one pass of the float network."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pqnet import _check
from pqnet._progress import progress_bar, tick
from pqnet._threads import blas_limit, default_threads, ordered_map
from pqnet.errors import PQNetError, enough_memory
from pqnet.graph import Graph, Info, Node, weight_op
from pqnet.graph.graph import param_info
from pqnet.graph.op import get_op
from pqnet.io import network_digest
from pqnet.pipeline.batches import Batch, cut_batches, known_samples, open_samples, read_batches, samples_of
from pqnet.pipeline.cluster import Tasks
from pqnet.pipeline.moments import input_rows, operand, positions_needed, row_moments, token_counts
from pqnet.pipeline.observers import INTEGER_OPS, Histogram
from pqnet.pipeline.padding import real_positions, without_padding
from pqnet.pipeline.statistics import Moments, Statistics
from pqnet.pipeline.sweep import Values, sweep
from pqnet.runtime import Model

if TYPE_CHECKING:
    from pqnet.pipeline.cluster import Client

__all__ = ["calibrate", "statistics_of_inputs"]

GROUP = 8  # batches that are in memory at once
SHARD = 4  # batches whose sums are added to the total as one, whoever measures them: GROUP is a multiple

Near = dict[str, np.ndarray]  # by layer, (G, 1, Kin)
Give = Callable[["_Part | _Seen"], None]


class _How(NamedTuple):
    """What is measured: the seed of positions, and whether ranges of inputs, too."""

    seed: int
    ranges: bool = False


@dataclass(frozen=True)
class _Part:
    """What the inputs of one layer sum up to in one shard.

    ``second`` is float32, the lower triangles of E[x x'] about ``near``, or float64 counts of tokens. ``first`` is
    float64, (G, Kin), about the same; None for tokens.
    """

    layer: str
    second: np.ndarray
    first: np.ndarray | None
    count: int


@dataclass(frozen=True)
class _Seen:
    """The numbers of the input of one node in one shard."""

    node: str
    inputs: Histogram


@lru_cache(maxsize=4)
def _triangle(n: int) -> np.ndarray:
    """Return where the lower triangle of a matrix is; what is above is the same."""
    return np.tri(n, dtype=bool)


class _Survey:
    """Measures the inputs of layers, a shard of batches at a time."""

    def __init__(self, graph: Graph, how: "_How", threads: int, near: Near | None = None) -> None:
        self.graph, self.seed, self.ranges, self.threads = graph, how.seed, how.ranges, threads
        self.layers = graph.layers()
        self.uses = {node.name: name for name, nodes in graph.uses().items() for node in nodes}
        self.near: Near = {} if near is None else near  # means, nearly, of inputs far from zero: see `find_near`

    def add(self, batches: list[Batch], first_sample: int, give: Give) -> None:
        """Give the parts of all layers: those of each shard of the batches."""
        masks = [real_positions(batch) for batch in batches]
        starts = first_sample + np.cumsum([0, *map(samples_of, batches)])

        def visit(node: Node, values: Values, _: Values) -> None:
            tick(self.uses[node.name])
            self.measure(masks, node, starts, lambda i: operand(self.graph, node, values[i]), len(batches), give)
            for i in range(0, len(batches) if self.ranges and node.op in INTEGER_OPS else 0, SHARD):
                shard = zip(values[i : i + SHARD], masks[i : i + SHARD], strict=True)
                inputs = [without_padding(value[node.inputs[0]], mask) for value, mask in shard]
                give(_Seen(node.name, Histogram.of(inputs, self.threads)))

        sweep(self.graph, batches, self.uses, visit, self.threads)

    def find_near(self, batch: Batch) -> Near:
        """Return `near` as the first batch has it."""
        masks, starts = [real_positions(batch)], [0]

        def visit(node: Node, values: Values, _: Values) -> None:
            self.measure(masks, node, starts, lambda i: operand(self.graph, node, values[i]), 0, lambda part: None)

        sweep(self.graph, [batch], self.uses, visit, self.threads)
        return self.near

    def measure(
        self,
        masks: Sequence[np.ndarray | None],
        node: Node,
        starts: Sequence[int] | np.ndarray,
        seen: Callable[[int], np.ndarray],
        n: int,
        give: Give,
    ) -> None:
        """Give the sums of what a weight is multiplied with, ``seen(i)`` in batch i of n, shard by shard."""
        name, rule = self.uses[node.name], weight_op(node.op)
        shape = tuple(self.graph.params[node.params["weight"]].shape)
        wanted = positions_needed(math.prod(shape[1:]))

        def rows_of(i: int) -> np.ndarray:
            return input_rows(node, shape, seen(i), int(starts[i]), self.seed, wanted, masks[i])

        if name not in self.near and not rule.looked_up:
            self.near[name] = _nearly(rows_of(0))

        def sums_of(i: int) -> tuple[np.ndarray, np.ndarray | None, int]:
            if rule.looked_up:
                counts = token_counts(seen(i), shape[0], masks[i])
                return counts, None, int(counts.sum())
            rows = rows_of(i) - self.near[name]
            n_inputs = rows.shape[2]
            moments = row_moments(rows, np.arange(n_inputs), n_inputs)[:, 0]
            return moments[:, _triangle(n_inputs)], rows.sum(1, dtype=np.float64), rows.shape[1]

        found = ordered_map(sums_of, range(n), self.threads)
        while shard := list(islice(found, SHARD)):
            seconds, firsts, counts = zip(*shard, strict=True)
            second = _total(seconds)
            if not rule.looked_up:
                second = second.astype(np.float32)
            give(_Part(name, second, None if rule.looked_up else _total(firsts), sum(counts)))


def _total(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum in the order of the arrays."""
    total = arrays[0].copy()
    for array in arrays[1:]:
        total += array
    return total


def _nearly(rows: np.ndarray) -> np.ndarray:
    """Return the means of inputs that are far from zero, and 0 of others: less these, float32 keeps what varies."""
    n = max(1, rows.shape[1])
    mean = rows.sum(1, dtype=np.float64, keepdims=True) / n
    spread = np.square(rows - mean).sum(1, keepdims=True) / n
    near: np.ndarray = np.where(4 * spread < mean**2, mean, 0.0).astype(np.float32)
    return near


class _Totals:
    """Sums of the parts of all layers, in float64, and histograms, in the order in which they are added."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.seconds: dict[str, np.ndarray] = {}
        self.firsts: dict[str, np.ndarray] = {}
        self.counts: dict[str, int] = {}
        self.inputs: dict[str, Histogram] = {}

    def add(self, part: "_Part | _Seen") -> None:
        if isinstance(part, _Seen):
            known = self.inputs.get(part.node)
            self.inputs[part.node] = part.inputs if known is None else known.merge(part.inputs)
            return
        for sums, more in ((self.seconds, part.second), (self.firsts, part.first)):
            if more is not None and part.layer in sums:
                sums[part.layer] += more
            elif more is not None:
                sums[part.layer] = more.astype(np.float64)
        self.counts[part.layer] = self.counts.get(part.layer, 0) + part.count

    def statistics(self, near: Near) -> Statistics:
        found = {name: self._moments(name, near) for name in self.graph.layers()}
        return Statistics(found, network_digest(self.graph), self.inputs)

    def _moments(self, name: str, near: Near) -> Moments:
        count = self.counts[name]
        if name not in self.firsts:
            return Moments((self.seconds[name] / count).astype(np.float32), count)
        first = self.firsts[name] / count
        triangle = _triangle(first.shape[1])
        second = np.empty((*first.shape, first.shape[1]))
        second[:, triangle] = self.seconds[name] / count
        second.swapaxes(1, 2)[:, triangle] = second[:, triangle]
        second -= first[:, :, None] * first[:, None, :]
        return Moments.about(first + near[name][:, 0], second, count)


@enough_memory("give smaller batches, by an iterable of them")
def calibrate(
    model: Model,
    batches: Any,
    *,
    activations: str | None = None,
    client: "Client | None" = None,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = False,
) -> Statistics:
    """Measure the second moments E[x x'] of every layer's inputs.

    One pass of the network; memory holds a few batches and the moments (Kin**2 numbers a layer), never patches. Of
    large feature maps, ``max(256, Kin / 2)`` positions of every sample are used, one at random from each of as many
    equal strata. Of texts, padding is left out: positions at which an input called ``attention_mask``, of shape
    (batch, length), is zero.

    Parameters
    ----------
    model : Model
    batches : array, dict of arrays, path, or iterable of any of these
        Samples along axis 0; the items of an iterable are batches. 500 to 1000 images are usually enough. A path names
        a .npy, .npz or HDF5 file, or a folder of such files, each a batch. Of .npy and HDF5 files, and of datasets of
        h5py, no more is read at once than is worked on.
    activations : {None, "int8"}
        Count the numbers of the inputs of layers, too, so that `quantize` finds their ranges by any observer. Takes
        time and 16 KiB a layer.
    client : distributed.Client, optional
        Measure on the workers of a Dask cluster: needs ``pqnet[cluster]``. The result is the same. Workers open the
        files of paths themselves; all else is sent to them.
    seed : int
        Of the positions.
    threads : int, optional
        Default: all cores, on a cluster those of a worker. The result does not depend on it.
    progress : bool
        Show how far it is: a bar on a terminal, a line every 30 seconds elsewhere.

    Returns
    -------
    Statistics

    Raises
    ------
    PQNetError
        Inputs that do not fit the model, NaN, no samples.

    Examples
    --------
    >>> import pqnet
    >>> from pqnet.demo import load_images, model_path
    >>> stats = pqnet.calibrate(pqnet.load(model_path()), load_images()[0][:100])
    >>> stats.layers["fc"].count
    100
    """
    if not isinstance(model, Model):
        raise _check.error("model", "a pqnet.Model", _check.describe(model))
    ranges = _check.choice(activations, "activations", (None, "int8")) is not None
    how, here, tasks = _How(_check.rng_seed(seed), ranges), default_threads(threads), Tasks(client)
    if isinstance(batches, str | Path):
        batches = open_samples(batches, list(model.inputs))
    unread = cut_batches(model.graph, batches)
    totals = _Totals(model.graph)
    with blas_limit(1), progress_bar(progress, "calibrate", "sample", known_samples(batches)) as bar:
        if client is None:
            near = _measure_here(model, unread, how, here, totals.add, bar.update)
        else:
            near = _measure_there(tasks, model, unread, how, threads, totals.add, bar.update)
    return totals.statistics(near)


def _measure_here(
    model: Model,
    unread: Iterator[Mapping[str, Any]],
    how: _How,
    threads: int,
    give: Give,
    done: Callable[[int], Any],
) -> Near:
    survey, samples = _Survey(model.graph, how, threads), 0
    while group := read_batches(model.graph, list(islice(unread, GROUP))):
        survey.add(group, samples, give)
        more = sum(map(samples_of, group))
        done(more)
        samples += more
    return survey.near


def _measure_there(
    tasks: Tasks,
    model: Model,
    unread: Iterator[Mapping[str, Any]],
    how: _How,
    threads: int | None,
    give: Give,
    done: Callable[[int], Any],
) -> Near:
    """Measure on workers what `_measure_here` measures here, and give the same parts in the same order."""
    shared = tasks.share(model)
    first = [next(unread)]
    near = next(tasks.map(partial(_find_near, how, threads), [first], shared))
    sizes: list[int] = []

    def shards() -> Iterator[tuple[list[Mapping[str, Any]], int]]:
        shard = first + list(islice(unread, SHARD - 1))
        while shard:
            start = sum(sizes)
            sizes.append(sum(map(samples_of, shard)))
            yield shard, start
            shard = list(islice(unread, SHARD))

    found, taken = tasks.map(partial(_measure_shard, how, threads), shards(), shared, tasks.share(near)), 0
    while group := list(islice(found, GROUP // SHARD)):
        for alike in zip(*group, strict=True):
            for part in alike:
                give(part)
        done(sum(sizes[taken : taken + len(group)]))
        taken += len(group)
    return near


def _find_near(how: _How, threads: int | None, first: list[Mapping[str, Any]], model: Model) -> Near:
    return _Survey(model.graph, how, default_threads(threads)).find_near(*read_batches(model.graph, first))


def _measure_shard(
    how: _How, threads: int | None, shard: tuple[list[Mapping[str, Any]], int], model: Model, near: Near
) -> "list[_Part | _Seen]":
    parts: list[_Part | _Seen] = []
    unread, start = shard
    survey = _Survey(model.graph, how, default_threads(threads), near)
    survey.add(read_batches(model.graph, unread), start, parts.append)
    return parts


def statistics_of_inputs(
    model: Model, inputs: Mapping[str, Any], *, seed: int = 0, threads: int | None = None
) -> Statistics:
    """Make the statistics of `calibrate` from layer inputs that were recorded elsewhere.

    Parameters
    ----------
    model : Model
    inputs : dict of str to array
        What the weight of every layer of ``model.graph.layers()`` is multiplied with, samples along axis 0: the layer's
        input, or of a recurrent one (batch, steps, state) what it remembers before each step.
    seed, threads
        As for `calibrate`.

    Returns
    -------
    Statistics

    Raises
    ------
    PQNetError
        A layer without an entry, an entry without a layer, a shape or dtype that does not fit, NaN.
    """
    if not isinstance(model, Model):
        raise _check.error("model", "a pqnet.Model", _check.describe(model))
    survey = _Survey(model.graph, _How(_check.rng_seed(seed)), default_threads(threads))
    totals = _Totals(model.graph)
    if missing := [name for name in survey.layers if name not in inputs]:
        raise PQNetError(f"activations: expected an array for every layer, got none for {missing[:5]}")
    if unknown := [name for name in inputs if name not in survey.layers]:
        raise PQNetError(f"activations: expected the layers {list(survey.layers)[:5]}, got also {unknown[:5]}")
    for name, node in survey.layers.items():
        where = f"activations[{name!r}]"
        params = {role: param_info(model.graph.params[p]) for role, p in node.params.items()}
        if weight_op(node.op).looked_up:
            x = _check.index_array(inputs[name], where, below=params["weight"].shape[0])
        else:
            x = _check.float_array(inputs[name], where, ndim=(2, 3, 4, 5))
        _check_operand(node, Info(x.shape, x.dtype.name), params, where)
        starts = range(0, len(x), 64)
        parts = [x[i : i + 64] for i in starts]
        survey.measure([None] * len(parts), node, starts, parts.__getitem__, len(parts), totals.add)
    return totals.statistics(survey.near)


def _check_operand(node: Node, x: Info, params: Mapping[str, Info], where: str) -> None:
    """Raise unless the weight of a node can be multiplied with an array."""
    if weight_op(node.op).operand is not None:
        state = params["weight"].shape[1]
        if len(x.shape) != 3 or x.shape[2] != state:
            raise PQNetError(f"{where}: expected shape (batch, steps, {state}), got {x.shape}")
        return
    try:
        get_op(node.op).infer([x], params, node.attrs)
    except PQNetError as reason:
        raise PQNetError(f"{where}: {reason}") from None
