"""Which weights a module has, and that their filter form is the one that the graph's operations compute with."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from pqnet import PQ, ConfigError, PQNetError  # noqa: E402
from pqnet.graph import GraphBuilder, ValueInfo  # noqa: E402
from pqnet.graph.op import complete_attrs, get_op  # noqa: E402
from pqnet.pipeline.recipe import resolve_recipe  # noqa: E402
from pqnet.train import FilterForm, TorchGraph, find_weights, match, to_module  # noqa: E402
from pqnet_converters import from_torch  # noqa: E402


class Tied(nn.Module):
    """A language model with one table for tokens, its output layer and a plain attribute."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.tokens = nn.Embedding(10, 4, padding_idx=0)
        self.head = nn.Linear(4, 10)
        self.head.weight = self.tokens.weight
        self.copy = self.tokens.weight
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.body[1] = self.body[0]


def test_layers_are_found_once_and_named_after_their_modules():
    net = nn.ModuleDict(
        {
            "c1": nn.Conv1d(4, 6, 3, groups=2),
            "c2": nn.Conv2d(4, 6, (3, 2)),
            "c3": nn.Conv3d(4, 6, (2, 3, 5)),
            "t1": nn.ConvTranspose1d(4, 6, 3, groups=2),
            "t2": nn.ConvTranspose2d(4, 6, (3, 2)),
            "t3": nn.ConvTranspose3d(4, 6, (2, 3, 5)),
            "norms": nn.Sequential(nn.BatchNorm2d(3), nn.LayerNorm(3), nn.Linear(3, 5)),
            "e": nn.Embedding(7, 3),
            "bag": nn.EmbeddingBag(8, 3),
        }
    )
    found = find_weights(net)
    assert {name: (w.kind, w.form.shape) for name, w in found.items()} == {
        "c1": ("conv", (6, 2, 3)),
        "c2": ("conv", (6, 4, 3, 2)),
        "c3": ("conv", (6, 4, 2, 3, 5)),
        "t1": ("conv", (6, 2, 3)),
        "t2": ("conv", (6, 4, 3, 2)),
        "t3": ("conv", (6, 4, 2, 3, 5)),
        "norms.2": ("linear", (5, 3)),
        "e": ("embedding", (7, 3)),
        "bag": ("embedding", (8, 3)),
    }
    assert found["norms.2"].tensor is net["norms"][2].weight
    assert list(find_weights(nn.Linear(2, 3))) == ["weight"]


def test_projections_of_attention_are_found():
    one, several = nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2, kdim=3, vdim=5)
    found = find_weights(nn.ModuleDict({"one": one, "several": several}))
    assert {name: w.form.shape for name, w in found.items()} == {
        "one.in_proj_weight": (12, 4),
        "one.out_proj": (4, 4),
        "several.q_proj_weight": (4, 4),
        "several.k_proj_weight": (4, 3),
        "several.v_proj_weight": (4, 5),
        "several.out_proj": (4, 4),
    }
    assert list(find_weights(several)) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj"]


def test_tied_weights_are_one_weight_with_all_its_places():
    net = Tied()
    found = find_weights(net)
    assert list(found) == ["tokens", "body.0"]
    places = {(type(owner).__name__, name) for owner, name in found["tokens"].places}
    assert places == {("Embedding", "weight"), ("Linear", "weight"), ("Tied", "copy")}
    assert found["tokens"].places[0] == (net.tokens, "weight")
    assert len(found["body.0"].places) == 1


