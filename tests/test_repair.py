"""Block reconstruction: where blocks end, that a repair helps on other samples, what it leaves, that it resumes."""

import numpy as np
import pytest
from test_pipeline import DATA, RECIPE, rand, small_net

import pqnet
from pqnet import PQ, ConfigError, Model, Packed
from pqnet.cli.main import main
from pqnet.demo import load_images, model_path
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.graph.blocks import find_blocks
from pqnet.pipeline import repair

OTHERS = rand(200, 3, 9, 9, seed=10)
BGD = {"recipe": {**RECIPE, "stem": PQ(16, 3)}, "calibration": DATA, "mode": "bgd", "progress": False}


def error(small, model, x=OTHERS):
    wanted = model(x)
    return float(np.square(small(x) - wanted).sum() / np.square(wanted).sum())


def arrays(model):
    return {
        f"{name} {part}": array
        for name, p in model.graph.params.items()
        for part, array in (p.arrays() if isinstance(p, Packed) else {"": p}).items()
    }


def block_reports(model):
    return model.graph.meta["quantization"]["blocks"]


# -- where blocks end -----------------------------------------------------------------------------------------


def test_residual_blocks_are_blocks_and_a_lone_classifier_belongs_to_the_last():
    graph = pqnet.load(model_path()).graph
    blocks = find_blocks(graph, graph.layers())
    assert [b.layers for b in blocks] == [
        ("conv1", "layer1.0.conv1", "layer1.0.conv2"),
        ("layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0", "fc"),
    ]
    assert [(b.start, b.stop) for b in blocks] == [(0, blocks[1].start), (blocks[0].stop, len(graph.nodes))]
    assert graph.nodes[blocks[0].stop - 1].outputs == blocks[0].outputs  # the sum's relu
    assert blocks[-1].outputs == tuple(graph.outputs.values())


def test_what_flows_past_in_two_values_is_one_block_and_masks_do_not_count():
    b = GraphBuilder({"x": ValueInfo((2, 4)), "mask": ValueInfo((2, 4))})
    x = "x"
    for i in range(4):
        y = b.add("linear", x, name=f"fc{i}", params={"weight": rand(4, 4, seed=i)})
        x = b.add("mul", b.add("relu", y), "mask")
    early = b.add("relu", x)
    x = b.add("linear", x, name="fc4", params={"weight": rand(4, 4)})
    x = b.add("add", b.add("linear", x, name="fc5", params={"weight": rand(4, 4)}), early)
    graph = b.build({"y": x, "early": early})
    assert [b.layers for b in find_blocks(graph, graph.layers())] == [("fc0", "fc1"), ("fc2", "fc3"), ("fc4", "fc5")]
    assert [b.layers for b in find_blocks(graph, graph.layers(), 1)][-1] == ("fc4", "fc5")
    assert find_blocks(graph, graph.layers())[-1].outputs == (x, early)
    assert find_blocks(graph, ["fc5"]) == [find_blocks(graph, graph.layers(), 9)[0]._replace(layers=("fc5",))]
    assert find_blocks(graph, []) == []


# -- the fit --------------------------------------------------------------------------------------------------


def test_slopes_are_derivatives_of_the_error(monkeypatch):
    """Also where biases make up for the means of what changed weights give."""
    rng, shifts = np.random.default_rng(0), []

    def compare(fit):
        direction = {name: rng.standard_normal(values.shape) for name, values in fit.start.items()}
        high, low = (fit._state(fit._moved(fit.start, direction, step)).error for step in (1e-4, -1e-4))
        slopes = fit._state(fit.start).slope
        slope = 2 * sum(float((slopes[name] * values).sum()) for name, values in direction.items())
        assert slope == pytest.approx((high - low) / 2e-4, rel=2e-2)
        shifts.append(set(fit.shifts))
        return {}, 1.0, 1.0

    monkeypatch.setattr(repair._Fit, "search", compare)
    pqnet.quantize(small_net(), repair="blocks", **BGD)
    assert shifts == [{"stem.weight", "grouped.weight"}, {"up.weight", "fc.weight"}]


# -- what a repair does ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nets():
    model = small_net()
    return model, pqnet.quantize(model, **BGD), pqnet.quantize(model, repair="blocks", **BGD)


def test_it_brings_outputs_nearer_on_other_samples_at_the_same_bytes(nets):
    model, plain, repaired = nets
    assert error(repaired, model) < 0.5 * error(plain, model)
    assert repaired.size().total == plain.size().total
    for before, after in zip(plain.graph.params.values(), repaired.graph.params.values(), strict=True):
        if isinstance(before, Packed):
            np.testing.assert_array_equal(before.codes, after.codes)
    assert all(entry["after"] < entry["before"] for entry in block_reports(repaired))
    layers = repaired.graph.meta["quantization"]["layers"]
    assert {entry["output_error"] for entry in layers.values()} == {None}  # not those of the search
    assert repaired.graph.meta["quantization"]["repair"] == "blocks"


