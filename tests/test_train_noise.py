"""Quantization noise: which blocks it takes, that stored weights stay, where it arrives, and that runs resume."""

import copy
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from processes import joined  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from pqnet import PQ, Additive, ConfigError, Fixed, IntN, Packed, PackedPQ, PQNetError, Scalar, Sparse, load  # noqa: E402
from pqnet.demo import load_images, model_path  # noqa: E402
from pqnet.train import (  # noqa: E402
    ActivationNoise,
    LayerDrop,
    QuantNoise,
    attach,
    find_weights,
    share_layers,
    to_model,
    to_module,
)
from pqnet_converters import from_torch  # noqa: E402


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def chosen_blocks(layer, codec, **options):
    """Return which weights of a layer without zeros the proxy has taken, in filter form, and their blocks' share."""
    noise = QuantNoise(layer, {"weight": codec}, **options)
    noise.draw()
    [weight] = find_weights(layer.train()).values()
    return (weight.form.to_filters(weight.tensor) == 0).detach().numpy()


def test_stored_weights_stay_to_the_bit():
    net = small_net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    parameters = list(net.parameters())
    noise = QuantNoise(net, {"0": PQ(8, 4), "2": IntN(4)}, p=0.7, phi="exact", refresh=3)
    for step in range(30):
        net(draw(5, 8, seed=step))
    noise.remove()
    assert [id(p) for p in net.parameters()] == [id(p) for p in parameters]  # in their order, as optimizers know them
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert type(net[0]) is nn.Linear and list(net.state_dict()) == list(before) and not net._forward_pre_hooks
    x = draw(5, 8)
    assert torch.equal(net(x), net.eval()(x))


def test_noise_does_not_compound():
    """fairseq's has set 97 % of the weights to zero after 30 calls in float32."""
    layer = nn.Linear(64, 64)
    QuantNoise(layer, {"weight": PQ(16, 8)}, p=0.1)
    for step in range(30):
        layer(draw(1, 64, seed=step))
    assert 0.02 < (layer.weight == 0).float().mean() < 0.2


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
@pytest.mark.parametrize(
    ("layer", "codec"),
    [(nn.Linear(64, 48), PQ(16, 8)), (nn.Linear(64, 48), IntN(4)), (nn.Conv2d(32, 24, 3), PQ(16, 4, "channel"))],
)
def test_the_share_of_blocks_is_p(layer, codec, p):
    layer = copy.deepcopy(layer)
    QuantNoise(layer, {"weight": codec}, p=p)
    hits, d = [], codec.blocks[0]
    for step in range(20):
        layer(draw(1, 64, seed=step) if isinstance(layer, nn.Linear) else draw(1, 32, 3, 3))
        hits.append(int((layer.weight == 0).sum()) / d)
    n = layer.weight.numel() // d
    deviation = np.sqrt(n * p * (1 - p))
    assert max(abs(count - n * p) for count in hits) < 4 * deviation
    assert abs(np.mean(hits) - n * p) < 4 * deviation / np.sqrt(20)
    assert np.std(hits) > 0.5 * deviation  # new ones in each step


@pytest.mark.parametrize("kernel", [1, 3])
def test_blocks_of_convolutions_are_those_of_the_codec(kernel):
    """fairseq's fails for 1x1 kernels, and takes whole kernels for all others whatever the size of blocks."""
    conv = nn.Conv2d(6, 8, kernel)
    mask = chosen_blocks(conv, PQ(4, 3), p=0.5).reshape(8, -1, 3)
    assert (mask.all(2) == mask.any(2)).all() and 0.2 < mask.mean() < 0.8
    assert conv(draw(2, 6, 4, 4)).shape == (2, 8, 5 - kernel, 5 - kernel)
    if kernel == 3:
        kernels = mask.reshape(8, 6, 9)
        assert (kernels.any(2) != kernels.all(2)).any()
        wide = chosen_blocks(nn.Conv2d(6, 8, 3), PQ(4, 18), p=0.5).reshape(8, 3, 18)
        assert (wide.all(2) == wide.any(2)).all() and 0 < wide.mean() < 1
        channels = chosen_blocks(nn.Conv2d(6, 8, 3), PQ(4, 3, "channel"), p=0.5).reshape(8, 2, 3, 9)
        assert (channels.all(2) == channels.any(2)).all() and (channels.any(3) != channels.all(3)).any()


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), draw(2, 4, 7)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), draw(1, 4, 3, 3)),
        (nn.Conv3d(2, 6, 2), draw(1, 2, 3, 3, 3)),
    ],
)
def test_other_forms_of_weights(layer, x):
    codec = Scalar(4)
    [weight] = find_weights(layer).values()
    want = codec.fit(weight.form.to_filters(layer.weight.detach()).numpy()).decode()
    QuantNoise(layer, {"weight": codec}, p=1, phi="exact")
    layer(x).square().sum().backward()
    np.testing.assert_array_equal(weight.form.to_filters(layer.weight).detach().numpy(), want)
    assert layer.parametrizations.weight.original.grad.all()


