"""Convolutions over three axes: those over two of images that have the channels of all depths that a window sees."""

from dataclasses import replace

from pqnet.graph import Node
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.copying import emit_copy, emit_fill
from pqnet.runtime.layer import Layer
from pqnet.runtime.lower.layers import choose_algorithm
from pqnet.runtime.memory import View
from pqnet.runtime.taps import depth_as_channels


@lowers("conv3d")
def convolve_volumes(b: Builder, node: Node, x: list[View]) -> View:
    """Lower a convolution over three axes."""
    whole, a = Layer.of_node(b, node), b.attrs(node)
    weight, outside = depth_as_channels(whole.weight)
    count, depth = whole.shape[2], whole.weight.shape[2]
    layer = replace(whole, weight=weight, batch=whole.batch * count, channels=weight.shape[1]).without_unseen_taps()
    shifts = [tap * a["dilation"][0] - a["padding"][0] for tap in range(depth)]
    images = images_of_depths(b, node, x[0], whole.groups, a["stride"][0], shifts, count, outside)
    return choose_algorithm(b, layer).emit(b, layer, images)


def images_of_depths(
    b: Builder, node: Node, x: View, groups: int, stride: int, shifts: list[int], count: int, outside: bool
) -> View:
    """Return the images of ``count`` depths: the channels of an image are those of x at each depth that it sees.

    Image z sees the depths z * stride + shift for all ``shifts``; what lies out of the volume is zero.
    """
    batch, channels, size, height, width = x.shape
    each = channels // groups
    if shifts == [0] and stride == 1 and count == size:
        flat = x.permute((0, 2, 1, 3, 4)).reshape((batch * size, channels, height, width))
        if flat is not None:
            return flat
    inner = (len(shifts), each) if outside else (each, len(shifts))
    out = b.new((groups, *inner, batch, count, height, width))
    target = out if outside else out.permute((0, 2, 1, 3, 4, 5, 6))
    steps = x.strides[1] * each, *(x.strides[axis] for axis in (1, 0, 2, 3, 4))
    source = x.with_axes((groups, each, batch, size, height, width), steps)
    for tap, shift in enumerate(shifts):
        part = target.slice(1, tap, 1)
        part = part.with_axes((part.shape[0], *part.shape[2:]), (part.strides[0], *part.strides[2:]))
        first = min(max(-(shift // stride), 0), count)
        last = max(min((size - 1 - shift) // stride + 1, count), first)
        if first < last:
            seen = source.slice(3, first * stride + shift, last - first, stride)
            emit_copy(b, seen, part.slice(3, first, last - first), f"{node.name} (depths)")
        for start, stop in ((0, first), (last, count)):
            if start < stop:
                emit_fill(b, 0.0, part.slice(3, start, stop - start), f"{node.name} (depths)")
    images = out.reshape((channels * len(shifts), batch * count, height, width))
    assert images is not None  # a dense value can take this shape
    return images.permute((1, 0, 2, 3))
