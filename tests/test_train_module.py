"""Networks as PyTorch modules that train their codebooks, and back as networks."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from processes import joined  # noqa: E402
from torch import nn  # noqa: E402

import pqnet  # noqa: E402
from pqnet import PQ, Additive, Fixed, IntN, Model, PackedPQ, PQNetError, Scalar, Sparse  # noqa: E402
from pqnet.codecs import Packed  # noqa: E402
from pqnet.demo import load_images, model_path  # noqa: E402
from pqnet.graph import GraphBuilder, ValueInfo  # noqa: E402
from pqnet.train import attach, find_weights, packed_weights, to_model, to_module  # noqa: E402
from pqnet_converters import from_torch  # noqa: E402


@pytest.fixture(scope="module")
def demo():
    """The digits network, its layers packed in every way, and images to run it on."""
    recipe = {
        "default": PQ(16, 4, codebook_dtype="int8"),
        "layer1.0.conv2": PQ(16, 8, "channel"),
        "layer2.0.conv1": IntN(4, per="channel", symmetric=False),
        "layer2.0.conv2": Additive([Scalar(8), Sparse(fraction=0.01)]),
        "layer2.0.downsample.0": Fixed("ternary"),
    }
    train, images, labels = load_images()
    small = pqnet.quantize(pqnet.load(model_path()), recipe, train[:32], metric="none", progress=False)
    return small, images[:32], labels[:32]


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(array).copy()) for array in arrays]


def same(found, expected):
    """Assert that two graphs have the same parameters, to the bit."""
    assert list(found.params) == list(expected.params)
    for name, param in expected.params.items():
        if isinstance(param, Packed):
            assert found.params[name] == param
        else:
            assert found.params[name].dtype == param.dtype
            np.testing.assert_array_equal(found.params[name], param)


def test_a_module_gives_the_outputs_of_the_model_and_its_parameters_back(demo):
    model, images, _ = demo
    module = to_module(model)
    assert sorted(packed_weights(module)) == sorted(model.graph.meta["quantization"]["layers"])
    np.testing.assert_allclose(module(*tensors(images)).detach().numpy(), model(images), rtol=1e-5, atol=1e-5)
    back = to_model(module)
    same(back.graph, model.graph)
    assert "layers" not in back.graph.meta["quantization"] and back.graph.meta["labels"] == model.graph.meta["labels"]


def test_parameters_keep_their_dtypes():
    b = GraphBuilder({"x": ValueInfo(("batch", 4))}, {"batch": 2})
    h = b.add("linear", "x", params={"weight": np.float16(np.eye(4)), "bias": np.ones(4, np.float32)})
    h = b.add("index_select", h, b.add("constant", params={"value": np.arange(2)}), axis=1)
    graph = b.build({"y": h})
    same(to_model(to_module(graph)).graph, graph)


def test_training_lowers_a_loss_and_the_model_follows(demo):
    model, images, labels = demo
    module = to_module(model).train()
    optimizer = torch.optim.SGD(module.parameters(), 5e-5, momentum=0.9)
    x, y = tensors(images, labels.astype(np.int64))
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(module(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    trained = to_model(module)
    assert module.training
    for name, param in model.graph.params.items():
        assert isinstance(param, Packed) == isinstance(trained.graph.params[name], Packed)
    with torch.no_grad():
        np.testing.assert_allclose(trained(images), module.eval()(x).numpy(), rtol=1e-4, atol=1e-4)
    assert np.abs(trained(images) - model(images)).max() > 0.01


def norm_graph(*, statistics, size=4):
    b = GraphBuilder({"x": ValueInfo(("batch", 3, size, size))}, {"batch": 2})
    params = {"weight": np.float32([1, 2, 3]), "bias": np.float32([0, -1, 1])}
    if statistics:
        params |= {"mean": np.float32([0.5, 0, 1]), "var": np.float32([1, 2, 0.5])}
    return b.build({"y": b.add("batch_norm", "x", name="norm", params=params, eps=1e-3)})


def torch_norm():
    norm = nn.BatchNorm2d(3, eps=1e-3)
    state = {"weight": [1, 2, 3], "bias": [0, -1, 1], "running_mean": [0.5, 0, 1], "running_var": [1, 2, 0.5]}
    norm.load_state_dict({name: torch.tensor(value) for name, value in state.items()}, strict=False)
    return norm


def test_batch_norms_use_and_update_their_statistics_in_training():
    module, norm = to_module(norm_graph(statistics=True)).train(), torch_norm()
    for seed in range(2):
        x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(module(x), norm(x))
    torch.testing.assert_close(module.norm_mean, norm.running_mean)
    torch.testing.assert_close(module.norm_var, norm.running_var)
    torch.testing.assert_close(module.eval()(x), norm.eval()(x))


def test_folded_batch_norms_stay_affine_maps_in_training():
    module, x = to_module(norm_graph(statistics=False)), torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(module.train()(x), module.eval()(x))


def test_a_batch_norm_refuses_to_train_on_one_number():
    module = to_module(norm_graph(statistics=True, size=1)).train()
    with pytest.raises(PQNetError, match="batch: expected more than one number for each channel"):
        module(torch.zeros(1, 3, 1, 1))


def one_of_two(rank, file, out):
    """Run a third or two thirds of a batch through a batch norm."""
    with joined(rank, 2, file):
        x = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        x = (x[:2], x[2:])[rank].requires_grad_()
        module = to_module(norm_graph(statistics=True)).train()
        y = module(x)
        y.pow(3).sum().backward()
        weight = module.norm_weight.grad
        torch.save({"y": y.detach(), "x": x.grad, "weight": weight, "state": module.state_dict()}, f"{out}{rank}")


def test_batch_norms_of_two_processes_see_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path / "init"), str(tmp_path / "out")), nprocs=2)
    a, b = (torch.load(tmp_path / f"out{rank}") for rank in range(2))
    x = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    module = to_module(norm_graph(statistics=True)).train()
    y = module(x)
    y.pow(3).sum().backward()
    torch.testing.assert_close(torch.cat([a["y"], b["y"]]), y.detach())
    torch.testing.assert_close(torch.cat([a["x"], b["x"]]), x.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a["weight"] + b["weight"], module.norm_weight.grad)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(a["state"][name], value)
        assert torch.equal(a["state"][name], b["state"][name])


class Net(nn.Module):
    """Every kind of weight: tied embeddings, attention, convolutions over one and two axes, a transposed one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(12, 8)
        self.place = nn.Parameter(torch.randn(4, 8))
        self.turned = nn.Parameter(torch.randn(8, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.conv1 = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.up = nn.ConvTranspose2d(2, 4, 2, groups=2)
        self.head = nn.Linear(8, 12)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        h = self.layer(self.tokens(ids) + self.place[None]) @ self.turned
        h = self.norm(self.conv1(h.transpose(1, 2))).transpose(1, 2)
        return self.head(h), self.up(h.reshape(-1, 2, 4, 4))


def test_a_module_of_ones_own_becomes_a_model():
    net, ids = Net(), torch.from_numpy(np.random.default_rng(0).integers(0, 12, (6, 4)))
    model = from_torch(net, ids)
    attach(net, {"*": Scalar(8), "tokens": PQ(8, 4), "up": None, "*in_proj_weight": IntN(4)})
    optimizer = torch.optim.Adam(net.train().parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        sum(y.square().mean() for y in net(ids)).backward()
        optimizer.step()
    small = to_model(net, model)
    assert net.training and net.layer.self_attn.training
    packed = {name for name, param in small.graph.params.items() if isinstance(param, Packed)}
    assert packed == {
        "tokens.weight",
        "layer.self_attn.in_proj_weight",
        *(f"{name}.weight" for name in ("layer.self_attn.out_proj", "layer.linear1", "layer.linear2", "conv1")),
    }
    assert isinstance(small.graph.params["tokens.weight"], PackedPQ)
    with torch.no_grad():
        for found, expected in zip(small(ids.numpy()), net.eval()(ids), strict=True):
            np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_float_parameters_are_taken_by_name():
    net = Net().eval()
    ids = torch.zeros(1, 4, dtype=torch.int64)
    model = from_torch(net, ids)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    same(to_model(net, model).graph, from_torch(net, ids).graph)
    same(to_model(copy.deepcopy(net).double(), model).graph, from_torch(net, ids).graph)


class Noise(nn.Module):
    def forward(self, weight):
        return weight + 1 if self.training else weight


def test_what_parametrizations_do_in_training_is_not_in_the_model():
    net = nn.Sequential(nn.Linear(4, 4))
    model = from_torch(net, torch.zeros(1, 4))
    nn.utils.parametrize.register_parametrization(net[0], "weight", Noise())
    same(to_model(net.train(), model).graph, model.graph)
    assert net[0].training and net[0].parametrizations.weight[0].training


class Constants(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.scale = nn.Linear(4, 4), nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return self.fc(x) * self.scale.exp()


class Fewer(Constants):
    def forward(self, x):
        return self.fc(x) + torch.arange(4.0).sqrt()


def test_constants_that_may_have_been_trained_are_refused():
    for net in (Constants(), Fewer()):
        model = from_torch(net, torch.zeros(1, 4))
        with pytest.raises(PQNetError, match=r"expected all its trainable parameters in the model, got \['scale'\]"):
            to_model(net, model)
        net.scale.requires_grad_(False)
        same(to_model(net, model).graph, model.graph)


def test_what_is_no_pair_of_module_and_model_is_refused(demo):
    model = demo[0]
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    float_model = from_torch(net, torch.zeros(1, 4))
    cases = [
        (lambda: to_module(net), "model: expected a pqnet.Model or a Graph, got Sequential"),
        (lambda: to_model(net), "expected a TorchGraph alone, or another .* got Sequential, NoneType"),
        (
            lambda: to_model(to_module(model), model),
            "expected a TorchGraph alone, .* got ParametrizedTorchGraph, Model",
        ),
        (lambda: to_model(model, model), "module, model: expected .* got Model, Model"),
        (lambda: to_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5)), float_model), r"'1.weight': expected shape"),
        (lambda: to_model(nn.Sequential(nn.Conv1d(4, 4, 1), net[1]), float_model), r"'0.weight': expected shape"),
        (
            lambda: to_model(nn.Linear(4, 4), float_model),
            r"got \['weight', 'bias'\] besides, and constants \['0.weight'",
        ),
    ]
    for call, text in cases:
        with pytest.raises(PQNetError, match=text):
            call()


def test_matrices_too_far_from_the_model_are_not_guessed():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))

        def forward(self, x):
            return x @ self.matrix

    net = Turned()
    model = from_torch(net, torch.zeros(1, 4))
    net.matrix.data = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    with pytest.raises(PQNetError, match="'matrix': expected a matrix near that of the model, to tell whether"):
        to_model(net, model)
    same(to_model(net, from_torch(net, torch.zeros(1, 4))).graph, from_torch(net, torch.zeros(1, 4)).graph)


