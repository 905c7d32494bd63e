"""Slow references that are obviously right: loops over plain indices, float64."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pqnet.codecs.layout import from_blocks

Ints = Sequence[int]


def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Ints = (),
    padding: Ints = (),
    dilation: Ints = (),
    groups: int = 1,
) -> np.ndarray:
    """Convolve x (B, C, *size) with weight (O, C / groups, *kernel); padding is before every axis, then after."""
    size, kernel = x.shape[2:], weight.shape[2:]
    n, (filters, channels) = len(size), weight.shape[:2]
    stride, dilation, padding = stride or (1,) * n, dilation or (1,) * n, padding or (0,) * 2 * n
    reach = [size[i] + padding[i] + padding[n + i] - dilation[i] * (kernel[i] - 1) - 1 for i in range(n)]
    out = np.zeros((len(x), filters, *(reach[i] // stride[i] + 1 for i in range(n))))
    for b, o, *at in np.ndindex(out.shape):
        for c, *tap in np.ndindex(weight.shape[1:]):
            source = tuple(at[i] * stride[i] + tap[i] * dilation[i] - padding[i] for i in range(n))
            if all(0 <= source[i] < size[i] for i in range(n)):
                channel = o // (filters // groups) * channels + c
                out[b, o, *at] += float(x[b, channel, *source]) * float(weight[o, c, *tap])
        out[b, o, *at] += 0.0 if bias is None else float(bias[o])
    return out


def conv_transpose(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Ints = (),
    padding: Ints = (),
    output_padding: Ints = (),
    dilation: Ints = (),
    groups: int = 1,
) -> np.ndarray:
    """Spread every pixel of x (B, C, *size) with weight (O, C / groups, *kernel), the filter form."""
    size, kernel = x.shape[2:], weight.shape[2:]
    n, (filters, channels) = len(size), weight.shape[:2]
    stride, dilation, padding = stride or (1,) * n, dilation or (1,) * n, padding or (0,) * 2 * n
    extra = output_padding or (0,) * n
    full = [(size[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 for i in range(n)]
    out = np.zeros((len(x), filters, *(full[i] - padding[i] - padding[n + i] + extra[i] for i in range(n))))
    for b, o, *pixel in np.ndindex(len(x), filters, *size):
        for c, *tap in np.ndindex(weight.shape[1:]):
            at = tuple(pixel[i] * stride[i] + tap[i] * dilation[i] - padding[i] for i in range(n))
            if all(0 <= at[i] < out.shape[2 + i] for i in range(n)):
                channel = o // (filters // groups) * channels + c
                out[b, o, *at] += float(x[b, channel, *pixel]) * float(weight[o, c, *tap])
    for o in range(filters):
        out[:, o] += 0.0 if bias is None else float(bias[o])
    return out


def overlap(a: np.ndarray, b: np.ndarray) -> np.float32:
    """Return the intersection over the union of two boxes, in float32 as all libraries compute it."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), np.float32(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]), np.float32(0))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    with np.errstate(all="ignore"):
        return np.float32(width * height / (areas[0] + areas[1] - width * height))


