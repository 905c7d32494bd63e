"""Makes pqnet files as a forger would: wrong in one thing, with the right digest, and reads them with libhdf5."""

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py

from pqnet.io.hdf5_layout import DTYPES, hdf5_frame

FIELDS = struct.Struct("<6sHQII32s")  # as the module docstring of the container documents it


def user_block(length: int, packed: int, text: int, digest: bytes, version: int = 1) -> bytes:
    return FIELDS.pack(b"PQNET\n", version, length, packed, text, digest).ljust(512, b"\0")


def seal(path: Path, content: bytes, packed: int, text: int) -> Path:
    """Write HDF5 content behind a user block with the right length and digest: what a forger would do."""
    length = 512 + len(content)
    digest = hashlib.sha256(user_block(length, packed, text, bytes(32)) + content).digest()
    path.write_bytes(user_block(length, packed, text, digest) + content)
    return path


def reseal(path: Path) -> Path:
    data = path.read_bytes()
    *_, packed, text, _ = FIELDS.unpack_from(data)
    return seal(path, data[512:], packed, text)


def forge(path: Path, document: Any, vectors: Mapping[str, bytes] | None = None, packed: bytes | None = None) -> Path:
    """Write a file that is right in everything but what ``document`` (JSON data or text) says."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    packed = zlib.compress(text) if packed is None else packed
    vectors = vectors or {}
    frame = hdf5_frame(len(text), len(packed), {d: len(v) // DTYPES[d] for d, v in vectors.items()})
    content = frame.superblock + packed + bytes(-len(packed) % 8)
    content += b"".join(vectors[d] for d in frame.vectors) + frame.tail
    return seal(path, content, len(packed), len(text))


def document_of(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return JSON document and vectors of a file, read by HDF5 itself."""
    with h5py.File(path) as file:
        return json.loads(file["header"][0]), {n: file[n][()].tobytes() for n in file if n != "header"}


def envelope(arrays: Any, header: Any = None) -> dict[str, Any]:
    return {"kind": "model", "writer": "forger", "arrays": arrays, "header": {} if header is None else header}
