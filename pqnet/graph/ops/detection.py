"""Detection: suppression of overlapping boxes, regions of feature maps, masks and keypoints in the image.

Boxes are (x1, y1, x2, y2). No size depends on data: what finds a number of things gives as many places as there may
be, and the number.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from pqnet._check import index_array
from pqnet.errors import PQNetError
from pqnet.graph.op import REQUIRED, Arrays, Attr, Attrs, Info, Params, check_dtype, register
from pqnet.graph.ops.resize import taps_of

__all__ = ["FARTHEST", "least_above", "pasted_box", "pasted_taps", "peak_size", "sampled_taps"]

FARTHEST = float(1 << 20)  # pixels from the corner of an image: boxes are cut there, and sizes of what is made of them


def _check_boxes(boxes: Info, name: str, axes: int) -> None:
    check_dtype(boxes, "float32", name=name)
    if len(boxes.shape) != axes or boxes.shape[-1] != 4:
        raise PQNetError(f"{name}: expected {axes} axes, 4 numbers a box, got shape {boxes.shape}")


def _infer_nms(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> tuple[Info, Info]:
    boxes, scores = x[:2]
    _check_boxes(boxes, "boxes", 3)
    check_dtype(scores, "float32", name="scores")
    for name, each in zip(("scores", "classes"), x[1:], strict=False):
        if each.shape != boxes.shape[:2]:
            raise PQNetError(f"{name}: expected one for each box, of shape {boxes.shape[:2]}, got {each.shape}")
    if len(x) == 3:
        check_dtype(x[2], "int64", name="classes")
    if not 0 <= a["k"] <= boxes.shape[1]:
        raise PQNetError(f"k: expected 0 to {boxes.shape[1]}, the number of boxes, got {a['k']}")
    return Info((boxes.shape[0], a["k"]), "int64"), Info((boxes.shape[0],), "int64")


def least_above(threshold: float) -> np.float32:
    """Return the largest float32 that is not above a number: another float32 is above both or none of them."""
    nearest = np.float32(threshold)
    return nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-np.inf))


def _eval_nms(x: Arrays, p: Params, a: Attrs) -> tuple[np.ndarray, np.ndarray]:
    """Keep the best box, drop those of its class that overlap it by more than the threshold, and so on.

    Boxes whose score is -inf or NaN take no part; of equal scores, the first comes first.
    """
    boxes, scores = x[:2]
    classes = x[2] if len(x) == 3 else np.zeros(scores.shape, np.int64)
    indices = np.zeros((len(boxes), a["k"]), np.int64)
    counts = np.zeros(len(boxes), np.int64)
    threshold = least_above(a["iou_threshold"])
    for image, (x1, y1, x2, y2) in enumerate(boxes.transpose(0, 2, 1)):
        left = np.argsort(-scores[image], kind="stable")
        left = left[scores[image][left] > -np.inf]
        area = (x2 - x1) * (y2 - y1)
        while len(left) and counts[image] < a["k"]:
            best, left = left[0], left[1:]
            indices[image, counts[image]] = best
            counts[image] += 1
            width = np.minimum(x2[best], x2[left]) - np.maximum(x1[best], x1[left])
            height = np.minimum(y2[best], y2[left]) - np.maximum(y1[best], y1[left])
            common = np.maximum(width, 0) * np.maximum(height, 0)
            overlap = common / (area[best] + area[left] - common)
            left = left[~((overlap > threshold) & (classes[image, left] == classes[image, best]))]
    return indices, counts


register(
    "nms",
    infer=_infer_nms,
    evaluate=_eval_nms,
    inputs=(2, 3),
    k=Attr("dim"),
    iou_threshold=Attr("float"),
)


def _infer_align(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    rois, images, *maps = x
    _check_boxes(rois, "rois", 2)
    check_dtype(images, "int64", name="images")
    if images.shape != rois.shape[:1]:
        raise PQNetError(f"images: expected one for each of the {rois.shape[0]} rois, got shape {images.shape}")
    for each in maps:
        check_dtype(each, "float32", name="features")
        if len(each.shape) != 4 or min(each.shape[2:]) < 1 or each.shape[1] != maps[0].shape[1]:
            raise PQNetError(
                "features: expected maps of 4 axes (batch, channels, height, width) with pixels and equal channels, "
                f"got {maps[0].shape} and {each.shape}"
            )
    if min(a["size"]) < 1 or a["sampling_ratio"] < 0:
        raise PQNetError(
            f"size: expected at least 1, and sampling_ratio at least 0, got {a['size']} and {a['sampling_ratio']}"
        )
    return Info((rois.shape[0], maps[0].shape[1], *a["size"]))


@np.errstate(all="ignore")
def sampled_taps(start: np.float32, end: np.float32, bins: int, size: int, a: Attrs) -> np.ndarray:
    """Return the weights of an axis's pixels in each bin of a region: the mean of its samples.

    Parameters
    ----------
    start, end : float32
        Of the region along the axis.
    bins, size : int
        Bins of the region, pixels of the axis.
    a : mapping
        Attributes of the node: ``sampling_ratio`` samples a bin, 0 for about one a pixel; ``aligned`` if pixel i's
        middle is at i + .5.

    Returns
    -------
    float32 array, shape (bins, size)

    Examples
    --------
    >>> sampled_taps(np.float32(0), np.float32(2), 1, 3, {"sampling_ratio": 0, "aligned": True}).tolist()
    [[0.5, 0.5, 0.0]]
    """
    half = np.float32(0.5)
    if a["aligned"]:
        start, end = start - half, end - half
    extent = end - start if a["aligned"] else max(end - start, np.float32(1))
    each = extent / np.float32(bins)
    limit = min(float(np.ceil(each)), FARTHEST) if each > 0 else 0  # NaN has no samples
    samples = a["sampling_ratio"] or int(limit)
    weights = np.zeros((bins, size), np.float32)
    inner = (np.arange(samples, dtype=np.float32) + half) * each / np.float32(max(samples, 1))
    places = (start + np.arange(bins, dtype=np.float32) * each)[:, None] + inner
    at, sample = np.nonzero((places >= -1) & (places <= size))
    place = np.maximum(places[at, sample], 0)
    low = np.minimum(place.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    part = np.where(low == size - 1, 0, place - low).astype(np.float32)
    np.add.at(weights, (at, low), 1 - part)
    np.add.at(weights, (at, high), part)
    return weights / np.float32(max(samples, 1))


def _eval_align(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    """Give each region in bins of bilinear samples; ``images`` counts the images of all maps, map after map."""
    rois, images, *maps = x
    index_array(images, "ids", below=sum(len(each) for each in maps))
    ends = np.cumsum([len(each) for each in maps])
    out = np.zeros((len(rois), maps[0].shape[1], *a["size"]), np.float32)
    for i, (roi, image) in enumerate(zip(rois, images, strict=True)):
        level = int(np.searchsorted(ends, image, "right"))
        pixels = maps[level][image - ends[level]]
        rows, columns = (sampled_taps(roi[n], roi[n + 2], a["size"][1 - n], pixels.shape[2 - n], a) for n in (1, 0))
        (top, bottom), (left, right) = (_touched(weights) for weights in (rows, columns))
        out[i] = rows[:, top:bottom] @ (pixels[:, top:bottom, left:right] @ columns[:, left:right].T)
    return out


def _touched(weights: np.ndarray) -> tuple[int, int]:
    """Return the range of pixels that have a weight: an infinity elsewhere is not seen."""
    found = np.flatnonzero(weights.any(0))
    return (int(found[0]), int(found[-1]) + 1) if found.size else (0, 0)


register(
    "roi_align",
    infer=_infer_align,
    evaluate=_eval_align,
    inputs=(3, 18),
    size=Attr("ints", REQUIRED, length=2),
    sampling_ratio=Attr("int", 0),
    aligned=Attr("bool", False),
)


def _check_maps(maps: Info, boxes: Info, name: str, axes: int) -> None:
    check_dtype(maps, "float32", name=name)
    _check_boxes(boxes, "boxes", 2)
    square = len(maps.shape) == axes and maps.shape[-1] == maps.shape[-2] > 0
    if not square or maps.shape[0] != boxes.shape[0]:
        raise PQNetError(f"{name}: expected square ones for {boxes.shape[0]} boxes, {axes} axes, got {maps.shape}")


def _infer_paste(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    _check_maps(x[0], x[1], "masks", 3)
    if min(a["size"]) < 1:
        raise PQNetError(f"size: expected at least 1, got {a['size']}")
    return Info((x[0].shape[0], *a["size"]))


def pasted_box(box: np.ndarray, mask: int) -> np.ndarray:
    """Return the pixels that a mask with a border of one pixel covers: first column and row, last ones."""
    half = np.float32(0.5)
    box = np.clip(np.nan_to_num(box), np.float32(-FARTHEST), np.float32(FARTHEST))
    middle, reach = (box[2:] + box[:2]) * half, (box[2:] - box[:2]) * half * np.float32((mask + 2) / mask)
    return np.concatenate([middle - reach, middle + reach]).astype(np.int64)


def pasted_taps(first: int, last: int, mask: int, size: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Return along an axis the first pixel of the image that a mask covers, and what each sees of the mask.

    The pixels of the mask with its border, and their weights, of shape (pixels of the image, 2) or (.., 1).
    """
    attrs = {"mode": "bilinear", "align_corners": False, "antialias": False}
    pixels, weights = taps_of(mask + 2, max(last - first + 1, 1), attrs)
    low = min(max(first, 0), size)
    covered = slice(low - first, max(min(last + 1, size), low) - first)
    return low, pixels[covered], weights[covered]


