"""Operations of detectors, see `pqnet_converters.torch.detection.ops`."""

from typing import Any

from pqnet_converters.torch.aten.index import counted
from pqnet_converters.torch.aten.registry import rule
from pqnet_converters.torch.importer import Importer, Tensor


@rule("pqnet.nms.default")
def nms(b: Importer, boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float, k: int) -> tuple[str, ...]:
    return b.emit_many("nms", (boxes, scores, classes), 2, iou_threshold=iou_threshold, k=k)


@rule("pqnet.roi_align.default")
def roi_align(
    b: Importer,
    maps: Any,
    rois: Tensor,
    images: Tensor,
    levels: Tensor,
    rows: int,
    columns: int,
    sampling_ratio: int,
    aligned: bool,
) -> str:
    sources = b.emit("add", counted(b, "mul", levels, maps[0].shape[0]), images) if len(maps) > 1 else images
    ratio = max(sampling_ratio, 0)
    return b.emit("roi_align", rois, sources, *maps, size=(rows, columns), sampling_ratio=ratio, aligned=aligned)


@rule("pqnet.paste_masks.default")
def paste_masks(b: Importer, masks: Tensor, boxes: Tensor, rows: int, columns: int) -> str:
    return b.emit("paste_masks", masks, boxes, size=(rows, columns))


@rule("pqnet.heatmap_peaks.default")
def heatmap_peaks(b: Importer, heatmaps: Tensor, boxes: Tensor) -> tuple[str, ...]:
    return b.emit_many("heatmap_peaks", (heatmaps, boxes), 2)
