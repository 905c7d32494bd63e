"""What every codec and every packed weight offers, and the registries of codecs, packed weights and fits."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np

from pqnet._check import describe, index_array
from pqnet.codecs.decoding import Decoding
from pqnet.errors import FormatError, PQNetError, did_you_mean

__all__ = ["CODECS", "FITTERS", "PACKED", "Codec", "Fit", "Fitter", "Packed", "StoredSize", "codec_from_attrs"]

CODECS: dict[str, type["Codec"]] = {}
PACKED: dict[str, type["Packed"]] = {}
FITTERS: dict[str, "Fitter"] = {}  # by name of the codec; filled by pqnet.fit, for codecs do not know how to find codes
CODE_ARRAYS = ("codes", "gaps")  # of what a file stores, the arrays that are codes; all others count as codebooks


class StoredSize(NamedTuple):
    """Bytes of a packed weight, in memory as in a file.

    Attributes
    ----------
    codes : int
    codebooks : int
        And scales, zero points and single values.
    """

    codes: int
    codebooks: int

    @property
    def total(self) -> int:
        """Bytes of both."""
        return self.codes + self.codebooks


class Fit(NamedTuple):
    """What was found for a weight.

    Attributes
    ----------
    packed : Packed
    error : float
        ``sum_o a_o (w_o - v_o)' H (w_o - v_o)`` of the weight w and what ``packed`` decodes to, v, with the row weights
        a and the metric H of the fit: the sum of squares without either.
    n_iter : int
        Codebook updates that it took.
    """

    packed: "Packed"
    error: float
    n_iter: int


class Fitter(Protocol):
    """How the codes of one codec are found; see `Codec.fit` for the arguments."""

    def __call__(
        self,
        codec: Any,
        weight: Any,
        metric: Any = None,
        warm: "Packed | None" = None,
        seed: int = 0,
        *,
        row_weights: Any = None,
        threads: int | None = None,
    ) -> Fit: ...


class Codec(ABC):
    """A way to store a weight in few bits. Subclasses are frozen dataclasses that check themselves."""

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            CODECS[cls.name] = cls

    @abstractmethod
    def to_attrs(self) -> dict[str, Any]:
        """Return the codec as plain data: ``{"codec": name, ...}``; `codec_from_attrs` is the inverse."""

    def __str__(self) -> str:
        """Return a few words: of the fields, those that say how many values there are and what shares them."""
        attrs = self.to_attrs()
        shown = [f"{name}={attrs[name]}" for name in ("k", "d", "bits", "count", "fraction") if name in attrs]
        shown += [str(attrs[name]) for name in ("layout", "values", "per") if name in attrs]
        return " ".join([self.name, *shown, *(["int8"] if attrs.get("codebook_dtype") == "int8" else [])])

    @abstractmethod
    def check(self, shape: tuple[int, ...]) -> Self:
        """Return the codec as it applies to a weight of this shape (K clamped), or raise ConfigError."""

    @abstractmethod
    def nbytes(self, shape: tuple[int, ...]) -> StoredSize:
        """Return the bytes that a weight of this shape takes, without packing it; or raise ConfigError.

        They are exact but for sparse weights, whose codes take fewer bytes if the entries are spread: it is the most;
        and for float16 numbers that need a power of two, see `pqnet.codecs.halves`, which takes two bytes more.
        """

    @abstractmethod
    def largest(self, shape: tuple[int, ...]) -> "Packed":
        """Return a packed weight of this shape, of mostly zeros, that takes ``nbytes(shape)``: a stand-in for any."""

    @property
    @abstractmethod
    def blocks(self) -> tuple[int, str]:
        """Block size and layout: the pieces of a filter's inputs that the metric of the search is made of."""

    @property
    def n_codewords(self) -> int | None:
        """Number K of codewords, of which each block is one; None for codecs that store blocks in another way."""
        return None

    @property
    def joint(self) -> bool:
        """Whether several weights can be packed as one vector and then split, see `Packed.split`."""
        return False

    def metric_blocks(self, shape: tuple[int, ...], *, whole: bool = False) -> tuple[int, str]:
        """Return block size and layout of the metric that the fit of a weight of this shape makes use of.

        With ``whole``, if there is the second moment of all inputs of a filter to take from.
        """
        return self.blocks

    def search(
        self, weight: Any, metric: Any = None, warm: "Packed | None" = None, seed: int = 0, **options: Any
    ) -> Fit:
        """Find the codes of a weight, as `fit` does, and return them with the error that they leave."""
        if self.name not in FITTERS:
            raise PQNetError(f"codec {self.name!r}: expected its search among {sorted(FITTERS)}; import pqnet.fit")
        return FITTERS[self.name](self, weight, metric=metric, warm=warm, seed=seed, **options)

    def fit(
        self,
        weight: Any,
        metric: Any = None,
        warm: "Packed | None" = None,
        seed: int = 0,
        **options: Any,
    ) -> "Packed":
        """Find the codes of a weight.

        Parameters
        ----------
        weight : array, shape (O, C, *kernel) or (O, I)
            In filter form, see `pqnet.codecs.layout`.
        metric : array, optional
            Second moments of the inputs for ``metric_blocks(shape)``, see `pqnet.fit.fit_pq`. None is Euclidean.
        warm : Packed, optional
            What a weight like this one was packed to before; codecs that search step by step start from it.
        seed : int
        **options
            ``row_weights``, shape (O,): weight of the error of each output. ``threads``: default all cores; the result
            does not depend on it. `PQ` has more, see `pqnet.fit.fit_pq`.

        Returns
        -------
        Packed

        Raises
        ------
        ConfigError
            A codec that does not fit the shape.
        PQNetError
            Wrong shape or dtype, NaN.
        """
        return self.search(weight, metric, warm, seed, **options).packed


