"""Streaming calibration: second moments of every layer's inputs in one pass of the float network."""

from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from pqnet import _check
from pqnet._threads import default_threads, ordered_map
from pqnet.graph import Graph, Node
from pqnet.pipeline.batches import Batch, iterate_batches
from pqnet.pipeline.moments import input_rows, row_moments, token_counts
from pqnet.pipeline.statistics import Moments, Statistics, moment_shape
from pqnet.pipeline.sweep import sweep
from pqnet.runtime import Model

__all__ = ["calibrate"]

GROUP = 8  # batches that are in memory at once


class _Accumulator:
    """Sums of moments of all layers, in float64, in the order of the samples."""

    def __init__(self, graph: Graph, seed: int, threads: int) -> None:
        self.graph, self.seed, self.threads = graph, seed, threads
        self.layers = graph.layers()
        self.sums: dict[str, np.ndarray] = {}
        self.counts: dict[str, int] = dict.fromkeys(self.layers, 0)
        self.samples = 0

    def add(self, batches: list[Batch]) -> None:
        sweep(self.graph, batches, self._visit, self.threads)
        self.samples += sum(len(next(iter(b.values()))) for b in batches)

    def _visit(self, node: Node, inputs: list[np.ndarray]) -> None:
        if node.name not in self.layers:
            return
        shape = tuple(self.graph.params[node.params["weight"]].shape)
        starts = self.samples + np.cumsum([0, *(len(x) for x in inputs[:-1])])

        def measure(i: int) -> tuple[np.ndarray, int]:
            if node.op == "embedding":
                return token_counts(inputs[i], shape[0]), inputs[i].size
            rows = input_rows(node, shape, inputs[i], int(starts[i]), self.seed)
            n_inputs = rows.shape[2]
            return row_moments(rows, np.arange(n_inputs), n_inputs)[:, 0], rows.shape[1]

        total = self.sums.setdefault(node.name, np.zeros(moment_shape(node, shape)))
        for part, count in ordered_map(measure, range(len(inputs)), self.threads):
            total += part
            self.counts[node.name] += count

    def result(self) -> Statistics:
        return Statistics(
            {n: Moments((self.sums[n] / self.counts[n]).astype(np.float32), self.counts[n]) for n in self.layers}
        )


def calibrate(
    model: Model, batches: Any, *, seed: int = 0, threads: int | None = None, progress: bool = False
) -> Statistics:
    """Measure the second moments E[x x'] of every layer's inputs.

    One pass of the network; memory holds a few batches and the moments (Kin**2 numbers a layer), never patches. Of
    large feature maps, ``max(256, Kin / 2)`` positions of every sample are used, one at random from each of as many
    equal strata.

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
        Show a progress bar on a terminal.

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
    with tqdm(desc="calibrate", unit="sample", disable=None if progress else True) as bar:
        while group := list(islice(stream, GROUP)):
            accumulator.add(group)
            bar.update(accumulator.samples - bar.n)
    return accumulator.result()
