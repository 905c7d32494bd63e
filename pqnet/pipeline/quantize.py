"""Quantization of a network, layer after layer."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pqnet import _check
from pqnet._threads import default_threads, ordered_map
from pqnet.codecs import FITTERS, Codec, Packed
from pqnet.codecs.layout import block_columns
from pqnet.errors import ConfigError
from pqnet.graph import Graph, Node
from pqnet.graph.passes import fold_norm_statistics, separate_norm_statistics
from pqnet.pipeline.batches import iterate_batches
from pqnet.pipeline.moments import (
    METRICS,
    build_metric,
    diagonal_blocks,
    input_rows,
    output_energies,
    row_moments,
    token_counts,
)
from pqnet.pipeline.progress import progress_bar
from pqnet.pipeline.recipe import Recipe, resolve_recipe
from pqnet.pipeline.statistics import Statistics
from pqnet.pipeline.sweep import sweep
from pqnet.runtime import Model

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["quantize"]


class _Run:
    """The state of one quantization: the growing student graph and the report of the layers done."""

    def __init__(
        self, graph: Graph, recipe: dict[str, Codec | None], metric: str, seed: int, threads: int, bar: "tqdm[Any]"
    ) -> None:
        graph = separate_norm_statistics(graph)
        self.graph = replace(graph, params=dict(graph.params))
        self.codecs = {name: codec for name, codec in recipe.items() if codec is not None}
        self.metric, self.seed, self.threads, self.bar = metric, seed, threads, bar
        self.report: dict[str, dict[str, Any]] = {}

    def pack(self, node: Node, metric: np.ndarray | None, row_weights: np.ndarray | None) -> tuple[Any, Packed]:
        """Fit the codec of a layer and put its codes into the graph; return the float weight and the packed one."""
        codec, name = self.codecs[node.name], node.params["weight"]
        weight = np.asarray(self.graph.params[name], np.float32)
        digest = hashlib.sha256(f"{self.seed}/{node.name}".encode()).digest()
        fit = FITTERS[codec.name](
            codec,
            weight,
            metric=metric,
            row_weights=row_weights,
            seed=int.from_bytes(digest[:6], "big"),
            threads=self.threads,
        )
        self.graph.params[name] = fit.packed
        error = weight - fit.packed.decode()
        self.report[node.name] = {
            "bytes": fit.packed.nbytes,
            "dense_bytes": 4 * weight.size,
            "weight_error": _ratio(float(np.square(error, dtype=np.float64).sum()), weight),
            "iterations": fit.n_iter,
            "codec": fit.packed.codec.to_attrs(),
        }
        self.bar.set_postfix_str(node.name, refresh=False)
        self.bar.update()
        return weight, fit.packed

    def finish(self, reestimate_norm: bool) -> Model:
        graph = fold_norm_statistics(self.graph)
        record = {"metric": self.metric, "seed": self.seed, "reestimate_norm": reestimate_norm, "layers": self.report}
        return Model(replace(graph, meta={**graph.meta, "quantization": record}))


def _ratio(error: float, weight: np.ndarray) -> float:
    energy = float(np.square(weight, dtype=np.float64).sum())
    return error / energy if energy > 0 else 0.0


class _FromData:
    """Quantizes during one sweep over the data: every layer sees what the layers already quantized give it."""

    def __init__(self, run: _Run, reestimate_norm: bool) -> None:
        self.run, self.reestimate_norm = run, reestimate_norm

    def visit(self, node: Node, inputs: list[np.ndarray]) -> None:
        if node.name in self.run.codecs:
            (self._embedding if node.op == "embedding" else self._matrix)(node, inputs)
        elif node.op == "batch_norm" and self.reestimate_norm:
            self._reestimate(node, inputs)

    def _embedding(self, node: Node, inputs: list[np.ndarray]) -> None:
        run = self.run
        vocabulary = run.graph.params[node.params["weight"]].shape[0]
        counts = np.sum([token_counts(ids, vocabulary) for ids in inputs], axis=0)
        weight, packed = run.pack(node, None, _row_weights(run.metric, counts))
        _report_rows(run, node, weight, packed, counts)

    def _matrix(self, node: Node, inputs: list[np.ndarray]) -> None:
        run, codec = self.run, self.run.codecs[node.name]
        shape = tuple(run.graph.params[node.params["weight"]].shape)
        starts = np.cumsum([0, *(len(x) for x in inputs)])
        d, layout = codec.metric_blocks(shape)
        columns = block_columns(shape, layout)

        def rows(i: int) -> np.ndarray:
            return input_rows(node, shape, inputs[i], int(starts[i]), run.seed)

        def moments(i: int) -> tuple[np.ndarray, int]:
            patches = rows(i)
            return row_moments(patches, columns, d), patches.shape[1]

        metric = None
        if run.metric != "none":
            parts = ordered_map(moments, range(len(inputs)), run.threads)
            total, count = next(parts)
            for part, n in parts:
                total += part
                count += n
            metric = build_metric(run.metric, total / count)
        weight, packed = run.pack(node, metric, None)
        pair = (weight, weight - packed.decode())

        def energies(i: int) -> np.ndarray:
            return output_energies(rows(i), pair)

        energy, error = sum(ordered_map(energies, range(len(inputs)), run.threads), np.zeros(2))
        run.report[node.name]["output_error"] = float(error / energy) if energy > 0 else 0.0

    def _reestimate(self, node: Node, inputs: list[np.ndarray]) -> None:
        if "mean" not in node.params or "var" not in node.params:
            raise ConfigError(
                f"reestimate_norm: expected batch norms with running statistics, got folded ones in {node.name!r}; "
                "quantize the float model, or pass reestimate_norm=False"
            )
        axes = (0, *range(2, inputs[0].ndim))

        def sums(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
            wide = x.astype(np.float64)
            return wide.sum(axes), np.square(wide).sum(axes), x.size // x.shape[1]

        parts = list(ordered_map(sums, inputs, self.run.threads))
        count = sum(n for _, _, n in parts)
        mean = np.sum([total for total, _, _ in parts], axis=0) / count
        square = np.sum([squares for _, squares, _ in parts], axis=0) / count
        with np.errstate(invalid="ignore"):  # of infinite inputs, which the next layer names
            var = np.maximum(square - mean**2, 0.0) * (count / max(count - 1, 1))
        self.run.graph.params[node.params["mean"]] = mean.astype(np.float32)
        self.run.graph.params[node.params["var"]] = var.astype(np.float32)


def _from_statistics(run: _Run, statistics: Statistics) -> None:
    """Quantize every layer on its own, from the float network's moments."""
    layers = [node for node in run.graph.layers().values() if node.name in run.codecs]
    shapes = [tuple(run.graph.params[node.params["weight"]].shape) for node in layers]
    found = [statistics.for_layer(node, shape) for node, shape in zip(layers, shapes, strict=True)]  # all, before work
    for node, shape, moments in zip(layers, shapes, found, strict=True):
        codec = run.codecs[node.name]
        if node.op == "embedding":
            weight, packed = run.pack(node, None, _row_weights(run.metric, moments.mean * moments.count))
            _report_rows(run, node, weight, packed, moments.mean)
            continue
        blocks = diagonal_blocks(moments.mean, shape, *codec.metric_blocks(shape))
        weight, packed = run.pack(node, build_metric(run.metric, blocks), None)
        energy, error = (
            _quadratic(w.reshape(len(moments.mean), -1, moments.mean.shape[1]), moments.mean)
            for w in (weight, weight - packed.decode())
        )
        run.report[node.name]["output_error"] = error / energy if energy > 0 else 0.0


