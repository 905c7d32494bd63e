"""Calibration from layer inputs that were recorded in PyTorch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pqnet import Model, PQNetError, Statistics
from pqnet.io import read_arrays
from pqnet.pipeline import statistics_of_inputs

__all__ = ["statistics_from_activations"]


def statistics_from_activations(model: Model, activations: Mapping[str, Any] | str | Path) -> Statistics:
    """Make calibration statistics from recorded inputs of layers.

    Parameters
    ----------
    model : Model
        The float network.
    activations : dict of str to array, or path of an HDF5 file of such arrays
        For every layer of the model (``model.graph.layers()``) its input, samples along axis 0; PyTorch tensors are
        accepted. For embeddings the token ids.

    Returns
    -------
    Statistics
        For `pqnet.quantize`.

    Raises
    ------
    PQNetError
        A layer without an entry, an entry without a layer, a shape that does not fit, NaN.
    """
    if isinstance(activations, str | Path):
        activations = read_arrays(activations)
    if not isinstance(activations, Mapping):
        raise PQNetError(f"activations: expected a dict or a path, got {type(activations).__name__}")
    return statistics_of_inputs(model, {name: _array(a) for name, a in activations.items()})


def _array(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return (value.float() if value.is_floating_point() else value).detach().cpu().numpy()
