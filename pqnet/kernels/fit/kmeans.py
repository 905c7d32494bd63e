"""k-means under a quadratic metric: half distance h(n, k) = (v - c)' G (v - c) / 2 with G = metric[group[n]].

Written as h = half_norm[n] + offset[group[n], k] - y[n] . c[k] with y = G v, half_norm = v' G v / 2 and
offset[m, k] = c[k]' G_m c[k] / 2, so that one kernel serves no metric, one metric and one metric a group; half_norm
does not decide which codeword is nearest and is left out.

Blocks are taken in tiles of TILE that share a metric, coordinate by coordinate: number j of lane l of tile t is
x[(t * D + j) * TILE + l]. Codewords come negated and padded to KP > K by such of very large offset.
"""

import numpy as np
from numba import njit

from pqnet.kernels.fit.chunks import next_chunk
from pqnet.kernels.fit.kmeans_search import (
    ALL_TILE,
    GROUP,
    TILE,
    VECTORS,
    append_up_to,
    least_lane,
    least_lanes,
    search,
    search_all,
    transpose,
)
from pqnet.kernels.simd import (
    WIDTH,
    add,
    fma,
    load,
    load_int,
    minimum,
    multiply,
    prefetch,
    select_less,
    splat,
    store,
    store_int,
    subtract,
    sum_lanes,
)


@njit(cache=True, nogil=True, error_model="numpy")
def gather_tile(flat, d, rows, t, tile, tmp_start, out):
    # IN flat (N * D) f4, rows (tiles * tile,) i4, -1 where there is none, or of size 0: blocks in their own order.
    # An empty lane repeats the first: nothing changes in the tile. TMP start (tile,) u8. Indices are unsigned, so that
    # no instructions ask whether they are negative: half of the time of these loops.
    n = flat.size // d
    width, size = np.uintp(tile), np.uintp(d)
    if rows.size == 0 and (t + 1) * tile <= n:
        for line in range((t + 1) * tile * d, (t + 2) * tile * d, 16):  # the tile after this
            prefetch(flat, line)
        if ((t + 1) * tile - 1) * d + (d + WIDTH - 1) // WIDTH * WIDTH <= flat.size:  # whole vectors of every block
            for p in range(0, tile, WIDTH):
                for j in range(0, d, WIDTH):
                    transpose(flat, (t * tile + p) * d + j, d, d - j, out, j * tile + p, tile)
            return
        for j in range(d):
            at, to = np.uintp(t * tile * d + j), np.uintp(j * tile)
            for lane in range(tile):
                out[to + np.uintp(lane)] = flat[at]
                at += size
        return
    first = t * tile if rows.size == 0 else rows[t * tile]
    for lane in range(tile):
        row = t * tile + lane
        if rows.size:
            row = rows[row]
        tmp_start[lane] = size * np.uintp(row if 0 <= row < n else first)
    for j in range(d):
        to = np.uintp(j) * width
        for lane in range(tile):
            out[to + np.uintp(lane)] = flat[tmp_start[lane] + np.uintp(j)]


@njit(cache=True, nogil=True, error_model="numpy")
def transform_tile(metric, g, d, x, tile, out):
    # OUT y = G v of a tile. IN metric (M * D * D) f4
    for a in range(d):
        for p in range(0, tile, WIDTH):
            total = splat(np.float32(0.0))
            for b in range(d):
                total = fma(splat(metric[(g * d + a) * d + b]), load(x, b * tile + p), total)
            store(out, a * tile + p, total)


