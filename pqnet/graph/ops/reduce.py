"""Reductions over axes, positions of extremes, the largest elements in order, running sums and products.

Floats are added and multiplied in float64 and rounded once, integers in int64, where they wrap.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pqnet.errors import PQNetError
from pqnet.graph.axes import Axes, Tracked, fix, fresh
from pqnet.graph.op import DTYPES, NUMERIC, Arrays, Attr, Attrs, Info, Params, check_axes, check_dtype, register

# Which dtypes a reduction takes; max and min keep them, sums and products of integers and booleans are int64.
ACCEPTED = {
    "mean": ("float32",),
    "var": ("float32",),
    "sum": DTYPES,
    "prod": DTYPES,
    "max": DTYPES,
    "min": DTYPES,
    "argmax": DTYPES,
    "argmin": DTYPES,
}


def _infer(name: str, x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    shape, axes = x[0].shape, _axes(a)
    check_dtype(x[0], *ACCEPTED[name])
    check_axes(axes, len(shape))
    if not axes:
        raise PQNetError("axes: expected at least one, got none")
    if name not in ("mean", "var", "sum", "prod") and 0 in (shape[axis] for axis in axes):
        raise PQNetError(f"expected an input with elements along axes {axes}, got shape {shape}")
    kept = tuple(1 if i in axes else s for i, s in enumerate(shape) if a["keepdims"] or i not in axes)
    if name.startswith("arg") or (name in ("sum", "prod") and x[0].dtype != "float32"):
        return Info(kept, "int64")
    return Info(kept, x[0].dtype)


def _axes(a: Attrs) -> tuple[int, ...]:
    return (a["axis"],) if "axis" in a else a["axes"]


def _count(x: np.ndarray, axes: tuple[int, ...]) -> int:
    return math.prod(x.shape[axis] for axis in axes)


def _divided(total: np.ndarray, count: int) -> Any:
    return total / np.float64(count)  # a NumPy number, so that nothing over zero is NaN and no error


def _wide(x: np.ndarray) -> type[np.generic]:
    """Return the dtype in which elements are added up."""
    return np.float64 if x.dtype == np.float32 else np.int64


def _rounded(total: Any) -> np.ndarray:
    """Return what was added up in the dtype of results."""
    return np.asarray(total, np.float32 if total.dtype == np.float64 else np.int64)


def _eval_mean(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    total = x[0].sum(a["axes"], np.float64, keepdims=a["keepdims"])
    return _rounded(_divided(total, _count(x[0], a["axes"])))


def _eval_var(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    count = _count(x[0], a["axes"])
    deviation = x[0] - _divided(x[0].sum(a["axes"], np.float64, keepdims=True), count)
    np.square(deviation, out=deviation)
    return _rounded(_divided(deviation.sum(a["axes"], keepdims=a["keepdims"]), max(count - a["correction"], 0)))


def _eval_ufunc(ufunc: np.ufunc, x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return np.asarray(ufunc.reduce(x[0], a["axes"], keepdims=a["keepdims"]))


def _eval_sum(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return _rounded(x[0].sum(a["axes"], _wide(x[0]), keepdims=a["keepdims"]))


def _eval_prod(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return _rounded(x[0].prod(a["axes"], _wide(x[0]), keepdims=a["keepdims"]))


def _eval_position(function: Any, x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return np.asarray(function(x[0], a["axis"], keepdims=a["keepdims"]))


def _order(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    axes = _axes(a)
    if "axis" in a:  # the result is a position
        fix(x[0].axes[a["axis"]])
    kept = enumerate(x[0].axes)
    return tuple(fresh(1) if i in axes else axis for i, axis in kept if a["keepdims"] or i not in axes)


_attrs: dict[str, Any] = {"axes": Attr("ints"), "keepdims": Attr("bool", False)}
_evaluates: dict[str, Callable[..., np.ndarray]] = {
    "mean": _eval_mean,
    "sum": _eval_sum,
    "prod": _eval_prod,
    "max": partial(_eval_ufunc, np.maximum),
    "min": partial(_eval_ufunc, np.minimum),
}
for _name, _evaluate in _evaluates.items():
    register(_name, infer=partial(_infer, _name), evaluate=_evaluate, order=_order, **_attrs)
register(
    "var",
    infer=partial(_infer, "var"),
    evaluate=_eval_var,
    order=_order,
    **_attrs,
    correction=Attr("int", 1),
)
for _name, _function in {"argmax": np.argmax, "argmin": np.argmin}.items():
    register(
        _name,
        infer=partial(_infer, _name),
        evaluate=partial(_eval_position, _function),
        order=_order,
        axis=Attr("int"),
        keepdims=Attr("bool", False),
    )


def _infer_running(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    check_axes([a["axis"]], len(x[0].shape))
    return Info(x[0].shape, "float32" if x[0].dtype == "float32" else "int64")


def _eval_running(ufunc: np.ufunc, x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return _rounded(ufunc.accumulate(x[0], a["axis"], _wide(x[0])))


def _order_running(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    fix(x[0].axes[a["axis"]])
    return x[0].axes


for _name, _ufunc in {"cumsum": np.add, "cumprod": np.multiply}.items():
    register(
        _name,
        infer=_infer_running,
        evaluate=partial(_eval_running, _ufunc),
        order=_order_running,
        axis=Attr("int"),
    )


def _infer_topk(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> tuple[Info, Info]:
    axis, k, shape = a["axis"], a["k"], x[0].shape
    check_dtype(x[0], *NUMERIC)
    check_axes([axis], len(shape))
    if not 0 <= k <= shape[axis]:
        raise PQNetError(f"k: expected 0 to {shape[axis]}, the elements along axis {axis}, got {k}")
    taken = (*shape[:axis], k, *shape[axis + 1 :])
    return Info(taken, x[0].dtype), Info(taken, "int64")


def _eval_topk(x: Arrays, p: Params, a: Attrs) -> tuple[np.ndarray, np.ndarray]:
    """Take NaN for the largest number, as PyTorch does; of equal elements, the first come first."""
    axis, last = a["axis"], x[0].shape[a["axis"]] - 1
    if a["largest"]:
        order = np.flip(last - np.argsort(np.flip(x[0], axis), axis, kind="stable"), axis)
    else:
        order = np.argsort(x[0], axis, kind="stable")
    places = np.take(order, np.arange(a["k"]), axis).astype(np.int64)
    return np.take_along_axis(x[0], places, axis), places


def _order_topk(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> list[Axes]:
    axis = a["axis"]
    fix(x[0].axes[axis])
    return [(*x[0].axes[:axis], fresh(a["k"], fixed=True), *x[0].axes[axis + 1 :]) for _ in range(2)]


register(
    "topk",
    infer=_infer_topk,
    evaluate=_eval_topk,
    order=_order_topk,
    axis=Attr("int"),
    k=Attr("dim"),
    largest=Attr("bool", True),
)
