"""``pqnet doctor``: what it prints is so, and what is wrong gives exit code 1."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pqnet import _threads
from pqnet.cli import doctor
from pqnet.cli.main import main
from pqnet.kernels import cache, cpu


def report(capsys: pytest.CaptureFixture[str], code: int) -> dict[str, Any]:
    assert main(["doctor", "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_healthy_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "none" / "kernels"
    monkeypatch.setattr(cache, "folders", lambda: (folder, Path("/proc/kernels")))
    monkeypatch.setattr(_threads, "cpu_quota", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("PQNET_NUM_THREADS", "5")
    found = report(capsys, 0)
    assert found["problems"] == [] and found["self_test"]["difference"] <= doctor.TOLERANCE
    assert found["packages"]["numpy"] == np.__version__ and found["cpu"]["instruction_set"] == cpu.ISA
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits = {"affinity": affinity, "quota": 3, "OMP_NUM_THREADS": 2, "PQNET_NUM_THREADS": 5}
    assert found["threads"] == {"used": 5, "limits": limits}
    assert [entry["writable"] for entry in found["caches"]] == [True, False]
    folder = tmp_path / "full" / "kernels"
    monkeypatch.setattr(cache, "folders", lambda: (folder,))
    folder.mkdir(parents=True)
    (folder / "kernel").write_bytes(bytes(2_000_000))
    assert report(capsys, 0)["caches"][0] == {"path": str(folder), "bytes": 2_000_000, "writable": True}
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"kernels: {folder}, \d\.\d MB, writable\n", out) and out.endswith("\nall is well\n")
    assert f"threads: 5 (limits: affinity {affinity}, quota 3, OMP_NUM_THREADS 2, PQNET_NUM_THREADS 5)" in out


def test_variables_and_caches_that_are_of_no_use(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PQNET_NUM_THREADS", "many")
    monkeypatch.setattr(cache, "folders", lambda: (Path("/proc/kernels"),))
    threads, caches = report(capsys, 1)["problems"]
    assert threads == "PQNET_NUM_THREADS: expected a positive integer, got 'many', which is ignored"
    assert caches.startswith("caches: expected a folder that can be written to, got none")


@pytest.mark.parametrize("wrong", [lambda y: y * np.float32(1.001), lambda y: y * np.float32(np.nan)])
def test_a_wrong_result(wrong: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right = doctor.pqnet.Model.run
    monkeypatch.setattr(
        doctor.pqnet.Model, "run", lambda *args, **named: {n: wrong(y) for n, y in right(*args, **named).items()}
    )
    assert main(["doctor"]) == 1
    assert "\nwrong: self-test: expected logits within 0.0001 of NumPy's" in capsys.readouterr().out


def test_exit_code_of_the_process() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "0"}
    done = subprocess.run([sys.executable, "-m", "pqnet", "doctor"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "wrong: OMP_NUM_THREADS: expected a positive integer, got '0'" in done.stdout
