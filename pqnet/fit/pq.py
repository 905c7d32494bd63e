"""Finding the codes of one weight for the PQ codec."""

from typing import Any

import numpy as np

from pqnet import _check
from pqnet.codecs import FITTERS, PQ, Fit, Packed, PackedPQ
from pqnet.codecs.layout import to_blocks
from pqnet.codecs.pq import Integers
from pqnet.errors import PQNetError
from pqnet.fit.kmeans import assign, weighted_kmeans
from pqnet.fit.scales import best_scales

__all__ = ["fit_pq"]


def fit_pq(
    codec: PQ,
    weight: Any,
    metric: Any = None,
    warm: Packed | None = None,
    seed: int = 0,
    *,
    row_weights: Any = None,
    n_iter: int = 100,
    threads: int | None = None,
) -> Fit:
    """Product-quantize a weight: k-means over its blocks, codebook rounded as stored, blocks assigned once more.

    Parameters
    ----------
    codec : PQ
    weight : array, shape (O, C, kh, kw) or (O, I)
        In filter form, see `pqnet.codecs.layout`.
    metric : array, optional
        Second moments of the inputs in the order of the codec's layout: (D, D) shared by all blocks, (M, D, D) one for
        each block position, or (G, M, D, D) one for each position and convolution group. None is Euclidean.
    warm : PackedPQ, optional
        Its codebook is the first one of k-means; it must have the same K and D.
    seed : int
    row_weights : array, shape (O,), optional
        Weight of each output (of each token of an embedding).
    n_iter : int
        Limit on codebook updates.
    threads : int, optional
        Default: all cores. The result does not depend on it.

    Returns
    -------
    Fit
        The packed weight and the number of codebook updates.

    Raises
    ------
    ConfigError
        Blocks that do not tile the weight, K > blocks.
    PQNetError
        Wrong shape or dtype, NaN.
    """
    dense = _check.float_array(weight, "weight", ndim=(2, 4))
    codec = codec.check(dense.shape)
    blocks = to_blocks(dense, codec.d, codec.layout)
    o, m, d = blocks.shape
    groups = None
    if metric is not None:
        metric = _check.float_array(metric, "metric", ndim=(2, 3, 4))
        if metric.ndim > 2:
            n_groups = metric.shape[0] if metric.ndim == 4 else 1
            if metric.shape[-3:] != (m, d, d) or o % n_groups:
                raise _check.error(
                    "metric", f"shape ({d}, {d}), ({m}, {d}, {d}) or (G, {m}, {d}, {d})", f"shape {metric.shape}"
                )
            position = np.arange(o)[:, None] // (o // n_groups) * m + np.arange(m)
            groups, metric = position.reshape(-1), metric.reshape(-1, d, d)
    if warm is not None and (not isinstance(warm, PackedPQ) or warm.codebook.shape != (codec.k, d)):
        raise _check.error("warm", f"a PackedPQ with a codebook of shape {(codec.k, d)}", _check.describe(warm))
    if row_weights is not None:
        row_weights = np.repeat(_check.float_array(row_weights, "row_weights", shape=(o,)), m)
    rows = blocks.reshape(-1, d)
    found = weighted_kmeans(
        rows,
        codec.k,
        weights=row_weights,
        metric=metric,
        groups=groups,
        init=None if warm is None else warm.codebook.astype(np.float32),
        n_iter=n_iter,
        seed=seed,
        threads=threads,
    )
    codebook, codes, scale = found.codebook, found.codes, None
    if codec.codebook_dtype == "float16":
        codebook = _to_half(codebook)
    elif codec.codebook_dtype == "int8":
        used = np.bincount(codes.reshape(-1), minlength=codec.k).repeat(d)
        levels = np.arange(-127.0, 128.0)
        scale = float(
            best_scales(codebook.reshape(1, -1), levels, used[None].astype(np.float32), threads=threads)[0][0]
        )
        codebook = Integers.nearest(codebook, scale).floats()
    if codec.codebook_dtype != "float32":
        codes = assign(rows, codebook.astype(np.float32), metric=metric, groups=groups, threads=threads)
    return Fit(PackedPQ(codec, dense.shape, codes.reshape(o, m), codebook, scale), found.n_iter)


def _to_half(codebook: np.ndarray) -> np.ndarray:
    largest = float(np.abs(codebook).max())
    if largest > float(np.finfo(np.float16).max):
        raise PQNetError(
            f"weight: expected codewords within float16's 65504, got {largest:.3g}; use codebook_dtype='float32'"
        )
    return codebook.astype(np.float16)


FITTERS[PQ.name] = fit_pq
