"""Arrays and pictures as the bytes of their files."""

import io

import numpy as np
from PIL import Image

__all__ = ["npy", "png"]


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def png(image: np.ndarray) -> bytes:
    """Return a picture of uint8 numbers, (H, W) or (H, W, 3)."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()
