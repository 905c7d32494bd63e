"""Plans for a file size: the allocation against brute force, predictions against files, errors, and the commands."""

import csv
import re
import sys
from dataclasses import replace

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_pipeline import small_net

import pqnet
from pqnet import PQ, Additive, ConfigError, IntN, Model, PQNetError, Recipe, Sparse
from pqnet.cli.main import main
from pqnet.demo import load_images, model_path
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.io import graph_nbytes
from pqnet.pipeline import FileSizes, measure, parse_size
from pqnet.pipeline.allocate import allocations
from pqnet.pipeline.moments import doubted, output_squares, share_to_doubt
from pqnet.pipeline.noise import quantized_alike
from pqnet.pipeline.rates import (
    PERTURBED,
    WEAK,
    Gain,
    LayerRates,
    _trace_of_solution,
    block_sizes,
    codec_nbytes,
    smallest_codec,
)
from pqnet.pipeline.sensitivity import Reach, network_gains
from pqnet.pipeline.statistics import Moments


def rand(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def demo():
    return pqnet.load(model_path())


@pytest.fixture(scope="module")
def images():
    return load_images()[0][:200]


@pytest.fixture(scope="module")
def measured(demo, images):
    return measure(demo, images)


# -- sizes as text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        (5_000_000, 5_000_000),
        (np.int64(7), 7),
        ("5MB", 5_000_000),
        ("800kB", 800_000),
        ("800 kb", 800_000),
        (" 1.5 MiB ", 3 << 19),
        ("2KiB", 2048),
        ("1GB", 10**9),
        ("0.25GiB", 1 << 28),
        ("12345", 12345),
        ("77B", 77),
    ],
)
def test_sizes(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("size", ["", "MB", "5 megabytes", "-5MB", "1e6", "5,5MB", "0", 0, -1, 2.5, True, None, b"5MB"])
def test_what_is_no_size(size):
    with pytest.raises(ConfigError, match=r"^target_size: expected a number of bytes such as 5000000, '5MB'.*, got "):
        parse_size(size)


# -- the allocation ------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 30), st.integers(0, 100)), min_size=1, max_size=5), min_size=1, max_size=5
    ),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_allocations_are_those_of_brute_force(items, a, b):
    sizes = [np.array([size for size, _ in options]) for options in items]
    errors = [np.array([float(error) for _, error in options]) for options in items]
    low, high = min(a, b), max(a, b)
    wanted = naive.allocation(sizes, errors, low, high)
    choices = list(allocations(sizes, errors, low, high, cells=1000))
    assert bool(choices) == (wanted is not None)
    if wanted is not None:
        totals = [sum(int(s[i]) for s, i in zip(sizes, choice, strict=True)) for choice in choices]
        losses = [sum(e[i] for e, i in zip(errors, choice, strict=True)) for choice in choices]
        assert losses[0] == wanted and losses == sorted(losses)
        assert all(low <= total <= high for total in totals) and len(set(totals)) == len(totals)


def test_rounding_to_cells_never_exceeds_the_bound():
    rng = np.random.default_rng(0)
    sizes = [np.sort(rng.integers(1, 10**6, 20)) for _ in range(12)]
    errors = [1.0 / size for size in sizes]
    for high in (2_000_000, 5_000_000):
        choice = next(allocations(sizes, errors, int(0.98 * high), high, cells=5000))
        total = sum(int(s[i]) for s, i in zip(sizes, choice, strict=True))
        assert 0.97 * high <= total <= high


# -- what is measured ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 10), (16, 8, 3, 3), (9, 1, 5, 5)])
@pytest.mark.parametrize("codec", [PQ(5, 1), PQ(4, 1, codebook_dtype="int8"), IntN(5), IntN(8, per="group", group=1)])
def test_bytes_of_a_codec_are_those_of_a_fit(shape, codec):
    assert codec_nbytes(codec, shape) == codec.fit(rand(*shape)).nbytes
    assert codec_nbytes(None, shape) == rand(*shape).nbytes