@njit(cache=True, nogil=True, error_model="numpy")
def nearest_in_tiles(
    counter,
    flat,
    rows,
    tile_group,
    metric,
    words,
    offset,
    ids,
    groups,
    chunk,
    tmp_x,
    tmp_start,
    tmp_codes,
    out_codes,
    out_range,
):
    # IN flat (N * D) f4, rows (tiles * ALL_TILE,) i4: the blocks of the tiles (see gather_tile), tile_group (tiles,)
    # i4, metric (M, D, D) f4 or of size 0, words (KP * D) f4: ALL_GROUP codewords interleaved, offset (M, KP) f4, ids:
    # 0, 1, ... i4, groups of codewords; TMP x (chunks, 2, D * ALL_TILE) f4, start (chunks, ALL_TILE) u8, codes the
    # same i4; OUT codes (N,) i4, range (chunks, 3 * WIDTH) f4: the least and the largest numbers,
    # 0 included, and 0 or, if one is not finite, NaN
    d, matrices = metric.shape[2], metric.reshape(-1)
    offsets, kp = offset.reshape(-1), offset.shape[1]
    tiles, n = tile_group.size, out_codes.size
    chunks = (tiles + chunk - 1) // chunk
    c = next_chunk(counter)
    while c < chunks:
        codes, x, y = tmp_codes[c], tmp_x[c, 0], tmp_x[c, 0]
        if metric.size:
            y = tmp_x[c, 1]
        zero = splat(np.float32(0.0))
        low, high, bad = zero, zero, zero
        for t in range(c * chunk, min((c + 1) * chunk, tiles)):
            gather_tile(flat, d, rows, t, ALL_TILE, tmp_start[c], x)
            for p in range(0, d * ALL_TILE, WIDTH):
                a = load(x, p)
                low, high, bad = select_less(a, low, a, low), select_less(high, a, a, high), fma(a, zero, bad)
            if metric.size:
                transform_tile(matrices, tile_group[t], d, x, ALL_TILE, y)
            search_all(y, words, d, offsets, tile_group[t] * kp, ids, groups, codes)
            first = t * ALL_TILE
            if rows.size == 0 and first + ALL_TILE <= n:
                for p in range(0, ALL_TILE, WIDTH):
                    store_int(out_codes, first + p, load_int(codes, p))
            else:
                for lane in range(ALL_TILE):
                    row = rows[first + lane] if rows.size else first + lane
                    if 0 <= row < n:
                        out_codes[row] = codes[lane]
        store(out_range[c], 0, low)
        store(out_range[c], WIDTH, high)
        store(out_range[c], 2 * WIDTH, bad)
        c = next_chunk(counter)


@njit(cache=True, nogil=True, error_model="numpy")
def fill_tiles(
    counter,
    flat,
    weights,
    rows,
    tile_group,
    metric,
    chunk,
    tmp_x,
    tmp_sums,
    tmp_start,
    out_x,
    out_v,
    out_weights,
    out_centre,
    out_radius,
    out_norm,
):
    # IN as above, in tiles of TILE; TMP sums (chunks, 2, TILE); OUT x (tiles * D * TILE) f4: y, v the same of v itself
    # or of size 0, weights (tiles * TILE) f4, 0 in empty lanes, centre (tiles * D) f4 and radius (tiles,) f4 of a ball
    # that holds y, norm (chunks,) f8: sum w v' G v
    d, matrices = metric.shape[2], metric.reshape(-1)
    size = d * TILE
    tiles = tile_group.size
    chunks = (tiles + chunk - 1) // chunk
    c = next_chunk(counter)
    while c < chunks:
        x, y, sums, norms = tmp_x[c, 0], tmp_x[c, 1], tmp_sums[c, 0], tmp_sums[c, 1]
        norms[:] = 0.0
        for t in range(c * chunk, min((c + 1) * chunk, tiles)):
            gather_tile(flat, d, rows, t, TILE, tmp_start[c], x)
            if metric.size:
                transform_tile(matrices, tile_group[t], d, x, TILE, y)
            else:
                y[:] = x
            out_x[t * size : (t + 1) * size] = y
            if out_v.size:
                out_v[t * size : (t + 1) * size] = x
            w = out_weights[t * TILE : (t + 1) * TILE]
            for lane in range(TILE):
                row = rows[t * TILE + lane]
                w[lane] = weights[row] if row >= 0 else np.float32(0.0)
            sums[:] = 0.0
            for j in range(d):
                total = load(y, j * TILE)
                for v in range(1, VECTORS):
                    total = add(total, load(y, j * TILE + v * WIDTH))
                middle = sum_lanes(total) / np.float32(TILE)  # rounded: any centre will do
                out_centre[t * d + j] = middle
                for lane in range(TILE):
                    at = np.float64(y[j * TILE + lane])
                    sums[lane] += (at - np.float64(middle)) ** 2
                    norms[lane] += np.float64(w[lane]) * at * np.float64(x[j * TILE + lane])
            out_radius[t] = np.sqrt(sums.max()) * 1.000001
        out_norm[c] = norms.sum()
        c = next_chunk(counter)


