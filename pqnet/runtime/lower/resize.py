"""Resizing of images, and pooling to a grid of bins: rows and columns are mixed one after the other."""

import numpy as np

from pqnet.graph import Node
from pqnet.graph.ops.pool import bins
from pqnet.graph.ops.resize import SCALES, taps_of
from pqnet.kernels.ops.pool import MAXIMUM, SUM
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.lower.axis import reduce_axes
from pqnet.runtime.memory import View
from pqnet.runtime.mixing import Mixture, emit_mixture


@lowers("interpolate")
def interpolate(b: Builder, node: Node, x: list[View]) -> View:
    """Lower a resizing to any size."""
    a, mixtures = b.attrs(node), []
    for axis in (2, 3):
        pixels, weights = taps_of(x[0].shape[axis], a["size"][axis - 2], a, a[SCALES[axis - 2]])
        several = pixels.shape[1] > 1
        mixtures.append(Mixture(pixels * x[0].strides[axis], weights if several else None))
    return emit_mixture(b, node.name, x[0], *mixtures)


@lowers("adaptive_avg_pool2d", "adaptive_max_pool2d")
def pool_to_grid(b: Builder, node: Node, x: list[View]) -> View:
    """Lower pooling to a grid of bins."""
    largest, mixtures = node.op == "adaptive_max_pool2d", []
    if tuple(b.attrs(node)["size"]) == (1, 1) and x[0].shape[2] * x[0].shape[3] > 1:
        return reduce_axes(b, node.name, x[0], (2, 3), MAXIMUM if largest else SUM, mean=not largest)
    for axis in (2, 3):
        pixels, weights = _bins(x[0].shape[axis], b.attrs(node)["size"][axis - 2])
        several = pixels.shape[1] > 1 and not largest
        mixtures.append(Mixture(pixels * x[0].strides[axis], weights if several else None))
    return emit_mixture(b, node.name, x[0], *mixtures, largest=largest)


def _bins(size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels of each bin and their weights in a mean; in smaller bins the last pixel comes again."""
    starts, stops = bins(size, count)
    sizes, taps = stops - starts, np.arange((stops - starts).max())
    pixels = np.minimum(starts[:, None] + taps, stops[:, None] - 1)
    # The last pixel's weight is cut among its copies, so that infinities stay what they are.
    copies = np.where(taps < sizes[:, None] - 1, 1, len(taps) - sizes[:, None] + 1)
    return pixels, 1 / (sizes[:, None] * copies)
