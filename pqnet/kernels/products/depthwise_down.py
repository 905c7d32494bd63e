"""Depthwise convolutions with square kernels, down the columns of two channels at once, from the values as they lie.

A vector of outputs goes down its columns: every row of the input is loaded once and serves all the rows of outputs that
see it, whose sums wait in registers. Columns that are padding are masked, rows that are padding passed over: nothing is
copied, and a sum that is complete is finished and stored at once. Two channels go together since the sums of one wait
for each other.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types

from pqnet.kernels.abi import CONST, DATA, SIZE, Arguments, step
from pqnet.kernels.llvm import FLOAT, INDEX, LONG, WORD, compiled_or, constant, element, offset, shuffle
from pqnet.kernels.llvm import fma as emit_fma
from pqnet.kernels.llvm import load as emit_load
from pqnet.kernels.llvm import prefetch as emit_prefetch
from pqnet.kernels.llvm import splat as emit_splat
from pqnet.kernels.llvm import store as emit_store
from pqnet.kernels.llvm import store_head as emit_store_head
from pqnet.kernels.ops.activation import activate_row
from pqnet.kernels.ops.functions import at_least, at_most
from pqnet.kernels.products.epilogue import EPILOGUE, clamp_limits
from pqnet.kernels.products.filters import FILTERS, decode_filters
from pqnet.kernels.simd import WIDTH, add, load, splat, store, store_head

HALF = WIDTH // 2 if WIDTH == 16 else WIDTH  # lanes for narrow images
CHANNELS = 2  # that go down together
BAND = 6144  # floats of the input of both that stay in the first-level cache

# What the kernels below take, each a tuple of positions and sizes: where the windows of the first channel begin, the
# distance to the next channel and of rows, how many rows of the padded image lie above it, its height, the column of
# the first window (negative: of padding), the width of the image, the distance of taps, that of
# what is needed next; then where the results go, the
# distance to those of the next channel and of rows, the rows, how many rows may be stored by whole vectors, the columns
# left; then the filter of the first channel and the distance to the next, the factor and the term of the first channel,
# whether there is a second, and the taps along an axis.
SOURCE, RESULT, CHANNEL = 9, 6, 6


def _downwards(taps, stride, lanes):
    ages = -(-taps // stride)  # rows of outputs whose sums wait

    def reference(data, const, weights, source, result, channel, limits):
        x0, x_step, row, top, height, column, width, dx, _ = source
        o0, o_step, out_row, rows, safe, count = result
        w0, w_step, scale, shift, second, _ = channel
        lane = np.arange(lanes) * stride
        for v, i in np.ndindex(CHANNELS, rows):
            total = np.zeros(lanes, np.float32)
            for ky, kx in np.ndindex(taps, taps):
                inside = (column + kx * dx + lane >= 0) & (column + kx * dx + lane < width)
                if 0 <= i * stride + ky - top < height:
                    for at in np.flatnonzero(inside):
                        x = data[x0 + v * x_step + (i * stride + ky) * row + kx * dx + lane[at]]
                        total[at] += weights[w0 + v * w_step + ky * taps + kx] * x
            n = lanes if i < safe else min(count, lanes)
            total = total * const[scale + v * second] + const[shift + v * second]
            at = o0 + v * o_step + i * out_row
            data[at : at + n] = np.clip(total, *limits)[:n]

    def emit(context, builder, signature, values):
        kind, words = ir.VectorType(FLOAT, lanes), ir.VectorType(WORD, lanes)
        zeros, channels = constant(kind, 0.0), range(CHANNELS)

        def unpack(i):
            return [builder.extract_value(values[i], at) for at in range(signature.args[i].count)]

        def place(array, at):
            return element(context, builder, signature, values, array, at)

        def spread(pointer):
            return emit_splat(builder, emit_load(builder, pointer), kind)

        def times(number, by):
            return builder.mul(number, LONG(by))

        x0, x_step, row, top, height, column, width, dx, ahead = unpack(3)
        o0, o_step, out_row, rows, safe, count = unpack(4)
        w0, w_step, scale, shift, second, across = unpack(5)
        low, high = (emit_splat(builder, limit, kind) for limit in unpack(6))
        sources = [place(0, builder.add(x0, times(x_step, v))) for v in channels]
        targets = [place(0, builder.add(o0, times(o_step, v))) for v in channels]
        weights = [place(2, builder.add(w0, times(w_step, v))) for v in channels]
        scales, shifts = (
            [spread(place(1, builder.add(first, times(second, v)))) for v in channels] for first in (scale, shift)
        )
        widths = emit_splat(builder, builder.trunc(width, WORD), words)

        def weights_at(at):
            return [spread(offset(builder, pointer, at)) for pointer in weights]

        # Those of a small filter stay in registers; LLVM would load them again after every store.
        held = [weights_at(LONG(tap)) for tap in range(taps * taps)] if taps == 3 else []

        def load_columns(at, further):
            # Of each channel: the vector ``further`` columns behind the first window, zeros for columns of padding
            first = emit_splat(builder, builder.trunc(builder.add(column, further), WORD), words)
            inside = builder.icmp_unsigned("<", builder.add(first, constant(words, range(lanes))), widths)
            at = builder.add(at, further)
            loaded = [emit_load(builder, offset(builder, pointer, at), kind) for pointer in sources]
            return [builder.select(inside, value, zeros) for value in loaded]

        def add_tap(r, kx, inputs, sums):
            # ``sums`` by age; in this row those of age a see row a * stride + r of the kernel
            results = []
            for age in range(ages):
                ky = (ages - 1 - age) * stride + r
                if ky >= taps:
                    results.append(sums[age])
                    continue
                spreads = held[ky * taps + kx.constant] if held else weights_at(builder.add(kx, LONG(ky * taps)))
                results.append([emit_fma(builder, spreads[v], inputs[v], sums[age][v]) for v in channels])
            return results

        def add_row(r, at, sums):
            if stride == 2:
                # Even and odd columns of two vectors; those of the taps behind them end with columns of a third one.
                first, middle, last = (load_columns(at, LONG(n * lanes)) for n in range(3))
                pairs = list(zip(first, middle, strict=True))
                apart = [[shuffle(builder, *pair, range(odd, 2 * lanes, 2)) for pair in pairs] for odd in (0, 1)]
                for kx in range(taps):
                    inputs, by = apart[kx % 2], kx // 2
                    if by:
                        lane = [*range(by, lanes), *range(lanes + kx % 2, lanes + kx, 2)]
                        inputs = [shuffle(builder, inputs[v], last[v], lane) for v in channels]
                    sums = add_tap(r, LONG(kx), inputs, sums)
                return sums
            if taps == 3:
                for kx in range(taps):
                    sums = add_tap(r, LONG(kx), load_columns(at, times(dx, kx)), sums)
                return sums
            # More taps at once do not fit in the registers; LLVM unrolls loops whose end it knows.
            before, inner, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
            builder.branch(inner)
            builder.position_at_end(inner)
            kx, phis = builder.phi(LONG), [[builder.phi(kind) for _ in channels] for _ in sums]
            results = add_tap(r, kx, load_columns(at, builder.mul(dx, kx)), phis)
            following = builder.add(kx, LONG(1))
            kx.add_incoming(LONG(0), before)
            kx.add_incoming(following, inner)
            _join(phis, (before, sums), (inner, results))
            builder.cbranch(builder.icmp_signed("<", following, across), inner, after)
            builder.position_at_end(after)
            return results

        start = builder.block
        head = builder.append_basic_block("down")
        builder.branch(head)
        builder.position_at_end(head)
        i, old = builder.phi(LONG), [[builder.phi(kind) for _ in channels] for _ in range(ages - 1)]
        done = builder.sub(i, LONG(ages - 1))
        sums = [*old, [zeros] * CHANNELS]
        for r in range(stride):
            y = builder.add(times(i, stride), LONG(r))
            for v in channels:
                further = builder.add(builder.mul(y, row), ahead)
                emit_prefetch(builder, offset(builder, sources[v], further), locality=2)
            inside = builder.icmp_unsigned("<", builder.sub(y, top), height)
            before, inner, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
            builder.cbranch(inside, inner, after)
            builder.position_at_end(inner)
            results, last = add_row(r, builder.mul(y, row), sums), builder.block
            builder.branch(after)
            builder.position_at_end(after)
            phis = [[builder.phi(kind) for _ in channels] for _ in sums]
            _join(phis, (before, sums), (last, results))
            sums = phis
        with builder.if_then(builder.icmp_signed(">=", done, LONG(0))):
            finished = []
            for v in channels:
                value = emit_fma(builder, sums[0][v], scales[v], shifts[v])
                value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
                finished.append(builder.select(builder.fcmp_ordered(">", value, high), high, value))
            places = [offset(builder, target, builder.mul(done, out_row)) for target in targets]
            with builder.if_else(builder.icmp_signed("<", done, safe)) as (whole, partly):
                with whole:
                    for value, to in zip(finished, places, strict=True):
                        emit_store(builder, value, to)
                with partly:
                    for value, to in zip(finished, places, strict=True):
                        emit_store_head(builder, value, to, count)
        following = builder.add(i, LONG(1))
        i.add_incoming(LONG(0), start)
        i.add_incoming(following, builder.block)
        _join(old, (start, [[zeros] * CHANNELS] * (ages - 1)), (builder.block, sums[1:]))
        end = builder.append_basic_block("down.end")
        builder.cbranch(builder.icmp_signed("<", following, builder.add(rows, LONG(ages - 1))), head, end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    def down(context, data, const, weights, source, result, channel, limits):
        sizes = (types.UniTuple(INDEX, n) for n in (SOURCE, RESULT, CHANNEL))
        return types.void(data, const, weights, *sizes, types.UniTuple(types.float32, 2)), emit

    return compiled_or(reference, down)


def _join(phis, *incoming):
    """Give phis, in rows, the values that they have after each block."""
    for block, values in incoming:
        for row, own in zip(phis, values, strict=True):
            for phi, value in zip(row, own, strict=True):
                phi.add_incoming(value, block)


# (data, const, weights, source, result, channel, limits); see SOURCE, RESULT, CHANNEL. Results lie within the limits.
_down_3, _down_3_half = _downwards(3, 1, WIDTH), _downwards(3, 1, HALF)
_down_5, _down_5_half = _downwards(5, 1, WIDTH), _downwards(5, 1, HALF)
_down_7 = _downwards(7, 1, WIDTH)
_down_3_by_2, _down_3_by_2_half = _downwards(3, 2, WIDTH), _downwards(3, 2, HALF)
_down_5_by_2, _down_5_by_2_half = _downwards(5, 2, WIDTH), _downwards(5, 2, HALF)

DOWN = Arguments(
    end=EPILOGUE,
    x=DATA,
    image_step=SIZE,
    channel_step=SIZE,
    row_step=SIZE,
    height=SIZE,
    width=SIZE,
    top=SIZE,  # rows and columns of padding
    left=SIZE,
    stride=SIZE,
    dilation_x=SIZE,
    taps=SIZE,  # along an axis
    filters=FILTERS,
    scale=CONST,  # of each channel
    shift=CONST,
    channels=SIZE,
    batch=SIZE,
    out_height=SIZE,
    out_width=SIZE,
    per_task=SIZE,  # channels
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _go_down(data, const, weights, taps, stride, narrow, source, result, channel, limits):
    if taps == 3 and stride == 1:
        if narrow:
            _down_3_half(data, const, weights, source, result, channel, limits)
        else:
            _down_3(data, const, weights, source, result, channel, limits)
    elif taps == 3:
        if narrow:
            _down_3_by_2_half(data, const, weights, source, result, channel, limits)
        else:
            _down_3_by_2(data, const, weights, source, result, channel, limits)
    elif taps == 5 and stride == 1:
        if narrow:
            _down_5_half(data, const, weights, source, result, channel, limits)
        else:
            _down_5(data, const, weights, source, result, channel, limits)
    elif taps == 5:
        if narrow:
            _down_5_by_2_half(data, const, weights, source, result, channel, limits)
        else:
            _down_5_by_2(data, const, weights, source, result, channel, limits)
    else:
        _down_7(data, const, weights, source, result, channel, limits)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _finish_plane(at, beside, n, e, data, const):
    # INOUT data[at : at + n]: adds the residual from ``beside`` on if there is one, then the activation
    if e.residual >= 0:
        least, most = clamp_limits(e, const)
        low, high = splat(least), splat(most)
        for j in range(0, n, WIDTH):
            v = at_most(at_least(add(load(data, at + j), load(data, beside + j)), low), high)
            if n - j >= WIDTH:
                store(data, at + j, v)
            else:
                store_head(data, at + j, v, n - j)
    if e.activation > 2:
        activate_row(e.activation, data, at, n, const, e.parameters)


@step(DOWN)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def depthwise_down(task, g, data, const, codes, index, scratch):
    e, row, width, rows, stride, taps = g.end, g.row_step, g.out_width, g.out_height, g.stride, g.taps
    limits = clamp_limits(e, const)
    if e.residual >= 0:
        limits = np.float32(-np.inf), np.float32(np.inf)
    narrow = width <= HALF < WIDTH and taps < 7
    lanes = HALF if narrow else WIDTH
    band = max(BAND // (CHANNELS * stride * row), 4 * taps)  # rows of outputs
    first, last, w_step = task * g.per_task, min((task + 1) * g.per_task, g.channels), g.filters.step
    weights, w0 = const, g.filters.dense + first * w_step
    if g.filters.dense < 0:
        decode_filters(g.filters, first, last - first, codes, const, index, scratch)
        weights, w0 = scratch, g.filters.decoded
    for c in range(first, last, CHANNELS):
        second = np.int64(c + 1 < last)  # the last one of an odd number goes down twice
        for b in range(g.batch):
            x = g.x + c * g.channel_step + b * g.image_step - g.top * row - g.left
            at = e.out + c * e.out_step + b * rows * width
            w = w0 + (c - first) * w_step
            channel = w, second * w_step, g.scale + c, g.shift + c, second, taps
            for y in range(0, rows, band):
                ahead = band * stride * row if y + band < rows else second * CHANNELS * g.channel_step
                # From right to left: what runs over the end of a row is overwritten later, but for the last rows.
                for j in range((width - 1) // lanes * lanes, -1, -lanes):
                    source = (
                        x + y * stride * row + j * stride,
                        second * g.channel_step,
                        row,
                        g.top - y * stride,
                        g.height,
                        j * stride - g.left,
                        g.width,
                        g.dilation_x,
                        ahead,
                    )
                    safe = rows - y - (j + lanes - 1) // width
                    result = at + y * width + j, second * e.out_step, width, min(band, rows - y), safe, width - j
                    _go_down(data, const, weights, taps, stride, narrow, source, result, channel, limits)
            for v in range(second + 1):
                beside = e.residual + (c + v) * e.residual_step + b * rows * width
                _finish_plane(at + v * e.out_step, beside, rows * width, e, data, const)
