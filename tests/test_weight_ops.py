"""Weight operations have one definition; calibration, search, plans, permutation, files and training go by it."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import torch
from test_ops import GATES
from test_permute import assert_same_function

import pqnet
from pqnet import PQ, Additive, Fixed, IntN, Model, Scalar, Sparse
from pqnet.graph import Graph, GraphBuilder, ValueInfo, weight_op
from pqnet.graph.affine import FreeAffine
from pqnet.graph.layers import weight_ops
from pqnet.pipeline.moments import doubted, share_to_doubt
from pqnet.pipeline.presets import PRESETS
from pqnet.pipeline.sensitivity import network_gains
from pqnet.train import QuantNoise, to_model, to_module
from pqnet_converters import statistics_from_activations

ROOT = Path(__file__).parents[1]


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def relative(error: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.square(error.astype(float)).sum() / np.square(wanted.astype(float)).sum())


# ---- the definition


def names_compared(source: str) -> Iterator[str]:
    """Yield the strings that the ``op`` of something is compared with."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == "op":
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


def test_nothing_but_kernels_asks_for_weight_operations_by_name() -> None:
    assert list(names_compared('a.op == "linear" or b.op in ("conv2d", x)')) == ["linear", "conv2d"]
    files = [p for top in ("pqnet", "converters") for p in (ROOT / top).rglob("*.py") if "runtime" not in p.parts]
    asked = {p.relative_to(ROOT): set(names_compared(p.read_text("utf-8"))) & set(weight_ops()) for p in files}
    assert {name: found for name, found in asked.items() if found} == {}


def test_what_each_operation_says() -> None:
    kinds = {name: rule.kind for name, rule in weight_ops().items()}
    convs = {f"conv{transposed}{n}d": "conv" for transposed in ("", "_transpose") for n in (1, 2, 3)}
    others = {"linear": "linear", "embedding": "embedding"} | dict.fromkeys(GATES, "recurrent")
    assert kinds == convs | others
    assert [name for name, rule in weight_ops().items() if rule.looked_up] == ["embedding"]
    assert {name for name, rule in weight_ops().items() if not rule.is_product} == set(GATES)
    assert weight_op("conv3d").moment_shape((6, 2, 3, 1, 1), {"groups": 3}) == (3, 6, 6)
    assert weight_op("embedding").moment_shape((9, 4), {}) == (9,)
    assert (weight_op("conv1d").channel_axis(3), weight_op("gru").channel_axis(3)) == (1, 2)
    assert weight_op("conv1d").positions((2, 6, 7)) == weight_op("linear").positions((2, 7, 6)) == 7


# ---- recurrent weights


def recurrent_net(op: str, bias: bool = True) -> Model:
    b = GraphBuilder({"input": ValueInfo(("batch", 5, 6))}, {"batch": 2})
    rows, states = GATES[op] * 8, 2 if op == "lstm" else 1
    x = b.add("linear", "input", name="cell.input", params={"weight": rand(rows, 6), "bias": rand(rows)})
    params = {"weight": rand(rows, 8, seed=1)} | ({"bias": rand(rows, seed=1)} if bias else {})
    y, last, *_ = b.add_many(op, [x], 1 + states, name="cell", params=params, reverse=op == "gru")
    head = b.add("linear", b.add("add", b.add("mean", y, axes=(1,)), last), name="head", params={"weight": rand(4, 8)})
    return Model(b.build({"output": head}))


def seen(model: Model, x: np.ndarray) -> np.ndarray:
    """Return what the recurrent weight of `recurrent_net` is multiplied with, (rows, 8)."""
    node, params = model.graph.layers()["cell"], model.graph.params
    products = x @ params["cell.input.weight"].T + params["cell.input.bias"]
    start = [np.zeros((len(x), 8))] * (2 if node.op == "lstm" else 1)
    weight, bias = params["cell.weight"], params.get("cell.bias")
    return naive.recurrent(node.op, products, start, weight, bias, reverse=node.op == "gru")[2].reshape(-1, 8)


