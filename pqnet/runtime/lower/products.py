"""Convolutions and linear layers as layer steps."""

from dataclasses import dataclass
from math import prod

import numpy as np

from pqnet.codecs import Packed, PackedPQ
from pqnet.codecs.layout import block_columns
from pqnet.graph import Node
from pqnet.kernels.gemm import gemm
from pqnet.kernels.prepare import prepare
from pqnet.kernels.simd import WIDTH
from pqnet.kernels.tile import LANES, ROWS
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.lower.epilogue import absorb
from pqnet.runtime.views import View

__all__ = ["Product"]

PIECE = 384  # of the reduction: a panel and three lines of each packed row stay in the first-level cache
PACKED = 96 * 1024  # floats of packed positions a task: 384 KiB of the second-level cache
# Cycles for each number of the reduction: packing a tile, decoding a panel of blocks of one, a register tile; of a task.
PACK, DECODE, MULTIPLY, START = 10.0, 16.0, 12.5, 8000.0
NARROW = 40  # columns of images of which packing would copy too short pieces
SUMS = 48 * 1024  # floats of unfinished sums a task


@dataclass
class Product:
    """A layer step before its way is chosen: the geometry of the shared fields."""

    node: Node
    weight: np.ndarray | Packed  # in filter form
    x: View
    image_step: int
    group_step: int
    offsets: np.ndarray  # of the reduction, (c, ky, kx) order
    outputs: int  # of a group
    groups: int
    batch: int
    flat: int  # positions of an image, junk columns included
    pitch: int
    width: int
    image: int  # positions of an image
    out: View
    out_step: int
    tail: list[int | View]

    @property
    def reduction(self) -> int:
        """Inputs of an output."""
        return int(self.offsets.size)

    @property
    def positions(self) -> int:
        """Positions of all images."""
        return self.batch * self.image

    def fields(self, b: Builder, offsets: np.ndarray) -> list[int | View]:
        """Return fields 0-23 with the reduction in the order of ``offsets``."""
        shared: list[int | View] = [self.x, self.image_step, self.group_step, b.indices(offsets), self.reduction]
        shared += [self.outputs, self.groups, self.batch, self.flat, self.pitch, self.width]
        return [*shared, self.out, self.out_step, self.image, self.width, *self.tail, 0]


