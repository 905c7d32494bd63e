"""Operations on each element: arithmetic, comparison, logic, choice, conversion; and values made from nothing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pqnet.errors import PQNetError
from pqnet.graph.axes import Axes, Tracked, broadcast, fresh
from pqnet.graph.op import (
    DTYPES,
    INTEGERS,
    NUMERIC,
    Arrays,
    Attr,
    Attrs,
    Info,
    Params,
    broadcast_shape,
    check_dtype,
    register,
)

__all__ = ["as_dtype", "as_scalar", "check_scalar", "elementwise", "erf", "operand_dtype"]

Function = Callable[..., Any]

# P of erf(x) = tanh(x P(x^2)), least relative error on |x| <= 3.95, where float32 erf reaches 1: 2.5e-7 all told.
# SciPy's erf takes 35 times as long as NumPy's tanh.
ERF_LIMIT = 3.95**2
ERF = (1.12837927, 0.102769059, -1.91837547e-4, -6.19779342e-4, 8.76354939e-5, -5.66820011e-6, 1.41837660e-7)


def erf(x: np.ndarray) -> np.ndarray:
    """Return the error function of a float32 array, within 3e-7 of its value."""
    square = np.minimum(np.square(x), ERF_LIMIT)
    y = np.asarray(square * ERF[-1])
    for coefficient in ERF[-2:0:-1]:
        y += coefficient
        y *= square
    y += ERF[0]
    y *= x
    np.tanh(y, out=y)
    return y


def _power(base: Any, exponent: Any) -> Any:
    dtype = np.result_type(base, exponent)
    if dtype == np.float32:
        return base**exponent  # the operator, unlike np.power, squares for exponent 2
    base, exponent = np.asarray(base, dtype), np.asarray(exponent, dtype)
    power = base ** np.where(exponent < 0, exponent & 1, exponent)  # what is left of 1 and -1
    return np.where((exponent < 0) & (base != 1) & (base != -1), 0, power).astype(dtype, copy=False)


def _truncated_quotient(x: Any, y: Any) -> Any:
    if np.result_type(x, y) == np.float32:
        return np.trunc(np.true_divide(x, y))
    return np.floor_divide(np.subtract(x, np.fmod(x, y)), y)


def _sign(x: np.ndarray) -> Any:
    return np.subtract(x > 0, x < 0, dtype=x.dtype)  # 0 for NaN, as in PyTorch


ARITHMETIC: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "floor_div": np.floor_divide,  # integers over 0 give 0, and so do both remainders
    "trunc_div": _truncated_quotient,
    "remainder": np.remainder,  # with the sign of the divisor
    "fmod": np.fmod,  # with the sign of the dividend
    "pow": _power,
    "maximum": np.maximum,
    "minimum": np.minimum,
}
BITWISE: dict[str, Function] = {
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "shift_left": np.left_shift,  # by the width of the dtype or more, or by less than 0: all bits leave
    "shift_right": np.right_shift,
}
COMPARISONS: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
FLOAT: dict[str, Function] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "log10": np.log10,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "erf": erf,
    "reciprocal": np.reciprocal,
    "sin": np.sin,
    "cos": np.cos,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
}
SIGNED: dict[str, Function] = {"neg": np.negative, "abs": np.abs, "sign": _sign}


def _is_whole(value: float) -> bool:
    return isinstance(value, int) or (value.is_integer() and abs(value) < 2.0**63)


def operand_dtype(dtypes: Iterable[str], scalars: Iterable[float | None] = ()) -> str:
    """Return the dtype in which operands meet.

    That is float32 if one is or a scalar is no int64, else the narrowest that holds the integers of all arrays:
    scalars do not widen it. Booleans alone meet in int64.
    """
    dtypes = list(dtypes)
    if "float32" in dtypes or not all(s is None or _is_whole(s) for s in scalars):
        return "float32"
    dtype: str = np.result_type(*dtypes).name
    return "int64" if dtype == "bool" else dtype


def as_scalar(value: float, dtype: str) -> int | float:
    """Return a scalar as the Python number that an array of ``dtype`` meets in its dtype; integers wrap."""
    return int(np.array(int(value), np.int64).astype(dtype)) if dtype in INTEGERS else value


def check_scalar(value: float, dtype: str) -> None:
    """Raise unless a number can be an element of an array of ``dtype``."""
    if dtype not in INTEGERS:
        return
    limits = np.iinfo(dtype)
    if not _is_whole(value) or not limits.min <= value <= limits.max:
        raise PQNetError(f"value: expected a whole number for {dtype}, from {limits.min} to {limits.max}, got {value}")


def as_dtype(x: np.ndarray, dtype: str) -> np.ndarray:
    """Return an array in another dtype, as PyTorch converts on a CPU but on every platform.

    Floats lose their fraction. NaN and what the integer does not hold become its smallest; for narrower ones than
    int32 that happens in int32, of which the low bits stay. Integers wrap.
    """
    if x.dtype.kind != "f" or dtype not in INTEGERS:
        return x.astype(dtype, copy=False)
    wide = np.int64 if dtype == "int64" else np.int32
    limit = -float(np.iinfo(wide).min)
    held = (x >= -limit) & (x < limit)
    whole = np.where(held, x, 0).astype(wide)
    return np.where(held, whole, np.iinfo(wide).min).astype(dtype, copy=False)


def elementwise(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    """Order rule of operations that treat all elements alike."""
    return broadcast(x)


def _infer_binary(meet: str | None, result: str | None, x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    if (len(x) == 1) == (a["scalar"] is None):
        raise PQNetError(f"expected two inputs, or one input and a scalar, got {len(x)} and scalar {a['scalar']}")
    if len(x) == 2 and a.get("reverse"):
        raise PQNetError("reverse: expected only together with a scalar, got two inputs; swap them")
    dtype = result or meet or operand_dtype([i.dtype for i in x], [a["scalar"]])
    return Info(broadcast_shape(*(i.shape for i in x)), dtype)


def _eval_binary(function: Function, meet: str | None, x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    dtype = meet or operand_dtype([array.dtype.name for array in x], [a["scalar"]])
    operands: list[Any] = [as_dtype(array, dtype) for array in x]
    if a["scalar"] is not None:
        operands.insert(0 if a.get("reverse") else 1, as_scalar(a["scalar"], dtype))
    return np.asarray(function(*operands))


def _infer_bitwise(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    info = _infer_binary(None, None, x, p, a)
    if info.dtype == "float32" or all(i.dtype == "bool" for i in x):
        dtypes = ", ".join(i.dtype for i in x)
        raise PQNetError(f"expected integers, got {dtypes} and scalar {a['scalar']}; logical_* are for bool")
    return info


for _name, _function in (ARITHMETIC | BITWISE | COMPARISONS).items():
    _meet = "float32" if _name == "div" else None
    _rule = partial(_infer_binary, _meet, "bool" if _name in COMPARISONS else None)
    _reverse: dict[str, Any] = {} if _name in COMPARISONS else {"reverse": Attr("bool", False)}
    register(
        _name,
        infer=_infer_bitwise if _name in BITWISE else _rule,
        evaluate=partial(_eval_binary, _function, _meet),
        inputs=(1, 2),
        order=elementwise,
        scalar=Attr("number", None),
        **_reverse,
    )


def _infer_logical(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    return Info(broadcast_shape(*(i.shape for i in x)), "bool")


def _infer_unary(dtypes: tuple[str, ...], x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    check_dtype(x[0], *dtypes)
    return x[0]


def _eval(function: Function, x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return np.asarray(function(*x))


for _name, _function in {"logical_and": np.logical_and, "logical_or": np.logical_or}.items():
    register(_name, infer=_infer_logical, evaluate=partial(_eval, _function), inputs=2, order=elementwise)
register("logical_not", infer=_infer_logical, evaluate=partial(_eval, np.logical_not), order=elementwise)
for _functions, _dtypes in ((FLOAT, ("float32",)), (SIGNED, NUMERIC), ({"bitwise_not": np.invert}, INTEGERS)):
    for _name, _function in _functions.items():
        _infer_one = partial(_infer_unary, _dtypes)
        register(_name, infer=_infer_one, evaluate=partial(_eval, _function), order=elementwise)


def _branch_dtype(dtypes: Sequence[str]) -> str:
    return "bool" if set(dtypes) == {"bool"} else operand_dtype(dtypes)


def _infer_where(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    check_dtype(x[0], "bool", name="condition")
    return Info(broadcast_shape(*(i.shape for i in x)), _branch_dtype([x[1].dtype, x[2].dtype]))


def _eval_where(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    dtype = _branch_dtype([x[1].dtype.name, x[2].dtype.name])
    return np.where(x[0], as_dtype(x[1], dtype), as_dtype(x[2], dtype))


register("where", infer=_infer_where, evaluate=_eval_where, inputs=3, order=elementwise)


def _infer_cast(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    return Info(x[0].shape, a["dtype"])


def _eval_cast(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return as_dtype(x[0], a["dtype"])


register("cast", infer=_infer_cast, evaluate=_eval_cast, order=elementwise, dtype=Attr("str", options=DTYPES))


def _infer_constant(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    return p["value"]


def _eval_constant(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return p["value"]


def _order_constant(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    return p["value"].axes


register(
    "constant",
    infer=_infer_constant,
    evaluate=_eval_constant,
    inputs=0,
    params={"value": True},
    order=_order_constant,
)


def _infer_full(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    check_scalar(a["value"], a["dtype"])
    return Info(a["shape"], a["dtype"])


def _eval_full(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return np.full(a["shape"], as_scalar(a["value"], a["dtype"]), a["dtype"])


def _order_full(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    return tuple(map(fresh, a["shape"]))


register(
    "full",
    infer=_infer_full,
    evaluate=_eval_full,
    inputs=0,
    order=_order_full,
    shape=Attr("dims"),
    value=Attr("number"),
    dtype=Attr("str", "float32", options=DTYPES),
)


def _infer_arange(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    start, end, step = a["start"], a["end"], a["step"]
    if step == 0 or (end - start) * step < 0:
        raise PQNetError(f"step: expected one that leads from {start} to {end}, got {step}")
    return Info((-((start - end) // step),), "int64")


def _eval_arange(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return np.arange(a["start"], a["end"], a["step"], dtype=np.int64)


register(
    "arange",
    infer=_infer_arange,
    evaluate=_eval_arange,
    inputs=0,
    start=Attr("dim", 0),
    end=Attr("dim"),
    step=Attr("int", 1),
)
