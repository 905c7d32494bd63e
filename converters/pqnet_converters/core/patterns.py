"""Layers that exporters write as the operations they consist of, put together again.

One table for all sources: it works on graphs. A pattern is a function that gives, for a node at which the layer ends,
the nodes to put in its place, the last of which makes its value; None where it is none.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pqnet.graph import Graph, Node
from pqnet.graph.layers import weight_op
from pqnet_converters.core.attention import attention
from pqnet_converters.core.norms import norm, norm_affine
from pqnet_converters.core.rewrite import Operand, Pattern, Rewriter

__all__ = ["NORMS", "TABLES", "simplify"]

Rule = Callable[[Rewriter, Node], list[Node] | None]
LAYERS = ("linear", *(f"{op}{n}d" for op in ("conv", "conv_transpose") for n in (1, 2, 3)))


def simplify(graph: Graph, tables: "Sequence[Table] | None" = None) -> Graph:
    """Return a graph in which the layers of tables, all by default, are one node each; equal nodes are merged.

    Examples
    --------
    >>> from pqnet.graph import GraphBuilder, ValueInfo
    >>> from pqnet_converters.core.patterns import simplify
    >>> b = GraphBuilder({"x": ValueInfo((2, 3))})
    >>> graph = b.build({"y": b.add("mul", "x", b.add("sigmoid", "x"))})
    >>> [node.op for node in simplify(graph).nodes]
    ['silu']
    """
    for table in TABLES if tables is None else tables:
        graph = Rewriter(graph).run(table)
    return graph


# ---- activations

_GATE = ("clamp", ("add", "x", 3.0), {"min": 0, "max": 6})
_CUBES: list[Pattern] = [("pow", "x", 3.0), ("mul", "x", ("mul", "x", "x")), ("mul", "x", ("pow", "x", 2.0))]
_HALF_ERFS: list[Pattern] = [
    ("add", ("erf", ("div", "x", math.sqrt(2))), 1.0),
    ("add", ("erf", ("mul", "x", math.sqrt(0.5))), 1.0),
]
_HALF_TANHS: list[Pattern] = [
    *(
        ("add", ("tanh", ("mul", ("add", "x", ("mul", cube, 0.044715)), math.sqrt(2 / math.pi))), 1.0)
        for cube in _CUBES
    ),
    (
        "add",
        ("tanh", ("mul", ("add", "x", ("mul", "x", ("mul", "x", ("mul", "x", 0.044715)))), math.sqrt(2 / math.pi))),
        1.0,
    ),
    (
        "add",
        ("tanh", ("mul", ("mul", "x", ("add", ("mul", ("mul", "x", "x"), 0.044715), 1.0)), math.sqrt(2 / math.pi))),
        1.0,
    ),
]


def _gelus(gate: Pattern) -> list[Pattern]:
    """Return the orders in which x, a half and the gate are multiplied."""
    return [
        ("mul", ("mul", "x", 0.5), gate),
        ("mul", "x", ("mul", gate, 0.5)),
        ("mul", ("mul", "x", gate), 0.5),
        ("div", ("mul", "x", gate), 2.0),
    ]


ACTIVATIONS: list[tuple[str, dict[str, Any], list[Pattern]]] = [
    ("silu", {}, [("mul", "x", ("sigmoid", "x"))]),
    ("hardsigmoid", {}, [("div", _GATE, 6.0), ("mul", _GATE, 1 / 6)]),
    ("hardsigmoid", {}, [("clamp", ("add", ("mul", "x", 1 / 6), 0.5), {"min": 0, "max": 1})]),
    ("hardswish", {}, [("mul", "x", ("hardsigmoid", "x")), ("div", ("mul", "x", _GATE), 6.0)]),
    ("hardswish", {}, [("mul", ("mul", "x", _GATE), 1 / 6), ("mul", ("div", "x", 6.0), _GATE)]),
    ("mish", {}, [("mul", "x", ("tanh", ("softplus", "x")))]),
    ("gelu", {"approximate": "none"}, [p for gate in _HALF_ERFS for p in _gelus(gate)]),
    ("gelu", {"approximate": "tanh"}, [p for gate in _HALF_TANHS for p in _gelus(gate)]),
    ("rsqrt", {}, [("reciprocal", ("sqrt", "x")), ("div", 1.0, ("sqrt", "x"))]),
]


def _activation(op: str, attrs: dict[str, Any], patterns: list[Pattern]) -> Rule:
    def rule(g: Rewriter, node: Node) -> list[Node] | None:
        found = g.first(patterns, node.outputs[0])
        if found is None or not isinstance(found["x"], str) or g.infos[found["x"]].dtype != "float32":
            return None
        if g.shape(found["x"]) != g.shape(node.outputs[0]):
            return None
        return [g.node(op, [found["x"]], g.beside(node, op), output=node.outputs[0], **attrs)]

    return rule


# ---- what changes nothing, and moves that follow each other


def _neutral(g: Rewriter, node: Node) -> list[Node] | None:
    """Drop a sum with 0 and a product with 1."""
    scalar = node.attrs["scalar"]
    keeps = scalar == (0 if node.op in ("add", "sub") else 1) and not node.attrs.get("reverse")
    keeps |= scalar is not None and scalar == {"add": 0, "mul": 1}.get(node.op)
    value = node.inputs[0]
    if scalar is None or not keeps or g.infos[value].dtype != g.infos[node.outputs[0]].dtype:
        return None
    return _renamed(g, node, value)


def _renamed(g: Rewriter, node: Node, value: str) -> list[Node] | None:
    """Let the users of a node's value use another."""
    if node.outputs[0] in g.graph.outputs.values():
        return None
    for i, other in enumerate(g.nodes):
        if node.outputs[0] in other.inputs:
            inputs = tuple(value if v == node.outputs[0] else v for v in other.inputs)
            g.nodes[i] = Node(other.op, other.name, inputs, other.outputs, other.attrs, other.params)
    return []


