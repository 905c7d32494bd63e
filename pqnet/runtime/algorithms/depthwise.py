"""Depthwise convolutions: those of one filter for each channel."""

from math import prod

from pqnet.graph import Node
from pqnet.kernels.depthwise import COLUMNS, DOWN, VECTORS, depthwise
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.lower import products
from pqnet.runtime.lower.copy import dense
from pqnet.runtime.lower.epilogue import absorb
from pqnet.runtime.lower.product import round_up
from pqnet.runtime.views import View

BAND = 3072  # floats of a band's padded input: it and the sums fit in a first-level cache
TASKS = 64


@lowers("conv2d")
def conv2d(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a convolution with one filter for each channel; all others are products."""
    weight = b.param(node, "weight")
    assert weight is not None
    o, c, *_ = weight.shape
    if c != 1 or o != b.attrs(node)["groups"] or o == 1:
        found: View | None = products.conv2d(b, node, x)
        return found
    return _emit(b, node, x[0])


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


def _emit(b: Builder, node: Node, x: View) -> View:
    weight = b.param(node, "weight")
    a = b.attrs(node)
    assert weight is not None
    (kh, kw), (sh, sw), (dh, dw) = weight.shape[2:], a["stride"], a["dilation"]
    batch, channels, out_height, width = b.info(node.outputs[0]).shape
    height, columns = x.shape[2:]
    if x.strides[3] != 1 and columns > 1:
        x = dense(b, x, (1, 0, 2, 3))
    across = _phases(a["padding"][1], columns, width, kw, sw, dw)
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

    out = b.new((batch, channels, out_height, width), (1, 0, 2, 3))

    def fits(view: View) -> bool:
        return all(view.strides[axis] == out.strides[axis] for axis in (0, 2, 3) if view.shape[axis] > 1)

    tail = absorb(b, node, fits, 1)
    own = tail.fields(b, node.name, 0 if tail.residual is None else tail.residual.strides[1])
    filters = b.constant((node.params["weight"], "filters"), lambda: b.floats(node, "weight"))
    per_task = max(-(-channels // TASKS), min(channels, -(-16384 // (batch * height * columns))))
    sums = round_up(len(phases) * plane, 16)
    # Sums run over their end, and the last shift is added to the last position computed.
    reach = round_up(band * pitch, VECTORS * WIDTH) + max(shifts) + (2 * COLUMNS + 1) * WIDTH + pitch
    fields: list[int | View] = [x, x.strides[0], x.strides[1], b.indices(shifts), kh * kw, filters, channels, batch]
    fields += [band, pitch, width, out, out.strides[1], out_height * width, out_height, *own, height, columns]
    fields += [*a["padding"][:2], sh, sw, len(phases), b.indices(table), plane, per_task, sums, x.strides[2], extra]
    fields += [kh if kh == kw and kh in DOWN and (sh, sw, dh) == (1, 1, 1) else 0, dw]
    reads = [x] if tail.residual is None else [x, tail.residual]
    b.emit(
        depthwise,
        node.name,
        -(-channels // per_task),
        fields,
        reads=reads,
        writes=[out],
        scratch=sums + reach,
        stored=4 * prod(weight.shape),
    )
    for absorbed in tail.nodes:
        b.finish(absorbed, out)
    return out
