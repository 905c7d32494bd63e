"""Finding the values of the Scalar codec: k-means of numbers, on sorted values with prefix sums, and its optimum."""

import itertools
from typing import Any

import numpy as np

from pqnet import _check
from pqnet._threads import default_threads
from pqnet.codecs import FITTERS, Fit, Packed, PackedScalar, Scalar
from pqnet.codecs.packing import code_dtype
from pqnet.fit.error import measured
from pqnet.fit.kmeans import KMeansResult
from pqnet.fit.parallel import run_chunks
from pqnet.fit.scales import check_fit, nearest_codes, stored_scales
from pqnet.kernels.fit import scalar as kernels

__all__ = ["fit_scalar", "scalar_kmeans"]

METHODS = ("exact", "lloyd")
MAX_UPDATES = 1000  # of Lloyd's algorithm, which stops long before
SEEDS_PER_CODEWORD = 64  # values that k-means++ draws from
BINS = 64  # for each codeword
VALUES_FOR_BINS = 512  # for each codeword, more than which make bins worth it
SERIAL = 1 << 14  # values below which waking other threads costs more than it saves
RUNS = 8  # of values for each thread that are searched independently: some take longer than others


class _Sorted:
    """Distinct values in order with their weights, moved so that their mean is 0, and the sums before each."""

    def __init__(self, values: np.ndarray, weights: np.ndarray | None) -> None:
        mass: np.ndarray
        if weights is None:
            distinct, counts = np.unique(values, return_counts=True)
            mass = counts.astype(np.float64)
        else:
            keep = weights > 0
            distinct, where = np.unique(values[keep], return_inverse=True)
            mass = np.bincount(where, weights[keep], len(distinct))
        v = distinct.astype(np.float64)
        self.mean = float((mass * v).sum() / mass.sum())
        self.v, self.w = v - self.mean, mass
        self.mass, self.first, self.second = (
            np.concatenate([[0.0], np.cumsum(a)]) for a in (mass, mass * self.v, mass * self.v**2)
        )

    def means(self, edges: np.ndarray) -> np.ndarray:
        """Return the means of the values between edges; NaN where there are none."""
        with np.errstate(invalid="ignore"):
            means: np.ndarray = np.diff(self.first[edges]) / np.diff(self.mass[edges])
        return means

    def error(self, edges: np.ndarray) -> float:
        """Return the error of the partition with these edges around its means."""
        s, w = np.diff(self.first[edges]), np.diff(self.mass[edges])
        used = w > 0
        return float((np.diff(self.second[edges])[used] - s[used] ** 2 / w[used]).sum())

    def edges(self, codebook: np.ndarray) -> np.ndarray:
        """Return where the values nearest to each codeword begin and end; on a tie the lower codeword has them."""
        middle = 0.5 * (codebook[1:] + codebook[:-1])
        return np.concatenate([[0], np.searchsorted(self.v, middle, side="right"), [len(self.v)]])


def scalar_kmeans(
    values: Any,
    k: int,
    *,
    weights: Any = None,
    seed: int = 0,
    method: str = "exact",
    init: Any = None,
    threads: int | None = None,
) -> KMeansResult:
    """Find K numbers that minimise ``sum_n w_n (v_n - c_{a(n)})^2``.

    Parameters
    ----------
    values : array, shape (N,)
    k : int
        Codewords, at most N.
    weights : array, shape (N,), optional
        Non-negative weight of each value; default 1.
    seed : int
        Of k-means++, which begins method "lloyd".
    method : {"exact", "lloyd"}
        The global optimum by dynamic programming, O(K N log N) at most; or Lloyd's algorithm, O(K log N) an iteration
        after sorting.
    init : array, shape (K,), optional
        First codebook of method "lloyd", in any order.
    threads : int, optional
        Default: all cores. The result does not depend on it.

    Returns
    -------
    KMeansResult
        The codebook, shape (K,), ascends. With fewer than K distinct values the last one is repeated.

    Raises
    ------
    PQNetError
        Wrong shape or dtype, NaN, k > N, negative weights.

    Examples
    --------
    >>> from pqnet.fit import scalar_kmeans
    >>> scalar_kmeans([0.0, 1.0, 9.0, 11.0], 2).codebook.tolist()
    [0.5, 10.0]
    """
    v = _check.float_array(values, "values", ndim=1)
    k = _check.integer(k, "k", 1, len(v))
    rng = np.random.default_rng(_check.rng_seed(seed))
    exact = _check.choice(method, "method", METHODS) == "exact"
    w = None
    if weights is not None:
        w = _check.float_array(weights, "weights", shape=v.shape)
        if w.min() < 0 or w.max() <= 0:
            raise _check.error("weights", "non-negative numbers, not all zero", f"minimum {w.min()}")
    data, updates = _Sorted(v, w), 0
    if len(data.v) <= k:
        codebook = np.concatenate([data.v, np.full(k - len(data.v), data.v[-1])])
    elif exact:
        codebook = data.means(_best_edges(data, k, default_threads(threads)))
    elif init is not None:
        start = np.sort(_check.float_array(init, "init", shape=(k,)).astype(np.float64))
        codebook, updates = _lloyd(data, start - data.mean)
    else:
        codebook, updates = _lloyd(data, _plus_plus(data, k, rng))
    return _result((codebook + data.mean).astype(np.float32), v, w, updates)