CODECS = [
    PQ(8, 4),
    PQ(8, 4, codebook_dtype="int8"),
    PQ(512, 4, clamp="floor"),
    Scalar(4),
    Fixed("ternary", per="channel"),
    IntN(4),
    IntN(4, "tensor", "minmax", symmetric=False),
    Sparse(fraction=0.1),
    Additive([PQ(8, 4), Sparse(fraction=0.05)]),
]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: str(codec)[:40])
def test_everything_exact_is_training_with_quantized_weights(codec):
    layer = nn.Linear(32, 16)
    layer.weight.data = draw(16, 32)
    weight = layer.weight.detach().clone()
    twin = copy.deepcopy(layer)
    packed = codec.fit(weight.numpy())
    twin.weight.data = torch.from_numpy(packed.decode())
    noise = QuantNoise(layer, {"weight": codec}, p=1, phi="exact")
    x, slope = draw(5, 32, seed=1), draw(5, 16, seed=2)
    for module in (layer, twin):
        (module(x) * slope).sum().backward()
    torch.testing.assert_close(layer.weight, twin.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(layer(x), twin(x))
    torch.testing.assert_close(layer.parametrizations.weight.original.grad, twin.weight.grad)
    noise.p = 0.5
    layer(x)
    kept = layer.weight == weight
    assert 0.3 < kept.float().mean() < 0.75
    assert ((layer.weight == twin.weight) | kept).float().mean() > 0.99


def test_codes_are_the_nearest_to_present_weights_and_codebooks_wait():
    layer = nn.Linear(32, 16)
    noise = QuantNoise(layer, {"weight": PQ(8, 4, codebook_dtype="float32")}, p=1, phi="exact", refresh=3)
    books, x = [], draw(1, 32)
    for step in range(6):
        with torch.no_grad():
            layer.parametrizations.weight.original += 0.1 * draw(16, 32, seed=step)
        layer(x)
        blocks = layer.parametrizations.weight.original.detach().reshape(-1, 1, 4)
        books.append(noise.state_dict()["weights"]["weight"]["arrays"]["codebook"])
        nearest = (blocks - books[-1]).square().sum(2).argmin(1)
        torch.testing.assert_close(layer.weight.detach(), books[-1][nearest].reshape(16, 32))
        if step == 3:  # fitted anew, from the codebook before
            weight, codec = blocks.reshape(16, 32).numpy(), PQ(8, 4, codebook_dtype="float32")
            before = PackedPQ(codec, (16, 32), np.zeros((16, 8), np.uint8), books[2].numpy())
            np.testing.assert_array_equal(books[3], codec.fit(weight, warm=before).codebook)
            assert not np.array_equal(books[3], codec.fit(weight).codebook)
    same = [torch.equal(a, b) for a, b in itertools.pairwise(books)]
    assert same == [True, True, False, True, True]


def test_gradient_of_chosen_blocks_passes_and_others_are_exact():
    net, twin = small_net(), small_net()
    QuantNoise(net, {"0": PQ(8, 4)}, p=0.5)
    x = draw(5, 8)
    net(x).square().sum().backward()
    twin[0].weight.data = net[0].weight.detach().clone()
    twin(x).square().sum().backward()
    assert (twin[0].weight == 0).any()
    assert torch.equal(net[0].parametrizations.weight.original.grad, twin[0].weight.grad)


def test_clusters_are_chosen_whole():
    layer = nn.Linear(64, 32)
    noise = QuantNoise(layer, {"weight": PQ(6, 4)}, p=0.5, unit="cluster", seed=1)
    layer(draw(1, 64))
    packed = PQ(6, 4).fit(layer.parametrizations.weight.original.detach().numpy(), seed=1)
    zero = (layer.weight == 0).reshape(32, 16, 4).numpy()
    taken = [zero[packed.codes == k].mean() for k in range(6)]
    assert set(taken) == {0.0, 1.0}
    noise.draw()
    assert not torch.equal(layer.weight == 0, torch.from_numpy(zero.reshape(32, 64)))


@pytest.mark.parametrize("options", [{}, {"phi": "exact"}])
def test_off_in_eval_and_at_zero(options):
    layer = nn.Linear(8, 4)
    noise = QuantNoise(layer, {"weight": Scalar(2)}, p=0, **options)
    x, original = draw(2, 8), layer.parametrizations.weight.original
    layer(x)
    assert torch.equal(layer.weight, original) and not noise.state_dict()["weights"]  # nothing was fitted
    noise.p = 1
    layer(x)
    assert not torch.equal(layer.weight, original)
    layer.eval()(x)
    assert torch.equal(layer.weight, original)


def test_rescaling_keeps_the_mean():
    layer = nn.Linear(8, 4)
    QuantNoise(layer, {"weight": IntN(4)}, p=0.75, rescale=True)
    layer(draw(2, 8))
    kept = layer.weight != 0
    assert 0 < kept.sum() < 32
    torch.testing.assert_close(layer.weight[kept], 4 * layer.parametrizations.weight.original[kept])


def test_range_of_integers_does_not_touch_other_weights():
    """fairseq clamps weights outside a range of old to it, chosen or not, and moves the chosen ones twice."""
    codec = IntN(8, "tensor", "minmax", symmetric=False, scale_dtype="float32")
    layer = nn.Linear(64, 32)
    noise = QuantNoise(layer, {"weight": codec}, p=0.5, phi="exact")
    x, original = draw(1, 64), layer.parametrizations.weight.original
    layer(x)
    top = original.detach().max()
    with torch.no_grad():
        original[:, 0] = 1.0
    layer(x)
    effective = layer.weight[:, 0].detach()
    assert (effective == 1).any() and (effective < 1).any()
    torch.testing.assert_close(
        effective[effective < 1], torch.full_like(effective[effective < 1], top), atol=2e-3, rtol=0
    )
    layer(x).sum().backward()
    assert original.grad[:, 0].all() and noise.step == 3


def test_four_bits_have_the_right_error():
    """N(0, .05): .1565, where fairseq's int4, with the scale of 8 bits, has 3.72."""
    layer = nn.Linear(256, 256)
    weight = (draw(256, 256) * 0.05).clamp(-0.2035, 0.2030)
    weight[0, :2] = torch.tensor([-0.2035, 0.2030])
    layer.weight.data = weight
    codec = IntN(4, "tensor", "minmax", symmetric=False, scale_dtype="float32")
    QuantNoise(layer, {"weight": codec}, p=1, phi="exact")
    layer(draw(1, 256))
    error = (layer.weight.detach() - weight).norm() / weight.norm()
    assert float(error) == pytest.approx(0.1565, rel=0.015)


@pytest.mark.parametrize("name", ["in_proj_weight", "out_proj", "k_proj_weight", "v_proj_weight"])
@pytest.mark.parametrize("phi", ["proxy", "exact"])
def test_attention_is_reached(name, phi):
    """fairseq's attention computes past the hooks of its projections."""
    torch.manual_seed(0)
    options = {"kdim": 8, "vdim": 4} if name[1:] == "_proj_weight" else {}
    layer = nn.MultiheadAttention(8, 2, batch_first=True, **options)
    x = draw(2, 3, 8)
    inputs = x, x, x[..., : options.get("vdim", 8)]
    clean = layer(*inputs)[0]
    QuantNoise(layer, {name: PQ(4, 4)}, p=0.5, phi=phi)
    noisy = layer(*inputs)[0]
    assert not torch.allclose(noisy, clean)
    noisy.square().sum().backward()
    [original] = [p for key, p in layer.named_parameters() if "original" in key]
    assert original.grad.any()
    torch.testing.assert_close(layer.eval()(*inputs)[0], clean)


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(10, 4, padding_idx=2)
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10)
        self.head.weight = self.tokens.weight
        self.seen = []

    def forward(self, ids):
        x = self.tokens(ids)
        for _ in range(3):  # one layer three times
            x = x + torch.tanh(self.layer(x))
            self.seen.append(self.layer.weight.detach().clone())
        self.seen += [self.tokens.weight.detach().clone(), self.head.weight.detach().clone()]
        return self.head(x)


