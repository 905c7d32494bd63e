"""Quantization of a network, layer after layer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pqnet import _check
from pqnet._threads import default_threads
from pqnet.codecs import Codec, Packed
from pqnet.errors import ConfigError
from pqnet.graph import Graph
from pqnet.graph.passes import separate_norm_statistics
from pqnet.pipeline.batches import iterate_batches
from pqnet.pipeline.layerwise import FromData
from pqnet.pipeline.moments import METRICS, layer_metric, row_weights, token_error
from pqnet.pipeline.permute import Permutation
from pqnet.pipeline.progress import progress_bar
from pqnet.pipeline.recipe import Recipe, resolve_recipe
from pqnet.pipeline.run import Options, Run
from pqnet.pipeline.statistics import Statistics
from pqnet.pipeline.sweep import sweep
from pqnet.runtime import Model

__all__ = ["quantize"]

TARGETS = ("teacher", "weight")


def _from_statistics(run: Run, statistics: Statistics) -> None:
    """Quantize every layer on its own, from the float network's moments."""
    metric = run.options.metric
    layers = [node for node in run.graph.layers().values() if node.name in run.codecs]
    found = [statistics.for_layer(node, run.weight(node).shape) for node in layers]  # all, before work
    for node, moments in zip(layers, found, strict=True):
        weight, report = run.weight(node), run.report
        if node.op == "embedding":
            packed = run.pack(node, weight, row_weights=row_weights(metric, moments.mean * moments.count))
            report[node.name]["output_error"] = token_error(moments.mean, weight, packed.decode())
            continue
        packed = run.pack(node, weight, layer_metric(metric, moments.mean, weight.shape, run.codecs[node.name]))
        energy, error = (
            _quadratic(w.reshape(len(moments.mean), -1, moments.mean.shape[1]), moments.mean)
            for w in (weight, weight - packed.decode())
        )
        report[node.name]["output_error"] = error / energy if energy > 0 else 0.0


def _quadratic(filters: np.ndarray, moment: np.ndarray) -> float:
    return float((np.matmul(filters, moment) * filters).sum(dtype=np.float64))


def _check_float(graph: Graph, recipe: Mapping[str, Codec | None]) -> None:
    layers = graph.layers()
    for name, codec in recipe.items():
        param = layers[name].params["weight"]
        if codec is not None and isinstance(graph.params[param], Packed):
            raise ConfigError(f"layer {name!r}: expected a float weight, got a packed one; quantize the float model")


def quantize(
    model: Model,
    recipe: Recipe | Mapping[str, Codec | None] | str,
    calibration: Any = None,
    *,
    metric: str = "full",
    target: str = "teacher",
    correct_bias: bool = True,
    reestimate_norm: bool = False,
    permute: bool = False,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = True,
) -> Model:
    """Replace the weights of a network by codes.

    Parameters
    ----------
    model : Model
        The float network.
    recipe : str, Recipe or dict
        A preset (``"small-blocks"``, ``"large-blocks"``, ``"transformer"``), or a codec for each layer, see `Recipe`.
    calibration : array, dict of arrays, iterable of either, or Statistics
        Data: layers are quantized in graph order, each from the inputs that the layers already quantized give it; the
        whole takes about two forward passes, and memory for the values that later layers still need, of all samples.
        Statistics of `calibrate`: every layer on its own. None is enough for ``metric="none"``.
    metric : {"block", "pooled", "none"}
        What the search of codes minimises: ``none`` the error of the weights; ``pooled`` the output error under one
        d x d second moment for the layer, as "And the Bit Goes Down" does; ``block`` under one for each block position.
    reestimate_norm : bool
        Measure the statistics of all batch norms again, on what the quantized layers before them give; needs data.
    permute : bool
        First put channels into an order in which the blocks of the layers that read them suit one codebook better;
        the float network computes the same, which is checked, and the codes take the same bytes.
    seed : int
    threads : int, optional
        Default: all cores. The bytes of the result do not depend on it.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    Model
        Its ``graph.meta["quantization"]`` reports for each layer bytes, relative output error (squared, on the
        calibration set), relative weight error, and iterations. Running statistics of batch norms are folded.

    Raises
    ------
    ConfigError
        A pattern that matches no layer, a codec that does not fit, an unknown preset or metric.
    PQNetError
        Calibration data that do not fit the model, NaN.

    Examples
    --------
    >>> import pqnet
    >>> from pqnet.demo import load_images, model_path
    >>> small = pqnet.quantize(pqnet.load(model_path()), "small-blocks", load_images()[0][:200])
    >>> small.size().ratio > 10
    True
    """
    if not isinstance(model, Model):
        raise _check.error("model", "a pqnet.Model", _check.describe(model))
    options = Options(
        _check.choice(metric, "metric", METRICS),
        _check.choice(target, "target", TARGETS),
        _check.choice(correct_bias, "correct_bias", (False, True)),
        _check.choice(reestimate_norm, "reestimate_norm", (False, True)),
        _check.choice(permute, "permute", (False, True)),
        _check.rng_seed(seed),
    )
    codecs = resolve_recipe(recipe, model.graph)
    _check_float(model.graph, codecs)
    chosen = {name: codec for name, codec in codecs.items() if codec is not None}
    with progress_bar(progress, "quantize", "layer", len(chosen)) as bar:
        teacher, threads = separate_norm_statistics(model.graph), default_threads(threads)
        data = calibration
        if not (data is None or isinstance(data, Statistics)):
            data = list(iterate_batches(model.graph, data))
        if permute:
            permutation = Permutation(teacher, chosen, data, options.seed, threads)
            teacher = permutation.apply()
            data = permutation.statistics(data) if isinstance(data, Statistics) else data
        student = replace(teacher, params=dict(teacher.params))
        run = Run(student, chosen, options, threads, bar)
        if data is None or isinstance(data, Statistics):
            if reestimate_norm:
                raise ConfigError("reestimate_norm: expected calibration data, got none; statistics are not enough")
            if data is not None:
                _from_statistics(run, data)
            elif metric != "none":
                raise ConfigError(f"calibration: expected data or statistics for metric={metric!r}, got None")
            else:
                for node in model.graph.layers().values():
                    if node.name in run.codecs:
                        run.pack(node, run.weight(node))
        else:
            beside = teacher if (metric, target) == ("full", "teacher") else None
            visits = FromData(run)
            sweep(student, data, visits.visited, visits.visit, run.threads, beside)
        return run.finish()
