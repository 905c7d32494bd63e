"""Fingerprints of networks and arrays: equal ones for equal content, whatever file or process it is in."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from pqnet.graph.graph import Graph
from pqnet.io.model_file import graph_content

__all__ = ["add_content", "network_digest"]


def add_content(digest: Any, header: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Take plain data and named arrays into a fingerprint."""
    index = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    digest.update(json.dumps([header, index]).encode())
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array).data)


def network_digest(graph: Graph) -> str:
    """Return the fingerprint, hexadecimal, of what a validated graph computes: its nodes and parameters."""
    header, arrays = graph_content(graph)
    digest = hashlib.sha256()
    add_content(digest, {key: header[key] for key in ("inputs", "outputs", "nodes", "params")}, arrays)
    return digest.hexdigest()
