"""Operations on each element: arithmetic, comparison, logic, choice, conversion; and values made from nothing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pqnet.errors import PQNetError
from pqnet.graph.axes import Axes, Tracked, broadcast, fresh
from pqnet.graph.op import DTYPES, Arrays, Attr, Attrs, Info, Params, broadcast_shape, check_dtype, register

__all__ = ["as_scalar", "elementwise", "erf", "operand_dtype"]

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
    if np.result_type(base, exponent) != np.int64:
        return base**exponent  # the operator, unlike np.power, squares for exponent 2
    power = base ** np.abs(exponent)
    return np.where((exponent < 0) & (np.abs(base) != 1), 0, power)


def _sign(x: np.ndarray) -> Any:
    return np.subtract(x > 0, x < 0, dtype=x.dtype)  # 0 for NaN, as in PyTorch


ARITHMETIC: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "pow": _power,
    "maximum": np.maximum,
    "minimum": np.minimum,
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
    "log": np.log,
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
NUMERIC: dict[str, Function] = {"neg": np.negative, "abs": np.abs, "sign": _sign}


def operand_dtype(dtypes: Iterable[str], scalars: Iterable[float | None] = ()) -> str:
    """Return the dtype in which operands meet: float32 if one is or a scalar is no int64; bool counts as int64."""
    whole = all(s is None or (s.is_integer() and abs(s) < 2.0**63) for s in scalars)
    return "int64" if whole and "float32" not in dtypes else "float32"


def as_scalar(value: float, dtype: str) -> int | float:
    """Return a scalar as the Python number that leaves an array of ``dtype`` in its dtype."""
    return int(value) if dtype == "int64" else value


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
    operands: list[Any] = [array.astype(dtype, copy=False) for array in x]
    if a["scalar"] is not None:
        operands.insert(0 if a.get("reverse") else 1, as_scalar(a["scalar"], dtype))
    return np.asarray(function(*operands))


for _name, _function in (ARITHMETIC | COMPARISONS).items():
    _meet = "float32" if _name == "div" else None
    _reverse: dict[str, Any] = {"reverse": Attr("bool", False)} if _name in ARITHMETIC else {}
    register(
        _name,
        infer=partial(_infer_binary, _meet, "bool" if _name in COMPARISONS else None),
        evaluate=partial(_eval_binary, _function, _meet),
        inputs=(1, 2),
        order=elementwise,
        scalar=Attr("float", None),
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
for _functions, _dtypes in ((FLOAT, ("float32",)), (NUMERIC, ("float32", "int64"))):
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
    return np.where(x[0], x[1].astype(dtype, copy=False), x[2].astype(dtype, copy=False))


register("where", infer=_infer_where, evaluate=_eval_where, inputs=3, order=elementwise)


def _infer_cast(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    return Info(x[0].shape, a["dtype"])


def _eval_cast(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return x[0].astype(a["dtype"], copy=False)


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
    if a["dtype"] == "int64" and operand_dtype((), [a["value"]]) != "int64":
        raise PQNetError(f"value: expected a whole number for int64, got {a['value']}")
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
    value=Attr("float"),
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
