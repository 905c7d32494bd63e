"""``pqnet demo``: the main job on a small real network and its data, both part of the package."""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

import pqnet
from pqnet import Model
from pqnet.demo import load_images, model_path

__all__ = ["run"]


def run(args: argparse.Namespace) -> None:
    """Load, calibrate, quantize, save, reload, run from codes on held-out images; print a table."""
    calibration, images, labels = load_images()
    model = pqnet.load(model_path())
    print(f"float model: {len(model.graph.layers())} layers, trained on 8x8 images of handwritten digits")
    stats = pqnet.calibrate(model, calibration, seed=args.seed, threads=args.threads, progress=not args.quiet)
    options = {"metric": args.metric, "seed": args.seed, "threads": args.threads, "progress": not args.quiet}
    print(f"quantize ({args.preset}, metric {args.metric}): from statistics, then layer after layer from data")
    once = pqnet.quantize(model, args.preset, stats, **options)
    stepwise = pqnet.quantize(model, args.preset, calibration, reestimate_norm=True, **options)
    reference, float_row = _measure(model, images, labels, args.threads)
    rows = [("float32", os.path.getsize(model_path()), *float_row, 0.0)]
    with tempfile.TemporaryDirectory() as folder:
        for name, small in (("from statistics", once), ("layer after layer", stepwise)):
            path = Path(folder) / "small.h5"
            small.save(path)
            logits, row = _measure(pqnet.load(path), images, labels, args.threads)
            rows.append((name, path.stat().st_size, *row, float(np.abs(logits - reference).max())))
    dense = model.size().total
    print(f"\n{len(images)} held-out images, run from the saved and reloaded files")
    print(f"{'':<18} {'top-1':>7} {'weights':>9} {'ratio':>6} {'file':>9} {'us/image':>9} {'largest difference':>19}")
    for name, file, size, right, seconds, difference in rows:
        cells = f"{right:>7.2%} {size:>9} {dense / size:>6.1f} {file:>9} {1e6 * seconds:>9.0f} {difference:>19.3f}"
        print(f"{name:<18} {cells}")
    print(f"(weights and file in bytes; logits of the float model reach {np.abs(reference).max():.1f})")


def _measure(
    model: Model, images: np.ndarray, labels: np.ndarray, threads: int | None
) -> tuple[np.ndarray, tuple[int, float, float]]:
    """Return the logits, and bytes, share of right answers and seconds an image."""
    model(images, threads=threads)  # the first call warms up
    start = time.perf_counter()
    logits = model(images, threads=threads)
    seconds = (time.perf_counter() - start) / len(images)
    return logits, (model.size().total, float((logits.argmax(1) == labels).mean()), seconds)
