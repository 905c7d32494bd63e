"""What a product does to its sums before it stores them: batch norm, residual and activation of the nodes behind it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pqnet.graph import Node
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import View

__all__ = ["ACTIVATIONS", "Epilogue", "activation_of", "fuse", "fuse_product", "norm_factors"]

# Kinds of kernels/ops/activation.py.
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
QUICK = {"silu": 14, "gelu": 15}  # in low precision
PARAMETERS = {"leaky_relu": ("negative_slope",), "elu": ("alpha",)}


@dataclass
class Epilogue:
    """Factors and terms of the sums of a node, and the nodes that are computed along with it.

    ``out`` and ``residual`` have the outputs, which each have a scale and a shift, along axis 1.
    """

    node: Node
    out: View
    scale: np.ndarray | None
    shift: np.ndarray | None
    residual: View | None = None
    activation: int = 0
    parameters: tuple[float, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    by_channel: bool = False  # whether a convolution in groups reads the result, channel after channel
    part: int | None = None  # of the layer's weight, see `Layer.part`
    arithmetic: str = ""  # whose scales the factors and terms hold beside the network's

    def arguments(self, b: Builder) -> dict[str, Any]:
        """Return the arguments of `kernels.products.epilogue.EPILOGUE`."""
        scale, shift = self.scale, self.shift
        outputs = self.out.shape[1]  # of products a free size
        fused = self.node.name, self.part, self.arithmetic, tuple(node.name for node in self.nodes), outputs
        return {
            "out": self.out,
            "out_step": self.out.strides[1],
            "scale": -1 if scale is None else b.constant(("scale", *fused), lambda: scale),
            "shift": -1 if shift is None else b.constant(("shift", *fused), lambda: shift),
            "residual": -1 if self.residual is None else self.residual,
            "residual_step": 0 if self.residual is None else self.residual.strides[1],
            "activation": self.activation,
            "parameters": b.numbers(*self.parameters, 0.0, 0.0),
        }

    @property
    def reads(self) -> list[View]:
        """Values that are read beside the input."""
        return [] if self.residual is None else [self.residual]


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
    if b.compute != "float32" and node.op in QUICK:
        return QUICK[node.op], ()
    return ACTIVATIONS[node.op], tuple(attrs[name] for name in PARAMETERS.get(node.op, ()))


def fuse(b: Builder, layer: Layer, out: View, own: np.ndarray | None = None) -> Epilogue:
    """Collect the nodes behind a layer that its epilogue can compute.

    ``out`` is its result as images, ``own`` what an algorithm adds to all that it computes, beside the bias.
    """
    shift = b.floats(layer.node, "bias")
    if own is not None:
        shift = own if shift is None else shift + own
    found = Epilogue(layer.node, out, layer.scale, shift, part=layer.part)
    value = next(iter(layer.node.outputs), None)
    while value and len(b.users(value)) == 1 and not b.is_output(value) and not found.activation:
        user = b.users(value)[0]
        if user.op == "batch_norm" and found.residual is None and layer.channel_axis == 1:
            _fuse_norm(b, user, found)
        elif user.op == "add" and len(user.inputs) == 2 and found.residual is None:
            found.residual = _residual(b, layer, user, value, out)
            if found.residual is None:
                break
        elif (activation := activation_of(b, user)) is not None:
            found.activation, found.parameters = activation
        else:
            break
        found.nodes.append(user)
        value = user.outputs[0]
    found.by_channel = any(b.attrs(user).get("groups", 1) > 1 for user in b.users(value or ""))
    return found


def _residual(b: Builder, layer: Layer, add: Node, value: str, out: View) -> View | None:
    """Return the other value of an addition as images, if it lies in memory as the result does."""
    other = add.inputs[1 - add.inputs.index(value)]
    place = b.place(other) if other != value and b.info(other) == b.info(value) else None
    images = None if place is None else layer.result_images(place)
    if images is None or any(images.strides[a] != out.strides[a] for a in (0, 2, 3) if out.shape[a] > 1):
        return None
    return images


def fuse_product(b: Builder, node: Node, out: View, outputs: int, step: int) -> Epilogue:
    """Collect the nodes behind a product of two values that its epilogue can compute.

    ``out`` is the result, as it is stored, in the shape of the graph; its ``outputs`` are ``step`` elements apart.
    """
    found = Epilogue(node, out.with_axes((1, outputs), (0, step)), None, None)
    value = node.outputs[0]
    while len(b.users(value)) == 1 and not b.is_output(value) and not found.activation:
        user = b.users(value)[0]
        factor = _factor(b, user) if found.residual is None else None
        if factor is not None:
            found.scale = np.full(outputs, factor * (1 if found.scale is None else found.scale[0]), np.float32)
        elif user.op == "add" and len(user.inputs) == 2 and found.residual is None:
            other = user.inputs[1 - user.inputs.index(value)]
            place = b.place(other) if other != value and b.info(other) == b.info(value) else None
            if place is None or any(place.strides[a] != out.strides[a] for a, n in enumerate(out.shape) if n > 1):
                break
            found.residual = place.with_axes((1, outputs), (0, step))
        elif (activation := activation_of(b, user)) is not None:
            found.activation, found.parameters = activation
        else:
            break
        found.nodes.append(user)
        value = user.outputs[0]
    return found


def _factor(b: Builder, node: Node) -> float | None:
    """Return the number that a node multiplies its only input by, None if it does something else."""
    if node.op not in ("mul", "div") or len(node.inputs) != 1 or b.info(node.outputs[0]).dtype != "float32":
        return None
    a = b.attrs(node)
    if node.op == "mul":
        return float(a["scalar"])
    return None if a["reverse"] else 1 / float(np.float32(a["scalar"]))


def norm_factors(b: Builder, norm: Node) -> tuple[np.ndarray, np.ndarray]:
    """Return factor and term, float64, one of each per channel, that a batch norm amounts to."""
    if norm.name not in b.store.norms:
        b.store.norms[norm.name] = _norm_factors(b, norm)
    return b.store.norms[norm.name]


def _norm_factors(b: Builder, norm: Node) -> tuple[np.ndarray, np.ndarray]:
    size = b.info(norm.inputs[0]).shape[1]
    ones, zeros = np.ones(size), np.zeros(size)
    roles = {role: p.astype(np.float64) for role in norm.params if (p := b.floats(norm, role)) is not None}
    factor = roles.get("weight", ones) / np.sqrt(roles.get("var", ones) + b.attrs(norm)["eps"])
    return factor, roles.get("bias", zeros) - roles.get("mean", zeros) * factor


def _fuse_norm(b: Builder, norm: Node, found: Epilogue) -> None:
    factor, term = norm_factors(b, norm)
    before = 0.0 if found.shift is None else found.shift.astype(np.float64)
    scale = 1.0 if found.scale is None else found.scale.astype(np.float64)
    found.shift = np.asarray(before * factor + term, np.float32)
    found.scale = np.asarray(scale * factor, np.float32)
