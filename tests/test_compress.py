"""The smallest file that keeps enough: agreement against brute force, the search over sizes, the command."""

import csv
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import pqnet
from pqnet import ConfigError, Model, PQNetError
from pqnet.cli.compress import share
from pqnet.cli.main import main
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.io import graph_nbytes
from pqnet.pipeline.agreement import Agreement, lower_bound, samples_needed
from pqnet.pipeline.compress import CLOSE, Try, _search


def rand(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def net(outputs=6, batch="n"):
    b = GraphBuilder({"x": ValueInfo((batch, 24))}, {"n": 2} if batch == "n" else {})
    x = b.add("linear", "x", name="first", params={"weight": rand(96, 24), "bias": rand(96)})
    x = b.add("linear", b.add("relu", x), name="last", params={"weight": rand(outputs, 96, seed=1)})
    return Model(b.build({"y": x}))


X = rand(400, 24, seed=2)


def outputs_of(arrays):
    """A model's stand-in: inputs are numbers of samples."""
    return SimpleNamespace(run=lambda batch, threads=None: {k: a[batch["i"]] for k, a in arrays.items()})


BATCHES = [{"i": np.arange(5)}, {"i": np.arange(5, 8)}]


# -- agreement -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "wanted"),
    [
        (rand(8, 5), "top1"),
        (rand(8, 1), "error"),
        (rand(8), "error"),
        (rand(8, 3, 4), "cosine"),
        (rand(8, 5) / np.linalg.norm(rand(8, 5), axis=1, keepdims=True), "cosine"),
        (np.arange(8), "same"),
    ],
)
def test_how_outputs_are_compared(outputs, wanted):
    assert Agreement.of(outputs_of({"y": outputs}), BATCHES, None, 1).parts == wanted


def test_scores_are_those_of_their_definitions():
    theirs = {"a": rand(8, 5), "b": rand(8, 3, 4) + 100, "c": np.arange(8)}
    ours = {
        name: y + (0.5 * rand(*y.shape, seed=3) if y.dtype.kind == "f" else y % 3 == 0) for name, y in theirs.items()
    }
    found = {}
    for metric in ("top1", "cosine", "error"):
        for name in theirs:
            judge = Agreement.of(outputs_of({name: theirs[name]}), BATCHES, None if name == "c" else metric, 1)
            models = (outputs_of({name: side[name]}) for side in (ours, theirs))
            found[metric, name] = judge.scores(*models, BATCHES, 1)
    for i in range(8):
        a, b = (side["a"][i].astype(float) for side in (ours, theirs))
        assert found["top1", "a"][i] == (a.argmax() == b.argmax())
        assert found["cosine", "a"][i] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        spread = np.square(theirs["a"] - theirs["a"].mean(0)).sum() / 8
        assert found["error", "a"][i] == pytest.approx(1 - np.square(a - b).sum() / spread, rel=1e-4)
        same = ours["b"][i].argmax(-1) == theirs["b"][i].argmax(-1)
        assert found["top1", "b"][i] == pytest.approx(same.mean())
        assert found["top1", "c"][i] == (i % 3 != 0)
    both = Agreement.of(outputs_of(theirs), BATCHES, "error", 1)
    assert both.parts == "a: error, b: error, c: same"
    worst = np.min([found["error", name] for name in "abc"], axis=0)
    np.testing.assert_allclose(both.scores(outputs_of(ours), outputs_of(theirs), BATCHES, 1), worst)


def test_padding_of_texts_does_not_count():
    mask = np.arange(4) < np.arange(1, 9)[:, None] % 4 + 1
    theirs = rand(8, 4, 3)
    ours = np.where(mask[:, :, None], theirs, -theirs)
    batches = [{"i": np.arange(8), "attention_mask": mask.astype(np.int64)}]
    for metric in ("top1", "cosine", "error"):
        judge = Agreement.of(outputs_of({"y": theirs}), batches, metric, 1)
        scores = judge.scores(outputs_of({"y": ours}), outputs_of({"y": theirs}), batches, 1)
        np.testing.assert_allclose(scores, 1)


def test_the_bound_holds_in_nine_cases_of_ten():
    rng = np.random.default_rng(0)
    for draw, mean in ((lambda: rng.random(120) < 0.97, 0.97), (lambda: rng.normal(0.9, 0.1, 120), 0.9)):
        held = [lower_bound(draw().astype(float)) <= mean for _ in range(2000)]
        assert 0.87 < np.mean(held) < 0.95
    assert lower_bound(np.ones(81)) >= 0.98 > lower_bound(np.ones(80)) and samples_needed(0.98) == 81


