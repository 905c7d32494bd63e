"""Products with weights and with each other: linear, matmul, and rows of a table: embedding."""

from collections.abc import Mapping, Sequence

import numpy as np

from pqnet._check import index_array
from pqnet.errors import PQNetError
from pqnet.graph.axes import Axes, Tracked, broadcast, fix, unify
from pqnet.graph.layers import WeightOp, rows_of_axis
from pqnet.graph.op import Arrays, Attrs, Info, Params, broadcast_shape, check_dtype, check_shape, register


def _weight_shape(p: Mapping[str, Info]) -> tuple[int, int]:
    weight = p["weight"]
    if len(weight.shape) != 2 or weight.dtype != "float32":
        raise PQNetError(f"weight: expected float32 of 2 axes, got {weight.dtype} of shape {weight.shape}")
    if min(weight.shape) < 1:
        raise PQNetError(f"weight: expected at least one number, got shape {weight.shape}")
    return weight.shape[0], weight.shape[1]


def _infer_linear(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    outputs, inputs = _weight_shape(p)
    check_dtype(x[0], "float32")
    if x[0].shape[-1:] != (inputs,):
        raise PQNetError(f"expected an input whose last axis has size {inputs}, got shape {x[0].shape}")
    check_shape(p.get("bias"), (outputs,), "bias")
    return Info((*x[0].shape[:-1], outputs))


def _eval_linear(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    weight = p["weight"]
    rows = x[0].reshape(int(np.prod(x[0].shape[:-1])), weight.shape[1])  # one product, not one for each leading index
    out = rows @ weight.T
    if "bias" in p:
        out += p["bias"]
    return out.reshape(*x[0].shape[:-1], weight.shape[0])


def _order_linear(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    outputs, inputs = p["weight"].axes
    unify(x[0].axes[-1], inputs)
    if "bias" in p:
        unify(outputs, p["bias"].axes[0])
    return (*x[0].axes[:-1], outputs)


register(
    "linear",
    infer=_infer_linear,
    evaluate=_eval_linear,
    params={"weight": True, "bias": False},
    order=_order_linear,
    weight=WeightOp("linear", rows_of_axis),
)


def _infer_matmul(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    for info in x:
        check_dtype(info, "float32")
    left, right = x[0].shape, x[1].shape
    if not left or not right:
        raise PQNetError(f"expected inputs of at least 1 axis, got shapes {left} and {right}")
    inner = right[-2] if len(right) > 1 else right[0]
    if left[-1] != inner:
        raise PQNetError(f"the inner sizes of shapes {left} and {right} differ")
    rows, columns = left[-2:-1], right[-1:] if len(right) > 1 else ()
    return Info((*broadcast_shape(left[:-2], right[:-2]), *rows, *columns))


def _eval_matmul(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    left, right = x
    if right.ndim == 2 < left.ndim:
        rows = left.reshape(int(np.prod(left.shape[:-1])), left.shape[-1])
        return (rows @ right).reshape(*left.shape[:-1], right.shape[1])
    return np.asarray(left @ right)


def _order_matmul(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    left, right = x
    unify(left.axes[-1], right.axes[max(-2, -len(right.shape))])
    batch = broadcast([Tracked(t.shape[:-2], t.axes[:-2]) for t in x])
    return (*batch, *left.axes[-2:-1], *(right.axes[-1:] if len(right.shape) > 1 else ()))


register("matmul", infer=_infer_matmul, evaluate=_eval_matmul, inputs=2, order=_order_matmul)


def _infer_embedding(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    check_dtype(x[0], "int64", name="ids")
    return Info((*x[0].shape, _weight_shape(p)[1]))


def _eval_embedding(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return np.take(p["weight"], index_array(x[0], "ids", below=p["weight"].shape[0]), axis=0)


def _order_embedding(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    fix(p["weight"].axes[0])
    return (*x[0].axes, p["weight"].axes[1])


register(
    "embedding",
    infer=_infer_embedding,
    evaluate=_eval_embedding,
    params={"weight": True},
    order=_order_embedding,
    weight=WeightOp("embedding", None),
)
