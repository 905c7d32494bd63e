"""Distillation: its loss, what it trains, what it keeps, both stages, resuming and several processes."""

import io
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from test_pipeline import DATA, RECIPE, rand, small_net  # noqa: E402

import pqnet  # noqa: E402
from pqnet import PQ, ConfigError, FormatError, Packed, PQNetError  # noqa: E402
from pqnet.cli.main import main  # noqa: E402
from pqnet.graph import GraphBuilder, ValueInfo  # noqa: E402
from pqnet.io import append_digest, without_digest  # noqa: E402
from pqnet.train import distill, image_batches, packed_weights, to_model, to_module  # noqa: E402
from pqnet.train.data import Batches  # noqa: E402
from pqnet.train.distill import _Reassign, with_norm_statistics  # noqa: E402
from pqnet.train.objective import Objective, kl_divergence, relative_error  # noqa: E402

LABELS = np.arange(150) % 10
OPTIONS = {"batch_size": 16, "every": 10, "threads": 1, "progress": False}


@pytest.fixture(scope="module")
def nets():
    teacher = small_net()
    return pqnet.quantize(teacher, RECIPE, DATA, mode="bgd", progress=False), teacher


def divergence(model, teacher, x=DATA):
    s, t = (torch.from_numpy(m(x)) for m in (model, teacher))
    return float(F.kl_div(F.log_softmax(s, 1), F.softmax(t, 1), reduction="batchmean"))


def arrays(model):
    return {
        f"{name} {part}": array
        for name, p in model.graph.params.items()
        for part, array in (p.arrays() if isinstance(p, Packed) else {"": p}).items()
    }


def changed(a, b):
    a, b = arrays(a), arrays(b)
    assert a.keys() == b.keys()
    return {name for name in a if not np.array_equal(a[name], b[name])}


# -- the loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 10), (4, 7, 10), (3, 10, 5, 4)])
def test_divergence_is_that_of_pytorch(shape):
    s, t = torch.from_numpy(rand(*shape)), torch.from_numpy(rand(*shape, seed=1))
    axis = 2 if len(shape) == 3 else 1
    for temperature in (1.0, 3.0):
        rows = F.kl_div(F.log_softmax(s / temperature, axis), F.softmax(t / temperature, axis), reduction="none")
        want = temperature**2 * rows.sum(axis).mean()
        assert torch.allclose(kl_divergence(s, t, temperature).mean(), want, rtol=1e-5)


def test_objective_mixes_teacher_labels_and_hints(nets):
    student, teacher = nets
    modules = to_module(student), to_module(teacher)
    for module in modules:
        module.requires_grad_(False)
    x, y = torch.from_numpy(DATA[:8]), torch.from_numpy(LABELS[:8])
    s, t = (m(x) for m in modules)
    soft, hard = kl_divergence(s, t, 2.0).mean(), F.cross_entropy(s, y)
    got = Objective(*modules, "kl", temperature=2.0, labels=0.25)([x], y)
    assert float(got) == pytest.approx(float(0.75 * soft + 0.25 * hard), rel=1e-5)
    norms = {n.inputs[0]: n.outputs[0] for n in teacher.graph.nodes if n.op == "batch_norm"}
    inner = [norms.get(n.outputs[0], n.outputs[0]) for n in teacher.graph.layers().values()]
    pairs = zip(*(m.run([x], inner)[1] for m in modules), strict=True)
    hints = np.mean([float(relative_error(a, b).mean()) for a, b in pairs])
    got = Objective(*modules, "mse", hints=0.5)([x])
    assert float(got) == pytest.approx(float(relative_error(s, t).mean()) + 0.5 * hints, rel=1e-5)


# -- what it does to a network ------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "sgd", "lr": 0.01}, {"norm_statistics": True}, {"hints": 0.1}])
def test_distillation_brings_the_outputs_nearer(nets, optimizer):
    student, teacher = nets
    better = distill(student, teacher, DATA, steps=40, **OPTIONS, **optimizer)
    assert divergence(better, teacher) < 0.8 * divergence(student, teacher)
    assert better.size().total == student.size().total
    assert not any("codes" in name for name in changed(student, better))


