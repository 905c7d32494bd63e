"""Quantization of a network, layer after layer."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pqnet import _check
from pqnet._progress import progress_bar, tick
from pqnet._threads import blas_limit, default_threads
from pqnet.codecs import Codec, Packed
from pqnet.errors import ConfigError, enough_memory
from pqnet.graph import Graph, Node, weight_op
from pqnet.graph.affine import FreeAffine
from pqnet.graph.graph import Param
from pqnet.graph.passes import separate_norm_statistics
from pqnet.io import network_digest, output_folder
from pqnet.pipeline.activations import check_activations, integer_inputs, ranges_of_statistics
from pqnet.pipeline.balance import BALANCED, balance
from pqnet.pipeline.batches import Batch, hold_out, iterate_batches
from pqnet.pipeline.checkpoint import LayerFiles, resumable
from pqnet.pipeline.cluster import Tasks
from pqnet.pipeline.layerwise import FromData
from pqnet.pipeline.modes import check_calibration, choose_options, integers_instead, mode_search
from pqnet.pipeline.moments import doubted, layer_metric, output_error, output_squares, relative, share_to_doubt
from pqnet.pipeline.permute import Permutation
from pqnet.pipeline.presets import with_half_stem
from pqnet.pipeline.recipe import Recipe, resolve_recipe
from pqnet.pipeline.repair import BlockRepair
from pqnet.pipeline.run import Run, layer_costs
from pqnet.pipeline.scaled import pack_scaled
from pqnet.pipeline.statistics import Moments, Statistics
from pqnet.pipeline.sweep import Values, sweep
from pqnet.runtime import Model

if TYPE_CHECKING:
    from pqnet.pipeline.cluster import Client

__all__ = ["quantize"]


def _one_by_one(
    run: Run, statistics: Statistics | None, folder: Path | None, tasks: Tasks, threads: int | None
) -> None:
    layers = [node for node in run.graph.layers().values() if node.name in run.codecs]
    if statistics is not None:
        for node in layers:  # all, before work
            statistics.for_layer(node, run.weight(node).shape)
    files = None if folder is None else LayerFiles(folder, run, statistics)
    keys = {} if files is None else {node.name: files.key(node) for node in layers}
    left = [node for node in layers if files is None or not files.replay(node, keys[node.name])]
    items = [(node, None if statistics is None else statistics.layers[node.name]) for node in left]
    alone = replace(run, graph=replace(run.graph, params=dict(run.graph.params)), bar=None, report={})
    found = tasks.map(partial(_change_alone, threads), items, tasks.share(alone))

    def begun() -> Iterator[Node]:
        for node in left:
            run.begin(node)
            yield node

    for node, (changed, report) in zip(begun(), found, strict=True):
        before = dict(run.graph.params)
        run.graph.params |= changed
        run.done(node, report)
        if files is not None:
            files.store(node, keys[node.name], before)
    run.report = {node.name: run.report[node.name] for node in layers}


def _change_alone(
    threads: int | None, item: tuple[Node, Moments | None], run: Run
) -> tuple[dict[str, Param], dict[str, Any]]:
    """Return the parameters that quantizing a layer changes, and what is reported of it."""
    node, moments = item
    before = run.graph.params
    own = replace(run.graph, params=dict(before))
    run = replace(run, graph=own, threads=default_threads(threads), report={})
    _alone(run, moments, node)
    changed = {name: param for name, param in run.graph.params.items() if param is not before[name]}
    return changed, run.report[node.name]


def _alone(run: Run, moments: Moments | None, node: Node) -> None:
    """Quantize a layer on its own, from the float network's moments if there are any."""
    metric, weight = run.options.metric, run.weight(node)
    if moments is None:
        run.pack(node, weight)
        return
    if weight_op(node.op).looked_up:
        run.pack_tokens(node, moments.mean * moments.count)
        return
    doubt = share_to_doubt(moments.mean.shape[1], moments.count)
    if metric != "full":
        packed = run.pack(node, weight, layer_metric(metric, moments.mean, weight.shape, run.codecs[node.name], doubt))
        run.report[node.name]["output_error"] = output_error(moments.mean, weight, packed.decode())
        return
    affine = FreeAffine.find(run.graph, node) if run.options.correct_bias and moments.first is not None else None
    about = (moments.mean if affine is None else moments.centred()).astype(np.float64)
    dense, scale = pack_scaled(run, node, weight, about, doubt, affine)
    if affine is not None:
        assert moments.first is not None
        change = (weight - dense).reshape(len(about), -1, about.shape[1])
        affine.apply(scale, np.matmul(change, moments.first.astype(np.float64)[:, :, None]).reshape(-1))
    # What is chance in the moments does not count as an error that they show.
    error = output_squares(doubted(about, doubt), weight - dense).sum()
    run.report[node.name]["output_error"] = relative(float(error), float(output_squares(moments.mean, weight).sum()))


