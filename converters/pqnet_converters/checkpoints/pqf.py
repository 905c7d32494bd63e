"""The checkpoint files of permute-quantize-finetune, published or made by their users."""

from pathlib import Path

from pqnet import Model
from pqnet_converters.checkpoints.files import array, layer_called, packed, read
from pqnet_converters.checkpoints.resnet import Param, resnet_graph, resnet_layers

__all__ = ["from_pqf"]


def from_pqf(path: str | Path, arch: str) -> Model:
    """Import a compressed ResNet of "Permute, Quantize, and Fine-tune" (uber-research).

    Batch norms may be folded to weight and bias (as published) or have running statistics.

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
    for key, value in data.items():
        name, _, field = key.rpartition(".")
        where = f"{source}: {name}"
        if field == "codes_matrix":
            layer = layer_called(layers, name, arch, where)
            params[f"{name}.weight"] = packed(layer, value, data.get(f"{name}.codebook"), where)
        elif field != "codebook":
            params[key] = array(value, f"{source}: {key}")
    return Model(resnet_graph(arch, params, source))
