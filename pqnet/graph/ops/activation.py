"""Activation functions and softmax; in float32 throughout, with PyTorch's meaning at infinities and NaN."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pqnet.errors import PQNetError
from pqnet.graph.axes import Axes, Tracked, unify
from pqnet.graph.op import INTEGERS, Arrays, Attr, Attrs, Info, Params, check_axes, check_dtype, check_shape, register
from pqnet.graph.ops.elementwise import as_dtype, elementwise, erf, operand_dtype

# Functions of several passes run over pieces of this many elements, whose temporaries stay in the cache.
PIECE = 1 << 15


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)), of negative x in the form that does not overflow."""
    y = np.asarray(-np.abs(x))
    np.exp(y, out=y)
    return np.asarray(np.where(x < 0, y, 1) / (1 + y))


def _gate(x: np.ndarray) -> np.ndarray:
    """Return the hard sigmoid."""
    y: np.ndarray = np.asarray(np.clip(x + np.float32(3), 0, 6))
    y /= 6
    return y


def _silu(x: np.ndarray) -> np.ndarray:
    return np.asarray(x * _sigmoid(x))


def _mish(x: np.ndarray) -> np.ndarray:
    e = np.exp(np.minimum(x, 20))  # tanh(log(1 + e)) = n / (n + 2) with n = e (e + 2); 1 in float32 from x = 20 on
    n = e * (e + 2)
    return np.asarray(x * (n / (n + 2)))


def _two_sided(x: np.ndarray, negative: Callable[[np.ndarray], Any]) -> np.ndarray:
    """Return x where it is positive and ``negative(x)`` elsewhere, for a function that is 0 at 0."""
    return np.asarray(np.maximum(x, 0) + negative(np.minimum(x, 0)))


def _gelu(x: np.ndarray, approximate: str) -> np.ndarray:
    if approximate == "tanh":
        y = np.asarray(np.square(x) * 0.044715)
        y += 1
        y *= x
        y *= math.sqrt(2 / math.pi)
        np.tanh(y, out=y)
    else:
        y = erf(np.asarray(x * math.sqrt(0.5)))
    y += 1
    y *= x
    y *= 0.5
    return y


def _softplus(x: np.ndarray, beta: float, threshold: float) -> np.ndarray:
    scaled = np.asarray(x * beta)
    y = np.asarray(np.log1p(np.exp(np.minimum(scaled, threshold))) / beta)
    np.copyto(y, x, where=scaled > threshold)
    return y


FUNCTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "relu": (lambda x: np.maximum(x, 0), {}),
    "sigmoid": (_sigmoid, {}),
    "tanh": (np.tanh, {}),
    "silu": (_silu, {}),
    "hardsigmoid": (_gate, {}),
    "hardswish": (lambda x: x * _gate(x), {}),
    "mish": (_mish, {}),
    "leaky_relu": (
        lambda x, negative_slope: _two_sided(x, lambda y: y * negative_slope),
        {"negative_slope": Attr("float", 0.01)},
    ),
    "elu": (lambda x, alpha: _two_sided(x, lambda y: np.expm1(y) * alpha), {"alpha": Attr("float", 1.0)}),
    "gelu": (_gelu, {"approximate": Attr("str", "none", options=("none", "tanh"))}),
    "softplus": (_softplus, {"beta": Attr("float", 1.0), "threshold": Attr("float", 20.0)}),
}


def _infer_float(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    check_dtype(x[0], "float32")
    return x[0]


def _infer_softplus(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    if not math.isfinite(a["beta"]):
        raise PQNetError(f"beta: expected a finite number, got {a['beta']}")
    return _infer_float(x, p, a)


def _eval_function(function: Callable[..., Any], x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    if x[0].size <= PIECE:
        return np.asarray(function(x[0], **a))
    flat = x[0].reshape(-1)
    out = np.empty_like(flat)
    for start in range(0, flat.size, PIECE):
        out[start : start + PIECE] = function(flat[start : start + PIECE], **a)
    return out.reshape(x[0].shape)


for _name, (_function, _attrs) in FUNCTIONS.items():
    _infer = _infer_softplus if _function is _softplus else _infer_float
    register(_name, infer=_infer, evaluate=partial(_eval_function, _function), order=elementwise, **_attrs)


def _infer_clamp(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    if a["min"] is None and a["max"] is None:
        raise PQNetError("expected min or max, got neither")
    return Info(x[0].shape, operand_dtype([x[0].dtype], [a["min"], a["max"]]))


def _eval_clamp(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    dtype = operand_dtype([x[0].dtype.name], [a["min"], a["max"]])
    low, high = a["min"], a["max"]
    if dtype in INTEGERS:  # a limit that the dtype does not hold is its own
        limits = np.iinfo(dtype)
        low, high = (None if end is None else min(max(int(end), limits.min), limits.max) for end in (low, high))
    return np.asarray(np.clip(as_dtype(x[0], dtype), low, high))


register(
    "clamp",
    infer=_infer_clamp,
    evaluate=_eval_clamp,
    order=elementwise,
    min=Attr("number", None),
    max=Attr("number", None),
)


def _infer_prelu(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    check_dtype(x[0], "float32")
    shared = p["weight"].shape == (1,) or len(x[0].shape) < 2
    check_shape(p["weight"], (1,) if shared else x[0].shape[1:2], "weight")
    return x[0]


def _eval_prelu(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    slope = p["weight"].reshape(-1, *(1,) * (x[0].ndim - 2))
    return _two_sided(x[0], lambda y: y * slope).reshape(x[0].shape)


def _order_prelu(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    if p["weight"].shape != (1,):
        unify(x[0].axes[1], p["weight"].axes[0])
    return x[0].axes


register("prelu", infer=_infer_prelu, evaluate=_eval_prelu, params={"weight": True}, order=_order_prelu)


def _infer_softmax(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    check_dtype(x[0], "float32")
    check_axes([a["axis"]], len(x[0].shape))
    return x[0]


def _shifted(x: np.ndarray, axis: int) -> np.ndarray:
    y: np.ndarray = x - x.max(axis, keepdims=True, initial=-np.inf)
    return y


def _eval_softmax(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    y = _shifted(x[0], a["axis"])
    np.exp(y, out=y)
    y /= y.sum(a["axis"], keepdims=True)
    return y


def _eval_log_softmax(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    y = _shifted(x[0], a["axis"])
    y -= np.log(np.exp(y).sum(a["axis"], keepdims=True))
    return y


register("softmax", infer=_infer_softmax, evaluate=_eval_softmax, order=elementwise, axis=Attr("int"))
register("log_softmax", infer=_infer_softmax, evaluate=_eval_log_softmax, order=elementwise, axis=Attr("int"))
