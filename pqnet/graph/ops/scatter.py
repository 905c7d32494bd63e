"""Writing at computed places."""

from collections.abc import Mapping, Sequence

import numpy as np

from pqnet._check import index_array
from pqnet.errors import PQNetError
from pqnet.graph.op import Arrays, Attr, Attrs, Info, Params, check_axes, check_dtype, register

REDUCTIONS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _infer(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    target, ids, updates = x
    check_axes([a["axis"]], len(target.shape))
    check_dtype(ids, "int64", name="ids")
    check_dtype(updates, target.dtype, name="updates")
    if ids.shape != updates.shape or len(ids.shape) != len(target.shape):
        raise PQNetError(
            f"ids: expected one for each update, of {len(target.shape)} axes, got {ids.shape} and {updates.shape}"
        )
    fits = (n <= m for i, (n, m) in enumerate(zip(ids.shape, target.shape, strict=True)) if i != a["axis"])
    if not all(fits):
        raise PQNetError(f"ids: expected no more than {target.shape} but along axis {a['axis']}, got {ids.shape}")
    return target


def _evaluate(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    ids = index_array(x[1], "ids", below=x[0].shape[a["axis"]])
    places = [np.arange(n).reshape(-1, *(1,) * (ids.ndim - 1 - i)) for i, n in enumerate(ids.shape)]
    places[a["axis"]] = ids
    out = x[0].copy()
    if a["reduction"] == "none":
        out[tuple(places)] = x[2]  # of several updates of one element, the last stays
    else:
        REDUCTIONS[a["reduction"]].at(out, tuple(places), x[2])
    return out


# out[i, ids[i, j], k] = updates[i, j, k] along axis 1, for example; the other elements are those of the first input.
register(
    "scatter",
    infer=_infer,
    evaluate=_evaluate,
    inputs=3,
    axis=Attr("int"),
    reduction=Attr("str", "none", options=("none", *REDUCTIONS)),
)
