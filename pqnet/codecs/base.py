"""What every codec and every packed weight offers, and the registry through which files and fitting find them."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from pqnet.errors import FormatError, PQNetError

__all__ = ["CODECS", "FITTERS", "PACKED", "Codec", "Fit", "Packed", "codec_from_attrs"]

CODECS: dict[str, type["Codec"]] = {}
PACKED: dict[str, type["Packed"]] = {}
FITTERS: dict[str, Callable[..., "Fit"]] = {}  # filled by pqnet.fit: how codes are found is not a codec's concern


class Fit(NamedTuple):
    """A packed weight and the codebook updates it took to find it."""

    packed: "Packed"
    n_iter: int


class Codec(ABC):
    """A way to store a weight in few bits. Subclasses are frozen dataclasses that check themselves."""

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            CODECS[cls.name] = cls

    @abstractmethod
    def to_attrs(self) -> dict[str, Any]:
        """Return the codec as plain data: ``{"codec": name, ...}``; `codec_from_attrs` is the inverse."""

    @abstractmethod
    def check(self, shape: tuple[int, ...]) -> Self:
        """Return the codec as it applies to a weight of this shape (K clamped), or raise ConfigError."""

    @property
    @abstractmethod
    def blocks(self) -> tuple[int, str]:
        """Block size and layout: the pieces of a filter's inputs that the metric of the search is made of."""

    def metric_blocks(self, shape: tuple[int, ...], *, whole: bool = False) -> tuple[int, str]:
        """Return block size and layout of the metric that the fit of a weight of this shape makes use of.

        With ``whole``, if there is the second moment of all inputs of a filter to take from.
        """
        return self.blocks

    def fit(
        self,
        weight: Any,
        metric: Any = None,
        warm: "Packed | None" = None,
        seed: int = 0,
        **options: Any,
    ) -> "Packed":
        """Find the codes of a weight; see `pqnet.fit.fit_pq` for the arguments of the PQ codec."""
        return FITTERS[self.name](self, weight, metric=metric, warm=warm, seed=seed, **options).packed


class Packed(ABC):
    """A weight stored as codes. Immutable; shape is that of the weight in filter form (see `codecs.layout`)."""

    codec: Codec
    shape: tuple[int, ...]
    codes: Any
    codebook: Any

    def __init_subclass__(cls, codecs: tuple[str, ...] = ()) -> None:
        PACKED.update(dict.fromkeys(codecs or (cls.__name__.removeprefix("Packed").lower(),), cls))

    @abstractmethod
    def decode(self) -> np.ndarray:
        """Return the weight as a float32 array of shape ``self.shape``."""

    @abstractmethod
    def decode_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return ``self.decode()[rows]`` for integer ``rows`` of any shape, decoding these rows only."""

    def codewords(self) -> "tuple[Packed, np.ndarray | None] | None":
        """Return the weight as a PackedPQ and a factor for each output, to run from; None if it has to be decoded."""
        return None

    @property
    @abstractmethod
    def code_nbytes(self) -> int:
        """Bytes of the packed codes."""

    @property
    @abstractmethod
    def codebook_nbytes(self) -> int:
        """Bytes of the codebooks and other side information."""

    @property
    def nbytes(self) -> int:
        """Bytes that the packed weight takes, in memory as in the file."""
        return self.code_nbytes + self.codebook_nbytes

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a file stores: arrays by name."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, codec: Codec, shape: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> "Packed":
        """Rebuild from `arrays`; anything that does not fit raises FormatError."""


def codec_from_attrs(attrs: Mapping[str, Any]) -> Codec:
    """Rebuild a codec from its plain-data form, or raise FormatError."""
    fields = dict(attrs)
    name = fields.pop("codec", None)
    if not isinstance(name, str) or name not in CODECS:
        raise FormatError(f"codec: expected one of {sorted(CODECS)}, got {name!r}")
    parameters = inspect.signature(CODECS[name]).parameters
    known = list(parameters)
    if unknown := [field for field in fields if field not in known]:
        raise FormatError(f"codec {name!r}: expected fields among {known}, got {unknown[0]!r}")
    required = [field for field in known if parameters[field].default is inspect.Parameter.empty]
    if missing := [field for field in required if field not in fields]:
        raise FormatError(f"codec {name!r}: expected the field {missing[0]!r}, got {sorted(fields)}")
    try:
        return CODECS[name](**fields)
    except PQNetError as reason:
        raise FormatError(f"codec {attrs!r}: {reason}") from None