INPUTS = rand(24, 5, 6, seed=3)


@pytest.mark.parametrize("op", GATES)
def test_moments_of_recurrent_weights_are_those_of_all_steps(op: str) -> None:
    model = recurrent_net(op)
    states = seen(model, INPUTS)
    found = pqnet.calibrate(model, INPUTS).layers["cell"]
    assert found.count == 24 * 5 and found.first is not None
    np.testing.assert_allclose(found.mean[0], states.T @ states / len(states), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.first[0], states.mean(0), rtol=1e-4, atol=1e-5)
    given = {"cell.input": INPUTS, "cell": states.reshape(24, 5, 8), "head": rand(24, 8)}
    recorded = statistics_from_activations(model, given).layers["cell"]
    np.testing.assert_allclose(recorded.mean, found.mean, rtol=1e-4, atol=1e-5)
    with pytest.raises(pqnet.PQNetError, match=r"activations\['cell'\]: expected shape \(batch, steps, 8\), got"):
        statistics_from_activations(model, given | {"cell": INPUTS})


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("how", ["data", "statistics", "block"])
def test_reported_errors_of_recurrent_weights_are_of_all_steps(op: str, how: str) -> None:
    model = recurrent_net(op, bias=False)
    weight, stats = model.graph.params["cell.weight"], pqnet.calibrate(model, INPUTS)
    calibration = stats if how == "statistics" else INPUTS
    options = {"metric": "block"} if how == "block" else {}
    small = pqnet.quantize(model, {"cell": IntN(3)}, calibration, progress=False, **options)
    change = weight - small.graph.params["cell.weight"].decode()
    if how == "statistics":
        mean, count = stats.layers["cell"].mean[0], stats.layers["cell"].count
        believed = doubted(mean, share_to_doubt(len(mean), count))
        wanted = np.trace(change @ believed @ change.T) / np.trace(weight @ mean @ weight.T)
    else:
        states = seen(model, INPUTS[4::8])  # samples that were put aside
        wanted = relative(states @ change.T, states @ weight.T)
    assert small.graph.meta["quantization"]["layers"]["cell"]["output_error"] == pytest.approx(wanted, rel=1e-3)


def test_biases_make_up_for_mean_errors_of_recurrent_weights() -> None:
    model = recurrent_net("lstm")
    small = pqnet.quantize(model, {"cell": PQ(4, 4)}, INPUTS, progress=False)
    states, params = seen(model, np.delete(INPUTS, slice(4, None, 8), 0)), small.graph.params
    change = params["cell.weight"].decode() - model.graph.params["cell.weight"]
    shift = params["cell.bias"] - model.graph.params["cell.bias"]
    np.testing.assert_allclose((states @ change.T).mean(0), -shift, atol=1e-4)


@pytest.mark.parametrize("op", GATES)
def test_gains_of_recurrent_weights(op: str) -> None:
    model = recurrent_net(op)
    weight, states = model.graph.params["cell.weight"], seen(model, INPUTS)
    other = (weight + 0.01 * rand(*weight.shape, seed=5)).astype(np.float32)
    for corrected in ({}, {"cell": np.ones(1)}):
        found = network_gains(model.graph, [{"input": INPUTS}], lambda _: [other], ["cell"], 1, corrected)
        change = states @ (other - weight).T
        mean = change.mean(0) if corrected else np.zeros(len(weight))
        changed = dict(model.graph.params) | {"cell.weight": other}
        changed["cell.bias"] = (model.graph.params["cell.bias"] - mean).astype(np.float32)
        graph = Graph(model.graph.inputs, model.graph.outputs, model.graph.nodes, changed, model.graph.symbols)
        network = relative(Model(graph)(INPUTS) - model(INPUTS), model(INPUTS))
        [[(error, gain)]] = found.values()
        assert error == pytest.approx(relative(change - mean, states @ weight.T), rel=2e-2)
        assert gain == pytest.approx(network / relative(change - mean, states @ weight.T), rel=2e-2)


