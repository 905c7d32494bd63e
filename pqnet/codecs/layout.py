"""Which weights form a block: the ``spatial`` and ``channel`` layouts of conv, linear and embedding weights.

A weight is always in *filter form*: (O, C, *kernel) for convolutions over one to three axes (C channels per group;
transposed convolutions too), (O, I) for linear layers and recurrent weights, (V, D) for embeddings. ``spatial`` blocks
are d consecutive numbers of a filter in (C, *kernel) order, as in the papers; ``channel`` blocks are d consecutive
channels at one tap.
"""

from typing import Any

import numpy as np

from pqnet.errors import ConfigError

__all__ = ["FILTER_AXES", "LAYOUTS", "block_columns", "check_blocks", "from_blocks", "to_blocks"]

LAYOUTS = ("spatial", "channel")
FILTER_AXES = (2, 3, 4, 5)  # of a weight in filter form


def check_blocks(shape: tuple[int, ...], d: int, layout: str) -> int:
    """Return M, the number of blocks of one output, or raise if blocks of ``d`` do not tile the weight."""
    if len(shape) not in FILTER_AXES or min(shape) < 1:
        raise ConfigError(
            "weight: expected shape (outputs, inputs) or (outputs, channels, *kernel), with a kernel of one to three "
            f"axes and no empty axes, got {shape}"
        )
    along = shape[1] if layout == "channel" else int(np.prod(shape[1:]))
    if along % d:
        options = [i for i in range(1, min(along, 64) + 1) if along % i == 0]
        raise ConfigError(
            f"d: expected a divisor of {along} (the {'channels' if layout == 'channel' else 'inputs'} of a weight of "
            f"shape {shape} in {layout!r} layout), got {d}; divisors up to 64 are {options}"
        )
    return int(np.prod(shape[1:])) // d


def to_blocks(weight: np.ndarray, d: int, layout: str) -> np.ndarray:
    """Cut a weight in filter form into blocks: C-contiguous array of shape (O, M, d)."""
    m = check_blocks(weight.shape, d, layout)
    if layout == "channel":
        weight = np.moveaxis(weight, 1, -1)
    return np.ascontiguousarray(weight).reshape(weight.shape[0], m, d)


def from_blocks(blocks: np.ndarray, shape: tuple[int, ...], layout: str) -> np.ndarray:
    """Put blocks of shape (O, M, d) back into a weight in filter form; the inverse of `to_blocks`."""
    if layout == "channel":
        o, c, *kernel = shape
        return np.ascontiguousarray(np.moveaxis(blocks.reshape(o, *kernel, c), -1, 1))
    return blocks.reshape(shape)


def block_columns(shape: tuple[int, ...], layout: str) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Return the order in which a layout visits the inputs of a filter, as indices in (C, *kernel) order."""
    columns = np.arange(int(np.prod(shape[1:])), dtype=np.int64)
    if layout == "channel":
        columns = np.moveaxis(columns.reshape(shape[1:]), 0, -1).reshape(-1)
    return columns