# -- the search over sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [3_500, 20_000, 110_000, 700_000])
@pytest.mark.parametrize("power", [0.7, 3.0])
def test_the_search_ends_near_the_smallest_that_keeps_enough(threshold, power):
    files = SimpleNamespace(most=1_000_000, smallest=lambda fast: {}, nbytes=lambda codecs: 3_000)
    measured = SimpleNamespace(
        files=lambda golden: files, fast=False, plan=lambda size, **_: SimpleNamespace(nbytes=size)
    )

    def attempt(plan):
        size = plan.nbytes
        kept = 1 - 0.01 * (threshold / size) ** power
        return size, Try(size, 0.0, kept, kept, size >= threshold)

    best, tries = _search(measured, attempt, 0.99, 1.0, False)
    assert threshold <= best <= threshold * CLOSE * 1.01
    assert len(tries) <= 9 and best == min(t.nbytes for t in tries if t.enough)


def test_the_search_gives_up_at_the_float_network():
    files = SimpleNamespace(most=1_000_000, smallest=lambda fast: {}, nbytes=lambda codecs: 3_000)
    measured = SimpleNamespace(
        files=lambda golden: files, fast=False, plan=lambda size, **_: SimpleNamespace(nbytes=size)
    )
    best, tries = _search(measured, lambda plan: (plan, Try(plan.nbytes, 0.0, 0.5, 0.4, False)), 0.99, 1.0, False)
    assert best is None and max(t.nbytes for t in tries) > 900_000


# -- networks --------------------------------------------------------------------------------------------------


def test_compress_keeps_what_is_asked_for(tmp_path):
    seen = []
    found = pqnet.compress(net(), X, 0.95, on_try=seen.append, checkpoint="layers", progress=False)
    assert tuple(seen) == found.tries and found.metric == "top1"
    best = min((t for t in found.tries if t.enough), key=lambda t: t.nbytes)
    assert best.kept >= 0.95 and best.bound >= 0.9
    assert graph_nbytes(found.model.graph) == pytest.approx(best.nbytes, abs=32)  # digits of errors on other samples
    more = max((t.nbytes for t in found.tries if not t.enough), default=0)
    assert more < best.nbytes
    others = rand(2000, 24, seed=9)
    assert np.mean(found.model(others).argmax(1) == net()(others).argmax(1)) > 0.9
    before = {path.name for path in Path("layers").iterdir()}
    again = pqnet.compress(net(), X, 0.95, checkpoint="layers", progress=False)
    assert again.tries == found.tries and before == {path.name for path in Path("layers").iterdir()}


@pytest.fixture
def calls(monkeypatch):
    """What `quantize` was given, and what judged it, in the order of calls; it gives the float network."""
    found = []
    module = __import__("sys").modules["pqnet.pipeline.compress"]
    monkeypatch.setattr(module, "quantize", lambda model, recipe, data, **_: found.append((data["x"], [])) or model)
    original = Agreement.scores

    def scores(*args):
        found[-1][1].extend(b["x"] for b in args[3])
        return original(*args)

    monkeypatch.setattr(Agreement, "scores", scores)
    return found


def rows_of(arrays):
    return [row.tobytes() for a in arrays for row in a]


