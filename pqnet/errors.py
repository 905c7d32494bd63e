"""The exceptions that pqnet raises for bad input: one family, so that one ``except PQNetError`` catches all."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

__all__ = [
    *("ConfigError", "FormatError", "OutOfMemoryError", "PQNetError", "UnsupportedOpError"),
    *("did_you_mean", "enough_memory", "of_layer"),
]


class PQNetError(ValueError):
    """A call, a file or a network that pqnet cannot accept; the message names the argument and the way out."""


class FormatError(PQNetError):
    """A file that is damaged, hostile, of another version, or no pqnet file at all."""


class UnsupportedOpError(PQNetError):
    """An operation of a network for which pqnet has no rule."""


class ConfigError(PQNetError):
    """A recipe, codec or option that does not fit the network it is applied to."""


class OutOfMemoryError(PQNetError, MemoryError):
    """What there is no memory for; the message says what takes less."""


def did_you_mean(name: object, names: Iterable[object]) -> str:
    """Return the end of an error message: which of the names that there are is near to one that is wrong, if any.

    Examples
    --------
    >>> from pqnet.errors import did_you_mean
    >>> "expected a preset, got 'small-block'" + did_you_mean("small-block", ["small-blocks", "transformer"])
    "expected a preset, got 'small-block'; did you mean 'small-blocks'?"
    """
    known = {text.lower(): text for text in names if isinstance(text, str)}
    near = get_close_matches(name.lower(), known, 1) if isinstance(name, str) else []
    return f"; did you mean {known[near[0]]!r}?" if near and known[near[0]] != name else ""


@contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """Let a lack of memory be an `OutOfMemoryError` that names the way out; also decorates functions.

    Examples
    --------
    >>> from pqnet.errors import enough_memory
    >>> with enough_memory("give fewer samples"):
    ...     raise MemoryError("cannot allocate 1 TiB")
    Traceback (most recent call last):
    pqnet.errors.OutOfMemoryError: memory: expected more than there is, got: cannot allocate 1 TiB; give fewer samples
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except (MemoryError, RuntimeError) as reason:
        text = str(reason).strip().partition("\n")[0] or "MemoryError"
        # So do threads and PyTorch call it.
        if not isinstance(reason, MemoryError) and "start new thread" not in text and "allocate memory" not in text:
            raise
        raise OutOfMemoryError(f"memory: expected more than there is, got: {text}; {remedy}") from reason


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
