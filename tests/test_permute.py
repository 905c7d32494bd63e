"""Channels change places without changing the function of a network; a search of their order lowers its objective."""

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from realdata import cifar_resnet_module, needs_data, tiny_darknet

import pqnet
from pqnet import PQ, ConfigError, PQNetError
from pqnet.cli.main import main
from pqnet.demo import load_images, model_path
from pqnet.fit import permutation
from pqnet.fit.permutation import Reader, published_order, search_order
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.graph.axes import Tracked, cut, fix, fresh, join, reshape, resolve, unify
from pqnet.graph.permute import Channels
from pqnet.pipeline.permute import Permutation
from pqnet.runtime.execute import run_graph, values_to_free


def rand(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def builder(*shape):
    return GraphBuilder({"x": ValueInfo(("batch", *shape))}, {"batch": 2})


def conv(b, x, outputs, inputs, kernel=1, **attrs):
    """A convolution with a bias and an activation."""
    params = {"weight": rand(outputs, inputs, kernel, kernel), "bias": rand(outputs)}
    return b.add("silu", b.add("conv2d", x, params=params, padding=(kernel // 2,) * 4, **attrs))


def outputs_of(graph, inputs):
    return run_graph(graph, values_to_free(graph), inputs)


def assert_same_function(graph, sizes=None, seed=0):
    """Permute every set of channels at random: parameters change, outputs do not."""
    rng, channels = np.random.default_rng(seed), Channels.find(graph)
    if sizes is not None:
        assert sorted(channels.sizes) == sorted(sizes)
    permuted = channels.apply(graph, {i: rng.permutation(n) for i, n in enumerate(channels.sizes)})
    infos = {n: info for n, info in graph.infer_shapes(graph.symbols).items() if n in graph.inputs}
    draw = {"float32": lambda s: rng.standard_normal(s, np.float32), "int64": lambda s: rng.integers(0, 9, s)}
    inputs = {name: draw[info.dtype](info.shape) for name, info in infos.items()}
    for name, expected in outputs_of(graph, inputs).items():
        scale = max(float(np.abs(expected).max()), 1e-6)
        np.testing.assert_allclose(outputs_of(permuted, inputs)[name], expected, atol=2e-5 * scale)
    return channels


# ---- axes


def test_unified_axes_are_cut_where_the_other_is():
    whole, parts = fresh(10), join([fresh(4), fresh(6)])
    unify(whole, parts)
    assert resolve(whole) == resolve(parts) and [p.size for p in resolve(whole)] == [4, 6]
    fix(cut(whole, 4)[0])
    assert [p.segment.fixed for p in resolve(parts)] == [True, False]


def test_an_axis_unified_with_itself_moved_has_one_order_for_all_its_parts():
    a, b = fresh(2), fresh(4)
    unify(join([a, b]), join([b, a]))
    assert len({piece.segment for piece in resolve(b)} | {piece.segment for piece in resolve(a)}) == 1


@pytest.mark.parametrize(
    ("before", "free", "after", "sizes"),
    [
        ((2, 6, 3, 3), 1, (2, 54), [6]),  # a channel is nine neighbours
        ((2, 54), 1, (2, 6, 9), [9]),  # all six parts in one order
        ((2, 12), 1, (2, 3, 4), [4]),
        ((2, 3, 4), 2, (2, 12), [4]),
        ((2, 5, 1, 1), 1, (2, 5), [5]),
        ((2, 5), 1, (1, 2, 5, 1), [5]),
        ((2, 6, 4), 1, (2, 4, 6), []),
    ],
)
def test_reshaping(before, free, after, sizes):
    axes = tuple(fresh(size, fixed=i != free) for i, size in enumerate(before))
    found = reshape(Tracked(before, axes), after)
    assert [sum(p.size for p in axis) for axis in found] == list(after)
    segments = {p.segment for axis in found for p in resolve(axis) if not p.segment.fixed}
    assert sorted(s.size for s in segments) == sizes


# ---- graphs


def test_residual_adds_and_concats():
    b = builder(3, 6, 6)
    x = conv(b, "x", 8, 3, 3)
    x = b.add("add", conv(b, conv(b, x, 12, 8), 8, 12, 3), x)
    y = b.add("concat", x, conv(b, x, 4, 8), axis=1)
    y = b.add("add", y, conv(b, y, 12, 12))
    assert_same_function(b.build({"y": conv(b, y, 5, 12)}), [8, 12, 4])


def test_grouped_depthwise_and_normalisation():
    b = builder(3, 6, 6)
    x = conv(b, "x", 12, 3)
    x = b.add("group_norm", x, params={"weight": rand(12), "bias": rand(12)}, groups=3)
    x = conv(b, conv(b, x, 8, 12), 8, 1, 3, groups=8)
    x = conv(b, x, 6, 4, 3, groups=2)
    x = b.add("batch_norm", x, params={r: np.abs(rand(6)) + 0.5 for r in ("weight", "bias", "mean", "var")})
    graph = b.build({"y": conv(b, x, 5, 6)})
    # Groups of the norm; both groups of inputs of the grouped convolution in one order; its groups of outputs.
    assert_same_function(graph, [4, 4, 4, 4, 3, 3])


def test_flattening_squeeze_and_excitation_and_padding():
    b = builder(3, 6, 6)
    x = conv(b, "x", 8, 3)
    gate = b.add("mean", x, axes=(2, 3), keepdims=True)
    x = b.add("mul", x, b.add("sigmoid", conv(b, conv(b, gate, 4, 8), 8, 4)))
    x = b.add("pad", x, padding=(0, 0, 2, 2, 0, 0, 0, 0))
    x = b.add("add", x, conv(b, x, 12, 12))
    x = b.add("reshape", b.add("max_pool2d", x, kernel=(2, 2), stride=(2, 2)), shape=("batch", 12 * 9))
    graph = b.build({"y": b.add("linear", x, params={"weight": rand(5, 108), "bias": rand(5)})})
    assert_same_function(graph, [8, 4, 2, 2])


def test_pixels_stay_where_a_convolution_or_pool_puts_them():
    b = builder(3, 6, 6)
    x = b.add("slice", conv(b, "x", 8, 3, 3, stride=(2, 2)), axis=2, start=1)
    x = b.add("add", x, b.add("constant", params={"value": rand(8, 2, 3)}))
    x = b.add("max_pool2d", b.add("concat", x, x, axis=2), kernel=(2, 1), stride=(2, 1))
    x = b.add("mul", x, b.add("constant", params={"value": rand(1, 1, 2, 3)}))
    assert_same_function(b.build({"y": conv(b, x, 5, 8)}), [8])


def test_what_reads_the_order_fixes_it():
    b = builder(3, 4, 4)
    x, y, z = (conv(b, "x", 6, 3) for _ in range(3))
    order = b.add("argmax", x, axis=1)
    strided = b.add("slice", y, axis=1, step=2)
    b.add("permute", b.add("reshape", z, shape=("batch", 4, 6, 4)), name="mixed", axes=(0, 2, 1, 3))
    mixed = conv(b, "mixed", 2, 6)
    assert_same_function(b.build({"a": order, "b": conv(b, strided, 2, 3), "c": mixed}), [])


def test_outputs_and_packed_weights_keep_their_order():
    b = builder(4, 4, 4)
    graph = b.build({"y": conv(b, conv(b, "x", 8, 4), 4, 8)})
    assert Channels.find(graph).sizes == (8,)
    packed = pqnet.quantize(pqnet.Model(graph), {"conv2d_1": PQ(4, 4)}, metric="none", progress=False).graph
    assert Channels.find(packed).sizes == ()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["conv", "add", "concat", "split", "depthwise", "group_norm", "slice"]), max_size=7))
def test_any_network_keeps_its_function(steps):
    b = builder(4, 5, 5)
    values = [(conv(b, "x", 8, 4), 8), (conv(b, "x", 8, 4, 3), 8)]
    for i, step in enumerate(steps):
        (x, n), (y, m) = values[-1], values[-2]
        if step == "conv":
            values.append((conv(b, x, 6 + 2 * i, n), 6 + 2 * i))
        elif step == "add":
            values.append((b.add("add", x, conv(b, y, n, m)), n))
        elif step == "concat":
            values.append((b.add("concat", y, x, y, axis=1), n + 2 * m))
        elif step == "split":
            first, second = b.add_many("split", [x], 2, axis=1, sizes=(n // 2, n - n // 2))
            values += [(first, n // 2), (second, n - n // 2)]
        elif step == "depthwise":
            values.append((conv(b, x, n, 1, 3, groups=n), n))
        elif step == "group_norm":
            values.append((b.add("group_norm", x, groups=2 - n % 2), n))
        else:
            values.append((b.add("slice", x, axis=1, start=1), n - 1))
        values = [v for v in values if v[1] > 1]
        values = values if len(values) > 1 else [*values, (conv(b, "x", 8, 4), 8)]
    (x, n), (y, m) = values[-1], values[-2]
    assert_same_function(b.build({"y": conv(b, x, 3, n), "z": conv(b, y, 3, m)}))


# ---- real networks


@pytest.mark.parametrize(
    ("name", "sets", "moving"),
    [
        ("resnet18", 12, 20),
        ("mobilenet_v2", 11, 13),
        ("mobilenet_v3", 12, 16),
        ("VisionTransformer", 5, 9),
        ("SmallUNet", 27, 11),
        ("TiedLanguageModel", 5, 9),
    ],
)
def test_converted_networks(name, sets, moving):
    torch = pytest.importorskip("torch")
    import nets

    from pqnet_converters import from_torch

    torch.manual_seed(0)
    inputs = torch.zeros((2, 12), dtype=torch.long) if name == "TiedLanguageModel" else torch.zeros(2, 3, 32, 32)
    graph = from_torch(nets.randomise(getattr(nets, name)()), inputs).graph
    channels = assert_same_function(graph)
    layers = graph.layers().values()
    assert len(channels.sizes) == sets
    assert sum((node.params["weight"], 1) in channels.places for node in layers) == moving


def test_the_demo_network():
    assert_same_function(pqnet.load(model_path()).graph, [64, 64, 80, 80])


@needs_data
def test_trained_networks():
    torch = pytest.importorskip("torch")
    from pqnet_converters import from_torch

    assert_same_function(tiny_darknet().graph, [16, 128] * 2 + [32, 256] * 2 + [64, 512] * 2 + [16, 32, 128])
    # The shortcuts pad with zeros, so that the streams of two stages share their middle.
    graph = from_torch(cifar_resnet_module("resnet20"), torch.zeros(2, 3, 32, 32)).graph
    assert len(assert_same_function(graph).sizes) == 14


# ---- the search


@pytest.mark.parametrize("seed", range(3))
def test_the_sums_are_those_of_the_slow_twin_and_never_rise(seed):
    # A weight that has the channels twice, among others; one that has no others, two numbers of each in a block.
    twice, alone = rand(20, 1, 30, seed=seed), rand(8, 2, 25, seed=seed)
    twice[::3] *= 4
    alone[::2] *= 3
    found = search_order([Reader(twice, 4, (2, 11)), Reader(alone, 2, (0,))], 8, seed=seed)
    assert sorted(found.order) == list(range(8))
    moved = np.arange(20)
    moved[2:10], moved[11:19] = 2 + found.order, 11 + found.order
    for total, rows in ((found.before, (twice, alone)), (found.after, (twice[moved], alone[found.order]))):
        expected = sum(naive.spread_of_blocks(r, w) for r, w in zip(rows, (4, 2), strict=True))
        assert total == pytest.approx(expected, rel=1e-5)
    assert found.after < found.before


def test_channels_of_a_kind_come_to_the_same_position_of_blocks():
    sizes = np.random.default_rng(0).permutation([1.0] * 8 + [10.0] * 8).astype(np.float32)
    found = search_order([Reader(rand(16, 1, 200) * sizes[:, None, None], 2, (0,))], 16)
    assert all(len(set(sizes[found.order[i::2]])) == 1 for i in (0, 1))


def test_channels_without_numbers_or_company_stay_a_permutation():
    assert sorted(search_order([Reader(np.zeros((6, 1, 5), np.float32), 3, (0,))], 6).order) == list(range(6))
    assert sorted(search_order([Reader(rand(4, 1, 1), 4, (0,))], 2).order) == [0, 1]


@pytest.mark.parametrize(("channels", "taps", "width"), [(12, 1, 4), (8, 3, 2), (10, 1, 5)])
def test_the_published_search_is_that_of_its_twin(channels, taps, width, monkeypatch):
    monkeypatch.setattr(permutation, "PUBLISHED_TRIALS", 60)
    sizes = np.exp(rand(channels, 1, 1, seed=width))
    rows = rand(channels, taps, 20) * sizes + 0.3
    found = published_order(Reader(rows, width, (0,)), channels, seed=5)
    rng = np.random.default_rng(5)
    first = rng.integers(0, channels, 60)
    swaps = np.stack([first, (first + rng.integers(1, channels, 60)) % channels], 1)
    assert list(found.order) == naive.published_order(rows, width, swaps)
    for value, order in ((found.before, np.arange(channels)), (found.after, found.order)):
        determinant = naive.determinant_of_blocks(rows[order], width)
        assert value == pytest.approx(determinant ** (1 / (width * taps)), rel=1e-6)
    assert found.after < found.before


def test_the_published_search_orders_a_part_of_the_channels_or_none():
    sizes = np.repeat(np.float32([1, 9]), 6)
    rows = rand(16, 1, 50)
    rows[3:15] *= sizes[:, None, None]
    found = published_order(Reader(rows, 2, (3,)), 12)
    assert sorted(found.order) == list(range(12)) and found.after < found.before
    same = published_order(Reader(np.zeros((6, 1, 5), np.float32), 3, (0,)), 6)
    assert list(same.order) == list(range(6))


# ---- quantization


RECIPE = {"default": PQ(8, 4, layout="channel"), "conv2d": None}


def small_network():
    """Channels of very different sizes, through an add, a depthwise and a grouped convolution, to a linear layer."""
    b = builder(3, 8, 8)
    x = b.add("conv2d", "x", params={"weight": rand(16, 3, 3, 3) * np.exp(rand(16, 1, 1, 1))}, padding=(1, 1, 1, 1))
    x = b.add("add", x, conv(b, conv(b, x, 32, 16), 16, 32, 3))
    x = conv(b, conv(b, x, 16, 1, 3, groups=16), 16, 8, groups=2)
    x = b.add("mean", x, axes=(2, 3))
    codecs = {"conv2d_3": None}  # depthwise
    return pqnet.Model(b.build({"y": b.add("linear", x, params={"weight": rand(5, 16)})})), RECIPE | codecs


def test_the_published_mode_looks_at_the_first_layer_that_reads_the_channels():
    b = builder(3, 8, 8)
    x = b.add("conv2d", "x", params={"weight": rand(16, 3, 3, 3)}, padding=(1, 1, 1, 1))
    first, second = rand(6, 16, 1, 1) * np.exp(rand(1, 16, 1, 1)), rand(6, 16, 1, 1, seed=1)
    first_out, second_out = (b.add("conv2d", x, params={"weight": w}) for w in (first, second))
    graph = b.build({"y": b.add("add", first_out, second_out)})
    codecs = {name: PQ(4, 4) for name in graph.layers() if name != "conv2d"}
    found = Permutation(graph, codecs, None, 3, 1, published=True)
    rows = first.reshape(6, 16, 1).transpose(1, 2, 0)
    ((number, order),) = found.orders.items()
    assert list(order) == list(published_order(Reader(rows, 4, (0,)), 16, seed=(3, number)).order)
    assert list(order) != list(range(16))


def test_quantize_permutes_and_takes_the_same_bytes():
    model, recipe = small_network()
    data = rand(40, 3, 8, 8)
    plain, permuted = (pqnet.quantize(model, recipe, data, permute=p, progress=False) for p in (False, True))
    assert [m.graph.meta["quantization"]["permute"] for m in (plain, permuted)] == [False, True]
    assert plain.size().total == permuted.size().total
    assert not np.array_equal(plain.graph.params["conv2d.weight"], permuted.graph.params["conv2d.weight"])
    expected = np.sort(plain.graph.params["conv2d.weight"], axis=0)
    np.testing.assert_array_equal(np.sort(permuted.graph.params["conv2d.weight"], axis=0), expected)
    energy = np.square(model(data)).sum()
    assert np.square(permuted(data) - model(data)).sum() < 0.5 * energy


def test_statistics_follow_the_channels():
    """One shot from statistics and metric full: the report's errors are those of the permuted network's own moments."""
    model, recipe = small_network()
    data = rand(40, 3, 8, 8)
    small = pqnet.quantize(model, recipe, pqnet.calibrate(model, data), permute=True, progress=False)
    before, after = (m.graph.params["conv2d.weight"] for m in (model, small))
    assert not np.array_equal(before, after)
    errors = [entry["output_error"] for entry in small.graph.meta["quantization"]["layers"].values()]
    assert max(errors) < 0.2  # moments in another order than the weights give errors of the size of the outputs
    energy = np.square(model(data)).sum()
    assert np.square(small(data) - model(data)).sum() < 0.5 * energy


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_bytes_do_not_depend_on_threads(tmp_path, calibrated):
    model, recipe = small_network()
    files = []
    for threads in (1, 2):
        options = {"calibration": rand(30, 3, 8, 8)} if calibrated else {"metric": "none"}
        small = pqnet.quantize(model, recipe, permute=True, threads=threads, progress=False, **options)
        small.save(tmp_path / f"{threads}.h5")
        files.append((tmp_path / f"{threads}.h5").read_bytes())
    assert files[0] == files[1]


def test_the_demo_network_permuted():
    images, held_out, labels = load_images()
    model = pqnet.load(model_path())
    small = pqnet.quantize(model, "small-blocks", images[:100], permute=True, progress=False)
    assert (small(held_out).argmax(1) == labels).mean() > 0.9 * (model(held_out).argmax(1) == labels).mean()


def test_a_permutation_that_changes_the_function_is_an_error(monkeypatch):
    model, recipe = small_network()
    permuted = Channels.apply
    monkeypatch.setattr(Channels, "apply", lambda self, graph, _: permuted(self, graph, {0: np.zeros(8, int)}))
    with pytest.raises(PQNetError, match="permute: expected the outputs of the float network"):
        pqnet.quantize(model, recipe, metric="none", permute=True, progress=False)


def test_the_command_line_permutes(tmp_path):
    model, recipe = small_network()
    model.save(tmp_path / "float.h5")
    (tmp_path / "r.yaml").write_text(pqnet.Recipe(recipe).to_yaml())
    files = [str(tmp_path / name) for name in ("float.h5", "r.yaml", "small.h5")]
    assert main(["quantize", files[0], "--recipe", files[1], "--metric", "none", "--permute", "-o", files[2]]) == 0
    assert pqnet.load(files[2]).graph.meta["quantization"]["permute"] is True


def test_other_values_of_permute_are_errors():
    model, recipe = small_network()
    with pytest.raises((ConfigError, PQNetError), match="permute"):
        pqnet.quantize(model, recipe, metric="none", permute="yes", progress=False)
