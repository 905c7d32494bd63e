"""Coordinate descent over block positions under a whole second moment, and what its codebook update gathers and sums.

Outputs are lanes: matrices hold one row for each input and one column for each output, padded to whole tiles.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from pqnet.kernels.fit.chunks import next_chunk
from pqnet.kernels.fit.kmeans_search import ALL_TILE, search_all
from pqnet.kernels.simd import WIDTH, fma, load, splat, store, subtract


class Words(NamedTuple):
    """Codewords: K of d numbers, KP with padding."""

    words: np.ndarray  # (KP * d,) f4: ALL_GROUP negated ones interleaved
    ids: np.ndarray  # (KP,) i4: 0, 1, ...
    groups: int  # of ALL_GROUP words
    codebook: np.ndarray  # (K * d,) f4
    d: int


class Batch(NamedTuple):
    """Block positions and their rows = positions * d inputs, for as many outputs as fill ``width`` columns."""

    offset: np.ndarray  # (positions, KP) f4: c' G c / 2
    diagonal: np.ndarray  # (positions * d * d,) f4: G
    within: np.ndarray  # (rows, rows) f4: H among the rows
    residual: np.ndarray  # (rows, width) f4: the rows of H e, where e = target - current, changed along the way
    current: np.ndarray  # INOUT (rows, width) f4
    codes: np.ndarray  # INOUT (positions, width) i4
    change: np.ndarray  # OUT (rows, width) f4: current before less after


@njit(cache=True, nogil=True, error_model="numpy")
def _pull(residual, current, diagonal, first, d, width, at, tmp_x):
    # OUT x = r + G w: what the score of codeword c, c' G c / 2 - c' x, needs of block position `first` of a tile
    for j in range(d):
        for p in range(0, ALL_TILE, WIDTH):
            total = load(residual, (first * d + j) * width + at + p)
            for i in range(d):
                factor = splat(diagonal[(first * d + j) * d + i])
                total = fma(factor, load(current, (first * d + i) * width + at + p), total)
            store(tmp_x, j * ALL_TILE + p, total)


@njit(cache=True, nogil=True, error_model="numpy")
def _push(within, change, rows, first, d, width, at, residual):
    # The residual of the positions after `first` of this batch takes in what changed there: r += H_after,first change
    for row in range((first + 1) * d, rows):
        for p in range(0, ALL_TILE, WIDTH):
            total = load(residual, row * width + at + p)
            for i in range(first * d, (first + 1) * d):
                total = fma(splat(within[row * rows + i]), load(change, i * width + at + p), total)
            store(residual, row * width + at + p, total)


@njit(cache=True, nogil=True, error_model="numpy")
def descend(counter, book, batch, tmp_x, tmp_codes):
    # A batch of block positions, one after the other, for every output. IN book: Words; INOUT batch: Batch; TMP x
    # (tiles, (d + 1) * ALL_TILE) f4, codes (tiles, ALL_TILE) i4
    d, codes, diagonal, codebook = book.d, batch.codes, batch.diagonal, book.codebook
    positions, width = codes.shape
    rows = positions * d
    flat_residual, flat_current = batch.residual.reshape(-1), batch.current.reshape(-1)
    flat_change, flat_within = batch.change.reshape(-1), batch.within.reshape(-1)
    flat_offset, padded = batch.offset.reshape(-1), batch.offset.shape[1]
    chunks = width // ALL_TILE
    t = next_chunk(counter)
    while t < chunks:
        at, x, least, found = t * ALL_TILE, tmp_x[t], tmp_x[t, d * ALL_TILE :], tmp_codes[t]
        for m in range(positions):
            _pull(flat_residual, flat_current, diagonal, m, d, width, at, x)
            search_all(x, book.words, d, flat_offset, m * padded, book.ids, book.groups, least, found)
            for lane in range(ALL_TILE):
                codes[m, at + lane] = found[lane]
                word = found[lane] * d
                for j in range(d):
                    x[j * ALL_TILE + lane] = codebook[word + j]
            for j in range(d):
                for p in range(0, ALL_TILE, WIDTH):
                    place, new = (m * d + j) * width + at + p, load(x, j * ALL_TILE + p)
                    store(flat_change, place, subtract(load(flat_current, place), new))
                    store(flat_current, place, new)
            _push(flat_within, flat_change, rows, m, d, width, at, flat_residual)
        t = next_chunk(counter)


@njit(cache=True, nogil=True, error_model="numpy")
def spread_words(counter, words, codes, out_values):
    # IN words (K, d) f4, codes (M, width) i4; OUT values (M * d, width) f4: the word of every code
    positions, width = codes.shape
    d = words.shape[1]
    m = next_chunk(counter)
    while m < positions:
        for j in range(d):
            for o in range(width):
                out_values[m * d + j, o] = words[codes[m, o], j]
        m = next_chunk(counter)


@njit(cache=True, nogil=True, error_model="numpy")
def sum_words(counter, values, codes, weights, chunk, out_sums):
    # IN values (M * d, width) f4, codes (M, width) i4, weights (width,) f4: 0 in columns that pad; OUT sums (chunks, K,
    # d) f8: the weighted sum of values over the outputs of every code, `chunk` positions each
    positions, width = codes.shape
    d = out_sums.shape[2]
    chunks = out_sums.shape[0]
    c = next_chunk(counter)
    while c < chunks:
        sums = out_sums[c]
        for k in range(sums.shape[0]):
            for j in range(d):
                sums[k, j] = 0.0
        for m in range(c * chunk, min((c + 1) * chunk, positions)):
            for j in range(d):
                for o in range(width):
                    sums[codes[m, o], j] += values[m * d + j, o] * weights[o]
        c = next_chunk(counter)
