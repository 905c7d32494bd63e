"""What a layer may become: codecs with their bytes and the output error that each is predicted to cause."""

import math
from dataclasses import dataclass

import numpy as np

from pqnet.codecs import PQ, Additive, Codec, Fixed, IntN, Sparse
from pqnet.codecs.layout import block_columns, from_blocks, to_blocks
from pqnet.codecs.pq import Integers
from pqnet.fit import assign, weighted_kmeans
from pqnet.graph import Node, weight_op
from pqnet.graph.affine import FreeAffine
from pqnet.pipeline.moments import (
    build_metric,
    diagonal_blocks,
    measured_doubt,
    output_squares,
    relative,
    row_weights,
    share_to_doubt,
)
from pqnet.pipeline.noise import quantized_alike, weakened, white_alike
from pqnet.pipeline.scaled import by_filter, filter_sizes
from pqnet.pipeline.sensitivity import Reach
from pqnet.pipeline.statistics import Moments

__all__ = ["Choice", "Gain", "LayerRates", "codec_nbytes", "smallest_codec"]

SAMPLE = 16384  # blocks of a layer that codewords are tried on; more where few outputs have most of the energy:
FEWER = 4  # times; of codecs without a codebook, each weight is a block
UNEVEN = 0.1  # by how much the mean energy of a sample may be off
ANCHORS = (8, 64, 512)  # K at which errors are measured; between them log error is linear in log K
MIDDLE = 64  # K at which int8 is tried, and which without the second-order search perturbs a layer
# Relative squared errors of the outputs of a layer, with the second-order search, at which it is measured what reaches
# the network's: of small ones half as much as of large ones, in some.
PERTURBED, WEAK = 0.06, 0.006
FEW_WEIGHTS = (
    1 << 14
)  # of a layer, up to which integers are measured at all bits, and what reaches the outputs of these
STEPS = 6  # of k-means at an anchor
LARGEST_K = 4096
BITS = (8, 7, 6, 5, 4, 3, 2)
LISTS = ("binary", "ternary")  # one scale for all weights, for those that are too few for a codebook
CORRECTED = (0.005, 0.02)  # share of the weights that are stored beside their codewords
GROUPS = (32, 8, 2)  # inputs that share a scale of 8-bit integers: 8.5, 10 and 16 bits a weight
# Of moments, as a share of their mean diagonal, where the gain of the second-order search is predicted: on six layers
# of two networks (d = 4 to 18, K = 16 to 256) that comes within 0.19 of the factor, which is 0.14 to 0.77.
SHAPING_DAMPING = 3e-2
LEAST = 1e-24  # of a predicted relative error: of a varying column beside a large constant one there may be hardly any
# Random vectors by which the trace of a product of large matrices is known to about a percent; of less than
# FEW_INPUTS inputs it is computed.
PROBES, FEW_INPUTS = 64, 512


@dataclass(frozen=True)
class Choice:
    """What a layer may become: a codec, None for float, its bytes, and its predicted relative output error."""

    codec: Codec | None
    nbytes: int
    error: float


@dataclass(frozen=True)
class Gain:
    """How much of a layer's error reaches the outputs of the network.

    Attributes
    ----------
    at : tuple of Reach
        As measured, of errors that the search for codewords leaves, from the least on; between them in proportion to
        the logarithm of the error.
    plain : float, optional
        Of codecs without a codebook, if others.
    """

    at: tuple[Reach, ...] = (Reach(1.0, 1.0),)
    plain: float | None = None

    @classmethod
    def of(cls, found: list[Reach]) -> "Gain":
        """Read what was measured of `LayerRates.perturbed`."""
        large, weak, *plain = found
        return cls((weak, large), plain[0].gain if plain else None)

    def __call__(self, codec: Codec | None, error: float) -> float:
        """Return the squared change of the outputs for one of the layer's, of an error that a codec makes."""
        if self.plain is not None and not (isinstance(codec, PQ) or (isinstance(codec, Additive) and _has_pq(codec))):
            return self.plain
        places = np.log([max(reach.error, LEAST) for reach in self.at])
        return float(np.interp(np.log(max(error, LEAST)), places, [reach.gain for reach in self.at]))


