"""Ranges of 8-bit integer inputs: how they are found, judged and stored."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pqnet
from pqnet.demo import load_images, model_path
from pqnet.errors import ConfigError, FormatError, PQNetError
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.graph.ranges import INPUT_RANGES, OUTPUT_SHIFTS, TOKEN_SCALES, pack_shift
from pqnet.io import read_container, write_container
from pqnet.pipeline.activations import _AsIntegers, _mean_error
from pqnet.pipeline.observers import Histogram, range_of


@pytest.fixture(scope="module")
def small() -> pqnet.Model:
    model = pqnet.load(model_path())
    return pqnet.quantize(model, "small-blocks", load_images()[0][:200], activations="int8", progress=False)


def test_the_demo_in_integers(small: pqnet.Model, tmp_path: Path) -> None:
    _, images, labels = load_images()
    small.save(tmp_path / "small.h5")
    right = {}
    for compute in ("float32", "bfloat16", "int8", "auto"):
        model = pqnet.load(tmp_path / "small.h5", compute)
        assert model.graph.meta[INPUT_RANGES] == small.graph.meta[INPUT_RANGES]
        right[compute] = (model(images).argmax(1) == labels).sum()
    assert max(right.values()) - min(right.values()) <= 2


def test_float_results_are_those_without_ranges(small: pqnet.Model) -> None:
    images = load_images()[1][:10]
    plain = pqnet.quantize(pqnet.load(model_path()), "small-blocks", load_images()[0][:200], progress=False)
    assert np.array_equal(plain(images), small(images))
    assert INPUT_RANGES not in plain.graph.meta


def test_what_is_recorded(small: pqnet.Model) -> None:
    about, ranges = small.graph.meta["activations"], small.graph.meta[INPUT_RANGES]
    assert set(ranges) | set(about["float"]) == set(small.graph.layers()) == set(about["errors"])
    assert about["kept"] >= 0.98 and about["measure"] == "top1"
    assert all(0 <= error < 0.01 for error in about["errors"].values())
    assert all(low == 0 < high for low, high in ranges.values())  # behind ReLU, or an image


def test_weights_stay_without_a_recipe(small: pqnet.Model) -> None:
    again = pqnet.quantize(small, None, load_images()[0][:50], activations="int8", progress=False)
    for name, param in small.graph.params.items():
        assert again.graph.params[name] is param or np.array_equal(again.graph.params[name], param)
    assert set(again.graph.meta[INPUT_RANGES])


def test_layers_that_suffer_stay_float() -> None:
    rng = np.random.default_rng(0)
    images = load_images()[0][:64]
    model = pqnet.load(model_path())
    graph = model.graph
    outlier = rng.standard_normal(graph.params["layer1.0.conv1.weight"].shape).astype(np.float32)
    outlier[0, 0, 0, 0] = 1e4  # its filter, in steps of 80, is nothing but this
    graph = replace(graph, params=graph.params | {"layer1.0.conv1.weight": outlier})
    found = pqnet.quantize(pqnet.Model(graph), None, images, activations="int8", max_drop=0.0, progress=False)
    errors = found.graph.meta["activations"]["errors"]
    assert max(errors, key=lambda name: errors[name]) in {*found.graph.meta["activations"]["float"], *errors}
    kept = found.graph.meta["activations"]["kept"]
    assert kept >= 1 - 1 / 64


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 4.0, 40.0]))
def test_ranges_leave_the_least_squared_error(seed: int, tail: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(2000) + (rng.random(2000) < 0.01) * rng.standard_normal(2000) * tail
    low, high = min(x.min(), 0), max(x.max(), 0)
    counts = np.histogram(x, 2048, (low, high))[0].astype(float)

    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        zero = np.rint(-low / step)
        return float(np.square((np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step - x).sum())

    found = range_of(counts, low, high, "mse")
    assert low <= found[0] <= 0 <= found[1] <= high
    assert error(*found) <= 1.02 * error(low, high)
    assert error(*found) <= 1.1 * min(error(low * a, high * b) for a in (0.3, 0.6, 1) for b in (0.3, 0.6, 1))


def test_other_observers() -> None:
    rng = np.random.default_rng(0)
    x = np.append(rng.standard_normal(100_000), [-30.0, 50.0])
    counts = np.histogram(x, 2048, (-30, 50))[0].astype(float)
    assert range_of(counts, -30.0, 50.0, "minmax") == (-30, 50)
    low, high = range_of(counts, -30.0, 50.0, "percentile")
    assert np.allclose([low, high], np.percentile(x, [0.005, 99.995]), atol=80 / 2048)
    positive = range_of(np.where(np.arange(2048) < 3, 1000.0, 0), 0.0, 10.0, "percentile")
    assert positive[0] == 0 < positive[1] < 0.02
    assert range_of(np.eye(1, 2048)[0], 0.0, 10.0, "percentile")[1] > 0


def test_quantize_with_other_observers() -> None:
    images, ranges = load_images()[0][:32], {}
    for observer in ("minmax", "percentile"):
        found = pqnet.quantize(
            pqnet.load(model_path()), None, images, activations="int8", observer=observer, max_drop=1, progress=False
        )
        assert found.graph.meta["activations"]["observer"] == observer
        ranges[observer] = found.graph.meta[INPUT_RANGES]
    wider = [high > ranges["percentile"][name][1] for name, (_, high) in ranges["minmax"].items()]
    assert any(wider) and all(high >= ranges["percentile"][n][1] for n, (_, high) in ranges["minmax"].items())


def test_integers_are_right_on_average() -> None:
    """Weights of 8 bits with a constant error, on inputs with a mean: shifts take the error out of the mean."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 40)).astype(np.float32)
    weight[:, 0] = 60.0  # steps of about 0.47: all other weights are rounded coarsely
    x = (rng.random((400, 40)) + 1).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(("batch", 40))}, {"batch": 2})
    model = pqnet.Model(b.build({"y": b.add("linear", "x", name="fc", params={"weight": weight})}))
    batches = [x[i : i + 4] for i in range(0, 400, 4)]
    found = pqnet.quantize(model, None, batches, activations="int8", max_drop=1.0, progress=False)
    plain = replace(found.graph, meta=found.graph.meta | {OUTPUT_SHIFTS: {}})
    wrong = [
        np.abs((_AsIntegers(graph).run({"x": x})["y"] - model(x)).mean(0)).mean() for graph in (plain, found.graph)
    ]
    assert wrong[1] < 0.2 * wrong[0]


