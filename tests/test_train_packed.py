"""Packed weights inside PyTorch modules: what they decode to, what their codebooks learn, and where they are used."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from pqnet import PQ, Additive, ConfigError, Fixed, IntN, PackedPQ, PQNetError, Scalar, Sparse  # noqa: E402
from pqnet.codecs import PackedAdditive, PackedScalar, PackedSparse  # noqa: E402
from pqnet.train import FilterForm, PackedWeight, attach, detach, find_weights, packed_weights  # noqa: E402

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def draw(codec, shape):
    """Return a packed weight with random codes and values; no fit, which would cost time."""
    inputs = int(np.prod(shape[1:]))
    if isinstance(codec, PQ):
        codes = rng.integers(0, codec.k, (shape[0], inputs // codec.d))
        return PackedPQ(codec, shape, codes, normal(codec.k, codec.d))
    if isinstance(codec, Sparse):
        places = np.sort(rng.choice(shape[0] * inputs, codec.count, replace=False))
        return PackedSparse(codec, shape, places, normal(codec.count))
    if isinstance(codec, Additive):
        return PackedAdditive(codec, [draw(part, shape) for part in codec.parts])
    grid = codec.scale_grid(shape)
    book = None if codec.levels is not None else normal(codec.k, 1)
    scales = normal(*grid) if codec.scaled else None
    zeros = rng.integers(0, codec.k, grid) if codec.has_zeros else None
    return PackedScalar(codec, shape, rng.integers(0, codec.k, (shape[0], inputs)), book, scales, zeros)


MATRIX, KERNELS = (6, 12), (4, 6, 2, 3)
KINDS = [
    (PQ(5, 3), MATRIX),
    (PQ(300, 1, codebook_dtype="float32", clamp=None), (30, 12)),
    (PQ(5, 3, codebook_dtype="int8"), KERNELS),
    (PQ(5, 2, "channel"), KERNELS),
    (PQ(5, 2, "channel"), MATRIX),
    (Scalar(4), KERNELS),
    (Scalar(4, codebook_dtype="float32"), MATRIX),
    (Fixed("binary", scale="none"), MATRIX),
    (Fixed("ternary", scale="learned", per="channel"), KERNELS),
    (Fixed("pow2", scale_dtype="float32"), MATRIX),
    (IntN(4, per="tensor"), MATRIX),
    (IntN(8, per="channel", symmetric=False), KERNELS),
    (IntN(3, per="group", group=4, symmetric=False), MATRIX),
    (Sparse(count=5), KERNELS),
    (Additive([PQ(5, 3), Scalar(3), Sparse(count=4)]), MATRIX),
]
every_kind = pytest.mark.parametrize(("codec", "shape"), KINDS, ids=lambda value: str(value)[:44])


def moved(packed, form=None):
    """Return a packed weight as a module whose parameters training has moved a little."""
    weight = PackedWeight(packed, form or FilterForm(packed.shape))
    with torch.no_grad():
        for parameter in weight.parameters():
            parameter += 0.01 * torch.from_numpy(normal(*parameter.shape))
    return weight


@every_kind
def test_decoding_agrees_with_the_codec(codec, shape):
    packed = draw(codec, shape)
    assert PackedWeight(packed, FilterForm(shape)).packed() == packed
    weight = moved(packed)
    expected = weight.packed().decode()
    np.testing.assert_array_equal(weight.eval()().detach().numpy(), expected)
    np.testing.assert_allclose(weight.train()().detach().numpy(), expected, rtol=3e-3, atol=3e-3)
    assert bool(list(weight.parameters())) == (not np.array_equal(expected, packed.decode()))  # they did move


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradient", ["mean", "sum"])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_gradients_of_codewords(training, gradient, dtype):
    codes = rng.choice([0, 2, 3, 5], (6, 4))  # codewords 1, 4, 6 are not used, 6 being the last
    packed = PackedPQ(PQ(7, 3, codebook_dtype=dtype), (6, 12), codes, normal(7, 3))
    weight = PackedWeight(packed, FilterForm((6, 12)), gradient).train(training)
    slope = torch.from_numpy(normal(6, 12))
    (weight() * slope).sum().backward()
    one_hot = F.one_hot(torch.from_numpy(codes.astype(np.int64)), 7).float()
    codebook = torch.zeros(7, 3, requires_grad=True)
    (torch.einsum("omk,kd->omd", one_hot, codebook).reshape(6, 12) * slope).sum().backward()
    expected = codebook.grad
    if gradient == "mean":
        expected = expected / one_hot.sum((0, 1)).clamp(min=1)[:, None]
    torch.testing.assert_close(weight.stored.codebook.grad, expected)
    assert not weight.stored.codebook.grad[[1, 4, 6]].any()


def test_gradients_of_scales_and_sparse_values_are_derivatives():
    shape = (4, 6)
    codec = Additive([IntN(3, per="group", group=3, symmetric=False), Sparse(count=5)])
    packed = draw(codec, shape)
    weight, slope = PackedWeight(packed, FilterForm(shape)), normal(*shape)
    (weight() * torch.from_numpy(slope)).sum().backward()
    integers, sparse = packed.parts
    levels = integers.codes.reshape(4, 2, 3).astype(np.float32) - integers.zeros[:, :, None]
    scales, values = (part for part in (weight.stored.parts[0].scales, weight.stored.parts[1].values))
    np.testing.assert_allclose(scales.grad, (levels * slope.reshape(4, 2, 3)).sum(2), rtol=1e-5)
    np.testing.assert_array_equal(values.grad, slope.reshape(-1)[sparse.codes])


def test_sgd_on_the_codebook_is_the_published_step():
    """And the Bit Goes Down: the mean of the members' gradients, plus weight decay, momentum, step."""
    lr, momentum, decay = 0.1, 0.9, 1e-2
    packed = draw(PQ(4, 2), (5, 8))
    layer = nn.Linear(8, 5)
    attach(layer, {"weight": packed})
    optimizer = torch.optim.SGD(layer.parameters(), lr, momentum=momentum, weight_decay=decay)
    codewords, velocity = packed.codebook.astype(np.float64), np.zeros((4, 2))
    bias, bias_velocity = layer.bias.detach().double().numpy().copy(), np.zeros(5)
    for step in range(4):
        x, target = normal(7, 8), normal(7, 5)
        optimizer.zero_grad()
        F.mse_loss(layer(torch.from_numpy(x)), torch.from_numpy(target), reduction="sum").backward()
        optimizer.step()
        residual = x @ codewords[packed.codes].reshape(5, 8).T + bias - target
        blocks = (2 * residual.T @ x).reshape(5, 4, 2)  # dL/dw
        for k in range(4):
            members = blocks[packed.codes == k]
            velocity[k] = momentum * velocity[k] + members.mean(0) + decay * codewords[k]
            codewords[k] -= lr * velocity[k]
        bias_velocity = momentum * bias_velocity + 2 * residual.sum(0) + decay * bias
        bias -= lr * bias_velocity
        found = layer.parametrizations.weight[0].stored.codebook.detach().numpy()
        np.testing.assert_allclose(found, codewords, rtol=1e-3, atol=1e-4, err_msg=f"step {step}")


