"""Detection: suppression of boxes, regions of feature maps, masks and keypoints."""

from collections.abc import Sequence

from pqnet.graph import Node
from pqnet.graph.ops.detection import FARTHEST, least_above
from pqnet.kernels.ops import regions
from pqnet.kernels.ops.nms import nms
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.copying import dense
from pqnet.runtime.lower.gather import checked_ids
from pqnet.runtime.memory import View

TASKS = 32  # of a step at most


def _stored(b: Builder, x: View, order: Sequence[int]) -> View:
    """Return a value stored densely in an order of axes, copied if it is not: once for all who want it."""
    wanted = View.dense_in(x.buffer, x.shape, order).strides
    if all(n == 1 or own == want for n, own, want in zip(x.shape, x.strides, wanted, strict=True)):
        return x
    key = "dense", x, tuple(order)
    if key not in b.derived:
        b.derived[key] = dense(b, x, order)
    return b.derived[key]


@lowers("nms", typed=True)
def suppress(b: Builder, node: Node, x: list[View]) -> tuple[View, View]:
    """Lower the suppression of boxes."""
    a, (batch, n, _) = b.attrs(node), x[0].shape
    boxes, scores = _stored(b, x[0], (2, 0, 1)), _stored(b, x[1], (0, 1))
    classes = [_stored(b, each, (0, 1)) for each in x[2:]]
    indices, counts = (b.new(b.info(output).shape, dtype="int64") for output in node.outputs)
    arguments = {
        "boxes": boxes,
        "scores": scores,
        "classes": classes[0] if classes else -1,
        "indices": indices,
        "counts": counts,
        "batch": batch,
        "n": n,
        "k": a["k"],
        "threshold": b.numbers(float(least_above(a["iou_threshold"]))),
    }
    reads, scratch = [boxes, scores, *classes], 2 * n + 7 * max(a["k"], 1)
    b.emit(nms, node.name, batch, arguments, reads=reads, writes=[indices, counts], scratch=scratch)
    return indices, counts


@lowers("roi_align", typed=True)
def align(b: Builder, node: Node, x: list[View]) -> View:
    """Lower the sampling of regions; maps and result have their channels innermost, for vectors of them."""
    a, shape, count = b.attrs(node), b.info(node.outputs[0]).shape, len(x) - 2
    maps = [_stored(b, each, (0, 2, 3, 1)) for each in x[2:]]
    firsts = [sum(each.shape[0] for each in maps[:i]) for i in range(count + 1)]
    rois, images = _stored(b, x[0], (0, 1)), checked_ids(b, node, x[1], firsts[-1])
    out = b.new(shape, (0, 2, 3, 1))
    per_task = -(-shape[0] // TASKS)
    missing = [0] * (regions.MAPS - count)
    arguments = {
        "rois": rois,
        "images": images,
        "maps": [*maps, *(-1 for _ in missing)],
        "firsts": [*firsts[:-1], *missing],
        "heights": [*(each.shape[2] for each in maps), *missing],
        "widths": [*(each.shape[3] for each in maps), *missing],
        "levels": count,
        "below": firsts[-1],
        "out": out,
        "regions": shape[0],
        "rows": a["size"][0],
        "columns": a["size"][1],
        "channels": shape[1],
        "samples": a["sampling_ratio"],
        "aligned": int(a["aligned"]),
        "farthest": b.numbers(FARTHEST),
        "per_task": per_task,
    }
    b.emit(regions.roi_align, node.name, -(-shape[0] // per_task), arguments, reads=[rois, images, *maps], writes=[out])
    return out


@lowers("paste_masks")
def paste(b: Builder, node: Node, x: list[View]) -> View:
    """Lower the pasting of masks."""
    shape, size = b.info(node.outputs[0]).shape, x[0].shape[-1]
    masks, boxes = _stored(b, x[0], (0, 1, 2)), _stored(b, x[1], (0, 1))
    out = b.new(shape, (0, 1, 2))
    arguments = {
        "masks": masks,
        "boxes": boxes,
        "out": out,
        "side": size,
        "rows": shape[1],
        "columns": shape[2],
        "farthest": b.numbers(FARTHEST),
        "border": b.numbers((size + 2) / size),
    }
    reads, scratch = [masks, boxes], 3 * shape[2]
    b.emit(regions.paste_masks, node.name, shape[0], arguments, reads=reads, writes=[out], scratch=scratch)
    return out


@lowers("heatmap_peaks")
def find_peaks(b: Builder, node: Node, x: list[View]) -> tuple[View, View]:
    """Lower the search for the largest number of heatmaps."""
    count, size = x[0].shape[1], x[0].shape[-1]
    heatmaps, boxes = _stored(b, x[0], (0, 1, 2, 3)), _stored(b, x[1], (0, 1))
    places, scores = (b.new(shape, range(len(shape))) for shape in (b.info(output).shape for output in node.outputs))
    arguments = {
        "heatmaps": heatmaps,
        "boxes": boxes,
        "places": places,
        "scores": scores,
        "count": count,
        "side": size,
        "farthest": b.numbers(FARTHEST),
    }
    b.emit(
        regions.heatmap_peaks,
        node.name,
        x[0].shape[0] * count,
        arguments,
        reads=[heatmaps, boxes],
        writes=[places, scores],
        scratch=(size + 1) * regions.CHUNK + 4,
    )
    return places, scores
