"""The search of codes under whole second moments, and what it is aimed at."""

import itertools

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pipeline import DATA, RECIPE, moments_by_hand, rand, small_net

import pqnet
from pqnet import PQ, Model, PQNetError
from pqnet.codecs.layout import to_blocks
from pqnet.fit import descent
from pqnet.fit.descent import SecondOrder
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.graph.affine import FreeAffine, shortcut_of
from pqnet.pipeline.moments import doubted, share_to_doubt


def problem(groups, outputs, positions, d, k, seed):
    """Targets, second moments of correlated inputs, weights of outputs, a start."""
    rng = np.random.default_rng(seed)
    n = positions * d
    mix = rng.standard_normal((groups, n, n)) + 2 * rng.standard_normal((groups, n, 1))
    moments = (mix @ mix.swapaxes(1, 2) / n + 0.1 * np.eye(n)).astype(np.float32)
    target = rng.standard_normal((outputs, n)).astype(np.float32)
    weights = rng.uniform(0.2, 3, outputs).astype(np.float32)
    codes, codebook = rng.integers(0, k, (outputs, positions)), rng.standard_normal((k, d)).astype(np.float32)
    return target, moments, weights, codes, codebook


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 2), st.integers(1, 5), st.integers(1, 6), st.integers(1, 9), st.integers(1, 20), st.integers(0, 99)
)
def test_sweeps_and_updates_are_those_of_the_slow_twins(groups, outputs, positions, d, k, seed):
    target, moments, weights, codes, codebook = problem(groups, groups * outputs, positions, d, k, seed)
    search = SecondOrder(target, moments, codes, codebook, weights, 2)
    assert search.error == pytest.approx(naive.second_order_error(target, moments, weights, codes, codebook), rel=1e-4)
    search.sweep()
    want = naive.second_order_sweep(target, moments, codes, codebook)
    best = naive.second_order_error(target, moments, weights, want, codebook)
    assert np.array_equal(search.codes, want) or search.error == pytest.approx(best, rel=1e-3)  # near ties
    updated = naive.second_order_codebook(target, moments, weights, search.codes, k)
    least = naive.second_order_error(target, moments, weights, search.codes, updated)
    search.update(60)
    assert search.error <= least * 1.02 + 1e-4 * naive.second_order_error(target, moments, weights, codes, 0 * codebook)


def test_error_never_rises_and_whole_batches_of_positions_agree_with_the_slow_twin():
    target, moments, weights, codes, codebook = problem(1, 70, 30, 5, 40, 7)  # 150 inputs: three batches
    search, errors = SecondOrder(target, moments, codes, codebook, weights, 2), []
    want = naive.second_order_sweep(target[:3], moments, codes[:3], codebook)
    for _ in range(4):
        errors += [search.sweep(), search.update(10)]
        if len(errors) == 2:
            assert np.array_equal(search.codes[:3], want)
    assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise(errors))
    assert errors[-1] < 0.7 * errors[0]


def test_fading_noise_leads_past_poor_minima():
    found = []
    for noise in (False, True):
        errors = []
        for seed in range(4):
            target, moments, weights, codes, codebook = problem(1, 64, 24, 4, 32, seed)
            search = SecondOrder(target, moments, codes, codebook, weights, 1)
            search.search(100, 30 if noise else 0, np.inf, seed)
            errors.append(search.error)
        found.append(errors)
    assert np.mean(found[1]) < 0.96 * np.mean(found[0])
    assert all(b <= a * (1 + 1e-5) for a, b in zip(*found, strict=True))  # the better is kept


def test_too_much_noise_leaves_what_was_found_without(monkeypatch):
    monkeypatch.setattr(descent, "NOISE", 1e3)
    target, moments, weights, codes, codebook = problem(1, 16, 6, 4, 16, 0)
    plain, noisy = (SecondOrder(target, moments, codes, codebook, weights, 1) for _ in range(2))
    plain.search(100, 0, np.inf, 0)
    noisy.search(100, 1, np.inf, 0)
    assert np.array_equal(noisy.codes, plain.codes) and np.array_equal(noisy.codebook, plain.codebook)
    assert noisy.error == pytest.approx(plain.error, rel=1e-5)