@pytest.mark.parametrize("shape", [(12, 10), (16, 8, 3, 3), (9, 1, 5, 5), (600, 16), (4, 3)])
@pytest.mark.parametrize("fast", [False, True])
def test_the_smallest_candidate_is_known_before_anything_is_measured(shape, fast):
    node = linear_net().graph.layers()["first"]
    moments = Moments(np.eye(int(np.prod(shape[1:])), dtype=np.float32)[None], 9)
    choices = LayerRates(node, rand(*shape), moments, 0, 1, fast=fast).choices()
    assert min(c.nbytes for c in choices) == codec_nbytes(smallest_codec(shape, fast), shape)
    names = {type(c.codec).__name__ for c in choices}
    assert ({"IntN"} < names and fast) or {"NoneType", "IntN", "Fixed", "Sparse"} <= names
    assert all(c.codec is None or c.nbytes == c.codec.nbytes(shape).total for c in choices)
    assert fast or any(d == 1 for d, _ in block_sizes(shape, fast))


def linear_net():
    b = GraphBuilder({"input": ValueInfo(("batch", 16))}, {"batch": 2})
    x = b.add("linear", "input", name="first", params={"weight": rand(32, 16)})
    x = b.add("linear", x, name="second", params={"weight": rand(8, 32, seed=1), "bias": rand(8)})
    return Model(b.build({"output": x}))


def test_gains_are_those_of_an_error_that_passes_through():
    model, x = linear_net(), rand(20, 16, seed=3)
    first, second = (model.graph.params[f"{n}.weight"].astype(float) for n in ("first", "second"))
    change = {"first": 0.1 * rand(32, 16, seed=5), "second": 0.1 * rand(8, 32, seed=6)}

    def perturb(node):
        return [model.graph.params[node.params["weight"]] + change[node.name]]

    def measured(corrected=None):
        found = network_gains(model.graph, batches, perturb, list(change), 1, corrected)
        return {name: reach.gain for name, [reach] in found.items()}

    out = np.square(model(x).astype(float)).sum()
    batches = [{"input": x[:7]}, {"input": x[7:]}]
    gains = measured()
    hidden = x @ first.T
    wrong = x @ change["first"].T.astype(float)
    share = np.square(wrong).sum() / np.square(hidden).sum()
    assert gains["first"] == pytest.approx(np.square(wrong @ second.T).sum() / out / share, rel=1e-4)
    through = np.square(hidden @ second.T).sum() / out
    assert gains["second"] == pytest.approx(through, rel=1e-4)
    second_corrected = measured({"second": np.ones(8)})
    assert second_corrected == pytest.approx(gains, rel=1e-4)  # the last layer: what comes out is what went wrong
    first_corrected = measured({"first": np.ones(32)})
    wrong -= wrong.mean(0)  # something takes the mean
    share = np.square(wrong).sum() / np.square(hidden).sum()
    assert first_corrected["first"] == pytest.approx(np.square(wrong @ second.T).sum() / out / share, rel=1e-4)
    assert first_corrected["first"] != pytest.approx(gains["first"], rel=1e-3)
    factors = np.abs(rand(32, seed=7))  # by which outputs count
    weighed = measured({"first": factors})
    share = np.square(factors * wrong).sum() / np.square(factors * hidden).sum()
    assert weighed["first"] == pytest.approx(np.square(wrong @ second.T).sum() / out / share, rel=1e-4)


