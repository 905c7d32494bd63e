"""Blocks and codewords as 16-bit integers, with what their rounding can do to half distances."""

from typing import TYPE_CHECKING

import numpy as np

from pqnet.kernels.cpu import has
from pqnet.kernels.fit.kmeans_arguments import IntegerBook
from pqnet.kernels.fit.kmeans_integers import PAIR_GROUP

if TYPE_CHECKING:
    from pqnet.fit.tiles import Codewords

__all__ = ["as_integers"]

MOST_WORDS = 1 << 12  # the numbers of more codewords leave too few bits
LEAST_SIZE = 5  # of blocks; shorter ones are as fast in float32
LARGEST_INT16 = 32_000.0  # less what rounding adds
DISTANCE_RANGE = 2.0**31 * 0.98  # of half distances as integers; the rest is for what rounding adds
PRODUCT_ROUNDING = 0.51  # largest error of a product of two float32 that is rounded to an integer
NORM_MARGIN = 1.1  # norms of blocks may be so many times the largest of the sample


def as_integers(now: "Codewords", norm: float, wrong: float) -> IntegerBook | None:
    """Round a codebook for blocks of at most this norm, ``y = G v``; None if the processor or the numbers do not suit.

    Of ``|y . c|`` rounding changes at most ``E = e_y |c|_1 + e_c |y|_1 + d e_y e_c``, where ``e_y`` and ``e_c`` are
    the errors of a coordinate. Half distances whose difference is more than twice that, and ``wrong`` more, the most
    that float32 errs by, are in the same order as those in float32.
    """
    words, offset = -now.exact, now.book.offset[0, : now.k].astype(np.float64)
    d = words.shape[1]
    norm *= NORM_MARGIN
    size, biggest = np.sqrt(np.square(words).sum(1)), float(np.abs(words).max())
    if not has("avx512_vnni") or now.padded > MOST_WORDS or d < LEAST_SIZE or not (biggest > 0 and 0 < norm < np.inf):
        return None
    low, high = (offset - norm * size).min(), (offset + norm * size).max()
    sums, reach = float(np.abs(words).sum(1).max()), np.sqrt(d)
    both = 2 * DISTANCE_RANGE / (high - low)  # the scale of half distances, as far as 16 bits allow
    scale = np.float32(min(LARGEST_INT16 / norm, np.sqrt(both * sums / (reach * norm))))
    factor = min(LARGEST_INT16 / biggest, both / float(scale))
    scale = np.float32(min(LARGEST_INT16 / norm, both / factor))
    both = float(scale) * factor
    if not (np.isfinite(both) and both > 0):
        return None
    whole = np.zeros((now.padded, d + d % 2), np.int64)
    whole[: now.k, :d] = np.rint(factor * words)
    parts = ((whole[:, 1::2] << 16) | (whole[:, ::2] & 0xFFFF)).astype(np.int32)
    parts = parts.reshape(-1, PAIR_GROUP, parts.shape[1]).transpose(0, 2, 1)
    number = (1 << (now.padded - 1).bit_length()) - 1
    far = np.full(now.padded, 2**31 - 1, np.int32)
    far[: now.k] = np.rint((offset - (high + low) / 2) * both)
    error_y, error_c = PRODUCT_ROUNDING / float(scale), 0.5 / factor
    margin = both * (2 * error_y * (sums + d * error_c) + wrong) + number + 1024  # rounding offsets, and differences
    slope = 2 * both * error_c * reach
    return IntegerBook(
        pairs=np.ascontiguousarray(parts).reshape(-1),
        offset=far,
        number=number,
        scale=scale,
        largest=np.float32(norm * norm),
        margin=np.float32(1.0001 * margin),
        slope=np.float32(1.0001 * slope),
    )
