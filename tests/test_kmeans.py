"""weighted_kmeans and assign against slow references, and their promises."""

import itertools

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pqnet
from pqnet.fit import kmeans as fit
from pqnet.fit import problem as shapes
from pqnet.fit import tiles
from pqnet.fit.kmeans import _fill_empty, _Sums
from pqnet.fit.problem import Problem
from pqnet.pipeline.moments import build_metric, row_moments


def problem(rng, n, d, k, m):
    """Blocks, codebook, and for m > 0 one metric a group (m = 1: one shared matrix without groups)."""
    blocks = rng.standard_normal((n, d)).astype(np.float32)
    codebook = rng.standard_normal((k, d)).astype(np.float32)
    if m == 0:
        return blocks, codebook, {}
    root = rng.standard_normal((m, d, d + 2))
    metric = (root @ root.transpose(0, 2, 1)).astype(np.float32)
    if m == 1:
        return blocks, codebook, {"metric": metric[0]}
    return blocks, codebook, {"metric": metric, "groups": rng.integers(0, m, n)}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 70), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_assign_is_brute_force(n, d, k, m, seed):
    blocks, codebook, options = problem(np.random.default_rng(seed), n, d, k, m)
    distances = naive.distances(blocks, codebook, **options)
    codes = pqnet.assign(blocks, codebook, **options)
    assert codes.shape == (n,) and codes.dtype == np.uint8
    chosen = distances[np.arange(n), codes]
    # float32 rounding may confuse codewords that are this close
    scale = naive.distances(blocks, 0 * codebook[:1], **options)[:, 0] + chosen
    assert np.all(chosen <= distances.min(1) + 1e-5 * scale)


def test_ties_take_the_lowest_index():
    assert pqnet.assign(np.zeros((3, 2)), np.ones((40, 2))).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("k", "dtype"), [(256, np.uint8), (257, np.uint16)])
