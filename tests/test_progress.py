"""Progress: what is shown on a terminal and elsewhere, movement within layers, and what commands say of it."""

import io
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba.core import event

import pqnet
from pqnet import _progress
from pqnet._progress import Progress, progress_bar, tick, ticking
from pqnet.cli.main import main
from pqnet.demo import load_images, model_path
from pqnet.pipeline.evaluate import run_batches

DEADLINE = 30.0  # seconds until what a thread writes has to be there


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def put_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Let the standard error be a terminal; in a test, as pytest sets it after fixtures."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "DRAW", 0.001)
    monkeypatch.setattr(_progress, "LINE", 0.001)


@pytest.fixture
def errors(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """All that was written to the standard error so far."""
    parts: list[str] = []

    def read() -> str:
        parts.append(capsys.readouterr().err)
        return "".join(parts)

    return read


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What every piece of work says that it is at, with its description."""
    found: list[tuple[str, str]] = []

    def record(self: Progress, name: str, value: Any) -> None:
        if name in ("inner", "name", "noted") and value:
            found.append((self.description, value))
        object.__setattr__(self, name, value)

    monkeypatch.setattr(Progress, "__setattr__", record, raising=False)
    return found


def wait_for(pattern: str, read: Callable[[], str]) -> str:
    """Return what was written as soon as it has the pattern in it."""
    end = time.monotonic() + DEADLINE
    while not re.search(pattern, text := read()):
        assert time.monotonic() < end, text
        time.sleep(0.005)
    return text


# -- what is shown ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_lines_without_a_terminal(errors: Callable[[], str]) -> None:
    """Time, what, done of total, time left by what units cost, and what is at hand."""
    with progress_bar(True, "quantize", "layer", 2, {"conv1": 3.0, "fc": 1.0}) as bar:
        bar.begin("conv1")
        wait_for(r"(?m)^\d\d:\d\d:\d\d quantize: 0 of 2 layers \(0%\), conv1$", errors)
        bar.update()
        bar.begin("fc")
        tick("k-means", 3, 100)
        wait_for(r"quantize: 1 of 2 layers \(75%\), about [\d.]+ s left, fc; k-means 3 of 100\n", errors)
        with progress_bar(False, "calibrate", "sample", 8) as inner:
            inner.update(2)
            wait_for(r"quantize: 1 of 2 layers .*, fc; calibrate: 2 of 8 samples \(25%\), about .* left\n", errors)
        bar.update()
    assert re.search(r"\n\d\d:\d\d:\d\d quantize: 2 of 2 layers in \d[\d.]* s\n$", errors())


@pytest.mark.usefixtures("quick")
def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = put_terminal(monkeypatch)
    with progress_bar(True, "compress", "try") as outer:
        outer.begin("1000 bytes")
        with progress_bar(True, "quantize", "layer", 4) as bar:
            bar.update()
            bar.begin("{0} of braces")
            for _ in ticking("sweep", range(3), 3):
                pass
            text = wait_for(r"sweep 3 of 3", terminal.getvalue)
            bar.note("loss 0.5")
            text = wait_for(r"loss 0.5", terminal.getvalue)
        _progress.tell("a line above it")
    text = terminal.getvalue()
    assert re.search(r"compress, quantize:  25%\|\S+ *\| 00:0\d 1 of 4 layers<00:0\d, \{0\} of braces, sweep 3", text)
    assert re.search(r"\ra line above it\n", text) and text.endswith("\n")
    assert not re.search(r"\d\d:\d\d:\d\d ", text)  # no lines beside it


@pytest.mark.usefixtures("quick")
def test_that_kernels_are_compiled_is_said(errors: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "COMPILING", 0.0)
    monkeypatch.setattr(_progress._Display, "told", False)
    with progress_bar(True, "run", "sample", 8):
        with event.trigger_event("numba:compile"), event.trigger_event("numba:compile"):
            wait_for(r"run: compiling kernels, once on this machine\n", errors)
            wait_for(r"run: 0 of 8 samples \(0%\); compiling kernels \(\d+\)\n", errors)
        assert _progress._compiling.since is None
        with pytest.raises(KeyError), event.trigger_event("numba:compile"):
            raise KeyError
        assert _progress._compiling.since is None


def test_nothing_is_shown_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = put_terminal(monkeypatch)
    monkeypatch.setattr(_progress, "_Display", None)
    with progress_bar(False, "quantize", "layer", 2) as bar:
        bar.update()
    tick("k-means", 1, 2)  # outside of all work
    assert terminal.getvalue() == ""


def test_time_left_is_by_cost_and_without_what_an_earlier_run_did() -> None:
    bar = progress_bar(False, "quantize", "layer", 3, {"a": 6.0, "b": 1.0, "c": 3.0})
    bar.skip(name="a")
    bar.since = 100.0
    assert bar.left(110.0) is None and bar.share == 0.6
    bar.begin("b")
    bar.update()
    assert bar.left(110.0) == pytest.approx(30.0) and bar.count() == "2 of 3 layers"
    bar.extend({"repair": 7.0})
    assert bar.left(110.0) == pytest.approx(100.0) and bar.count() == "2 of 4 layers"
    assert progress_bar(False, "compress", "try").left(5.0) is None


def test_the_thread_that_draws_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    put_terminal(monkeypatch)
    with pytest.raises(KeyboardInterrupt), progress_bar(True, "work", "step", 2) as bar:
        display = bar._display
        raise KeyboardInterrupt
    assert display is not None and not display.thread.is_alive() and not list(_progress._bars)
    abandoned = progress_bar(True, "work", "step", 2)
    abandoned.__enter__()
    thread = abandoned._display.thread  # type: ignore[union-attr]
    assert abandoned._token is not None
    _progress._current.reset(abandoned._token)
    del abandoned
    thread.join(DEADLINE)
    assert not thread.is_alive()


# -- what says how far it is -----------------------------------------------------------------------------------


def test_quantize_moves_within_layers(said: list[tuple[str, str]]) -> None:
    model, images = pqnet.load(model_path()), load_images()[0][:64]
    pqnet.quantize(model, "small-blocks", images, progress=False, permute=True, repair="blocks", activations="int8")
    texts = {re.sub(r"\d+", "N", text) for description, text in said if description == "quantize"}
    assert {"k-means N of N", "inputs N of N", "forward, batch N of N", "iteration N of N", "scale N of N"} <= texts
    assert any(text.startswith("sweep N, input N of N") for text in texts)
    assert any("layers in integers" in text for text in texts)
    assert {"fc"} <= {text for _, text in said}


def test_other_long_work_says_what_it_is_at(said: list[tuple[str, str]]) -> None:
    model, images = pqnet.load(model_path()), load_images()[0][:100]
    pqnet.plan(model, images, "20x", progress=False)
    assert ("plan", "what reaches the outputs of fc") in said and ("plan", "fc") in said
    assert ("calibrate", "fc") in said
    pqnet.compress(model, images, keep=0.5, progress=False)
    assert any(what == "compress" and text.endswith(" bytes") for what, text in said)
    said.clear()
    pqnet.quantize(model, {"fc": pqnet.PQ(16, 4)}, mode="pqf", progress=False)
    assert ("quantize", "k-means 2 of 1001") in said


@pytest.mark.usefixtures("quick")
def test_running_shows_samples(errors: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = pqnet.load(model_path()), load_images()[0][:64]
    original, done = pqnet.Model.run, iter(range(0, 64, 16))

    def run(self: pqnet.Model, inputs: Any, **options: Any) -> Any:
        wait_for(rf"run: {next(done)} of 64 samples", errors)
        return original(self, inputs, **options)

    monkeypatch.setattr(pqnet.Model, "run", run)
    found = run_batches(model, {"input": images}, 16, progress=True)
    monkeypatch.undo()
    assert np.array_equal(found["logits"], model(images))
    assert re.search(r"run: 48 of 64 samples \(75%\), about .* left", errors())


@pytest.mark.usefixtures("quick")
def test_running_a_folder_shows_files_and_says_above_the_bar_what_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pqnet.load(model_path()).save("model.h5")
    images = load_images()[0][:300]
    np.save("x.npy", images)
    Path("parts").mkdir()
    for i in range(3):
        np.save(f"parts/{i}.npy", images[10 * i : 10 * i + 10])
    ended: list[tuple[str, float | None]] = []
    leave = Progress.__exit__

    def end(self: Progress, *error: Any) -> None:
        ended.append((self.count(), self.share))
        leave(self, *error)

    monkeypatch.setattr(Progress, "__exit__", end)
    terminal = put_terminal(monkeypatch)
    assert main(["run", "model.h5", "--input", "parts", "-o", "outputs"]) == 0
    assert ended == [*[("10 of 10 samples", 1.0)] * 3, ("3 of 3 files", 1.0)]
    assert "3 of 3 files" in terminal.getvalue()
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"outputs/{i}.npy" for i in range(3)
    ]
    ended.clear()
    assert main(["run", "model.h5", "--input", "x.npy", "-o", "y.npy"]) == 0
    assert ended == [("256 of 256 samples", 1.0), ("44 of 44 samples", 1.0), ("300 of 300 samples", 1.0)]


@pytest.mark.parametrize("way", ["lc", "noise", "distill", "blockwise"])
def test_training_says_how_far_it_is(way: str, said: list[tuple[str, str]]) -> None:
    pytest.importorskip("torch")
    import pqnet.train

    model, images = pqnet.load(model_path()), load_images()[0][:64]
    options: dict[str, Any] = {"steps": 2, "batch_size": 16, "every": 1, "progress": False}
    if way in ("lc", "noise"):
        pqnet.train.train(model, {"fc": pqnet.PQ(16, 4)}, images, method=way, **options)
        assert any(what == f"{way} 1 layers" and text.startswith("loss ") for what, text in said)
    else:
        student = pqnet.quantize(model, {"fc": pqnet.PQ(16, 4)}, metric="none", progress=False)
        stage = "global" if way == "distill" else way
        pqnet.train.distill(student, model, images, stage=stage, **options)
    assert any(text.startswith("judging, sample") for _, text in said)
    assert way != "blockwise" or ("distill", "fc") in said


# -- --quiet, --verbose, --log-file ----------------------------------------------------------------------------


@pytest.fixture
def files() -> None:
    pqnet.load(model_path()).save("model.h5")
    np.save("x.npy", load_images()[0][:64])


QUANTIZE = "quantize model.h5 --calibration x.npy --preset small-blocks -o small.h5"


@pytest.mark.usefixtures("files", "quick")
def test_quiet_is_quiet_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = put_terminal(monkeypatch)
    assert main(QUANTIZE.split()) == 0
    assert "quantize: 100%" in terminal.getvalue()
    shown, size = terminal.getvalue(), Path("small.h5").read_bytes()
    assert main([*QUANTIZE.split(), "--quiet"]) == 0
    assert terminal.getvalue() == shown and Path("small.h5").read_bytes() == size
    for line in ("run small.h5 --input x.npy -o y.npy", "verify small.h5", "bench small.h5 --runs 2"):
        before = len(terminal.getvalue())
        assert main([*line.split(), "--quiet"]) == 0 and len(terminal.getvalue()) == before
        assert main(line.split()) == 0 and len(terminal.getvalue()) > before


@pytest.mark.usefixtures("files")
def test_verbose_and_log_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUANTIZE.split(), "--verbose", "--log-file", "log.txt"]) == 0
    err, log = capsys.readouterr().err, Path("log.txt").read_text()
    for text in (err, log):
        assert re.search(r"\d\d:\d\d:\d\d\S* pqnet 0\.\S+, Python 3\.\S+: pqnet quantize model\.h5 .*\n", text)
        assert re.search(r"quantize: fc in [\d.]+ s\n", text) and re.search(r"done in [\d.]+ s\n", text)
    wrong = "quantize model.h5 --preset none --metric none -o s.h5 --log-file log.txt"
    assert main(wrong.split()) == 2
    assert Path("log.txt").read_text().startswith(log)  # it is added to
    assert re.search(r"failed after .* s: recipe: expected one of 'small-blocks'", Path("log.txt").read_text())
    assert main([*QUANTIZE.split(), "--log-file", "none/log.txt"]) == 2
    assert "--log-file: expected a file that can be written to, got none/log.txt: No such" in capsys.readouterr().err
    assert main([*QUANTIZE.split(), "--quiet", "--verbose"]) == 2
    assert "--verbose: not allowed with argument --quiet" in capsys.readouterr().err
