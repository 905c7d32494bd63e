"""What every bench script shares: the machine's description, medians, JSON lines."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def machine() -> dict[str, Any]:
    """Return CPU, cores in use and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
        names = {key.strip(): value.strip() for key, value in fields.items()}
        cpu = f"{names.get('model name', cpu)} family {names.get('cpu family')} model {names.get('model')}"
    return {"cpu": cpu, "threads": numba.get_num_threads(), "numpy": np.__version__, "numba": numba.__version__}


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
