"""Starts `first_run` in fresh processes: files for every engine, and what one such process reports.

Compiled kernels are kept in a folder of their own, empty at first, so that it is known which runs compiled.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from nets import NETS, decoded, sample
from onnx_graph import to_onnx

import pqnet

SCRIPT = Path(__file__).with_name("first_run.py")
TOLERANCE = 1e-4


class First(NamedTuple):
    """Seconds from the start of the process to the first result, and bytes at the two points."""

    seconds: float
    imported: dict[str, Any]
    result: dict[str, Any]


class Files:
    """One network as a pqnet file and as an ONNX file, and an input, in a folder."""

    def __init__(self, folder: str, name: str) -> None:
        build, batch, self.codes = NETS[name]
        graph = build()
        (x,) = sample(graph, batch).values()
        self.folder, self.input = Path(folder), Path(folder) / "input.npy"
        self.model, self.onnx = self.folder / "model.h5", self.folder / "model.onnx"
        self.cache = self.folder / "kernels"
        np.save(self.input, x)
        pqnet.Model(graph).save(self.model)
        onnx.save(to_onnx(decoded(graph), {"batch": batch}), self.onnx)

    def compiled(self) -> int:
        """Return the number of compiled kernels in the folder."""
        return sum(1 for _ in self.cache.rglob("*.kernel"))

    def first_run(self, engine: str, threads: int, *, warm: bool = True) -> First:
        """Run an engine once in a process of its own; ``warm``: raise if it had to compile a kernel."""
        compiled = self.compiled()
        model = self.model if engine == "pqnet" else self.onnx
        command = [sys.executable, str(SCRIPT), engine, str(model), str(self.input), str(threads)]
        environment = os.environ | {"NUMBA_CACHE_DIR": str(self.cache)}
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            reports: dict[str, dict[str, Any]] = {}
            for line in process.stdout:
                reports |= {json.loads(line)["point"]: json.loads(line)}
                if "result" in reports:
                    break
            seconds = time.perf_counter() - start
        if process.returncode or "result" not in reports:
            raise RuntimeError(f"{engine}: the process ended with {process.returncode}")
        if warm and self.compiled() != compiled:
            raise RuntimeError(f"{engine}: kernels were compiled in a run that should find them; did sources change?")
        return First(seconds, reports["imported"], reports["result"])

    def check(self, engines: list[str]) -> None:
        """Raise unless the engines' outputs, of runs that are over, are those of the first one."""
        outputs = [np.load(f"{self.input}.{engine}.npy") for engine in engines]
        for engine, got in zip(engines, outputs, strict=True):
            if not (apart := np.abs(got - outputs[0]).max() / np.abs(outputs[0]).max()) <= TOLERANCE:
                raise AssertionError(f"{engine}: {apart:.2g} of the largest output apart from {engines[0]}")
