"""Interpolation; torch.export already expresses bicubic and one-axis interpolation by indexing."""

from typing import Any

from pqnet_converters.aten.importer import Importer, Tensor
from pqnet_converters.aten.registry import rule


def _interpolate(b: Importer, x: Tensor, scales: Any, **attrs: Any) -> str:
    """torch places pixels by the scale, the graph by the two sizes: the same if the scale gives whole sizes."""
    size = b.out_shape()[2:]
    for scale, before, after in zip(scales or (), x.shape[2:], size, strict=False):
        if b.fixed(before) * scale != after:
            raise b.refuse(
                f"expected a scale factor that gives whole sizes, got {scale} for size {before}; pass size= or "
                "recompute_scale_factor=True to interpolate"
            )
    return b.emit("interpolate", x, size=size, **attrs)


@rule("aten.upsample_nearest2d.vec")
def nearest(b: Importer, x: Tensor, size: Any, scales: Any) -> str:
    return _interpolate(b, x, scales, mode="nearest")


@rule("aten.upsample_bilinear2d.vec")
def bilinear(b: Importer, x: Tensor, size: Any, align_corners: bool, scales: Any) -> str:
    return _interpolate(b, x, None if align_corners else scales, mode="bilinear", align_corners=align_corners)