def _eval_paste(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    """Put each mask where its box is in an image of zeros, resized as PyTorch's bilinear interpolation does."""
    masks, boxes = x
    out = np.zeros((len(masks), *a["size"]), np.float32)
    for i, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
        wide, corners = np.pad(mask, 1), pasted_box(box, len(mask))
        top, row, row_weights = pasted_taps(int(corners[1]), int(corners[3]), len(mask), a["size"][0])
        left, column, column_weights = pasted_taps(int(corners[0]), int(corners[2]), len(mask), a["size"][1])
        across = (wide[:, column] * column_weights).sum(2)
        found = (across[row] * row_weights[:, :, None]).sum(1)
        out[i, top : top + len(row), left : left + len(column)] = found
    return out


register("paste_masks", infer=_infer_paste, evaluate=_eval_paste, inputs=2, size=Attr("dims", REQUIRED, length=2))


def _infer_peaks(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> tuple[Info, Info]:
    _check_maps(x[0], x[1], "heatmaps", 4)
    return Info((*x[0].shape[:2], 2)), Info(x[0].shape[:2])


def peak_size(box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return width and height of a box, at least 1, and how many pixels a heatmap is given for it."""
    extent = np.clip(np.nan_to_num(box[2:] - box[:2], nan=1), np.float32(1), np.float32(FARTHEST))
    return extent, np.ceil(extent).astype(np.int64)


def _eval_peaks(x: Arrays, p: Params, a: Attrs) -> tuple[np.ndarray, np.ndarray]:
    """Find where in its box each heatmap is largest, resized to the box as PyTorch's bicubic interpolation does."""
    heatmaps, boxes = x
    places, scores = np.zeros((*heatmaps.shape[:2], 2), np.float32), np.zeros(heatmaps.shape[:2], np.float32)
    attrs = {"mode": "bicubic", "align_corners": False, "antialias": False}
    for i, (maps, box) in enumerate(zip(heatmaps, boxes, strict=True)):
        extent, (width, height) = peak_size(box)
        (columns, column_weights), (rows, row_weights) = (taps_of(maps.shape[-1], n, attrs) for n in (width, height))
        for k, heat in enumerate(maps):
            across = (heat[:, columns] * column_weights).sum(2)
            large = (across[rows] * row_weights[:, :, None]).sum(1)
            at = int(large.argmax())
            found = np.array([at % width, at // width], np.float32) + np.float32(0.5)
            places[i, k] = found * (extent / np.array([width, height], np.float32)) + box[:2]
            scores[i, k] = large.flat[at]
    return places, scores


register("heatmap_peaks", infer=_infer_peaks, evaluate=_eval_peaks, inputs=2)
