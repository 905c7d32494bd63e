"""Suppression of boxes that overlap better ones."""

import numpy as np
from numba import njit

from pqnet.kernels.abi import CONST, DATA, MAYBE_DATA, SIZE, Arguments, step
from pqnet.kernels.pointers import longs


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _sift(scores, at, heap, i, size):
    # Let heap[i] sink until none of its children is better; of equal scores the first is
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and _is_better(scores, at, heap[child + 1], heap[child]):
            child += 1
        if _is_better(scores, at, heap[i], heap[child]):
            return
        heap[i], heap[child] = heap[child], heap[i]
        i = child


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _is_better(scores, at, i, j):
    a, b = scores[at + i], scores[at + j]
    return a > b or (a == b and i < j)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _is_covered(kept, at, k, count, own, boxes, box, stride, threshold):
    # Whether one of ``count`` boxes of class ``own`` overlaps a box. kept: x1, y1, x2, y2 and areas, k of each
    classes, nothing = longs(kept), np.float32(0)
    x1, y1, x2, y2 = (boxes[box], boxes[box + stride], boxes[box + 2 * stride], boxes[box + 3 * stride])
    area, floats = (x2 - x1) * (y2 - y1), 2 * (at + k)
    for i in range(count):
        if classes[at + i] == own:
            f = floats + i
            width = max(min(kept[f + 2 * k], x2) - max(kept[f], x1), nothing)
            height = max(min(kept[f + 3 * k], y2) - max(kept[f + k], y1), nothing)
            common = width * height
            if common / (kept[f + 4 * k] + area - common) > threshold:
                return True
    # The next to be kept, if this one is
    classes[at + count] = own
    f = floats + count
    kept[f], kept[f + k], kept[f + 2 * k], kept[f + 3 * k], kept[f + 4 * k] = x1, y1, x2, y2, area
    return False


# Numbers of the k best boxes of n in each image of a batch that no better one of their class overlaps by more than a
# threshold, and how many there are; boxes whose score is -inf or NaN take no part. A task is an image.
NMS = Arguments(
    boxes=DATA,  # (4, batch, n)
    scores=DATA,  # (batch, n)
    classes=MAYBE_DATA,  # (batch, n) int64
    indices=DATA,  # (batch, k) int64
    counts=DATA,  # (batch,) int64
    batch=SIZE,
    n=SIZE,
    k=SIZE,
    threshold=CONST,
)


@step(NMS)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def nms(task, g, data, const, codes, index, scratch):
    # scratch: n int64, the candidates; k int64 and 5 k floats, the boxes kept
    n, k, stride = g.n, g.k, g.batch * g.n
    heap, whole, scores, threshold = longs(scratch), longs(data), g.scores + task * n, const[g.threshold]
    size = 0
    for i in range(n):
        if data[scores + i] > -np.inf:
            heap[size] = i
            size += 1
    for i in range(size // 2 - 1, -1, -1):
        _sift(data, scores, heap, i, size)
    count, out = 0, g.indices + task * k
    while size > 0 and count < k:
        best = heap[0]
        size -= 1
        heap[0] = heap[size]
        _sift(data, scores, heap, 0, size)
        own = whole[g.classes + task * n + best] if g.classes >= 0 else 0
        if not _is_covered(scratch, n, k, count, own, data, g.boxes + task * n + best, stride, threshold):
            whole[out + count] = best
            count += 1
    for i in range(count, k):
        whole[out + i] = 0
    whole[g.counts + task] = count