def _result(codebook: np.ndarray, v: np.ndarray, w: np.ndarray | None, updates: int) -> KMeansResult:
    words = codebook.astype(np.float64)
    codes = np.searchsorted(0.5 * (words[1:] + words[:-1]), v, side="left")
    error = np.square(v - words[codes])
    total = float(error.sum() if w is None else (w * error).sum())
    return KMeansResult(codebook, codes.astype(code_dtype(len(codebook))), total, updates)


def _best_edges(data: _Sorted, k: int, threads: int) -> np.ndarray:
    """Return the edges of the best partition of all.

    Where there are many values, the same recursion over bins of them tells first where the edges can be: a partition
    along bins bounds the error from above, and one that leaves out the bins in which edges lie from below.
    """
    n = len(data.v)
    sums = data.mass, data.first, data.second
    everywhere = np.tile([0, n], (k, 1))
    if n <= VALUES_FOR_BINS * k:
        return _partition(sums, everywhere, threads)
    bins = np.arange(BINS * k + 1) * n // (BINS * k)
    forward = [a[bins] for a in sums]
    start = bins[_partition(forward, np.tile([0, len(bins) - 1], (k, 1)), threads)]
    codebook, _ = _lloyd(data, data.means(start))
    bound = data.error(data.edges(codebook)) * (1 + 1e-9) + 1e-12 * data.second[-1]
    backward = [np.ascontiguousarray((a[-1] - a)[::-1]) for a in forward]
    left, right = _below(forward, k, threads), _below(backward, k, threads)
    windows = everywhere
    for i in range(k - 1):  # the edge after i + 1 clusters
        possible = np.flatnonzero(left[i, :-1] + right[k - 2 - i, -2::-1] <= bound)
        windows[i] = bins[possible[0]], bins[possible[-1] + 1]
    return _partition(sums, windows, threads)


