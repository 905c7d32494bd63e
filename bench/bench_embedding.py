"""What the examples take: from the start of a process to its first answer, memory, bytes on disk.

Each program labels the same eight images of digits with the demo's network (1/8 of its size), its kernels compiled
before: the command line, the folder job, the HTTP service, and, with PyInstaller there, the frozen bundle. ``seconds``
is the median from the start to the first answer, ``cpu`` the seconds of CPU of it, which other programs disturb less,
``peak`` the peak of resident memory in MB; ``import`` only imports pqnet. ``first`` is the run before,
which may have compiled kernels; ``compiling`` that of a bundle without kernels. ``rate`` is that of requests of eight
images by so many clients at once, each over one connection.

Example: ``python bench/bench_embedding.py --runs 5``
"""

import argparse
import http.client
import importlib.util
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import OtherLoad, emit, machine

import pqnet
from pqnet.demo import load_images, model_path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
MB = 1e6
# A process that is started by a large one has its memory as a peak; so a small one starts it.
WAITER = """
import os, sys
actions = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", 1, 0)]
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=actions)
_, status, used = os.wait4(child, 0)
print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss)
"""


def prepare(folder: Path) -> None:
    """Write a network and eight images."""
    recipe = {"default": pqnet.PQ(16, 9), "fc": None, "*downsample*": None}
    small = pqnet.quantize(pqnet.load(model_path()), recipe, None, metric="none", progress=False)
    pqnet.with_processing(small, labels=list("0123456789")).save(folder / "small.h5")
    (folder / "in").mkdir()
    np.save(folder / "in" / "x.npy", load_images()[1][:8])


class Fresh:
    """Processes that find the kernels of this folder, and nothing of a user's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        self.environment = {"PYTHONPATH": path, "NUMBA_CACHE_DIR": str(folder / "kernels"), "PQNET_TUNE": "0"}

    def run(self, *command: str) -> tuple[float, float, float]:
        """Return the seconds that a program takes, those of CPU, and the peak of its memory in MB."""
        start, waiter = time.perf_counter(), [sys.executable, "-S", "-c", WAITER, *command]
        done = subprocess.run(waiter, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, check=True)
        code, cpu, kilobytes = done.stdout.split()[-3:]
        if int(code):
            raise RuntimeError(f"{command}: exit code {int(code)}")
        return time.perf_counter() - start, float(cpu), int(kilobytes) * 1024 / MB

    def serve(self, clients: int, requests: int) -> dict[str, float]:
        """Return the seconds to the first answer of the service, its peak memory, and its rate."""
        command = [sys.executable, str(EXAMPLES / "service.py"), "small.h5", "--port", "0"]
        body, start = (self.folder / "in" / "x.npy").read_bytes(), time.perf_counter()
        with subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            port = int(process.stdout.readline().split(",")[0].rsplit(":", 1)[1])
            ask(port, body, 1)
            seconds, ready = time.perf_counter() - start, cpu_of(process.pid)
            asking = [threading.Thread(target=ask, args=(port, body, requests)) for _ in range(clients)]
            start = time.perf_counter()
            for thread in asking:
                thread.start()
            for thread in asking:
                thread.join()
            rate = clients * requests / (time.perf_counter() - start)
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / MB
            process.terminate()
        return {"seconds": seconds, "cpu": ready, "peak": peak, "rate": rate}


def cpu_of(process: int) -> float:
    """Return the seconds of CPU that a process has taken so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(port: int, body: bytes, requests: int) -> None:
    """Send a request again and again over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for _ in range(requests):
        connection.request("POST", "/classify", body)
        if connection.getresponse().read().startswith(b'{"error"'):
            raise RuntimeError("the service refused a request")
    connection.close()


def middle(run: Callable[[], tuple[float, float, float]], runs: int) -> dict[str, float]:
    """Return the medians of several runs, after one that finds or compiles what it needs."""
    first, first_cpu, _ = run()
    found = [run() for _ in range(runs)]
    seconds, cpu, peak = (statistics.median(values) for values in zip(*found, strict=True))
    return {"seconds": seconds, "cpu": cpu, "peak": peak, "first": first, "first_cpu": first_cpu}


def tree_bytes(folder: Path) -> int:
    """Return the bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def frozen(fresh: Fresh, runs: int) -> None:
    """Freeze the example, and measure it with its kernels and without."""
    subprocess.run(
        [sys.executable, str(EXAMPLES / "frozen" / "build.py"), "small.h5", "--batch", "8", "--cpu", "host"],
        cwd=fresh.folder,
        env=os.environ | {"PYTHONPATH": fresh.environment["PYTHONPATH"]},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    bundle = fresh.folder / "dist" / "digits"
    program = [str(bundle / "digits"), "in/x.npy"]
    found = middle(lambda: fresh.run(*program), runs)
    inside = bundle / "_internal"
    sizes = {name: tree_bytes(inside / name) / MB for name in ("llvmlite", "numba", "pqnet", "kernels")}
    shutil.rmtree(inside / "kernels")
    (inside / "kernels").write_text("")  # so that nothing can be kept
    without, without_cpu, _ = fresh.run(*program)
    emit(
        "frozen",
        **found,
        compiling=without,
        compiling_cpu=without_cpu,
        megabytes=tree_bytes(bundle) / MB,
        of_these=sizes,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--requests", type=int, default=300, help="of each client")
    parser.add_argument("--programs", nargs="*", default=["import", "run", "label_folder", "service", "frozen"])
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    emit("machine", **machine())
    with tempfile.TemporaryDirectory() as name:
        folder, load = Path(name), OtherLoad()
        prepare(folder)
        fresh = Fresh(folder)
        commands = {
            "import": ["-c", "import pqnet"],
            "run": ["-m", "pqnet", "run", "small.h5", "--input", "in/x.npy", "-o", "y.npy"],
            "label_folder": [str(EXAMPLES / "label_folder.py"), "small.h5", "in", "-o", "out.csv"],
        }
        for program in (program for program in commands if program in args.programs):

            def run(command: list[str] = commands[program]) -> tuple[float, float, float]:
                (folder / "out.csv").unlink(missing_ok=True)
                return fresh.run(sys.executable, *command)

            emit(program, **middle(run, args.runs))
        if "service" in args.programs:
            fresh.serve(1, 1)
            for clients in args.clients:
                emit("service", clients=clients, **fresh.serve(clients, args.requests))
        if "frozen" in args.programs and importlib.util.find_spec("PyInstaller"):
            frozen(fresh, args.runs)
        emit("load", other_load=load.share())


if __name__ == "__main__":
    main()