def _quadratic(filters: np.ndarray, moment: np.ndarray) -> float:
    return float((np.matmul(filters, moment) * filters).sum(dtype=np.float64))


def _row_weights(metric: str, counts: np.ndarray) -> np.ndarray | None:
    """Tokens weigh as often as they occur, those that calibration did not see as if seen once."""
    return None if metric == "none" else (counts + 1.0).astype(np.float32)


def _report_rows(run: _Run, node: Node, weight: np.ndarray, packed: Packed, counts: np.ndarray) -> None:
    energy, error = (float(counts @ np.square(w, dtype=np.float64).sum(1)) for w in (weight, weight - packed.decode()))
    run.report[node.name]["output_error"] = error / energy if energy > 0 else 0.0


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
    metric: str = "block",
    reestimate_norm: bool = False,
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
    _check.choice(metric, "metric", METRICS)
    _check.choice(reestimate_norm, "reestimate_norm", (False, True))
    codecs = resolve_recipe(recipe, model.graph)
    _check_float(model.graph, codecs)
    total = sum(codec is not None for codec in codecs.values())
    with progress_bar(progress, "quantize", "layer", total) as bar:
        run = _Run(model.graph, codecs, metric, _check.rng_seed(seed), default_threads(threads), bar)
        if calibration is None or isinstance(calibration, Statistics):
            if reestimate_norm:
                raise ConfigError("reestimate_norm: expected calibration data, got none; statistics are not enough")
            if calibration is not None:
                _from_statistics(run, calibration)
            elif metric != "none":
                raise ConfigError(f"calibration: expected data or statistics for metric={metric!r}, got None")
            else:
                for node in model.graph.layers().values():
                    if node.name in run.codecs:
                        run.pack(node, None, None)
        else:
            batches = list(iterate_batches(model.graph, calibration))
            sweep(run.graph, batches, _FromData(run, reestimate_norm).visit, run.threads)
        return run.finish(reestimate_norm)
