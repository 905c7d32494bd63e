"""Filters of depthwise convolutions: dense ones where they are, packed ones decoded for the channels of a task."""

from numba import njit

from pqnet.kernels.abi import MAYBE_CONST, SCRATCH, SIZE, Arguments
from pqnet.kernels.products.decode import decode_panel
from pqnet.kernels.products.sums import SUMMED, sum_panel

FILTERS = Arguments(
    dense=MAYBE_CONST,  # all of them; -1 if they are packed
    weight=SUMMED,
    taps=SIZE,
    step=SIZE,  # distance of filters; that of plain codes, side by side, is ``taps``
    decoded=SCRATCH,
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def decode_filters(f, first, count, codes, const, index, scratch):
    # OUT scratch from f.decoded: ``count`` filters from that of channel ``first`` on
    w, taps = f.weight, f.taps
    if f.step == taps:
        size, n = w.code_bytes[0], w.blocks[0]
        c = w.codes[0] + first * n * size
        decode_panel(
            codes, c, 0, 1, count * n, size == 2, const, w.books[0], w.stride[0], w.d[0], scratch, f.decoded, 0
        )
    else:
        sum_panel(w, first, count, taps, 0, taps, taps, codes, const, index, scratch, f.decoded)
