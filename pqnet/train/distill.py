"""Distillation: codebooks, and what else a quantized network has, trained to give the float network's outputs."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pqnet._progress import progress_bar
from pqnet.codecs import Packed, PackedPQ
from pqnet.errors import ConfigError, PQNetError, did_you_mean, enough_memory
from pqnet.graph import Graph, Node
from pqnet.graph.blocks import find_blocks
from pqnet.graph.passes import fold_norm_statistics
from pqnet.io import add_content, check_output, graph_content, output_folder
from pqnet.pipeline import calibrate, quantize
from pqnet.pipeline.batches import iterate_batches
from pqnet.pipeline.moments import channel_statistics, layer_metric
from pqnet.pipeline.padding import real_positions
from pqnet.pipeline.sweep import Values, sweep
from pqnet.runtime import Model
from pqnet.train.checks import check_integer, check_number
from pqnet.train.data import Batches
from pqnet.train.module import to_model, to_module
from pqnet.train.objective import BlockObjective, Loss, Objective
from pqnet.train.ops import TorchGraph
from pqnet.train.packed import packed_weights
from pqnet.train.parallel import is_main, torch_threads
from pqnet.train.stored import Gradient
from pqnet.train.trainer import PARTS, Schedule, choose_parameters, run_training

__all__ = ["CALIBRATION", "distill", "find_device"]

CALIBRATION = 1000  # samples, of batches, that layers are quantized by
NORM_EPS = 1e-5
OPTIONS = ("metric", "target", "correct_bias", "permute", "reestimate_norm", "seed")
STAGES = ("global", "layerwise", "blockwise")
OPTIONS_OF_MODES = ("mode", "reestimate_norm", "seed")


@enough_memory("choose a smaller batch_size")
def distill(
    student: Model,
    teacher: Model,
    batches: Any,
    *,
    steps: int,
    stage: str = "global",
    loss: str | Loss = "kl",
    temperature: float = 1.0,
    hints: float = 0.0,
    labels: float = 0.0,
    train: Sequence[str] = PARTS,
    norm_statistics: bool = False,
    reassign: int = 0,
    gradient: Gradient = "mean",
    batch_size: int = 128,
    lr: float = 0.01,
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    every: int = 250,
    held_out: Any = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Model:
    """Train a quantized network to give the outputs of the float one, on inputs without labels.

    Codes stay, codebooks and scales learn: the gradient of a codeword is the mean of those of the blocks that it stands
    for. What comes out is judged as it will be stored, with codewords as float16 or int8, on samples held out, and is
    the best seen, the student itself included. Under ``torchrun`` every process takes its part of each batch.

    Parameters
    ----------
    student : Model
        Quantized.
    teacher : Model
        With the same inputs and outputs.
    batches : array, dict of arrays, pair of either with labels, list of these, or callable
        Samples along axis 0, each used once an epoch; or batches, used in turn; or a function that gives the batch of
        a step, say of `image_batches`.
    steps : int
        Of ``layerwise`` and ``blockwise``, for every layer or block.
    stage : {"global", "layerwise", "blockwise"}
        ``layerwise``: every layer is quantized anew, with the student's codecs and options, and its codebook trained
        right then, before the next layer is looked at, the later ones float and norms left alone ("And the Bit Goes
        Down", whose second stage is ``global``). ``blockwise``: one block of the network after the other, such as a
        residual block, for the relative error of its outputs, with the blocks of ``repair="blocks"`` of
        `pqnet.quantize`. ``global``: all at once.
    loss : {"kl", "mse"} or callable
        ``kl``: T^2 KL(softmax(t / T) || softmax(s / T)) of logits; ``mse``: |s - t|^2 / |t|^2; or a function of two
        tensors, the student's and the teacher's output, that gives a number for each sample (a checkpoint knows it by
        its name).
    temperature : float
        T of ``kl``.
    hints : float
        Weight of the mean relative error of all layers' outputs inside the network.
    labels : float
        Weight, up to 1, of the cross entropy with labels, which ``batches`` must then have. 1 is finetuning on labels
        alone, as "Permute, Quantize, and Fine-tune" does.
    train : sequence of {"codebooks", "norms", "biases", "weights"}
        What learns of ``global``; ``weights`` are those of layers that stayed float, the first convolution's for
        example. Constants stay.
    norm_statistics : bool
        Batch norms go by statistics of their batch, which they learn, as in training from scratch; else they are
        scales and shifts.
    reassign : int
        Choose all codes of `PQ` weights anew every so many steps: the codewords nearest to the teacher's weight under
        the student's metric, of what the layer now sees. 0: never. For students of ``mode="bgd"`` and others whose
        codes stand for weights; those of the default stand for what gives the teacher's outputs.
    gradient : {"mean", "sum"}
        Of codewords, see `PackedWeight`.
    batch_size : int
        Of samples; batches come as they are.
    lr, optimizer, weight_decay
        ``adam`` takes steps of ``lr`` times the root mean square of each parameter, ``sgd`` (momentum 0.9) of ``lr``;
        both less with time, along half a cosine. Where judging finds the student 10 % worse than the best before, it
        goes on from the best with steps of half the size; it looks early, for a rate that good students only lose by.
    every : int
        Steps between two times of judging and writing the checkpoint; at first also after an eighth, a quarter, a half.
    held_out : array, dict of arrays, or pair with labels, optional
        Samples to judge by. Default: a tenth of the samples, at most 1000, which are then not trained on.
    checkpoint : str or Path, optional
        File of the state. An interrupted call that is repeated goes on from it, to the same result. For ``layerwise``
        and ``blockwise`` a folder, as for `pqnet.quantize`.
    seed : int
        Of the order of samples.
    threads : int, optional
        Of PyTorch. The last digits of its sums depend on it. Default: no more than CPUs that nothing else is using when
        the call begins; a call that goes on from a checkpoint takes as many as before.
    device : str
        Where PyTorch computes.
    progress : bool
        Show how far it is: a bar on a terminal, a line every 30 seconds elsewhere.

    Returns
    -------
    Model

    Raises
    ------
    ConfigError
        Unknown stage, loss, optimizer or part; a student without packed weights.
    PQNetError
        Networks with different inputs or outputs; data that do not fit; a loss that is not finite.

    Examples
    --------
    >>> import pqnet, pqnet.train
    >>> from pqnet.demo import load_images, model_path
    >>> teacher, images = pqnet.load(model_path()), load_images()[0]
    >>> student = pqnet.quantize(teacher, "large-blocks", images[:100], progress=False)
    >>> better = pqnet.train.distill(student, teacher, images, steps=20, batch_size=32, every=10, progress=False)
    >>> better.size().total == student.size().total
    True
    """
    for name, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, Model):
            raise PQNetError(f"{name}: expected a pqnet.Model, got {type(model).__name__}")
    if (student.inputs, student.outputs) != (teacher.inputs, teacher.outputs):
        raise PQNetError("teacher: expected the student's inputs and outputs, got others")
    if not any(isinstance(p, Packed) for p in student.graph.params.values()):
        raise ConfigError("student: expected a quantized network, got one without packed weights; quantize it first")
    if gradient not in ("mean", "sum"):
        raise ConfigError(f"gradient: expected 'mean' or 'sum', got {gradient!r}")
    if stage not in STAGES:
        near = did_you_mean(stage, STAGES)
        raise ConfigError(f"stage: expected {', '.join(map(repr, STAGES[:-1]))} or {STAGES[-1]!r}, got {stage!r}{near}")
    if check_number("labels", labels) > 1:
        raise ConfigError(f"labels: expected a weight of at most 1, got {labels!r}")
    if check_number("temperature", temperature) == 0:
        raise ConfigError("temperature: expected a positive number, got 0")
    check_number("hints", hints)
    for name, value, low in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("threads", 1 if threads is None else threads, 1),
    ):
        check_integer(name, value, low)
    schedule = Schedule(steps, lr, optimizer, weight_decay, every, reassign)
    report = student.graph.meta.get("quantization", {})
    if (hints or reassign or stage == "blockwise") and report.get("permute"):
        name = "hints, reassign" if stage != "blockwise" else "stage='blockwise'"
        raise ConfigError(f"{name}: expected channels in the teacher's order, got a student of permute=True")
    if reassign and (report.get("target") != "weight" or report.get("correct_bias")):
        raise ConfigError(
            "reassign: expected a student whose codes stand for the teacher's weights, of mode='bgd' or of "
            "target='weight' and correct_bias=False; those of the default aim at its outputs"
        )
    if stage == "layerwise" and (reassign or norm_statistics or tuple(train) != PARTS):
        raise ConfigError("stage: expected 'global' with reassign, norm_statistics or train, got 'layerwise'")
    if stage == "blockwise" and (reassign or norm_statistics or hints or labels):
        raise ConfigError(
            "stage: expected 'global' with reassign, norm_statistics, hints or labels, got 'blockwise', which compares "
            "the outputs of blocks"
        )
    if checkpoint is not None and stage == "global":
        check_output(checkpoint, "checkpoint")
    data = Batches(student.graph, batches, held_out, batch_size, seed)
    real_positions(data.held_out.inputs)  # has a word to say about masks by another name
    task = _Task(
        teacher,
        data,
        schedule,
        partial(Objective, loss=loss, temperature=temperature, hints=hints, labels=labels),
        [
            *(getattr(loss, "__qualname__", str(loss)), temperature, hints, labels, batch_size, seed),
            *(norm_statistics, gradient),
        ],
        find_device(device),
        gradient,
        progress,
    )
    with torch_threads(threads):
        if stage == "layerwise":
            return _layer_by_layer(task, student, checkpoint)
        if stage == "blockwise":
            return _block_by_block(task, student, tuple(train), checkpoint)
        return _all_together(task, student, tuple(train), norm_statistics, checkpoint, threads)


@dataclass(frozen=True)
class _Task:
    teacher: Model
    data: Batches
    schedule: Schedule
    objective: Callable[..., Objective]
    settings: list[Any]
    device: torch.device
    gradient: Gradient
    progress: bool

    def key(self, *graphs: Graph) -> str:
        """Return a fingerprint of all that the result depends on; of functions the first batch, or the name."""
        digest = hashlib.sha256()
        add_content(digest, [*self.settings, repr(self.schedule), torch.__version__], self.data.arrays())
        for graph in (self.teacher.graph, *graphs):
            add_content(digest, *graph_content(replace(graph, meta={})))
        return digest.hexdigest()

    def run(self, module: TorchGraph, parts: tuple[str, ...], key: str, **options: Any) -> None:
        teacher = to_module(self.teacher).to(self.device)
        objective = self.objective(module.to(self.device), teacher)
        options = {"checkpoint": None, "progress": self.progress, **options}
        run_training(objective, self.data, self.schedule, parts, key=key, device=self.device, **options)


def _all_together(
    task: _Task,
    student: Model,
    parts: tuple[str, ...],
    norm_statistics: bool,
    checkpoint: str | Path | None,
    threads: int | None,
) -> Model:
    graph = student.graph
    if norm_statistics:
        graph = with_norm_statistics(graph, task.data.some(CALIBRATION))
    module = to_module(graph, gradient=task.gradient)
    task.run(
        module,
        parts,
        task.key(student.graph) if checkpoint else "",
        reassign=_Reassign(module, student, task.teacher.graph, task.data) if task.schedule.reassign else None,
        checkpoint=checkpoint,
        norm_statistics=norm_statistics,
        any_threads=threads is None,
    )
    trained = to_model(module)
    return Model(fold_norm_statistics(trained.graph)) if norm_statistics else trained


def _layer_by_layer(task: _Task, student: Model, checkpoint: str | Path | None) -> Model:
    layers = {name: student.graph.params[node.params["weight"]] for name, node in student.graph.layers().items()}
    recipe = {name: weight.codec if isinstance(weight, Packed) else None for name, weight in layers.items()}
    report = student.graph.meta.get("quantization", {})
    names = OPTIONS if report.get("mode") is None else OPTIONS_OF_MODES
    options = {name: report[name] for name in names if name in report}

    finetune = _LayerTrainer(task, task.key() if checkpoint else "", is_main())
    calibration = task.data.some(CALIBRATION)
    progress = task.progress and is_main()
    return quantize(
        task.teacher, recipe, calibration, finetune=finetune, checkpoint=checkpoint, progress=progress, **options
    )


def _block_by_block(task: _Task, student: Model, parts: tuple[str, ...], checkpoint: str | Path | None) -> Model:
    graph = student.graph
    layers = [n for n, node in graph.layers().items() if isinstance(graph.params[node.params["weight"]], Packed)]
    ours, theirs = find_blocks(graph, layers), find_blocks(task.teacher.graph, layers)
    if [block.layers for block in ours] != [block.layers for block in theirs]:
        raise ConfigError("stage: expected a teacher with blocks of the student's layers for 'blockwise', got others")
    folder = None if checkpoint is None else output_folder(checkpoint, "checkpoint")
    module = to_module(graph, gradient=task.gradient)
    choose_parameters(module, parts)  # there are some
    teacher = to_module(task.teacher).to(task.device)
    key = task.key(graph) if checkpoint else ""
    with progress_bar(task.progress and is_main(), "distill", "block", len(ours)) as bar:
        for i, (block, other) in enumerate(zip(ours, theirs, strict=True)):
            bar.begin(", ".join(block.layers))
            inside = graph.nodes[block.start : block.stop]
            elsewhere = {name for node in graph.nodes if node not in inside for name in node.params.values()}
            own = {node.name for node in inside if elsewhere.isdisjoint(node.params.values())}
            run_training(
                BlockObjective(module.to(task.device), teacher, block, other),
                task.data,
                task.schedule,
                parts,
                key=f"{key} block {i}",
                device=task.device,
                checkpoint=None if folder is None else folder / f"block{i}",
                progress=task.progress,
                only=own,
            )
            bar.update()
    return to_model(module)


@dataclass(frozen=True)
class _LayerTrainer:
    """Trains the codebook of a layer right after it is quantized, see ``finetune`` of `pqnet.quantize`."""

    task: _Task
    key: str
    writes: bool

    def __call__(self, graph: Graph, layer: str) -> Packed:
        module = to_module(graph, gradient=self.task.gradient)
        self.task.run(module, ("codebooks",), "", only={layer}, progress=False)
        return packed_weights(module)[layer].packed()


class _Reassign:
    """Gives every block the codeword nearest to the teacher's, under the moments of what the layer sees now."""

    def __init__(self, module: TorchGraph, student: Model, teacher: Graph, data: Batches) -> None:
        self.module, self.data = module, data
        self.metric = student.graph.meta.get("quantization", {}).get("metric", "full")
        self.targets: dict[str, np.ndarray] = {}
        theirs = teacher.layers()
        for name, node in student.graph.layers().items():
            packed = student.graph.params[node.params["weight"]]
            target = teacher.params[theirs[name].params["weight"]] if name in theirs else None
            if isinstance(packed, PackedPQ) and isinstance(target, np.ndarray) and target.shape == packed.shape:
                self.targets[name] = np.asarray(target, np.float32)

    def __call__(self) -> None:
        seen = calibrate(to_model(self.module), self.data.some(CALIBRATION)).layers
        weights = packed_weights(self.module)
        for name, target in self.targets.items():
            moments, codec = seen[name].mean, weights[name].stored.codec
            metric = None if moments.ndim == 1 else layer_metric(self.metric, moments, target.shape, codec)
            weights[name].reassign(torch.from_numpy(target), metric)


def find_device(name: str) -> torch.device:
    """Return a device by its name, or raise ConfigError."""
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, TypeError) as reason:
        raise ConfigError(f"device: expected one that PyTorch computes on here, got {name!r}: {reason}") from None


