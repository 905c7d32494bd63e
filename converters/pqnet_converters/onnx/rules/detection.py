"""Detection: the choice of boxes, regions of maps."""

from typing import Any

from pqnet_converters.core import sizes
from pqnet_converters.core.importer import Tensor, as_known
from pqnet_converters.core.sizes import Symbolic
from pqnet_converters.onnx.importer import OnnxImporter
from pqnet_converters.onnx.registry import rule


@rule("NonMaxSuppression")
def non_max_suppression(
    b: OnnxImporter,
    boxes: Tensor,
    scores: Tensor,
    most: Tensor | None = None,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
) -> Tensor:
    """Give room for all boxes that may be chosen; the rows behind those that are chosen are zeros.

    How many are chosen depends on the input: see `pqnet_converters.onnx.rows` for what may be made of them.
    """
    batch, classes, n = scores.shape
    wanted = b.number(most, 0)
    if isinstance(wanted, Symbolic) or wanted < 1:
        raise b.refuse(f"expected a known max_output_boxes_per_class of at least 1, got {wanted}")
    k = sizes.minimum(n, min(int(wanted), 1 << 40))
    corners = _corners(b, boxes)
    each = b.emit("expand", b.reshape(corners, (batch, 1, n, 4)), shape=(batch, classes, n, 4))
    rated = scores
    if score_threshold is not None:
        fits = b.binary("gt", scores, as_known(b.number(score_threshold), "float32"))
        rated = b.emit("where", fits, scores, as_known(float("-inf"), "float32"))
    lists = batch * classes
    places, counts = b.emit_many(
        "nms",
        (b.reshape(each, (lists, n, 4)), b.reshape(rated, (lists, n))),
        2,
        k=k,
        iou_threshold=float(b.number(iou_threshold, 0.0)),
    )
    total = lists * k
    there = b.binary("lt", _range(b, k, (1, k)), b.reshape(counts, (lists, 1)))
    order = _range(b, total, (total,))
    late = b.binary("add", order, as_known(total, "int64"))
    keys = b.emit("where", b.reshape(there, (total,)), order, late)
    first = b.emit_many("topk", (keys,), 2, axis=0, k=total, largest=False)[1]
    count = b.emit("sum", counts, axes=(0,), keepdims=True)
    row = b.binary("floor_div", first, as_known(k, "int64"))
    columns = (
        b.binary("floor_div", row, as_known(classes, "int64")),
        b.binary("remainder", row, as_known(classes, "int64")),
        b.emit("index_select", b.reshape(places, (total,)), first, axis=0),
    )
    rows = b.emit("concat", *(b.reshape(each, (total, 1)) for each in columns), axis=1)
    chosen = b.cast(b.binary("lt", order, count), "int64")
    found = b.emit("mul", rows, b.reshape(chosen, (total, 1)))
    b.counts[b.value(found)] = b.value(b.reshape(count, ()))
    return found


def _corners(b: OnnxImporter, boxes: Tensor) -> Tensor:
    """Return boxes with the smaller coordinates first."""
    one, other = b.slice(boxes, 2, 0, 2), b.slice(boxes, 2, 2, 4)
    if b.attr("center_point_box", 0):
        half = b.binary("mul", other, as_known(0.5, "float32"))
        return b.emit("concat", b.binary("sub", one, half), b.binary("add", one, half), axis=2)
    return b.emit("concat", b.binary("minimum", one, other), b.binary("maximum", one, other), axis=2)


def _range(b: OnnxImporter, count: Any, shape: tuple[Any, ...]) -> Tensor:
    return b.reshape(b.emit("arange", end=count), shape)


@rule("RoiAlign")
def roi_align(b: OnnxImporter, x: Tensor, rois: Tensor, images: Tensor) -> Tensor:
    if b.attr("mode", "avg") != "avg":
        raise b.refuse(f"mode {b.attr('mode')!r} has no rule")
    scale = b.attr("spatial_scale", 1.0)
    usual = "half_pixel" if b.opset >= 16 else "output_half_pixel"
    return b.emit(
        "roi_align",
        rois if scale == 1 else b.binary("mul", rois, as_known(scale, "float32")),
        b.cast(images, "int64"),
        x,
        size=(b.attr("output_height", 1), b.attr("output_width", 1)),
        sampling_ratio=b.attr("sampling_ratio", 0),
        aligned=b.attr("coordinate_transformation_mode", usual) == "half_pixel",
    )
