"""k-means under a quadratic metric: half distance h(n, k) = (v - c)' G (v - c) / 2 with G = metric[group[n]].

Written as h = half_norm[n] + offset[group[n], k] - y[n] . c[k] with y = G v, half_norm = v' G v / 2 and
offset[m, k] = c[k]' G_m c[k] / 2, so that one kernel serves no metric, one metric and one metric a group.
"""

import numpy as np
from numba import njit, prange

from pqnet.kernels.simd import WIDTH, fma, load, select_less, select_less_int, splat, splat_int, store, store_int

TILE = 2 * WIDTH  # blocks that are compared with the codebook at once


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


@njit(cache=True, nogil=True, error_model="numpy")
def _nearest_in_tile(x, at, words, d, offset, out_half, out_codes, to):
    # The lanes are two vectors of blocks, four codewords at a time: 8 running sums, 6 loads for 8 multiply-adds.
    # IN x: coordinate j of the tile's blocks at x[at + j * TILE]; words: four codewords interleaved, negated
    best0 = splat(np.float32(3.4e38))
    best1 = best0
    code0 = splat_int(np.int32(0))
    code1 = code0
    for q in range(offset.size // 4):
        a0 = splat(offset[4 * q])
        b0 = splat(offset[4 * q + 1])
        c0 = splat(offset[4 * q + 2])
        d0 = splat(offset[4 * q + 3])
        a1, b1, c1, d1 = a0, b0, c0, d0
        w = 4 * d * q
        p = at
        for _ in range(d):
            x0, x1 = load(x, p), load(x, p + WIDTH)
            s = splat(words[w])
            a0, a1 = fma(s, x0, a0), fma(s, x1, a1)
            s = splat(words[w + 1])
            b0, b1 = fma(s, x0, b0), fma(s, x1, b1)
            s = splat(words[w + 2])
            c0, c1 = fma(s, x0, c0), fma(s, x1, c1)
            s = splat(words[w + 3])
            d0, d1 = fma(s, x0, d0), fma(s, x1, d1)
            w += 4
            p += TILE
        # In the order of the codewords and only if less: ties keep the lowest index.
        k = splat_int(np.int32(4 * q))
        code0, best0 = select_less_int(a0, best0, k, code0), select_less(a0, best0, a0, best0)
        code1, best1 = select_less_int(a1, best1, k, code1), select_less(a1, best1, a1, best1)
        k = splat_int(np.int32(4 * q + 1))
        code0, best0 = select_less_int(b0, best0, k, code0), select_less(b0, best0, b0, best0)
        code1, best1 = select_less_int(b1, best1, k, code1), select_less(b1, best1, b1, best1)
        k = splat_int(np.int32(4 * q + 2))
        code0, best0 = select_less_int(c0, best0, k, code0), select_less(c0, best0, c0, best0)
        code1, best1 = select_less_int(c1, best1, k, code1), select_less(c1, best1, c1, best1)
        k = splat_int(np.int32(4 * q + 3))
        code0, best0 = select_less_int(d0, best0, k, code0), select_less(d0, best0, d0, best0)
        code1, best1 = select_less_int(d1, best1, k, code1), select_less(d1, best1, d1, best1)
    store(out_half, to, best0)
    store(out_half, to + WIDTH, best1)
    store_int(out_codes, to, code0)
    store_int(out_codes, to + WIDTH, code1)


@njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def nearest_in_tiles(
    x, tile_group, tile_rows, half_norm, words, d, offset, chunk, tmp_half, tmp_codes, out_codes, out_half
):
    # IN x (tiles * D * TILE) f4, tile_group (tiles,) i4: the blocks of a tile share a metric, tile_rows (tiles, TILE)
    # i4: their rows, -1 where there is none, words (KP * D) f4, offset (M, KP) f4 with KP = K padded by large offsets;
    # TMP half (chunks, TILE) f4, codes (chunks, TILE) i4; OUT codes (N,) i4, half (N,) f4
    tiles = tile_group.size
    for c in prange((tiles + chunk - 1) // chunk):
        half, codes = tmp_half[c], tmp_codes[c]
        for t in range(c * chunk, min((c + 1) * chunk, tiles)):
            _nearest_in_tile(x, t * d * TILE, words, d, offset[tile_group[t]], half, codes, 0)
            for lane in range(TILE):
                row = tile_rows[t, lane]
                if row >= 0:
                    out_codes[row] = codes[lane]
                    out_half[row] = max(half[lane] + half_norm[row], np.float32(0.0))


@njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def nearest_row_by_row(y, half_norm, group, codebook_t, offset, chunk, tmp, tmp_bits, out_codes, out_half):
    # For metrics of so few blocks each that tiles would be mostly empty: here the lanes are codewords.
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
def weighted_error(v, weights, group, metric, codebook, codes, chunk, tmp, out_error):
    # sum w (v - c)' G (v - c) for every chunk: TMP (chunks, 2, D) f4, OUT error (chunks,) f8. The difference comes
    # first and the sum over blocks is in float64, so that float32 in between costs no digits by cancellation.
    n, d = v.shape
    for c in prange((n + chunk - 1) // chunk):
        e, ge = tmp[c, 0], tmp[c, 1]
        error = np.float64(0.0)
        for i in range(c * chunk, min((c + 1) * chunk, n)):
            g, k = metric[group[i]], codes[i]
            for a in range(d):
                e[a] = v[i, a] - codebook[k, a]
                ge[a] = np.float32(0.0)
            for b in range(d):  # G is symmetric: its rows along the contiguous axis
                x = e[b]
                for a in range(d):
                    ge[a] += x * g[b, a]
            total = np.float64(0.0)
            for a in range(d):
                total += np.float64(e[a]) * np.float64(ge[a])
            error += np.float64(weights[i]) * max(total, np.float64(0.0))
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
