"""Learning-compression: what its two steps compute, where it converges to, and that it can stop and go on."""

import copy
import itertools
from contextlib import nullcontext

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from processes import check_two_train_as_one, joined  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from pqnet import PQ, Additive, ConfigError, Fixed, IntN, PQNetError, Scalar, Sparse  # noqa: E402
from pqnet.train import LC, attach, packed_weights  # noqa: E402

EXACT = Scalar(2, codebook_dtype="float32")


def linear(inputs=6, outputs=1, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs)


def nudge(module, seed):
    """What an L step does: move the weights somewhere else."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def dense(lc):
    return {name: torch.from_numpy(packed.decode()) for name, packed in lc.packed().items()}


def best_of_all(target, levels, scaled):
    """The least squared error over all ways to give each number one of the levels; None are levels to be learned."""
    t, errors = target.astype(np.float64).reshape(-1), []
    for codes in itertools.product(range(2 if levels is None else len(levels)), repeat=t.size):
        chosen = np.array(codes)
        if levels is None:
            value = np.array([t[chosen == k].mean() if (chosen == k).any() else 0 for k in range(2)])[chosen]
        else:
            value = np.array(levels, np.float64)[chosen]
            if scaled and value.any():
                value = value * (value @ t) / (value @ value)
        errors.append(np.square(t - value).sum())
    return min(errors)


@pytest.mark.parametrize(
    ("codec", "levels", "scaled"),
    [
        (EXACT, None, False),
        (Fixed("binary", "none"), [-1, 1], False),
        (Fixed("binary", "closed", scale_dtype="float32"), [-1, 1], True),
        (Fixed("ternary", "none"), [-1, 0, 1], False),
        (Fixed("ternary", "closed", scale_dtype="float32"), [-1, 0, 1], True),
        (Fixed("pow2", "none", exponent=1), [-1, -0.5, 0, 0.5, 1], False),
        (Fixed("pow2", "learned", exponent=1, scale_dtype="float32"), [-1, -0.5, 0, 0.5, 1], True),
        (IntN(2, "tensor", scale_dtype="float32"), [-2, -1, 0, 1], True),
    ],
    ids=str,
)
def test_the_c_step_is_the_best_of_all_projections(codec, levels, scaled):
    net = linear()
    lc = LC(net, {"weight": codec}, mu=0.5)
    for step in range(3):
        target = (net.weight.detach() - lc.multipliers["weight"] / lc.mu).numpy()
        if step:
            lc.compress()
        error = np.square(target.astype(np.float64) - lc.packed()["weight"].decode()).sum()
        assert error == pytest.approx(best_of_all(target, levels, scaled), rel=1e-5)
        assert bool(lc.multipliers["weight"].any()) == (step > 0)
        nudge(net, step)


def test_the_c_step_of_pq_goes_on_from_the_last_codebook():
    net = linear(16, 12)
    codec = PQ(4, 2, codebook_dtype="float32")
    lc = LC(net, {"weight": codec}, augmented=False)
    anew = []
    for step in range(4):
        nudge(net, step)
        weight, before = net.weight.detach().numpy(), lc.packed()["weight"]
        lc.compress()
        assert lc.packed()["weight"] == codec.fit(weight, warm=before)
        anew.append(lc.packed()["weight"] == codec.fit(weight))
        reached = np.square(weight.reshape(-1, 1, 2) - before.codebook).sum(2).min(1).sum()
        assert np.square(weight - lc.packed()["weight"].decode()).sum() < reached
    assert not all(anew)


def test_multipliers_and_mu_over_three_steps():
    net = linear(3, 2)
    lc = LC(net, {"weight": EXACT}, mu=0.1, growth=3)
    plain = LC(net, {"weight": EXACT}, mu=0.1, growth=3, augmented=False)
    multiplier, mu = torch.zeros(2, 3), 0.1
    for step in range(3):
        nudge(net, step)
        lc.compress()
        plain.compress()
        multiplier = multiplier - mu * (net.weight.detach() - dense(lc)["weight"])
        mu *= 3
        torch.testing.assert_close(lc.multipliers["weight"], multiplier)
        assert (lc.mu, lc.step) == (pytest.approx(mu), step + 1)
        assert not plain.multipliers["weight"].any()
    assert multiplier.abs().max() > 0.01


@pytest.mark.parametrize("augmented", [True, False])
def test_the_penalty_and_its_gradient(augmented):
    net = nn.Sequential(nn.Conv1d(4, 6, 3), nn.ConvTranspose2d(4, 6, (2, 3), groups=2))
    lc = LC(net, {"*": EXACT}, mu=0.3, augmented=augmented)
    nudge(net, 0)
    lc.compress()
    nudge(net, 1)
    penalty = lc.penalty()
    penalty.backward()
    expected = 0.0
    for name, delta in dense(lc).items():
        layer, multiplier = net.get_submodule(name), lc.multipliers[name]
        if name == "1":  # filter form: outputs first, in every group
            delta = torch.cat([half.transpose(0, 1) for half in delta.split(3)])
        apart = layer.weight.detach() - delta.reshape(layer.weight.shape)
        torch.testing.assert_close(layer.weight.grad, lc.mu * apart - multiplier)
        assert layer.bias.grad is None
        expected += 0.5 * lc.mu * (apart - multiplier / lc.mu).square().sum()
    torch.testing.assert_close(penalty, expected)


def test_without_mu_there_is_no_penalty_and_weights_become_what_is_stored():
    net = linear()
    lc = LC(net, {"weight": EXACT}, mu=0)
    before = net.weight.detach().clone()
    assert lc.gap > 0.1
    penalty = lc.penalty()
    penalty.backward()
    assert penalty == 0
    assert not net.weight.grad.any()
    lc.compress()
    torch.testing.assert_close(net.weight.detach(), dense(lc)["weight"], rtol=0, atol=0)
    assert not torch.equal(net.weight, before)
    assert (lc.mu, lc.gap, bool(lc.multipliers["weight"].any())) == (0, 0, False)


def test_direct_compression_is_the_codec_alone():
    net = nn.Sequential(linear(8, 4), nn.ReLU(), linear(4, 3))
    alone = copy.deepcopy(net)
    codecs = {"0": PQ(4, 2), "2": [EXACT, Sparse(count=2)]}
    LC(net, codecs, seed=3).finish()
    attach(alone, {"0": PQ(4, 2), "2": Additive([EXACT, Sparse(count=2)])}, seed=3)
    assert {n: w.packed() for n, w in packed_weights(net).items()} == {
        n: w.packed() for n, w in packed_weights(alone).items()
    }


def test_learning_rates_are_limited_to_one_over_mu():
    net = nn.Sequential(linear(), linear())
    lc = LC(net, {"0": EXACT}, mu=20.0)
    optimizer = torch.optim.SGD(
        [{"params": net[0].parameters()}, {"params": [net[1].weight], "lr": 0.2}, {"params": [net[1].bias]}], lr=0.1
    )
    lc.clip_lr(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.2, 0.1]
    optimizer.param_groups[0]["lr"] = 0.01
    lc.clip_lr(optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.01
    LC(net, {"0": EXACT}, mu=0).clip_lr(optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.01


def data(n=300, inputs=12, outputs=5):
    """A regression whose inputs are correlated, so that rounding to the nearest is not the best."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    x = torch.randn(n, inputs, generator=generator) @ mix
    return x, x @ torch.randn(inputs, outputs, generator=generator)


