"""Product quantization: every block of d weights is the index of one of K codewords of the layer's codebook."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from pqnet._check import choice, describe, error, float_array, integer
from pqnet.codecs.base import Codec, Packed, StoredSize
from pqnet.codecs.decoding import Decoding, Lookup
from pqnet.codecs.halves import EXPONENT, Halves
from pqnet.codecs.layout import LAYOUTS, check_blocks
from pqnet.codecs.packing import check_stream, code_array, code_bits, pack_codes, packed_nbytes, unpack_codes
from pqnet.errors import ConfigError, FormatError, PQNetError

__all__ = ["PQ", "PackedPQ", "clamp_k"]

CODEBOOK_DTYPES = ("float16", "float32", "int8")
LARGEST_SCALE = 1e36  # of int8 codewords, which float32 has to hold
CLAMPS = ("floor", "strict", None)
MAX_UNCODED = 1 << 24  # blocks without codes: a file of a few bytes must not decode to terabytes


def clamp_k(k: int, n_blocks: int, rule: str | None) -> int:
    """Return K limited so that a codeword serves at least about four blocks.

    Parameters
    ----------
    k : int
        Wanted number of codewords.
    n_blocks : int
        Number n of blocks of the weight.
    rule : {"floor", "strict", None}
        ``"floor"``: the largest power of two <= n/4 (permute-quantize-finetune). ``"strict"``: the largest power of
        two < n/4 (kill-the-bits). None: no limit. Both rules give at least 1.

    Examples
    --------
    >>> clamp_k(256, 512, "floor"), clamp_k(256, 512, "strict")
    (128, 64)
    """
    if rule is None:
        return k
    quarter = n_blocks // 4 if rule == "floor" else (n_blocks - 1) // 4
    return min(k, 1 << max(quarter.bit_length() - 1, 0))


@dataclass(frozen=True)
class PQ(Codec):
    """Product quantization with one codebook of ``k`` codewords of ``d`` numbers for a weight.

    Parameters
    ----------
    k : int
        Codewords, 1 to 65536; need not be a power of two. More than the weight has blocks is a ConfigError unless
        ``clamp`` limits it.
    d : int
        Block size; must divide the inputs of a filter (``spatial``) or its channels (``channel``).
    layout : {"spatial", "channel"}
        Which weights form a block: d consecutive numbers in (C, *kernel) order, or d channels at one tap.
    codebook_dtype : {"float16", "float32", "int8"}
        How codewords are stored, int8 with one float32 scale for all, float16 with a power of two for all if they are
        too small for float16; fitting accounts for the rounding.
    clamp : {None, "floor", "strict"}
        Limit on k for small weights, see `clamp_k`.

    Examples
    --------
    >>> import numpy as np, pqnet
    >>> weight = np.random.default_rng(0).standard_normal((64, 32, 3, 3)).astype("float32")
    >>> packed = pqnet.PQ(k=128, d=9).fit(weight)
    >>> packed.codes.shape, packed.nbytes, packed.decode().shape
    ((64, 32), 4096, (64, 32, 3, 3))
    """

    k: int = 256
    d: int = 8
    layout: Literal["spatial", "channel"] = "spatial"
    codebook_dtype: Literal["float16", "float32", "int8"] = "float16"
    clamp: Literal["floor", "strict"] | None = None
    name: ClassVar[str] = "pq"

    def __post_init__(self) -> None:
        integer(self.k, "PQ.k", 1, 65536)
        integer(self.d, "PQ.d", 1, 4096)
        choice(self.layout, "PQ.layout", LAYOUTS)
        choice(self.codebook_dtype, "PQ.codebook_dtype", CODEBOOK_DTYPES)
        choice(self.clamp, "PQ.clamp", CLAMPS)

    def to_attrs(self) -> dict[str, Any]:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"codec": self.name} | {n: v for n, v in fields.items() if v is not None}

    @property
    def blocks(self) -> tuple[int, str]:
        return self.d, self.layout

    @property
    def n_codewords(self) -> int:
        return self.k

    @property
    def joint(self) -> bool:
        return self.layout == "spatial"  # blocks of weights one after another are blocks of their numbers in a row

    @property
    def codeword_nbytes(self) -> int:
        """Bytes of one codeword."""
        return self.d * np.dtype(self.codebook_dtype).itemsize

    def nbytes(self, shape: tuple[int, ...]) -> StoredSize:
        codec = self.check(shape)
        scale = 4 if self.codebook_dtype == "int8" else 0
        return StoredSize(packed_nbytes(math.prod(shape) // self.d, codec.k), codec.k * codec.codeword_nbytes + scale)

    def largest(self, shape: tuple[int, ...]) -> "PackedPQ":
        codec = self.check(shape)
        codes = np.zeros((shape[0], check_blocks(shape, self.d, self.layout)), np.uint8)
        return PackedPQ(codec, shape, codes, np.zeros((codec.k, codec.d), np.float32))

    def grown(self, shape: tuple[int, ...], nbytes: int) -> "PQ":
        """Return the codec with as many more codewords as take so many bytes, without more bits for a code."""
        most = min(1 << code_bits(self.k), math.prod(shape) // self.d)
        return dataclasses.replace(self, k=min(most, self.k + max(nbytes, 0) // self.codeword_nbytes))

    def metric_blocks(self, shape: tuple[int, ...], *, whole: bool = False) -> tuple[int, str]:
        return (math.prod(shape[1:]), self.layout) if whole else self.blocks

    def check(self, shape: tuple[int, ...]) -> "PQ":
        n = shape[0] * check_blocks(shape, self.d, self.layout)
        k = clamp_k(self.k, n, self.clamp)
        if k > n:
            raise ConfigError(
                f"k: expected at most {n}, the number of blocks of a weight of shape {shape} at d={self.d}, got {k}; "
                "use a smaller k or clamp='floor'"
            )
        return dataclasses.replace(self, k=k, clamp=None)


class Integers:
    """Codewords of 8-bit integers and their scale, as a file holds them: bytes in two's complement."""

    def __init__(self, words: np.ndarray, scale: np.ndarray) -> None:
        if scale.dtype != np.float32 or scale.shape != (1,) or not 0 < scale[0] <= LARGEST_SCALE:
            raise error("scale", f"one positive float32 number up to {LARGEST_SCALE:g}", describe(scale))
        if words.size and int(words.view(np.int8).min()) < -127:
            raise error("codebook", "integers from -127 to 127", -128)
        self.bytes, self.scale = words.copy(), scale.copy()
        for array in (self.bytes, self.scale):
            array.flags.writeable = False

    @classmethod
    def nearest(cls, codebook: np.ndarray, scale: float | None = None) -> "Integers":
        """Return the integers whose multiples of the scale are nearest to a codebook."""
        step = np.float32(np.abs(codebook).max() / 127 if scale is None else scale)
        step = step if step > 0 else np.float32(1)
        words = np.clip(np.rint(codebook.astype(np.float64) / step), -127, 127).astype(np.int8)
        return cls(words.view(np.uint8), np.array([step]))

    def floats(self) -> np.ndarray:
        """Return the codewords, float32."""
        words: np.ndarray = self.bytes.view(np.int8).astype(np.float32) * self.scale
        return words


