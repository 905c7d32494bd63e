"""Normalisation: by stored statistics (batch_norm), or by those of each sample (layer_norm, rms_norm, group_norm)."""

from collections.abc import Mapping, Sequence

import numpy as np

from pqnet.errors import PQNetError
from pqnet.graph.axes import Axes, Tracked, cut, unify
from pqnet.graph.op import Arrays, Attr, Attrs, Info, Params, check_dtype, check_shape, register


def _check(x: Info, p: Mapping[str, Info], shape: tuple[int, ...]) -> Info:
    check_dtype(x, "float32")
    for role, info in p.items():
        check_shape(info, shape, role)
    return x


def _infer_batch(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    if not 2 <= len(x[0].shape) <= 5:
        raise PQNetError(f"expected an input of 2 to 5 axes, got shape {x[0].shape}")
    return _check(x[0], p, x[0].shape[1:2])


def _column(channels: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return one number per channel in the shape that broadcasts along axis 1 of an array."""
    return channels.reshape(-1, *(1,) * (x.ndim - 2))


def _eval_batch(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    ones, zeros = np.ones(x[0].shape[1], np.float32), np.zeros(x[0].shape[1], np.float32)
    scale = p.get("weight", ones) / np.sqrt(p.get("var", ones) + a["eps"])
    shift = p.get("bias", zeros) - p.get("mean", zeros) * scale
    out: np.ndarray = x[0] * _column(scale, x[0])
    out += _column(shift, out)
    return out


def _standardized(rows: np.ndarray, eps: float) -> np.ndarray:
    """Return the rows, along the last axis, with mean 0 and variance 1; sums are those of float64."""
    size = max(rows.shape[-1], 1)
    deviation = rows - rows.sum(-1, np.float64, keepdims=True) / size
    deviation /= np.sqrt(np.square(deviation).sum(-1, keepdims=True) / size + eps)
    return np.asarray(deviation, np.float32)


def _infer_layer(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    if not 1 <= a["axes"] <= len(x[0].shape):
        raise PQNetError(f"axes: expected 1 to {len(x[0].shape)} trailing axes, got {a['axes']}")
    return _check(x[0], p, x[0].shape[-a["axes"] :])


def _eval_layer(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    shape = x[0].shape
    leading, trailing = shape[: -a["axes"]], shape[-a["axes"] :]
    out = _standardized(x[0].reshape(*leading, int(np.prod(trailing))), a["eps"]).reshape(shape)
    if "weight" in p:
        out *= p["weight"]
    if "bias" in p:
        out += p["bias"]
    return out


def _eval_rms(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    axes = tuple(range(-a["axes"], 0))
    squares = np.square(x[0], dtype=np.float64).mean(axes, keepdims=True)
    out = np.asarray(x[0] / np.sqrt(squares + a["eps"]), np.float32)
    if "weight" in p:
        out *= p["weight"]
    return out


def _infer_group(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    shape = x[0].shape
    if len(shape) < 2:
        raise PQNetError(f"expected an input of at least 2 axes, got shape {shape}")
    if a["groups"] < 1 or shape[1] % a["groups"]:
        raise PQNetError(f"groups: expected a divisor of the {shape[1]} channels, got {a['groups']}")
    return _check(x[0], p, shape[1:2])


def _eval_group(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    shape = x[0].shape
    size = int(np.prod(shape[1:])) // a["groups"]
    out = _standardized(x[0].reshape(shape[0], a["groups"], size), a["eps"]).reshape(shape)
    if "weight" in p:
        out *= _column(p["weight"], out)
    if "bias" in p:
        out += _column(p["bias"], out)
    return out


def _order_batch(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    for param in p.values():
        unify(x[0].axes[1], param.axes[0])
    return x[0].axes


def _order_layer(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    for param in p.values():
        for axis, other in zip(x[0].axes[-a["axes"] :], param.axes, strict=True):
            unify(axis, other)
    return x[0].axes


def _order_group(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    channels = x[0].shape[1]
    if a["groups"] < channels:
        for g in range(1, a["groups"]):
            cut(x[0].axes[1], g * channels // a["groups"])
    return _order_batch(x, p, a)


_affine = {"weight": False, "bias": False}
_eps = Attr("float", 1e-5)
register(
    "batch_norm",
    infer=_infer_batch,
    evaluate=_eval_batch,
    params=_affine | {"mean": False, "var": False},
    order=_order_batch,
    eps=_eps,
)
register(
    "layer_norm",
    infer=_infer_layer,
    evaluate=_eval_layer,
    params=_affine,
    order=_order_layer,
    axes=Attr("int", 1),
    eps=_eps,
)
register(
    "rms_norm",
    infer=_infer_layer,
    evaluate=_eval_rms,
    params={"weight": False},
    order=_order_layer,
    axes=Attr("int", 1),
    eps=_eps,
)
register(
    "group_norm",
    infer=_infer_group,
    evaluate=_eval_group,
    params=_affine,
    order=_order_group,
    groups=Attr("int"),
    eps=_eps,
)
