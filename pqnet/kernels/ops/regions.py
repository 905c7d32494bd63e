"""Regions of images: bins of samples of feature maps, masks put where their boxes are, peaks of heatmaps in boxes.

Positions are those of PyTorch and torchvision; see `pqnet.graph.ops.detection`.
"""

import numpy as np
from numba import njit

from pqnet.kernels.abi import CONST, DATA, FLAG, MAYBE_DATA, SIZE, Arguments, step
from pqnet.kernels.pointers import longs
from pqnet.kernels.simd import WIDTH, fma, load, multiply, splat, store, store_head

MAPS = 16  # of features at most
CHUNK = 256  # columns of a heatmap at once

# Regions of maps (batch, height, width, channels), whose images are counted map after map: the region's bins
# out (regions, rows, columns, channels) are means of bilinear samples. ``samples`` 0 takes about one a pixel.
ROI_ALIGN = Arguments(
    rois=DATA,  # (regions, 4)
    images=DATA,  # (regions,) int64, in [0, all images)
    maps=MAYBE_DATA.repeated(MAPS),
    firsts=SIZE.repeated(MAPS),  # number of a map's first image
    heights=SIZE.repeated(MAPS),
    widths=SIZE.repeated(MAPS),
    levels=SIZE,  # maps
    below=SIZE,  # all images
    out=DATA,
    regions=SIZE,
    rows=SIZE,
    columns=SIZE,
    channels=SIZE,
    samples=SIZE,
    aligned=FLAG,
    farthest=CONST,
    per_task=SIZE,  # regions
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _bin_of(start, end, bins, aligned, samples, farthest):
    # Start of a region along an axis, size of its bins, samples in each
    half = np.float32(0.5)
    if aligned == 1:
        start, end = start - half, end - half
    extent = end - start if aligned == 1 else max(end - start, np.float32(1))
    each = extent / np.float32(bins)
    if samples == 0 and each > 0:
        samples = np.int64(min(np.ceil(each), farthest))
    return start, each, samples


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _taps_of(start, each, i, sample, samples, size):
    # The pixels below and above a sample, and the weight of the latter; -1 if the sample is outside
    inner = (np.float32(sample) + np.float32(0.5)) * each / np.float32(samples)
    place = (start + np.float32(i) * each) + inner
    if not (place >= -1 and place <= size):
        return -1, -1, np.float32(0)
    place = max(place, np.float32(0))
    low = min(np.int64(place), size - 1)
    if low == size - 1:
        return low, low, np.float32(0)
    return low, low + 1, np.float32(place - low)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _add_sample(data, low, high, left, right, down, across, scale, out, channels):
    # INOUT out: channels. low, high: rows of the map; left, right: columns, all as offsets
    up, back = (np.float32(1) - down) * scale, np.float32(1) - across
    down = down * scale
    a, b, c, d = splat(up * back), splat(up * across), splat(down * back), splat(down * across)
    for j in range(0, channels, WIDTH):
        v = fma(load(data, low + left + j), a, load(data, out + j))
        v = fma(load(data, low + right + j), b, v)
        v = fma(load(data, high + left + j), c, v)
        v = fma(load(data, high + right + j), d, v)
        if j + WIDTH <= channels:
            store(data, out + j, v)
        else:
            store_head(data, out + j, v, channels - j)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _clear(data, out, n):
    zero = splat(np.float32(0))
    for j in range(0, n, WIDTH):
        if j + WIDTH <= n:
            store(data, out + j, zero)
        else:
            store_head(data, out + j, zero, n - j)


@step(ROI_ALIGN)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def roi_align(task, g, data, const, codes, index, scratch):
    channels, images, firsts, farthest = g.channels, longs(data), g.firsts, const[g.farthest]
    for region in range(task * g.per_task, min((task + 1) * g.per_task, g.regions)):
        image, level = min(max(images[g.images + region], 0), g.below - 1), 0
        while level + 1 < g.levels and image >= firsts[level + 1]:
            level += 1
        height, width = g.heights[level], g.widths[level]
        x = g.maps[level] + (image - firsts[level]) * height * width * channels
        roi = g.rois + 4 * region
        left, each_x, across = _bin_of(data[roi], data[roi + 2], g.columns, g.aligned, g.samples, farthest)
        top, each_y, down = _bin_of(data[roi + 1], data[roi + 3], g.rows, g.aligned, g.samples, farthest)
        scale = np.float32(1) / np.float32(max(down * across, 1))
        for place in range(g.rows * g.columns):
            i, j = place // g.columns, place % g.columns
            out = g.out + (region * g.rows * g.columns + place) * channels
            _clear(data, out, channels)
            for s in range(down):
                low, high, part = _taps_of(top, each_y, i, s, down, height)
                if low < 0:
                    continue
                for t in range(across):
                    first, last, share = _taps_of(left, each_x, j, t, across, width)
                    if first < 0:
                        continue
                    above, below = x + low * width * channels, x + high * width * channels
                    _add_sample(
                        data, above, below, first * channels, last * channels, part, share, scale, out, channels
                    )


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _within(value, farthest):
    # A coordinate as far as images go; NaN is 0
    return min(max(value, -farthest), farthest) if value == value else np.float32(0)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _place_of(i, count, size):
    # Where pixel i of ``count`` lies among ``size``
    ratio = np.float32(np.float64(size) / np.float64(count))
    return np.float32((np.float64(i) + 0.5) * np.float64(ratio) - 0.5)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _part_of(place, size):
    # The pixel below a place, and how far above it the place is
    low = min(np.int64(np.floor(place)), size - 1)
    return low, np.float32(min(max(np.float64(place) - np.float64(low), 0.0), 1.0))


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _inner(data, mask, size, row, column):
    # A pixel of a mask with a border of zeros around it
    if row < 1 or column < 1 or row > size or column > size:
        return np.float32(0)
    return data[mask + (row - 1) * size + column - 1]


# Masks (masks, size, size) put where their boxes are in images of zeros: out (masks, rows, columns). A task is a mask.
PASTE = Arguments(
    masks=DATA,
    boxes=DATA,  # (masks, 4)
    out=DATA,
    side=SIZE,
    rows=SIZE,
    columns=SIZE,
    farthest=CONST,
    border=CONST,  # what a box grows by because of the border
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _grown(a, b, g, const):
    # First and last pixel, along an axis, of a mask with its border
    half = np.float32(0.5)
    low, high = _within(a, const[g.farthest]), _within(b, const[g.farthest])
    middle, reach = (high + low) * half, (high - low) * half * const[g.border]
    return np.int64(middle - reach), np.int64(middle + reach)


@step(PASTE)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def paste_masks(task, g, data, const, codes, index, scratch):
    # scratch: an int64 and a float for each column
    box, size, wide = g.boxes + 4 * task, g.side, g.side + 2
    mask, out = g.masks + task * size * size, g.out + task * g.rows * g.columns
    _clear(data, out, g.rows * g.columns)
    left, right = _grown(data[box], data[box + 2], g, const)
    top, bottom = _grown(data[box + 1], data[box + 3], g, const)
    width, height = max(right - left + 1, 1), max(bottom - top + 1, 1)
    lows, parts = longs(scratch), 2 * g.columns
    first, last = max(left, 0), min(right + 1, g.columns)
    for j in range(first, last):
        lows[j], scratch[parts + j] = _part_of(max(_place_of(j - left, width, wide), np.float32(0)), wide)
    one = np.float32(1)
    for i in range(max(top, 0), min(bottom + 1, g.rows)):
        row, down = _part_of(max(_place_of(i - top, height, wide), np.float32(0)), wide)
        under = min(row + 1, wide - 1)
        for j in range(first, last):
            column, part = lows[j], scratch[parts + j]
            behind = min(column + 1, wide - 1)
            a = _inner(data, mask, size, row, column) * (one - part) + _inner(data, mask, size, row, behind) * part
            b = _inner(data, mask, size, under, column) * (one - part) + _inner(data, mask, size, under, behind) * part
            data[out + i * g.columns + j] = a * (one - down) + b * down


# Where in its box each of the heatmaps (boxes, count, size, size) is largest once it has the size of the box: (x, y)
# and the largest number. A task is a heatmap.
PEAKS = Arguments(
    heatmaps=DATA,
    boxes=DATA,  # (boxes, 4)
    places=DATA,  # (boxes, count, 2)
    scores=DATA,  # (boxes, count)
    count=SIZE,
    side=SIZE,
    farthest=CONST,
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _cubic(distance):
    x, a = abs(distance), -0.75
    if x <= 1:
        return np.float32(((a + 2) * x - (a + 3)) * x * x + 1)
    return np.float32(((a * x - 5 * a) * x + 8 * a) * x - 4 * a) if x < 2 else np.float32(0)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _put_cubic_taps(i, count, size, taps, at):
    # OUT taps: 4 weights; returns the pixel before that of the second
    low, part = _part_of(_place_of(i, count, size), size)
    for t in range(4):
        taps[at + t] = _cubic(np.float64(part) - (t - 1))
    return low - 1


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _mix_chunk(data, heat, size, width, first, n, scratch, rows, weights):
    # OUT rows: n columns, from ``first`` of ``width`` on, of each row of a heatmap
    for j in range(n):
        low = _put_cubic_taps(first + j, width, size, scratch, weights)
        for i in range(size):
            v = np.float32(0)
            for t in range(4):
                v += data[heat + i * size + min(max(low + t, 0), size - 1)] * scratch[weights + t]
            scratch[rows + i * CHUNK + j] = v


@step(PEAKS)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def heatmap_peaks(task, g, data, const, codes, index, scratch):
    # scratch: CHUNK floats for each row of a heatmap, and for a row of the result; 4 weights
    size, box = g.side, g.boxes + 4 * (task // g.count)
    heat, mixed, weights = g.heatmaps + task * size * size, size * CHUNK, (size + 1) * CHUNK
    one = np.float32(1)
    wide, high = data[box + 2] - data[box], data[box + 3] - data[box + 1]
    wide = max(_within(wide, const[g.farthest]), one) if wide == wide else one
    high = max(_within(high, const[g.farthest]), one) if high == high else one
    width, height = np.int64(np.ceil(wide)), np.int64(np.ceil(high))
    best, at = np.float32(-np.inf), np.int64(-1)
    for first in range(0, width, CHUNK):
        n = min(CHUNK, width - first)
        _mix_chunk(data, heat, size, width, first, n, scratch, 0, weights)
        for i in range(height):
            low = _put_cubic_taps(i, height, size, scratch, weights)
            for j in range(0, n, WIDTH):
                v = multiply(load(scratch, min(max(low, 0), size - 1) * CHUNK + j), splat(scratch[weights]))
                for t in range(1, 4):
                    row = min(max(low + t, 0), size - 1) * CHUNK + j
                    v = fma(load(scratch, row), splat(scratch[weights + t]), v)
                store(scratch, mixed + j, v)
            for j in range(n):
                v, place = scratch[mixed + j], i * width + first + j
                if v > best or (v == best and place < at) or at < 0:
                    best, at = v, place
    row, column = at // width, at % width
    half = np.float32(0.5)
    data[g.places + 2 * task] = (np.float32(column) + half) * (wide / np.float32(width)) + data[box]
    data[g.places + 2 * task + 1] = (np.float32(row) + half) * (high / np.float32(height)) + data[box + 1]
    data[g.scores + task] = best
