"""The file: named arrays and a JSON header in one HDF5 file that detects every damaged byte.

Layout (little-endian)::

    bytes 0..511   HDF5 user block: b"PQNET\\n", uint16 version, uint64 length of the file, uint32 sizes of the
                   deflated and the plain header, SHA-256, zeros
    bytes 512..    HDF5:
      /header      one fixed-length string, JSON: kind, names, dtypes and shapes of all arrays, the caller's header
      /uint8, ...  all arrays of one dtype, one after the other in the order of the header, as one vector

The version is 1, or 2 if the file holds what readers of version 1 do not know or would read wrong: arrays of int32,
int16 or int8, and integers in the header that float64 does not hold. Both are read.

The SHA-256 is that of the whole file with its own 32 bytes zero; it guards against damage. Against forgery guards
that the content determines every byte (see `hdf5_layout`): the loader inflates the header, with a bound, lays the
file out again and compares. libhdf5 takes no part in it; it is for whoever looks into a file with other tools, to
whom ``h5py.File(path)["header"][0]`` or ``h5dump -d /header`` show the names.

Arrays of one dtype share a dataset because one of its own costs an array 340 bytes when h5py makes it, and still
125 in the most compact form that HDF5 allows: 20 kB for the 160 arrays of a ResNet-20 whose weights take 100 kB.
Shared, they cost 1 kB for a whole file and some 10 bytes for an array in the deflated header.
"""

import functools
import hashlib
import io
import json
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, BinaryIO

import numpy as np

from pqnet._check import choice, describe, error
from pqnet.errors import FormatError, PQNetError
from pqnet.io.files import Path, file_name, replaced
from pqnet.io.hdf5_layout import BASE, DTYPES, TEXT_START, Frame, hdf5_frame

__all__ = [
    *(
        "check_name",
        "checked_file",
        "container_bytes",
        "container_content",
        "container_from",
        "container_nbytes",
        "header_document",
        "inflated",
    ),
    *("packed_header", "read_container", "read_file", "what_is", "write_container"),
]

MAGIC = b"PQNET\n"
VERSIONS = (1, 2)
NEW_DTYPES = ("int32", "int16", "int8")  # of version 2
KINDS = {"model": "pqnet.load", "statistics": "pqnet.load_statistics", "layer": "pqnet.quantize(checkpoint=...)"}
KINDS |= {"update": "pqnet.patch"}
MAX_HEADER = 1 << 24  # bytes of JSON: names of a thousand layers and of a vocabulary, not a decompression bomb
MAX_VALUES = 1 << 21  # commas and brackets in that: each value costs a hundred bytes and half a microsecond to read
MAX_ARRAYS = 1 << 17
MAX_DEPTH = 64
MAX_AXES = 8
MAX_SIZE = 1 << 40  # of an array without empty axes; NumPy takes no more than 2**63 bytes, empty or not

_FIELDS = struct.Struct(f"<{len(MAGIC)}sHQII32s")