def test_predicted_errors_are_near_those_of_quantization(measured, demo, images):
    """Through the whole search, of a layer alone: from statistics as from data, which both give outputs their means."""
    codec, statistics = PQ(64, 8, "channel"), pqnet.calibrate(demo, images)
    names = [name for name in measured.options if name.startswith("layer")]
    plain = measure(demo, statistics)
    for name in names:
        predicted = {}
        for what, calibration in ((plain, statistics), (measured, images)):
            entry = pqnet.quantize(demo, {name: codec}, calibration).graph.meta["quantization"]["layers"][name]
            predicted[what is plain] = next(c.error for c in what.options[name] if c.codec == codec)
            assert 0.5 < predicted[what is plain] / entry["output_error"] < 2, name
        assert predicted[False] == pytest.approx(predicted[True], rel=0.3)
    assert len(names) == 5


def test_noise_like_that_of_the_search():
    """Of the size asked for, alike in all directions of the inputs, and what is left is orthogonal to it."""
    weight, x = rand(400, 12), rand(3000, 12) @ rand(12, 12, seed=1) * np.geomspace(0.3, 3, 12).astype(np.float32)
    moment = (x.T @ x / len(x))[None]
    noisy = quantized_alike(weight, moment, 0.05, 0)
    wrong = weight - noisy
    energies = [np.einsum("oi,ij,oj->", a, moment[0], b) for a, b in ((weight, weight), (wrong, wrong), (noisy, wrong))]
    assert energies[1] / energies[0] == pytest.approx(0.05, rel=0.15)
    assert abs(energies[2]) < 0.02 * energies[0]
    values, vectors = np.linalg.eigh(moment[0])
    part = np.square((wrong - 0.05 * weight) @ vectors).mean(0) * values
    strong = values > values.mean() / 2
    assert part[strong].max() < 2 * part[strong].min() and values[strong].max() > 4 * values[strong].min()
    np.testing.assert_array_equal(noisy, quantized_alike(weight, moment, 0.05, 0))


def test_the_error_of_the_network_is_predicted(measured, demo, images):
    held_out = load_images()[1]
    plan = measured.plan("12kB")
    small = pqnet.quantize(demo, plan.recipe, images, progress=False)
    wanted = demo(held_out).astype(float)
    real = np.square(small(held_out) - wanted).sum() / np.square(wanted).sum()
    assert 1 / 1.5 < plan.error / real < 1.5


def test_filters_of_unequal_size_are_rated_as_a_norm_lets_them_be_packed():
    """Of one size, with what the norm gives back; raw, all but the largest would be lost."""
    size = np.geomspace(1e-2, 1e2, 64).astype(np.float32)
    b = GraphBuilder({"input": ValueInfo(("batch", 32))}, {"batch": 2})
    x = b.add("linear", "input", name="wide", params={"weight": size[:, None] * rand(64, 32)})
    params = {"weight": 1 / size, "bias": rand(64), "mean": np.zeros(64, np.float32), "var": np.ones(64, np.float32)}
    x = b.add("batch_norm", x, name="norm", params=params, eps=1e-5)
    model, codec, inputs = Model(b.build({"output": x})), PQ(64, 4, "channel"), rand(400, 32, seed=3)
    found = measure(model, inputs, progress=False)
    error = next(c.error for c in found.options["wide"] if c.codec == codec)
    predicted = found.gains["wide"](codec, error) * error
    small, other = pqnet.quantize(model, {"wide": codec}, inputs, progress=False), rand(400, 32, seed=4)
    real = np.square(small(other) - model(other)).sum() / np.square(model(other)).sum()
    assert 1 / 1.5 < predicted / real < 1.5


def test_samples_have_their_share_of_the_energy():
    """Few outputs may have most of it, in transformers for one."""
    node, moments = linear_net().graph.layers()["first"], Moments(np.eye(64, dtype=np.float32)[None], 9)
    weight = rand(4096, 64)
    even = LayerRates(node, weight, moments, 0, 1)._rows(16)
    assert len(even) == 1024
    weight[1] *= 300
    np.testing.assert_array_equal(LayerRates(node, weight, moments, 0, 1)._rows(16), np.arange(4096))


