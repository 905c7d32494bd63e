"""Zero padding and stride phases: the form in which every tap of a convolution is a constant shift of flat lanes."""

import numpy as np
from numba import njit

from pqnet.kernels.simd import WIDTH, keep, load, load_even, splat, store, store_head


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def prepare(task, g, data, const, codes, index, scratch):
    # IN data: images of g[4] x g[5] pixels, channels g[2] apart, images g[3] apart, rows g[6] apart
    # IN index from g[15]: g[14] pairs (py, px), the phases that some tap needs
    # OUT data from g[1]: [channel][image][phase][g[7] rows][g[8] columns]; pixel (i, j) of phase (py, px) is the padded
    # input's pixel (i * g[11] + py, j * g[12] + px), padded by g[9] rows above and g[10] columns on the left
    x, out, channel, image, height, width, row = g[0], g[1], g[2], g[3], g[4], g[5], g[6]
    rows, columns, top, left, sy, sx, batch, phases, table = g[7], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]
    channels, per_task = g[16], g[17]
    zero = splat(np.float32(0))
    for c in range(task * per_task, min((task + 1) * per_task, channels)):
        end = out + (c + 1) * batch * phases * rows * columns
        to = out + c * batch * phases * rows * columns
        for b in range(batch):
            for phase in range(phases):
                py, px = index[table + 2 * phase], index[table + 2 * phase + 1]
                # Columns first .. last come from the image, the others are padding.
                first = max(-((px - left) // sx), 0)
                last = min((width - 1 - (px - left)) // sx + 1, columns)
                for i in range(rows):
                    y = i * sy + py - top
                    inside = 0 <= y < height
                    start = x + c * channel + b * image + y * row + px - left
                    for j in range(0, columns, WIDTH):
                        v = zero
                        if inside and sx <= 2:
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
