"""k-means under a quadratic metric: half distance h(n, k) = (v - c)' G (v - c) / 2 with G = metric[group[n]].

Written as h = half_norm[n] + offset[group[n], k] - y[n] . c[k] with y = G v, half_norm = v' G v / 2 and
offset[m, k] = c[k]' G_m c[k] / 2, so that one kernel serves no metric, one metric and one metric a group; half_norm
does not decide which codeword is nearest and is left out. Where float32 does not tell either, `settle` does.

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
from pqnet.kernels.fit.settle import list_doubtful, measure_tile, settle_tile
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


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
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


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def transform_tile(metric, g, d, x, tile, out):
    # OUT y = G v of a tile. IN metric (M * D * D) f4
    for a in range(d):
        for p in range(0, tile, WIDTH):
            total = splat(np.float32(0.0))
            for b in range(d):
                total = fma(splat(metric[(g * d + a) * d + b]), load(x, b * tile + p), total)
            store(out, a * tile + p, total)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def nearest_in_tiles(counter, blocks, tiling, book, ids, groups, chunk, scratch, out_codes, out_range):
    # IN blocks, tiling in tiles of ALL_TILE, book, scratch: see `kmeans_arguments`; ids: 0, 1, ... i4, groups of
    # codewords; OUT codes (N,) i4, range (chunks, 3 * WIDTH) f4: the least and the largest numbers, 0 included, and 0
    # or, if one is not finite, NaN
    flat, metric, rows, tile_group = blocks.flat, blocks.metric, tiling.rows, tiling.group
    d, matrices = metric.shape[2], metric.reshape(-1)
    offsets, kp = book.offset.reshape(-1), book.offset.shape[1]
    tiles, n = tile_group.size, out_codes.size
    chunks = (tiles + chunk - 1) // chunk
    c = next_chunk(counter)
    while c < chunks:
        codes, x, y = scratch.codes[c], scratch.x[c, 0], scratch.x[c, 0]
        best, below, size, norm = scratch.lanes[c, 0], scratch.lanes[c, 1], scratch.lanes[c, 2], scratch.lanes[c, 3]
        starts, listed, difference = scratch.starts[c], scratch.listed[c], scratch.difference[c]
        if metric.size:
            y = scratch.x[c, 1]
        zero = splat(np.float32(0.0))
        low, high, bad = zero, zero, zero
        for t in range(c * chunk, min((c + 1) * chunk, tiles)):
            g, first = tile_group[t], t * ALL_TILE
            gather_tile(flat, d, rows, t, ALL_TILE, starts, x)
            for p in range(0, d * ALL_TILE, WIDTH):
                a = load(x, p)
                low, high, bad = select_less(a, low, a, low), select_less(high, a, a, high), fma(a, zero, bad)
            if metric.size:
                transform_tile(matrices, g, d, x, ALL_TILE, y)
            search_all(y, book.interleaved, d, offsets, g * kp, ids, groups, best, codes)
            measure_tile(x, y, d, ALL_TILE, size, norm, 0)
            doubtful = list_doubtful(size, norm, 0, ALL_TILE, book.doubt, g, best, below, listed)
            if doubtful:  # to call with as many arguments costs something
                settle_tile(
                    *(doubtful, blocks, book, offsets, rows, first, g, y, 0, ALL_TILE),
                    *(best, below, listed, difference, codes),
                )
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


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def fill_tiles(counter, blocks, weights, tiling, chunk, scratch, tmp_sums, out, out_norm):
    # IN blocks, weights (N,) f4, tiling in tiles of TILE; TMP scratch, sums (chunks, 2, TILE) f8; OUT out: TiledBlocks,
    # whose ``summed`` is not filled if it is of size 0, norm (chunks,) f8: sum w v' G v
    flat, metric, rows = blocks.flat, blocks.metric, tiling.rows
    d, matrices = metric.shape[2], metric.reshape(-1)
    width = d * TILE
    tiles = tiling.group.size
    chunks = (tiles + chunk - 1) // chunk
    c = next_chunk(counter)
    while c < chunks:
        x, y, sums, norms = scratch.x[c, 0], scratch.x[c, 0], tmp_sums[c, 0], tmp_sums[c, 1]
        if metric.size:
            y = scratch.x[c, 1]
        norms[:] = 0.0
        for t in range(c * chunk, min((c + 1) * chunk, tiles)):
            gather_tile(flat, d, rows, t, TILE, scratch.starts[c], x)
            if metric.size:
                transform_tile(matrices, tiling.group[t], d, x, TILE, y)
            measure_tile(x, y, d, TILE, out.size, out.norm, t * TILE)
            for p in range(0, width, WIDTH):
                store(out.x, t * width + p, load(y, p))
                if out.summed.size:
                    store(out.summed, t * width + p, load(x, p))
            w = out.weights[t * TILE : (t + 1) * TILE]
            for lane in range(TILE):
                row = rows[t * TILE + lane]
                w[lane] = weights[row] if row >= 0 else np.float32(0.0)
            sums[:] = 0.0
            for j in range(d):
                total = load(y, j * TILE)
                for v in range(1, VECTORS):
                    total = add(total, load(y, j * TILE + v * WIDTH))
                middle = sum_lanes(total) / np.float32(TILE)  # rounded: any centre will do
                out.centre[t * d + j] = middle
                for lane in range(TILE):
                    at = np.float64(y[j * TILE + lane])
                    sums[lane] += (at - np.float64(middle)) ** 2
                    norms[lane] += np.float64(w[lane]) * at * np.float64(x[j * TILE + lane])
            farthest = np.float64(0.0)
            for lane in range(TILE):
                farthest = max(farthest, sums[lane])
            out.radius[t] = np.sqrt(farthest) * 1.000001
        norm = np.float64(0.0)
        for lane in range(TILE):
            norm += norms[lane]
        out_norm[c] = norm
        c = next_chunk(counter)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
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


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _above(kept, best, p):
    # h of the p-th listed codeword less that of the nearest, the least of the lanes that fall together
    least = subtract(load(kept, p * TILE), load(best, 0))
    for v in range(1, VECTORS):
        least = minimum(least, subtract(load(kept, p * TILE + v * WIDTH), load(best, v * WIDTH)))
    return least


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def step(counter, blocks, tiling, tiled, book, bounds, chunk, scratch, tmp_ids, tmp_kept, out):
    # E-step of all tiles, with what the blocks that found another codeword change in the sums over codewords.
    #
    # The bounds: h_k of a block is linear in y, so from one codebook to the next it changes by e - (y - centre) . dc
    # with e = d offset_k - centre . dc, and the last term is at most radius * |dc|. The least h rises by no more than
    # those of the codewords that were nearest, and when it is known, by exactly so much. A codeword whose bound stays
    # above 0 is nearest to no block of the tile; of those looked at the bound is exact again. Codes are the ones that
    # looking at all codewords would give: the margin is larger than what float32 loses.
    #
    # IN blocks, tiling, tiled, book; TMP scratch, ids (chunks, KP + GROUP + WIDTH) i4, kept (chunks, WIDTH + KP * TILE)
    # f4, KP being 1 without bounds; INOUT bounds, out: Sums; all in `kmeans_arguments`
    x, rows, kp = tiled.x, tiled.summed, book.offset.shape[1]
    tiles, offsets = tiling.group.size, book.offset.reshape(-1)
    k_all, d = out.sums.shape[1:]
    change_size = bounds.change_size
    chunks = (tiles + chunk - 1) // chunk
    c = next_chunk(counter)
    while c < chunks:
        four, kept, ids, found = tmp_kept[c, :WIDTH], tmp_kept[c, WIDTH:], tmp_ids[c], scratch.codes[c]
        best, below = scratch.lanes[c, 0], scratch.lanes[c, 1]
        lanes, difference = scratch.listed[c], scratch.difference[c]
        total = out.sums[c]
        listed, moved = 0, 0
        n = k_all
        for k in range(kp):
            ids[k] = k
        for t in range(c * chunk, min((c + 1) * chunk, tiles)):
            g = tiling.group[t]
            if bounds.used:
                n = _list_candidates(
                    *(t, bounds.slack, bounds.credit[t], tiled.centre, d, tiled.radius[t], bounds.change),
                    *(bounds.offset_change, g * kp, kp, change_size, bounds.margin[g], ids),
                )
                if n == 0:  # rather every codeword than none, whatever went wrong with the bounds
                    n = k_all
                    for k in range(kp):
                        ids[k] = k
                for p in range(n, n + GROUP):
                    ids[p] = kp - 1
            listed += n
            kept_step = TILE if bounds.used else 0
            count = (n + GROUP - 1) // GROUP
            search(x, t * d * TILE, book.words, d, offsets, g * kp, ids, count, kept, kept_step, best, found)
            if bounds.used:
                fall = splat(np.float32(3.4e38))  # minus the largest rise of the least h of any block
                for p in range(0, TILE, WIDTH):
                    now = load(best, p)
                    fall = minimum(fall, subtract(load(bounds.nearest, t * TILE + p), now))
                    store(bounds.nearest, t * TILE + p, now)
                bounds.credit[t] += least_lane(fall)
                for p in range(0, n, 4):
                    a, b = _above(kept, best, p), _above(kept, best, p + 1)
                    least_lanes(a, b, _above(kept, best, p + 2), _above(kept, best, p + 3), four)
                    for i in range(4):
                        bounds.slack[t * kp + ids[p + i]] = four[i] - bounds.credit[t]
            doubtful = list_doubtful(tiled.size, tiled.norm, t * TILE, TILE, book.doubt, g, best, below, lanes)
            if doubtful:
                settle_tile(
                    *(doubtful, blocks, book, offsets, tiling.rows, t * TILE, g, x, t * d * TILE, TILE),
                    *(best, below, lanes, difference, found),
                )
            part = out.segment[t]
            for lane in range(TILE):
                slot = np.uintp(t * TILE + lane)
                now, before = found[lane], out.codes[slot]
                if now != before:
                    moved += 1
                    out.codes[slot] = now
                    w = np.float64(tiled.weights[slot])
                    at = t * d * TILE + lane
                    out.mass[part, now] += w
                    for j in range(d):
                        total[now, j] += w * np.float64(rows[at + j * TILE])
                    if before >= 0:
                        out.mass[part, before] -= w
                        for j in range(d):
                            total[before, j] -= w * np.float64(rows[at + j * TILE])
        out.listed[c], out.moved[c] = listed, moved
        c = next_chunk(counter)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def sum_tiles(counter, tiled, chunk, out):
    # The sums of `step` from scratch; segments of different chunks are different
    rows, segment = tiled.summed, out.segment
    tiles, d = segment.size, out.sums.shape[2]
    chunks = (tiles + chunk - 1) // chunk
    c = next_chunk(counter)
    while c < chunks:
        total = out.sums[c]
        total[:] = 0.0
        for t in range(c * chunk, min((c + 1) * chunk, tiles)):
            part = out.mass[segment[t]]
            if t == c * chunk or segment[t] != segment[t - 1]:
                part[:] = 0.0
            for lane in range(TILE):
                k = out.codes[t * TILE + lane]
                w = np.float64(tiled.weights[t * TILE + lane])
                part[k] += w
                for j in range(d):
                    total[k, j] += w * np.float64(rows[(t * d + j) * TILE + lane])
        c = next_chunk(counter)
