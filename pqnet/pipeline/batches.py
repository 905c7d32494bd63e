"""Calibration data in the forms that users have it, as checked batches."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pqnet import _check
from pqnet.errors import PQNetError, did_you_mean
from pqnet.graph import Graph
from pqnet.io import FileArray, FileRows, open_arrays, read_rows
from pqnet.runtime.execute import check_inputs

__all__ = [
    "Batch",
    "check_samples",
    "cut_batches",
    "from_files",
    "hold_out",
    "is_array",
    "iterate_batches",
    "known_samples",
    "named_inputs",
    "open_samples",
    "read_batches",
    "sample_files",
    "samples_of",
    "whole_files",
]

Batch = dict[str, np.ndarray]
HELD_OUT = 8  # samples, of which one is put aside
BATCH_BYTES = 8 << 20  # of input a batch: small enough for caches and threads, large enough for BLAS
FILES = (".npy", ".npz", ".h5", ".hdf5")


def iterate_batches(graph: Graph, data: Any) -> Iterator[Batch]:
    """Yield checked batches from an array, a dict of arrays, a path, or an iterable of batches.

    An array or dict holds all samples along axis 0 and is cut into batches; items of an iterable are taken as they are.
    A path names a file of arrays, or a folder of such files, each a batch. Only arrays in memory are checked as a whole
    before the first batch is yielded; of files, of datasets of h5py and the like, no more than a batch is read at once.
    """
    for unread in cut_batches(graph, data):
        yield from read_batches(graph, [unread])


def cut_batches(graph: Graph, data: Any) -> Iterator[Mapping[str, Any]]:
    """Yield what `iterate_batches` does, but for what lies in files, of which `read_batches` makes arrays."""
    if isinstance(data, str | Path):
        data = open_samples(data, list(graph.inputs))
    if isinstance(data, Mapping) or is_array(data):
        yield from _cut(graph, named_inputs(graph, data))
        return
    if not isinstance(data, Iterable) or isinstance(data, bytes):
        raise _check.error("calibration", "an array, a dict of arrays or an iterable of batches", _check.describe(data))
    empty = True
    for item in data:
        empty = False
        yield named_inputs(graph, item)
    if empty:
        raise _check.error("calibration", "at least one batch", "an empty iterable")


def known_samples(data: Any) -> int | None:
    """Return how many samples there are, of whatever form that is checked later; None if that is not known yet."""
    if isinstance(data, Mapping):
        return max((known_samples(item) or 0 for item in data.values()), default=0) or None
    if isinstance(data, list | tuple):
        counts = [known_samples(item) for item in data]
        return sum(n for n in counts if n is not None) if counts and None not in counts else None
    return int(data.shape[0]) if (is_array(data) or isinstance(data, FileRows)) and data.shape else None


def read_batches(graph: Graph, unread: Sequence[Mapping[str, Any]]) -> list[Batch]:
    """Return checked batches; rows in files that follow one another are read at once."""
    checked = [check_inputs(graph, batch) for batch in from_files(unread)]
    for batch in checked:
        graph.bind_symbols({name: a.shape for name, a in batch.items()})
    return checked


def from_files(unread: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return batches with what lies in files read, unchecked."""
    batches = [dict(batch) for batch in unread]
    for name in {name for batch in batches for name in batch}:
        places = [batch for batch in batches if isinstance(batch.get(name), FileRows)]
        for batch, rows in zip(places, read_rows([batch[name] for batch in places]), strict=True):
            batch[name] = rows
    return batches


def samples_of(batch: Mapping[str, Any]) -> int:
    """Return how many samples a batch has, read or not."""
    return max((len(a) for a in batch.values() if np.ndim(a)), default=1)


def open_samples(path: str | Path, names: Sequence[str]) -> Any:
    """Return the arrays of a file by input name, or a list of such for the files of a folder; .npy and HDF5 unread."""
    if not Path(path).is_dir():
        found = open_arrays(path)
        arrays = found if isinstance(found, dict) else {names[0]: found}
        if not set(names) <= set(arrays) or (len(names) > 1 and not isinstance(found, dict)):
            got = sorted(found) if isinstance(found, dict) else "one without a name"
            near = "".join(did_you_mean(name, names) for name in sorted(set(arrays) - set(names))[:1])
            raise PQNetError(f"{path}: expected arrays for {list(names)}, got {got}; use .npz or .h5 for several{near}")
        return {name: arrays[name] for name in names}
    return [whole_files(open_samples(file, names)) for file in sample_files(path)]


