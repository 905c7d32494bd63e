"""Finding sparse corrections."""

from typing import Any

import numpy as np

from pqnet.codecs import FITTERS, Fit, Packed, PackedSparse, Sparse
from pqnet.fit.error import measured
from pqnet.fit.scales import check_fit, stored_floats

__all__ = ["fit_sparse"]


def fit_sparse(
    codec: Sparse,
    weight: Any,
    metric: Any = None,
    warm: Packed | None = None,
    seed: int = 0,
    *,
    row_weights: Any = None,
    threads: int | None = None,
) -> Fit:
    """Keep the weights without which the error would be largest.

    Parameters
    ----------
    codec : Sparse
    weight : array, shape (O, C, *kernel) or (O, I)
    metric : array, optional
        Second moments of the inputs, (1, 1), (I, 1, 1) or (G, I, 1, 1).
    warm, seed, threads
        Taken as other codecs do; the result does not depend on them.
    row_weights : array, shape (O,), optional

    Returns
    -------
    Fit
    """
    codec, dense, importance = check_fit(codec, weight, metric, warm, seed, row_weights)
    loss = np.square(dense.reshape(-1), dtype=np.float64)
    if importance is not None:
        loss *= importance.reshape(-1)
    places = np.sort(np.argsort(-loss, kind="stable")[: codec.count])
    values = stored_floats(dense.reshape(-1)[places], codec.value_dtype, "values", "value_dtype")
    packed = PackedSparse(codec, dense.shape, places, values)
    return measured(packed, dense, metric, row_weights, 0)


FITTERS[Sparse.name] = fit_sparse
