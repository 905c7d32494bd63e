"""The commands ``bench`` and ``warmup``: how long a model takes and why, and kernels compiled in advance."""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Mapping

import numpy as np

import pqnet
from pqnet import Model, PQNetError
from pqnet._progress import progress_bar, tick
from pqnet.cli.table import Column, print_json, print_table
from pqnet.errors import did_you_mean

__all__ = ["run", "warmup"]


def _draw_inputs(model: Model, batch: int, sizes: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """Return random inputs of ``batch`` samples; other free axes have the sizes given, or those it was made with."""
    graph, rng = model.graph, np.random.default_rng(seed)
    if unknown := set(sizes) - set(graph.symbols):
        got = f"{sorted(unknown)[0]!r}{did_you_mean(sorted(unknown)[0], graph.symbols)}"
        raise PQNetError(f"--size: expected a free size among {sorted(graph.symbols)}, got {got}")
    samples = {info.shape[0]: batch for info in graph.inputs.values() if info.shape}
    sizes = {**graph.symbols, **{name: n for name, n in samples.items() if isinstance(name, str)}, **sizes}
    arrays = {}
    for name, info in graph.inputs.items():
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in info.shape)
        if info.dtype == "float32":
            arrays[name] = rng.standard_normal(shape, np.float32)
        else:
            arrays[name] = np.ones(shape, info.dtype)
    return arrays


def run(args: argparse.Namespace) -> None:
    model = pqnet.load(args.model, args.compute)
    inputs = _draw_inputs(model, args.batch, dict(args.size), args.seed)
    times = []
    with progress_bar(not args.quiet, "bench", "run", args.runs + 1) as bar:
        for _ in range(args.runs + 1):
            start = time.perf_counter()
            model.run(inputs, threads=args.threads)
            times.append(time.perf_counter() - start)
            bar.update()
        tick("steps alone")
        steps = model.profile(inputs, threads=args.threads, runs=args.runs) if args.explain else []
    first, *rest = times
    median, least = statistics.median(rest), min(rest)
    if args.json:
        found = {"batch": args.batch, "first_seconds": first, "median_seconds": median, "least_seconds": least}
        print_json({**found, "steps": [step._asdict() for step in steps]} if args.explain else found)
        return
    print(f"first run {first * 1e3:.1f} ms, then median {median * 1e3:.3f} ms, min {least * 1e3:.3f} ms")
    if not args.explain:
        return
    total = sum(step.seconds for step in steps)
    rows = [
        [s.label, s.algorithm, f"{s.seconds * 1e3:.4f}", f"{s.seconds / total:.1%}", str(s.nbytes or "")] for s in steps
    ]
    print_table(STEPS, rows)
    print(f"{len(steps)} steps, {total * 1e3:.3f} ms in all")


STEPS = [Column("step", False), Column("algorithm", False), Column("ms"), Column("share"), Column("bytes", rank=1)]


def warmup(args: argparse.Namespace) -> None:
    os.environ.setdefault("PQNET_TUNE", "3600")  # here measurements are what is wanted, however long they take
    choices: dict[str, list[int]] = {}
    for name, size in args.size:
        choices.setdefault(name, []).append(size)
    for path in args.model:
        start = time.perf_counter()
        model, batches = pqnet.load(path, args.compute), args.batch or [1]
        sizes_wanted = list(itertools.product(batches, *choices.values()))
        with progress_bar(not args.quiet, f"warmup {path}", "size", len(sizes_wanted)) as bar:
            for batch, *sizes in sizes_wanted:
                inputs = _draw_inputs(model, batch, dict(zip(choices, sizes, strict=True)), args.seed)
                model.run(inputs, threads=args.threads)
                bar.update()
        model.run(inputs, threads=2)  # the kernels of helping threads: where it will run, there may be more CPUs
        ready = [
            f"batches of {', '.join(map(str, batches))}",
            *(f"{n} {', '.join(map(str, s))}" for n, s in choices.items()),
        ]
        print(f"{path}: ready for {', '.join(ready)} in {time.perf_counter() - start:.1f} s")
