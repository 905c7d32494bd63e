"""Arrays in files of others: HDF5, .npy and .npz, of unknown origin and bounded in what they make a reader do."""

import json
import math
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path as File
from typing import IO, Any, BinaryIO, TypeVar

import numpy as np

from pqnet.errors import FormatError, PQNetError
from pqnet.io.container import MAGIC, what_is
from pqnet.io.files import Path, file_name
from pqnet.io.hdf5_layout import BASE

__all__ = ["array_headers", "array_limit", "npy_header", "read_array_rows", "read_arrays", "read_numpy"]

T = TypeVar("T")

FREE = 1 << 26  # bytes of arrays that any file may hold
EXPANSION = 100  # bytes of arrays that a larger file may hold for each of its own; uncompressed it needs none
SECONDS = 5  # of CPU to read an HDF5 file, and one for so many bytes:
SPEED = 1 << 20
ZIP = b"PK\x03\x04", b"PK\x05\x06"  # how a zip archive with members begins, and one without
CRASHED = "the HDF5 data cannot be read: its reader crashed, or took too much time or memory"


def array_limit(nbytes: int) -> int:
    """Return how many bytes of arrays a file of so many bytes may hold."""
    return max(FREE, EXPANSION * nbytes)


# -- HDF5 ----------------------------------------------------------------------------------------------------


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an HDF5 file that pqnet did not write, such as activations recorded elsewhere.

    Parameters
    ----------
    path : str or path
        HDF5 file of datasets of floats up to float64, integers or booleans; those in groups are named
        ``"group/name"``. Compressed, at most 64 MiB of numbers, or 100 times the size of the file. It is read in a
        process of its own.

    Returns
    -------
    dict of str to array
        In order of names and with the stored dtypes.

    Raises
    ------
    FormatError
        If the file is no HDF5 file, is damaged, or holds links or data that are not such numbers, or too many.
    PQNetError
        If the file is missing or cannot be read.
    """
    return _asked(path, _received)


def array_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return shapes and dtypes of the arrays that `read_arrays` would read; no number is read."""

    def received(stream: IO[bytes]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        headers: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        while line := stream.readline():
            match json.loads(line):
                case {"name": name, "dtype": dtype, "shape": shape}:
                    headers[name] = tuple(shape), np.dtype(dtype)
                case {"error": message}:
                    raise FormatError(message)
                case {"end": _}:
                    return headers
        raise FormatError(CRASHED)

    return _asked(path, received, "headers")


def read_array_rows(path: Path, name: str, ranges: list[tuple[int, int]]) -> np.ndarray:
    """Return the rows from each start to each stop of one of the arrays that `read_arrays` would read."""
    found = _asked(path, _received, json.dumps([name, ranges]))
    if name not in found:
        raise FormatError(f"{file_name(path)}: expected an array {name!r} in the file, got none")
    return found[name]


def _asked(path: Path, receive: Callable[[IO[bytes]], T], what: str = "") -> T:
    """Have `pqnet.io.hdf5_child` read a file, and return what ``receive`` makes of its answer."""
    name = file_name(path)
    try:
        with open(name, "rb") as stream:
            first = stream.read(BASE)
            nbytes = os.fstat(stream.fileno()).st_size
    except OSError as reason:
        raise PQNetError(f"path: cannot read {name}: {reason.strerror}") from None
    if first.startswith(MAGIC):
        raise FormatError(f"{name}: expected a plain HDF5 file of arrays, got a pqnet file")
    if not _is_hdf5(name, nbytes):
        raise FormatError(f"{name}: expected an HDF5 file, got {what_is(first)}")
    if getattr(sys, "frozen", False) or not sys.executable:
        raise PQNetError(f"{name}: expected .npy or .npz in a program without a Python interpreter, got HDF5")
    limit, seconds = array_limit(nbytes), SECONDS + nbytes // SPEED
    program = str(File(__file__).with_name("hdf5_child.py"))
    command = [sys.executable, "-P", program, name, str(limit), str(seconds), what]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as child:
        assert child.stdout is not None
        try:
            return receive(child.stdout)
        except FormatError as reason:
            raise FormatError(f"{name}: {reason}") from None
        finally:
            child.kill()


def _is_hdf5(name: str, nbytes: int) -> bool:
    """Tell whether the signature is where HDF5 may have it: behind a user block of no bytes, or 512, 1024, 2048 ..."""
    with open(name, "rb") as stream:
        places = [0, *(BASE << i for i in range(64) if BASE << i < nbytes)]
        return any(stream.seek(place) == place and stream.read(8) == b"\x89HDF\r\n\x1a\n" for place in places)


def _received(stream: IO[bytes]) -> dict[str, np.ndarray]:
    """Return the arrays that `pqnet.io.hdf5_child` writes."""
    arrays: dict[str, np.ndarray] = {}
    left: Any = np.empty(0, "uint8")  # what is still to come of the last array
    while line := stream.readline():
        match json.loads(line):
            case {"name": name, "dtype": dtype, "shape": shape}:
                arrays[name] = np.empty(shape, dtype)
                left = arrays[name].reshape(-1).view("uint8")
            case {"bytes": size}:
                if stream.readinto(left[:size]) != size:  # type: ignore[attr-defined]
                    break
                left = left[size:]
            case {"error": message}:
                raise FormatError(message)
            case {"end": _}:
                return arrays
    raise FormatError(CRASHED)


# -- NumPy ---------------------------------------------------------------------------------------------------


def read_numpy(source: Path | BinaryIO) -> np.ndarray | dict[str, np.ndarray]:
    """Return the array of a .npy file, or those of a .npz file by name.

    Parameters
    ----------
    source : str, path or binary file
        A file open for reading is read from its start.

    Raises
    ------
    PQNetError
        If the file is missing, damaged, or no such file; or holds more than 64 MiB of numbers and more than 100 times
        its size.
    """
    name = "array" if hasattr(source, "read") else file_name(source)
    opened: Any = nullcontext(source) if hasattr(source, "read") else None
    with _readable(name), opened or open(name, "rb") as stream:
        nbytes = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        first = stream.read(4)
        stream.seek(0)
        if first not in ZIP:
            return _npy(stream, nbytes)
        with zipfile.ZipFile(stream) as archive:
            return _npz(archive, array_limit(nbytes))


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn whatever reading a file raises into one error that names it."""
    try:
        yield
    except Exception as reason:  # NumPy, zipfile, zlib and Python's parser raise many classes for malformed files
        got = f"{type(reason).__name__}: {reason}" if not isinstance(reason, OSError | ValueError) else reason
        raise PQNetError(f"{name}: expected a readable .npy, .npz or .h5 file of numbers, got: {got}") from None


def _npz(archive: zipfile.ZipFile, limit: int) -> dict[str, np.ndarray]:
    members = archive.infolist()
    if (total := sum(member.file_size for member in members)) > limit:
        raise FormatError(f"more than {limit} bytes of arrays for a file of its size, {total}; use numpy.savez")
    arrays: dict[str, np.ndarray] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name in arrays:
            raise FormatError(f"two arrays of the name {name!r}")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others expand without a bound
            raise FormatError(f"a compression that numpy.savez_compressed does not make, of {member.filename!r}")
        with archive.open(member) as stream:
            arrays[name] = _npy(stream, member.file_size)
    return arrays


@dataclass(frozen=True)
class NpyHeader:
    """What a .npy file says about its array, and where that begins."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int


def npy_header(path: Path) -> NpyHeader | None:
    """Return the header of a .npy file, None for a .npz file; the errors are those of `read_numpy`."""
    name = file_name(path)
    with _readable(name), open(name, "rb") as stream:
        if stream.read(4) in ZIP:
            return None
        stream.seek(0)
        return _header(stream, os.fstat(stream.fileno()).st_size)


def _header(stream: Any, nbytes: int) -> NpyHeader:
    """Read the header of a .npy stream of so many bytes, and raise unless it fits them."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise FormatError(f"format version {version}")
    shape, fortran, dtype = readers[version](stream)
    expected, offset = math.prod(shape) * dtype.itemsize, stream.tell()
    if not dtype.hasobject and (min(shape, default=0) < 0 or expected != nbytes - offset):
        raise FormatError(f"{nbytes - offset} bytes for an array of shape {shape} and {dtype}")
    return NpyHeader(shape, dtype, fortran, offset)


def _npy(stream: Any, nbytes: int) -> np.ndarray:
    """Return the array of a .npy stream of so many bytes; the header is believed only if it fits them."""
    _header(stream, nbytes)
    stream.seek(0)
    array = np.lib.format.read_array(stream, allow_pickle=False)
    if stream.read(1):  # to the end, where a zip archive compares its checksum
        raise FormatError("more bytes than its array has")
    return array
