"""k-means under a quadratic metric: half distance h(n, k) = (v - c)' G (v - c) / 2 with G = metric[group[n]].

Written as h = half_norm[n] + offset[group[n], k] - y[n] . c[k] with y = G v, half_norm = v' G v / 2 and
offset[m, k] = c[k]' G_m c[k] / 2, so that one kernel serves no metric, one metric and one metric a group.
"""

import numpy as np
from numba import njit, prange


@njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def transform_rows(v, group, metric, chunk, out_y, out_half_norm):
    # IN v (N, D) f4, group (N,) i4, metric (M, D, D) f4; OUT y (N, D) f4, half_norm (N,) f4
    n, d = v.shape
    for c in prange((n + chunk - 1) // chunk):
        for i in range(c * chunk, min((c + 1) * chunk, n)):
            g = group[i]
            total = np.float64(0.0)
            for a in range(d):
                s = np.float64(0.0)
                for b in range(d):
                    s += np.float64(metric[g, a, b]) * np.float64(v[i, b])
                out_y[i, a] = s
                total += s * np.float64(v[i, a])
            out_half_norm[i] = np.float64(0.5) * total


@njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def nearest_codewords(y, half_norm, group, codebook_t, offset, chunk, tmp, tmp_bits, out_codes, out_half):
    # IN y (N, D) f4, codebook_t (D, KP) f4, offset (M, KP) f4 with KP = K padded by +inf offsets;
    # TMP tmp (chunks, KP) f4 and tmp_bits, the same memory as i4; OUT codes (N,) i4, half (N,) f4
    n, d = y.shape
    kp = codebook_t.shape[1]
    top = np.int32(0x7FFFFFFF)
    for c in prange((n + chunk - 1) // chunk):
        h = tmp[c]
        bits = tmp_bits[c]
        for i in range(c * chunk, min((c + 1) * chunk, n)):
            base = offset[group[i]]
            norm = half_norm[i]
            for k in range(kp):
                h[k] = base[k] + norm
            j = 0
            while j + 4 <= d:  # four coordinates a pass: a fourth of the traffic on h
                y0, y1, y2, y3 = y[i, j], y[i, j + 1], y[i, j + 2], y[i, j + 3]
                c0, c1, c2, c3 = codebook_t[j], codebook_t[j + 1], codebook_t[j + 2], codebook_t[j + 3]
                for k in range(kp):
                    h[k] -= (y0 * c0[k] + y1 * c1[k]) + (y2 * c2[k] + y3 * c3[k])
                j += 4
            while j < d:
                y0 = y[i, j]
                c0 = codebook_t[j]
                for k in range(kp):
                    h[k] -= y0 * c0[k]
                j += 1
            # Non-negative floats order like their bits, and integer reductions vectorise in strict arithmetic.
            least = top
            for k in range(kp):
                b = max(bits[k], np.int32(0))
                least = min(least, b)
            first = top
            for k in range(kp):
                where = np.int32(k) if max(bits[k], np.int32(0)) == least else top
                first = min(first, where)
            out_codes[i] = first
            out_half[i] = max(h[first], np.float32(0.0))


@njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def sum_by_code(rows, weights, codes, chunk, out_sums, out_mass):
    # IN rows (N, D) f4, weights (N,) f4, codes (N,) i4;
    # OUT sums (chunks, K, D) f8 and mass (chunks, K) f8: zeroed here, then added up by the caller
    n, d = rows.shape
    for c in prange((n + chunk - 1) // chunk):
        sums = out_sums[c]
        mass = out_mass[c]
        sums[:] = 0.0
        mass[:] = 0.0
        for i in range(c * chunk, min((c + 1) * chunk, n)):
            k = codes[i]
            w = np.float64(weights[i])
            mass[k] += w
            for a in range(d):
                sums[k, a] += w * np.float64(rows[i, a])


@njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def weighted_error(v, weights, group, metric, codebook, codes, chunk, out_error):
    # sum w (v - c)' G (v - c) in float64, for every chunk: OUT error (chunks,) f8
    n, d = v.shape
    for c in prange((n + chunk - 1) // chunk):
        error = np.float64(0.0)
        for i in range(c * chunk, min((c + 1) * chunk, n)):
            g = group[i]
            k = codes[i]
            e = np.float64(0.0)
            for a in range(d):
                s = np.float64(0.0)
                for b in range(d):
                    s += np.float64(metric[g, a, b]) * (np.float64(v[i, b]) - np.float64(codebook[k, b]))
                e += s * (np.float64(v[i, a]) - np.float64(codebook[k, a]))
            error += np.float64(weights[i]) * max(e, np.float64(0.0))
        out_error[c] = error


@njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def shrink_distances(y, half_norm, group, weights, codeword, offset, chunk, out_least, out_sums):
    # k-means++: IN codeword (D,) f4, offset (M,) f4 of that codeword;
    # INOUT least (N,) f4: weighted half distance to the nearest codeword so far; OUT sums (chunks,) f8 of it
    n, d = y.shape
    for c in prange((n + chunk - 1) // chunk):
        total = np.float64(0.0)
        for i in range(c * chunk, min((c + 1) * chunk, n)):
            s = half_norm[i] + offset[group[i]]
            for a in range(d):
                s -= y[i, a] * codeword[a]
            s = max(s, np.float32(0.0)) * weights[i]
            if s < out_least[i]:
                out_least[i] = s
            total += np.float64(out_least[i])
        out_sums[c] = total
