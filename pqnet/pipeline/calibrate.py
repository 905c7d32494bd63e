"""Streaming calibration: second moments of every layer's inputs in one pass of the float network."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from pqnet import _check
from pqnet._progress import progress_bar, tick
from pqnet._threads import blas_limit, default_threads, ordered_map
from pqnet.errors import PQNetError, enough_memory
from pqnet.graph import Graph, Info, Node, weight_op
from pqnet.graph.graph import param_info
from pqnet.graph.op import get_op
from pqnet.io import network_digest
from pqnet.pipeline.batches import Batch, iterate_batches, known_samples
from pqnet.pipeline.moments import input_rows, operand, positions_needed, row_moments, token_counts
from pqnet.pipeline.padding import real_positions
from pqnet.pipeline.statistics import Moments, Statistics
from pqnet.pipeline.sweep import Values, sweep
from pqnet.runtime import Model

__all__ = ["calibrate", "statistics_of_inputs"]

GROUP = 8  # batches that are in memory at once


class _Accumulator:
    """Sums of moments of all layers, in float64, in the order of the samples."""

    def __init__(self, graph: Graph, seed: int, threads: int) -> None:
        self.graph, self.seed, self.threads = graph, seed, threads
        self.layers = graph.layers()
        self.uses = {node.name: name for name, nodes in graph.uses().items() for node in nodes}
        self.sums: dict[str, np.ndarray] = {}  # about `near`
        self.firsts: dict[str, np.ndarray] = {}
        self.near: dict[str, np.ndarray] = {}  # the means, nearly, of inputs far from zero: float32 keeps what varies
        self.counts: dict[str, int] = dict.fromkeys(self.layers, 0)
        self.samples = 0

    def add(self, batches: list[Batch]) -> None:
        masks = [real_positions(batch) for batch in batches]
        sweep(self.graph, batches, self.uses, partial(self.visit, masks), self.threads)
        self.samples += sum(max((len(a) for a in b.values() if a.ndim), default=1) for b in batches)

    def visit(self, masks: Sequence[np.ndarray | None], node: Node, values: Values, _: Values) -> None:
        tick(self.uses[node.name])
        sizes = [len(batch[node.inputs[0]]) for batch in values]
        self.measure(masks, node, sizes, lambda i: operand(self.graph, node, values[i]))

    def measure(
        self, masks: Sequence[np.ndarray | None], node: Node, sizes: Sequence[int], seen: Callable[[int], np.ndarray]
    ) -> None:
        """Add what the weight of a node is multiplied with, ``seen(i)`` in batch i, to the sums of its layer."""
        name, rule = self.uses[node.name], weight_op(node.op)
        shape = tuple(self.graph.params[node.params["weight"]].shape)
        starts = self.samples + np.cumsum([0, *sizes[:-1]])
        wanted = positions_needed(math.prod(shape[1:]))

        def rows_of(i: int) -> np.ndarray:
            return input_rows(node, shape, seen(i), int(starts[i]), self.seed, wanted, masks[i])

        if name not in self.near and not rule.looked_up:
            rows = rows_of(0)
            n = max(1, rows.shape[1])
            mean = rows.sum(1, dtype=np.float64, keepdims=True) / n
            spread = np.square(rows - mean).sum(1, keepdims=True) / n
            self.near[name] = np.where(4 * spread < mean**2, mean, 0.0).astype(np.float32)

        def moments_of(i: int) -> tuple[np.ndarray, np.ndarray | None, int]:
            if rule.looked_up:
                counts = token_counts(seen(i), shape[0], masks[i])
                return counts, None, int(counts.sum())
            rows = rows_of(i) - self.near[name]
            n_inputs = rows.shape[2]
            moments = row_moments(rows, np.arange(n_inputs), n_inputs)[:, 0]
            return moments, rows.sum(1, dtype=np.float64), rows.shape[1]

        total = self.sums.setdefault(name, np.zeros(rule.moment_shape(shape, node.attrs)))
        for part, first, count in ordered_map(moments_of, range(len(sizes)), self.threads):
            total += part
            if first is not None:
                self.firsts[name] = self.firsts.get(name, 0.0) + first
            self.counts[name] += count

    def result(self) -> Statistics:
        def moments(name: str) -> Moments:
            count = self.counts[name]
            second = self.sums[name] / count
            if name not in self.firsts:
                return Moments(second.astype(np.float32), count)
            first = self.firsts[name] / count
            second -= first[:, :, None] * first[:, None, :]
            return Moments.about(first + self.near[name][:, 0], second, count)

        return Statistics({name: moments(name) for name in self.layers}, network_digest(self.graph))


@enough_memory("give smaller batches, by an iterable of them")
def calibrate(
    model: Model, batches: Any, *, seed: int = 0, threads: int | None = None, progress: bool = False
) -> Statistics:
    """Measure the second moments E[x x'] of every layer's inputs.

    One pass of the network; memory holds a few batches and the moments (Kin**2 numbers a layer), never patches. Of
    large feature maps, ``max(256, Kin / 2)`` positions of every sample are used, one at random from each of as many
    equal strata. Of texts, padding is left out: positions at which an input called ``attention_mask``, of shape
    (batch, length), is zero.

    Parameters
    ----------
    model : Model
    batches : array, dict of arrays, or iterable of either
        Samples along axis 0; the items of an iterable are batches. 500 to 1000 images are usually enough.
    seed : int
        Of the positions.
    threads : int, optional
        Default: all cores. The result does not depend on it.
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
    accumulator = _Accumulator(model.graph, _check.rng_seed(seed), default_threads(threads))
    stream = iterate_batches(model.graph, batches)
    with blas_limit(1), progress_bar(progress, "calibrate", "sample", known_samples(batches)) as bar:
        while group := list(islice(stream, GROUP)):
            accumulator.add(group)
            bar.update(accumulator.samples - bar.n)
    return accumulator.result()


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
    accumulator = _Accumulator(model.graph, _check.rng_seed(seed), default_threads(threads))
    if missing := [name for name in accumulator.layers if name not in inputs]:
        raise PQNetError(f"activations: expected an array for every layer, got none for {missing[:5]}")
    if unknown := [name for name in inputs if name not in accumulator.layers]:
        raise PQNetError(f"activations: expected the layers {list(accumulator.layers)[:5]}, got also {unknown[:5]}")
    for name, node in accumulator.layers.items():
        where = f"activations[{name!r}]"
        params = {role: param_info(model.graph.params[p]) for role, p in node.params.items()}
        if weight_op(node.op).looked_up:
            x = _check.index_array(inputs[name], where, below=params["weight"].shape[0])
        else:
            x = _check.float_array(inputs[name], where, ndim=(2, 3, 4, 5))
        _check_operand(node, Info(x.shape, x.dtype.name), params, where)
        parts = [x[i : i + 64] for i in range(0, len(x), 64)]
        accumulator.measure([None] * len(parts), node, [len(part) for part in parts], parts.__getitem__)
    return accumulator.result()


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
