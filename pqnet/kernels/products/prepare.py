"""Zero padding and stride phases: the form in which every tap of a convolution is a constant shift of flat lanes."""

import numpy as np
from numba import njit

from pqnet.kernels.abi import DATA, INDEX, SIZE, Arguments, step
from pqnet.kernels.simd import WIDTH, keep, load, load_even, splat, store, store_head

# Images of height x width pixels, their rows, channels and images ``row_step``, ``channel_step`` and ``image_step``
# apart, are padded by ``top`` rows above and ``left`` columns on the left. Pixel (i, j) of phase (py, px) of the result
# is pixel (i * stride_y + py, j * stride_x + px) of the padded image; index[table:] has the pairs (py, px).
PLANES = Arguments(
    x=DATA,
    out=DATA,  # [channel][image][phase][rows][columns]
    channel_step=SIZE,
    image_step=SIZE,
    row_step=SIZE,
    height=SIZE,
    width=SIZE,
    rows=SIZE,
    columns=SIZE,
    top=SIZE,
    left=SIZE,
    stride_y=SIZE,
    stride_x=SIZE,
    batch=SIZE,
    phases=SIZE,
    table=INDEX,
)

PREPARE = Arguments(planes=PLANES, channels=SIZE, per_task=SIZE)  # channels of all, and of a task


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _copy_columns(data, x, row, step, low, high, rows, first, last, to, pitch, safe, left):
    # OUT data[to + i * pitch ..], i < rows: a vector of columns from x + i * row + j * step in lanes first .. last of
    # rows low .. high, zeros elsewhere; up to ``left`` lanes of the rows from ``safe`` on, what runs over the end of
    # the others is overwritten by the next row
    zero, i = splat(np.float32(0)), 0
    low = max(low, 0) if first < WIDTH and last > 0 else rows
    while i < min(low, safe):
        store(data, to + i * pitch, zero)
        i += 1
    while i < min(high, safe):
        # Loads may run over both ends of a row, into what is or was a value.
        v = load(data, x + i * row) if step == 1 else load_even(data, x + i * row)
        store(data, to + i * pitch, keep(v, first, last))
        i += 1
    while i < safe:
        store(data, to + i * pitch, zero)
        i += 1
    while i < rows:
        v = zero
        if low <= i < high:
            v = keep(load(data, x + i * row) if step == 1 else load_even(data, x + i * row), first, last)
        store_head(data, to + i * pitch, v, left)
        i += 1


@step(PREPARE)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def prepare(task, g, data, const, codes, index, scratch):
    planes = g.planes
    rows, columns, phases, sy, sx, left = (
        planes.rows,
        planes.columns,
        planes.phases,
        planes.stride_y,
        planes.stride_x,
        planes.left,
    )
    size = planes.batch * phases * rows * columns
    for c in range(task * g.per_task, min((task + 1) * g.per_task, g.channels)):
        to = planes.out + c * size
        end = to + size
        for b in range(planes.batch):
            for phase in range(phases):
                py, px = index[planes.table + 2 * phase], index[planes.table + 2 * phase + 1]
                # Rows low .. high and columns first .. last come from the image, the others are padding.
                low, high = -((py - planes.top) // sy), (planes.height - 1 - (py - planes.top)) // sy + 1
                first = max(-((px - left) // sx), 0)
                last = min((planes.width - 1 - (px - left)) // sx + 1, columns)
                start = (
                    planes.x
                    + c * planes.channel_step
                    + b * planes.image_step
                    + (py - planes.top) * planes.row_step
                    + px
                    - left
                )
                row = sy * planes.row_step
                for j in range((columns - 1) // WIDTH * WIDTH, -1, -WIDTH):
                    safe = min(rows, (end - to - j - WIDTH + columns) // columns)
                    begin, stop = (first - j, last - j) if sx <= 2 else (0, 0)
                    at, n = start + j * sx, columns - j
                    if sx == 1:
                        _copy_columns(data, at, row, 1, low, high, rows, begin, stop, to + j, columns, safe, n)
                    else:
                        _copy_columns(data, at, row, 2, low, high, rows, begin, stop, to + j, columns, safe, n)
                if sx > 2:
                    for i in range(max(low, 0), min(high, rows)):
                        for j in range(first, last):
                            data[to + i * columns + j] = data[start + i * row + j * sx]
                to += rows * columns