def test_code_dtype_follows_k(k, dtype):
    rng = np.random.default_rng(0)
    assert pqnet.assign(rng.random((5, 2)), rng.random((k, 2))).dtype == dtype


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 120), st.integers(1, 6), st.integers(1, 8), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_lloyd_is_the_naive_one(n, d, k, m, seed):
    rng = np.random.default_rng(seed)
    blocks, codebook, options = problem(rng, n, d, min(k, n), m)
    weights = rng.random(n).astype(np.float32) + 0.1
    step = pqnet.weighted_kmeans(blocks, len(codebook), weights=weights, init=codebook, n_iter=1, **options)
    want = naive.lloyd_step(blocks, codebook, weights, **options)
    if want is None:  # a codeword without members is repaired: the reference has no rule for that
        return
    error = naive.weighted_error(blocks, want, naive.distances(blocks, want, **options).argmin(1), weights, **options)
    # A first step that does not lower the error is taken back.
    first = naive.weighted_error(
        blocks, codebook, naive.distances(blocks, codebook, **options).argmin(1), weights, **options
    )
    assert step.error == pytest.approx(min(error, first), rel=2e-4, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(60, 900),
    st.integers(1, 20),
    st.integers(1, 80),
    st.integers(0, 3),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_bounds_and_sums_of_moves_change_nothing(n, d, k, m, settled, seed):
    """Every step of the tiles finds the codes that looking at all codewords finds, and the sums these make."""
    rng = np.random.default_rng(seed)
    blocks, codebook, options = problem(rng, n, d, k, m)
    weights = rng.random(n).astype(np.float32)
    p = Problem(blocks, weights, options.get("metric"), options.get("groups"), 2)
    assert tiles.worth_tiles(p.group, p.n_groups)
    store = tiles.Tiles(p, codebook, bounds=True)
    store.settled |= settled
    for i in range(8):
        store.step(codebook)
        codes = store.to_rows()
        assert np.array_equal(codes, p.nearest(codebook))
        right, share = store.totals()
        moved = blocks if m < 2 else np.einsum("nij,nj->ni", options["metric"][options["groups"]], blocks)
        want = np.zeros((k, d))
        np.add.at(want, codes, weights[:, None] * moved)
        assert np.allclose(right, want, rtol=1e-4, atol=1e-4 * np.abs(moved).max())
        masses = np.zeros((max(m, 1), k))
        np.add.at(masses, (options.get("groups", np.zeros(n, int)), codes), weights)
        assert np.allclose(share, masses, rtol=1e-6, atol=1e-9)
        assert ((share > 0) == (masses > 0)).all()  # what leaves leaves nothing behind
        sums = _Sums(p, store)
        error = p.errors(codebook, codes)[1]
        assert sums.error(codebook) == pytest.approx(error, rel=1e-4, abs=1e-5 * store.norm)
        if i == 3:  # other codes, as when codewords without blocks are given some
            store.take(rng.permutation(codes).astype(np.int32))
        codebook = sums.update(codebook) if i != 5 else codebook[rng.permutation(k)]


def test_bounds_leave_most_codewords_out():
    blocks = np.random.default_rng(12).standard_normal((40000, 4)).astype(np.float32)
    p = Problem(blocks, None, None, None, None)
    store, codebook = tiles.Tiles(p, blocks[:128], bounds=True), blocks[:128]
    for _ in range(12):
        store.step(codebook)
        codebook = _Sums(p, store).update(codebook)
    assert store.settled and store.found.listed.sum() < 0.3 * 128 * len(store.tiling.group)


@pytest.mark.parametrize("m", [0, 1, 4])
def test_fits_with_and_without_bounds_are_equal(m, monkeypatch):
    blocks, _, options = problem(np.random.default_rng(13), 9000, 5, 1, m)
    found = []
    for work in (0, 10**12):
        monkeypatch.setattr(fit, "BOUND_WORK", work)
        found.append(pqnet.weighted_kmeans(blocks, 60, n_iter=30, **options))
    # The blocks are summed in another order.
    assert found[0].error == pytest.approx(found[1].error, rel=1e-2)


def test_weights_of_very_different_size_are_summed_anew():
    rng = np.random.default_rng(14)
    blocks = rng.standard_normal((500, 3)).astype(np.float32)
    weights = (10.0 ** rng.integers(-12, 12, 500)).astype(np.float32)
    p = Problem(blocks, weights, None, None, None)
    assert not p.even_weights
    store, codebook = tiles.Tiles(p, blocks[:20], bounds=True), blocks[:20]
    for _ in range(6):
        store.step(codebook)
        want = np.bincount(store.to_rows(), weights.astype(float), 20)
        assert np.allclose(store.totals()[1][0], want, rtol=1e-12, atol=0)
        codebook = _Sums(p, store).update(codebook)


@pytest.mark.parametrize("m", [0, 1, 3])
def test_error_never_rises_and_is_what_it_says(m):
    rng = np.random.default_rng(1)
    blocks, _, options = problem(rng, 700, 5, 1, m)
    weights = rng.random(700)
    errors = []
    for n_iter in range(12):
        result = pqnet.weighted_kmeans(blocks, 24, weights=weights, n_iter=n_iter, seed=3, **options)
        exact = naive.weighted_error(blocks, result.codebook, result.codes, weights, **options)
        assert result.error == pytest.approx(exact, rel=1e-5)
        assert result.n_iter <= n_iter
        errors.append(result.error)
    assert all(b <= a * (1 + 1e-7) for a, b in itertools.pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


def test_codes_are_nearest_for_the_codebook_returned():
    blocks, _, options = problem(np.random.default_rng(2), 900, 6, 1, 3)
    for n_iter in (0, 2, 100):
        result = pqnet.weighted_kmeans(blocks, 32, n_iter=n_iter, **options)
        assert np.mean(result.codes == pqnet.assign(blocks, result.codebook, **options)) == 1


@pytest.mark.parametrize("m", [0, 1, 4])
def test_bits_do_not_depend_on_threads(m):
    blocks, _, options = problem(np.random.default_rng(3), 20000, 8, 1, m)
    one, two, four = (pqnet.weighted_kmeans(blocks, 64, n_iter=8, threads=t, **options) for t in (1, 2, 4))
    for other in (two, four):
        assert np.array_equal(one.codebook, other.codebook) and np.array_equal(one.codes, other.codes)
        assert one.error == other.error


def test_seed_decides():
    blocks = np.random.default_rng(4).standard_normal((500, 4))
    a, b, c = (pqnet.weighted_kmeans(blocks, 16, seed=s).codebook for s in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_equal_weights_are_no_weights_and_scale_does_not_matter():
    blocks = np.random.default_rng(5).standard_normal((400, 3))
    init = blocks[:8]
    plain = pqnet.weighted_kmeans(blocks, 8, init=init)
    scaled = pqnet.weighted_kmeans(blocks, 8, init=init, weights=np.full(400, 4.0))
    assert np.array_equal(plain.codebook, scaled.codebook)
    assert scaled.error == pytest.approx(4 * plain.error)


def test_blocks_without_weight_move_no_codeword():
    rng = np.random.default_rng(6)
    blocks, far = rng.standard_normal((300, 4)), 100 + rng.standard_normal((50, 4))
    init = blocks[:10]
    alone = pqnet.weighted_kmeans(blocks, 10, init=init)
    weights = np.concatenate([np.ones(300), np.zeros(50)])
    both = pqnet.weighted_kmeans(np.concatenate([blocks, far]), 10, init=init, weights=weights)
    assert np.allclose(alone.codebook, both.codebook)


def test_empty_codewords_move_to_the_worst_blocks_in_one_pass():
    blocks = np.array([[0.0], [0.1], [5.0], [9.0], [20.0]])
    p = Problem(blocks, None, None, None, None)
    codebook = np.array([[0.0], [1e6], [1e6]], np.float32)
    codes = p.nearest(codebook)
    assert _fill_empty(p, codebook, codes)
    assert codes.tolist() == [0, 0, 0, 2, 1]  # the largest errors: 20, then 9
    result = pqnet.weighted_kmeans(blocks, 3, init=[[0.0], [1e6], [1e6]])
    assert result.error == pytest.approx(1.7**2 + 1.6**2 + 3.3**2)  # {0, 0.1, 5} {9} {20}


def test_fewer_distinct_blocks_than_codewords():
    result = pqnet.weighted_kmeans(np.repeat([[1.0, 2.0], [3.0, 4.0]], 50, axis=0), 16)
    assert result.error == 0 and len(np.unique(result.codes)) == 2 and np.isfinite(result.codebook).all()


def test_singular_metrics_leave_unseen_directions_alone():
    blocks = np.random.default_rng(7).standard_normal((200, 3))
    metric = np.zeros((2, 3, 3))
    metric[0, 0, 0] = 1.0  # the other matrix sees nothing at all
    result = pqnet.weighted_kmeans(blocks, 8, metric=metric, groups=np.arange(200) % 2)
    assert np.isfinite(result.codebook).all() and np.abs(result.codebook).max() < 10


@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_convergence_stops_early_and_is_good(init):
    rng = np.random.default_rng(8)
    centres = 20 * rng.standard_normal((12, 4))
    blocks = np.repeat(centres, 100, axis=0) + 0.01 * rng.standard_normal((1200, 4))
    result = pqnet.weighted_kmeans(blocks, 12, init=init, n_iter=1000)
    assert result.n_iter < 100
    if init == "k-means++":  # finds the clusters, which random seeds do not
        assert result.error / blocks.size < 2e-4


def test_quality_is_that_of_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    blocks = np.random.default_rng(9).standard_normal((6000, 8)).astype(np.float32)
    ours = pqnet.weighted_kmeans(blocks, 64).error
    theirs = cluster.KMeans(64, n_init=1, random_state=0, max_iter=100).fit(blocks).inertia_
    assert ours <= 1.01 * theirs


def test_literal_e_step_of_kill_the_bits():
    """Its E-step compares ||A (v - c)|| over sampled activations A: k-means under the one matrix A'A."""
    rng = np.random.default_rng(10)
    for d, samples, n, k in ((9, 200, 500, 64), (4, 40, 800, 128), (18, 500, 300, 32)):
        activations = rng.standard_normal((samples, d)) * rng.random(d) + 0.3
        blocks = rng.standard_normal((d, n)).astype(np.float32)  # columns, as in the original
        centroids = blocks[:, rng.choice(n, k, replace=False)] + np.float32(0.1)
        literal = np.empty((k, n))
        for j in range(k):
            literal[j] = np.linalg.norm(activations @ (blocks - centroids[:, j, None]).astype(np.float64), axis=0)
        pooled = pqnet.assign(blocks.T, centroids.T, metric=activations.T @ activations)
        assert np.array_equal(pooled, literal.argmin(0))
        # The same through what quantize makes of inputs of two block positions.
        rows = activations.reshape(1, samples // 2, 2 * d).astype(np.float32)
        metric = build_metric("pooled", row_moments(rows, np.arange(2 * d), d))
        assert np.array_equal(pqnet.assign(blocks.T, centroids.T, metric=metric), literal.argmin(0))


def test_data_far_from_zero_loses_no_digits():
    rng = np.random.default_rng(11)
    near = rng.standard_normal((2000, 4)).astype(np.float32)
    far = near + np.float32(1000)
    codebook = far[:50] + np.float32(0.01)
    distances = naive.distances(far, codebook)
    chosen = distances[np.arange(2000), pqnet.assign(far, codebook)]
    assert np.all(chosen <= distances.min(1) + 1e-3)
    a, b = (pqnet.weighted_kmeans(v, 50, init=v[:50]) for v in (far - np.float32(1000), far))
    assert b.error == pytest.approx(a.error, rel=1e-3)
    assert np.abs(b.codebook - 1000).max() < 5


def test_given_codebooks_are_not_handed_back():
    init = np.eye(3, dtype=np.float32)
    assert not np.shares_memory(pqnet.weighted_kmeans(np.eye(3), 3, init=init, n_iter=0).codebook, init)


KINDS = ("offset", "scale", "columns", "duplicates", "clusters", "lattice")


def unusual(kind, rng, n, d):
    """Blocks whose neighbours are near for the size of their numbers."""
    blocks = rng.standard_normal((n, d))
    if kind == "offset":
        blocks += 1e4 * rng.standard_normal(d)
    elif kind == "scale":
        blocks *= 10.0 ** rng.uniform(-20, 6)
    elif kind == "columns":
        blocks *= 10.0 ** rng.uniform(-5, 5, d)
        blocks[:, 0] = 1e4 * np.sign(blocks[:, 0])
    elif kind == "duplicates":
        blocks = 100 + blocks[rng.integers(0, max(1, n // 6), n)]
    elif kind == "clusters":
        blocks = 0.1 * blocks + rng.choice([-1000.0, 1000.0, 30.0], (n, 1))
    else:
        blocks = 500 + np.round(blocks)
    return blocks.astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("integers", [False, True])
@settings(max_examples=6, deadline=None)
@given(st.integers(1, 9), st.sampled_from([0, 1, 2, 60]), st.integers(0, 2**32 - 1))
def test_near_codewords_of_unusual_blocks_are_told_apart(kind, integers, d, m, seed):
    """As in float64, for tiles, 16-bit integers and (60 metrics) single rows."""
    rng = np.random.default_rng(seed)
    blocks = unusual(kind, rng, 90, d)
    codebook = blocks[rng.choice(90, 12, replace=False)] + np.float32(1e-3) * blocks.std(0)
    options = problem(rng, 90, d, 1, m)[2]
    before, shapes.INTEGER_WORK = shapes.INTEGER_WORK, 0 if integers else shapes.INTEGER_WORK
    try:
        codes = pqnet.assign(blocks, codebook, **options)
    finally:
        shapes.INTEGER_WORK = before
    distances = naive.distances(blocks, codebook, **options)
    chosen, least = distances[np.arange(90), codes], distances.min(1)
    assert np.all(chosen <= 1.01 * least + 1e-12 * distances.max())
    p = Problem(blocks, None, options.get("metric"), options.get("groups"), 1)
    if tiles.worth_tiles(p.group, p.n_groups):
        store = tiles.Tiles(p, p.inside(codebook).astype(np.float32), bounds=False)
        store.step(p.inside(codebook).astype(np.float32))
        assert np.array_equal(store.to_rows(), p.nearest(p.inside(codebook).astype(np.float32)))


@pytest.mark.parametrize("kind", KINDS)
def test_kmeans_of_unusual_blocks_is_that_of_float64(kind):
    rng = np.random.default_rng(15)
    blocks = unusual(kind, rng, 240, 3)
    init = blocks[rng.choice(240, 6, replace=False)]
    want = init.astype(float)
    for _ in range(12):
        want = naive.lloyd_step(blocks, want, np.ones(240))
    result = pqnet.weighted_kmeans(blocks, 6, init=init, n_iter=12)
    exact = naive.weighted_error(blocks, result.codebook, result.codes, np.ones(240))
    assert result.error == pytest.approx(exact, rel=1e-4)
    assert exact <= 1.01 * naive.distances(blocks, want).min(1).sum()
    assert exact <= 1.001 * naive.distances(blocks, result.codebook).min(1).sum()


def test_seeds_within_far_clusters_are_spread():
    rng = np.random.default_rng(16)
    blocks = (0.1 * rng.standard_normal((400, 4)) + rng.choice([-1000.0, 1000.0], (400, 1))).astype(np.float32)
    ours = [pqnet.weighted_kmeans(blocks, 16, seed=s, n_iter=0).error for s in range(6)]
    alone = [
        pqnet.weighted_kmeans(blocks[blocks[:, 0] < 0] + np.float32(1000), 8, seed=s, n_iter=0).error for s in range(6)
    ]
    assert np.mean(ours) <= 2.4 * np.mean(alone)


@pytest.mark.parametrize(("n", "k"), [(66, 64), (90, 64), (160, 64)])
def test_few_blocks_for_each_codeword(n, k):
    """As good as greedy k-means++."""
    blocks = np.random.default_rng(n).standard_normal((n, 4)).astype(np.float32)
    ours = [pqnet.weighted_kmeans(blocks, k, seed=s).error for s in range(8)]
    theirs = [naive.greedy_kmeans(blocks, k, np.random.default_rng(s), tries=6) for s in range(3)]
    assert np.mean(ours) <= 1.1 * np.mean(theirs)
