"""Ascending places of a few entries among many, stored as the gaps between them.

The stream begins with a byte, the bits b of a code. Codes of b bits follow: 2**b - 1 stands for as many places without
an entry, any smaller one for that many places without an entry and then one with.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pqnet._check import describe, error
from pqnet.codecs.packing import PIECE, pack_codes, packed_nbytes, unpack_at, unpack_codes

__all__ = ["Gaps", "most_nbytes"]

MAX_BITS = 16
WIDTHS = range(1, MAX_BITS + 1)
MARKED = 2048  # bits of the stream between two marks


def most_nbytes(count: int, places: int) -> int:
    """Return the most bytes that ``count`` entries can take: those of one large gap before all of them."""
    empty = places - count
    return 1 + min(packed_nbytes(count + empty // ((1 << bits) - 1), 1 << bits) for bits in WIDTHS)


def _escapes(gaps: np.ndarray) -> dict[int, int]:
    """Return how many codes without an entry gaps need, by the bits of a code; without the bits that need none."""
    largest = int(gaps.max(initial=0))
    return {bits: int((gaps // ((1 << bits) - 1)).sum()) for bits in WIDTHS if largest >= (1 << bits) - 1}


class _Piece(NamedTuple):
    """Some codes of a stream: the places that they have reached, one more than its own for an entry's code."""

    reached: np.ndarray
    is_entry: np.ndarray


class Gaps:
    """Packed places.

    So that the places of a row can be read alone, it is marked at regular distances how far the stream has got.

    Parameters
    ----------
    stream : uint8 ndarray, one axis
    count : int
        Number of entries, at least 1.

    Raises
    ------
    PQNetError
        If the stream is not what `Gaps.pack` makes of as many entries.
    """

    def __init__(self, stream: np.ndarray, count: int) -> None:
        if stream.dtype != np.uint8 or stream.ndim != 1:
            raise error("gaps", "a row of bytes", describe(stream))
        bits = int(stream[0]) if len(stream) > 1 else 0
        if bits not in WIDTHS:
            raise error("gaps", f"those of {count} entries", describe(stream))
        self.stream, self.count, self._bits = stream.copy(), count, bits
        self.stream.flags.writeable = False
        marks = [(np.zeros(1, np.int64), np.zeros(1, np.int64))]
        entries, self.last, escapes = 0, -1, dict.fromkeys(WIDTHS, 0)
        self._codes = (len(stream) - 1) * 8 // bits
        for piece in self._pieces():
            places = piece.reached[piece.is_entry] - 1
            if entries + len(places) >= count:  # the last one ends the stream
                places = places[: count - entries]
            gaps = np.diff(places, prepend=self.last) - 1
            for width, number in _escapes(gaps).items():
                escapes[width] += number
            after = slice(MARKED // bits - 1, None, MARKED // bits)
            marks.append((piece.reached[after].copy(), entries + np.cumsum(piece.is_entry)[after]))
            entries += len(places)
            self.last = int(places[-1]) if len(places) else self.last
            if entries == count:
                break
        if entries < count:
            raise error("gaps", f"those of {count} entries", describe(stream))
        self._codes = count + escapes[bits]
        shortest = min(WIDTHS, key=lambda width: width * (count + escapes[width]))
        used = self._codes * bits
        if bits != shortest or len(stream) != 1 + (used + 7) // 8 or (used % 8 and stream[-1] >> used % 8):
            raise error("gaps", "the shortest form", "another")
        reached, before = (np.concatenate(part) for part in zip(*marks, strict=True))
        kept = -(-self._codes // (MARKED // bits))
        self._marks = reached[:kept], before[:kept]

    @classmethod
    def pack(cls, places: np.ndarray) -> "Gaps":
        """Pack ascending places, int64, at least one."""
        gaps = np.diff(places, prepend=-1) - 1
        escapes = _escapes(gaps)
        bits = min(WIDTHS, key=lambda width: width * (len(gaps) + escapes.get(width, 0)))
        escape = (1 << bits) - 1
        ends = np.cumsum(gaps // escape + 1) - 1
        codes = np.full(ends[-1] + 1, escape, np.uint16)
        codes[ends] = gaps % escape
        return cls(np.concatenate([np.array([bits], np.uint8), pack_codes(codes, escape + 1)]), len(places))

    def _pieces(self) -> Iterator[_Piece]:
        escape, place = (1 << self._bits) - 1, 0
        size = PIECE // (MARKED // self._bits) * (MARKED // self._bits)
        for start in range(0, self._codes, size):
            codes = unpack_codes(self.stream[1:], min(size, self._codes - start), escape + 1, start)
            is_entry = codes != escape
            reached = place + np.cumsum(codes.astype(np.int64) + is_entry)
            place = int(reached[-1])
            yield _Piece(reached, is_entry)

    def pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the places of all entries, some at a time, with the numbers of these entries."""
        first = 0
        for piece in self._pieces():
            places = piece.reached[piece.is_entry] - 1
            if len(places):
                yield slice(first, first + len(places)), places
            first += len(places)

    def places(self) -> np.ndarray:
        """Return the place of every entry, int64, shape (count,)."""
        out = np.empty(self.count, np.int64)
        for entries, places in self.pieces():
            out[entries] = places
        return out

    def between(self, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find the entries from place ``starts[i]`` up to, not including, ``ends[i]``, reading little of the stream.

        Returns
        -------
        which, entries, places : integer arrays, shape (N,)
            Of every one found: i, the number of the entry, its place.
        """
        reached, before = self._marks
        step, escape = MARKED // self._bits, (1 << self._bits) - 1
        mark = np.searchsorted(reached, starts, side="right") - 1
        first = mark * step
        last = np.minimum(np.searchsorted(reached, ends, side="left") * step, self._codes)
        counts = np.maximum(last - first, 0)
        skipped = np.cumsum(counts) - counts  # codes of those before
        which = np.repeat(np.arange(len(starts)), counts)
        codes = unpack_at(self.stream[1:], np.arange(len(which)) + (first - skipped)[which], escape + 1)
        is_entry = codes != escape
        places = np.cumsum(np.append(0, codes.astype(np.int64) + is_entry))
        entries = np.cumsum(np.append(0, is_entry))
        places = places[1:] + (reached[mark] - places[skipped])[which] - 1
        entries = entries[1:] + (before[mark] - entries[skipped])[which] - 1
        found = is_entry & (places >= starts[which]) & (places < ends[which])
        return which[found], entries[found], places[found]
