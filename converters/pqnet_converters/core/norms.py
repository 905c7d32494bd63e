"""Layer norms and RMS norms that are written as means, deviations and roots."""

import math

import numpy as np

from pqnet.graph import Node
from pqnet_converters.core.rewrite import Operand, Rewriter

__all__ = ["norm", "norm_affine"]


def _mean(g: Rewriter, value: Operand) -> tuple[Operand, tuple[int, ...]] | None:
    """Return of what a value is the mean, and over which axes, whether or not these are kept."""
    node = g.maker(value, "mean", "adaptive_avg_pool2d", "mul", "div", "reshape")
    if node is None:
        return None
    if node.op == "mean":
        return node.inputs[0], node.attrs["axes"]
    if node.op == "reshape":  # it brings back the axes
        inner = _mean(g, node.inputs[0])
        kept = None if inner is None else [1 if a in inner[1] else n for a, n in enumerate(g.shape(inner[0]))]
        return inner if inner is not None and list(g.shape(value)) == kept else None
    operands = g.operands(node)
    total = next((g.maker(o, "sum") for o in operands if g.maker(o, "sum") is not None), None)
    number = next((o for o in operands if not isinstance(o, str)), None)
    if total is None or number is None or not number:
        return None
    sizes = [g.shape(total.inputs[0])[a] for a in total.attrs["axes"]]
    count = math.prod(sizes)
    fits = math.isclose(number, 1 / count if node.op == "mul" else count, rel_tol=1e-5)
    return (total.inputs[0], total.attrs["axes"]) if fits and all(type(n) is int for n in sizes) else None


def _square(g: Rewriter, value: Operand) -> Operand | None:
    found = g.first([("mul", "x", "x"), ("pow", "x", 2.0)], value)
    return None if found is None else found["x"]


def _variance(g: Rewriter, value: Operand) -> tuple[Operand, tuple[int, ...]] | None:
    """Return of what a value is the variance: the mean square of deviations, or what the square of the mean leaves."""
    node = g.maker(value, "reshape", "maximum", "clamp", "sub", "var")
    if node is not None and node.op == "var":
        return (node.inputs[0], node.attrs["axes"]) if node.attrs["correction"] == 0 else None
    if node is not None and node.op == "reshape":
        inner = _variance(g, node.inputs[0])
        kept = None if inner is None else [1 if a in inner[1] else n for a, n in enumerate(g.shape(inner[0]))]
        if inner is not None and list(g.shape(value)) == kept:
            return inner
    if node is not None and node.op in ("maximum", "clamp"):
        least = (
            node.attrs["min"]
            if node.op == "clamp"
            else next((o for o in g.operands(node) if not isinstance(o, str)), 1)
        )
        return _variance(g, node.inputs[0]) if least == 0 else None
    if node is not None and node.op == "sub" and len(node.inputs) == 2:
        squares, mean = _mean(g, node.inputs[0]), _square(g, node.inputs[1])
        of = None if mean is None else _mean(g, mean)
        if squares is not None and of is not None and _square(g, squares[0]) == of[0] and squares[1] == of[1]:
            return of
        return None
    squares = _mean(g, value)
    deviation = None if squares is None else _square(g, squares[0])
    if squares is None or deviation is None:
        return None
    of = _deviation(g, deviation)
    return of if of is not None and of[1] == squares[1] else None


def _deviation(g: Rewriter, value: Operand) -> tuple[Operand, tuple[int, ...]] | None:
    """Return of what a value is the deviation from its mean."""
    node = g.maker(value, "sub")
    if node is None or len(node.inputs) != 2:
        return None
    of = _mean(g, node.inputs[1])
    return of if of is not None and of[0] == node.inputs[0] else None


def _inverse_root(g: Rewriter, value: Operand) -> tuple[Operand, float] | None:
    """Return v and eps of 1 / sqrt(v + eps)."""
    found = g.first([("rsqrt", ("add", "v", "eps")), ("pow", ("add", "v", "eps"), -0.5)], value)
    return None if found is None else _small(found)


