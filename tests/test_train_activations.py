"""Integer inputs of layers: their values, ranges and gradients, and where they arrive."""

import copy

import naive
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from pqnet import IntN, load  # noqa: E402
from pqnet.demo import model_path  # noqa: E402
from pqnet.errors import ConfigError  # noqa: E402
from pqnet.train import ActivationNoise, QuantNoise, to_model, to_module  # noqa: E402
from pqnet.train.observers import to_integers  # noqa: E402
from pqnet_converters import from_torch  # noqa: E402


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seen_by(layer):
    """Return the list to which a layer will add its inputs."""
    seen = []

    def add(layer, args, kwargs, out):
        seen.append([*args, *kwargs.values()][0].detach())

    layer.register_forward_hook(add, with_kwargs=True)
    return seen


def integers(x, low, high, bits):
    """PyTorch's own."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = (high - low) / (2**bits - 1)
    return torch.fake_quantize_per_tensor_affine(x, scale, round(-low / scale), 0, 2**bits - 1)


def test_ranges_are_learned_and_used():
    layer = nn.Linear(8, 4)
    seen = seen_by(layer)
    ActivationNoise(layer, {"weight": 4})
    low = high = None
    for step in range(4):
        x = draw(6, 8, seed=step) + 5 - 2 * step  # positive at first
        layer(x)
        least, most = min(float(x.min()), 0), max(float(x.max()), 0)
        low, high = (least, most) if low is None else (0.9 * low + 0.1 * least, 0.9 * high + 0.1 * most)
        torch.testing.assert_close(seen[-1], integers(x, low, high, 4))
        assert len(seen[-1].unique()) <= 16
    layer.eval()
    x = 3 * draw(50, 8, seed=9)
    for _ in range(2):  # what comes in evaluation does not move the range
        layer(x)
        torch.testing.assert_close(seen[-1], integers(x, low, high, 4))


def test_off_until_data_was_seen_and_saved_with_the_module():
    net, other = nn.Sequential(nn.Linear(8, 4)), nn.Sequential(nn.Linear(8, 4))
    seen, noise, x = seen_by(net[0]), ActivationNoise(net, {"0": 4}, p=0), draw(5, 8)
    net.eval()(x)
    net.train()(x)  # p = 0, but it learns
    assert all(torch.equal(given, x) for given in seen)
    net.eval()(x)
    assert torch.equal(seen[-1], integers(x, x.min(), x.max(), 4)) and not torch.equal(seen[-1], x)
    ActivationNoise(other, {"0": 4})
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.eval()(x), net(x))
    noise.remove()
    net.train()(x)
    assert torch.equal(seen[-1], x) and list(net.state_dict()) == ["0.weight", "0.bias"]
    assert noise.step == 1 and not net._forward_pre_hooks


@pytest.mark.parametrize("observer", ["mse", "histogram"])
@pytest.mark.parametrize("rectified", [False, True])
def test_ranges_of_the_least_squared_error(observer, rectified):
    layer, x = nn.Linear(8, 4), draw(500, 8) ** 3  # heavy tails
    x = x.relu() if rectified else x
    seen = seen_by(layer)
    ActivationNoise(layer, {"weight": 4}, observer=observer)
    layer(x)
    low, high = (float(end) for end in (layer.input_range.low, layer.input_range.high))
    assert x.min() <= low <= 0 < high < x.max()
    torch.testing.assert_close(seen[-1], integers(x, low, high, 4))
    error = float((seen[-1] - x).square().sum())
    shares = np.linspace(0.05, 1, 40)
    pairs = [(low, high) for low in x.min().item() * shares for high in x.max().item() * shares]
    best = min(float((integers(x, *pair, 4) - x).square().sum()) for pair in pairs)
    assert error <= 1.1 * best and error < 0.95 * float((integers(x, x.min(), x.max(), 4) - x).square().sum())


def test_a_histogram_is_of_all_batches():
    once, parts = nn.Linear(8, 4), nn.Linear(8, 4)
    x = draw(400, 8) * torch.linspace(0.2, 3, 400)[:, None]  # wider and wider
    for layer, batches in ((once, [x]), (parts, x.split(50))):
        ActivationNoise(layer, {"weight": 4}, observer="histogram")
        for batch in batches:
            layer(batch)
    assert parts.input_range.counts.sum() == x.numel()
    for end in ("low", "high"):
        torch.testing.assert_close(getattr(parts.input_range, end), getattr(once.input_range, end), rtol=0.05, atol=0)
    layer = nn.Linear(8, 4)
    ActivationNoise(layer, {"weight": 4}, observer="histogram")
    layer(torch.zeros(3, 8))  # of no width
    assert layer.input_range.low == 0 and layer.input_range.high == 0


def test_gradients_pass_and_the_share_is_p():
    layer = nn.Linear(64, 4)
    seen = seen_by(layer)
    noise = ActivationNoise(layer, {"weight": 2}, p=0.3)
    x = draw(40, 64).requires_grad_()
    layer(input=x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.detach().sum(0).expand(40, 64))
    layer(x)
    share = float((seen[0] != x).float().mean())
    assert abs(share - 0.3) < 4 * np.sqrt(0.21 / x.numel())
    noise.load_state_dict({"step": 1, "p": 0.3})
    layer(x)
    assert torch.equal(seen[-1] != x, seen[-2] != x)


@pytest.mark.parametrize("training", [True, False])
def test_attention_has_integer_inputs(training):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    twin, x = copy.deepcopy(layer), draw(2, 3, 8)
    ActivationNoise(layer, {"self_attn.in_proj_weight": 3})
    seen = []
    layer.self_attn.register_forward_pre_hook(lambda layer, inputs: seen.extend(inputs))
    layer(x)
    assert seen[0] is seen[1] and seen[1] is seen[2]  # as attention asks, to compute faster
    y = integers(x, x.min(), x.max(), 3)
    twin = twin.train()  # past PyTorch's fused kernels
    want = twin.norm1(x + twin.self_attn(y, y, y, need_weights=False)[0])
    want = twin.norm2(want + twin.linear2(torch.relu(twin.linear1(want))))
    with torch.no_grad():
        torch.testing.assert_close(layer.train(training)(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_last_layer_of_attention_has_integer_inputs(training, bias):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, bias=bias, batch_first=True)
    twin, x = copy.deepcopy(layer), draw(2, 3, 8)
    noise = ActivationNoise(layer, {"out_proj": 3, "in_proj_weight": 16})
    keys = list(layer.state_dict())
    copied = copy.deepcopy(layer)
    seen = layer(x, x, x)[0]
    assert torch.equal(seen, copied(x, x, x)[0])
    assert list(layer.state_dict()) == keys

    y, twin.out_proj.weight = integers(x, x.min(), x.max(), 16), nn.Parameter(torch.eye(8))
    values, shares = twin(y, y, y)
    values = values - twin.out_proj.bias if bias else values
    with torch.no_grad():
        want = integers(values, values.min(), values.max(), 3) @ layer.out_proj.weight.T
        want = want + layer.out_proj.bias if bias else want
        found, weights = layer.train(training)(x, x, x)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights, shares)
    torch.testing.assert_close(layer.out_proj_input_range.high, values.detach().max())

    layer(x, x, x)[0].sum().backward()
    assert layer.out_proj.weight.grad.abs().sum() > 0
    with pytest.raises(Exception, match="shape|size"):
        layer(x, x, draw(2, 4, 8))
    assert isinstance(layer.out_proj, nn.Linear)  # an error leaves it as it was
    noise.remove()
    assert list(layer.state_dict()) == list(twin.state_dict())
    assert not layer._forward_hooks and not layer._forward_pre_hooks


def test_projections_of_other_sizes_have_their_own_ranges():
    layer = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, batch_first=True)
    ActivationNoise(layer, {"k_proj_weight": 8, "v_proj_weight": 8})
    layer(draw(1, 3, 8), 5 * draw(1, 3, 4), value=0.1 * draw(1, 3, 6))
    state = layer.state_dict()
    ranges = {key.split("_input")[0]: float(value) for key, value in state.items() if key.endswith("high")}
    assert ranges == {
        "k_proj": float(5 * draw(1, 3, 4).max()),
        "v_proj": pytest.approx(float(0.1 * draw(1, 3, 6).max())),
    }


def test_with_noise_on_weights_and_in_copies():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    QuantNoise(net, {"*": IntN(4)}, p=0.5)
    ActivationNoise(net, {"*": 8})
    x = draw(2, 2, 6, 6)
    twin = copy.deepcopy(net)
    assert torch.equal(net(x), twin(x))
    net(5 * x)
    assert float(net[0].input_range.high) != float(twin[0].input_range.high)
    assert float(net[2].input_range.low) == 0


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.head = nn.Embedding(6, 4), nn.Linear(4, 6)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        return self.head(self.tokens(ids))


def test_tied_embeddings_have_the_inputs_of_the_other_layer():
    net = Tied()
    ActivationNoise(net, {"tokens": 8})
    net(torch.tensor([1, 2]))
    assert net.head.input_range.seen and not hasattr(net.tokens, "input_range")


@pytest.mark.parametrize(
    ("make", "what", "text"),
    [
        (lambda: nn.Embedding(4, 2), {"weight": 8}, "weight 'weight': expected a layer that is called with the inputs"),
        (lambda: to_module(load(model_path())), {"fc": 8}, "'fc': expected a layer that is called with the inputs"),
        (lambda: nn.Linear(2, 2), {"weight": 1}, "weight 'weight': expected 2 to 16 bits, got 1"),
        (lambda: nn.Linear(2, 2), {"weight": IntN(8)}, "weight 'weight': expected 2 to 16 bits, got IntN"),
        (lambda: nn.Linear(2, 2), {"x": 8}, "pattern 'x' matches no weight"),
    ],
)
def test_refusals_change_nothing(make, what, text):
    net = make()
    before = list(net.state_dict())
    with pytest.raises(ConfigError, match=text):
        ActivationNoise(net, what)
    assert list(net.state_dict()) == before and not net._forward_pre_hooks


def test_one_noise_for_each_layer():
    layer = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="observer: expected one of .*'histogram'.*, got 'max'"):
        ActivationNoise(layer, {"weight": 8}, observer="max")
    ActivationNoise(layer, {"weight": 8})
    with pytest.raises(ConfigError, match="weight 'weight': expected a layer without noise on its inputs, got one"):
        ActivationNoise(layer, {"weight": 8})


def test_a_model_without_the_ranges_of_its_inputs_says_so():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model = from_torch(net, torch.zeros(1, 4))
    noise = ActivationNoise(net, {"2": 4})
    to_model(net, model)  # no range yet
    net(draw(8, 4))
    with pytest.warns(UserWarning, match=r"the inputs of \['2'\] are integers in the module"):
        to_model(net, model)
    noise.remove()
    to_model(net, model)


def test_a_model_has_the_integers_of_its_module():
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    model = from_torch(net, torch.zeros(1, 16))
    ActivationNoise(net, {"0": 8, "2": 8}, observer="mse")
    net(draw(64, 16))
    ranges = to_model(net, model).graph.meta["input_ranges"]
    state = net.state_dict()
    assert ranges == {
        name: [float(state[f"{name}.input_range.{end}"]) for end in ("low", "high")] for name in ("0", "2")
    }
    x = draw(50, 16)
    for low, high in ranges.values():
        want = to_integers(x, torch.tensor(low), torch.tensor(high), 8).numpy()
        assert np.abs(naive.round_inputs(x.numpy(), low, high) - want).max() <= 1e-5 * (high - low)
