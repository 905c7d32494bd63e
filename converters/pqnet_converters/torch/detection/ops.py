"""The graph's operations of detectors as operations of PyTorch, which an exported program keeps.

All of them have results of fixed sizes; a module that calls them can be imported by `from_torch`.
"""

from collections.abc import Sequence

import torch

from pqnet.train import detection

__all__ = ["heatmap_peaks", "nms", "paste_masks", "roi_align"]


@torch.library.custom_op("pqnet::nms", mutates_args=())  # type: ignore[untyped-decorator]
def nms(
    boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, iou_threshold: float, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices (N, k) of the boxes (N, M, 4) kept, best first, and how many there are (N,).

    A box is dropped if a better one of its class that is kept overlaps it by more than the threshold; scores of -inf
    take no part. Behind the boxes kept, indices are 0.
    """
    found = detection.nms((boxes, scores, classes), {}, {"iou_threshold": iou_threshold, "k": k})
    return found[0], found[1]


@nms.register_fake  # type: ignore[untyped-decorator]
def _(
    boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, iou_threshold: float, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    batch = boxes.shape[0]
    return classes.new_empty((batch, k)), classes.new_empty((batch,))


@torch.library.custom_op("pqnet::roi_align", mutates_args=())  # type: ignore[untyped-decorator]
def roi_align(
    maps: Sequence[torch.Tensor],
    rois: torch.Tensor,
    images: torch.Tensor,
    levels: torch.Tensor,
    rows: int,
    columns: int,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    """Return bins (R, C, rows, columns) of regions (R, 4), in pixels of their map, of an image of one of the maps."""
    sources = levels * maps[0].shape[0] + images
    attrs = {"size": (rows, columns), "sampling_ratio": max(sampling_ratio, 0), "aligned": aligned}
    return detection.roi_align((rois, sources, *maps), {}, attrs)


@roi_align.register_fake  # type: ignore[untyped-decorator]
def _(
    maps: Sequence[torch.Tensor],
    rois: torch.Tensor,
    images: torch.Tensor,
    levels: torch.Tensor,
    rows: int,
    columns: int,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    return rois.new_empty((rois.shape[0], maps[0].shape[1], rows, columns))


@torch.library.custom_op("pqnet::paste_masks", mutates_args=())  # type: ignore[untyped-decorator]
def paste_masks(masks: torch.Tensor, boxes: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return images (R, rows, columns) of zeros with masks (R, M, M) where their boxes (R, 4) are."""
    return detection.paste_masks((masks, boxes), {}, {"size": (rows, columns)})


@paste_masks.register_fake  # type: ignore[untyped-decorator]
def _(masks: torch.Tensor, boxes: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return masks.new_empty((masks.shape[0], rows, columns))


@torch.library.custom_op("pqnet::heatmap_peaks", mutates_args=())  # type: ignore[untyped-decorator]
def heatmap_peaks(heatmaps: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where (R, K, 2) in its box each of the heatmaps (R, K, M, M) is largest, and the number there (R, K)."""
    found = detection.heatmap_peaks((heatmaps, boxes), {}, {})
    return found[0], found[1]


@heatmap_peaks.register_fake  # type: ignore[untyped-decorator]
def _(heatmaps: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return heatmaps.new_empty((*heatmaps.shape[:2], 2)), heatmaps.new_empty(heatmaps.shape[:2])