def _up(size: int, to: int) -> int:
    return -(-size // to) * to


def codeword_step(d: int) -> int:
    """Return the distance of two codewords as kernels read them."""
    return 4 if d <= 4 else 8 if d <= 8 else _up(d, 16)


def codebook_floats(packed: PackedPQ) -> np.ndarray:
    """Return the codewords in float32, each padded to `codeword_step`."""
    k, d = packed.codebook.shape
    out = np.zeros((k, codeword_step(d)), np.float32)
    out[:, :d] = packed.codebook
    return out


def code_rows(packed: PackedPQ) -> np.ndarray:
    """Return the codes row by row, as bytes."""
    return np.ascontiguousarray(packed.codes).view(np.uint8)


def gemm_blocks(k: int, d: int, outputs: int, groups: int, positions: int) -> tuple[list[int], int]:
    """Return fields 30-38 of `kernels.gemm` and the floats of scratch: how the work is cut, from its sizes alone."""
    pieces = -(-k // max(PIECE, d)) if k > PIECE + PIECE // 3 else 1
    piece = -(-(k // d) // pieces) * d
    total = -(-positions // LANES)
    best: tuple[float, int, int] | None = None
    for tiles in range(1, min(total, max(PACKED // (piece * LANES), 1), 12) + 1):
        room = outputs if piece == k else max(SUMS // (tiles * LANES), ROWS)
        for parts in (1, 2, 3, 4, 6, 8, 12, 16):
            o_block = _up(-(-outputs // parts), ROWS)
            if o_block > _up(room, ROWS) or (parts > 1 and o_block < 2 * ROWS):
                continue
            tasks = -(-total // tiles) * -(-outputs // o_block) * groups
            panels = o_block // ROWS
            task = tiles * PACK + panels * (DECODE / min(d, 8) + tiles * MULTIPLY) + START / k
            cost = sum(-(-tasks // threads) * threads * task for threads in (2, 4))
            best = min(best, (cost, tiles, o_block)) if best else (cost, tiles, o_block)
    assert best is not None  # one output block of ROWS always fits
    _, tiles, o_block = best
    o_block = min(o_block, _up(outputs, ROWS))
    q_tasks, o_tasks = -(-total // tiles), -(-outputs // o_block)
    panel = tiles * (piece + 1) * LANES + LANES
    sums = panel + _up(ROWS * (piece + 16) + 64, 16)
    column = sums + _up((o_block if piece < k else ROWS) * tiles * LANES, 16)
    scratch = column + (WIDTH // 3 + 1) * (piece + 16) + 64
    return [piece, o_block, tiles, o_tasks, positions, q_tasks, panel, sums, column], scratch


def emit_gemm(b: Builder, p: Product) -> None:
    """Append decode + GEMM, or the dense product."""
    name, weight = p.node.params["weight"], p.weight
    k = p.reduction
    if isinstance(weight, PackedPQ):
        d, order = weight.codec.d, block_columns(weight.shape, weight.codec.layout)
        own: list[int | View] = [
            b.code_bytes((name, "rows"), lambda: code_rows(weight)),
            b.constant((name, "codebook"), lambda: codebook_floats(weight)),
            *(d, codeword_step(d), weight.codes.itemsize, weight.codes.itemsize * (k // d)),
        ]
    else:
        d, order = 1, np.arange(k)
        rows = np.asarray(weight.decode() if isinstance(weight, Packed) else weight, np.float32).reshape(-1, k)
        # Behind the last output a tile reads rows of what follows; there is slack for them.
        own = [-1, b.constant((name, "dense"), lambda: np.concatenate([rows, np.zeros((ROWS, k), np.float32)])), 1, 0, 0, 0]
    blocks, scratch = gemm_blocks(k, d, p.outputs, p.groups, p.positions)
    b.emit(
        gemm,
        p.node.name,
        blocks[3] * blocks[5] * p.groups,
        [*p.fields(b, p.offsets[order]), *own, *blocks],
        reads=[p.x, *(v for v in p.tail if isinstance(v, View))],
        writes=[p.out],
        scratch=scratch,
        way="decode" if isinstance(weight, PackedPQ) else "dense",
    )


def _prepared(b: Builder, node: Node, x: View, kernel: tuple[int, int], size: tuple[int, int]) -> tuple[View, np.ndarray]:
    """Emit padding and phase split; return the prepared planes (C, B, phase, rows, columns) and each tap's offset."""
    a = b.attrs(node)
    (sh, sw), (dh, dw), (top, left) = a["stride"], a["dilation"], a["padding"][:2]
    taps = [(i * dh, j * dw) for i in range(kernel[0]) for j in range(kernel[1])]
    rows, columns = (size[i] + (kernel[i] - 1) * a["dilation"][i] // a["stride"][i] for i in (0, 1))
    # Narrow images get a copy for each column of the kernel, cut to the output's width: whole images are contiguous
    # then. In wide ones a tap is a shift of the columns, and packing skips the margins.
    narrow = columns > size[1] and size[1] < NARROW
    places = [(y % sh, x if narrow else x % sw, y // sh, 0 if narrow else x // sw) for y, x in taps]
    phases = sorted({place[:2] for place in places})
    columns = size[1] if narrow else columns
    batch, channels, height, width = x.shape
    out = b.new((channels, batch, len(phases), rows, columns))
    per_task = max(-(-channels // 16), min(channels, -(-16384 // (batch * len(phases) * rows * columns))))
    tasks = -(-channels // per_task)
    fields: list[int | View] = [x, out, x.strides[1], x.strides[0], height, width, x.strides[2], rows, columns, top, left]
    fields += [sh, sw, batch, len(phases), b.indices(phases), channels, per_task]
    b.emit(prepare, f"{node.name} (padding)", tasks, fields, reads=[x], writes=[out])
    plane = rows * columns
    offsets = [phases.index((py, px)) * plane + row * columns + column for py, px, row, column in places]
    return out, np.array(offsets)


@lowers("conv2d")
def conv2d(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a convolution to padding, if it needs any, and a layer step."""
    weight = b.param(node, "weight")
    assert weight is not None
    a, groups = b.attrs(node), b.attrs(node)["groups"]
    o, c, kh, kw = weight.shape
    batch, _, height, width = b.info(node.outputs[0]).shape
    source = x[0] if x[0].strides[3] == 1 or x[0].shape[3] == 1 else b.dense(x[0], (1, 0, 2, 3))
    plain = (kh, kw) == (1, 1) and tuple(a["stride"]) == (1, 1) and not any(a["padding"])
    if plain:
        channel, image_step, pitch = source.strides[1], source.strides[0], source.strides[2]
        taps = np.zeros(1, np.int64)
    else:
        source, taps = _prepared(b, node, source, (kh, kw), (height, width))
        channel, image_step, _, pitch = source.strides[:4]
    out = b.new((batch, o, height, width), (1, 0, 2, 3))
    image, flat = height * width, (height - 1) * pitch + width
    if height == 1 or pitch == width:
        width = flat = pitch = image
        if batch == 1 or image_step == image:
            batch, image = 1, batch * image
            width = flat = pitch = image

    def fits(view: View) -> bool:
        return all(view.strides[axis] == out.strides[axis] for axis in (0, 2, 3) if view.shape[axis] > 1)

    tail = absorb(b, node, fits, 1)
    step = 0 if tail.residual is None else tail.residual.strides[1]
    product = Product(
        node,
        weight,
        source,
        image_step,
        c * channel,
        (np.arange(c)[:, None] * channel + taps).reshape(-1),
        o // groups,
        groups,
        batch,
        flat,
        pitch,
        width,
        image,
        out,
        out.strides[1],
        tail.fields(b, node.name, step),
    )
    emit_gemm(b, product)
    for absorbed in tail.nodes:
        b.finish(absorbed, out)
    return out


@lowers("linear")
def linear(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a linear layer to a layer step whose positions are the rows."""
    weight = b.param(node, "weight")
    assert weight is not None
    *lead, inputs = x[0].shape
    rows, o = prod(lead), weight.shape[0]
    last = len(lead)
    order = (last, *range(last))
    flat = x[0].reshape((rows, inputs))
    if flat is None or (flat.strides[0] != 1 and rows > 1):
        flat = b.dense(x[0], order).reshape((rows, inputs))
        assert flat is not None
    out = b.new((*lead, o), order)

    def fits(view: View) -> bool:
        other = view.reshape((rows, o))
        return other is not None and (rows == 1 or other.strides[0] == 1)

    tail = absorb(b, node, fits, 1 if last == 1 else -1)
    other = None if tail.residual is None else tail.residual.reshape((rows, o))
    offsets = np.arange(inputs) * flat.strides[1]
    own = tail.fields(b, node.name, 0 if other is None else other.strides[1])
    emit_gemm(b, Product(node, weight, flat, 0, 0, offsets, o, 1, 1, rows, rows, rows, rows, out, rows, own))
    for absorbed in tail.nodes:
        b.finish(absorbed, out)
    return out