def train(net, lc, x, y, *, steps=20, lr=0.1):
    """An L step by gradient descent."""
    optimizer = torch.optim.SGD(net.parameters(), lr, momentum=0.9, nesterov=True)
    lc.clip_lr(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        (F.mse_loss(net(x), y) + lc.penalty()).backward()
        optimizer.step()


def solve(codec, *, mu=1e-2, growth=1.5, lsteps=25, **options):
    """Train until the weights are what is stored; returns module and LC, not yet finished."""
    x, y = data()
    net = linear(12, 5)
    with torch.no_grad():
        net.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
        net.bias.zero_()
    lc = LC(net, {"weight": codec}, mu=mu, growth=growth, **options)
    for _ in range(lsteps):
        train(net, lc, x, y)
        lc.compress()
    return net, lc


def loss_of(net):
    x, y = data()
    with torch.no_grad():
        return float(F.mse_loss(net(x), y))


def test_lc_ends_below_iterated_direct_compression_and_that_below_direct():
    losses = {}
    options = {
        "penalty": {"augmented": False, "lsteps": 30},
        "dc": {"lsteps": 0},
        "idc": {"mu": 0},
        "lc": {},
        "sum": {},
    }
    for name, chosen in options.items():
        net, lc = solve([EXACT, Sparse(count=4)] if name == "sum" else EXACT, **chosen)
        if name in ("lc", "penalty", "sum"):
            assert lc.feasible(1e-3), (name, lc.gap)
        lc.finish()
        losses[name] = loss_of(net.eval())
    assert losses["lc"] < 0.7 * losses["idc"], losses
    assert losses["idc"] < 1.01 * losses["dc"], losses
    assert losses["penalty"] < 0.95 * losses["dc"], losses
    assert losses["sum"] < 0.8 * losses["lc"], losses  # four weights more, which are free


def test_lc_ends_where_codewords_have_no_gradient():
    """The conditions of the constrained problem: the members' gradients add up to 0, and lambda is the gradient."""
    net, lc = solve(EXACT, growth=1.2, lsteps=60)
    assert lc.gap < 1e-5
    net.zero_grad()
    x, y = data()
    F.mse_loss(net(x), y).backward()
    slope, codes = net.weight.grad, torch.from_numpy(lc.packed()["weight"].codes.astype(np.int64))
    assert slope.abs().max() > 0.1  # of single weights: the constraint holds them
    for k in range(2):
        members = slope[codes == k]
        assert abs(float(members.sum())) < 2e-3 * float(members.abs().sum())
    torch.testing.assert_close(lc.multipliers["weight"], slope, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "codec",
    [
        Fixed("ternary", "closed"),
        Fixed("pow2"),
        IntN(2, "tensor"),
        PQ(8, 2),
        PQ(8, 3, codebook_dtype="int8"),
    ],
    ids=str,
)
def test_every_codec_ends_feasible_and_better_than_direct(codec):
    net, lc = solve(codec, lsteps=0)
    lc.finish()
    direct = loss_of(net.eval())
    net, lc = solve(codec)
    assert lc.feasible(2e-3)
    free = loss_of(net)
    lc.finish()
    net.eval()
    assert loss_of(net) == pytest.approx(free, rel=0.05)
    assert loss_of(net) < 0.9 * direct


@pytest.mark.parametrize(
    "codec",
    [
        EXACT,
        Fixed("ternary", "closed"),
        Fixed("pow2"),
        IntN(3, "tensor", "minmax", False),
        PQ(3, 4),
        PQ(40, 4, clamp="floor"),
    ],
)
def test_weights_share_one_codebook(codec):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Linear(4, 4), nn.Linear(4, 44))
    lc = LC(net, {"*": codec}, joint=[["1", "0"]])
    one = torch.cat([net[0].weight.flatten(), net[1].weight.flatten()]).detach().numpy()
    for _ in range(2):
        packed = lc.packed()
        whole = codec.fit(one[None])
        both = np.concatenate([packed["0"].decode().reshape(-1), packed["1"].decode().reshape(-1)])
        np.testing.assert_array_equal(both, whole.decode()[0])
        assert packed["2"] == codec.fit(net[2].weight.detach().numpy())
        before = lc.state_dict()
        lc.compress()  # of the same weights
        lc.load_state_dict({**lc.state_dict(), "multipliers": before["multipliers"]})
    lc.finish()
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(net.eval()[0](x), F.conv2d(x, torch.from_numpy(packed["0"].decode()), net[0].bias))