def attention(**options):
    torch.manual_seed(0)
    return nn.MultiheadAttention(8, 2, batch_first=True, **options)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"kdim": 8, "vdim": 4}], ids=["fused", "separate"])
def test_attention_runs_through_the_codes(options, training):
    layer = attention(**options)
    names = list(find_weights(layer))
    packed = {name: draw(PQ(5, 4), weight.form.shape) for name, weight in find_weights(layer).items()}
    dense = copy.deepcopy(layer)
    for name, weight in find_weights(dense).items():
        weight.tensor.data = torch.from_numpy(packed[name].decode())
    attach(layer.train(training), packed)
    assert list(packed_weights(layer)) == names
    x = torch.from_numpy(normal(2, 3, 8))
    value = x[..., : options.get("vdim", 8)]
    out = layer(x, x, value)[0]
    torch.testing.assert_close(out, dense(x, x, value)[0])
    out.square().sum().backward()
    for weight in packed_weights(layer).values():
        assert weight.stored.codebook.grad.abs().max() > 0
    with torch.no_grad():  # the fast path of PyTorch
        torch.testing.assert_close(layer.eval()(x, x, value)[0], dense.eval()(x, x, value)[0])


def test_a_transformer_layer_sees_the_decoded_weights_in_its_fast_path():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    dense = copy.deepcopy(layer)
    packed = {name: draw(PQ(5, 4), weight.form.shape) for name, weight in find_weights(layer).items()}
    assert sorted(packed) == ["linear1", "linear2", "self_attn.in_proj_weight", "self_attn.out_proj"]
    attach(layer, packed)
    for name, weight in find_weights(dense).items():
        weight.tensor.data = torch.from_numpy(packed[name].decode())
    x = torch.from_numpy(normal(2, 3, 8))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), dense(x))
    torch.testing.assert_close(layer(x), dense(x))


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(10, 4, padding_idx=2)
        self.head = nn.Linear(4, 10)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        return self.head(self.tokens(ids))