def test_only_the_chosen_parts_learn(nets):
    student, teacher = nets

    def learned(*parts):
        return changed(student, distill(student, teacher, DATA, steps=10, train=parts, **OPTIONS))

    assert learned("codebooks") == {f"{name}.weight codebook" for name in ("grouped", "up", "fc")}
    assert learned("biases") == {"up.bias ", "fc.bias "}
    assert learned("norms") == {f"{norm}.{role} " for norm in ("norm", "norm2") for role in ("weight", "bias")}
    assert learned("weights") == {"stem.weight "}


def test_what_gets_worse_is_not_kept(nets):
    student, teacher = nets
    assert not changed(student, distill(student, teacher, DATA, steps=10, **OPTIONS, lr=3.0, optimizer="sgd"))


def test_a_rate_too_large_for_a_good_student_becomes_smaller(nets):
    """Good students were made worse first, and at best came back: nothing was gained."""
    student, teacher = nets
    good = distill(student, teacher, DATA, steps=60, lr=0.02, held_out=DATA, **OPTIONS)
    seen = []

    def loss(s, t):
        if not torch.is_grad_enabled():
            seen.append(float(kl_divergence(s, t).mean()))
        return kl_divergence(s, t)

    better = distill(good, teacher, DATA, steps=120, lr=0.3, loss=loss, held_out=DATA, **OPTIONS)
    assert max(seen) > 1.2 * seen[0]  # the rate is too large
    assert divergence(better, teacher) < 0.97 * divergence(good, teacher)


def test_the_best_is_judged_as_stored(nets):
    """Held-out divergence of what comes out, computed by the engine, is the least that was seen."""
    _, teacher = nets
    student = pqnet.quantize(teacher, {"default": PQ(16, 4, codebook_dtype="int8"), "fc": None}, DATA, progress=False)
    held_out = rand(64, 3, 9, 9, seed=4)
    seen = []

    def loss(s, t):
        if not torch.is_grad_enabled():
            seen.append(float(kl_divergence(s, t).mean()))
        return kl_divergence(s, t)

    better = distill(student, teacher, DATA, steps=40, held_out=held_out, loss=loss, **OPTIONS)
    assert len(seen) == 8  # the student, three times early, and every ten steps
    assert divergence(better, teacher, held_out) == pytest.approx(min(seen), rel=1e-4)


@pytest.mark.parametrize("labels", [0.95, 1.0])
def test_labels_can_teach_what_the_teacher_does_not_know(nets, labels):
    student, teacher = nets
    y = (teacher(DATA).argmax(1) + 1) % 10

    def right(model):
        return np.mean(model(DATA).argmax(1) == y)

    better = distill(student, teacher, (DATA, y), steps=30, labels=labels, held_out=(DATA, y), **OPTIONS)
    assert right(better) > right(student) + 0.2


def test_codes_are_chosen_anew_for_the_codewords_that_training_made(nets):
    """Blocks follow codewords that have changed places; where nothing has changed, hardly any moves."""
    student, teacher = nets
    module = to_module(student)
    anew = _Reassign(module, student, teacher.graph, Batches(teacher.graph, DATA, None, 16, 0))
    anew()
    assert divergence(to_model(module), teacher) < 1.5 * divergence(student, teacher)
    weight = packed_weights(module)["up"]
    with torch.no_grad():
        weight.stored.codebook.copy_(weight.stored.codebook.roll(3, 0))
    assert divergence(to_model(module), teacher) > 5 * divergence(student, teacher)
    anew()
    anew()
    assert divergence(to_model(module), teacher) < 1.5 * divergence(student, teacher)


def test_hints_are_of_what_follows_the_norm(nets):
    """The default gives filters one size, and the norm theirs: outputs before the norm are of another size."""
    _, teacher = nets
    student = pqnet.quantize(teacher, RECIPE, DATA, progress=False)
    modules = [to_module(m).requires_grad_(False) for m in (student, teacher)]
    x = [torch.from_numpy(DATA[:40])]
    hints = float(Objective(*modules, hints=1.0)(x)) - float(Objective(*modules)(x))
    assert hints < 0.3
    better = distill(student, teacher, DATA, steps=40, hints=0.1, **OPTIONS)
    assert divergence(better, teacher) < divergence(student, teacher)


