"""Arithmetic, comparisons, logic, element-wise functions and casts."""

from collections.abc import Callable
from typing import Any

import torch

from pqnet_converters.torch.aten.registry import rule
from pqnet_converters.torch.importer import Importer, Tensor
from pqnet_converters.torch.sizes import Expression


def as_float(b: Importer, x: Tensor) -> Tensor:
    """Return the tensor as float32."""
    return b.cast(x, "float32")


def as_bool(b: Importer, x: Any) -> Tensor:
    """Return a tensor or a number as booleans: whether it is not 0."""
    if not isinstance(x, Tensor):
        return Tensor((), "bool", data=torch.tensor(bool(x)))
    return b.cast(x, "bool")


def as_number(value: Any, dtype: str) -> int | float:
    """Return a number as an element of a dtype: integers stay exact, what torch would cut off is cut off."""
    return float(value) if dtype == "float32" else int(value)


def _meeting(b: Importer, op: str, x: Any, y: Any, dtype: str) -> str:
    """Emit a two-operand operation in a dtype, constants without axes as scalars; booleans meet as integers."""
    x, y = (b.size(t) if isinstance(t, Expression) else t for t in (x, y))
    left, right = b.number(x), b.number(y)
    operands = [b.cast(t, dtype) for t, number in ((x, left), (y, right)) if number is None]
    attrs: dict[str, Any] = {}
    if right is not None:
        attrs = {"scalar": as_number(right, dtype)}
    elif left is not None:
        attrs = {"scalar": as_number(left, dtype), "reverse": True}
    return b.emit(op, *operands, **attrs)


def _binary(b: Importer, op: str, x: Any, y: Any) -> str:
    """Emit a two-operand operation in the dtype of its result."""
    want = b.out_dtype()
    value = _meeting(b, op, x, y, want)
    return b.emit("cast", value, dtype="bool") if want == "bool" else value


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
    if alpha == 1:
        return y
    factor, number = b.number(alpha), None if isinstance(y, Expression) else b.number(y)
    if number is not None:
        return number * (factor or 0)
    shape = y.shape if isinstance(y, Tensor) else ()
    return Tensor(shape, b.out_dtype(), value=_binary(b, "mul", y, factor))


def _dunder(name: str) -> tuple[str, str]:
    return f"__{name}__.Scalar", f"__{name}__.Tensor"


def _plain_binary(op: str) -> Callable[[Importer, Any, Any], str]:
    return lambda b, x, y: _binary(b, op, x, y)


for _op, _names in {
    "mul": ("mul.Tensor", "mul.Scalar"),
    "div": ("div.Tensor", "div.Scalar"),
    "floor_div": ("floor_divide.default", "floor_divide.Scalar"),
    "remainder": ("remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor"),
    "fmod": ("fmod.Tensor", "fmod.Scalar"),
    "shift_left": ("bitwise_left_shift.Tensor", "bitwise_left_shift.Tensor_Scalar", *_dunder("lshift")),
    "shift_right": ("bitwise_right_shift.Tensor", "bitwise_right_shift.Tensor_Scalar", *_dunder("rshift")),
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


QUOTIENTS = {None: "div", "floor": "floor_div", "trunc": "trunc_div"}


@rule("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div_mode(b: Importer, x: Any, y: Any, rounding: str | None) -> str:
    return _binary(b, QUOTIENTS[rounding], x, y)


def _comparison(op: str) -> Callable[[Importer, Tensor, Any], str]:
    return lambda b, x, y: _meeting(b, op, x, y, b.operand_dtype())


for _op in ("eq", "ne", "lt", "le", "gt", "ge"):
    rule(f"aten.{_op}.Tensor", f"aten.{_op}.Scalar")(_comparison(_op))


@rule("aten.isnan.default")
def isnan(b: Importer, x: Tensor) -> str:
    return b.emit("ne", x, x)


def _logic(op: str, bits: str) -> Callable[..., str]:
    def combine(b: Importer, *operands: Any) -> str:
        if b.out_dtype() == "bool":
            return b.emit(op, *(as_bool(b, x) for x in operands))
        return _binary(b, bits, *operands) if len(operands) == 2 else b.emit(bits, *operands)

    return combine


for _op, _name in {"logical_and": "and", "logical_or": "or", "ne": "xor"}.items():
    _bitwise = (f"aten.bitwise_{_name}.{kind}" for kind in ("Tensor", "Scalar", "Scalar_Tensor"))
    _names = (f"aten.logical_{_name}.default", *_bitwise, *(f"aten.{n}" for n in _dunder(_name)))
    rule(*_names)(_logic(_op, f"bitwise_{_name}"))
rule("aten.logical_not.default", "aten.bitwise_not.default")(_logic("logical_not", "bitwise_not"))


@rule("aten.where.self")
def where(b: Importer, condition: Tensor, x: Tensor, y: Tensor) -> str:
    dtype = b.out_dtype()
    return b.emit("where", as_bool(b, condition), b.cast(x, dtype), b.cast(y, dtype))


@rule("aten.where.ScalarOther")
def where_else(b: Importer, condition: Tensor, x: Tensor, other: Any) -> str:
    dtype = b.out_dtype()
    number = b.emit("full", shape=(), value=as_number(b.number(other), dtype), dtype=dtype)
    return b.emit("where", as_bool(b, condition), b.cast(x, dtype), number)


@rule("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(b: Importer, x: Tensor, mask: Tensor, fill: Any) -> str:
    number = b.number(fill)
    if number is None:
        return b.emit("where", mask, b.cast(fill, x.dtype), x)
    return b.emit("where", mask, b.emit("full", shape=(), value=as_number(number, x.dtype), dtype=x.dtype), x)


def _float_function(op: str) -> Callable[[Importer, Tensor], str]:
    return lambda b, x: b.emit(op, as_float(b, x))


def _number_function(op: str, integers: bool) -> Callable[[Importer, Tensor], Tensor | str]:
    """Return the rule of a function that keeps the dtype; one that does not change integers is left out there."""
    return lambda b, x: b.emit(op, x) if x.dtype == "float32" or (integers and x.dtype != "bool") else x


for _op in (
    *("exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "rsqrt", "erf", "reciprocal"),
    *("sin", "cos"),
):
    rule(f"aten.{_op}.default")(_float_function(_op))
for _op in ("neg", "abs", "sign", "floor", "ceil", "round"):
    rule(f"aten.{_op}.default")(_number_function(_op, _op in ("neg", "abs", "sign")))


@rule("aten.exp2.default")
def exp2(b: Importer, x: Tensor) -> str:
    return b.emit("pow", as_float(b, x), scalar=2.0, reverse=True)


@rule("aten.trunc.default")
def trunc(b: Importer, x: Tensor) -> Tensor | str:
    return b.emit("trunc_div", x, scalar=1.0) if x.dtype == "float32" else x


@rule("aten.isinf.default")
def isinf(b: Importer, x: Tensor) -> str:
    return b.emit("eq", b.emit("abs", as_float(b, x)), scalar=float("inf"))


@rule("aten._to_copy.default", "aten.to.device", "aten.to.dtype", "aten.to.dtype_layout")
def to_copy(b: Importer, x: Tensor, *_: Any) -> Tensor:
    return b.cast(x, b.out_dtype())


@rule("aten.clone.default", "aten.alias.default", "aten.detach.default", "aten.lift_fresh_copy.default")
def same(b: Importer, x: Tensor, *_: Any) -> Tensor:
    return x
