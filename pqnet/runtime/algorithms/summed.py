"""Weights as kernels put them together from their codes, panel by panel: `kernels.products.sums.SUMMED`."""

from collections.abc import Hashable, Iterator
from math import lcm, prod
from typing import Any, NamedTuple

import numpy as np

from pqnet._cached import cached_property
from pqnet.codecs.decoding import Lookup
from pqnet.codecs.layout import block_columns
from pqnet.codecs.packing import unpack_codes
from pqnet.kernels.products import sums as kernel
from pqnet.runtime.algorithms.base import codebook_arguments
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer
from pqnet.runtime.taps import Selection

__all__ = ["UNUSED", "SummedWeight", "summed_arguments"]

SHORT = 1 << 16  # columns of a piece that two bytes can count
PLACES = ("codes", "books", "scales", "zeros", "runs", "firsts", "sources")  # of a lookup; -1: there are none
SIZES = ("d", "stride", "code_bytes", "blocks", "scale_row")


class Blocks(NamedTuple):
    """Which blocks of an output are decoded, piece by piece of the reduction.

    Where each piece begins among them, and which number of its piece's blocks each column of a panel is; None if they
    lie side by side in the panel.
    """

    numbers: np.ndarray
    firsts: np.ndarray | None
    sources: np.ndarray | None


