"""The programs of ``examples/``: they run as a user starts them, and give what the library gives."""

import csv
import difflib
import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bodies import npy, png
from PIL import Image, ImageDraw, ImageFont

import pqnet
from pqnet.demo import load_images, model_path
from pqnet.io import network_digest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
LABELS = [f"digit {i}" for i in range(10)]
_, IMAGES, RIGHT = load_images()


def digits(path: Path, k: int = 0) -> pqnet.Model:
    """Save the demo's network, quantized if there is a k, with what images go through, and return it."""
    model = pqnet.load(model_path())
    if k:
        recipe = {"default": pqnet.PQ(k, 9), "fc": None, "*downsample*": None}
        model = pqnet.quantize(model, recipe, None, metric="none", progress=False)
    model = pqnet.with_processing(model, image=pqnet.ImageInput(resize=(8, 8), colors="L"), labels=LABELS)
    beside = path.with_name("new")
    model.save(beside)
    os.replace(beside, path)
    return model


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "converters"), *sys.path])}


@contextmanager
def service(*arguments: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Run the service on a free port; yields the port and the process."""
    command = [sys.executable, str(EXAMPLES / "service.py"), "small.h5", "--port", "0", "--poll", "0.05", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("ready on http://127.0.0.1:"), line
            yield int(line.split(",")[0].rsplit(":", 1)[1]), process
        finally:
            process.kill()


def ask(port: int, body: bytes | None, path: str = "/classify", **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def right_answers(model: pqnet.Model, samples: np.ndarray) -> list[list[tuple[str, float]]]:
    return pqnet.likeliest(model, model.run({"input": samples}))


def same(got: list[list[dict[str, Any]]], want: list[list[tuple[str, float]]]) -> bool:
    """Compare labels and probabilities; batches of other sizes are computed in other orders."""
    found = [[(entry["label"], entry["probability"]) for entry in row] for row in got]
    pairs = [pair for a, b in zip(found, want, strict=True) for pair in zip(sorted(a), sorted(b), strict=True)]
    return all(a[0] == b[0] and abs(a[1] - b[1]) < 1e-5 for a, b in pairs)


def test_service_answers_many_clients_in_batches_and_ends_gracefully() -> None:
    model = digits(Path("small.h5"), 16)
    with service("--max-wait-ms", "50") as (port, process):
        with ThreadPoolExecutor(8) as clients:
            parts = [IMAGES[i : i + 1 + i % 3] for i in range(24)]
            answers = list(clients.map(lambda part: ask(port, npy(part)), parts))
        for (status, answer), part in zip(answers, parts, strict=True):
            assert status == 200 and same(answer["results"], right_answers(model, part))
        status, health = ask(port, None, "/health")
        assert status == 200 and health["status"] == "ok" and health["samples"] == sum(map(len, parts))
        assert health["batches"] < len(parts)  # some were run together
        picture = np.round(IMAGES[0, 0] * 255).astype(np.uint8)
        status, answer = ask(port, png(picture))
        prepared = pqnet.prepare(model, images=[picture])["input"]
        assert status == 200 and same(answer["results"], right_answers(model, prepared))

        waiting = ThreadPoolExecutor(1).submit(ask, port, npy(IMAGES[:4]))
        time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert waiting.result()[0] == 200  # what was accepted is answered
        assert process.wait(30) == 0


def test_service_takes_a_new_model_and_keeps_the_old_one_if_that_is_damaged() -> None:
    models = [digits(Path("small.h5"), k) for k in (4, 16)]
    names = [network_digest(model.graph)[:12] for model in models]
    with service() as (port, _):
        assert ask(port, npy(IMAGES[:2]))[1]["model"] == names[1]
        digits(Path("small.h5"), 4)
        status, answer = until(lambda: ask(port, npy(IMAGES[:2])), lambda found: found[1]["model"] == names[0])
        assert status == 200 and same(answer["results"], right_answers(models[0], IMAGES[:2]))
        Path("damaged").write_bytes(Path("small.h5").read_bytes()[:-1])
        os.replace("damaged", "small.h5")
        status, health = until(lambda: ask(port, None, "/health"), lambda found: found[1]["status"] == "stale")
        assert "damaged" in health["problem"] and ask(port, npy(IMAGES[:2]))[1]["model"] == names[0]


def until(look: Any, good: Any) -> Any:
    """Look again and again until it is good."""
    for _ in range(600):
        if good(found := look()):
            return found
        time.sleep(0.05)
    raise AssertionError(found)


def test_service_refuses_what_is_no_request() -> None:
    digits(Path("small.h5"))
    with service("--max-bytes", "100000", "--max-batch", "8") as (port, _):
        wrong = IMAGES[:1].copy()
        wrong[0, 0, 0, 0] = np.nan
        cases = [
            (b"", 400, "expected an image that Pillow reads"),
            (b"no image", 400, "expected an image that Pillow reads"),
            (npy(IMAGES[:1])[:-3], 400, "expected a readable .npy"),
            (npy(IMAGES[0]), 400, "expected 1 to 8 samples, float32 of shape (None, 1, 8, 8), got float32"),
            (npy(IMAGES[:9]), 400, "expected 1 to 8 samples"),
            (npy(IMAGES[:0]), 400, "expected 1 to 8 samples"),
            (npy(IMAGES[:1].astype("U9")), 400, "expected 1 to 8 samples"),
            (npy(wrong), 400, "expected finite numbers"),
            (bytes(100_001), 413, "expected at most 100000 bytes"),
        ]
        for body, status, match in cases:
            got, answer = ask(port, body)
            assert got == status and match in answer["error"], (got, answer)
        assert ask(port, b"x", "/other")[0] == ask(port, None, "/other")[0] == 404
        for header in (b"Content-Length: -1", b"Transfer-Encoding: chunked", b"A: b", b"Content-Length: 1\r\n" * 2):
            with socket.create_connection(("127.0.0.1", port), 60) as connection:
                connection.sendall(b"POST /classify HTTP/1.1\r\n" + header.rstrip() + b"\r\n\r\n")
                assert connection.recv(1 << 16).startswith(b"HTTP/1.1 411 ")
        with socket.create_connection(("127.0.0.1", port), 60) as connection:  # says less than it promises
            connection.sendall(b"POST /classify HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc")
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 408 ")
        assert ask(port, npy(IMAGES[:1]))[0] == 200


def loaded(name: str) -> Any:
    """Import an example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_request_that_spoils_its_batch_spoils_no_other_answer() -> None:
    example = loaded("service")
    model = digits(Path("small.h5"))
    classifier = example.Classifier(Path("small.h5"), max_wait=60, max_batch=4)
    run = classifier._run

    def refusing(version: Any, samples: np.ndarray) -> Any:
        if (samples > 5).any():
            raise pqnet.PQNetError("input: a number that the network refuses")
        return run(version, samples)

    classifier._run = refusing
    bodies = [npy(IMAGES[:1]), npy(np.full((1, 1, 8, 8), 9.0, np.float32)), npy(IMAGES[1:3])]
    with ThreadPoolExecutor(3) as clients:
        first, spoilt, last = (clients.submit(classifier.ask, body) for body in bodies)
        want = right_answers(model, IMAGES[:3])
        assert [row[0][0] for row in first.result()[1] + last.result()[1]] == [row[0][0] for row in want]
        with pytest.raises(pqnet.PQNetError, match="a number that the network refuses"):
            spoilt.result()
    assert (classifier.batches, classifier.samples) == (2, 3)
    classifier.close()


def test_service_refuses_more_than_its_queue_holds_and_hangs_up_on_the_slow() -> None:
    example = loaded("service")
    model = digits(Path("small.h5"))
    classifier = example.Classifier(Path("small.h5"), max_queue=1, max_wait=0)
    run, begun, go = classifier._run, threading.Event(), threading.Event()

    def held(*arguments: Any) -> Any:
        begun.set()
        go.wait()
        return run(*arguments)

    classifier._run = held
    with ThreadPoolExecutor(2) as clients:
        first = clients.submit(classifier.ask, npy(IMAGES[:1]))
        begun.wait()
        second = clients.submit(classifier.ask, npy(IMAGES[1:2]))
        while not classifier._queue.full():
            time.sleep(0.01)
        with pytest.raises(example.Refused, match="too many requests") as refused:
            classifier.ask(npy(IMAGES[:1]))
        assert refused.value.status == 503
        go.set()
        got = [[(label, p) for label, p in answer.result()[1][0]] for answer in (first, second)]
    assert [row[0][0] for row in got] == [row[0][0] for row in right_answers(model, IMAGES[:2])]

    server = example.Server(("127.0.0.1", 0), classifier, threads=1, patience=0.1)
    loop = threading.Thread(target=server.serve_forever, args=(0.05,))
    loop.start()
    try:
        with socket.create_connection(server.server_address, 60) as slow:
            slow.sendall(b"POST /classify HTTP/1.1\r\nContent-Le")
            while slow.recv(1 << 16):  # until it hangs up
                pass
        classifier._run = lambda *arguments: time.sleep(0.5) or run(*arguments)
        connection = http.client.HTTPConnection(*server.server_address, timeout=60)
        for _ in range(2):  # over one connection, although the answers take longer than it may to ask
            connection.request("POST", "/classify", npy(IMAGES[:1]))
            assert connection.getresponse().read().startswith(b'{"model"')
        connection.close()
    finally:
        server.shutdown()
        loop.join()
        server.close()
    with pytest.raises(example.Refused, match="the service is ending"):
        classifier.ask(npy(IMAGES[:1]))


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_folder_is_labelled_and_goes_on_after_a_stop() -> None:
    example = loaded("label_folder")
    model = digits(Path("small.h5"), 16)
    Path("in/deep").mkdir(parents=True)
    for i in range(5):
        Image.fromarray(np.round(IMAGES[i, 0] * 255).astype(np.uint8)).save(f"in/{i}.png")
    np.save("in/deep/batch.npy", IMAGES[5:8])
    np.save("in/deep/one.npy", IMAGES[8])
    np.save("in/deep/other.npy", IMAGES[8, :, :5])
    np.save("in/deep/nan.npy", np.full((1, 1, 8, 8), np.nan, np.float32))
    Path("in/broken.jpg").write_bytes(b"no image")
    Path("in/notes.txt").write_text("not looked at")
    command = [sys.executable, str(EXAMPLES / "label_folder.py"), "small.h5", "in", "-o", "out.csv", "--batch", "3"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0 and done.stdout == "10 files labelled, 3 of them with an error\n", done.stderr

    whole, rows = Path("out.csv").read_bytes(), table(Path("out.csv"))
    errors = {row["file"]: row["error"] for row in rows if row["error"]}
    assert set(errors) == {"broken.jpg", "deep/nan.npy", "deep/other.npy"}
    assert "expected one sample or a batch of shape (None, 1, 8, 8), got (1, 1, 5, 8)" in errors["deep/other.npy"]
    good = [(row["file"], int(row["sample"]), row["label"]) for row in rows if not row["error"]]
    want = [best[0][0] for best in right_answers(model, IMAGES[:9])]
    names = [(f"{i}.png", 0) for i in range(5)] + [("deep/batch.npy", i) for i in range(3)] + [("deep/one.npy", 0)]
    assert sorted(good) == sorted((*name, best) for name, best in zip(names, want, strict=True))

    looked_at: list[str] = []
    read = example.read_samples
    example.read_samples = lambda model, path: looked_at.append(path.name) or read(model, path)
    for size in (0, 10, len(whole) // 2, len(whole) - 1, len(whole)):
        Path("out.csv").write_bytes(whole[:size])  # as a killed process leaves it
        looked_at.clear()
        example.label_folder(model, Path("in"), Path("out.csv"), 3)
        assert Path("out.csv").read_bytes() == whole
    assert len(looked_at) == 1  # the last one alone
    with pytest.raises(pqnet.PQNetError, match="expected a table of this network"):
        example.label_folder(digits(Path("small.h5"), 4), Path("in"), Path("out.csv"))


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the files below a folder, and when they were changed."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def first_labels(model: pqnet.Model, samples: np.ndarray) -> list[tuple[str, float]]:
    return [row[0] for row in right_answers(model, samples)]


@pytest.mark.exhaustive
def test_frozen_bundle_needs_no_home_and_neither_compiles_nor_writes() -> None:
    pytest.importorskip("PyInstaller")
    model = digits(Path("small.h5"), 16)
    build = [sys.executable, str(EXAMPLES / "frozen" / "build.py"), "small.h5", "--batch", "8"]
    subprocess.run(build, env=environment(), check=True)
    np.save("x.npy", IMAGES[:8])
    bundle = Path("dist/digits").resolve()
    before = contents(bundle)
    done = subprocess.run([str(bundle / "digits"), "x.npy"], capture_output=True, text=True, env={})
    # A kernel that is compiled is kept in the bundle, or it is said that it cannot be.
    assert done.returncode == 0 and done.stderr == "" and contents(bundle) == before
    got = [(line[:-9].removeprefix("x.npy: "), float(line[-8:])) for line in done.stdout.splitlines()]
    for (label, p), (want, wanted) in zip(got, first_labels(model, IMAGES[:8]), strict=True):
        assert label == want and abs(p - wanted) < 1e-5
    for path in bundle.rglob("*.kernel"):
        path.unlink()  # as on an older CPU
    again = subprocess.run([str(bundle / "digits"), "x.npy"], capture_output=True, text=True, env={})
    assert again.returncode == 0 and again.stdout == done.stdout


def containerfile() -> tuple[dict[str, str], list[str], list[str]]:
    """Return the environment, the command that warms kernels, and that of the service, as the file has them."""
    text = (EXAMPLES / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = dict(line.split(" ", 1) for line in text.splitlines() if line[:3] in ("ENV", "CMD"))
    warm = next(line for line in text.splitlines() if line.startswith("RUN pqnet warmup"))
    return dict(pair.split("=", 1) for pair in lines["ENV"].split()), warm.split()[2:], json.loads(lines["CMD"])


@pytest.mark.exhaustive  # kernels for other CPUs are compiled
def test_steps_of_the_containerfile_end_in_a_service_that_writes_nothing() -> None:
    """Without a container: in a namespace with a read-only file system, as a user without rights and a home."""
    # Such a user may not be allowed to read where Python lies here, as it is in an image; so it may read, not write.
    user = "--reuid 65534 --regid 65534 --clear-groups --inh-caps +dac_read_search --ambient-caps +dac_read_search"
    inside = f"mount -o remount,bind,ro / && exec setpriv {user}"
    probe = ["unshare", "--mount", "sh", "-c", f"{inside} true"]
    if os.name != "posix" or shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("needs the right to make a namespace")
    here = Path.cwd()
    settings, warm, command = containerfile()
    model = digits(Path("model.h5"), 16)
    path = environment()["PYTHONPATH"]
    settings |= {"NUMBA_CACHE_DIR": str(here / "kernels"), "PYTHONPATH": path}
    warm = [sys.executable, "-m", "pqnet", *warm]
    subprocess.run(warm, env=os.environ | settings, check=True, capture_output=True)
    before = contents(here)
    variables = [f"{name}={value}" for name, value in settings.items() if name != "PATH"]
    service_command = [sys.executable, str(EXAMPLES / command[1]), *command[2:], "--port", "0"]
    run = ["unshare", "--mount", "sh", "-c", f'{inside} env -i "$@"', "sh", *variables, *service_command]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("ready on "), line + process.stderr.read()
            status, answer = ask(int(line.split(",")[0].rsplit(":", 1)[1]), npy(IMAGES[:3]))
            assert status == 200 and same(answer["results"], right_answers(model, IMAGES[:3]))
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert process.stderr.read() == ""  # nothing was compiled that could not be kept
        finally:
            process.kill()
    assert contents(here) == before


def written(lines: list[str]) -> np.ndarray:
    """Return lines of text as an image in BGR."""
    fonts = Path(pytest.importorskip("matplotlib").get_data_path(), "fonts", "ttf")
    font = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), 32)
    image = Image.new("RGB", (700, 60 * len(lines) + 20), "white")
    for i, line in enumerate(lines):
        ImageDraw.Draw(image).text((20, 60 * i + 10), line, "black", font)
    return np.ascontiguousarray(np.asarray(image)[..., ::-1])


LINES = ["The quick brown fox jumps", "over 13 lazy dogs", "Sphinx of black quartz", "judge my vow"]


def ocr_example() -> Any:
    for package in ("onnx", "rapidocr_onnxruntime", "cv2", "pyclipper", "shapely"):
        pytest.importorskip(package)
    return loaded("ocr")


@pytest.mark.exhaustive
def test_ocr_from_files_of_the_networks_reads_as_with_their_own_sessions() -> None:
    ocr = ocr_example()
    Path("nets").mkdir()
    for name in ocr.NETWORKS:
        ocr.float_network(name).save(f"nets/{name}.h5")
    page = written(LINES)
    Image.fromarray(page[..., ::-1]).save("page.png")
    command = [sys.executable, str(EXAMPLES / "ocr.py"), "read", "nets", "page.png"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0 and done.stdout.splitlines() == ocr.Chain().read(page), done.stderr
    assert difflib.SequenceMatcher(None, done.stdout, "\n".join(LINES)).ratio() > 0.95
    done = subprocess.run([*command[:-1], "none.png"], capture_output=True, text=True, env=environment())
    assert done.returncode == 2 and "error: images: expected existing files, got none.png" in done.stderr


@pytest.mark.exhaustive  # plans and quantizes a recognizer of characters
def test_ocr_from_codes_reads_nearly_all_letters() -> None:
    ocr = ocr_example()
    pages = [written([" ".join(reversed(line.split())) for line in LINES[i:] + LINES[:i]]) for i in range(4)]
    ocr.convert(Path("nets"), pages, "4x")
    found = "\n".join(ocr.load(Path("nets")).read(written(LINES)))
    assert difflib.SequenceMatcher(None, found, "\n".join(LINES)).ratio() > 0.9
    sizes = [pqnet.load(f"nets/{name}.h5").size() for name in ocr.QUANTIZED]
    assert all(size.ratio > 3.5 for size in sizes)