@pytest.mark.parametrize("op", GATES)
def test_states_may_change_places(op: str) -> None:
    assert_same_function(recurrent_net(op).graph, [8])


# ---- weights with several users


def unrolled(steps: int = 3) -> Model:
    """A cell that is called at each step, and rows of one table for two inputs."""
    ids = {name: ValueInfo(("batch",), "int64") for name in ("a", "b")}
    b = GraphBuilder({"x": ValueInfo(("batch", 6)), **ids}, {"batch": 2})
    first = b.add("linear", "x", name="first", params={"weight": rand(8, 6)})
    h = b.add("embedding", "a", name="table", params={"weight": rand(9, 8)})
    h = b.add("add", h, b.add("embedding", "b", name="again", params={"weight": "table.weight"}))
    for i in range(steps):
        weight: Any = "cell.weight" if i else rand(8, 8, seed=1) / 3
        h = b.add("linear", h, name="cell" if i == 0 else f"step{i}", params={"weight": weight})
        h = b.add("tanh", b.add("add", h, first))
    return Model(b.build({"output": h}))


def steps_of(params: dict[str, Any], batch: dict[str, np.ndarray], steps: int = 3) -> np.ndarray:
    """Return what the cell of `unrolled` sees at all its steps, (rows, 8)."""
    table, weight = params["table.weight"], params["cell.weight"]
    first = params["first.weight"]
    first = batch["x"] @ (first if isinstance(first, np.ndarray) else first.decode()).T
    found = [table[batch["a"]] + table[batch["b"]]]
    for _ in range(steps - 1):
        found.append(np.tanh(found[-1] @ weight.T + first))
    return np.concatenate(found)


IDS = np.random.default_rng(0).integers(0, 9, (2, 40))
BATCH = {"x": rand(40, 6, seed=2), "a": IDS[0], "b": IDS[1]}


def test_moments_are_summed_over_the_users_of_a_weight() -> None:
    model = unrolled()
    assert list(model.graph.layers()) == ["first", "table", "cell"]
    stats = pqnet.calibrate(model, BATCH)
    states = steps_of(model.graph.params, BATCH)
    assert (stats.layers["cell"].count, stats.layers["table"].count) == (120, 80)
    np.testing.assert_allclose(stats.layers["cell"].mean[0], states.T @ states / 120, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats.layers["table"].mean, np.bincount(IDS.reshape(-1), minlength=9) / 80, rtol=1e-6)


@pytest.mark.parametrize("metric", ["full", "block"])
def test_errors_with_data_are_of_all_users_of_a_weight(metric: str) -> None:
    model = unrolled()
    recipe = {"first": IntN(2), "cell": IntN(3)}
    small = pqnet.quantize(model, recipe, BATCH, metric=metric, progress=False)
    params = model.graph.params
    held = {name: a[4::8] for name, a in BATCH.items()}  # samples that were put aside
    student = steps_of(params | {"first.weight": small.graph.params["first.weight"]}, held)
    teacher = steps_of(params, held) if metric == "full" else student
    weight, packed = params["cell.weight"], small.graph.params["cell.weight"].decode()
    wanted = relative(teacher @ weight.T - student @ packed.T, teacher @ weight.T)
    assert small.graph.meta["quantization"]["layers"]["cell"]["output_error"] == pytest.approx(wanted, rel=2e-3)
    counts = np.bincount(IDS.reshape(-1), minlength=9)
    small = pqnet.quantize(model, {"table": IntN(3)}, BATCH, metric=metric, progress=False)
    table = params["table.weight"]
    change = np.sqrt(counts)[:, None] * (table - small.graph.params["table.weight"].decode())
    wanted = relative(change, np.sqrt(counts)[:, None] * table)
    assert small.graph.meta["quantization"]["layers"]["table"]["output_error"] == pytest.approx(wanted, rel=1e-3)


