"""Sums of codecs: each stores what those before it left."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pqnet._check import describe, error, integer
from pqnet.codecs.base import PACKED, Codec, Packed, StoredSize, codec_from_attrs
from pqnet.codecs.decoding import Decoding
from pqnet.errors import ConfigError, FormatError, PQNetError

__all__ = ["Additive", "PackedAdditive"]

MAX_PARTS = 16


@dataclass(frozen=True)
class Additive(Codec):
    """A weight as the sum of several packed ones: residual codebooks, or codes with a sparse correction.

    Decoded, the parts are added in float32, one after the other, those of `Sparse` last.

    Parameters
    ----------
    parts : sequence of Codec
        2 to 16, none of them Additive; each is fitted to what those before it left. Plain data (of a recipe) will do.
    refits : int
        Rounds in which every part is fitted again to what all others leave, kept if the error falls.

    Examples
    --------
    >>> import numpy as np, pqnet
    >>> weight = np.random.default_rng(0).standard_t(3, (64, 32)).astype("float32")
    >>> codec = pqnet.Additive([pqnet.PQ(k=64, d=4), pqnet.Sparse(fraction=0.02)])
    >>> one, both = pqnet.PQ(k=64, d=4).fit(weight), codec.fit(weight)
    >>> one.nbytes, both.nbytes
    (896, 1017)
    >>> bool(np.square(weight - both.decode()).sum() < 0.8 * np.square(weight - one.decode()).sum())
    True
    """

    parts: Sequence[Codec]
    refits: int = 4
    name: ClassVar[str] = "additive"

    def __post_init__(self) -> None:
        if not isinstance(self.parts, list | tuple) or not 2 <= len(self.parts) <= MAX_PARTS:
            raise ConfigError(f"Additive.parts: expected 2 to {MAX_PARTS} codecs, got {describe(self.parts)}")
        parts = []
        for part in self.parts:
            try:
                parts.append(codec_from_attrs(part) if isinstance(part, Mapping) else part)
            except FormatError as reason:
                raise ConfigError(f"Additive.parts: {reason}") from None
        for part in parts:
            if not isinstance(part, Codec) or isinstance(part, Additive):
                raise ConfigError(f"Additive.parts: expected codecs that are not Additive, got {describe(part)}")
        object.__setattr__(self, "parts", tuple(parts))
        integer(self.refits, "Additive.refits", 0, 1000)

    def to_attrs(self) -> dict[str, Any]:
        return {"codec": self.name, "parts": [part.to_attrs() for part in self.parts], "refits": self.refits}

    @property
    def blocks(self) -> tuple[int, str]:
        return max((part.blocks for part in self.parts), key=lambda blocks: blocks[0])

    def metric_blocks(self, shape: tuple[int, ...], *, whole: bool = False) -> tuple[int, str]:
        largest = max((part.metric_blocks(shape, whole=whole) for part in self.parts), key=lambda blocks: blocks[0])
        return (largest[0], "spatial") if largest[0] == math.prod(shape[1:]) else largest

    def nbytes(self, shape: tuple[int, ...]) -> StoredSize:
        sizes = [part.nbytes(shape) for part in self.parts]
        return StoredSize(sum(size.codes for size in sizes), sum(size.codebooks for size in sizes))

    def largest(self, shape: tuple[int, ...]) -> "PackedAdditive":
        return PackedAdditive(self, [part.largest(shape) for part in self.parts])

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))

    def check(self, shape: tuple[int, ...]) -> "Additive":
        return Additive([part.check(shape) for part in self.parts], self.refits)


class PackedAdditive(Packed):
    """The sum of packed weights of one shape.

    Parameters
    ----------
    codec : Additive
    parts : sequence of Packed
    """

    codec: Additive

    def __init__(self, codec: Additive, parts: Sequence[Packed]) -> None:
        if not isinstance(codec, Additive) or len(parts) != len(codec.parts):
            raise error("parts", "one packed weight for each part of the codec", f"{len(parts)} of {describe(codec)}")
        self.shape = parts[0].shape
        if any(part.shape != self.shape for part in parts):
            raise error("parts", "weights of one shape", [part.shape for part in parts])
        self.codec = Additive([part.codec for part in parts], codec.refits)
        self.parts = tuple(parts)

    @property
    def codes(self) -> tuple[np.ndarray, ...]:
        """The codes of every part."""
        return tuple(part.codes for part in self.parts)

    @property
    def codebook(self) -> tuple[np.ndarray, ...]:
        """The codebook of every part."""
        return tuple(part.codebook for part in self.parts)

    def decoding(self) -> Decoding:
        parts = [part.decoding() for part in self.parts]
        lookups = tuple(lookup for part in parts for lookup in part.lookups)
        return Decoding(self.shape, lookups, tuple(entries for part in parts for entries in part.entries))

    def arrays(self) -> dict[str, np.ndarray]:
        return {f"{i}.{name}": array for i, part in enumerate(self.parts) for name, array in part.arrays().items()}

    @classmethod
    def from_arrays(cls, codec: Codec, shape: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> "PackedAdditive":
        if not isinstance(codec, Additive):
            raise FormatError(f"packed sum: expected an Additive, got {describe(codec)}")
        found: list[dict[str, np.ndarray]] = [{} for _ in codec.parts]
        for key, array in arrays.items():
            part, _, name = key.partition(".")
            if part not in map(str, range(len(found))):
                raise FormatError(f"packed sum: expected arrays of {len(found)} parts, got {key!r}")
            found[int(part)][name] = array
        parts = []
        for i, (inner, own) in enumerate(zip(codec.parts, found, strict=True)):
            try:
                parts.append(PACKED[inner.name].from_arrays(inner, shape, own))
            except PQNetError as reason:
                raise FormatError(f"part {i}: {reason}") from None
        return cls(codec, parts)