class Packed(ABC):
    """A weight stored as codes. Immutable; shape is that of the weight in filter form (see `codecs.layout`).

    Packed weights are equal if all that a file would hold of them is.
    """

    codec: Codec
    shape: tuple[int, ...]
    codes: Any
    codebook: Any

    def __init_subclass__(cls, codecs: tuple[str, ...] = ()) -> None:
        PACKED.update(dict.fromkeys(codecs or (cls.__name__.removeprefix("Packed").lower(),), cls))

    @abstractmethod
    def decoding(self) -> Decoding:
        """Return what the weight is made of, sharing its arrays."""

    def decode(self) -> np.ndarray:
        """Return the weight as a float32 array of shape ``self.shape``."""
        return self.decoding().decode()

    def decode_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return ``self.decode()[rows]`` for integer ``rows`` of any shape, reading the codes of these rows only."""
        ids = index_array(rows, "rows", below=self.shape[0])
        return self.decoding().decode_rows(ids.reshape(-1)).reshape(*ids.shape, *self.shape[1:])

    def codewords(self) -> "tuple[Packed, np.ndarray | None] | None":
        """Return the weight as a PackedPQ and a factor for each output, to run from; None if it has to be decoded."""
        return None

    def split(self, shapes: list[tuple[int, ...]]) -> "list[Packed]":
        """Return the weights of these shapes that were packed as one vector, by a codec that is ``joint``."""
        raise PQNetError(f"packed weight: expected one that can be split, got {self!r}")

    @property
    def code_nbytes(self) -> int:
        """Bytes of the packed codes."""
        return self._size().codes

    @property
    def codebook_nbytes(self) -> int:
        """Bytes of the codebooks and other side information."""
        return self._size().codebooks

    @property
    def nbytes(self) -> int:
        """Bytes that the packed weight takes, in memory as in the file."""
        return self._size().total

    def _size(self) -> StoredSize:
        sizes = {name: array.nbytes for name, array in self.arrays().items()}
        codes = sum(n for name, n in sizes.items() if name.rpartition(".")[2] in CODE_ARRAYS)
        return StoredSize(codes, sum(sizes.values()) - codes)

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a file stores: arrays by name; those of codes are named ``codes`` or ``gaps``."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, codec: Codec, shape: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> "Packed":
        """Rebuild from `arrays`; anything that does not fit raises FormatError."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Packed):
            return NotImplemented
        if (type(self), self.codec, self.shape) != (type(other), other.codec, other.shape):
            return False
        mine, theirs = self.arrays(), other.arrays()
        return mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)

    __hash__ = None  # type: ignore[assignment]  # of equal weights it would have to be equal: to read all codes

    def __repr__(self) -> str:
        ratio = 4 * prod(self.shape) / max(1, self.nbytes)
        return f"{type(self).__name__}({self.codec}, shape={self.shape}, {self.nbytes} bytes, {ratio:.1f}x smaller)"


def codec_from_attrs(attrs: Mapping[str, Any]) -> Codec:
    """Rebuild a codec from its plain-data form, or raise FormatError."""
    fields = dict(attrs)
    name = fields.pop("codec", None)
    if not isinstance(name, str) or name not in CODECS:
        raise FormatError(f"codec: expected one of {sorted(CODECS)}, got {describe(name)}{did_you_mean(name, CODECS)}")
    parameters = inspect.signature(CODECS[name]).parameters
    known = list(parameters)
    if unknown := [field for field in fields if field not in known]:
        got = f"{describe(unknown[0])}{did_you_mean(unknown[0], known)}"
        raise FormatError(f"codec {name!r}: expected fields among {known}, got {got}")
    required = [field for field in known if parameters[field].default is inspect.Parameter.empty]
    if missing := [field for field in required if field not in fields]:
        raise FormatError(f"codec {name!r}: expected the field {missing[0]!r}, got {sorted(fields)}")
    try:
        return CODECS[name](**fields)
    except PQNetError as reason:
        raise FormatError(f"codec {describe(fields)}: {reason}") from None