def test_layers_of_a_graph_are_packed_in_place():
    model = pqnet.load(model_path())
    module = to_module(model)
    attach(module, {"layer1.*": Scalar(4)})
    assert sorted(packed_weights(module)) == ["layer1.0.conv1", "layer1.0.conv2"]
    assert set(find_weights(module)) == set(model.graph.layers())
    small = to_model(module)
    assert isinstance(small, Model) and isinstance(small.graph.params["layer1.0.conv1.weight"], Packed)
    assert not isinstance(small.graph.params["fc.weight"], Packed)


@pytest.mark.parametrize("statistics", [False, True])
def test_batch_norms_with_an_eps_of_zero_train(monkeypatch, statistics):
    """Folded norms have one, and PyTorch refuses it: 2.11 in every call, 2.13 of statistics of the batch."""

    def strict(*args, _batch_norm=torch.batch_norm):
        assert args[7] > 0
        return _batch_norm(*args)

    monkeypatch.setattr(torch, "batch_norm", strict)
    b = GraphBuilder({"input": ValueInfo(("batch", 3, 4))}, {"batch": 2})
    rng = np.random.default_rng(0)
    roles = ("weight", "bias", "mean", "var") if statistics else ("weight", "bias")
    params = {role: rng.uniform(0.5, 2, 3).astype(np.float32) for role in roles}
    module = to_module(b.build({"y": b.add("batch_norm", "input", name="bn", params=params, eps=0.0)}))
    x = rng.standard_normal((8, 3, 4)).astype(np.float32)
    column = {role: values[:, None] for role, values in params.items()}
    if statistics:
        want = (x - column["mean"]) / np.sqrt(column["var"]) * column["weight"] + column["bias"]
    else:
        want = x * column["weight"] + column["bias"]
    np.testing.assert_allclose(module(torch.from_numpy(x)).detach(), want, rtol=1e-6, atol=1e-6)
    module.train()(torch.from_numpy(x)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def gradients(module, x, run):
    """Outputs, and gradients of all parameters, of one step in training."""
    module.zero_grad()
    out = run(x)
    out.float().square().mean().backward()
    return out.detach().float(), {name: p.grad.clone() for name, p in module.named_parameters()}


@pytest.fixture
def tiny():
    """A packed convolution with a folded norm, and a packed linear layer, in training."""
    b, rng = GraphBuilder({"input": ValueInfo(("batch", 2, 4, 4))}, {"batch": 2}), np.random.default_rng(0)
    scale, conv, fc = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in ((8,), (8, 2, 3, 3), (4, 32)))
    y = b.add("conv2d", "input", name="conv", params={"weight": conv})
    y = b.add("relu", b.add("batch_norm", y, params={"weight": scale, "bias": scale}, eps=0.0))
    y = b.add("linear", b.add("reshape", y, shape=("batch", 32)), name="fc", params={"weight": fc})
    recipe = {"conv": PQ(8, 9), "fc": PQ(8, 4)}
    module = to_module(pqnet.quantize(Model(b.build({"y": y})), recipe, metric="none", progress=False))
    for weight in packed_weights(module).values():
        weight.train()
    return module, torch.from_numpy(rng.standard_normal((6, 2, 4, 4), np.float32))


def test_students_train_in_mixed_precision(tiny):
    module, x = tiny
    want, wanted = gradients(module, x, module)
    with torch.autocast("cpu", torch.bfloat16):
        got, found = gradients(module, x, module)
    assert (got - want).abs().max() < 0.03 * want.abs().max()
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert (gradient - wanted[name]).norm() <= 0.1 * wanted[name].norm()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of PyTorch about itself
def test_students_compile(tiny):
    """Down to what a code generator is given; C++ takes minutes."""
    module, x = tiny
    compiled = torch.compile(module, backend="aot_eager")
    want, wanted = gradients(module, x, module)
    got, found = gradients(module, x, compiled)
    assert torch.allclose(got, want, atol=1e-6)
    assert all(torch.allclose(gradient, wanted[name], atol=1e-6) for name, gradient in found.items())
