"""Arrays on the command line: reading .npy, .npz and .h5, running in batches, writing .npy and .npz."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pqnet import PQNetError, io
from pqnet.codecs import codec_from_attrs
from pqnet.errors import did_you_mean
from pqnet.io import open_arrays, read_arrays, read_numpy, replaced
from pqnet.pipeline.batches import sample_files, whole_files

__all__ = [
    "check_output",
    "codec_text",
    "open_inputs",
    "read_inputs",
    "read_labels",
    "write_outputs",
]


def _read(path: str) -> dict[str, np.ndarray] | np.ndarray:
    return read_arrays(path) if Path(path).suffix in (".h5", ".hdf5") else read_numpy(path)


def read_inputs(items: Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the arrays of ``[NAME=]FILE`` arguments by input name."""
    return _by_name(items, names, _read)


def _by_name(items: Sequence[str], names: Sequence[str], read: Callable[[str], Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for item in items:
        name, equals, path = item.partition("=")
        if not equals or Path(item).exists():
            name, path = "", item
        elif name not in names:
            raise PQNetError(
                f"{item}: expected NAME=FILE with a name of {list(names)}, got {name!r}{did_you_mean(name, names)}"
            )
        data = read(path)
        if not isinstance(data, dict):
            if not name and len(names) != 1:
                raise PQNetError(f"{item}: expected NAME=FILE with a name of {list(names)}, got no name")
            data = {name or names[0]: data}
        elif name:
            if name not in data:
                raise PQNetError(
                    f"{item}: expected an array {name!r} in the file, got {sorted(data)}{did_you_mean(name, data)}"
                )
            data = {name: data[name]}
        if double := set(out) & set(data):
            raise PQNetError(f"{item}: input {sorted(double)[0]!r} is given twice")
        out.update(data)
    if not set(out) >= set(names):
        near = "".join(did_you_mean(name, names) for name in sorted(set(out) - set(names))[:1])
        raise PQNetError(f"inputs: expected arrays for {list(names)}, got {sorted(out)}{near}")
    return out


def open_inputs(items: Sequence[str], names: Sequence[str]) -> dict[str, Any] | list[dict[str, Any]]:
    """Return the arrays of ``[NAME=]FILE`` arguments by input name, or a list of such for the files of a folder.

    Rows of .npy and HDF5 files are read when they are needed.
    """
    if len(items) != 1 or not Path(items[0]).is_dir():
        return _by_name(items, names, open_arrays)
    return [whole_files(_by_name([str(file)], names, open_arrays)) for file in sample_files(items[0])]


def read_labels(path: str, samples: int) -> np.ndarray:
    """Return class numbers from a file, one for each sample."""
    labels = read_inputs([path], ["labels"])["labels"]
    if labels.dtype.kind not in "iu" or labels.shape != (samples,):
        got = f"{labels.dtype} of shape {labels.shape}"
        raise PQNetError(f"--labels: expected one integer for each of {samples} samples, got {got} in {path}")
    return labels.astype(np.int64)


def check_output(path: str, suffixes: tuple[str, ...], option: str = "--output") -> None:
    """Raise before long work if its result could not be written."""
    if Path(path).suffix not in suffixes:
        raise PQNetError(f"{option}: expected a file name ending in {' or '.join(suffixes)}, got {path}")
    io.check_output(path, option)


def write_outputs(path: str, outputs: Mapping[str, Any]) -> None:
    """Write one array to .npy or named arrays to .npz, whole or not at all."""
    with replaced(path) as temporary, open(temporary, "wb") as file:
        if Path(path).suffix == ".npz":
            np.savez(file, **outputs)
        else:
            # To files NumPy writes itself, and says nothing of a disk that is full at the end.
            np.save(SimpleNamespace(write=file.write), next(iter(outputs.values())))  # type: ignore[call-overload]


def codec_text(attrs: Mapping[str, Any] | None) -> str:
    """Return a codec, given as plain data, in a few words."""
    return "float" if attrs is None else str(codec_from_attrs(attrs))
