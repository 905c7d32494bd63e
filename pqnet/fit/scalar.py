"""k-means of numbers: on sorted values with prefix sums, and its exact optimum."""

from typing import Any

import numpy as np

from pqnet import _check
from pqnet._threads import default_threads, parallel_kernels
from pqnet.codecs.packing import code_dtype
from pqnet.errors import PQNetError
from pqnet.fit.kmeans import KMeansResult
from pqnet.kernels import scalar as kernels

__all__ = ["scalar_kmeans"]

METHODS = ("exact", "lloyd")
UPDATES = 1000  # Lloyd stops long before
SEEDS = 64  # values that k-means++ looks at for each codeword
LARGEST_TABLE = 1 << 30  # bytes of the table of the exact method
SERIAL = 1 << 14  # values below which waking other threads costs more than it saves


class _Sorted:
    """Distinct values in order with their weights, moved so that their mean is 0, and the sums before each."""

    def __init__(self, values: np.ndarray, weights: np.ndarray | None) -> None:
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
            return np.diff(self.first[edges]) / np.diff(self.mass[edges])

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
    values: Any, k: int, *, weights: Any = None, seed: int = 0, method: str = "exact", threads: int | None = None
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
    threads : int, optional
        Default: all cores. The result does not depend on it.

    Returns
    -------
    KMeansResult
        The codebook, shape (K,), ascends. With fewer than K distinct values the last one is repeated.

    Raises
    ------
    PQNetError
        Wrong shape or dtype, NaN, k > N, negative weights; a table of more than 1 GB for method "exact".

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
    n = len(data.v)
    if (k - 2) * (n + 1) * 4 > LARGEST_TABLE:
        raise PQNetError(f"values: the exact method needs a table of k x {n} distinct values; use method='lloyd'")
    if k == 1:
        return np.array([0, n])
    # Any partition bounds the error of the best: what is above it need not be looked at.
    quantiles = np.searchsorted(data.mass, data.mass[-1] * (np.arange(k) + 0.5) / k)
    start, _ = _lloyd(data, np.unique(data.v[np.minimum(quantiles, n - 1)]))
    bound = data.error(data.edges(start)) * (1 + 1e-9) + 1e-12 * data.second[-1]
    # The first clusters from the left and the others from the right: both see only a part of the values.
    forward = data.mass, data.first, data.second
    backward = [np.ascontiguousarray((a[-1] - a)[::-1]) for a in forward]
    with parallel_kernels(threads if n > SERIAL else 1):
        left, left_edges = _prefixes(forward, k // 2, bound)
        right, right_edges = _prefixes(backward, k - k // 2, bound)
    middle = int(np.argmin(left + right[::-1]))
    edges = [middle]
    for row in left_edges[::-1]:
        edges.append(int(row[edges[-1]]))
    mirrored = [n - middle]
    for row in right_edges[::-1]:
        mirrored.append(int(row[mirrored[-1]]))
    return np.array([0, *edges[::-1], *(n - m for m in mirrored[1:]), n])


def _prefixes(sums: Any, k: int, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the least error of every prefix in k clusters, and for 2..k clusters where the last of them begins."""
    n = len(sums[0])
    table, cost, before, tmp = np.empty((k - 1, n), np.int32), np.empty(n), np.empty(n), np.empty(2 * n)
    kernels.one_cluster(*sums, cost)
    for row in table:
        before, cost = cost, before
        kernels.one_cluster_more(*sums, before, bound, tmp, tmp.view(np.int64), cost, row)
    return cost, table


def _lloyd(data: _Sorted, codebook: np.ndarray) -> tuple[np.ndarray, int]:
    """Alternate nearest codewords and means until no value moves; codewords without values move to the worst ones."""
    edges = np.empty(0, np.int64)
    for step in range(UPDATES):
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
    return codebook, UPDATES


def _plus_plus(data: _Sorted, k: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++: every codeword is a value drawn with probability proportional to its weighted squared error."""
    n = len(data.v)
    pick = np.sort(rng.choice(n, SEEDS * k, replace=False)) if n > SEEDS * k else np.arange(n)
    v, w = data.v[pick], data.w[pick]
    error, out = w.copy(), np.empty(k)
    for i, draw in enumerate(rng.random(k)):
        total = np.cumsum(error)
        out[i] = v[min(int(np.searchsorted(total, draw * total[-1], side="right")), len(v) - 1)]
        distance = w * np.square(v - out[i])
        error = distance if i == 0 else np.minimum(error, distance)
    return np.sort(out)
