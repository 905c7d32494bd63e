"""``pqnet doctor``: what pqnet finds on this machine, and whether it computes right on it."""

import argparse
import platform
import time
from importlib import metadata
from typing import Any

import numpy as np

import pqnet
from pqnet.cli.table import print_json
from pqnet.demo import load_images, model_path
from pqnet.runtime import host_report
from pqnet.runtime.execute import run_graph, values_to_free

__all__ = ["doctor"]

PACKAGES = ("numpy", "numba", "llvmlite", "h5py", "threadpoolctl", "tqdm", "rich", "PyYAML", "torch", "onnx")
TOLERANCE = 1e-4  # of logits from codes against those from decoded weights by NumPy, relative to the largest


def doctor(args: argparse.Namespace) -> int:
    """Print what is found; return 1 if something is wrong."""
    report: dict[str, Any] = {"pqnet": pqnet.__version__, "python": platform.python_version()}
    report |= {"packages": {name: _version(name) for name in PACKAGES}, **host_report()}
    report["self_test"] = tested = _self_test(args.seed, args.threads, not args.quiet)
    if not tested["difference"] <= TOLERANCE:
        report["problems"].append(
            f"self-test: expected logits within {TOLERANCE} of NumPy's, relative to the largest, got a difference of "
            f"{tested['difference']:.3g}; please report this, with all of the above"
        )
    if args.json:
        print_json(report)
    else:
        _print(report)
    return 1 if report["problems"] else 0


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _self_test(seed: int, threads: int | None, progress: bool) -> dict[str, Any]:
    """Quantize the demo network, run it from its codes, and compare with NumPy on the decoded weights."""
    start = time.perf_counter()
    images = load_images()[1][:64]
    options: dict[str, Any] = {"seed": seed, "threads": threads, "progress": progress}
    small = pqnet.quantize(pqnet.load(model_path()), "small-blocks", metric="none", **options)
    inputs = dict.fromkeys(small.inputs, images)
    got = small.run(inputs, threads=threads)
    want = run_graph(small.graph, values_to_free(small.graph), dict(inputs))
    differences = [np.abs(got[name] - array).max() / np.abs(array).max() for name, array in want.items()]
    return {"difference": float(np.max(differences)), "seconds": round(time.perf_counter() - start, 2)}


def _print(report: dict[str, Any]) -> None:
    cpu, threads = report["cpu"], report["threads"]
    print(f"pqnet {report['pqnet']}, Python {report['python']}")
    print("packages: " + ", ".join(f"{name} {version or 'missing'}" for name, version in report["packages"].items()))
    print(f"CPU: {cpu['name']}, {cpu['instruction_set']}" + "".join(f", {name}" for name in cpu["extensions"]))
    limits = ", ".join(f"{name} {'none' if limit is None else limit}" for name, limit in threads["limits"].items())
    print(f"threads: {threads['used']} (limits: {limits})")
    for folder in report["caches"]:
        state = "writable" if folder["writable"] else "not writable"
        print(f"kernels: {folder['path']}, {folder['bytes'] / 1e6:.1f} MB, {state}")
    tested = report["self_test"]
    print(f"self-test: largest relative difference {tested['difference']:.2g}, {tested['seconds']:.1f} s")
    for problem in report["problems"]:
        print(f"wrong: {problem}")
    if not report["problems"]:
        print("all is well")
