"""How threads share the chunks of one kernel: each thread calls the kernel, which takes chunk after chunk."""

from numba import njit

from pqnet.kernels.atomic import fetch_add


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def next_chunk(counter):
    # The number of the next chunk, which nobody else gets.
    # INOUT counter (1,) i8, 0 at first, of all threads
    return fetch_add(counter, 0, 1)
