"""Sizes that depend on free symbols, computed with as if they were integers.

A `SymInt` is the size at one sample of the symbols that also carries the expression; the shape rules of operations,
which only add, multiply and divide, work on it unchanged. Expressions are kept canonical, so that a chain of strided
layers does not grow: ``((h+1)//2+1)//2`` is ``(h+3)//4``.
"""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, ClassVar, TypeAlias

import numpy as np

from pqnet.errors import PQNetError
from pqnet.graph.sizes import MAX_TEXT

__all__ = [
    "Comparison",
    "Expr",
    "Number",
    "SymInt",
    "SymRatio",
    "Undecided",
    "ceil",
    "common_denominator",
    "compare",
    "differ",
    "floor",
    "maximum",
    "minimum",
    "symbol",
]

Atom: TypeAlias = "str | Quotient | Positive"
Monomial: TypeAlias = tuple[Atom, ...]
Number: TypeAlias = "int | SymInt | SymRatio | Fraction"


class Opaque(ABC):
    """A part of an expression that is an integer and not looked into."""

    @property
    @abstractmethod
    def text(self) -> str:
        """As graphs take it."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


class Quotient(Opaque):
    """The floor of a quotient that could not be divided further."""

    def __init__(self, numerator: "Expr", denominator: "Expr") -> None:
        self.numerator, self.denominator = numerator, denominator

    @cached_property
    def text(self) -> str:
        top, bottom = (e.text if e.is_plain else f"({e.text})" for e in (self.numerator, self.denominator))
        return f"{top}//{bottom}"

    def limits(self) -> tuple[float, float]:
        """Return numbers that it is not below and not above."""
        low, high = self.numerator.limits()
        least = self.denominator.limits()[0]
        by = self.denominator.constant
        if by and by > 0:
            return math.floor(low / by) if low > -math.inf else low, math.floor(high / by) if high < math.inf else high
        if low < 0 or least <= 0:
            return -math.inf, math.inf
        return 0.0, high / least

    def symbols(self) -> set[str]:
        """Return what it depends on."""
        return self.numerator.symbols() | self.denominator.symbols()

    def at(self, sizes: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return its values at sizes of the symbols."""
        return np.asarray(self.numerator.at(sizes) // self.denominator.at(sizes))


class Positive(Opaque):
    """A size where it is positive, else 0."""

    def __init__(self, size: "Expr") -> None:
        self.size = size

    @cached_property
    def text(self) -> str:
        return f"({self.size.text}) max 0"

    def limits(self) -> tuple[float, float]:
        low, high = self.size.limits()
        return max(low, 0.0), max(high, 0.0)

    def symbols(self) -> set[str]:
        return self.size.symbols()

    def at(self, sizes: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(np.maximum(self.size.at(sizes), 0))


def _text(atom: Atom) -> str:
    return atom if isinstance(atom, str) else f"({atom.text})"


class Expr:
    """A polynomial of symbols and quotients with rational coefficients."""

    def __init__(self, terms: Mapping[Monomial, Fraction | int]) -> None:
        self.terms = {m: c for m, c in terms.items() if c}

    @staticmethod
    def of(value: Any) -> "Expr":
        """Return the expression of a number or size."""
        return value.expr if isinstance(value, Symbolic) else Expr({(): Fraction(value)})

    @property
    def constant(self) -> Fraction | None:
        """The number that it is, if it depends on nothing."""
        if not self.terms:
            return Fraction(0)
        return Fraction(self.terms[()]) if set(self.terms) == {()} else None

    @property
    def is_plain(self) -> bool:
        """Whether it is written without an operator."""
        constant = self.constant
        return (constant is not None and constant >= 0) or (self.is_atom and isinstance(next(iter(self.terms))[0], str))

    @property
    def is_atom(self) -> bool:
        """Whether it is one symbol, or one quotient."""
        return len(self.terms) == 1 and next(iter(self.terms.items()))[1] == 1 and len(next(iter(self.terms))) == 1

    @cached_property
    def text(self) -> str:
        """In the grammar of graphs; coefficients must be integers."""
        if self.is_atom:
            atom = next(iter(self.terms))[0]
            return atom if isinstance(atom, str) else atom.text
        out = ""
        order = sorted(self.terms, key=lambda m: (-len(m), [_text(a) for a in m]))
        for monomial in sorted(order, key=lambda m: self.terms[m] < 0):  # a positive one first
            factor = int(self.terms[monomial])
            parts = ([] if abs(factor) == 1 and monomial else [str(abs(factor))]) + [_text(a) for a in monomial]
            out += ("-" if factor < 0 else "+" if out else "") + "*".join(parts)
        return out or "0"

    def __add__(self, other: "Expr") -> "Expr":
        terms = dict(self.terms)
        for monomial, factor in other.terms.items():
            terms[monomial] = terms.get(monomial, 0) + factor
        return Expr(terms)

    def __mul__(self, other: "Expr") -> "Expr":
        terms: dict[Monomial, Fraction | int] = {}
        for m, a in self.terms.items():
            for n, b in other.terms.items():
                key = tuple(sorted((*m, *n), key=_text))
                terms[key] = terms.get(key, 0) + a * b
        return Expr(terms)

    def __neg__(self) -> "Expr":
        return Expr({m: -c for m, c in self.terms.items()})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expr) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(frozenset(self.terms.items()))

    def divided(self, other: "Expr") -> "Expr | None":
        """Return the quotient if the division leaves no rest."""
        if not other.terms:
            return None
        lead = max(other.terms, key=lambda m: (len(m), [_text(a) for a in m]))
        rest, quotient = self, Expr({})
        for _ in range(64):
            if not rest.terms:
                return quotient
            top = max(rest.terms, key=lambda m: (len(m), [_text(a) for a in m]))
            left = list(top)
            try:
                for atom in lead:
                    left.remove(atom)
            except ValueError:
                return None
            step = Expr({tuple(left): Fraction(rest.terms[top]) / other.terms[lead]})
            quotient, rest = quotient + step, rest + -(step * other)
        return None

    def floor(self) -> "Expr":
        """Return the largest integer below it; symbols and quotients are integers."""
        scale = math.lcm(*(Fraction(c).denominator for c in self.terms.values()))
        return self if scale == 1 else (self * Expr({(): scale})).floordiv(Expr({(): scale}))

    def floordiv(self, other: "Expr") -> "Expr":
        """Return the floor of a quotient of integers."""
        exact = self.divided(other)
        if exact is not None and all(Fraction(c).denominator == 1 for c in exact.terms.values()):
            return exact
        divisor = other.constant
        if divisor is None or divisor <= 0 or divisor.denominator != 1:
            return Expr({(Quotient(self, other),): 1})
        whole = Expr({m: Fraction(c // divisor) for m, c in self.terms.items()})
        rest = self + -(whole * other)
        if m := _nested(rest):  # floor((n // a + r) / c) = floor((n + a r) / (a c))
            quotient = m[0]
            assert isinstance(quotient, Quotient)
            inner = rest + -Expr({m: 1})
            return whole + (quotient.numerator + inner * quotient.denominator).floordiv(other * quotient.denominator)
        common = math.gcd(int(divisor), *(int(c) for c in rest.terms.values()))
        if common > 1:
            by = Expr({(): Fraction(1, common)})
            return whole + (rest * by).floordiv(other * by)
        if rest.constant is not None:
            return whole + Expr({(): rest.constant // divisor})
        return whole + Expr({(Quotient(rest, other),): 1})

    def limits(self) -> tuple[float, float]:
        """Return numbers that it is not below and not above, all symbols being at least 1."""
        low = high = 0.0
        for monomial, factor in self.terms.items():
            below, above = 1.0, 1.0
            for atom in monomial:
                least, most = (1.0, math.inf) if isinstance(atom, str) else atom.limits()
                below, above = (below * least, above * most) if least >= 0 and below >= 0 else (-math.inf, math.inf)
            ends = sorted((float(factor) * below, float(factor) * above))
            low, high = low + ends[0], high + ends[1]
        return low, high

    def symbols(self) -> set[str]:
        """Return the symbols that it depends on."""
        atoms = {atom for monomial in self.terms for atom in monomial}
        inner = (atom.symbols() for atom in atoms if not isinstance(atom, str))
        return {atom for atom in atoms if isinstance(atom, str)}.union(*inner)

    def at(self, sizes: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return its values at sizes of the symbols."""
        total = np.zeros(len(next(iter(sizes.values()))), np.float64)
        for monomial, factor in self.terms.items():
            product: Any = float(factor)
            for atom in monomial:
                product = product * (sizes[atom] if isinstance(atom, str) else atom.at(sizes))
            total = total + product
        return total


def _nested(expr: Expr) -> Monomial | None:
    """Return the quotient by a number that occurs once, alone, if all else is an integer too."""
    found = (m for m, c in expr.terms.items() if c == 1 and len(m) == 1 and isinstance(m[0], Quotient))
    return next((m for m in found if (m[0].denominator.constant or 0) > 0), None)  # type: ignore[union-attr]


class Symbolic:
    """A number that depends on symbols: ``sample``, what it is at the sample of these, and ``expr``."""

    expr: Expr
    sample: Fraction

    def __add__(self, other: Any) -> Any:
        return _binary(self, other, lambda a, b: a + b, lambda a, b: a + b)

    def __sub__(self, other: Any) -> Any:
        return _binary(self, other, lambda a, b: a - b, lambda a, b: a + -b)

    def __rsub__(self, other: Any) -> Any:
        return _binary(other, self, lambda a, b: a - b, lambda a, b: a + -b)

    def __mul__(self, other: Any) -> Any:
        return _binary(self, other, lambda a, b: a * b, lambda a, b: a * b)

    def __floordiv__(self, other: Any) -> Any:
        return _binary(self, other, lambda a, b: a // b, Expr.floordiv)

    def __rfloordiv__(self, other: Any) -> Any:
        return _binary(other, self, lambda a, b: a // b, Expr.floordiv)

    def __truediv__(self, other: Any) -> Any:
        if not isinstance(other, Symbolic):
            return self * (1 / Fraction(other)) if other else math.nan
        exact = self.expr.divided(other.expr)
        return NotImplemented if exact is None else _make(self.sample / other.sample, exact)

    def __mod__(self, other: Any) -> Any:
        return self - (self // other) * other

    def __neg__(self) -> Any:
        return _make(-self.sample, -self.expr)

    __radd__, __rmul__ = __add__, __mul__


class SymInt(Symbolic, int):
    """An integer that depends on symbols; it compares and counts as what it is at their sample."""

    @property
    def sample(self) -> Fraction:  # type: ignore[override]
        return Fraction(int(self))

    @property
    def text(self) -> str:
        """The expression as graphs take it."""
        text = self.expr.text
        if len(text) > MAX_TEXT:
            raise PQNetError(f"size: expected an expression of at most {MAX_TEXT} characters, got {text}")
        return text

    def __repr__(self) -> str:
        return self.expr.text

    __str__ = __repr__


class SymRatio(Symbolic):
    """A rational number that depends on symbols, on the way to a size."""

    def __init__(self, sample: Fraction) -> None:
        self.sample = sample


def _make(sample: Fraction | int, expr: Expr) -> Any:
    constant = expr.constant
    if constant is not None:
        return int(constant) if constant.denominator == 1 else constant
    whole = all(Fraction(c).denominator == 1 for c in expr.terms.values())
    made: Any = SymInt(int(sample)) if whole else SymRatio(Fraction(sample))
    made.expr = expr
    return made


def _value(x: Any) -> Fraction:
    return x.sample if isinstance(x, Symbolic) else Fraction(x)


def _binary(x: Any, y: Any, number: Callable[..., Any], expr: Callable[[Expr, Expr], Expr]) -> Any:
    try:
        return _make(number(_value(x), _value(y)), expr(Expr.of(x), Expr.of(y)))
    except (OverflowError, ValueError):  # infinity or NaN
        return NotImplemented
    except (TypeError, ZeroDivisionError):
        return NotImplemented


class Undecided(Exception):
    """The answer depends on the symbols."""


class Comparison:
    """A comparison of sizes whose answer depends on the symbols; ``sample`` is that at their sample."""

    OPPOSITE: ClassVar = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}

    def __init__(self, op: str, x: Any, y: Any) -> None:
        self.op, self.x, self.y = op, x, y
        self.sample = bool(getattr(operator, op)(_value(x), _value(y)))

    def inverse(self) -> "Comparison":
        """Return the opposite."""
        return Comparison(self.OPPOSITE[self.op], self.x, self.y)

    def __bool__(self) -> bool:
        raise Undecided


def symbol(name: str, sample: int) -> SymInt:
    """Return a free symbol as a size.

    Examples
    --------
    >>> from pqnet_converters.core.sizes import symbol
    >>> h = symbol("h", 64)
    >>> ((h + 1) // 2 + 1) // 2, int((h + 3) // 4)
    ((h+3)//4, 16)
    """
    made: SymInt = _make(sample, Expr({(name,): 1}))
    return made


def floor(x: Any) -> Any:
    """Return the floor of a number."""
    return _make(math.floor(x.sample), x.expr.floor()) if isinstance(x, Symbolic) else math.floor(x)


def ceil(x: Any) -> Any:
    """Return the ceiling of a number."""
    return -floor(-x)


def compare(x: Any, y: Any) -> int | None:
    """Return the sign of a difference: -1, 0 or 1; None if it depends on the symbols."""
    if not isinstance(x, Symbolic) and not isinstance(y, Symbolic):
        return int(x > y) - int(x < y)
    low, high = _range(Expr.of(x) + -Expr.of(y))
    return 1 if low > 0 else -1 if high < 0 else 0 if low == high == 0 else None


def differ(x: Any, y: Any) -> bool:
    """Tell whether two numbers are never equal, whatever the symbols."""
    difference = Expr.of(x) + -Expr.of(y)
    return difference.constant != 0 and bool(np.all(_tried(difference) != 0))


def _tried(expr: Expr) -> np.ndarray:
    """Return what an expression is at many sizes."""
    names = sorted(expr.symbols())
    return expr.at(dict(zip(names, _points(len(names)), strict=True)))


def _range(difference: Expr) -> tuple[float, float]:
    """Return the limits of a difference; where they do not tell its sign, the extremes at many sizes.

    Sizes are pieces of lines and their floors, by numbers far smaller than the sizes that are tried.
    """
    constant = difference.constant
    if constant is not None:
        return float(constant), float(constant)
    low, high = difference.limits()
    if low > 0 or high < 0:
        return low, high
    values = _tried(difference)
    return max(low, float(values.min())), min(high, float(values.max()))


@lru_cache
def _points(symbols: int) -> tuple[np.ndarray, ...]:
    """Return sizes to try for so many symbols: all small ones, and some up to a million, in any combination."""
    rng = np.random.default_rng(0)
    every = np.concatenate([np.arange(1, 1100), (2 ** rng.uniform(10, 20, 500)).astype(np.int64), 2 ** np.arange(21)])
    return tuple(every if i == 0 else rng.permutation(every) for i in range(symbols))


def maximum(x: Any, y: Any) -> Any:
    """Return the larger of two sizes."""
    if not isinstance(x, Symbolic) and not isinstance(y, Symbolic):
        return max(x, y)
    difference = Expr.of(x) + -Expr.of(y)
    low, high = _range(difference)
    if low >= 0:
        return x
    if high <= 0:
        return y
    return y + _make(max(_value(x) - _value(y), Fraction(0)), Expr({(Positive(difference),): 1}))


def minimum(x: Any, y: Any) -> Any:
    """Return the smaller of two sizes; see `maximum`."""
    return -maximum(-x, -y)


def common_denominator(x: Symbolic) -> int:
    """Return the least number by which it has to be multiplied to have whole coefficients."""
    return math.lcm(*(Fraction(c).denominator for c in x.expr.terms.values()))
