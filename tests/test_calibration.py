"""Calibration of networks and data that are no textbook's: dead filters, inputs far from zero, few samples."""

import numpy as np
import pytest
from test_pipeline import rand

import pqnet
from pqnet import PQ, IntN, Model
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.pipeline import measure
from pqnet.pipeline.batches import hold_out
from pqnet.pipeline.layerwise import TARGET_DAMPINGS
from pqnet.pipeline.layerwise import _Inputs as Inputs
from pqnet.pipeline.moments import doubted, measured_doubt
from pqnet.pipeline.statistics import Moments


def linear(inputs, outputs=32, hidden=64):
    b = GraphBuilder({"input": ValueInfo(("batch", inputs))}, {"batch": 2})
    y = b.add("linear", "input", name="a", params={"weight": rand(hidden, inputs), "bias": rand(hidden)})
    y = b.add("linear", b.add("relu", y), name="b", params={"weight": rand(outputs, hidden), "bias": rand(outputs)})
    return Model(b.build({"output": y}))


def norm(channels, var):
    return {"weight": rand(channels) + 1, "bias": rand(channels), "mean": rand(channels), "var": var}


def thin_net(dead):
    """Expansion, depthwise convolution, projection, each with a norm; some filters see what is always zero."""
    b = GraphBuilder({"input": ValueInfo(("batch", 8, 6, 6))}, {"batch": 2})
    b_attrs = {"stride": (1, 1), "dilation": (1, 1)}
    y, shapes = (
        "input",
        {"stem": (8, 8, 1, 1), "expand": (32, 8, 1, 1), "depthwise": (32, 1, 3, 3), "project": (16, 32, 1, 1)},
    )
    for i, (name, shape) in enumerate(shapes.items()):
        weight, var = rand(*shape, seed=i), np.ones(shape[0], np.float32)
        attrs = {**b_attrs, "padding": (0, 0, 0, 0), "groups": shape[0] if shape[1] == 1 else 1}
        params = norm(shape[0], var)
        if dead and name == "expand":  # what the norm makes of these is negative, and always cut off
            weight[:8], var[:8] = 1e-20 * weight[:8], 1e-12
            params["bias"][:8], params["mean"][:8] = -1, 0
        y = b.add("conv2d", y, name=name, params={"weight": weight}, **attrs)
        y = b.add("relu", b.add("batch_norm", y, name=f"{name}_norm", params=params, eps=1e-3))
    return Model(b.build({"output": y}))


X = rand(64, 8, 6, 6, seed=5)


def error(small, model, x):
    want = model(x)
    return float(np.square(small(x) - want).sum() / np.square(want - want.mean(0)).sum())


def test_filters_that_nothing_reaches_have_codes_of_ordinary_size():
    model = thin_net(dead=True)
    codecs = {"*": PQ(8, 2), "depthwise": PQ(8, 9)}
    small = pqnet.quantize(model, codecs, X, progress=False)
    for name in ("depthwise", "project"):
        assert np.abs(small.graph.params[f"{name}.weight"].codebook.astype(float)).max() < 100
    assert error(small, model, rand(64, 8, 6, 6, seed=6)) < 1.2 * error(
        pqnet.quantize(thin_net(dead=False), codecs, X, progress=False), thin_net(dead=False), X
    )


def test_presets_take_integers_where_codewords_are_too_many_for_a_layer():
    model = thin_net(dead=False)
    small = pqnet.quantize(model, "small-blocks", X, progress=False)
    report = small.graph.meta["quantization"]["layers"]
    assert report["depthwise"]["codec"]["codec"] == "intn"
    named = pqnet.quantize(model, {"depthwise": PQ(8, 9, clamp="floor")}, X, progress=False)
    assert named.graph.meta["quantization"]["layers"]["depthwise"]["codec"]["codec"] == "pq"  # as asked for
    assert report["depthwise"]["output_error"] < named.graph.meta["quantization"]["layers"]["depthwise"]["output_error"]


@pytest.mark.parametrize(
    "x",
    [
        2000 + 5 * rand(40, 16),
        np.float32(1.7e9) + 1e5 * rand(40, 16),
        np.concatenate([1e6 * (1 + 0.1 * rand(40, 1)), rand(40, 15)], 1),
        np.concatenate([0 * rand(40, 1), rand(40, 15)], 1),
        np.repeat(rand(1, 16), 40, 0),
        rand(1, 16),
        0 * rand(40, 16),
    ],
    ids=["years", "timestamps", "millions", "never", "alike", "one", "zeros"],
)
def test_data_of_any_offset_and_size_are_measured_and_coded(x):
    model = linear(16)
    stats = pqnet.calibrate(model, x)
    assert np.linalg.eigvalsh(doubted(stats.layers["a"].centred()[0], 0.0)).min() > 0
    for calibration in (x, stats):
        found = measure(model, calibration, progress=False)
        assert np.isfinite([choice.error for options in found.options.values() for choice in options]).all()
        assert np.isfinite([gain(None, 0.01) for gain in found.gains.values()]).all()
        small = pqnet.quantize(model, {"*": PQ(8, 2)}, calibration, progress=False)
        assert np.isfinite(small(x)).all()


