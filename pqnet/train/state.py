"""Checkpoints of training: one file, written whole or not at all, that belongs to one call."""

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pqnet.errors import FormatError, PQNetError
from pqnet.io import append_digest, replaced, without_digest
from pqnet.train.stored import Stored

__all__ = ["check_numbers", "check_optimizer_state", "load_weights", "read_state", "write_state"]


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


def load_weights(module: torch.nn.Module, state: Any) -> None:
    """Have a module take over what a checkpoint says of it, or raise FormatError.

    PyTorch compares names and shapes alone, and fails where a code has no codeword.
    """
    module.load_state_dict(state)
    try:
        for part in module.modules():
            if isinstance(part, Stored):
                part.packed()
    except PQNetError as reason:
        raise FormatError(f"expected packed weights, got others: {reason}") from None


def check_numbers(integers: Mapping[str, Any], reals: Mapping[str, Any]) -> None:
    """Raise FormatError unless what a checkpoint says are counts, and finite numbers."""
    for name, value in integers.items():
        if type(value) is not int or not 0 <= value < 1 << 40:
            raise FormatError(f"expected a count as {name}, got {value!r}")
    for name, value in reals.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise FormatError(f"expected a finite number as {name}, got {value!r}")


def check_optimizer_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Raise FormatError unless `state` is one that an optimizer of these parameters may have got to.

    PyTorch compares the number of parameters alone, and fails at the first step.
    """
    wanted = optimizer.state_dict()["param_groups"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not isinstance(state, dict) or set(state) != {"state", "param_groups"} or not isinstance(state["state"], dict):
        raise FormatError("expected the state of an optimizer, got another")
    if not isinstance(state["param_groups"], list) or not _alike(wanted, state["param_groups"]):
        raise FormatError("expected the groups of this optimizer, got others")
    for number, values in state["state"].items():
        if type(number) is not int or not 0 <= number < len(parameters) or not isinstance(values, dict):
            raise FormatError(f"expected the state of {len(parameters)} parameters, got others")
        names = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.Adam) else {"momentum_buffer"}
        if set(values) != names:
            raise FormatError(f"expected {sorted(names)} of each parameter, got {sorted(map(str, values))}")
        for name, value in values.items():
            shape = () if name == "step" else parameters[number].shape
            if not _is_tensor(value, shape) and (value is not None or name != "momentum_buffer"):
                raise FormatError(f"expected finite float32 of shape {tuple(shape)} as {name}, got another")


def _alike(wanted: Any, got: Any) -> bool:
    """Tell whether plain data have the same keys, lengths and types; numbers may differ."""
    if isinstance(wanted, dict):
        return isinstance(got, dict) and set(wanted) == set(got) and all(_alike(wanted[k], got[k]) for k in wanted)
    if isinstance(wanted, list | tuple):
        return type(got) is type(wanted) and len(got) == len(wanted) and all(map(_alike, wanted, got))
    if isinstance(wanted, float):
        return isinstance(got, float | int) and not isinstance(got, bool) and math.isfinite(got)
    return type(got) is type(wanted) and (got == wanted or not isinstance(wanted, str | bool))


def _is_tensor(value: Any, shape: tuple[int, ...]) -> bool:
    fits = isinstance(value, torch.Tensor) and value.shape == shape and value.dtype == torch.float32
    return fits and bool(value.isfinite().all())
