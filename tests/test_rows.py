"""Arrays in files and datasets of which only rows are read, as calibration data and as inputs."""

import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_pipeline import DATA, small_net

import pqnet
from pqnet import PQNetError
from pqnet.io import FileArray, open_arrays, read_rows
from pqnet.pipeline import measure
from pqnet.pipeline.batches import iterate_batches, known_samples

MODEL = small_net()


def saved(statistics: pqnet.Statistics) -> bytes:
    statistics.save("saved.h5")
    return Path("saved.h5").read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4", "uint8"])
@pytest.mark.parametrize("kind", ["npy", "fortran", "h5"])
def test_rows_of_files_are_those_of_the_array(kind: str, dtype: str) -> None:
    x = (np.arange(7 * 3 * 2).reshape(7, 3, 2) * 3).astype(dtype)
    if kind == "h5":
        with h5py.File("x.h5", "w") as file:
            file["group/x"] = x
        found = open_arrays("x.h5")["group/x"]
    else:
        np.save("x.npy", np.asfortranarray(x) if kind == "fortran" else x)
        found = open_arrays("x.npy")
    assert isinstance(found, FileArray) and found.shape == (7, 3, 2) and found.nbytes == x.nbytes
    np.testing.assert_array_equal(found[2:5], x[2:5])
    np.testing.assert_array_equal(found[5:], x[5:])
    np.testing.assert_array_equal(found[7:9], x[7:9])
    np.testing.assert_array_equal(found.take([0, 3, 6]), x[[0, 3, 6]])
    np.testing.assert_array_equal(np.asarray(found), x)
    parts = read_rows([found.part(slice(1, 3)), found.part(slice(3, 4)), found.part(slice(0, 2))])
    for part, expected in zip(parts, (x[1:3], x[3:4], x[:2]), strict=True):
        np.testing.assert_array_equal(part, expected)


def test_rows_that_follow_one_another_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File("x.h5", "w") as file:
        file["input"] = np.tile(DATA, (4, 1, 1, 1))
    started: list[object] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: started.append(command) or popen(command, **rest))
    pqnet.calibrate(MODEL, "x.h5", threads=1)  # ten batches: eight at once, and two
    assert len(started) == 3  # the first for shapes


def test_paths_and_datasets_give_what_their_arrays_give() -> None:
    np.save("x.npy", DATA)
    with h5py.File("x.h5", "w") as file:
        file["input"] = DATA
    np.savez("x.npz", input=DATA)
    expected = saved(pqnet.calibrate(MODEL, DATA))
    for path in ("x.npy", Path("x.h5"), "x.npz"):
        assert saved(pqnet.calibrate(MODEL, path)) == expected, path
    with h5py.File("x.h5") as file:
        assert saved(pqnet.calibrate(MODEL, file["input"])) == expected
        assert saved(pqnet.calibrate(MODEL, {"input": file["input"]})) == expected
    here = measure(MODEL, DATA[:80], progress=False)
    np.save("y.npy", DATA[:80])
    there = measure(MODEL, "y.npy", progress=False)
    assert there.options == here.options and there.gains == here.gains


def test_samples_of_files_are_known_before_they_are_read() -> None:
    np.save("x.npy", DATA)
    with h5py.File("x.h5", "w") as file:
        file["input"] = DATA
        assert known_samples(file["input"]) == known_samples({"input": file["input"]}) == 150
    opened = open_arrays("x.npy")
    assert isinstance(opened, FileArray)
    assert known_samples(opened) == known_samples({"input": opened}) == 150
    assert known_samples([DATA[:50], {"input": opened.part(slice(50, None))}]) == 150
    assert known_samples(iter([DATA])) is known_samples([iter([DATA])]) is None


def test_integers_in_files_are_cut_into_the_batches_of_floats() -> None:
    x = np.ones((100, 3, 80, 80), np.uint8)
    np.save("x.npy", x)
    graph = small_net().graph
    graph.inputs["input"] = type(graph.inputs["input"])(("batch", 3, 80, 80))
    sizes = [[len(b["input"]) for b in iterate_batches(graph, data)] for data in (x.astype(np.float32), "x.npy")]
    assert sizes[0] == sizes[1] and len(sizes[0]) > 1


def test_folders_are_batches_read_in_turn() -> None:
    Path("parts").mkdir()
    np.save("parts/b.npy", DATA[50:])
    np.savez("parts/a.npz", input=DATA[:50])
    assert saved(pqnet.calibrate(MODEL, "parts")) == saved(pqnet.calibrate(MODEL, [DATA[:50], DATA[50:]]))
    Path("none").mkdir()
    with pytest.raises(PQNetError, match=r"none: expected a folder of .npy, .npz or .h5 files, each a batch, got none"):
        pqnet.calibrate(MODEL, "none")


def test_bad_files_are_one_clear_error() -> None:
    np.save("bad.npy", np.where(np.arange(150)[:, None, None, None] == 149, np.nan, DATA))
    with pytest.raises(PQNetError, match="input 'input': expected finite float32 numbers, got 243 NaN"):
        pqnet.calibrate(MODEL, "bad.npy")
    with pytest.raises(PQNetError, match=r"missing.npy: expected a readable .npy"):
        pqnet.calibrate(MODEL, "missing.npy")
    np.savez("other.npz", x=DATA)
    with pytest.raises(PQNetError, match=r"other.npz: expected arrays for \['input'\], got \['x'\]"):
        pqnet.calibrate(MODEL, "other.npz")
    np.savez("near.npz", Input=DATA)
    with pytest.raises(PQNetError, match=r"near.npz: expected arrays for .* did you mean 'input'\?"):
        pqnet.calibrate(MODEL, "near.npz")
    np.save("x.npy", DATA)
    opened = open_arrays("x.npy")
    np.save("x.npy", DATA[:10])
    with pytest.raises(PQNetError, match=r"x.npy: expected float32 of shape \(150, 3, 9, 9\) as before, got another"):
        pqnet.calibrate(MODEL, {"input": opened})