@pytest.mark.parametrize("codec", [PQ(4, 2), Scalar(2), IntN(2, per="channel")])
def test_the_padding_row_of_an_embedding_has_no_noise(codec):
    net = nn.Embedding(10, 4, padding_idx=2)
    noise = QuantNoise(net, {"*": codec}, p=1.0, phi="exact")
    net.train()
    assert not net(torch.tensor([2])).any()
    noise.remove()
    with torch.no_grad():
        net.weight[2] = torch.tensor([1.0, -2.0, 3.0, 0.5])  # a row that is not zero is like the others
    noise = QuantNoise(net, {"*": Scalar(2)}, p=1.0, phi="exact")
    assert net(torch.tensor([2])).unique().numel() <= 2
    assert not torch.equal(net(torch.tensor([2])), net.parametrizations.weight.original[2:3])
    noise.remove()


@pytest.mark.parametrize("phi", ["proxy", "exact"])
def test_all_uses_of_a_weight_have_one_mask(phi):
    """fairseq's noise on a shared layer is drawn at each use, and lies on that of the use before."""
    net = Language()
    noise = QuantNoise(net, {"default": PQ(4, 2)}, p=0.5, phi=phi)
    assert len(list(net.parameters())) == 4  # tied weights are one
    net(torch.tensor([1, 3])).square().sum().backward()
    first, second, third, tokens, head = net.seen
    assert torch.equal(first, second) and torch.equal(first, third) and torch.equal(tokens, head)
    assert not torch.equal(first, net.layer.parametrizations.weight.original)
    original = net.tokens.parametrizations.weight.original
    assert not torch.equal(tokens, original) and original.grad[1].any() and original.grad[5].any()
    kept = (tokens == original).all(1)
    assert kept.any() and not kept.all()
    net(torch.tensor([1, 3]))
    assert not torch.equal(net.seen[5], first)
    noise.remove()
    assert net.head.weight is net.tokens.weight and len(list(net.parameters())) == 4


