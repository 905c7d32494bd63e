"""Layers that share their parameters."""

from collections.abc import Iterable

from torch import nn

from pqnet.errors import ConfigError
from pqnet.train.checks import check_integer

__all__ = ["share_layers"]


def share_layers(layers: Iterable[nn.Module], n: int = 2) -> None:
    """Give every n consecutive layers the parameters of the first of them (sharing of "Quantization Noise").

    The others' own parameters are dropped, so that a network with half the parameters can be trained, quantized once
    and stored once; `LayerDrop` with ``chunk=n`` leaves such layers out together. Call it before an optimizer or noise
    is made. Buffers, as statistics of batch norms, stay those of each layer.

    Parameters
    ----------
    layers : sequence of Module
        Of a network, a ``ModuleList`` say; the last ones may be fewer than n.
    n : int

    Raises
    ------
    ConfigError
        Layers whose parameters differ in name or shape. The layers are then unchanged.

    Examples
    --------
    >>> import torch
    >>> layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(6))
    >>> share_layers(layers)
    >>> len(list(layers.parameters())), layers[1].weight is layers[0].weight
    (6, True)
    """
    check_integer("n", n, 2)
    layers = list(layers)
    for i, layer in enumerate(layers):
        own, first = (
            {name: tuple(p.shape) for name, p in module.named_parameters(remove_duplicate=False)}
            for module in (layer, layers[i - i % n])
        )
        if own != first:
            raise ConfigError(
                f"layers: expected layer {i} with the parameters of layer {i - i % n}, {first}, got {own}"
            )
    for i, layer in enumerate(layers):
        for path, parameter in list(layers[i - i % n].named_parameters(remove_duplicate=False)):
            owner, _, name = path.rpartition(".")
            setattr(layer.get_submodule(owner), name, parameter)
