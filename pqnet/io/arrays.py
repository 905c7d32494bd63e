"""Arrays in files of others: HDF5, .npy and .npz, of unknown origin and bounded in what they make a reader do."""

import json
import math
import os
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path as File
from typing import IO, Any, BinaryIO

import numpy as np

from pqnet.errors import FormatError, PQNetError
from pqnet.io.container import MAGIC, what_is
from pqnet.io.files import Path, file_name
from pqnet.io.hdf5_layout import BASE

__all__ = ["array_limit", "read_arrays", "read_numpy"]

FREE = 1 << 26  # bytes of arrays that any file may hold
EXPANSION = 100  # bytes of arrays that a larger file may hold for each of its own; uncompressed it needs none
SECONDS = 5  # of CPU to read an HDF5 file, and one for so many bytes:
SPEED = 1 << 20


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
    command = [sys.executable, "-P", str(File(__file__).with_name("hdf5_child.py")), name, str(limit), str(seconds)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as child:
        assert child.stdout is not None
        try:
            return _received(child.stdout)
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
    raise FormatError("the HDF5 data cannot be read: its reader crashed, or took too much time or memory")


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
    try:
        with opened or open(name, "rb") as stream:
            nbytes = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            first = stream.read(4)
            stream.seek(0)
            if first not in (b"PK\x03\x04", b"PK\x05\x06"):  # a zip archive with members, without
                return _npy(stream, nbytes)
            with zipfile.ZipFile(stream) as archive:
                return _npz(archive, array_limit(nbytes))
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


def _npy(stream: Any, nbytes: int) -> np.ndarray:
    """Return the array of a .npy stream of so many bytes; the header is believed only if it fits them."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise FormatError(f"format version {version}")
    shape, _, dtype = readers[version](stream)
    expected = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and (min(shape, default=0) < 0 or expected != nbytes - stream.tell()):
        raise FormatError(f"{nbytes - stream.tell()} bytes for an array of shape {shape} and {dtype}")
    stream.seek(0)
    array = np.lib.format.read_array(stream, allow_pickle=False)
    if stream.read(1):  # to the end, where a zip archive compares its checksum
        raise FormatError("more bytes than its array has")
    return array
