"""Weights from a fixed list of values: binary, ternary, powers of two or any other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from pqnet._cached import cached_property
from pqnet._check import choice, describe, float_array, integer
from pqnet.codecs.scalar import SCALE_DTYPES, ScalarCodec
from pqnet.errors import ConfigError

__all__ = ["Fixed"]

LISTS = ("binary", "ternary", "pow2")
SCALES = ("none", "closed", "learned")


@dataclass(frozen=True)
class Fixed(ScalarCodec):
    """A list of values that is the same for all weights and takes no room, with or without scales.

    Parameters
    ----------
    values : {"binary", "ternary", "pow2"} or sequence of float
        -1 and 1; -1, 0 and 1; 0 and plus or minus 2**-i for i from 0 to ``exponent``; or 2 to 65536 different numbers.
    scale : {"none", "closed", "learned"}
        ``none``: the values as they are. ``closed``: the scale of least weighted error by its closed form; for binary
        and ternary lists. ``learned``: that of any list, by a sweep over all scales at which a code changes; exact
        for weights with up to a million of these; with more, it is over those near the best of a grid of scales.
    per : {"tensor", "channel", "group"}
        What shares a scale: the weight, an output channel, or ``group`` consecutive inputs of one.
    group : int, optional
        Divides the inputs of a filter, in (C, kh, kw) order.
    exponent : int
        Of the least power of two, 0 to 30; ``pow2`` only.
    scale_dtype : {"float16", "float32"}
        How scales are stored, float16 with a power of two for all if some are too small for float16; codes are chosen
        after rounding.

    Examples
    --------
    >>> import numpy as np, pqnet
    >>> pqnet.Fixed("ternary", scale="closed").fit(np.float32([[0.1, 2.0, -1.0, 1.5]])).decode().tolist()
    [[0.0, 1.5, -1.5, 1.5]]
    >>> pqnet.Fixed("pow2", scale="none", exponent=2).fit(np.float32([[0.1, 0.8, -0.3, 7.0]])).decode().tolist()
    [[0.0, 1.0, -0.25, 1.0]]
    """

    values: Literal["binary", "ternary", "pow2"] | Sequence[float] = "ternary"
    scale: Literal["none", "closed", "learned"] = "learned"
    per: Literal["tensor", "channel", "group"] = "tensor"
    group: int | None = None
    exponent: int | None = None
    scale_dtype: Literal["float16", "float32"] = "float16"
    name: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        if isinstance(self.values, str):
            choice(self.values, "Fixed.values", LISTS)
        else:
            values = float_array(
                list(self.values) if isinstance(self.values, tuple) else self.values, "Fixed.values", ndim=1
            )
            if not 2 <= len(values) <= 65536 or len(np.unique(values)) < len(values):
                raise ConfigError(f"Fixed.values: expected 2 to 65536 different numbers, got {describe(self.values)}")
            object.__setattr__(self, "values", tuple(sorted(values.tolist())))
        choice(self.scale, "Fixed.scale", SCALES)
        if self.scale == "closed" and self.values not in LISTS[:2]:
            raise ConfigError(
                f"Fixed.scale: expected 'none' or 'learned' for {describe(self.values)}, got 'closed'; "
                "only binary and ternary scales have a closed form"
            )
        self._check_per()
        if self.scale == "none" and self.per != "tensor":
            raise ConfigError(f"Fixed.per: expected 'tensor' with scale='none', got {self.per!r}")
        if self.values == "pow2":
            exponent = 6 if self.exponent is None else integer(self.exponent, "Fixed.exponent", 0, 30)
            object.__setattr__(self, "exponent", exponent)
        elif self.exponent is not None:
            raise ConfigError(f"Fixed.exponent: expected None unless values='pow2', got {describe(self.exponent)}")
        choice(self.scale_dtype, "Fixed.scale_dtype", SCALE_DTYPES)

    @cached_property
    def levels(self) -> np.ndarray:
        """The values in order, float32."""
        if self.values == "binary":
            return np.array([-1, 1], np.float32)
        if self.values == "ternary":
            return np.array([-1, 0, 1], np.float32)
        if self.values == "pow2":
            powers = np.float32(2.0) ** np.arange(-(self.exponent or 0), 1, dtype=np.float32)
            return np.concatenate([-powers[::-1], np.zeros(1, np.float32), powers])
        return np.array(self.values, np.float32)

    @property
    def k(self) -> int:
        return len(self.levels)

    @property
    def value_dtype(self) -> str:
        return self.scale_dtype

    @property
    def scaled(self) -> bool:
        return self.scale != "none"

    def to_attrs(self) -> dict[str, Any]:
        attrs = super().to_attrs()
        return attrs if isinstance(self.values, str) else {**attrs, "values": list(self.values)}

    def __str__(self) -> str:
        return super().__str__() if isinstance(self.values, str) else f"fixed {len(self.values)} values {self.per}"
