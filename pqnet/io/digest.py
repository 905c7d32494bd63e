"""Fingerprints of networks and arrays: equal ones for equal content, whatever file or process it is in."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from pqnet.errors import FormatError
from pqnet.graph.graph import Graph
from pqnet.io.files import Path
from pqnet.io.model_file import graph_content

__all__ = ["add_content", "append_digest", "network_digest", "without_digest"]


def add_content(digest: Any, header: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Take plain data and named arrays into a fingerprint."""
    index = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    digest.update(json.dumps([header, index]).encode())
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array).data)


def append_digest(path: Path) -> None:
    """Let a file end with the SHA-256 of what it held; `without_digest` reads it."""
    with open(path, "rb+") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        file.write(digest)


def without_digest(path: Path) -> bytes:
    """Return what a file held before `append_digest`, or raise FormatError if a bit of it differs."""
    with open(path, "rb") as file:
        data = file.read()
    size = len(data) - hashlib.sha256().digest_size
    content = memoryview(data)[: max(size, 0)]
    if hashlib.sha256(content).digest() != data[max(size, 0) :]:
        raise FormatError("the file is damaged: its content does not match its checksum")
    return bytes(content)


def network_digest(graph: Graph) -> str:
    """Return the fingerprint, hexadecimal, of what a validated graph computes: its nodes and parameters."""
    header, arrays = graph_content(graph)
    digest = hashlib.sha256()
    add_content(digest, {key: header[key] for key in ("inputs", "outputs", "nodes", "params")}, arrays)
    return digest.hexdigest()