def test_the_search_gains_where_blocks_depend_on_each_other():
    node = linear_net().graph.layers()["first"]
    independent = np.eye(16, dtype=np.float32)
    for a in range(0, 16, 4):
        independent[a : a + 4, a : a + 4] += 1
    dependent = rand(16, 16)
    rates = [
        LayerRates(node, rand(32, 16), Moments(m[None], 10**6), 0, 1) for m in (independent, dependent @ dependent.T)
    ]
    assert rates[0]._shaping(4, "spatial") == pytest.approx(1, abs=1e-3)
    assert rates[1]._shaping(4, "spatial") < 0.8
    assert rates[1]._shaping(16, "spatial") == pytest.approx(1)


def test_traces_of_many_inputs_are_known_to_a_percent():
    """Of correlated inputs, also where one matrix has directions that the other lacks."""
    x, y = rand(700, 600).astype(float) * np.exp(-np.arange(600) / 80), rand(300, 600, seed=1).astype(float)
    a, b = x.T @ x / 700 + 0.03 * np.eye(600), y.T @ y / 300
    exact = np.trace(np.linalg.solve(a, b))
    assert _trace_of_solution(a[None], b[None], 0) == pytest.approx(exact, rel=0.02)
    few = slice(99), slice(99)
    assert _trace_of_solution(a[few][None], b[few][None], 0) == np.trace(np.linalg.solve(a[few], b[few]))


@pytest.mark.parametrize("kind", ["timestamps", "one column far from zero"])
def test_sizes_are_met_where_hardly_anything_of_the_outputs_varies(kind):
    """Errors as a share of outputs that are large constants: 1e-12, and yet they tell codecs apart."""
    rng, b = np.random.default_rng(0), GraphBuilder({"x": ValueInfo(("batch", 32))}, {"batch": 2})
    y, size = "x", 32
    for i, outputs in enumerate((64, 64, 8)):
        bound = size**-0.5
        params = {"weight": rng.uniform(-bound, bound, (outputs, size)), "bias": rng.uniform(-bound, bound, outputs)}
        y = b.add("linear", y, name=f"{i}", params={k: v.astype(np.float32) for k, v in params.items()})
        y, size = b.add("relu", y) if i < 2 else y, outputs
    x = rand(500, 32)
    x = np.float32(1.7e9) + 1e5 * x if kind == "timestamps" else x + np.float32([1e4] + 31 * [0])
    recipe = pqnet.plan(Model(b.build({"y": y})), x, "10kB", progress=False)
    assert any(recipe.layers.values())


def test_what_the_search_takes_for_correlations_by_chance_is_foreseen():
    """Few independent rows for many inputs: the same codec, found under their moments, errs more on other rows."""
    n, weight = 96, rand(64, 96)
    mix = rand(n, n).astype(float) * np.exp(-np.arange(n) / 12)
    mix /= np.linalg.norm(mix, axis=1, keepdims=True)
    true, codec, node = mix @ mix.T, PQ(64, 4, "channel"), linear_net().graph.layers()["first"]
    found, foreseen = [], []
    for rows in (60, 4000):
        x = np.random.default_rng(0).standard_normal((rows, n)) @ mix.T
        known = doubted((x.T @ x / rows)[None], share_to_doubt(n, rows))
        found.append(output_squares(true[None], weight - codec.fit(weight, known[None]).decode()).sum())
        moments, others = (Moments(m[None].astype(np.float32), rows) for m in (x.T @ x / rows, true))
        rates = LayerRates(node, weight, moments, 0, 1, others=others)
        foreseen.append(next(c.error for c in rates.choices() if c.codec == codec))
    assert found[0] / found[1] > 1.5
    assert 1 / 1.4 < (foreseen[0] / foreseen[1]) / (found[0] / found[1]) < 1.4


