"""A few weights as numbers with their places, zero elsewhere: the correction of another codec."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np

from pqnet._check import choice, describe, error, float_array, index_array, integer
from pqnet.codecs.base import Codec, Packed
from pqnet.codecs.layout import check_blocks
from pqnet.codecs.packing import pack_codes, unpack_codes
from pqnet.errors import ConfigError, FormatError, PQNetError

__all__ = ["PackedSparse", "Sparse"]

VALUE_DTYPES = ("float16", "float32")
MAX_BITS = 16  # of a gap
RAREST = 1 << 20  # weights for each entry, at most: a file of a few bytes must not decode to terabytes


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

    def check(self, shape: tuple[int, ...]) -> "Sparse":
        n = shape[0] * check_blocks(shape, 1, "spatial")
        count = self.count if self.fraction is None else max(round(self.fraction * n), 1)
        assert count is not None
        if count > n or count * RAREST < n:
            raise ConfigError(
                f"count: expected {-(-n // RAREST)} to {n} entries for a weight of shape {shape}, got {count}"
            )
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
        if not isinstance(codec, Sparse):
            raise error("codec", "a Sparse", describe(codec))
        self.shape = tuple(integer(size, "shape", 1) for size in shape)
        self.codec = codec.check(self.shape)
        count = self.codec.count or 0
        places = index_array(positions, "positions", below=prod(self.shape), shape=(count,))
        gaps = np.diff(places, prepend=-1) - 1
        if gaps.min() < 0:
            raise error("positions", "ascending places", "others")
        dtype = np.dtype(codec.value_dtype).type
        self.values = float_array(values, "values", shape=(count,), dtype=dtype).copy()
        self._gaps = _pack_gaps(gaps)
        for array in (self.values, self._gaps):
            array.flags.writeable = False

    @property
    def codes(self) -> np.ndarray:
        """Places of the values in C order, shape (N,)."""
        positions = _unpack_positions(self._gaps, len(self.values))
        assert positions is not None
        return positions

    @property
    def codebook(self) -> np.ndarray:
        """The values, shape (N, 1)."""
        return self.values[:, None]

    def decode(self) -> np.ndarray:
        out = np.zeros(prod(self.shape), np.float32)
        out[self.codes] = self.values
        return out.reshape(self.shape)

    def decode_rows(self, rows: np.ndarray) -> np.ndarray:
        ids = index_array(rows, "rows", below=self.shape[0])
        flat, width, positions = ids.reshape(-1), prod(self.shape[1:]), self.codes
        start, end = np.searchsorted(positions, flat * width), np.searchsorted(positions, (flat + 1) * width)
        counts = end - start
        row = np.repeat(np.arange(len(flat)), counts)
        entry = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts - start, counts)
        out = np.zeros((len(flat), width), np.float32)
        out[row, positions[entry] - flat[row] * width] = self.values[entry]
        return out.reshape(*ids.shape, *self.shape[1:])

    @property
    def code_nbytes(self) -> int:
        return self._gaps.nbytes

    @property
    def codebook_nbytes(self) -> int:
        return self.values.nbytes

    def arrays(self) -> dict[str, np.ndarray]:
        return {"gaps": self._gaps, "values": self.values}

    @classmethod
    def from_arrays(cls, codec: Codec, shape: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> "PackedSparse":
        if not isinstance(codec, Sparse) or set(arrays) != {"gaps", "values"}:
            raise FormatError(f"packed sparse weight: expected arrays gaps and values, got {sorted(arrays)}")
        gaps, values = arrays["gaps"], arrays["values"]
        try:
            if values.dtype != codec.value_dtype:
                raise PQNetError(f"values: expected {codec.value_dtype}, got {values.dtype}")
            if gaps.dtype != np.uint8 or gaps.ndim != 1:
                raise PQNetError(f"gaps: expected a row of bytes, got {describe(gaps)}")
            positions = _unpack_positions(gaps, codec.check(shape).count or 0)
            if positions is None:
                raise PQNetError(f"gaps: expected those of {codec.count} entries, got {describe(gaps)}")
            packed = cls(codec, shape, positions, values)
            if not np.array_equal(packed._gaps, gaps):
                raise PQNetError("gaps: expected the shortest form, got another")
            return packed
        except PQNetError as reason:
            raise FormatError(str(reason)) from None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PackedSparse)
            and (self.codec, self.shape) == (other.codec, other.shape)
            and np.array_equal(self.values, other.values)
            and np.array_equal(self._gaps, other._gaps)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"PackedSparse(shape={self.shape}, count={self.codec.count}, nbytes={self.nbytes})"


def _pack_gaps(gaps: np.ndarray) -> np.ndarray:
    """Return bits b as a byte, then codes of b bits: 2**b - 1 for as many zeros, less for zeros and then an entry."""
    sizes = [bits * (len(gaps) + int((gaps // ((1 << bits) - 1)).sum())) for bits in range(1, MAX_BITS + 1)]
    bits = int(np.argmin(sizes)) + 1
    escape = (1 << bits) - 1
    ends = np.cumsum(gaps // escape + 1) - 1
    codes = np.full(ends[-1] + 1, escape, np.int64)
    codes[ends] = gaps % escape
    return np.concatenate([np.array([bits], np.uint8), pack_codes(codes, escape + 1)])


def _unpack_positions(stream: np.ndarray, count: int) -> np.ndarray | None:
    """Return the places of ``count`` entries, or None if the stream does not hold as many."""
    if len(stream) < 2 or not 1 <= stream[0] <= MAX_BITS:
        return None
    bits = int(stream[0])
    escape = (1 << bits) - 1
    codes = unpack_codes(stream[1:], (len(stream) - 1) * 8 // bits, escape + 1).astype(np.int64)
    entries = np.flatnonzero(codes != escape)[:count]
    if len(entries) < count:
        return None
    steps = codes + (codes != escape)
    positions: np.ndarray = np.cumsum(steps)[entries] - 1
    return positions