@pytest.mark.parametrize(
    ("layer", "op", "attrs", "size"),
    [
        (nn.Conv1d(4, 6, 3, 2, 1, groups=2), "conv1d", {"stride": (2,), "padding": (1, 1)}, (7,)),
        (nn.Conv2d(4, 6, (3, 2), groups=2), "conv2d", {}, (5, 4)),
        (nn.Conv3d(4, 6, (1, 3, 2), groups=2), "conv3d", {}, (2, 5, 4)),
        (nn.ConvTranspose1d(4, 6, 3, 2, groups=2), "conv_transpose1d", {"stride": (2,)}, (5,)),
        (nn.ConvTranspose2d(4, 6, (3, 2), padding=1, groups=2), "conv_transpose2d", {"padding": (1, 1, 1, 1)}, (4, 3)),
        (nn.Linear(4, 6), "linear", None, ()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_graph_computes_the_same_from_the_filter_form(layer, op, attrs, size):
    weight = find_weights(layer)["weight"]
    x = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    expected = layer(x).detach().numpy()
    params = {"weight": weight.form.to_filters(weight.tensor.detach()).numpy(), "bias": layer.bias.detach().numpy()}
    complete = complete_attrs(get_op(op), {} if attrs is None else {**attrs, "groups": 2})
    got = get_op(op).evaluate([x.numpy()], params, complete)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((3, 4), 0), ((6, 4, 3), 0), ((6, 4, 2, 3, 5), 0), ((6, 4, 3), 3), ((6, 4, 3, 2), 2), ((6, 4, 2, 3, 5), 6)],
)
def test_from_filters_undoes_to_filters(shape, groups):
    form = FilterForm(shape, groups)
    tensor = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape).requires_grad_()
    filters = form.to_filters(tensor)
    assert filters.shape == form.shape
    back = form.from_filters(filters)
    assert torch.equal(back, tensor)
    back.square().sum().backward()
    assert torch.equal(tensor.grad, 2 * tensor)
    if not groups:
        assert filters.data_ptr() == tensor.data_ptr()


def test_layers_of_a_graph_are_found_in_filter_form():
    b = GraphBuilder({"ids": ValueInfo(("batch",), "int64")}, {"batch": 2})
    h = b.add("embedding", "ids", name="a.tokens", params={"weight": np.ones((6, 4), np.float32)})
    h = b.add("linear", h, name="a.fc", params={"weight": np.ones((8, 4), np.float32)})
    h = b.add("reshape", h, shape=("batch", 2, 2, 2))
    transposed = np.arange(48, dtype=np.float32).reshape(6, 1, 2, 4)
    h = b.add("conv_transpose2d", h, name="up", params={"weight": transposed}, groups=2)
    net = nn.ModuleDict({"graph": TorchGraph(b.build({"y": h}))})
    found = find_weights(net)
    assert {name: (w.kind, w.form.shape) for name, w in found.items()} == {
        "graph.a.tokens": ("embedding", (6, 4)),
        "graph.a.fc": ("linear", (8, 4)),
        "graph.up": ("conv", (6, 1, 2, 4)),
    }
    assert torch.equal(found["graph.up"].form.to_filters(found["graph.up"].tensor), torch.from_numpy(transposed))


def test_the_longest_pattern_wins():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)))
    assert match(net, {"1.*": "inner", "1.0": "first", "1.2": None}) == {"1.0": "first", "1.1": "inner"}
    assert match(net, {"default": "rest", "1.[01]": "two"}) == {"0": "rest", "1.0": "two", "1.1": "two", "1.2": "rest"}


def test_default_spares_the_first_convolution_in_modules_as_in_recipes():
    net = nn.Sequential(nn.ConvTranspose2d(2, 2, 1), nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten())
    model = from_torch(net, torch.zeros(2, 2, 1, 1))
    for recipe in ({"default": PQ(2, 1)}, {"default": PQ(2, 1), "1": PQ(4, 1)}, {"[01]": PQ(2, 1), "default": None}):
        wanted = {name: codec for name, codec in resolve_recipe(recipe, model.graph).items() if codec is not None}
        assert match(net, recipe) == match(to_module(model), recipe) == wanted
        assert ("1" in wanted) == any(name in recipe for name in ("1", "[01]"))
    with pytest.raises(ConfigError, match="the first convolution only by its name or a glob"):
        match(nn.Sequential(nn.Conv2d(1, 1, 1)), {"default": 1})


@pytest.mark.parametrize(
    ("patterns", "text"),
    [
        ({"default": 1, "layer*": 2}, r"pattern 'layer\*' matches no weight of the module; they are: 0, 1"),
        ({"0": None}, "expected a choice for at least one weight, got none; they are: 0, 1"),
        ([("0", 1)], "patterns: expected a dict with name patterns as keys, got list"),
        ({0: 1}, "expected a dict with name patterns"),
    ],
)
def test_wrong_patterns_are_refused(patterns, text):
    with pytest.raises(ConfigError, match=text):
        match(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), patterns)


def test_other_modules_are_refused():
    with pytest.raises(PQNetError, match="module: 1 has no weight yet; call the module once with an input"):
        find_weights(nn.Sequential(nn.ReLU(), nn.LazyLinear(4)))
    with pytest.raises(PQNetError, match=r"module: expected a torch.nn.Module that is not scripted, got dict"):
        find_weights({})