@pytest.mark.parametrize(
    ("quantized", "options", "message"),
    [
        ({"permute": True}, {"hints": 0.1}, "hints, reassign: expected channels in the teacher's order"),
        ({}, {"reassign": 5}, "reassign: expected a student whose codes stand for the teacher's weights"),
        ({}, {"stage": "layerwise", "norm_statistics": True}, "stage: expected 'global' with"),
    ],
)
def test_what_does_not_suit_the_student_is_refused(nets, quantized, options, message):
    _, teacher = nets
    student = pqnet.quantize(teacher, RECIPE, DATA, progress=False, **quantized)
    again = distill(student, teacher, DATA, steps=1, **OPTIONS)  # its result is known to be such a student too
    for model in (student, again):
        with pytest.raises(ConfigError, match=message):
            distill(model, teacher, DATA, steps=1, **options, **OPTIONS)


def test_codes_are_chosen_anew_every_so_many_steps(nets, monkeypatch):
    calls = []
    monkeypatch.setattr(_Reassign, "__call__", lambda self: calls.append(self.metric))
    distill(*nets, DATA, steps=10, reassign=3, **OPTIONS)
    assert calls == ["pooled"] * 3


def test_norms_get_their_statistics_back(nets):
    student, _ = nets
    graph = with_norm_statistics(student.graph, [{"input": DATA[:90]}, {"input": DATA[90:]}])
    norms = [node for node in graph.nodes if node.op == "batch_norm"]
    assert all({"mean", "var"} <= node.params.keys() for node in norms)
    assert np.allclose(pqnet.Model(graph)(DATA), student(DATA), atol=1e-4)
    module = to_module(graph).train()
    with torch.no_grad():
        assert np.allclose(module(torch.from_numpy(DATA)).numpy(), student(DATA), atol=2e-3)  # of this very batch


# -- layer by layer -----------------------------------------------------------------------------------------


def test_layers_are_trained_right_after_they_are_quantized(nets):
    _, teacher = nets
    seen = []

    def finetune(graph, layer):
        packed = [
            name for name, node in graph.layers().items() if isinstance(graph.params[node.params["weight"]], Packed)
        ]
        seen.append((layer, packed))
        weight = graph.params[f"{layer}.weight"]
        return type(weight)(weight.codec, weight.shape, weight.codes, weight.codebook * 0)

    small = pqnet.quantize(teacher, RECIPE, DATA, metric="pooled", finetune=finetune, progress=False)
    assert seen == [("grouped", ["grouped"]), ("up", ["grouped", "up"]), ("fc", ["grouped", "up", "fc"])]
    assert not small.graph.params["fc.weight"].decode().any()
    # later layers only see shifts of norms
    plain = pqnet.quantize(teacher, RECIPE, DATA, metric="pooled", progress=False)
    assert not np.array_equal(small.graph.params["fc.weight"].codes, plain.graph.params["fc.weight"].codes)


def test_layerwise_distillation_beats_codes_alone_and_resumes(nets, tmp_path):
    _, teacher = nets
    student = pqnet.quantize(teacher, {"default": PQ(16, 4), "fc": None}, DATA, mode="bgd", progress=False)
    options = {"steps": 15, "stage": "layerwise", **OPTIONS}
    better = distill(student, teacher, DATA, **options)
    assert {e["output_error"] for e in better.graph.meta["quantization"]["layers"].values()} == {None}
    assert divergence(better, teacher) < 0.9 * divergence(student, teacher)
    first = distill(student, teacher, DATA, checkpoint=tmp_path / "layers", **options)
    entries = sorted((tmp_path / "layers").iterdir(), key=lambda p: p.stat().st_mtime)
    assert len(entries) == 2
    entries[-1].unlink()
    again = distill(student, teacher, DATA, checkpoint=tmp_path / "layers", **options)
    assert not changed(better, first)
    assert not changed(better, again)


