"""Sizes: limits, expressions of free symbols, and numbers that know what they are at other sizes of the symbols."""

import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from pqnet.errors import PQNetError

__all__ = ["MAX_ATTRIBUTE", "MAX_AXES", "MAX_ELEMENTS", "Size", "apply", "check_shape_limits", "resolve_dim"]

# With these limits every offset and every product of a stride with a window stays far below 2**62.
MAX_AXES = 32  # of a value; NumPy takes 64
MAX_ELEMENTS = 1 << 40  # of a value, empty axes counted as 1: 4 TiB of float32
MAX_ATTRIBUTE = 1 << 24  # magnitude of an integer attribute: kernel, stride, padding, axis, ...

MAX_TEXT = 1000  # characters of an expression

Step = int | str | Callable[..., int]
_NEGATIVE = 4
_OPEN = (0, 0)  # a parenthesis among the operators that wait for their right side


class Size(int):
    """A size at given free symbols that also knows what it is at other sizes of them.

    ``elsewhere`` holds the size at each of a list of points, None where it is undefined (a division by zero).
    Arithmetic applies to all of them; comparisons see the one size.
    """

    elsewhere: tuple[int | None, ...]

    @classmethod
    def of(cls, size: int, elsewhere: tuple[int | None, ...]) -> int:
        """Return it, or a plain number if it is the same everywhere."""
        if all(other in (None, size) for other in elsewhere):
            return int(size)
        made = cls(size)
        made.elsewhere = elsewhere
        return made


def apply(function: Callable[..., int], *values: Any) -> int:
    """Return ``function(*values)``, a `Size` if one of the values is."""
    sizes = [v for v in values if isinstance(v, Size)]
    if not sizes:
        return function(*values)
    here = function(*(int(v) if isinstance(v, Size) else v for v in values))
    elsewhere: list[int | None] = []
    for i in range(len(sizes[0].elsewhere)):
        point = [v.elsewhere[i] if isinstance(v, Size) else v for v in values]
        try:
            undefined = any(v.elsewhere[i] is None for v in sizes)
            elsewhere.append(None if undefined else function(*point))
        except ZeroDivisionError:
            elsewhere.append(None)
    return Size.of(here, tuple(elsewhere))


def _lift(function: Callable[..., int]) -> Callable[..., int]:
    return lambda *values: apply(function, *values)


def _lift_swapped(function: Callable[..., int]) -> Callable[..., int]:
    return lambda right, left: apply(function, left, right)


_BINARY: dict[str, tuple[int, Step]] = {
    "max": (1, _lift(max)),
    "min": (1, _lift(min)),
    "+": (2, operator.add),
    "-": (2, operator.sub),
    "*": (3, operator.mul),
    "//": (3, operator.floordiv),
}

for _name in ("add", "sub", "mul", "floordiv"):
    setattr(Size, f"__{_name}__", _lift(getattr(operator, _name)))
    setattr(Size, f"__r{_name}__", _lift_swapped(getattr(operator, _name)))
setattr(Size, "__neg__", _lift(operator.neg))  # noqa: B010  (beside its siblings)


def resolve_dim(dim: int | str, symbols: Mapping[str, int]) -> int:
    """Return the value of a size: an int, or an integer expression of free symbols.

    Expressions have ``+ - * //``, parentheses, and ``max`` and ``min`` between two operands: ``"n//2 max 1"``.
    """
    if isinstance(dim, int):
        return dim
    stack: list[int] = []
    try:
        for step in _postfix(dim):
            if isinstance(step, int):
                stack.append(step)
            elif isinstance(step, str):
                stack.append(symbols[step])
            elif step is operator.neg:
                stack.append(-stack.pop())
            else:
                right = stack.pop()
                stack.append(step(stack.pop(), right))
    except (LookupError, ZeroDivisionError, SyntaxError):
        raise PQNetError(f"size {dim!r}: expected an integer expression of {sorted(symbols)}") from None
    if abs(stack[0]) >= 1 << 62:
        raise PQNetError(f"size {dim!r}: expected a number of 62 bits, got {stack[0].bit_length()} bits")
    return stack[0]


@lru_cache(maxsize=4096)
def _postfix(text: str) -> tuple[Step, ...]:
    """Return the steps that compute an expression on a stack, or raise SyntaxError.

    Python's own parser would take two symbols for one where Unicode has two characters for the same letter.
    """
    if len(text) > MAX_TEXT:
        raise PQNetError(f"size: expected a short integer expression, got {len(text)} characters")
    steps: list[Step] = []
    waiting: list[tuple[int, Step]] = []
    operand = True  # what comes next
    for token in filter(None, map(str.strip, re.split(r"(//|[-+*()]|\s+)", text))):
        if operand and token in ("-", "("):
            waiting.append((_NEGATIVE, operator.neg) if token == "-" else _OPEN)
        elif operand and (token.isidentifier() or (token.isascii() and token.isdecimal())):
            steps.append(token if token.isidentifier() else int(token))
            operand = False
        elif not operand and token == ")" and _OPEN in waiting:
            while (last := waiting.pop()) != _OPEN:
                steps.append(last[1])
        elif not operand and token in _BINARY:
            while waiting and waiting[-1][0] >= _BINARY[token][0]:
                steps.append(waiting.pop()[1])
            waiting.append(_BINARY[token])
            operand = True
        else:
            raise SyntaxError
    if operand or _OPEN in waiting:
        raise SyntaxError
    return (*steps, *(step for _, step in reversed(waiting)))


def check_shape_limits(shape: tuple[int, ...], where: str) -> None:
    """Raise unless a shape is one that a value may have; see `MAX_AXES` and `MAX_ELEMENTS`."""
    if len(shape) > MAX_AXES:
        raise PQNetError(f"{where}: expected at most {MAX_AXES} axes, got {len(shape)}")
    elements = 1
    for size in shape:
        if size < 0:
            raise PQNetError(f"{where}: expected no negative size, got shape {shape}")
        elements *= int(size) or 1
    if elements > MAX_ELEMENTS:
        raise PQNetError(f"{where}: expected at most {MAX_ELEMENTS} elements, got shape {shape}")