# -- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [16_000, 33_333, 60_000, 250_000])
def test_files_fill_their_target(measured, demo, images, tmp_path, target):
    plans = {golden: measured.plan(target, golden=golden) for golden in (False, True)}
    for golden, plan in plans.items():
        small = pqnet.quantize(demo, plan.recipe, images, metric="none")
        if golden:
            small = small.with_golden(small.draw_golden())
        small.save(tmp_path / "small.h5")
        got = (tmp_path / "small.h5").stat().st_size
        assert graph_nbytes(small.graph, small.golden) == got
        assert 0.99 * target <= got <= plan.nbytes <= target
        assert plan.nbytes - got <= 64
        sizes = {n: s.codes + s.codebooks for n, s in small.size().per_layer.items()}
        assert all(sizes[n] == layer.nbytes for n, layer in plan.layers.items() if layer.codec)


def test_every_size_can_be_planned_for(measured):
    for target in np.geomspace(9_500, 400_000, 25).astype(int):
        assert 0.99 * target <= measured.plan(int(target), golden=True).nbytes <= target


def test_a_plan_is_better_than_one_k(measured, demo, images):
    held_out = load_images()[1]
    wanted = demo(held_out)
    statistics = pqnet.calibrate(demo, images)

    def error(recipe):
        small = pqnet.quantize(demo, recipe, statistics)
        return np.square(small(held_out) - wanted).sum() / np.square(wanted).sum(), graph_nbytes(small.graph)

    even = {"default": PQ(64, 8, "channel", clamp="floor")}
    one_k, nbytes = error(even)
    planned, less = error(measured.plan(nbytes).recipe)
    assert less <= nbytes and planned < 0.5 * one_k


def test_plans_do_not_depend_on_threads(demo, images):
    plans = [pqnet.plan(demo, images[:40], "30kB", threads=threads, progress=False) for threads in (1, 2)]
    assert plans[0] == plans[1] == Recipe.from_yaml(plans[0].to_yaml())


def test_latency_keeps_to_fast_layouts(demo, images):
    plan = pqnet.plan(demo, pqnet.calibrate(demo, images[:60]), "30kB", prefer="latency")
    blocks = {n: (c.d, c.layout) for n, c in plan.layers.items() if isinstance(c, PQ)}
    assert blocks and all(
        (d, layout) in ((8, "channel"), (16, "channel")) for n, (d, layout) in blocks.items() if n != "conv1"
    )


def test_embeddings_and_groups_are_planned():
    b = GraphBuilder({"ids": ValueInfo(("batch", 6), "int64")}, {"batch": 2})
    x = b.add("embedding", "ids", name="table", params={"weight": rand(600, 16)})
    x = b.add("reshape", b.add("permute", x, axes=(0, 2, 1)), shape=("batch", 16, 2, 3))
    x = b.add("conv2d", x, name="grouped", params={"weight": rand(32, 4, 1, 3)}, groups=4)
    x = b.add("conv2d", x, name="depthwise", params={"weight": rand(32, 1, 1, 1)}, groups=32)
    x = b.add("linear", b.add("mean", x, axes=(2, 3)), name="head", params={"weight": rand(5, 32)})
    model = Model(b.build({"output": x}))
    ids = np.random.default_rng(0).integers(0, 600, (30, 6))
    for source in (ids, [ids[:8], ids[8:]], pqnet.calibrate(model, ids)):
        for target in (12_000, 16_000):
            recipe = pqnet.plan(model, source, target)
            small = pqnet.quantize(model, recipe, source, metric="block")
            assert 0.99 * target <= graph_nbytes(small.graph) <= target


# -- errors --------------------------------------------------------------------------------------------------


def test_sizes_that_no_plan_meets(measured, demo):
    with pytest.raises(
        ConfigError, match=r"^target_size: expected \d+ bytes \(the smallest plan, \d+\S*x\) to .*, got 2000;"
    ):
        measured.plan(2000)
    with pytest.raises(ConfigError, match=r"\(the float network\), got 5000000; choose a size between them"):
        measured.plan("5MB")