class SummedWeight:
    """The parts of a packed weight, or of some of its inputs, and the order in which a panel has these inputs."""

    def __init__(self, layer: Layer) -> None:
        weight = layer.weight
        assert not isinstance(weight, np.ndarray)
        chosen = weight if isinstance(weight, Selection) else Selection.of(weight)
        decoding = chosen.weight.decoding()
        self.whole, self.lookups, self.entries = decoding.shape, decoding.lookups, decoding.entries
        self.inputs = prod(chosen.shape[1:])
        layouts = {lookup.layout for lookup in self.lookups if lookup.codebook.shape[1] > 1}
        self.layout = "channel" if layouts == {"channel"} and prod(chosen.shape[2:]) > 1 else "spatial"
        self.order = block_columns(chosen.shape, self.layout)
        self.columns = chosen.inputs[self.order]  # of a panel: which inputs of the whole weight they are
        self.unit = lcm(*map(self._unit, self.lookups))

    @cached_property
    def rank(self) -> np.ndarray:
        """The column of a panel of the whole reduction in which each input of the whole weight is; -1 if in none."""
        rank = np.full(prod(self.whole[1:]), -1)
        rank[self.columns] = np.arange(self.inputs)
        return rank

    def _unit(self, lookup: Lookup) -> int:
        """Return what pieces of the reduction are best multiples of, such that few blocks lie in two of them."""
        d, taps = int(lookup.codebook.shape[1]), prod(self.whole[2:])
        if self.blocks(lookup, self.inputs).sources is None:
            return d
        if self.inputs < len(self.rank):
            return 1
        # The taps of a channel lie side by side, in some order: blocks of channels at one tap lie at all taps of these.
        return d * taps if lookup.layout == "channel" else lcm(d, taps)

    def blocks(self, lookup: Lookup, piece: int) -> Blocks:
        """Return which blocks are decoded for the pieces of a panel."""
        d = lookup.codebook.shape[1]
        columns = self.rank[block_columns(self.whole, lookup.layout)].reshape(-1, d)
        chosen = np.flatnonzero((columns >= 0).any(1))
        chosen = chosen[np.argsort(np.where(columns[chosen] < 0, self.inputs, columns[chosen]).min(1))]
        columns = columns[chosen].reshape(-1)
        if np.array_equal(columns, np.arange(self.inputs)):
            return Blocks(chosen, None, None)
        at = np.flatnonzero(columns >= 0)
        columns, block, element = columns[at], at // d, at % d
        # A block that lies in several pieces is decoded for each.
        keys, inverse = np.unique(columns // piece * len(chosen) + block, return_inverse=True)
        firsts = np.searchsorted(keys, np.arange(-(-self.inputs // piece) + 1) * len(chosen))
        sources = np.empty(self.inputs, np.int64)
        sources[columns] = (inverse.reshape(-1) - firsts[columns // piece]) * d + element
        return Blocks(chosen[keys % len(chosen)], firsts, sources)

    def codes(self, lookup: Lookup, blocks: np.ndarray) -> np.ndarray:
        """Return the codes of these blocks of all outputs, as bytes."""
        k, d = lookup.codebook.shape
        codes = unpack_codes(lookup.codes, prod(self.whole) // d, k).reshape(self.whole[0], -1)
        return np.ascontiguousarray(codes[:, blocks]).view(np.uint8)

    def runs(self, groups: int, piece: int) -> np.ndarray:
        """Return `kernels.products.sums.SUMMED.runs` of inputs whose scales are one."""
        group = self.columns // (len(self.rank) // groups)
        at = np.arange(self.inputs)
        starts = np.flatnonzero((np.diff(group, prepend=-1) != 0) | (at % piece == 0))
        sizes = np.diff(starts, append=self.inputs)
        of_piece = np.searchsorted(starts, np.arange(0, self.inputs + piece, piece))
        return np.concatenate([of_piece, np.stack([starts % piece, sizes, group[starts]], 1).reshape(-1)])

    def entry_arrays(self, piece: int) -> Iterator[np.ndarray]:
        """Yield starts (as bytes), columns (as bytes) and values of all entries, by output, piece and column."""
        lists = [entries.lists(self.whole) for entries in self.entries]
        rows = np.concatenate([np.repeat(np.arange(self.whole[0]), np.diff(each.starts)) for each in lists])
        at = self.rank[np.concatenate([each.columns for each in lists])]
        values = np.concatenate([each.values for each in lists])
        sorted_ = np.lexsort((at, rows))  # stable: those of one place stay in their order
        sorted_ = sorted_[at[sorted_] >= 0]
        rows, at, pieces = rows[sorted_], at[sorted_], -(-self.inputs // piece)
        counts = np.bincount(rows * pieces + at // piece, minlength=self.whole[0] * pieces)
        yield np.concatenate([[0], np.cumsum(counts)]).astype("<u4").view(np.uint8)
        yield (at % piece).astype("<u2" if piece <= SHORT else "<u4").view(np.uint8)
        yield values[sorted_]


# The arguments of no weight, but for its scratch.
UNUSED: dict[str, Any] = {
    "lookups": 0,
    **{name: [-1] * kernel.LOOKUPS for name in PLACES},
    **{name: [0] * kernel.LOOKUPS for name in SIZES},
    **dict.fromkeys(("starts", "columns", "values"), -1),
    "column_bytes": 0,
    "pieces": 0,
    "part": 0,
    "part_step": 0,
}


def summed_arguments(
    b: Builder, name: Hashable, weight: SummedWeight, piece: int, rows: int, part: int
) -> tuple[dict[str, Any], int]:
    """Return the arguments of `kernels.products.sums.SUMMED`, and the floats of scratch taken from ``part`` on.

    Panels have so many rows, and ``piece`` columns at most.
    """
    key, blocks = (name, piece), [weight.blocks(lookup, piece) for lookup in weight.lookups]
    both = enumerate(zip(weight.lookups, blocks, strict=True))
    lookups = [_lookup_arguments(b, (*key, i), weight, lookup, own, piece) for i, (lookup, own) in both]
    spare = kernel.LOOKUPS - len(lookups)
    arguments = {f: [each[f] for each in lookups] + UNUSED[f][:spare] for f in (*PLACES, *SIZES)}
    step = max((_widest(own, each["d"], piece) for own, each in zip(blocks, lookups, strict=True)), default=0) + 16
    arguments |= {"lookups": len(lookups), "pieces": -(-weight.inputs // piece), "part": part, "part_step": step}
    arguments |= {"starts": -1, "columns": -1, "values": -1, "column_bytes": 2 if piece <= SHORT else 4}
    if weight.entries:
        made: list[np.ndarray] = []

        def entry_array(i: int) -> np.ndarray:
            made.extend(weight.entry_arrays(piece) if not made else ())
            return made[i]

        arguments["starts"] = b.code_bytes((*key, "starts"), lambda: entry_array(0))
        arguments["columns"] = b.code_bytes((*key, "columns"), lambda: entry_array(1))
        arguments["values"] = b.constant((*key, "values"), lambda: entry_array(2))
    return arguments, rows * step + 64


def _widest(blocks: Blocks, d: int, piece: int) -> int:
    """Return how many numbers the blocks of a piece are at most."""
    return piece if blocks.firsts is None else d * int(np.diff(blocks.firsts).max())


def _lookup_arguments(
    b: Builder, key: tuple[Hashable, ...], weight: SummedWeight, lookup: Lookup, blocks: Blocks, piece: int
) -> dict[str, int]:
    """Return those of one lookup."""
    k, d = lookup.codebook.shape
    scales, zeros = lookup.scales, lookup.zeros
    book, stride = codebook_arguments(b, key, lookup.codebook)
    return {
        "codes": b.code_bytes((*key, "codes of a sum"), lambda: weight.codes(lookup, blocks.numbers)),
        "books": book,
        "d": d,
        "stride": stride,
        "code_bytes": 1 if k <= 256 else 2,
        "blocks": len(blocks.numbers),
        "scales": -1 if scales is None else b.constant((*key, "scales"), lambda: scales),
        "zeros": -1 if zeros is None else b.constant((*key, "zeros"), lambda: zeros),
        "scale_row": 0 if scales is None or len(scales) == 1 else scales.shape[1],
        "runs": -1 if scales is None else b.table(weight.runs(scales.shape[1], piece)),
        "firsts": -1 if blocks.firsts is None else b.table(blocks.firsts),
        "sources": -1 if blocks.sources is None else b.table(blocks.sources),
    }
