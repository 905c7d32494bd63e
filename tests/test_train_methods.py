"""Training towards a recipe from model files: each method, what it needs, and that runs resume."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import pqnet  # noqa: E402
from pqnet import PQ, ConfigError, Model, PQNetError, Scalar  # noqa: E402
from pqnet.cli.main import main  # noqa: E402
from pqnet.graph import GraphBuilder, ValueInfo  # noqa: E402
from pqnet.train import QuantNoise, methods, to_model  # noqa: E402
from pqnet.train.methods import train  # noqa: E402


def rand(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def net():
    b = GraphBuilder({"x": ValueInfo(("n", 3, 4, 4))}, {"n": 2})
    x = b.add("conv2d", "x", name="stem", params={"weight": rand(8, 3, 3, 3)}, padding=(1, 1, 1, 1))
    norm = {"weight": np.ones(8), "bias": np.zeros(8), "mean": np.zeros(8), "var": np.ones(8)}
    x = b.add("batch_norm", x, name="norm", params={k: v.astype(np.float32) for k, v in norm.items()}, eps=1e-5)
    x = b.add("mean", b.add("relu", x), axes=(2, 3))
    x = b.add("relu", b.add("linear", x, name="mid", params={"weight": rand(16, 8), "bias": rand(16)}))
    return Model(b.build({"y": b.add("linear", x, name="head", params={"weight": rand(4, 16)})}))


MODEL, X = net(), rand(120, 3, 4, 4, seed=1)
LABELS = MODEL(X).argmax(1)
RECIPE = {"mid": PQ(8, 4), "head": Scalar(4)}
OPTIONS = {
    "lc": {"rounds": 3, "mu": 0.1, "growth": 30.0},
    "noise": {"p": 0.5, "phi": "exact"},
    "ipq": {"stages": 2, "gradient": "sum"},
}


def run(method, steps=6, **options):
    options = {"batch_size": 16, "every": 2, "threads": 1, "progress": False, **OPTIONS[method], **options}
    return train(MODEL, RECIPE, options.pop("batches", X), method=method, steps=steps, **options)


def weights(model):
    return {name: model.graph.params[node.params["weight"]] for name, node in model.graph.layers().items()}


@pytest.mark.parametrize("method", methods.METHODS)
def test_methods_pack_what_the_recipe_says_and_resume_to_the_same_network(method, monkeypatch):
    whole = run(method)
    packed = weights(whole)
    assert isinstance(packed["stem"], np.ndarray) and not np.array_equal(packed["stem"], weights(MODEL)["stem"])
    assert packed["mid"].codec == PQ(8, 4) and packed["head"].codec == Scalar(4)
    assert np.isfinite(whole(X)).all()
    original, calls = methods._Loop._save, []

    def save_and_stop(self, optimizer):
        original(self, optimizer)
        calls.append(self.step)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(methods._Loop, "_save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run(method, checkpoint="state.pt")
    again = run(method, checkpoint="state.pt")
    assert calls == [2, 4, 6]
    for name, param in whole.graph.params.items():
        other = again.graph.params[name]
        assert np.array_equal(param, other) if isinstance(param, np.ndarray) else param == other, name
    with pytest.raises(PQNetError, match="checkpoint: expected one of this call, got state.pt of other networks"):
        run(method, checkpoint="state.pt", lr=0.02)
    Path("state.pt").write_bytes(b"damaged")
    with pytest.raises(PQNetError, match="checkpoint: expected what training wrote, got state.pt"):
        run(method, checkpoint="state.pt")


def test_learning_compression_ends_where_codes_are(monkeypatch):
    """With a strong penalty the trained weights are what is stored: packing them moves nothing."""
    gaps, original = [], methods._Learning.finish
    monkeypatch.setattr(methods._Learning, "finish", lambda self: gaps.append(self.lc.gap) or original(self))
    run("lc", steps=100, rounds=20, mu=1.0, growth=1.6, lr=0.05, optimizer="sgd", every=1000)
    run("lc", steps=6, rounds=1, mu=1e-6, growth=1.0)
    assert gaps[0] < 1e-3 and gaps[1] > 0.1


def test_noise_is_there_in_every_step_and_gone_in_the_end(monkeypatch):
    drawn = []
    original = QuantNoise.draw
    monkeypatch.setattr(QuantNoise, "draw", lambda self: drawn.append(1) or original(self))
    small = run("noise", train=("norms",), p=1.0, phi="proxy")  # all weights are zeros: nothing reaches the outputs
    assert len(drawn) == 6
    assert np.array_equal(weights(small)["stem"], weights(MODEL)["stem"])
    plain = pqnet.quantize(MODEL, RECIPE, X[:108], metric="none")
    assert small.size() == plain.size() and np.abs(small(X)).max() > 0


def test_labels_alone_teach(monkeypatch):
    wrong = (LABELS + 1) % 4
    small = run("ipq", steps=100, batches=(X, wrong), labels=1.0, lr=0.05, every=1000)
    assert (small(X).argmax(1) == wrong).mean() > 0.5 > (MODEL(X).argmax(1) == wrong).mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sgd"}, "method: expected 'lc', 'noise' or 'ipq', got 'sgd'"),
        ({"method": "lc", "labels": 1.5}, "labels: expected a weight up to 1, got 1.5"),
        ({"method": "lc", "labels": 0.5}, "labels: expected labels with every batch, got one without"),
        ({"method": "lc", "rounds": 0}, "rounds: expected an integer of at least 1"),
        ({"method": "lc", "mu": -1}, "mu: expected a number of at least 0"),
        ({"method": "noise", "p": 2}, "p: expected a number from 0 to 1"),
        ({"method": "noise", "phi": "zero"}, "phi: expected 'proxy' or 'exact'"),
        ({"method": "noise", "train": ("codebooks",)}, "train: expected some of"),
        ({"method": "ipq", "gradient": "max"}, "gradient: expected 'mean' or 'sum'"),
        ({"method": "ipq", "checkpoint": "none/state.pt"}, "checkpoint: expected a file in an existing folder"),
        ({"method": "lc", "checkpoint": "/proc/state"}, "checkpoint: expected a file in a folder that can be written"),
        ({"method": "ipq", "recipe": {"tail": PQ(4, 4)}}, "pattern 'tail' matches no layer"),
        ({"method": "ipq", "device": "abacus"}, "device: expected one that PyTorch computes on"),
    ],
)
def test_bad_arguments(options, message):
    options = {"recipe": RECIPE, **options}
    with pytest.raises(PQNetError, match=message):
        train(MODEL, options.pop("recipe"), X, steps=2, batch_size=8, progress=False, **options)
    with pytest.raises(ConfigError, match="expected a float weight, got a packed one"):
        train(pqnet.quantize(MODEL, RECIPE, metric="none"), RECIPE, X, steps=2, method="lc")


# -- the command -----------------------------------------------------------------------------------------------


@pytest.fixture
def files():
    MODEL.save("model.h5")
    pqnet.quantize(MODEL, RECIPE, metric="none", progress=False).save("small.h5")
    np.save("x.npy", X)
    np.save("y.npy", LABELS)
    Path("r.yaml").write_text(pqnet.Recipe(RECIPE).to_yaml())


COMMON = "--data x.npy --steps 2 --batch 16 --every 1 --threads 1"


@pytest.mark.parametrize(
    "line",
    [
        "model.h5 --method lc --recipe r.yaml --rounds 2 --mu 0.1 --growth 2 --weight-decay 1e-4",
        "model.h5 --method noise --recipe r.yaml --p 0.2 --phi exact --labels y.npy --label-weight 1",
        "model.h5 --method ipq --recipe r.yaml --stages 1 --gradient sum --train codebooks --train norms",
        "small.h5 --method distill --teacher model.h5 --gradient sum --weight-decay 1e-4 --train codebooks --hints 0.1",
    ],
)
def test_the_command_trains_by_every_method(files, line, capsys):
    assert main(["train", *line.split(), *COMMON.split(), "-o", "t.h5"]) == 0
    made = pqnet.load("t.h5")
    assert made.golden is not None and weights(made)["mid"].codec == PQ(8, 4)
    assert capsys.readouterr().out.startswith("t.h5: ")


def test_finetune_is_distillation(files):
    options = f"--teacher model.h5 {COMMON}".split()
    assert main(["finetune", "small.h5", *options, "-o", "a.h5"]) == 0
    assert main(["train", "small.h5", "--method", "distill", *options, "-o", "b.h5"]) == 0
    assert Path("a.h5").read_bytes() == Path("b.h5").read_bytes()


def test_distillation_of_the_command_chooses_codes_anew(files):
    pqnet.quantize(MODEL, {"mid": PQ(8, 4)}, X, mode="bgd", progress=False).save("bgd.h5")
    assert main(f"finetune bgd.h5 --teacher model.h5 {COMMON} --reassign 1 -o t.h5".split()) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train model.h5 --data x.npy -o t.h5", "the following arguments are required: --method"),
        ("train model.h5 --method sgd --data x.npy -o t.h5", "--method: expected one of distill, lc, noise, ipq"),
        ("train model.h5 --method lc --data x.npy -o t.h5", "expected --recipe or --preset with --method lc"),
        ("train model.h5 --method lc --recipe r.yaml --p 0.1 --data x.npy -o t.h5", "--p: expected --method noise"),
        ("train model.h5 --method lc --recipe r.yaml --teacher model.h5 --data x.npy -o t.h5",
         "--teacher: expected --method distill with it, got --method lc"),
        ("train small.h5 --method distill --data x.npy -o t.h5", "expected --teacher, the float model file, got none"),
        ("train small.h5 --method distill --teacher model.h5 --recipe r.yaml --data x.npy -o t.h5",
         "--recipe: expected --method lc or noise or ipq with it, got --method distill"),
        ("finetune small.h5 --data x.npy -o t.h5", "finetune: expected --teacher"),
        ("finetune small.h5 --teacher model.h5 --data x.npy --labels x.npy -o t.h5", "--labels: expected one integer"),
        ("finetune small.h5 --teacher model.h5 --data x.npy -o t.pt", "--output: expected a file name ending in .h5"),
        ("train small.h5 --method lc --recipe r.yaml --data x.npy -o t.h5", "expected a float weight, got a packed"),
    ],
)  # fmt: skip
def test_bad_command_lines(files, line, message, capsys):
    assert main(line.split()) == 2
    assert message in capsys.readouterr().err and not list(Path().glob("t.*"))


def test_models_of_the_methods_are_plain():
    small = run("lc")
    assert to_model(pqnet.train.to_module(small)).size() == small.size()
