"""Detection: suppression of boxes, regions of maps, pasted masks."""

import numpy as np

from pqnet.graph import Node
from pqnet.graph.ops.detection import FARTHEST
from pqnet_converters.onnx.writer.writer import Writer, writes

Values = list[str]
LOWEST = float(np.finfo(np.float32).min)  # only -inf and NaN are not above it, or are it


def _counted(w: Writer, length: str, rank: int = 1) -> str:
    """Return 0, 1, ... up to a length of one int64 number, along the last of so many axes."""
    scalar = w.add("Squeeze", length, w.ints(0))
    found = w.add("Range", w.constant(0, "int64"), scalar, w.constant(1, "int64"))
    return found if rank == 1 else str(w.add("Unsqueeze", found, w.ints(*range(rank - 1))))


@writes("nms")
def nms(w: Writer, node: Node, x: Values) -> tuple[str, str]:
    """NonMaxSuppression keeps the best of each class; the best of these, in order, are found by their scores.

    It takes corners of boxes in any order, where the graph's operation takes x1, y1, x2, y2.
    """
    boxes, scores = x[:2]
    hidden, most = w.constant(-np.inf, "float32"), w.size(node.attrs["k"])
    rated = w.add("Unsqueeze", scores, w.ints(1))
    if len(x) == 3:
        least, last = (w.add(op, x[2], keepdims=0) for op in ("ReduceMin", "ReduceMax"))
        one = w.constant(1, "int64")
        classes = w.add("Unsqueeze", w.add("Range", least, w.add("Add", last, one), one), w.ints(0, 2))
        own = w.add("Equal", w.add("Unsqueeze", x[2], w.ints(1)), classes)
        rated = w.add("Where", own, rated, hidden)
    limits = w.constant([node.attrs["iou_threshold"]], "float32"), w.constant([LOWEST], "float32")
    kept = w.add("NonMaxSuppression", boxes, rated, most, *limits)
    places = w.add("Gather", kept, w.ints(0, 2), axis=1)  # image and box of each
    nothing = w.add("Where", w.add("IsInf", scores), hidden, hidden)
    left = w.add("ScatterND", nothing, places, w.add("GatherND", scores, places))
    best, indices = w.add("TopK", left, most, axis=1, outputs=2)
    there = w.add("Greater", best, hidden)
    chosen = w.add("Where", there, indices, w.constant(0, "int64"))
    counts = w.add("ReduceSum", w.cast(there, "bool", "int64"), w.ints(1), keepdims=0)
    return chosen, counts


@writes("roi_align")
def roi_align(w: Writer, node: Node, x: Values) -> str:
    """RoiAlign has one map: each region is sampled in all of them, and the results of its own are kept."""
    rois, sources, *maps = x
    a, result, before = node.attrs, "", w.ints(0)
    attrs = {
        "output_height": a["size"][0],
        "output_width": a["size"][1],
        "sampling_ratio": a["sampling_ratio"],
        "coordinate_transformation_mode": "half_pixel" if a["aligned"] else "output_half_pixel",
    }
    for each in maps:
        count = w.add("Slice", w.add("Shape", each), w.ints(0), w.ints(1))
        own = w.add("Sub", sources, before)
        image = w.add("Min", w.add("Max", own, w.ints(0)), w.add("Sub", count, w.ints(1)))
        sampled = w.add("RoiAlign", each, rois, image, **attrs)
        if result:
            later = w.add("Unsqueeze", w.add("GreaterOrEqual", own, w.ints(0)), w.ints(1, 2, 3))
            sampled = w.add("Where", later, sampled, result)
        result, before = sampled, w.add("Add", before, count)
    return result


@writes("paste_masks")
def paste_masks(w: Writer, node: Node, x: Values) -> str:
    """Rows and columns of a mask, with a border of one pixel, are mixed by matrices (regions, pixels, mask)."""
    masks, boxes = x
    side = int(w.info(masks).shape[-1])
    wide = w.add("Pad", masks, w.ints(0, 1, 1, 0, 1, 1), w.constant(0.0, "float32"))
    limits = w.constant(-FARTHEST, "float32"), w.constant(FARTHEST, "float32")
    known = w.add("Where", w.add("IsNaN", boxes), w.constant(0.0, "float32"), boxes)
    corners = w.add("Clip", known, *limits)
    rows, columns = (_mixing(w, corners, axis, side, node.attrs["size"][1 - axis]) for axis in (1, 0))
    return str(w.add("MatMul", w.add("MatMul", rows, wide), w.permute(columns, (0, 2, 1))))


def _mixing(w: Writer, boxes: str, axis: int, side: int, size: object) -> str:
    """Return what each pixel of an axis of the image sees of each pixel of masks with their border."""

    def number(value: float) -> str:
        return w.constant(value, "float32")

    start, end = (w.add("Gather", boxes, w.ints(i), axis=1) for i in (axis, axis + 2))
    middle = w.add("Mul", w.add("Add", end, start), number(0.5))
    half = w.add("Mul", w.add("Sub", end, start), number(0.5))
    reach = w.add("Mul", half, number(float(np.float32((side + 2) / side))))
    ends = [w.add(op, middle, reach) for op in ("Sub", "Add")]
    first, last = (w.add("Cast", w.add("Cast", e, to=7), to=1) for e in ends)  # cut off, as integers are made
    count = w.add("Max", w.add("Add", w.add("Sub", last, first), number(1)), number(1))
    pixels = w.cast(_counted(w, w.size(size), 2), "int64", "float32")
    at = w.add("Sub", pixels, first)  # (regions, pixels)
    inside = w.add("And", w.add("GreaterOrEqual", at, number(0)), w.add("Less", at, count))
    step = w.add("Div", number(side + 2), count)
    place = w.add("Sub", w.add("Mul", w.add("Add", at, number(0.5)), step), number(0.5))
    place = w.add("Clip", place, number(0), number(side + 1))
    taps = w.constant(np.arange(side + 2), "float32")
    far = w.add("Abs", w.add("Sub", w.add("Unsqueeze", place, w.ints(2)), taps))
    weights = w.add("Relu", w.add("Sub", number(1), far))
    return str(w.add("Where", w.add("Unsqueeze", inside, w.ints(2)), weights, number(0)))
