"""Keeps the example service busy while its model is replaced, and looks at every answer and at its memory.

    python tests/fuzz/soak.py --minutes 60 --clients 8

Each client asks about some of the demo's images again and again, as arrays or as pictures, and compares with what the
model that the answer names gives here; every tenth request is none, and has to be refused. Every --swap seconds
another model takes the place of the file, now and then a damaged one. Memory is that of the service; its slope is that
of a line through the second half of the run. Exit code 1 if an answer was wrong, memory grew by more than --slope MB an
hour and 10 MB in all, or the service did not end in order.
"""

# ruff: noqa: E402  # the environment comes first

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
os.environ |= {"PQNET_NUM_THREADS": "1", "PQNET_TUNE": "0"}
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
from bodies import npy, png

import pqnet
from pqnet.demo import load_images, model_path
from pqnet.io import network_digest

TOLERANCE = 1e-5  # of probabilities: batches of other sizes are computed in other orders
CODEWORDS = (4, 16, 64)
PATIENCE = 600  # seconds: a client, or the service, may have to wait for a CPU that other programs take


def make_models(folder: Path) -> dict[str, tuple[Path, pqnet.Model]]:
    """Return files and models by the name that the service gives them."""
    image, found = pqnet.ImageInput(resize=(8, 8), colors="L"), {}
    for k in CODEWORDS:
        recipe = {"default": pqnet.PQ(k, 9), "fc": None, "*downsample*": None}
        small = pqnet.quantize(pqnet.load(model_path()), recipe, None, metric="none", progress=False)
        path = folder / f"{k}.h5"
        pqnet.with_processing(small, image=image, labels=list("0123456789")).save(path)
        model = pqnet.load(path)
        found[network_digest(model.graph)[:12]] = path, model
    return found


class Client(threading.Thread):
    """Asks, and compares."""

    def __init__(self, port: int, seed: int, right: dict[str, np.ndarray], images: np.ndarray, end: float) -> None:
        super().__init__()
        self.port, self.rng, self.right, self.images, self.end = port, np.random.default_rng(seed), right, images, end
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        while time.monotonic() < self.end:
            try:
                self.ask_some()
            except Exception as reason:
                self.wrong.append(f"{type(reason).__name__}: {reason}")
                time.sleep(1)

    def ask_some(self) -> None:
        """Ask several times over one connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            for _ in range(int(self.rng.integers(1, 20))):
                if not self.ask(connection):
                    return
        finally:
            connection.close()

    def ask(self, connection: http.client.HTTPConnection) -> bool:
        """Ask once; return whether the connection can be used again."""
        rows = self.rng.integers(len(self.images), size=self.rng.integers(1, 9))
        way = self.rng.random()
        if way < 0.1:
            body = [b"", b"nonsense", npy(self.images[rows])[:-5], npy(self.images[0])][self.rng.integers(4)]
        elif way < 0.3:
            rows, body = rows[:1], png(np.uint8(np.round(self.images[rows[0], 0] * 255)))
        else:
            body = npy(self.images[rows])
        connection.request("POST", "/classify", body)
        answer = connection.getresponse()
        content = json.loads(answer.read())
        if way < 0.1 and answer.status == 400:
            self.done["refused"] += 1
        elif answer.status == 503:
            self.done["busy"] += 1
        elif way >= 0.1 and answer.status == 200 and self.fits(content, rows):
            self.done[f"right, model {content['model']}"] += 1
        else:
            self.wrong.append(f"{answer.status} {str(content)[:200]}")
        return answer.status == 200

    def fits(self, content: dict[str, Any], rows: np.ndarray) -> bool:
        """Compare the probabilities of all labels with those of the model that the answer names."""
        rows_got = [{each["label"]: each["probability"] for each in row} for row in content["results"]]
        got = np.array([[row[str(i)] for i in range(10)] for row in rows_got])
        want = self.right[content["model"]][rows]
        return got.shape == want.shape and bool(np.abs(got - want).max() < TOLERANCE)


def resident(process: int) -> float:
    """Return the megabytes that a process has in memory."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def probabilities(model: pqnet.Model, images: np.ndarray) -> np.ndarray:
    """Return those of all labels in order, as the service gives them."""
    rows = pqnet.likeliest(model, model.run({"input": images}), 10)
    return np.array([[dict(row)[str(i)] for i in range(10)] for row in rows])


def soak(
    minutes: float, clients: int, swap: float, seed: int, folder: Path
) -> tuple[Counter[str], list[str], Any, int]:
    """Return what was answered, what was wrong, (seconds, MB) of memory, and the exit code of the service."""
    models = make_models(folder)
    pixels = np.round(load_images()[1][:100] * 255) / np.float32(255)  # so that pictures are the same numbers
    right = {name: probabilities(model, pixels) for name, (_, model) in models.items()}
    files = [path.read_bytes() for path, _ in models.values()]
    served, rng, memory = folder / "served.h5", np.random.default_rng(seed), []
    served.write_bytes(files[0])
    service = str(ROOT / "examples" / "service.py")
    command = [sys.executable, service, str(served), "--port", "0", "--top", "10", "--poll", "0.1"]
    command += ["--patience", str(PATIENCE)]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        port = int(process.stdout.readline().split(",")[0].rsplit(":", 1)[1])
        begin = time.monotonic()
        asking = [Client(port, seed + i, right, pixels, begin + 60 * minutes) for i in range(clients)]
        for client in asking:
            client.start()
        while any(client.is_alive() for client in asking):
            time.sleep(swap)
            data = files[rng.integers(len(files))]
            (folder / "new").write_bytes(data[:-9] if rng.random() < 0.1 else data)
            os.replace(folder / "new", served)
            memory.append((time.monotonic() - begin, resident(process.pid)))
        process.send_signal(signal.SIGTERM)
        code = process.wait(120)
    done = sum((client.done for client in asking), Counter())
    return done, [each for client in asking for each in client.wrong], memory, code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--swap", type=float, default=0.5, help="seconds between two models")
    parser.add_argument("--slope", type=float, default=20, help="MB an hour that memory may grow")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pqnet-soak-") as folder:
        done, wrong, memory, code = soak(args.minutes, args.clients, args.swap, args.seed, Path(folder))
        log = (Path(folder) / "log").read_text()
    half = np.array(memory[len(memory) // 2 :])
    slope, _ = np.polyfit(half[:, 0] / 3600, half[:, 1], 1) if len(half) > 2 else (0.0, 0.0)
    grown = slope * (half[-1, 0] - half[0, 0]) / 3600
    for what, count in sorted(done.items()):
        print(f"{count:8d} {what}")
    swaps, kept = log.count("takes the place of"), log.count("kept model")
    print(f"{swaps} models taken, {kept} damaged files passed over, {log.count('Traceback')} tracebacks")
    print(f"memory {memory[0][1]:.1f} MB, then {half[0, 1]:.1f} to {half[-1, 1]:.1f} MB, {slope:+.1f} MB an hour")
    print(f"{len(wrong)} wrong answers, exit code {code}")
    for each in wrong[:10]:
        print(f"wrong: {each}")
    grows = slope > args.slope and grown > 10
    return int(bool(wrong) or grows or code != 0 or "Traceback" in log)


if __name__ == "__main__":
    sys.exit(main())
