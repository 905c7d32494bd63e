"""What k-means is asked: blocks, weights and metric, checked, and what all of its steps need of them."""

import math
from typing import Any

import numpy as np

from pqnet import _check
from pqnet._cached import cached_property
from pqnet._threads import default_threads
from pqnet.errors import PQNetError
from pqnet.fit.integers import as_integers
from pqnet.fit.parallel import run_chunks
from pqnet.fit.tiles import ROUNDING, Codewords, aligned, group_tiles, worth_tiles
from pqnet.kernels.fit import kmeans as kernels
from pqnet.kernels.fit import kmeans_integers as integers
from pqnet.kernels.fit import kmeans_rows as rows
from pqnet.kernels.fit.kmeans_arguments import Blocks, IntegerBook, Scratch, Tiling
from pqnet.kernels.fit.kmeans_search import ALL_GROUP, ALL_TILE
from pqnet.kernels.fit.settle import TOLERANCE
from pqnet.kernels.simd import WIDTH

__all__ = ["Problem", "Rows"]

LARGEST = 1e37  # of half distances: far enough from the end of float32
SMALL = 1e-20  # of half distances, below which all is scaled up: far enough from the other end
ANY_SHARE = 1e30  # of a squared length: float32 may be wrong about any half distance
SERIAL_WORK = 2_000_000  # multiplications below which waking other threads costs more than it saves
INTEGER_WORK = 50_000_000  # multiplications below which rounding codewords costs more than it saves
SAMPLE = 1 << 11  # blocks that show whether all lie far from zero