def _small(found: dict[str, Operand]) -> tuple[Operand, float] | None:
    value, eps = found["v"], found["eps"]
    if isinstance(value, float | int):
        value, eps = eps, value
    return (value, float(eps)) if not isinstance(eps, str) and 0 < eps < 0.1 else None


def _weights(g: Rewriter, value: Operand, shape: tuple[int, ...]) -> str | None:
    """Return the parameter that a constant is, if it has the shape of the normed axes."""
    array = g.constant(value)
    if array is None or array.dtype != np.float32 or array.size != math.prod(shape):
        return None
    if array.shape[-len(shape) :] != shape:
        return None
    name = g.parameter(value)
    return name if array.shape == shape else g.store(name, array.reshape(shape))


def _normed(
    g: Rewriter, left: Operand, right: Operand, divided: bool
) -> tuple[Operand, Operand, float, Operand | None] | None:
    """Return dividend, variance, eps and a weight of a product with, or quotient by, a standard deviation."""
    if divided:
        found = g.first([("sqrt", ("add", "v", "eps"))], right)
        small = None if found is None else _small(found)
        return None if small is None else (left, *small, None)
    root = _inverse_root(g, right)
    if root is not None:
        return left, *root, None
    node = g.maker(right, "mul")
    if node is not None and len(node.inputs) == 2:
        for inner, weight in (node.inputs, node.inputs[::-1]):
            root = _inverse_root(g, inner)
            if root is not None and g.constant(weight) is not None:
                return left, *root, weight
    return None


def norm(g: Rewriter, node: Node) -> list[Node] | None:
    """Layer norm, or RMS norm, without weights, or with a weight that its factor has."""
    if len(node.inputs) != 2:
        return None
    sides = [(node.inputs[0], node.inputs[1])]
    sides += [(node.inputs[1], node.inputs[0])] if node.op == "mul" else []
    for left, right in sides:
        parts = _normed(g, left, right, node.op == "div")
        if parts is None:
            continue
        op, of = "layer_norm", _deviation(g, parts[0])
        if of is None or _variance(g, parts[1]) != of:
            op, of = "rms_norm", _mean(g, parts[1])  # of squares of what is divided
            if of is None or _square(g, of[0]) != parts[0]:
                continue
            of = parts[0], of[1]
        value, axes = of
        rank = len(g.shape(value))
        if not isinstance(value, str) or tuple(sorted(axes)) != tuple(range(rank - len(axes), rank)):
            continue
        params: dict[str, str] = {}
        if parts[3] is not None:
            weight = _weights(g, parts[3], g.shape(value)[-len(axes) :])
            if weight is None:
                continue
            params["weight"] = weight
        stem = g.beside(node, op)
        return [g.node(op, [value], stem, params, node.outputs[0], axes=len(axes), eps=parts[2])]
    return None


def norm_affine(g: Rewriter, node: Node) -> list[Node] | None:
    """Let a norm multiply by the weight and, a layer norm, add the bias behind it."""
    sides = g.constant_side(node)
    before = None if sides is None else g.maker(sides[0], "layer_norm", "rms_norm")
    if sides is None or before is None or not g.alone(sides[0]):
        return None
    role = "weight" if node.op == "mul" else "bias"
    if (
        role in before.params
        or (role == "bias" and before.op == "rms_norm")
        or (role == "weight" and "bias" in before.params)
    ):
        return None
    name = _weights(g, sides[1], g.shape(sides[0])[-before.attrs["axes"] :])
    if name is None:
        return None
    stem = name.rpartition(".")[0] or before.name
    params = {**before.params, role: name}
    return [
        g.node(
            before.op,
            before.inputs,
            stem,
            params,
            node.outputs[0],
            axes=before.attrs["axes"],
            eps=before.attrs["eps"],
        )
    ]
