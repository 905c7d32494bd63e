"""What distillation minimises: how far a student's outputs, and values inside it, are from the teacher's."""

import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqnet.errors import ConfigError, PQNetError
from pqnet.graph import Graph, Node
from pqnet.graph.blocks import Block
from pqnet.graph.op import get_op
from pqnet.pipeline.padding import MASK, masked
from pqnet.train.ops import TorchGraph
from pqnet.train.parallel import mean_of_all

__all__ = ["LOSSES", "BlockObjective", "Objective", "kl_divergence", "relative_error"]

Loss = Callable[[Tensor, Tensor], Tensor]


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T^2 KL(softmax(t / T) || softmax(s / T)) of each sample and position, one-dimensional.

    Logits of shape (N, K), (N, length, K) or (N, K, H, W).
    """
    if student.ndim < 2:
        shape = tuple(student.shape)
        raise PQNetError(f"loss: expected logits of at least two axes for 'kl', got shape {shape}; use 'mse'")
    axis = -1 if student.ndim == 3 else 1
    log_s, log_t = (F.log_softmax(x / temperature, axis) for x in (student, teacher))
    divergence: Tensor = (log_t.exp() * (log_t - log_s)).sum(axis)
    return temperature**2 * divergence.reshape(-1)


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return |s - t|^2 / |t|^2 of each sample, one-dimensional."""
    error, energy = (x.square().reshape(len(x), -1).sum(1) for x in (student - teacher, teacher))
    relative: Tensor = error / energy.clamp(min=1e-12)
    return relative


LOSSES = ("kl", "mse")


