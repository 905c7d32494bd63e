"""Iterative PQ: what each stage packs, what goes on training, and that runs resume."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from processes import check_two_train_as_one, joined  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from pqnet import PQ, ConfigError, PQNetError, Scalar  # noqa: E402
from pqnet.train import IterativePQ, QuantNoise, detach, packed_weights, to_model  # noqa: E402
from pqnet_converters import from_torch  # noqa: E402


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Convolution, tied embedding with a padding row, attention."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(12, 8, padding_idx=0)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 12)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        x = self.layer(self.tokens(ids))
        return self.head(self.conv(x.mT).mT + x)


STAGES = [
    {"layer.linear*": PQ(8, 4)},
    {"tokens": PQ(6, 4, codebook_dtype="int8"), "conv": PQ(5, 6)},
    {"default": PQ(8, 4, clamp="floor"), "layer.self_attn.out_proj": None},
]
NAMES = [
    {"layer.linear1", "layer.linear2"},
    {"tokens", "conv"},
    {"layer.self_attn.in_proj_weight"},
]


def ids(seed):
    return torch.randint(1, 12, (4, 5), generator=torch.Generator().manual_seed(seed))


def train(net, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(ids(step)).flatten(0, 1), ids(step + 100).flatten()).backward()
        optimizer.step()


def test_stages_pack_their_weights_and_the_rest_trains():
    net = Net()
    model = from_torch(net.eval(), ids(0))
    net.train()
    ipq, seen, counts = IterativePQ(net, STAGES), set(), []
    for number, names in enumerate(NAMES):
        assert (ipq.stage, ipq.done) == (number, False)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        made = ipq.advance()
        seen |= names
        assert set(made) == names and set(packed_weights(net)) == seen
        for name, weight in made.items():  # of the weights as training has left them
            codec = STAGES[number].get(name, STAGES[number].get("default", PQ(8, 4)))
            dense = before[name if "_" in name.split(".")[-1] else f"{name}.weight"]
            want = codec.fit(weight.form.to_filters(dense).numpy())
            assert weight.packed() == want
        codes = {name: weight.packed().codes for name, weight in packed_weights(net).items()}
        counts.append(sum(p.numel() for p in net.parameters()))
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        train(net, torch.optim.SGD(net.parameters(), 0.1), range(3))
        still = [name for name, p in net.named_parameters() if torch.equal(p, before[name])]
        assert not still, still
        assert all(np.array_equal(weight.packed().codes, codes[name]) for name, weight in packed_weights(net).items())
    assert ipq.done and net.head.weight is not net.tokens.weight and torch.equal(net.head.weight, net.tokens.weight)
    full = sum(p.numel() for p in Net().parameters())
    first = full - 2 * 8 * 16 + 2 * 8 * 4
    second = first - 12 * 8 + 6 * 4 - 8 * 8 * 3 + 5 * 6
    assert counts == [first, second, second - 24 * 8 + 8 * 4]
    with pytest.raises(PQNetError, match="expected one of the 3 stages to be left, got none"):
        ipq.advance()
    small = to_model(net, model)
    assert small.graph.params["tokens.weight"] == packed_weights(net)["tokens"].packed()
    assert small.graph.params["tokens.weight"].codec.codebook_dtype == "int8"
    with torch.no_grad():
        np.testing.assert_allclose(small(ids(0).numpy()), net.eval()(ids(0)).numpy(), rtol=1e-3, atol=1e-4)


def test_padding_rows_stay_out_of_training():
    net = Net()
    IterativePQ(net, [{"tokens": PQ(6, 4)}]).advance()
    assert net.tokens.padding_idx == 0
    net.tokens(torch.zeros(2, 3, dtype=torch.int64)).sum().backward()
    assert not packed_weights(net)["tokens"].stored.codebook.grad.any()


def test_optimizers_that_go_on_learn_the_codebooks():
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    train(net, optimizer, range(2))
    made = IterativePQ(net, STAGES).advance()
    optimizer.add_param_group({"params": [p for weight in made.values() for p in weight.parameters()]})
    before = [weight.stored.codebook.detach().clone() for weight in made.values()]
    train(net, optimizer, range(2))
    assert not any(torch.equal(weight.stored.codebook, old) for weight, old in zip(made.values(), before, strict=True))


def test_metrics_decide_what_codewords_are_near():
    weight, metric = draw(16, 8), np.diag([100.0, 100.0, 0.01, 0.01])
    errors = []
    for metrics in ({"weight": metric}, None):
        net = nn.Linear(8, 16)
        net.weight.data = weight.clone()
        [packed] = IterativePQ(net, [{"weight": PQ(4, 4)}]).advance(metrics).values()
        errors.append((packed().detach() - weight).reshape(-1, 4).square().mean(0))
    assert (errors[0][:2] < 0.8 * errors[1][:2]).all() and errors[0][2:].sum() > errors[1][2:].sum()
    with pytest.raises(ConfigError, match=r"metrics: expected names among \['weight'\], got 'x'"):
        IterativePQ(nn.Linear(8, 16), [{"weight": PQ(4, 4)}]).advance({"x": metric})


def run(stop_at=None):
    """Three stages of three steps each, with an optimizer for each; in a new process, so to say, from a step on."""
    net = Net()
    ipq = IterativePQ(net, STAGES, seed=3)
    for step in range(9):
        if step % 3 == 0:
            ipq.advance()
            optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        if step == stop_at:
            states = copy.deepcopy([thing.state_dict() for thing in (ipq, net, optimizer)])
            net = Net()
            for p in net.parameters():
                p.data.fill_(0.5)
            ipq = IterativePQ(net, STAGES, seed=3)
            ipq.load_state_dict(states[0])
            optimizer = torch.optim.SGD(net.parameters(), 1.0)
            net.load_state_dict(states[1])
            optimizer.load_state_dict(states[2])
        train(net, optimizer, [step])
    return net


def test_resumed_runs_are_the_same_to_the_bit():
    whole, resumed = run().state_dict(), run(stop_at=4).state_dict()
    assert list(whole) == list(resumed)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def part_of(rank, world, folder):
    """Train on this process's part of every batch, and save what came out."""
    with joined(rank, world, folder / f"store{world}"):
        net = Net()
        ipq = IterativePQ(net, STAGES)
        while not ipq.done:
            ipq.advance()
            wrapped = DistributedDataParallel(net)  # which knows the parameters of the stage
            optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
            for step in range(3):
                x, y = (ids(seed)[rank::world] for seed in (step, step + 100))
                optimizer.zero_grad()
                nn.functional.cross_entropy(wrapped(x).flatten(0, 1), y.flatten()).backward()
                optimizer.step()
        torch.save(net.state_dict(), folder / f"{rank}-of-{world}.pt")