def _and_finetune(
    run: Run,
    visit: Callable[[Node, Values, Values], None],
    finetune: Callable[[Graph, str], Packed],
    node: Node,
    values: Values,
    taught: Values,
) -> None:
    visit(node, values, taught)
    if node.name in run.codecs:
        tick("finetune")
        codec, name = run.codecs[node.name], node.params["weight"]
        packed = finetune(run.graph, node.name)
        if not isinstance(packed, Packed) or packed.shape != run.graph.params[name].shape or packed.codec != codec:
            raise _check.error("finetune", f"a weight packed by {codec}", _check.describe(packed))
        run.graph.params[name] = packed
        run.report[node.name] |= {"output_error": None, "weight_error": None}  # those of the weight before


def _repair_blocks(run: Run, teacher: Graph, data: list[Batch], learned: int, folder: Path | None) -> None:
    if learned == len(data):
        raise ConfigError("repair: expected at least eight samples, some of which are put aside to judge by, got fewer")
    repair = BlockRepair(run, teacher, data, learned)
    run.expect(repair.costs())
    more = f"blocks of {network_digest(teacher)}"
    visit = resumable(repair.visit, folder, run, data, more, blocks=repair.blocks)
    before = dict(run.graph.params)
    sweep(run.graph, data, repair.blocks, visit, run.threads, teacher)
    repair.keep_if_better(before)


def _check_float(graph: Graph, recipe: Mapping[str, Codec | None]) -> None:
    layers = graph.layers()
    for name, codec in recipe.items():
        param = layers[name].params["weight"]
        if codec is not None and isinstance(graph.params[param], Packed):
            raise ConfigError(f"layer {name!r}: expected a float weight, got a packed one; quantize the float model")


