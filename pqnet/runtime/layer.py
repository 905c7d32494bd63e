"""A layer at known sizes as algorithms see it: sums over windows of images, one for each output and position."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from pqnet._cached import cached_property
from pqnet.codecs import Packed, PackedPQ
from pqnet.graph import Node
from pqnet.graph.layers import weight_op
from pqnet.graph.ranges import input_ranges, output_shift, token_scales
from pqnet.runtime.builder import Builder
from pqnet.runtime.copying import dense
from pqnet.runtime.memory import View
from pqnet.runtime.taps import Selection, Weight, with_taps

__all__ = ["Layer", "near", "readable"]

Pair = tuple[int, int]
IMAGE = (1, 0, 2, 3)  # the storage order of images: channels outermost


def near(size: int) -> int:
    """Return the nearest of 1, 2, .., 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, .."""
    step = 1 << max(size.bit_length() - 3, 0)
    return (size + step // 2) // step * step


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer; the rows of a linear layer are the pixels of one image of height 1.

    Or the product within another operation, such as a step in time of a recurrent layer: its node, which is not one of
    the graph, has no outputs.

    Attributes
    ----------
    node : Node
    weight : float32 array, Packed or Selection
        In filter form; a PackedPQ if kernels can read its codes.
    scale : float array, shape (O,), optional
        Factors of the outputs that belong to the weight.
    groups, batch : int
    channels : int
        Inputs of a filter at one tap.
    size, out_size : (int, int)
        Height and width of the images, and of the result.
    kernel, stride, dilation : (int, int)
    padding : (int, int)
        Rows above, columns on the left; a negative number leaves out so many.
    in_shape, shape : tuple of int
        Of the input and of the result in the graph.
    params : dict of str to array or Packed
        The parameters of the node by role, as the graph has them.
    taps_taken, depths_taken : tuple of int, optional
        Which taps of the node's weight these are if they are not all, and at which depths of a kernel over three axes.
    part : int, optional
        Which part of the weight of the node ``weight`` is; by default the whole.
    input_range : (float, float), optional
        Least and largest number of the input that 8-bit integers stand for; see `graph.ranges`.
    token_scales : bool
        Whether each row of the input has a range of its own instead.
    output_shift : float32 array, optional
        What is added to the outputs if they are computed with these integers.
    """

    node: Node
    weight: Weight
    scale: np.ndarray | None
    groups: int
    batch: int
    channels: int
    size: Pair
    out_size: Pair
    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: Pair
    in_shape: tuple[int, ...]
    shape: tuple[int, ...]
    params: Mapping[str, Any]
    taps_taken: tuple[int, ...] = ()
    depths_taken: tuple[int, ...] = ()
    part: int | None = None
    input_range: tuple[float, float] | None = None
    output_shift: np.ndarray | None = None
    token_scales: bool = False

    @classmethod
    def of(cls, b: Builder, node: Node) -> "Layer":
        """Return the layer of a node of an operation that `lower.layers` knows, without taps that see only padding."""
        return cls.of_node(b, node).without_unseen_taps()

    @classmethod
    def of_node(cls, b: Builder, node: Node) -> "Layer":
        """Return the layer of a node with all taps; of a convolution over three axes, as it is at one depth."""
        in_shape, shape = b.info(node.inputs[0]).shape, b.info(node.outputs[0]).shape
        if not weight_op(node.op).channels_first:
            return cls.of_rows(b, node, in_shape)
        weight, scale = readable(_weight(b, node))
        params = {role: b.graph.params[name] for role, name in node.params.items()}
        a = b.attrs(node)
        batch, _, *axes = in_shape
        return cls(
            node,
            weight,
            scale,
            groups=a["groups"],
            batch=batch,
            channels=weight.shape[1],
            size=_pair(axes),
            out_size=_pair(shape[2:]),
            kernel=_pair(weight.shape[2:]),
            stride=_pair(a["stride"]),
            dilation=_pair(a["dilation"]),
            padding=_pair(a["padding"][: len(axes)], missing=0),
            in_shape=in_shape,
            shape=shape,
            params=params,
            input_range=input_ranges(b.graph).get(node.name),
            output_shift=output_shift(b.graph, node.name),
        )

    @classmethod
    def of_rows(cls, b: Builder, node: Node, in_shape: tuple[int, ...]) -> "Layer":
        """Return the linear layer of a node, whose operation multiplies the last axis of an input of this shape."""
        weight, scale = readable(_weight(b, node))
        params = {role: b.graph.params[name] for role, name in node.params.items()}
        size, one, shape = (1, prod(in_shape[:-1])), (1, 1), (*in_shape[:-1], weight.shape[0])
        sizes = size, size, one, one, one, (0, 0)
        return cls(
            *(node, weight, scale, 1, 1, weight.shape[1], *sizes, in_shape, shape, params),
            input_range=input_ranges(b.graph).get(node.name),
            output_shift=output_shift(b.graph, node.name),
            token_scales=node.name in token_scales(b.graph),
        )

    def take_taps(self, rows: Sequence[int], columns: Sequence[int]) -> "Layer | None":
        """Return the layer with some taps of its weight, in this order, its geometry as it is.

        None if the codes of the weight do not give those of these taps, see `runtime.taps`.
        """
        kernel, taps = (len(rows), len(columns)), [i * self.kernel[1] + j for i in rows for j in columns]
        weight = with_taps(self.weight, taps, kernel)
        if weight is None:
            return None
        before = self.taps_taken or range(self.taps)
        return replace(self, weight=weight, kernel=kernel, taps_taken=tuple(before[tap] for tap in taps))

    def by_inputs(self) -> "Layer":
        """Return the layer such that any taps of its weight can be taken: codes that do not give them are selected."""
        return replace(self, weight=Selection.of(self.weight)) if isinstance(self.weight, Packed) else self

    def without_unseen_taps(self) -> "Layer":
        """Return the layer without the outer taps that see nothing but padding, as far as codes can say it."""
        if self.taps == 1:
            return self
        rows, columns = (_seen_taps(self, axis) for axis in (0, 1))
        if (len(rows), len(columns)) == self.kernel:
            return self
        layer = self.take_taps(rows, columns)
        if layer is None:
            return self
        top, left = (self.padding[i] - taps[0] * self.dilation[i] for i, taps in enumerate((rows, columns)))
        return replace(layer, padding=(top, left))

    def seeing(self, axis: int, tap: int) -> range:
        """Return the rows (or columns) of the result whose windows see the image, not padding, by a tap of an axis."""
        start, stride = tap * self.dilation[axis] - self.padding[axis], self.stride[axis]
        first = max(-(start // stride), 0)
        end = min((self.size[axis] - 1 - start) // stride + 1, self.out_size[axis])
        return range(first, max(first, end))

    @cached_property
    def rounded(self) -> "Layer":
        """The layer with sizes rounded: what is chosen for it is chosen once for all layers of nearly its size."""
        size, out_size = ((near(high), near(wide)) for high, wide in (self.size, self.out_size))
        return replace(self, batch=near(self.batch), size=size, out_size=out_size)

    @property
    def name(self) -> Hashable:
        """What names the weight among the parameters: the node's, and which part and taps of it these are."""
        return self.node.params["weight"], self.part, self.depths_taken, self.taps_taken

    @property
    def channels_first(self) -> bool:
        """Whether channels are axis 1 of the input; else its last axis has them, and all others make rows."""
        return weight_op(self.node.op).channels_first

    @property
    def outputs(self) -> int:
        """Outputs of a group."""
        return self.weight.shape[0] // self.groups

    @property
    def taps(self) -> int:
        """Places of a filter on a channel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def reduction(self) -> int:
        """Inputs of an output."""
        return self.channels * self.taps

    @property
    def image(self) -> int:
        """Positions of an image of the result."""
        return self.out_size[0] * self.out_size[1]

    @property
    def positions(self) -> int:
        """Positions of all images."""
        return self.batch * self.image

    @property
    def pointwise(self) -> bool:
        """Whether a window is one pixel, and every pixel a window."""
        return self.kernel == self.stride == (1, 1) and self.size == self.out_size and self.padding == (0, 0)

    @property
    def depthwise(self) -> bool:
        """Whether every channel has one filter of its own."""
        return self.channels == 1 and self.weight.shape[0] == self.groups > 1

    @property
    def codes(self) -> PackedPQ | None:
        """The weight, if kernels can read its codes."""
        return self.weight if isinstance(self.weight, PackedPQ) else None

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weight that a kernel reads."""
        return 4 * prod(self.weight.shape) if isinstance(self.weight, np.ndarray) else self.weight.nbytes

    def as_images(self, view: View, channels: int, size: Pair) -> View | None:
        """Return a value as (batch, channels, height, width), if strides can say it."""
        if self.channels_first:
            shape = (self.batch, channels, *size)
            if len(view.shape) == 5:  # every depth of a volume is an image
                view = view.permute((0, 2, 1, 3, 4))
            return view if view.shape == shape else view.reshape(shape)
        rows = view.reshape((size[1], channels))
        return rows and rows.with_axes((1, channels, *size), (0, rows.strides[1], 0, rows.strides[0]))

    def input(self, b: Builder, x: View) -> View:
        """Return the input as (batch, channels, height, width) with the pixels of a row side by side."""
        found = self.as_images(x, self.channels * self.groups, self.size)
        if found is None or (found.strides[3] != 1 and self.size[1] > 1):
            found = self.as_images(dense(b, x, self._order(len(x.shape))), self.channels * self.groups, self.size)
        assert found is not None  # a dense copy can take this shape
        return found

    def result(self, b: Builder) -> View:
        """Return a new value for the result, stored with its outputs outermost."""
        return b.new(self.shape, self._order(len(self.shape)))

    def _order(self, axes: int) -> tuple[int, ...]:
        """Return the storage order of inputs and results: channels outermost."""
        channel = weight_op(self.node.op).channel_axis(axes)
        return (channel, *(axis for axis in range(axes) if axis != channel))

    def result_images(self, view: View) -> View | None:
        """Return a value of the result's shape as images."""
        return self.as_images(view, self.weight.shape[0], self.out_size)

    @property
    def channel_axis(self) -> int:
        """The axis of the result along which outputs lie."""
        return weight_op(self.node.op).channel_axis(len(self.shape))


def _pair(sizes: Sequence[int], missing: int = 1) -> Pair:
    """Return the last two of some numbers; images of one axis have a height of 1."""
    high, wide = (missing, *sizes)[-2:]
    return high, wide


def _seen_taps(layer: Layer, axis: int) -> range:
    """Return the taps of an axis from the first to the last one that sees the image; at least one."""
    seen = [tap for tap in range(layer.kernel[axis]) if layer.seeing(axis, tap)]
    return range(seen[0], seen[-1] + 1) if seen else range(1)


def readable(weight: np.ndarray | Packed) -> tuple[np.ndarray | Packed, np.ndarray | None]:
    """Return the weight of a layer, as a PackedPQ if its codes can be one, and the factors of its outputs.

    Weights with one code an element become codewords of one element; their scales, if an output has one, factors of the
    epilogue. What has scales of groups of inputs, or is a sum, stays as it is.
    """
    words = weight.codewords() if isinstance(weight, Packed) else None
    return words or (weight, None)  # type: ignore[return-value]


def _weight(b: Builder, node: Node) -> np.ndarray | Packed:
    weight = b.param(node, "weight")
    assert weight is not None
    return weight
