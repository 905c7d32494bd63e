"""The HDF5 structures around the data of a pqnet file, byte for byte.

They follow the HDF5 File Format Specification, version 3.0 (superblock 3, object headers 2), and any HDF5 library
from 1.10 on reads them. pqnet makes them itself, because then a loader can make them again and compare, where it
would have to let libhdf5 parse a file of unknown origin: forged object headers crash it (a chunk of no elements is
enough for a division by zero in HDF5 2.0). The bytes are also the same with every release of h5py, and fewer.
"""

import struct
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["BASE", "DTYPES", "TEXT_START", "Frame", "hdf5_frame"]

BASE = 512  # bytes before the HDF5 data: the user block
TEXT_START = BASE + 48  # the superblock comes first
_NOWHERE = (1 << 64) - 1
_MASK = (1 << 32) - 1


class Frame(NamedTuple):
    """Where the vectors are in a file, and the bytes around them; all offsets count from the start of the file."""

    superblock: bytes  # at BASE
    vectors: dict[str, int]  # where they start
    tail: bytes  # after the last vector, to the end
    length: int


def _integer(size: int, signed: bool) -> bytes:
    return struct.pack("<BBHIHH", 0x10, 8 * signed, 0, size, 0, 8 * size)


def _float(size: int, exponent: int) -> bytes:
    mantissa, bias = 8 * size - 1 - exponent, (1 << (exponent - 1)) - 1
    fields = 8 * size - 1, 0, size, 0, 8 * size, mantissa, exponent, 0, mantissa, bias
    return struct.pack("<BBBBIHHBBBBI", 0x11, 0x20, *fields)


# Descending size, so that every vector is aligned if the first is. bool is the enumeration that h5py makes of it.
_TYPES = {
    "float64": _float(8, 11),
    "int64": _integer(8, True),
    "float32": _float(4, 8),
    "int32": _integer(4, True),
    "float16": _float(2, 5),
    "uint16": _integer(2, False),
    "int16": _integer(2, True),
    "uint8": _integer(1, False),
    "int8": _integer(1, True),
    "bool": struct.pack("<BBHI", 0x38, 2, 0, 1) + _integer(1, True) + b"FALSE\0TRUE\0\0\1",
}
DTYPES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "uint16": 2, "int16": 2, "uint8": 1}
DTYPES |= {"int8": 1, "bool": 1}


def hdf5_frame(text_size: int, packed_size: int, counts: Mapping[str, int]) -> Frame:
    """Lay out a file of one text and of vectors.

    Parameters
    ----------
    text_size, packed_size : int
        Bytes of the text before and after compression by zlib.
    counts : dict of str to int
        Elements of the vectors, keyed by dtype; those without elements get no dataset.

    Returns
    -------
    Frame
        The data follow each other in the order superblock, text, zeros up to a multiple of 8, vectors in the order
        of ``DTYPES``, tail.
    """
    end = -(-(TEXT_START + packed_size) // 8) * 8
    vectors = {}
    for dtype, size in DTYPES.items():
        if counts.get(dtype):
            vectors[dtype] = end
            end += counts[dtype] * size
    objects = {"header": _text_header(TEXT_START - BASE, text_size, packed_size)}
    objects |= {dtype: _vector_header(start - BASE, dtype, counts[dtype]) for dtype, start in vectors.items()}
    links, address = [], end - BASE
    for name, header in objects.items():
        links.append(_message(0x06, struct.pack("<BBB", 1, 0, len(name)) + name.encode() + struct.pack("<Q", address)))
        address += len(header)
    root = _object_header(
        _message(0x02, struct.pack("<BBQQ", 0, 0, _NOWHERE, _NOWHERE)), _message(0x0A, bytes(2)), *links
    )
    tail = b"".join(objects.values()) + root
    length = end + len(tail)
    superblock = struct.pack("<8sBBBBQQQQ", b"\x89HDF\r\n\x1a\n", 3, 8, 8, 0, BASE, _NOWHERE, length, address)
    return Frame(superblock + _checksum(superblock), vectors, tail, length)


def _message(kind: int, body: bytes) -> bytes:
    return struct.pack("<BHB", kind, len(body), 0) + body


def _object_header(*messages: bytes) -> bytes:
    body = b"".join(messages)
    header = struct.pack("<4sBBH", b"OHDR", 2, 1, len(body)) + body
    return header + _checksum(header)


def _space(count: int) -> bytes:
    return _message(0x01, struct.pack("<BBBBQ", 2, 1, 0, 1, count))


def _vector_header(address: int, dtype: str, count: int) -> bytes:
    fill_never = _message(0x05, b"\x03\x06")
    contiguous = _message(0x08, struct.pack("<BBQQ", 3, 1, address, count * DTYPES[dtype]))
    return _object_header(_space(count), _message(0x03, _TYPES[dtype]), fill_never, contiguous)


def _text_header(address: int, size: int, packed_size: int) -> bytes:
    """One string of fixed length, deflated, as the only chunk of its dataset."""
    fill_never = _message(0x05, b"\x03\x07")
    deflate = _message(0x0B, struct.pack("<BBHHHI", 2, 1, 1, 1, 1, 9))
    width = (size.bit_length() + 7) // 8  # libhdf5 insists on the shortest form of the chunk's shape (1, size)
    shape = (1).to_bytes(width, "little") + size.to_bytes(width, "little")
    where = struct.pack("<BQIQ", 1, packed_size, 0, address)
    chunk = _message(0x08, struct.pack("<BBBBB", 4, 2, 2, 2, width) + shape + where)
    string = _message(0x03, struct.pack("<BBHI", 0x13, 1, 0, size))
    return _object_header(_space(1), string, fill_never, deflate, chunk)


def _checksum(data: bytes) -> bytes:
    """Return the checksum of HDF5 metadata: Bob Jenkins' lookup3, ``hashlittle`` with initial value 0."""
    words = struct.unpack(f"<{3 * -(-len(data) // 12)}I", data.ljust(12 * -(-len(data) // 12), b"\0"))
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    for i in range(0, len(words), 3):
        a, b, c = (a + words[i]) & _MASK, (b + words[i + 1]) & _MASK, (c + words[i + 2]) & _MASK
        if i + 3 < len(words):
            for turn in (4, 6, 8, 16, 19, 4):  # one step, in which the three take turns
                a, b, c = b, (c + b) & _MASK, ((a - c) & _MASK) ^ _rotate(c, turn)
    for turn in (14, 11, 25, 16, 4, 14, 24):
        c, a, b = a, b, ((c ^ b) - _rotate(b, turn)) & _MASK
    return struct.pack("<I", b)


def _rotate(word: int, turn: int) -> int:
    return (word << turn | word >> (32 - turn)) & _MASK
