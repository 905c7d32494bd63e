"""`ImageInput`: how an image becomes the input of a network."""

import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pqnet import _check
from pqnet.errors import PQNetError
from pqnet.graph import Graph, ValueInfo
from pqnet.processing.fields import from_plain, to_plain

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IMAGENET", "ImageInput"]

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}
LAYOUTS = ("NCHW", "NHWC")
MAX_SIDE = 1 << 16  # of a resized image
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of 16 bits a pixel


@dataclass(frozen=True)
class ImageInput:
    """How an image becomes the input of a network: resize, crop, order of colours, range, mean and deviation, layout.

    An image is turned as its camera says and converted to 8 bits of the colours (transparency is left out, 16 bits of
    grey are scaled), resized, and cropped at its centre, what lies outside being black. A pixel p of 0 to 255 becomes
    ``(low + p / 255 * (high - low) - mean) / std``.

    Parameters
    ----------
    resize : int or (int, int), optional
        Length of the shorter side, the longer one in proportion; or height and width. With Pillow's filters, which
        average over the pixels that become one ("antialias"), as torchvision's ``Resize`` does.
    crop : int or (int, int), optional
        Side, or height and width, of the crop.
    interpolation : {"bilinear", "bicubic", "nearest", "box", "hamming", "lanczos"}
    colors : {"RGB", "BGR", "L"}
        Order of the colours; ``"L"`` is grey.
    layout : {"NCHW", "NHWC"}
    value_range : (float, float)
        What black and white are before mean and deviation.
    mean, std : float or sequence of float
        For each channel, in the order of ``colors``, or one for all.

    Raises
    ------
    PQNetError
        A field that is none of these.

    Examples
    --------
    >>> from pqnet import ImageInput
    >>> cifar = ImageInput(resize=(32, 32), mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.243, 0.261))
    >>> inception = ImageInput(resize=342, crop=299, interpolation="bicubic", value_range=(-1, 1))
    >>> opencv = ImageInput(resize=(224, 224), colors="BGR", layout="NHWC", value_range=(0, 255), mean=(104, 117, 123))
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    colors: str = "RGB"
    layout: str = "NCHW"
    value_range: tuple[float, float] = (0.0, 1.0)
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        for name, options in (("interpolation", INTERPOLATIONS), ("colors", tuple(CHANNELS)), ("layout", LAYOUTS)):
            _check.choice(getattr(self, name), f"image {name}", options)
        for name in ("resize", "crop"):
            object.__setattr__(self, name, _sides(getattr(self, name), f"image {name}"))
        for name in ("mean", "std"):
            object.__setattr__(self, name, _numbers(getattr(self, name), f"image {name}", CHANNELS[self.colors]))
        if isinstance(self.value_range, int | float):
            raise _check.error("image value_range", "two numbers", _check.describe(self.value_range))
        low, high = _numbers(self.value_range, "image value_range", 2)  # type: ignore[misc]
        object.__setattr__(self, "value_range", (low, high))
        if low == high:
            raise _check.error("image value_range", "two different numbers", f"{low} and {high}")
        if 0 in np.atleast_1d(self.std):
            raise _check.error("image std", "numbers other than 0", self.std)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are not as by default, as plain data."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, data: Any) -> "ImageInput":
        """Rebuild from `to_dict`, or raise PQNetError."""
        return from_plain(cls, data, "image")

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of what comes out; None if they depend on the image."""
        found = self.crop if self.crop is not None else self.resize if isinstance(self.resize, tuple) else None
        return (found, found) if isinstance(found, int) else found

    def input_of(self, graph: Graph) -> str:
        """Return the name of the input that takes images like these, or raise PQNetError."""
        of_images = {name: info for name, info in graph.inputs.items() if len(info.shape) == 4}
        if len(of_images) != 1:
            raise _check.error("image", "a network with one input of four axes", f"inputs of {_shapes(graph)}")
        ((name, info),) = of_images.items()
        channels = CHANNELS[self.colors]
        height, width = self.size or (None, None)
        wanted = (channels, height, width) if self.layout == "NCHW" else (height, width, channels)
        for size, dim in zip(wanted, info.shape[1:], strict=True):
            if isinstance(dim, int) and dim != size:
                shape = ", ".join("any" if s is None else str(s) for s in wanted)
                raise _check.error(
                    f"image: input {name!r}",
                    f"images of {info.shape[1:]}, as the network has",
                    f"({shape}) from {self}",
                    "set crop, or height and width of resize, and colors and layout",
                )
        if info.dtype != "float32" and not (info.dtype == "uint8" and self._of_bytes()):
            raise _check.error(
                f"image: input {name!r}", "float32, or uint8 without mean, std and value_range (0, 255)", info.dtype
            )
        return name

    def _of_bytes(self) -> bool:
        return replace(self, mean=0.0, std=1.0) == self and self.value_range == (0.0, 255.0)

    def load(self, image: Any, info: ValueInfo | None = None) -> np.ndarray:
        """Return an image as a network takes it, a batch of one.

        Parameters
        ----------
        image : path, bytes of a file, PIL.Image.Image, or uint8 array
            The array is of shape (height, width, 3), red first, or (height, width) of grey.
        info : ValueInfo, optional
            Of the input; default float32.

        Returns
        -------
        ndarray
            (1, channels, height, width) or (1, height, width, channels).

        Raises
        ------
        PQNetError
            No image, a damaged one, one of a kind that has no 8-bit form; without the package Pillow.
        """
        pixels = np.asarray(self._cropped(self._resized(_converted(image, "L" if self.colors == "L" else "RGB"))))
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels[..., ::-1] if self.colors == "BGR" else pixels
        if info is not None and info.dtype == "uint8":
            values = pixels
        else:
            low, high = self.value_range
            values = pixels.astype(np.float32) / np.float32(255 / (high - low)) + np.float32(low)
            values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray((values if self.layout == "NHWC" else values.transpose(2, 0, 1))[None])

    def _resized(self, image: "Image.Image") -> "Image.Image":
        if self.resize is None:
            return image
        if isinstance(self.resize, tuple):
            height, width = self.resize
        else:
            short, long = sorted(image.size)
            longer = int(self.resize * long / short)
            if longer > MAX_SIDE:
                raise _check.error("image", "sides whose longer is resized to 65536 at most", f"{image.size} pixels")
            width, height = (self.resize, longer) if image.width <= image.height else (longer, self.resize)
        if image.size == (width, height):
            return image
        from PIL import Image

        return image.resize((width, height), Image.Resampling[self.interpolation.upper()])

    def _cropped(self, image: "Image.Image") -> "Image.Image":
        if self.crop is None:
            return image
        height, width = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
        left, top = _start(image.width, width), _start(image.height, height)
        return image.crop((left, top, left + width, top + height))  # Pillow makes what lies outside black


