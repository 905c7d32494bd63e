"""Rewrites keep the function of a graph; sizes count as the papers do."""

import numpy as np
import pytest

import pqnet
from pqnet import PQ, Model, PQNetError
from pqnet.graph import Graph, GraphBuilder, ValueInfo
from pqnet.graph.affine import norm_behind
from pqnet.graph.passes import fold_norm_statistics, merge_batch_norm, separate_norm_statistics
from pqnet.runtime.execute import run_graph, values_to_free


def rand(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def stats(channels, seed=0):
    names = ("weight", "bias", "mean")
    return {n: rand(channels, seed=seed + i) for i, n in enumerate(names)} | {"var": rand(channels, seed=9) ** 2 + 0.5}


def builder(*shape):
    return GraphBuilder({"x": ValueInfo(("batch", *shape))}, {"batch": 2})


def plain(graph, x):
    """The graph as it is, nothing merged."""
    return run_graph(graph, values_to_free(graph), {"x": x})["y"]


def same(a, b, x):
    np.testing.assert_allclose(plain(a, x), plain(b, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", ["conv2d", "conv_transpose2d", "linear"])
@pytest.mark.parametrize("bias", [False, True])
def test_norms_merge_into_the_layer_before(op, bias):
    b = builder(*((4,) if op == "linear" else (4, 5, 5)))
    weight = rand(6, 4) if op == "linear" else rand(6, 4, 3, 3)
    y = b.add(op, "x", name="layer", params={"weight": weight} | ({"bias": rand(6)} if bias else {}))
    graph = b.build({"y": b.add("batch_norm", y, name="bn", params=stats(6))})
    merged = merge_batch_norm(graph)
    assert [node.op for node in merged.nodes] == [op]
    same(graph, merged, rand(3, *weight.shape[1:2]) if op == "linear" else rand(3, 4, 5, 5))


@pytest.mark.parametrize("outputs", [6, 5])
def test_a_norm_along_another_axis_than_the_linear_layer_writes_stays(outputs):
    b = builder(6, 8)
    y = b.add("linear", "x", params={"weight": rand(outputs, 8)})
    graph = b.build({"y": b.add("batch_norm", y, params=stats(6))})
    assert len(merge_batch_norm(graph).nodes) == 2
    np.testing.assert_allclose(Model(graph)(rand(3, 6, 8)), plain(graph, rand(3, 6, 8)), rtol=1e-5)


def test_a_layer_that_is_used_twice_or_is_an_output_keeps_its_weights():
    b = builder(4)
    y = b.add("linear", "x", params={"weight": rand(4, 4)})
    z = b.add("batch_norm", y, params=stats(4))
    assert len(merge_batch_norm(b.build({"y": z, "raw": y})).nodes) == 2
    assert len(merge_batch_norm(b.build({"y": b.add("add", y, z)})).nodes) == 3


def test_folding_and_merging_never_overwrite_parameters_of_others():
    """Parameters of other nodes that have the very names which the rewrites would give."""
    b = builder(4, 5, 5)
    b.params |= {"bn.weight": rand(4, seed=3), "layer.bias": rand(4, seed=4)}
    y = b.add("conv2d", "x", name="layer", params={"weight": rand(4, 4, 1, 1)})
    y = b.add("batch_norm", y, name="bn", params={n: v for n, v in stats(4).items() if n in ("mean", "var")})
    y = b.add("prelu", y, params={"weight": "bn.weight"})
    graph = b.build({"y": b.add("prelu", y, params={"weight": "layer.bias"})})
    for rewrite in (fold_norm_statistics, merge_batch_norm):
        same(graph, rewrite(graph), rand(3, 4, 5, 5))
    same(graph, fold_norm_statistics(merge_batch_norm(graph)), rand(3, 4, 5, 5))


def test_shared_norms_are_folded_separately_and_measured_separately():
    b = builder(3, 6, 6)
    b.params |= {f"bn.{role}": v for role, v in stats(3).items()}
    names = {role: f"bn.{role}" for role in ("weight", "bias", "mean", "var")}
    y = b.add("batch_norm", "x", name="first", params=names)
    y = b.add("conv2d", y, name="conv", params={"weight": 5 * rand(3, 3, 1, 1)})
    graph = b.build({"y": b.add("batch_norm", y, name="second", params=names)})
    same(graph, fold_norm_statistics(graph), rand(2, 3, 6, 6))
    same(graph, separate_norm_statistics(graph), rand(2, 3, 6, 6))
    data = 2.9 * rand(200, 3, 6, 6)
    small = pqnet.quantize(Model(graph), {"conv": PQ(3, 3)}, data, reestimate_norm=True, progress=False)
    scale = small.graph.params[small.graph.nodes[0].params["weight"]]
    want = graph.params["bn.weight"] / np.sqrt(data.var((0, 2, 3), ddof=1) + 1e-5)
    np.testing.assert_allclose(scale, want, rtol=1e-3)


def test_weights_that_are_also_values_are_no_layers():
    b = builder(4)
    w = b.add("constant", params={"value": rand(4, 4)}, name="w")
    y = b.add("linear", "x", name="tied", params={"weight": "w.value"})
    y = b.add("linear", b.add("add", y, b.add("mean", w, axes=(0,))), name="fc", params={"weight": rand(4, 4)})
    model = Model(b.build({"y": y}))
    assert list(model.graph.layers()) == list(model.size().per_layer) == ["fc"]
    assert pqnet.quantize(model, {"default": PQ(4, 2)}, metric="none", progress=False)(rand(2, 4)).shape == (2, 4)


@pytest.mark.parametrize("roles", [("mean", "var"), ("weight", "bias"), ("weight", "bias", "mean", "var")])
def test_norms_count_two_numbers_a_channel_before_and_after_folding(roles):
    b = builder(7, 2, 2)
    y = b.add("batch_norm", "x", name="bn", params={n: v for n, v in stats(7).items() if n in roles})
    graph = b.build({"y": y})
    assert Model(graph).size().total == Model(fold_norm_statistics(graph)).size().total == 4 * 2 * 7


def test_constants_count_what_they_take():
    b = builder(3)
    ids = b.add("constant", params={"value": np.arange(5)})
    assert Model(b.build({"y": "x", "ids": ids})).size().total == 40


def test_outputs_are_new_writable_arrays():
    b = builder(3)
    y = b.add("relu", "x")
    model = Model(b.build({"a": y, "b": y, "c": "x", "d": b.add("expand", y, shape=(2, "batch", 3))}))
    x = rand(2, 3)
    outputs = [x, *model(x)]
    for i, a in enumerate(outputs):
        assert a.flags.writeable and not any(np.shares_memory(a, other) for other in outputs[:i])


def test_networks_that_fit_some_batches_only_say_so_in_calibration_too():
    b = builder(4)
    pairs = b.add("reshape", "x", shape=("batch//2", 2, 4))
    y = b.add("reshape", pairs, shape=("batch", 4))
    model = Model(b.build({"y": b.add("linear", y, name="fc", params={"weight": rand(4, 4)})}))
    for call in (pqnet.calibrate, lambda m, d: pqnet.quantize(m, {"fc": PQ(4, 2)}, d, progress=False)):
        with pytest.raises(PQNetError, match="node 'reshape' \\(reshape\\)"):
            call(model, rand(65, 4))


def test_free_sizes_say_what_they_are():
    b = GraphBuilder({"x": ValueInfo(("batch", 4)), "z": ValueInfo(("batch", 4))}, {"batch": 2})
    model = Model(b.build({"y": b.add("add", "x", "z")}))
    with pytest.raises(
        PQNetError, match=r"input 'z': expected shape \(any > 0, 4\), got \(3, 4\) \('batch' is 2 in another"
    ):
        model(rand(2, 4), rand(3, 4))
    with pytest.raises(PQNetError, match=r"input 'x': expected shape \(any > 0, 4\), got \(0, 4\)"):
        model(rand(0, 4), rand(0, 4))
    with pytest.raises(PQNetError, match="sizes that are numbers or names of free symbols, got str '2\\*batch'"):
        GraphBuilder({"x": ValueInfo(("2*batch",))}, {"batch": 2}).build({"y": "x"})


def test_large_golden_records_are_left_out():
    b = builder(3, 64, 64)
    model = Model(b.build({"y": b.add("relu", "x")}))
    golden = model.draw_golden()
    assert golden.outputs["y"].shape == (2, 3, 64, 64) and model.with_golden(golden).golden is None
    small = Model(builder(3).build({"y": "x"}))
    assert small.with_golden(small.draw_golden()).golden is not None


def test_norms_behind_layers_are_found_in_one_pass(monkeypatch):
    """The search once went over the whole network, shapes included, for every layer."""
    b = builder(4)
    y = "x"
    for i in range(6):
        y = b.add("linear", y, name=f"fc{i}", params={"weight": rand(4, 4)})
        y = b.add("batch_norm", y, name=f"bn{i}", params=stats(4))
    graph = b.build({"y": y})
    calls = []
    monkeypatch.setattr(
        Graph, "infer_shapes", lambda self, symbols, f=Graph.infer_shapes: calls.append(0) or f(self, symbols)
    )
    found = [norm_behind(graph, layer) for layer in graph.layers().values()]
    assert [norm.name for norm in found] == [f"bn{i}" for i in range(6)]
    assert len(calls) == 1


def test_layers_that_share_a_weight_keep_norms_of_their_own():
    b = builder(4)
    y = b.add("linear", "x", name="fc", params={"weight": rand(4, 4)})
    y = b.add("batch_norm", y, name="bn0", params=stats(4))
    y = b.add("batch_norm", b.add("linear", y, params={"weight": "fc.weight"}), name="bn1", params=stats(4, seed=5))
    graph = b.build({"y": y})
    assert not any(norm_behind(graph, node) for node in graph.nodes)
    assert merge_batch_norm(graph).nodes == graph.nodes
