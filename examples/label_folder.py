"""Labels every image, or .npy file of samples, below a folder, in a CSV file.

    python examples/label_folder.py small.h5 photos/ -o labels.csv

A row for each sample: file, its number in the file, label and probability, or what is wrong with the file. Rows are on
the disk after each batch; the same command goes on where an earlier one stopped, and leaves out what has its rows. A
table that another network began is refused.
"""

import argparse
import csv
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

import pqnet
from pqnet import Model, PQNetError
from pqnet.io import network_digest, read_numpy

COLUMNS = ("file", "sample", "label", "probability", "error", "network")
SUFFIXES = (".npy", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def files_of(folder: Path) -> list[str]:
    """Return the files below a folder that may be images or samples, relative to it, in order."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def read_samples(model: Model, path: Path) -> np.ndarray | str:
    """Return what a file holds as a batch of the network's input, or what is wrong with it."""
    name, (shape, _) = next(iter(model.inputs.items()))
    try:
        if path.suffix.lower() != ".npy":
            return pqnet.prepare(model, images=[path])[name]
        samples = read_numpy(path)
        samples = samples[None] if samples.ndim == len(shape) - 1 else samples
        if samples.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, samples.shape, strict=True)):
            return samples
        return f"expected one sample or a batch of shape {shape}, got {samples.shape}"
    except PQNetError as reason:
        return str(reason)


def label(model: Model, samples: list[np.ndarray]) -> list[list[tuple[str, float]] | str]:
    """Return the likeliest labels of each file's samples, or why there are none; files alike are run together."""
    name = next(iter(model.inputs))
    try:
        joined = np.concatenate(samples)
        rows = [best[0] for best in pqnet.likeliest(model, model.run({name: joined}), 1)]
    except (PQNetError, ValueError) as reason:  # sizes that differ, or numbers that the network refuses
        if len(samples) == 1:
            return [str(reason)]
        return [found for each in samples for found in label(model, [each])]
    ends = np.cumsum([len(each) for each in samples]).tolist()
    return [rows[end - len(each) : end] for end, each in zip(ends, samples, strict=True)]


def batches(files: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield so many files at a time."""
    files = iter(files)
    while batch := list(islice(files, size)):
        yield batch


def open_table(path: Path, network: str) -> tuple[TextIO, set[str]]:
    """Return the table, open to add rows to, and the files that have theirs.

    The rows of a file are written at once. What a killed process left of the last line goes, and the rows of the last
    file: there may have been more of them.
    """
    rows: list[dict[str, str]] = []
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            text = file.read()
        rows = list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines(keepends=True)))
        if any(row.get("network") != network for row in rows):
            raise PQNetError(f"output: expected a table of this network, got {path} of another; name a new file")
        last = rows[-1]["file"] if rows else None
        rows = [row for row in rows if row["file"] != last]
    beside = path.with_name(f"{path.name}.new")
    with open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(beside, path)
    return open(path, "a", newline="", encoding="utf-8"), {row["file"] for row in rows}


def label_folder(model: Model, folder: Path, output: Path, batch: int = 32) -> tuple[int, int]:
    """Write the table; return how many files are new in it, and how many of these could not be labelled."""
    network = network_digest(model.graph)[:12]
    if len(model.inputs) != 1 or next(iter(model.inputs.values()))[0][:1] != (None,):
        raise PQNetError(f"model: expected one input with a free batch axis, got {model.inputs}")
    if not folder.is_dir():
        raise PQNetError(f"folder: expected an existing folder, got {folder}")
    table, done = open_table(output, network)
    new = failed = 0
    with table, ThreadPoolExecutor() as readers:
        writer = csv.DictWriter(table, COLUMNS)
        for names in batches((name for name in files_of(folder) if name not in done), batch):
            read = list(readers.map(lambda name: read_samples(model, folder / name), names))
            labels = iter(label(model, good) if (good := [each for each in read if not isinstance(each, str)]) else [])
            for name, samples in zip(names, read, strict=True):
                found: Any = samples if isinstance(samples, str) else next(labels)
                rows = [{"error": found}] if isinstance(found, str) else [
                    {"sample": i, "label": best, "probability": f"{p:.6g}"} for i, (best, p) in enumerate(found)
                ]  # fmt: skip
                failed += isinstance(found, str)
                writer.writerows({"file": name, "network": network} | row for row in rows)
            table.flush()
            os.fsync(table.fileno())
            new += len(names)
    return new, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=32, help="files that are run together")
    args = parser.parse_args()
    try:
        new, failed = label_folder(pqnet.load(args.model), args.folder, args.output, args.batch)
    except PQNetError as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    print(f"{new} files labelled, {failed} of them with an error")
    return 0


if __name__ == "__main__":
    sys.exit(main())
