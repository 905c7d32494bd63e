"""Products with float weights for a few positions: the lanes are outputs, so that no sum is taken over lanes.

The weight is stored in panels of LANES outputs, element of the reduction after element: one stream that is read once.
"""

import numpy as np
from numba import njit

from pqnet.kernels.abi import CONST, SCRATCH, SIZE, Arguments, step
from pqnet.kernels.ops.activation import activate_row
from pqnet.kernels.products.epilogue import EPILOGUE, WINDOWS, clamp_limits, finish_rows
from pqnet.kernels.products.lut_rows import finish_outputs
from pqnet.kernels.products.tile import LANES, SMALL_ROWS, multiply_one, multiply_small
from pqnet.kernels.simd import WIDTH, fma, load, maximum, minimum, splat, store

COLUMNS = Arguments(
    layer=WINDOWS,  # of at most SMALL_ROWS positions
    end=EPILOGUE,
    weight=CONST,  # (groups, panels, reduction, LANES)
    panels=SIZE,  # of a group
    per_task=SIZE,  # panels
    o_tasks=SIZE,  # tasks along the panels of a group
    sums=SCRATCH,  # of a panel of several positions, (SMALL_ROWS, LANES)
    windows=SCRATCH,
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def gather_windows(layer, group, positions, index, data, scratch, to):
    # OUT scratch from ``to``: the windows of all positions, one after another
    k, i0 = layer.reduction, layer.offsets
    for p in range(positions):
        b = p // layer.image
        at = p - b * layer.image
        y = at // layer.width
        start = layer.x + group * layer.group_step + b * layer.image_step + y * layer.pitch + at - y * layer.width
        for i in range(k):
            scratch[to + p * k + i] = data[start + index[i0 + i]]


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def finish_columns(sums, s, o, n, positions, e, data, const, spare):
    # The epilogue (e: an EPILOGUE) of outputs o .. o + n; their sums at each position are side by side, LANES apart
    kind, parameters = e.activation, e.parameters
    if e.residual >= 0:  # lies in memory as the result does
        for i in range(n):
            for p in range(positions):
                sums[spare + i * SMALL_ROWS + p] = sums[s + p * LANES + i]
        finish_rows(sums, spare, SMALL_ROWS, n, o, 0, positions, e, data, const)
        return
    least, most = clamp_limits(e, const)
    low, high = splat(least), splat(most)
    one, zero = splat(np.float32(1)), splat(np.float32(0))
    for i in range(0, n, WIDTH):
        scale = load(const, e.scale + o + i) if e.scale >= 0 else one
        shift = load(const, e.shift + o + i) if e.shift >= 0 else zero
        for p in range(positions):
            at = s + p * LANES + i
            store(sums, at, minimum(maximum(fma(load(sums, at), scale, shift), low), high))
    for p in range(positions):
        if kind > 2:
            activate_row(kind, sums, s + p * LANES, n, const, parameters)
        to = e.out + o * e.out_step + p
        for i in range(n):
            data[to + i * e.out_step] = sums[s + p * LANES + i]


@step(COLUMNS)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def columns(task, g, data, const, codes, index, scratch):
    layer, k, positions = g.layer, g.layer.reduction, g.layer.batch * g.layer.image
    group = task // g.o_tasks
    first = (task - group * g.o_tasks) * g.per_task
    last = min(first + g.per_task, g.panels)
    o = group * layer.outputs + first * LANES
    gather_windows(layer, group, positions, index, data, scratch, g.windows)
    for panel in range(first, last):
        weight = g.weight + (group * g.panels + panel) * k * LANES
        at = (panel - first) * LANES
        if positions == 1:
            multiply_one(scratch, g.windows, 0, 1, const, weight, k, scratch, at, LANES, 0)
            continue
        multiply_small(scratch, g.windows, k, 1, const, weight, k, scratch, g.sums, LANES, 0)
        n = min(LANES, layer.outputs - panel * LANES)
        finish_columns(scratch, g.sums, o + at, n, positions, g.end, data, const, 0)
    if positions == 1:
        finish_outputs(scratch, o, min(last * LANES, layer.outputs) - first * LANES, g.end, data, const)