def test_finish_measures_norms_again():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    x = torch.randn(3, 50, 6)
    lc = LC(net, {"0": Fixed("binary", "closed")})
    lc.finish(batches=[(batch, "a label") for batch in x])
    with torch.no_grad():
        means = torch.stack([net[0](batch).mean(0) for batch in x]).mean(0)
    torch.testing.assert_close(net[1].running_mean, means)


def test_finish_leaves_what_evaluation_computes():
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).requires_grad_()
    lc = LC(net, {"0": Scalar(4), "2": Fixed("binary", "closed", per="channel")}, mu=1)
    nudge(net, 0)
    lc.compress()
    x, packed = torch.randn(5, 6), lc.packed()
    hidden = torch.tanh(F.linear(x, torch.from_numpy(packed["0"].decode()), net[0].bias))
    expected = F.linear(hidden, torch.from_numpy(packed["2"].decode()), net[2].bias)
    left = lc.finish()
    torch.testing.assert_close(net.eval()(x), expected)
    assert {name: weight.packed() for name, weight in left.items()} == packed
    for call in (lc.penalty, lc.compress, lc.finish):
        with pytest.raises(PQNetError, match="weight '0': expected a plain parameter"):
            call()


def test_tied_weights_are_pulled_once():
    net = nn.Module()
    net.tokens, net.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    net.head.weight = net.tokens.weight
    lc = LC(net, {"tokens": EXACT}, mu=2.0)
    lc.penalty().backward()
    torch.testing.assert_close(net.head.weight.grad, 2 * (net.head.weight - dense(lc)["tokens"]))
    lc.finish()
    assert torch.equal(net.head.weight, net.tokens.weight)


