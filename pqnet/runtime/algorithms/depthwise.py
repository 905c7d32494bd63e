"""Depthwise convolutions: those of one filter for each channel."""

from typing import Any

import numpy as np

from pqnet.kernels.products.depthwise import COLUMNS, DOWN, VECTORS, depthwise
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.algorithms.base import Algorithm, Call, Host
from pqnet.runtime.algorithms.filters import filter_arguments
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import View, round_up
from pqnet.runtime.windows import Windows

BAND = 3072  # floats of a band's padded input: it and the sums fit in a first-level cache
TASKS, WORK = 64, 16384  # tasks at most, pixels a task at least
TAP, PIXEL = 1.5, 8.0  # cycles of a vector of positions


class Depthwise(Algorithm):
    """Planes of one channel, padded in bands that stay in the first-level cache."""

    name = "depthwise"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether every channel has one filter."""
        return layer.depthwise

    def cost(self, layer: Layer) -> float:
        """Return the cost of all taps."""
        return layer.groups * layer.positions / WIDTH * (PIXEL + TAP * layer.taps)

    def windows(self, b: Builder, layer: Layer, x: View) -> Windows:
        """Take the input as it is: padding happens in scratch."""
        nothing = np.zeros(0, np.int64)
        return Windows(layer, x, x.strides[0], x.strides[1], nothing, layer.batch, *layer.out_size, x.strides[2])

    def steps(self, b: Builder, call: Call) -> None:
        """Append the step."""
        layer, x = call.layer, call.windows.x
        channels, (height, columns) = layer.groups, layer.size
        geometry, scratch = _geometry(b, layer)
        per_task = max(-(-channels // TASKS), min(channels, -(-WORK // (layer.batch * height * columns))))
        filters, scratch = filter_arguments(b, layer, per_task, round_up(scratch, 16))
        arguments = {
            "end": call.end.arguments(b),
            "x": x,
            "image_step": x.strides[0],
            "channel_step": x.strides[1],
            "row_step": x.strides[2],
            "height": height,
            "top": layer.padding[0],
            "left": layer.padding[1],
            "stride_y": layer.stride[0],
            "stride_x": layer.stride[1],
            "filters": filters,
            "channels": channels,
            "batch": layer.batch,
            "out_height": layer.out_size[0],
            "out_width": layer.out_size[1],
            "image": layer.image,
            "per_task": per_task,
            "dilation_x": layer.dilation[1],
        }
        b.emit(
            depthwise,
            layer.node.name,
            -(-channels // per_task),
            arguments | geometry,
            reads=call.reads,
            writes=[call.end.out],
            scratch=scratch,
            algorithm=self.name,
            stored=layer.stored_bytes,
        )


def _phases(
    padding: int, size: int, out: int, kernel: int, stride: int, dilation: int
) -> dict[int, tuple[int, int, int]]:
    """Return the phases of an axis that taps need: first and last position inside the image, and those needed."""
    found = {}
    for phase in sorted({k * dilation % stride for k in range(kernel)}):
        needed = out + max(k * dilation // stride for k in range(kernel) if k * dilation % stride == phase)
        first = max(-((phase - padding) // stride), 0)
        last = max(min((size - 1 - (phase - padding)) // stride + 1, needed), first)
        found[phase] = (first, last, needed)
    return found


def _geometry(b: Builder, layer: Layer) -> tuple[dict[str, Any], int]:
    """Return the arguments that say how a plane is cut in bands and phases, and the floats of scratch."""
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel, layer.stride, layer.dilation
    (out_height, width), columns = layer.out_size, layer.size[1]
    across = _phases(layer.padding[1], columns, width, kw, sw, dw)
    down = sorted({k * dh % sh for k in range(kh)})
    # The zeros behind a row are those before the next: a row must leave them room, and see all that it needs.
    pitch = max(width, *(max(needed - first, last) for first, last, needed in across.values()))
    extra = (kh - 1) * dh // sh
    margin = max(first for first, _, _ in across.values())
    phases = [(py, px) for py in down for px in across]
    bands = -(-out_height // max(BAND // len(phases) // pitch - extra, 4))
    band = -(-out_height // bands)
    plane = round_up((band + extra) * pitch + margin, WIDTH)
    places = [(i * dh, j * dw) for i in range(kh) for j in range(kw)]
    order = {phase: i for i, phase in enumerate(phases)}
    table = [(py, px, *across[px][:2]) for py, px in phases]
    shifts = [order[i % sh, j % sw] * plane + i // sh * pitch + j // sw for i, j in places]
    sums = round_up(len(phases) * plane, 16)
    # Sums run over their end, and the last shift is added to the last position computed.
    reach = round_up(band * pitch, VECTORS * WIDTH) + max(shifts) + (2 * COLUMNS + 1) * WIDTH + pitch
    arguments = {
        "phases": len(phases),
        "table": b.table(table),
        "plane": plane,
        "shifts": b.table(shifts),
        "band": band,
        "extra": extra,
        "pitch": pitch,
        "down": kh if kh == kw and kh in DOWN and (sh, sw, dh) == (1, 1, 1) else 0,
        "sums": sums,
    }
    return arguments, sums + reach
