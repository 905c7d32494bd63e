"""Blocks in tiles, sorted so that near ones share a tile: k-means iterations with bounds on what tiles have to see."""

from typing import TYPE_CHECKING

import numpy as np

from pqnet.kernels.fit import kmeans as kernels
from pqnet.kernels.fit import kmeans_rows as rows
from pqnet.kernels.fit.kmeans_search import ALL_GROUP, GROUP, TILE

if TYPE_CHECKING:
    from pqnet.fit.problem import Problem

__all__ = ["Codewords", "Tiles", "group_tiles", "worth_tiles"]

LANES = 16  # codebooks are padded to whole vectors of any width
FAR = np.float32(3.3e38)  # offset of a codeword that pads a codebook: never the nearest
ROUNDING = float(np.finfo(np.float32).eps)
CHUNKS = 64  # partial sums over the blocks are that many
COARSE, AXES = 64, 6  # what blocks are sorted by: a coarse codeword, and sides of it
BOUND_BYTES = 1 << 28  # memory that bounds may take
SETTLED = 0.09  # share of blocks that find another codeword in an iteration, above which bounds do not pay
PAYS, PAUSE = 0.5, 4  # share of the codewords above which bounds do not pay, and iterations until they are tried again


class Codewords:
    """A codebook as the kernels take it: negated, padded, with offsets c' G c / 2 for every group."""

    def __init__(self, codebook: np.ndarray, offset: np.ndarray) -> None:
        k, d = codebook.shape
        self.k, self.padded = k, (k // LANES + 1) * LANES
        self.words = np.zeros((self.padded, d), np.float32)
        np.negative(codebook, out=self.words[:k])
        self.offset = np.full((len(offset), self.padded), FAR, np.float32)
        self.offset[:, :k] = offset
        self.largest = float(np.abs(codebook).max())
        self.largest_offset = np.abs(offset).max(1)

    def interleaved(self) -> np.ndarray:
        """Return the words in the order of `kernels.nearest_in_tiles`."""
        parts = self.words.reshape(-1, ALL_GROUP, self.words.shape[1])
        return np.ascontiguousarray(parts.transpose(0, 2, 1)).reshape(-1)


def aligned(*shape: int) -> np.ndarray:
    """Return a new float32 array that begins on a cache line: vectors that lie across two cost twice."""
    size = int(np.prod(shape))
    memory = np.empty(size + 16, np.float32)
    start = -(memory.ctypes.data // 4) % 16
    return memory[start : start + size].reshape(shape)


def worth_tiles(group: np.ndarray, n_groups: int, tile: int = TILE) -> bool:
    """Return whether tiles of blocks of one group would be at least half full."""
    if n_groups == 1:
        return True
    tiles = (-(-np.bincount(group, minlength=n_groups) // tile)).sum()
    return bool(tiles * tile <= max(2 * len(group), tile))


def group_tiles(group: np.ndarray, n_groups: int, order: np.ndarray, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row of every lane (-1: none) and the group of every tile, blocks of a group in the given order."""
    if n_groups == 1:
        slots = np.full(-(-len(order) // tile) * tile, -1, np.int32)
        slots[: len(order)] = order
        return slots, np.zeros(len(slots) // tile, np.int32)
    counts = np.bincount(group, minlength=n_groups)
    per_group = -(-counts // tile)
    by_group = np.empty_like(order)
    rows.sort_by_key(group, order, np.empty(n_groups, np.int64), by_group)
    start = (np.cumsum(per_group) - per_group) * tile - (np.cumsum(counts) - counts)
    slots = np.full(int(per_group.sum()) * tile, -1, np.int32)
    slots[np.arange(len(group)) + np.repeat(start, counts)] = by_group
    return slots, np.repeat(np.arange(n_groups, dtype=np.int32), per_group)


class Tiles:
    """All blocks of a problem in tiles, with their codes and the sums over codewords."""

    def __init__(self, problem: "Problem", codebook: np.ndarray, *, bounds: bool) -> None:
        self.problem = problem
        n, d = problem.v.shape
        k, m = len(codebook), problem.n_groups
        order = np.arange(n, dtype=np.int32)
        if bounds:
            order = self._near_together(codebook, order)
        self.rows, self.group = group_tiles(problem.group, m, order, TILE)
        tiles = len(self.group)
        self.chunk = -(-tiles // CHUNKS)
        chunks = -(-tiles // self.chunk)
        padded = (k // LANES + 1) * LANES
        self.bounds = bounds and (tiles + chunks * TILE) * padded * 4 <= BOUND_BYTES
        self.x = aligned(tiles * d * TILE)
        # The sums are over v where all blocks share a metric, else over G v.
        own = m == 1 and problem.metric.size
        self.summed = np.empty_like(self.x) if own else np.empty(0, np.float32)
        self.weights = np.empty(len(self.rows), np.float32)
        self.centre, self.radius = np.empty(tiles * d, np.float32), np.empty(tiles, np.float32)
        norm = np.empty(chunks)
        scratch = aligned(chunks, 2, d * TILE), np.empty((chunks, 2, TILE)), np.empty((chunks, TILE), np.uintp)
        out = self.x, self.summed, self.weights, self.centre, self.radius, norm
        blocks = problem.v.reshape(-1), problem.w, self.rows, self.group, problem.metric
        problem.run_chunks(n * d * d, kernels.fill_tiles, *blocks, self.chunk, *scratch, *out)
        self.norm = float(norm.sum())
        if not own:
            self.summed = self.x
        # A segment is what a chunk has of a group.
        new = np.ones(tiles, bool)
        new[1:] = self.group[1:] != self.group[:-1]
        new[:: self.chunk] = True
        self.segment = (np.cumsum(new) - 1).astype(np.int32)
        self.segment_group = self.group[new]
        self.codes = np.full(len(self.rows), -1, np.int32)
        self.sums, self.mass = np.zeros((chunks, k, d)), np.zeros((len(self.segment_group), k))
        self.slack = aligned(tiles if self.bounds else 1, padded)
        self.slack[:, :k], self.slack[:, k:] = 0.0, 1e38
        self.credit, self.nearest = np.zeros(tiles, np.float32), np.zeros(len(self.rows), np.float32)
        kept = padded if self.bounds else 1
        self.scratch = aligned(chunks, LANES + TILE * (1 + kept))
        self.ids = np.empty((chunks, TILE + padded + GROUP), np.int32)
        self.listed, self.moved = np.empty(chunks, np.int64), np.empty(chunks, np.int64)
        self.changes = aligned(d * padded), aligned(m * padded), aligned(padded)
        self.bounded_for: Codewords | None = None  # the codewords that the bounds are about
        self.pause, self.bad, self.settled = 0, 0, False

    def _near_together(self, codebook: np.ndarray, order: np.ndarray) -> np.ndarray:
        problem = self.problem
        axes = np.sort(np.argsort(-problem.variance, kind="stable")[:AXES]).astype(np.uintp)
        coarse = np.ascontiguousarray(codebook[:: -(-len(codebook) // COARSE)])
        codes, keys, out = problem.nearest(coarse), np.empty(len(order), np.int32), np.empty_like(order)
        blocks, words = (problem.v.reshape(-1), coarse.shape[1], codes), coarse.reshape(-1)
        problem.run_chunks(order.size * 8, rows.number_cells, *blocks, words, axes, problem.chunk, keys)
        rows.sort_by_key(keys, order, np.empty(len(coarse) << len(axes), np.int64), out)
        return out

    def step(self, codebook: np.ndarray) -> None:
        """E-step: find the codes, and the sums over codewords that they make."""
        problem, now = self.problem, self.problem.codewords(codebook)
        bounded = self.bounds and self.settled and self.pause == 0
        self.pause = max(self.pause - 1, 0)
        before = now if self.bounded_for is None or not bounded else self.bounded_for
        change, offset_change, size = self.changes
        rows.codeword_changes(now.words, now.offset, before.words, before.offset, change, offset_change, size)
        margin = problem.rounding(before, now)
        problem.run_chunks(
            problem.v.size * now.padded,
            kernels.step,
            self.x,
            self.summed,
            self.weights,
            self.group,
            self.segment,
            self.centre,
            self.radius,
            now.words.reshape(-1),
            now.offset,
            change,
            offset_change,
            size,
            margin.astype(np.float32),
            int(bounded),
            self.chunk,
            self.scratch,
            self.ids,
            self.slack.reshape(-1),
            self.credit,
            self.nearest,
            self.codes,
            self.sums,
            self.mass,
            self.listed,
            self.moved,
        )
        if not problem.even_weights:
            self.recount()
        self.settled |= self.moved.sum() < SETTLED * len(self.codes)
        if bounded:
            first, self.bounded_for = self.bounded_for is None, now
            share = self.listed.sum() / (now.k * len(self.group))
            self.bad = self.bad + 1 if share > PAYS and not first else 0
            if self.bad == 2:
                self.bad, self.pause = 0, PAUSE

    def recount(self) -> None:
        """Make the sums anew from the codes."""
        tiles = self.summed, self.weights, self.segment, self.codes
        self.problem.run_chunks(self.x.size, kernels.sum_tiles, *tiles, self.chunk, self.sums, self.mass)

    def totals(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of w v (w G v with a metric a group), (K, D), and the weight of every (group, codeword)."""
        share = np.zeros((self.problem.n_groups, self.mass.shape[1]))
        if len(share) == 1:
            share[0] = self.mass.sum(0)
        else:
            np.add.at(share, self.segment_group, self.mass)
        return self.sums.sum(0), share

    def to_rows(self) -> np.ndarray:
        """Return the codes in the order of the blocks."""
        used = self.rows >= 0
        out = np.empty(len(self.problem.v), np.int32)
        out[self.rows[used]] = self.codes[used]
        return out

    def take(self, codes: np.ndarray) -> None:
        """Set other codes, given in the order of the blocks."""
        first = np.repeat(self.rows[::TILE], TILE)
        self.codes[:] = codes[np.where(self.rows >= 0, self.rows, first)]
        self.recount()