def test_weights_tied_across_layers():
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    for layer in (net[2], net[3]):
        layer.weight = net[0].weight
    QuantNoise(net, {"default": IntN(4)}, p=0.5)
    net(draw(1, 8)).sum().backward()
    assert torch.equal(net[0].weight, net[3].weight) and not torch.equal(net[0].weight == 0, net[1].weight == 0)
    assert net[0].parametrizations.weight.original.grad.any()


def test_networks_of_the_engine_train_with_noise():
    model = load(model_path())
    module = to_module(model).train()
    x = torch.from_numpy(load_images()[0][:4])
    clean = module(x)
    QuantNoise(module, {"default": IntN(4)}, p=0.5)
    assert not torch.allclose(module(x), clean)
    again = to_model(module)  # without noise
    assert all(np.array_equal(again.graph.params[w], model.graph.params[w]) for w in ("conv1.weight", "fc.weight"))


def test_copies_have_their_own_noise():
    net = small_net()
    noise = QuantNoise(net, {"default": PQ(8, 4)}, p=0.5)
    twin = copy.deepcopy(net)
    x = draw(3, 8)
    assert torch.equal(net(x), twin(x))
    net(x)
    assert noise.step == 2 and not torch.equal(net[0].weight, twin[0].weight)
    noise.remove()
    assert torch.nn.utils.parametrize.is_parametrized(twin[0], "weight")


