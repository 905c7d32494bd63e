"""Zero padding and stride phases: the form in which every tap of a convolution is a constant shift of flat lanes."""

import numpy as np
from numba import njit

from pqnet.kernels.abi import DATA, INDEX, SIZE, Arguments, step
from pqnet.kernels.simd import WIDTH, keep, load, load_even, splat, store, store_head

# Images of height x width pixels, their rows, channels and images ``row_step``, ``channel_step`` and ``image_step``
# apart, are padded by ``top`` rows above and ``left`` columns on the left. Pixel (i, j) of phase (py, px) of the result
# is pixel (i * stride_y + py, j * stride_x + px) of the padded image; index[table:] has the pairs (py, px).
PREPARE = Arguments(
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
    channels=SIZE,
    per_task=SIZE,  # channels
)


@step(PREPARE)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def prepare(task, g, data, const, codes, index, scratch):
    rows, columns, phases, sy, sx, left = g.rows, g.columns, g.phases, g.stride_y, g.stride_x, g.left
    zero = splat(np.float32(0))
    size = g.batch * phases * rows * columns
    for c in range(task * g.per_task, min((task + 1) * g.per_task, g.channels)):
        to = g.out + c * size
        end = to + size
        for b in range(g.batch):
            for phase in range(phases):
                py, px = index[g.table + 2 * phase], index[g.table + 2 * phase + 1]
                # Columns first .. last come from the image, the others are padding.
                first = max(-((px - left) // sx), 0)
                last = min((g.width - 1 - (px - left)) // sx + 1, columns)
                for i in range(rows):
                    y = i * sy + py - g.top
                    inside = 0 <= y < g.height
                    start = g.x + c * g.channel_step + b * g.image_step + y * g.row_step + px - left
                    for j in range(0, columns, WIDTH):
                        v = zero
                        if inside and sx <= 2 and first < j + WIDTH and j < last:
                            # Loads may run over both ends of a row, into what is or was a value.
                            v = load(data, start + j) if sx == 1 else load_even(data, start + 2 * j)
                            v = keep(v, first - j, last - j)
                        if to + j + WIDTH <= end:
                            store(data, to + j, v)  # what runs over the end of the row is overwritten by the next
                        else:
                            store_head(data, to + j, v, columns - j)
                    if inside and sx > 2:
                        for j in range(first, last):
                            data[to + j] = data[start + j * sx]
                    to += columns