def _has_pq(codec: Additive) -> bool:
    return any(isinstance(part, PQ) for part in codec.parts)


def codec_nbytes(codec: Codec | None, shape: tuple[int, ...]) -> int:
    """Return the bytes that a weight of this shape takes, in memory as in a file; None is float."""
    return 4 * math.prod(shape) if codec is None else codec.nbytes(shape).total


def block_sizes(shape: tuple[int, ...], fast: bool) -> list[tuple[int, str]]:
    """Return the blocks (d, layout) to try on a weight; with ``fast`` only those that kernels run fastest."""
    channels, taps = shape[1], math.prod(shape[2:])
    found = [(d, "channel") for d in ((8, 16) if fast else (2, 4, 8, 16)) if channels % d == 0]
    found += [] if fast else [(1, "spatial")]  # what `Scalar` stores, found under the whole metric
    if taps > 1 and not (fast and found):
        spatial = [shape[-1], taps, *([2 * taps] if channels % 2 == 0 and taps <= 16 else [])]
        found += [(d, "spatial") for d in dict.fromkeys(spatial) if d > 1]
    if not found:
        found = [(next(d for d in range(8, 0, -1) if channels % d == 0), "channel")]
    return found


def codebook_sizes(n_blocks: int) -> list[int]:
    """Return the K to try on a weight of so many blocks, of which a codeword serves four at least; none below 4."""
    most = min(LARGEST_K, n_blocks // 4)
    grid = sorted({round(2 ** (i / 4)) for i in range(8, 49)} | {most})
    return [k for k in grid if 4 <= k <= most]


def plain_codecs(shape: tuple[int, ...], fast: bool) -> list[Codec]:
    """Return the candidates without a codebook: integers, fixed lists, and all numbers as float16."""
    inputs = math.prod(shape[1:])
    found: list[Codec] = [IntN(bits) for bits in BITS]
    if not fast:
        found += [IntN(8, per="group", group=g) for g in GROUPS if inputs % g == 0 and inputs > g]
        found += [Fixed(values) for values in LISTS]  # type: ignore[arg-type]
        found.append(Sparse(fraction=1.0))
    return found


def smallest_codec(shape: tuple[int, ...], fast: bool) -> Codec | None:
    """Return the candidate for a weight of this shape that takes least."""
    found: list[Codec | None] = [None, *plain_codecs(shape, fast)]
    for d, layout in block_sizes(shape, fast):
        ks = codebook_sizes(math.prod(shape) // d)[:1]
        found += [PQ(k, d, layout, dtype) for k in ks for dtype in ("float16", "int8")]  # type: ignore[arg-type]
    return min(found, key=lambda codec: codec_nbytes(codec, shape))


class LayerRates:
    """Measures on a sample of a layer's outputs what its candidates cost.

    Parameters
    ----------
    node : Node
    weight : float32 ndarray
        In filter form.
    moments : Moments
        Of the layer's inputs.
    fast : bool
        Only blocks that kernels run fastest.
    second_order : bool
        Whether the search is that of metric "full".
    affine : FreeAffine, optional
        What makes up for the mean error of each output, so that only what varies counts; if it takes scales, filters
        are of one size when they are packed.
    others : Moments, optional
        Of other samples, which tell how much of the moments is chance, and what that does to errors.
    seed, threads : int
    """

    def __init__(
        self,
        node: Node,
        weight: np.ndarray,
        moments: Moments,
        seed: int,
        threads: int,
        *,
        fast: bool = False,
        second_order: bool = True,
        affine: FreeAffine | None = None,
        others: Moments | None = None,
    ) -> None:
        self.weight, self.seed, self.threads = weight, seed, threads  # as it is packed
        self.size = self.importance = np.ones(len(weight))
        self.fast, self.second_order = fast, second_order
        self._factors: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._energies: dict[int, float] = {}
        self._chance: float | None = None
        self.apart: np.ndarray | None = None
        self.embedding = weight_op(node.op).looked_up
        if self.embedding:
            weights = row_weights("full", moments.mean.astype(np.float64) * moments.count)
            assert weights is not None
            self.share = weights.astype(np.float64) / weights.sum(dtype=np.float64)
            self.moment = self.whole = self.seen = np.eye(weight.shape[1], dtype=np.float32)[None]
        else:
            second = moments.centred() if affine is not None else moments.mean
            seen = build_metric("full", second[:, None])
            doubt = share_to_doubt(second.shape[1], moments.count)
            if others is not None:
                self.apart = others.centred() if affine is not None else others.mean
                doubt = max(doubt, measured_doubt(second, self.apart))
            full = build_metric("full", second[:, None], doubt)
            assert full is not None and seen is not None
            self.seen = seen[:, 0]  # what errors are measured under: hardly damped, and not zero where inputs are
            self.moment, self.whole = full[:, 0], moments.mean
            scalable = affine is not None and affine.scalable
            self.size, self.importance = filter_sizes(self.moment, weight, affine, scalable)
            self.weight = (weight / by_filter(self.size, self.weight)).astype(np.float32)
            self.energies = self.importance * output_squares(self.moment, self.weight)

    def choices(self) -> list[Choice]:
        """Return all candidates."""
        shape = self.weight.shape
        found = [Choice(None, codec_nbytes(None, shape), 0.0)]
        for d, layout in block_sizes(shape, self.fast):
            found += self._pq(d, layout)
        self._factors.clear()  # large
        return found + self._plain()

    def _plain(self) -> list[Choice]:
        """Return the candidates without a codebook: integers of many weights are measured to 5 bits, and continued."""
        shape = self.weight.shape
        rows = self._rows(math.prod(shape[1:]) * FEWER)

        def error(codec: Codec) -> float:
            packed = codec.fit(self.weight[rows], threads=self.threads)
            return max(self._error(packed.decode(), rows), LEAST)

        # Of few weights, what one more bit brings is chance.
        measured = {bits: error(IntN(bits)) for bits in BITS if bits <= 5 or self.weight.size <= FEW_WEIGHTS}
        ratio = min(measured[5] / measured[4], 0.5)
        found: dict[Codec, float] = {}
        for codec in plain_codecs(shape, self.fast):
            if isinstance(codec, IntN) and codec.group is None:
                found[codec] = measured.get(codec.bits, measured[4] * ratio ** (codec.bits - 4))
            elif isinstance(codec, IntN):
                share = min(1.0, error(IntN(4, per="group", group=codec.group)) / measured[4])
                found[codec] = share * measured.get(8, measured[4] * ratio**4)
            else:
                found[codec] = error(codec)
        return [Choice(codec, codec_nbytes(codec, shape), e) for codec, e in found.items()]

    def perturbed(self) -> list[np.ndarray]:
        """Return the whole weight with errors of the kinds that `Gain` is read from."""
        large, weak = self._by_search()
        found = [large, weak]
        if not self.embedding and self.weight.size <= FEW_WEIGHTS:
            found.append(white_alike(self.weight, self.seen, WEAK, self.seed))
        return [self._unpacked(weight) for weight in found]

    def _by_search(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the weight with a large and a small error of the kind that the search for codewords leaves."""
        shape = self.weight.shape
        if self.second_order and not self.embedding:
            noisy = quantized_alike(self.weight, self.seen, PERTURBED, self.seed)
            return noisy, weakened(self.weight, noisy, PERTURBED, WEAK)
        d, layout = min(block_sizes(shape, self.fast), key=lambda s: abs(s[0] - 8))
        words = self._kmeans(d, layout, min(MIDDLE, max(1, self._blocks(d) // 4)))[0]
        blocks = to_blocks(self.weight, d, layout)
        metric, groups = self._metric(np.arange(shape[0]), d, layout)
        codes = assign(blocks.reshape(-1, d), words, metric=metric, groups=groups, threads=self.threads)
        coarse = from_blocks(words[codes].reshape(blocks.shape), shape, layout)
        return coarse, self.weight + np.float32(math.sqrt(WEAK / PERTURBED)) * (coarse - self.weight)

    def _unpacked(self, weight: np.ndarray) -> np.ndarray:
        """Return a weight as it is in the network, filters of their own sizes."""
        given: np.ndarray = (weight * by_filter(self.size, weight)).astype(np.float32)
        return given

    def _blocks(self, d: int) -> int:
        return self.weight.size // d

    def _pq(self, d: int, layout: str) -> list[Choice]:
        """Return the candidates with these blocks: their errors from a few anchors."""
        ks = codebook_sizes(self._blocks(d))
        if not ks:
            return []
        most = ks[-1]
        anchors = sorted({k for k in ANCHORS if k <= most / 2} | ({most} if most < 2 * ANCHORS[-1] else set()))
        errors, rounding, left = [], 0.0, dict.fromkeys(CORRECTED, 1.0)
        for k in anchors:
            words, codes, rows = self._kmeans(d, layout, k)
            target = self.weight[rows]
            decoded = from_blocks(words[codes], target.shape, layout)
            error = self._error(decoded, rows)
            errors.append(error)
            if k == min(anchors, key=lambda a: abs(a - MIDDLE)):
                stored = Integers.nearest(words).floats()
                rounded = self._error(from_blocks(stored[codes], target.shape, layout), rows)
                rounding = max(0.0, rounded - error)
                left = {f: self._error(_corrected(decoded, target, f), rows) / max(error, LEAST) for f in left}
        logs = _interpolate(np.log2(ks), np.log2(anchors), np.log(np.maximum(errors, LEAST)))
        found: dict[Codec, float] = {}
        for k, error in zip(ks, np.exp(logs) * self._shaping(d, layout), strict=True):
            plain, small = PQ(k, d, layout), PQ(k, d, layout, "int8")  # type: ignore[arg-type]
            found |= {plain: float(error), small: float(error) + rounding}
            if not self.fast and d > 1 and k & (k - 1) == 0:
                for fraction, share in left.items():
                    found[Additive([small, Sparse(fraction=fraction)], 1)] = min(1.0, share) * (float(error) + rounding)
        return [Choice(codec, codec_nbytes(codec, self.weight.shape), e) for codec, e in found.items()]

    def _rows(self, blocks_in_row: int) -> np.ndarray:
        """Return outputs of about SAMPLE blocks, or more: of an embedding by use, else as many of each group."""
        n, groups = len(self.weight), len(self.moment)
        wanted = max(1, min(n // groups, round(SAMPLE / blocks_in_row / groups)))
        if self.embedding:
            return np.random.default_rng(self.seed).choice(n, max(wanted, 16), p=self.share)
        energy = self.energies.mean()
        while True:
            first = np.linspace(0, n // groups - 1, wanted).astype(np.int64)
            rows: np.ndarray = (np.arange(groups)[:, None] * (n // groups) + first).reshape(-1)
            if abs(self.energies[rows].mean() - energy) <= UNEVEN * energy or wanted == n // groups:
                return rows
            wanted = min(2 * wanted, n // groups)

    def _metric(self, rows: np.ndarray, d: int, layout: str) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the metric of each block position and convolution group, and which of them a block has."""
        if self.embedding:
            return None, None
        metric = diagonal_blocks(self.moment, self.weight.shape, d, layout)
        positions = metric.shape[1]
        group = rows // (len(self.weight) // len(metric))
        return metric.reshape(-1, d, d), (group[:, None] * positions + np.arange(positions)).reshape(-1)

    def _kmeans(self, d: int, layout: str, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return codebook, codes (R, M) and the sampled outputs, after a few steps."""
        rows = self._rows(math.prod(self.weight.shape[1:]) // d)
        blocks = to_blocks(self.weight[rows], d, layout)
        metric, groups = self._metric(rows, d, layout)
        k = min(k, blocks.shape[0] * blocks.shape[1])
        found = weighted_kmeans(
            blocks.reshape(-1, d),
            k,
            weights=np.repeat(self.importance[rows], blocks.shape[1]).astype(np.float32),
            metric=metric,
            groups=groups,
            n_iter=STEPS,
            seed=self.seed,
            threads=self.threads,
        )
        return found.codebook, found.codes.reshape(blocks.shape[:2]), rows

    def _shaping(self, d: int, layout: str) -> float:
        """Return the factor by which the second-order search lowers errors: what sees how the errors of blocks add up.

        Of fine quantization, choosing each block's code to make up for the errors of those before it: the volume of a
        block's moment given the inputs before it, over that of the moment alone, as a mean over blocks. Inputs too
        weak to be coded take no part, which the damping stands for. What the search takes for correlations and is
        chance raises the errors that other samples see.
        """
        if self.embedding or not self.second_order:
            return 1.0
        pivots, moment = self._pivots(layout)
        at = np.arange(moment.shape[1]).reshape(-1, d)
        alone = np.linalg.slogdet(moment[:, at[:, :, None], at[:, None, :]])[1] / d
        given = np.log(pivots).reshape(*alone.shape, d).mean(2)
        if self._chance is None:  # whatever the layout
            self._chance = self._spread_by_chance()
        return min(1.0, self._chance * float(np.exp(given).sum() / np.exp(alone).sum()))

    def _pivots(self, layout: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the variance of each input given those before it, in the order of a layout, and the damped moment."""
        if layout not in self._factors:
            columns = block_columns(self.weight.shape, layout)
            moment = self.moment[:, columns[:, None], columns].astype(np.float64)
            level = np.trace(moment, axis1=1, axis2=2)[:, None, None] / moment.shape[1]
            moment += SHAPING_DAMPING * level * np.eye(moment.shape[1])
            factor = np.linalg.cholesky(moment)
            self._factors[layout] = np.diagonal(factor, axis1=1, axis2=2) ** 2, moment
        return self._factors[layout]

    def _spread_by_chance(self) -> float:
        """Return by which factor other samples see larger errors than the moments that the search shapes them by."""
        if self.apart is None:
            return 1.0
        energy = np.diagonal(self.moment, axis1=1, axis2=2).astype(np.float64)
        size = np.sqrt(energy)
        pairs = size[:, :, None] * size[:, None, :]
        known, apart = ((m / pairs + SHAPING_DAMPING * np.eye(m.shape[1])) for m in (self.moment, self.apart))
        alone = np.trace(apart, axis1=1, axis2=2) / (1 + SHAPING_DAMPING)
        return float(_trace_of_solution(known, apart, self.seed) / alone.sum())

    def _error(self, decoded: np.ndarray, rows: np.ndarray) -> float:
        """Return the relative squared error of the outputs of some rows, as these count."""
        target, counts = self.weight[rows], self.importance[rows]
        if len(rows) not in self._energies:  # samples of one size are the same
            self._energies[len(rows)] = float(counts @ output_squares(self.whole, target))
        return relative(float(counts @ output_squares(self.seen, target - decoded)), self._energies[len(rows)])


def _trace_of_solution(a: np.ndarray, b: np.ndarray, seed: int) -> float:
    """Return the sum of the traces of A^-1 B over matrices (G, n, n).

    Of many inputs from random signs z, as the mean of z' A^-1 B z: as many right sides as inputs would take four times
    as long as the factors of A.
    """
    n = a.shape[1]
    if n < FEW_INPUTS:
        return float(np.trace(np.linalg.solve(a, b), axis1=1, axis2=2).sum())
    z = np.random.default_rng(seed).choice((-1.0, 1.0), (n, PROBES))
    return float((z * np.linalg.solve(a, b @ z)).sum() / PROBES)


def _corrected(decoded: np.ndarray, target: np.ndarray, fraction: float) -> np.ndarray:
    """Return decoded weights of which a share, those that are most wrong, are right."""
    wrong = np.abs(target - decoded)
    limit = np.quantile(wrong, 1 - fraction)
    return np.where(wrong > limit, target, decoded)


def _interpolate(x: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Interpolate linearly, and continue the first and last piece beyond the ends; falling everywhere."""
    if len(known) == 1:
        known, values = np.append(known, known + 1), np.append(values, values - 1)  # a few weights: steeply
    piece = np.clip(np.searchsorted(known, x) - 1, 0, len(known) - 2)
    slopes = np.minimum(np.diff(values) / np.diff(known), -1e-3)
    result: np.ndarray = values[piece] + slopes[piece] * (x - known[piece])
    return result
