"""The loop of distillation: steps, judging, checkpoints; the same bytes after a stop as without."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pqnet._progress import progress_bar, ticking
from pqnet.errors import ConfigError, PQNetError
from pqnet.train.checks import check_integer, check_number
from pqnet.train.data import Batch, Batches
from pqnet.train.objective import BlockObjective, Objective
from pqnet.train.ops import TorchGraph
from pqnet.train.packed import packed_weights
from pqnet.train.parallel import is_main, rank, world
from pqnet.train.state import check_numbers, check_optimizer_state, load_weights, read_state, write_state

__all__ = ["PARTS", "Schedule", "choose_parameters", "judge", "run_training"]

PARTS = ("codebooks", "norms", "biases", "weights")
TRUST = 1.1  # times the best loss that may come on the way to a better one
JUDGED = 250  # samples at a time
MOMENTUM = 0.9  # of SGD


@dataclass(frozen=True)
class Schedule:
    """How many steps of which size.

    Parameters
    ----------
    steps : int
    lr : float
        Of the first step after warming up; it falls along half a cosine to a hundredth. With Adam in units of the root
        mean square of each parameter, as codewords of one layer may be a thousand times those of another.
    optimizer : {"adam", "sgd"}
    weight_decay : float
    every : int
        Steps between two times of judging.
    reassign : int
        Steps between two times of choosing codes anew; 0 is never.
    """

    steps: int
    lr: float
    optimizer: str = "adam"
    weight_decay: float = 0.0
    every: int = 250
    reassign: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "sgd"):
            raise ConfigError(f"optimizer: expected 'adam' or 'sgd', got {self.optimizer!r}")
        for name, low in {"steps": 1, "every": 1, "reassign": 0}.items():
            check_integer(name, getattr(self, name), low)
        check_number("weight_decay", self.weight_decay)
        if check_number("lr", self.lr) == 0:
            raise ConfigError("lr: expected a positive number, got 0")

    def factor(self, step: int) -> float:
        """Return the size of a step as a share of ``lr``."""
        warm = max(1, min(100, self.steps // 10))
        return min(1.0, (step + 1) / warm) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))

    def judges(self, step: int) -> bool:
        """Tell whether to judge after so many steps; also early, for good students a step may be too large."""
        early = (self.every // 8, self.every // 4, self.every // 2)
        return step % self.every == 0 or step == self.steps or step in early

    def make_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        groups = []
        for p in parameters:
            size = float(p.detach().square().mean().sqrt()) if self.optimizer == "adam" else 1.0
            groups.append({"params": [p], "first": self.lr * max(size, 1e-3)})
        if self.optimizer == "adam":
            fused = all(
                p.device.type in ("cpu", "cuda") for p in parameters
            )  # each is a group, and costs a step's calls
            return torch.optim.Adam(groups, lr=self.lr, weight_decay=self.weight_decay, fused=fused)
        return torch.optim.SGD(groups, lr=self.lr, momentum=MOMENTUM, weight_decay=self.weight_decay)


def choose_parameters(module: TorchGraph, parts: tuple[str, ...], only: Collection[str] | None = None) -> list[Tensor]:
    """Return the parameters of some parts of a module to train, on request of some nodes only; freeze the others.

    Of some nodes there may be none.
    """
    if not parts or any(part not in PARTS for part in parts):
        raise ConfigError(f"train: expected some of {PARTS}, got {parts!r}")
    graph = module.graph
    kinds: dict[int, str] = {}
    for name, weight in packed_weights(module).items():
        kinds.update((id(p), "codebooks" if only is None or name in only else "others") for p in weight.parameters())
    for node in graph.nodes:
        if only is not None and node.name not in only:
            continue
        for role, name in node.params.items():
            kind = "norms" if node.op.endswith("_norm") else "biases" if role == "bias" else "weights"
            kind = "constants" if node.op == "constant" else kind  # masks, tables of positions
            kinds.setdefault(id(getattr(module, module.key(name))), kind)
    chosen = []
    for p in module.parameters():
        p.requires_grad_(kinds.get(id(p), "constants") in parts)
        chosen += [p] if p.requires_grad else []
    if not chosen and only is None:
        raise ConfigError(f"train: expected parts that the student has parameters of, got {parts!r}")
    return chosen


class _State:
    """All that a run goes on from, in one file that is replaced as a whole."""

    def __init__(self, path: str | Path | None, module: nn.Module, optimizer: torch.optim.Optimizer, key: str) -> None:
        self.path = None if path is None else Path(path)
        self.module, self.optimizer, self.key = module, optimizer, key
        self.step, self.best_loss, self.pace = 0, math.inf, 1.0
        self.best: dict[str, Tensor] = {}

    def judge(self, loss: float) -> None:
        """Keep the present parameters if none before were better; go back to the best, and slower, if they are bad."""
        if not math.isfinite(loss):
            raise PQNetError(f"distill: expected a finite loss, got {loss} after {self.step} steps; lower lr")
        if loss < self.best_loss:
            self.best_loss = loss
            self.best = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        elif loss > TRUST * self.best_loss:
            self.module.load_state_dict(self.best)
            self.optimizer.state.clear()
            self.pace /= 2

    def save(self) -> None:
        if self.path is None or not is_main():
            return
        content = {
            "step": self.step,
            "best_loss": self.best_loss,
            "pace": self.pace,
            "best": self.best,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "threads": torch.get_num_threads(),
        }
        write_state(self.path, self.key, content)

    def load(self, any_threads: bool) -> None:
        if self.path is None or not self.path.exists():
            return
        with read_state(self.path, self.key) as content:
            threads, self.pace = content.get("threads", torch.get_num_threads()), content.get("pace", 1.0)
            self.step, self.best_loss = content["step"], content["best_loss"]
            check_numbers({"step": self.step, "threads": threads}, {"best_loss": self.best_loss, "pace": self.pace})
            for state in (content["best"], content["module"]):
                load_weights(self.module, state)
            self.best = content["best"]
            check_optimizer_state(self.optimizer, content["optimizer"])
            self.optimizer.load_state_dict(content["optimizer"])
            if any_threads:
                torch.set_num_threads(threads)


def judge(objective: Objective | BlockObjective, held_out: Batch, device: torch.device) -> float:
    """Return the mean loss over samples, of the weights as they would be stored."""
    objective.student.eval()
    total = 0.0
    with torch.no_grad():
        for i in ticking("judging, sample", range(0, len(held_out), JUDGED)):
            part = held_out.part(slice(i, i + JUDGED))
            total += float(objective(*part.tensors(device))) * len(part)
    return total / len(held_out)


def run_training(
    objective: Objective | BlockObjective,
    batches: Batches,
    schedule: Schedule,
    parts: tuple[str, ...],
    *,
    reassign: Callable[[], None] | None = None,
    checkpoint: str | Path | None,
    key: str,
    progress: bool,
    device: torch.device,
    only: Collection[str] | None = None,
    norm_statistics: bool = False,
    any_threads: bool = False,
) -> None:
    """Train the student of an objective and leave it with the best parameters seen, by the loss of held out samples.

    With ``only``, no parameters but those of these nodes, by name. With ``any_threads``, a run goes on with as many
    threads of PyTorch as the checkpoint was made with.
    """
    student = objective.student
    parameters = choose_parameters(student, parts, only)
    if not parameters:
        return
    optimizer = schedule.make_optimizer(parameters)
    state = _State(checkpoint, student, optimizer, f"{key} {parts}")
    state.load(any_threads)
    model: Any = objective if world() == 1 else DistributedDataParallel(objective, broadcast_buffers=False)
    if state.step == 0:
        state.judge(judge(objective, batches.held_out, device))
    weights = packed_weights(student).values()
    nbytes = sum(weight.packed().nbytes for weight in weights)
    with progress_bar(progress and is_main(), f"distill {nbytes} bytes", "step", schedule.steps) as bar:
        bar.skip(state.step)
        while state.step < schedule.steps:
            for weight in weights:
                weight.train()
            student.training = norm_statistics
            batch = batches.at(state.step)
            if len(batch) < world():
                got = f"{len(batch)} at step {state.step}"
                raise PQNetError(f"batches: expected a sample for each of {world()} processes at least, got {got}")
            loss = model(*batch.part(slice(rank(), None, world())).tensors(device))
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = group["first"] * state.pace * schedule.factor(state.step)
            optimizer.step()
            state.step += 1
            if reassign is not None and state.step % schedule.reassign == 0:
                reassign()
            if schedule.judges(state.step):
                now = judge(objective, batches.held_out, device)
                state.judge(now)
                state.save()
                bar.note(f"loss {now:.4g}, best {state.best_loss:.4g}")
            bar.update()
    student.load_state_dict(state.best)
    student.eval()
