"""The arguments of the kernels of k-means by name: each record is what one part of the problem has for all of them.

Letters: N blocks of D numbers, K codewords, M metrics, KP codewords with padding, N / TILE tiles, chunks of tiles that
threads share.
"""

from typing import NamedTuple

import numpy as np


class Blocks(NamedTuple):
    """All blocks in their own order."""

    flat: np.ndarray  # (N * D,) f4: (given - shift) * unit, rounded: what distances are computed from
    given: np.ndarray  # (N, D) f4: as they came
    shift: np.ndarray  # (D,) f8
    unit: float
    metric: np.ndarray  # (M, D, D) f4, of size 0 if there is none


class Book(NamedTuple):
    """Codewords, less the shift and times the unit of the blocks; those in float32 are negated."""

    exact: np.ndarray  # (K, D) f8
    words: np.ndarray  # (KP * D,) f4, one after the other
    interleaved: np.ndarray  # (KP * D,) f4, ALL_GROUP of them at a time, coordinate by coordinate
    by_coordinate: np.ndarray  # (D * KP,) f4
    offset: np.ndarray  # (M, KP) f4: c' G c / 2, very large for those that pad
    doubt: np.ndarray  # (M, 3) f4: share, base and slope of the half distances in doubt, see `settle`


class Tiling(NamedTuple):
    """Which blocks tiles are made of, for each tile size its own."""

    rows: np.ndarray  # (tiles * TILE,) i4, -1 where there is none, or of size 0: blocks in their own order
    group: np.ndarray  # (tiles,) i4


class TiledBlocks(NamedTuple):
    """Blocks copied to tiles: number j of lane l of tile t is x[(t * D + j) * TILE + l]."""

    x: np.ndarray  # (tiles * D * TILE,) f4: y = G v
    summed: np.ndarray  # the same of what is summed over codewords: v if all blocks share a metric, else y
    weights: np.ndarray  # (tiles * TILE,) f4, 0 in empty lanes
    size: np.ndarray  # (tiles * TILE,) f4: |v|^2
    norm: np.ndarray  # (tiles * TILE,) f4: v' G v
    centre: np.ndarray  # (tiles * D,) f4 of a ball that holds the y of a tile
    radius: np.ndarray  # (tiles,) f4


class Bounds(NamedTuple):
    """From below, of min over a tile of h_k - h_nearest; see `step`."""

    used: int  # whether to use and move them
    change: np.ndarray  # (D * KP,) f4: negated codewords now less those of the last step with bounds
    offset_change: np.ndarray  # (M * KP,) f4: the same of the offsets
    change_size: np.ndarray  # (KP,) f4: lengths of the changes
    margin: np.ndarray  # (M,) f4: more than what float32 loses in two h or in moving a bound
    slack: np.ndarray  # INOUT (tiles * KP,) f4: the bounds less the credit; 0 at first, large for padding
    credit: np.ndarray  # INOUT (tiles,) f4: what all bounds of a tile are short of, 0 at first
    nearest: np.ndarray  # INOUT (tiles * TILE,) f4: least h, at first 0


class Sums(NamedTuple):
    """What a step finds, all of it INOUT."""

    codes: np.ndarray  # (tiles * TILE,) i4, at first -1
    sums: np.ndarray  # (chunks, K, D) f8, at first 0: of w v or w G v over the blocks of a codeword
    mass: np.ndarray  # (segments, K) f8, at first 0: of w
    segment: np.ndarray  # IN (tiles,) i4: where the mass of a tile goes
    listed: np.ndarray  # OUT (chunks,) i8: codewords looked at
    moved: np.ndarray  # OUT (chunks,) i8: lanes with another codeword than before


class IntegerBook(NamedTuple):
    """Codewords as 16-bit integers, and which blocks fit these."""

    pairs: np.ndarray  # (KP * P,) i4: pairs of coordinates in the halves of a lane, PAIR_GROUP codewords interleaved
    offset: np.ndarray  # (KP,) i4
    number: int  # 2^bits - 1: the bits of half distances that hold the number of a codeword
    scale: np.float32  # of the blocks
    largest: np.float32  # sum y^2 up to which blocks fit
    margin: np.float32  # margin + slope |y|: difference of integers that decides
    slope: np.float32


class Scratch(NamedTuple):
    """Memory that chunks use as they like; T is the size of a tile."""

    x: np.ndarray  # (chunks, 2, D * T) f4: a tile of v and of y
    lanes: np.ndarray  # (chunks, 4, T) f4: numbers of a tile, one for each block
    starts: np.ndarray  # (chunks, T) u8
    codes: np.ndarray  # (chunks, T) i4
    listed: np.ndarray  # (chunks, T + KP + 2 * WIDTH) i4: blocks in doubt, and the candidates of one
    difference: np.ndarray  # (chunks, D) f8