def test_tied_weights_share_their_parameters():
    net = Language()
    [weight] = attach(net, {"tokens": draw(PQ(5, 2), (10, 4))}).values()
    assert {name for name, _ in net.named_parameters()} == {
        "tokens.parametrizations.weight.0.stored.codebook",
        "head.bias",
    }
    assert torch.equal(net.head.weight, net.tokens.weight)
    net(torch.tensor([1, 3])).square().sum().backward()
    both = weight.stored.codebook.grad.clone()
    weight.stored.codebook.grad = None
    F.linear(net.tokens(torch.tensor([1, 3])), net.head.weight.detach(), net.head.bias).square().sum().backward()
    assert not torch.allclose(both, weight.stored.codebook.grad)  # the head adds to the gradient
    copied = copy.deepcopy(net)
    assert len(list(copied.parameters())) == 2
    detach(net)
    assert net.head.weight is net.tokens.weight and isinstance(net.tokens.weight, nn.Parameter)
    assert torch.equal(copied.head.weight, net.head.weight)


def test_padding_of_embeddings_and_convolutions_stays():
    net = Language()
    [weight] = attach(net, {"tokens": draw(PQ(5, 2), (10, 4))}).values()
    net.tokens(torch.tensor([2, 2])).sum().backward()
    assert net.tokens.padding_idx == 2 and not weight.stored.codebook.grad.any()
    conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")
    attach(conv, {"weight": draw(Scalar(3), (3, 2, 3, 3))})
    x = torch.from_numpy(normal(1, 2, 5, 5))
    expected = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), conv.weight, conv.bias)
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize(
    ("layer", "x"),
    [(nn.Conv1d(4, 6, 3), normal(2, 4, 7)), (nn.ConvTranspose3d(4, 6, (1, 2, 3), groups=2), normal(1, 4, 2, 3, 4))],
)
def test_other_forms_of_weights(layer, x):
    shape = find_weights(layer)["weight"].form.shape
    packed = draw(IntN(4, per="channel"), shape)
    attach(layer, {"weight": packed})
    filters = find_weights(layer)["weight"].form.to_filters(layer.weight)
    np.testing.assert_array_equal(filters.detach().numpy(), packed.decode())
    layer(torch.from_numpy(x)).sum().backward()
    assert layer.parametrizations.weight[0].stored.scales.grad.shape == (6, 1)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def test_codecs_are_fitted_and_removed_again():
    net = small_net()
    before = net[0].weight.detach().clone()
    made = attach(net, {"default": Scalar(64), "2": None})
    assert list(made) == list(packed_weights(net)) == ["0"]
    assert 0 < (net[0].weight - before).abs().max() < 0.05
    x = torch.from_numpy(normal(3, 8))
    expected = net.eval()(x)
    detach(net)
    assert type(net[0]) is nn.Linear and net[0].weight.requires_grad and not packed_weights(net)
    assert torch.equal(net(x), expected)
    attach(net, {"0": Scalar(4)})
    assert len(net[0].weight.unique()) == 4


def test_frozen_weights_stay_frozen():
    layer = nn.Embedding.from_pretrained(torch.from_numpy(normal(10, 4)))
    attach(layer, {"weight": draw(PQ(5, 2), (10, 4))})
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    detach(layer)
    assert not layer.weight.requires_grad


def test_state_dicts_hold_codes_and_codebooks():
    net, other = small_net(), small_net()
    packed = draw(Additive([PQ(5, 4, codebook_dtype="int8"), IntN(2, symmetric=False)]), (16, 8))
    attach(net, {"0": packed})
    attach(other, {"0": draw(packed.codec, (16, 8))})
    other.load_state_dict(net.state_dict())
    assert packed_weights(other)["0"].packed() == packed
    stored = "0.parametrizations.weight.0.stored.parts"
    names = {f"{stored}.0.{name}" for name in ("codebook", "codes", "scale")}
    names |= {f"{stored}.1.{name}" for name in ("codes", "scales", "zeros")}
    assert set(net.state_dict()) == names | {"0.bias", "2.weight", "2.bias"}


