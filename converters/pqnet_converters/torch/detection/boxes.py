"""What detectors have in common: their transform, the choice of boxes, and the form of their results."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from pqnet_converters.torch.detection.ops import nms

__all__ = ["Detector", "anchors_of", "shapes_of", "take"]


class Detector(torch.nn.Module):  # type: ignore[misc]
    """A detector for images of one size: images (N, 3, H, W), 0 to 1, give a fixed number of detections each.

    Boxes are in the pixels of the images given; ``count`` says how many detections there are, all numbers behind them
    are 0.

    Parameters
    ----------
    module : torch.nn.Module
        torchvision's.
    size : tuple of int
        Height and width.
    """

    def __init__(self, module: torch.nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.results = ["boxes", "labels", "scores", "count"]
        module.eval()
        transform = module.transform
        resized, _ = transform.resize(torch.zeros(1, *size), None)
        self.size, self.resized = size, tuple(resized.shape[-2:])
        step = transform.size_divisible
        self.padding = [-n % step for n in self.resized]
        self.backbone = module.backbone
        (height, width), (h, w) = self.size, self.resized
        self.register_buffer("image_mean", torch.tensor(transform.image_mean)[:, None, None])
        self.register_buffer("image_std", torch.tensor(transform.image_std)[:, None, None])
        self.register_buffer("limits", torch.tensor([w, h, w, h], dtype=torch.float32))
        given = torch.tensor([width, height, width, height], dtype=torch.float32)
        self.register_buffer("ratios", given / self.limits)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the images that the backbone sees."""
        return self.resized[0] + self.padding[0], self.resized[1] + self.padding[1]

    def transformed(self, images: torch.Tensor) -> torch.Tensor:
        """Normalize, resize and pad images."""
        x = (images - self.image_mean) / self.image_std
        if self.resized != self.size:
            x = F.interpolate(x, size=self.resized, mode="bilinear", align_corners=False)
        return F.pad(x, (0, self.padding[1], 0, self.padding[0])) if any(self.padding) else x

    def features(self, x: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return the maps of the backbone."""
        found = self.backbone(x)
        return {"0": found} if isinstance(found, torch.Tensor) else found

    def clipped(self, boxes: torch.Tensor) -> torch.Tensor:
        """Cut boxes at the borders of the resized image."""
        return torch.minimum(boxes.clamp(min=0), self.limits)

    def chosen(
        self, boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, threshold: float, most: int
    ) -> dict[str, torch.Tensor]:
        """Return the best detections (N, most); scores of -inf are none. Boxes are those of the resized image."""
        places, count = nms(boxes, scores, labels, threshold, min(most, boxes.shape[1]))
        there = torch.arange(places.shape[1])[None] < count[:, None]
        return {
            "boxes": take(boxes, places) * there[:, :, None],
            "labels": take(labels[:, :, None], places)[:, :, 0] * there,
            "scores": torch.where(there, take(scores[:, :, None], places)[:, :, 0], 0.0),
            "count": count,
        }

    def original(self, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return detections whose boxes are in pixels of the images given."""
        return found | {"boxes": found["boxes"] * self.ratios}


def take(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the rows (N, k, ..) of each image's (N, M, ..)."""
    images, rows = x.shape[:2]
    flat = places + rows * torch.arange(images)[:, None]
    found = x.reshape(images * rows, *x.shape[2:]).index_select(0, flat.reshape(-1))
    return found.reshape(*places.shape, *x.shape[2:])


def shapes_of(function: Any, *sizes: Any) -> Any:
    """Return what a function gives for tensors of these shapes, or lists of them, without computing it."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        return function(
            *([torch.empty(s) for s in size] if isinstance(size, list) else torch.empty(size) for size in sizes)
        )


def anchors_of(generator: torch.nn.Module, padded: tuple[int, int], resized: Any, maps: list[Any]) -> torch.Tensor:
    """Return the anchors of all maps of an image, as a detector's own generator makes them."""
    images = SimpleNamespace(tensors=torch.empty(1, 1, *padded), image_sizes=[resized])
    with torch.no_grad():
        found: torch.Tensor = generator(images, [torch.empty(1, 1, *each.shape[-2:]) for each in maps])[0]
    return found