@njit(cache=True, nogil=True, error_model="numpy")
def _list_candidates(t, slack, credit, centre, d, radius, change, offset_change, at, kp, change_size, margin, ids):
    # Lower bounds slack[t, k] + credit of min over the tile of h_k - h_nearest, slack brought from the codewords before
    # to those of now, and the list of the codewords that they do not exclude; return its length. See `step`.
    r, zero, huge = splat(radius), splat(np.float32(0.0)), splat(np.float32(3.4e38))
    owed, less = splat(credit), splat(margin)
    down = huge  # minus the largest rise of any codeword that was nearest to a block of the tile: those of bound 0
    for k in range(0, kp, WIDTH):
        shift = load(offset_change, at + k)
        for j in range(d):
            shift = fma(splat(centre[t * d + j]), load(change, j * kp + k), shift)
        spread, before = multiply(r, load(change_size, k)), load(slack, t * kp + k)
        store(slack, t * kp + k, add(before, subtract(subtract(shift, spread), less)))
        rise = subtract(subtract(zero, shift), spread)
        down = minimum(down, select_less(zero, add(before, owed), huge, rise))
    limit = splat(margin - credit - least_lane(down))
    n = 0
    for k in range(0, kp, WIDTH):
        n = append_up_to(ids, n, k, load(slack, t * kp + k), limit)
    return n


@njit(cache=True, nogil=True, error_model="numpy")
def _above(kept, best, p):
    # h of the p-th listed codeword less that of the nearest, the least of the lanes that fall together
    least = subtract(load(kept, p * TILE), load(best, 0))
    for v in range(1, VECTORS):
        least = minimum(least, subtract(load(kept, p * TILE + v * WIDTH), load(best, v * WIDTH)))
    return least