def test_covariances_of_inputs_far_from_zero_keep_their_digits(tmp_path):
    x = 2000 + rand(60, 6)
    model = linear(6)
    found = pqnet.calibrate(model, x[:20]).merge(pqnet.calibrate(model, x[20:]))
    found.save(tmp_path / "s.h5")
    want = np.cov(x.T.astype(np.float64), bias=True)
    for stats in (pqnet.calibrate(model, x), found, pqnet.load_statistics(tmp_path / "s.h5")):
        np.testing.assert_allclose(stats.layers["a"].centred()[0], want, atol=1e-3 * want.max())
    with pytest.raises(pqnet.PQNetError, match="Moments.covariance: expected float32 of shape"):
        Moments(np.ones((1, 2, 2)), 5, np.ones((1, 2)), np.ones((1, 3, 3)))
    with pytest.raises(pqnet.PQNetError, match=r"Moments.mean: expected finite"):  # and no warning of NumPy
        Moments.about(np.full((1, 2), 1e30), np.ones((1, 2, 2)), 5)


def test_statistics_of_files_without_covariances_are_definite():
    """The difference of float32 moments about zero and of means has no digits left."""
    x = (2000 + 0.1 * rand(60, 6)).astype(np.float64)
    moments = Moments((x.T @ x / 60).astype(np.float32)[None], 60, x.mean(0).astype(np.float32)[None])
    assert np.linalg.eigvalsh(moments.centred()[0].astype(np.float64)).min() > 0


def test_reported_errors_are_those_of_other_samples():
    """Of few samples: what was found for them says little of others, what is reported does."""
    model = linear(48, hidden=48)
    x, other = rand(32, 48, seed=3), rand(500, 48, seed=4)
    small = pqnet.quantize(model, {"*": PQ(16, 4)}, x, progress=False)
    want = model(other)
    told = small.graph.meta["quantization"]["layers"]["b"]["output_error"]
    real = np.square(small(other) - want).sum() / np.square(want - model.graph.params["b.bias"]).sum()
    assert real / 1.5 < told < 1.5 * real


def test_targets_go_as_far_as_samples_put_aside_confirm():
    """Of fewer rows than inputs: the best of all dampings and steps, by brute force, and a gain on others again."""
    rng = np.random.default_rng(0)
    n, outputs = 40, 12
    mix, truth = rng.standard_normal((n, n)) * np.geomspace(1, 0.1, n), 0.3 * rng.standard_normal((outputs, n))
    weight, gain = rand(outputs, n), np.geomspace(0.2, 5, outputs)

    def inputs(rows):
        s = rng.standard_normal((rows, n)) @ mix.T
        u = s @ truth.T + 6 * rng.standard_normal((rows, outputs))
        zero, energy = np.zeros((1, outputs)), np.square(u).mean(0)[None]
        behind = (u.T @ s / rows)[None]
        moment, mean = (s.T @ s / rows)[None], np.zeros((1, n))
        return Inputs(moment, behind, 0 * behind, mean, zero, zero, energy, rows)

    few, others, many = inputs(30), inputs(30), inputs(20000)

    def left(judge, change):
        e = judge.behind_energy + ((change @ judge.moment - 2 * judge.behind) * change).sum(2)
        return float(np.square(gain) @ e[0])

    tried = []
    for damping in TARGET_DAMPINGS:
        moment = few.moment[0] + damping * np.diag(np.diag(few.moment[0]))
        change = few.behind[0] @ np.linalg.inv(moment)
        tried += [left(others, a * change) for a in np.linspace(0, 3, 301)]
    found = few.target(weight, gain, others).astype(np.float64) - weight
    assert left(others, found) == pytest.approx(min(tried), rel=1e-3)
    assert (
        left(many, found) < 0.9 * left(many, np.zeros_like(found)) < left(many, few.behind[0] @ np.linalg.pinv(moment))
    )


def test_every_eighth_sample_is_put_aside_where_there_are_eight():
    graph = linear(4).graph
    x = np.arange(80, dtype=np.float32).reshape(20, 4)
    batches, learned = hold_out(graph, [{"input": x[:9]}, {"input": x[9:12]}, {"input": x[12:13]}, {"input": x[13:]}])
    ours, theirs = (np.concatenate([b["input"] for b in part]) for part in (batches[:learned], batches[learned:]))
    assert np.array_equal(theirs, x[[4, 12]]) and np.array_equal(ours, np.delete(x, [4, 12], 0))
    assert hold_out(graph, [{"input": x[:7]}])[1] == 1


def test_doubt_is_the_share_of_correlations_that_other_samples_do_not_have():
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((20, 20)) * np.geomspace(1, 1e4, 20)[:, None]  # sizes do not matter
    x = rng.standard_normal((4000, 20)) @ mix.T

    def moment(rows):
        return (rows.T @ rows / len(rows))[None]

    assert measured_doubt(moment(x[:2000]), moment(x[2000:])) < 0.02
    few = [measured_doubt(moment(x[i : i + 10]), moment(x[2000:])) for i in range(0, 200, 10)]
    assert 0.3 < np.mean(few) < 0.8
    alone = rng.standard_normal((10, 20)), rng.standard_normal((4000, 20))
    assert measured_doubt(*map(moment, alone)) > 0.8
    assert measured_doubt(moment(0 * x), moment(x)) == 0.0


def test_integers_are_only_tried_by_presets():
    found = pqnet.quantize(thin_net(dead=False), {"*": PQ(8, 2), "depthwise": IntN(4)}, X, progress=False)
    codecs = {n: e["codec"]["codec"] for n, e in found.graph.meta["quantization"]["layers"].items()}
    assert codecs == {"stem": "pq", "expand": "pq", "depthwise": "intn", "project": "pq"}