def test_blockwise_distillation_trains_one_block_after_the_other_and_resumes(nets, tmp_path):
    _, teacher = nets
    student = pqnet.quantize(teacher, {**RECIPE, "stem": PQ(16, 3)}, DATA, mode="bgd", progress=False)
    options = {"steps": 15, "stage": "blockwise", **OPTIONS}
    better = distill(student, teacher, DATA, **options)
    assert divergence(better, teacher) < 0.9 * divergence(student, teacher)
    for weight, other in zip(student.graph.params.values(), better.graph.params.values(), strict=True):
        assert not isinstance(weight, Packed) or np.array_equal(weight.codes, other.codes)
    # of the first block alone what is of its nodes
    first = distill(student, teacher, DATA, train=("biases",), **options)
    assert {name.split(".")[0] for name in changed(student, first)} == {"up", "fc"}
    once = distill(student, teacher, DATA, checkpoint=tmp_path / "blocks", **options)
    assert sorted(path.name for path in (tmp_path / "blocks").iterdir()) == ["block0", "block1"]
    (tmp_path / "blocks" / "block1").unlink()
    again = distill(student, teacher, DATA, checkpoint=tmp_path / "blocks", **options)
    assert not changed(better, once)
    assert not changed(better, again)


def test_blocks_share_no_parameter_that_is_trained():
    b = GraphBuilder({"x": ValueInfo(("batch", 6))}, {"batch": 2})
    y = "x"
    for name, weight in {"a": rand(6, 6), "b": rand(6, 6, seed=1), "c": rand(6, 6, seed=2), "d": "a.weight"}.items():
        y = b.add("relu", b.add("linear", y, name=name, params={"weight": weight, "bias": rand(6)}))
    teacher = pqnet.Model(b.build({"y": b.add("linear", y, name="e", params={"weight": rand(5, 6)})}))
    x = rand(60, 6)
    student = pqnet.quantize(teacher, {"default": PQ(8, 2)}, x, metric="none", progress=False)
    found = distill(student, teacher, x, steps=4, stage="blockwise", **OPTIONS)
    assert "a.weight codebook" not in changed(student, found)
    assert "b.weight codebook" in changed(student, found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": None, "metric": "none"}, "finetune: expected calibration data, got none"),
        ({"checkpoint": "folder"}, "finetune: expected an attribute 'key'"),
        ({}, "finetune: expected a weight packed by pq k=16 d=4 spatial, got NoneType None"),
    ],
)
def test_wrong_use_of_the_hook_is_refused(nets, options, message):
    with pytest.raises(PQNetError, match=message):
        pqnet.quantize(
            nets[1], RECIPE, **{"calibration": DATA, "progress": False, **options}, finetune=lambda g, n: None
        )


# -- resuming, processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "more"),
    [(3, {}), (25, {"norm_statistics": True, "optimizer": "sgd"}), (15, {"reassign": 4, "hints": 0.1})],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(nets, tmp_path, stop, more):
    student, teacher = nets
    draw = image_batches(DATA, batch_size=16, pad=1)

    def stopping(step):
        if step == stop:
            raise KeyboardInterrupt
        return draw(step)

    options = {"steps": 30, "held_out": DATA, **OPTIONS, **more}
    whole = distill(student, teacher, draw, **options)
    with pytest.raises(KeyboardInterrupt):
        distill(student, teacher, stopping, checkpoint=tmp_path / "state", **options)
    steps = []
    again = distill(student, teacher, lambda s: steps.append(s) or draw(s), checkpoint=tmp_path / "state", **options)
    assert set(steps) >= set(range(stop, 30))
    assert more or steps == [0, *range(2, 30)]  # the first for the fingerprint; judged and kept early, after two
    for model, name in ((whole, "whole"), (again, "again")):
        model.save(tmp_path / name)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "again").read_bytes()


