"""Interpolation over two axes; torch.export already expresses that over one axis by indexing.

The overloads of an operation differ in how they are given scales: a list of two, or two numbers.
"""

from typing import Any

from pqnet_converters.torch.aten.registry import rule
from pqnet_converters.torch.importer import Importer, Tensor


def _interpolate(b: Importer, x: Tensor, scales: tuple[Any, ...], **attrs: Any) -> str:
    """torch places pixels by the scale if it is given, the graph by the two sizes unless they say something else."""
    size, given = b.out_shape()[2:], scales if len(scales) == 2 else scales[0] or ()
    for axis, scale, before, after in zip(("height", "width"), given, x.shape[2:], size, strict=False):
        whole = scale is not None and (
            float(scale).is_integer() if isinstance(before, str) else before * scale == after
        )
        if scale is not None and not whole:
            attrs[f"scale_{axis}"] = scale
    return b.emit("interpolate", x, size=size, **attrs)


@rule("aten.upsample_nearest2d.vec", "aten.upsample_nearest2d.default")
def nearest(b: Importer, x: Tensor, size: Any, *scales: Any) -> str:
    return _interpolate(b, x, scales, mode="nearest")


def _smooth(b: Importer, x: Tensor, align_corners: bool, scales: tuple[Any, ...], **attrs: Any) -> str:
    return _interpolate(b, x, (None,) if align_corners else scales, align_corners=align_corners, **attrs)


@rule("aten.upsample_bilinear2d.vec", "aten.upsample_bilinear2d.default")
def bilinear(b: Importer, x: Tensor, size: Any, align_corners: bool, *scales: Any) -> str:
    return _smooth(b, x, align_corners, scales, mode="bilinear")


@rule("aten.upsample_bicubic2d.vec", "aten.upsample_bicubic2d.default")
def bicubic(b: Importer, x: Tensor, size: Any, align_corners: bool, *scales: Any) -> str:
    return _smooth(b, x, align_corners, scales, mode="bicubic")


@rule("aten._upsample_bilinear2d_aa.vec", "aten._upsample_bilinear2d_aa.default")
def bilinear_aa(b: Importer, x: Tensor, size: Any, align_corners: bool, *scales: Any) -> str:
    return _smooth(b, x, align_corners, scales, mode="bilinear", antialias=True)


@rule("aten._upsample_bicubic2d_aa.vec", "aten._upsample_bicubic2d_aa.default")
def bicubic_aa(b: Importer, x: Tensor, size: Any, align_corners: bool, *scales: Any) -> str:
    return _smooth(b, x, align_corners, scales, mode="bicubic", antialias=True)