def _permutes(g: Rewriter, node: Node) -> list[Node] | None:
    before = g.maker(node.inputs[0], "permute")
    axes = node.attrs["axes"]
    if before is not None:
        axes = tuple(before.attrs["axes"][a] for a in axes)
        if axes != tuple(range(len(axes))):
            return [g.node("permute", before.inputs, g.beside(node, "permute"), output=node.outputs[0], axes=axes)]
        return _renamed(g, node, before.inputs[0])
    return _renamed(g, node, node.inputs[0]) if axes == tuple(range(len(axes))) else None


def _reshapes(g: Rewriter, node: Node) -> list[Node] | None:
    before = g.maker(node.inputs[0], "reshape")
    if before is None:
        return None
    return [
        g.node("reshape", before.inputs, g.beside(node, "reshape"), output=node.outputs[0], shape=node.attrs["shape"])
    ]


# ---- layers: bias, table of rows


def _per_channel(g: Rewriter, value: Operand, rank: int, axis: int, channels: int) -> np.ndarray | None:
    """Return a constant that has one number for each channel."""
    array = g.constant(value)
    if array is None or array.dtype != np.float32 or array.size != channels or array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    return array.reshape(-1) if shape[axis] == channels else None


def _bias(g: Rewriter, node: Node) -> list[Node] | None:
    """Let a layer add the constant that is added behind it."""
    sides = g.constant_side(node)
    layer = None if sides is None else g.maker(sides[0], *LAYERS)
    if sides is None or layer is None or not g.alone(sides[0]):
        return None
    shape = g.shape(sides[0])
    axis = weight_op(layer.op).channel_axis(len(shape))
    term = _per_channel(g, sides[1], len(shape), axis, shape[axis])
    if term is None or g.shape(node.outputs[0]) != shape:
        return None
    if "bias" in layer.params:
        own = g.params[layer.params["bias"]]
        assert isinstance(own, np.ndarray)
        name = g.store(f"{layer.name}.bias", (own.astype(np.float32) + term).astype(np.float32))
    else:
        name = g.parameter(sides[1])
        if g.params[name].shape != term.shape:
            name = g.store(name, term)
    return [Node(layer.op, layer.name, layer.inputs, node.outputs, layer.attrs, {**layer.params, "bias": name})]