def test_sizes_are_refused_before_the_work(demo, images, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["pqnet.pipeline.plan"], "calibrate", None)
    for size in (2000, "5MB", "1000x", "0.5x", "0x"):
        with pytest.raises(ConfigError, match=r"^target_size: expected"):
            pqnet.plan(demo, images, size)
    np.save("x.npy", images[:8])
    demo.save("model.h5")
    line = "quantize model.h5 --calibration x.npy --target-size 10x --target-size 1000x -o s.h5"
    assert main(line.split()) == 2
    assert re.search(r"expected \d+ bytes \(the smallest plan, \d+\S*x\)", capsys.readouterr().err)


def test_ratios_are_those_of_files(measured, demo, tmp_path):
    demo.save(tmp_path / "whole.h5")
    whole = (tmp_path / "whole.h5").stat().st_size
    for text, ratio in (("10x", 10), ("12.5 X", 12.5)):
        assert measured.plan(text).target == pytest.approx(whole / ratio, rel=1e-3)
    with pytest.raises(ConfigError, match=r"or '10x' for a tenth of the float file, got str 'x'"):
        measured.plan("x")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((None, "images", "30kB"), {}, r"model: expected a pqnet\.Model, got NoneType None"),
        (("demo", "images", "30 elephants"), {}, "target_size: expected a number of bytes"),
        (
            ("demo", "images", "30kB"),
            {"prefer": "speed"},
            "prefer: expected one of 'error', 'latency', got",
        ),
        (("demo", "images", "30kB"), {"golden": 1}, "golden: expected one of False, True, got int 1"),
        (("demo", None, "30kB"), {}, "calibration: expected an array, a dict of arrays or an iterable"),
        (("demo", "wide", "30kB"), {}, "input 'input': expected shape"),
        (("demo", "nan", "30kB"), {}, "input 'input': expected finite float32 numbers"),
        (("demo", "images", "30kB"), {"seed": -1}, "seed: expected an integer"),
        (("small", "images", "30kB"), {}, "expected a float weight, got a packed one; plan for the float model"),
        (("none", "x4", "30kB"), {}, "model: expected layers with weights to quantize, got none"),
    ],
)
def test_bad_arguments(demo, images, arguments, options, message):
    b = GraphBuilder({"x": ValueInfo(("n", 4))}, {"n": 2})
    values = {"demo": demo, "images": images[:2], "wide": images[:, :, :, :7], "nan": images * np.float32(np.nan)}
    values["none"] = Model(b.build({"y": b.add("add", "x", "x")}))
    values["small"] = pqnet.quantize(demo, {"fc": PQ(4, 4)}, metric="none")
    given = [values.get(a, a) if isinstance(a, str) else a for a in arguments]
    with pytest.raises(PQNetError, match=message):
        pqnet.plan(*given, **options)


# -- the commands --------------------------------------------------------------------------------------------


