"""The 8-bit integers that inputs and weights of layers become."""

import numpy as np

__all__ = ["LEVELS", "input_scaling", "weight_scale"]

LEVELS = 255  # of inputs: 0 .. 255
LARGEST = 127  # of weights; the least is one less than its negative


def input_scaling(limits: tuple[float, float]) -> tuple[float, float]:
    """Return factor and zero point of inputs in a range: x becomes round(x * factor + zero), within 0 .. 255."""
    low, high = limits
    factor = LEVELS / (high - low)
    return factor, float(np.rint(-low * factor))


def weight_scale(weight: np.ndarray, *, by_row: bool) -> np.ndarray:
    """Return what 8-bit integers are multiples of: one number for each row of a weight, or one for a codebook."""
    rows = weight.reshape(len(weight) if by_row else 1, -1).astype(np.float64)
    scale = np.maximum(rows.max(1) / LARGEST, -rows.min(1) / (LARGEST + 1))
    return np.where(scale > 0, scale, 1.0).reshape(-1, *[1] * (weight.ndim - 1))
