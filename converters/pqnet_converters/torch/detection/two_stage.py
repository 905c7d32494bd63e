"""Faster, Mask and Keypoint R-CNN: proposals, then heads on what is sampled in them."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pqnet_converters.torch.detection.boxes import Anchors, Detector, anchors_of, shapes_of, take
from pqnet_converters.torch.detection.ops import heatmap_peaks, nms, paste_masks, roi_align

__all__ = ["RCNN"]

LEAST_EXTENT = 1e-2  # pixels of a detection; torchvision has it as a number


class RCNN(Detector):
    """torchvision's GeneralizedRCNN; see `Detector`."""

    def __init__(self, module: torch.nn.Module, size: tuple[int, int]) -> None:
        super().__init__(module, size)
        self.rpn, self.roi_heads = module.rpn, module.roi_heads
        self.results += ["masks"] if self.roi_heads.has_mask() else []
        self.results += ["keypoints", "keypoints_scores"] if self.roi_heads.has_keypoint() else []
        features = shapes_of(self.features, (1, 3, *self.padded))
        maps = list(features.values())
        objectness, _ = shapes_of(self.rpn.head, [each.shape for each in maps])
        anchors = anchors_of(self.rpn.anchor_generator, self.padded, self.resized, maps)
        counts = [each.shape[1] * each.shape[2] * each.shape[3] for each in objectness]
        parts = zip(anchors.split(counts), maps, strict=True)
        self.anchors = torch.nn.ModuleList(Anchors(part, *each.shape[-2:]) for part, each in parts)
        self.scales: dict[str, float] = {name: self._scale(each) for name, each in features.items()}

    def _scale(self, features: Tensor) -> float:
        """Return what coordinates are multiplied by for a map: a power of two, as torchvision finds it."""
        ratio = torch.tensor(features.shape[-2] / self.resized[0])
        return float(2 ** float(ratio.log2().round()))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features(self.transformed(images))
        proposals, count = self._proposals(list(features.values()))
        found = self._detections(features, proposals, count)
        result, there = self.original(found), torch.arange(found["boxes"].shape[1])[None] < found["count"][:, None]
        if self.roi_heads.has_mask():
            result["masks"] = self._masks(features, found, result["boxes"], there)
        if self.roi_heads.has_keypoint():
            result |= self._keypoints(features, found, there)
        return result

    def _proposals(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the boxes (N, k, 4) that may hold something, and how many there are."""
        boxes, scores, levels = [], [], []
        for level, (logits, deltas) in enumerate(zip(*self.rpn.head(maps), strict=True)):
            n, per_pixel, height, width = logits.shape
            logits = logits.permute(0, 2, 3, 1).reshape(n, -1)
            deltas = deltas.reshape(n, per_pixel, 4, height, width).permute(0, 3, 4, 1, 2).reshape(n, -1, 4)
            best, places = logits.topk(min(self.rpn.pre_nms_top_n(), logits.shape[1]), 1)
            anchors = self.anchors[level](places.reshape(-1))
            decoded = self.rpn.box_coder.decode_single(take(deltas, places).reshape(-1, 4), anchors)
            boxes.append(self.clipped(decoded).reshape(n, -1, 4))
            scores.append(best)
            levels.append(torch.full((best.shape[1],), level))
        every, probability = torch.cat(boxes, 1), torch.cat(scores, 1).sigmoid()
        fits = _is_wide(every, self.rpn.min_size) & (probability >= self.rpn.score_thresh)
        probability = torch.where(fits, probability, -torch.inf)
        classes = torch.cat(levels)[None].expand(every.shape[0], -1)
        most = min(self.rpn.post_nms_top_n(), every.shape[1])
        places, count = nms(every, probability, classes, self.rpn.nms_thresh, most)
        return take(every, places), count

    def _detections(self, features: Mapping[str, Tensor], proposals: Tensor, count: Tensor) -> dict[str, Tensor]:
        heads, (n, k, _) = self.roi_heads, proposals.shape
        rois = proposals.reshape(-1, 4)
        logits, deltas = heads.box_predictor(heads.box_head(self._pooled(heads.box_roi_pool, features, proposals)))
        classes = logits.shape[1]
        boxes = self.clipped(heads.box_coder.decode_single(deltas, rois).reshape(n, k, classes, 4))[:, :, 1:]
        scores = logits.softmax(-1).reshape(n, k, classes)[:, :, 1:]
        there = torch.arange(k)[None] < count[:, None]
        fits = (scores > heads.score_thresh) & _is_wide(boxes, LEAST_EXTENT) & there[:, :, None]
        labels = torch.arange(1, classes).repeat(k)[None].expand(n, -1)
        every = torch.where(fits, scores, -torch.inf).reshape(n, -1)
        return self.chosen(boxes.reshape(n, -1, 4), every, labels, heads.nms_thresh, heads.detections_per_img)

    def _pooled(self, pool: torch.nn.Module, features: Mapping[str, Tensor], boxes: Tensor) -> Tensor:
        """Sample boxes (N, k, 4) in the map that fits the size of each."""
        names = [name for name in features if name in pool.featmap_names]
        rois, (n, k, _) = boxes.reshape(-1, 4), boxes.shape
        images = torch.arange(n)[:, None].expand(-1, k).reshape(-1)
        scales = torch.tensor([self.scales[name] for name in names])
        if len(names) == 1:
            levels, rois = torch.zeros_like(images), rois * scales
        else:
            low, high = (int(-math.log2(self.scales[name])) for name in (names[0], names[-1]))
            extent = torch.sqrt((rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1]))
            level = torch.floor(pool.canonical_level + torch.log2(extent / pool.canonical_scale) + 1e-6)
            levels = level.clamp(low, high).to(torch.int64) - low
            rois = rois * scales.index_select(0, levels)[:, None]
        maps = [features[name] for name in names]
        return roi_align(maps, rois, images, levels, *pool.output_size, pool.sampling_ratio, False)

    def _masks(self, features: Mapping[str, Tensor], found: dict[str, Tensor], boxes: Tensor, there: Tensor) -> Tensor:
        """Return the probability of each pixel of the images given to belong to the detection."""
        heads, (n, k) = self.roi_heads, there.shape
        pooled = self._pooled(heads.mask_roi_pool, features, found["boxes"])
        logits = heads.mask_predictor(heads.mask_head(pooled))
        classes, side = logits.shape[1], logits.shape[-1]
        places = torch.arange(n * k) * classes + found["labels"].reshape(-1)
        own = logits.reshape(-1, side, side).index_select(0, places).sigmoid() * there.reshape(-1, 1, 1)
        return paste_masks(own, boxes.reshape(-1, 4), *self.size).reshape(n, k, 1, *self.size)

    def _keypoints(self, features: Mapping[str, Tensor], found: dict[str, Tensor], there: Tensor) -> dict[str, Tensor]:
        heads, (n, k) = self.roi_heads, there.shape
        pooled = self._pooled(heads.keypoint_roi_pool, features, found["boxes"])
        heatmaps = heads.keypoint_predictor(heads.keypoint_head(pooled))
        places, scores = heatmap_peaks(heatmaps, found["boxes"].reshape(-1, 4))
        places = (places * self.ratios[:2]).reshape(n, k, -1, 2)
        points = F.pad(places, (0, 1), value=1.0)
        return {
            "keypoints": points * there[:, :, None, None],
            "keypoints_scores": scores.reshape(n, k, -1) * there[:, :, None],
        }


def _is_wide(boxes: Tensor, least: float) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0] >= least) & (boxes[..., 3] - boxes[..., 1] >= least)
