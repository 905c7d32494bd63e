"""Finding the codes of one weight for the PQ codec."""

import math
from typing import Any

import numpy as np

from pqnet import _check
from pqnet._threads import default_threads
from pqnet.codecs import FITTERS, PQ, Fit, Packed, PackedPQ
from pqnet.codecs.layout import FILTER_AXES, to_blocks
from pqnet.codecs.pq import Integers
from pqnet.fit.annealed import annealed_kmeans
from pqnet.fit.descent import SecondOrder
from pqnet.fit.error import measured
from pqnet.fit.kmeans import KMeansResult, assign, weighted_kmeans
from pqnet.fit.scales import best_scales, stored_floats

__all__ = ["EFFORTS", "fit_pq"]

SWEEPS = 12  # at most, of codes and codebook in turn
# Rounds of these with noise on the codewords, and multiplications that they may take in a layer, for each effort that a
# user may ask for. 2e10 take some seconds; layers of a million weights and more take longer.
EFFORTS = {"low": (0, 0.0), "normal": (10, 2e10), "high": (40, math.inf)}


def fit_pq(
    codec: PQ,
    weight: Any,
    metric: Any = None,
    warm: Packed | None = None,
    seed: int = 0,
    *,
    row_weights: Any = None,
    init: str | None = None,
    annealed: bool = False,
    n_iter: int = 100,
    effort: str = "normal",
    threads: int | None = None,
) -> Fit:
    """Product-quantize a weight: k-means over its blocks, codebook rounded as stored, blocks assigned once more.

    Under whole second moments k-means is the start of a search that sees how the errors of blocks add up: codes are
    chosen anew block position after block position, then the codebook, in turn, then again with noise on the codewords
    (not with ``warm``), of which the better is kept, see `SecondOrder`.

    Parameters
    ----------
    codec : PQ
    weight : array, shape (O, C, *kernel) or (O, I)
        In filter form, see `pqnet.codecs.layout`.
    metric : array, optional
        Second moments of the inputs in the order of the codec's layout: (D, D) shared by all blocks, (M, D, D) one for
        each block position, (G, M, D, D) one for each position and convolution group, or the whole of all positions
        together: (G, 1, Kin, Kin), symmetric positive definite. None is Euclidean.
    warm : PackedPQ, optional
        Its codebook is the first one of k-means; it must have the same K and D. Under whole second moments, a weight
        of the same shape and layout starts from its codes instead of from k-means, and the error never rises.
    seed : int
    row_weights : array, shape (O,), optional
        Weight of each output (of each token of an embedding).
    init : {None, "k-means++", "random"}
        First codebook of k-means where ``warm`` gives none.
    annealed : bool
        Search by `annealed_kmeans` instead, without a metric, row weights or a first codebook.
    n_iter : int
        Limit on codebook updates; of annealed k-means, their number.
    effort : {"low", "normal", "high"}
        Rounds with noise under whole second moments: none; 10 in layers where they take at most 2e10 multiplications,
        which those of a million weights exceed; or 40 in all.
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
    dense = _check.float_array(weight, "weight", ndim=FILTER_AXES)
    codec = codec.check(dense.shape)
    rounds, most = EFFORTS[_check.choice(effort, "effort", tuple(EFFORTS))]
    blocks = to_blocks(dense, codec.d, codec.layout)
    o, m, d = blocks.shape
    by_block, whole = _split_metric(metric, o, m, d)
    metric, groups = by_block, None
    if metric is not None and metric.ndim == 4:
        position = np.arange(o)[:, None] // (o // len(metric)) * m + np.arange(m)
        groups, metric = position.reshape(-1), metric.reshape(-1, d, d)
    if warm is not None and (not isinstance(warm, PackedPQ) or warm.codebook.shape != (codec.k, d)):
        raise _check.error("warm", f"a PackedPQ with a codebook of shape {(codec.k, d)}", _check.describe(warm))
    block_weights = None
    if row_weights is not None:
        row_weights = _check.float_array(row_weights, "row_weights", shape=(o,))
        block_weights = np.repeat(row_weights, m)
    rows = blocks.reshape(-1, d)
    if annealed:
        for name, value in {"metric": metric, "row_weights": row_weights, "warm": warm, "init": init}.items():
            if value is not None:
                raise _check.error(name, "None with annealed=True", _check.describe(value))
        found = annealed_kmeans(rows, codec.k, n_iter=n_iter, seed=seed, threads=threads)
    elif whole is not None and warm is not None and (warm.shape, warm.codec.layout) == (dense.shape, codec.layout):
        found = KMeansResult(warm.codebook.astype(np.float32), warm.codes.reshape(-1), np.inf, 0)
    else:
        found = weighted_kmeans(
            rows,
            codec.k,
            weights=block_weights,
            metric=metric,
            groups=groups,
            init=init if warm is None else warm.codebook.astype(np.float32),
            n_iter=n_iter,
            seed=seed,
            threads=threads,
        )
    threads = default_threads(threads)
    if whole is not None:
        weights = np.ones(o, np.float32) if row_weights is None else row_weights
        rounds = rounds if warm is None else 0  # noise would lead away from what is given
        return _descend(codec, dense.shape, blocks, whole, weights, found, (rounds, most, seed), threads)
    codebook, scale = _stored(codec, found.codebook, found.codes, threads)
    codes = found.codes
    if codec.codebook_dtype != "float32":
        codes = assign(rows, codebook.astype(np.float32), metric=metric, groups=groups, threads=threads)
    packed = PackedPQ(codec, dense.shape, codes.reshape(o, m), codebook, scale)
    return measured(packed, dense, by_block, row_weights, found.n_iter, codec.layout)


def _stored(codec: PQ, codebook: np.ndarray, codes: np.ndarray, threads: int) -> tuple[np.ndarray, float | None]:
    """Return the codebook rounded as the codec stores it, and the scale of int8 codewords."""
    if codec.codebook_dtype != "int8":
        return stored_floats(codebook, codec.codebook_dtype, "codewords", "codebook_dtype"), None
    used = np.bincount(codes.reshape(-1), minlength=codec.k).repeat(codec.d)[None].astype(np.float32)
    levels = np.arange(-127.0, 128.0)
    scale = float(best_scales(codebook.reshape(1, -1), levels, used, threads=threads)[0][0])
    return Integers.nearest(codebook, scale).floats(), scale


def _split_metric(metric: Any, o: int, m: int, d: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Check a metric; return its blocks, (d, d) or (G, M, d, d), and, if that was given, the whole, (G, Kin, Kin)."""
    if metric is None:
        return None, None
    metric = _check.float_array(metric, "metric", ndim=(2, 3, 4))
    if metric.shape == (d, d):
        return metric, None
    if metric.shape == (m, d, d):
        return metric[None], None
    if metric.ndim == 4 and o % metric.shape[0] == 0:
        if metric.shape[1:] == (m, d, d):
            return metric, None
        if metric.shape[1:] == (1, m * d, m * d):
            at = np.arange(m * d).reshape(m, d)
            whole = metric[:, 0]
            return whole[:, at[:, :, None], at[:, None, :]], whole
    raise _check.error(
        "metric",
        f"shape ({d}, {d}), ({m}, {d}, {d}), (G, {m}, {d}, {d}) or (G, 1, {m * d}, {m * d})",
        f"shape {metric.shape}",
    )


def _descend(
    codec: PQ,
    shape: tuple[int, ...],
    blocks: np.ndarray,
    whole: np.ndarray,
    weights: np.ndarray,
    start: KMeansResult,
    noise: tuple[int, float, int],
    threads: int,
) -> Fit:
    """Search on from k-means under whole second moments, the last sweep with the codebook as stored."""
    o, m, _ = blocks.shape
    search = SecondOrder(blocks.reshape(o, -1), whole, start.codes.reshape(o, m), start.codebook, weights, threads)
    updates = search.search(SWEEPS, *noise)
    codebook, scale = _stored(codec, search.codebook, search.codes, threads)
    if codec.codebook_dtype != "float32":
        search.set_codebook(codebook.astype(np.float32))
        search.sweep()
    return Fit(PackedPQ(codec, shape, search.codes, codebook, scale), search.error, start.n_iter + updates)


FITTERS[PQ.name] = fit_pq
