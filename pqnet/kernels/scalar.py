"""k-means of sorted numbers: the cost of a cluster is a difference of prefix sums, and the best partition a recursion.

With F_k[i] the least error of the first i numbers in k clusters, F_k[i] = min over j of F_(k-1)[j] + cost(j, i). The
best j never falls as i grows, so that a middle row bounds the search of all others on either side of it.
"""

import numpy as np
from numba import njit, prange


@njit(cache=True, nogil=True, error_model="numpy")
def _cost(mass, first, second, j, i):
    # Weighted squared error of the numbers j..i-1 around their mean
    s = first[i] - first[j]
    return max(second[i] - second[j] - s * s / (mass[i] - mass[j]), 0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def _best_start(mass, first, second, before, low, high, i, errors, bits):
    # Return error and place of the best j in low..high, the first of equals; TMP errors, bits: the same memory
    best, at = np.inf, low
    if high - low < 32:
        for j in range(low, high + 1):
            error = before[j] + _cost(mass, first, second, j, i)
            if error < best:
                best, at = error, j
        return best, at
    n = high + 1 - low
    w, s, q = mass[i], first[i], second[i]
    for a in range(n):
        j = low + a
        t = s - first[j]
        errors[a] = before[j] + max(q - second[j] - t * t / (w - mass[j]), 0.0)
    # Non-negative floats order like their bits, and integer reductions vectorise in strict arithmetic.
    least = bits[0]
    for a in range(n):
        least = min(least, bits[a])
    place = n
    for a in range(n):
        place = min(place, a if bits[a] == least else n)
    return errors[place], low + place


@njit(cache=True, nogil=True, error_model="numpy")
def one_cluster(mass, first, second, out_cost):
    # IN mass, first, second (N + 1,) f8: sums of w, w v and w v v over the numbers before; OUT cost (N + 1,) f8: F_1
    out_cost[0] = 0.0
    for i in range(1, mass.size):
        out_cost[i] = _cost(mass, first, second, 0, i)


@njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def one_cluster_more(mass, first, second, before, bound, tmp, tmp_bits, out_cost, out_from):
    # IN before (N + 1,) f8: F_(k-1), bound: errors above it are of no interest (what is above already may be missing);
    # TMP tmp (2 N + 2,) f8 and bits, the same memory as i8;
    # OUT cost (N + 1,) f8: F_k, infinite above the bound, from (N + 1,) i4: the best j
    n = mass.size - 1
    out_cost[:] = np.inf
    out_cost[0] = 0.0
    out_from[:] = 0
    last = n
    while before[last] > bound:  # F_(k-1) never falls along i
        last -= 1
    end = n + 1  # rows from here on are above the bound
    step = 1
    while 2 * step <= n:
        step *= 2
    while step > 0:
        for r in prange((n // step + 1) // 2):
            i = (2 * r + 1) * step
            if i < end:
                low = out_from[i - step]
                high = out_from[i + step] if i + step < end else last
                # Rows of a level share no more than the ends of what they search, so that r keeps their scratch apart.
                errors, bits = tmp[low + r :], tmp_bits[low + r :]
                best, at = _best_start(mass, first, second, before, low, min(high, i - 1), i, errors, bits)
                out_cost[i], out_from[i] = best, at
        for r in range((n // step + 1) // 2):
            i = (2 * r + 1) * step
            if i < end and out_cost[i] > bound:
                end = i
        step //= 2
    out_cost[end:] = np.inf
