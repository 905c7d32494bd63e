"""What detectors have in common: their transform, the choice of boxes, and the form of their results."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from pqnet_converters.torch.detection.ops import nms

__all__ = ["Anchors", "Detector", "anchors_of", "shapes_of", "take"]


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


class Anchors(torch.nn.Module):  # type: ignore[misc]
    """The anchors of a map by their numbers: those of its first pixel moved, or a table where that is not exact.

    A table of all anchors would be larger than a network of a few megabytes.
    """

    def __init__(self, anchors: torch.Tensor, height: int, width: int) -> None:
        super().__init__()
        grid = anchors.reshape(height, width, -1, 4)
        right = grid[0, min(1, width - 1), 0] - grid[0, 0, 0]
        down = grid[min(1, height - 1), 0, 0] - grid[0, 0, 0]
        moves = torch.arange(height)[:, None, None, None] * down + torch.arange(width)[:, None, None] * right
        self.moved, self.width = torch.equal(grid[0, 0] + moves, grid), width
        self.register_buffer("anchors", grid[0, 0].clone() if self.moved else anchors)
        self.register_buffer("steps", torch.stack([right, down]))

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        """Return the anchors (n, 4) with these numbers (n,)."""
        if not self.moved:
            return self.anchors.index_select(0, places)
        per_pixel = self.anchors.shape[0]
        pixels = torch.div(places, per_pixel, rounding_mode="floor")
        right = (pixels % self.width)[:, None] * self.steps[0]
        down = torch.div(pixels, self.width, rounding_mode="floor")[:, None] * self.steps[1]
        return self.anchors.index_select(0, places % per_pixel) + (down + right)
