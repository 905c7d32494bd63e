"""Arithmetic, comparisons, logic, element-wise functions and casts."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pqnet_converters.aten.importer import Importer, Tensor
from pqnet_converters.aten.registry import rule


def as_float(b: Importer, x: Tensor) -> Tensor | str:
    """Return the tensor as float32."""
    return x if x.dtype == "float32" else b.emit("cast", x, dtype="float32")


def as_bool(b: Importer, x: Tensor) -> Tensor:
    """Return the tensor as booleans: whether it is not 0."""
    return x if x.dtype == "bool" else Tensor(x.shape, "bool", value=b.emit("cast", x, dtype="bool"))


def _binary(b: Importer, op: str, x: Any, y: Any) -> str:
    """Emit a two-operand operation, constants without axes as scalars, in the dtype that torch gives it."""
    want = b.out_dtype()
    left, right = b.number(x), b.number(y)
    tensors = [t for t, number in ((x, left), (y, right)) if number is None]
    operands: list[Tensor | str] = list(tensors)
    if want == "float32" and all(t.dtype != "float32" for t in tensors):
        operands = [as_float(b, t) for t in tensors]
    attrs: dict[str, Any] = {}
    if right is not None:
        attrs = {"scalar": float(right)}
    elif left is not None:
        attrs = {"scalar": float(left), "reverse": True}
    value = b.emit(op, *operands, **attrs)
    got = "int64" if want != "float32" else want  # booleans are calculated with as integers
    return value if got == want else b.emit("cast", value, dtype=want)


@rule("aten.add.Tensor", "aten.add.Scalar")
def add(b: Importer, x: Any, y: Any, alpha: Any) -> str:
    return _binary(b, "add", x, _times(b, y, alpha))


@rule("aten.sub.Tensor", "aten.sub.Scalar")
def sub(b: Importer, x: Any, y: Any, alpha: Any) -> str:
    return _binary(b, "sub", x, _times(b, y, alpha))


@rule("aten.rsub.Tensor", "aten.rsub.Scalar")
def rsub(b: Importer, x: Any, y: Any, alpha: Any) -> str:
    return _binary(b, "sub", y, _times(b, x, alpha))


def _times(b: Importer, y: Any, alpha: Any) -> Any:
    factor, number = b.number(alpha), b.number(y)
    if factor == 1:
        return y
    if number is not None:
        return number * (factor or 0)
    return Tensor(y.shape, b.out_dtype(), value=_binary(b, "mul", y, factor))


def _plain_binary(op: str) -> Callable[[Importer, Any, Any], str]:
    return lambda b, x, y: _binary(b, op, x, y)


for _op, _names in {
    "mul": ("mul.Tensor", "mul.Scalar"),
    "div": ("div.Tensor", "div.Scalar"),
    "pow": ("pow.Tensor_Scalar", "pow.Scalar", "pow.Tensor_Tensor"),
    "maximum": ("maximum.default", "clamp_min.Tensor"),
    "minimum": ("minimum.default", "clamp_max.Tensor"),
}.items():
    rule(*(f"aten.{name}" for name in _names))(_plain_binary(_op))


@rule("aten.clamp.Tensor")
def clamp_tensor(b: Importer, x: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    y = x
    if low is not None:
        y = Tensor(b.out_shape(), b.out_dtype(), value=_binary(b, "maximum", y, low))
    if high is not None:
        y = Tensor(b.out_shape(), b.out_dtype(), value=_binary(b, "minimum", y, high))
    return y


@rule("aten.div.Tensor_mode")
def div_mode(b: Importer, x: Any, y: Any, rounding: str | None) -> str:
    if b.out_dtype() != "float32":
        raise b.refuse("expected a division of floats, got integers (their quotient is not exact in float32)")
    quotient = _binary(b, "div", x, y)
    if rounding == "trunc":
        return b.emit("mul", b.emit("sign", quotient), b.emit("floor", b.emit("abs", quotient)))
    return quotient if rounding is None else b.emit("floor", quotient)


def _comparison(op: str) -> Callable[[Importer, Tensor, Any], str]:
    def compare(b: Importer, x: Tensor, y: Any) -> str:
        number = b.number(y)
        return b.emit(op, x, y) if number is None else b.emit(op, x, scalar=float(number))

    return compare


for _op in ("eq", "ne", "lt", "le", "gt", "ge"):
    rule(f"aten.{_op}.Tensor", f"aten.{_op}.Scalar")(_comparison(_op))


@rule("aten.isnan.default")
def isnan(b: Importer, x: Tensor) -> str:
    return b.emit("ne", x, x)


def _logic(op: str) -> Callable[..., str]:
    def combine(b: Importer, *operands: Tensor) -> str:
        if "bitwise" in str(b.node.target) and b.out_dtype() != "bool":
            raise b.refuse("expected booleans, got integers")
        return b.emit(op, *(as_bool(b, x) for x in operands))

    return combine


for _op, _name in {"logical_and": "and", "logical_or": "or", "ne": "xor"}.items():
    rule(f"aten.logical_{_name}.default", f"aten.bitwise_{_name}.Tensor")(_logic(_op))
rule("aten.logical_not.default", "aten.bitwise_not.default")(_logic("logical_not"))


@rule("aten.where.self")
def where(b: Importer, condition: Tensor, x: Tensor, y: Tensor) -> str:
    value = b.emit("where", condition, x, y)
    mixed = b.out_dtype() == "bool"
    return b.emit("cast", value, dtype="bool") if mixed else value


@rule("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(b: Importer, x: Tensor, mask: Tensor, fill: Any) -> str:
    number = b.number(fill)
    filled = fill if number is None else b.emit("full", shape=(), value=float(number), dtype=x.dtype)
    return b.emit("where", mask, filled, x)


def _unary(op: str) -> Callable[[Importer, Tensor], str]:
    integer = op in ("neg", "abs", "sign")
    return lambda b, x: b.emit(op, x if integer else as_float(b, x))


for _op in (
    *("exp", "log", "sqrt", "rsqrt", "erf", "neg", "abs", "reciprocal"),
    *("sin", "cos", "floor", "ceil", "round", "sign"),
):
    rule(f"aten.{_op}.default")(_unary(_op))


@rule("aten.log1p.default")
def log1p(b: Importer, x: Tensor) -> str:
    return b.emit("log", b.emit("add", as_float(b, x), scalar=1.0))


@rule("aten.expm1.default")
def expm1(b: Importer, x: Tensor) -> str:
    return b.emit("sub", b.emit("exp", as_float(b, x)), scalar=1.0)


@rule("aten.log2.default")
def log2(b: Importer, x: Tensor) -> str:
    return b.emit("mul", b.emit("log", as_float(b, x)), scalar=1 / float(np.log(2.0)))


@rule("aten.log10.default")
def log10(b: Importer, x: Tensor) -> str:
    return b.emit("mul", b.emit("log", as_float(b, x)), scalar=1 / float(np.log(10.0)))


@rule("aten._to_copy.default")
def to_copy(b: Importer, x: Tensor, *_: Any) -> Tensor | str:
    dtype = b.out_dtype()
    return x if dtype == x.dtype else b.emit("cast", x, dtype=dtype)


@rule("aten.clone.default", "aten.alias.default", "aten.detach.default", "aten.lift_fresh_copy.default")
def same(b: Importer, x: Tensor, *_: Any) -> Tensor:
    return x


@rule("aten._assert_tensor_metadata.default", "aten._assert_scalar.default", "aten._assert_async.msg")
def check(b: Importer, *_: Any) -> None:
    """What export checked, it checked: such a node has no value."""
