"""The programs of ``examples/``: they run as a user starts them, and give what the library gives."""

import http.client
import importlib.util
import io
import json
import os
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
from PIL import Image

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


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


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
    finally:
        server.shutdown()
        loop.join()
        server.close()
    with pytest.raises(example.Refused, match="the service is ending"):
        classifier.ask(npy(IMAGES[:1]))