def _start(size: int, crop: int) -> int:
    """Return where a crop at the centre begins, as torchvision rounds it."""
    return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)


def _converted(image: Any, mode: str) -> "Image.Image":
    """Return an image of 8 bits a channel, upright."""
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError:
        raise PQNetError("image: needs the package Pillow; pip install 'pqnet[image]'") from None
    name = str(image) if isinstance(image, str | Path) else _check.describe(image)[:60]
    try:
        if isinstance(image, np.ndarray):
            if (
                image.dtype != np.uint8
                or image.ndim not in (2, 3)
                or image.shape[2:] not in ((), (3,))
                or not image.size
            ):
                raise _check.error("image", "a uint8 array of shape (height, width, 3)", _check.describe(image))
            found = Image.fromarray(np.ascontiguousarray(image))
        elif isinstance(image, Image.Image):
            found = image
        elif isinstance(image, str | Path | bytes):
            found = Image.open(io.BytesIO(image if isinstance(image, bytes) else Path(image).read_bytes()))
        else:
            raise _check.error("image", "a path, bytes, an image of Pillow or a uint8 array", _check.describe(image))
        return _of_mode(ImageOps.exif_transpose(found), mode)
    except PQNetError:
        raise
    except Exception as reason:  # Pillow's readers raise errors of many types on damaged files
        got = reason if "<_io.BytesIO" not in str(reason) else "no format that it knows"  # not the buffer's address
        raise PQNetError(f"image: expected an image that Pillow reads, got {name}: {got}") from None


def _of_mode(image: "Image.Image", mode: str) -> "Image.Image":
    from PIL import Image

    if image.mode in DEEP or image.mode == "I":
        grey = np.asarray(image).astype(np.int64)
        if not 0 <= grey.min() <= grey.max() < 1 << 16:
            raise _check.error("image", "grey of up to 16 bits", f"numbers from {grey.min()} to {grey.max()}")
        image = Image.fromarray(np.round(grey / 257).astype(np.uint8))
    elif image.mode == "F":
        raise _check.error("image", "pixels of integers", "one of floating point", "convert it to 8 bits")
    elif image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    return image.convert(mode)


def _sides(value: Any, name: str) -> int | tuple[int, int] | None:
    if value is None or isinstance(value, int):
        return value if value is None else _check.integer(value, name, 1, MAX_SIDE)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise _check.error(name, "a side, or height and width", _check.describe(value))
    height, width = (_check.integer(side, name, 1, MAX_SIDE) for side in value)
    return height, width


def _numbers(value: Any, name: str, count: int) -> float | tuple[float, ...]:
    """Return a finite number, or as many as are wanted."""
    given = list(value) if isinstance(value, list | tuple) else [value]
    fits = all(type(n) in (int, float) and math.isfinite(n) for n in given)
    if not fits or (isinstance(value, list | tuple) and len(given) != count):
        raise _check.error(name, f"a number or {count}, finite", _check.describe(value))
    return tuple(map(float, given)) if isinstance(value, list | tuple) else float(value)


def _shapes(graph: Graph) -> str:
    return ", ".join(f"{name} {info.shape}" for name, info in graph.inputs.items())


IMAGENET = ImageInput(resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
