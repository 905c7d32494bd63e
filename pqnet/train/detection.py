"""The operations of detectors in PyTorch; there are gradients to what is sampled and pasted, none to boxes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pqnet.graph.op import get_op
from pqnet.graph.ops.detection import pasted_box, peak_size, sampled_taps

__all__ = ["heatmap_peaks", "nms", "paste_masks", "roi_align"]

Attrs = Mapping[str, Any]


def _array(x: Tensor) -> np.ndarray:
    return np.asarray(x.detach().cpu().numpy())


def nms(x: Sequence[Tensor], p: Any, a: Attrs) -> tuple[Tensor, ...]:
    """Compute the indices as NumPy does: they have no gradient."""
    found = get_op("nms").evaluate([_array(each) for each in x], {}, a)
    return tuple(torch.from_numpy(each).to(x[0].device) for each in found)


def roi_align(x: Sequence[Tensor], p: Any, a: Attrs) -> Tensor:
    """Mix rows and columns of each region by matrices."""
    rois, images, *maps = x
    pixels = [image for each in maps for image in each]
    bins = []
    for roi, image in zip(_array(rois), images.tolist(), strict=True):
        source = pixels[image]
        rows, columns = (
            torch.from_numpy(sampled_taps(roi[i], roi[i + 2], a["size"][1 - i], source.shape[2 - i], a)).to(source)
            for i in (1, 0)
        )
        bins.append(rows @ source @ columns.T)
    return torch.stack(bins) if bins else maps[0].new_zeros((0, maps[0].shape[1], *a["size"]))


def paste_masks(x: Sequence[Tensor], p: Any, a: Attrs) -> Tensor:
    """Resize each mask and put it into an image of zeros."""
    (rows, columns), images = a["size"], []
    for mask, box in zip(x[0], _array(x[1]), strict=True):
        left, top, right, bottom = pasted_box(box, mask.shape[-1]).tolist()
        size = max(bottom - top + 1, 1), max(right - left + 1, 1)
        if left >= columns or top >= rows or left + size[1] <= 0 or top + size[0] <= 0:
            images.append(mask.new_zeros(rows, columns))
            continue
        wide = F.interpolate(F.pad(mask, (1,) * 4)[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        images.append(F.pad(wide, (left, columns - left - size[1], top, rows - top - size[0])))
    return torch.stack(images) if images else x[0].new_zeros((0, rows, columns))


def heatmap_peaks(x: Sequence[Tensor], p: Any, a: Attrs) -> tuple[Tensor, ...]:
    """Resize the heatmaps of each box and find the largest pixels."""
    places, scores = [x[0].new_zeros((0, x[0].shape[1], 2))], [x[0].new_zeros((0, x[0].shape[1]))]
    for maps, box in zip(x[0], x[1], strict=True):
        extent, (width, height) = peak_size(_array(box))
        large = F.interpolate(maps[None], size=(int(height), int(width)), mode="bicubic", align_corners=False)[0]
        best, at = large.flatten(1).max(1)
        step = torch.from_numpy(extent / np.array([width, height], np.float32)).to(maps)
        found = torch.stack([at % int(width), at // int(width)], 1).to(maps) + 0.5
        places.append((found * step + box[:2])[None])
        scores.append(best[None])
    return torch.cat(places), torch.cat(scores)