def test_foreign_and_damaged_checkpoints_are_refused(nets, tmp_path):
    student, teacher = nets
    path = tmp_path / "state"
    distill(student, teacher, DATA, steps=10, checkpoint=path, **OPTIONS)
    with pytest.raises(PQNetError, match="expected one of this call"):
        distill(student, teacher, DATA, steps=20, checkpoint=path, **OPTIONS)
    other = np.concatenate([DATA[:-1], DATA[:1]])  # the same but for one sample
    with pytest.raises(PQNetError, match="expected one of this call"):
        distill(student, teacher, other, steps=10, checkpoint=path, **OPTIONS)
    data = path.read_bytes()
    for place in np.random.default_rng(0).integers(len(data), size=20):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(FormatError, match="expected what training wrote, got .*: the file is damaged"):
            distill(student, teacher, DATA, steps=10, checkpoint=path, **OPTIONS)
    path.write_bytes(data[:100])
    with pytest.raises(FormatError, match="expected what training wrote"):
        distill(student, teacher, DATA, steps=10, checkpoint=path, **OPTIONS)
    with pytest.raises(PQNetError, match="expected a file in an existing folder"):
        distill(student, teacher, DATA, steps=10, checkpoint=tmp_path / "no" / "state", **OPTIONS)
    with pytest.raises(PQNetError, match="checkpoint: expected a file in a folder that can be written to, got /proc/s"):
        distill(student, teacher, DATA, steps=10, checkpoint="/proc/state", **OPTIONS)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (("step",), -1),
        (("step",), [3]),
        (("pace",), float("nan")),
        (("best_loss",), "x"),
        (("threads",), 1 << 40),
        (("best",), {}),
        (("best",), torch.zeros(2)),
        (("module",), {}),
        (("optimizer", "state", 0, "exp_avg"), torch.zeros(2, 2, 2)),
        (("optimizer", "state", 1), {}),
        (("optimizer", "state", 0, "step"), None),
        (("optimizer", "state", 0), {"step": torch.zeros(())}),
        (("optimizer", "param_groups"), []),
        (("optimizer", "param_groups", 0, "lr"), None),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_forged_checkpoints_with_the_right_checksum_are_refused(nets, tmp_path, entry, value):
    path = tmp_path / "state"
    distill(*nets, DATA, steps=10, checkpoint=path, **OPTIONS)
    content = torch.load(io.BytesIO(without_digest(path)), weights_only=True)
    place = content
    for key in entry[:-1]:
        place = place[key]
    place[entry[-1]] = value
    torch.save(content, path)
    append_digest(path)
    with pytest.raises(FormatError, match="checkpoint: expected what training wrote"):
        distill(*nets, DATA, steps=10, checkpoint=path, **OPTIONS)


@pytest.mark.parametrize("part", ["best", "module"])
def test_codes_without_a_codeword_are_refused_in_forged_checkpoints(nets, tmp_path, part):
    path = tmp_path / "state"
    distill(*nets, DATA, steps=10, checkpoint=path, **OPTIONS)
    content = torch.load(io.BytesIO(without_digest(path)), weights_only=True)
    name = next(name for name in content[part] if name.endswith(".codes"))
    content[part][name] = torch.full_like(content[part][name], 255)
    torch.save(content, path)
    append_digest(path)
    with pytest.raises(FormatError, match="got .*state: expected packed weights, got others: .*codes"):
        distill(*nets, DATA, steps=10, checkpoint=path, **OPTIONS)


SHARED = {
    "global": {"steps": 12, "batch_size": 15, "every": 6, "hints": 0.1, "norm_statistics": True},
    "layerwise": {"steps": 3, "batch_size": 9, "every": 3, "stage": "layerwise"},
}
PROCESS = f"""
import sys
import numpy as np, torch.distributed as dist
import pqnet, pqnet.train
dist.init_process_group("gloo")
folder = sys.argv[1]
student, teacher = (pqnet.load(f"{{folder}}/{{name}}.h5") for name in ("student", "teacher"))
x = np.load(f"{{folder}}/x.npy")
for name, options in {SHARED}.items():
    state = f"{{folder}}/state-{{name}}"
    better = pqnet.train.distill(student, teacher, x, checkpoint=state, progress=False, **options)
    if dist.get_rank() == 0:
        better.save(f"{{folder}}/{{name}}.h5")
dist.barrier()  # one that leaves early may keep the other waiting
dist.destroy_process_group()
"""


