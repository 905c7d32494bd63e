"""Training of a float network towards a recipe, by learning-compression, quantization noise or in stages.

One loop for all three; `pqnet.train.distill` trains networks that are quantized already.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pqnet._progress import Progress, progress_bar
from pqnet.codecs import Codec
from pqnet.errors import ConfigError, PQNetError, enough_memory
from pqnet.io import add_content, check_output, graph_content
from pqnet.pipeline import Recipe, quantize, resolve_recipe
from pqnet.pipeline.target import float_weights
from pqnet.runtime import Model
from pqnet.train.checks import check_integer, check_number
from pqnet.train.data import Batches
from pqnet.train.distill import CALIBRATION, find_device
from pqnet.train.ipq import IterativePQ
from pqnet.train.lc import LC
from pqnet.train.module import to_model, to_module
from pqnet.train.noise import QuantNoise
from pqnet.train.objective import Loss, Objective
from pqnet.train.ops import TorchGraph
from pqnet.train.parallel import torch_threads, world
from pqnet.train.state import check_numbers, check_optimizer_state, load_weights, read_state, write_state
from pqnet.train.stored import Gradient
from pqnet.train.trainer import PARTS, Schedule, choose_parameters, judge

__all__ = ["METHODS", "train"]


class Method(Protocol):
    """What a way of training does beside steps of the optimizer."""

    def penalty(self) -> Tensor | None:
        """Return what is added to the loss of a batch."""

    def position(self, step: int) -> int:
        """Return at which step of the schedule of learning rates a step is."""

    def before(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Prepare a step."""

    def after(self, step: int) -> bool:
        """Go on after so many steps; return whether the optimizer has to start anew, with other parameters perhaps."""

    def state(self) -> dict[str, Any]:
        """Return numbers and tensors to go on from."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""

    def finish(self) -> Model:
        """Return the quantized network."""


class _Learning:
    """Learning-compression: a C step after each of equal parts of the training."""

    def __init__(self, module: TorchGraph, codecs: Mapping[str, Codec], steps: int, options: Mapping[str, Any]) -> None:
        self.module, self.steps = module, steps
        self.rounds: int = min(options["rounds"], steps)
        self.lc = LC(module, codecs, mu=options["mu"], growth=options["growth"], seed=options["seed"])

    def penalty(self) -> Tensor | None:
        return self.lc.penalty()

    def position(self, step: int) -> int:
        """Every L step has a schedule of its own: in the last one, weights still have to reach their codes."""
        return step * self.rounds % self.steps

    def before(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        if isinstance(optimizer, torch.optim.SGD):  # Adam's steps do not grow with mu
            self.lc.clip_lr(optimizer)

    def after(self, step: int) -> bool:
        due = step * self.rounds // self.steps > max(0, step - 1) * self.rounds // self.steps
        if due:
            self.lc.compress()
        return due  # what an optimizer has learned of the gradients before does not hold for another mu and target

    def state(self) -> dict[str, Any]:
        return self.lc.state_dict()

    def load(self, state: Mapping[str, Any]) -> None:
        self.lc.load_state_dict(state)

    def finish(self) -> Model:
        self.lc.finish()
        return to_model(self.module)


class _Noisy:
    """Quantization noise on all weights of the recipe; in the end `pqnet.quantize` finds the codes."""

    def __init__(
        self, module: TorchGraph, codecs: Mapping[str, Codec], data: Batches, options: Mapping[str, Any]
    ) -> None:
        self.module, self.codecs, self.data, self.seed = module, dict(codecs), data, options["seed"]
        self.noise = QuantNoise(module, codecs, options["p"], phi=options["phi"], seed=options["seed"])

    def penalty(self) -> Tensor | None:
        return None

    def position(self, step: int) -> int:
        return step

    def before(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        self.noise.draw()

    def after(self, step: int) -> bool:
        return False

    def state(self) -> dict[str, Any]:
        return self.noise.state_dict()

    def load(self, state: Mapping[str, Any]) -> None:
        self.noise.load_state_dict(state)

    def finish(self) -> Model:
        self.noise.remove()
        return quantize(to_model(self.module), self.codecs, self.data.some(CALIBRATION), seed=self.seed, progress=False)


class _Iterative:
    """Iterative product quantization: the next stage is packed after each of equal parts of the training."""

    def __init__(self, module: TorchGraph, codecs: Mapping[str, Codec], steps: int, options: Mapping[str, Any]) -> None:
        names = list(codecs)
        stages = min(options["stages"], len(names), steps)
        parts = [[str(name) for name in part] for part in np.array_split(np.array(names, object), stages)]
        self.module, self.steps, self.stages = module, steps, stages
        packed = [{name: codecs[name] for name in part} for part in parts]
        self.ipq = IterativePQ(module, packed, gradient=options["gradient"], seed=options["seed"])

    def penalty(self) -> Tensor | None:
        return None

    def position(self, step: int) -> int:
        return step

    def before(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        pass

    def after(self, step: int) -> bool:
        due = min(self.stages, 1 + step * self.stages // self.steps)  # the first before the first step
        if due == self.ipq.stage:
            return False
        while self.ipq.stage < due:
            self.ipq.advance()
        return True

    def state(self) -> dict[str, Any]:
        return self.ipq.state_dict()

    def load(self, state: Mapping[str, Any]) -> None:
        self.ipq.load_state_dict(state)

    def finish(self) -> Model:
        return to_model(self.module)


METHODS = ("lc", "noise", "ipq")


@enough_memory("choose a smaller batch_size")
def train(
    model: Model,
    recipe: Recipe | Mapping[str, Codec | None] | str,
    batches: Any,
    *,
    method: str,
    steps: int,
    loss: str | Loss = "kl",
    temperature: float = 1.0,
    labels: float = 0.0,
    train: tuple[str, ...] = PARTS,
    norm_statistics: bool = False,
    gradient: Gradient = "mean",
    mu: float = 1e-4,
    growth: float = 1.25,
    rounds: int = 50,
    p: float = 0.1,
    phi: str = "proxy",
    stages: int = 4,
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
    """Train a float network so that quantization by a recipe costs it little, and quantize it.

    The loss is that of `distill`: the outputs of the network as it was, or labels, or both.

    Parameters
    ----------
    model : Model
        Float; what is trained, and the teacher.
    recipe : str, Recipe or dict
        See `pqnet.quantize`.
    batches
        As for `distill`.
    method : {"lc", "noise", "ipq"}
        ``lc``: learning-compression, see `LC`. ``noise``: part of the weights are quantized in each step, see
        `QuantNoise`, and all in the end by `pqnet.quantize`. ``ipq``: group after group of layers is packed, while the
        rest adapts, see `IterativePQ`.
    steps : int
        In all.
    loss, temperature, norm_statistics
        As for `distill`.
    labels : float
        Weight, up to 1, of the cross entropy with labels, which ``batches`` must then have. 1: labels alone.
    train : sequence of {"codebooks", "norms", "biases", "weights"}
        What learns. ``codebooks`` are there with ``ipq`` only.
    gradient : {"mean", "sum"}
        Of codewords, with ``ipq``, see `PackedWeight`.
    mu, growth, rounds
        Of ``lc``: mu at first, its growth at each C step, and how many C steps there are.
    p, phi
        Of ``noise``, see `QuantNoise`.
    stages : int
        Of ``ipq``: groups of layers, from the input on.
    batch_size, lr, optimizer, weight_decay, every, held_out, seed, threads, device, progress
        As for `distill`.
    checkpoint : str or Path, optional
        File of the state. An interrupted call that is repeated goes on from it, to the same result.

    Returns
    -------
    Model
        Quantized, as training left it.

    Raises
    ------
    ConfigError
        Unknown method, loss, optimizer or part; a recipe that does not fit; numbers out of range.
    PQNetError
        Data that do not fit; a loss that is not finite.

    Examples
    --------
    >>> import pqnet, pqnet.train
    >>> from pqnet.demo import load_images, model_path
    >>> model, images = pqnet.load(model_path()), load_images()[0][:200]
    >>> small = pqnet.train.train(
    ...     model, {"fc": pqnet.PQ(16, 4)}, images, method="ipq", steps=4, batch_size=16, progress=False
    ... )
    >>> small.graph.params["fc.weight"].codec
    PQ(k=16, d=4, layout='spatial', codebook_dtype='float16', clamp=None)
    """
    float_weights(model)
    if method not in METHODS:
        raise ConfigError(f"method: expected 'lc', 'noise' or 'ipq', got {method!r}")
    if world() > 1:
        raise ConfigError(f"method: expected 'distill' with several processes, got {method!r}; start one process")
    if not 0 <= check_number("labels", labels) <= 1:
        raise ConfigError(f"labels: expected a weight up to 1, got {labels!r}")
    if check_number("temperature", temperature) == 0:
        raise ConfigError("temperature: expected a positive number, got 0")
    for name, value in {"rounds": rounds, "stages": stages, "batch_size": batch_size}.items():
        check_integer(name, value, 1)
    check_integer("seed", seed, 0)
    schedule = Schedule(steps, lr, optimizer, weight_decay, every)
    if checkpoint is not None:
        check_output(checkpoint, "checkpoint")
    codecs = {name: codec for name, codec in resolve_recipe(recipe, model.graph).items() if codec is not None}
    data = Batches(model.graph, batches, held_out, batch_size, seed)
    where = find_device(device)
    with torch_threads(threads):
        module, teacher = to_module(model).to(where), to_module(model).to(where)
        objective = Objective(module, teacher, loss, temperature, 0.0, labels)
        parts = tuple(part for part in train if part != "codebooks" or method == "ipq")
        first = choose_parameters(module, parts)
        options = {"seed": seed, "mu": mu, "growth": growth, "rounds": rounds, "p": p, "phi": phi}
        options |= {"stages": stages, "gradient": gradient}
        way: Method
        if method == "noise":
            way = _Noisy(module, codecs, data, options)
        else:
            way = (_Learning if method == "lc" else _Iterative)(module, codecs, steps, options)
        settings = [method, parts, getattr(loss, "__qualname__", str(loss)), temperature, labels, norm_statistics]
        settings += [repr(schedule), batch_size, sorted(options.items()), {n: c.to_attrs() for n, c in codecs.items()}]
        key = _fingerprint(model, data, settings) if checkpoint is not None else ""
        loop = _Loop(objective, data, schedule, way, parts, first, checkpoint, key, norm_statistics)
        with progress_bar(progress, f"{method} {len(codecs)} layers", "step", steps) as bar:
            loop.run(where, bar)
            return way.finish()


def _fingerprint(model: Model, data: Batches, settings: list[Any]) -> str:
    digest = hashlib.sha256()
    add_content(digest, [*settings, torch.__version__], data.arrays())
    add_content(digest, *graph_content(replace(model.graph, meta={})))
    return digest.hexdigest()


class _Loop:
    """Steps of an optimizer, with a state in a file."""

    def __init__(
        self,
        objective: Objective,
        data: Batches,
        schedule: Schedule,
        method: Method,
        parts: tuple[str, ...],
        parameters: list[Tensor],
        checkpoint: str | Path | None,
        key: str,
        norm_statistics: bool,
    ) -> None:
        self.objective, self.data, self.schedule, self.method = objective, data, schedule, method
        self.parts, self.parameters, self.key, self.norm_statistics = parts, parameters, key, norm_statistics
        self.path = None if checkpoint is None else Path(checkpoint)
        self.step = 0
        self._optimizer_state: dict[str, Any] | None = None

    def run(self, device: torch.device, bar: Progress) -> None:
        """Train to the last step."""
        module = self.objective.student
        self._load()
        if self.step == 0 and self.method.after(0):
            self.parameters = choose_parameters(module, self.parts)
        optimizer = self._optimizer()
        bar.skip(self.step)
        while self.step < self.schedule.steps:
            module.train()
            module.training = self.norm_statistics
            for group in optimizer.param_groups:
                group["lr"] = group["first"] * self.schedule.factor(self.method.position(self.step))
            self.method.before(self.step, optimizer)
            loss = self.objective(*self.data.at(self.step).tensors(device))
            more = self.method.penalty()
            optimizer.zero_grad()
            (loss if more is None else loss + more).backward()
            optimizer.step()
            self.step += 1
            if self.method.after(self.step):
                self.parameters = choose_parameters(module, self.parts)
                optimizer = self._optimizer()
            if self.step % self.schedule.every == 0 or self.step == self.schedule.steps:
                now = judge(self.objective, self.data.held_out, device)
                if not math.isfinite(now):
                    raise PQNetError(f"train: expected a finite loss, got {now} after {self.step} steps; lower lr")
                bar.note(f"loss {now:.4g}")
                self._save(optimizer)
            bar.update()
        module.eval()

    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.schedule.make_optimizer(self.parameters)
        if self._optimizer_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
            self._optimizer_state = None
        return optimizer

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        if self.path is None:
            return
        content = {
            "step": self.step,
            "method": self.method.state(),
            "module": self.objective.student.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        write_state(self.path, self.key, content)

    def _load(self) -> None:
        if self.path is None or not self.path.exists():
            return
        with read_state(self.path, self.key) as content:
            check_numbers({"step": content["step"]}, {})
            self.method.load(content["method"])
            module = self.objective.student
            load_weights(module, content["module"])
            self.step, self._optimizer_state = content["step"], content["optimizer"]
            if isinstance(self.method, _Iterative):
                self.parameters = choose_parameters(module, self.parts)
            check_optimizer_state(self.schedule.make_optimizer(self.parameters), self._optimizer_state)