class PackedPQ(Packed):
    """A product-quantized weight: bit-packed codes and one codebook.

    Parameters
    ----------
    codec : PQ
        With ``k`` equal to the rows of the codebook.
    shape : tuple of int
        Shape of the weight in filter form, (O, C, *kernel) or (O, I).
    codes : integer array, shape (O, M)
        Index of the codeword of each block.
    codebook : array, shape (K, d)
        Codewords, stored as ``codec.codebook_dtype``.
    scale : float, optional
        Of int8 codewords, which are the nearest multiples; default: the largest magnitude / 127.
    """

    codec: PQ

    def __init__(
        self, codec: PQ, shape: tuple[int, ...], codes: np.ndarray, codebook: np.ndarray, scale: float | None = None
    ) -> None:
        self._set_form(codec, shape)
        codes = code_array(codes, codec.k, (self.shape[0], self.n_blocks // self.shape[0]))
        self._set_arrays(pack_codes(codes, codec.k), codebook, scale)

    def _set_form(self, codec: Codec, shape: tuple[int, ...]) -> None:
        if not isinstance(codec, PQ):
            raise error("codec", "a PQ", describe(codec))
        self.shape = tuple(integer(size, "shape", 1) for size in shape)
        self.codec = dataclasses.replace(codec, clamp=None).check(self.shape)

    def _set_arrays(self, stream: np.ndarray, codebook: "np.ndarray | Halves | Integers", scale: float | None) -> None:
        codec = self.codec
        given = codebook.floats() if isinstance(codebook, Halves | Integers) else codebook
        dtype = np.float16 if codec.codebook_dtype == "float16" else np.float32
        checked = float_array(given, "codebook", shape=(codec.k, codec.d), dtype=dtype)
        stored: np.ndarray | Halves | Integers = checked.copy()
        if isinstance(codebook, Halves | Integers):
            stored = codebook
        elif codec.codebook_dtype == "float16":
            stored = Halves.nearest(np.asarray(given, np.float64), "codebook")  # rounded once
        elif codec.codebook_dtype == "int8":
            stored = Integers.nearest(checked, scale)
        self._stream, self._stored = stream, stored
        self.codebook = stored if isinstance(stored, np.ndarray) else stored.floats()
        for array in (self.codebook, self._stream):
            array.flags.writeable = False

    @classmethod
    def from_stream(cls, codec: PQ, shape: tuple[int, ...], stream: np.ndarray, codebook: np.ndarray) -> "PackedPQ":
        """Return a weight that shares packed codes known to be right, with float32 codewords."""
        packed = cls.__new__(cls)
        packed.codec, packed.shape, packed.codebook = codec, shape, codebook
        packed._stream, packed._stored = stream, codebook
        return packed

    @property
    def n_blocks(self) -> int:
        """Number of blocks of the weight, O * M."""
        return math.prod(self.shape) // self.codec.d

    @property
    def codes(self) -> np.ndarray:
        """The codes, unpacked: unsigned integers, shape (O, M)."""
        return unpack_codes(self._stream, self.n_blocks, self.codec.k).reshape(self.shape[0], -1)

    def split(self, shapes: list[tuple[int, ...]]) -> list[Packed]:
        if not self.codec.joint or sum(map(math.prod, shapes)) != math.prod(self.shape):
            return super().split(shapes)
        ends = np.cumsum([math.prod(shape) // self.codec.d for shape in shapes])[:-1]
        found: list[Packed] = []
        for shape, codes in zip(shapes, np.split(self.codes.reshape(-1), ends), strict=True):
            codec, book = self.codec, self.codebook
            if len(codes) < codec.k:  # it keeps the codewords that it uses
                used, codes = np.unique(codes, return_inverse=True)
                codec, book = dataclasses.replace(codec, k=len(used)), book[used]
            scale = float(self._stored.scale[0]) if isinstance(self._stored, Integers) else None
            found.append(PackedPQ(codec, shape, codes.reshape(shape[0], -1), book, scale))
        return found

    def decoding(self) -> Decoding:
        return Decoding(self.shape, (Lookup(self._stream, self.codebook, self.codec.layout),))

    def codewords(self) -> tuple["PackedPQ", None]:
        return self, None

    def arrays(self) -> dict[str, np.ndarray]:
        if isinstance(self._stored, Integers):
            return {"codes": self._stream, "codebook": self._stored.bytes, "scale": self._stored.scale}
        if isinstance(self._stored, Halves):
            return {"codes": self._stream, **self._stored.arrays("codebook")}
        return {"codes": self._stream, "codebook": self.codebook}

    @classmethod
    def from_arrays(cls, codec: Codec, shape: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> "PackedPQ":
        dtype = codec.codebook_dtype if isinstance(codec, PQ) else ""
        names = ["codes", "codebook", *(["scale"] if dtype == "int8" else [])]
        optional = {EXPONENT} if dtype == "float16" else set()
        if not isinstance(codec, PQ) or set(arrays) - optional != set(names):
            raise FormatError(f"packed PQ weight: expected arrays {' and '.join(names)}, got {sorted(arrays)}")
        book = arrays["codebook"]
        packed = cls.__new__(cls)
        try:
            check_blocks(shape, codec.d, codec.layout)
            packed._set_form(codec, shape)
            n = packed.n_blocks
            if codec.k == 1 and n > MAX_UNCODED:
                raise PQNetError(f"shape: expected at most {MAX_UNCODED} blocks of one codeword, got {shape}")
            stream = check_stream(arrays["codes"], n, codec.k)
            if book.dtype != ("uint8" if dtype == "int8" else dtype):
                raise PQNetError(f"codebook: expected {dtype}, got {book.dtype}")
            stored: np.ndarray | Halves | Integers = book
            if dtype == "int8":
                stored = Integers(book, arrays["scale"])
            elif dtype == "float16":
                stored = Halves.from_arrays(arrays, "codebook")
            packed._set_arrays(stream, stored, None)
            return packed
        except PQNetError as reason:
            raise FormatError(str(reason)) from None