class BlockObjective(nn.Module):  # type: ignore[misc]
    """The loss of a batch for a block: the mean relative error of its outputs, from the student's inputs of it.

    Parameters
    ----------
    student, teacher : TorchGraph
        Only the student is a sub-module.
    ours, theirs : Block
        The same layers in both.
    """

    def __init__(self, student: TorchGraph, teacher: TorchGraph, ours: Block, theirs: Block) -> None:
        super().__init__()
        self.student, self.mask = student, _mask_of(student.graph)
        self._teacher = [teacher.eval().requires_grad_(False)]
        self.ours, self.theirs = ours, theirs

    def forward(self, inputs: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """Return the loss of a batch; labels have no say."""
        with torch.no_grad():
            wanted = self._teacher[0].run_to(self.theirs.stop, inputs)
        found = self.student.run_to(self.ours.stop, inputs)
        real = _real_positions(inputs, self.mask)
        errors = [
            mean_of_all(relative_error(*_real(found[s], wanted[t], real)))
            for s, t in zip(self.ours.outputs, self.theirs.outputs, strict=True)
            if found[s].is_floating_point()
        ]
        return torch.stack(errors).mean()


class Objective(nn.Module):  # type: ignore[misc]
    """The loss of a batch: outputs against the teacher's, and on request hints and labels.

    Parameters
    ----------
    student, teacher : TorchGraph
        Only the student is a sub-module.
    loss : {"kl", "mse"} or callable
        Of two tensors, the student's and the teacher's output, a number for each sample; summed over outputs.
    temperature : float
        Of ``kl``.
    hints : float
        Weight of the mean relative error of the outputs of all layers that both networks have.
    labels : float
        Weight of the cross entropy with the labels; the rest is the teacher's.
    """

    def __init__(
        self,
        student: TorchGraph,
        teacher: TorchGraph,
        loss: str | Loss = "kl",
        temperature: float = 1.0,
        hints: float = 0.0,
        labels: float = 0.0,
    ) -> None:
        super().__init__()
        self.student, self.hints, self.labels = student, hints, labels
        self._teacher = [teacher.eval().requires_grad_(False)]  # a list keeps it out of the sub-modules
        self.loss: Loss
        if callable(loss):
            self.loss = loss
        elif loss == "kl":
            if labels == 0:
                _warn_of_outputs_without_classes(teacher.graph)
            self.loss = lambda s, t: kl_divergence(s, t, temperature)
        elif loss == "mse":
            self.loss = relative_error
        else:
            raise ConfigError(f"loss: expected 'kl', 'mse' or a function of two tensors, got {loss!r}")
        ours, theirs = _seen(student.graph), _seen(teacher.graph)
        both = [name for name in ours if theirs.get(name, ("", ()))[1] == ours[name][1]]
        if hints and not both:
            raise ConfigError("hints: expected a teacher with layers of the student's names and shapes, got none")
        self.pairs = [(ours[name][0], theirs[name][0]) for name in both] if hints else []
        self.mask = _mask_of(student.graph)

    def forward(self, inputs: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """Return the loss of a batch."""
        with torch.no_grad():
            wanted, inside_wanted = self._teacher[0].run(inputs, [t for _, t in self.pairs])
        found, inside = self.student.run(inputs, [s for s, _ in self.pairs])
        real = _real_positions(inputs, self.mask)
        outputs = [(s, t) for s, t in zip(found, wanted, strict=True) if s.is_floating_point()]
        if not outputs:
            raise PQNetError("loss: expected a network with an output of floats, got integers only")
        total = outputs[0][0].new_zeros(())
        if self.labels < 1:
            total = total + sum(mean_of_all(self.loss(*_real(s, t, real))) for s, t in outputs)
        if self.labels:
            if labels is None:
                raise PQNetError("labels: expected labels with every batch, got one without")
            low, high = int(labels.min()), int(labels.max())
            if found[0].ndim != 2 or low < 0 or high >= found[0].shape[1]:
                got = f"{low} to {high} for outputs of shape {tuple(found[0].shape)}"
                raise PQNetError(f"labels: expected numbers of classes from 0, as many as outputs, got {got}")
            total = (1 - self.labels) * total + self.labels * mean_of_all(
                F.cross_entropy(found[0], labels, reduction="none")
            )
        if self.pairs:
            errors = [
                mean_of_all(relative_error(*_real(s, t, real))) for s, t in zip(inside, inside_wanted, strict=True)
            ]
            total = total + self.hints * torch.stack(errors).mean()
        return total


# What class scores may pass through behind the layer that makes them.
BEHIND_SCORES = (
    *(
        "adaptive_avg_pool2d",
        "add",
        "avg_pool2d",
        "batch_norm",
        "cast",
        "clamp",
        "concat",
        "div",
        "expand",
        "interpolate",
    ),
    *("log_softmax", "maximum", "mean", "minimum", "mul", "permute", "reshape", "slice", "split", "sub", "sum"),
)


def _warn_of_outputs_without_classes(graph: Graph) -> None:
    """Say so where an output cannot be logits: class scores come from a layer with weights, or a product."""
    producers = {value: node for node in graph.nodes for value in node.outputs}
    for name, value in graph.outputs.items():
        node = producers.get(value)
        while node is not None and node.op in BEHIND_SCORES:
            node = producers.get(node.inputs[0])
        rule = None if node is None else get_op(node.op).weight
        if node is None or not (node.op == "matmul" or (rule is not None and rule.is_product and not rule.looked_up)):
            source = "an input" if node is None else f"{node.op!r} ({node.name})"
            warnings.warn(
                f"loss: 'kl' takes outputs for the logits of classes, but {name!r} comes from {source}, as embeddings "
                "and features do; use loss='mse' for these",
                stacklevel=3,
            )


def _seen(graph: Graph) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return what comes out of each layer, name and shape, after the norm that may have taken over its scale."""
    users: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            users.setdefault(value, []).append(node)
    shapes, found = graph.infer_shapes(graph.symbols), {}
    for name, node in graph.layers().items():
        value = node.outputs[0]
        while len(after := users.get(value, [])) == 1 and after[0].op == "batch_norm":
            value = after[0].outputs[0]
        found[name] = value, tuple(shapes[value].shape)
    return found


def _mask_of(graph: Graph) -> int | None:
    """Return which input says where texts are padding, if one does."""
    names = list(graph.inputs)
    return names.index(MASK) if MASK in names else None


def _real_positions(inputs: Sequence[Tensor], which: int | None) -> Tensor | None:
    mask = None if which is None else inputs[which]
    return None if mask is None or mask.ndim != 2 or mask.is_floating_point() else mask != 0


def _real(student: Tensor, teacher: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """Leave out positions of texts that are padding."""
    return (student, teacher) if masked(student, real) is None else (student[real], teacher[real])
