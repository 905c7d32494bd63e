"""Products with weights that are sums: of several decoded weights, with scales of groups of inputs, and single entries.

As `kernels.products.gemm`, but a panel of the weight is put together from its parts, in the order and with the
roundings of ``codecs.decoding``.
"""

import numpy as np
from numba import njit

from pqnet.kernels.abi import MAYBE_CODES, MAYBE_CONST, MAYBE_INDEX, SCRATCH, SIZE, Arguments, step
from pqnet.kernels.products.ahead import NOTHING
from pqnet.kernels.products.decode import decode_panel
from pqnet.kernels.products.epilogue import EPILOGUE, WINDOWS
from pqnet.kernels.products.gemm import CUT, multiply_panel, pack_task, part_of_task
from pqnet.kernels.products.tile import ROWS
from pqnet.kernels.simd import WIDTH, add, load, multiply, splat, store, store_head, subtract

LOOKUPS = 16  # at most

# Each lookup has codes row by row and codewords, as `kernels.products.gemm.WEIGHT`. What it gives is (codeword - zero)
# * scale, with a zero and a scale for each run of inputs: index[runs + piece] is the first run of a piece of the
# reduction, of which each has three numbers from index[runs + pieces + 1] on, its first column in the piece, its
# columns, and which scale it has in a row of scales. Blocks that do not lie side by side in a panel are listed piece by
# piece, from number index[firsts + piece] on; column i of the reduction is number index[sources + i] of what the blocks
# of its piece give.
# Entries of output o in piece p are those from number o * pieces + p of the starts to the next; their columns count
# within the piece.
SUMMED = Arguments(
    lookups=SIZE,
    codes=MAYBE_CODES.repeated(LOOKUPS),
    books=MAYBE_CONST.repeated(LOOKUPS),
    d=SIZE.repeated(LOOKUPS),
    stride=SIZE.repeated(LOOKUPS),
    code_bytes=SIZE.repeated(LOOKUPS),
    blocks=SIZE.repeated(LOOKUPS),  # codes of an output
    scales=MAYBE_CONST.repeated(LOOKUPS),
    zeros=MAYBE_CONST.repeated(LOOKUPS),
    scale_row=SIZE.repeated(LOOKUPS),  # scales of an output; 0 if all outputs have the same
    runs=MAYBE_INDEX.repeated(LOOKUPS),
    firsts=MAYBE_INDEX.repeated(LOOKUPS),
    sources=MAYBE_INDEX.repeated(LOOKUPS),
    starts=MAYBE_CODES,  # of 4 bytes each; -1 if there are no entries
    columns=MAYBE_CODES,
    column_bytes=SIZE,
    values=MAYBE_CONST,
    pieces=SIZE,
    part=SCRATCH,  # one decoded part of the panel
    part_step=SIZE,  # distance of its rows
)

SUMS = Arguments(layer=WINDOWS, end=EPILOGUE, weight=SUMMED, cut=CUT)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _number(codes, at, size):
    # The whole number in ``size`` bytes, the lowest first
    value = np.int64(codes[at])
    for i in range(1, size):
        value |= np.int64(codes[at + i]) << (8 * i)
    return value


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _scale(w, i, row, used, p, const, index, target, t, step):
    # INOUT target: ``used`` rows of lookup i from t, step apart, of outputs from row on in piece p
    runs = w.runs[i]
    first = runs + w.pieces + 1
    for r in range(used):
        of_row = (row + r) * w.scale_row[i]
        for q in range(index[runs + p], index[runs + p + 1]):
            at, n, group = t + r * step + index[first + 3 * q], index[first + 3 * q + 1], index[first + 3 * q + 2]
            scale = splat(const[w.scales[i] + of_row + group])
            zero = splat(const[w.zeros[i] + of_row + group] if w.zeros[i] >= 0 else np.float32(0))
            for j in range(0, n, WIDTH):
                v = multiply(subtract(load(target, at + j), zero), scale)
                if n - j >= WIDTH:
                    store(target, at + j, v)
                else:
                    store_head(target, at + j, v, n - j)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _put(w, i, used, k_first, rows, index, scratch, panel, step):
    # Write or add the decoded part of lookup i to the panel
    for r in range(used):
        source, target = w.part + r * w.part_step, panel + r * step
        if w.sources[i] >= 0:
            at = w.sources[i] + k_first
            for j in range(rows):
                scratch[target + j] = scratch[source + index[at + j]] + (
                    scratch[target + j] if i > 0 else np.float32(0)
                )
        else:
            for j in range(0, rows, WIDTH):
                store(scratch, target + j, add(load(scratch, target + j), load(scratch, source + j)))


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _add_entries(w, row, used, p, codes, const, scratch, panel, step):
    for r in range(used):
        number = w.starts + 4 * ((row + r) * w.pieces + p)
        for e in range(_number(codes, number, 4), _number(codes, number + 4, 4)):
            to = panel + r * step + _number(codes, w.columns + e * w.column_bytes, w.column_bytes)
            scratch[to] += const[w.values + e]


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def sum_panel(w, row, used, k, k_first, rows, piece, codes, const, index, scratch, panel):
    # OUT scratch from panel: weights k_first .. k_first + rows, of a reduction of k, of ``used`` outputs from row on,
    # piece + 16 apart
    step, p = piece + 16, k_first // piece
    if w.lookups == 0:
        for r in range(used):
            for j in range(0, rows, WIDTH):
                store(scratch, panel + r * step + j, splat(np.float32(0)))
    for i in range(w.lookups):
        d, size, blocks = w.d[i], w.code_bytes[i], w.blocks[i]
        first, n = blocks * k_first // k, blocks * rows // k
        if w.firsts[i] >= 0:
            first = index[w.firsts[i] + p]
            n = index[w.firsts[i] + p + 1] - first
        c = w.codes[i] + (row * blocks + first) * size
        direct = i == 0 and w.sources[i] < 0
        t, t_step = (panel, step) if direct else (w.part, w.part_step)
        decode_panel(codes, c, blocks * size, used, n, size == 2, const, w.books[i], w.stride[i], d, scratch, t, t_step)
        if w.scales[i] >= 0:
            _scale(w, i, row, used, p, const, index, scratch, t, t_step)
        if not direct:
            _put(w, i, used, k_first, rows, index, scratch, panel, step)
    if w.starts >= 0:
        _add_entries(w, row, used, p, codes, const, scratch, panel, step)


@step(SUMS)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def sums(task, g, data, const, codes, index, scratch):
    cut, k, outputs, piece = g.cut, g.layer.reduction, g.layer.outputs, g.cut.piece
    group, first, last, p, p_last = part_of_task(task, cut, outputs)
    n = p_last - p
    for k_first in range(0, k, piece):
        rows = min(piece, k - k_first)
        pack_task(g.layer, cut, group, p, n, k_first, rows, index, data, scratch)
        for o in range(first, last, ROWS):
            used = min(ROWS, outputs - o)
            row = group * outputs + o
            sum_panel(g.weight, row, used, k, k_first, rows, piece, codes, const, index, scratch, cut.panel)
            a0, a_step = cut.panel, piece + 16
            multiply_panel(
                g.layer,
                g.end,
                cut,
                scratch,
                a0,
                a_step,
                group,
                o,
                first,
                last,
                p,
                n,
                k_first,
                rows,
                data,
                const,
                codes,
                index,
                scratch,
                NOTHING,
            )