# ---- norms behind layers


@pytest.mark.parametrize("tokens", [12, 7])
@pytest.mark.parametrize("bias", [True, False])
def test_norms_of_another_axis_take_no_part(tokens: int, bias: bool) -> None:
    b = GraphBuilder({"input": ValueInfo(("batch", tokens, 8))}, {"batch": 2})
    spread = np.exp(rand(12, 1, seed=4)).astype(np.float32)
    params = {"weight": rand(12, 8) * spread} | ({"bias": rand(12)} if bias else {})
    y = b.add("linear", "input", name="fc", params=params)
    norm = {"weight": rand(tokens), "bias": rand(tokens), "mean": rand(tokens), "var": np.abs(rand(tokens)) + 1}
    model = Model(b.build({"output": b.add("batch_norm", y, params=norm)}))
    found = FreeAffine.find(model.graph, model.graph.layers()["fc"])
    assert (None if found is None else found.node.name) == ("fc" if bias else None)
    x = rand(64, tokens, 8)
    small = pqnet.quantize(model, {"fc": IntN(8)}, x, progress=False)
    assert relative(small(x) - model(x), model(x)) < 1e-3


def test_layers_that_share_a_weight_have_no_free_scales() -> None:
    b = GraphBuilder({"input": ValueInfo(("batch", 4))}, {"batch": 2})
    norms = [{"weight": np.full(4, s, np.float32), "mean": rand(4), "var": np.ones(4, np.float32)} for s in (1, 20)]
    a = b.add("batch_norm", b.add("linear", "input", name="fc", params={"weight": rand(4, 4)}), params=norms[0])
    c = b.add("batch_norm", b.add("linear", a, name="fc2", params={"weight": "fc.weight"}), params=norms[1])
    graph = b.build({"output": c})
    assert FreeAffine.find(graph, graph.layers()["fc"]) is None


# ---- new operations in recipes, files and training


def mixed_net() -> Model:
    """Convolutions over one and three axes, plain and transposed, and an LSTM."""
    b = GraphBuilder({"input": ValueInfo(("batch", 4, 8))}, {"batch": 2})
    x = b.add("conv1d", "input", name="stem", params={"weight": rand(8, 4, 3)}, padding=(2, 2), dilation=(2,))
    x = b.add("relu", x)
    x = b.add("conv1d", x, name="conv1", params={"weight": rand(16, 4, 3), "bias": rand(16)}, groups=2, padding=(1, 1))
    x = b.add("conv_transpose1d", x, name="up1", params={"weight": rand(8, 16, 2)}, stride=(2,))
    y = b.add("reshape", x, shape=("batch", 8, 2, 4, 2))
    y = b.add("relu", b.add("conv3d", y, name="conv3", params={"weight": rand(8, 8, 2, 3, 1)}, padding=(0, 1, 0) * 2))
    y = b.add("conv_transpose3d", y, name="up3", params={"weight": rand(8, 4, 2, 1, 1)}, groups=2)
    z = b.add("permute", b.add("reshape", y, shape=("batch", 8, 16)), axes=(0, 2, 1))
    z = b.add("linear", z, name="cell.input", params={"weight": rand(32, 8)})
    z, *_ = b.add_many("lstm", [z], 3, name="cell", params={"weight": rand(32, 8), "bias": rand(32)})
    return Model(b.build({"output": b.add("add", x, b.add("permute", z, axes=(0, 2, 1)))}))


