"""Where the windows of a layer lie in memory: padding to planes on which every tap is a shift, and their geometry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pqnet.kernels.products.prepare import prepare
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.builder import Builder
from pqnet.runtime.copying import dense
from pqnet.runtime.layer import IMAGE, Layer
from pqnet.runtime.memory import View

__all__ = ["Windows", "pad_planes", "plane_arguments", "plane_cycles", "windows_of"]

NARROW = 40  # columns of images of which packing would copy too short pieces
COPY = 4.6  # cycles for a vector of planes
TASKS, WORK = 16, 16384  # tasks of padding at most, elements a task at least


@dataclass(frozen=True)
class Windows:
    """The windows of a layer, as `kernels.products.epilogue.WINDOWS` describes them.

    ``offsets`` are those of a window's elements in the order channel, row, column. Positions lie in rows of ``width``,
    ``pitch`` apart; ``height`` rows make an image. Rows and images that follow each other without a gap count as one.
    """

    layer: Layer
    x: View
    image_step: int
    group_step: int
    offsets: np.ndarray
    batch: int
    height: int
    width: int
    pitch: int

    def arguments(self, b: Builder, order: "np.ndarray | slice" = slice(None)) -> dict[str, Any]:
        """Return the arguments of a kernel that reads the elements of a window in an order of its own."""
        return {
            "x": self.x,
            "image_step": self.image_step,
            "group_step": self.group_step,
            "offsets": b.table(self.offsets[order]),
            "reduction": self.layer.reduction,
            "outputs": self.layer.outputs,
            "groups": self.layer.groups,
            "batch": self.batch,
            "pitch": self.pitch,
            "width": self.width,
            "image": self.height * self.width,
        }


def plane_arguments(b: Builder, layer: Layer, x: View, out: View, phases: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return the arguments `kernels.products.prepare.PLANES` of planes (C, B, phase, rows, columns)."""
    batch, _, height, width = x.shape
    return {
        "x": x,
        "out": out,
        "channel_step": x.strides[1],
        "image_step": x.strides[0],
        "row_step": x.strides[2],
        "height": height,
        "width": width,
        "rows": out.shape[3],
        "columns": out.shape[4],
        "top": layer.padding[0],
        "left": layer.padding[1],
        "stride_y": layer.stride[0],
        "stride_x": layer.stride[1],
        "batch": batch,
        "phases": len(phases),
        "table": b.table(phases),
    }


def plane_cycles(layer: Layer, narrow: bool = True) -> float:
    """Return about how many cycles of one core the planes take that `windows_of` makes of a layer's input."""
    if layer.pointwise:
        return 0.0
    (kh, kw), (sh, sw), (dh, dw), (high, wide) = layer.kernel, layer.stride, layer.dilation, layer.out_size
    rows = min(sh, kh) * (high + (kh - 1) * dh // sh)
    columns = kw * wide if narrow and wide < NARROW else min(sw, kw) * (wide + (kw - 1) * dw // sw)
    return COPY * layer.groups * layer.channels * layer.batch * rows * columns / WIDTH


def pad_planes(
    b: Builder, layer: Layer, x: View, size: tuple[int, int], phases: Sequence[tuple[int, int]], label: str = "padding"
) -> View:
    """Emit zero padding to planes (C, B, phase, rows, columns) of the given size; see `kernels.products.prepare`."""
    batch, channels = x.shape[:2]
    out = b.new((channels, batch, len(phases), *size))
    per_task = max(-(-channels // TASKS), min(channels, -(-WORK // (batch * len(phases) * size[0] * size[1]))))
    planes = plane_arguments(b, layer, x, out, phases)
    arguments = {"planes": planes, "channels": channels, "per_task": per_task}
    b.emit(prepare, f"{layer.node.name} ({label})", -(-channels // per_task), arguments, reads=[x], writes=[out])
    return out


def windows_of(
    b: Builder,
    layer: Layer,
    x: View,
    *,
    narrow: bool = True,
    one_run: bool = False,
    pad: Callable[..., View] = pad_planes,
) -> Windows:
    """Return the windows of a layer's input, padded if it needs to be.

    Parameters
    ----------
    b : Builder
    layer : Layer
    x : View
        Images, see `Layer.input`.
    narrow : bool
        Whether small images may have a copy for each column of the kernel, so that whole images are contiguous.
    one_run : bool
        Whether all positions have to follow each other, for a layer whose batch is 1 or that is pointwise.
    pad : callable
        Makes the planes, with the arguments of `pad_planes`.
    """
    if layer.pointwise:
        if one_run and not _is_one_run(layer, x):
            x = dense(b, x, IMAGE)
        image_step, channel, pitch = x.strides[:3]
        shifts = np.zeros(1, np.int64)
    else:
        x, shifts = _tap_planes(b, layer, x, narrow, pad)
        channel, image_step, _, pitch = x.strides[:4]
    offsets = (np.arange(layer.channels)[:, None] * channel + shifts).reshape(-1)
    batch, (height, width) = layer.batch, layer.out_size
    if height == 1 or pitch == width:
        height, width = 1, height * width
        pitch = width
        if batch == 1 or image_step == width:
            batch, width = 1, batch * width
            pitch = width
    return Windows(layer, x, image_step, layer.channels * channel, offsets, batch, height, width, pitch)


def _is_one_run(layer: Layer, x: View) -> bool:
    height, width = layer.out_size
    return (height == 1 or x.strides[2] == width) and (layer.batch == 1 or x.strides[0] == layer.image)


def _tap_planes(b: Builder, layer: Layer, x: View, narrow: bool, pad: Callable[..., View]) -> tuple[View, np.ndarray]:
    """Emit the planes in which every tap is a shift of the output's positions; return them and the shifts."""
    (kh, kw), (sh, sw), (dh, dw), size = layer.kernel, layer.stride, layer.dilation, layer.out_size
    taps = [(i * dh, j * dw) for i in range(kh) for j in range(kw)]
    rows, columns = size[0] + (kh - 1) * dh // sh, size[1] + (kw - 1) * dw // sw
    # Narrow images get a copy for each column of the kernel, cut to the output's width: whole images are contiguous
    # then. In wide ones a tap is a shift of the columns, and packing skips the margins.
    narrow = narrow and columns > size[1] and size[1] < NARROW
    columns = size[1] if narrow else columns
    places = [(y % sh, x if narrow else x % sw, y // sh, 0 if narrow else x // sw) for y, x in taps]
    phases = sorted({place[:2] for place in places})
    planes = pad(b, layer, x, (rows, columns), phases)
    shifts = [phases.index((py, px)) * rows * columns + row * columns + column for py, px, row, column in places]
    return planes, np.array(shifts)
