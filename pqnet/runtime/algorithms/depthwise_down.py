"""Depthwise convolutions with the usual kernels: down the columns, from the values as they lie."""

import numpy as np

from pqnet.kernels.products.depthwise_down import CHANNELS, depthwise_down
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.algorithms.base import Algorithm, Call, Host
from pqnet.runtime.algorithms.filters import filter_arguments
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import SLACK, View, round_up
from pqnet.runtime.windows import Windows

KERNELS = {1: (3, 5, 7), 2: (3, 5)}  # rows of the kernels by stride
TASKS, WORK = 64, 4096  # tasks at most, positions of results a task at least
TAP, PIXEL = 1.0, 3.0  # cycles of a vector of positions


class DepthwiseDown(Algorithm):
    """Planes of two channels, whose rows are read once for all the rows of outputs that see them."""

    name = "depthwise_down"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether there is a kernel for these taps, and the padding that it reads is within the slack."""
        (kh, kw), (sh, sw), (dh, dw) = layer.kernel, layer.stride, layer.dilation
        square = kh == kw and sh == sw and kh in KERNELS.get(sw, ()) and dh == 1 and (dw == 1 or sw == 1)
        left = layer.padding[1]
        right = (layer.out_size[1] - 1) * sw + (kw - 1) * dw - left - layer.size[1]
        return layer.depthwise and square and max(abs(left), right) + 4 * WIDTH < SLACK

    def cost(self, layer: Layer) -> float:
        """Return the cost of all taps."""
        return layer.groups * layer.positions / WIDTH * (PIXEL + TAP * layer.taps)

    def windows(self, b: Builder, layer: Layer, x: View) -> Windows:
        """Take the input as it is: padding is passed over."""
        nothing = np.zeros(0, np.int64)
        return Windows(layer, x, x.strides[0], x.strides[1], nothing, layer.batch, *layer.out_size, x.strides[2])

    def steps(self, b: Builder, call: Call) -> None:
        """Append the step."""
        layer, x, end = call.layer, call.windows.x, call.end.arguments(b)
        channels, ones, zeros = layer.groups, np.ones(layer.groups), np.zeros(layer.groups)
        per_task = max(-(-channels // TASKS), min(channels, -(-WORK // layer.positions)))
        per_task = round_up(per_task, CHANNELS)
        filters, scratch = filter_arguments(b, layer, per_task)
        scale, shift = end["scale"], end["shift"]
        arguments = {
            "end": end,
            "x": x,
            "image_step": x.strides[0],
            "channel_step": x.strides[1],
            "row_step": x.strides[2],
            "height": layer.size[0],
            "width": layer.size[1],
            "top": layer.padding[0],
            "left": layer.padding[1],
            "taps": layer.kernel[0],
            "stride": layer.stride[0],
            "dilation_x": layer.dilation[1],
            "filters": filters,
            "scale": b.constant(("ones", channels), lambda: ones) if scale == -1 else scale,
            "shift": b.constant(("zeros", channels), lambda: zeros) if shift == -1 else shift,
            "channels": channels,
            "batch": layer.batch,
            "out_height": layer.out_size[0],
            "out_width": layer.out_size[1],
            "per_task": per_task,
        }
        b.emit(
            depthwise_down,
            layer.node.name,
            -(-channels // per_task),
            arguments,
            reads=call.reads,
            writes=[call.end.out],
            scratch=scratch,
            algorithm=self.name,
            stored=layer.stored_bytes,
        )