def test_copies_are_independent():
    net = small_net()
    attach(net, {"0": draw(PQ(5, 4), (16, 8))})
    twin = copy.deepcopy(net)
    detach(twin)
    with torch.no_grad():
        twin[0].weight += 1
    assert torch.equal(net.eval()[0].weight + 1, twin[0].weight)
    assert type(net[0]) is not type(twin[0])


@pytest.mark.parametrize("metric", [None, "one", "position", "group"])
def test_reassigned_codes_are_the_nearest_codewords(metric):
    packed = draw(PQ(5, 3), (4, 6))
    weight, target = moved(packed), normal(4, 6)
    root = normal(2, 2, 3, 3)
    matrices = root @ root.swapaxes(-1, -2)
    given = {None: None, "one": matrices[0, 0], "position": matrices[0], "group": matrices}[metric]
    weight.reassign(torch.from_numpy(target), given)
    full = np.broadcast_to(np.eye(3) if given is None else given, (2, 2, 3, 3))
    words = weight.packed().codebook.astype(np.float32)
    for o in range(4):
        for m in range(2):
            errors = target[o].reshape(2, 3)[m] - words
            distances = np.einsum("ki,ij,kj->k", errors, full[o // 2, m], errors)
            assert weight.packed().codes[o, m] == distances.argmin()
    assert weight.training


def test_under_whole_moments_blocks_see_one_another():
    """The error under E[x x'] of all inputs falls below that of nearest codewords position by position."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((24, 24)) + 2 * rng.standard_normal((24, 1))
    moments = (mix @ mix.T / 24 + 0.1 * np.eye(24)).astype(np.float32)
    target = rng.standard_normal((40, 24)).astype(np.float32)
    packed = PQ(16, 4).fit(target[rng.permutation(40)])
    at = np.arange(24).reshape(-1, 4)
    errors = []
    for metric in (moments[at[:, :, None], at[:, None, :]], moments[None, None]):
        weight = PackedWeight(packed, FilterForm((40, 24)))
        weight.reassign(torch.from_numpy(target), metric)
        e = (target - weight.packed().decode()).astype(float)
        errors.append(np.einsum("oi,ij,oj->", e, moments, e))
        assert np.array_equal(weight.packed().codebook, packed.codebook)
    assert errors[1] < 0.8 * errors[0]


def test_codes_are_reassigned_for_codewords_as_stored():
    packed = PackedPQ(PQ(2, 1), (1, 2), np.array([[0, 1]]), np.float32([[1], [1]]))
    weight = PackedWeight(packed, FilterForm((1, 2)))
    with torch.no_grad():
        weight.stored.codebook[1] += 1e-4  # which float16 does not see
    weight.reassign(torch.tensor([[1.1, 1.1]]))
    assert weight.packed().codes.tolist() == [[0, 0]]


@pytest.mark.parametrize(
    "codec", [Scalar(4), Fixed("pow2", scale="none"), IntN(3, per="group", group=2, symmetric=False), Fixed("ternary")]
)
def test_reassigned_codes_are_the_nearest_values(codec):
    packed, target = draw(codec, (4, 6)), normal(4, 6)
    weight = PackedWeight(packed, FilterForm((4, 6)))
    weight.reassign(torch.from_numpy(target))
    error = np.abs(weight.packed().decode() - target)
    for k in range(codec.k):
        other = PackedScalar(
            packed.codec,
            packed.shape,
            np.full((4, 6), k),
            packed.codebook if packed.codec.levels is None else None,
            packed.scales,
            packed.zeros,
        )
        assert (error <= np.abs(other.decode() - target) + 1e-6).all()


def test_reassigned_sums_take_what_other_parts_leave():
    packed, target = draw(Additive([PQ(5, 3), Sparse(count=4)]), (4, 6)), normal(4, 6)
    weight = PackedWeight(packed, FilterForm((4, 6)))
    weight.reassign(torch.from_numpy(target))
    codes, sparse = weight.packed().parts
    rest = target - codes.decode()
    assert set(sparse.codes) == set(np.argsort(-np.abs(rest).reshape(-1))[:4])
    np.testing.assert_allclose(sparse.decode().reshape(-1)[sparse.codes], rest.reshape(-1)[sparse.codes], rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "what", "text"),
    [
        (small_net, {"0": PQ(5, 3)}, "weight '0': d: expected a divisor of 8"),
        (small_net, {"0": "pq"}, "weight '0': expected a codec, a packed weight or None, got str"),
        (small_net, {"0": draw(PQ(5, 2), (4, 6))}, r"expected a packed weight of shape \(16, 8\), got \(4, 6\)"),
        (small_net, {"default": Scalar(2), "x": None}, "pattern 'x' matches no weight"),
        (lambda: small_net().double(), {"0": Scalar(2)}, "expected float32, got torch.float64; call .float"),
        (lambda: nn.Embedding(4, 2, sparse=True), {"weight": Scalar(2)}, "expected sparse=False"),
        (
            lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))),
            {"0": Scalar(2)},
            "weight '0': expected a plain parameter, got one that is already parametrized",
        ),
    ],
)
def test_attach_refuses_and_changes_nothing(make, what, text):
    net = make()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ConfigError, match=text):
        attach(net, what)
    assert net.state_dict().keys() == before.keys()
    assert not packed_weights(net)


def test_packed_weights_refuse_what_they_cannot_do():
    net = small_net()
    [weight] = attach(net, {"0": draw(PQ(5, 4), (16, 8))}).values()
    with pytest.raises(ConfigError, match="already parametrized"):
        attach(net, {"0": Scalar(2)})
    with pytest.raises(PQNetError, match="expected no assignment to a packed weight"):
        net[0].weight = torch.zeros(16, 8)
    with pytest.raises(PQNetError, match=r"target: expected shape \(16, 8\), got \(8, 16\)"):
        weight.reassign(torch.zeros(8, 16))
    with pytest.raises(PQNetError, match=r"metric: expected shape \(4, 4\), \(2, 4, 4\), .* or .* got \(3, 4, 4\)"):
        weight.reassign(torch.zeros(16, 8), np.zeros((3, 4, 4)))
    nn.utils.parametrize.register_parametrization(net[0], "weight", nn.Identity())
    with pytest.raises(PQNetError, match="weight '0': expected nothing on top of the packed weight, got Identity"):
        detach(net)
    with torch.no_grad():
        weight.stored.codebook[0] = float("nan")
    with pytest.raises(PQNetError, match="codebook"):
        weight.packed()
    with pytest.raises(ConfigError, match="gradient: expected 'mean' or 'sum', got 'max'"):
        PackedWeight(draw(PQ(5, 4), (16, 8)), FilterForm((16, 8)), "max")
    with pytest.raises(ConfigError, match="packed: expected a packed weight of shape"):
        PackedWeight(draw(PQ(5, 4), (16, 8)), FilterForm((8, 16)))
    values = PackedWeight(draw(Scalar(3), (16, 8)), FilterForm((16, 8)))
    with pytest.raises(PQNetError, match="metric: expected None for Scalar"):
        values.reassign(torch.zeros(16, 8), np.eye(4))


@pytest.mark.parametrize("codec", [PQ(8, 4), PQ(6, 2, codebook_dtype="int8")])
def test_the_padding_row_of_an_embedding_stays_zero(codec):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(40, 8, padding_idx=3), nn.Flatten(), nn.Linear(16, 2))
    packed = attach(net, {"0": codec})["0"]
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.tensor([[3, 1], [2, 3]])).square().sum().backward()
        optimizer.step()
    stored = packed.packed()
    assert stored.codec.k == codec.k and len(np.unique(stored.codes)) == codec.k
    assert not stored.decode()[3].any() and stored.decode()[[2, 4]].any(1).all()
    assert not net[0](torch.tensor([3])).any()


def test_a_codec_that_moves_the_padding_row_says_so():
    net = nn.Embedding(40, 8, padding_idx=0)
    with pytest.warns(UserWarning, match="weight 'weight': row 0, its padding_idx, is no longer zero"):
        attach(net, {"*": Scalar(2)})
    attach(nn.Embedding(40, 8, padding_idx=0), {"*": IntN(4)})
