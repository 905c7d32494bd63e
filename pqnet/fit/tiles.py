"""Blocks in tiles, sorted so that near ones share a tile: k-means iterations with bounds on what tiles have to see."""

from typing import TYPE_CHECKING

import numpy as np

from pqnet.kernels.fit import kmeans as kernels
from pqnet.kernels.fit import kmeans_rows as rows
from pqnet.kernels.fit.kmeans_arguments import Book, Bounds, Sums, TiledBlocks, Tiling
from pqnet.kernels.fit.kmeans_search import ALL_GROUP, GROUP, TILE
from pqnet.kernels.simd import WIDTH

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
    """A codebook (K, D), float64, as the kernels take it: negated, padded, with offsets c' G c / 2 for every group."""

    def __init__(self, codebook: np.ndarray, offset: np.ndarray, doubt: np.ndarray | None = None) -> None:
        k, d = codebook.shape
        self.exact, self.k, self.padded = codebook, k, (k // LANES + 1) * LANES
        self.words = np.zeros((self.padded, d), np.float32)
        self.words[:k] = -codebook
        offsets = np.full((len(offset), self.padded), FAR, np.float32)
        offsets[:, :k] = offset
        self.largest = float(np.abs(codebook).max())
        self.largest_offset = np.abs(offset).max(1)
        parts = self.words.reshape(-1, ALL_GROUP, d)
        self.book = Book(
            exact=codebook,
            words=self.words.reshape(-1),
            interleaved=np.ascontiguousarray(parts.transpose(0, 2, 1)).reshape(-1),
            by_coordinate=np.ascontiguousarray(self.words.T).reshape(-1),
            offset=offsets,
            doubt=np.zeros((len(offset), 3), np.float32) if doubt is None else doubt,
        )


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


def group_tiles(group: np.ndarray, n_groups: int, order: np.ndarray, tile: int) -> Tiling:
    """Return tiles of blocks of one group each, those of a group in the given order."""
    if n_groups == 1:
        slots = np.full(-(-len(order) // tile) * tile, -1, np.int32)
        slots[: len(order)] = order
        return Tiling(slots, np.zeros(len(slots) // tile, np.int32))
    counts = np.bincount(group, minlength=n_groups)
    per_group = -(-counts // tile)
    by_group = np.empty_like(order)
    rows.sort_by_key(group, order, np.empty(n_groups, np.int64), by_group)
    start = (np.cumsum(per_group) - per_group) * tile - (np.cumsum(counts) - counts)
    slots = np.full(int(per_group.sum()) * tile, -1, np.int32)
    slots[np.arange(len(group)) + np.repeat(start, counts)] = by_group
    return Tiling(slots, np.repeat(np.arange(n_groups, dtype=np.int32), per_group))


class Tiles:
    """All blocks of a problem in tiles, with their codes and the sums over codewords."""

    def __init__(self, problem: "Problem", codebook: np.ndarray, *, bounds: bool) -> None:
        self.problem = problem
        n, d = problem.v.shape
        k, m = len(codebook), problem.n_groups
        order = np.arange(n, dtype=np.int32)
        if bounds:
            order = self._near_together(codebook, order)
        self.tiling = group_tiles(problem.group, m, order, TILE)
        tiles, lanes = len(self.tiling.group), len(self.tiling.rows)
        self.chunk = -(-tiles // CHUNKS)
        chunks = -(-tiles // self.chunk)
        padded = (k // LANES + 1) * LANES
        self.with_bounds = bounds and (tiles + chunks * TILE) * padded * 4 <= BOUND_BYTES
        self.scratch = problem.scratch(chunks, TILE, padded)
        self._fill(tiles, chunks)
        # A segment is what a chunk has of a group.
        new = np.ones(tiles, bool)
        new[1:] = self.tiling.group[1:] != self.tiling.group[:-1]
        new[:: self.chunk] = True
        self.segment_group = self.tiling.group[new]
        self.found = Sums(
            codes=np.full(lanes, -1, np.int32),
            sums=np.zeros((chunks, k, d)),
            mass=np.zeros((len(self.segment_group), k)),
            segment=(np.cumsum(new) - 1).astype(np.int32),
            listed=np.empty(chunks, np.int64),
            moved=np.empty(chunks, np.int64),
        )
        slack = aligned(tiles if self.with_bounds else 1, padded)
        slack[:, :k], slack[:, k:] = 0.0, 1e38
        self.bounds = Bounds(
            used=0,
            change=aligned(d * padded),
            offset_change=aligned(m * padded),
            change_size=aligned(padded),
            margin=np.empty(m, np.float32),
            slack=slack.reshape(-1),
            credit=np.zeros(tiles, np.float32),
            nearest=np.zeros(lanes, np.float32),
        )
        self.kept = aligned(chunks, LANES + TILE * (padded if self.with_bounds else 1))
        self.ids = np.empty((chunks, padded + GROUP + WIDTH), np.int32)
        self.bounded_for: Codewords | None = None  # the codewords that the bounds are about
        self.pause, self.bad, self.settled = 0, 0, False

    def _fill(self, tiles: int, chunks: int) -> None:
        """Copy the blocks to the tiles."""
        problem, lanes = self.problem, len(self.tiling.rows)
        n, d = problem.v.shape
        x = aligned(tiles * d * TILE)
        # The sums are over v where all blocks share a metric, else over G v.
        own = problem.n_groups == 1 and problem.metric.size
        tiled = TiledBlocks(
            x=x,
            summed=np.empty_like(x) if own else np.empty(0, np.float32),
            weights=np.empty(lanes, np.float32),
            size=np.empty(lanes, np.float32),
            norm=np.empty(lanes, np.float32),
            centre=np.empty(tiles * d, np.float32),
            radius=np.empty(tiles, np.float32),
        )
        norm, blocks = np.empty(chunks), (problem.blocks, problem.w, self.tiling)
        memory = self.scratch, np.empty((chunks, 2, TILE))
        problem.run_chunks(n * d * d, kernels.fill_tiles, *blocks, self.chunk, *memory, tiled, norm)
        self.norm = float(norm.sum())
        self.tiled = tiled if own else tiled._replace(summed=x)

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
        bounded = self.with_bounds and self.settled and self.pause == 0
        self.pause = max(self.pause - 1, 0)
        before = now if self.bounded_for is None or not bounded else self.bounded_for
        bounds = self.bounds._replace(used=int(bounded), margin=problem.rounding(before, now).astype(np.float32))
        pair = now.words, now.book.offset, before.words, before.book.offset
        rows.codeword_changes(*pair, bounds.change, bounds.offset_change, bounds.change_size)
        blocks, memory = (problem.blocks, self.tiling, self.tiled), (self.scratch, self.ids, self.kept)
        work = problem.v.size * now.padded
        problem.run_chunks(work, kernels.step, *blocks, now.book, bounds, self.chunk, *memory, self.found)
        if not problem.even_weights:
            self.recount()
        self.settled |= self.found.moved.sum() < SETTLED * len(self.found.codes)
        if bounded:
            first, self.bounded_for = self.bounded_for is None, now
            share = self.found.listed.sum() / (now.k * len(self.tiling.group))
            self.bad = self.bad + 1 if share > PAYS and not first else 0
            if self.bad == 2:
                self.bad, self.pause = 0, PAUSE

    def recount(self) -> None:
        """Make the sums anew from the codes."""
        self.problem.run_chunks(self.tiled.x.size, kernels.sum_tiles, self.tiled, self.chunk, self.found)

    def totals(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of w v (w G v with a metric a group), (K, D), and the weight of every (group, codeword)."""
        mass = self.found.mass
        share = np.zeros((self.problem.n_groups, mass.shape[1]))
        if len(share) == 1:
            share[0] = mass.sum(0)
        else:
            np.add.at(share, self.segment_group, mass)
        return self.found.sums.sum(0), share

    def to_rows(self) -> np.ndarray:
        """Return the codes in the order of the blocks."""
        rows = self.tiling.rows
        used = rows >= 0
        out = np.empty(len(self.problem.v), np.int32)
        out[rows[used]] = self.found.codes[used]
        return out

    def take(self, codes: np.ndarray) -> None:
        """Set other codes, given in the order of the blocks."""
        rows = self.tiling.rows
        first = np.repeat(rows[::TILE], TILE)
        self.found.codes[:] = codes[np.where(rows >= 0, rows, first)]
        self.recount()