def test_ranges_of_statistics_are_those_of_data(tmp_path: Path) -> None:
    model, images = pqnet.load(model_path()), load_images()[0][:120]
    whole = pqnet.calibrate(model, images, activations="int8")
    halves = [pqnet.calibrate(model, part, activations="int8", threads=2) for part in (images[:50], images[50:])]
    halves[0].save(tmp_path / "half.h5")
    merged = pqnet.load_statistics(tmp_path / "half.h5").merge(halves[1])
    assert all(seen.counts.sum() == whole.inputs[name].counts.sum() for name, seen in merged.inputs.items())
    for observer in ("minmax", "mse", "percentile"):
        wanted, found, joined = (
            pqnet.quantize(model, None, source, activations="int8", observer=observer, max_drop=1.0).graph.meta
            for source in (images, whole, merged)
        )
        assert found[INPUT_RANGES].keys() == wanted[INPUT_RANGES].keys() == set(model.graph.layers())
        for name, ends in wanted[INPUT_RANGES].items():
            near = 0 if observer == "minmax" else 0.05 * ends[1]
            assert np.abs(np.subtract(found[INPUT_RANGES][name], ends)).max() <= near
            assert np.abs(np.subtract(joined[INPUT_RANGES][name], ends)).max() <= near
        assert not found[OUTPUT_SHIFTS] and found["activations"] == {"dtype": "int8", "observer": observer}
    small = pqnet.quantize(model, "small-blocks", merged, activations="int8", progress=False)
    _, images, labels = load_images()
    right = [int((pqnet.Model(small.graph, compute=c)(images).argmax(1) == labels).sum()) for c in ("float32", "int8")]
    assert abs(right[0] - right[1]) <= 0.01 * len(labels)


def test_padding_has_no_share_in_histograms() -> None:
    b = GraphBuilder(
        {"x": ValueInfo(("batch", 6, 8)), "attention_mask": ValueInfo(("batch", 6), "int64")}, {"batch": 2}
    )
    mask = b.add("reshape", b.add("cast", "attention_mask", dtype="float32"), shape=("batch", 6, 1))
    y = b.add("linear", b.add("add", "x", mask), name="fc", params={"weight": np.ones((8, 8), np.float32)})
    x, real = np.zeros((4, 6, 8), np.float32), np.ones((4, 6), np.int64)
    x[:, 4:], real[:, 4:] = 100, 0
    stats = pqnet.calibrate(pqnet.Model(b.build({"y": y})), {"x": x, "attention_mask": real}, activations="int8")
    assert (stats.inputs["fc"].low, stats.inputs["fc"].high) == (0, 1)
    assert stats.inputs["fc"].counts.sum() == 4 * 4 * 8


