"""Normalisation: by stored statistics (batch_norm) or by the statistics of each sample (layer_norm, group_norm)."""

from collections.abc import Mapping, Sequence

import numpy as np

from pqnet.errors import PQNetError
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


def _scale_channels(x: np.ndarray, scale: np.ndarray | None, shift: np.ndarray | None) -> np.ndarray:
    """Multiply and shift the channels, axis 1, of an array in place."""
    column = (-1,) + (1,) * (x.ndim - 2)
    if scale is not None:
        x *= scale.reshape(column)
    if shift is not None:
        x += shift.reshape(column)
    return x


def _eval_batch(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    ones, zeros = np.ones(x[0].shape[1], np.float32), np.zeros(x[0].shape[1], np.float32)
    scale = p.get("weight", ones) / np.sqrt(p.get("var", ones) + a["eps"])
    shift = p.get("bias", zeros) - p.get("mean", zeros) * scale
    return _scale_channels(x[0] * scale.reshape(-1, *(1,) * (x[0].ndim - 2)), None, shift)


def _standardized(rows: np.ndarray, eps: float) -> np.ndarray:
    """Return the rows, along the last axis, with mean 0 and variance 1."""
    size = max(rows.shape[-1], 1)
    out = rows - rows.sum(-1, keepdims=True) / size
    out /= np.sqrt(np.vecdot(out, out)[..., None] / size + eps)
    return out


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
    return _scale_channels(out, p.get("weight"), p.get("bias"))


_affine = {"weight": False, "bias": False}
_eps = Attr("float", 1e-5)
register(
    "batch_norm",
    infer=_infer_batch,
    evaluate=_eval_batch,
    params=_affine | {"mean": False, "var": False},
    eps=_eps,
)
register("layer_norm", infer=_infer_layer, evaluate=_eval_layer, params=_affine, axes=Attr("int", 1), eps=_eps)
register("group_norm", infer=_infer_group, evaluate=_eval_group, params=_affine, groups=Attr("int"), eps=_eps)