def test_reported_errors_are_those_of_samples_put_aside(nets):
    model, _, repaired = nets
    aside = DATA[4::8]
    last = block_reports(repaired)[-1]
    assert last["after"] == pytest.approx(error(repaired, model, aside), rel=2e-3)


def test_threads_make_no_difference_and_a_stopped_run_goes_on(nets, tmp_path, monkeypatch):
    model, _, repaired = nets
    visits = []
    visit = repair.BlockRepair.visit
    monkeypatch.setattr(repair.BlockRepair, "visit", lambda self, *a: (visits.append(a[0].name), visit(self, *a))[1])
    first = pqnet.quantize(model, repair="blocks", checkpoint=tmp_path, threads=2, **BGD)
    assert len(visits) == 2
    newest = max(tmp_path.iterdir(), key=lambda p: p.stat().st_mtime_ns)
    newest.unlink()
    again = pqnet.quantize(model, repair="blocks", checkpoint=tmp_path, threads=1, **BGD)
    assert len(visits) == 3
    for other in (first, again):
        found = arrays(other)
        assert all(np.array_equal(a, found[name]) for name, a in arrays(repaired).items())
        assert other.graph.meta == repaired.graph.meta


def test_what_helps_blocks_but_not_the_network_is_taken_back(nets, monkeypatch):
    model, plain, _ = nets
    monkeypatch.setattr(repair.BlockRepair, "_error", lambda self, graph: 1.0)
    found = pqnet.quantize(model, repair="blocks", **BGD)
    assert all(np.array_equal(a, arrays(found)[name]) for name, a in arrays(plain).items())
    assert all(entry["after"] == entry["before"] for entry in block_reports(found))
    assert found.graph.meta["quantization"]["layers"] == plain.graph.meta["quantization"]["layers"]


def test_operations_without_gradients_and_shared_weights_stay():
    b = GraphBuilder({"x": ValueInfo(("batch", 6))}, {"batch": 2})
    y = b.add("relu", b.add("linear", "x", name="a", params={"weight": rand(6, 6), "bias": rand(6)}))
    y = b.add("relu", b.add("linear", y, name="b", params={"weight": "a.weight", "bias": rand(6, seed=1)}))
    y = b.add("round", b.add("linear", y, name="c", params={"weight": rand(8, 6)}))
    y = b.add("linear", y, name="d", params={"weight": rand(5, 8)})
    model = Model(b.build({"y": y}))
    x = rand(80, 6)
    options = {"recipe": {"default": PQ(4, 2)}, "calibration": x, "metric": "none", "progress": False}
    plain, found = pqnet.quantize(model, **options), pqnet.quantize(model, repair="blocks", **options)
    before, after = arrays(plain), arrays(found)
    # no gradient goes through what is rounded, in the one block
    assert [sorted(entry) for entry in block_reports(found)] == [["layers"]]
    assert all(np.array_equal(before[name], after[name]) for name in before)
    (block,) = find_blocks(plain.graph, ["a", "c", "d"])
    assert repair.fitted_params(plain.graph, block) == ["a.bias", "b.bias", "c.weight", "d.weight"]


@pytest.mark.parametrize("dtype", ["float16", "int8", "float32"])
def test_codewords_of_every_dtype_are_refitted(dtype):
    model, x = pqnet.load(model_path()), load_images()[0][:160]
    recipe = {"default": None, "layer2.0.conv?": PQ(16, 9, codebook_dtype=dtype)}
    options = {"recipe": recipe, "calibration": x, "mode": "bgd", "progress": False}
    plain, found = pqnet.quantize(model, **options), pqnet.quantize(model, repair="blocks", **options)
    others = load_images()[0][400:600]
    assert error(found, model, others) < error(plain, model, others)
    name = found.graph.layers()["layer2.0.conv1"].params["weight"]
    a, b = (m.graph.params[name] for m in (plain, found))
    assert a.codec == b.codec
    assert not np.array_equal(a.codebook, b.codebook)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repair": "layers"}, "repair: expected one of 'blocks', None, got str 'layers'"),
        ({"repair": "blocks", "calibration": DATA[:7]}, "repair: expected at least eight samples"),
        ({"repair": "blocks", "calibration": pqnet.calibrate(small_net(), DATA)}, "repair: expected calibration data"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        pqnet.quantize(small_net(), **{"recipe": RECIPE, "calibration": DATA, "progress": False, **options})


def test_on_the_command_line(tmp_path, capsys):
    small_net().save(tmp_path / "model.h5")
    np.save(tmp_path / "x.npy", DATA)
    call = f"quantize {tmp_path}/model.h5 --calibration {tmp_path}/x.npy --preset small-blocks -o {tmp_path}/small.h5"
    assert main([*call.split(), "--repair", "blocks", "--effort", "low", "--no-balanced"]) == 0
    record = pqnet.load(tmp_path / "small.h5").graph.meta["quantization"]
    assert (record["repair"], record["effort"], record["balanced"]) == ("blocks", "low", False)
    assert main([*call.split(), "--repair", "all"]) == 2
    assert "repair: expected one of 'blocks', None, got str 'all'" in capsys.readouterr().err