def test_statistics_without_ranges_and_forged_ones(tmp_path: Path) -> None:
    model, images = pqnet.load(model_path()), load_images()[0][:8]
    plain = pqnet.calibrate(model, images)
    good = pqnet.calibrate(model, images, activations="int8")
    assert not plain.inputs and not plain.merge(good).inputs
    with pytest.raises(ConfigError, match="activations: expected statistics that know .* calibrate with"):
        pqnet.quantize(model, None, plain, activations="int8")
    with pytest.raises(ConfigError, match="activations: expected one of None, 'int8'"):
        pqnet.calibrate(model, images, activations="int4")
    other = pqnet.Statistics(plain.layers, inputs={"nothing": Histogram.of(images, 1)})
    with pytest.raises(PQNetError, match="input_ranges"):
        pqnet.quantize(model, None, other, activations="int8")
    with pytest.raises(PQNetError, match="inputs: expected a dict of Histogram"):
        pqnet.Statistics(plain.layers, inputs={"fc": [0, 1]})  # type: ignore[dict-item]
    good.save(tmp_path / "good.h5")
    header, arrays = read_container(tmp_path / "good.h5", "statistics")
    forged: list[tuple[str, object, dict[str, np.ndarray]]] = [
        ("fc", [1.0, 2.0], {}),
        ("fc", [0.0, 1e39], {}),
        ("fc", [0.0], {}),
        ("fc", None, {}),
        ("nothing", [0.0, 1.0], {}),
        ("fc", [0.0, 1.0], {"counts of fc": np.full(2048, -1)}),
        ("fc", [0.0, 1.0], {"counts of fc": np.zeros(2048, np.float32)}),
    ]
    for name, ends, counts in forged:
        changed = {**header, "inputs": {**header["inputs"], name: ends}}
        write_container(tmp_path / "bad.h5", "statistics", changed, arrays | counts)
        with pytest.raises(FormatError, match=r"bad\.h5"):
            pqnet.load_statistics(tmp_path / "bad.h5")


@pytest.mark.parametrize("unequal", [False, True])
def test_unequal_rows_get_scales_of_their_own(unequal: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((12, 32)).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(("batch", 7, 32))}, {"batch": 2})
    model = pqnet.Model(b.build({"y": b.add("linear", "x", name="fc", params={"weight": weight})}))
    x = rng.uniform(-1, 1, (40, 7, 32)).astype(np.float32)  # numbers of a row reach as far as those of all
    x *= np.exp(unequal * rng.standard_normal((40, 7, 1)) * 2).astype(np.float32)
    found = pqnet.quantize(model, None, x, activations="int8", max_drop=1.0, progress=False)
    found.save(tmp_path / "found.h5")
    quick = pqnet.load(tmp_path / "found.h5", "int8")
    assert quick.graph.meta[TOKEN_SCALES] == (["fc"] if unequal else [])
    one_scale = replace(found.graph, meta=found.graph.meta | {TOKEN_SCALES: []})
    wrong = [
        float(np.square(_AsIntegers(graph).run({"x": x})["y"] - model(x)).sum()) for graph in (one_scale, quick.graph)
    ]
    assert wrong[1] < 0.5 * wrong[0] if unequal else wrong[1] == wrong[0]
    assert found.graph.meta["activations"]["errors"]["fc"] < 1e-4


def test_modules_trained_with_one_scale_for_all_rows() -> None:
    import torch
    from torch import nn

    from pqnet.train import ActivationNoise, to_model
    from pqnet_converters import from_torch

    net = nn.Sequential(nn.Linear(16, 4))
    graph = from_torch(net, torch.zeros(1, 16)).graph
    model = pqnet.Model(replace(graph, meta=graph.meta | {INPUT_RANGES: {"0": [0, 1]}, TOKEN_SCALES: ["0"]}))
    assert to_model(net, model).graph.meta[TOKEN_SCALES] == ["0"]
    ActivationNoise(net, {"0": 8})
    net(torch.ones(4, 16))
    assert to_model(net, model).graph.meta[TOKEN_SCALES] == []


def test_shifts_of_other_weights_are_dropped() -> None:
    from pqnet.train import to_model, to_module

    graph = pqnet.load(model_path()).graph
    shifts = {"fc": pack_shift(np.ones(graph.params["fc.weight"].shape[0]))}
    shifted = pqnet.Model(replace(graph, meta=graph.meta | {INPUT_RANGES: {"fc": [0, 1]}, OUTPUT_SHIFTS: shifts}))
    small = pqnet.quantize(shifted, {"fc": pqnet.PQ(16, 4)}, metric="none", progress=False)
    assert small.graph.meta[INPUT_RANGES] == {"fc": [0, 1]} and OUTPUT_SHIFTS not in small.graph.meta
    back = to_model(to_module(shifted))
    assert back.graph.meta[INPUT_RANGES] == {"fc": [0, 1]} and OUTPUT_SHIFTS not in back.graph.meta


