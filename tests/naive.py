"""Slow twins that are obviously right: loops over plain indices, float64."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

Pair = tuple[int, int]
Quad = tuple[int, int, int, int]


def conv2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Pair = (1, 1),
    padding: Quad = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> np.ndarray:
    """Convolve x (B, C, H, W) with weight (O, C / groups, kh, kw); padding is top, left, bottom, right."""
    batch, _, height, width = x.shape
    filters, channels, kh, kw = weight.shape
    rows = (height + padding[0] + padding[2] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    columns = (width + padding[1] + padding[3] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = np.zeros((batch, filters, rows, columns))
    for b in range(batch):
        for o in range(filters):
            for r in range(rows):
                for s in range(columns):
                    for c in range(channels):
                        for i in range(kh):
                            for j in range(kw):
                                y = r * stride[0] + i * dilation[0] - padding[0]
                                z = s * stride[1] + j * dilation[1] - padding[1]
                                if 0 <= y < height and 0 <= z < width:
                                    source = o // (filters // groups) * channels + c
                                    out[b, o, r, s] += float(x[b, source, y, z]) * float(weight[o, c, i, j])
            out[b, o] += 0.0 if bias is None else float(bias[o])
    return out


def conv_transpose2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Pair = (1, 1),
    padding: Quad = (0, 0, 0, 0),
    output_padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> np.ndarray:
    """Spread every pixel of x (B, C, H, W) with weight (O, C / groups, kh, kw), the filter form."""
    batch, _, height, width = x.shape
    filters, channels, kh, kw = weight.shape
    rows = (height - 1) * stride[0] + dilation[0] * (kh - 1) + 1 - padding[0] - padding[2] + output_padding[0]
    columns = (width - 1) * stride[1] + dilation[1] * (kw - 1) + 1 - padding[1] - padding[3] + output_padding[1]
    out = np.zeros((batch, filters, rows, columns))
    for b in range(batch):
        for o in range(filters):
            for y in range(height):
                for z in range(width):
                    for c in range(channels):
                        for i in range(kh):
                            for j in range(kw):
                                r = y * stride[0] + i * dilation[0] - padding[0]
                                s = z * stride[1] + j * dilation[1] - padding[1]
                                if 0 <= r < rows and 0 <= s < columns:
                                    source = o // (filters // groups) * channels + c
                                    out[b, o, r, s] += float(x[b, source, y, z]) * float(weight[o, c, i, j])
            out[b, o] += 0.0 if bias is None else float(bias[o])
    return out


def distances(blocks, codebook, metric=None, groups=None):
    """(v - c)' G (v - c) of every block with every codeword, float64 (N, K)."""
    n, d = np.shape(blocks)
    out = np.empty((n, len(codebook)))
    for i in range(n):
        matrix = np.eye(d) if metric is None else np.asarray(metric, float)
        if groups is not None:
            matrix = np.asarray(metric, float)[groups[i]]
        for k in range(len(codebook)):
            e = np.asarray(blocks[i], float) - np.asarray(codebook[k], float)
            out[i, k] = e @ matrix @ e
    return out


def weighted_error(blocks, codebook, codes, weights, metric=None, groups=None):
    """Sum of the weighted squared distances of all blocks to their codewords."""
    total = 0.0
    for i in range(len(blocks)):
        group = None if groups is None else [groups[i]]
        total += weights[i] * distances(blocks[i : i + 1], codebook[codes[i]][None], metric, group)[0, 0]
    return total


def lloyd_step(blocks, codebook, weights, metric=None, groups=None):
    """One iteration of k-means: the next codebook, or None if a codeword has no members."""
    d = np.shape(blocks)[1]
    codes = distances(blocks, codebook, metric, groups).argmin(1)
    out = np.empty((len(codebook), d))
    for k in range(len(codebook)):
        left, right = np.zeros((d, d)), np.zeros(d)
        for i in np.flatnonzero(codes == k):
            matrix = np.eye(d) if metric is None else np.asarray(metric if groups is None else metric[groups[i]], float)
            left += weights[i] * matrix
            right += weights[i] * matrix @ np.asarray(blocks[i], float)
        if not left.any():
            return None
        out[k] = np.linalg.solve(left, right)
    return out


