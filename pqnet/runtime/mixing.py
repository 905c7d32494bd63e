"""Images mixed of the rows and columns of others, as one step: see `kernels.ops.resize`."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from pqnet.kernels.ops.resize import LARGEST, SUM, resize
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.builder import Builder
from pqnet.runtime.memory import View, round_up

__all__ = ["Mixture", "emit_mixture"]

MIXED = 32 * 1024  # floats of a band's mixed rows, which stay in the second-level cache
TASKS, WORK = 32, 8192  # tasks at most, elements of the result a task at least


@dataclass(frozen=True)
class Mixture:
    """What the rows (or columns) of images are mixed of.

    Attributes
    ----------
    places : int64 array, shape (out, taps)
        How far the rows that row i sees are behind the first one, in elements. With several taps, the first and the
        last one of each row must not be before those of the row before.
    weights : float array, shape (out, taps), optional
        Their weights in a sum; by default there is one tap, or the largest is taken.
    """

    places: np.ndarray
    weights: np.ndarray | None = None


def emit_mixture(b: Builder, label: str, x: View, rows: Mixture, columns: Mixture, *, largest: bool = False) -> View:
    """Append the step that mixes images; return the result, stored with its channels outermost.

    Parameters
    ----------
    b : Builder
    label : str
        Of the step.
    x : View
        Images (batch, channels, .., ..); ``rows`` and ``columns`` say where the pixels of a plane are.
    rows, columns : Mixture
    largest : bool
        Whether the largest pixel is taken instead of a sum.
    """
    batch, channels = x.shape[:2]
    high, wide = len(rows.places), len(columns.places)
    needed, numbers = np.unique(rows.places, return_inverse=True)
    numbers = numbers.reshape(rows.places.shape)
    taps, padded = rows.places.shape[1], round_up(wide, WIDTH)
    planes = batch * channels
    # Bands of one plane share no mixed rows: a plane is cut only if its rows take too much room, or tasks are few.
    wanted = min(max(-(-TASKS // planes), -(-len(needed) * padded // MIXED)), max(high * wide // WORK, 1), high)
    band = -(-high // wanted)
    firsts = np.arange(0, high, band)
    lasts = np.minimum(firsts + band, high) - 1
    mixed = 0 if taps == 1 else int((numbers[lasts, -1] - numbers[firsts, 0]).max() + 1) * padded
    units = planes * len(firsts)
    per_task = max(-(-units // TASKS), min(units, -(-WORK // (band * wide))))
    behind = [(0, padded - wide), (0, 0)]
    column_places = np.pad(columns.places, behind, mode="edge").T
    out = b.new((batch, channels, high, wide), (1, 0, 2, 3))
    arguments = {
        "x": x,
        "out": out,
        "channel_step": x.strides[1],
        "image_step": x.strides[0],
        "batch": batch,
        "planes": planes,
        "rows": high,
        "columns": wide,
        "padded": padded,
        "mode": LARGEST if largest else SUM,
        "row_taps": taps,
        "row_numbers": b.table(numbers),
        "row_places": b.table(needed),
        "row_weights": _weights(b, rows.weights),
        "column_taps": columns.places.shape[1],
        "column_places": b.table(column_places),
        "column_weights": _weights(b, None if columns.weights is None else np.pad(columns.weights, behind).T),
        "band": band,
        "bands": len(firsts),
        "per_task": per_task,
        "mixed": 0,
    }
    b.emit(resize, label, -(-units // per_task), arguments, reads=[x], writes=[out], scratch=mixed)
    return out


def _weights(b: Builder, weights: np.ndarray | None) -> int:
    if weights is None:
        return -1
    array = np.ascontiguousarray(weights, np.float32)
    return b.constant(("weights of a mixture", array.tobytes()), partial(np.asarray, array))