class Problem:
    """Checked blocks with their weights and metric."""

    def __init__(
        self, blocks: Any, weights: Any, metric: Any, groups: Any, threads: int | None, *, sample: bool = False
    ) -> None:
        self.threads = default_threads(threads)
        self.given = self.v = _blocks(blocks)
        n, d = self.v.shape
        self.sampled = sample and n > 4 * SAMPLE  # `nearest` then looks at the others
        self.chunk = max(1024, -(-n // 256))
        self.n_chunks = -(-n // self.chunk)
        mean, self.variance, largest = self._survey(
            np.ascontiguousarray(self.v[:: n // SAMPLE]) if self.sampled else self.v
        )
        self._take_metric(metric, groups)
        # Distances do not change when all is moved, but float32 loses them if blocks lie far from zero. The shift is
        # in float32, so that differences to blocks of about its size are exact.
        far = bool(4 * self.variance.sum() < mean @ mean < np.inf)
        self.shift = mean.astype(np.float32).astype(np.float64) if far else np.zeros(d)
        if far:
            largest = max(float(np.abs(self.v - self.shift).max()), 1e-300)
        self.unit = self._unit(largest)
        if far or self.unit != 1.0:
            self.v = self.inside(self.given).astype(np.float32)
            largest *= self.unit
        self.blocks = Blocks(self.v.reshape(-1), self.given, self.shift, self.unit, self.metric)
        self.even_weights = True
        if weights is not None:
            self.w = _check.float_array(weights, "weights", shape=(n,))
            if self.w.min() < 0 or self.w.max() <= 0:
                raise _check.error("weights", "non-negative numbers, not all zero", f"minimum {self.w.min()}")
            # Whether sums of weights are exact in float64, so that what leaves a sum leaves nothing behind.
            self.even_weights = n * float(self.w.max()) < 2.0**29 * float(self.w[self.w > 0].min())
        self._take_largest(largest)

    def inside(self, given: np.ndarray) -> np.ndarray:
        """Return blocks or codewords as distances are computed from them, float64."""
        moved: np.ndarray = (given - self.shift) * self.unit
        return moved

    def outside(self, words: np.ndarray) -> np.ndarray:
        """Return codewords as they are given back, float32; the inverse of `inside`, rounded."""
        return (words / self.unit + self.shift).astype(np.float32)

    def _unit(self, largest: float) -> float:
        """Return a power of two times which half distances are in the range of float32."""
        product = float(self.spread.max()) * largest**2
        return float(np.exp2(-np.rint(np.log2(product) / 2))) if 0 < product < SMALL else 1.0

    def _take_largest(self, largest: float) -> None:
        if not np.isfinite(largest):
            _check.float_array(self.v, "blocks")  # raises
        # At most this much times the largest number of a codeword is y . c of any block, for every group.
        self.steepest = self.spread * largest
        self.check_range("blocks", float(self.steepest.max()) * largest)

    def _survey(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Return means and variances of the coordinates and the largest magnitude, NaN where one is."""
        n, d = v.shape
        period = 16 * d
        chunk = max(64, -(-n // (16 * 64)))
        shape = (-(-n // (16 * chunk)), period)
        sums, squares, largest = np.empty(shape), np.empty(shape), np.empty(shape, np.float32)
        scratch = aligned(shape[0], 2 * period)
        self.run_chunks(4 * v.size, rows.survey, v.reshape(-1), period, chunk, scratch, sums, squares, largest)
        mean, square = (a.reshape(-1, d).sum(0) / n for a in (sums, squares))
        with np.errstate(over="ignore", invalid="ignore"):  # numbers out of range, which check_range tells
            variance = np.maximum(square - mean * mean, 0.0)
        return mean, variance, float(largest.max())

    def _take_metric(self, metric: Any, groups: Any) -> None:
        n, d = self.v.shape
        self.n_groups, self.group = 1, np.zeros(1, np.int32)
        if metric is None:
            if groups is not None:
                raise _check.error("groups", "None when metric is None", "an array", "pass metric of shape (M, D, D)")
            self.metric = np.empty((0, d, d), np.float32)
            self.metric64 = np.eye(d).reshape(1, d * d)
            self.spread, self.rows_of_metric, self.least_eigenvalue = np.array([float(d)]), np.ones(1), np.ones(1)
            return
        metric = _check.float_array(metric, "metric", ndim=(2, 3))
        if metric.shape[-2:] != (d, d):
            raise _check.error("metric", f"shape ({d}, {d}) or (M, {d}, {d})", f"shape {metric.shape}")
        if (metric.ndim == 3) != (groups is not None):
            raise _check.error(
                "groups",
                "one entry a block exactly when metric has shape (M, D, D)",
                f"metric of shape {metric.shape} and groups {'given' if groups is not None else 'None'}",
            )
        self.least_eigenvalue = _check_metric(metric).reshape(-1)
        self.metric = metric.reshape(-1, d, d)
        by_row = np.abs(self.metric).sum(2, dtype=np.float64)
        self.spread, self.rows_of_metric = by_row.sum(1), by_row.max(1)
        self.metric64 = self.metric.reshape(-1, d * d).astype(np.float64)
        self.n_groups = len(self.metric)
        if groups is not None:
            self.group = _check.index_array(groups, "groups", below=self.n_groups, shape=(n,)).astype(np.int32)

    def check_range(self, name: str, largest: float) -> None:
        """Raise unless distances stay finite in float32: the kernel that compares them relies on it."""
        if not largest <= LARGEST:
            raise _check.error(
                name, f"numbers whose products under the metric stay below {LARGEST:g}", f"{largest:.3g}", "scale them"
            )

    def run_chunks(self, work: int, kernel: Any, *arguments: Any) -> None:
        """Run the chunks of a kernel on the threads that ``work`` multiplications are worth."""
        run_chunks(self.threads if work > SERIAL_WORK else 1, kernel, *arguments)

    @cached_property
    def w(self) -> np.ndarray:
        """Return the weights."""
        return np.ones(len(self.v), np.float32)  # unless they were given

    @property
    def group_of_block(self) -> np.ndarray:
        """Return the group of every block."""
        return self.group if len(self.group) == len(self.v) else np.zeros(len(self.v), np.int32)

    def codewords(self, codebook: np.ndarray) -> Codewords:
        """Return the codebook with c' G_m c / 2 for every group and codeword."""
        c = codebook.astype(np.float64)
        d = c.shape[1]
        if self.n_groups == 1:
            offset = 0.5 * ((c @ self.metric64.reshape(d, d)) * c).sum(1)[None]
        else:
            offset = 0.5 * (self.metric64 @ (c[:, :, None] * c[:, None, :]).reshape(len(c), d * d).T)
        steepest = float(self.steepest.max())
        self.check_range("codebook", max(float(np.abs(offset).max()), steepest * float(np.abs(c).max())))
        return Codewords(c, offset.astype(np.float32), self._doubt(c))

    @cached_property
    def _rounded(self) -> tuple[np.ndarray, np.ndarray]:
        """Return q = 2 r / (TOLERANCE |c| (|c| + 2 |v|)) and the share for every group, see `settle`."""
        d = self.v.shape[1]
        roundings = 2 * d + 2 if self.metric.size else d + 2
        q: np.ndarray = roundings * ROUNDING / 2 * self.rows_of_metric / float(TOLERANCE)
        # With |c| = (1 + x) |v| and x = sqrt(2 H / e) / |v|, the least H that is larger than q |c| (|c| + 2 |v|).
        half = self.least_eigenvalue / 2
        room = np.maximum(half - q, half / ANY_SHARE)
        with np.errstate(divide="ignore", invalid="ignore"):
            x = (4 * q + np.sqrt(16 * q * q + 12 * q * room)) / (2 * room)
            return q, np.where(half > q, np.minimum(half * x * x, ANY_SHARE), ANY_SHARE)

    def _doubt(self, codebook: np.ndarray) -> np.ndarray:
        """Return share, base and slope of the half distances that float32 may be wrong about, (M, 3), see `settle`."""
        q, share = self._rounded
        longest = math.sqrt(float(np.square(codebook).sum(1).max()))
        found = np.empty((len(q), 3), np.float32)
        found[:, 0], found[:, 2] = share, 2 * longest * q
        found[:, 1] = q * longest**2 if self.metric.size else LARGEST
        return found

    def transformed(self, v: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return y = G v and v' G v / 2 of some blocks."""
        if not self.metric.size:
            norm: np.ndarray = np.einsum("nd,nd->n", v, v)
            return v, 0.5 * norm
        y, half_norm = np.empty_like(v), np.empty(len(v), np.float32)
        work = v.size * v.shape[1]
        self.run_chunks(work, rows.transform_rows, v, group, self.metric, self.chunk, y, half_norm)
        return y, half_norm

    def nearest(self, codebook: np.ndarray) -> np.ndarray:
        """Return the nearest codeword of every block, int32."""
        n = len(self.v)
        now, codes = self.codewords(codebook), np.empty(n, np.int32)
        if not worth_tiles(self.group, self.n_groups, ALL_TILE):
            Rows(self).nearest(now, codes)
            return codes
        chunk = max(8, -(-n // (64 * ALL_TILE)))
        whole = self._as_integers(now)
        if whole is not None:
            seen = self._nearest_by_integers(now, whole, chunk, codes)
        else:
            seen = self._nearest_in_tiles(now, chunk, codes)
        if self.sampled:
            self._take_largest(float(np.abs(seen).max()))
            self.check_range("codebook", float(self.steepest.max()) * now.largest)
        return codes

    def _as_integers(self, now: Codewords) -> IntegerBook | None:
        n, d = self.v.shape
        if self.n_groups > 1 or n * d * now.padded < INTEGER_WORK:
            return None
        sample = self.v[:: max(1, n // SAMPLE)]
        with np.errstate(all="ignore"):  # blocks that are not finite will be told
            norm = np.sqrt(np.square(sample @ self.metric[0] if self.metric.size else sample).sum(1).max())
        return as_integers(now, float(norm), float(self.rounding(now)[0]))

    def rounding(self, *books: Codewords) -> np.ndarray:
        """Return more than what two half distances of a group can be wrong by, for any of the codebooks."""
        largest = [c.largest_offset + self.steepest * c.largest for c in books]
        found: np.ndarray = 8 * (self.v.shape[1] + 4) * ROUNDING * np.max(largest, axis=0)
        return found

    def scratch(self, chunks: int, tile: int, padded: int) -> Scratch:
        """Return memory for so many chunks of tiles."""
        d = self.v.shape[1]
        return Scratch(
            x=aligned(chunks, 2, d * tile),
            lanes=aligned(chunks, 4, tile),
            starts=np.empty((chunks, tile), np.uintp),
            codes=np.empty((chunks, tile), np.int32),
            listed=np.empty((chunks, tile + padded + 2 * WIDTH), np.int32),
            difference=np.empty((chunks, d)),
        )

    def _nearest_by_integers(self, now: Codewords, whole: IntegerBook, chunk: int, codes: np.ndarray) -> np.ndarray:
        n, d = self.v.shape
        chunks = -(-n // (chunk * ALL_TILE))
        pairs = aligned(chunks, (d + 1) // 2 * ALL_TILE).view(np.int32)
        again = np.empty((chunks, (chunk + 1) * ALL_TILE), np.int32)
        seen, scratch = np.empty((chunks, 3 * WIDTH), np.float32), self.scratch(chunks, ALL_TILE, now.padded)
        words = now.book, whole, np.arange(now.padded, dtype=np.int32), -(-now.k // ALL_GROUP)
        work, kernel = self.v.size * now.padded, integers.nearest_by_integers
        self.run_chunks(work, kernel, self.blocks, *words, chunk, scratch, pairs, again, codes, seen)
        return seen

    def _nearest_in_tiles(self, now: Codewords, chunk: int, codes: np.ndarray) -> np.ndarray:
        n = len(self.v)
        tiling = Tiling(np.empty(0, np.int32), np.zeros(-(-n // ALL_TILE), np.int32))
        if self.n_groups > 1:
            tiling = group_tiles(self.group, self.n_groups, np.arange(n, dtype=np.int32), ALL_TILE)
            chunk = max(8, -(-len(tiling.group) // 64))
        chunks = -(-len(tiling.group) // chunk)
        seen, scratch = np.empty((chunks, 3 * WIDTH), np.float32), self.scratch(chunks, ALL_TILE, now.padded)
        words = now.book, np.arange(now.padded, dtype=np.int32), -(-now.k // ALL_GROUP)
        work, kernel = self.v.size * now.padded, kernels.nearest_in_tiles
        self.run_chunks(work, kernel, self.blocks, tiling, *words, chunk, scratch, codes, seen)
        return seen

    def errors(self, codebook: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the weighted squared error of every block, and their sum."""
        n, d = self.v.shape
        errors, partial = np.empty(n, np.float32), np.empty(self.n_chunks)
        scratch = np.empty((self.n_chunks, 2, d), np.float32)
        group = self.group_of_block if self.metric.size else self.group
        work, blocks = self.v.size * (d if self.metric.size else 4), (self.v, self.w, group, self.metric)
        self.run_chunks(work, rows.block_errors, *blocks, codebook, codes, self.chunk, scratch, errors, partial)
        return errors, float(partial.sum())


class Rows:
    """Blocks in their own order, for metrics of so few blocks each that tiles would be mostly empty."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        n = len(problem.v)
        self.codes, self.group = np.empty(n, np.int32), problem.group_of_block
        self.y, self.half_norm = problem.transformed(problem.v, self.group)
        self.size: np.ndarray = np.einsum("nd,nd->n", problem.v, problem.v)
        self.norm = float(2 * (problem.w * self.half_norm.astype(np.float64)).sum())

    def nearest(self, now: Codewords, codes: np.ndarray) -> None:
        """Fill ``codes``."""
        problem, chunks = self.problem, self.problem.n_chunks
        scratch, ids = np.empty((chunks, now.padded), np.float32), np.empty((chunks, now.k), np.int32)
        memory = scratch, scratch.view(np.int32), ids, np.empty((chunks, self.y.shape[1]))
        blocks = problem.blocks, now.book, self.y, self.half_norm, self.size, self.group
        work = problem.v.size * now.padded
        problem.run_chunks(work, rows.nearest_row_by_row, *blocks, problem.chunk, *memory, codes)

    def step(self, codebook: np.ndarray) -> None:
        """E-step, see `Tiles`."""
        self.k = len(codebook)
        self.nearest(self.problem.codewords(codebook), self.codes)

    def totals(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of w G v and the weight of every (group, codeword), see `Tiles`."""
        problem, k = self.problem, self.k
        n, d = problem.v.shape
        chunk = max(problem.chunk, -(-n // 64))
        sums, mass = np.empty((-(-n // chunk), k, d)), np.empty((-(-n // chunk), k))
        problem.run_chunks(self.y.size, rows.sum_by_code, self.y, problem.w, self.codes, chunk, sums, mass)
        m = problem.n_groups
        share = np.bincount(self.group.astype(np.int64) * k + self.codes, problem.w, m * k).reshape(m, k)
        return sums.sum(0), share

    def to_rows(self) -> np.ndarray:
        """Return the codes."""
        return self.codes.copy()

    def take(self, codes: np.ndarray) -> None:
        """Set other codes."""
        self.codes[:] = codes


def _blocks(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray) and value.dtype == np.float32 and value.ndim == 2 and value.flags.c_contiguous:
        array: np.ndarray = value
        if array.size:
            return array  # whether all are finite shows in the survey
    return _check.float_array(value, "blocks", ndim=2)


def _check_metric(metric: np.ndarray) -> np.ndarray:
    """Return the least eigenvalue of every matrix, 0 if it is negative by rounding."""
    symmetric = np.abs(metric - np.swapaxes(metric, -1, -2)).max() <= 1e-5 * np.abs(metric).max()
    least: np.ndarray = np.linalg.eigvalsh(metric.astype(np.float64))[..., 0]
    if not symmetric or least.min() < -1e-5 * np.abs(metric).max():
        raise PQNetError(
            "metric: expected symmetric positive semi-definite matrices, got one that is not; "
            "a second moment x.T @ x is"
        )
    return np.asarray(least.clip(0.0))
