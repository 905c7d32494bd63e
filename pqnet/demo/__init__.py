"""The network and images of ``pqnet demo``: a small float conv net for 8x8 digits, see ``DATA.md``."""

from importlib.resources import files
from pathlib import Path

import numpy as np

__all__ = ["load_images", "model_path"]

LEVELS = 16  # pixels are stored as 0..16, the network takes 0..1


def model_path() -> Path:
    """Return the path of the float network, a pqnet model file.

    Examples
    --------
    >>> import pqnet
    >>> from pqnet.demo import model_path
    >>> pqnet.load(model_path()).inputs
    {'input': ((None, 1, 8, 8), 'float32')}
    """
    return Path(str(files(__name__) / "digits.h5"))


def load_images() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the images for calibration, the held-out images and their labels.

    Returns
    -------
    calibration : float32 array, shape (1297, 1, 8, 8)
        In [0, 1]. The network was trained on these.
    held_out : float32 array, shape (500, 1, 8, 8)
        In [0, 1]. Never seen in training; for measuring top-1 accuracy.
    labels : uint8 array, shape (500,)
        The digits on the held-out images.

    Examples
    --------
    >>> from pqnet.demo import load_images
    >>> calibration, held_out, labels = load_images()
    >>> calibration.shape, held_out.dtype, labels[:3].shape
    ((1297, 1, 8, 8), dtype('float32'), (3,))
    """
    path = files(__name__) / "digits_images.npz"
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        images = {name: arrays[name][:, None].astype(np.float32) / LEVELS for name in ("calibration", "held_out")}
        return images["calibration"], images["held_out"], arrays["held_out_labels"]
