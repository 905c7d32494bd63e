"""The file: named arrays and a JSON header in one HDF5 file that detects every damaged byte.

Layout, version 1 (little-endian)::

    bytes 0..511     HDF5 user block: b"PQNET\\n", uint16 version, uint64 length of the file, SHA-256, zeros to 512
    bytes 512..      HDF5:
      /header        one fixed-length string, JSON: kind, names, dtypes and shapes of all arrays, the caller's header
      /uint8, ...    all arrays of one dtype, one after the other in the order of the header, as one vector

The SHA-256 is that of the whole file with its own 32 bytes zero. It is checked before HDF5 sees a byte, and guards
against damage only; what HDF5 then finds is checked as strictly as if somebody had forged it. `h5dump -d /header`
shows the names, since the header is compressed with HDF5's own deflate filter; the loader inflates it itself, with
a bound, and never runs an HDF5 filter.

Arrays of one dtype share a dataset because the smallest dataset of their own that h5py can make costs 340 bytes
(object header, link; measured: 73 kB for the 216 arrays of a ResNet-50), which files of few MB cannot afford.
Together they cost 2.5 kB for a file, and some 10 bytes for an array in the compressed header.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import secrets
import struct
import zlib
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import h5py
import numpy as np

from pqnet._check import choice, describe, error
from pqnet.errors import FormatError, PQNetError

__all__ = ["check_name", "read_arrays", "read_container", "write_container"]

MAGIC = b"PQNET\n"
VERSION = 1
BLOCK_SIZE = 512
KINDS = {"model": "pqnet.load", "statistics": "pqnet.load_statistics"}
DTYPES = ("uint8", "uint16", "float16", "float32", "float64", "int64", "bool")
MAX_HEADER = 1 << 24  # bytes of JSON: names of a thousand layers and of a vocabulary, not a decompression bomb
MAX_DEPTH = 64

_FIELDS = struct.Struct(f"<{len(MAGIC)}sHQ32s")
_HDF5 = b"\x89HDF\r\n\x1a\n"

Path = str | os.PathLike[str]


def write_container(path: Path, kind: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a pqnet file; ``path`` holds the whole new file or, after any failure, what it held before.

    Parameters
    ----------
    path : str or path
        File to create or replace. Equal content in equal order gives equal bytes.
    kind : {"model", "statistics"}
        What the file is; the reader must ask for the same.
    header : dict
        Plain data: dict with str keys, list, str, int, finite float, bool, None. Tuples come back as lists.
    arrays : dict of str to array
        uint8, uint16, float16, float32, float64, int64 or bool arrays of any shape.

    Raises
    ------
    PQNetError
        If the content cannot be stored or the file cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> from pqnet.io import read_container, write_container
    >>> write_container("example.h5", "statistics", {"samples": 3}, {"h": np.eye(2)})
    >>> read_container("example.h5", "statistics")
    ({'samples': 3}, {'h': array([[1., 0.],
           [0., 1.]])})
    """
    choice(kind, "kind", KINDS)
    index: dict[str, Any] = {}
    for name, array in arrays.items():
        check_name(name, "array name")
        if not isinstance(array, np.ndarray) or array.dtype not in DTYPES:
            raise error(f"array {name!r}", f"a {', '.join(DTYPES)} array", describe(array), "convert it with .astype")
        index[name] = [array.dtype.name, list(array.shape)]
    _check_plain(header, "header")
    document = {"kind": kind, "writer": _writer(), "arrays": index, "header": header}
    text = json.dumps(document, separators=(",", ":")).encode()
    if len(text) > MAX_HEADER:
        raise error("header", f"at most {MAX_HEADER} bytes of JSON", len(text))
    with _replaced(path) as temporary:
        _write_hdf5(temporary, text, arrays)
        _seal(temporary)