def write_container(path: Path, kind: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a pqnet file; ``path`` holds the whole new file or, after any failure, what it held before.

    Parameters
    ----------
    path : str or path
        File to create or replace. Equal content in equal order gives equal bytes.
    kind : {"model", "statistics", "layer", "update"}
        What the file is; the reader must ask for the same.
    header : dict
        Plain data: dict with str keys, list, str, int, finite float, bool, None. Tuples come back as lists.
    arrays : dict of str to array
        float64, float32, float16, int64, int32, int16, int8, uint16, uint8 or bool arrays of any shape.

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
    text, counts = _described(kind, header, arrays)
    version = _version(header, arrays)
    with replaced(path) as temporary, open(temporary, "wb") as stream:
        _write(stream, zlib.compress(text, 9), len(text), arrays, counts, version)


def container_bytes(kind: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the content of the file that `write_container` makes of the same arguments, or raise as it does."""
    text, counts = _described(kind, header, arrays)
    stream = io.BytesIO()
    _write(stream, zlib.compress(text, 9), len(text), arrays, counts, _version(header, arrays))
    return stream.getvalue()


def container_nbytes(kind: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> int:
    """Return the bytes of the file that `write_container` makes of the same arguments, or raise as it does."""
    text, counts = _described(kind, header, arrays)
    return hdf5_frame(len(text), len(zlib.compress(text, 9)), counts).length


def _described(kind: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, int]]:
    """Return the checked content as JSON, and how many numbers of each dtype there are."""
    choice(kind, "kind", KINDS)
    index: dict[str, Any] = {}
    for name, array in arrays.items():
        check_name(name, "array name")
        if not isinstance(array, np.ndarray) or array.dtype.name not in DTYPES or not array.dtype.isnative:
            raise error(f"array {name!r}", f"a {', '.join(DTYPES)} array", describe(array), "use .astype")
        if array.ndim > MAX_AXES:
            raise error(f"array {name!r}", f"at most {MAX_AXES} axes", f"shape {array.shape}")
        index[name] = [array.dtype.name, list(array.shape)]
    _check_plain(header, "header")
    document = {"kind": kind, "writer": _writer(), "arrays": index, "header": header}
    text = json.dumps(document, separators=(",", ":")).encode()
    _check_text_limits(text, len(arrays))
    return text, _counts(index)


def _check_text_limits(text: bytes, arrays: int) -> None:
    """Raise unless a header is of a size that takes little time to read."""
    if len(text) > MAX_HEADER:
        raise error("header", f"at most {MAX_HEADER} bytes of JSON", len(text))
    if (values := sum(map(text.count, (b",", b"[", b"{")))) > MAX_VALUES:
        raise error("header", f"at most {MAX_VALUES} values (commas and brackets)", values)
    if arrays > MAX_ARRAYS:
        raise error("arrays", f"at most {MAX_ARRAYS}", arrays)


def read_container(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return header and arrays of a file that `write_container` wrote.

    Parameters
    ----------
    path : str or path
        File to read.
    kind : {"model", "statistics", "layer", "update"}
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
    return container_content(read_file(path), kind, file_name(path))


def read_file(path: Path) -> bytes:
    """Return the bytes of a pqnet file, or raise as `read_container` does; only their length is checked yet."""
    name = file_name(path)
    try:
        return _read(name)
    except OSError as reason:
        raise PQNetError(f"path: cannot read {name}: {reason.strerror}") from None
    except PQNetError as reason:
        raise FormatError(f"{name}: {reason}") from None


def checked_file(path: Path) -> bytes:
    """Return the bytes of a pqnet file that is not damaged, or raise as `read_container` does."""
    data = read_file(path)
    try:
        _verify(data)
    except FormatError as reason:
        raise FormatError(f"{file_name(path)}: {reason}") from None
    return data


def container_content(data: bytes, kind: str, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return header and arrays of the bytes of a file, as `read_container` does; ``name`` is for its errors."""
    choice(kind, "kind", KINDS)
    try:
        _verify(data)
        document, arrays = _parse(data)
    except PQNetError as reason:
        raise FormatError(f"{name}: {reason}") from reason.__cause__
    if document["kind"] != kind:
        got = document["kind"]
        raise FormatError(f"{name}: expected {_a(kind)} file, got {_a(got)} file; open it with {KINDS[got]}")
    return document["header"], arrays


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "update" else f"a {kind}"


def packed_header(data: bytes) -> tuple[bytes, int]:
    """Return the deflated header of the bytes of a checked file, and its size when it is inflated."""
    _, _, _, packed_size, text_size, _ = _FIELDS.unpack_from(data)
    return data[TEXT_START : TEXT_START + packed_size], text_size


def header_document(packed: bytes, size: int) -> dict[str, Any]:
    """Return the content of a header as `packed_header` gives it: kind, writer, arrays, header; or raise FormatError.

    ``arrays`` holds the dtype and the shape of every array, by name.
    """
    document = _document(packed, size)
    _checked_index(document["arrays"])
    return document


def container_from(packed: bytes, size: int, header: Any, arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the bytes of a file from a deflated header, the caller's header in it, and the arrays that it names."""
    counts = _counts({name: (array.dtype.name, array.shape) for name, array in arrays.items()})
    stream = io.BytesIO()
    _write(stream, packed, size, arrays, counts, _version(header, arrays))
    return stream.getvalue()


def check_name(name: Any, where: str) -> str:
    """Return a name that a file may hold: a str of 1 to 1000 printable characters, or raise PQNetError."""
    if not isinstance(name, str) or not 1 <= len(name) <= 1000 or not name.isprintable():
        raise error(where, "a str of 1 to 1000 printable characters", describe(name))
    return name


@functools.cache
def _writer() -> str:
    try:
        return f"pqnet {metadata.version('pqnet')}"
    except metadata.PackageNotFoundError:  # run from a source tree
        return "pqnet"


def _version(header: Any, arrays: Mapping[str, np.ndarray]) -> int:
    """Return the lowest version whose readers understand the content."""
    new = any(array.dtype.name in NEW_DTYPES for array in arrays.values())
    return 2 if new or _has_wide_integer(header) else 1


def _has_wide_integer(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_wide_integer, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_wide_integer, value))
    return isinstance(value, int) and abs(value) > 1 << 53


def _check_plain(value: Any, key: str, depth: int = 0) -> None:
    """Raise unless ``value``, found below ``key``, is data that JSON gives back as it was."""
    where = f"header key {key[:60]!r}"
    if depth > MAX_DEPTH:
        raise error(where, f"at most {MAX_DEPTH} levels of nesting", "more")
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise error(where, "str keys", describe(name))
            _check_plain(item, name, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item, key, depth + 1)
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise error(where, "an integer of 64 bits", f"{value.bit_length()} bits")
    elif not (value is None or isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))):
        raise error(where, "plain data (dict, list, str, int, finite float, bool, None)", describe(value))


