"""Weighted k-means and nearest codewords under a quadratic metric, on plain arrays."""

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from pqnet import _check
from pqnet._threads import blas_limit, default_threads, parallel_kernels
from pqnet.codecs.packing import code_dtype
from pqnet.errors import PQNetError
from pqnet.kernels import kmeans as kernels

__all__ = ["KMeansResult", "assign", "weighted_kmeans"]

INITS = ("k-means++", "random")
LANES = 16  # codebooks are padded to whole vectors
FAR = np.float32(3.3e38)  # offset of a codeword that pads a codebook: never the nearest
LARGEST = 1e37  # of half distances: far enough from the end of float32
SERIAL_WORK = 2_000_000  # multiplications below which waking other threads costs more than it saves
TOLERANCE = 1e-5  # stop when an iteration lowers the error by less than this share


class KMeansResult(NamedTuple):
    """What `weighted_kmeans` found.

    Attributes
    ----------
    codebook : float32 ndarray, shape (K, D)
    codes : unsigned integer ndarray, shape (N,)
        The nearest codeword of every block under the metric.
    error : float
        ``sum_n w_n (v_n - c)' G (v_n - c)``.
    n_iter : int
        Codebook updates made.
    """

    codebook: np.ndarray
    codes: np.ndarray
    error: float
    n_iter: int


