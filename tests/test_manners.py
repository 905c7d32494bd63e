"""What the command line does for people: names that are near, tables that fit, JSON for programs, completion."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pqnet
from pqnet import PQNetError
from pqnet.cli.main import main
from pqnet.cli.table import Column, print_table
from pqnet.demo import load_images, model_path
from pqnet.errors import did_you_mean


@pytest.fixture
def files() -> None:
    model = pqnet.load(model_path())
    model.with_golden(model.draw_golden()).save("model.h5")
    pqnet.quantize(model, "small-blocks", metric="none").save("small.h5")
    np.save("x.npy", load_images()[0][:100])
    np.savez("x.npz", imput=load_images()[0][:4])


# -- did you mean ----------------------------------------------------------------------------------------------

COMMANDS = {
    "quantise model.h5": "invalid choice: 'quantise' .*; did you mean 'quantize'",
    "quantize model.h5 --calibraton x.npy -o s.h5": "arguments: --calibraton .*; did you mean '--calibration'",
    "run model.h5 --inputs=x.npy -o y.npy": "did you mean '--input'",
    "quantize model.h5 --preset small-block --metric none -o s.h5": "did you mean 'small-blocks'",
    "quantize model.h5 --preset bgd-resnet50 --metric none -o s.h5": "did you mean 'bgd-resnet50-",
    "quantize model.h5 --preset small-blocks --metric non -o s.h5": "did you mean 'none'",
    "quantize model.h5 --preset small-blocks --calibration x.npy --effort hihg -o s.h5": "did you mean 'high'",
    "quantize model.h5 --preset small-blocks --mode bgb --calibration x.npy -o s.h5": "did you mean 'bgd'",
    "run model.h5 --compute bfloat --input x.npy -o y.npy": "did you mean 'bfloat16'",
    "run model.h5 --input imput=x.npy -o y.npy": "did you mean 'input'",
    "run model.h5 --input x.npz -o y.npy": "did you mean 'input'",
    "train model.h5 --method noisy --data x.npy -o s.h5": "did you mean 'noise'",
    "bench model.h5 --size bach=3": "",
    "convert onxx model.onnx -o m.h5": "did you mean 'onnx'",
    "convert onnx model.onnx --outptu m.h5 -o m.h5": "did you mean '--output'",
    "completion bsh": "did you mean 'bash'",
}
RECIPES = {
    "'layer1.0.conv2': {codec: scaler, k: 16}": "did you mean 'scalar'",
    "'layer1.0.conv2': {codec: pq, k: 16, dd: 3}": "did you mean 'd'",
    "'layer1.0.conv_2': {codec: pq, k: 16, d: 9}": "did you mean 'layer1.0.conv2'",
    "defualt: {codec: pq, k: 16, d: 9}": "did you mean 'default'",
    "'layer1.0.conv2': {codec: pq, k: 16, d: 9, layout: chanel}": "did you mean 'channel'",
}


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("line", COMMANDS)
def test_names_that_are_near_are_named(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    if line.startswith("train"):
        pytest.importorskip("torch")
    if line.startswith("convert onnx"):
        pytest.importorskip("onnx")
    if line.startswith("completion"):
        pytest.importorskip("shtab")
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"pqnet: error: .+\n", err) and re.search(COMMANDS[line], err), err


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("text", RECIPES)
def test_recipes_say_which_name_is_near(text: str) -> None:
    with pytest.raises(PQNetError, match=RECIPES[text]):
        pqnet.quantize(pqnet.load("model.h5"), pqnet.Recipe.from_yaml(text), metric="none")


def test_nothing_is_guessed_without_a_reason() -> None:
    assert did_you_mean("squash", ["quantize", "run"]) == "" and did_you_mean(3, ["a"]) == ""
    assert did_you_mean("FC", ["conv1", "fc"]) == "; did you mean 'fc'?"
    assert did_you_mean("fc", ["fc"]) == ""
    with pytest.raises(PQNetError, match=r"got \['imput'\]; did you mean 'input'\?"):
        pqnet.load(model_path()).run({"imput": load_images()[0][:1]})
    with pytest.raises(PQNetError, match="did you mean 'bfloat16'"):
        pqnet.load(model_path(), compute="bfloat")


# -- tables ----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def printed(monkeypatch: pytest.MonkeyPatch, columns: int | None, call: Any) -> list[str]:
    """Return the lines that are printed on a terminal of so many columns, or on none."""
    stream = io.StringIO() if columns is None else Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setenv("COLUMNS", str(columns or 40))
        patch.setenv("TERM", "xterm")
        call()
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()


LONG = "model.backbone.stage3.block12.attention.projection"


@pytest.mark.parametrize("columns", [40, 60, 80, 200, None])
def test_tables_fit_the_terminal(columns: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = [Column("layer", False), Column("shape", False, 2), Column("bytes"), Column("error", rank=1)]
    rows = [[f"{LONG}.{name}", "1024x1024x3x3", "123456", "0.0123"] for name in ("q", "k", "[v]")]
    lines = printed(monkeypatch, columns, lambda: print_table(titles, rows))
    assert len(lines) == 4 and all(len(line) <= (columns or 1000) for line in lines)
    assert all("123456" in line for line in lines[1:]) and len(set(lines[1:])) == 3  # whose ends differ
    if columns is None or columns == 200:
        assert lines[3].split() == [f"{LONG}.[v]", "1024x1024x3x3", "123456", "0.0123"]
    else:
        assert "…" in lines[3]
    assert ("1024x1024x3x3" in lines[1]) == (columns != 40) and "0.0123" in lines[1]


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("line", ["inspect small.h5", "bench small.h5 --runs 1 --explain --quiet"])
def test_commands_print_tables_that_fit(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(monkeypatch, 64, lambda: main(line.split()))
    start = next(i for i, text in enumerate(lines) if text.startswith(("layer ", "step ")))
    layers = pqnet.load("small.h5").graph.layers()
    table = lines[start : start + 1 + len(layers)]
    assert all(len(text) <= 64 for text in table)
    whole = printed(monkeypatch, None, lambda: main(line.split()))
    assert all(any(text.startswith(name) for text in whole) for name in layers)


# -- JSON ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("files")
def test_json_of_every_command_that_prints_results(capsys: pytest.CaptureFixture[str]) -> None:
    def found(line: str) -> Any:
        assert main([*line.split(), "--json", "--quiet"]) == 0
        return json.loads(capsys.readouterr().out)

    assert found("inspect small.h5")["file_bytes"] == Path("small.h5").stat().st_size
    timed = found("bench small.h5 --runs 3 --explain --batch 2")
    assert 0 < timed["least_seconds"] <= timed["median_seconds"] and timed["batch"] == 2
    assert {"fc"} <= {step["label"] for step in timed["steps"]}
    assert "steps" not in found("bench small.h5 --runs 1")
    (plan,) = found("plan model.h5 --calibration x.npy --target-size 20x --curve c.csv -o r.yaml")["plans"]
    assert 0.99 * plan["target_bytes"] <= plan["bytes"] <= plan["target_bytes"]
    recipe = pqnet.Recipe.read("r.yaml").to_dict()
    assert {name: layer["codec"] for name, layer in plan["layers"].items()}.items() >= recipe.items()
    checked = found("verify small.h5 --reference model.h5 --input x.npy")
    assert checked["outputs"]["logits"]["same_argmax"] > 0.5 and checked["recorded_difference"] is None
    assert found("verify model.h5")["recorded_difference"] < 1e-3
    small = found("compress model.h5 --calibration x.npy --keep 50% -o c.h5 --curve t.csv")
    assert small["bytes"] == Path("c.h5").stat().st_size and small["kept"] >= 0.5
    assert [t["nbytes"] for t in small["tries"] if t["enough"]] and Path("t.csv").exists()


# -- completion and imports ------------------------------------------------------------------------------------


def test_completion(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    for shell in ("zsh", "tcsh", "bash"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert "quantize" in script and "small-blocks" in script and "--calibration" in script
    Path("pqnet.bash").write_text(script)

    def completed(*words: str) -> set[str]:
        code = f"source ./pqnet.bash; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_pqnet; "
        done = subprocess.run(["bash", "-c", code + 'printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True)
        return set(done.stdout.split())

    assert completed("pqnet", "comp") == {"compress", "completion"}
    assert completed("pqnet", "quantize", "m.h5", "--preset", "small") == {"small-blocks"}
    assert completed("pqnet", "train", "m.h5", "--method", "l") == {"lc"}
    assert "--log-file" in completed("pqnet", "run", "m.h5", "--lo")


@pytest.mark.usefixtures("files")
def test_running_loads_nothing_that_only_shows() -> None:
    code = (
        "import sys; from pqnet.cli.main import main; assert main('run small.h5 --input x.npy -o y.npy'.split()) == 0; "
    )
    code += "print([m for m in ('rich', 'tqdm', 'shtab', 'torch', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and done.stderr == ""
