"""Codecs with one code for each weight: a list of values, learned or fixed, and scales."""

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, Self

import numpy as np

from pqnet._check import choice, describe, error, float_array, index_array, integer
from pqnet.codecs.base import Codec, Packed, StoredSize
from pqnet.codecs.decoding import Decoding, Lookup
from pqnet.codecs.halves import EXPONENT, Halves
from pqnet.codecs.layout import check_blocks, to_blocks
from pqnet.codecs.packing import check_stream, code_array, code_dtype, pack_codes, packed_nbytes, unpack_codes
from pqnet.codecs.pq import PQ, PackedPQ
from pqnet.errors import ConfigError, FormatError, PQNetError

__all__ = ["PER", "SCALE_DTYPES", "PackedScalar", "Scalar", "ScalarCodec"]

PER = ("tensor", "channel", "group")
SCALE_DTYPES = ("float16", "float32")
METHODS = ("exact", "lloyd")
LARGEST_WEIGHT = 1e38  # that codes may decode to


class ScalarCodec(Codec):
    """What `Scalar`, `Fixed` and `IntN` share; the fields ``per`` and ``group`` say which weights share a scale."""

    per: str = "tensor"
    group: int | None = None

    @property
    @abstractmethod
    def k(self) -> int:
        """Number of values."""

    @property
    @abstractmethod
    def levels(self) -> np.ndarray | None:
        """The values in order, float32; None if each weight stores its own."""

    @property
    def value_dtype(self) -> str:
        """Dtype of stored values or scales."""
        return "float32"

    @property
    def scaled(self) -> bool:
        """Whether scales are stored."""
        return False

    @property
    def has_zeros(self) -> bool:
        """Whether each scale has a zero point, which is subtracted from the values."""
        return False

    @property
    def stored_dtypes(self) -> dict[str, str]:
        """Dtypes of what is stored beside the codes, by name: of ``codebook``, ``scales`` and ``zeros``."""
        dtypes = {"codebook": self.value_dtype} if self.levels is None else {}
        dtypes |= {"scales": self.value_dtype} if self.scaled else {}
        return dtypes | ({"zeros": "uint8"} if self.has_zeros else {})

    @property
    def blocks(self) -> tuple[int, str]:
        return 1, "spatial"

    @property
    def n_codewords(self) -> int:
        return self.k

    @property
    def joint(self) -> bool:
        return self.per == "tensor"

    def stored_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, int]]:
        """Return the shapes of the arrays of `stored_dtypes` for a weight of a shape."""
        return {name: (self.k, 1) if name == "codebook" else self.scale_grid(shape) for name in self.stored_dtypes}

    def nbytes(self, shape: tuple[int, ...]) -> StoredSize:
        self.check(shape)
        shapes = self.stored_shapes(shape)
        books = sum(np.dtype(dtype).itemsize * prod(shapes[name]) for name, dtype in self.stored_dtypes.items())
        return StoredSize(packed_nbytes(prod(shape), self.k), books)

    def largest(self, shape: tuple[int, ...]) -> "PackedScalar":
        stored = {name: np.zeros(size, np.uint8) for name, size in self.stored_shapes(shape).items()}
        return PackedScalar(self, shape, np.zeros((shape[0], prod(shape[1:])), np.uint8), **stored)

    def check(self, shape: tuple[int, ...]) -> Self:
        n = check_blocks(shape, 1, "spatial")
        if self.group is not None and n % self.group:
            raise ConfigError(f"group: expected a divisor of {n}, the inputs of a filter, got {self.group}")
        return self

    def scale_grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return how many scales a weight has along outputs and inputs."""
        if self.per == "tensor":
            return 1, 1
        return shape[0], 1 if self.group is None else prod(shape[1:]) // self.group

    def to_attrs(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {"codec": self.name} | {n: v for n, v in fields.items() if v is not None}

    def _check_per(self) -> None:
        choice(self.per, f"{type(self).__name__}.per", PER)
        if (self.per == "group") != (self.group is not None):
            raise ConfigError(
                f"{type(self).__name__}.group: expected a size with per='group' and None without, "
                f"got {describe(self.group)} with per={self.per!r}"
            )
        if self.group is not None:
            integer(self.group, f"{type(self).__name__}.group", 1)


@dataclass(frozen=True)
class Scalar(ScalarCodec):
    """A learned list of ``k`` values for a weight: k-means of numbers, weighted by the metric's diagonal.

    Parameters
    ----------
    k : int
        Values, 2 to 65536; need not be a power of two. More than the weight has numbers is a ConfigError.
    method : {"exact", "lloyd"}
        The global optimum by dynamic programming, or Lloyd's algorithm on sorted values, from ``warm`` if given.
    codebook_dtype : {"float16", "float32"}
        How values are stored, float16 with a power of two for all if they are too small for float16; codes are chosen
        after rounding.

    Examples
    --------
    >>> import numpy as np, pqnet
    >>> weight = np.random.default_rng(0).standard_normal((64, 32)).astype("float32")
    >>> packed = pqnet.Scalar(k=4).fit(weight)
    >>> packed.codes.shape, packed.codebook.shape, packed.nbytes
    ((64, 32), (4, 1), 520)
    """

    k: int = 16  # type: ignore[assignment]
    method: Literal["exact", "lloyd"] = "exact"
    codebook_dtype: Literal["float16", "float32"] = "float16"
    name: ClassVar[str] = "scalar"

    def __post_init__(self) -> None:
        integer(self.k, "Scalar.k", 2, 65536)
        choice(self.method, "Scalar.method", METHODS)
        choice(self.codebook_dtype, "Scalar.codebook_dtype", SCALE_DTYPES)

    @property
    def levels(self) -> None:
        return None

    @property
    def value_dtype(self) -> str:
        return self.codebook_dtype

    def check(self, shape: tuple[int, ...]) -> "Scalar":
        super().check(shape)
        if self.k > prod(shape):
            raise ConfigError(
                f"k: expected at most {prod(shape)}, the numbers of a weight of shape {shape}, got {self.k}"
            )
        return self


class PackedScalar(Packed, codecs=("scalar", "fixed", "intn")):
    """A weight with one code for each number: ``(value - zero point) * scale``, computed in float32.

    Parameters
    ----------
    codec : Scalar, Fixed or IntN
    shape : tuple of int
        Shape of the weight in filter form.
    codes : integer array, shape (O, I)
        Index of the value of each weight, inputs in (C, kh, kw) order.
    codebook : array, shape (K, 1), optional
        The values of a codec that learns them; the lists of the others are not stored.
    scales : array, shape ``codec.scale_grid(shape)``, optional
        (1, 1), (O, 1) or (O, groups) factors, of a codec that has them. Zero and negative ones are allowed.
    zeros : integer array, shape of the scales, optional
        Zero points below K.
    """

    codec: ScalarCodec

    def __init__(
        self,
        codec: ScalarCodec,
        shape: tuple[int, ...],
        codes: np.ndarray,
        codebook: np.ndarray | None = None,
        scales: np.ndarray | None = None,
        zeros: np.ndarray | None = None,
    ) -> None:
        self._set_form(codec, shape)
        codes = code_array(codes, codec.k, (self.shape[0], prod(self.shape[1:])))
        self._set_arrays(pack_codes(codes, codec.k), {"codebook": codebook, "scales": scales, "zeros": zeros})

    def _set_form(self, codec: Codec, shape: tuple[int, ...]) -> None:
        if not isinstance(codec, ScalarCodec):
            raise error("codec", "a Scalar, Fixed or IntN", describe(codec))
        self.shape = tuple(integer(size, "shape", 1) for size in shape)
        self.codec = codec.check(self.shape)
        self._stored: dict[str, np.ndarray] = {}
        self._halves: dict[str, Halves] = {}  # of what is stored as float16

    def _set_arrays(self, stream: np.ndarray, given: Mapping[str, "np.ndarray | Halves | None"]) -> None:
        codec, dtypes = self.codec, self.codec.stored_dtypes
        for name, array in given.items():
            if (array is not None) != (name in dtypes):
                raise error(name, "an array" if name in dtypes else "None", describe(array))
        grid = codec.scale_grid(self.shape)
        for name, shape in {"codebook": (codec.k, 1), "scales": grid}.items():
            if name in dtypes:
                self._stored[name] = self._floats(name, given[name], shape)
        if "scales" in dtypes:
            reach = (np.abs(self.codebook).max() + codec.k) * np.abs(self._stored["scales"].astype(np.float64)).max()
            if reach > LARGEST_WEIGHT:
                raise error("scales", f"products with the values up to {LARGEST_WEIGHT:g}", f"{reach:.3g}")
        if "zeros" in dtypes:
            self._stored["zeros"] = index_array(given["zeros"], "zeros", below=codec.k, shape=grid).astype(np.uint8)
        self._stream = stream
        for kept in (self._stream, *self._stored.values()):
            kept.flags.writeable = False
        self._words: tuple[PackedPQ, np.ndarray | None] | None = None

    def _floats(self, name: str, given: "np.ndarray | Halves | None", shape: tuple[int, ...]) -> np.ndarray:
        """Check values or scales, round them as they are stored, and return them."""
        halves = given if isinstance(given, Halves) else None
        plain = given if halves is None else halves.floats()
        checked = float_array(plain, name, shape=shape, dtype=np.dtype(self.codec.value_dtype).type)
        if self.codec.value_dtype == "float32":
            return checked.copy()
        wide = np.asarray(plain, np.float64)  # rounded once
        self._halves[name] = halves or Halves.nearest(wide, name, alone=name == "scales")
        return self._halves[name].floats()

    @property
    def codes(self) -> np.ndarray:
        """The codes, unpacked: unsigned integers, shape (O, I)."""
        return unpack_codes(self._stream, prod(self.shape), self.codec.k).reshape(self.shape[0], -1)

    @property
    def codebook(self) -> np.ndarray:
        """The values, shape (K, 1), without zero points and scales."""
        stored = self._stored.get("codebook")
        if stored is not None:
            return stored
        levels = self.codec.levels
        assert levels is not None
        return levels[:, None]

    @property
    def scales(self) -> np.ndarray | None:
        """The scales, (1, 1), (O, 1) or (O, groups); None if there are none."""
        return self._stored.get("scales")

    @property
    def zeros(self) -> np.ndarray | None:
        """The zero points, shaped as the scales; None if there are none."""
        return self._stored.get("zeros")

    def decoding(self) -> Decoding:
        return Decoding(self.shape, (Lookup(self._stream, self.codebook, "spatial", self.zeros, self.scales),))

    def codewords(self) -> tuple[PackedPQ, np.ndarray | None] | None:
        grid = self.codec.scale_grid(self.shape)
        if grid[1] > 1:
            return None
        if self._words is None:
            channels = grid[0] > 1
            book, shift, k = self.codebook[:, 0].astype(np.float32), None, self.codec.k
            scales = None if self.scales is None else self.scales[:, 0].astype(np.float32)
            if self.zeros is not None:
                if channels:  # values of all differences, so that one list serves all channels
                    book, shift, k = (
                        np.arange(1 - k, k, dtype=np.float32),
                        k - 1 - self.zeros.astype(np.int64),
                        2 * k - 1,
                    )
                else:
                    book = book - np.float32(self.zeros[0, 0])
            if scales is not None and not channels:
                book, scales = book * scales[0], None
            if k > prod(self.shape):
                return None
            self._words = self._as_pq(book, shift), scales
        return self._words

    def _as_pq(self, book: np.ndarray, shift: np.ndarray | None) -> PackedPQ:
        """Return the weight as codewords of one number; taps of a kernel in ``channel`` layout, for Winograd."""
        codec = PQ(len(book), 1, "channel", "float32")
        if shift is None and prod(self.shape[2:]) == 1:
            return PackedPQ.from_stream(codec, self.shape, self._stream, book[:, None])
        codes = self.codes.astype(code_dtype(len(book)))
        if shift is not None:
            codes = codes + shift.astype(codes.dtype)
        codes = to_blocks(codes.reshape(self.shape), 1, "channel").reshape(len(codes), -1)
        return PackedPQ(codec, self.shape, codes, book[:, None])

    def split(self, shapes: list[tuple[int, ...]]) -> list[Packed]:
        if not self.codec.joint or sum(map(prod, shapes)) != prod(self.shape):
            return super().split(shapes)
        book = self._stored.get("codebook")
        parts = np.split(self.codes.reshape(-1), np.cumsum([prod(shape) for shape in shapes])[:-1])
        return [
            PackedScalar(self.codec, shape, codes.reshape(shape[0], -1), book, self.scales, self.zeros)
            for shape, codes in zip(shapes, parts, strict=True)
        ]

    def arrays(self) -> dict[str, np.ndarray]:
        stored = {"codes": self._stream, **self._stored}
        for name, halves in self._halves.items():
            stored |= halves.arrays(name)
        return stored

    @classmethod
    def from_arrays(cls, codec: Codec, shape: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> "PackedScalar":
        if not isinstance(codec, ScalarCodec):
            raise FormatError(f"packed weight: expected a Scalar, Fixed or IntN, got {describe(codec)}")
        packed, dtypes = cls.__new__(cls), codec.stored_dtypes
        try:
            check_blocks(shape, 1, "spatial")
            packed._set_form(codec, shape)
            optional = {EXPONENT} if "float16" in dtypes.values() else set()
            if set(arrays) - optional != {"codes", *dtypes}:
                wanted = sorted(["codes", *dtypes])
                raise PQNetError(f"packed {codec.name} weight: expected arrays {wanted}, got {sorted(arrays)}")
            for name, dtype in dtypes.items():
                if arrays[name].dtype != dtype:
                    raise PQNetError(f"{name}: expected {dtype}, got {arrays[name].dtype}")
            stream = check_stream(arrays["codes"], prod(packed.shape), codec.k)
            stored: dict[str, np.ndarray | Halves | None] = {
                name: Halves.from_arrays(arrays, name) if dtype == "float16" else arrays[name]
                for name, dtype in dtypes.items()
            }
            packed._set_arrays(stream, stored)
            return packed
        except PQNetError as reason:
            raise FormatError(str(reason)) from None