def _one_cluster_more(
    sums: Any,
    skip: int,
    before: np.ndarray,
    before_at: int,
    at: int,
    cost: np.ndarray,
    places: np.ndarray,
    threads: int,
) -> None:
    """Fill costs and places of one cluster more than ``before`` has: by levels while rows are few, then by runs."""
    rows = len(cost)
    top = 1 << (rows.bit_length() - 1)
    if max(rows, len(before)) < SERIAL:
        threads = 1
    longest = top if threads == 1 else max(1, top // (RUNS * threads))  # half of what is searched as one chunk
    arguments = *sums, skip, before, before_at, at
    while top > longest:
        run_chunks(threads, kernels.one_cluster_more, *arguments, top, top, cost, places)
        top //= 2
    run_chunks(threads, kernels.one_cluster_more, *arguments, top, 1, cost, places)


def _below(sums: Any, k: int, threads: int) -> np.ndarray:
    """Return bounds from below, in up to k - 1 clusters, for every prefix that ends in or before a bin."""
    n = len(sums[0])
    out, unused = np.empty((max(k - 1, 1), n)), np.empty(n, np.int32)
    kernels.one_cluster(*sums, out[0])
    for before, cost in itertools.pairwise(out):
        _one_cluster_more(sums, 1, before, 0, 0, cost, unused, threads)
    return out


def _partition(sums: Any, windows: np.ndarray, threads: int) -> np.ndarray:
    """Return the edges of the best partition whose i-th inner edge lies in the i-th window."""
    n = len(sums[0]) - 1
    cost = np.empty(n + 1)
    kernels.one_cluster(*sums, cost)
    at, end = windows[0]
    cost, table = cost[at : end + 1], []
    if len(windows) == 1:
        return np.array([0, n])
    for low, high in [*windows[1:-1], (n, n)]:
        before, before_at = cost, at
        at, cost, places = low, np.empty(high - low + 1), np.empty(high - low + 1, np.int32)
        _one_cluster_more(sums, 0, before, before_at, at, cost, places, threads)
        table.append((at, places))
    edges = [n]
    for at, places in table[::-1]:
        edges.append(int(places[edges[-1] - at]))
    return np.array([0, *edges[::-1]])


def _lloyd(data: _Sorted, codebook: np.ndarray) -> tuple[np.ndarray, int]:
    """Alternate nearest codewords and means until no value moves; codewords without values move to the worst ones."""
    edges = np.empty(0, np.int64)
    for step in range(MAX_UPDATES):
        before, edges = edges, data.edges(codebook)
        empty = np.flatnonzero(np.diff(edges) == 0)
        if len(empty):
            error = data.w * np.square(data.v - np.repeat(codebook, np.diff(edges)))
            codebook = codebook.copy()
            codebook[empty] = data.v[np.argsort(-error, kind="stable")[: len(empty)]]
            codebook = np.sort(codebook)
            edges = data.edges(codebook)
        elif np.array_equal(edges, before):
            return codebook, step
        means = data.means(edges)
        codebook = np.where(np.isnan(means), codebook, means)
    return codebook, MAX_UPDATES


def _plus_plus(data: _Sorted, k: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++: every codeword is a value drawn with probability proportional to its weighted squared error."""
    n = len(data.v)
    pick = np.sort(rng.choice(n, SEEDS_PER_CODEWORD * k, replace=False)) if n > SEEDS_PER_CODEWORD * k else np.arange(n)
    v, w = data.v[pick], data.w[pick]
    error, out = w.copy(), np.empty(k)
    for i, draw in enumerate(rng.random(k)):
        total = np.cumsum(error)
        out[i] = v[min(int(np.searchsorted(total, draw * total[-1], side="right")), len(v) - 1)]
        distance = w * np.square(v - out[i])
        error = distance if i == 0 else np.minimum(error, distance)
    return np.sort(out)


def fit_scalar(
    codec: Scalar,
    weight: Any,
    metric: Any = None,
    warm: Packed | None = None,
    seed: int = 0,
    *,
    row_weights: Any = None,
    threads: int | None = None,
) -> Fit:
    """Find the best list of values for a weight: k-means of numbers.

    Parameters
    ----------
    codec : Scalar
    weight : array, shape (O, C, *kernel) or (O, I)
    metric : array, optional
        Second moments of the inputs, (1, 1), (I, 1, 1) or (G, I, 1, 1); the error of each weight counts as much.
    warm : PackedScalar, optional
        Its list is the first one of method "lloyd"; the exact optimum does not depend on it.
    seed : int
    row_weights : array, shape (O,), optional
        Weight of each output (of each token of an embedding).
    threads : int, optional

    Returns
    -------
    Fit
    """
    codec, dense, importance = check_fit(codec, weight, metric, warm, seed, row_weights)
    if warm is not None and len(warm.codebook) != codec.k:
        raise _check.error("warm", f"{codec.k} values", len(warm.codebook))
    found = scalar_kmeans(
        dense.reshape(-1),
        codec.k,
        weights=None if importance is None else importance.reshape(-1),
        seed=seed,
        method=codec.method,
        init=None if warm is None or codec.method == "exact" else warm.codebook[:, 0].astype(np.float32),
        threads=threads,
    )
    book = stored_scales(found.codebook, codec)
    codes = nearest_codes(dense.reshape(len(dense), -1), book.astype(np.float32), 1.0)
    packed = PackedScalar(codec, dense.shape, codes, book[:, None])
    return measured(packed, dense, metric, row_weights, found.n_iter)


FITTERS[Scalar.name] = fit_scalar
