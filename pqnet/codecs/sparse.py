"""A few weights as numbers with their places, zero elsewhere: the correction of another codec."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np

from pqnet._check import choice, describe, error, float_array, index_array, integer
from pqnet.codecs.base import Codec, Packed, StoredSize
from pqnet.codecs.decoding import Decoding, Entries
from pqnet.codecs.gaps import Gaps, most_nbytes
from pqnet.codecs.halves import EXPONENT, Halves
from pqnet.codecs.layout import check_blocks
from pqnet.errors import ConfigError, FormatError, PQNetError

__all__ = ["PackedSparse", "Sparse"]

VALUE_DTYPES = ("float16", "float32")
MAX_WEIGHTS_PER_ENTRY = 1 << 20  # a file of a few bytes must not decode to terabytes


@dataclass(frozen=True)
class Sparse(Codec):
    """Keeps the weights whose squares, times the metric's diagonal, are largest; all others are 0.

    A gap between two kept weights takes as many bits as makes the whole shortest, larger gaps several times that.

    Parameters
    ----------
    fraction : float, optional
        Share of the weights to keep, above 0 and up to 1, rounded to a whole number and at least one.
    count : int, optional
        Or their number.
    value_dtype : {"float16", "float32"}
        How values are stored, float16 with a power of two for all if they are too small for float16.

    Examples
    --------
    >>> import numpy as np, pqnet
    >>> pqnet.Sparse(count=2).fit(np.float32([[0.1, 2.0, -1.0, 1.5]])).decode().tolist()
    [[0.0, 2.0, 0.0, 1.5]]
    """

    fraction: float | None = None
    count: int | None = None
    value_dtype: Literal["float16", "float32"] = "float16"
    name: ClassVar[str] = "sparse"

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.count is None):
            raise ConfigError(
                f"Sparse: expected either fraction or count, got {describe(self.fraction)} and {describe(self.count)}"
            )
        if self.count is not None:
            integer(self.count, "Sparse.count", 1)
        if self.fraction is not None and not (
            isinstance(self.fraction, float | int) and not isinstance(self.fraction, bool) and 0 < self.fraction <= 1
        ):
            raise ConfigError(f"Sparse.fraction: expected a number above 0 and up to 1, got {describe(self.fraction)}")
        choice(self.value_dtype, "Sparse.value_dtype", VALUE_DTYPES)

    def to_attrs(self) -> dict[str, Any]:
        return {"codec": self.name} | {n: v for n, v in dataclasses.asdict(self).items() if v is not None}

    @property
    def blocks(self) -> tuple[int, str]:
        return 1, "spatial"

    def nbytes(self, shape: tuple[int, ...]) -> StoredSize:
        count = self.check(shape).count or 0
        return StoredSize(most_nbytes(count, prod(shape)), count * np.dtype(self.value_dtype).itemsize)

    def largest(self, shape: tuple[int, ...]) -> "PackedSparse":
        count = self.check(shape).count or 0
        return PackedSparse(self, shape, np.arange(prod(shape) - count, prod(shape)), np.zeros(count))

    def check(self, shape: tuple[int, ...]) -> "Sparse":
        n = shape[0] * check_blocks(shape, 1, "spatial")
        count = self.count if self.fraction is None else max(round(self.fraction * n), 1)
        assert count is not None
        if count > n or count * MAX_WEIGHTS_PER_ENTRY < n:
            least = -(-n // MAX_WEIGHTS_PER_ENTRY)
            raise ConfigError(f"count: expected {least} to {n} entries for a weight of shape {shape}, got {count}")
        return dataclasses.replace(self, fraction=None, count=count)


class PackedSparse(Packed):
    """A weight of a few numbers and their places.

    Parameters
    ----------
    codec : Sparse
    shape : tuple of int
        Shape of the weight in filter form.
    positions : integer array, shape (N,)
        Ascending places, in C order.
    values : array, shape (N,)
    """

    codec: Sparse

    def __init__(self, codec: Sparse, shape: tuple[int, ...], positions: np.ndarray, values: np.ndarray) -> None:
        count = self._set_form(codec, shape)
        places = index_array(positions, "positions", below=prod(self.shape), shape=(count,))
        if (np.diff(places, prepend=-1) < 1).any():
            raise error("positions", "ascending places", "others")
        self._set_arrays(Gaps.pack(places), values)

    def _set_form(self, codec: Codec, shape: tuple[int, ...]) -> int:
        if not isinstance(codec, Sparse):
            raise error("codec", "a Sparse", describe(codec))
        self.shape = tuple(integer(size, "shape", 1) for size in shape)
        self.codec = codec.check(self.shape)
        return self.codec.count or 0

    def _set_arrays(self, gaps: Gaps, values: "np.ndarray | Halves") -> None:
        count, dtype = self.codec.count, self.codec.value_dtype
        given = values.stored if isinstance(values, Halves) else values
        checked = float_array(given, "values", shape=(count,), dtype=np.dtype(dtype).type)
        if not isinstance(values, Halves):
            wide = np.asarray(values, np.float64)  # to be rounded once
            values = Halves.nearest(wide, "values") if dtype == "float16" else checked
        self._halves, self._gaps = (values if isinstance(values, Halves) else None), gaps
        self.values = values.floats() if isinstance(values, Halves) else values.copy()
        self.values.flags.writeable = False

    @property
    def codes(self) -> np.ndarray:
        """Places of the values in C order, int64, shape (N,)."""
        return self._gaps.places()

    @property
    def codebook(self) -> np.ndarray:
        """The values, shape (N, 1)."""
        return self.values[:, None]

    def decoding(self) -> Decoding:
        return Decoding(self.shape, (), (Entries(self._gaps, self.values),))

    def arrays(self) -> dict[str, np.ndarray]:
        values = {"values": self.values} if self._halves is None else self._halves.arrays("values")
        return {"gaps": self._gaps.stream, **values}

    @classmethod
    def from_arrays(cls, codec: Codec, shape: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> "PackedSparse":
        optional = {EXPONENT} if isinstance(codec, Sparse) and codec.value_dtype == "float16" else set()
        if not isinstance(codec, Sparse) or set(arrays) - optional != {"gaps", "values"}:
            raise FormatError(f"packed sparse weight: expected arrays gaps and values, got {sorted(arrays)}")
        packed, values = cls.__new__(cls), arrays["values"]
        try:
            check_blocks(shape, 1, "spatial")
            count = packed._set_form(codec, shape)
            if values.dtype != codec.value_dtype:
                raise PQNetError(f"values: expected {codec.value_dtype}, got {values.dtype}")
            gaps = Gaps(arrays["gaps"], count)
            if gaps.last >= prod(packed.shape):
                raise error("positions", f"entries in [0, {prod(packed.shape)})", f"one of {gaps.last}")
            packed._set_arrays(gaps, Halves.from_arrays(arrays, "values") if optional else values)
            return packed
        except PQNetError as reason:
            raise FormatError(str(reason)) from None
