"""What this machine and its settings give pqnet: the CPU, threads, and where kernels and measurements are kept."""

import os
import tempfile
from pathlib import Path
from typing import Any

from pqnet._threads import default_threads, thread_limits
from pqnet.kernels import cache, cpu

__all__ = ["host_report"]

THREAD_VARIABLES = ("PQNET_NUM_THREADS", "OMP_NUM_THREADS")


def host_report() -> dict[str, Any]:
    """Return as plain data what pqnet found out about this machine, with ``problems``, a list of texts.

    Examples
    --------
    >>> from pqnet.runtime import host_report
    >>> sorted(host_report())
    ['caches', 'cpu', 'problems', 'threads']
    """
    limits, folders = thread_limits(), [_folder(folder) for folder in cache.folders()]
    problems = [
        f"{name}: expected a positive integer, got {os.environ[name]!r}, which is ignored"
        for name in THREAD_VARIABLES
        if os.environ.get(name) and limits[name] is None
    ]
    if not any(folder["writable"] for folder in folders):
        problems.append(
            "caches: expected a folder that can be written to, got none: kernels are compiled in every process; set "
            "NUMBA_CACHE_DIR"
        )
    return {
        "cpu": {
            "name": cpu.NAME,
            "instruction_set": cpu.ISA,
            "extensions": [name for name in cpu.EXTENSIONS if cpu.has(name)],
        },
        "threads": {"used": default_threads(), "limits": limits},
        "caches": folders,
        "problems": problems,
    }


def _folder(path: Path) -> dict[str, Any]:
    """Return where kernels are kept, how many bytes there are, and whether more can be."""
    there = next(folder for folder in (path, *path.parents) if folder.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there):
            writable = True
    except OSError:
        writable = False
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
    return {"path": str(path), "bytes": sum(file.stat().st_size for file in files), "writable": writable}