def nms(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float, k: int) -> list[int]:
    """Return the k best boxes (M, 4) that overlap no better one kept of their class by more than the threshold."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        rivals = [boxes[j] for j in kept if classes[j] == classes[i]]
        if scores[i] > -np.inf and not any(float(overlap(rival, boxes[i])) > threshold for rival in rivals):
            kept.append(i)
    return kept[:k]


def roi_align(
    pixels: np.ndarray, roi: Sequence[float], size: Ints, sampling_ratio: int = 0, aligned: bool = False
) -> np.ndarray:
    """Return the bins of one region of a map (C, H, W), means of samples mixed of the four pixels around them."""
    channels, height, width = pixels.shape
    x1, y1, x2, y2 = (float(v) - (0.5 if aligned else 0) for v in roi)
    extents = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
    counts = [sampling_ratio or max(math.ceil(extents[i] / size[i]), 0) for i in (0, 1)]
    out = np.zeros((channels, *size))
    for c, i, j in np.ndindex(out.shape):
        for s, t in np.ndindex(*counts):
            y = y1 + (i + (s + 0.5) / counts[0]) * extents[0] / size[0]
            x = x1 + (j + (t + 0.5) / counts[1]) * extents[1] / size[1]
            if not (-1 <= y <= height and -1 <= x <= width):
                continue
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            for row, column in itertools.product(range(height), range(width)):
                share = max(1 - abs(y - row), 0) * max(1 - abs(x - column), 0)
                out[c, i, j] += share * float(pixels[c, row, column]) / (counts[0] * counts[1])
    return out


def recurrent(
    op: str,
    products: np.ndarray,
    states: Sequence[np.ndarray],
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    reverse: bool = False,
    nonlinearity: str = "tanh",
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Return output and final states of a layer from the products (B, T, gates * H) of its inputs, and what its weight
    (gates * H, H) saw at each step; PyTorch's formulas, one unit at a time."""

    def sigmoid(a: float) -> float:
        return 1 / (1 + math.exp(-a))

    batch, steps, rows = products.shape
    size = weight.shape[1]
    out, seen, finals = np.zeros((batch, steps, size)), np.zeros((batch, steps, size)), []
    for b in range(batch):
        h, *c = ([float(v) for v in s[b]] for s in states)
        for t in reversed(range(steps)) if reverse else range(steps):
            seen[b, t] = h
            x = [float(v) for v in products[b, t]]
            y = [
                sum(float(w) * v for w, v in zip(weight[r], h, strict=True)) + (0.0 if bias is None else float(bias[r]))
                for r in range(rows)
            ]
            for u in range(size):
                at = [u + gate * size for gate in range(rows // size)]
                total = [x[r] + y[r] for r in at]
                if op == "rnn":
                    h[u] = math.tanh(total[0]) if nonlinearity == "tanh" else max(total[0], 0.0)
                elif op == "lstm":
                    i, f, g, o = total
                    c[0][u] = sigmoid(f) * c[0][u] + sigmoid(i) * math.tanh(g)
                    h[u] = sigmoid(o) * math.tanh(c[0][u])
                else:
                    _, _, n = at
                    candidate = math.tanh(x[n] + sigmoid(total[0]) * y[n])
                    h[u] = (1 - sigmoid(total[1])) * candidate + sigmoid(total[1]) * h[u]
            out[b, t] = h
        finals.append([h, *c])
    return out, [np.array([f[i] for f in finals]).reshape(batch, size) for i in range(len(states))], seen


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


def greedy_kmeans(blocks, k, rng, tries=8, steps=30):
    """The error of k-means from greedy k-means++ seeds, float64."""
    blocks = np.asarray(blocks, float)

    def squares(words):
        return np.square(blocks[:, None] - words).sum(2)

    words = blocks[rng.integers(len(blocks))][None]
    for _ in range(k - 1):
        near = squares(words).min(1)
        drawn = rng.choice(len(blocks), tries, p=near / near.sum())
        left = [np.minimum(near, squares(blocks[i])[:, 0]).sum() for i in drawn]
        words = np.concatenate([words, blocks[drawn[int(np.argmin(left))]][None]])
    for _ in range(steps):
        codes = squares(words).argmin(1)
        words = np.stack([blocks[codes == c].mean(0) if (codes == c).any() else words[c] for c in range(k)])
    return squares(words).min(1).sum()


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


def determinant_of_blocks(rows, width):
    """The determinant of the covariance of blocks of ``width`` channels; rows (C, t, n)."""
    blocks = [rows[i : i + width].reshape(width * rows.shape[1], -1) for i in range(0, len(rows), width)]
    return np.linalg.det(np.atleast_2d(np.cov(np.concatenate(blocks, 1).astype(float), bias=True)))


def published_order(rows, width, swaps):
    """Channels dealt to positions of blocks, then swapped where that lowers the determinant (PQF); rows (C, t, n)."""

    def spread(channels):
        return determinant_of_blocks(np.concatenate([rows[c] for c in channels], 1)[None], 1) if channels else 0.0

    positions = [[] for _ in range(width)]
    for channel in sorted(range(len(rows)), key=lambda c: (-spread([c]), c)):
        free = [p for p in positions if len(p) < len(rows) // width]
        min(free, key=spread).append(channel)
    order = [p[block] for block in range(len(rows) // width) for p in positions]
    best = determinant_of_blocks(rows[order], width)
    for i, j in swaps:
        other = list(order)
        other[i], other[j] = other[j], other[i]
        if (found := determinant_of_blocks(rows[other], width)) < best:
            order, best = other, found
    return order if best < determinant_of_blocks(rows, width) else list(range(len(rows)))


def allocation(sizes: Sequence[np.ndarray], errors: Sequence[np.ndarray], low: int, high: int) -> float | None:
    """Return the least summed error of one option for each item with a total size in [low, high]; None if none is."""
    losses = [
        sum(float(e[i]) for e, i in zip(errors, choice, strict=True))
        for choice in itertools.product(*(range(len(size)) for size in sizes))
        if low <= sum(int(s[i]) for s, i in zip(sizes, choice, strict=True)) <= high
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


def round_bfloat16(x: np.ndarray) -> np.ndarray:
    """Return the nearest numbers with 8 bits of precision, ties to even, by comparing with both neighbours."""
    x = np.asarray(x, np.float32)
    low = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)  # towards zero
    high = ((x.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32)
    wide = x.astype(np.float64)
    near, far = np.abs(wide - low), np.abs(high.astype(np.float64) - wide)
    even = (low.view(np.uint32) >> 16 & 1) == 0
    return np.where((near < far) | ((near == far) & even), low, high)


def round_inputs(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return numbers rounded to the 256 levels of a range, of which one is zero."""
    factor = np.float32(255 / (high - low))
    zero = np.rint(-low * (255 / (high - low)))
    levels = np.rint((x.astype(np.float64) * factor + zero).astype(np.float32))
    return ((np.clip(levels, 0, 255) - zero) / (255 / (high - low))).astype(np.float32)


def round_tokens(x: np.ndarray) -> np.ndarray:
    """Return rows of features, each rounded to the 256 levels of its own range, of which one is zero."""
    rows = x.reshape(-1, x.shape[-1]).copy()
    for row in rows:
        low, high = min(row.min(), np.float32(0)), max(row.max(), np.float32(0))
        size = np.float32(high - low)
        if size > 0:
            factor = np.float32(255) / size
            zero = np.rint(-low * factor)
            levels = np.rint((row.astype(np.float64) * factor + zero).astype(np.float32))
            row[:] = (np.clip(levels, 0, 255) - zero) * (size / np.float32(255))
    return rows.reshape(x.shape)


def round_weight(weight: Any, kind: str) -> np.ndarray:
    """Return a weight of bfloat16 numbers, or of 8-bit integers times a scale.

    Each row of an array has a scale, a codebook the best one for the codes; factors of outputs are not rounded.
    """
    if isinstance(weight, np.ndarray):
        if kind == "bfloat16":
            return round_bfloat16(weight)
        rows = weight.reshape(len(weight), -1).astype(np.float64)
        scale = np.array([max(row.max() / 127, row.min() / -128) or 1.0 for row in rows])[:, None]
        return (np.rint(rows / scale) * scale).reshape(weight.shape).astype(np.float32)
    words, factors = weight.codewords() or (weight, None)
    best: np.ndarray = round_bfloat16(words.codebook)
    if kind == "int8":
        book = words.codebook.astype(np.float64)
        largest, least = max(book.max() / 127, book.min() / -128) or 1.0, np.inf
        for share in np.linspace(1, 1 / 40, 40):
            rounded = np.clip(np.rint(book / (largest * share)), -128, 127) * (largest * share)
            error = np.square(rounded - book)[words.codes.reshape(-1)].sum()
            if error < least * (1 - 1e-12):
                best, least = rounded, error
    dense = from_blocks(best[words.codes.reshape(-1)], words.shape, words.codec.layout)
    return (dense if factors is None else dense * factors.reshape(-1, *[1] * (dense.ndim - 1))).astype(np.float32)
