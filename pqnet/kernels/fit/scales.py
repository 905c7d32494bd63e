"""Rounding weights to multiples of a list of values: what the best scale depends on, for many at once."""

import numpy as np
from numba import njit

from pqnet.kernels.fit.chunks import next_chunk

ROUNDINGS = 4096  # of a chunk, at least: taking a chunk takes as long as some ten of them


@njit(cache=True, nogil=True, error_model="numpy")
def scale_sums(counter, weights, importance, levels, thresholds, offset, even, scales, out_first, out_second):
    # IN weights, importance (R, N) f4, levels (K,) f8 ascending, thresholds (K - 1,) f8 between them, offset (R,) f8
    # subtracted from levels, even: 1 if they are integers in a row; scales (R, T) f8 positive
    # OUT first, second (R, T) f8: the sums of h w c and of h c c, c being the level nearest to w / scale
    rows, n = weights.shape
    tries = scales.shape[1]
    last = levels.size - 1
    chunk = max(1, ROUNDINGS // n)
    chunks = (rows * tries + chunk - 1) // chunk
    c = next_chunk(counter)
    while c < chunks:
        for at in range(c * chunk, min((c + 1) * chunk, rows * tries)):
            r, t = at // tries, at % tries
            inverse, shift = 1.0 / scales[r, t], offset[r]
            first, second = 0.0, 0.0
            for j in range(n):
                w, h = np.float64(weights[r, j]), np.float64(importance[r, j])
                x = w * inverse + shift
                if even == 1:
                    level = min(max(np.floor(x + 0.5), levels[0]), levels[last])
                else:
                    low, high = 0, last
                    while low < high:
                        middle = (low + high) // 2
                        if thresholds[middle] <= x:
                            low = middle + 1
                        else:
                            high = middle
                    level = levels[low]
                level -= shift
                first += h * w * level
                second += h * level * level
            out_first[r, t], out_second[r, t] = first, second
        c = next_chunk(counter)


@njit(cache=True, nogil=True, error_model="numpy")
def shrink_range(counter, histogram, levels, step, out_range):
    # IN histogram (R, B) f8: counts of weights in B equal bins between the least and largest of a row; levels: how many
    # integers; step: share of the mass that a try leaves out. OUT range (R, 2) i8: first and last bin that are kept.
    # The error model: weights spread evenly in each bin, rounded to the middles of `levels` equal parts of the range.
    chunks = histogram.shape[0]
    r = next_chunk(counter)
    while r < chunks:
        bins = histogram.shape[1]
        total = 0.0
        for i in range(bins):
            total += histogram[r, i]
        start, end, alpha, beta, least = 0, bins - 1, 0.0, 1.0, np.inf
        below, upto = 0.0, total  # mass before bin `left`, and up to bin `right`
        left, right = 0, bins - 1
        while alpha < beta:
            next_alpha, next_beta = alpha + step, beta - step
            while left < end and below + histogram[r, left] < next_alpha * total:
                below += histogram[r, left]
                left += 1
            while right > start and upto > next_beta * total:
                upto -= histogram[r, right]
                right -= 1
            next_start, next_end = start, end
            if left - start > end - right:
                next_start, alpha = left, next_alpha
            else:
                next_end, beta = right, next_beta
            if next_start == start and next_end == end:
                continue
            error = _range_error(histogram[r], next_start, next_end, levels)
            if error > least:
                break
            least, start, end = error, next_start, next_end
        out_range[r, 0], out_range[r, 1] = start, end
        r = next_chunk(counter)


@njit(cache=True, nogil=True, error_model="numpy")
def _range_error(histogram, start, end, levels):
    # In units of a bin: error of the model for the range of bins start..end
    part = (end - start + 1) / levels
    error = 0.0
    for i in range(histogram.size):
        begin = np.float64(i - start)
        first = min(max(np.floor(begin / part), 0.0), levels - 1.0)
        last = min(max(np.floor((begin + 1.0) / part), 0.0), levels - 1.0)
        low, high = begin - (first + 0.5) * part, begin + 1.0 - (last + 0.5) * part
        half = 0.5 * part
        cubes = half**3 - low**3 + (last - first - 1.0) * 2.0 * half**3 + high**3 + half**3
        error += histogram[i] * cubes / 3.0
    return error
