"""Calibration, recipes and quantization on small networks; the figures on real ones are in test_real.py."""

import dataclasses
import math

import numpy as np
import pytest

import pqnet
from pqnet import PQ, Additive, ConfigError, IntN, Model, Packed, PackedPQ, PQNetError, Recipe, Scalar, Sparse
from pqnet.graph import GraphBuilder, Node, ValueInfo
from pqnet.graph.op import complete_attrs, get_op
from pqnet.pipeline import sweep as sweep_module
from pqnet.pipeline.adapt import adapted
from pqnet.pipeline.moments import input_rows, output_energies, positions_needed, row_moments
from pqnet.pipeline.presets import PRESETS, with_half_stem
from pqnet.pipeline.recipe import resolve_recipe
from pqnet.pipeline.statistics import Moments, Statistics
from pqnet_converters.checkpoints.resnet import resnet_graph, resnet_layers


def rand(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def small_net(seed=0):
    """Stem, norm, two convolutions (one grouped, one transposed), linear: every kind of matrix layer."""
    b = GraphBuilder({"input": ValueInfo(("batch", 3, 9, 9))}, {"batch": 2})
    x = b.add("conv2d", "input", name="stem", params={"weight": rand(8, 3, 3, 3)}, padding=(1, 1, 1, 1))
    norm = {
        "weight": rand(8, seed=1),
        "bias": rand(8, seed=2),
        "mean": rand(8, seed=3),
        "var": rand(8, seed=4) ** 2 + 0.5,
    }
    x = b.add("relu", b.add("batch_norm", x, name="norm", params=norm))
    x = b.add(
        "conv2d", x, name="grouped", params={"weight": rand(16, 4, 3, 3)}, groups=2, stride=(2, 2), padding=(1, 0, 1, 2)
    )
    norm = {
        "weight": rand(16, seed=1),
        "bias": rand(16, seed=2),
        "mean": rand(16, seed=3),
        "var": rand(16, seed=4) ** 2 + 0.5,
    }
    x = b.add("relu", b.add("batch_norm", x, name="norm2", params=norm))
    x = b.add("conv_transpose2d", x, name="up", params={"weight": rand(12, 16, 2, 2), "bias": rand(12)}, stride=(2, 2))
    x = b.add("mean", b.add("relu", x), axes=(2, 3))
    x = b.add("linear", x, name="fc", params={"weight": rand(10, 12), "bias": rand(10)})
    return Model(b.build({"output": x}))


DATA = rand(150, 3, 9, 9, seed=9)
RECIPE = {"default": PQ(16, 4), "fc": PQ(12, 2)}


@pytest.mark.parametrize(
    ("op", "shape", "x", "attrs"),
    [
        ("conv2d", (6, 4, 3, 2), (3, 4, 7, 8), {"stride": (2, 1), "padding": (1, 0, 2, 1), "dilation": (1, 2)}),
        ("conv2d", (6, 2, 3, 3), (2, 4, 6, 6), {"groups": 2}),
        ("conv2d", (5, 1, 3, 3), (2, 5, 6, 6), {"groups": 5, "padding": (1, 1, 1, 1)}),
        (
            "conv_transpose2d",
            (6, 4, 3, 2),
            (2, 4, 5, 4),
            {"stride": (2, 3), "padding": (1, 0, 2, 0), "output_padding": (1, 0)},
        ),
        ("conv_transpose2d", (6, 2, 2, 2), (2, 4, 5, 4), {"stride": (2, 2), "groups": 2}),
        ("conv1d", (6, 2, 3), (2, 4, 9), {"stride": (2,), "padding": (1, 0), "dilation": (2,), "groups": 2}),
        ("conv3d", (6, 2, 2, 3, 1), (2, 4, 4, 5, 3), {"stride": (1, 2, 1), "padding": (1, 0, 0, 0, 1, 2), "groups": 2}),
        ("conv_transpose1d", (6, 2, 3), (2, 4, 5), {"stride": (2,), "padding": (1, 0), "groups": 2}),
        ("conv_transpose3d", (6, 4, 2, 1, 3), (2, 4, 3, 2, 4), {"stride": (2, 1, 1), "output_padding": (1, 0, 0)}),
        ("linear", (6, 5), (4, 5), {}),
        ("linear", (6, 5), (2, 3, 7, 5), {}),
    ],
)
def test_rows_are_what_the_filters_see(op, shape, x, attrs):
    """The energy of the rows under the filters is the energy of the layer's outputs, and the moments agree with it."""
    node = Node(op, "layer", ("x",), ("y",), complete_attrs(get_op(op), attrs), {"weight": "w"})
    weight, values = rand(*shape), rand(*x)
    rows = input_rows(node, shape, values, 0, 0, 256)
    want = float(np.square(get_op(op).evaluate([values], {"weight": weight}, node.attrs).astype(float)).sum())
    assert output_energies(rows, [weight, 2 * weight]) == pytest.approx([want, 4 * want], rel=1e-5)
    n = rows.shape[2]
    h = row_moments(rows, np.arange(n), n)[:, 0]
    filters = weight.reshape(len(h), -1, n).astype(float)
    assert np.einsum("goi,gij,goj->", filters, h, filters) == pytest.approx(want, rel=1e-5)


def test_block_moments_are_the_diagonal_of_the_whole():
    rows = rand(2, 50, 12)
    columns = np.random.default_rng(0).permutation(12)
    whole, blocks = row_moments(rows, np.arange(12), 12)[:, 0], row_moments(rows, columns, 3)
    assert blocks.shape == (2, 4, 3, 3)
    for m in range(4):
        at = columns[3 * m : 3 * m + 3]
        assert np.allclose(blocks[:, m], whole[:, at][:, :, at], rtol=1e-5, atol=1e-4)


def test_positions_of_large_maps_are_sampled_by_the_stated_rule():
    node = Node("conv2d", "c", ("x",), ("y",), complete_attrs(get_op("conv2d"), {}), {"weight": "w"})
    assert (positions_needed(100), positions_needed(4608)) == (256, 2304)
    assert [positions_needed(100, n) for n in (1, 1000, 10**6)] == [256, 66, 1]
    assert positions_needed(4608, 1000) == 148
    x = np.arange(2 * 40 * 40, dtype=np.float32).reshape(2, 1, 40, 40)
    rows = input_rows(node, (1, 1, 1, 1), x, 5, 7, 256)[0, :, 0].reshape(2, 256)
    edges = np.arange(256) * (1600 / 256)  # one position from each stratum, in order
    assert np.all(np.abs(rows - [[0], [1600]] - edges - 1600 / 512) <= 1600 / 512 + 1)
    assert not np.array_equal(rows[0], rows[1] - 1600)  # every sample draws its own
    assert np.array_equal(rows[1], input_rows(node, (1, 1, 1, 1), x[1:], 6, 7, 256)[0, :, 0])  # whatever its batch


def moments_by_hand(model, data):
    """E[x x'] of the fc layer's input."""
    b = next(n for n in model.graph.nodes if n.name == "fc")
    graph = Model(
        type(model.graph)(
            model.graph.inputs,
            {"x": b.inputs[0]},
            [n for n in model.graph.nodes if n.name != "fc"],
            {n: p for n, p in model.graph.params.items() if not n.startswith("fc")},
            model.graph.symbols,
        )
    )
    x = graph(data).astype(float)
    return x.T @ x / len(x)


def test_calibrate_gives_exact_moments_for_any_batches_and_threads():
    model = small_net()
    whole = pqnet.calibrate(model, DATA, threads=2)
    assert set(whole.layers) == {"stem", "grouped", "up", "fc"}
    assert np.allclose(whole.layers["fc"].mean[0], moments_by_hand(model, DATA), rtol=1e-4, atol=1e-5)
    assert whole.layers["grouped"].mean.shape == (2, 36, 36) and whole.layers["grouped"].count == 150 * 25
    pieces = pqnet.calibrate(model, (DATA[i : i + 7] for i in range(0, 150, 7)), threads=2)
    single = pqnet.calibrate(model, {"input": DATA}, threads=1)
    for name, moments in whole.layers.items():
        assert np.array_equal(moments.mean, single.layers[name].mean)
        assert np.allclose(moments.mean, pieces.layers[name].mean, rtol=1e-5, atol=1e-6)
        assert moments.count == pieces.layers[name].count


def test_statistics_merge_save_and_load(tmp_path):
    model = small_net()
    parts = [pqnet.calibrate(model, part) for part in (DATA[:64], DATA[64:])]
    merged, whole = parts[0].merge(parts[1]), pqnet.calibrate(model, DATA)
    for name in whole.layers:
        assert np.allclose(merged.layers[name].mean, whole.layers[name].mean, rtol=1e-5, atol=1e-6)
    merged.save(tmp_path / "s.h5")
    loaded = pqnet.load_statistics(tmp_path / "s.h5")
    loaded.save(tmp_path / "t.h5")
    assert (tmp_path / "s.h5").read_bytes() == (tmp_path / "t.h5").read_bytes()
    for name, moments in merged.layers.items():
        assert loaded.layers[name].count == moments.count
        assert np.allclose(loaded.layers[name].mean, moments.mean, atol=1e-6)
    with pytest.raises(PQNetError, match="expected statistics of the same layers"):
        merged.merge(Statistics({"fc": merged.layers["fc"]}))


def test_quantize_keeps_the_first_conv_and_reports_every_layer():
    small = pqnet.quantize(small_net(), RECIPE, DATA, progress=False)
    report = small.graph.meta["quantization"]["layers"]
    assert list(report) == ["grouped", "up", "fc"]
    assert isinstance(small.graph.params["stem.weight"], np.ndarray)
    for name, entry in report.items():
        packed = small.graph.params[f"{name}.weight"]
        assert isinstance(packed, Packed) and entry["bytes"] == packed.nbytes
        assert 0 < entry["output_error"] < 1 and entry["iterations"] >= 1
    assert small(DATA[:5]).shape == (5, 10)


def test_later_layers_see_what_the_quantized_ones_give():
    """The reported error of fc is measured on the student's own inputs, not on the float network's."""
    model = small_net()
    small = pqnet.quantize(model, RECIPE, DATA, metric="block", progress=False)
    weight = model.graph.params["fc.weight"]
    error = weight - small.graph.params["fc.weight"].decode()

    def relative(h):
        return np.trace(error @ h @ error.T) / np.trace(weight @ h @ weight.T)

    got = small.graph.meta["quantization"]["layers"]["fc"]["output_error"]
    held = DATA[4::8]
    assert got == pytest.approx(relative(moments_by_hand(small, held)), rel=1e-3)
    assert abs(got - relative(moments_by_hand(model, held))) > 1e-2 * got


def test_one_shot_from_statistics_uses_the_float_network():
    model = small_net()
    stats = pqnet.calibrate(model, DATA)
    small = pqnet.quantize(model, RECIPE, stats, metric="block", progress=False)
    weight = model.graph.params["fc.weight"]
    error = weight - small.graph.params["fc.weight"].decode()
    h = moments_by_hand(model, DATA)
    got = small.graph.meta["quantization"]["layers"]["fc"]["output_error"]
    assert got == pytest.approx(np.trace(error @ h @ error.T) / np.trace(weight @ h @ weight.T), rel=1e-3)


@pytest.mark.parametrize("layout", ["spatial", "channel"])
def test_metrics_order_the_output_error(layout):
    """More of the second moment, less output error, at equal bytes, layer by layer from the same inputs."""
    model = small_net()
    scaled = DATA * np.array([1, 4, 0.2], np.float32)[None, :, None, None]
    stats = pqnet.calibrate(model, scaled)
    totals = {}
    for metric in ("none", "pooled", "block", "full"):
        small = pqnet.quantize(model, {"default": PQ(24, 4, layout)}, stats, metric=metric, progress=False)
        totals[metric] = np.mean([e["output_error"] for e in small.graph.meta["quantization"]["layers"].values()])
    assert totals["full"] < totals["block"] < totals["none"]


def test_more_effort_leaves_less_error_in_the_metric():
    found = pqnet.calibrate(small_net(), DATA)
    errors = []
    for effort in ("low", "normal", "high"):
        small = pqnet.quantize(small_net(), RECIPE, found, effort=effort, progress=False)
        assert small.graph.meta["quantization"]["effort"] == effort
        errors.append(small.graph.meta["quantization"]["layers"]["grouped"]["output_error"])
    assert errors[2] < errors[1] < errors[0]
    with pytest.raises(ConfigError, match="effort: expected one of 'low', 'normal', 'high'"):
        pqnet.quantize(small_net(), RECIPE, found, effort="most", progress=False)


def test_metric_none_needs_no_data_and_equals_plain_kmeans():
    model = small_net()
    alone = pqnet.quantize(model, RECIPE, metric="none", progress=False)
    with_data = pqnet.quantize(model, RECIPE, DATA, metric="none", progress=False)
    for name in ("grouped", "up", "fc"):
        assert alone.graph.params[f"{name}.weight"] == with_data.graph.params[f"{name}.weight"]


def test_same_bytes_for_any_thread_count(tmp_path):
    for threads in (1, 2, 4):
        small = pqnet.quantize(small_net(), RECIPE, DATA, threads=threads, reestimate_norm=True, progress=False)
        small.save(tmp_path / f"{threads}.h5")
    first, *others = ((tmp_path / f"{t}.h5").read_bytes() for t in (1, 2, 4))
    assert all(first == other for other in others)
    other_seed = pqnet.quantize(small_net(), RECIPE, DATA, seed=1, reestimate_norm=True, progress=False)
    other_seed.save(tmp_path / "seed.h5")
    assert (tmp_path / "seed.h5").read_bytes() != first


def test_every_node_is_computed_once_for_every_batch(monkeypatch):
    calls = []
    original = sweep_module.evaluate_node

    def counted(node, *args):
        calls.append(node.name)
        return original(node, *args)

    monkeypatch.setattr(sweep_module, "evaluate_node", counted)
    model = small_net()
    batches = [DATA[:50], DATA[50:100], DATA[100:]]
    pqnet.quantize(model, RECIPE, batches, metric="block", progress=False)
    nodes = [node.name for node in model.graph.nodes]
    assert sorted(calls) == sorted(6 * nodes)  # of every batch some samples are put aside
    calls.clear()
    pqnet.quantize(model, RECIPE, batches, progress=False)
    first = nodes.index("grouped")  # from the first layer that is quantized, the teacher runs along
    assert sorted(calls) == sorted(6 * (nodes + nodes[first:]))


def test_reestimated_norms_standardise_the_students_values():
    model = small_net()
    small = pqnet.quantize(model, RECIPE, DATA, reestimate_norm=True, progress=False)
    at = next(i for i, n in enumerate(small.graph.nodes) if n.name == "norm2")
    cut = small.graph.nodes[: at + 1]
    used = {p for n in cut for p in n.params.values()}
    graph = type(small.graph)(
        small.graph.inputs,
        {"y": cut[-1].outputs[0]},
        cut,
        {n: p for n, p in small.graph.params.items() if n in used},
        small.graph.symbols,
    )
    y = Model(graph)(DATA).astype(float)
    weight, bias = model.graph.params["norm2.weight"], model.graph.params["norm2.bias"]
    assert np.allclose(y.mean((0, 2, 3)), bias, atol=1e-4)
    # running variances are unbiased, and eps is added to them
    assert np.allclose(y.std((0, 2, 3)), np.abs(weight), rtol=1e-3)


def test_norm_statistics_are_folded_in_the_result_and_its_size():
    model = small_net()
    small = pqnet.quantize(model, RECIPE, metric="none", progress=False)
    norm = next(n for n in small.graph.nodes if n.name == "norm")
    assert set(norm.params) == {"weight", "bias"} and norm.attrs["eps"] == 0
    assert small.size().other == 4 * (8 * 3 * 9 + 2 * 8 + 2 * 16 + 12 + 10)
    with pytest.raises(ConfigError, match="expected batch norms with running statistics, got folded ones in 'norm'"):
        pqnet.quantize(Model(small.graph), {"stem": PQ(4, 9)}, DATA, reestimate_norm=True, progress=False)


def embedding_net():
    table = rand(50, 8)
    b = GraphBuilder({"ids": ValueInfo(("batch", 6), "int64")}, {"batch": 2})
    x = b.add("embedding", "ids", name="tokens", params={"weight": table})
    x = b.add("linear", b.add("relu", x), name="mix", params={"weight": rand(8, 8)})
    logits = b.add("linear", x, name="head", params={"weight": "tokens.weight"})
    return Model(b.build({"logits": logits}))


def test_tied_weights_are_packed_once_and_embeddings_by_frequency():
    model = embedding_net()
    ids = np.random.default_rng(0).integers(0, 10, (64, 6))
    small = pqnet.quantize(model, {"default": PQ(10, 4)}, ids, progress=False)
    assert list(small.graph.layers()) == ["tokens", "mix"]
    packed = small.graph.params["tokens.weight"]
    assert isinstance(packed, Packed) and small(ids[:3]).shape == (3, 6, 50)
    error = np.square(model.graph.params["tokens.weight"] - packed.decode()).sum(1)
    assert error[:10].mean() < 0.5 * error[10:].mean()
    stats = pqnet.calibrate(model, ids)
    assert stats.layers["tokens"].mean.sum() == pytest.approx(1) and stats.layers["tokens"].count == 64 * 6
    again = pqnet.quantize(model, {"tokens": PQ(10, 4)}, stats, progress=False)
    assert again.graph.params["tokens.weight"] == packed


def test_recipes_match_by_the_longest_pattern():
    graph = small_net().graph
    recipe = {"default": PQ(16, 4), "g*": PQ(8, 4), "grouped": PQ(4, 9), "fc": None}
    chosen = resolve_recipe(recipe, graph)
    assert chosen == {"stem": None, "grouped": PQ(4, 9), "up": PQ(16, 4), "fc": None}
    assert resolve_recipe({"stem": PQ(4, 9)}, graph)["stem"] == PQ(4, 9)
    assert resolve_recipe({"fc": PQ(5, 2)}, graph)["up"] is None


def test_a_recipe_for_all_that_leaves_most_in_float_says_so():
    b = GraphBuilder({"x": ValueInfo(("batch", 8))}, {"batch": 2})
    y = b.add("linear", "x", name="small", params={"weight": np.ones((4, 8), np.float32)})
    y = b.add("linear", y, name="large", params={"weight": np.ones((64, 4), np.float32)})
    graph = b.build({"y": y})
    with pytest.warns(UserWarning, match="89% of the network's numbers stay float, the most in large.weight"):
        resolve_recipe({"default": PQ(4, 4), "large": None}, graph)
    resolve_recipe({"small": PQ(4, 4)}, graph)  # one layer is what was asked for
    resolve_recipe({"default": PQ(4, 4), "small": None}, graph)


def test_statistics_of_another_checkpoint_are_refused(tmp_path):
    """Their shapes fit, and the codes would be wrong without a word."""

    def build(seed):
        b = GraphBuilder({"x": ValueInfo(("batch", 8))}, {"batch": 2})
        y = b.add("linear", "x", name="a", params={"weight": rand(8, 8, seed=seed)})
        return Model(b.build({"y": b.add("linear", y, name="b", params={"weight": rand(8, 8, seed=9)})}))

    model, other, x = build(0), build(1), rand(40, 8)
    found = pqnet.calibrate(model, x)
    found.save(tmp_path / "s.h5")
    back, recipe = pqnet.load_statistics(tmp_path / "s.h5"), {"*": PQ(4, 4)}
    pqnet.quantize(model, recipe, back, progress=False)
    for use in (lambda s: pqnet.quantize(other, recipe, s, progress=False), lambda s: pqnet.plan(other, s, 1500)):
        with pytest.raises(
            PQNetError, match="expected statistics of this network, got those of one with other weights"
        ):
            use(back)
    with pytest.raises(PQNetError, match="statistics of the same network to merge"):
        found.merge(pqnet.calibrate(other, x))
    assert found.merge(back).network == found.network
    Statistics(found.layers).save(tmp_path / "old.h5")  # as files were before
    pqnet.quantize(other, recipe, pqnet.load_statistics(tmp_path / "old.h5"), progress=False)


def test_the_default_of_a_recipe_adapts_to_each_layer():
    b = GraphBuilder({"x": ValueInfo(("n", 3, 8, 8))}, {"n": 2})
    shapes = {"stem": (12, 3, 3, 3), "depth": (12, 1, 3, 3), "rows": (12, 1, 5, 5), "wide": (96, 12, 1, 1)}
    x = "x"
    for name, shape in shapes.items():
        pad, groups = shape[2] // 2, 12 if shape[1] == 1 else 1
        x = b.add("conv2d", x, name=name, params={"weight": rand(*shape)}, groups=groups, padding=(pad,) * 4)
    for name, shape in {"fits": (64, 96), "head": (64, 64), "few": (2, 64)}.items():
        x = x if name != "fits" else b.add("mean", x, axes=(2, 3))
        x = b.add("linear", x, name=name, params={"weight": rand(*shape)})
    model = Model(b.build({"y": x}))
    with pytest.warns(UserWarning) as told:
        chosen = resolve_recipe({"default": PQ(256, 8, "channel"), "head": None}, model.graph)
    assert chosen == {
        "stem": None,
        "depth": PQ(2, 9),
        "rows": PQ(8, 5),
        "wide": PQ(32, 6, "channel"),
        "fits": PQ(256, 8, "channel"),
        "head": None,
        "few": PQ(4, 8, "channel"),
    }
    (warning,) = told
    lines = str(warning.message).splitlines()
    assert "does not fit 4 layers" in lines[0]
    assert [line.split()[0] for line in lines[2:-1]] == ["depth", "rows", "wide", "few"]
    with pytest.raises(ConfigError, match="layer 'depth': d: expected a divisor of 1"):
        resolve_recipe({"depth": PQ(256, 8, "channel")}, model.graph)
    small = pqnet.quantize(model, chosen, rand(20, 3, 8, 8), progress=False)
    assert np.isfinite(small(rand(2, 3, 8, 8))).all()


@pytest.mark.parametrize(
    ("codec", "shape", "wanted"),
    [
        (PQ(256, 8), (2, 5), None),
        (PQ(16, 8, "channel", "int8"), (40, 97), PQ(16, 1, "channel", "int8")),
        (IntN(4, per="group", group=32), (8, 48), IntN(4, per="group", group=24)),
        (IntN(4), (8, 48), IntN(4)),
        (Scalar(16), (2, 5), Scalar(2)),
        (Scalar(16), (1, 3), None),
        (Sparse(count=50), (4, 10), Sparse(count=40)),
        (Additive([PQ(16, 8), Sparse(fraction=0.1)]), (64, 10), Additive([PQ(16, 10), Sparse(count=64)])),
        (Additive([PQ(16, 8), Sparse(fraction=0.1)]), (2, 5), None),
    ],
)
def test_codecs_nearest_to_one_that_does_not_fit(codec, shape, wanted):
    assert adapted(codec, shape) == wanted
    if wanted is not None:
        wanted.fit(rand(*shape))


def test_recipe_yaml_round_trip(tmp_path):
    recipe = Recipe({"default": PQ(16, 4, "channel"), "a.*": None, "b": PQ(3, 2, clamp="strict")})
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert Recipe.read(tmp_path / "r.yaml") == recipe


def test_block_presets_are_the_papers():
    graph = small_net().graph
    small, large = (resolve_recipe(name, graph) for name in ("small-blocks", "large-blocks"))
    assert small["stem"] is None and large["stem"] is None
    assert (small["grouped"].d, large["grouped"].d) == (9, 18)
    assert small["fc"].d == 4 and small["fc"].k == 4  # 30 blocks: the largest power of two <= 7.5


def test_presets_store_the_first_convolution_as_float16():
    model = small_net()
    weight, recipe = model.graph.params["stem.weight"], {"default": PQ(4, 4)}
    stems = [
        pqnet.quantize(model, each, metric="none", progress=False).graph.params["stem.weight"]
        for each in ("small-blocks", recipe)
    ]
    assert [stem.dtype for stem in stems] == [np.float16, np.float32]
    np.testing.assert_array_equal(stems[0], weight.astype(np.float16))
    np.testing.assert_array_equal(stems[1], weight)
    for factor in (1e6, 1e-6):  # what float16 does not hold, or loses
        graph = dataclasses.replace(
            model.graph, params={**model.graph.params, "stem.weight": weight * np.float32(factor)}
        )
        assert with_half_stem(graph) is graph


@pytest.mark.parametrize(
    ("arch", "preset", "nbytes"),
    [
        ("resnet18", "bgd-resnet18-small", 1_615_904),
        ("resnet18", "bgd-resnet18-large", 1_079_328),
        ("resnet50", "bgd-resnet50-small", 5_338_144),
        ("resnet50", "bgd-resnet50-large", 3_338_784),
        ("resnet18", "pqf-resnet18-small", 1_615_904),
        ("resnet50", "pqf-resnet50-large", 3_339_872),
    ],
)
def test_presets_of_the_papers_have_their_bytes(arch, preset, nbytes):
    params = {"fc.bias": np.zeros(1000, np.float32)}
    for name, layer in resnet_layers(arch).items():
        kernel = (layer.kernel,) * 2 if layer.kernel else ()
        params[f"{name}.weight"] = np.broadcast_to(np.float32(0), (layer.outputs or 1000, layer.inputs, *kernel))
        if layer.norm:
            params |= {f"{layer.norm}.{role}": np.ones(layer.outputs, np.float32) for role in ("weight", "bias")}
    graph = resnet_graph(arch, params, "zeros")
    for name, codec in resolve_recipe(preset, graph).items():
        if codec is not None:
            weight = graph.layers()[name].params["weight"]
            shape = graph.params[weight].shape
            codes = np.zeros((shape[0], math.prod(shape[1:]) // codec.d), np.uint16)
            graph.params[weight] = PackedPQ(codec, shape, codes, np.zeros((codec.k, codec.d), np.float16))
    assert Model(graph).size().total == nbytes


def test_transformer_preset_tells_attention_from_feed_forward():
    b = GraphBuilder({"x": ValueInfo(("batch", 5, 16))}, {"batch": 2})

    def project(value, name, width=16, inputs=16):
        return b.add("linear", value, name=name, params={"weight": rand(width, inputs)})

    def heads(value):
        return b.add("permute", b.add("reshape", value, shape=("batch", 5, 4, 4)), axes=(0, 2, 1, 3))

    q, k, v = (heads(project("x", name)) for name in ("q", "k", "v"))
    y = b.add("reshape", b.add("permute", b.add("attention", q, k, v), axes=(0, 2, 1, 3)), shape=("batch", 5, 16))
    y = b.add("relu", project(project(y, "out"), "up", 64))
    graph = b.build({"y": project(y, "down", 16, 64)})
    chosen = {name: codec.d for name, codec in PRESETS["transformer"](graph).items()}
    assert chosen == {"q": 4, "k": 4, "v": 4, "out": 4, "up": 8, "down": 8}


def test_unused_tokens_and_dead_inputs_do_not_break_metrics():
    model = small_net()
    data = DATA.copy()
    data[:, 1] = 0
    for metric in ("pooled", "block", "full"):
        small = pqnet.quantize(model, {**RECIPE, "stem": PQ(4, 9)}, data, metric=metric, progress=False)
        assert np.isfinite(small(data[:2])).all()
    zero = pqnet.quantize(model, {**RECIPE, "stem": PQ(4, 9)}, 0 * data, progress=False)
    assert np.isfinite(zero(data[:2])).all()
    assert zero.graph.meta["quantization"]["layers"]["stem"]["output_error"] == 0


def test_statistics_must_fit_the_network():
    model, other = small_net(), embedding_net()
    stats = Statistics(pqnet.calibrate(other, np.zeros((2, 6), np.int64)).layers)
    with pytest.raises(PQNetError, match="expected moments of shape .* for layer 'grouped', got none; calibrate"):
        pqnet.quantize(model, RECIPE, stats, progress=False)
    wrong = Statistics({**pqnet.calibrate(model, DATA[:3]).layers, "fc": Moments(np.eye(3, dtype=np.float32)[None], 3)})
    with pytest.raises(PQNetError, match=r"for layer 'fc', got shape \(1, 3, 3\)"):
        pqnet.quantize(model, RECIPE, wrong, progress=False)


def test_statistics_keep_first_moments(tmp_path):
    b = GraphBuilder({"input": ValueInfo(("batch", 6))}, {"batch": 2})
    model = pqnet.Model(b.build({"output": b.add("linear", "input", name="fc", params={"weight": rand(4, 6)})}))
    x = rand(50, 6) + 3
    found = pqnet.calibrate(model, x[:20]).merge(pqnet.calibrate(model, x[20:]))
    found.save(tmp_path / "stats.h5")
    for stats in (found, pqnet.load_statistics(tmp_path / "stats.h5")):
        np.testing.assert_allclose(stats.layers["fc"].first[0], x.mean(0), rtol=1e-6)
        np.testing.assert_allclose(stats.layers["fc"].centred()[0], np.cov(x.T, bias=True), atol=1e-5)
    without = Statistics({"fc": Moments(found.layers["fc"].mean, 50)})
    without.save(tmp_path / "without.h5")
    loaded = pqnet.load_statistics(tmp_path / "without.h5")
    assert loaded.layers["fc"].first is None and loaded.merge(found).layers["fc"].first is None
    np.testing.assert_array_equal(loaded.layers["fc"].centred(), found.layers["fc"].mean)
    with pytest.raises(PQNetError, match="Moments.first: expected float32 of shape"):
        Moments(found.layers["fc"].mean, 50, x[:1, :3])


def test_quantized_models_are_refused():
    small = pqnet.quantize(small_net(), RECIPE, metric="none", progress=False)
    with pytest.raises(ConfigError, match="expected a float weight, got a packed one"):
        pqnet.quantize(small, RECIPE, metric="none", progress=False)


@pytest.mark.parametrize(("value", "match"), [(np.nan, "finite"), (1e6, "within float16's 65504")])
def test_errors_about_a_weight_name_its_layer(value, match):
    builder = GraphBuilder({"x": ValueInfo(("n", 8))}, {"n": 2})
    flow = "x"
    for name in "abc":
        weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
        weight[3] = value if name == "b" else weight[3]
        flow = builder.add("linear", flow, name=name, params={"weight": weight})
    model = Model(builder.build({"y": flow}))
    with pytest.raises(PQNetError, match=f"layer 'b': weight: .*{match}"):
        pqnet.quantize(model, {"default": PQ(4, 4)}, metric="none", progress=False)


def test_size_counts_as_the_papers_do():
    model = small_net()
    dense = 4 * (8 * 27 + 16 * 36 + 12 * 64 + 120 + 2 * 8 + 2 * 16 + 12 + 10)
    assert model.size().total == model.size().dense == dense
    size = pqnet.quantize(model, {"default": PQ(16, 4)}, metric="none", progress=False).size()
    blocks = (16 * 36 + 12 * 64 + 120) // 4
    assert size.codes == math.ceil(144 / 2) + math.ceil(192 / 2) + math.ceil(30 / 2) == blocks // 2
    assert size.codebooks == 3 * 16 * 4 * 2
    assert size.ratio == dense / size.total
