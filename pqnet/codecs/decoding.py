"""What a packed weight is made of, as plain data: lookups in codebooks whose results are added, and single entries.

Every codec describes its weights in these terms, and they are decoded from them here and nowhere else; the engine reads
the same description to multiply by a weight without a dense copy of it.
"""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np

from pqnet._check import error
from pqnet.codecs.gaps import Gaps
from pqnet.codecs.packing import PIECE, unpack_codes, unpack_rows

__all__ = ["Decoding", "Entries", "EntryLists", "Lookup"]

LONG_ROW = 4096  # weights; longer rows are decoded one by one, which is faster than to find the bits of each code


@dataclass(frozen=True, eq=False)
class Lookup:
    """Blocks of d weights, each the codeword that its code names: ``(codebook[code] - zero) * scale``.

    It is computed in float32, in this order.

    Attributes
    ----------
    codes : uint8 ndarray
        The stream of packed codes (`pqnet.codecs.packing`) of O rows of M = inputs / d blocks each, row after row; code
        ``o * M + m`` is that of block m of output o.
    codebook : ndarray, shape (K, d)
        In the dtype it is stored in, float16 or float32.
    layout : {"spatial", "channel"}
        Which weights of an output its blocks are, see `pqnet.codecs.layout`.
    zeros, scales : ndarray, shape (R, G), optional
        Of d = 1 in ``spatial`` layout only; None for zeros that are 0, and scales that are 1. R is 1 or O, G divides
        the inputs: input i of output o, in (C, kh, kw) order, has those of row ``o`` (or 0) and column
        ``i // (inputs // G)``. Zeros are uint8, scales as stored; there are zeros only where there are scales.
    """

    codes: np.ndarray
    codebook: np.ndarray
    layout: str = "spatial"
    zeros: np.ndarray | None = None
    scales: np.ndarray | None = None

    def _write(self, out: np.ndarray, rows: slice | np.ndarray, *, add: bool) -> None:
        """Decode some rows into an array of their shape, or add them to it."""
        k, d = self.codebook.shape
        m = prod(out.shape[1:]) // d
        channels_last = self.layout == "channel" and prod(out.shape[2:]) > 1
        blocks = np.empty((len(out) * m, d), np.float32) if add or channels_last else out.reshape(-1, d)
        few = 4 * len(blocks) < k  # not worth converting the whole codebook
        book = self.codebook if few else self.codebook.astype(np.float32)
        chosen = None if isinstance(rows, slice) else unpack_rows(self.codes, rows, m, k).reshape(-1)
        for start in range(0, len(blocks), PIECE):
            part = blocks[start : start + PIECE]
            if chosen is not None:
                codes = chosen[start : start + PIECE]
            else:
                assert isinstance(rows, slice)
                codes = unpack_codes(self.codes, len(part), k, rows.start * m + start)
            if few:
                part[:] = book[codes]
            else:
                np.take(book, codes, axis=0, out=part, mode="clip")  # codes are below K; other modes copy the result
        if self.scales is not None:
            self._scale(blocks, rows)
        values = blocks.reshape(len(out), *out.shape[1:])
        if channels_last:
            values = np.moveaxis(blocks.reshape(len(out), *out.shape[2:], out.shape[1]), -1, 1)
        if add:
            out += values
        elif channels_last:
            out[:] = values

    def _scale(self, values: np.ndarray, rows: slice | np.ndarray) -> None:
        assert self.scales is not None
        scales, zeros = self.scales, self.zeros
        if scales.size > 1:
            scales, zeros = scales[rows], None if zeros is None else zeros[rows]
        grid = values.reshape(*scales.shape, -1)
        if zeros is not None:
            grid -= zeros[:, :, None].astype(np.float32)
        grid *= scales[:, :, None].astype(np.float32)


class EntryLists(NamedTuple):
    """Entries row by row: those of row o are from ``starts[o]`` up to, not including, ``starts[o + 1]``.

    ``columns`` are the inputs in (C, kh, kw) order and ascend within a row.
    """

    starts: np.ndarray  # int64, (O + 1,)
    columns: np.ndarray  # int32, (N,)
    values: np.ndarray  # float32, (N,)


@dataclass(frozen=True, eq=False)
class Entries:
    """Single weights at their places.

    Attributes
    ----------
    gaps : Gaps
        The places in C order, packed.
    values : ndarray, shape (N,)
        As stored, float16 or float32.
    """

    gaps: Gaps
    values: np.ndarray

    def lists(self, shape: tuple[int, ...]) -> EntryLists:
        """Return the entries of a weight of this shape as lists, 8 bytes an entry."""
        inputs = prod(shape[1:])
        if inputs > np.iinfo(np.int32).max:
            raise error("weight", f"at most {np.iinfo(np.int32).max} inputs of an output", inputs)
        counts, columns = np.zeros(shape[0] + 1, np.int64), np.empty(len(self.values), np.int32)
        for entries, places in self.gaps.pieces():
            rows, columns[entries] = np.divmod(places, inputs)
            first, last = int(rows[0]), int(rows[-1])
            counts[first + 1 : last + 2] += np.bincount(rows - first)
        return EntryLists(np.cumsum(counts), columns, self.values.astype(np.float32))

    def _add(self, out: np.ndarray, rows: np.ndarray) -> None:
        """Add the entries of some rows to these rows."""
        inputs = prod(out.shape[1:])
        which, entries, places = self.gaps.between(rows * inputs, (rows + 1) * inputs)
        out.reshape(-1)[which * inputs + places - rows[which] * inputs] += self.values[entries].astype(np.float32)


@dataclass(frozen=True, eq=False)
class Decoding:
    """A weight: the sum of its lookups, one after the other, then that of its entries, in float32.

    Attributes
    ----------
    shape : tuple of int
        In filter form, (O, inputs...).
    lookups : tuple of Lookup
        May be none: the weight is then 0 but for its entries.
    entries : tuple of Entries
        Mostly none.
    """

    shape: tuple[int, ...]
    lookups: tuple[Lookup, ...]
    entries: tuple[Entries, ...] = ()

    def decode(self) -> np.ndarray:
        """Return the weight, float32 of ``shape``; little memory is used beside the result."""
        out = np.empty(self.shape, np.float32)
        step = max(1, 4 * PIECE // prod(self.shape[1:]))
        for start in range(0, len(out), step):
            part = out[start : start + step]
            self._look_up(part, slice(start, start + len(part)))
        flat = out.reshape(-1)
        for entries in self.entries:
            for numbers, places in entries.gaps.pieces():
                flat[places] += entries.values[numbers].astype(np.float32)
        return out

    def decode_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return ``decode()[rows]`` for valid int64 ``rows``, shape (R,), reading the codes of these rows only."""
        out = np.empty((len(rows), *self.shape[1:]), np.float32)
        inputs = prod(self.shape[1:])
        step = 1 if inputs > LONG_ROW else PIECE // inputs
        for start in range(0, len(out), step):
            part, some = out[start : start + step], rows[start : start + step]
            self._look_up(part, slice(int(some[0]), int(some[0]) + 1) if step == 1 else some)
            for entries in self.entries:
                entries._add(part, some)
        return out

    def _look_up(self, out: np.ndarray, rows: slice | np.ndarray) -> None:
        if not self.lookups:
            out[:] = 0
        for i, lookup in enumerate(self.lookups):
            lookup._write(out, rows, add=i > 0)