def test_a_few_large_errors_move_no_shift() -> None:
    rng = np.random.default_rng(0)
    errors = 0.01 * rng.standard_normal((1000, 3)).astype(np.float32)
    errors[:, 1] += 0.05
    errors[:10, 2] += 20
    shift = _mean_error(errors)
    assert abs(shift[0]) < 1e-3 and shift[1] == pytest.approx(0.05, rel=0.05) and shift[2] == 0


def test_padding_has_no_share_in_ranges_of_later_layers() -> None:
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((8, 8)).astype(np.float32) for _ in range(2)]
    b = GraphBuilder(
        {"x": ValueInfo(("batch", 6, 8)), "attention_mask": ValueInfo(("batch", 6), "int64")}, {"batch": 2}
    )
    mask = b.add("reshape", b.add("cast", "attention_mask", dtype="float32"), shape=("batch", 6, 1))
    y = b.add("add", b.add("linear", "x", name="first", params={"weight": weights[0]}), mask)
    model = pqnet.Model(b.build({"y": b.add("linear", y, name="second", params={"weight": weights[1]})}))
    x, real = rng.standard_normal((16, 6, 8)).astype(np.float32), np.ones((16, 6), np.int64)
    real[:, 4:] = 0
    found = []
    for size in (1.0, 1000.0):
        x[:, 4:] = size
        data = {"x": x, "attention_mask": real}
        small = pqnet.quantize(model, None, data, activations="int8", max_drop=1.0, progress=False)
        found.append((small.graph.meta[INPUT_RANGES], small.graph.meta[OUTPUT_SHIFTS]))
    assert found[0] == found[1]


def test_the_same_ranges_for_any_thread_count(small: pqnet.Model) -> None:
    images = load_images()[0][:40]
    found = [
        pqnet.quantize(small, None, images, activations="int8", threads=threads, progress=False) for threads in (1, 3)
    ]
    assert found[0].graph.meta == found[1].graph.meta


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"activations": "int4"}, "activations"),
        ({"activations": "int8", "calibration": None}, "activations: expected calibration data"),
        ({"activations": "int8", "observer": "best"}, "observer"),
        ({"activations": "int8", "max_drop": -1}, "max_drop: expected a number from 0 to 1"),
        ({"activations": "int8", "max_drop": "1%"}, "max_drop: expected a number from 0 to 1"),
        ({"activations": None}, "recipe"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, object], expected: str) -> None:
    options = {"calibration": load_images()[0][:8], "progress": False} | arguments
    with pytest.raises(ConfigError if "recipe" not in expected else PQNetError, match=expected):
        pqnet.quantize(pqnet.load(model_path()), None, **options)


@pytest.mark.parametrize(
    "ranges",
    [
        {"nothing": [0, 1]},
        {"fc": [0, 0]},
        {"fc": [1, 2]},
        {"fc": [0, float("inf")]},
        {"fc": ["0", 1]},
        {"fc": [0]},
        {"fc": None},
        [1],
    ],
)
def test_forged_ranges(ranges: object) -> None:
    graph = pqnet.load(model_path()).graph
    with pytest.raises(PQNetError, match="input_ranges"):
        pqnet.Model(replace(graph, meta=graph.meta | {INPUT_RANGES: ranges}), compute="int8")


@pytest.mark.parametrize("names", [["nothing"], ["conv1"], "fc", [["fc"]], None, {"fc": True}])
def test_forged_token_scales(names: object) -> None:
    graph = pqnet.load(model_path()).graph
    meta = graph.meta | {INPUT_RANGES: {"fc": [0, 1], "conv1": [0, 1]}, TOKEN_SCALES: names}
    with pytest.raises(PQNetError, match="token_scales.: expected a list of linear layers that have a range"):
        pqnet.Model(replace(graph, meta=meta), compute="int8")


@pytest.mark.parametrize(
    "shifts",
    [
        {"nothing": [0.1, "AAAA"]},
        {"fc": [0.1, "AAAA"]},
        {"fc": [float("nan"), "AA=="]},
        {"fc": [0.1, 5]},
        {"fc": [0.1, "?"]},
        {"fc": None},
        [1],
    ],
)
def test_forged_shifts(shifts: object) -> None:
    graph = pqnet.load(model_path()).graph
    meta = graph.meta | {INPUT_RANGES: {"fc": [0, 1]}, OUTPUT_SHIFTS: shifts}
    with pytest.raises(PQNetError, match="output_shifts"):
        pqnet.Model(replace(graph, meta=meta), compute="int8")


def test_copies_keep_the_arithmetic() -> None:
    import copy

    assert copy.deepcopy(pqnet.load(model_path(), "auto")).compute == "auto"
    with pytest.raises(PQNetError, match="compute"):
        pqnet.load(model_path(), "float16")
