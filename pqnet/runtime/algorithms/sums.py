"""Weights that are sums, have scales of groups of inputs, or single entries: a panel is put together from the parts."""

from collections.abc import Hashable, Iterator
from math import lcm, prod
from typing import Any

import numpy as np

from pqnet._cached import cached_property
from pqnet.codecs import Packed
from pqnet.codecs.decoding import Decoding, Lookup
from pqnet.codecs.layout import block_columns
from pqnet.codecs.packing import unpack_codes
from pqnet.kernels.products import sums as kernel
from pqnet.kernels.products.tile import ROWS
from pqnet.runtime.algorithms.base import Algorithm, Call, Host, codebook_floats, codeword_step
from pqnet.runtime.algorithms.gemm import Cut, cut_layer, decode_cycles, emit_gemm
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer

SHORT = 1 << 16  # columns of a piece that two bytes can count
SCALE, ADD, ENTRY = 4.0, 1.0, 6.0  # cycles of an element of the reduction in a panel; of an entry


class Sums(Algorithm):
    """Products with packed weights that are no codes of one codebook: decode + GEMM."""

    name = "sums"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether the weight is packed, but has no codes that other algorithms read."""
        return isinstance(layer.weight, Packed) and layer.codes is None and not layer.depthwise

    def cost(self, layer: Layer) -> float:
        """Return the cost of a product and of all parts of the weight."""
        return _cut(layer, _parts(layer)).cost

    def steps(self, b: Builder, call: Call) -> None:
        """Append the step."""
        parts = _parts(call.layer)
        cut = _cut(call.layer, parts)
        piece = cut.arguments["piece"]
        weight = _arguments(b, call.layer.name, parts, piece) | {"part": cut.scratch}
        scratch = ROWS * (piece + 16) + 64
        emit_gemm(b, call, kernel.sums, cut, {"weight": weight}, parts.order, self.name, scratch)


class _Parts:
    """The parts of a weight, and the order of a window's elements in which a panel is made of them."""

    def __init__(self, decoding: Decoding) -> None:
        self.shape, self.lookups, self.entries = decoding.shape, decoding.lookups, decoding.entries
        self.inputs, taps = prod(self.shape[1:]), prod(self.shape[2:])
        layouts = {lookup.layout for lookup in self.lookups if lookup.codebook.shape[1] > 1}
        self.layout = "channel" if layouts == {"channel"} and taps > 1 else "spatial"
        self.order = block_columns(self.shape, self.layout)
        # Pieces of the reduction hold whole blocks; those of channels at one tap, in the other order, lie at all taps.
        apart = [taps if self.is_apart(lookup) else 1 for lookup in self.lookups]
        self.unit = lcm(*(lookup.codebook.shape[1] * n for lookup, n in zip(self.lookups, apart, strict=True)))

    def is_apart(self, lookup: Lookup) -> bool:
        """Tell whether the blocks of a lookup do not lie side by side in the order of the panel."""
        return lookup.layout != self.layout and lookup.codebook.shape[1] > 1 and prod(self.shape[2:]) > 1

    @cached_property
    def rank(self) -> np.ndarray:
        """The column of a panel of the whole reduction in which each input of an output is."""
        rank = np.empty(self.inputs, np.int64)
        rank[self.order] = np.arange(self.inputs)
        return rank

    def blocks_and_places(self, lookup: Lookup, piece: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return in which order the blocks of an output are decoded, and the columns in their piece if it is another.

        That of the panel if they lie side by side there, else piece by piece.
        """
        d = lookup.codebook.shape[1]
        columns = self.rank[block_columns(self.shape, lookup.layout)]  # of each element of each block
        first = columns[::d]
        if not self.is_apart(lookup):
            return np.argsort(first), None
        blocks = np.argsort(first // piece, kind="stable")
        return blocks, columns.reshape(-1, d)[blocks].reshape(-1) % piece

    def codes(self, lookup: Lookup, blocks: np.ndarray) -> np.ndarray:
        """Return the codes of all outputs, their blocks in the given order, as bytes."""
        k, d = lookup.codebook.shape
        codes = unpack_codes(lookup.codes, prod(self.shape) // d, k).reshape(self.shape[0], -1)
        return np.ascontiguousarray(codes[:, blocks]).view(np.uint8)

    def runs(self, groups: int, piece: int) -> np.ndarray:
        """Return `kernels.products.sums.SUMMED.runs` of inputs whose scales are one."""
        group = self.order // (self.inputs // groups)
        at = np.arange(self.inputs)
        starts = np.flatnonzero((np.diff(group, prepend=-1) != 0) | (at % piece == 0))
        sizes = np.diff(starts, append=self.inputs)
        of_piece = np.searchsorted(starts, np.arange(0, self.inputs + piece, piece))
        return np.concatenate([of_piece, np.stack([starts % piece, sizes, group[starts]], 1).reshape(-1)])

    def entry_arrays(self, piece: int) -> Iterator[np.ndarray]:
        """Yield starts (as bytes), columns (as bytes) and values of all entries, by output, piece and column."""
        lists = [entries.lists(self.shape) for entries in self.entries]
        rows = np.concatenate([np.repeat(np.arange(self.shape[0]), np.diff(each.starts)) for each in lists])
        at = self.rank[np.concatenate([each.columns for each in lists])]
        values = np.concatenate([each.values for each in lists])
        sorted_ = np.lexsort((at, rows))  # stable: those of one place stay in their order
        rows, at, pieces = rows[sorted_], at[sorted_], -(-self.inputs // piece)
        counts = np.bincount(rows * pieces + at // piece, minlength=self.shape[0] * pieces)
        yield np.concatenate([[0], np.cumsum(counts)]).astype("<u4").view(np.uint8)
        yield (at % piece).astype("<u2" if piece <= SHORT else "<u4").view(np.uint8)
        yield values[sorted_]


def _parts(layer: Layer) -> _Parts:
    assert isinstance(layer.weight, Packed)
    return _Parts(layer.weight.decoding())


def _cut(layer: Layer, parts: _Parts) -> Cut:
    decode = sum(decode_cycles(x.codebook.shape[1]) + (SCALE if x.scales is not None else 0) for x in parts.lookups)
    entries = sum(len(entries.values) for entries in parts.entries)
    decode += ADD * max(len(parts.lookups) - 1, 1) + ENTRY * ROWS * entries / prod(parts.shape)
    return cut_layer(layer, parts.unit, round(decode, 3))


def _arguments(b: Builder, name: Hashable, parts: _Parts, piece: int) -> dict[str, Any]:
    """Return the arguments of `kernels.products.sums.SUMMED`, but for its scratch."""
    lists: dict[str, list[int]] = {}
    for i, lookup in enumerate(parts.lookups):
        for field, value in _lookup_arguments(b, (name, i), parts, lookup, piece).items():
            lists.setdefault(field, []).append(value)
    fields = ("codes", "books", "scales", "zeros", "runs", "places")
    sizes = ("d", "stride", "code_bytes", "code_row", "scale_row")
    spare = kernel.LOOKUPS - len(parts.lookups)
    arguments: dict[str, Any] = {field: lists.get(field, []) + [-1] * spare for field in fields}
    arguments |= {field: lists.get(field, []) + [0] * spare for field in sizes}
    arguments |= {"lookups": len(parts.lookups), "pieces": -(-parts.inputs // piece)}
    arguments |= {"starts": -1, "columns": -1, "values": -1, "column_bytes": 2 if piece <= SHORT else 4}
    if parts.entries:
        made: list[np.ndarray] = []

        def entry_array(i: int) -> np.ndarray:
            made.extend(parts.entry_arrays(piece) if not made else ())
            return made[i]

        arguments["starts"] = b.code_bytes((name, "starts"), lambda: entry_array(0))
        arguments["columns"] = b.code_bytes((name, "columns"), lambda: entry_array(1))
        arguments["values"] = b.constant((name, "values"), lambda: entry_array(2))
    return arguments


def _lookup_arguments(
    b: Builder, key: tuple[Hashable, int], parts: _Parts, lookup: Lookup, piece: int
) -> dict[str, int]:
    """Return those of one lookup."""
    k, d = lookup.codebook.shape
    blocks, places = parts.blocks_and_places(lookup, piece)
    size, scales, zeros = 1 if k <= 256 else 2, lookup.scales, lookup.zeros
    return {
        "codes": b.code_bytes((*key, "codes of a sum"), lambda: parts.codes(lookup, blocks)),
        "books": b.constant((*key, "codebook of a sum"), lambda: codebook_floats(lookup.codebook)),
        "d": d,
        "stride": codeword_step(d),
        "code_bytes": size,
        "code_row": size * parts.inputs // d,
        "scales": -1 if scales is None else b.constant((*key, "scales"), lambda: scales),
        "zeros": -1 if zeros is None else b.constant((*key, "zeros"), lambda: zeros),
        "scale_row": 0 if scales is None or len(scales) == 1 else scales.shape[1],
        "runs": -1 if scales is None else b.table(parts.runs(scales.shape[1], piece)),
        "places": -1 if places is None else b.table(places),
    }