def test_recomputed_activations_see_the_same_noise():
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self, again):
            super().__init__()
            self.net, self.again = small_net(), again

        def forward(self, x):
            return checkpoint(self.net, x, use_reentrant=False) if self.again else self.net(x)

    grads = []
    for again in (False, True):
        net = Net(again)
        QuantNoise(net, {"default": PQ(8, 4)}, p=0.5)
        net(draw(3, 8)).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def trained(steps, resume_at=None, **options):
    """Train a little, with a checkpoint and a new start between if asked."""
    net, state = small_net(), None
    noise = QuantNoise(net, {"0": Additive([PQ(8, 4), Sparse(count=5)]), "2": Scalar(3)}, **options)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for step in range(steps):
        if step == resume_at:
            state = copy.deepcopy([thing.state_dict() for thing in (net, optimizer, noise)])
            torch.manual_seed(99)
            net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
            noise = QuantNoise(net, {"0": Additive([PQ(8, 4), Sparse(count=5)]), "2": Scalar(3)}, p=0, **options)
            optimizer = torch.optim.SGD(net.parameters(), 0.1)
            for thing, saved in zip((net, optimizer, noise), state, strict=True):
                thing.load_state_dict(saved)
        if step == 1:
            noise.p = 0.6
        loss = (net(draw(6, 8, seed=step)) - draw(6, 4, seed=100 + step)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("options", [{}, {"phi": "exact", "refresh": 4}], ids=["proxy", "exact"])
def test_resumed_runs_are_the_same_to_the_bit(options):
    whole, resumed = trained(9, **options), trained(9, resume_at=6, **options)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert not torch.equal(whole[1], trained(9, seed=1, **options)[1])


def test_states_survive_a_file_of_tensors(tmp_path):
    net = small_net()
    noise = QuantNoise(net, {"0": PQ(8, 4), "2": IntN(4)}, phi="exact")
    net(draw(1, 8))
    torch.save(noise.state_dict(), tmp_path / "noise.pt")
    state = torch.load(tmp_path / "noise.pt", weights_only=True)
    other = QuantNoise(small_net(), {"0": PQ(8, 4), "2": IntN(4)}, phi="exact")
    other.load_state_dict(state)
    assert other.state_dict()["weights"]["0"]["arrays"].keys() == {"codes", "codebook"}
    with pytest.raises(ConfigError, match=r"expected weights among \['0'\], got '2'"):
        QuantNoise(small_net(), {"0": PQ(8, 4)}).load_state_dict(state)
    for wrong, name in (({"step": None}, "step"), ({"step": -1}, "step"), ({"p": float("nan")}, "p")):
        with pytest.raises(PQNetError, match=f"as {name}, got"):
            other.load_state_dict(state | wrong)
    with pytest.raises(PQNetError, match="codes: expected 8 bytes"):
        QuantNoise(small_net(), {"0": PQ(4, 4), "2": IntN(4)}).load_state_dict(state)


def train_part(rank, world, file, out):
    """Train on this process's share of each batch, with integer inputs, and layers left out."""
    with joined(rank, world, file):
        net = nn.Sequential(nn.Linear(8, 16), *(nn.Linear(16, 16) for _ in range(3)), nn.Linear(16, 4))
        for i, p in enumerate(net.parameters()):
            p.data = 0.3 * draw(*p.shape, seed=i)
        QuantNoise(net, {"default": PQ(8, 4)}, p=0.4, phi="exact", refresh=2)
        LayerDrop(net, net[1:4], p=0.5)
        ActivationNoise(net, {"0": 8})
        wrapped = DistributedDataParallel(net, find_unused_parameters=True)
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        for step in range(5):
            x, y = (draw(8, n, seed=s + step).chunk(world)[rank] for n, s in ((8, 50), (4, 90)))
            optimizer.zero_grad()
            (wrapped(x) - y).square().mean().backward()
            optimizer.step()
        torch.save([p.detach().float() for p in net.state_dict().values()], f"{out}{world}{rank}")


def test_two_processes_train_as_one(tmp_path):
    torch.multiprocessing.spawn(train_part, (2, str(tmp_path / "two"), str(tmp_path / "out")), nprocs=2)
    train_part(0, 1, str(tmp_path / "one"), str(tmp_path / "out"))
    one, first, second = (torch.load(tmp_path / f"out{name}") for name in ("10", "20", "21"))
    assert len(one) == 10 + 3
    for a, b, c in zip(one, first, second, strict=True):
        assert torch.equal(b, c)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_layers_are_left_out_with_probability_p():
    layers = [nn.Linear(4, 4) for _ in range(50)]
    net, ran = nn.Sequential(*layers), []
    drop = LayerDrop(net, layers, p=0.3, seed=2)
    for i, layer in enumerate(layers):
        layer.forward.layer.__class__ = type(
            "Layer", (nn.Linear,), {"forward": lambda self, x, i=i: (ran.append(i), x)[1]}
        )
    x, counts = draw(1, 4), []
    for _ in range(20):
        net(x)
        counts.append(len(ran))
        ran.clear()
    assert abs(np.mean(counts) - 35) < 4 * np.sqrt(50 * 0.21 / 20) and np.std(counts) > 1
    net.eval()(x)
    assert ran == list(range(50))
    ran.clear()
    kept = drop.keep_every(3)
    net(input=x)
    assert ran == list(range(0, 50, 3)) and kept == layers[::3]
    other = LayerDrop(nn.Sequential(*(copied := [nn.Linear(4, 4) for _ in range(50)])), copied)
    other.load_state_dict(drop.state_dict())
    assert (other.step, other.p, other.every) == (20, 0.3, 3)
    drop.remove()
    ran.clear()
    net.train()(x)
    assert ran == list(range(50)) and "forward" not in vars(layers[0])


def test_layers_that_share_parameters_are_stored_once_and_left_out_together():
    layers = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(5)]
    net = nn.Sequential(*layers)
    share_layers(layers)
    assert list(find_weights(net)) == ["0.0", "2.0", "4.0"]
    x = draw(3, 8)
    expected = x
    for i in (0, 0, 2, 2, 4):
        expected = layers[i](expected)
    assert torch.equal(net(x), expected)
    made = from_torch(net.eval(), x)
    attach(net, {"default": PQ(4, 4)})
    model = to_model(net, made)
    packed = [p for p in model.graph.params.values() if isinstance(p, Packed)]
    assert len(packed) == 3 and np.allclose(model(x.numpy()), net(x).detach().numpy(), atol=1e-5)
    drop = LayerDrop(net, layers, p=0.5, chunk=2)
    net.train()
    for _ in range(10):
        net(x)
        left_out = [drop.skips(i) for i in range(5)]
        assert left_out[0] == left_out[1] and left_out[2] == left_out[3]
    assert drop.keep_every(2) == [layers[0], layers[1], layers[4]]
    with pytest.raises(ConfigError, match="layers: expected layer 1 with the parameters of layer 0"):
        share_layers([nn.Linear(2, 2), nn.Linear(2, 3)])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"what": {"x": Scalar(2)}}, "pattern 'x' matches no weight"),
        ({"what": {"0": PQ(8, 3)}}, "weight '0': d: expected a divisor of 8"),
        ({"what": {"0": 4}}, "weight '0': expected a codec, a packed weight or None, got int"),
        ({"p": 1.5}, "p: expected a number from 0 to 1, got 1.5"),
        ({"p": "high"}, "p: expected a number from 0 to 1, got 'high'"),
        ({"phi": "mean"}, "phi: expected 'proxy' or 'exact', got 'mean'"),
        ({"unit": "kernel"}, "unit: expected 'block' or 'cluster', got 'kernel'"),
        ({"refresh": 0}, "refresh: expected an integer of at least 1, got 0"),
        ({"seed": -1}, "seed: expected an integer of at least 0, got -1"),
        ({"rescale": True, "phi": "exact"}, "rescale: expected False with phi='exact'"),
        ({"what": {"0": Sparse(count=3)}, "unit": "cluster"}, "weight '0': expected a codec of one code a block"),
    ],
)
def test_refusals_change_nothing(options, text):
    net = small_net()
    with pytest.raises(ConfigError, match=text):
        QuantNoise(net, **{"what": {"0": Scalar(2)}, **options})
    assert list(net.state_dict()) == list(small_net().state_dict())
    x = draw(2, 8)
    assert torch.equal(net(x), small_net()(x)) and not net._forward_pre_hooks


