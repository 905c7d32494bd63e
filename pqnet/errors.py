"""The exceptions that pqnet raises for bad input: one family, so that one ``except PQNetError`` catches all."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ConfigError", "FormatError", "PQNetError", "UnsupportedOpError", "of_layer"]


class PQNetError(ValueError):
    """A call, a file or a network that pqnet cannot accept; the message names the argument and the way out."""


class FormatError(PQNetError):
    """A file that is damaged, hostile, of another version, or no pqnet file at all."""


class UnsupportedOpError(PQNetError):
    """An operation of a network for which pqnet has no rule."""


class ConfigError(PQNetError):
    """A recipe, codec or option that does not fit the network it is applied to."""


@contextmanager
def of_layer(name: str) -> Iterator[None]:
    """Let errors say which layer of a network they are about.

    Examples
    --------
    >>> from pqnet.errors import PQNetError, of_layer
    >>> with of_layer("fc"):
    ...     raise PQNetError("weight: expected finite numbers, got NaN")
    Traceback (most recent call last):
    pqnet.errors.PQNetError: layer 'fc': weight: expected finite numbers, got NaN
    """
    try:
        yield
    except PQNetError as reason:
        raise type(reason)(f"layer {name!r}: {reason}") from None