IMAGES = rand(16, 4, 8, seed=6)
CODECS = [
    PQ(8, 4, "channel"),
    PQ(8, 2, "channel", "int8"),
    PQ(4, 2, clamp="floor"),
    Scalar(4),
    Fixed("ternary"),
    IntN(4, per="channel"),
    Sparse(fraction=0.3),
    Additive([PQ(2, 4, "channel"), Sparse(fraction=0.02)]),
]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
def test_every_codec_packs_them_and_files_keep_them(codec: Any, tmp_path: Path) -> None:
    model = mixed_net()
    small = pqnet.quantize(model, {"*": codec}, IMAGES, progress=False)
    small.save(tmp_path / "small.h5")
    back = pqnet.load(tmp_path / "small.h5")
    assert {n: node.op for n, node in back.graph.layers().items()} == {
        n: node.op for n, node in model.graph.layers().items()
    }
    np.testing.assert_array_equal(back(IMAGES), small(IMAGES))
    dense = {n: p if isinstance(p, np.ndarray) else p.decode() for n, p in back.graph.params.items()}
    for name, array in model.graph.params.items():
        assert dense[name].shape == array.shape
    graph = Graph(back.graph.inputs, back.graph.outputs, back.graph.nodes, dense, back.graph.symbols)
    np.testing.assert_allclose(Model(graph)(IMAGES), small(IMAGES), rtol=1e-4, atol=1e-5)
    module = to_module(back)
    np.testing.assert_allclose(module(torch.from_numpy(IMAGES)).detach().numpy(), back(IMAGES), rtol=1e-3, atol=1e-3)
    module.train()(torch.from_numpy(IMAGES)).square().sum().backward()
    grads = {n: p.grad for n, p in module.named_parameters() if n.endswith(("codebook", "scales", "values"))}
    assert all(g is not None and g.abs().sum() > 0 for g in grads.values())
    np.testing.assert_array_equal(to_model(module)(IMAGES), back(IMAGES))


def test_blocks_of_other_kernels_lie_as_those_of_images_do() -> None:
    weight = rand(6, 4, 2, 3, 2)
    for layout, d in (("channel", 4), ("spatial", 12)):
        codec = PQ(9, d, layout)
        flat = codec.fit(weight.reshape(6, 4, 6, 2))
        np.testing.assert_array_equal(codec.fit(weight).decode(), flat.decode().reshape(weight.shape))
        row = codec.fit(weight[:, :, 0, 0]) if layout == "channel" else PQ(9, 2).fit(weight[:, :, 0, 0])
        image = (codec if layout == "channel" else PQ(9, 2)).fit(weight[:, :, :1, 0])
        np.testing.assert_array_equal(row.decode(), image.decode()[:, :, 0])


def test_presets_and_defaults_know_them() -> None:
    graph = mixed_net().graph
    recipe = PRESETS["small-blocks"](graph)
    assert recipe["stem"] is None
    assert {n: c.d for n, c in recipe.items() if c} == {
        "conv1": 3,
        "up1": 2,
        "conv3": 6,
        "up3": 2,
        "cell.input": 4,
        "cell": 4,
    }
    small = pqnet.quantize(Model(graph), {"default": IntN(4)}, progress=False, metric="none")
    assert set(small.graph.meta["quantization"]["layers"]) == set(graph.layers()) - {"stem"}


def test_plans_hold_them() -> None:
    model = mixed_net()
    recipe = pqnet.plan(model, IMAGES, 7600, progress=False)
    assert set(recipe.layers) == set(model.graph.layers()) and any(recipe.layers.values())


def test_noise_reaches_recurrent_weights() -> None:
    module = to_module(mixed_net())
    noise = QuantNoise(module, {"cell": PQ(8, 4), "conv3": PQ(8, 4, "channel")}, p=0.5)
    module.train()(torch.from_numpy(IMAGES)).square().sum().backward()
    for name in ("cell_weight", "conv3_weight"):
        assert module.get_submodule("parametrizations")[name].original.grad.abs().sum() > 0
    assert (module.cell_weight.reshape(-1, 4) == 0).all(1).any()
    noise.remove()
