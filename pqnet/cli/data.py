"""Arrays on the command line: reading .npy, .npz and .h5, writing .npy and .npz."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pqnet import PQNetError
from pqnet.io import read_arrays, replaced

__all__ = ["batches", "check_output", "read_inputs", "write_outputs"]


def _read(path: str) -> dict[str, np.ndarray] | np.ndarray:
    if Path(path).suffix in (".h5", ".hdf5"):
        return read_arrays(path)
    try:
        with open(path, "rb") as file:  # NumPy leaves one that it cannot read open
            data = np.load(file, allow_pickle=False)
            return data if isinstance(data, np.ndarray) else {name: data[name] for name in data.files}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as reason:
        raise PQNetError(f"{path}: expected a readable .npy, .npz or .h5 file of numbers, got: {reason}") from None


def read_inputs(items: Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the arrays of ``[NAME=]FILE`` arguments by input name."""
    out: dict[str, np.ndarray] = {}
    for item in items:
        name, equals, path = item.partition("=")
        if not equals or Path(item).exists():
            name, path = "", item
        elif name not in names:
            raise PQNetError(f"{item}: expected NAME=FILE with a name of {list(names)}, got {name!r}")
        data = _read(path)
        if isinstance(data, np.ndarray):
            if not name and len(names) != 1:
                raise PQNetError(f"{item}: expected NAME=FILE with a name of {list(names)}, got no name")
            data = {name or names[0]: data}
        elif name:
            if name not in data:
                raise PQNetError(f"{item}: expected an array {name!r} in the file, got {sorted(data)}")
            data = {name: data[name]}
        if double := set(out) & set(data):
            raise PQNetError(f"{item}: input {sorted(double)[0]!r} is given twice")
        out.update(data)
    if set(out) != set(names):
        raise PQNetError(f"inputs: expected arrays for {list(names)}, got {sorted(out)}")
    return out


def batches(arrays: Mapping[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
    """Cut arrays along axis 0."""
    lengths = {a.shape[0] if a.ndim else 0 for a in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise PQNetError(f"inputs: expected equally many samples, at least one, got {sorted(lengths)}")
    return [{n: a[i : i + size] for n, a in arrays.items()} for i in range(0, lengths.pop(), size)]


def check_output(path: str, suffixes: tuple[str, ...]) -> None:
    """Raise before long work if its result could not be written."""
    if Path(path).suffix not in suffixes:
        raise PQNetError(f"--output: expected a file name ending in {' or '.join(suffixes)}, got {path}")
    if not Path(path).resolve().parent.is_dir():
        raise PQNetError(f"--output: expected an existing folder, got {Path(path).parent}")


def write_outputs(path: str, outputs: Mapping[str, Any]) -> None:
    """Write one array to .npy or named arrays to .npz, whole or not at all."""
    with replaced(path) as temporary, open(temporary, "wb") as file:
        if Path(path).suffix == ".npz":
            np.savez(file, **outputs)
        else:
            np.save(file, next(iter(outputs.values())))
