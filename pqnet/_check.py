"""The door: turns what callers pass into checked arrays and numbers. Nothing behind it casts or checks again."""

import math
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from pqnet.errors import ConfigError, PQNetError, did_you_mean

__all__ = [
    "bool_array",
    "choice",
    "error",
    "float_array",
    "index_array",
    "int_array",
    "integer",
    "is_plain",
    "rng_seed",
]


SMALL_SIZE = 8192  # numbers whose sum of squares BLAS computes on one thread, in less time than a ufunc takes to begin
_FLOAT32 = np.dtype(np.float32)


def error(name: str, expected: str, got: object, remedy: str = "") -> PQNetError:
    """Build the one error message form: argument, what was expected, what came, the way out."""
    if isinstance(got, int):
        got = "".join(_pieces(got))
    return PQNetError(f"{name}: expected {expected}, got {got}" + (f"; {remedy}" if remedy else ""))


def describe(value: Any) -> str:
    """Say what a value is, in few words, for an error message."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array of shape {value.shape}"
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > 60:
            return f"{type(value).__name__} {text[:57]}..."
    return f"{type(value).__name__} {text}"


def _pieces(value: Any) -> Iterator[str]:
    """Yield what `repr` gives, piece by piece: that of a few hundred bytes of YAML may have gigabytes, or no end."""
    kind = type(value)
    if kind in (list, tuple, dict) and value:
        opening, closing = ("{", "}") if kind is dict else ("[", "]") if kind is list else ("(", ")")
        for i, item in enumerate(value):
            yield opening if i == 0 else ", "
            yield from _pieces(item)
            if kind is dict:
                yield ": "
                yield from _pieces(value[item])
        yield ",)" if kind is tuple and len(value) == 1 else closing
    elif kind is int and value.bit_length() > 1000:  # Python refuses to print large ones
        yield f"of {value.bit_length()} bits"
    else:
        yield repr(value)


def _array(value: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except PQNetError:  # of an array in a file
        raise
    except ValueError:  # ragged nested lists
        raise error(name, "an array of numbers", describe(value)) from None


def is_plain(value: Any) -> bool:
    """Tell at little cost that a value is a small array of finite float32; False means only that nobody knows."""
    if type(value) is not np.ndarray or value.dtype != _FLOAT32 or not 0 < value.size <= SMALL_SIZE:
        return False
    # A sum of squares is finite if all numbers are; large ones overflow and are looked at one by one.
    return value.flags.c_contiguous and value.flags.aligned and math.isfinite(np.vdot(value, value))


def float_array(
    value: Any,
    name: str,
    *,
    ndim: int | tuple[int, ...] | None = None,
    shape: tuple[int | None, ...] | None = None,
    empty: bool = False,
    infinite: bool = False,
    dtype: type[np.floating[Any]] = np.float32,
) -> np.ndarray:
    """Return ``value`` as a finite C-contiguous float array of the wanted rank and shape, or raise.

    ``shape`` may hold None for free axes; ``infinite`` lets infinities pass (masks), never NaN. Booleans, complex
    numbers and objects are refused, integers converted.
    """
    if ndim is None and shape is None and dtype is np.float32 and is_plain(value):
        return value  # type: ignore[no-any-return]
    array = _array(value, name)
    if array.dtype.kind not in "fiu":
        got = describe(array if array.ndim else value)
        raise error(name, "an array of real numbers", got, "convert it with .astype('float32')")
    ranks = (ndim,) if isinstance(ndim, int) else ndim
    if ranks is not None and array.ndim not in ranks:
        raise error(name, f"{' or '.join(map(str, ranks))} axes", f"shape {array.shape}", "reshape the array")
    if shape is not None and (
        len(shape) != array.ndim or any(w is not None and w != h for w, h in zip(shape, array.shape, strict=True))
    ):
        want = str(shape).replace("None", "any")
        raise error(name, f"shape {want}", f"shape {array.shape}")
    if not empty and array.size == 0:
        raise error(name, "at least one element", f"shape {array.shape}")
    with np.errstate(over="ignore"):
        out = np.require(array, dtype, "C")
    good = np.isfinite(out)
    if infinite and not good.all():
        good |= np.isinf(array)  # those that were infinite before the conversion
    if not good.all():
        bad = int(out.size - good.sum())
        raise error(name, f"finite {np.dtype(dtype).name} numbers", f"{bad} NaN or infinite of {out.size}")
    return out


def int_array(value: Any, name: str, dtype: str = "int64") -> np.ndarray:
    """Return ``value`` as a C-contiguous array of an integer dtype; floats and booleans are never converted."""
    array = _array(value, name)
    if array.dtype.kind not in "iu":
        got = describe(array if array.ndim else value)
        raise error(name, "an array of integers", got, "floats and booleans are never converted silently")
    limits = np.iinfo(dtype)
    if (
        not np.can_cast(array.dtype, dtype)
        and array.size
        and not limits.min <= array.min() <= array.max() <= limits.max
    ):
        raise error(name, f"integers of {dtype}, from {limits.min} to {limits.max}", f"{array.min()} to {array.max()}")
    return np.require(array, dtype, "C")


def bool_array(value: Any, name: str) -> np.ndarray:
    """Return ``value`` as a C-contiguous array of booleans; numbers are never converted."""
    array = _array(value, name)
    if array.dtype.kind != "b":
        raise error(name, "an array of booleans", describe(array if array.ndim else value))
    return np.require(array, requirements="C")


def index_array(value: Any, name: str, *, below: int, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return ``value`` as a C-contiguous int64 array with entries in [0, below)."""
    array = int_array(value, name)
    if shape is not None and array.shape != shape:
        raise error(name, f"shape {shape}", f"shape {array.shape}")
    if array.size and (int(array.min()) < 0 or int(array.max()) >= below):
        raise error(name, f"entries in [0, {below})", f"range [{array.min()}, {array.max()}]")
    return array


def integer(value: Any, name: str, low: int, high: int | None = None) -> int:
    """Return ``value`` as an int within [low, high], or raise; booleans and floats are refused."""
    if type(value) is int and low <= value and (high is None or value <= high):
        return value
    limits = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise error(name, limits, describe(value))
    if value < low or (high is not None and value > high):
        raise error(name, limits, int(value))
    return int(value)


def rng_seed(value: Any, name: str = "seed") -> int:
    """Return a seed usable by ``numpy.random.default_rng``."""
    return integer(value, name, 0, 2**63 - 1)


def choice(value: Any, name: str, options: Collection[Any]) -> Any:
    """Return ``value`` if it is one of ``options``, or raise naming them all."""
    if not any(value is option or (type(value) is type(option) and value == option) for option in options):
        expected = f"one of {', '.join(map(repr, options))}"
        raise ConfigError(f"{error(name, expected, describe(value))}{did_you_mean(value, options)}")
    return value
