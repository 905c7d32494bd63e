"""The command line: the whole way from a PyTorch module to outputs, what each command prints, and bad command lines."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from realdata import DATA, needs_data

import pqnet
from pqnet import Packed, Recipe
from pqnet.cli import commands
from pqnet.cli.main import build_parser, main
from pqnet.demo import load_images, model_path
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.pipeline.evaluate import accuracies

TINY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.fc = nn.Conv2d(8, 16, 3), nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.conv(torch.relu(self.norm(self.stem(x)))))
        return {"logits": self.fc(x.mean((2, 3))), "parts": [x, x > 0]}

class Middle(nn.Module):
    def forward(self, x):
        return torch.kthvalue(x, 4)[0]

class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

class Undefined(nn.Module):
    def forward(self, x):
        return torch.where(x > 0, x, float("nan"))

class Frames(nn.Module):
    def forward(self, x):
        return x - 7, (x.float() / 255).mean(1)

def half():
    return nn.Linear(8, 3).half()

def double():
    return nn.Linear(8, 3).double()

def needs(argument):
    return Net()
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, statistics, arrays and recipes, right and wrong."""
    folder = tmp_path_factory.mktemp("cli")
    images = load_images()[0][:120]
    model = pqnet.load(model_path())
    model.with_golden(model.draw_golden()).save(folder / "model.h5")
    pqnet.calibrate(model, images).save(folder / "stats.h5")
    small = pqnet.quantize(model, "small-blocks", metric="none")
    small = small.with_golden(small.draw_golden())
    small.save(folder / "small.h5")
    golden = small.golden.with_outputs({"logits": small.golden.outputs["logits"] * np.float32(1.5)})
    pqnet.Model(small.graph, golden).save(folder / "other.h5")
    b = GraphBuilder({"a": ValueInfo(("n", 4)), "b": ValueInfo(("n", 4), "int64")}, {"n": 2})
    two = b.build({"sum": b.add("add", "a", "b"), "twice": b.add("mul", "b", scalar=2)})
    pqnet.Model(two).save(folder / "two.h5")
    b = GraphBuilder({"ids": ValueInfo(("n", 3), "int64")}, {"n": 2})
    table = b.add("embedding", "ids", name="table", params={"weight": np.arange(8, dtype=np.float32)[None]})
    pqnet.Model(b.build({"rows": table})).save(folder / "onerow.h5")
    b = GraphBuilder({"x": ValueInfo(("n", 4))}, {"n": 2})
    pqnet.Model(b.build({"total": b.add("sum", "x", axes=(0, 1)), "x2": b.add("mul", "x", scalar=2)})).save(
        folder / "total.h5"
    )
    b = GraphBuilder({"x": ValueInfo((3, 4))})
    pqnet.Model(b.build({"x2": b.add("mul", "x", scalar=2)})).save(folder / "fixed.h5")
    b = GraphBuilder({"x": ValueInfo(("n", 4))}, {"n": 2})
    pqnet.Model(b.build({"x2": b.add("add", "x", "x")})).save(folder / "free.h5")
    np.save(folder / "x.npy", images)
    np.save(folder / "wide.npy", images[:, :, :, :7])
    np.save(folder / "nan.npy", images * np.float32(np.nan))
    np.save(folder / "none.npy", images[:0])
    np.save(folder / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(folder / "x.npz", input=images)
    np.savez(folder / "ab.npz", a=np.ones((3, 4), np.float32), b=np.ones((3, 4), np.int64))
    np.save(folder / "six.npy", np.arange(24, dtype=np.float32).reshape(6, 4))
    np.save(folder / "seven.npy", np.ones((7, 4), np.float32))
    np.save(folder / "sevens.npy", np.full(7, 7))
    np.save(folder / "ids.npy", np.zeros((2, 3), np.int64))
    np.savez(folder / "a4.npz", a=np.ones((4, 4), np.float32))
    np.savez(folder / "b3.npz", b=np.ones((3, 4), np.int64))
    data = (folder / "model.h5").read_bytes()
    (folder / "damaged.h5").write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    (folder / "text.npy").write_text("1 2 3")
    (folder / "cut.npz").write_bytes((folder / "x.npz").read_bytes()[:500])
    (folder / "recipe.yaml").write_text(Recipe({"default": pqnet.PQ(32, 4), "fc": None}).to_yaml())
    (folder / "broken.yaml").write_text("fc: [1")
    (folder / "lost.yaml").write_text("block*: {codec: pq}")
    (folder / "tinynet.py").write_text(TINY)
    (folder / "weights.pth").write_bytes(b"no weights")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The working directory, with links to all of ``made``."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def run(line: str) -> int:
    return main(line.split())


# -- the whole way ---------------------------------------------------------------------------------------------


def test_run_prints_the_share_of_right_answers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, images, labels = load_images()
    np.save("held_out.npy", images[:100])
    np.save("labels.npy", labels[:100].astype(np.uint8))
    assert run("run model.h5 --input held_out.npy --labels labels.npy") == 0
    logits = pqnet.load("model.h5")(images[:100])
    order = np.argsort(-logits, 1)
    shares = [np.mean([label in row[:n] for row, label in zip(order, labels, strict=False)]) for n in (1, 5)]
    assert capsys.readouterr().out == f"output logits: top-1 {shares[0]:.2%}, top-5 {shares[1]:.2%} of 100 samples\n"
    assert run("run model.h5 --input held_out.npy --labels labels.npy -o y.npy") == 0
    assert np.allclose(np.load("y.npy"), logits, atol=1e-4) and "y.npy" in capsys.readouterr().out


def test_accuracy_of_ties_and_what_is_no_number() -> None:
    logits = np.float32([[0, 0, 1], [2, 2, 1], [np.nan, 0, 0], [0, np.nan, 0], [3, 1, 2]])
    assert accuracies(logits, np.array([2, 0, 0, 0, 0])) == {"top-1": 0.4}


def test_calibrate_quantize_run_inspect_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("calibrate model.h5 --calibration x.npy -o s.h5 --threads 1") == 0
    assert re.fullmatch(r"s.h5: statistics of \d+ layers, \d+ bytes\n", capsys.readouterr().out)
    want, got = pqnet.load_statistics("stats.h5"), pqnet.load_statistics("s.h5")
    assert all(np.array_equal(got.layers[n].mean, m.mean) for n, m in want.layers.items())

    assert run("quantize model.h5 --statistics s.h5 --preset small-blocks -o once.h5") == 0
    out = capsys.readouterr().out
    layers = pqnet.load("once.h5").graph.layers()
    assert all(re.search(rf"^{re.escape(name)} ", out, re.M) for name in layers)
    assert re.search(
        r"^total \d+ bytes = codes \d+ \+ codebooks \d+ \+ other \d+; float32 \d+, ratio 1\d\.\d$", out, re.M
    )
    assert f"once.h5: {os.path.getsize('once.h5')} bytes" in out

    assert run("quantize model.h5 --calibration x.npz --preset small-blocks --reestimate-norm -o small2.h5") == 0
    assert run("quantize model.h5 --recipe recipe.yaml --metric none --seed 3 -o recipe.h5") == 0
    for name in ("ipq.h5", "ipq2.h5"):
        line = f"quantize model.h5 --preset small-blocks --mode ipq --checkpoint layers/of -o {name}"
        assert run(line) == 0 and len(list(Path("layers/of").iterdir())) == len(layers) - 1
    assert Path("ipq.h5").read_bytes() == Path("ipq2.h5").read_bytes()
    made = pqnet.load("recipe.h5").graph
    packed = {n: isinstance(made.params[node.params["weight"]], Packed) for n, node in made.layers().items()}
    first = next(n for n, node in made.layers().items() if node.op == "conv2d")
    assert packed == {n: n not in (first, "fc") for n in packed}  # as the recipe says, and the stem stays float

    capsys.readouterr()
    assert run("run small2.h5 --input x.npy --batch 7 -o y.npy") == 0
    x, y = np.load("x.npy"), np.load("y.npy")
    assert capsys.readouterr().out == f"y.npy: logits float32 {y.shape}\n"
    np.testing.assert_allclose(y, pqnet.load("small2.h5")(x), rtol=1e-5, atol=1e-5)
    assert run("run small2.h5 --input input=x.npy --batch 500 -o y.npz") == 0
    with np.load("y.npz") as arrays:
        assert np.array_equal(arrays["logits"], pqnet.load("small2.h5")(x))

    capsys.readouterr()
    assert run("inspect small2.h5") == 0
    out = capsys.readouterr().out
    assert "input input: float32 (any, 1, 8, 8)" in out and "output logits: float32 (any, 10)" in out
    assert all(
        re.search(rf"^{re.escape(name)} .* (float|pq k=\d+ d=\d+ spatial( int8)?|intn [^\n]*) +\d+ ", out, re.M)
        for name in layers
    )
    assert run("verify small2.h5 --reference model.h5 --input x.npy") == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"small2.h5: digest, structure and \d+ nodes are right", lines[0])
    assert re.fullmatch(r"recorded outputs: largest relative difference \S+", lines[1])
    same = re.fullmatch(
        r"output logits: largest relative difference from the reference \S+, same argmax (\S+)%", lines[2]
    )
    agree = (pqnet.load("small2.h5")(x).argmax(1) == pqnet.load("model.h5")(x).argmax(1)).mean()
    assert same and float(same[1]) == pytest.approx(100 * agree, abs=0.01) and agree > 0.9


