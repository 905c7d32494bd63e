"""What a product does to its sums before it stores them: batch norm, residual and activation of the nodes behind it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pqnet.graph import Node
from pqnet.runtime.builder import Builder
from pqnet.runtime.views import View

__all__ = ["ACTIVATIONS", "Epilogue", "absorb", "activation_of", "norm_factors"]

# Kinds of kernels/activation.py.
ACTIVATIONS = {
    "relu": 1,
    "clamp": 2,
    "silu": 3,
    "sigmoid": 4,
    "gelu": 5,
    "hardswish": 7,
    "hardsigmoid": 8,
    "tanh": 9,
    "leaky_relu": 10,
    "elu": 11,
    "mish": 12,
}
PARAMETERS = {"leaky_relu": ("negative_slope",), "elu": ("alpha",)}


@dataclass
class Epilogue:
    """Factors and terms of a layer step (fields 15-22), and the nodes that it computes along with the product."""

    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    residual: View | None = None
    kind: int = 0
    parameters: tuple[float, ...] = ()
    nodes: list[Node] = field(default_factory=list)

    def fields(self, b: Builder, name: str, residual_step: int) -> list[int | View]:
        """Return fields 15-22; ``residual_step`` is the distance of two outputs in the residual."""
        scale = (
            -1 if self.scale is None else b.constant((name, "scale", tuple(n.name for n in self.nodes)), self._scale)
        )
        shift = (
            -1 if self.shift is None else b.constant((name, "shift", tuple(n.name for n in self.nodes)), self._shift)
        )
        extra = self.parameters
        at = b.constant(("activation", extra), lambda: (*extra, 0.0, 0.0))
        residual: int | View = -1 if self.residual is None else self.residual
        return [scale, shift, residual, residual_step, 0, 0, self.kind, at]

    def _scale(self) -> Any:
        return self.scale

    def _shift(self) -> Any:
        return self.shift


def activation_of(b: Builder, node: Node) -> tuple[int, tuple[float, ...]] | None:
    """Return kind and parameters of an activation node, None for any other node."""
    if node.op not in ACTIVATIONS or b.info(node.inputs[0]).dtype != "float32":
        return None
    attrs = b.attrs(node)
    if node.op == "clamp":
        low = -np.inf if attrs["min"] is None else attrs["min"]
        high = np.inf if attrs["max"] is None else attrs["max"]
        return ACTIVATIONS["clamp"], (low, high)
    if node.op == "gelu" and attrs["approximate"] == "tanh":
        return 6, ()
    return ACTIVATIONS[node.op], tuple(attrs[name] for name in PARAMETERS.get(node.op, ()))


def absorb(
    b: Builder, node: Node, fits: Callable[[View], bool], channel_axis: int, scale: np.ndarray | None = None
) -> Epilogue:
    """Collect the nodes behind a product that its epilogue can compute.

    Parameters
    ----------
    b : Builder
    node : Node
        The product; its bias becomes the shift.
    fits : callable
        Tells whether a view of the output's shape has the steps that a residual needs.
    channel_axis : int
        The axis of the output along which scale and shift run.
    scale : array, optional
        Factors of the outputs that are part of the weight.
    """
    out = Epilogue(scale, b.floats(node, "bias"))
    value = node.outputs[0]
    while len(b.users(value)) == 1 and not b.is_output(value) and not out.kind:
        user = b.users(value)[0]
        if user.op == "batch_norm" and out.residual is None and channel_axis == 1:
            _fold_norm(b, user, out)
        elif user.op == "add" and len(user.inputs) == 2 and out.residual is None:
            other = user.inputs[1 - user.inputs.index(value)]
            same = b.info(other) == b.info(value) and other != value
            place = b.place(other) if same else None
            if place is None or not fits(place):
                break
            out.residual = place
        elif (found := activation_of(b, user)) is not None:
            out.kind, out.parameters = found
        else:
            break
        out.nodes.append(user)
        value = user.outputs[0]
    return out


def norm_factors(b: Builder, norm: Node) -> tuple[np.ndarray, np.ndarray]:
    """Return factor and term, float64, one of each per channel, that a batch norm amounts to."""
    size = b.info(norm.inputs[0]).shape[1]
    ones, zeros = np.ones(size), np.zeros(size)
    roles = {role: p.astype(np.float64) for role in norm.params if (p := b.floats(norm, role)) is not None}
    factor = roles.get("weight", ones) / np.sqrt(roles.get("var", ones) + b.attrs(norm)["eps"])
    return factor, roles.get("bias", zeros) - roles.get("mean", zeros) * factor


def _fold_norm(b: Builder, norm: Node, out: Epilogue) -> None:
    factor, term = norm_factors(b, norm)
    before = 0.0 if out.shift is None else out.shift.astype(np.float64)
    scale = 1.0 if out.scale is None else out.scale.astype(np.float64)
    out.shift = np.asarray(before * factor + term, np.float32)
    out.scale = np.asarray(scale * factor, np.float32)
