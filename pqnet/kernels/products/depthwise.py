"""Depthwise convolutions: a plane at a time, padded into scratch so that every tap is a shift of flat lanes.

A plane is cut in bands of output rows whose padded input fits in the first-level cache, one plane for each phase of
the stride. Position q = y * pitch + column of a band then sees tap t at plane[shift[t] + q]; positions with a column
behind the width are junk and are dropped. The zeros on the right of a row are those on the left of the next one.

The common kernels of stride 1 go down the columns instead: a row that is loaded serves all the outputs that see it.
"""

import numpy as np
from numba import njit, types

from pqnet.kernels.abi import DATA, INDEX, SCRATCH, SIZE, Arguments, step
from pqnet.kernels.llvm import INDEX as POSITION
from pqnet.kernels.llvm import LONG, compiled_or, constant, element, offset
from pqnet.kernels.llvm import fma as emit_fma
from pqnet.kernels.llvm import load as emit_load
from pqnet.kernels.llvm import prefetch as emit_prefetch
from pqnet.kernels.llvm import splat as emit_splat
from pqnet.kernels.llvm import store as emit_store
from pqnet.kernels.products.epilogue import EPILOGUE, finish_rows
from pqnet.kernels.products.filters import FILTERS, decode_filters
from pqnet.kernels.simd import FLOATS, ISA, WIDTH, fma, load, load_even, prefetch, splat, store, store_head

VECTORS = 8  # of positions that a tap's weight is loaded for
COLUMNS = 3 if ISA == "avx512" else 2  # vectors that go down together
DOWN = (3, 5, 7)  # rows of the kernels that do
AHEAD = 1024  # floats that are prefetched
WIDE = 3 * WIDTH  # rows of at least as many columns are finished one by one