class _Problem:
    """Checked blocks with their metric, and the buffers that every iteration reuses."""

    def __init__(self, blocks: Any, weights: Any, metric: Any, groups: Any, threads: int | None) -> None:
        self.v = _check.float_array(blocks, "blocks", ndim=2)
        n, d = self.v.shape
        # Distances do not change when all is moved, but float32 loses them if blocks lie far from zero.
        mean = self.v.mean(0, dtype=np.float64)
        far = np.square(mean).sum() > 4 * self.v.var(0, dtype=np.float64).sum()
        self.shift = mean if far else np.zeros(d)
        if far:
            self.v = (self.v - mean).astype(np.float32)
        self.threads = default_threads(threads)
        if metric is None:
            if groups is not None:
                raise _check.error("groups", "None when metric is None", "an array", "pass metric of shape (M, D, D)")
            self.metric = np.eye(d, dtype=np.float32)[None]
        else:
            self.metric = _check.float_array(metric, "metric", ndim=(2, 3))
            if self.metric.shape[-2:] != (d, d):
                raise _check.error("metric", f"shape ({d}, {d}) or (M, {d}, {d})", f"shape {self.metric.shape}")
            if (self.metric.ndim == 3) != (groups is not None):
                raise _check.error(
                    "groups",
                    "one entry a block exactly when metric has shape (M, D, D)",
                    f"metric of shape {self.metric.shape} and groups {'given' if groups is not None else 'None'}",
                )
            _check_metric(self.metric)
            self.metric = self.metric.reshape(-1, d, d)
        m = len(self.metric)
        self.group = (
            np.zeros(n, np.int32)
            if groups is None
            else _check.index_array(groups, "groups", below=m, shape=(n,)).astype(np.int32)
        )
        self.w = np.ones(n, np.float32)
        if weights is not None:
            self.w = _check.float_array(weights, "weights", shape=(n,))
            if self.w.min() < 0 or self.w.max() <= 0:
                raise _check.error("weights", "non-negative numbers, not all zero", f"minimum {self.w.min()}")
        self.chunk = max(1024, -(-n // 256))
        self.n_chunks = -(-n // self.chunk)
        if metric is None:
            self.y, self.half_norm = self.v, 0.5 * np.einsum("nd,nd->n", self.v, self.v)
        else:
            self.y, self.half_norm = np.empty_like(self.v), np.empty(n, np.float32)
            with self.kernels(n * d * d):
                kernels.transform_rows(self.v, self.group, self.metric, self.chunk, self.y, self.half_norm)
        self.steepest = d * float(np.abs(self.y).max())
        self.check_range("blocks", self.steepest * float(np.abs(self.v).max()))
        self.codes, self.half = np.empty(n, np.int32), np.empty(n, np.float32)
        self.tiles = _Tiles(self.y, self.group, m) if _Tiles.worth(self.group, m) else None

    def check_range(self, name: str, largest: float) -> None:
        """Raise unless distances stay finite in float32: the kernel that compares them relies on it."""
        if not largest <= LARGEST:
            raise _check.error(
                name, f"numbers whose products under the metric stay below {LARGEST:g}", f"{largest:.3g}", "scale them"
            )

    def kernels(self, work: int) -> AbstractContextManager[None]:
        """Enter the kernels with the threads that ``work`` multiplications are worth."""
        return parallel_kernels(self.threads if work > SERIAL_WORK else 1)

    def offsets(self, codebook: np.ndarray) -> np.ndarray:
        """Return c' G_m c / 2 for every group and codeword, float32 (M, K)."""
        c = codebook.astype(np.float64)
        d = c.shape[1]
        outer = (c[:, :, None] * c[:, None, :]).reshape(len(c), d * d)
        offset = 0.5 * (self.metric.reshape(-1, d * d).astype(np.float64) @ outer.T)
        self.check_range("codebook", max(float(np.abs(offset).max()), self.steepest * float(np.abs(codebook).max())))
        return offset.astype(np.float32)

    def nearest(self, codebook: np.ndarray) -> None:
        """E-step: fill ``codes`` and ``half``."""
        k, d = codebook.shape
        kp = -(-k // LANES) * LANES
        words = np.zeros((kp, d), np.float32)
        words[:k] = codebook
        offset = np.full((len(self.metric), kp), FAR, np.float32)
        offset[:, :k] = self.offsets(codebook)
        with self.kernels(self.v.size * kp):
            if self.tiles is None:
                scratch = np.empty((self.n_chunks, kp), np.float32)
                by_coordinate, bits = np.ascontiguousarray(words.T), scratch.view(np.int32)
                out = self.codes, self.half
                kernels.nearest_row_by_row(
                    self.y, self.half_norm, self.group, by_coordinate, offset, self.chunk, scratch, bits, *out
                )
            else:
                self.tiles.nearest(words, offset, self.half_norm, self.codes, self.half)

    def error(self, codebook: np.ndarray) -> float:
        """Return the weighted squared error of the current codes."""
        partial, scratch = np.empty(self.n_chunks), np.empty((self.n_chunks, 2, self.v.shape[1]), np.float32)
        out = scratch, partial
        with self.kernels(self.v.size * self.v.shape[1]):
            kernels.weighted_error(self.v, self.w, self.group, self.metric, codebook, self.codes, self.chunk, *out)
        return float(partial.sum())


class _Tiles:
    """Blocks in the order of `kernels.nearest_in_tiles`: tiles of blocks with one metric, coordinate by coordinate."""

    def __init__(self, y: np.ndarray, group: np.ndarray, n_groups: int) -> None:
        counts = np.bincount(group, minlength=n_groups)
        per_group = -(-counts // kernels.TILE)
        self.group = np.repeat(np.arange(n_groups, dtype=np.int32), per_group)
        order = np.argsort(group, kind="stable").astype(np.int32)
        start = (np.cumsum(per_group) - per_group) * kernels.TILE - (np.cumsum(counts) - counts)
        slots = np.full(len(self.group) * kernels.TILE, -1, np.int32)
        slots[np.arange(len(group)) + start[group[order]]] = order
        self.rows = slots.reshape(-1, kernels.TILE)
        self.x = np.empty((len(self.group), y.shape[1], kernels.TILE), np.float32)
        # An empty slot holds some block's numbers; its result is not stored.
        np.copyto(self.x, y.take(np.maximum(slots, 0), 0).reshape(*self.rows.shape, -1).transpose(0, 2, 1))
        self.chunk = max(32, -(-len(self.group) // 256))
        shape = (-(-len(self.group) // self.chunk), kernels.TILE)
        self.scratch = np.empty(shape, np.float32), np.empty(shape, np.int32)

    @staticmethod
    def worth(group: np.ndarray, n_groups: int) -> bool:
        """Return whether tiles would be at least half full."""
        tiles = (-(-np.bincount(group, minlength=n_groups) // kernels.TILE)).sum()
        return bool(tiles * kernels.TILE <= max(2 * len(group), kernels.TILE))

    def nearest(
        self, words: np.ndarray, offset: np.ndarray, half_norm: np.ndarray, codes: np.ndarray, half: np.ndarray
    ) -> None:
        """Fill ``codes`` and ``half`` for codewords (KP, D) with their offsets (M, KP), KP a multiple of 4."""
        kp, d = words.shape
        interleaved = np.ascontiguousarray(-words.reshape(kp // 4, 4, d).transpose(0, 2, 1)).reshape(-1)
        kernels.nearest_in_tiles(
            self.x.reshape(-1),
            self.group,
            self.rows,
            half_norm,
            interleaved,
            d,
            offset,
            self.chunk,
            *self.scratch,
            codes,
            half,
        )


def _check_metric(metric: np.ndarray) -> None:
    symmetric = np.abs(metric - np.swapaxes(metric, -1, -2)).max() <= 1e-5 * np.abs(metric).max()
    if not symmetric or np.linalg.eigvalsh(metric.astype(np.float64)).min() < -1e-5 * np.abs(metric).max():
        raise PQNetError(
            "metric: expected symmetric positive semi-definite matrices, got one that is not; "
            "a second moment x.T @ x is"
        )


def assign(
    blocks: Any, codebook: Any, *, metric: Any = None, groups: Any = None, threads: int | None = None
) -> np.ndarray:
    """Return the nearest codeword of every block.

    Parameters
    ----------
    blocks : array, shape (N, D)
    codebook : array, shape (K, D)
    metric : array, shape (D, D) or (M, D, D), optional
        Symmetric positive semi-definite G of the squared distance ``(v - c)' G (v - c)``; None is Euclidean.
    groups : integer array, shape (N,), optional
        Which of the M matrices measures a block.
    threads : int, optional
        Default: all cores. The result does not depend on it.

    Returns
    -------
    unsigned integer ndarray, shape (N,)
        Distances are computed in float32; codewords that tie within its rounding may be returned for one another.

    Raises
    ------
    PQNetError
        Wrong shape or dtype, NaN, a metric that is not symmetric positive semi-definite.

    Examples
    --------
    >>> import pqnet
    >>> pqnet.assign([[0.0, 1.0], [4.0, 4.0]], [[0.0, 0.0], [5.0, 5.0]]).tolist()
    [0, 1]
    """
    problem = _Problem(blocks, None, metric, groups, threads)
    words = _check.float_array(codebook, "codebook", shape=(None, problem.v.shape[1]))
    problem.nearest((words - problem.shift).astype(np.float32))
    return problem.codes.astype(code_dtype(len(words)))


def weighted_kmeans(
    blocks: Any,
    k: int,
    *,
    weights: Any = None,
    metric: Any = None,
    groups: Any = None,
    init: Any = None,
    n_iter: int = 100,
    seed: int = 0,
    threads: int | None = None,
) -> KMeansResult:
    """Find K codewords that minimise ``sum_n w_n (v_n - c_{a(n)})' G_{g(n)} (v_n - c_{a(n)})``.

    Lloyd's algorithm: the nearest codeword under the metric, then ``c = (sum w G)^-1 sum w G v`` over the
    members, which is their mean when all share one metric ("And the Bit Goes Down": G is the second moment of the
    activations). The error never rises. Codewords without members move, all at once, to the blocks of largest error.

    Parameters
    ----------
    blocks : array, shape (N, D)
    k : int
        Codewords, at most N.
    weights : array, shape (N,), optional
        Non-negative weight of each block; default 1.
    metric : array, shape (D, D) or (M, D, D), optional
        Symmetric positive semi-definite matrices; None is Euclidean.
    groups : integer array, shape (N,), optional
        Which of the M matrices measures a block; needed with a metric of shape (M, D, D).
    init : {None, "k-means++", "random"} or array of shape (K, D)
        First codebook; None is k-means++ under the metric.
    n_iter : int
        Largest number of codebook updates; fewer are made when one lowers the error by less than 0.001 %.
    seed : int
    threads : int, optional
        Default: all cores. The result does not depend on it.

    Returns
    -------
    KMeansResult

    Raises
    ------
    PQNetError
        Wrong shape or dtype, NaN, k > N, negative weights, a metric that is not symmetric positive semi-definite.

    Examples
    --------
    >>> import numpy as np, pqnet
    >>> blocks = np.random.default_rng(0).standard_normal((1000, 4))
    >>> result = pqnet.weighted_kmeans(blocks, 16)
    >>> result.codebook.shape, result.codes.shape
    ((16, 4), (1000,))
    """
    problem = _Problem(blocks, weights, metric, groups, threads)
    k = _check.integer(k, "k", 1, len(problem.v))
    n_iter = _check.integer(n_iter, "n_iter", 0)
    rng = np.random.default_rng(_check.rng_seed(seed))
    with blas_limit(1):  # small products: threads would cost more, and could change the bits
        found = _lloyd(problem, _initial(problem, k, init, rng), n_iter)
    return found._replace(codebook=(found.codebook + problem.shift).astype(np.float32))


def _lloyd(problem: _Problem, codebook: np.ndarray, n_iter: int) -> KMeansResult:
    best = KMeansResult(codebook, problem.codes, np.inf, 0)
    for step in range(n_iter + 1):
        problem.nearest(codebook)
        # Exact, because float32 half distances could let the error creep up near convergence.
        error = problem.error(codebook)
        if error > best.error:
            break
        gain = best.error - error
        best = KMeansResult(codebook, problem.codes.astype(code_dtype(len(codebook))), error, step)
        if step == n_iter or (not _fill_empty(problem, len(codebook)) and gain <= TOLERANCE * error):
            break
        codebook = _update(problem, codebook)
    return best


def _initial(problem: _Problem, k: int, init: Any, rng: np.random.Generator) -> np.ndarray:
    if init is None or isinstance(init, str):
        if _check.choice("k-means++" if init is None else init, "init", INITS) == "k-means++":
            rows = _plus_plus(problem, k, rng)
            return np.ascontiguousarray(problem.v[rows])
        candidates = np.flatnonzero(problem.w > 0)
        return np.ascontiguousarray(problem.v[rng.choice(candidates, k, replace=len(candidates) < k)])
    words = _check.float_array(init, "init", shape=(k, problem.v.shape[1]))
    return (words - problem.shift).astype(np.float32)


def _plus_plus(problem: _Problem, k: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ seeding: every codeword is a block drawn with probability proportional to its weighted error.

    Of many blocks a random 64 for each codeword are looked at: more do not give better seeds.
    """
    n, sample = len(problem.v), 64 * k
    pick = np.sort(rng.choice(n, sample, replace=False)) if n > sample else np.arange(n)
    y, half_norm, group, w = (a[pick] for a in (problem.y, problem.half_norm, problem.group, problem.w))
    mass = w.astype(np.float64)
    if not mass.any():  # all the weight is on few blocks outside the sample
        return rng.choice(n, k, p=problem.w.astype(np.float64) / problem.w.sum(dtype=np.float64))
    n, chunk = len(pick), problem.chunk
    least, sums = np.full(n, np.inf, np.float32), np.empty(-(-n // chunk))
    rows, draws = np.empty(k, np.int64), rng.random(k)
    rows[0] = min(int(np.searchsorted(np.cumsum(mass), draws[0] * mass.sum(), side="right")), n - 1)
    with problem.kernels(y.size):
        for i in range(1, k):
            word = problem.v[pick[rows[i - 1]]]
            offset = problem.offsets(word[None])[:, 0]
            kernels.shrink_distances(y, half_norm, group, w, word, offset, chunk, least, sums)
            edges = np.cumsum(sums)
            if edges[-1] <= 0:  # fewer distinct blocks than codewords
                rows[i:] = rng.integers(0, n, k - i)
                break
            target = draws[i] * edges[-1]
            c = min(int(np.searchsorted(edges, target, side="right")), len(edges) - 1)
            part = np.cumsum(least[c * chunk : (c + 1) * chunk], dtype=np.float64)
            inside = int(np.searchsorted(part, target - (edges[c - 1] if c else 0.0), side="right"))
            rows[i] = c * chunk + min(inside, len(part) - 1)
    return pick[rows]


def _fill_empty(problem: _Problem, k: int) -> bool:
    """Give every codeword without weight the block of largest error, in one pass; return whether any was given."""
    mass = np.bincount(problem.codes, problem.w, k)
    empty = np.flatnonzero(mass <= 0)
    if not len(empty):
        return False
    members = np.bincount(problem.codes[problem.w > 0], minlength=k)
    error = problem.w * problem.half
    filled = 0
    for row in np.argsort(-error, kind="stable"):
        if filled == len(empty) or error[row] <= 0:
            break
        if members[problem.codes[row]] > 1:  # a cluster keeps its last member
            members[problem.codes[row]] -= 1
            problem.codes[row], problem.half[row] = empty[filled], 0.0
            filled += 1
    return filled > 0


def _update(problem: _Problem, codebook: np.ndarray) -> np.ndarray:
    """M-step: the codeword that minimises the error of its members; one without weight stays where it is."""
    k, d = codebook.shape
    shared = len(problem.metric) == 1
    chunk = max(problem.chunk, -(-len(problem.v) // 64))
    n_chunks = -(-len(problem.v) // chunk)
    sums, mass = np.empty((n_chunks, k, d)), np.empty((n_chunks, k))
    rows = problem.v if shared else problem.y
    with problem.kernels(rows.size):
        kernels.sum_by_code(rows, problem.w, problem.codes, chunk, sums, mass)
    right, total = sums.sum(0), mass.sum(0)
    used = total > 0
    out = codebook.astype(np.float64)
    if shared:
        out[used] = right[used] / total[used, None]
        return out.astype(np.float32)
    m = len(problem.metric)
    share = np.bincount(problem.codes.astype(np.int64) * m + problem.group, problem.w, k * m).reshape(k, m)
    left = (share @ problem.metric.reshape(m, d * d).astype(np.float64)).reshape(k, d, d)
    # Directions that no member's metric sees stay at the old codeword: solve for the step, damped at rounding level.
    scale = np.trace(left, axis1=1, axis2=2) / d
    used &= scale > 0
    step = right[used] - np.einsum("kij,kj->ki", left[used], out[used])
    damped = left[used] + 1e-7 * scale[used, None, None] * np.eye(d)
    out[used] += np.linalg.solve(damped, step[:, :, None])[:, :, 0]
    return out.astype(np.float32)
