"""Arithmetic, comparisons, logic, element-wise functions, casts; and values made from nothing."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import onnx

from pqnet_converters.core.importer import Tensor, as_known
from pqnet_converters.core.sizes import Symbolic, ceil
from pqnet_converters.onnx.importer import OnnxImporter
from pqnet_converters.onnx.reader import element_dtype
from pqnet_converters.onnx.registry import rule

Rule = Callable[..., Tensor]


def _binary(op: str) -> Rule:
    return lambda b, x, y: b.binary(op, x, y)


for _onnx, _op in {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Equal": "eq",
    "Less": "lt",
    "LessOrEqual": "le",
    "Greater": "gt",
    "GreaterOrEqual": "ge",
    "BitwiseAnd": "bitwise_and",
    "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor",
}.items():
    rule(_onnx)(_binary(_op))


@rule("Div")
def div(b: OnnxImporter, x: Tensor, y: Tensor) -> Tensor:
    return b.binary("div" if x.dtype == "float32" else "trunc_div", x, y)


@rule("Mod")
def mod(b: OnnxImporter, x: Tensor, y: Tensor) -> Tensor:
    return b.binary("fmod" if b.attr("fmod", 0) else "remainder", x, y)


@rule("Pow")
def pow_(b: OnnxImporter, x: Tensor, y: Tensor) -> Tensor:
    """The result has the dtype of the base, whatever that of the exponent."""
    if x.dtype == "float32" or y.dtype != "float32":
        return b.cast(b.binary("pow", x, y, None if x.dtype == "float32" else "int64"), x.dtype)
    return b.cast(b.binary("pow", b.cast(x, "float32"), y), x.dtype)


@rule("BitShift")
def bit_shift(b: OnnxImporter, x: Tensor, y: Tensor) -> Tensor:
    return b.binary("shift_left" if b.attr("direction") == "LEFT" else "shift_right", x, y)


@rule("And")
def and_(b: OnnxImporter, x: Tensor, y: Tensor) -> Tensor:
    return b.emit("logical_and", x, y)


@rule("Or")
def or_(b: OnnxImporter, x: Tensor, y: Tensor) -> Tensor:
    return b.emit("logical_or", x, y)


@rule("Xor")
def xor(b: OnnxImporter, x: Tensor, y: Tensor) -> Tensor:
    return b.emit("ne", x, y)


def _function(op: str) -> Rule:
    return lambda b, x: b.emit(op, x)


for _onnx, _op in {
    **{name: name.lower() for name in ("Exp", "Log", "Sqrt", "Reciprocal", "Sin", "Cos", "Erf", "Neg", "Abs", "Sign")},
    "Not": "logical_not",
    "BitwiseNot": "bitwise_not",
}.items():
    rule(_onnx)(_function(_op))


def _rounded(op: str) -> Rule:
    return lambda b, x: b.emit(op, x) if x.dtype == "float32" else x


for _onnx in ("Floor", "Ceil", "Round"):
    rule(_onnx)(_rounded(_onnx.lower()))


@rule("Tan")
def tan(b: OnnxImporter, x: Tensor) -> Tensor:
    return b.emit("div", b.emit("sin", x), b.emit("cos", x))


def _hyperbolic(op: str) -> Rule:
    def rule(b: OnnxImporter, x: Tensor) -> Tensor:
        both = b.emit(op, b.emit("exp", x), b.emit("exp", b.emit("neg", x)))
        return b.emit("mul", both, scalar=0.5)

    return rule


rule("Sinh")(_hyperbolic("sub"))
rule("Cosh")(_hyperbolic("add"))


@rule("Asinh")
def asinh(b: OnnxImporter, x: Tensor) -> Tensor:
    """sign(x) log(|x| + sqrt(x^2 + 1))"""
    size = b.emit("abs", x)
    root = b.emit("sqrt", b.emit("add", b.emit("mul", x, x), scalar=1.0))
    return b.emit("mul", b.emit("sign", x), b.emit("log", b.emit("add", size, root)))


@rule("Acosh")
def acosh(b: OnnxImporter, x: Tensor) -> Tensor:
    root = b.emit("sqrt", b.emit("sub", b.emit("mul", x, x), scalar=1.0))
    return b.emit("log", b.emit("add", x, root))


@rule("Atanh")
def atanh(b: OnnxImporter, x: Tensor) -> Tensor:
    up, down = b.emit("log1p", x), b.emit("log1p", b.emit("neg", x))
    return b.emit("mul", b.emit("sub", up, down), scalar=0.5)


@rule("IsNaN")
def is_nan(b: OnnxImporter, x: Tensor) -> Tensor:
    return b.emit("ne", x, x)


@rule("IsInf")
def is_inf(b: OnnxImporter, x: Tensor) -> Tensor:
    up, down = b.attr("detect_positive", 1), b.attr("detect_negative", 1)
    if up and down:
        return b.emit("eq", b.emit("abs", x), scalar=math.inf)
    return b.emit("eq", x, scalar=math.inf if up else -math.inf if down else math.nan)


@rule("Where")
def where(b: OnnxImporter, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return b.emit("where", condition, x, y)


@rule("Clip")
def clip(b: OnnxImporter, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    ends = {"min": low, "max": high}
    if b.opset < 11:
        ends = {end: None if b.attr(end) is None else as_known(b.attr(end), "float32") for end in ends}
    if all(e is None or (e.constant is not None and e.constant.size == 1) for e in ends.values()) and not x.symbolic:
        limits = {end: b.number(e) for end, e in ends.items() if e is not None}
        infinite = {"min": -math.inf, "max": math.inf}
        limits = {end: v for end, v in limits.items() if v != infinite[end]}
        return b.emit("clamp", x, **limits) if limits else x
    for end, op in (("min", "maximum"), ("max", "minimum")):
        limit = ends[end]
        x = x if limit is None else b.binary(op, x, limit)
    return x


def _folded(op: str) -> Rule:
    def combine(b: OnnxImporter, *tensors: Tensor) -> Tensor:
        total = tensors[0]
        for x in tensors[1:]:
            total = b.binary(op, total, x)
        return total

    return combine


for _onnx, _op in {"Max": "maximum", "Min": "minimum", "Sum": "add"}.items():
    rule(_onnx)(_folded(_op))


@rule("Mean")
def mean(b: OnnxImporter, *tensors: Tensor) -> Tensor:
    return b.emit("mul", _folded("add")(b, *tensors), scalar=1 / len(tensors))


@rule("Cast")
def cast(b: OnnxImporter, x: Tensor) -> Tensor:
    number = b.attr("to")
    if number == onnx.TensorProto.STRING:
        raise b.refuse("strings have no rule")
    return b.cast(x, element_dtype(number, "Cast"))


@rule("CastLike")
def cast_like(b: OnnxImporter, x: Tensor, like: Tensor) -> Tensor:
    return b.cast(x, like.dtype)


@rule("Identity", "StopGradient")
def identity(b: OnnxImporter, x: Tensor) -> Tensor:
    return x


@rule("Dropout")
def dropout(b: OnnxImporter, x: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Nothing is dropped in inference: the mask keeps all."""
    if len(_) > 1 and _[1] is not None and b.number(_[1]):
        raise b.refuse("expected a network for inference, got dropout in training mode")
    mask = b.emit("full", shape=x.shape, value=1, dtype="bool") if b.wanted(1) else None
    return x, mask


