"""Checkpoints of training: one file, written whole or not at all, that belongs to one call."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pqnet.errors import FormatError, PQNetError
from pqnet.io import append_digest, replaced, without_digest

__all__ = ["read_state", "write_state"]


def write_state(path: Path, key: str, content: Mapping[str, Any]) -> None:
    """Write numbers and tensors, of the call that ``key`` tells from others."""
    with replaced(path) as beside:
        try:
            torch.save({"key": key, **content}, beside)
        except RuntimeError as reason:  # what PyTorch makes of a full disk
            first = str(reason).strip().partition("\n")[0]
            raise PQNetError(f"checkpoint: cannot write {path}: {first}; free some space, or name another") from reason
        append_digest(beside)


@contextmanager
def read_state(path: Path, key: str) -> Iterator[dict[str, Any]]:
    """Yield what `write_state` wrote; what goes wrong while it is taken over is the file's fault.

    Raises
    ------
    PQNetError
        It is of another call.
    FormatError
        It is damaged, or no checkpoint.
    """
    try:  # PyTorch does not look at the checksums in its files
        content = torch.load(io.BytesIO(without_digest(path)), map_location="cpu", weights_only=True)
        if content["key"] != key:
            raise PQNetError(
                f"checkpoint: expected one of this call, got {path} of other networks, data or settings; "
                "name another file or delete it"
            )
        yield content
    except Exception as reason:  # whatever a damaged file makes of torch.load
        if isinstance(reason, PQNetError) and not isinstance(reason, FormatError):
            raise
        raise FormatError(f"checkpoint: expected what training wrote, got {path}: {reason}") from None
