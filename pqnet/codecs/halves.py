"""Numbers stored as float16, times a power of two where float16 alone would lose them."""

from collections.abc import Mapping
from typing import Self

import numpy as np

from pqnet._check import describe, error, float_array

__all__ = ["EXPONENT", "Halves", "exponent_for"]

EXPONENT = "exponent"  # the name of its array in a file
EXPONENTS = (-180, 1)  # that float32 numbers up to float16's largest can have
TOP = 15  # numbers below 2**15 are farther from float16's largest than any rounding
LOST, LOST_ALONE = 2.0**-10, 2.0**-9  # shares that rounding to float16 alone may take


def exponent_for(values: np.ndarray, *, alone: bool) -> int:
    """Return the exponent of the power of two by which to divide numbers before they are rounded to float16.

    It is 0 for all but very small ones, for which float16 has few bits left. Numbers that came from `Halves` have the
    same exponent again.

    Parameters
    ----------
    values : array
        Within float16's 65504.
    alone : bool
        Whether each number counts by itself, as scales do, and what it loses is compared with it, in the root mean
        square; else with the largest one, as for codewords.

    Examples
    --------
    >>> import numpy as np
    >>> from pqnet.codecs.halves import exponent_for
    >>> exponent_for(np.float32([0.3, 1e-7]), alone=False), exponent_for(np.float32([0.3, 1e-7]), alone=True)
    (0, -16)
    """
    wide = np.abs(np.asarray(values, np.float64))
    largest = float(wide.max(initial=0.0))
    if not 0 < largest < 65520:
        return 0
    with np.errstate(over="ignore"):  # which others tell
        lost = np.abs(wide.astype(np.float16).astype(np.float64) - wide)
    if not lost.any():
        return 0
    mantissa, power = np.frexp(largest)
    exponent = int(power) + (float(np.float16(mantissa)) == 1.0) - TOP
    scaled = np.ldexp(wide, -exponent)
    if np.array_equal(scaled.astype(np.float16).astype(np.float64), scaled):
        return exponent
    if alone:  # a few small ones among very many groups are no loss
        share = float(np.sqrt(np.square(lost / np.where(wide > 0, wide, 1.0)).mean()))
        return exponent if share > LOST_ALONE else 0
    return exponent if lost.max() > LOST * largest else 0


class Halves:
    """float16 numbers and the exponent of the power of two that all are to be multiplied by.

    Parameters
    ----------
    stored : float16 ndarray
    exponent : int
    """

    def __init__(self, stored: np.ndarray, exponent: int) -> None:
        self.stored, self.exponent = stored.copy(), exponent
        self.stored.flags.writeable = False

    @classmethod
    def nearest(cls, values: np.ndarray, name: str, *, alone: bool = False) -> Self:
        """Return those nearest to numbers that float16 can hold, with the exponent that these need."""
        float_array(values, name, dtype=np.float16)
        exponent = exponent_for(values, alone=alone)
        return cls(np.ldexp(values.astype(np.float64), -exponent).astype(np.float16), exponent)

    def floats(self) -> np.ndarray:
        """Return the numbers: as stored, or float32 if there is an exponent."""
        if self.exponent == 0:
            return self.stored
        return np.ldexp(self.stored.astype(np.float32), self.exponent)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return what a file stores: the numbers by this name and, unless it is 0, the exponent."""
        exponent = {EXPONENT: np.array([self.exponent], np.int16)} if self.exponent else {}
        return {name: self.stored} | exponent

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], name: str) -> Self:
        """Rebuild from `arrays`; what does not fit raises PQNetError."""
        stored, exponent = arrays[name], arrays.get(EXPONENT)
        if stored.dtype != np.float16:
            raise error(name, "float16", stored.dtype)
        if exponent is None:
            return cls(stored, 0)
        low, high = EXPONENTS
        if exponent.dtype != np.int16 or exponent.shape != (1,) or not low <= exponent[0] <= high or not exponent[0]:
            got = describe(exponent) if exponent.shape != (1,) else exponent[0]
            raise error(EXPONENT, f"one int16 number from {low} to {high} that is not 0", got)
        halves = cls(stored, int(exponent[0]))
        float_array(halves.floats(), name)
        return halves
