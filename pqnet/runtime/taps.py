"""Some taps of a weight, and filters over three axes as filters over two: codes stay codes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from pqnet.codecs import Packed, PackedPQ
from pqnet.codecs.layout import block_columns
from pqnet.codecs.packing import pack_codes

__all__ = ["Selection", "Weight", "depth_as_channels", "with_taps"]


@dataclass(frozen=True, eq=False)
class Selection:
    """Some inputs of a packed weight as a weight of its own: kernels decode the blocks in which these inputs lie.

    Attributes
    ----------
    weight : Packed
        The whole weight.
    shape : tuple of int
        In filter form; (O, C, *kernel).
    inputs : int64 ndarray, shape (C * kernel,)
        Which inputs of the whole weight, in (C, *kernel) order, these are.
    """

    weight: Packed
    shape: tuple[int, ...]
    inputs: np.ndarray

    @classmethod
    def of(cls, weight: Packed) -> "Selection":
        """Return the selection of all inputs."""
        return cls(weight, weight.shape, np.arange(prod(weight.shape[1:])))

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight."""
        return self.weight.nbytes


Weight = np.ndarray | Packed | Selection  # of a layer


def with_taps(weight: Weight, taps: Sequence[int], kernel: tuple[int, ...]) -> np.ndarray | PackedPQ | Selection | None:
    """Return a weight with some of its taps.

    Parameters
    ----------
    weight : float array, Packed or Selection, shape (O, C, *kernel)
    taps : sequence of int
        Those taps in their new order, counted in the order of the old kernel.
    kernel : tuple of int
        Sizes of the new kernel.

    Returns
    -------
    float array, PackedPQ or Selection of shape (O, C, *kernel), or None
        Codes that are left out vanish, codewords are cut to the taps that stay. None for a packed weight if that would
        cut the codewords of its blocks in different ways, or if it is no PackedPQ; its `Selection` has any taps.

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
    if isinstance(weight, Selection):
        return Selection(weight.weight, shape, weight.inputs.reshape(channels, -1)[:, taps].reshape(-1))
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


def depth_as_channels(weight: Weight) -> tuple[np.ndarray | PackedPQ | Selection, bool]:
    """Return a weight over three axes as one over two, whose channels are the channels at each depth.

    Parameters
    ----------
    weight : float array, Packed or Selection, shape (O, C, kd, kh, kw)

    Returns
    -------
    weight : float array, PackedPQ or Selection, shape (O, C * kd, kh, kw)
        A Selection of all inputs if it was packed and is no PackedPQ.
    depth_outside : bool
        Whether the new channels count all channels at the first depth, then all at the next, as ``channel`` blocks
        have it; else the depths of the first channel come first.
    """
    outputs, channels, depth, *kernel = weight.shape
    shape = outputs, channels * depth, *kernel
    if isinstance(weight, np.ndarray):
        return weight.reshape(shape), False
    if not isinstance(weight, PackedPQ):
        return replace(weight if isinstance(weight, Selection) else Selection.of(weight), shape=shape), False
    codec, outside = weight.codec, weight.codec.layout == "channel"
    codes = weight.codes
    if outside:
        codes = codes.reshape(outputs, depth, prod(kernel), channels // codec.d).swapaxes(1, 2)
    stream = pack_codes(np.ascontiguousarray(codes), codec.k)
    return PackedPQ.from_stream(codec, shape, stream, weight.codebook), outside