def second_order_error(target, moments, weights, codes, codebook):
    """sum_o a_o (t_o - w_o)' H (t_o - w_o), w_o made of the codewords; moments (G, Kin, Kin), targets (O, Kin)."""
    total = 0.0
    for o in range(len(target)):
        e = np.asarray(target[o], float) - np.concatenate([codebook[code] for code in codes[o]])
        total += weights[o] * e @ np.asarray(moments[o * len(moments) // len(target)], float) @ e
    return total


def second_order_sweep(target, moments, codes, codebook):
    """Every code of every output chosen anew, position after position: the one of least error, all others given."""
    codes = np.array(codes)
    for o in range(len(target)):
        moment = moments[o * len(moments) // len(target)][None]
        for m in range(codes.shape[1]):
            errors = []
            for k in range(len(codebook)):
                codes[o, m] = k
                errors.append(second_order_error(target[o : o + 1], moment, [1.0], codes[o : o + 1], codebook))
            codes[o, m] = int(np.argmin(errors))
    return codes


def second_order_codebook(target, moments, weights, codes, k):
    """The codebook of least error for given codes: least squares over all its numbers at once."""
    d = target.shape[1] // codes.shape[1]
    rows, right = [], []
    for o in range(len(target)):
        root = np.linalg.cholesky(np.asarray(moments[o * len(moments) // len(target)], float)).T * np.sqrt(weights[o])
        made = np.zeros((target.shape[1], k * d))
        for m, code in enumerate(codes[o]):
            made[m * d : (m + 1) * d, code * d : (code + 1) * d] = np.eye(d)
        rows.append(root @ made)
        right.append(root @ target[o])
    return np.linalg.lstsq(np.concatenate(rows), np.concatenate(right), rcond=None)[0].reshape(k, d)


def spread_of_blocks(rows, width):
    """det(S)^(1/d) relative to trace(S) / d, S the sum of v v' over blocks of ``width`` channels; rows (C, t, n)."""
    d = width * rows.shape[1]
    moment = np.zeros((d, d))
    for first in range(0, len(rows), width):
        for n in range(rows.shape[2]):
            v = rows[first : first + width, :, n].astype(float).reshape(d)
            moment += np.outer(v, v)
    return np.linalg.det(moment / np.trace(moment) * d) ** (1 / d)


def allocation(sizes: Sequence[np.ndarray], errors: Sequence[np.ndarray], low: int, high: int) -> float | None:
    """Return the least summed error of one option for each item with a total size in [low, high]; None if none is."""
    losses = [
        sum(float(e[i]) for e, i in zip(errors, way, strict=True))
        for way in itertools.product(*(range(len(size)) for size in sizes))
        if low <= sum(int(s[i]) for s, i in zip(sizes, way, strict=True)) <= high
    ]
    return min(losses, default=None)


def bits_of(stream: np.ndarray, start: int, bits: int) -> int:
    """Return the number in some bits of a stream of bytes, least significant bit first."""
    return sum(((int(stream[i // 8]) >> (i % 8)) & 1) << (i - start) for i in range(start, start + bits))


def decode(decoding: Any) -> np.ndarray:
    """Decode a weight from its description (pqnet.codecs.Decoding), number by number."""
    outputs, inputs = decoding.shape[0], int(np.prod(decoding.shape[1:]))
    channels, out = decoding.shape[1], np.zeros((outputs, inputs), np.float32)
    for number, lookup in enumerate(decoding.lookups):
        k, d = lookup.codebook.shape
        bits = next(b for b in range(33) if 2**b >= k)
        for o in range(outputs):
            for m in range(inputs // d):
                code = bits_of(lookup.codes, (o * (inputs // d) + m) * bits, bits)
                for j in range(d):
                    i = m * d + j
                    if lookup.layout == "channel":  # places of a block are channels; taps go on from block to block
                        tap, channel = divmod(i, channels)
                        i = channel * (inputs // channels) + tap
                    value = np.float32(lookup.codebook[code, j])
                    if lookup.scales is not None:
                        rows, groups = lookup.scales.shape
                        at = o if rows > 1 else 0, i // (inputs // groups)
                        value = value - np.float32(0 if lookup.zeros is None else lookup.zeros[at])
                        value = value * np.float32(lookup.scales[at])
                    out[o, i] = value if number == 0 else out[o, i] + value
    for entries in decoding.entries:
        bits, place, code = int(entries.gaps.stream[0]), 0, 0
        for value in entries.values:
            while (gap := bits_of(entries.gaps.stream[1:], code * bits, bits)) == 2**bits - 1:
                place, code = place + gap, code + 1
            out.reshape(-1)[place + gap] += np.float32(value)
            place, code = place + gap + 1, code + 1
    return out.reshape(decoding.shape)
