"""Second-order search of codes: block positions one after the other, under all of the inputs' second moment.

Minimises sum_o a_o (t_o - w_o)' H (t_o - w_o) over codes and codebook, w_o made of codewords: given the others, the
best codeword of block position m is the least of c' G_m c / 2 - c' (G_m w_m + (H e)_m) with e = t - w; given the codes,
the codebook is a linear least-squares problem, solved by conjugate gradients. Neither lets the error rise; noise on the
codewords, less in every round, then leads past poor minima; where it does not, what was found without is kept.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from pqnet._progress import tick
from pqnet._threads import blas_limit, ordered_map
from pqnet.fit.parallel import run_chunks
from pqnet.fit.problem import SERIAL_WORK
from pqnet.fit.tiles import Codewords, aligned
from pqnet.kernels.fit import descent as kernels
from pqnet.kernels.fit.kmeans_search import ALL_GROUP, ALL_TILE

__all__ = ["SecondOrder"]

BATCH = 64  # inputs whose residuals follow every change at once; the next ones wait for a product of matrices
PANEL = 512  # inputs, of whose changes all others learn together: products of 64 rows would only move memory
COLUMNS = 128  # outputs that a product of matrices takes at a time, whatever the number of threads
CHUNKS = 32  # partial sums over block positions
STEPS = 4  # of conjugate gradients between two sweeps
TOLERANCE = 2e-3  # gain of a round, relative, that ends the search
NOISE = 0.2  # in the first round that has it, as a share of the spread of the errors of weights


class SecondOrder:
    """The state of the search for one weight.

    Parameters
    ----------
    target : float32 ndarray, shape (O, Kin)
        Filters in the order of the layout.
    moment : ndarray, shape (G, Kin, Kin)
        Second moments of the inputs of each convolution group, in the same order; positive definite.
    codes : integer array, shape (O, M)
    codebook : float32 ndarray, shape (K, d)
    weights : float32 ndarray, shape (O,)
        Of the errors of the outputs, positive.
    threads : int
        The result does not depend on it.
    """

    def __init__(
        self,
        target: np.ndarray,
        moment: np.ndarray,
        codes: np.ndarray,
        codebook: np.ndarray,
        weights: np.ndarray,
        threads: int,
    ) -> None:
        self.codebook = codebook.astype(np.float32)
        filters = target.reshape(len(moment), -1, target.shape[1])
        parts = codes.reshape(len(moment), -1, codes.shape[1])
        split = zip(filters, moment, parts, weights.reshape(len(moment), -1), strict=True)
        self.groups = [_Group(*part, codebook, threads) for part in split]
        self.sweeps = 0
        self.error = self.set_codebook(self.codebook)

    @property
    def codes(self) -> np.ndarray:
        """The codes, shape (O, M)."""
        return np.concatenate([group.codes[:, : group.outputs].T for group in self.groups])

    @blas_limit(1)
    def set_codebook(self, codebook: np.ndarray) -> float:
        """Take another codebook, codes kept; return the error."""
        self.codebook = codebook.astype(np.float32)
        for group in self.groups:
            group.spread(self.codebook)
            group.renew()
        return self._measure()

    def _measure(self) -> float:
        self.error = sum(group.error() for group in self.groups)
        return self.error

    def run(self, sweeps: int) -> int:
        """Choose codes and codebook in turn until that no longer pays; return the rounds it took."""
        for done in range(sweeps):
            before = self.error
            self.sweep()
            self.update(STEPS)
            if before - self.error <= TOLERANCE * before:
                return done + 1
        return sweeps

    def anneal(self, rounds: int, seed: int) -> None:
        """Choose codes and codebook in turn, with noise on the codewords that fades."""
        rng = np.random.default_rng(seed)
        for done in range(rounds):
            spread = NOISE * (1 - done / rounds) * self._spread()
            self.set_codebook(self.codebook + spread * rng.standard_normal(self.codebook.shape))
            self.sweep()
            self.update(STEPS)

    def search(self, sweeps: int, rounds: int, most: float, seed: int) -> int:
        """Do `run`, and again after ``rounds`` with noise; keep the better, and return the rounds it took.

        Without the noise where its rounds would take more than ``most`` multiplications.
        """
        done, k = self.run(sweeps), len(self.codebook)
        multiplied = sum(g.target.size * (2 * k + (STEPS + 1) * len(g.target)) for g in self.groups)
        if rounds == 0 or rounds * multiplied > most:
            return done
        error, codes, codebook = self.error, [group.codes.copy() for group in self.groups], self.codebook
        self.anneal(rounds, seed)
        done += rounds + self.run(sweeps)
        if self.error > error:
            for group, kept in zip(self.groups, codes, strict=True):
                group.codes[:] = kept
            self.set_codebook(codebook)
        return done

    def _spread(self) -> np.ndarray:
        """Return the standard deviation of the errors of weights, as the metric weighs them, at each place of a block.

        Float64, shape (d,). Of weights that count little, errors are large and of no interest.
        """
        d = self.codebook.shape[1]
        squares, total = np.zeros(d), np.zeros(d)
        for group in self.groups:
            e = np.subtract(group.target, group.current, out=group.scratch)
            weights = np.diagonal(group.diagonal, axis1=1, axis2=2).astype(np.float64)  # (M, d)
            squares += (weights.reshape(-1) * (np.square(e) @ group.weights)).reshape(-1, d).sum(0)
            total += weights.sum(0) * group.weights.sum(dtype=np.float64)
        spread: np.ndarray = np.sqrt(np.divide(squares, total, out=np.zeros(d), where=total > 0))
        return spread

    @blas_limit(1)
    def sweep(self) -> float:
        """Choose every code anew, block position after block position; return the error."""
        self.sweeps += 1
        inputs = len(self.groups[0].target)
        for i, group in enumerate(self.groups):
            for done in group.sweep(self.codebook):
                tick(f"sweep {self.sweeps}, input", i * inputs + done, len(self.groups) * inputs)
        return self._measure()

    @blas_limit(1)
    def update(self, steps: int) -> float:
        """Move the codebook towards the minimum for these codes by conjugate gradients; return the error."""
        inverse = np.linalg.inv(self._members())
        x, r = np.zeros(self.codebook.shape), self._sums([group.residual for group in self.groups])
        z = np.einsum("kij,kj->ki", inverse, r)
        p, rz = z, float((r * z).sum())
        stop = 1e-6 * rz
        for _ in range(steps):
            if rz <= stop:
                break
            direction = p.astype(np.float32)
            products = [group.product(direction) for group in self.groups]
            moved = self._sums(products)
            curvature = float((p * moved).sum())
            if curvature <= 0:
                break
            a = rz / curvature
            x, r = x + a * p, r - a * moved
            for group, product in zip(self.groups, products, strict=True):
                group.residual -= np.multiply(product, np.float32(a), out=product)
            z = np.einsum("kij,kj->ki", inverse, r)
            rz, before = float((r * z).sum()), rz
            p = z + rz / before * p
        self.codebook = (self.codebook + x).astype(np.float32)
        for group in self.groups:
            group.spread(self.codebook)
        return self._measure()

    def _members(self) -> np.ndarray:
        """Return the sum of G over the members of every codeword: the diagonal blocks of the problem, (K, d, d)."""
        k, d = self.codebook.shape
        total = np.zeros((k, d * d))
        for group in self.groups:
            share = np.stack([np.bincount(c, group.weights, k) for c in group.codes])
            total += share.T @ group.diagonal.reshape(len(share), -1).astype(np.float64)
        members = total.reshape(k, d, d)
        scale = np.trace(members, axis1=1, axis2=2) / d
        # Words without members stay where they are; directions that no input has are not followed.
        damping = np.where(scale > 0, 1e-6 * scale, 1.0)
        return members + damping[:, None, None] * np.eye(d)

    def _sums(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Return the sums over the members of every codeword of rows of H times something, (K, d)."""
        total = np.zeros(self.codebook.shape)
        for group, value in zip(self.groups, values, strict=True):
            chunk = -(-len(group.codes) // CHUNKS)
            sums = np.empty((-(-len(group.codes) // chunk), *self.codebook.shape))
            run_chunks(group.threads, kernels.sum_words, value, group.codes, group.weights, chunk, sums)
            total += sums.sum(0)
        return total


class _Group:
    """One convolution group: matrices with a row for each input and a column for each output."""

    def __init__(
        self,
        target: np.ndarray,
        moment: np.ndarray,
        codes: np.ndarray,
        weights: np.ndarray,
        codebook: np.ndarray,
        threads: int,
    ) -> None:
        self.outputs, inputs = target.shape
        k, d = codebook.shape
        self.d, self.threads = d, threads if BATCH * self.outputs * k > SERIAL_WORK else 1
        width = -(-self.outputs // ALL_TILE) * ALL_TILE
        self.moment = np.ascontiguousarray(moment, np.float32)
        at = np.arange(inputs).reshape(-1, d)
        self.diagonal = np.ascontiguousarray(self.moment[at[:, :, None], at[:, None, :]])
        self.target, self.current, self.residual, self.scratch = (aligned(inputs, width) for _ in range(4))
        self.target[:] = 0.0
        self.target[:, : self.outputs] = target.T
        self.codes = np.zeros((inputs // d, width), np.int32)
        self.codes[:, : self.outputs] = codes.T
        self.weights = np.zeros(width, np.float32)
        self.weights[: self.outputs] = weights

    def spread(self, codebook: np.ndarray) -> None:
        """Make the weights that codes and codebook stand for."""
        run_chunks(self.threads, kernels.spread_words, codebook, self.codes, self.current)

    def renew(self) -> None:
        """Compute residuals anew, free of what rounding left of changes."""
        self._multiply(self.moment, np.subtract(self.target, self.current, out=self.scratch), self.residual)

    def error(self) -> float:
        """Return sum_o a e' H e."""
        e = np.subtract(self.target, self.current, out=self.scratch)
        return float(np.einsum("io,io->o", e, self.residual, dtype=np.float64) @ self.weights)

    def product(self, words: np.ndarray) -> np.ndarray:
        """Return H times the weights made of these words."""
        run_chunks(self.threads, kernels.spread_words, words, self.codes, self.scratch)
        out = np.empty_like(self.scratch)
        self._multiply(self.moment, self.scratch, out)
        return out

    def sweep(self, codebook: np.ndarray) -> Iterator[int]:
        """Choose every code anew; yield now and then of how many inputs."""
        d, inputs = self.d, len(self.target)
        c = codebook.astype(np.float64)
        pairs = (c[:, :, None] * c[:, None, :]).reshape(len(c), -1)
        offset = 0.5 * self.diagonal.reshape(-1, d * d).astype(np.float64) @ pairs.T
        now = Codewords(c, offset.astype(np.float32))
        ids, flat = np.arange(now.padded, dtype=np.int32), np.ascontiguousarray(codebook).reshape(-1)
        words = kernels.Words(now.book.interleaved, ids, -(-now.k // ALL_GROUP), flat, d)
        tiles = self.codes.shape[1] // ALL_TILE
        scratch = aligned(tiles, (d + 1) * ALL_TILE), np.empty((tiles, ALL_TILE), np.int32)
        step = max(1, BATCH // d) * d
        wide = max(1, PANEL // step) * step
        for start in range(0, inputs, wide):
            panel = slice(start, min(start + wide, inputs))
            before = self.residual[panel].copy()
            for first in range(panel.start, panel.stop, step):
                rows = slice(first, min(first + step, panel.stop))
                blocks = slice(rows.start // d, rows.stop // d)
                batch = kernels.Batch(
                    now.book.offset[blocks],
                    self.diagonal[blocks].reshape(-1),
                    np.ascontiguousarray(self.moment[rows, rows]),
                    self.residual[rows],
                    self.current[rows],
                    self.codes[blocks],
                    self.scratch[rows],
                )
                run_chunks(self.threads, kernels.descend, words, batch, *scratch)
                rest = slice(rows.stop, panel.stop)
                self._multiply(self.moment[rest, rows], self.scratch[rows], self.residual[rest], add=True)
            self.residual[panel] = before
            self._multiply(self.moment[:, panel], self.scratch[panel], self.residual, add=True)
            yield panel.stop

    def _multiply(self, a: np.ndarray, b: np.ndarray, out: np.ndarray, *, add: bool = False) -> None:
        """Compute out = a @ b, or add that to it, with bits that do not depend on the number of threads."""

        def columns(start: int) -> None:
            part = slice(start, start + COLUMNS)
            if add:
                out[:, part] += a @ b[:, part]
            else:
                np.matmul(a, b[:, part], out=out[:, part])

        for _ in ordered_map(columns, range(0, b.shape[1], COLUMNS), self.threads):
            pass
