"""What every bench script shares: the machine's description, medians, JSON lines."""

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numba
import threadpoolctl

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
REST = 0.05  # seconds; ONNX Runtime spins for about 1 ms, OpenMP of PyTorch for some


def machine(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Return CPU, cores in use and versions, also of other packages."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
        names = {key.strip(): value.strip() for key, value in fields.items()}
        cpu = f"{names.get('model name', cpu)} family {names.get('cpu family')} model {names.get('model')}"
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "numba", *packages)}
    # OpenBLAS may be told by OPENBLAS_CORETYPE to use fewer instructions than the CPU has.
    blas = sorted({lib["architecture"] for lib in threadpoolctl.threadpool_info() if "architecture" in lib})
    # Asking Numba itself would start its OpenMP threads, beside which PyTorch takes three times as long.
    return {"cpu": cpu, "blas": blas, "threads": numba.config.NUMBA_NUM_THREADS, **versions}


class OtherLoad:
    """Watches what other processes than this one and its children do to the machine."""

    def __init__(self) -> None:
        self._start = self._used()

    def _used(self) -> tuple[float, float]:
        """Return the CPU seconds of this process with its children, and of all; 0 where the system does not tell."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return 0.0, 0.0
        ticks = [int(field) for field in stat.read_text().splitlines()[0].split()[1:9]]
        everything = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and disk waits
        return sum(os.times()[:4]), everything

    def share(self) -> float:
        """Return the part of the CPU time used since the start that was not ours."""
        ours, everything = (now - then for now, then in zip(self._used(), self._start, strict=True))
        return max(0.0, 1 - ours / everything) if everything else 0.0


def emit(name: str, **figures: Any) -> None:
    """Print one result as a JSON line; floats with four significant digits."""
    short = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps({"bench": name, **short}), flush=True)


def paired_medians(first: Callable[[], Any], second: Callable[[], Any], runs: int) -> tuple[float, float]:
    """Run two functions in turn and return their median seconds; one run of each warms up."""
    first()
    second()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for function, into in zip((first, second), times, strict=True):
            start = time.perf_counter()
            function()
            into.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def interleaved(functions: dict[str, Callable[[], Any]], runs: int, block: int = 5) -> tuple[dict[str, float], float]:
    """Return the median seconds of each function over at least ``runs`` runs, taken in blocks in turn.

    Also returned: the share of the CPU time meanwhile that other processes took. Above a few percent the figures are
    no good.

    Engines keep their threads spinning for some milliseconds after a run, which would slow the next engine on the same
    cores; so turns are blocks, and a block begins with a rest and one run that is not counted (caches, sleeping
    threads). That every engine meets the same slow and fast phases of the machine is what the turns are for.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    load = OtherLoad()
    for _ in range(-(-runs // block)):
        for name, function in functions.items():
            time.sleep(REST)
            function()
            for _ in range(block):
                start = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}, load.share()
