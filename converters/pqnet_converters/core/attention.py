"""Attention that is written as products and a softmax."""

import math

from pqnet.graph import Node
from pqnet_converters.core.rewrite import Rewriter

__all__ = ["attention"]


def _factor(g: Rewriter, value: str) -> tuple[str, float]:
    """Return what a value is a number of times, and that number."""
    total = 1.0
    while (node := g.maker(value, "mul", "div")) is not None and len(node.inputs) == 1 and not node.attrs["reverse"]:
        number = float(node.attrs["scalar"])
        if not number or not math.isfinite(number):
            break
        value, total = node.inputs[0], total * number if node.op == "mul" else total / number
    return value, total


def _masked(g: Rewriter, node: Node, value: str) -> tuple[str, list[str], list[Node]] | None:
    """Return the product behind scores, their mask if they have one, and the nodes that make it."""
    shape, made = g.shape(value), list[Node]()
    hidden = g.maker(value, "where")
    if hidden is not None:
        condition, left, right = hidden.inputs
        if _is_hidden(g, right):
            scores, masks = left, [condition]
        elif _is_hidden(g, left):
            inverse = g.maker(condition, "logical_not")
            made = [] if inverse else [g.node("logical_not", [condition], g.beside(node, "seen"))]
            scores, masks = right, [inverse.inputs[0] if inverse else made[0].outputs[0]]
        else:
            return None
        fits = 0 < len(g.shape(condition)) <= len(shape)
        return (scores, masks, made) if fits else None
    masks = []
    while _product(g, value) is None:
        added = g.maker(value, "add")
        if added is None or len(added.inputs) != 2:
            return None
        sides = [(v, m) for v, m in (added.inputs, added.inputs[::-1]) if _leads_to_product(g, v)]
        if not sides or not 0 < len(g.shape(sides[0][1])) <= len(shape):
            return None
        value = sides[0][0]
        masks.append(sides[0][1])
    while len(masks) > 1:
        made.append(g.node("add", masks[:2], g.beside(node, "mask")))
        masks = [made[-1].outputs[0], *masks[2:]]
    return value, masks, made


def _leads_to_product(g: Rewriter, value: str) -> bool:
    """Tell whether a value is a product of matrices, or a sum of one and others."""
    if _product(g, value) is not None:
        return True
    added = g.maker(value, "add")
    return added is not None and len(added.inputs) == 2 and any(_leads_to_product(g, v) for v in added.inputs)


def attention(g: Rewriter, node: Node) -> list[Node] | None:
    """softmax(q k' s + mask) v."""
    weights = g.maker(node.inputs[0], "softmax", "where")
    if weights is not None and weights.op == "where":  # rows of NaN become zeros: attention gives them anyway
        found = g.first([("ne", "p", "p")], weights.inputs[0])
        weights = g.maker(weights.inputs[2], "softmax") if found and found["p"] == weights.inputs[2] else None
    if weights is None or weights.attrs["axis"] != len(g.shape(node.inputs[0])) - 1:
        return None
    masked = _masked(g, node, weights.inputs[0])
    if masked is None:
        return None
    scores, masks, made = masked
    found_product = _product(g, scores)
    if found_product is None:
        return None
    (query, keys), scale = found_product
    shapes = [g.shape(v) for v in (query, keys, node.inputs[1])]
    if min(map(len, shapes)) < 3 or any(g.constant(v) is not None for v in (query, keys, node.inputs[1])):
        return None
    rank = len(shapes[1])
    turned = g.node("permute", [keys], g.beside(node, "keys"), axes=(*range(rank - 2), rank - 1, rank - 2))
    inputs = [query, turned.outputs[0], node.inputs[1], *masks]
    return [
        *made,
        turned,
        g.node("attention", inputs, g.beside(node, "attention"), output=node.outputs[0], scale=scale),
    ]


def _is_hidden(g: Rewriter, value: str) -> bool:
    """Tell whether a value is minus infinity."""
    array = g.constant(value)
    return array is not None and array.size == 1 and array.item() == -math.inf


def _product(g: Rewriter, value: str) -> tuple[tuple[str, str], float] | None:
    """Return the factors of a product of matrices that may be scaled, or whose factors may be, and the scale."""
    inner, scale = _factor(g, value)
    node = g.maker(inner, "matmul")
    if node is None:
        return None
    (left, a), (right, c) = (_factor(g, v) for v in node.inputs)
    return (left, right), scale * a * c