def test_plan_and_quantize_commands(demo, images, tmp_path, capsys):
    np.save("x.npy", images[:60])
    demo.save("model.h5")
    pqnet.calibrate(demo, images[:60]).save("stats.h5")
    assert main(["plan", "model.h5", "--statistics", "stats.h5", "--target-size", "30kB", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in demo.graph.layers()) and "of 30000; predicted error" in printed
    assert not (tmp_path / "recipe.yaml").exists()
    size = "--calibration x.npy --target-size 30kB --metric block"
    assert main(f"plan model.h5 {size} -o recipe.yaml".split()) == 0
    capsys.readouterr()
    common = "quantize model.h5 --calibration x.npy --metric block -o"
    assert main(f"{common} a.h5 --recipe recipe.yaml".split()) == 0
    assert main(f"{common} b.h5 --target-size 30kB".split()) == 0
    files = [(tmp_path / name).read_bytes() for name in ("a.h5", "b.h5")]
    assert files[0] == files[1] and 29_700 <= len(files[0]) <= 30_000
    assert main(["verify", "b.h5"]) == 0


def test_several_sizes_from_one_measurement(demo, images, tmp_path, capsys, monkeypatch):
    np.save("x.npy", images[:40])
    demo.save("model.h5")
    sizes = "--calibration x.npy --target-size 30kB --target-size 20x --metric block"
    assert main(f"plan model.h5 {sizes} --curve plans.csv -o r.yaml".split()) == 0
    calls, original = [], network_gains
    module = sys.modules["pqnet.pipeline.plan"]  # hidden behind the function
    monkeypatch.setattr(module, "network_gains", lambda *a: calls.append(1) or original(*a))
    assert main(f"quantize model.h5 {sizes} --curve files.csv -o s.h5".split()) == 0
    assert len(calls) == 1
    for name in ("plans.csv", "files.csv"):
        with open(name, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["target_size"] for row in rows] == ["30kB", "20x"]
        assert (
            float(rows[0]["predicted_error"]) < float(rows[1]["predicted_error"]) or rows[0]["bytes"] < rows[1]["bytes"]
        )
    for row in rows:
        assert int(row["bytes"]) == (tmp_path / f"s-{row['target_size']}.h5").stat().st_size
        assert 0.5 < float(row["kept_top1"]) <= 1
        recipe = Recipe.read(f"r-{row['target_size']}.yaml")
        assert graph_nbytes(pqnet.quantize(demo, recipe, metric="none").graph) < int(row["bytes"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "plan model.h5 --calibration x.npy --target-size 9x --target-size 9x --dry-run -o r.yaml",
            "--dry-run, got both",
        ),
        ("plan model.h5 --calibration x.npy --target-size 9x --target-size 9x -o r.yaml", "expected every size once"),
        ("plan model.h5 --calibration x.npy --target-size 9x --curve c.txt --dry-run", "--curve: expected a file name"),
        ("quantize model.h5 --calibration x.npy --preset small-blocks --curve c.csv -o s.h5", "expected --target-size"),
        ("plan model.h5 --calibration x.npy --target-size 30kB", "expected one of --output and --dry-run, got neither"),
        ("plan model.h5 --calibration x.npy --target-size 30kB --dry-run -o r.yaml", "--dry-run, got both"),
        ("plan model.h5 --target-size 30kB --dry-run", "expected --calibration or --statistics with it, got neither"),
        ("plan model.h5 --calibration x.npy --target-size 30xB --dry-run", "target_size: expected a number of bytes"),
        ("plan model.h5 --calibration x.npy --target-size 30kB -o r.txt", "r.txt"),
        ("quantize model.h5 --target-size 30kB -o s.h5", "expected --calibration or --statistics with it"),
        ("quantize model.h5 --target-size 30kB --preset small-blocks -o s.h5", "not allowed with"),
        (
            "quantize model.h5 --calibration x.npy --target-size 9GB -o s.h5",
            r"expected \d+ bytes \(the smallest plan, ",
        ),
    ],
)
def test_bad_command_lines(demo, images, capsys, line, message, tmp_path):
    np.save("x.npy", images[:8])
    demo.save("model.h5")
    assert main(line.split()) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert re.search(message, printed), printed
    assert not list(tmp_path.glob("*.yaml")) and not (tmp_path / "s.h5").exists()