def test_inspect_json_is_the_size_of_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect small.h5 --json") == 0
    report, model = json.loads(capsys.readouterr().out), pqnet.load("small.h5")
    size = model.size()
    assert report["file_bytes"] == os.path.getsize("small.h5")
    assert report["size"] == {k: getattr(size, k) for k in ("codes", "codebooks", "other", "total", "dense", "ratio")}
    assert report["inputs"] == {"input": [[None, 1, 8, 8], "float32"]}
    for name, node in model.graph.layers().items():
        param, entry = model.graph.params[node.params["weight"]], report["layers"][name]
        assert entry["shape"] == list(param.shape) and entry["op"] == node.op
        assert entry["bytes"] == (param.nbytes if isinstance(param, Packed) else entry["dense_bytes"])
        assert entry["codec"] == (param.codec.to_attrs() if isinstance(param, Packed) else None)


def test_merged_statistics_are_those_of_both_sets(folder: Path) -> None:
    assert run("calibrate model.h5 --calibration x.npy --merge stats.h5 --merge stats.h5 -o three.h5") == 0
    one, three = pqnet.load_statistics("stats.h5").layers["fc"], pqnet.load_statistics("three.h5").layers["fc"]
    assert three.count == 3 * one.count
    np.testing.assert_allclose(three.mean, one.mean, rtol=1e-5, atol=1e-6)