@njit(cache=True, nogil=True, error_model="numpy")
def step(
    counter,
    x,
    rows,
    weights,
    tile_group,
    segment,
    centre,
    radius,
    words,
    offset,
    change,
    offset_change,
    change_size,
    margin,
    bounded,
    chunk,
    tmp,
    tmp_ids,
    slack,
    credit,
    nearest,
    codes,
    sums,
    mass,
    out_listed,
    out_moved,
):
    # E-step of all tiles, with what the blocks that found another codeword change in the sums over codewords.
    #
    # The bounds: h_k of a block is linear in y, so from one codebook to the next it changes by e - (y - centre) . dc
    # with e = d offset_k - centre . dc, and the last term is at most radius * |dc|. The least h rises by no more than
    # those of the codewords that were nearest, and when it is known, by exactly so much. A codeword whose bound stays
    # above 0 is nearest to no block of the tile; of those looked at the bound is exact again. Codes are the ones that
    # looking at all codewords would give: margin is larger than what float32 loses in two h or in moving a bound.
    #
    # IN x, rows: tiles of y and of what is summed, weights (tiles * TILE,) f4, tile_group, segment (tiles,) i4: where
    # the mass of a tile goes, centre (tiles * D) f4, radius as above, words (KP * D) f4, offset (M, KP) f4, change
    # (D * KP) f4, offset_change (M * KP) f4, change_size (KP,) f4: negated codewords now minus those of the last step
    # with bounds, margin (M,) f4, bounded: whether to use and move the bounds;
    # TMP (chunks, WIDTH + TILE + KP * TILE) f4, KP being 1 if not bounded, ids (chunks, TILE + KP + GROUP) i4;
    # INOUT slack (tiles * KP) f4, 0 at first and large for padding, credit (tiles,) f4, at first 0: added to all bounds
    # of a tile, nearest (tiles * TILE,) f4: least h, at first 0, codes (tiles * TILE,) i4, at first -1, sums
    # (chunks, K, D) and mass (segments, K) f8, at first 0;
    # OUT listed, moved (chunks,) i8: codewords looked at, lanes with another codeword than before
    tiles, kp = tile_group.size, offset.shape[1]
    k_all, d = sums.shape[1:]
    flat = offset.reshape(-1)
    chunks = (tiles + chunk - 1) // chunk
    c = next_chunk(counter)
    while c < chunks:
        four, best, kept = tmp[c, :WIDTH], tmp[c, WIDTH : WIDTH + TILE], tmp[c, WIDTH + TILE :]
        found, ids = tmp_ids[c, :TILE], tmp_ids[c, TILE:]
        total = sums[c]
        listed, moved = 0, 0
        n = k_all
        for k in range(kp):
            ids[k] = k
        for t in range(c * chunk, min((c + 1) * chunk, tiles)):
            g = tile_group[t]
            if bounded:
                n = _list_candidates(
                    *(t, slack, credit[t], centre, d, radius[t], change, offset_change, g * kp, kp),
                    *(change_size, margin[g], ids),
                )
                if n == 0:  # rather every codeword than none, whatever went wrong with the bounds
                    n = k_all
                    for k in range(kp):
                        ids[k] = k
                for p in range(n, n + GROUP):
                    ids[p] = kp - 1
            listed += n
            kept_step = TILE if bounded else 0
            search(x, t * d * TILE, words, d, flat, g * kp, ids, (n + GROUP - 1) // GROUP, kept, kept_step, best, found)
            if bounded:
                fall = splat(np.float32(3.4e38))  # minus the largest rise of the least h of any block
                for p in range(0, TILE, WIDTH):
                    now = load(best, p)
                    fall = minimum(fall, subtract(load(nearest, t * TILE + p), now))
                    store(nearest, t * TILE + p, now)
                credit[t] += least_lane(fall)
                for p in range(0, n, 4):
                    a, b = _above(kept, best, p), _above(kept, best, p + 1)
                    least_lanes(a, b, _above(kept, best, p + 2), _above(kept, best, p + 3), four)
                    for i in range(4):
                        slack[t * kp + ids[p + i]] = four[i] - credit[t]
            part = segment[t]
            for lane in range(TILE):
                slot = np.uintp(t * TILE + lane)
                now, before = found[lane], codes[slot]
                if now != before:
                    moved += 1
                    codes[slot] = now
                    w = np.float64(weights[slot])
                    at = t * d * TILE + lane
                    mass[part, now] += w
                    for j in range(d):
                        total[now, j] += w * np.float64(rows[at + j * TILE])
                    if before >= 0:
                        mass[part, before] -= w
                        for j in range(d):
                            total[before, j] -= w * np.float64(rows[at + j * TILE])
        out_listed[c], out_moved[c] = listed, moved
        c = next_chunk(counter)


@njit(cache=True, nogil=True, error_model="numpy")
def sum_tiles(counter, rows, weights, segment, codes, chunk, out_sums, out_mass):
    # The sums of `step` from scratch; segments of different chunks are different
    tiles, d = segment.size, out_sums.shape[2]
    chunks = (tiles + chunk - 1) // chunk
    c = next_chunk(counter)
    while c < chunks:
        total = out_sums[c]
        total[:] = 0.0
        for t in range(c * chunk, min((c + 1) * chunk, tiles)):
            part = out_mass[segment[t]]
            if t == c * chunk or segment[t] != segment[t - 1]:
                part[:] = 0.0
            for lane in range(TILE):
                k = codes[t * TILE + lane]
                w = np.float64(weights[t * TILE + lane])
                part[k] += w
                for j in range(d):
                    total[k, j] += w * np.float64(rows[(t * d + j) * TILE + lane])
        c = next_chunk(counter)