def read_container(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return header and arrays of a file that `write_container` wrote.

    Parameters
    ----------
    path : str or path
        File to read.
    kind : {"model", "statistics"}
        What the file has to be.

    Returns
    -------
    header : dict
    arrays : dict of str to array
        In stored order and dtype; new arrays that the caller owns.

    Raises
    ------
    FormatError
        If the file is damaged, forged, of another version or kind, or no pqnet file.
    PQNetError
        If the file is missing or cannot be read.
    """
    choice(kind, "kind", KINDS)
    name = _file_name(path)
    try:
        document, arrays = _parse(_read_verified(name))
    except OSError as reason:
        raise PQNetError(f"path: cannot read {name}: {reason.strerror}") from None
    except PQNetError as reason:
        raise FormatError(f"{name}: {reason}") from reason.__cause__
    if document["kind"] != kind:
        raise FormatError(
            f"{name}: expected a {kind} file, got a {document['kind']} file; open it with {KINDS[document['kind']]}"
        )
    return document["header"], arrays


def check_name(name: Any, where: str) -> str:
    """Return a name that a file may hold: a str of 1 to 1000 printable characters, or raise PQNetError."""
    if not isinstance(name, str) or not 1 <= len(name) <= 1000 or not name.isprintable():
        raise error(where, "a str of 1 to 1000 printable characters", describe(name))
    return name


def _writer() -> str:
    try:
        return f"pqnet {metadata.version('pqnet')}"
    except metadata.PackageNotFoundError:  # run from a source tree
        return "pqnet"


def _file_name(path: Any) -> str:
    try:
        name = os.fsdecode(path)
    except TypeError:
        raise error("path", "a file name", describe(path)) from None
    if not name or "\0" in name:
        raise error("path", "a file name", describe(path))
    return name


def _check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Raise unless ``value`` is data that JSON gives back as it was."""
    if depth > MAX_DEPTH:
        raise error(where, f"at most {MAX_DEPTH} levels of nesting", "more")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise error(where, "str keys", describe(key))
            _check_plain(item, f"{where}[{key!r}]", depth + 1)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]", depth + 1)
    elif isinstance(value, int):
        if abs(value) >= 1 << 63:
            raise error(where, "an integer of 64 bits", f"{value.bit_length()} bits")
    elif not (value is None or isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))):
        raise error(where, "plain data (dict, list, str, int, finite float, bool, None)", describe(value))


# -- writing ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[str]:
    """Give the name of a new file in the same directory, which takes the place of ``path`` if all goes well."""
    target = os.path.realpath(_file_name(path))  # a symbolic link stays one
    if os.path.exists(target) and not os.path.isfile(target):
        raise error("path", "a file name", f"{target}, which is a directory or a device")
    temporary = os.path.join(os.path.dirname(target), f".pqnet-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb"):  # before HDF5 does it, for plain messages and the user's usual permissions
            pass
        yield temporary
        os.replace(temporary, target)
    except BaseException as reason:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(reason, OSError | RuntimeError):  # h5py raises both when a disk is full
            raise PQNetError(
                f"path: cannot write {target}: {getattr(reason, 'strerror', None) or reason}"
            ) from reason
        raise


def _write_hdf5(path: str, text: bytes, arrays: Mapping[str, np.ndarray]) -> None:
    with h5py.File(path, "w", libver=("v110", "v110"), userblock_size=BLOCK_SIZE, track_order=False) as file:
        header = file.create_dataset(
            "header", (1,), f"S{len(text)}", chunks=(1,), compression="gzip", compression_opts=9, track_times=False
        )
        header.id.write_direct_chunk((0,), zlib.compress(text, 9))
        for dtype in DTYPES:
            members = [a for a in arrays.values() if a.dtype == dtype and a.size]
            if not members:
                continue
            size = sum(a.size for a in members)
            dataset = file.create_dataset(dtype, (size,), dtype, fill_time="never", track_times=False)
            start = 0
            for array in members:
                dataset[start : start + array.size] = array.reshape(-1)
                start += array.size


def _user_block(length: int, digest: bytes) -> bytes:
    return _FIELDS.pack(MAGIC, VERSION, length, digest).ljust(BLOCK_SIZE, b"\0")


def _seal(path: str) -> None:
    """Fill in the user block and make sure that all is on the disk."""
    with open(path, "r+b") as stream:
        length = os.fstat(stream.fileno()).st_size
        digest = hashlib.sha256(_user_block(length, bytes(32)))
        stream.seek(BLOCK_SIZE)
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
        stream.seek(0)
        stream.write(_user_block(length, digest.digest()))
        stream.flush()
        os.fsync(stream.fileno())


# -- reading ---------------------------------------------------------------------------------------------------------


def _read_verified(name: str) -> bytes:
    """Return the bytes of a file whose magic, version, length and digest are right."""
    with open(name, "rb") as stream:
        length = os.fstat(stream.fileno()).st_size
        digest = _check_block(stream.read(BLOCK_SIZE), length)
        stream.seek(0)
        data = stream.read(length + 1)
    computed = hashlib.sha256(_user_block(length, bytes(32)))
    computed.update(memoryview(data)[BLOCK_SIZE:])
    if len(data) != length or computed.digest() != digest:
        raise FormatError("the file is damaged: its content does not match its checksum; get a fresh copy")
    return data