def sample_files(folder: str | Path) -> list[Path]:
    """Return the files of a folder that hold arrays, in the order of their names."""
    files = sorted(file for file in Path(folder).iterdir() if file.suffix in FILES)
    if not files:
        raise PQNetError(f"{folder}: expected a folder of .npy, .npz or .h5 files, each a batch, got none")
    return files


def whole_files(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays as one batch, still unread."""
    return {name: a.part(slice(None)) if isinstance(a, FileArray) else a for name, a in arrays.items()}


def is_array(data: Any) -> bool:
    """Tell whether something is an array, in memory or, as those of files and of h5py, not."""
    return isinstance(data, np.ndarray) or all(hasattr(data, name) for name in ("shape", "dtype", "__getitem__"))


def named_inputs(graph: Graph, item: Any, what: str = "calibration") -> Mapping[str, Any]:
    """Return arrays by input name; one alone is that of the only input."""
    if isinstance(item, Mapping):
        return item
    if len(graph.inputs) != 1:
        raise PQNetError(f"{what}: expected dicts with the keys {list(graph.inputs)}, got {_check.describe(item)}")
    return {next(iter(graph.inputs)): item}


def check_samples(graph: Graph, data: Mapping[str, Any], what: str = "calibration") -> tuple[Batch, int]:
    """Return checked inputs with samples along axis 0, and how many there are."""
    arrays = check_inputs(graph, data)
    return arrays, _length(arrays, what)


def _length(arrays: Mapping[str, Any], what: str) -> int:
    lengths = {len(a) if len(a.shape) else 0 for a in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        shapes = {name: a.shape for name, a in arrays.items()}
        raise PQNetError(f"{what}: expected the same positive number of samples in every input, got {shapes}")
    return lengths.pop()


def _cut(graph: Graph, data: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    # Arrays in memory are checked as a whole, before work; others batch by batch.
    unread = any(is_array(a) and not isinstance(a, np.ndarray) for a in data.values())
    arrays: Mapping[str, Any] = check_inputs(graph, data) if not unread else _unread(graph, data)
    n = _length(arrays, "calibration")
    fixed = {info.shape[0] for info in graph.inputs.values() if isinstance(info.shape[0], int)}
    itemsizes = {name: np.dtype(info.dtype).itemsize for name, info in graph.inputs.items()}  # of what is computed with
    nbytes = sum(itemsizes[name] * math.prod(a.shape) for name, a in arrays.items())
    size = max(1, min(64, BATCH_BYTES * n // max(1, nbytes)))
    if fixed:
        size = int(fixed.pop())
        if n % size:
            raise PQNetError(f"calibration: expected a multiple of the model's fixed batch {size}, got {n} samples")
    graph.bind_symbols({name: (min(size, n), *a.shape[1:]) for name, a in arrays.items()})
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        yield {name: a.part(rows) if isinstance(a, FileArray) else a[rows] for name, a in arrays.items()}


def _unread(graph: Graph, data: Mapping[str, Any]) -> Mapping[str, Any]:
    if not graph.inputs.keys() <= data.keys():
        raise PQNetError(f"inputs: expected arrays for {list(graph.inputs)}, got {sorted(map(str, data))}")
    return {name: data[name] if is_array(data[name]) else np.asarray(data[name]) for name in graph.inputs}


def hold_out(graph: Graph, batches: list[Batch]) -> tuple[list[Batch], int]:
    """Put aside every eighth sample, from the fifth on, to judge with what the others led to.

    Returns the batches of the others, those put aside behind them, and how many come first. Where the network takes
    batches of a fixed size only, samples are batches. Nothing is put aside of fewer than eight samples.
    """
    first = {info.shape[0] if info.shape else None for info in graph.inputs.values()}
    free = len(first) == 1 and isinstance(first.pop(), str)
    sizes = [len(next(iter(batch.values()))) if free else 1 for batch in batches]
    if sum(sizes) < HELD_OUT:
        return batches, len(batches)
    kept: list[Batch] = []
    aside: list[Batch] = []
    start = 0
    for batch, size in zip(batches, sizes, strict=True):
        held = np.arange(start, start + size) % HELD_OUT == HELD_OUT // 2
        for side, which in ((kept, ~held), (aside, held)):
            if which.all():
                side.append(batch)
            elif which.any():
                side.append({name: a[which] for name, a in batch.items()})
        start += size
    return kept + aside, len(kept)