def _downwards(taps, vectors):
    def reference(x, x0, x_step, row, kw, dx, w, w0, s0, s_step, out_row, rows, data, near, far, far_row):
        for i in range(rows):
            for v in range(vectors):
                total = np.zeros(WIDTH, np.float32)
                for ky in range(taps):
                    for kx in range(taps):
                        at = x0 + v * x_step + (i + ky) * row + kx * dx
                        total += w[w0 + ky * taps + kx] * x[at : at + WIDTH]
                at = s0 + v * s_step + i * out_row
                x[at : at + WIDTH] = total

    def emit(context, builder, signature, values):
        _, x0, x_step, row, kw, dx, _, w0, s0, s_step, out_row, rows, _, near, far, far_row = values

        def place(array, at):
            return element(context, builder, signature, values, array, at)

        zeros = constant(FLOATS.llvm, 0.0)
        weights = [place(6, builder.add(w0, LONG(taps * ky))) for ky in range(taps)]
        sources = [place(0, builder.add(x0, builder.mul(x_step, LONG(v)))) for v in range(vectors)]
        targets = [place(0, builder.add(s0, builder.mul(s_step, LONG(v)))) for v in range(vectors)]
        nears, fars = place(12, near), place(12, far)
        steps = builder.add(rows, LONG(taps - 1))

        before = builder.block
        loop, writing, following, end = (builder.append_basic_block(f"down.{name}") for name in "abcd")
        builder.branch(loop)
        builder.position_at_end(loop)
        i = builder.phi(LONG)
        old = [[builder.phi(FLOATS.llvm) for _ in range(vectors)] for _ in range(taps - 1)]
        for start, distance in ((nears, out_row), (fars, far_row)):  # what this band writes and what the next one reads
            for v in range(vectors):
                line = offset(builder, start, builder.add(builder.mul(i, distance), LONG(v * WIDTH)))
                emit_prefetch(builder, line, locality=2)
        # Sums by age: the first ones see their last row now.
        sums, at = [*old, [zeros] * vectors], builder.mul(i, row)

        def add_tap(kx, at, sums):
            values = [emit_load(builder, offset(builder, source, at), FLOATS.llvm) for source in sources]
            results = []
            for age in range(taps):
                weight = emit_load(builder, offset(builder, weights[taps - 1 - age], kx))
                spread = emit_splat(builder, weight, FLOATS.llvm)
                results.append([emit_fma(builder, spread, values[v], sums[age][v]) for v in range(vectors)])
            return results

        if taps == 3:
            for kx in range(taps):
                sums = add_tap(LONG(kx), at, sums)
                at = builder.add(at, dx)
        else:  # more taps at once do not fit in the registers; LLVM unrolls loops whose end it knows
            inner, after = builder.append_basic_block("down.taps"), builder.append_basic_block("down.after")
            builder.branch(inner)
            builder.position_at_end(inner)
            phis = [builder.phi(LONG), builder.phi(LONG), *(builder.phi(FLOATS.llvm) for _ in range(taps * vectors))]
            started = [LONG(0), at, *(v for age in sums for v in age)]
            grouped = [phis[2 + age * vectors : 2 + (age + 1) * vectors] for age in range(taps)]
            sums = add_tap(phis[0], phis[1], grouped)
            going = [builder.add(phis[0], LONG(1)), builder.add(phis[1], dx), *(v for age in sums for v in age)]
            for phi, value, other in zip(phis, started, going, strict=True):
                phi.add_incoming(value, loop)
                phi.add_incoming(other, inner)
            builder.cbranch(builder.icmp_signed("<", going[0], kw), inner, after)
            builder.position_at_end(after)
        done = builder.sub(i, LONG(taps - 1))
        builder.cbranch(builder.icmp_signed(">=", done, LONG(0)), writing, following)
        builder.position_at_end(writing)
        for v in range(vectors):
            emit_store(builder, sums[0][v], offset(builder, targets[v], builder.mul(done, out_row)))
        builder.branch(following)
        builder.position_at_end(following)
        next_i = builder.add(i, LONG(1))
        i.add_incoming(LONG(0), before)
        i.add_incoming(next_i, following)
        for age in range(taps - 1):
            for v in range(vectors):
                old[age][v].add_incoming(zeros, before)
                old[age][v].add_incoming(sums[age + 1][v], following)
        builder.cbranch(builder.icmp_signed("<", next_i, steps), loop, end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    n = POSITION

    def down(context, x, x0, x_step, row, kw, dx, w, w0, s0, s_step, out_row, rows, data, near, far, far_row):
        return types.void(x, n, n, n, n, n, w, n, n, n, n, n, data, n, n, n), emit

    return compiled_or(reference, down)


# (x, x0, x_step, row, kw, dx, w, w0, s0, s_step, out_row, rows, data, near, far, far_row): for vector v and row i
# x[s0 + v * s_step + i * out_row ..] = sum w[w0 + ky * kw + kx] * x[x0 + v * x_step + (i + ky) * row + kx * dx ..],
# rows one after the other; the lines of data from near + i * out_row and far + i * far_row are prefetched.
_down_3, _down_3_wide = _downwards(3, 2), _downwards(3, COLUMNS)
_down_5, _down_5_wide = _downwards(5, 2), _downwards(5, COLUMNS)
_down_7, _down_7_wide = _downwards(7, 2), _downwards(7, COLUMNS)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _copy_rows(source, x, row, rows, n, step, target, to, pitch):
    # OUT target[to + i * pitch + j] = source[x + i * row + j * step] for i < rows, j < n; in place downwards, too
    whole = n // WIDTH * WIDTH
    for i in range(rows):
        at, out = x + i * row, to + i * pitch
        if step == 1:
            for j in range(0, whole, WIDTH):
                prefetch(source, at + j + AHEAD)
                store(target, out + j, load(source, at + j))
            store_head(target, out + whole, load(source, at + whole), n - whole)
        elif step == 2:
            for j in range(0, whole, WIDTH):
                prefetch(source, at + 2 * j + AHEAD)
                prefetch(source, at + 2 * j + AHEAD + WIDTH)
                store(target, out + j, load_even(source, at + 2 * j))
            store_head(target, out + whole, load_even(source, at + 2 * whole), n - whole)
        else:
            for j in range(n):
                target[out + j] = source[at + j * step]


# Images of height x width pixels, padded by ``top`` rows above and ``left`` columns on the left, are cut in bands of
# output rows. index[table:] has the phases (py, px, first, last): pixel (i, j) of a phase is pixel
# (i * stride_y + py, j * stride_x + px) of the padded image, inside of the image for columns first <= j < last.
DEPTHWISE = Arguments(
    end=EPILOGUE,
    x=DATA,
    image_step=SIZE,
    channel_step=SIZE,
    row_step=SIZE,
    height=SIZE,
    top=SIZE,
    left=SIZE,
    stride_y=SIZE,
    stride_x=SIZE,
    phases=SIZE,
    table=INDEX,
    plane=SIZE,  # floats of a phase in scratch
    shifts=INDEX,  # of the taps
    filters=FILTERS,
    channels=SIZE,
    batch=SIZE,
    band=SIZE,  # output rows
    extra=SIZE,  # rows of a phase that a band needs beside its own
    pitch=SIZE,  # distance of the rows of a phase
    out_height=SIZE,
    out_width=SIZE,
    image=SIZE,  # positions of an output image
    per_task=SIZE,  # channels
    down=SIZE,  # rows of the kernel if columns of outputs are summed downwards, or 0
    dilation_x=SIZE,
    sums=SCRATCH,  # of a band; the phases are before them
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _fill_planes(x, y, rows, g, data, index, scratch):
    # OUT scratch: the padded input of output rows y .. y + rows; data from x: an image
    pitch, height, sy, sx, extra = g.pitch, g.height, g.stride_y, g.stride_x, g.extra
    for phase in range(g.phases):
        at = g.table + 4 * phase
        py, px, first, last = index[at], index[at + 1], index[at + 2], index[at + 3]
        # Phase rows low .. high lie in the image.
        begin = y * sy + py - g.top
        low, high = max(-begin, 0), max(min(height - begin, rows + extra), 0)
        if sy > 1:
            low, high = (low + sy - 1) // sy, max(min((height - 1 - begin) // sy + 1, rows + extra), 0)
        low = min(low, rows + extra)
        high = max(high, low)
        to, n = phase * g.plane + first, last - first
        if g.band < g.out_height:  # else the rows outside have never been written
            for i in range(low):
                scratch[to + i * pitch : to + i * pitch + n] = np.float32(0)
            for i in range(high, rows + extra):
                scratch[to + i * pitch : to + i * pitch + n] = np.float32(0)
        at = x + (begin + low * sy) * g.row_step + px + first * sx - g.left
        _copy_rows(data, at, sy * g.row_step, high - low, n, sx, scratch, to + low * pitch, pitch)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _sum_taps(scratch, n, filters, weight, taps, index, shifts, sums, data, near, far):
    # OUT scratch from ``sums``: n sums of taps over the planes, up to VECTORS vectors more
    # data: lines from near and far are prefetched
    zero = splat(np.float32(0))
    for q in range(0, n, VECTORS * WIDTH):
        a0, a1, a2, a3, a4, a5, a6, a7 = zero, zero, zero, zero, zero, zero, zero, zero
        s = sums + q
        if n - q > VECTORS // 2 * WIDTH:
            for t in range(taps):
                w = splat(filters[weight + t])
                p = q + index[shifts + t]
                prefetch(data, near + q + t * WIDTH)
                prefetch(data, far + 2 * (q + t * WIDTH))
                prefetch(data, far + 2 * (q + t * WIDTH) + WIDTH)
                a0, a1 = fma(w, load(scratch, p), a0), fma(w, load(scratch, p + WIDTH), a1)
                a2, a3 = fma(w, load(scratch, p + 2 * WIDTH), a2), fma(w, load(scratch, p + 3 * WIDTH), a3)
                a4, a5 = fma(w, load(scratch, p + 4 * WIDTH), a4), fma(w, load(scratch, p + 5 * WIDTH), a5)
                a6, a7 = fma(w, load(scratch, p + 6 * WIDTH), a6), fma(w, load(scratch, p + 7 * WIDTH), a7)
            store(scratch, s + 4 * WIDTH, a4)
            store(scratch, s + 5 * WIDTH, a5)
            store(scratch, s + 6 * WIDTH, a6)
            store(scratch, s + 7 * WIDTH, a7)
        else:
            for t in range(taps):
                w = splat(filters[weight + t])
                p = q + index[shifts + t]
                a0, a1 = fma(w, load(scratch, p), a0), fma(w, load(scratch, p + WIDTH), a1)
                a2, a3 = fma(w, load(scratch, p + 2 * WIDTH), a2), fma(w, load(scratch, p + 3 * WIDTH), a3)
        store(scratch, s, a0)
        store(scratch, s + WIDTH, a1)
        store(scratch, s + 2 * WIDTH, a2)
        store(scratch, s + 3 * WIDTH, a3)


@step(DEPTHWISE)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def depthwise(task, g, data, const, codes, index, scratch):
    # Scratch: the phases, then the sums of a band, then filters
    shifts, batch, band, pitch, width, out_height = g.shifts, g.batch, g.band, g.pitch, g.out_width, g.out_height
    sums, row, kh, dx, e = g.sums, g.row_step, g.down, g.dilation_x, g.end
    vectors = (width + WIDTH - 1) // WIDTH
    zero = splat(np.float32(0))
    for i in range(0, sums, WIDTH):
        store(scratch, i, zero)
    first, last = task * g.per_task, min((task + 1) * g.per_task, g.channels)
    taps, w_step = g.filters.taps, g.filters.step
    filters, w0 = const, g.filters.dense + first * w_step
    if g.filters.dense < 0:
        decode_filters(g.filters, first, last - first, codes, const, index, scratch)
        filters, w0 = scratch, g.filters.decoded
    for u in range(first * batch, last * batch):
        c = u // batch
        b = u - c * batch
        x, w = g.x + c * g.channel_step + b * g.image_step, w0 + (c - first) * w_step
        for y in range(0, out_height, band):
            rows = min(band, out_height - y)
            at = b * g.image + y * width
            near, far = e.out + c * e.out_step + at, x + (y + rows) * g.stride_y * row
            _fill_planes(x, y, rows, g, data, index, scratch)
            if kh == 0:
                _sum_taps(scratch, rows * pitch, filters, w, taps, index, shifts, sums, data, near, far)
                if width < WIDE:
                    _copy_rows(scratch, sums, pitch, rows, width, 1, scratch, sums, width)
            # Both halves of a narrow band go down at once, a vector apart: one takes too long alone.
            half, x_step, s_step = rows, WIDTH, WIDTH
            if kh and vectors == 1:
                half = (rows + 1) // 2
                x_step, s_step = half * pitch, half * width + WIDTH
            # From right to left and from above: what runs over the end of a row is overwritten later.
            j = vectors if kh else 0
            while j > 0:
                wide = COLUMNS > 2 and (j == 3 or j > 4)
                j = max(j - (COLUMNS if wide else 2), 0)
                q = j * WIDTH
                s, n, f = sums + q, near + q, far + q
                if kh == 3 and wide:
                    _down_3_wide(scratch, q, x_step, pitch, kh, dx, filters, w, s, s_step, width, half, data, n, f, row)
                elif kh == 3:
                    _down_3(scratch, q, x_step, pitch, kh, dx, filters, w, s, s_step, width, half, data, n, f, row)
                elif kh == 5 and wide:
                    _down_5_wide(scratch, q, x_step, pitch, kh, dx, filters, w, s, s_step, width, half, data, n, f, row)
                elif kh == 5:
                    _down_5(scratch, q, x_step, pitch, kh, dx, filters, w, s, s_step, width, half, data, n, f, row)
                elif wide:
                    _down_7_wide(scratch, q, x_step, pitch, kh, dx, filters, w, s, s_step, width, half, data, n, f, row)
                else:
                    _down_7(scratch, q, x_step, pitch, kh, dx, filters, w, s, s_step, width, half, data, n, f, row)
            # Runs of sums that are dense: all rows, each row, or each half.
            run, step = rows * width, 0
            if kh == 0 and width >= WIDE:
                run, step = width, pitch
            elif half < rows:
                run, step = half * width, s_step
            done = 0
            while done < rows * width:
                n = min(run, rows * width - done)
                finish_rows(scratch, sums + done // run * step, 0, 1, c, at + done, n, e, data, const)
                done += run
