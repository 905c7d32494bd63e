"""The fuzzing script: a few mutants of every class with a fixed seed, and that it notices what it is for."""

import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from pqnet import FormatError
from pqnet.io import read_arrays

SCRIPT = Path(__file__).parent / "fuzz" / "fuzz.py"

# Mutants 0 to 3 crash, hang, take memory, raise; the others are fine.
FAULTS = f"""
import ctypes, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import fuzz

def load(rng, path):
    number = int(path.read_text())
    if number == 0:
        ctypes.string_at(0)
    while number == 1:
        pass
    if number == 2:
        bytearray(1 << 30)
    if number == 3:
        raise TypeError("three")
    return "read"

fuzz.SECONDS = 1
original = fuzz.one

def one(kind, seed, number, path):
    fuzz.CLASSES["recipe"] = (lambda rng, path: path.write_text(str(number)), load, ".yaml")
    return original(kind, seed, number, path)

fuzz.one = one
if __name__ == "__main__":
    sys.exit(fuzz.main())
"""


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), "--seconds", "60", "--workers", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


MUTANTS = {"model": 60, "recipe": 60, "npy": 60, "hdf5": 20, "onnx": 60, "npz": 60, "statistics": 40}
MUTANTS |= {"checkpoint": 30, "training": 40, "update": 60}


@pytest.mark.parametrize("kind", MUTANTS)
def test_mutants_are_refused_or_right(kind: str) -> None:
    if package := {"onnx": "onnx", "training": "torch"}.get(kind):
        pytest.importorskip(package)
    done = run(SCRIPT, "--class", kind, "--mutants", str(MUTANTS[kind]))
    assert done.returncode == 0, done.stdout + done.stderr
    refused = "quantized again" if kind == "checkpoint" else "refused"
    assert re.search(rf"\d {kind} {refused}\n", done.stdout)
    assert re.search(rf"\d {kind} (read|run|used)\n", done.stdout)


def test_a_crash_a_hang_memory_and_other_exceptions_are_noticed() -> None:
    Path("faults.py").write_text(FAULTS)
    done = run(Path("faults.py"), "--class", "recipe", "--mutants", "6", "--keep", "found")
    assert done.returncode == 1 and sorted(path.name for path in Path("found").iterdir()) == [
        f"recipe-0-{number}.yaml" for number in range(4)
    ]
    for number, what in enumerate(["the process ended with -11", "a hang", "MemoryError", "TypeError at .*: three"]):
        assert re.search(rf"recipe-0-{number}.yaml: wrong: .*{what}", done.stdout), done.stdout
    assert "2 recipe read" in done.stdout


def test_one_process_reads_hdf5_files_as_pqnet_does_and_another_follows_if_it_dies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    hdf5 = importlib.import_module("hdf5")
    with h5py.File("good.h5", "w") as file:
        file["g/a"], file["b"] = np.arange(6).reshape(2, 3), np.float32(0.5)
    Path("bad.h5").write_bytes(Path("good.h5").read_bytes()[:-100])
    processes = set()
    for _ in range(2):
        for _ in range(3):
            got, want = hdf5.read_arrays("good.h5"), read_arrays("good.h5")
            assert list(got) == list(want) and all(np.array_equal(got[name], want[name]) for name in want)
            with pytest.raises(FormatError, match="bad.h5: the HDF5 data cannot be read"):
                hdf5.read_arrays("bad.h5")
            processes.add(hdf5.reader.process.pid)
        os.kill(hdf5.reader.process.pid, signal.SIGKILL)
    hdf5.reader.stop()
    assert len(processes) == 2


def test_coverage_guided_fuzzing_keeps_what_goes_wrong() -> None:
    pytest.importorskip("atheris")
    script = [sys.executable, str(SCRIPT.with_name("guided.py")), "recipe"]
    done = subprocess.run([*script, "--seconds", "2"], capture_output=True, text=True)
    assert done.returncode == 0 and "Done" in done.stderr and not list(Path("fuzz-found").iterdir()), done.stderr
    broken = f"import sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\nimport guided\n"
    broken += "def load(rng, path):\n    raise TypeError\n"
    broken += "guided.CLASSES['recipe'] = (guided.CLASSES['recipe'][0], load, '.yaml')\nguided.main()\n"
    Path("broken.py").write_text(broken)
    done = subprocess.run([sys.executable, "broken.py", "recipe", "--seconds", "60"], capture_output=True, text=True)
    assert done.returncode != 0 and [path.name[:6] for path in Path("fuzz-found").iterdir()] == ["crash-"], done.stderr


@pytest.mark.exhaustive
def test_soak_of_the_service_finds_nothing_wrong() -> None:
    pytest.importorskip("PIL")
    script = [sys.executable, str(SCRIPT.with_name("soak.py")), "--minutes", "0.1", "--clients", "3", "--swap", "0.3"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0 and "0 wrong answers, exit code 0" in done.stdout, done.stdout + done.stderr
    assert re.search(r"\d right, model", done.stdout) and re.search(r"\d refused", done.stdout)
