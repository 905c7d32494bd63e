"""RetinaNet, FCOS and SSD: the boxes of all pixels of all maps, and the best of them."""

import math

import torch
from torch import Tensor

from pqnet_converters.torch.detection.boxes import Anchors, Detector, anchors_of, shapes_of, take

__all__ = ["FCOS", "SSD", "RetinaNet"]


class OneStage(Detector):
    """A detector whose head gives the classes and offsets of every anchor."""

    def __init__(self, module: torch.nn.Module, size: tuple[int, int]) -> None:
        super().__init__(module, size)
        self.head, self.settings = module.head, _Settings(module)
        maps = list(shapes_of(self.features, (1, 3, *self.padded)).values())
        self.map_sizes = [tuple(each.shape[-2:]) for each in maps]
        self.every_anchor = anchors_of(module.anchor_generator, self.padded, self.resized, maps)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.head(list(self.features(self.transformed(images)).values()))
        boxes, scores, labels = self.candidates(outputs)
        fits = scores > self.settings.score_thresh
        found = self.chosen(
            boxes,
            torch.where(fits, scores, -torch.inf),
            labels,
            self.settings.nms_thresh,
            self.settings.detections_per_img,
        )
        return self.original(found)

    def candidates(self, outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, M, 4), scores and labels."""
        raise NotImplementedError

    def decoded(self, offsets: Tensor, anchors: Tensor) -> Tensor:
        """Return the boxes (N, k, 4) that offsets (N, k, 4) from anchors (N k, 4) say."""
        coder = self.settings.box_coder
        decode = getattr(coder, "decode_single", None) or coder.decode
        return self.clipped(decode(offsets.reshape(-1, 4), anchors)).reshape(offsets.shape)


class _Settings:
    """What a detector's postprocessing is told."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.box_coder = module.box_coder
        self.score_thresh, self.nms_thresh = module.score_thresh, module.nms_thresh
        self.detections_per_img, self.topk_candidates = module.detections_per_img, module.topk_candidates


class RetinaNet(OneStage):
    """torchvision's RetinaNet: the best classes of the anchors of each map."""

    def __init__(self, module: torch.nn.Module, size: tuple[int, int]) -> None:
        super().__init__(module, size)
        per_pixel = len(self.every_anchor) // sum(map(math.prod, self.map_sizes))
        self.counts = [per_pixel * math.prod(size) for size in self.map_sizes]  # of the anchors of each map
        parts = zip(self.every_anchor.split(self.counts), self.map_sizes, strict=True)
        self.anchors = torch.nn.ModuleList(Anchors(part, *size) for part, size in parts)

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """Return numbers (N, anchors, classes) whose order is that of the scores."""
        return outputs["cls_logits"]

    def probability(self, best: Tensor) -> Tensor:
        """Return the scores of the numbers chosen."""
        return best.sigmoid()

    def candidates(self, outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        every, offsets, start = self.scores(outputs), outputs["bbox_regression"], 0
        boxes, scores, labels = [], [], []
        n, classes = every.shape[0], every.shape[-1]
        for count, anchors in zip(self.counts, self.anchors, strict=True):
            own = every[:, start : start + count].reshape(n, -1)
            best, places = own.topk(min(self.settings.topk_candidates, own.shape[1]), 1)
            rows = torch.div(places, classes, rounding_mode="floor")
            boxes.append(self.decoded(take(offsets, rows + start), anchors(rows.reshape(-1))))
            scores.append(self.probability(best))
            labels.append(places % classes)
            start += count
        return torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1)


class FCOS(RetinaNet):
    """torchvision's FCOS: scores are the geometric means of those of the classes and of the center."""

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        return torch.sqrt(outputs["cls_logits"].sigmoid() * outputs["bbox_ctrness"].sigmoid())

    def probability(self, best: Tensor) -> Tensor:
        return best


class SSD(OneStage):
    """torchvision's SSD: the best anchors of each class."""

    def __init__(self, module: torch.nn.Module, size: tuple[int, int]) -> None:
        super().__init__(module, size)
        self.register_buffer("anchors", self.every_anchor)

    def candidates(self, outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        every = outputs["cls_logits"].softmax(-1)[:, :, 1:].permute(0, 2, 1)
        n, classes, count = every.shape
        scores, places = every.topk(min(self.settings.topk_candidates, count), 2)
        offsets, places = outputs["bbox_regression"], places.reshape(n, -1)
        anchors = self.anchors.index_select(0, places.reshape(-1))
        labels = torch.arange(1, classes + 1)[:, None].expand(-1, scores.shape[2]).reshape(1, -1)
        return self.decoded(take(offsets, places), anchors), scores.reshape(n, -1), labels.expand(n, -1)