@pytest.mark.parametrize(("samples", "batch"), [(400, "n"), (400, 4), (1800, "n"), (4000, "n")])
def test_samples_to_judge_by_are_not_those_to_quantize_by(samples, batch, calls):
    x = rand(samples, 24, seed=4)
    pqnet.compress(net(batch=batch), x, 0.9, seed=3, progress=False)
    assert rows_of([calls[-1][0]]) == rows_of([x]) and not calls[-1][1]  # at last from all
    everything, folds = set(rows_of([x])), min(3, math.ceil(1000 / (samples // 3)))
    tries = calls[:-1]
    assert len(tries) % folds == 0
    for i in range(0, len(tries), folds):
        judged = []
        for used, held in tries[i : i + folds]:
            held, used = rows_of(held), set(rows_of([used]))
            assert not set(held) & used and set(held) | used == everything and samples / 5 < len(held) <= 1000
            judged += held
        assert len(set(judged)) == len(judged) == (samples if samples < 1000 else min(samples // 3, 1000) * folds)


def test_a_part_of_the_samples_that_keeps_too_little_is_enough_to_know(calls, monkeypatch):
    monkeypatch.setattr(Agreement, "scores", lambda *a: np.zeros(sum(len(b["x"]) for b in a[3])))
    with pytest.raises(ConfigError, match="keep: expected a share that a quantized network keeps"):
        pqnet.compress(net(), X, 0.9, progress=False)
    assert len({rows_of([used])[0] for used, _ in calls}) == 1 and all(len(used) == 266 for used, _ in calls)


def test_samples_to_judge_by_of_ones_own(calls):
    pqnet.compress(net(), X, 0.9, held_out=X[:50] + 1, progress=False)
    assert all(rows_of([used]) == rows_of([X]) and rows_of(held) == rows_of([X[:50] + 1]) for used, held in calls)


def test_a_score_of_ones_own():
    labels = net()(X).argmax(1)

    def right(model):
        return (model(X).argmax(1) == labels).astype(np.float64)

    found = pqnet.compress(net(), X, 0.9, score=right, progress=False)
    best = min((t for t in found.tries if t.enough), key=lambda t: t.nbytes)
    assert found.metric == "score" and best.kept == pytest.approx(right(found.model).mean()) and best.kept >= 0.9
    wanted = net(1)(X)
    found = pqnet.compress(net(1), X, 0.9, score=lambda model: np.corrcoef(model(X)[:, 0], wanted[:, 0])[0, 1])
    assert all(t.bound == t.kept for t in found.tries)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (X, {"keep": 1}, "keep: expected a share above 0 and below 1, such as 0.99, got int 1"),
        (X, {"keep": 1.5}, "keep: expected a share"),
        (X[:60], {}, r"data: expected 81 samples at least to tell keep=0.99, got 60; .* 0.98"),
        (X, {"held_out": X[:20]}, "held_out: expected 81 samples at least to tell keep=0.99, got 20"),
        (X, {"metric": "psnr"}, "metric: expected one of None, 'top1', 'cosine', 'error', got"),
        (X, {"score": len, "metric": "top1"}, "score: expected a function, and neither metric nor held_out with it"),
        (X, {"score": lambda model: -1.0}, "score: expected a positive number for the float network, got -1"),
        (
            X,
            {"keep": 0.99999, "score": lambda m: 1.0 + (m.size().ratio == 1)},
            "keep: expected a share that a quantized",
        ),
        (X[:, :5], {}, "input 'x': expected shape"),
        ([X], {}, "data: expected"),
        (X * np.float32(np.nan), {}, "input 'x': expected finite float32 numbers"),
    ],
)
def test_bad_arguments(data, options, message):
    with pytest.raises(PQNetError, match=message):
        pqnet.compress(net(), data, progress=False, **options)


# -- the command -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "value"), [("99%", 0.99), ("99.5 %", 0.995), ("0.9", 0.9), (".95", 0.95)])
def test_shares(text, value):
    assert share(text) == pytest.approx(value)


def test_the_command(capsys):
    model = net()
    model.save("model.h5")
    np.save("x.npy", X)
    assert (
        main(
            [
                "compress",
                "model.h5",
                "--calibration",
                "x.npy",
                "--keep",
                "95%",
                "-o",
                "small.h5",
                "--curve",
                "sizes.csv",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out.splitlines()
    with open("sizes.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    enough = [int(row["nbytes"]) for row in rows if row["enough"] == "1"]
    size = Path("small.h5").stat().st_size
    assert min(enough) == pytest.approx(size, abs=32) and len(rows) == len(out) - 3
    assert out[-1].startswith(f"small.h5: {size} bytes, ") and "(top1) of held-out samples" in out[-1]
    assert main(["verify", "small.h5"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--calibration x.npy --keep 0% -o s.h5", "argument --keep: expected a share such as 99% or 0.99, got '0%'"),
        ("--calibration x.npy --keep all -o s.h5", "argument --keep: expected a share"),
        ("--calibration x.npy -o s.npy", "--output: expected a file name ending in .h5"),
        ("--calibration x.npy --curve s.txt -o s.h5", "--curve: expected a file name ending in .csv"),
        ("-o s.h5", "the following arguments are required: --calibration"),
        ("--calibration x.npy --metric loss -o s.h5", "metric: expected one of None, 'top1'"),
    ],
)
def test_bad_command_lines(options, message, capsys):
    net().save("model.h5")
    np.save("x.npy", X)
    assert main(["compress", "model.h5", *options.split()]) == 2
    assert message in capsys.readouterr().err and not Path("s.h5").exists()


def test_a_network_that_cannot_be_told_apart_is_refused():
    assert math.isinf(lower_bound(np.array([0.5])))
    with pytest.raises(ConfigError, match="a packed one"):
        pqnet.compress(pqnet.quantize(net(), {"first": pqnet.IntN(8)}, metric="none"), X)
