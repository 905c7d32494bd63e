"""k-means of sorted numbers: the cost of a cluster is a difference of prefix sums, and the best partition a recursion.

With F_k[i] the least error of the first i numbers in k clusters, F_k[i] = min over j < i of F_(k-1)[j] + cost(j, i).
The best j never falls as i grows, so that a middle row bounds the search of all others on either side of it.
"""

import numpy as np
from numba import njit

from pqnet.kernels.fit.chunks import next_chunk


@njit(cache=True, nogil=True, error_model="numpy")
def one_cluster(mass, first, second, out_cost):
    # IN mass, first, second (N + 1,) f8: sums of w, w v and w v v over the numbers before; OUT cost (N + 1,) f8: F_1
    out_cost[0] = 0.0
    for i in range(1, mass.size):
        out_cost[i] = max(second[i] - first[i] * first[i] / mass[i], 0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def one_cluster_more(counter, mass, first, second, skip, before, before_at, at, top, bottom, out_cost, out_from):
    # Rows are searched level by level: those in the middle of runs of 2 * step rows, for step = top, top / 2 .. bottom,
    # powers of two; the levels above are done. A chunk is a run of 2 * top rows: it needs no other of the same call.
    # IN before (R,) f8: F_(k-1) of the rows before_at.., skip: 0, or 1 for a bound from below, with the cost of
    # (j + 1, i); OUT cost (S,) f8: F_k of the rows at.., from (S,) i4: the best j, the lowest of equals
    last, rows = before_at + before.size - 1, out_cost.size
    chunks = (rows + 2 * top - 1) // (2 * top)
    c = next_chunk(counter)
    while c < chunks:
        begin, end = c * 2 * top, min((c + 1) * 2 * top, rows)
        step = top
        while step >= bottom:
            for row in range(begin + step - 1, end, 2 * step):
                low = out_from[row - step] if row >= step else before_at
                high = out_from[row + step] if row + step < rows else last
                i = at + row
                w, s, q = mass[i], first[i], second[i]
                best, place = np.inf, low
                for j in range(low, min(high, i - 1) + 1):
                    a = j + skip
                    t, u = s - first[a], w - mass[a]
                    error = before[j - before_at]
                    if u > 0.0:
                        error += max(q - second[a] - t * t / u, 0.0)
                    if error < best:
                        best, place = error, j
                out_cost[row], out_from[row] = best, place
                if skip == 1 and i == 0:
                    out_cost[row] = 0.0
            step //= 2
        c = next_chunk(counter)
