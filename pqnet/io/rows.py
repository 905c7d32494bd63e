"""Arrays in files of which only the rows that are asked for are read: they may be larger than memory."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as File

import numpy as np

from pqnet.errors import PQNetError
from pqnet.io.arrays import array_headers, npy_header, read_array_rows, read_numpy
from pqnet.io.files import Path, file_name

__all__ = ["FileArray", "FileRows", "open_arrays", "read_rows"]


@dataclass(frozen=True)
class FileArray:
    """An array in a .npy or HDF5 file; its rows are read when they are asked for, by whoever has it.

    Attributes
    ----------
    path : str
        Absolute, so that other processes and machines with the same file system open the same file.
    name : str or None
        Of the array in an HDF5 file; None in a .npy file.
    shape : tuple of int
    dtype : dtype
        In the byte order of the machine.
    """

    path: str
    name: str | None
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array without axes has no length")
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return read_rows([self.part(rows)])[0]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return single rows."""
        return _read(self, [(int(row), int(row) + 1) for row in rows])

    def part(self, rows: slice) -> "FileRows":
        """Return a reference to some rows, in steps of one."""
        start, stop, _ = rows.indices(len(self))
        return FileRows(self, start, max(start, stop))


@dataclass(frozen=True)
class FileRows:
    """Rows of an array in a file that nobody has read yet."""

    array: FileArray
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of these rows."""
        return self.stop - self.start, *self.array.shape[1:]

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.array.ndim

    def __len__(self) -> int:
        return self.stop - self.start


def open_arrays(path: Path) -> "np.ndarray | FileArray | dict[str, np.ndarray] | dict[str, FileArray]":
    """Return the array of a .npy file, or those of an HDF5 file by name, unread; those of a .npz file are read.

    Raises
    ------
    PQNetError
        If the file is missing, damaged, or no such file.
    """
    name = file_name(path)
    whole = os.path.abspath(name)
    if File(name).suffix in (".h5", ".hdf5"):
        return {key: FileArray(whole, key, shape, dtype) for key, (shape, dtype) in array_headers(name).items()}
    header = npy_header(name)
    if header is None or not header.shape or header.dtype.kind not in "fiub":  # for what it says of the others
        return read_numpy(name)
    return FileArray(whole, None, header.shape, header.dtype.newbyteorder("="))


def read_rows(parts: Sequence[FileRows]) -> list[np.ndarray]:
    """Return rows of one array, read at once where each part begins where the one before it ends."""
    if not parts:
        return []
    array, starts, stops = parts[0].array, [p.start for p in parts], [p.stop for p in parts]
    if any(part.array != array for part in parts) or starts[1:] != stops[:-1]:
        return [found for part in parts for found in read_rows([part])]
    rows = _read(array, [(starts[0], stops[-1])])
    return [rows[start - starts[0] : stop - starts[0]] for start, stop in zip(starts, stops, strict=True)]


def _read(array: FileArray, ranges: list[tuple[int, int]]) -> np.ndarray:
    """Return the rows of several ranges, one after the other."""
    rows = _npy_rows(array, ranges) if array.name is None else read_array_rows(array.path, array.name, ranges)
    if rows.dtype != array.dtype or rows.shape != (sum(b - a for a, b in ranges), *array.shape[1:]):
        raise PQNetError(f"{array.path}: expected {array.dtype} of shape {array.shape} as before, got another array")
    return rows


def _npy_rows(array: FileArray, ranges: list[tuple[int, int]]) -> np.ndarray:
    header = npy_header(array.path)
    if header is None or (header.shape, header.dtype.newbyteorder("=")) != (array.shape, array.dtype):
        raise PQNetError(f"{array.path}: expected {array.dtype} of shape {array.shape} as before, got another array")
    if header.fortran:
        whole = np.asarray(read_numpy(array.path), array.dtype)
        return np.concatenate([whole[start:stop] for start, stop in ranges])
    row, found = math.prod(array.shape[1:]), []
    try:
        with open(array.path, "rb") as stream:
            for start, stop in ranges:
                stream.seek(header.offset + start * row * array.dtype.itemsize)
                found.append(np.fromfile(stream, header.dtype, (stop - start) * row))
    except OSError as reason:
        raise PQNetError(f"{array.path}: cannot read it: {reason.strerror}") from None
    numbers = np.asarray(found[0] if len(found) == 1 else np.concatenate(found), array.dtype)
    return numbers.reshape(sum(b - a for a, b in ranges), *array.shape[1:])
