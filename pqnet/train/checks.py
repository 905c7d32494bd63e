"""Checks of the numbers that trainers are given."""

import math
from typing import Any

from pqnet.errors import ConfigError

__all__ = ["check_integer", "check_number"]


def check_integer(name: str, value: Any, low: int) -> None:
    """Raise ConfigError unless a value is an integer of at least ``low``."""
    if type(value) is not int or value < low:
        raise ConfigError(f"{name}: expected an integer of at least {low}, got {value!r}")


def check_number(name: str, value: Any) -> float:
    """Return a finite number of at least 0, or raise ConfigError."""
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ConfigError(f"{name}: expected a finite number of at least 0, got {value!r}")
    return float(value)
