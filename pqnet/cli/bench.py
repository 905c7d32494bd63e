"""The commands ``bench`` and ``warmup``: how long a model takes and why, and kernels compiled in advance."""

import argparse
import os
import statistics
import time

import numpy as np

import pqnet
from pqnet import Model

__all__ = ["run", "warmup"]


def _draw_inputs(model: Model, batch: int, seed: int) -> dict[str, np.ndarray]:
    """Return random inputs with every free axis of size ``batch``, or of the recorded size if only that fits."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, info in model.graph.inputs.items():
        shape = tuple(batch if isinstance(size, str) else size for size in info.shape)
        if info.dtype == "float32":
            arrays[name] = rng.standard_normal(shape, np.float32)
        else:
            arrays[name] = np.ones(shape, info.dtype)
    return arrays


def run(args: argparse.Namespace) -> None:
    model = pqnet.load(args.model, args.compute)
    inputs = _draw_inputs(model, args.batch, args.seed)
    times = []
    for _ in range(args.runs + 1):
        start = time.perf_counter()
        model.run(inputs, threads=args.threads)
        times.append(time.perf_counter() - start)
    first, *rest = times
    median, least = statistics.median(rest) * 1e3, min(rest) * 1e3
    print(f"first run {first * 1e3:.1f} ms, then median {median:.3f} ms, min {least:.3f} ms")
    if not args.explain:
        return
    steps = model.profile(inputs, threads=args.threads, runs=args.runs)
    total = sum(step.seconds for step in steps)
    print(f"{'step':<48} {'algorithm':<12} {'ms':>9} {'share':>7} {'bytes':>12}")
    for step in steps:
        print(
            f"{step.label[:48]:<48} {step.algorithm:<12} {step.seconds * 1e3:>9.4f} {step.seconds / total:>7.1%} "
            f"{step.nbytes or '':>12}"
        )
    print(f"{len(steps)} steps, {total * 1e3:.3f} ms in all")


def warmup(args: argparse.Namespace) -> None:
    batches = args.batch or [1]
    os.environ.setdefault("PQNET_TUNE", "3600")  # here measurements are what is wanted, however long they take
    for path in args.model:
        start = time.perf_counter()
        model = pqnet.load(path, args.compute)
        for batch in batches:
            model.run(_draw_inputs(model, batch, args.seed), threads=args.threads)
        print(f"{path}: ready for batches of {', '.join(map(str, batches))} in {time.perf_counter() - start:.1f} s")
