"""Some taps of a weight as a weight of its own: its codes stay codes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pqnet.codecs import Packed, PackedPQ
from pqnet.codecs.layout import block_columns
from pqnet.codecs.packing import pack_codes

__all__ = ["with_taps"]


def with_taps(weight: np.ndarray | Packed, rows: Sequence[int], columns: Sequence[int]) -> np.ndarray | PackedPQ | None:
    """Return a weight with some of its taps.

    Parameters
    ----------
    weight : float array or Packed, shape (O, C, kh, kw)
    rows, columns : sequence of int
        Those taps in their new order: row i of the new filters is row ``rows[i]`` of the old ones.

    Returns
    -------
    float array or PackedPQ of shape (O, C, len(rows), len(columns)), or None
        Codes that are left out vanish, codewords are cut to the taps that stay. None for a packed weight if that would
        cut the codewords of its blocks in different ways, or if it is no PackedPQ.

    Examples
    --------
    >>> import numpy as np, pqnet
    >>> weight = np.random.default_rng(0).standard_normal((8, 16, 3, 3)).astype("float32")
    >>> middle = with_taps(pqnet.PQ(k=16, d=9).fit(weight), [1], [1])
    >>> middle.shape, middle.codec.d
    ((8, 16, 1, 1), 1)
    """
    if isinstance(weight, np.ndarray):
        return np.ascontiguousarray(weight[:, :, rows][:, :, :, columns])
    if not isinstance(weight, PackedPQ):
        return None
    codec, (outputs, channels, height, width) = weight.codec, weight.shape
    shape = outputs, channels, len(rows), len(columns)
    # Where the elements of a new filter, in the order of its blocks, are in the blocks of the old one.
    every = np.arange(channels * height * width).reshape(1, channels, height, width)
    chosen = every[:, :, rows][:, :, :, columns].reshape(-1)[block_columns(shape, codec.layout)]
    place = np.empty(every.size, np.int64)
    place[block_columns(weight.shape, codec.layout)] = np.arange(every.size)
    blocks, elements = np.divmod(place[chosen], codec.d)
    starts = np.flatnonzero(np.diff(blocks, prepend=-1))
    d = chosen.size // starts.size
    pattern = elements[:d]
    same = chosen.size == d * starts.size and (elements.reshape(-1, d) == pattern).all()
    if not same or (blocks.reshape(-1, d) != blocks[starts][:, None]).any():
        return None
    codes = np.ascontiguousarray(weight.codes[:, blocks[starts]])
    codebook = np.ascontiguousarray(weight.codebook[:, pattern])
    return PackedPQ.from_stream(replace(codec, d=d), shape, pack_codes(codes, codec.k), codebook)