# -- writing -------------------------------------------------------------------------------------------------


def _write(
    stream: BinaryIO,
    packed: bytes,
    text_size: int,
    arrays: Mapping[str, np.ndarray],
    counts: Mapping[str, int],
    version: int,
) -> None:
    frame = hdf5_frame(text_size, len(packed), counts)
    digest = hashlib.sha256(_user_block(version, frame.length, len(packed), text_size, bytes(32)))
    stream.seek(BASE)
    for piece in _pieces(frame, packed, arrays):
        digest.update(piece)
        stream.write(piece)
    stream.seek(0)
    stream.write(_user_block(version, frame.length, len(packed), text_size, digest.digest()))


def _pieces(frame: Frame, packed: bytes, arrays: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    yield frame.superblock
    yield packed
    yield bytes(-len(packed) % 8)
    for dtype in frame.vectors:
        for array in arrays.values():
            if array.dtype.name == dtype and array.size:
                yield np.ascontiguousarray(array).data
    yield frame.tail


def _user_block(version: int, length: int, packed_size: int, text_size: int, digest: bytes) -> bytes:
    return _FIELDS.pack(MAGIC, version, length, packed_size, text_size, digest).ljust(BASE, b"\0")


def _counts(index: Mapping[str, Any]) -> dict[str, int]:
    """Return how many numbers of each dtype an index of arrays states."""
    counts = dict.fromkeys(DTYPES, 0)
    for dtype, shape in index.values():
        counts[dtype] += math.prod(shape)
    return counts


# -- reading -------------------------------------------------------------------------------------------------


def _read(name: str) -> bytes:
    """Return the bytes of a file whose first block is that of a file of its length: others may be of any size."""
    with open(name, "rb") as stream:
        length = os.fstat(stream.fileno()).st_size
        _check_block(stream.read(BASE), length)
        stream.seek(0)
        return stream.read(length + 1)  # another program may write to the file just now


def _verify(data: bytes) -> None:
    """Raise FormatError unless magic, version, length and digest of the bytes of a file are right."""
    _check_block(data[:BASE], len(data))
    _, version, stated, packed_size, text_size, digest = _FIELDS.unpack_from(data)
    computed = hashlib.sha256(_user_block(version, stated, packed_size, text_size, bytes(32)))
    computed.update(memoryview(data)[BASE:])
    if computed.digest() != digest:
        raise FormatError("the file is damaged: its content does not match its checksum; get a fresh copy")


def _check_block(block: bytes, length: int) -> None:
    """Raise FormatError, saying what the file is, unless the user block is that of a file of this length."""
    if not block.startswith(MAGIC):
        raise FormatError(f"expected a pqnet file, got {what_is(block)}")
    if len(block) < BASE:
        raise FormatError(f"the file is damaged: truncated to {len(block)} bytes; get a fresh copy")
    _, version, stated, *_ = _FIELDS.unpack_from(block)
    if version not in VERSIONS:
        known = " or ".join(map(str, VERSIONS))
        raise FormatError(f"expected format version {known}, got version {version}; update pqnet or write it anew")
    if stated != length:
        raise FormatError(f"the file is damaged: expected {stated} bytes, got {length}; get a fresh copy")
    if any(block[_FIELDS.size :]):
        raise FormatError("the file is damaged: unused bytes of its first block are not zero; get a fresh copy")


def what_is(block: bytes) -> str:
    """Say what a file is that is not ours, from its first bytes."""
    if not block:
        return "an empty file"
    if block.startswith(b"\x89HDF"):
        return "an HDF5 file that pqnet did not write"
    if block.startswith(b"PK\x03\x04"):
        return "a zip archive (a PyTorch checkpoint?); convert networks with `pqnet convert`"
    if block[0] == 0x80 and block[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle (an old PyTorch checkpoint?); convert networks with `pqnet convert`"
    return f"only {len(block)} bytes" if len(block) < BASE else "a file of another format"


def _parse(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return document and arrays of a verified file; whatever is not as `write_container` writes it is refused."""
    _, version, _, packed_size, text_size, _ = _FIELDS.unpack_from(data)
    document = _document(data[TEXT_START : TEXT_START + packed_size], text_size)
    counts = _counts(_checked_index(document["arrays"]))
    if max(counts.values()) > len(data):
        raise FormatError(f"arrays: expected at most {len(data)} numbers, got {counts}")
    frame = hdf5_frame(text_size, packed_size, counts)
    head = frame.superblock + data[TEXT_START : TEXT_START + packed_size] + bytes(-packed_size % 8)
    if len(data) != frame.length or not data.startswith(head, BASE) or not data.endswith(frame.tail):
        raise FormatError("the HDF5 structures around the data are not those that pqnet writes; the file was forged")
    offsets, arrays = dict(frame.vectors), {}
    for name, (dtype, shape) in document["arrays"].items():
        offset = offsets.get(dtype, 0)
        values = np.frombuffer(data, "uint8" if dtype == "bool" else dtype, math.prod(shape), offset)
        if dtype == "bool" and values.max(initial=0) > 1:
            raise FormatError(f"array {name!r}: expected bytes 0 and 1, got others")
        arrays[name] = values.view(dtype).reshape(shape).copy()
        offsets[dtype] = offset + values.nbytes
    if version != _version(document["header"], arrays):
        raise FormatError(f"expected format version {_version(document['header'], arrays)}, got {version}")
    return document, arrays


def inflated(packed: bytes, size: int, what: str, content: str) -> bytes:
    """Return what deflated bytes hold, which has to be ``size`` bytes: no more are made. Errors name ``what`` it is."""
    inflate = zlib.decompressobj()
    try:
        found = inflate.decompress(packed, size + 1)
    except zlib.error as reason:
        raise FormatError(f"{what}: {reason}") from None
    if len(found) != size or not inflate.eof or inflate.unused_data:
        raise FormatError(f"{what}: expected {size} {content}, got others")
    return found


def _document(packed: bytes, size: int) -> dict[str, Any]:
    """Return the checked JSON document of a file from its deflated form."""
    if size > MAX_HEADER:
        raise FormatError(f"header: expected at most {MAX_HEADER} bytes, got {size}")
    text = inflated(packed, size, "header", "bytes of deflated text")
    _check_text_limits(text, 0)
    try:
        document = json.loads(text, object_pairs_hook=_unique)
        _check_plain(document, "")
    except RecursionError:
        raise FormatError(f"header: expected at most {MAX_DEPTH} levels of nesting, got more") from None
    except ValueError as reason:
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


def _checked_index(index: Any) -> dict[str, Any]:
    if not isinstance(index, dict):
        raise FormatError(f"arrays: expected names with dtype and shape, got {describe(index)}")
    _check_text_limits(b"", len(index))
    for name, entry in index.items():
        check_name(name, "array name")
        match entry:
            case [str() as dtype, list() as shape] if dtype in DTYPES and len(shape) <= MAX_AXES:
                sizes_fit = all(type(size) is int and size >= 0 for size in shape)
                if sizes_fit and math.prod(max(size, 1) for size in shape) < MAX_SIZE:
                    continue
        raise FormatError(f"array {name!r}: expected dtype and shape, got {describe(entry)}")
    return index