MIXED = {"0": PQ(4, 2), "1": [EXACT, Sparse(count=3)], "2": EXACT, "3": EXACT, "4": IntN(3, symmetric=False)}


def run(net, lc, optimizer, steps, batches):
    for _ in range(steps):
        lc.clip_lr(optimizer)
        for x, y in batches:
            optimizer.zero_grad()
            (F.mse_loss(net(x), y) + lc.penalty()).backward()
            optimizer.step()
        lc.compress()


@pytest.mark.parametrize("mu", [0.01, 0])
def test_resumed_training_is_the_same_bit_for_bit(mu, tmp_path):
    def make():
        torch.manual_seed(0)
        net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
        lc = LC(net, MIXED, joint=[["2", "3"]], mu=mu)
        return net, lc, torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)

    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(2, 4, 8, generator=generator).unbind() for _ in range(3)]
    whole = make()
    whole[1].growth = 2
    run(*whole, 6, batches)
    first = make()
    first[1].growth = 2
    run(*first, 3, batches)
    torch.save([part.state_dict() for part in first], tmp_path / "state.pt")
    second = make()
    nudge(second[0], 1)  # other weights before loading
    second[1].compress()
    for part, state in zip(second, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    run(*second, 3, batches)
    assert second[1].growth == 2
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(second[0].state_dict()[name], tensor), name
    assert second[1].packed() == whole[1].packed()
    assert (second[1].mu, second[1].step, second[1].gap) == (whole[1].mu, 6, whole[1].gap)


def worker(rank, world, folder):
    """Train on this process's part of every batch, and save what came out."""
    torch.set_num_threads(1)
    net = nn.Sequential(linear(12, 8), nn.Tanh(), linear(8, 5))
    x, y = data(64)
    lc = LC(net, {"0": PQ(8, 2), "2": Scalar(2)}, mu=0.05, growth=2)
    with joined(rank, world, folder / "store") if world > 1 else nullcontext():
        wrapped = DistributedDataParallel(net) if world > 1 else net
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        batches = [(x[i + rank : i + 16 : world], y[i + rank : i + 16 : world]) for i in (0, 16, 32)]
        run(wrapped, lc, optimizer, 3, batches)
        lc.finish()
        torch.save([net.state_dict(), lc.multipliers], folder / f"{rank}-of-{world}.pt")


def test_two_processes_are_one_on_the_same_batches(tmp_path):
    check_two_train_as_one(worker, tmp_path)


@pytest.mark.parametrize(
    ("patterns", "options", "message"),
    [
        ({"9": EXACT}, {}, "'9' matches no weight of the module; they are: 0, 1"),
        ({"0": 4}, {}, "weight '0': expected codecs or None, got int"),
        ({"0": [EXACT]}, {}, "expected 2 to 16 codecs"),
        ({"0": PQ(4, 5)}, {}, "weight '0': d"),
        ({"0": EXACT}, {"mu": -1}, "mu: expected a number of at least 0, got -1"),
        ({"0": EXACT}, {"mu": float("nan")}, "mu: expected a number"),
        ({"0": EXACT}, {"growth": 0.9}, "growth: expected a number of at least 1, got 0.9"),
        ({"*": EXACT}, {"joint": ["01"]}, "joint: expected sequences of name patterns, got '01'"),
        ({"*": EXACT}, {"joint": [["5"]]}, "'5' matches no weight"),
        ({"0": EXACT}, {"joint": [["*"]]}, "joint: expected two weights or more with one codec, got {'0'"),
        ({"0": EXACT, "1": Scalar(3)}, {"joint": [["*"]]}, "with one codec"),
        ({"*": EXACT}, {"joint": [["*"], ["*"]]}, "joint: expected every weight in one group at most, got '0'"),
        (
            {"*": PQ(2, 2, "channel")},
            {"joint": [["*"]]},
            "joint: expected a spatial PQ, or a Scalar, Fixed or IntN with per='tensor', got PQ",
        ),
        ({"*": Fixed(per="channel")}, {"joint": [["*"]]}, "with per='tensor', got Fixed"),
    ],
)
def test_errors_of_arguments(patterns, options, message):
    net = nn.Sequential(linear(6, 4), linear(4, 4))
    with pytest.raises(ConfigError) as raised:
        LC(net, patterns, **options)
    assert message in str(raised.value)


def test_errors_of_weights_and_states():
    net = nn.Sequential(linear(6, 4), linear(4, 4))
    lc = LC(net, {"0": EXACT, "1": Scalar(3)})
    state = lc.state_dict()
    with pytest.raises(PQNetError, match="state: expected keys"):
        lc.load_state_dict({"mu": 1})
    for wrong in ({"mu": float("nan")}, {"growth": None}, {"step": -1}):
        with pytest.raises(PQNetError, match=f"as {next(iter(wrong))}, got"):
            lc.load_state_dict(state | wrong)
    with pytest.raises(PQNetError, match="state: expected that of weights"):
        LC(net, {"0": EXACT}).load_state_dict(state)
    with pytest.raises(PQNetError, match="expected"):
        LC(net, {"0": EXACT, "1": Scalar(7)}).load_state_dict(state)
    nudge(net, 0)
    with torch.no_grad():
        net[0].weight.neg_()
        net[1].weight[0, 0] = torch.nan
    with pytest.raises(PQNetError, match="weight '1': weight: expected finite"):
        lc.compress()
    assert torch.equal(lc.state_dict()["theta"][0]["codes"], state["theta"][0]["codes"])
    with pytest.raises(ConfigError, match="weight '0': expected float32, got torch.float64"):
        LC(net.double(), {"0": EXACT})


def test_one_layer_far_from_its_codes_is_not_feasible():
    """Large weights that fit their codes once hid small ones that did not."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        net[0].weight.copy_(1000 * torch.eye(4))
    lc = LC(net, {"0": Scalar(2), "1": Scalar(2)})
    assert list(lc.gaps) == ["0", "1"]
    assert lc.gaps["0"] < 1e-6 and lc.gap == lc.gaps["1"] > 0.1 and not lc.feasible(0.05)


@pytest.mark.parametrize("codec", [PQ(8, 4), PQ(6, 2, codebook_dtype="int8")])
def test_the_padding_row_of_an_embedding_stays_zero(codec):
    """Through steps that start from codewords of the step before, and in what is packed in the end."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(40, 8, padding_idx=3), nn.Flatten(), nn.Linear(16, 2))
    lc = LC(net, {"0": codec}, mu=0.01)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        for _ in range(2):
            optimizer.zero_grad()
            (net(torch.tensor([[3, 1], [2, 3]])).square().sum() + lc.penalty()).backward()
            optimizer.step()
        lc.compress()
        packed = lc.packed()["0"]
        assert not packed.decode()[3].any() and packed.codec.k == codec.k
        assert not net[0].weight[3].any()
    lc.finish()
    assert not net[0](torch.tensor([3])).any()


def test_training_that_does_not_converge_says_so():
    net = linear(32, 16)
    lc = LC(net, {"weight": Scalar(2)}, mu=0.01, growth=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)  # whose steps do not shrink as mu grows
    x = torch.randn(40, 32)
    with pytest.raises(PQNetError, match="^weight 'weight': .*training does not converge.* C steps .*growth than 2$"):
        while lc.step < 1000:
            for _ in range(3):
                optimizer.zero_grad()
                (net(x).square().mean() + lc.penalty()).backward()
                optimizer.step()
            lc.compress()
            assert not lc.feasible()
