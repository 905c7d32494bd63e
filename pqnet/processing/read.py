"""Reading how images become inputs, and labels, from the files people have: YAML, Hugging Face's and timm's JSON."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pqnet import _check
from pqnet.errors import PQNetError
from pqnet.processing.image import IMAGENET, ImageInput
from pqnet.processing.processing import Processing

__all__ = ["read_labels", "read_processing"]

RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's number
CONFIGS = ("preprocessor_config.json", "config.json")  # of a folder, the first that says something of images


def read_processing(path: str | Path) -> Processing:
    """Return what a file says of images, texts and labels.

    Parameters
    ----------
    path : str or Path
        ``imagenet``; a YAML file with the keys ``image``, ``text`` and ``labels``, each with the fields of
        `ImageInput` and `TextInput`; Hugging Face's ``preprocessor_config.json``; the ``config.json`` of a timm model;
        or a folder with one of the latter two.

    Returns
    -------
    Processing

    Raises
    ------
    PQNetError
        A file that is none of these, or asks for what `ImageInput` has not.
    """
    if str(path) == "imagenet":
        return Processing(image=IMAGENET)
    if Path(path).is_dir():
        found = [file for name in CONFIGS if (file := Path(path, name)).is_file()]
        if not found:
            raise _check.error("preprocess", f"a folder with {' or '.join(CONFIGS)}", f"{path}, which has neither")
        path = found[0]
    try:
        if Path(path).suffix == ".json":
            return Processing(image=_from_config(_json(path)))
        return Processing.from_dict(_yaml(path))
    except PQNetError as reason:
        raise PQNetError(f"preprocess: {path}: {reason}") from None


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Return the names of classes from a text file of lines, or JSON: a list, or ``id2label`` of a config.json."""
    if Path(path).suffix != ".json":
        return tuple(line.strip() for line in _text(path).rstrip().split("\n"))
    data = _json(path)
    data = data.get("id2label", data) if isinstance(data, Mapping) else data
    if isinstance(data, Mapping):
        try:
            numbered = {int(number): name for number, name in data.items()}
        except (TypeError, ValueError):
            raise _check.error("labels", "names by the numbers of classes", f"{sorted(data)[:3]} in {path}") from None
        if sorted(numbered) != list(range(len(numbered))):
            raise _check.error("labels", "every number of a class, from 0 on", f"{sorted(numbered)[:5]} in {path}")
        data = [numbered[i] for i in range(len(numbered))]
    if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
        raise _check.error("labels", "a list of names", f"{_check.describe(data)} in {path}")
    return tuple(data)


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text("utf-8-sig")
    except (OSError, ValueError) as reason:
        raise PQNetError(f"expected a readable text file, got {path}: {reason}") from None


def _json(path: str | Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as reason:
        raise PQNetError(f"expected JSON, got text that does not parse in {path}: {reason}") from None


def _yaml(path: str | Path) -> Any:
    import yaml  # running models does without it

    try:
        return yaml.safe_load(_text(path))
    except (yaml.YAMLError, RecursionError) as reason:
        raise PQNetError(f"expected YAML, got text that does not parse: {reason}") from None


def _from_config(config: Any) -> ImageInput:
    """Return the image input of a Hugging Face processor or of a timm model."""
    if not isinstance(config, Mapping):
        raise _check.error("JSON", "an object", _check.describe(config))
    timm = config.get("pretrained_cfg", config)
    try:
        if isinstance(timm, Mapping) and {"input_size", "mean", "std"} <= set(timm):
            return _of_timm(timm)
        if "image_mean" in config or "image_processor_type" in config or "feature_extractor_type" in config:
            return _of_hugging_face(config)
    except (AttributeError, IndexError, KeyError, TypeError, ZeroDivisionError) as reason:
        raise PQNetError(f"expected sizes and numbers of images, got fields that are none: {reason!r}") from None
    raise _check.error("JSON", "image_mean, or input_size, mean and std", f"{sorted(map(str, config))[:8]}")


def _of_timm(config: Mapping[str, Any]) -> ImageInput:
    channels, height, width = config["input_size"]
    mode, share = config.get("crop_mode") or "center", config.get("crop_pct") or 0.875
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise _check.error("crop_mode", "center (of squares) or squash", f"{mode} to {height} x {width}")
    resize: Any = math.floor(height / share)
    return ImageInput(
        resize if mode == "center" else (resize, math.floor(width / share)),
        (height, width),
        interpolation=config.get("interpolation") or "bilinear",
        colors="L" if channels == 1 else "RGB",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _of_hugging_face(config: Mapping[str, Any]) -> ImageInput:
    refused = {name for name in ("do_pad", "do_thumbnail", "do_align_long_axis", "rescale_offset") if config.get(name)}
    if refused:
        raise PQNetError(
            f"{', '.join(sorted(refused))} have no counterpart in ImageInput; write YAML, or arrays yourself"
        )
    size, crop = config.get("size"), config.get("crop_size")
    crops: Any = _pair(crop) if config.get("do_center_crop", False) and crop is not None else None
    resize: Any = _sides(size, crops is None) if config.get("do_resize", size is not None) else None
    if isinstance(resize, int) and config.get("crop_pct") is not None:  # ConvNeXT's
        side = resize
        resize, crops = (int(side / config["crop_pct"]), side) if side < 384 else ((side, side), None)
    high = 255.0 * config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 255.0
    normal, twice = config.get("do_normalize", True), config.get("include_top")  # EfficientNet's divides twice
    return ImageInput(
        resize,
        crops,
        interpolation=RESAMPLING[config.get("resample", 2)],
        colors="BGR" if config.get("do_flip_channel_order") else "RGB",
        value_range=(0.0, round(high, 9)),
        mean=tuple(config["image_mean"]) if normal else 0.0,
        std=tuple(n * n if twice else n for n in config["image_std"]) if normal else 1.0,
    )


def _sides(size: Any, square: bool) -> Any:
    """Return the shorter side, or height and width; one number is ``square`` or the former."""
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return size["shortest_edge"]
    return size if isinstance(size, int) and not square else _pair(size)


def _pair(size: Any) -> Any:
    if isinstance(size, Mapping):
        if set(size) != {"height", "width"}:
            raise _check.error("size", "height and width, or shortest_edge", dict(size))
        return size["height"], size["width"]
    return (size, size) if isinstance(size, int) else tuple(size)
