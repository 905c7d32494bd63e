"""How many threads PyTorch gets: no more than there are CPUs for."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from test_pipeline import DATA, RECIPE, small_net  # noqa: E402

import pqnet  # noqa: E402
from pqnet.train import distill, parallel  # noqa: E402
from pqnet.train.state import write_state  # noqa: E402


def test_threads_by_default_are_no_more_than_free_cpus(monkeypatch):
    """Of two processes with two threads each on two CPUs every one took ten times as long as with one thread."""
    before = torch.get_num_threads()
    monkeypatch.setattr(parallel, "default_threads", lambda: 8)
    monkeypatch.setattr(parallel, "free_cpus", lambda: 0)
    with parallel.torch_threads(None):
        assert torch.get_num_threads() == 1
    with parallel.torch_threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="free CPUs are known on Linux")
@pytest.mark.parametrize(("busy", "free"), [((0, 0, 0), 3), ((9, 2, 0), 2), ((10, 10, 4), 0), ((5, 0, 0), 2)])
def test_free_cpus_are_counted(monkeypatch, busy, free):
    """Tenths of a second that others have used of three CPUs; a fourth is not ours."""
    rows = iter([np.zeros((3, 8), int), np.array([[b, 0, 0, 8 - b // 2, 2 - b + b // 2, 0, 0, 0] for b in busy])])
    monkeypatch.setattr(parallel, "_ticks", lambda names: next(rows))
    assert parallel.free_cpus(0) == free


def test_a_stopped_run_goes_on_with_its_threads(tmp_path, monkeypatch):
    teacher = small_net()
    student = pqnet.quantize(teacher, RECIPE, metric="none", progress=False)
    options = {"steps": 4, "batch_size": 16, "checkpoint": tmp_path / "state.pt", "progress": False}
    distill(student, teacher, DATA, threads=1, **options)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["threads"] == 1
    write_state(tmp_path / "state.pt", state.pop("key"), {**state, "threads": 3})
    seen, give = [], torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda n: seen.append(n) or give(n))
    distill(student, teacher, DATA, threads=1, **options)
    assert 3 not in seen
    distill(student, teacher, DATA, **options)
    assert 3 in seen
