"""The checkpoint files of kill-the-bits, published or made by their users."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pqnet import FormatError, Model, PackedPQ
from pqnet_converters.checkpoints.files import array, layer_called, packed, read
from pqnet_converters.checkpoints.resnet import Layer, Param, resnet_graph, resnet_layers

__all__ = ["from_kill_the_bits"]

NORM_FIELDS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def from_kill_the_bits(path: str | Path, arch: str) -> Model:
    """Import a compressed ResNet of "And the Bit Goes Down" (facebookresearch/kill-the-bits).

    Both forms of the file are read: batch norms folded to weight and bias (as published), or with running statistics
    (as its own ``quantize.py`` writes them).

    Parameters
    ----------
    path : str or Path
    arch : {"resnet18", "resnet50"}

    Returns
    -------
    Model

    Raises
    ------
    FormatError
        The file is no such checkpoint, or of another architecture.
    ConfigError
        Unknown ``arch``.
    PQNetError
        There is no readable file at ``path``.
    """
    layers, source = resnet_layers(arch), str(path)
    data = read(path)
    params: dict[str, Param] = {}
    for name, entry in data.items():
        where = f"{source}: {name}"
        if not isinstance(entry, dict):
            raise FormatError(f"{where}: expected a dict, got {type(entry).__name__}")
        if "centroids" in entry:
            params[f"{name}.weight"] = _ktb_weight(layer_called(layers, name, arch, where), entry, where)
        elif name == "fc_bias":
            params["fc.bias"] = array(entry.get("bias"), where)
        elif unknown := set(entry) - set(NORM_FIELDS):
            raise FormatError(f"{where}: unknown fields {sorted(unknown)}")
        else:
            params.update({f"{name}.{field}": array(value, where) for field, value in entry.items()})
    return Model(resnet_graph(arch, params, source))


def _ktb_weight(layer: Layer, entry: Mapping[str, Any], where: str) -> PackedPQ:
    codes, blocks = entry.get("assignments"), entry.get("n_blocks")
    if not isinstance(codes, torch.Tensor) or not isinstance(blocks, int) or blocks < 1 or codes.numel() % blocks:
        raise FormatError(f"{where}: expected assignments that n_blocks divides, got others")
    # Stored block after block: code b * O + o belongs to block b of output o.
    return packed(layer, codes.reshape(blocks, -1).T, entry["centroids"], where)
