"""Texts of different lengths in one batch: which of their positions are padding, and count for nothing."""

import numpy as np

from pqnet.errors import PQNetError
from pqnet.pipeline.batches import Batch

__all__ = ["MASK", "masked", "real_positions"]

MASK = "attention_mask"  # the input that text networks everywhere call so: (B, T), zero at padded positions


def real_positions(batch: Batch) -> np.ndarray | None:
    """Return where a batch of texts is no padding, bool of shape (B, T); None for networks without such a mask."""
    mask = batch.get(MASK)
    if mask is None or mask.ndim != 2 or mask.dtype.kind == "f":
        return None
    real: np.ndarray = mask != 0
    if not real.any():
        raise PQNetError(f"calibration: expected ones in {MASK!r} where a text is no padding, got a batch of zeros")
    return real


def masked(x: np.ndarray, real: np.ndarray | None) -> np.ndarray | None:
    """Return the mask if it is of the first two axes of an array with features at each position."""
    return real if real is not None and x.ndim > 2 and x.shape[:2] == real.shape else None