def test_two_processes_train_as_one(tmp_path):
    check_two_train_as_one(part_of, tmp_path)


def test_seed_and_gradient_are_handed_on():
    layers = [nn.Linear(32, 64) for _ in range(3)]
    for layer in layers:
        layer.weight.data = draw(64, 32)
    made = [
        IterativePQ(layer, [{"weight": PQ(8, 4)}], seed=seed).advance()
        for layer, seed in zip(layers, (0, 0, 1), strict=True)
    ]
    first, same, other = (packed["weight"].packed() for packed in made)
    assert first == same and first != other
    [weight] = IterativePQ(nn.Linear(8, 16), [{"weight": PQ(4, 4)}], gradient="sum").advance().values()
    weight().sum().backward()
    counts = np.bincount(weight.packed().codes.reshape(-1), minlength=4)
    np.testing.assert_array_equal(weight.stored.codebook.grad, np.repeat(counts[:, None], 4, 1))


def test_states_of_other_stages_are_refused():
    net = Net()
    ipq = IterativePQ(net, STAGES)
    ipq.load_state_dict(ipq.state_dict())
    assert ipq.stage == 0
    ipq.advance()
    with pytest.raises(PQNetError, match="before the first advance, got .* after 1"):
        ipq.load_state_dict(ipq.state_dict())
    with pytest.raises(PQNetError, match=r"expected the weights \['conv'\]"):
        IterativePQ(Net(), [{"conv": PQ(5, 6)}]).load_state_dict(ipq.state_dict())
    detach(net)
    with pytest.raises(
        PQNetError, match="weight 'layer.linear1': expected what advance has packed, got a plain weight"
    ):
        ipq.state_dict()


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        ([{"conv": PQ(5, 6)}, {"x": PQ(4, 4)}], "stage 1: pattern 'x' matches no weight"),
        (
            [{"conv": PQ(5, 6)}, {"layer.linear1": PQ(4, 3)}],
            "stage 1: weight 'layer.linear1': d: expected a divisor of 8",
        ),
        ([{"conv": PQ(5, 6)}, {"tokens": PQ(100, 4)}], "stage 1: weight 'tokens': k: expected at most 24"),
        ([{"conv": PQ(5, 6)}, {"c*": Scalar(4)}], "stage 1: weight 'conv': expected each weight in one stage"),
        ([{"default": Scalar(4)}, {"default": Scalar(2)}], "stage 1: expected weights that no stage before has taken"),
        ([{"conv": 8}], "stage 0: weight 'conv': expected a codec, a packed weight or None, got int"),
        ([], r"stages: expected a list of dicts, got \[\]"),
        ({"conv": PQ(5, 6)}, "stages: expected a list of dicts"),
    ],
)
def test_stages_are_checked_before_the_first(stages, text):
    net = Net()
    with pytest.raises(ConfigError, match=text):
        IterativePQ(net, stages)
    assert list(net.state_dict()) == list(Net().state_dict())


def test_noise_comes_off_before_its_weights_are_packed():
    net = Net()
    noise = QuantNoise(net, {"default": PQ(8, 4, clamp="floor")})
    ipq = IterativePQ(net, [{"layer.linear1": PQ(8, 4)}])
    net(ids(0))
    with pytest.raises(ConfigError, match="weight 'layer.linear1': .* already parametrized"):
        ipq.advance()
    assert ipq.stage == 0
    noise.remove()
    assert ipq.advance()
    with pytest.raises(ConfigError, match="gradient: expected 'mean' or 'sum', got 'max'"):
        IterativePQ(net, [{"conv": PQ(5, 6)}], gradient="max")