@enough_memory("give fewer calibration samples: the values of all of them are held; or pqnet.Statistics")
def quantize(
    model: Model,
    recipe: Recipe | Mapping[str, Codec | None] | str | None,
    calibration: Any = None,
    *,
    mode: str | None = None,
    metric: str | None = None,
    target: str | None = None,
    correct_bias: bool | None = None,
    permute: bool | None = None,
    reestimate_norm: bool = False,
    effort: str = "normal",
    balanced: bool | None = None,
    repair: str | None = None,
    activations: str | None = None,
    observer: str = "mse",
    max_drop: float = 0.02,
    finetune: Callable[[Graph, str], Packed] | None = None,
    checkpoint: str | Path | None = None,
    client: "Client | None" = None,
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
        A preset (``"small-blocks"``, ``"large-blocks"``, ``"transformer"``, or a paper's, see ``mode``), or a codec for
        each layer, see `Recipe`. None, with ``activations``, leaves all weights as they are.
        Of a preset, with the full metric, layers so small that codewords take most of their bytes become integers with
        a scale for each filter where these leave less error, in no more bytes; so do depthwise filters, in 4 bits.
    calibration : array, dict of arrays, path, iterable of any of these, or Statistics
        Data, as for `calibrate`: layers are quantized in graph order, each from the inputs that the layers already
        quantized give it; of eight samples or more every eighth is put aside, to damp by and to report errors of. The
        whole takes about two forward passes, and memory for the values that later layers still need, of all samples.
        Where an input called ``attention_mask``, of shape (batch, length), is zero, texts are padding and count not.
        Statistics of `calibrate`: every layer on its own. None is enough for ``metric="none"``.
    mode : {None, "bgd", "pqf", "ipq"}
        Find codes as published and no better, for comparison; metric, target, correct_bias and permute are the mode's.
        ``bgd``, "And the Bit Goes Down": at most 100 iterations of k-means from random blocks, under the pooled
        metric, layer after layer; needs data. ``pqf``, "Permute, Quantize, and Fine-tune": channels in another order,
        by that paper's search, then 1000 iterations of annealed k-means, both on the weights alone. ``ipq``, "Training
        with Quantization Noise": at most 15 iterations of k-means from random blocks, on the weights alone. All for
        the PQ codec only and without the papers' finetuning. Codecs are those of the recipe; the presets
        ``bgd-resnet50-large``, ``pqf-resnet18-small``, ``ipq-efficientnet`` and so on have the papers' blocks.
    metric : {"full", "block", "pooled", "none"}
        What the search of codes minimises: ``none`` the error of the weights; ``pooled`` the output error under one
        d x d second moment for the layer, as "And the Bit Goes Down" does; ``block`` under one for each block position;
        ``full``, the default, under all second moments of the layer's inputs, so that errors of blocks make up for one
        another.
    target : {"teacher", "weight"}
        With data and the full metric, what the outputs of a layer are to be, given the inputs s that the layers already
        quantized give it: ``teacher``, the default, those of the float network from its own inputs t, for which codes
        are found for T = W E[t s'] E[s s']^-1 instead of the weight W; ``weight`` those of W.
    correct_bias : bool
        With the full metric: let shifts and scales that the network has anyway, of biases and batch norms,
        make up for the mean error of each output. It costs no bytes. Default True.
    permute : bool
        First put channels into an order in which the blocks of the layers that read them suit one codebook better;
        the float network computes the same, which is checked, and the codes take the same bytes. Default False.
    reestimate_norm : bool
        Measure the statistics of all batch norms again, on what the quantized layers before them give; needs data.
    effort : {"low", "normal", "high"}
        How long to look for codewords under the full metric, with noise that leads past poor minima: not at all; 10
        rounds in layers where they take seconds, not in those of more than about a million weights; 40 rounds in all.
    balanced : bool
        Of ``small-blocks`` and ``large-blocks`` with data, the full metric and no ``finetune``: choose anew how many
        codewords each layer has, at no more bytes in all, by how much of its error reaches the network's outputs, which
        is measured on a few samples; codewords may become 8-bit integers, small layers integers. The recipe of other
        calls is kept. Default True; recorded is whether it was done.
    repair : {None, "blocks"}
        After all layers, with data: fit the codewords, biases, and scales and shifts of norms of each block (a residual
        block, a layer of a transformer, or two layers of a chain) together to what the float block gives, from what
        the quantized network gives the block. Judged by the samples put aside, eight samples or more are needed for
        these; a block that does not come nearer keeps what it had. Costs no bytes; takes about 60 forward passes.
    activations : {None, "int8"}
        Measure the ranges of the inputs of layers, with data, of the quantized network, for ``compute="int8"`` of
        `pqnet.load`, and by how much integers are wrong on average, which is then added to the outputs. Float weights,
        too, are integers then. Linear layers whose outputs come out nearer so get a scale for each row of their inputs
        (token) when they run. In float32 the network computes what it did. From a Statistics with ranges
        (`calibrate(activations="int8")`) there are ranges alone, of the float network, of all layers.
    observer : {"mse", "minmax", "percentile"}
        How ranges are found: with the least squared error of the inputs; from the least to the largest input; such that
        one of 10,000 lies outside.
    max_drop : float
        With data: how much of its outputs the network may lose by integers, as `pqnet.compress` measures it, on at most
        256 samples: layers whose outputs suffer most stay without a range until the loss is within it.
    finetune : callable, optional
        With data: called right after each layer, with the network as it is then, the layers after it float, and the
        layer's name; returns its packed weight, trained say, to go on with; errors are not reported then. For a
        ``checkpoint`` it must have an attribute ``key``, text that is another one whenever the function is; with
        ``writes`` false, this process only reads the checkpoint. `pqnet.train.distill` makes use of it.
    checkpoint : str or Path, optional
        Folder, made if missing, that keeps what was found for each layer, as soon as it is found. An interrupted call
        that is repeated goes on where it stopped, to the same bytes; after a change of the recipe only what depends on
        it is searched again: with data a layer and those after it, else the layer. Files of earlier calls are left
        alone, damaged ones made anew with a warning; deleting any is safe.
    client : distributed.Client, optional
        Search codes on the workers of a Dask cluster, to the same bytes: from statistics those of all layers at once,
        with data those of layers whose inputs are there together, such as queries, keys and values.
    seed : int
    threads : int, optional
        Default: all cores, on a cluster those of a worker. The bytes of the result do not depend on it.
    progress : bool
        Show how far it is: a bar on a terminal, a line every 30 seconds elsewhere.

    Returns
    -------
    Model
        Its ``graph.meta["quantization"]`` reports for each layer bytes, relative output error (squared, on samples put
        aside), relative weight error, and iterations. Running statistics of batch norms are folded.

    Raises
    ------
    ConfigError
        A pattern that matches no layer, a codec that does not fit, an unknown preset, mode or metric.
    PQNetError
        Calibration data that do not fit the model, NaN; a checkpoint that is not a folder to write to.

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
    options = choose_options(
        mode, metric, target, correct_bias, permute, reestimate_norm, seed, effort, balanced, repair
    )
    codecs = {}
    if recipe is not None or activations is None:
        codecs = resolve_recipe(recipe, model.graph)  # type: ignore[arg-type]  # it says what is expected
    _check_float(model.graph, codecs)
    if isinstance(calibration, Statistics):
        calibration.check(model.graph)
    chosen = {name: codec for name, codec in codecs.items() if codec is not None}
    has_data = not (calibration is None or isinstance(calibration, Statistics))
    check_activations(activations, observer, max_drop, calibration)
    check_calibration(options, calibration)
    if finetune is not None and not has_data:
        raise ConfigError("finetune: expected calibration data, got none; without, layers are not in turn")
    if finetune is not None and checkpoint is not None and not isinstance(getattr(finetune, "key", None), str):
        raise ConfigError("finetune: expected an attribute 'key', text, to tell its results in a checkpoint, got none")
    search = mode_search(mode, chosen)
    folder = None if checkpoint is None else output_folder(checkpoint, "checkpoint")
    costs, tasks, given, threads = layer_costs(model.graph, chosen), Tasks(client), threads, default_threads(threads)
    with blas_limit(1), progress_bar(progress, "quantize", "layer", len(costs), costs) as bar:
        teacher = separate_norm_statistics(model.graph)
        data = list(iterate_batches(model.graph, calibration)) if has_data else calibration
        own = isinstance(recipe, str) and mode is None and finetune is None and options.metric == "full"
        better = None
        if own and options.balanced and recipe in BALANCED and isinstance(data, list):
            better = balance(model.graph, chosen, data, options.seed, threads)
        chosen, options = better or chosen, replace(options, balanced=better is not None)
        if options.permute:
            moments = None if options.metric == "none" else data
            permutation = Permutation(teacher, chosen, moments, options.seed, threads, options.mode == "pqf")
            teacher = permutation.apply()
            data = permutation.statistics(data) if isinstance(data, Statistics) else data
        student = replace(teacher, params=dict(teacher.params))
        run = Run(student, chosen, options, threads, bar, search)
        if own and better is None:
            shapes = {name: run.weight(node).shape for name, node in student.layers().items()}
            run.instead = integers_instead(chosen, shapes)
        if data is None or isinstance(data, Statistics):
            _one_by_one(run, data, folder, tasks, given)
        else:
            data, learned = hold_out(model.graph, data)
            visits = FromData(run, teacher, data, learned, tasks, given)
            visit = visits.visit if finetune is None else partial(_and_finetune, run, visits.visit, finetune)
            visit = resumable(
                visit, folder, run, data, getattr(finetune, "key", None), getattr(finetune, "writes", True)
            )
            beside = teacher if (options.metric, options.target) == ("full", "teacher") else None
            sweep(student, data, visits.visited, visit, threads, beside)
            if options.repair == "blocks":
                _repair_blocks(run, teacher, data, learned, folder)
        small = run.finish()
        small = Model(with_half_stem(small.graph)) if isinstance(recipe, str) else small
        if activations is None or data is None:
            return small
        if isinstance(data, Statistics):
            return ranges_of_statistics(small, data, observer)
        return integer_inputs(small, data, observer, max_drop, threads)
