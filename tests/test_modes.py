"""The published algorithms: what each finds, and what it refuses."""

import hashlib

import naive
import numpy as np
import pytest
from test_pipeline import DATA, RECIPE, moments_by_hand, small_net

import pqnet
from pqnet import PQ, ConfigError, PQNetError, Scalar
from pqnet.fit import annealed
from pqnet.fit.annealed import annealed_kmeans

K, D = 5, 2
CODECS = {"grouped": PQ(16, 4), "fc": PQ(K, D, codebook_dtype="float32")}


@pytest.mark.parametrize("mode", ["bgd", "ipq"])
def test_bgd_and_ipq_are_plain_kmeans_from_random_blocks(mode):
    """The slow reference from the same start, bgd under the mean second moment of what the quantized layers give."""
    model = small_net()
    small = pqnet.quantize(model, CODECS, DATA, mode=mode, threads=1, progress=False)
    h, at = moments_by_hand(small, DATA), np.arange(12).reshape(-1, D)
    metric = h[at[:, :, None], at[:, None, :]].mean(0) if mode == "bgd" else None
    blocks = model.graph.params["fc.weight"].reshape(-1, D)
    seed = int.from_bytes(hashlib.sha256(b"0/fc").digest()[:6], "big")
    start = pqnet.weighted_kmeans(blocks, K, metric=metric, init="random", n_iter=0, seed=seed).codebook
    assert all((np.abs(blocks - word).max(1) < 1e-6).any() for word in start)
    entry = small.graph.meta["quantization"]["layers"]["fc"]
    want = start.astype(float)
    for _ in range(entry["iterations"]):
        want = naive.lloyd_step(blocks, want, np.ones(len(blocks)), metric)
    codes = naive.distances(blocks, want, metric).argmin(1)
    assert np.allclose(small.graph.params["fc.weight"].decode().reshape(-1, D), want[codes], atol=1e-5)
    assert 1 < entry["iterations"] <= 15


def test_modes_change_nothing_but_the_codes_and_are_recorded(tmp_path):
    model = small_net()
    for mode in ("bgd", "pqf", "ipq"):
        small = pqnet.quantize(model, RECIPE, DATA, mode=mode, threads=1, progress=False)
        small.save(tmp_path / f"{mode}.h5")
        record = pqnet.load(tmp_path / f"{mode}.h5").graph.meta["quantization"]
        options = {"mode": mode, "metric": "pooled" if mode == "bgd" else "none", "target": "weight"}
        assert record.items() >= (options | {"correct_bias": False, "reestimate_norm": False, "seed": 0}).items()
        plain = pqnet.quantize(model, RECIPE, metric="none", progress=False).graph.params
        for name, param in small.graph.params.items():
            reorder = mode == "pqf" and isinstance(param, np.ndarray)
            a, b = (np.sort(p, None) if reorder else p for p in (param, plain[name]))
            same = isinstance(a, np.ndarray) and np.array_equal(a, b)  # pqf: in another order
            assert same == (name not in ("grouped.weight", "up.weight", "fc.weight"))
        again = pqnet.quantize(model, RECIPE, DATA, mode=mode, threads=2, progress=False)
        again.save(tmp_path / "again.h5")
        assert (tmp_path / "again.h5").read_bytes() == (tmp_path / f"{mode}.h5").read_bytes()
    assert pqnet.quantize(model, RECIPE, metric="none", progress=False).graph.meta["quantization"]["mode"] is None


@pytest.mark.parametrize("mode", ["pqf", "ipq"])
def test_modes_on_weights_alone_need_no_data(mode):
    model = small_net()
    alone = pqnet.quantize(model, RECIPE, mode=mode, progress=False)
    with_data = pqnet.quantize(model, RECIPE, DATA, mode=mode, reestimate_norm=True, progress=False)
    for name in ("grouped", "up", "fc"):
        assert alone.graph.params[f"{name}.weight"] == with_data.graph.params[f"{name}.weight"]
    assert not np.array_equal(alone.graph.params["norm2.bias"], with_data.graph.params["norm2.bias"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "vq"}, "mode: expected one of None, 'bgd', 'pqf', 'ipq', got str 'vq'"),
        ({"mode": "bgd", "metric": "pooled"}, "metric: expected None with mode='bgd', which sets it, got 'pooled'"),
        ({"mode": "ipq", "target": "weight"}, "target: expected None with mode='ipq'"),
        ({"mode": "pqf", "correct_bias": False}, "correct_bias: expected None with mode='pqf', .* got False"),
        (
            {"mode": "ipq", "recipe": {"fc": Scalar(4)}},
            "layer 'fc': expected the PQ codec for mode='ipq', got 'scalar'",
        ),
        ({"mode": "bgd", "calibration": None}, "calibration: expected data for mode='bgd', .* layer after layer"),
        ({"mode": "bgd", "calibration": pqnet.calibrate(small_net(), DATA[:9])}, "calibration: expected data"),
        ({"mode": "ipq", "calibration": None, "reestimate_norm": True}, "reestimate_norm: expected calibration data"),
    ],
)
def test_bad_modes(options, match):
    options = {"recipe": RECIPE, "calibration": DATA} | options
    with pytest.raises(ConfigError, match=match):
        pqnet.quantize(small_net(), progress=False, **options)


# -- annealed k-means ------------------------------------------------------------------------------------------


def test_annealing_adds_the_mean_of_fading_noise(monkeypatch):
    """One codeword: its i-th update lies (1 - i / I)**0.5 deviations of the mean of n blocks around their mean."""
    seen = []
    monkeypatch.setattr(annealed, "assign", lambda v, codebook, threads: seen.append(codebook) or np.zeros(len(v), int))
    blocks = np.random.default_rng(0).standard_normal((100, 2)).astype(np.float32) * [1, 3]
    for seed in range(300):
        annealed_kmeans(blocks, 1, n_iter=4, seed=seed)
    updates = np.array(seen).reshape(300, 6, 2)[:, 1:] - blocks.mean(0)
    want = np.sqrt(1 - np.arange(5) / 4)[:, None] * blocks.std(0) / 10
    assert np.allclose(updates.std(0), want, rtol=0.15, atol=1e-6)
    assert np.abs(updates.mean(0)).max() < 0.06


def test_annealing_finds_better_codewords_than_the_random_start_alone():
    blocks = np.random.default_rng(1).standard_normal((1280, 4)).astype(np.float32)
    found = annealed_kmeans(blocks, 64, n_iter=100, seed=0, threads=1)
    assert found.error < 0.97 * pqnet.weighted_kmeans(blocks, 64, init="random", seed=0).error
    assert found.error == pytest.approx(np.square(blocks - found.codebook[found.codes]).sum(), rel=1e-5)
    again = annealed_kmeans(blocks, 64, n_iter=100, seed=0, threads=2)
    assert np.array_equal(found.codebook, again.codebook) and np.array_equal(found.codes, again.codes)


def test_annealed_codewords_without_members_are_zero():
    found = annealed_kmeans(np.ones((6, 2), np.float32), 3, n_iter=5, seed=0)
    assert sorted(found.codebook.sum(1).round(6)) == [0, 0, 2] and found.error < 1e-9


def test_annealing_takes_no_metric():
    weight = np.ones((8, 4), np.float32)
    for name, value in {"metric": np.eye(2), "row_weights": np.ones(8), "init": "random"}.items():
        with pytest.raises(PQNetError, match=f"{name}: expected None with annealed=True, got"):
            PQ(2, 2).fit(weight, annealed=True, **{name: value})
