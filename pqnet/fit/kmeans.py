"""Weighted k-means and nearest codewords under a quadratic metric, on plain arrays."""

from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from pqnet import _check
from pqnet._threads import blas_limit, default_threads, parallel_kernels
from pqnet.codecs.packing import code_dtype
from pqnet.errors import PQNetError
from pqnet.fit.tiles import Codewords, Tiles, aligned, group_tiles, worth_tiles
from pqnet.kernels import kmeans as kernels
from pqnet.kernels import kmeans_rows as rows
from pqnet.kernels.kmeans_search import ALL_GROUP, ALL_TILE
from pqnet.kernels.simd import WIDTH

__all__ = ["KMeansResult", "assign", "weighted_kmeans"]

INITS = ("k-means++", "random")
LARGEST = 1e37  # of half distances: far enough from the end of float32
SERIAL_WORK = 2_000_000  # multiplications below which waking other threads costs more than it saves
BOUND_WORK = 50_000_000  # multiplications of an iteration, and iterations, below which sorting costs more than it saves
BOUND_STEPS = 4
SAMPLE = 1 << 11  # blocks that show whether all lie far from zero
TOLERANCE = 1e-5  # stop when an iteration lowers the error by less than this share
CANCELLED = 1e-7  # share of the blocks' norm below which an error is no longer a difference of sums


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
    """Checked blocks with their weights and metric."""

    def __init__(
        self, blocks: Any, weights: Any, metric: Any, groups: Any, threads: int | None, *, sample: bool = False
    ) -> None:
        self.threads = default_threads(threads)
        self.v = _blocks(blocks)
        n, d = self.v.shape
        self.sampled = sample and n > 4 * SAMPLE  # `nearest` then looks at the others
        self.chunk = max(1024, -(-n // 256))
        self.n_chunks = -(-n // self.chunk)
        mean, self.variance, largest = self._survey(
            np.ascontiguousarray(self.v[:: n // SAMPLE]) if self.sampled else self.v
        )
        # Distances do not change when all is moved, but float32 loses them if blocks lie far from zero.
        far = bool(4 * self.variance.sum() < mean @ mean < np.inf)
        self.shift = mean if far else np.zeros(d)
        if far:
            self.v = (self.v - mean).astype(np.float32)
            largest = float(np.abs(self.v).max())
        self._take_metric(metric, groups)
        self.even_weights = True
        if weights is not None:
            self.w = _check.float_array(weights, "weights", shape=(n,))
            if self.w.min() < 0 or self.w.max() <= 0:
                raise _check.error("weights", "non-negative numbers, not all zero", f"minimum {self.w.min()}")
            # Whether sums of weights are exact in float64, so that what leaves a sum leaves nothing behind.
            self.even_weights = n * float(self.w.max()) < 2.0**29 * float(self.w[self.w > 0].min())
        self._take_largest(largest)

    def _take_largest(self, largest: float) -> None:
        if not np.isfinite(largest):
            _check.float_array(self.v, "blocks")  # raises
        # At most this much times the largest number of a codeword is y . c of any block, for every group.
        d = self.v.shape[1]
        spread = np.abs(self.metric).sum((1, 2), dtype=np.float64) if self.metric.size else np.array([float(d)])
        self.steepest = spread * largest
        self.check_range("blocks", float(self.steepest.max()) * largest)

    def _survey(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Return means and variances of the coordinates and the largest magnitude, NaN where one is."""
        n, d = v.shape
        period = 16 * d
        chunk = max(64, -(-n // (16 * 64)))
        shape = (-(-n // (16 * chunk)), period)
        sums, squares, largest = np.empty(shape), np.empty(shape), np.empty(shape, np.float32)
        scratch = aligned(shape[0], 2 * period)
        with self.kernels(4 * v.size):
            rows.survey(v.reshape(-1), period, chunk, scratch, sums, squares, largest)
        mean, square = (a.reshape(-1, d).sum(0) / n for a in (sums, squares))
        with np.errstate(over="ignore", invalid="ignore"):  # numbers out of range, which check_range tells
            variance = np.maximum(square - mean * mean, 0.0)
        return mean, variance, float(largest.max())

    def _take_metric(self, metric: Any, groups: Any) -> None:
        n, d = self.v.shape
        self.n_groups, self.group = 1, np.zeros(1, np.int32)
        if metric is None:
            if groups is not None:
                raise _check.error("groups", "None when metric is None", "an array", "pass metric of shape (M, D, D)")
            self.metric = np.empty((0, d, d), np.float32)
            self.metric64 = np.eye(d).reshape(1, d * d)
            return
        metric = _check.float_array(metric, "metric", ndim=(2, 3))
        if metric.shape[-2:] != (d, d):
            raise _check.error("metric", f"shape ({d}, {d}) or (M, {d}, {d})", f"shape {metric.shape}")
        if (metric.ndim == 3) != (groups is not None):
            raise _check.error(
                "groups",
                "one entry a block exactly when metric has shape (M, D, D)",
                f"metric of shape {metric.shape} and groups {'given' if groups is not None else 'None'}",
            )
        _check_metric(metric)
        self.metric = metric.reshape(-1, d, d)
        self.metric64 = self.metric.reshape(-1, d * d).astype(np.float64)
        self.n_groups = len(self.metric)
        if groups is not None:
            self.group = _check.index_array(groups, "groups", below=self.n_groups, shape=(n,)).astype(np.int32)

    def check_range(self, name: str, largest: float) -> None:
        """Raise unless distances stay finite in float32: the kernel that compares them relies on it."""
        if not largest <= LARGEST:
            raise _check.error(
                name, f"numbers whose products under the metric stay below {LARGEST:g}", f"{largest:.3g}", "scale them"
            )

    def kernels(self, work: int) -> AbstractContextManager[None]:
        """Enter the kernels with the threads that ``work`` multiplications are worth."""
        return parallel_kernels(self.threads if work > SERIAL_WORK else 1)

    @cached_property
    def w(self) -> np.ndarray:
        """Return the weights."""
        return np.ones(len(self.v), np.float32)  # unless they were given

    @property
    def group_of_block(self) -> np.ndarray:
        """Return the group of every block."""
        return self.group if len(self.group) == len(self.v) else np.zeros(len(self.v), np.int32)

    def codewords(self, codebook: np.ndarray) -> Codewords:
        """Return the codebook with c' G_m c / 2 for every group and codeword."""
        c = codebook.astype(np.float64)
        d = c.shape[1]
        if self.n_groups == 1:
            offset = 0.5 * ((c @ self.metric64.reshape(d, d)) * c).sum(1)[None]
        else:
            offset = 0.5 * (self.metric64 @ (c[:, :, None] * c[:, None, :]).reshape(len(c), d * d).T)
        steepest = float(self.steepest.max())
        self.check_range("codebook", max(float(np.abs(offset).max()), steepest * float(np.abs(codebook).max())))
        return Codewords(codebook, offset.astype(np.float32))

    def nearest(self, codebook: np.ndarray) -> np.ndarray:
        """Return the nearest codeword of every block, int32."""
        n, d = self.v.shape
        now, codes = self.codewords(codebook), np.empty(n, np.int32)
        if not worth_tiles(self.group, self.n_groups, ALL_TILE):
            _Rows(self).nearest(now, codes)
            return codes
        slots, tile_group = np.empty(0, np.int32), np.zeros(-(-n // ALL_TILE), np.int32)
        if self.n_groups > 1:
            slots, tile_group = group_tiles(self.group, self.n_groups, np.arange(n, dtype=np.int32), ALL_TILE)
        chunk = max(8, -(-len(tile_group) // 64))
        shape = (-(-len(tile_group) // chunk), ALL_TILE)
        scratch = (
            aligned(shape[0], 2, d * ALL_TILE),
            np.empty(shape),
            np.empty(shape, np.uintp),
            np.empty(shape, np.int32),
        )
        seen = np.empty((shape[0], 3 * WIDTH), np.float32)
        ids, groups = np.arange(now.padded, dtype=np.int32), -(-now.k // ALL_GROUP)
        words = now.interleaved(), now.offset, ids, groups
        with self.kernels(self.v.size * now.padded):
            flat = self.v.reshape(-1)
            kernels.nearest_in_tiles(flat, slots, tile_group, self.metric, *words, chunk, *scratch, codes, seen)
        if self.sampled:
            self._take_largest(float(np.abs(seen).max()))
            self.check_range("codebook", float(self.steepest.max()) * now.largest)
        return codes

    def errors(self, codebook: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the weighted squared error of every block, and their sum."""
        n, d = self.v.shape
        errors, partial = np.empty(n, np.float32), np.empty(self.n_chunks)
        scratch = np.empty((self.n_chunks, 2, d), np.float32)
        group = self.group_of_block if self.metric.size else self.group
        with self.kernels(self.v.size * (d if self.metric.size else 4)):
            rows.block_errors(self.v, self.w, group, self.metric, codebook, codes, self.chunk, scratch, errors, partial)
        return errors, float(partial.sum())


class _Store(Protocol):
    """Blocks with their codes and the sums these make: `Tiles`, or `_Rows` where groups are too small for tiles."""

    norm: float  # sum w v' G v

    def step(self, codebook: np.ndarray) -> None: ...
    def totals(self) -> tuple[np.ndarray, np.ndarray]: ...
    def to_rows(self) -> np.ndarray: ...
    def take(self, codes: np.ndarray) -> None: ...


class _Rows:
    """Blocks in their own order, for metrics of so few blocks each that tiles would be mostly empty."""

    def __init__(self, problem: _Problem) -> None:
        self.problem = problem
        n = len(problem.v)
        self.codes, self.group = np.empty(n, np.int32), problem.group_of_block
        self.y, self.half_norm = _transformed(problem, problem.v, self.group)
        self.norm = float(2 * (problem.w * self.half_norm.astype(np.float64)).sum())

    def nearest(self, now: Codewords, codes: np.ndarray) -> None:
        """Fill ``codes``."""
        problem = self.problem
        scratch, half = np.empty((problem.n_chunks, now.padded), np.float32), np.empty(len(codes), np.float32)
        by_coordinate, bits = np.ascontiguousarray(-now.words.T), scratch.view(np.int32)
        with problem.kernels(problem.v.size * now.padded):
            rows.nearest_row_by_row(
                self.y, self.half_norm, self.group, by_coordinate, now.offset, problem.chunk, scratch, bits, codes, half
            )

    def step(self, codebook: np.ndarray) -> None:
        """E-step, see `Tiles`."""
        self.k = len(codebook)
        self.nearest(self.problem.codewords(codebook), self.codes)

    def totals(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of w G v and the weight of every (group, codeword), see `Tiles`."""
        problem, k = self.problem, self.k
        n, d = problem.v.shape
        chunk = max(problem.chunk, -(-n // 64))
        sums, mass = np.empty((-(-n // chunk), k, d)), np.empty((-(-n // chunk), k))
        with problem.kernels(self.y.size):
            rows.sum_by_code(self.y, problem.w, self.codes, chunk, sums, mass)
        m = problem.n_groups
        share = np.bincount(self.group.astype(np.int64) * k + self.codes, problem.w, m * k).reshape(m, k)
        return sums.sum(0), share

    def to_rows(self) -> np.ndarray:
        """Return the codes."""
        return self.codes.copy()

    def take(self, codes: np.ndarray) -> None:
        """Set other codes."""
        self.codes[:] = codes


def _blocks(value: Any) -> np.ndarray:
    ready = isinstance(value, np.ndarray) and value.dtype == np.float32 and value.ndim == 2
    if ready and value.size and value.flags.c_contiguous:
        return np.asarray(value)  # whether all are finite shows in the survey
    return _check.float_array(value, "blocks", ndim=2)


def _transformed(problem: _Problem, v: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return y = G v and v' G v / 2 of some blocks."""
    if not problem.metric.size:
        return v, 0.5 * np.einsum("nd,nd->n", v, v)
    y, half_norm = np.empty_like(v), np.empty(len(v), np.float32)
    with problem.kernels(v.size * v.shape[1]):
        rows.transform_rows(v, group, problem.metric, problem.chunk, y, half_norm)
    return y, half_norm


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
    problem = _Problem(blocks, None, metric, groups, threads, sample=groups is None)
    words = _check.float_array(codebook, "codebook", shape=(None, problem.v.shape[1]))
    with blas_limit(1):
        codes = problem.nearest((words - problem.shift).astype(np.float32))
    return codes.astype(code_dtype(len(words)))


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
    k = len(codebook)
    store: _Store = _Rows(problem)
    if worth_tiles(problem.group, problem.n_groups):
        bounds = problem.v.size * k > BOUND_WORK and n_iter >= BOUND_STEPS
        store = Tiles(problem, codebook, bounds=bounds)
    best, lowest, updates = codebook, np.inf, 0
    for step in range(n_iter + 1):
        store.step(codebook)
        sums = _Sums(problem, store)
        # In float64: float32 half distances could let the error creep up near convergence.
        error = sums.error(codebook)
        if error <= CANCELLED * store.norm:
            error = problem.errors(codebook, store.to_rows())[1]
        if error > lowest:
            break
        gain = lowest - error
        best, lowest, updates = codebook, error, step
        filled = False
        if step < n_iter and not sums.mass.all():
            codes = store.to_rows()
            filled = _fill_empty(problem, codebook, codes)
            if filled:
                store.take(codes)
                sums = _Sums(problem, store)
        if step == n_iter or (not filled and gain <= TOLERANCE * error):
            break
        codebook = sums.update(codebook)
    codes = store.to_rows() if best is codebook else problem.nearest(best)
    return KMeansResult(best, codes.astype(code_dtype(k)), problem.errors(best, codes)[1], updates)


class _Sums:
    """What error and M-step need of the blocks: sums over the members of every codeword."""

    def __init__(self, problem: _Problem, store: _Store) -> None:
        self.right, share = store.totals()
        self.mass, self.norm = share.sum(0), store.norm
        k, d = self.right.shape
        self.shared = problem.n_groups == 1
        if self.shared:
            self.metric = problem.metric64.reshape(d, d)
        else:
            self.left = (share.T @ problem.metric64).reshape(k, d, d)

    def error(self, codebook: np.ndarray) -> float:
        """Return sum w (v - c)' G (v - c), up to what cancels."""
        c = codebook.astype(np.float64)
        if self.shared:
            moved = c @ self.metric
            return float(self.norm + (moved * (self.mass[:, None] * c - 2 * self.right)).sum())
        moved = np.einsum("kij,kj->ki", self.left, c)
        return float(self.norm + (c * (moved - 2 * self.right)).sum())

    def update(self, codebook: np.ndarray) -> np.ndarray:
        """M-step: the codeword that minimises the error of its members; one without weight stays where it is."""
        used = self.mass > 0
        out = codebook.astype(np.float64)
        if self.shared:
            out[used] = self.right[used] / self.mass[used, None]
            return out.astype(np.float32)
        # Directions that no member's metric sees stay at the old codeword: solve for the step, damped as rounding.
        d = out.shape[1]
        scale = np.trace(self.left, axis1=1, axis2=2) / d
        used &= scale > 0
        step = self.right[used] - np.einsum("kij,kj->ki", self.left[used], out[used])
        damped = self.left[used] + 1e-7 * scale[used, None, None] * np.eye(d)
        out[used] += np.linalg.solve(damped, step[:, :, None])[:, :, 0]
        return out.astype(np.float32)


def _initial(problem: _Problem, k: int, init: Any, rng: np.random.Generator) -> np.ndarray:
    if init is None or isinstance(init, str):
        if _check.choice("k-means++" if init is None else init, "init", INITS) == "k-means++":
            picked = _plus_plus(problem, k, rng)
            return np.ascontiguousarray(problem.v[picked])
        candidates = np.flatnonzero(problem.w > 0)
        return np.ascontiguousarray(problem.v[rng.choice(candidates, k, replace=len(candidates) < k)])
    words = _check.float_array(init, "init", shape=(k, problem.v.shape[1]))
    return np.asarray(words - problem.shift, np.float32)


def _plus_plus(problem: _Problem, k: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ seeding: every codeword is a block drawn with probability proportional to its weighted error.

    Of many blocks a random 64 for each codeword are looked at: more do not give better seeds.
    """
    n, sample = len(problem.v), 64 * k
    pick = np.sort(rng.choice(n, sample, replace=False)) if n > sample else np.arange(n)
    v, w = problem.v[pick], problem.w[pick]
    group = problem.group_of_block[pick]
    y, half_norm = _transformed(problem, v, group)
    mass = w.astype(np.float64)
    if not mass.any():  # all the weight is on few blocks outside the sample
        return rng.choice(n, k, p=problem.w.astype(np.float64) / problem.w.sum(dtype=np.float64))
    n, chunk = len(pick), problem.chunk
    least, sums = np.full(n, np.inf, np.float32), np.empty(-(-n // chunk))
    seeds, draws = np.empty(k, np.int64), rng.random(k)
    seeds[0] = min(int(np.searchsorted(np.cumsum(mass), draws[0] * mass.sum(), side="right")), n - 1)
    with problem.kernels(y.size):
        for i in range(1, k):
            word = v[seeds[i - 1]]
            offset = problem.codewords(word[None]).offset[:, 0].copy()
            rows.shrink_distances(y, half_norm, group, w, word, offset, chunk, least, sums)
            edges = np.cumsum(sums)
            if edges[-1] <= 0:  # fewer distinct blocks than codewords
                seeds[i:] = rng.integers(0, n, k - i)
                break
            target = draws[i] * edges[-1]
            c = min(int(np.searchsorted(edges, target, side="right")), len(edges) - 1)
            part = np.cumsum(least[c * chunk : (c + 1) * chunk], dtype=np.float64)
            inside = int(np.searchsorted(part, target - (edges[c - 1] if c else 0.0), side="right"))
            seeds[i] = c * chunk + min(inside, len(part) - 1)
    return pick[seeds]


def _fill_empty(problem: _Problem, codebook: np.ndarray, codes: np.ndarray) -> bool:
    """Give every codeword without weight the block of largest error, in one pass; return whether any was given."""
    k = len(codebook)
    empty = np.flatnonzero(np.bincount(codes, problem.w, k) <= 0)
    if not len(empty):
        return False
    members = np.bincount(codes[problem.w > 0], minlength=k)
    error, _ = problem.errors(codebook, codes)
    filled = 0
    for row in np.argsort(-error, kind="stable"):
        if filled == len(empty) or error[row] <= 0:
            break
        if members[codes[row]] > 1:  # a cluster keeps its last member
            members[codes[row]] -= 1
            codes[row] = empty[filled]
            filled += 1
    return filled > 0
