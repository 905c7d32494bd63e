"""Finding sums of codecs, and sparse corrections."""

from typing import Any

import numpy as np

from pqnet import _check
from pqnet.codecs import FITTERS, Additive, Fit, Packed, PackedAdditive, PackedSparse, Sparse
from pqnet.codecs.layout import FILTER_AXES, block_columns, to_blocks
from pqnet.fit.scales import check_fit, stored_floats

__all__ = ["fit_additive", "fit_sparse", "metric_of_blocks"]

ENOUGH = 1e-4  # of the error, by which a round of refits has to lower it


def fit_sparse(
    codec: Sparse,
    weight: Any,
    metric: Any = None,
    warm: Packed | None = None,
    seed: int = 0,
    *,
    row_weights: Any = None,
    threads: int | None = None,
) -> Fit:
    """Keep the weights without which the error would be largest.

    Parameters
    ----------
    codec : Sparse
    weight : array, shape (O, C, *kernel) or (O, I)
    metric : array, optional
        Second moments of the inputs, (1, 1), (I, 1, 1) or (G, I, 1, 1).
    warm, seed, threads
        Taken as other codecs do; the result does not depend on them.
    row_weights : array, shape (O,), optional

    Returns
    -------
    Fit
    """
    codec, dense, importance = check_fit(codec, weight, metric, warm, seed, row_weights)
    loss = np.square(dense.reshape(-1), dtype=np.float64)
    if importance is not None:
        loss *= importance.reshape(-1)
    places = np.sort(np.argsort(-loss, kind="stable")[: codec.count])
    values = stored_floats(dense.reshape(-1)[places], codec.value_dtype, "values", "value_dtype")
    return Fit(PackedSparse(codec, dense.shape, places, values), 0)


def fit_additive(
    codec: Additive,
    weight: Any,
    metric: Any = None,
    warm: Packed | None = None,
    seed: int = 0,
    *,
    row_weights: Any = None,
    threads: int | None = None,
) -> Fit:
    """Fit every part to what those before it left, then each again to what all others leave.

    Parameters
    ----------
    codec : Additive
    weight : array, shape (O, C, *kernel) or (O, I)
    metric : array, optional
        Second moments of the inputs for ``codec.metric_blocks(shape)``, the largest blocks of the parts, see
        `pqnet.fit.fit_pq`.
        Parts with other blocks see what of it lies within theirs.
    warm : PackedAdditive, optional
        Its parts start the fits of the parts.
    seed : int
    row_weights : array, shape (O,), optional
    threads : int, optional

    Returns
    -------
    Fit
        The error under the metric never rises from one refit to the next; ``n_iter`` counts the updates of all parts.
    """
    dense = _check.float_array(weight, "weight", ndim=FILTER_AXES)
    codec = codec.check(dense.shape)
    if warm is not None and (not isinstance(warm, PackedAdditive) or len(warm.parts) != len(codec.parts)):
        raise _check.error("warm", f"a PackedAdditive of {len(codec.parts)} parts", _check.describe(warm))
    n_inputs = int(np.prod(dense.shape[1:]))
    whole = metric is not None and np.shape(metric)[-1] == n_inputs
    have = codec.metric_blocks(dense.shape, whole=whole)
    if metric is not None:
        metric = _check.float_array(metric, "metric", ndim=(2, 3, 4))
        d, blocks = have[0], n_inputs // have[0]
        if metric.shape[-2:] != (d, d) or (metric.ndim > 2 and metric.shape[-3] != blocks):
            raise _check.error("metric", f"shape ({d}, {d}) or (..., {blocks}, {d}, {d})", f"shape {metric.shape}")
    if row_weights is not None:
        row_weights = _check.float_array(row_weights, "row_weights", shape=(len(dense),))
    wanted = [part.metric_blocks(dense.shape, whole=whole) for part in codec.parts]
    metrics = [metric_of_blocks(metric, dense.shape, have, blocks) for blocks in wanted]
    steps = 0

    def fit(i: int, target: np.ndarray, start: Packed | None) -> Packed:
        nonlocal steps
        part = codec.parts[i]
        options = {"row_weights": row_weights, "threads": threads}
        found = FITTERS[part.name](part, target, metric=metrics[i], warm=start, seed=seed + i, **options)
        steps += found.n_iter
        return found.packed

    parts: list[Packed] = []
    rest = dense
    for i in range(len(codec.parts)):
        parts.append(fit(i, rest, None if warm is None else warm.parts[i]))
        rest = rest - parts[i].decode()
    error = _loss(rest, have, metric, row_weights)
    for _ in range(codec.refits):
        before = error
        for i, part in enumerate(parts):
            target = rest + part.decode()
            found = fit(i, target, part)
            left = target - found.decode()
            now = _loss(left, have, metric, row_weights)
            if now < error:
                parts[i], rest, error = found, left, now
        if error > (1 - ENOUGH) * before:
            break
    return Fit(PackedAdditive(codec, parts), steps)


def metric_of_blocks(
    metric: np.ndarray | None, shape: tuple[int, ...], have: tuple[int, str], want: tuple[int, str]
) -> np.ndarray | None:
    """Turn a metric for blocks of one kind into one for blocks of another.

    Blocks that divide those of the metric, in the same layout or of a whole moment, get its diagonal blocks; any
    others its diagonal.
    """
    if metric is None or have == want:
        return metric
    (size, layout), (d, wanted) = have, want
    if layout == "spatial" and size == int(np.prod(shape[1:])):
        columns = block_columns(shape, wanted)
        metric, layout = metric[..., columns[:, None], columns], wanted
    if (layout == wanted or len(shape) == 2) and size % d == 0:
        cut: np.ndarray = metric.reshape(*metric.shape[:-2], size // d, d, size // d, d)
        cut = np.moveaxis(np.diagonal(cut, axis1=-4, axis2=-2), -1, -3)
        pooled: np.ndarray = cut.mean(0)
        return pooled if metric.ndim == 2 else cut.reshape(*metric.shape[:-3], -1, d, d)
    diagonal = np.diagonal(metric, axis1=-2, axis2=-1)
    if metric.ndim == 2:
        return np.diag(np.full(d, diagonal.mean(), np.float32))
    inputs = np.empty((*metric.shape[:-3], int(np.prod(shape[1:]))), np.float32)
    inputs[..., block_columns(shape, layout)] = diagonal.reshape(inputs.shape)
    blocks = inputs[..., block_columns(shape, wanted)].reshape(*inputs.shape[:-1], -1, d)
    out: np.ndarray = np.eye(d, dtype=np.float32) * blocks[..., None]
    return out


def _loss(
    rest: np.ndarray, blocks: tuple[int, str], metric: np.ndarray | None, row_weights: np.ndarray | None
) -> float:
    """Return the error of a weight that is wrong by ``rest``."""
    e = to_blocks(rest, *blocks)
    seen = e
    if metric is not None and metric.ndim == 2:
        seen = e @ metric
    elif metric is not None:
        grouped = e.reshape(metric.shape[0] if metric.ndim == 4 else 1, -1, *e.shape[1:]).swapaxes(1, 2)
        seen = np.matmul(grouped, metric).swapaxes(1, 2).reshape(e.shape)
    rows = np.einsum("omd,omd->o", seen, e, dtype=np.float64)
    return float(rows.sum() if row_weights is None else rows @ row_weights)


FITTERS[Sparse.name] = fit_sparse
FITTERS[Additive.name] = fit_additive
