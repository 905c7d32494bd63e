"""Finding sums of codecs."""

from typing import Any

import numpy as np

from pqnet import _check
from pqnet.codecs import FITTERS, Additive, Fit, Packed, PackedAdditive
from pqnet.codecs.layout import FILTER_AXES, block_columns
from pqnet.fit.error import measured, squared_error

__all__ = ["fit_additive", "metric_of_blocks"]

ENOUGH = 1e-4  # of the error, by which a round of refits has to lower it


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
        found = part.search(target, metrics[i], start, seed + i, row_weights=row_weights, threads=threads)
        steps += found.n_iter
        return found.packed

    parts: list[Packed] = []
    rest = dense
    for i in range(len(codec.parts)):
        parts.append(fit(i, rest, None if warm is None else warm.parts[i]))
        rest = rest - parts[i].decode()
    error = squared_error(rest, metric, row_weights, have[1])
    for _ in range(codec.refits):
        before = error
        for i, part in enumerate(parts):
            target = rest + part.decode()
            found = fit(i, target, part)
            left = target - found.decode()
            now = squared_error(left, metric, row_weights, have[1])
            if now < error:
                parts[i], rest, error = found, left, now
        if error > (1 - ENOUGH) * before:
            break
    return measured(PackedAdditive(codec, parts), dense, metric, row_weights, steps, have[1])


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


FITTERS[Additive.name] = fit_additive
