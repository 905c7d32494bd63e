"""Arithmetic, comparisons, functions, casts, activations; values made from nothing."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pqnet.graph import Node
from pqnet.graph.op import INTEGERS
from pqnet.graph.ops.elementwise import as_scalar, operand_dtype
from pqnet_converters.onnx.writer.writer import ELEMENTS, Writer, writes

Values = list[str]

BINARY = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "pow": "Pow",
    "maximum": "Max",
    "minimum": "Min",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "bitwise_and": "BitwiseAnd",
    "bitwise_or": "BitwiseOr",
    "bitwise_xor": "BitwiseXor",
}


def operands(w: Writer, node: Node, x: Values) -> tuple[str, str, str]:
    """Return two operands in the dtype in which they meet, and that."""
    dtypes = [w.info(v).dtype for v in x]
    scalar = node.attrs["scalar"]
    dtype = "float32" if node.op == "div" else operand_dtype(dtypes, [scalar])
    found = [w.cast(v, have, dtype) for v, have in zip(x, dtypes, strict=True)]
    if scalar is not None:
        number = w.constant(as_scalar(scalar, dtype), dtype)
        found.insert(0 if node.attrs.get("reverse") else 1, number)
    return found[0], found[1], dtype


def _binary(w: Writer, node: Node, x: Values) -> str:
    left, right, _ = operands(w, node, x)
    return str(w.add(BINARY[node.op], left, right))


for _op in BINARY:
    writes(_op)(_binary)


@writes("ne")
def not_equal(w: Writer, node: Node, x: Values) -> str:
    left, right, _ = operands(w, node, x)
    return str(w.add("Not", w.add("Equal", left, right)))


@writes("floor_div", "trunc_div", "remainder", "fmod")
def divided(w: Writer, node: Node, x: Values) -> str:
    left, right, dtype = operands(w, node, x)
    whole = dtype in INTEGERS
    if node.op == "fmod" or (node.op == "remainder" and whole):
        return str(w.add("Mod", left, right, fmod=int(node.op == "fmod")))
    if node.op == "trunc_div" and whole:
        return str(w.add("Div", left, right))
    if whole:
        return str(w.add("Div", w.add("Sub", left, w.add("Mod", left, right)), right))
    quotient = w.add("Div", left, right)
    if node.op == "trunc_div":
        return str(w.add("Mul", w.add("Sign", quotient), w.add("Floor", w.add("Abs", quotient))))
    floor = w.add("Floor", quotient)
    return floor if node.op == "floor_div" else str(w.add("Sub", left, w.add("Mul", floor, right)))


UNARY = {
    **{name: name.capitalize() for name in ("exp", "log", "sqrt", "erf", "reciprocal", "sin", "cos", "floor", "ceil")},
    **{name: name.capitalize() for name in ("round", "neg", "abs", "sign", "relu", "sigmoid", "tanh", "mish")},
    "logical_not": "Not",
    "bitwise_not": "BitwiseNot",
    "hardswish": "HardSwish",
}


def _unary(w: Writer, node: Node, x: Values) -> str:
    value = w.cast(x[0], w.info(x[0]).dtype, "bool") if node.op == "logical_not" else x[0]
    return str(w.add(UNARY[node.op], value))


for _op in UNARY:
    writes(_op)(_unary)


def _number(w: Writer, value: float) -> str:
    return w.constant(value, "float32")


def _composed(function: Callable[[Writer, str], Any]) -> Callable[[Writer, Node, Values], str]:
    return lambda w, node, x: str(function(w, x[0]))


for _op, _function in {
    "expm1": lambda w, x: w.add("Sub", w.add("Exp", x), _number(w, 1)),
    "log1p": lambda w, x: w.add("Log", w.add("Add", x, _number(w, 1))),
    "log2": lambda w, x: w.add("Mul", w.add("Log", x), _number(w, 1 / math.log(2))),
    "log10": lambda w, x: w.add("Mul", w.add("Log", x), _number(w, 1 / math.log(10))),
    "rsqrt": lambda w, x: w.add("Reciprocal", w.add("Sqrt", x)),
    "silu": lambda w, x: w.add("Mul", x, w.add("Sigmoid", x)),
    "hardsigmoid": lambda w, x: w.add("HardSigmoid", x, alpha=1 / 6, beta=0.5),
}.items():
    writes(_op)(_composed(_function))


@writes("logical_and", "logical_or")
def logical(w: Writer, node: Node, x: Values) -> str:
    flags = [w.cast(v, w.info(v).dtype, "bool") for v in x]
    return str(w.add("And" if node.op == "logical_and" else "Or", *flags))


@writes("where")
def where(w: Writer, node: Node, x: Values) -> str:
    dtype = w.info(node.outputs[0]).dtype
    held = "uint8" if dtype == "bool" else dtype  # runtimes choose no booleans
    chosen = w.add("Where", x[0], *(w.cast(v, w.info(v).dtype, held) for v in x[1:]))
    return w.cast(chosen, held, dtype)


@writes("cast")
def cast(w: Writer, node: Node, x: Values) -> str:
    return str(w.add("Cast", x[0], to=ELEMENTS[node.attrs["dtype"]]))


@writes("clamp")
def clamp(w: Writer, node: Node, x: Values) -> str:
    dtype = w.info(node.outputs[0]).dtype
    value = w.cast(x[0], w.info(x[0]).dtype, dtype)
    ends = []
    for end in ("min", "max"):
        limit = node.attrs[end]
        if limit is not None and dtype in INTEGERS:
            limit = min(max(int(limit), np.iinfo(dtype).min), np.iinfo(dtype).max)
        ends.append("" if limit is None else w.constant(limit, dtype))
    return str(w.add("Clip", value, *ends))


@writes("leaky_relu")
def leaky_relu(w: Writer, node: Node, x: Values) -> str:
    return str(w.add("LeakyRelu", x[0], alpha=node.attrs["negative_slope"]))


@writes("elu")
def elu(w: Writer, node: Node, x: Values) -> str:
    return str(w.add("Elu", x[0], alpha=node.attrs["alpha"]))


@writes("softplus")
def softplus(w: Writer, node: Node, x: Values) -> str:
    """Softplus of ONNX has no threshold: beyond it, the two are equal within its rounding."""
    beta, threshold = node.attrs["beta"], node.attrs["threshold"]
    scaled = x[0] if beta == 1 else w.add("Mul", x[0], _number(w, beta))
    y = w.add("Softplus", scaled)
    y = y if beta == 1 else w.add("Div", y, _number(w, beta))
    if threshold >= 17:  # exp(-17) is below the rounding of 17
        return str(y)
    return str(w.add("Where", w.add("Greater", scaled, _number(w, threshold)), x[0], y))


@writes("gelu")
def gelu(w: Writer, node: Node, x: Values) -> str:
    if node.attrs["approximate"] == "tanh":
        cube = w.add("Mul", w.add("Mul", x[0], x[0]), x[0])
        inner = w.add("Add", x[0], w.add("Mul", cube, _number(w, 0.044715)))
        gate = w.add("Tanh", w.add("Mul", inner, _number(w, math.sqrt(2 / math.pi))))
    else:
        gate = w.add("Erf", w.add("Div", x[0], _number(w, math.sqrt(2))))
    return str(w.add("Mul", w.add("Mul", x[0], w.add("Add", gate, _number(w, 1))), _number(w, 0.5)))


@writes("prelu")
def prelu(w: Writer, node: Node, x: Values) -> str:
    slope, rank = w.role(node, "weight"), len(w.info(x[0]).shape)
    assert slope is not None
    if rank == 0 or (w.shape_of(node, "weight") != (1,) and rank > 2):
        slope = w.add("Reshape", slope, w.ints(*((-1, *(1,) * (rank - 2)) if rank else ())))
    return str(w.add("PRelu", x[0], slope))


@writes("softmax", "log_softmax")
def softmax(w: Writer, node: Node, x: Values) -> str:
    return str(w.add("Softmax" if node.op == "softmax" else "LogSoftmax", x[0], axis=node.attrs["axis"]))


@writes("constant")
def constant(w: Writer, node: Node, x: Values) -> str:
    return str(w.role(node, "value"))


@writes("full")
def full(w: Writer, node: Node, x: Values) -> str:
    dtype = node.attrs["dtype"]
    value = w.constant(as_scalar(node.attrs["value"], dtype), dtype)
    return str(w.add("Expand", value, w.sizes(node.attrs["shape"]) if node.attrs["shape"] else w.ints()))


@writes("arange")
def arange(w: Writer, node: Node, x: Values) -> str:
    ends = []
    for end in ("start", "end"):
        dim = node.attrs[end]
        if isinstance(dim, str):
            ends.append(w.add("Squeeze", w.size(dim), w.ints(0)))
        else:
            ends.append(w.constant(dim, "int64"))
    return str(w.add("Range", *ends, w.constant(node.attrs["step"], "int64")))