def _check_block(block: bytes, length: int) -> bytes:
    """Return the digest that the user block states, or raise FormatError saying what the file is."""
    if not block.startswith(MAGIC):
        raise FormatError(f"expected a pqnet file, got {_content(block)}")
    if len(block) < BLOCK_SIZE:
        raise FormatError(f"the file is damaged: truncated to {len(block)} bytes; get a fresh copy")
    _, version, stated, digest = _FIELDS.unpack_from(block)
    if version != VERSION:
        raise FormatError(f"expected format version {VERSION}, got version {version}; update pqnet or write it anew")
    if stated != length:
        raise FormatError(f"the file is damaged: expected {stated} bytes, got {length}; get a fresh copy")
    if any(block[_FIELDS.size :]):
        raise FormatError("the file is damaged: unused bytes of its first block are not zero; get a fresh copy")
    return bytes(digest)


def _content(block: bytes) -> str:
    """Say what a file is that is not ours, from its first bytes."""
    if not block:
        return "an empty file"
    if block.startswith(_HDF5):
        return "an HDF5 file that pqnet did not write"
    if block.startswith(b"PK\x03\x04"):
        return "a zip archive (a PyTorch checkpoint?); convert networks with `pqnet convert`"
    if block[0] == 0x80 and block[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle (an old PyTorch checkpoint?); convert networks with `pqnet convert`"
    return f"only {len(block)} bytes" if len(block) < BLOCK_SIZE else "a file of another format"


def _parse(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return document and arrays of a verified file; whatever is not as `write_container` writes it is refused."""
    if data[BLOCK_SIZE : BLOCK_SIZE + len(_HDF5)] != _HDF5:
        raise FormatError("no HDF5 data after the first block")
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            for name in file:
                if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                    raise FormatError(f"expected datasets only, got the link {name!r}")
            document = _read_document(file, len(data))
            sizes = _sizes(document["arrays"], len(data))
            expected = {"header"} | {dtype for dtype, size in sizes.items() if size}
            if set(file) != expected or h5py.h5a.get_num_attrs(file.id):
                raise FormatError(f"expected datasets {sorted(expected)} without attributes, got {sorted(file)[:20]}")
            vectors = {d: _vector(file, d, n, data) if n else np.empty(0, d) for d, n in sizes.items()}
        arrays: dict[str, np.ndarray] = {}
        for name, (dtype, shape) in document["arrays"].items():
            values, vectors[dtype] = np.split(vectors[dtype], [math.prod(shape)])
            arrays[name] = values.reshape(shape).copy()
        return document, arrays
    except (PQNetError, MemoryError):
        raise
    except Exception as reason:  # h5py raises exceptions of many classes for malformed structures
        raise FormatError(f"the HDF5 data are not as pqnet writes them: {reason}") from reason


def _open_dataset(file: h5py.File, name: str, dtype: Any, shape: tuple[int, ...], n_filters: int) -> Any:
    """Return a dataset as a low-level object, or raise FormatError if any of its properties is unexpected."""
    dataset = h5py.h5d.open(file.id, name.encode())
    plist = dataset.get_create_plist()
    if not (
        dataset.get_type() == h5py.h5t.py_create(np.dtype(dtype), logical=True)
        and dataset.shape == shape
        and plist.get_layout() == (h5py.h5d.CHUNKED if n_filters else h5py.h5d.CONTIGUOUS)
        and plist.get_nfilters() == n_filters
        and plist.get_external_count() == 0
        and h5py.h5a.get_num_attrs(dataset) == 0
    ):
        raise FormatError(f"dataset {name!r}: expected plain {np.dtype(dtype)} data of shape {shape}, got others")
    return dataset


def _read_document(file: h5py.File, limit: int) -> dict[str, Any]:
    if "header" not in file:
        raise FormatError("expected a dataset 'header', got none")
    size = h5py.h5d.open(file.id, b"header").get_type().get_size()
    if size > MAX_HEADER:
        raise FormatError(f"header: expected at most {MAX_HEADER} bytes, got {size}")
    dataset = _open_dataset(file, "header", f"S{size}", (1,), 1)
    plist = dataset.get_create_plist()
    if plist.get_filter(0)[0] != h5py.h5z.FILTER_DEFLATE or plist.get_chunk() != (1,) or dataset.get_num_chunks() != 1:
        raise FormatError("header: expected one deflated chunk")
    if dataset.get_chunk_info(0).size > limit:
        raise FormatError("header: the chunk is larger than the file")
    mask, packed = dataset.read_direct_chunk((0,))
    inflate = zlib.decompressobj()
    text = inflate.decompress(packed, size + 1)
    if mask or len(text) != size or not inflate.eof or inflate.unused_data:
        raise FormatError(f"header: expected {size} bytes of deflated text, got others")
    try:
        document = json.loads(text, object_pairs_hook=_unique)
        _check_plain(document, "header")
    except (PQNetError, ValueError, RecursionError) as reason:
        raise FormatError(f"header: {reason}") from None
    if not isinstance(document, dict) or set(document) != {"kind", "writer", "arrays", "header"}:
        raise FormatError("header: expected kind, writer, arrays and header, got others")
    kind, writer, header = document["kind"], document["writer"], document["header"]
    if not (isinstance(kind, str) and kind in KINDS and isinstance(writer, str) and isinstance(header, dict)):
        raise FormatError(f"header: expected kind, writer and header of the right types, got kind {describe(kind)}")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise FormatError("a key appears twice in one JSON object")
    return record


def _sizes(index: Any, limit: int) -> dict[str, int]:
    """Return how many numbers of each dtype an index of arrays states: at most what the file has room for."""
    if not isinstance(index, dict):
        raise FormatError(f"arrays: expected names with dtype and shape, got {describe(index)}")
    sizes = dict.fromkeys(DTYPES, 0)
    for name, entry in index.items():
        check_name(name, "array name")
        match entry:
            case [str() as dtype, list() as shape] if dtype in DTYPES and all(type(s) is int and s >= 0 for s in shape):
                sizes[dtype] += math.prod(shape)
            case _:
                raise FormatError(f"array {name!r}: expected dtype and shape, got {describe(entry)}")
    stated = sum(n * np.dtype(d).itemsize for d, n in sizes.items())
    if stated > limit:
        raise FormatError(f"the arrays take {stated} bytes, more than the file has")
    return sizes


def _vector(file: h5py.File, dtype: str, size: int, data: bytes) -> np.ndarray:
    """Return the numbers of a dataset as a view of the file's bytes."""
    dataset = _open_dataset(file, dtype, dtype, (size,), 0)
    start, nbytes = dataset.get_offset(), size * np.dtype(dtype).itemsize
    if start is None or not BLOCK_SIZE <= start <= len(data) - nbytes or dataset.get_storage_size() != nbytes:
        raise FormatError(f"dataset {dtype!r}: expected {nbytes} bytes within the file")
    vector = np.frombuffer(data, dtype, size, start)
    if dtype == "bool" and vector.view(np.uint8).max() > 1:
        raise FormatError("dataset 'bool': expected bytes 0 and 1, got others")
    return vector


# -- files of others -------------------------------------------------------------------------------------------------


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the float arrays of an HDF5 file that pqnet did not write, such as activations recorded elsewhere.

    Parameters
    ----------
    path : str or path
        HDF5 file of float16, float32 or float64 datasets; those in groups are named ``"group/name"``.

    Returns
    -------
    dict of str to array
        In order of names and stored precision.

    Raises
    ------
    FormatError
        If the file is no HDF5 file, is damaged, or holds links or data that are not floats.
    PQNetError
        If the file is missing or cannot be read.
    """
    name = _file_name(path)
    try:
        with open(name, "rb") as stream:
            first = stream.read(BLOCK_SIZE)
    except OSError as reason:
        raise PQNetError(f"path: cannot read {name}: {reason.strerror}") from None
    if first.startswith(MAGIC):
        raise FormatError(f"{name}: expected a plain HDF5 file of arrays, got a pqnet file")
    if not h5py.is_hdf5(name):
        raise FormatError(f"{name}: expected an HDF5 file, got {_content(first)}")
    try:
        return _float_arrays(name)
    except FormatError as reason:
        raise FormatError(f"{name}: {reason}") from None
    except Exception as reason:  # h5py raises exceptions of many classes for malformed structures
        raise FormatError(f"{name}: the HDF5 data cannot be read: {reason}") from reason


def _float_arrays(path: str) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    with h5py.File(path, "r") as file:
        links: dict[str, Any] = {}
        file.visititems_links(lambda name, link: links.update({name: link}))
        for name, link in links.items():
            if not isinstance(link, h5py.HardLink):
                raise FormatError(f"{name!r} is a link to other data; store the array itself")
            item = file[name]
            if isinstance(item, h5py.Group):
                continue
            if not isinstance(item, h5py.Dataset) or item.dtype.kind != "f" or item.dtype.itemsize > 8:
                got = item.dtype if isinstance(item, h5py.Dataset) else "no dataset"
                raise FormatError(f"{name!r}: expected float16, float32 or float64 numbers, got {got}")
            if item.is_virtual or item.external:
                raise FormatError(f"{name!r} keeps its data in another file; store the array itself")
            arrays[name] = np.asarray(item[()], item.dtype.newbyteorder("="))
    if not arrays:
        raise FormatError("the file holds no arrays")
    return arrays