def test_two_processes_give_what_one_gives(nets, tmp_path):
    """Also where one has a sample more than the other."""
    student, teacher = nets
    student.save(tmp_path / "student.h5")
    teacher.save(tmp_path / "teacher.h5")
    np.save(tmp_path / "x.npy", DATA)
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(script), str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name, options in SHARED.items():
        alone, together = (
            distill(student, teacher, DATA, progress=False, **options),
            pqnet.load(tmp_path / f"{name}.h5"),
        )
        assert np.abs(alone(DATA) - student(DATA)).max() > 0.05
        assert np.abs(together(DATA) - alone(DATA)).max() < 1e-3 * np.abs(alone(DATA)).max()
    assert sorted(p.name for p in tmp_path.glob("state*")) == ["state-global", "state-layerwise"]


# -- data and errors ----------------------------------------------------------------------------------------


def test_every_sample_is_drawn_once_an_epoch_but_those_held_out(nets):
    x = np.arange(60, dtype=np.float32).repeat(243).reshape(60, 3, 9, 9)
    data = Batches(nets[1].graph, (x, np.arange(60)), None, 8, 3)
    drawn = np.concatenate([data.at(step).labels for step in range(27)])[: 4 * 54].reshape(4, 54)
    held = data.held_out.labels
    assert len(held) == 6
    for epoch in drawn:
        assert sorted([*epoch, *held]) == list(range(60))
    assert not np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(data.at(5).inputs["input"][:, 0, 0, 0], data.at(5).labels)


def test_images_move_and_are_mirrored():
    image = rand(1, 2, 6, 7)
    draw = image_batches(image, batch_size=200, pad=2, seed=1)
    framed = np.pad(image[0], ((0, 0), (2, 2), (2, 2)))
    views = {
        whole[:, i : i + 6, j : j + 7].tobytes()
        for whole in (framed, framed[:, :, ::-1])
        for i in range(5)
        for j in range(5)
    }
    drawn = [x.tobytes() for x in draw(3)]
    assert set(drawn) <= views
    assert len(set(drawn)) > 40
    assert np.array_equal(draw(3), draw(3))
    assert not np.array_equal(draw(3), draw(4))
    plain, labels = image_batches(rand(9, 1, 3, 3), np.arange(9), batch_size=4, pad=0, flip=False)(0)
    assert np.array_equal(plain, rand(9, 1, 3, 3)[labels])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": small_net()}, "student: expected a quantized network"),
        ({"student": "small.h5"}, "student: expected a pqnet.Model, got str"),
        ({"stage": "both"}, "stage: expected 'global', 'layerwise' or 'blockwise', got 'both'"),
        ({"stage": "blockwise", "hints": 0.1}, "stage: expected 'global' with .* hints or labels, got 'blockwise'"),
        ({"loss": "l1"}, "loss: expected 'kl', 'mse' or a function"),
        ({"optimizer": "lamb"}, "optimizer: expected 'adam' or 'sgd', got 'lamb'"),
        ({"steps": 0}, "steps: expected an integer of at least 1, got 0"),
        ({"lr": float("nan")}, "lr: expected a finite number of at least 0, got nan"),
        ({"train": ("codes",)}, "train: expected some of"),
        ({"labels": 0.5}, "labels: expected labels with every batch"),
        ({"labels": 1.1}, "labels: expected a weight of at most 1"),
        ({"labels": 0.5, "batches": (DATA, LABELS + 1)}, "labels: expected numbers of classes"),
        (
            {"labels": 0.5, "batches": [(DATA, LABELS), DATA], "held_out": (DATA, LABELS)},
            "labels: expected labels with",
        ),
        ({"temperature": -2.0}, "temperature: expected a finite number"),
        ({"temperature": 0.0}, "temperature: expected a positive number"),
        ({"hints": -1.0}, "hints: expected a finite number"),
        ({"batch_size": 0}, "batch_size: expected an integer of at least 1"),
        ({"seed": -1}, "seed: expected an integer of at least 0"),
        ({"weight_decay": -1.0}, "weight_decay: expected a finite number"),
        ({"reassign": 2.5}, "reassign: expected an integer"),
        ({"threads": 0}, "threads: expected an integer of at least 1"),
        ({"device": "gpu"}, "device: expected one that PyTorch computes on here"),
        ({"batches": 3}, "batches: expected an array, a dict of arrays"),
        ({"batches": []}, "batches: expected at least one batch"),
        ({"batches": DATA[:9]}, "batches: expected at least 10 samples"),
        ({"batches": lambda step: DATA}, "held_out: expected samples to judge by"),
        ({"batches": (DATA, LABELS[:-1])}, "batches: expected one integer label for each sample"),
        ({"batches": DATA[:, :2]}, "input"),
        ({"batches": DATA * np.float32(np.nan)}, "input 'input'"),
        ({"lr": 1e30, "optimizer": "sgd"}, "expected a finite loss"),
    ],
)
def test_wrong_arguments_are_refused(nets, change, message):
    student, teacher = nets
    given = {"student": student, "teacher": teacher, "batches": DATA, "steps": 20, **OPTIONS, **change}
    with pytest.raises(PQNetError, match=message):
        distill(**given)


