"""Images for golden records: noise shows nothing to a detector."""

from collections.abc import Sequence

import numpy as np

__all__ = ["draw_images"]

SHAPES = 16  # boxes and ellipses in an image
GRAIN = 0.02  # standard deviation of the noise over all


def draw_images(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Return float32 images (N, C, H, W), from 0 to 1, of boxes and ellipses of many sizes and colours.

    Examples
    --------
    >>> import numpy as np
    >>> from pqnet.io.drawing import draw_images
    >>> images = draw_images(np.random.default_rng(0), (1, 3, 40, 60))
    >>> images.shape, bool(images.min() >= 0), bool(images.max() <= 1)
    ((1, 3, 40, 60), True, True)
    """
    _, channels, height, width = shape
    images = np.empty(tuple(shape), np.float32)
    for image in images:
        image[:] = rng.random((channels, 1, 1), np.float32)
        for i in range(SHAPES):
            (y, x), size = rng.random(2, np.float32), rng.random(2, np.float32) ** 2 / 3 + np.float32(0.03)
            rows = np.abs(np.arange(height, dtype=np.float32) / height - y)[:, None] / size[0]
            columns = np.abs(np.arange(width, dtype=np.float32) / width - x) / size[1]
            inside = rows**2 + columns**2 < 1 if i % 2 else np.maximum(rows, columns) < 1
            image[:, inside] = rng.random((channels, 1), np.float32)
        image += GRAIN * rng.standard_normal(image.shape, np.float32)
    return images.clip(0, 1)
