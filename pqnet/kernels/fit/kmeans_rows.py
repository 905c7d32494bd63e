"""What k-means does with blocks in their own order: surveys, sorting, metrics of few blocks, exact errors, seeds."""

import numpy as np
from numba import njit

from pqnet.kernels.fit.chunks import next_chunk
from pqnet.kernels.fit.settle import TOLERANCE, nearest_of
from pqnet.kernels.simd import WIDTH, add, fma, load, maximum, splat, store, subtract

SEED_CHUNK = 512  # blocks that k-means++ sums at once
NEAR = np.float32(1 / 256)  # share of half v' G v below which k-means++ takes differences of blocks


@njit(cache=True, nogil=True, error_model="numpy")
def survey(counter, flat, period, chunk, tmp, out_sums, out_squares, out_largest):
    # Column sums of a (N, D) array without leaving its memory order: period = 16 D numbers are 16 rows. In float32 over
    # 64 periods, then in float64; not finite if anything in flat is not.
    # IN flat (N * D) f4; TMP (chunks, 2 * period) f4; OUT sums, squares (chunks, period) f8, largest (chunks, period)
    # f4 of absolute values
    n = flat.size
    zero = splat(np.float32(0.0))
    chunks = (n + chunk * period - 1) // (chunk * period)
    c = next_chunk(counter)
    while c < chunks:
        part, sums, squares, largest = tmp[c], out_sums[c], out_squares[c], out_largest[c]
        sums[:] = 0.0
        squares[:] = 0.0
        largest[:] = 0.0
        for first in range(c * chunk, (c + 1) * chunk, 64):
            part[:] = 0.0
            for r in range(first, min(first + 64, (c + 1) * chunk, n // period)):
                for p in range(0, period, WIDTH):
                    x = load(flat, r * period + p)
                    store(part, p, add(load(part, p), x))
                    store(part, period + p, fma(x, x, load(part, period + p)))
                    store(largest, p, maximum(load(largest, p), maximum(x, subtract(zero, x))))
            for p in range(period):
                sums[p] += np.float64(part[p])
                squares[p] += np.float64(part[period + p])
        if (c + 1) * chunk * period > n:  # the last chunk: less than a period is left
            for p in range(n % period):
                x = flat[n - n % period + p]
                sums[p] += np.float64(x)
                squares[p] += np.float64(x) * np.float64(x)
                largest[p] = max(largest[p], abs(x))
        c = next_chunk(counter)


@njit(cache=True, nogil=True, error_model="numpy")
def sort_by_key(keys, order, tmp_start, out_order):
    # One pass of a stable radix sort. IN keys (N,) i4 of the blocks, order (N,) i4 so far; TMP start (keys,) i8
    tmp_start[:] = 0
    for i in range(keys.size):
        tmp_start[keys[i]] += 1
    total = np.int64(0)
    for k in range(tmp_start.size):
        total, tmp_start[k] = total + tmp_start[k], total
    for i in range(order.size):
        row = order[i]
        at = tmp_start[keys[row]]
        out_order[at] = row
        tmp_start[keys[row]] = at + 1


@njit(cache=True, nogil=True, error_model="numpy")
def number_cells(counter, flat, d, codes, codebook, axes, chunk, out_keys):
    # Blocks of one cell lie near each other: their coarse codeword, and on which side of it they are on some axes.
    # IN flat (N * D) f4, codes (N,) i4, codebook (K * D) f4, axes (A,) u8; OUT keys (N,) i4 below K << A
    n, size = codes.size, np.uintp(d)
    chunks = (n + chunk - 1) // chunk
    c = next_chunk(counter)
    while c < chunks:
        for i in range(c * chunk, min((c + 1) * chunk, n)):
            block, word = np.uintp(i) * size, np.uintp(codes[i]) * size
            key = codes[i]
            for a in axes:
                key = 2 * key + (np.int32(1) if flat[block + a] > codebook[word + a] else np.int32(0))
            out_keys[i] = key
        c = next_chunk(counter)


@njit(cache=True, nogil=True, error_model="numpy")
def transform_rows(counter, v, group, metric, chunk, out_y, out_half_norm):
    # IN v (N, D) f4, group (N,) i4, metric (M, D, D) f4; OUT y = G v (N, D) f4, half_norm = v' G v / 2 (N,) f4
    n, d = v.shape
    chunks = (n + chunk - 1) // chunk
    c = next_chunk(counter)
    while c < chunks:
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
        c = next_chunk(counter)


@njit(cache=True, nogil=True, error_model="numpy")
def nearest_row_by_row(
    counter, blocks, book, y, half_norm, size, group, chunk, tmp, tmp_bits, tmp_ids, tmp_difference, out_codes
):
    # For metrics of so few blocks each that tiles would be mostly empty: here the lanes are codewords.
    # IN y (N, D) f4, half_norm, size = |v|^2 (N,) f4, group (N,) i4; TMP tmp (chunks, KP) f4 and tmp_bits, the same
    # memory as i4, ids (chunks, K) i4, difference (chunks, D) f8; OUT codes (N,) i4
    n, d = y.shape
    kp, k_all = book.offset.shape[1], len(book.exact)
    words = book.by_coordinate.reshape(d, kp)
    top = np.int32(0x7FFFFFFF)
    chunks = (n + chunk - 1) // chunk
    c = next_chunk(counter)
    while c < chunks:
        h, bits, ids, difference = tmp[c], tmp_bits[c], tmp_ids[c], tmp_difference[c]
        for i in range(c * chunk, min((c + 1) * chunk, n)):
            g = group[i]
            base = book.offset[g]
            norm = half_norm[i]
            for k in range(kp):
                h[k] = base[k] + norm
            j = 0
            while j + 4 <= d:  # four coordinates a pass: a fourth of the traffic on h
                y0, y1, y2, y3 = y[i, j], y[i, j + 1], y[i, j + 2], y[i, j + 3]
                c0, c1, c2, c3 = words[j], words[j + 1], words[j + 2], words[j + 3]
                for k in range(kp):
                    h[k] += (y0 * c0[k] + y1 * c1[k]) + (y2 * c2[k] + y3 * c3[k])
                j += 4
            while j < d:
                y0 = y[i, j]
                c0 = words[j]
                for k in range(kp):
                    h[k] += y0 * c0[k]
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
            share, start, slope = book.doubt[g, 0], book.doubt[g, 1], book.doubt[g, 2]
            below = min(share * size[i], start + slope * np.sqrt(size[i]))
            best = max(h[first], np.float32(0.0))
            if best < below:
                found = 0
                for k in range(k_all):
                    if h[k] <= best + TOLERANCE * below:
                        ids[found] = k
                        found += 1
                if found > 1:
                    first = nearest_of(blocks, book, i, g, first, ids, 0, found, difference)
            out_codes[i] = first
        c = next_chunk(counter)


@njit(cache=True, nogil=True, error_model="numpy")
def sum_by_code(counter, rows, weights, codes, chunk, out_sums, out_mass):
    # IN rows (N, D) f4, weights (N,) f4, codes (N,) i4;
    # OUT sums (chunks, K, D) f8 and mass (chunks, K) f8: zeroed here, then added up by the caller
    n, d = rows.shape
    chunks = (n + chunk - 1) // chunk
    c = next_chunk(counter)
    while c < chunks:
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
        c = next_chunk(counter)


@njit(cache=True, nogil=True, error_model="numpy")
def block_errors(counter, v, weights, group, metric, codebook, codes, chunk, tmp, out_errors, out_sums):
    # w (v - c)' G (v - c), metric of size 0 for G = 1: TMP (chunks, 2, D) f4, OUT errors (N,) f4, sums (chunks,) f8.
    # The difference comes first and the sum over blocks is in float64, so that float32 in between costs no digits.
    n, d = v.shape
    chunks = (n + chunk - 1) // chunk
    c = next_chunk(counter)
    while c < chunks:
        e, ge = tmp[c, 0], tmp[c, 1]
        sums = np.float64(0.0)
        for i in range(c * chunk, min((c + 1) * chunk, n)):
            k = codes[i]
            total = np.float64(0.0)
            if metric.size == 0:
                for a in range(d):
                    x = v[i, a] - codebook[k, a]
                    total += np.float64(x) * np.float64(x)
            else:
                g = metric[group[i]]
                for a in range(d):
                    e[a] = v[i, a] - codebook[k, a]
                    ge[a] = np.float32(0.0)
                for b in range(d):  # G is symmetric: its rows along the contiguous axis
                    x = e[b]
                    for a in range(d):
                        ge[a] += x * g[b, a]
                for a in range(d):
                    total += np.float64(e[a]) * np.float64(ge[a])
            total = np.float64(weights[i]) * max(total, np.float64(0.0))
            out_errors[i] = total
            sums += total
        out_sums[c] = sums
        c = next_chunk(counter)


@njit(cache=True, nogil=True, error_model="numpy")
def _sum_up(least, first, last):
    s0, s1, s2, s3 = np.float64(0.0), np.float64(0.0), np.float64(0.0), np.float64(0.0)
    end = first + (last - first) // 4 * 4
    for i in range(first, end, 4):  # four chains of additions hide that each takes a while
        s0 += least[i]
        s1 += least[i + 1]
        s2 += least[i + 2]
        s3 += least[i + 3]
    for i in range(end, last):
        s0 += least[i]
    return (s0 + s1) + (s2 + s3)


@njit(cache=True, nogil=True, error_model="numpy")
def _block_at(least, edges, target):
    # The block at which the running sum passes the target
    c = 0
    while c + 1 < edges.size and edges[c] <= target:
        c += 1
    sum_to = edges[c - 1] if c else 0.0
    found = c * SEED_CHUNK
    for i in range(c * SEED_CHUNK, min((c + 1) * SEED_CHUNK, least.size)):
        if least[i] > 0:
            found = i  # the last of any weight, if rounding leads past it
            sum_to += np.float64(least[i])
            if sum_to > target:
                break
    return found


@njit(cache=True, nogil=True, error_model="numpy")
def _lessen(v, y, half_norm, group, weights, metric, seed, least, tmp_half, tmp_offset, tmp, out_least, out_edges):
    # OUT least (N,) f4: the lesser of least and the weighted half distances to the block ``seed``, edges (chunks,) f8:
    # the sums to the end of every chunk; return that of all
    d, n = y.shape
    word, half = v[seed], tmp_half
    for g in range(tmp_offset.size):
        norm = 0.0
        for a in range(d):
            for b in range(d):
                norm += np.float64(word[a]) * metric[g, a, b] * np.float64(word[b])
        tmp_offset[g] = 0.5 * norm
    total = np.float64(0.0)
    for c in range(out_edges.size):
        first = c * SEED_CHUNK
        size = min(SEED_CHUNK, n - first)
        norms = half_norm[first : first + size]
        if tmp_offset.size == 1:
            offset = np.float32(tmp_offset[0])
            for i in range(size):
                half[i] = norms[i] + offset
        else:
            for i in range(size):
                half[i] = norms[i] + np.float32(tmp_offset[group[first + i]])
        for a in range(d):
            factor, row_of_y = word[a], y[a, first : first + size]
            for i in range(size):
                half[i] -= factor * row_of_y[i]
        near = np.int32(0)
        for i in range(size):
            near |= np.int32(half[i] < NEAR * norms[i])
        if near:  # of little, next to what it is the difference of: not so in float64
            for i in range(size):
                if half[i] < NEAR * norms[i]:
                    g, norm = group[first + i], 0.0
                    for a in range(d):
                        tmp[a] = np.float64(v[first + i, a]) - np.float64(word[a])
                    for a in range(d):
                        for b in range(d):
                            norm += tmp[a] * metric[g, a, b] * tmp[b]
                    half[i] = 0.5 * norm
        before, after = least[first : first + size], out_least[first : first + size]
        heavy = weights[first : first + size]
        for i in range(size):
            weighted = half[i] * heavy[i]
            after[i] = min(before[i], weighted if weighted > np.float32(0.0) else np.float32(0.0))
        total += _sum_up(out_least, first, first + size)
        out_edges[c] = total
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def draw_seeds(
    v, y, half_norm, group, weights, metric, draws, tmp_least, tmp_half, tmp_offset, tmp_edges, tmp, out_seeds
):
    # k-means++: each of K blocks drawn with probability proportional to its weighted half distance to those before,
    # the one of several drawn that lowers their sum most.
    # IN v (N, D) f4, y (D, N) f4, half_norm (N,) f4, group (N,) i4, weights (N,) f4, metric (M, D, D) f8, draws
    # (K, tries) f8 below 1; TMP least (3, N) f4, half (SEED_CHUNK,) f4, offset (M,) f8, edges (3, chunks of SEED_CHUNK
    # blocks) f8, tmp (D,) f8; OUT seeds (K,) i8. Return how many were found before all distances were 0.
    now, best, tried = 0, 1, 2
    tmp_least[now] = weights
    total = np.float64(0.0)
    for c in range(tmp_edges.shape[1]):
        total += _sum_up(weights, c * SEED_CHUNK, min((c + 1) * SEED_CHUNK, weights.size))
        tmp_edges[now, c] = total
    for s in range(out_seeds.size):
        if total <= 0.0:
            return s
        lowest = np.inf
        for i in range(draws.shape[1]):
            seed = _block_at(tmp_least[now], tmp_edges[now], draws[s, i] * total)
            before = tmp_least[now]
            if s == 0:
                before = tmp_least[tried]
                before[:] = np.float32(3.4e38)
            left = _lessen(
                *(v, y, half_norm, group, weights, metric, seed, before, tmp_half, tmp_offset),
                *(tmp, tmp_least[tried], tmp_edges[tried]),
            )
            if left < lowest:
                lowest, out_seeds[s] = left, seed
                best, tried = tried, best
        now, best, total = best, now, lowest
    return out_seeds.size


@njit(cache=True, nogil=True, error_model="numpy")
def codeword_changes(words, offset, words_before, offset_before, out_change, out_offset, out_size):
    # IN words (KP, D), offset (M, KP) f4, now and before; OUT change (D * KP) f4, offset (M * KP) f4: differences,
    # size (KP,) f4: their length, rounded up
    kp, d = words.shape
    for k in range(kp):
        size = np.float64(0.0)
        for j in range(d):
            change = np.float64(words[k, j]) - np.float64(words_before[k, j])
            out_change[j * kp + k] = change
            size += change * change
        out_size[k] = np.sqrt(size) * 1.000001
    for g in range(len(offset)):
        for k in range(kp):
            out_offset[g * kp + k] = offset[g, k] - offset_before[g, k]
