"""Arrays on the command line: reading .npy, .npz and .h5, running in batches, writing .npy and .npz."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pqnet import PQNetError, io
from pqnet.codecs import codec_from_attrs
from pqnet.errors import did_you_mean
from pqnet.io import read_arrays, read_numpy, replaced

__all__ = [
    "check_output",
    "codec_text",
    "read_inputs",
    "read_labels",
    "read_samples",
    "sample_files",
    "write_outputs",
]


def _read(path: str) -> dict[str, np.ndarray] | np.ndarray:
    return read_arrays(path) if Path(path).suffix in (".h5", ".hdf5") else read_numpy(path)


def read_inputs(items: Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the arrays of ``[NAME=]FILE`` arguments by input name."""
    out: dict[str, np.ndarray] = {}
    for item in items:
        name, equals, path = item.partition("=")
        if not equals or Path(item).exists():
            name, path = "", item
        elif name not in names:
            raise PQNetError(
                f"{item}: expected NAME=FILE with a name of {list(names)}, got {name!r}{did_you_mean(name, names)}"
            )
        data = _read(path)
        if isinstance(data, np.ndarray):
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


def read_samples(items: Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray] | list[dict[str, np.ndarray]]:
    """Return the arrays of ``[NAME=]FILE`` arguments by input name, or a list of such for the files of a folder."""
    if len(items) != 1 or not Path(items[0]).is_dir():
        return read_inputs(items, names)
    files = sample_files(items[0])
    if not files:
        raise PQNetError(f"{items[0]}: expected a folder of .npy, .npz or .h5 files, each a batch, got none")
    return [read_inputs([str(file)], names) for file in files]


def sample_files(folder: str) -> list[Path]:
    """Return the files of a folder that hold arrays, in the order of their names."""
    return sorted(file for file in Path(folder).iterdir() if file.suffix in (".npy", ".npz", ".h5", ".hdf5"))


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