CONSTANTS = {"value_float": "float32", "value_floats": "float32", "value_int": "int64", "value_ints": "int64"}


@rule("Constant")
def constant(b: OnnxImporter) -> Tensor:
    value = b.attr("value")
    if value is not None:
        # Its name is that of its output, where that says something.
        return as_known(value, value.dtype.name, origin=b.node.outputs[0].replace("/", "."))
    for name, dtype in CONSTANTS.items():
        if b.attr(name) is not None:
            return as_known(b.attr(name), dtype)
    raise b.refuse(f"expected a constant of numbers, got {sorted(b.node.attrs)}")


@rule("ConstantOfShape")
def constant_of_shape(b: OnnxImporter, shape: Tensor) -> Tensor:
    value = b.attr("value")
    value = np.zeros(1, np.float32) if value is None else value
    number = value.reshape(-1)[0].item()
    number = int(number) if value.dtype == bool else number
    return b.emit("full", shape=sizes(b, shape), value=number, dtype=value.dtype.name)


def sizes(b: OnnxImporter, x: Tensor) -> tuple[Any, ...]:
    """Return the sizes of a shape that is an input: known, or free where they depend on symbols."""
    found = [] if x.data is None else b.numbers(x, "shape")
    if x.data is None:
        raise b.refuse(
            "expected a shape that follows from the shapes of the inputs, got one that depends on what is in them"
        )
    return tuple(found or ())


@rule("Range")
def range_(b: OnnxImporter, start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    if any(x.data is None for x in (start, end, step)):
        raise b.refuse("expected limits that follow from the shapes of the inputs, got ones that depend on their data")
    first, last, by = (b.number(x) for x in (start, end, step))
    if not any(isinstance(v, Symbolic) for v in (first, last, by)):
        return as_known(np.arange(first, last, by), start.dtype)
    if start.dtype == "float32":  # by its number of elements
        count = ceil((last - first) * (1 / Fraction(by)))
        numbers = b.cast(b.emit("arange", end=count), "float32")
        return b.binary("add", b.binary("mul", numbers, step), start)
    by = b.fixed(by, "step")
    if (last - first) * by < 0:
        last = first
    return b.cast(b.emit("arange", start=first, end=last, step=by), start.dtype)


@rule("EyeLike")
def eye_like(b: OnnxImporter, x: Tensor) -> Tensor:
    rows, columns = (b.fixed(size) for size in x.shape)
    dtype = element_dtype(b.attr("dtype"), "EyeLike") if b.attr("dtype") else x.dtype
    return as_known(np.eye(rows, columns, b.attr("k", 0)), dtype)
