"""Plain data of a dataclass: to a dict without defaults, and back with every field checked by its class."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from pqnet import _check
from pqnet.errors import did_you_mean

__all__ = ["from_plain", "to_plain"]

T = TypeVar("T")


def to_plain(value: Any) -> dict[str, Any]:
    """Return the fields that differ from their defaults, tuples as lists."""
    found = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}


def from_plain(cls: type[T], data: Any, where: str) -> T:
    """Return an object of a dataclass from its fields, or raise PQNetError that names the one that is none."""
    known = {f.name: f.default for f in fields(cls)}  # type: ignore[arg-type]
    if not isinstance(data, Mapping):
        raise _check.error(where, f"a mapping with fields of {', '.join(known)}", _check.describe(data))
    if unknown := sorted(map(str, set(data) - set(known))):
        got = f"{unknown[0]!r}{did_you_mean(unknown[0], known)}"
        raise _check.error(where, f"fields among {', '.join(known)}", got)
    if missing := [name for name, default in known.items() if default is MISSING and name not in data]:
        raise _check.error(where, f"the field {missing[0]!r}", f"{sorted(data)}")
    return cls(**data)
