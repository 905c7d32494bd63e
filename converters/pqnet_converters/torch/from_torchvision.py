"""Imports torchvision's detectors, from the image to boxes, labels, scores, masks and keypoints."""

from typing import TYPE_CHECKING

import torch

from pqnet import PQNetError
from pqnet_converters.torch.detection.boxes import Detector
from pqnet_converters.torch.detection.one_stage import FCOS, SSD, RetinaNet
from pqnet_converters.torch.detection.two_stage import RCNN
from pqnet_converters.torch.from_torch import from_torch

if TYPE_CHECKING:
    from pqnet.runtime import Model

__all__ = ["as_detector", "from_torchvision", "import_detector", "is_detector"]

KINDS: dict[str, type[Detector]] = {"GeneralizedRCNN": RCNN, "RetinaNet": RetinaNet, "FCOS": FCOS, "SSD": SSD}


def from_torchvision(module: torch.nn.Module, image_size: tuple[int, int], *, dynamic_batch: bool = True) -> "Model":
    """Import one of torchvision's detectors, whole.

    Faster, Mask and Keypoint R-CNN, RetinaNet, FCOS, SSD and SSDLite, with their resize and normalize transform and
    their post-processing: a batch of images gives what the module gives for each of them. No size depends on what is in
    the image: there is room for ``detections_per_img`` detections, the best first, and ``count`` says how many there
    are; all numbers behind them are 0.

    Parameters
    ----------
    module : torch.nn.Module
        Is put into eval mode. Its own settings (thresholds, anchors, numbers of candidates) are taken.
    image_size : tuple of int
        Height and width of the images, before the module's transform resizes them; one size for each conversion.
    dynamic_batch : bool
        Leave the number of images free.

    Returns
    -------
    Model
        Input ``images`` (N, 3, height, width), from 0 to 1. Outputs, D places for detections: ``boxes`` (N, D, 4),
        x1, y1, x2, y2 in pixels of the images given, ``labels`` and ``scores`` (N, D), ``count`` (N,); of Mask R-CNN
        ``masks`` (N, D, 1, height, width), of Keypoint R-CNN ``keypoints`` (N, D, K, 3) and ``keypoints_scores``
        (N, D, K).

    Raises
    ------
    PQNetError
        The module is none of these detectors, or the size is not one of an image.

    Examples
    --------
    >>> from torchvision.models.detection import maskrcnn_resnet50_fpn  # doctest: +SKIP
    >>> model = from_torchvision(maskrcnn_resnet50_fpn(weights="DEFAULT"), (480, 640))  # doctest: +SKIP
    >>> found = model.run({"images": photo[None]})  # doctest: +SKIP
    >>> boxes = found["boxes"][0, : found["count"][0]]  # doctest: +SKIP
    """
    fits = isinstance(image_size, tuple | list) and len(image_size) == 2
    if not fits or not all(isinstance(n, int) and n > 0 for n in image_size):
        raise PQNetError(f"image_size: expected height and width in pixels, got {image_size!r}")
    detector = as_detector(module, (image_size[0], image_size[1]))
    if detector is None:
        got = type(module).__qualname__
        raise PQNetError(
            f"module: expected one of torchvision's detectors ({', '.join(KINDS)}), got {got}; "
            "from_torch imports others"
        )
    return import_detector(detector, dynamic_batch)


def import_detector(detector: Detector, dynamic_batch: bool) -> "Model":
    """Import a detector with fixed sizes; see `from_torchvision`."""
    example = torch.zeros(1, 3, *detector.size)
    names = {"input_names": ["images"], "output_names": detector.results}
    return from_torch(detector, example, dynamic_batch=dynamic_batch, **names)


def as_detector(module: torch.nn.Module, image_size: tuple[int, int]) -> Detector | None:
    """Return a detector of torchvision with fixed sizes, None for another module."""
    kind = _kind(module)
    return None if kind is None else kind(module, image_size).eval()


def is_detector(module: torch.nn.Module) -> bool:
    """Tell whether a module is one of torchvision's detectors."""
    return _kind(module) is not None


def _kind(module: torch.nn.Module) -> type[Detector] | None:
    names = {each.__name__ for each in type(module).__mro__}
    return next((kind for name, kind in KINDS.items() if name in names), None)
