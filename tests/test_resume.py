"""Quantization that is interrupted and continued: the same bytes, and no more work than what is new."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_pipeline import DATA, small_net

import pqnet
from pqnet import PQ, Additive, Fixed, IntN, Model, PQNetError, Scalar, Sparse
from pqnet.codecs import FITTERS
from pqnet.demo import load_images, model_path
from pqnet.graph import Graph
from pqnet.io import read_container, write_container
from pqnet.pipeline import checkpoint

MODEL, IMAGES = small_net(), DATA
LAYERS = list(MODEL.graph.layers())
RECIPE = {"default": PQ(16, 4), "stem": PQ(16, 3)}
STATISTICS = pqnet.Statistics(pqnet.calibrate(MODEL, IMAGES).layers)  # for networks with other weights too


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The codec of every fit that was made."""
    made: list[str] = []

    def counted(name: str, fit: Any) -> Any:
        def call(codec: Any, *args: Any, **kwargs: Any) -> Any:
            made.append(name)
            return fit(codec, *args, **kwargs)

        return call

    for name, fit in list(FITTERS.items()):
        monkeypatch.setitem(FITTERS, name, counted(name, fit))
    return made


def run(folder: str | None = "layers", recipe: Any = RECIPE, calibration: Any = IMAGES, **options: Any) -> bytes:
    """Quantize and return the bytes of the file."""
    options = {"model": MODEL, "threads": 1} | options
    small = pqnet.quantize(recipe=recipe, calibration=calibration, checkpoint=folder, progress=False, **options)
    small.save("small.h5")
    return Path("small.h5").read_bytes()


