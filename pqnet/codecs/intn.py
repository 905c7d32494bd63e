"""Weights as integers of 2 to 8 bits."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import numpy as np

from pqnet._check import choice, integer
from pqnet.codecs.scalar import SCALE_DTYPES, ScalarCodec

__all__ = ["IntN"]

WHOLE_MOMENT_INPUTS = 4608  # inputs of a filter up to which their whole second moment is worth its memory
OBSERVERS = ("minmax", "histogram", "mse", "output")


@dataclass(frozen=True)
class IntN(ScalarCodec):
    """Integers of ``bits`` bits times a scale.

    Parameters
    ----------
    bits : int
        2 to 8.
    per : {"tensor", "channel", "group"}
        What shares a scale: the weight, an output channel, or ``group`` consecutive inputs of one.
    observer : {"minmax", "histogram", "mse", "output"}
        How scales are found. ``minmax``: from the least and largest weight. ``histogram``: from a range that shrinks,
        from either end, as long as an error model over 2048 bins falls (that of PyTorch's HistogramObserver and of
        fairseq, at the right number of levels). ``mse``: the least squared error, by a sweep over all scales at which
        a code changes, exact for weights with up to a million of these, else over those near the best of a grid of
        scales. ``output``: the least output error, under the second moment of all inputs of a filter, of the codes that
        51 scales around that of ``mse`` give, each with its best scale; for scales of groups, and where the metric is
        a diagonal, ``mse`` with every input weighing its own second moment.
    symmetric : bool
        Levels -2**(bits-1) to 2**(bits-1) - 1 times the scale, which may be negative; or 0 to 2**bits - 1 less a zero
        point that each scale has.
    group : int, optional
        Divides the inputs of a filter, in (C, kh, kw) order.
    scale_dtype : {"float16", "float32"}
        How scales are stored, float16 with a power of two for all if some are too small for float16; codes are chosen
        after rounding.

    Examples
    --------
    >>> import numpy as np, pqnet
    >>> weight = np.random.default_rng(0).standard_normal((64, 32)).astype("float32")
    >>> packed = pqnet.IntN(4, per="channel", observer="mse").fit(weight)
    >>> packed.nbytes, bool(np.abs(weight - packed.decode()).mean() < 0.1)
    (1152, True)
    """

    bits: int = 8
    per: Literal["tensor", "channel", "group"] = "channel"
    observer: Literal["minmax", "histogram", "mse", "output"] = "mse"
    symmetric: bool = True
    group: int | None = None
    scale_dtype: Literal["float16", "float32"] = "float16"
    name: ClassVar[str] = "intn"

    def __post_init__(self) -> None:
        integer(self.bits, "IntN.bits", 2, 8)
        self._check_per()
        choice(self.observer, "IntN.observer", OBSERVERS)
        choice(self.symmetric, "IntN.symmetric", (True, False))
        choice(self.scale_dtype, "IntN.scale_dtype", SCALE_DTYPES)

    def metric_blocks(self, shape: tuple[int, ...], *, whole: bool = False) -> tuple[int, str]:
        inputs = prod(shape[1:])
        return (
            inputs if self.observer == "output" and self.per != "group" and inputs <= WHOLE_MOMENT_INPUTS else 1
        ), "spatial"

    @property
    def k(self) -> int:
        return 1 << self.bits

    @property
    def levels(self) -> np.ndarray:
        """The integers in order, as float32."""
        return np.arange(self.k, dtype=np.float32) - (self.k // 2 if self.symmetric else 0)

    @property
    def value_dtype(self) -> str:
        return self.scale_dtype

    @property
    def scaled(self) -> bool:
        return True

    @property
    def has_zeros(self) -> bool:
        return not self.symmetric
