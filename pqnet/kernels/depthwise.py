"""Depthwise convolutions: a plane at a time, padded into scratch so that every tap is a shift of flat lanes.

A plane is cut in bands of output rows whose padded input fits in the first-level cache, one plane for each phase of
the stride. Position q = y * pitch + column of a band then sees tap t at plane[shift[t] + q]; positions with a column
behind the width are junk and are dropped. The zeros on the right of a row are those on the left of the next one.

The common kernels of stride 1 go down the columns instead: a row that is loaded serves all the outputs that see it.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic

from pqnet.kernels.epilogue import finish_rows
from pqnet.kernels.simd import FLOATS, ISA, WIDTH, fma, load, load_even, prefetch, splat, store, store_head

VECTORS = 8  # of positions that a tap's weight is loaded for
COLUMNS = 3 if ISA == "avx512" else 2  # vectors that go down together
DOWN = (3, 5, 7)  # rows of the kernels that do
AHEAD = 1024  # floats that are prefetched
WIDE = 3 * WIDTH  # rows of at least as many columns are finished one by one

_WORD, _LONG = ir.IntType(32), ir.IntType(64)


def _downwards(taps, vectors):
    def twin(x, x0, x_step, row, kw, dx, w, w0, s0, s_step, out_row, rows, data, near, far, far_row):
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
        x, x0, x_step, row, kw, dx, w, w0, s0, s_step, out_row, rows, data, near, far, far_row = values

        def place(array, i, at):
            return builder.gep(context.make_array(signature.args[i])(context, builder, array).data, [at])

        lanes = FLOATS.llvm
        fma_kind = ir.FunctionType(lanes, [lanes] * 3)
        multiply_add = cgutils.get_or_insert_function(builder.module, fma_kind, f"llvm.fma.v{WIDTH}f32")
        byte = ir.IntType(8).as_pointer()
        fetch_kind = ir.FunctionType(ir.VoidType(), [byte, _WORD, _WORD, _WORD])
        fetch = cgutils.get_or_insert_function(builder.module, fetch_kind, "llvm.prefetch.p0")
        zeros, none = ir.Constant(lanes, [0.0] * WIDTH), ir.Constant(ir.VectorType(_WORD, WIDTH), [0] * WIDTH)
        weights = [place(w, 6, builder.add(w0, _LONG(taps * ky))) for ky in range(taps)]
        sources = [place(x, 0, builder.add(x0, builder.mul(x_step, _LONG(v)))) for v in range(vectors)]
        targets = [place(x, 0, builder.add(s0, builder.mul(s_step, _LONG(v)))) for v in range(vectors)]
        nears, fars = place(data, 12, near), place(data, 12, far)
        steps = builder.add(rows, _LONG(taps - 1))

        before = builder.block
        loop, writing, following, end = (builder.append_basic_block(f"down.{name}") for name in "abcd")
        builder.branch(loop)
        builder.position_at_end(loop)
        i = builder.phi(_LONG)
        old = [[builder.phi(lanes) for _ in range(vectors)] for _ in range(taps - 1)]
        for start, step in ((nears, out_row), (fars, far_row)):  # what this band writes and what the next one reads
            for v in range(vectors):
                line = builder.gep(start, [builder.add(builder.mul(i, step), _LONG(v * WIDTH))])
                builder.call(fetch, [builder.bitcast(line, byte), _WORD(0), _WORD(2), _WORD(1)])
        # Sums by age: the first ones see their last row now.
        sums, at = [*old, [zeros] * vectors], builder.mul(i, row)

        def add_tap(kx, at, sums):
            values = []
            for source in sources:
                value = builder.load(builder.bitcast(builder.gep(source, [at]), lanes.as_pointer()))
                value.align = 4
                values.append(value)
            results = []
            for age in range(taps):
                weight = builder.load(builder.gep(weights[taps - 1 - age], [kx]))
                first = builder.insert_element(ir.Constant(lanes, ir.Undefined), weight, _WORD(0))
                spread = builder.shuffle_vector(first, ir.Constant(lanes, ir.Undefined), none)
                results.append([builder.call(multiply_add, [spread, values[v], sums[age][v]]) for v in range(vectors)])
            return results

        if taps == 3:
            for kx in range(taps):
                sums = add_tap(_LONG(kx), at, sums)
                at = builder.add(at, dx)
        else:  # more taps at once do not fit in the registers; LLVM unrolls loops whose end it knows
            inner, after = builder.append_basic_block("down.taps"), builder.append_basic_block("down.after")
            builder.branch(inner)
            builder.position_at_end(inner)
            phis = [builder.phi(_LONG), builder.phi(_LONG), *(builder.phi(lanes) for _ in range(taps * vectors))]
            started = [_LONG(0), at, *(v for age in sums for v in age)]
            grouped = [phis[2 + age * vectors : 2 + (age + 1) * vectors] for age in range(taps)]
            sums = add_tap(phis[0], phis[1], grouped)
            going = [builder.add(phis[0], _LONG(1)), builder.add(phis[1], dx), *(v for age in sums for v in age)]
            for phi, value, other in zip(phis, started, going, strict=True):
                phi.add_incoming(value, loop)
                phi.add_incoming(other, inner)
            builder.cbranch(builder.icmp_signed("<", going[0], kw), inner, after)
            builder.position_at_end(after)
        done = builder.sub(i, _LONG(taps - 1))
        builder.cbranch(builder.icmp_signed(">=", done, _LONG(0)), writing, following)
        builder.position_at_end(writing)
        for v in range(vectors):
            target = builder.gep(targets[v], [builder.mul(done, out_row)])
            builder.store(sums[0][v], builder.bitcast(target, lanes.as_pointer())).align = 4
        builder.branch(following)
        builder.position_at_end(following)
        next_i = builder.add(i, _LONG(1))
        i.add_incoming(_LONG(0), before)
        i.add_incoming(next_i, following)
        for age in range(taps - 1):
            for v in range(vectors):
                old[age][v].add_incoming(zeros, before)
                old[age][v].add_incoming(sums[age + 1][v], following)
        builder.cbranch(builder.icmp_signed("<", next_i, steps), loop, end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    n = types.intp

    @intrinsic
    def down(context, x, x0, x_step, row, kw, dx, w, w0, s0, s_step, out_row, rows, data, near, far, far_row):
        return types.void(x, n, n, n, n, n, w, n, n, n, n, n, data, n, n, n), emit

    return twin if config.DISABLE_JIT else down


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


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _fill_planes(x, y, rows, g, data, index, scratch):
    # OUT scratch: the padded input of output rows y .. y + rows; data from x: an image
    band, pitch, out_height, height, top, left = g[8], g[9], g[14], g[23], g[25], g[26]
    sy, sx, phases, table, plane, row_step, extra = g[27], g[28], g[29], g[30], g[31], g[34], g[35]
    for phase in range(phases):
        at = table + 4 * phase
        py, px, first, last = index[at], index[at + 1], index[at + 2], index[at + 3]
        # Phase rows low .. high lie in the image.
        begin = y * sy + py - top
        low, high = max(-begin, 0), max(min(height - begin, rows + extra), 0)
        if sy > 1:
            low, high = (low + sy - 1) // sy, max(min((height - 1 - begin) // sy + 1, rows + extra), 0)
        low = min(low, rows + extra)
        high = max(high, low)
        to, n = phase * plane + first, last - first
        if band < out_height:  # else the rows outside have never been written
            for i in range(low):
                scratch[to + i * pitch : to + i * pitch + n] = np.float32(0)
            for i in range(high, rows + extra):
                scratch[to + i * pitch : to + i * pitch + n] = np.float32(0)
        at = x + (begin + low * sy) * row_step + px + first * sx - left
        _copy_rows(data, at, sy * row_step, high - low, n, sx, scratch, to + low * pitch, pitch)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _sum_taps(scratch, n, const, weight, taps, index, shifts, sums, data, near, far):
    # OUT scratch from ``sums``: n sums of taps over the planes, up to VECTORS vectors more
    # data: lines from near and far are prefetched
    zero = splat(np.float32(0))
    for q in range(0, n, VECTORS * WIDTH):
        a0, a1, a2, a3, a4, a5, a6, a7 = zero, zero, zero, zero, zero, zero, zero, zero
        s = sums + q
        if n - q > VECTORS // 2 * WIDTH:
            for t in range(taps):
                w = splat(const[weight + t])
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
                w = splat(const[weight + t])
                p = q + index[shifts + t]
                a0, a1 = fma(w, load(scratch, p), a0), fma(w, load(scratch, p + WIDTH), a1)
                a2, a3 = fma(w, load(scratch, p + 2 * WIDTH), a2), fma(w, load(scratch, p + 3 * WIDTH), a3)
        store(scratch, s, a0)
        store(scratch, s + WIDTH, a1)
        store(scratch, s + 2 * WIDTH, a2)
        store(scratch, s + 3 * WIDTH, a3)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def depthwise(task, g, data, const, codes, index, scratch):
    # IN data: images of g[23] x g[24] pixels, padded by g[25] rows above and g[26] columns on the left; at g[0], images
    # g[1] apart, channels g[2], rows g[34]; g[7] images of g[6] channels, g[32] channels a task
    # IN const from g[5]: weights (channels, g[4] taps); index from g[3]: shifts of the taps; from g[30]: g[29] phases
    # (py, px, first, last): phase pixel (i, j) is the padded input's (i * g[27] + py, j * g[28] + px), inside for
    # columns first <= j < last
    # OUT fields 11-13 and 15-22 as in a layer step, g[14] rows of g[10] columns; g[8] rows a band, which needs g[35]
    # more of its phases, whose rows are g[9] apart
    # g[36] rows of the kernel if columns of outputs are summed downwards (taps g[37] apart), or 0
    # scratch: phases of g[31] floats, sums of a band from g[33]
    shifts, taps, batch, band, pitch, width, out_height = g[3], g[4], g[7], g[8], g[9], g[10], g[14]
    sums, row, kh, dx = g[33], g[34], g[36], g[37]
    vectors = (width + WIDTH - 1) // WIDTH
    zero = splat(np.float32(0))
    for i in range(0, sums, WIDTH):
        store(scratch, i, zero)
    for u in range(task * g[32] * batch, min((task + 1) * g[32], g[6]) * batch):
        c = u // batch
        b = u - c * batch
        x, w = g[0] + c * g[2] + b * g[1], g[5] + c * taps
        for y in range(0, out_height, band):
            rows = min(band, out_height - y)
            at = b * g[13] + y * width
            near, far = g[11] + c * g[12] + at, x + (y + rows) * g[27] * row
            _fill_planes(x, y, rows, g, data, index, scratch)
            if kh == 0:
                _sum_taps(scratch, rows * pitch, const, w, taps, index, shifts, sums, data, near, far)
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
                    _down_3_wide(scratch, q, x_step, pitch, kh, dx, const, w, s, s_step, width, half, data, n, f, row)
                elif kh == 3:
                    _down_3(scratch, q, x_step, pitch, kh, dx, const, w, s, s_step, width, half, data, n, f, row)
                elif kh == 5 and wide:
                    _down_5_wide(scratch, q, x_step, pitch, kh, dx, const, w, s, s_step, width, half, data, n, f, row)
                elif kh == 5:
                    _down_5(scratch, q, x_step, pitch, kh, dx, const, w, s, s_step, width, half, data, n, f, row)
                elif wide:
                    _down_7_wide(scratch, q, x_step, pitch, kh, dx, const, w, s, s_step, width, half, data, n, f, row)
                else:
                    _down_7(scratch, q, x_step, pitch, kh, dx, const, w, s, s_step, width, half, data, n, f, row)
            # Runs of sums that are dense: all rows, each row, or each half.
            run, step = rows * width, 0
            if kh == 0 and width >= WIDE:
                run, step = width, pitch
            elif half < rows:
                run, step = half * width, s_step
            done = 0
            while done < rows * width:
                n = min(run, rows * width - done)
                finish_rows(scratch, sums + done // run * step, 0, 1, c, at + done, n, g, data, const)
                done += run