def test_noise_and_packed_weights_do_not_mix():
    net = small_net()
    noise = QuantNoise(net, {"0": Scalar(2)})
    with pytest.raises(ConfigError, match="already parametrized"):
        attach(net, {"0": Scalar(2)})
    with pytest.raises(ConfigError, match="already parametrized"):
        QuantNoise(net, {"0": Scalar(2)})
    nn.utils.parametrize.register_parametrization(net[0], "weight", nn.Identity())
    with pytest.raises(PQNetError, match="weight '0': expected nothing on top of noise, got Identity; remove it first"):
        noise.remove()
    layers = [nn.Linear(2, 2)]
    with pytest.raises(ConfigError, match="layers: expected at least one, all of them in the module"):
        LayerDrop(net, layers)
    LayerDrop(net, [net[2]])
    with pytest.raises(ConfigError, match="layers: expected each once, with the forward method of its class"):
        LayerDrop(net, [net[2]])


@pytest.mark.filterwarnings("ignore")
def test_compiled_networks_draw_as_others():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4))
    QuantNoise(net, {"default": PQ(4, 4)}, p=0.5, phi="exact")
    LayerDrop(net, [net[2]], p=0.5)
    ActivationNoise(net, {"default": 4})
    twin, x = copy.deepcopy(net), draw(3, 8)
    compiled = torch.compile(net, backend="eager")
    torch._dynamo.utils.counters.clear()
    for _ in range(12):
        assert torch.equal(compiled(x), twin(x))
    assert torch._dynamo.utils.counters["frames"]["total"] < 12  # not anew in each step