def test_noise_is_left_out_where_it_would_take_too_long():
    target, moments, weights, codes, codebook = problem(1, 16, 6, 4, 16, 0)
    plain, dear = (SecondOrder(target, moments, codes, codebook, weights, 1) for _ in range(2))
    assert plain.search(100, 0, np.inf, 0) == dear.search(100, 10, 10.0, 0)
    assert np.array_equal(dear.codes, plain.codes)


def test_a_warm_start_is_not_led_away_by_noise():
    target, moments, *_ = problem(1, 64, 24, 4, 32, 0)
    first = PQ(32, 4, codebook_dtype="float32").fit(target, metric=moments[:, None])
    again = PQ(32, 4, codebook_dtype="float32").fit(target, metric=moments[:, None], warm=first, seed=1)

    def error(packed):
        e = (target - packed.decode()).astype(float)
        return np.einsum("oi,ij,oj->", e, moments[0].astype(float), e)

    assert error(again) <= error(first) * (1 + 1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize(("shape", "groups", "layout"), [((24, 8, 3, 3), 1, "channel"), ((24, 4, 3, 3), 3, "spatial")])
def test_whole_moments_beat_their_blocks(shape, groups, layout, dtype):
    rng = np.random.default_rng(1)
    n = int(np.prod(shape[1:]))
    x = np.maximum(rng.standard_normal((groups, 500, n)) @ rng.standard_normal((groups, n, n)) + 1, 0)
    moments = (x.swapaxes(1, 2) @ x / 500).astype(np.float32)
    weight = rng.standard_normal(shape).astype(np.float32)
    codec = PQ(16, 4, layout, dtype)

    def error(packed):
        e = to_blocks(weight - packed.decode(), 4, layout).reshape(groups, -1, n).astype(float)
        return np.einsum("goi,gij,goj->", e, moments.astype(float), e)

    at = np.arange(n).reshape(-1, 4)
    block = codec.fit(weight, metric=moments[:, at[:, :, None], at[:, None, :]])
    assert error(codec.fit(weight, metric=moments[:, None])) < 0.8 * error(block)


def test_whole_moments_of_another_size_are_refused():
    with pytest.raises(PQNetError, match=r"metric: expected shape .* or \(G, 1, 8, 8\), got shape \(1, 1, 7, 7\)"):
        PQ(2, 4).fit(np.ones((4, 8)), metric=np.eye(7)[None, None])


def test_reported_error_is_that_of_the_outputs_from_what_each_network_gives():
    """fc: the float network's outputs against the student's, biases included, on the samples that were put aside."""
    model = small_net()
    small = pqnet.quantize(model, RECIPE, DATA, progress=False)
    aside = np.arange(len(DATA)) % 8 == 4
    held, learned = DATA[aside], DATA[~aside]
    energy = np.square(model(held).astype(float) - model.graph.params["fc.bias"]).sum()
    got = small.graph.meta["quantization"]["layers"]["fc"]["output_error"]
    assert got == pytest.approx(np.square(model(held).astype(float) - small(held)).sum() / energy, rel=1e-3)
    assert np.allclose(model(learned).mean(0), small(learned).mean(0), atol=1e-4)  # the shift is in the bias


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_aiming_at_the_teacher_and_shifts_repair_what_earlier_layers_broke(seed):
    model = small_net()
    errors = []
    for options in ({}, {"correct_bias": False}, {"correct_bias": False, "target": "weight"}):
        small = pqnet.quantize(model, RECIPE, DATA, seed=seed, progress=False, **options)
        errors.append(np.square(model(DATA) - small(DATA)).mean())
    assert errors[0] < errors[1] < 0.5 * errors[2]


def residual_net():
    """A branch joins a shortcut whose values a quantized layer has changed."""
    b = GraphBuilder({"input": ValueInfo(("batch", 3, 9, 9))}, {"batch": 2})

    def norm(x, n):
        params = {"weight": rand(n) ** 2 + 0.5, "bias": rand(n), "mean": rand(n), "var": rand(n) ** 2 + 0.5}
        return b.add("batch_norm", x, params=params)

    x = b.add("conv2d", "input", name="stem", params={"weight": rand(16, 3, 3, 3)}, padding=(1, 1, 1, 1))
    x = norm(b.add("conv2d", b.add("relu", x), name="first", params={"weight": rand(16, 16, 1, 1, seed=1)}), 16)
    y = b.add("conv2d", x, name="branch", params={"weight": rand(16, 16, 3, 3, seed=2)}, padding=(1, 1, 1, 1))
    x = b.add("add", norm(y, 16), x)
    return Model(b.build({"output": x}))


def test_branches_make_up_for_what_their_shortcut_lacks():
    model = residual_net()
    layer = model.graph.layers()["branch"]
    affine = FreeAffine.find(model.graph, layer)
    assert affine is not None and affine.scalable
    shortcut = shortcut_of(model.graph, layer, affine)
    assert shortcut == next(n for n in model.graph.nodes if n.name == "branch").inputs[0]
    recipe = {"first": PQ(4, 4), "branch": PQ(64, 4)}
    small = pqnet.quantize(model, recipe, DATA, progress=False)
    gap = np.square(model(DATA).astype(float) - small(DATA)).sum((0, 2, 3))
    # What a branch that repeats the teacher's would leave: the gap of the shortcut.
    only = pqnet.quantize(model, {"first": PQ(4, 4)}, DATA, progress=False)
    assert gap.sum() < 0.9 * np.square(model(DATA).astype(float) - only(DATA)).sum()


def test_shifts_and_scales_of_outputs_are_what_follows_sees():
    for model, name in ((residual_net(), "branch"), (small_net(), "fc"), (small_net(), "grouped")):
        graph = model.graph
        layer = graph.layers()[name]
        affine = FreeAffine.find(graph, layer)
        assert affine is not None
        rng, n = np.random.default_rng(0), len(graph.params[layer.params["weight"]])
        scale, shift = rng.uniform(0.5, 2, n) if affine.scalable else np.ones(n), rng.standard_normal(n)
        before, weight = model(DATA[:4]), graph.params[layer.params["weight"]]
        changed = type(graph)(graph.inputs, graph.outputs, graph.nodes, dict(graph.params), graph.symbols)
        changed.params[layer.params["weight"]] = weight / scale.reshape(-1, *[1] * (weight.ndim - 1)).astype(np.float32)
        affine = FreeAffine.find(changed, layer)
        affine.apply(scale, shift)
        affine = FreeAffine.find(changed, layer)
        affine.apply(np.ones(n), -shift / scale)
        assert np.allclose(Model(changed)(DATA[:4]), before, rtol=1e-3, atol=1e-3 * np.abs(before).max())


def test_statistics_give_the_same_whole_moments():
    model = small_net()
    stats = pqnet.calibrate(model, DATA)
    small = pqnet.quantize(model, RECIPE, stats, progress=False)
    error = model.graph.params["fc.weight"] - small.graph.params["fc.weight"].decode()
    moments, weight = stats.layers["fc"], model.graph.params["fc.weight"]
    h, whole = doubted(moments.centred()[0], share_to_doubt(error.shape[1], 150)), moments_by_hand(model, DATA)
    got = small.graph.meta["quantization"]["layers"]["fc"]["output_error"]
    assert got == pytest.approx(np.trace(error @ h @ error.T) / np.trace(weight @ whole @ weight.T), rel=1e-3)


def test_statistics_correct_biases_by_the_means_that_they_hold():
    """Inputs of 290 +- 5: rounding moves every output's mean, which data and statistics must make up for alike."""
    b = GraphBuilder({"input": ValueInfo(("batch", 16))}, {"batch": 2})
    weight = 0.2 * rand(32, 16)
    params = {"weight": weight, "bias": -290 * weight.sum(1)}
    model = Model(b.build({"output": b.add("linear", "input", name="fc", params=params)}))
    x = 290 + 5 * rand(128, 16, seed=1)
    want = model(x)
    for calibration in (x, pqnet.calibrate(model, x)):
        small = pqnet.quantize(model, {"*": pqnet.IntN(6)}, calibration, progress=False)
        assert np.square(small(x) - want).sum() < 0.01 * np.square(want - want.mean(0)).sum()