def with_norm_statistics(graph: Graph, batches: list[dict[str, np.ndarray]]) -> Graph:
    """Return a graph of the same outputs whose folded batch norms have statistics: those of their inputs."""
    params, nodes = dict(graph.params), []
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def visit(node: Node, values: Values, _: Values) -> None:
        mean, var, _count = channel_statistics([batch[node.inputs[0]] for batch in values], 1)
        found[node.name] = mean, var

    folded = [n.name for n in graph.nodes if n.op == "batch_norm" and "mean" not in n.params and "var" not in n.params]
    sweep(graph, list(iterate_batches(graph, batches)), folded, visit, 1)
    for node in graph.nodes:
        if node.name in found:
            mean, var = found[node.name]
            size = np.sqrt(var + NORM_EPS)
            scale, shift = (
                np.asarray(params[node.params[role]], np.float64) if role in node.params else otherwise
                for role, otherwise in (("weight", 1.0), ("bias", 0.0))
            )
            made = {"weight": scale * size, "bias": shift + scale * mean, "mean": mean, "var": var}
            names = {role: node.params.get(role, f"{node.name}.{role}") for role in made}
            params |= {names[role]: values.astype(np.float32) for role, values in made.items()}
            node = replace(node, params=names, attrs={**node.attrs, "eps": NORM_EPS})
        nodes.append(node)
    return replace(graph, nodes=nodes, params=params)
