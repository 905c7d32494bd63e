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

__all__ = ["as_detector", "from_torchvision"]

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
        The module is none of these detectors.

    Examples
    --------
    >>> from torchvision.models.detection import maskrcnn_resnet50_fpn  # doctest: +SKIP
    >>> model = from_torchvision(maskrcnn_resnet50_fpn(weights="DEFAULT"), (480, 640))  # doctest: +SKIP
    >>> found = model.run({"images": photo[None]})  # doctest: +SKIP
    >>> boxes = found["boxes"][0, : found["count"][0]]  # doctest: +SKIP
    """
    detector = as_detector(module, image_size)
    if detector is None:
        got = type(module).__qualname__
        raise PQNetError(
            f"module: expected one of torchvision's detectors ({', '.join(KINDS)}), got {got}; "
            "from_torch imports others"
        )
    return from_torch(
        detector,
        torch.zeros(1, 3, *image_size),
        input_names=["images"],
        output_names=detector.results,
        dynamic_batch=dynamic_batch,
    )


def as_detector(module: torch.nn.Module, image_size: tuple[int, int]) -> Detector | None:
    """Return a detector of torchvision with fixed sizes, None for another module."""
    names = {each.__name__ for each in type(module).__mro__}
    kind = next((kind for name, kind in KINDS.items() if name in names), None)
    return None if kind is None else kind(module, image_size).eval()