@pytest.mark.parametrize("factor", [1.0, 1e-6])
@pytest.mark.parametrize("codec", [PQ(16, 4), pqnet.Scalar(8), IntN(4, per="channel"), pqnet.Additive([PQ(8, 4)] * 2)])
def test_sizes_of_files_before_they_exist_are_no_less_than_they_become(factor, codec):
    """Numbers too small for float16 have an exponent, which takes room."""
    net = small_net()
    weights = {node.params["weight"] for node in net.graph.layers().values()}
    params = {n: p * np.float32(factor) if n in weights else p for n, p in net.graph.params.items()}
    model = Model(replace(net.graph, params=params))
    recipe = {"default": codec, "fc": PQ(12, 2)}
    small = pqnet.quantize(model, recipe, metric="none", progress=False)
    chosen = {
        n: small.graph.params[node.params["weight"]].codec for n, node in small.graph.layers().items() if n != "stem"
    }
    expected, got = FileSizes(model, False, 0).nbytes(chosen), graph_nbytes(small.graph)
    assert got <= expected <= got + 128


def test_small_errors_reach_the_outputs_by_their_own_share():
    """Of a step that is hardly ever crossed, small errors move little; a line between the two, in logarithms."""
    b = GraphBuilder({"input": ValueInfo(("batch", 16))}, {"batch": 2})
    x = b.add("linear", "input", name="first", params={"weight": rand(32, 16)})
    x = b.add("linear", b.add("sigmoid", b.add("mul", x, x)), name="second", params={"weight": rand(8, 32, seed=1)})
    model, inputs = Model(b.build({"output": x})), rand(200, 16, seed=3)
    found = measure(model, inputs, progress=False).gains
    small, large = found["first"].at
    assert small.error == pytest.approx(WEAK, rel=0.5) and large.error == pytest.approx(PERTURBED, rel=0.5)
    gain, codec = Gain((Reach(0.01, 1.0), Reach(0.1, 3.0))), PQ(4, 4)
    assert [gain(codec, e) for e in (0.001, 0.01, 0.01 * 10**0.5, 0.1, 1.0)] == pytest.approx([1, 1, 2, 3, 3])
    assert [Gain(gain.at, 7.0)(c, 0.01) for c in (codec, IntN(8), Additive([codec, Sparse(0.1)]))] == [1.0, 7.0, 1.0]
    # the last layer's errors are the outputs' own
    assert [reach.gain for reach in found["second"].at] == pytest.approx([1.0, 1.0], rel=0.2)
    weight = model.graph.params["first.weight"].astype(float)
    for reach in (small, large):
        noise = rand(200, 32, seed=9) * np.sqrt(reach.error * np.square(inputs @ weight.T).mean())
        hidden = [1 / (1 + np.exp(-np.square(y))) for y in (inputs @ weight.T, inputs @ weight.T + noise)]
        outputs = [h @ model.graph.params["second.weight"].astype(float).T for h in hidden]
        real = np.square(outputs[1] - outputs[0]).sum() / np.square(outputs[0]).sum() / reach.error
        assert reach.gain == pytest.approx(real, rel=0.4)


def test_integers_of_a_first_layer_are_predicted():
    """Errors of integers are patterns where neighbours are alike: nothing averages them away."""
    b = GraphBuilder({"input": ValueInfo(("batch", 3, 12, 12))}, {"batch": 2})
    attrs = {"stride": (1, 1), "dilation": (1, 1), "padding": (0, 0, 0, 0), "groups": 1}
    x = b.add("conv2d", "input", name="first", params={"weight": rand(16, 3, 3, 3)}, **attrs)
    model = Model(b.build({"output": b.add("mean", b.add("relu", x), axes=(2, 3))}))
    smooth = (rand(120, 3, 1, 1, seed=1) + 0.1 * rand(120, 3, 12, 12, seed=2)).astype(np.float32)
    found = measure(model, smooth[:60], progress=False)
    wanted = model(smooth[60:]).astype(float)
    for bits in (4, 6, 8):
        codec = IntN(bits)
        error = next(c.error for c in found.options["first"] if c.codec == codec)
        entry = pqnet.quantize(model, {"first": codec}, smooth[:60], correct_bias=False, progress=False)
        real = np.square(entry(smooth[60:]) - wanted).sum() / np.square(wanted).sum()
        assert 1 / 2 < found.gains["first"](codec, error) * error / real < 2, bits
