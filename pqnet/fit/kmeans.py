"""Weighted k-means and nearest codewords under a quadratic metric, on plain arrays."""

from typing import Any, NamedTuple, Protocol

import numpy as np

from pqnet import _check
from pqnet._progress import tick
from pqnet._threads import blas_limit
from pqnet.codecs.packing import code_dtype
from pqnet.fit.problem import Problem, Rows
from pqnet.fit.tiles import Tiles, worth_tiles
from pqnet.kernels.fit import kmeans_rows as rows

__all__ = ["KMeansResult", "assign", "weighted_kmeans"]

INITS = ("k-means++", "random")
BOUND_WORK = 50_000_000  # multiplications of an iteration, and iterations, below which sorting costs more than it saves
BOUND_STEPS = 4
TOLERANCE = 1e-5  # stop when an iteration lowers the error by less than this share
SEED_WORK = 64  # blocks for each codeword that k-means++ looks at: fewer blocks are looked at several times
CANCELLED = 1e-5  # share of the blocks' norm below which an error is no longer a difference of sums


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


class _Store(Protocol):
    """Blocks with their codes and the sums these make: `Tiles`, or `Rows` where groups are too small for tiles."""

    norm: float  # sum w v' G v

    def step(self, codebook: np.ndarray) -> None: ...
    def totals(self) -> tuple[np.ndarray, np.ndarray]: ...
    def to_rows(self) -> np.ndarray: ...
    def take(self, codes: np.ndarray) -> None: ...


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
        Distances are computed in float32, and in float64 where float32 does not tell: that of the codeword returned
        is at most 1 % larger than the least.

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
    with blas_limit(1):
        problem = Problem(blocks, None, metric, groups, threads, sample=groups is None)
        words = _check.float_array(codebook, "codebook", shape=(None, problem.v.shape[1]))
        codes = problem.nearest(problem.inside(words))
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
        First codebook; None is k-means++ under the metric, greedy where there are fewer than 32 blocks a codeword.
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
    with blas_limit(1):
        problem = Problem(blocks, weights, metric, groups, threads)
        k = _check.integer(k, "k", 1, len(problem.v))
        n_iter = _check.integer(n_iter, "n_iter", 0)
        rng = np.random.default_rng(_check.rng_seed(seed))
        found = _lloyd(problem, _initial(problem, k, init, rng), n_iter)
        return _given_back(problem, found)


def _given_back(problem: Problem, found: KMeansResult) -> KMeansResult:
    """Return what was found for blocks as they were given."""
    codebook = problem.outside(found.codebook)
    words = problem.inside(codebook)
    if not np.array_equal(words, found.codebook):  # far from zero float32 rounds codewords
        codes = problem.nearest(words)
        error = problem.errors(words.astype(np.float32), codes)[1]
        found = found._replace(codes=codes.astype(found.codes.dtype), error=error)
    return found._replace(codebook=codebook, error=found.error / problem.unit**2)


def _lloyd(problem: Problem, codebook: np.ndarray, n_iter: int) -> KMeansResult:
    k = len(codebook)
    store: _Store = Rows(problem)
    if worth_tiles(problem.group, problem.n_groups):
        bounds = problem.v.size * k > BOUND_WORK and n_iter >= BOUND_STEPS
        store = Tiles(problem, codebook, bounds=bounds)
    best, lowest, updates = codebook, np.inf, 0
    for step in range(n_iter + 1):
        tick("k-means", step, n_iter)
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

    def __init__(self, problem: Problem, store: _Store) -> None:
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


def _initial(problem: Problem, k: int, init: Any, rng: np.random.Generator) -> np.ndarray:
    if init is None or isinstance(init, str):
        if _check.choice("k-means++" if init is None else init, "init", INITS) == "k-means++":
            picked = _plus_plus(problem, k, rng)
            return np.ascontiguousarray(problem.v[picked])
        candidates = np.flatnonzero(problem.w > 0)
        return np.ascontiguousarray(problem.v[rng.choice(candidates, k, replace=len(candidates) < k)])
    words = problem.inside(_check.float_array(init, "init", shape=(k, problem.v.shape[1])))
    return words.astype(np.float32)


def _plus_plus(problem: Problem, k: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ seeding: every codeword is a block drawn with probability proportional to its weighted error.

    Of many blocks a random 64 for each codeword are looked at: more do not give better seeds. Of few blocks several are
    drawn for a codeword and the one that lowers the error most is taken ("greedy k-means++"): that many codewords for
    the blocks would else be up to twice as far from the best.
    """
    n, sample = len(problem.v), SEED_WORK * k
    pick = np.sort(rng.choice(n, sample, replace=False)) if n > sample else np.arange(n)
    v, w = problem.v[pick], problem.w[pick]
    group = problem.group_of_block[pick]
    y, half_norm = problem.transformed(v, group)
    if not w.any():  # all the weight is on few blocks outside the sample
        return rng.choice(n, k, p=problem.w.astype(np.float64) / problem.w.sum(dtype=np.float64))
    tries = max(1, min(2 + int(np.log(k)), sample // len(pick)))
    seeds, draws = np.empty(k, np.int64), rng.random((k, tries))
    d, chunks = v.shape[1], -(-len(pick) // rows.SEED_CHUNK)
    least, half = np.empty((3, len(pick)), np.float32), np.empty(rows.SEED_CHUNK, np.float32)
    scratch = least, half, np.empty(problem.n_groups), np.empty((3, chunks)), np.empty(d)
    blocks = v, np.ascontiguousarray(y.T), half_norm, group, w, problem.metric64.reshape(-1, d, d)
    found = rows.draw_seeds(*blocks, draws, *scratch, seeds)
    seeds[found:] = rng.integers(0, len(pick), k - found)  # fewer distinct blocks than codewords
    return pick[seeds]


def _fill_empty(problem: Problem, codebook: np.ndarray, codes: np.ndarray) -> bool:
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