def test_several_inputs_and_outputs_go_by_name(folder: Path) -> None:
    for inputs in ("--input ab.npz", "--input a=ab.npz --input b=b3.npz"):
        assert run(f"run two.h5 {inputs} -o y.npz") == 0
        with np.load("y.npz") as y:
            assert y.files == ["sum", "twice"] and np.array_equal(y["sum"], np.full((3, 4), 2, np.float32))
            assert np.array_equal(y["twice"], np.full((3, 4), 2)) and y["twice"].dtype == np.int64


def test_inputs_of_all_dtypes_from_hdf5(folder: Path) -> None:
    b = GraphBuilder({"ids": ValueInfo(("n", 3), "int64"), "mask": ValueInfo(("n", 3), "bool")}, {"n": 2})
    pqnet.Model(b.build({"kept": b.add("mul", "ids", "mask")})).save("masked.h5")
    ids, mask = np.arange(12).reshape(4, 3), np.arange(12).reshape(4, 3) % 2 == 0
    with h5py.File("i.h5", "w") as file:
        file["ids"], file["mask"] = ids.astype(np.int32), mask
    assert run("run masked.h5 --input i.h5 -o y.npy") == 0
    assert np.array_equal(np.load("y.npy"), ids * mask)


def test_batches(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut as asked or as the model is fixed; what does not go by samples needs one batch."""
    x = np.load("six.npy")
    assert run("run fixed.h5 --input six.npy --batch 4 -o y.npy") == 0
    assert np.array_equal(np.load("y.npy"), 2 * x)
    assert run("run total.h5 --input six.npy -o y.npz") == 0
    with np.load("y.npz") as y:
        assert y["total"].shape == () and y["total"] == x.sum()
    capsys.readouterr()
    for options in ("", "--batch 4"):
        assert run(f"verify fixed.h5 --reference free.h5 --input six.npy {options}") == 0
    line = "output x2: largest relative difference from the reference 0, same argmax 100.00%"
    assert capsys.readouterr().out.splitlines()[2::3] == [line, line]
    assert run("verify total.h5 --reference total.h5 --input six.npy") == 0


def test_verify_runs_batches_like_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, original = [], pqnet.Model.run

    def counted(self: Any, inputs: Any, **options: Any) -> Any:
        sizes.append(len(next(iter(inputs.values()))))
        return original(self, inputs, **options)

    monkeypatch.setattr(pqnet.Model, "run", counted)
    assert run("verify free.h5 --reference free.h5 --input six.npy --batch 4") == 0
    assert sizes == [4, 2, 4, 2]


def test_a_table_of_one_row_is_quantized_and_verified(folder: Path) -> None:
    Path("one.yaml").write_text("table: {codec: pq, k: 2, d: 4}")
    assert run("quantize onerow.h5 --recipe one.yaml --metric none -o q.h5") == 0
    assert run("verify q.h5") == 0


def test_the_recipe_of_the_documentation() -> None:
    page = (Path(__file__).parents[1] / "docs" / "codecs.md").read_text("utf-8")
    (text,) = re.findall(r"```yaml title=\"mine.yaml\"\n(.*?)```", page, re.S)
    default, others = (pqnet.PQ(k=64, d=d, layout="channel") for d in (8, 4))
    assert Recipe.from_yaml(text) == Recipe({"default": default, "*downsample*": others, "fc": None})


def test_same_command_gives_same_bytes_and_seed_others(folder: Path) -> None:
    for i, options in enumerate(("--threads 1", "--threads 2", "--seed 1")):
        assert run(f"quantize model.h5 --statistics stats.h5 --recipe recipe.yaml -o {i}.h5 {options}") == 0
    a, b, c = (Path(f"{i}.h5").read_bytes() for i in range(3))
    assert a == b != c


def test_demo_prints_what_the_package_promises(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo") == 0
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        row = re.fullmatch(
            r"(float32|from statistics|layer after layer) +(\S+)% +(\d+) +(\S+) +(\d+) +(\d+) +(\S+)", line
        )
        if row:
            rows[row[1]] = [float(number) for number in row.groups()[1:]]
    assert list(rows) == ["float32", "from statistics", "layer after layer"]
    top1, weights, ratio, file, _, difference = rows["layer after layer"]
    assert top1 >= 97 and ratio >= 10 and difference > 0 and file <= 1.02 * weights + 16384
    assert ratio == pytest.approx(rows["float32"][1] / weights, abs=0.06)
    assert rows["float32"][0] >= 98.5 and rows["float32"][2] == 1
    assert ratio == pytest.approx(rows["from statistics"][2], rel=0.1)  # other codewords, in the bytes of one preset


# -- convert ---------------------------------------------------------------------------------------------------


def test_convert_torch_records_what_pytorch_gives(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    line = "convert torch tinynet:Net --input 1x1x8x8 -o net.h5 --seed 5"
    assert run(line) == 0
    out = capsys.readouterr().out
    assert float(re.search(r"^largest relative difference from PyTorch (\S+)$", out, re.M)[1]) < 1e-5
    model = pqnet.load("net.h5")
    sys.path.insert(0, ".")
    try:
        module = __import__("tinynet").Net().eval()
    finally:
        sys.path.remove(".")
    inputs = model.golden.inputs()
    with torch.no_grad():
        want = module(torch.from_numpy(inputs["input"]))
    recorded = list(model.golden.outputs.values())
    for got, expected in zip(recorded, (want["logits"], *want["parts"]), strict=True):
        assert np.array_equal(got, expected.numpy())
    torch.save({"state_dict": module.state_dict()}, "w.pth")
    assert run(f"{line} --weights w.pth --fixed-batch") == 0
    assert pqnet.load("net.h5").inputs == {"input": ((1, 1, 8, 8), "float32")}
    assert run("verify net.h5") == 0


def test_convert_torch_takes_networks_that_give_nan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert run("convert torch tinynet:Undefined --input 1x8 -o nan.h5") == 0
    assert np.isnan(pqnet.load("nan.h5").golden.outputs["output"]).any()
    assert run("verify nan.h5") == 0
    assert "recorded outputs: largest relative difference 0\n" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["half", "double"])
def test_convert_torch_takes_modules_of_other_floats(folder: Path, dtype: str) -> None:
    pytest.importorskip("torch")
    assert run(f"convert torch tinynet:{dtype} --input 1x8 -o floats.h5") == 0
    assert pqnet.load("floats.h5").outputs["output"] == ((None, 3), "float32")


def test_convert_torch_takes_integers_of_any_width(folder: Path) -> None:
    pytest.importorskip("torch")
    assert run("convert torch tinynet:Frames --input 1x8:uint8 -o frames.h5") == 0
    model = pqnet.load("frames.h5")
    assert model.inputs == {"input": ((None, 8), "uint8")} and model.outputs["output0"][1] == "uint8"
    assert (model.golden.outputs["output0"] == 250).all()  # of ones
    np.save("frames.npy", np.full((3, 8), 6, np.int64))
    assert run("run frames.h5 --input frames.npy -o out.npz") == 0
    assert (np.load("out.npz")["output0"] == 255).all()


@needs_data
@pytest.mark.parametrize(
    ("source", "file"), [("kill-the-bits", "ktb_resnet18_small_blocks.pth"), ("pqf", "pqf_resnet18.pth")]
)
def test_convert_published_checkpoints(source: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert main(["convert", source, "resnet18", str(DATA / "checkpoints" / file), "-o", "r.h5"]) == 0
    assert re.fullmatch(
        r"r.h5: Model\(\d+ nodes, \d+ bytes, \d\d\.\dx smaller than float32\)\n", capsys.readouterr().out
    )
    assert run("inspect r.h5 --json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["size"]["ratio"] > 25 and report["layers"]["layer1.0.conv1"]["codec"]["d"] == 9


def test_convert_and_export_onnx(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = pytest.importorskip("onnx")
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[b, n] x, float k) => (float[b, n] y) {
        z = Relu(x) y = If(flag) <then_branch = t () => (float[b, n] p) { p = Mul(z, k) },
                                  else_branch = e () => (float[n, b] q) { q = Transpose(z) }> }"""
    text = text.replace("z = Relu(x)", "zero = Constant<value = float {0}>() flag = Greater(k, zero) z = Relu(x)")
    onnx.save(onnx.parser.parse_model(text), "net.onnx")
    assert run("convert onnx net.onnx -o net.h5 --seed 3") == 2
    assert "depends on the input 'k'; give its value: values={'k': ...} (--value k=...)" in capsys.readouterr().err
    assert run("convert onnx net.onnx -o net.h5 --value k=2.5 --input x=Bx7") == 0
    assert pqnet.load("net.h5").inputs == {"x": ((None, 7), "float32")}
    assert run("verify net.h5") == 0 and run("export onnx net.h5 -o again.onnx") == 0
    assert run("convert onnx again.onnx -o again.h5") == 0
    x = np.float32([[-1, 2, 0, 1, 3, -2, 5]])
    assert np.array_equal(pqnet.load("again.h5")(x), 2.5 * np.maximum(x, 0))


# -- help ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "",
        "convert",
        "compress",
        "calibrate",
        "plan",
        "quantize",
        "train",
        "finetune",
        "export",
        "run",
        "inspect",
        "verify",
        "diff",
        "patch",
        "sign",
        "keygen",
        "doctor",
        "demo",
    ],
)
def test_every_help_has_an_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        run(f"{command} -h")
    out = capsys.readouterr().out
    assert done.value.code == 0 and out.startswith(f"usage: pqnet {command}")
    examples = re.findall(r"^  (pqnet .+)$", out.partition("example:")[2], re.M)
    assert examples and all(example.startswith(f"pqnet {command}") for example in examples)
    assert all(callable(build_parser().parse_args(example.split()[1:]).run) for example in examples)
    assert command in ("", "convert") or ("--seed" in out and "--threads" in out)


