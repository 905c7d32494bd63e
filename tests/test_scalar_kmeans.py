"""scalar_kmeans against the recursion written out in full, scikit-learn, and its promises."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pqnet
from pqnet.fit import scalar, scalar_kmeans


def least_error(values, weights, k):
    """Return the error of the best k clusters of all partitions of the sorted values, O(k n^2)."""
    order = np.argsort(values)
    v, w = np.asarray(values, float)[order], np.asarray(weights, float)[order]
    n = len(v)
    error = np.full((n + 1, n + 1), np.inf)
    for i in range(n):
        mass, first = np.cumsum(w[i:]), np.cumsum((w * (v - v[i]))[i:])
        second = np.cumsum((w * (v - v[i]) ** 2)[i:])
        with np.errstate(invalid="ignore"):
            error[i, i + 1 :] = np.where(mass > 0, second - first**2 / mass, 0.0)
    best = error[0]
    for _ in range(k - 1):
        best = np.minimum(best, (best[:, None] + error).min(0))
    return max(best[n], 0.0)


def draw(seed, n, kind):
    rng = np.random.default_rng(seed)
    values = {
        "normal": lambda: rng.standard_normal(n),
        "heavy": lambda: rng.standard_normal(n) ** 5,
        "far": lambda: 1000 + rng.random(n),
        "few": lambda: rng.integers(0, 9, n).astype(float),
        "clusters": lambda: rng.integers(0, 5, n) * 10 + 0.01 * rng.standard_normal(n),
    }[kind]()
    return values.astype(np.float32), rng.random(n).astype(np.float32) * (rng.random(n) > 0.2)


kinds = st.sampled_from(["normal", "heavy", "far", "few", "clusters"])


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 90), st.integers(1, 12), kinds, st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_exact_is_the_best_of_all_partitions(n, k, kind, weighted, binned, seed):
    values, weights = draw(seed, n, kind)
    k = min(k, n)
    if not weighted or not weights.any():
        weights = np.ones(n, np.float32)
    few, bins = scalar.VALUES_FOR_BINS, scalar.BINS
    try:
        if binned:  # as for many values
            scalar.VALUES_FOR_BINS, scalar.BINS = 2, 2
        found = scalar_kmeans(values, k, weights=weights if weighted else None)
    finally:
        scalar.VALUES_FOR_BINS, scalar.BINS = few, bins
    spread = float((weights * np.square(values - values.astype(float).mean())).sum())
    rounding = float(weights.sum() * np.square(1e-7 * np.abs(values).max()))  # of codewords
    assert found.error == pytest.approx(least_error(values, weights, k), rel=1e-6, abs=1e-12 * spread + rounding)
    again = float((weights * np.square(values.astype(float) - found.codebook.astype(float)[found.codes])).sum())
    assert found.error == pytest.approx(again, rel=1e-9)


@pytest.mark.parametrize(("n", "k"), [(1500, 2), (2100, 3), (2700, 5)])
def test_exact_with_bins_as_they_are(n, k):
    values, _ = draw(n, n, "normal")
    assert n > scalar.VALUES_FOR_BINS * k
    assert scalar_kmeans(values, k).error == pytest.approx(least_error(values, np.ones(n), k), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 20), kinds, st.sampled_from(["exact", "lloyd"]), st.integers(0, 2**32 - 1))
def test_result_is_a_fixed_point_of_lloyd(n, k, kind, method, seed):
    values, _ = draw(seed, n, kind)
    k = min(k, n)
    found = scalar_kmeans(values, k, method=method, seed=seed % 7)
    assert found.codebook.shape == (k,) and found.codebook.dtype == np.float32
    assert found.codes.shape == (n,) and found.codes.dtype == np.uint8
    assert (np.diff(found.codebook) >= 0).all()
    distance = np.abs(values.astype(float)[:, None] - found.codebook.astype(float))
    assert np.array_equal(distance[np.arange(n), found.codes], distance.min(1))
    if len(np.unique(values)) <= k:
        assert found.error == pytest.approx(0, abs=1e-10)
        return
    assert len(np.unique(found.codes)) == k or method == "lloyd"
    for c in np.unique(found.codes):
        members = values[found.codes == c].astype(float)
        assert found.codebook[c] == pytest.approx(members.mean(), rel=1e-6, abs=1e-6)


def test_methods_and_weighted_kmeans_agree_on_who_is_better():
    values, weights = draw(3, 4000, "normal")
    exact = scalar_kmeans(values, 16, weights=weights)
    lloyd = [scalar_kmeans(values, 16, weights=weights, method="lloyd", seed=s) for s in range(5)]
    assert len({r.error for r in lloyd}) > 1  # seeds matter to one, not to the other
    assert scalar_kmeans(values, 16, weights=weights, seed=1).error == exact.error
    for other in (*lloyd, pqnet.weighted_kmeans(values[:, None], 16, weights=weights)):
        assert exact.error <= other.error * (1 + 1e-7) and other.error < 2 * exact.error


def test_scikit_learn_finds_nothing_better():
    cluster = pytest.importorskip("sklearn.cluster")
    values, weights = draw(4, 600, "heavy")
    for k in (2, 5, 9):
        theirs = cluster.KMeans(k, n_init=20, random_state=0).fit(values[:, None], sample_weight=weights)
        exact = scalar_kmeans(values, k, weights=weights)
        assert exact.error <= theirs.inertia_ * (1 + 1e-6)
    start = np.sort(values)[[30, 200, 400, 570]]
    theirs = cluster.KMeans(4, init=start[:, None], n_init=1, tol=0, max_iter=1000).fit(values[:, None])
    ours, _ = scalar._lloyd(scalar._Sorted(values, None), start - values.astype(float).mean())
    assert np.allclose(ours + values.astype(float).mean(), np.sort(theirs.cluster_centers_[:, 0]), rtol=1e-5, atol=1e-5)


def test_bits_do_not_depend_on_threads_or_order():
    values, _ = draw(5, 60000, "normal")
    one, *others = (scalar_kmeans(v, 8, threads=t) for v, t in itertools.product((values, values[::-1]), (1, 2, 4)))
    for i, other in enumerate(others, 1):
        assert np.array_equal(one.codebook, other.codebook)
        assert np.array_equal(one.codes if i < 3 else one.codes[::-1], other.codes)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"values": [[1.0]]}, "values"),
        ({"values": [np.nan, 1.0]}, "values"),
        ({"k": 3}, "k"),
        ({"k": 0}, "k"),
        ({"weights": [1.0, -1.0]}, "weights"),
        ({"weights": [0.0, 0.0]}, "weights"),
        ({"method": "best"}, "method"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_input(change, match):
    with pytest.raises(pqnet.PQNetError, match=f"^{match}"):
        scalar_kmeans(**{"values": [0.0, 1.0], "k": 2, **change})
