"""Some taps of a weight, and filters over three axes as filters over two: codes stay codes."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from pqnet.codecs import Packed, PackedPQ
from pqnet.codecs.layout import block_columns
from pqnet.codecs.packing import pack_codes

__all__ = ["depth_as_channels", "with_taps"]


def with_taps(
    weight: np.ndarray | Packed, taps: Sequence[int], kernel: tuple[int, ...]
) -> np.ndarray | PackedPQ | None:
    """Return a weight with some of its taps.

    Parameters
    ----------
    weight : float array or Packed, shape (O, C, *kernel)
    taps : sequence of int
        Those taps in their new order, counted in the order of the old kernel.
    kernel : tuple of int
        Sizes of the new kernel.

    Returns
    -------
    float array or PackedPQ of shape (O, C, *kernel), or None
        Codes that are left out vanish, codewords are cut to the taps that stay. None for a packed weight if that would
        cut the codewords of its blocks in different ways, or if it is no PackedPQ.

    Examples
    --------
    >>> import numpy as np, pqnet
    >>> weight = np.random.default_rng(0).standard_normal((8, 16, 3, 3)).astype("float32")
    >>> middle = with_taps(pqnet.PQ(k=16, d=9).fit(weight), [4], (1, 1))
    >>> middle.shape, middle.codec.d
    ((8, 16, 1, 1), 1)
    """
    outputs, channels, *before = weight.shape
    shape = outputs, channels, *kernel
    if isinstance(weight, np.ndarray):
        return np.ascontiguousarray(weight.reshape(outputs, channels, -1)[:, :, taps]).reshape(shape)
    if not isinstance(weight, PackedPQ):
        return None
    codec = weight.codec
    # Where the elements of a new filter, in the order of its blocks, are in the blocks of the old one.
    every = np.arange(channels * prod(before)).reshape(channels, -1)
    chosen = every[:, taps].reshape(-1)[block_columns(shape, codec.layout)]
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


def depth_as_channels(weight: np.ndarray | Packed) -> tuple[np.ndarray | PackedPQ, bool]:
    """Return a weight over three axes as one over two, whose channels are the channels at each depth.

    Parameters
    ----------
    weight : float array or Packed, shape (O, C, kd, kh, kw)
        A packed weight that is no PackedPQ is decoded.

    Returns
    -------
    weight : float array or PackedPQ, shape (O, C * kd, kh, kw)
    depth_outside : bool
        Whether the new channels count all channels at the first depth, then all at the next, as ``channel`` blocks
        have it; else the depths of the first channel come first.
    """
    outputs, channels, depth, *kernel = weight.shape
    shape = outputs, channels * depth, *kernel
    if not isinstance(weight, PackedPQ):
        dense = weight.decode() if isinstance(weight, Packed) else weight
        return dense.reshape(shape), False
    codec, outside = weight.codec, weight.codec.layout == "channel"
    codes = weight.codes
    if outside:
        codes = codes.reshape(outputs, depth, prod(kernel), channels // codec.d).swapaxes(1, 2)
    stream = pack_codes(np.ascontiguousarray(codes), codec.k)
    return PackedPQ.from_stream(codec, shape, stream, weight.codebook), outside