@pytest.mark.parametrize("source", ["torch", "onnx", "kill-the-bits", "pqf"])
def test_help_of_converters(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    with pytest.raises(SystemExit) as done:
        run(f"convert {source} -h")
    out = capsys.readouterr().out
    assert done.value.code == 0 and f"example:\n  pqnet convert {source} " in out and "--seed" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        run("--version")
    assert done.value.code == 0 and capsys.readouterr().out == f"pqnet {pqnet.__version__}\n"


# -- bad command lines -----------------------------------------------------------------------------------------

BAD = [
    ("", "the following arguments are required: COMMAND"),
    ("squash model.h5", "invalid choice: 'squash'"),
    ("run model.h5 --input x.npy", "run: expected --output, --labels or both, got neither"),
    ("run model.h5 --input x.npy --labels seven.npy", r"--labels: expected one integer for each of 120 samples, got f"),
    ("run model.h5 --input x.npy --labels x.npz", r"x.npz: expected an array for|inputs: expected arrays for"),
    ("run total.h5 --input seven.npy --labels sevens.npy", "expected class numbers below 4, .* got 7 for sample 0"),
    ("run onerow.h5 --input ids.npy --labels none.npy", "--labels: expected one integer for each of 2 samples, got f"),
    ("run model.h5 -o y.npy", "expected --input, or --image and --text, got none"),
    ("run model.h5 --input x.npy -o y.npy --fast", "unrecognized arguments: --fast"),
    ("run model.h5 --input x.npy -o y.npy --thr 1", "unrecognized arguments: --thr 1"),
    ("run missing.h5 --input x.npy -o y.npy", "path: cannot read missing.h5: No such file or directory"),
    ("run damaged.h5 --input x.npy -o y.npy", "the file is damaged: its content does not match its checksum"),
    ("run stats.h5 --input x.npy -o y.npy", "expected a model file, got a statistics file"),
    ("run x.npy --input x.npy -o y.npy", "expected a pqnet file, got a file of another format"),
    ("run model.h5 --input missing.npy -o y.npy", "missing.npy: expected a readable .npy, .npz or .h5 file"),
    ("run model.h5 --input object.npy -o y.npy",
     "object.npy: .*Object arrays cannot be loaded when allow_pickle=False"),
    ("run model.h5 --input text.npy -o y.npy", "text.npy: expected a readable .npy, .npz or .h5 file of numbers"),
    ("run model.h5 --input cut.npz -o y.npy", "cut.npz: expected a readable .npy, .npz or .h5 file of numbers"),
    ("run model.h5 --input model.h5 -o y.npy", "model.h5: expected a plain HDF5 file of arrays, got a pqnet file"),
    ("run model.h5 --input wide.npy -o y.npy",
     r"input 'input': expected shape \(any > 0, 1, 8, 8\), got \(32, 1, 8, 7\)"),
    ("run model.h5 --input nan.npy -o y.npy", "input 'input': expected finite float32 numbers"),
    ("run model.h5 --input none.npy -o y.npy", "inputs: expected equally many samples, at least one, got"),
    ("run model.h5 --input image=x.npy -o y.npy",
     r"image=x.npy: expected NAME=FILE with a name of \['input'\], got 'image'"),
    ("run model.h5 --input x.npy --input x.npy -o y.npy", "x.npy: input 'input' is given twice"),
    ("run two.h5 --input x.npy -o y.npz", r"x.npy: expected NAME=FILE with a name of \['a', 'b'\], got no name"),
    ("run two.h5 --input b3.npz -o y.npz", r"inputs: expected arrays for \['a', 'b'\], got \['b'\]"),
    ("run two.h5 --input a=b3.npz -o y.npz", r"a=b3.npz: expected an array 'a' in the file, got \['b'\]"),
    ("run two.h5 --input a4.npz --input b3.npz -o y.npz", r"expected equally many samples, at least one, got \[3, 4\]"),
    ("run two.h5 --input ab.npz -o y.npy", "--output: expected a file name ending in .npz, got y.npy"),
    ("run model.h5 --input x.npy -o y.txt", "--output: expected a file name ending in .npy or .npz, got y.txt"),
    ("run model.h5 --input x.npy -o none/y.npy", "--output: expected a file in an existing folder, got none/y.npy"),
    ("run model.h5 --input x.npy --batch 0 -o y.npy", "argument --batch: expected an integer of at least 1, got '0'"),
    ("run model.h5 --input x.npy --threads 0 -o y.npy",
     "argument --threads: expected an integer of at least 1, got '0'"),
    ("inspect model.h5 --threads many", "argument --threads: expected an integer of at least 1, got 'many'"),
    ("demo --seed -1", "argument --seed: expected an integer of at least 0 and at most 9223372036854775807, got '-1'"),
    ("demo --preset huge", "recipe: expected one of 'small-blocks', 'large-blocks', 'transformer', .*, got str 'huge'"),
    ("calibrate model.h5 --calibration x.npy -o s.h5 --seed 1.5", "argument --seed: expected an integer of at least 0"),
    ("calibrate model.h5 --calibration x.npy -o s.h5 --seed 9223372036854775808",
     "argument --seed: expected an integer of at least 0 and at most 9223372036854775807, got '9223372036854775808'"),
    ("calibrate model.h5 --calibration x.npy -o s.npy", "--output: expected a file name ending in .h5, got s.npy"),
    ("calibrate model.h5 --calibration wide.npy -o s.h5", r"expected shape \(any > 0, 1, 8, 8\), got"),
    ("calibrate model.h5 --calibration x.npy --merge model.h5 -o s.h5", "expected a statistics file, got a model file"),
    ("quantize model.h5 --preset small-blocks --recipe recipe.yaml -o q.h5",
     "--recipe: not allowed with argument --preset"),
    ("quantize model.h5 --calibration x.npy -o q.h5", "quantize: expected --preset, --recipe .*, got none"),
    ("quantize model.h5 --calibration x.npy --preset huge -o q.h5", "recipe: expected one of 'small-blocks', .*'huge'"),
    ("quantize model.h5 --calibration x.npy --statistics stats.h5 --preset small-blocks -o q.h5",
     "expected one of --calibration and --statistics, got both"),
    ("quantize model.h5 --preset small-blocks -o q.h5",
     "calibration: expected data or statistics for metric='full', got None"),
    ("quantize model.h5 --statistics stats.h5 --preset small-blocks --reestimate-norm -o q.h5",
     "reestimate_norm: expected calibration data, got none; statistics are not enough"),
    ("quantize model.h5 --statistics stats.h5 --preset small-blocks --metric whole -o q.h5",
     "metric: expected one of 'none'"),
    ("quantize model.h5 --statistics stats.h5 --recipe missing.yaml -o q.h5", "recipe: expected a readable YAML file"),
    ("quantize model.h5 --statistics stats.h5 --recipe broken.yaml -o q.h5",
     "recipe: expected YAML, got text that does not"),
    ("quantize model.h5 --statistics stats.h5 --recipe lost.yaml -o q.h5", r"pattern 'block\*' matches no layer"),
    ("quantize small.h5 --statistics stats.h5 --preset small-blocks -o q.h5",
     "expected a float weight, got a packed one"),
    ("quantize two.h5 --preset small-blocks --metric none -o q.h5",
     "recipe: expected a codec for at least one layer, got none"),
    ("quantize model.h5 --preset small-blocks --mode ipq --metric none -o q.h5",
     "metric: expected None with mode='ipq', which sets it, got 'none'"),
    ("quantize model.h5 --preset small-blocks --mode ipq --no-correct-bias -o q.h5",
     "correct_bias: expected None with mode='ipq'"),
    ("quantize model.h5 --preset small-blocks --mode ipq --checkpoint x.npy -o q.h5",
     "checkpoint: expected a folder that can be written to, got str 'x.npy'"),
    ("verify damaged.h5", "the file is damaged"),
    ("verify other.h5", "recorded outputs: expected a relative difference of at most 0.001, got 0.333"),
    ("verify small.h5 --tolerance -1", "recorded outputs: expected a relative difference of at most -1.0"),
    ("verify small.h5 --reference model.h5", "expected --reference and --input together, got one of them"),
    ("verify small.h5 --reference two.h5 --input x.npy", r"inputs: expected a dict with exactly the keys \['a', 'b'\]"),
    ("verify two.h5 --reference total.h5 --input ab.npz", "inputs: expected a dict with exactly the keys"),
    ("verify fixed.h5 --reference total.h5 --input six.npy --batch 4",
     r"output 'total': expected one entry along axis 0 for each of the 4 samples"),
    ("run total.h5 --input six.npy --batch 4 -o y.npz",
     r"output 'total': expected one entry along axis 0 for each of the 4 samples of a batch, got shape \(\); run one"),
    ("run fixed.h5 --input seven.npy -o y.npy", r"input 'x': expected shape \(3, 4\), got \(1, 4\)"),
    ("verify free.h5 --reference total.h5 --input six.npy",
     r"outputs: expected the names \['total', 'x2'\], got \['x2'\]"),
    ("verify free.h5 --batch 0", "argument --batch: expected an integer of at least 1, got '0'"),
    ("convert", "the following arguments are required: source"),
    ("convert caffe net.prototxt -o m.h5", "expected a source of hf, kill-the-bits, onnx, pqf, torch, got 'caffe'"),
]  # fmt: skip

BAD_TORCH = [
    ("convert torch tinynet:Net --input 1x1x8x8 -o m.h5 --seed 99999999999999999999",
     "argument --seed: expected an integer of at least 0 and at most 9223372036854775807, got '99999999999999999999'"),
    ("convert torch tinynet:Net --input 1x1x8x8", "the following arguments are required: -o/--output"),
    ("convert torch tinynet:Net --input 1x1x8x8 -o m.pt", "--output: expected a file name ending in .h5, got m.pt"),
    ("convert torch tinynet:Net --input 1x-3 -o m.h5",
     r"--input: expected \[NAME=\]SHAPE such as 1x3x224x224 .*, got '1x-3'"),
    ("convert torch tinynet:Net --input 1x3x8x8 -o m.h5",
     "expected one that torch.export takes, got: .* 3 channels instead"),
    ("convert torch tinynet:Net --input a=1x1x8x8 --input 1x2 -o m.h5", "expected a name for every input or for none"),
    ("convert torch tinynet:Net --input 1x1x8x8 --weights weights.pth -o m.h5", "weights.pth does not fit the module"),
    ("convert torch tinynet:Net --input 1x1x8x8 --weights no.pth -o m.h5",
     "--weights: expected a readable file, got no.pth"),
    ("convert torch tinynet:Missing --input 1x8 -o m.h5",
     "expected package.module:name that can be imported and called"),
    ("convert torch missing:Net --input 1x8 -o m.h5", "ModuleNotFoundError: No module named 'missing'"),
    ("convert torch tinynet --input 1x8 -o m.h5", "'tinynet': TypeError: 'module' object is not callable"),
    ("convert torch tinynet:needs --input 1x8 -o m.h5", r"TypeError: needs\(\) missing 1 required positional argument"),
    ("convert torch tinynet:torch.zeros --input 1x8 -o m.h5",
     "expected package.module:name that can be imported and called"),
    ("convert torch tinynet:dict --input 1x8 -o m.h5", "expected package.module:name that can be imported and called"),
    ("convert torch builtins:dict --input 1x8 -o m.h5", "expected a torch.nn.Module or a callable .*, got dict"),
    ("convert torch tinynet:Middle --input 1x8 -o m.h5", "aten.kthvalue.default in the top module: there is no rule"),
    ("convert torch tinynet:Branching --input 1x8 -o m.h5",
     "expected one that torch.export takes, got: .*data-dependent"),
    ("convert onnx missing.onnx -o m.h5", "path: expected a readable ONNX file, got missing.onnx"),
    ("convert onnx model.h5 -o m.h5", "ONNX file: expected a model, got data that is damaged, truncated or of another"),
    ("convert onnx model.h5 -o m.h5 --input x=1x,", "--input: expected NAME=SHAPE such as images=1x3xHxW, got 'x=1x,'"),
    ("convert onnx model.h5 -o m.h5 --input 1x3", "--input: expected NAME=SHAPE such as images=1x3xHxW, got '1x3'"),
    ("convert onnx model.h5 -o m.h5 --value sr=high", "--value: expected NAME=NUMBER such as sr=16000, got 'sr=high'"),
    ("export caffe model.h5 -o m.proto", "export: expected a format of onnx, got 'caffe'"),
    ("export onnx model.h5 -o m.h5", "--output: expected a file name ending in .onnx, got m.h5"),
    ("convert kill-the-bits vgg x.pth -o m.h5", "arch: expected one of resnet18, resnet50, got 'vgg'"),
    ("convert kill-the-bits resnet18 missing.pth -o m.h5", "path: expected a readable checkpoint, got missing.pth"),
    ("convert pqf resnet18 model.h5 -o m.h5", "model.h5: expected a PyTorch checkpoint of tensors and dicts"),
    ("convert pqf resnet18 -o m.h5", "the following arguments are required: path"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "match"), BAD + BAD_TORCH, ids=[line for line, _ in BAD + BAD_TORCH])
def test_bad_command_lines(line: str, match: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one line that says what is wrong, no file; also what libraries write to the terminal counts."""
    if (line, match) in BAD_TORCH:
        pytest.importorskip("torch")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert run(line) == 2
    out, err = capfd.readouterr()
    assert re.fullmatch(r"pqnet: error: .+\n", err) and re.search(match, err), err
    assert "y." not in out and "bytes" not in out
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != "__pycache__"} == before


def test_a_failed_command_keeps_the_old_output(folder: Path) -> None:
    np.save("y.npy", np.arange(3))
    Path("q.h5").write_bytes(b"old")
    assert run("run model.h5 --input nan.npy -o y.npy") == 2
    assert run("quantize model.h5 --calibration nan.npy --preset small-blocks -o q.h5") == 2
    assert np.array_equal(np.load("y.npy"), np.arange(3)) and Path("q.h5").read_bytes() == b"old"


def test_an_interrupt_gives_130_and_no_file(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.pqnet, "quantize", interrupt)
    assert run("quantize model.h5 --statistics stats.h5 --preset small-blocks -o q.h5") == 130
    said = "no file is half written; with --checkpoint the same command could go on where it stopped"
    assert capsys.readouterr().err == f"pqnet: interrupted; {said}\n" and not Path("q.h5").exists()
    assert run("quantize model.h5 --statistics stats.h5 --preset small-blocks --checkpoint done -o q.h5") == 130
    said = "what is finished is in done: the same command goes on from there"
    assert capsys.readouterr().err == f"pqnet: interrupted; {said}\n" and not Path("q.h5").exists()


def test_ranges_from_statistics(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("calibrate model.h5 --calibration x.npy --activations int8 -o ranged.h5") == 0
    assert run("quantize model.h5 --statistics ranged.h5 --activations int8 --observer minmax -o q8.h5") == 0
    ranges = pqnet.load("q8.h5").graph.meta["input_ranges"]
    assert ranges["conv1"][1] == pytest.approx(np.load("x.npy").max(), rel=1e-5)
    assert run("quantize model.h5 --statistics stats.h5 --activations int8 -o q8.h5") == 2
    assert "calibrate with activations='int8'" in capsys.readouterr().err


def test_low_precision(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("quantize small.h5 --calibration x.npy --activations int8 --max-drop 0.05 -o q8.h5") == 0
    assert run("inspect q8.h5") == 0
    shown = capsys.readouterr().out
    assert run("inspect q8.h5 --json") == 0
    layer = json.loads(capsys.readouterr().out)["layers"]["layer1.0.conv1"]["integers"]
    meta = pqnet.load("q8.h5").graph.meta
    low, high = meta["input_ranges"]["layer1.0.conv1"]
    assert layer["range"] == [low, high] and layer["scale"] == pytest.approx((high - low) / 255)
    assert layer["zero_point"] == round(-low * 255 / (high - low))
    assert layer["largest_shift"] == pytest.approx(127 * meta["output_shifts"]["layer1.0.conv1"][0])
    numbers = (low, high, layer["scale"], layer["zero_point"], layer["largest_shift"])
    row = " +".join([re.escape(f"{number:.4g}") for number in numbers] + ["tensor"])
    assert re.search(rf"inputs as 8-bit integers +least .*shift +for each\n(.*\n)*layer1\.0\.conv1 +{row}\n", shown)
    pqnet.Model(replace(pqnet.load("q8.h5").graph, meta=meta | {"token_scales": ["fc"]})).save("tokens.h5")
    assert run("inspect tokens.h5") == 0
    assert re.search(r"\nfc .* at run time +\S+ +token\n", capsys.readouterr().out)
    assert run("run small.h5 --input x.npy -o y.npy") == 0
    want = np.load("y.npy")
    for compute in ("float32", "bfloat16", "int8", "auto"):
        assert run(f"run q8.h5 --input x.npy --compute {compute} -o y.npy") == 0
        assert np.abs(np.load("y.npy") - want).max() <= (0 if compute == "float32" else 0.1 * np.abs(want).max())
    assert run("bench q8.h5 --compute auto --runs 1 --explain") == 0
    assert run("run q8.h5 --input x.npy --compute int4 -o y.npy") == 2


def test_missing_pytorch_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "pqnet_converters"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run("convert torch net:Net --input 1x8 -o m.h5") == 2
    assert re.fullmatch(r"pqnet: error: convert torch: needs the package 'torch'; .*\n", capsys.readouterr().err)
    for name in [n for n in sys.modules if n.startswith("pqnet.train")]:
        monkeypatch.delitem(sys.modules, name)
    assert run("finetune small.h5 --teacher model.h5 --data x.npy -o m.h5") == 2
    assert re.fullmatch(r"pqnet: error: finetune: needs the package 'torch'; .*\n", capsys.readouterr().err)


# -- as a process ----------------------------------------------------------------------------------------------


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pqnet", *arguments], capture_output=True, text=True, check=False)


def test_python_m_pqnet(folder: Path) -> None:
    done = process("run", "small.h5", "--input", "x.npy", "-o", "y.npy")
    assert (done.returncode, done.stderr) == (0, "")
    np.testing.assert_allclose(np.load("y.npy"), pqnet.load("small.h5")(np.load("x.npy")), rtol=1e-5, atol=1e-5)
    done = process("run", "small.h5", "--input", "wide.npy", "-o", "z.npy")
    assert done.returncode == 2 and re.fullmatch("pqnet: error: .+\n", done.stderr) and not Path("z.npy").exists()


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    line = f"{sys.executable} -m pqnet inspect small.h5 --json | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{", "")


def test_bench_explains_every_step_and_warmup_says_when_it_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"bench {model_path()} --batch 3 --runs 2 --explain") == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"first run [\d.]+ ms, then median [\d.]+ ms, min [\d.]+ ms", lines[0])
    names = set(pqnet.load(model_path()).graph.layers())
    assert names <= {line.split()[0] for line in lines[2:-1]}
    assert {"input", "step"} <= {line.split()[0] for line in lines[1:-1]}
    shares = [float(re.search(r"([\d.]+)%", line)[1]) for line in lines[2:-1]]  # type: ignore[index]
    assert abs(sum(shares) - 100) < 0.1 * len(shares)
    assert re.fullmatch(r"\d+ steps, [\d.]+ ms in all", lines[-1])
    assert run(f"warmup {model_path()} --batch 1 --batch 2") == 0
    assert "ready for batches of 1, 2 in" in capsys.readouterr().out
    assert run(f"bench {model_path()} --batch 0") == 2
    assert run("warmup missing.h5") == 2
    assert "missing.h5" in capsys.readouterr().err


def test_warmup_on_one_thread_readies_the_kernels_of_helping_threads() -> None:
    code = "from pqnet.cli.main import main\nfrom pqnet.kernels import driver\n"
    code += f"main(['warmup', {str(model_path())!r}])\nprint(len(driver.serve_jobs.signatures))"
    environment = os.environ | {"PQNET_NUM_THREADS": "1", "PQNET_TUNE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1"