def _affine(g: Rewriter, node: Node) -> list[Node] | None:
    """Make one batch norm of products and sums with a number for each channel, if one of them is a product."""
    value: str = node.outputs[0]
    shape = g.shape(value)
    if not 2 <= len(shape) <= 5 or g.infos[value].dtype != "float32":
        return None
    channels, steps, stem = shape[1], [], ""
    while (at := g.maker(value, "add", "sub", "mul", "div", "batch_norm")) is not None:
        if value != node.outputs[0] and not g.alone(value):
            break
        step = _step(g, at, value, len(shape), channels)
        if step is None or g.shape(step[0]) != shape:
            break
        value = step[0]
        steps.append(step[1:])
        stem = at.name if at.op == "batch_norm" or not stem else stem
    vectors = [s for s in steps if s[2]]
    if not vectors or (len(steps) == 1 and (node.op == "batch_norm" or g.maker(value, *LAYERS) is None)):
        return None
    if all(scale is None for scale, *_ in steps):
        return None
    scale, shift = np.ones(channels), np.zeros(channels)
    for factor, term, _ in reversed(steps):
        scale, shift = (scale, shift) if factor is None else (scale * factor, shift * factor)
        shift = shift + term
    names = {
        role: g.store(f"{stem}.{role}", array.astype(np.float32))
        for role, array in (("weight", scale), ("bias", shift))
    }
    return [g.node("batch_norm", [value], stem, names, node.outputs[0], eps=0.0)]


def _step(
    g: Rewriter, node: Node, value: str, rank: int, channels: int
) -> tuple[str, np.ndarray | float | None, np.ndarray | float, bool] | None:
    """Return what a node of an affine chain reads, its factor and its term, and whether they differ by channel."""
    if node.op == "batch_norm":
        arrays = {r: np.asarray(g.params[p], np.float64) for r, p in node.params.items()}
        one, zero = np.ones(channels), np.zeros(channels)
        factor = arrays.get("weight", one) / np.sqrt(arrays.get("var", one) + node.attrs["eps"])
        return node.inputs[0], factor, arrays.get("bias", zero) - arrays.get("mean", zero) * factor, True
    left, right = (*g.operands(node), None)[:2]
    for x, c, swapped in ((left, right, False), (right, left, True)):
        number = c if not isinstance(c, str) else _per_channel(g, c, rank, 1, channels)
        if number is None or not isinstance(x, str) or g.constant(x) is not None:
            continue
        wide = np.asarray(number, np.float64)
        vector = isinstance(number, np.ndarray)
        if node.op == "mul":
            return x, wide, 0.0, vector
        if node.op == "add":
            return x, None, wide, vector
        if node.op == "sub":
            return (x, -1.0, wide, vector) if swapped else (x, None, -wide, vector)
        if node.op == "div" and not swapped:
            return x, 1 / wide, 0.0, vector
    return None


def _one_hot(g: Rewriter, node: Node) -> list[Node] | None:
    """Look rows up instead of multiplying by ones and zeros."""
    found: dict[str, Operand] = {}
    if not g.match(("cast", ("eq", "ids", "numbers"), {"dtype": "float32"}), node.inputs[0], found):
        return None
    for ids, numbers in ((found["ids"], found["numbers"]), (found["numbers"], found["ids"])):
        array, one = g.constant(numbers), g.maker(ids, "reshape")
        weight = g.params[node.params["weight"]]
        if array is None or one is None or not isinstance(weight, np.ndarray):
            continue
        rows, shape = weight.shape[1], g.shape(one.inputs[0])
        if array.shape[-1:] != (rows,) or not np.array_equal(array, np.broadcast_to(np.arange(rows), array.shape)):
            continue
        if not shape or g.shape(ids) != (*shape, 1) or g.shape(node.outputs[0])[:-1] != shape:
            continue
        ids_ = g.node("cast", one.inputs, g.beside(node, "ids"), dtype="int64")
        table = np.asarray(weight.T, np.float32, order="C")
        if "bias" in node.params:
            table = table + g.params[node.params["bias"]]  # type: ignore[operator]
        name = g.store(f"{node.name}.table", table)
        return [ids_, g.node("embedding", ids_.outputs, node.name, {"weight": name}, node.outputs[0])]
    return None


Table = list[tuple[tuple[str, ...], Rule]]
NORMS: Table = [(("mul", "div"), norm), (("mul", "add"), norm_affine)]
PATTERNS: Table = [
    (("add", "sub", "mul", "div"), _neutral),
    (("permute",), _permutes),
    (("reshape",), _reshapes),
    *(
        (tuple(sorted({str(p[0]) for p in patterns if isinstance(p, tuple)})), _activation(op, attrs, patterns))
        for op, attrs, patterns in ACTIVATIONS
    ),
    *NORMS,
    (("linear",), _one_hot),
    (("add",), _bias),
    (("matmul",), attention),
]
# Products and sums by channel may be part of a norm: what is left of them when that is found.
TABLES: tuple[Table, ...] = (PATTERNS, [(("add", "sub", "mul", "div", "batch_norm"), _affine)])
