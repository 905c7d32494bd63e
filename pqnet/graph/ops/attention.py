"""Scaled dot-product attention."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pqnet.errors import PQNetError
from pqnet.graph.axes import Axes, Tracked, broadcast, fix, unify
from pqnet.graph.op import Arrays, Attr, Attrs, Info, Params, broadcast_shape, check_dtype, register


def _infer(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    q, k, v = (info.shape for info in x[:3])
    for info in x[:3]:
        check_dtype(info, "float32")
    if min(len(q), len(k), len(v)) < 2 or q[-1] != k[-1] or k[-2] != v[-2] or not q[-1]:
        raise PQNetError(
            f"expected queries (..., L, E), keys (..., S, E) and values (..., S, V) with E > 0, got {q}, {k}, {v}"
        )
    batch = broadcast_shape(q[:-2], k[:-2], v[:-2])
    if len(x) == 4:
        check_dtype(x[3], "bool", "float32", name="mask")
        scores = (*batch, q[-2], k[-2])
        if broadcast_shape(scores, x[3].shape) != scores:
            raise PQNetError(f"mask: expected a shape that broadcasts to {scores}, got {x[3].shape}")
        if a["causal"]:
            raise PQNetError("causal: expected False together with a mask; put it into the mask")
    return Info((*batch, q[-2], v[-1]))


def _evaluate(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    q, k, v = x[:3]
    scale = 1 / math.sqrt(q.shape[-1]) if a["scale"] is None else a["scale"]
    scores: np.ndarray = (q * scale) @ k.swapaxes(-1, -2)
    mask: np.ndarray | None = x[3] if len(x) == 4 else None
    if a["causal"]:
        mask = np.tri(*scores.shape[-2:], dtype=np.bool)
    if mask is not None:
        batch = np.broadcast_shapes(scores.shape, mask.shape)  # the mask may have a batch that only the values have
        scores = np.broadcast_to(scores, batch).copy() if batch != scores.shape else scores
        if mask.dtype == np.float32:
            scores += mask
        else:
            np.copyto(scores, -np.inf, where=~mask)
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    scores -= np.where(top == -np.inf, 0, top)  # a query that may attend to nothing gets zeros, as in PyTorch
    np.exp(scores, out=scores)
    total = scores.sum(-1, keepdims=True)
    out = scores @ v
    out /= np.where(total == 0, 1, total)
    return out


def _order(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    q, k, v = x[:3]
    unify(q.axes[-1], k.axes[-1])
    keys = unify(k.axes[-2], v.axes[-2])
    if a["causal"]:
        fix(keys)
        fix(q.axes[-2])
    batch = broadcast([Tracked(t.shape[:-2], t.axes[:-2]) for t in x[:3]])
    scores = (*batch, q.axes[-2], keys)
    if len(x) == 4:
        size = (*broadcast_shape(*(t.shape[:-2] for t in x[:3])), q.shape[-2], k.shape[-2])
        scores = broadcast([Tracked(size, scores), x[3]])
    return (*scores[:-1], v.axes[-1])


register(
    "attention",
    infer=_infer,
    evaluate=_evaluate,
    inputs=(3, 4),
    order=_order,
    scale=Attr("float", None),
    causal=Attr("bool", False),
)
