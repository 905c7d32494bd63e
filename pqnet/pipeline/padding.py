"""Texts of different lengths in one batch: which of their positions are padding, and count for nothing."""

import warnings

import numpy as np

from pqnet.errors import PQNetError
from pqnet.pipeline.batches import Batch

__all__ = ["MASK", "masked", "real_positions", "without_padding"]

SEGMENTS = ("token_type_ids", "segment_ids")  # of zeros and ones too, of pairs of texts
MASK = "attention_mask"  # the input that text networks everywhere call so: (B, T), zero at padded positions


def real_positions(batch: Batch) -> np.ndarray | None:
    """Return where a batch of texts is no padding, bool of shape (B, T); None for networks without such a mask."""
    mask = batch.get(MASK)
    if mask is None or mask.ndim != 2 or mask.dtype.kind == "f":
        if name := _mask_by_another_name(batch):
            warnings.warn(
                f"input {name!r} looks like the mask of padded texts, but padding is left out only where an integer or "
                f"boolean input called {MASK!r} is zero: here padding counts as words; name the input so "
                "(input_names of from_torch), or give texts without padding",
                stacklevel=2,
            )
        return None
    real: np.ndarray = mask != 0
    if not real.any():
        raise PQNetError(f"calibration: expected ones in {MASK!r} where a text is no padding, got a batch of zeros")
    return real


def masked(x: np.ndarray, real: np.ndarray | None) -> np.ndarray | None:
    """Return the mask if it is of the first two axes of an array with features at each position."""
    return real if real is not None and x.ndim > 2 and x.shape[:2] == real.shape else None


def without_padding(x: np.ndarray, real: np.ndarray | None) -> np.ndarray:
    """Return what is at positions that are no padding; all of an array that has none."""
    mask = masked(x, real)
    return x if mask is None else x[mask]


def _mask_by_another_name(batch: Batch) -> str | None:
    """Return the name of an input that is one at the front or back of each row, zero in the rest, beside texts."""
    for name, x in batch.items():
        beside = any(other is not x and other.shape[:2] == x.shape for other in batch.values())
        if x.ndim != 2 or not beside or name in SEGMENTS:
            continue
        ones = x == 1
        if not ((x == 0) | ones).all() or ones.all() or not ones.any(1).all():
            continue
        steps = np.diff(ones.astype(np.int8), axis=1)
        if (steps <= 0).all() or (steps >= 0).all():
            return name
    return None