def test_other_teachers_are_refused(nets):
    graph = nets[1].graph
    other = pqnet.Model(replace(graph, outputs={"other": next(iter(graph.outputs.values()))}))
    with pytest.raises(PQNetError, match="teacher: expected the student's inputs and outputs"):
        distill(nets[0], other, DATA, steps=1, **OPTIONS)
    assert to_model(to_module(nets[0])).size().total == nets[0].size().total
    assert issubclass(ConfigError, PQNetError)


# -- the command line ---------------------------------------------------------------------------------------


@pytest.fixture
def files(nets, tmp_path):
    student, teacher = nets
    student.save("student.h5")
    teacher.save("teacher.h5")
    np.save("x.npy", DATA)
    np.save("y.npy", LABELS)
    return tmp_path


def command(line):
    return main(f"finetune student.h5 --teacher teacher.h5 --data x.npy --batch 16 --threads 1 {line}".split())


@pytest.mark.parametrize(
    "more", ["", "--augment", "--labels y.npy --label-weight 0.1", "--augment --labels y.npy --label-weight 0.2"]
)
def test_finetune_writes_a_better_file(files, nets, capsys, more):
    assert command(f"{more} --steps 20 --every 10 -o better.h5") == 0
    better = pqnet.load("better.h5")
    assert capsys.readouterr().out == f"better.h5: {Path('better.h5').stat().st_size} bytes\n"
    assert divergence(better, nets[1]) < divergence(nets[0], nets[1])
    assert main(["verify", "better.h5"]) == 0


def test_finetune_goes_on_from_its_checkpoint(files, monkeypatch):
    assert command("--steps 40 --every 20 -o whole.h5") == 0
    draw = Batches.at
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Batches, "at", lambda self, step: draw(self, step) if step < 35 else 1 / 0)
        command("--steps 40 --every 20 -o again.h5 --checkpoint state")
    assert command("--steps 40 --every 20 -o again.h5 --checkpoint state") == 0
    assert Path("whole.h5").read_bytes() == Path("again.h5").read_bytes()