@pytest.mark.parametrize(
    ("calibration", "options"),
    [
        (IMAGES, {}),
        (IMAGES, {"metric": "block", "reestimate_norm": True}),
        ([IMAGES[:70], IMAGES[70:]], {"reestimate_norm": True}),
        (STATISTICS, {}),
        (None, {"metric": "none"}),
    ],
    ids=["data", "block", "norms", "statistics", "nothing"],
)
def test_an_interrupted_call_goes_on_where_it_stopped(
    calibration: Any, options: dict[str, Any], fits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    want = run(None, calibration=calibration, **options)
    fits.clear()
    counted = FITTERS["pq"]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if len(fits) == 2:
            raise KeyboardInterrupt
        return counted(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(FITTERS, "pq", interrupted)
        run(calibration=calibration, **options)
    assert len(list(Path("layers").iterdir())) == 2
    assert run(calibration=calibration, **options) == want
    assert len(fits) == len(LAYERS)
    assert run(calibration=calibration, threads=2, **options) == want and len(fits) == len(LAYERS)


def changed(scale: float) -> Model:
    """The network with another weight in its last layer but one."""
    graph = MODEL.graph
    name = graph.layers()[LAYERS[-2]].params["weight"]
    params = {**graph.params, name: graph.params[name] * np.float32(scale)}
    return Model(Graph(graph.inputs, graph.outputs, graph.nodes, params, graph.symbols))


@pytest.mark.parametrize(
    ("change", "after_data", "after_statistics"),
    [
        ({"recipe": {**RECIPE, LAYERS[-1]: PQ(8, 4)}}, 1, 1),
        ({"recipe": {**RECIPE, LAYERS[1]: PQ(8, 4)}}, len(LAYERS) - 1, 1),
        ({"recipe": {**RECIPE, LAYERS[1]: None}}, len(LAYERS) - 2, 0),
        ({"model": changed(2.0)}, len(LAYERS), 1),
        ({"seed": 1}, len(LAYERS), len(LAYERS)),
        ({"metric": "block"}, len(LAYERS), len(LAYERS)),
        ({"threads": 2}, 0, 0),
    ],
    ids=["last codec", "second codec", "one less", "weight", "seed", "metric", "threads"],
)
def test_a_change_redoes_only_what_depends_on_it(
    change: dict[str, Any], after_data: int, after_statistics: int, fits: list[str]
) -> None:
    for calibration, expected in ((IMAGES, after_data), (STATISTICS, after_statistics)):
        first = run(calibration=calibration)
        fits.clear()
        got = run(calibration=calibration, **change)
        assert len(fits) == expected
        assert got == run(None, calibration=calibration, **change)
        fits.clear()
        assert run(calibration=calibration) == first and not fits  # earlier entries are left alone


def test_other_data_redo_everything(fits: list[str]) -> None:
    run()
    fits.clear()
    for other in (IMAGES[:149], [IMAGES[:80], IMAGES[80:]], IMAGES * np.float32(1.001)):
        run(calibration=other)
    assert len(fits) == 3 * len(LAYERS)
    fits.clear()
    merged = STATISTICS.merge(pqnet.calibrate(MODEL, IMAGES[:10]))
    run(calibration=STATISTICS)
    run(calibration=merged)
    assert len(fits) == 2 * len(LAYERS)


def test_other_sources_of_pqnet_redo_everything(fits: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    monkeypatch.setattr(checkpoint, "_source_digest", checkpoint._source_digest.__wrapped__)  # as in another process
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b"#" if path.name == "kmeans.py" else b""))
    run()
    assert len(fits) == 2 * len(LAYERS)


def test_every_codec_comes_back(fits: list[str]) -> None:
    codecs = [
        PQ(16, 4, "spatial", "int8"),
        Scalar(5),
        Fixed("ternary"),
        IntN(4, per="channel"),
        Additive([PQ(4, 4), PQ(4, 4), Sparse(count=9)]),
        PQ(8, 4, codebook_dtype="float32"),
    ]
    for recipe in ({"*": PQ(16, 1), "fc": codec} for codec in codecs):
        want = run("layers", recipe, STATISTICS)
        fits.clear()
        assert run("layers", recipe, STATISTICS) == want and not fits


def test_damaged_and_foreign_entries_are_redone(fits: list[str]) -> None:
    want = run()
    entries = sorted(Path("layers").iterdir())
    sound = [path.read_bytes() for path in entries]
    MODEL.save("model.h5")
    wrong = {
        "damaged": sound[0][:-9] + bytes([sound[0][-9] ^ 1]) + sound[0][-8:],
        "expected .* bytes, got 700": sound[0][:700],
        "expected a pqnet file, got an empty file": b"",
        "expected a layer file, got a model file": Path("model.h5").read_bytes(),
        "expected the entry of layer .* got another one": sound[1],
    }
    for reason, data in wrong.items():
        entries[0].write_bytes(data)
        fits.clear()
        with pytest.warns(UserWarning, match=f"checkpoint: layers/.*{reason}.*; layer .* is quantized again"):
            assert run() == want
        assert len(fits) == 1 and entries[0].read_bytes() == sound[0]


def test_bad_folders_are_refused_before_work(fits: list[str]) -> None:
    def batches() -> Any:
        pytest.fail("the calibration was read")
        yield IMAGES

    Path("file").write_bytes(b"")
    for folder in ("file", "file/below", "\0", 3, b"x"):
        with pytest.raises(PQNetError, match="checkpoint: expected a folder that can be written to, got .*: "):
            run(folder, calibration=batches())  # type: ignore[arg-type]
    assert run("new/folder") and list(Path("new/folder").iterdir()) and Path("file").read_bytes() == b""


def test_killed_runs_of_the_command_line_give_the_same_bytes() -> None:
    """SIGKILL at random moments while layers are quantized, four times in a row; then a run to the end."""
    np.save("x.npy", load_images()[0][:150])
    command = [sys.executable, "-m", "pqnet", "quantize", str(model_path()), "--calibration", "x.npy"]
    command += ["--preset", "small-blocks", "--threads", "1", "-o"]
    subprocess.run([*command, "want.h5"], check=True, capture_output=True)
    moments, folder, kills = random.Random(0), Path("layers"), 0
    for done in range(4):
        with subprocess.Popen([*command, "got.h5", "--checkpoint", "layers"], stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and len(list(folder.glob("*.h5"))) < done:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.05 if done else 2))
            process.kill()
        kills += process.returncode == -signal.SIGKILL
    assert kills == 4 or Path("got.h5").exists()
    subprocess.run([*command, "got.h5", "--checkpoint", "layers"], check=True, capture_output=True)
    assert Path("got.h5").read_bytes() == Path("want.h5").read_bytes()


@pytest.mark.parametrize("fault", ["report", "name", "shape"])
def test_forged_entries_that_fit_no_layer_are_passed_over(fault: str) -> None:
    want = run(calibration=None, metric="none")
    for path in Path("layers").iterdir():
        header, arrays = read_container(path, "layer")
        if fault == "report":
            header["report"] = [1]
        else:
            (name, *_), other = header["params"], "none.weight"
            shape = [2, 2] if fault == "shape" else None
            header["params"][name if shape else other] = None
            arrays = {key: array for key, array in arrays.items() if not (shape and key.startswith(f"params/{name}/"))}
            arrays[f"params/{name if shape else other}/values"] = np.ones(shape or (2, 2), np.float32)
        write_container(path, "layer", header, arrays)
    with pytest.warns(UserWarning, match="is quantized again"):
        assert run(calibration=None, metric="none") == want