def test_finetune_goes_on_after_it_was_killed(files):
    assert command("--steps 200 --every 5 --threads 1 -o whole.h5") == 0
    line = "finetune student.h5 --teacher teacher.h5 --data x.npy --batch 16 --steps 200 --every 5 --threads 1"
    state, times = Path("state"), []
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-m", "pqnet", *line.split(), "-o", "k.h5", "--checkpoint", "state"]
        ) as run:
            while run.poll() is None and (not state.exists() or state.stat().st_mtime_ns in times):
                time.sleep(0.001)
            run.kill()
        assert run.returncode == -signal.SIGKILL
        times.append(state.stat().st_mtime_ns)
    assert not Path("k.h5").exists()
    assert command("--steps 200 --every 5 --threads 1 -o again.h5 --checkpoint state") == 0
    assert Path("whole.h5").read_bytes() == Path("again.h5").read_bytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--stage both -o b.h5", "stage: expected 'global', 'layerwise' or 'blockwise'"),
        ("-o b.npy", "--output: expected a file name ending in .h5"),
        ("--augment --labels x.npy -o b.h5", "--labels: expected one integer for each of"),
        ("--labels x.npy -o b.h5", "--labels: expected one integer for each of"),
    ],
)
def test_wrong_command_lines_are_one_line(files, capsys, line, message):
    assert command(line) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_padded_positions_are_not_trained_on():
    b = GraphBuilder(
        {"x": ValueInfo(("n", "t", 6)), "attention_mask": ValueInfo(("n", "t"), "int64")}, {"n": 2, "t": 3}
    )
    mask = b.add("reshape", b.add("cast", "attention_mask", dtype="float32"), shape=("n", "t", 1))
    x = b.add("linear", b.add("mul", "x", mask), name="fc", params={"weight": rand(8, 6)})
    teacher = pqnet.Model(b.build({"y": b.add("add", x, mask)}))
    student = pqnet.quantize(teacher, {"fc": PQ(4, 2)}, metric="none", progress=False)
    x, mask = torch.from_numpy(rand(4, 5, 6)), torch.tensor([[1, 1, 0, 0, 0]] * 4)
    objective = Objective(to_module(student), to_module(teacher), "mse").requires_grad_(False)
    short = [x[:, :2].contiguous(), mask[:, :2].contiguous()]
    assert float(objective([x, mask])) == pytest.approx(float(objective(short)), rel=1e-6)


def test_training_on_padding_by_another_name_is_noticed():
    b = GraphBuilder({"x": ValueInfo(("n", "t", 6)), "mask": ValueInfo(("n", "t"), "int64")}, {"n": 2, "t": 3})
    mask = b.add("reshape", b.add("cast", "mask", dtype="float32"), shape=("n", "t", 1))
    x = b.add("linear", b.add("mul", "x", mask), name="fc", params={"weight": rand(8, 6)})
    teacher = pqnet.Model(b.build({"y": x}))
    student = pqnet.quantize(teacher, {"fc": PQ(4, 2)}, metric="none", progress=False)
    data = {"x": rand(20, 5, 6), "mask": np.array([[1, 1, 0, 0, 0]] * 20)}
    with pytest.warns(UserWarning, match="input 'mask' looks like the mask of padded texts"):
        distill(student, teacher, data, steps=1, **OPTIONS)


def test_constants_stay():
    b = GraphBuilder({"x": ValueInfo(("n", 6))}, {"n": 2})
    never = b.add("constant", params={"value": np.full((8,), -np.inf, np.float32)})
    x = b.add("linear", "x", name="fc", params={"weight": rand(8, 6), "bias": rand(8)})
    teacher = pqnet.Model(b.build({"y": b.add("maximum", x, never)}))
    student = pqnet.quantize(teacher, {"fc": PQ(4, 2)}, metric="none", progress=False)
    better = distill(student, teacher, rand(100, 6), steps=20, **OPTIONS)
    assert divergence(better, teacher, rand(50, 6)) < divergence(student, teacher, rand(50, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pad": 9}, "pad: expected an integer from 0 to 8, got 9"),
        ({"batch_size": 0}, "batch_size: expected a positive integer"),
        ({"labels": LABELS[:-1]}, "labels: expected one for each of 150 images"),
        ({"images": DATA[0]}, "images: expected float32 of shape"),
    ],
)
def test_wrong_images_are_refused(change, message):
    with pytest.raises(PQNetError, match=message):
        image_batches(**{"images": DATA, **change})


def test_kl_of_embeddings_is_noticed():
    b = GraphBuilder({"x": ValueInfo(("batch", 4))}, {"batch": 2})
    y = b.add("linear", "x", name="fc", params={"weight": np.eye(4, dtype=np.float32)})
    scores = to_module(b.build({"y": b.add("reshape", y, shape=("batch", 4))}))
    features = to_module(b.build({"y": b.add("layer_norm", y, axes=1)}))
    Objective(scores, scores)
    Objective(features, features, loss="mse")
    with pytest.warns(UserWarning, match="'y' comes from 'layer_norm' .*; use loss='mse'"):
        Objective(features, features)
