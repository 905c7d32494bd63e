"""The checkpoint files of kill-the-bits and permute-quantize-finetune, published or made by their users."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pqnet import PQ, FormatError, Model, PackedPQ, PQNetError
from pqnet_converters.resnet import Layer, Param, resnet_graph, resnet_layers

__all__ = ["from_kill_the_bits", "from_pqf"]

NORM_FIELDS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint with PyTorch's restricted unpickler: tensors and plain containers only."""
    if not isinstance(path, str | Path):
        raise PQNetError(f"path: expected a file name, got {type(path).__name__}")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as reason:
        raise PQNetError(f"path: expected a readable checkpoint, got {path}: {reason}") from None
    except Exception as reason:  # the unpickler raises many kinds, and advises to switch its safety off
        raise FormatError(
            f"{path}: expected a PyTorch checkpoint of tensors and dicts, got a file that is damaged, of another "
            f"format, or holds other objects ({type(reason).__name__} of PyTorch's restricted unpickler)"
        ) from reason
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise FormatError(f"{path}: expected a dict by layer name, got {type(data).__name__}")
    return data


def _array(value: Any, where: str) -> np.ndarray:
    if not isinstance(value, torch.Tensor) or value.dtype not in (torch.float16, torch.float32, torch.int64):
        got = f"{value.dtype} tensor" if isinstance(value, torch.Tensor) else type(value).__name__
        raise FormatError(f"{where}: expected a float16 or float32 tensor, got {got}")
    return np.ascontiguousarray(value.detach().numpy())


def _layer(layers: Mapping[str, Layer], name: str, arch: str, where: str) -> Layer:
    if name not in layers:
        raise FormatError(f"{where}: no quantized layer of {arch}")
    return layers[name]


def _packed(layer: Layer, codes: Any, codebook: Any, where: str) -> PackedPQ:
    """Build a packed weight from codes of shape (O, M) and a codebook of shape (K, d)."""
    words = _array(codebook, f"{where} codebook")
    if not isinstance(codes, torch.Tensor) or codes.ndim != 2 or codes.is_floating_point() or words.ndim != 2:
        raise FormatError(f"{where}: expected integer codes (outputs, blocks) and a codebook (K, d), got others")
    index = codes.numpy()
    k, d = words.shape
    n_inputs = index.shape[1] * d
    taps = layer.kernel**2
    if taps and n_inputs % taps:
        raise FormatError(
            f"{where}: expected blocks that fill {layer.kernel}x{layer.kernel} kernels, got {index.shape}"
        )
    shape = (index.shape[0], n_inputs // taps, layer.kernel, layer.kernel) if taps else (index.shape[0], n_inputs)
    try:
        return PackedPQ(PQ(k, d, "spatial", words.dtype.name), shape, index, words)  # type: ignore[arg-type]
    except PQNetError as reason:
        raise FormatError(f"{where}: {reason}") from None


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
    data = _read(path)
    params: dict[str, Param] = {}
    for name, entry in data.items():
        where = f"{source}: {name}"
        if not isinstance(entry, dict):
            raise FormatError(f"{where}: expected a dict, got {type(entry).__name__}")
        if "centroids" in entry:
            params[f"{name}.weight"] = _ktb_weight(_layer(layers, name, arch, where), entry, where)
        elif name == "fc_bias":
            params["fc.bias"] = _array(entry.get("bias"), where)
        elif unknown := set(entry) - set(NORM_FIELDS):
            raise FormatError(f"{where}: unknown fields {sorted(unknown)}")
        else:
            params.update({f"{name}.{field}": _array(value, where) for field, value in entry.items()})
    return Model(resnet_graph(arch, params, source))


def _ktb_weight(layer: Layer, entry: Mapping[str, Any], where: str) -> PackedPQ:
    codes, blocks = entry.get("assignments"), entry.get("n_blocks")
    if not isinstance(codes, torch.Tensor) or not isinstance(blocks, int) or blocks < 1 or codes.numel() % blocks:
        raise FormatError(f"{where}: expected assignments that n_blocks divides, got others")
    # Stored block after block: code b * O + o belongs to block b of output o.
    return _packed(layer, codes.reshape(blocks, -1).T, entry["centroids"], where)


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
    data = _read(path)
    params: dict[str, Param] = {}
    for key, value in data.items():
        name, _, field = key.rpartition(".")
        where = f"{source}: {name}"
        if field == "codes_matrix":
            layer = _layer(layers, name, arch, where)
            params[f"{name}.weight"] = _packed(layer, value, data.get(f"{name}.codebook"), where)
        elif field != "codebook":
            params[key] = _array(value, f"{source}: {key}")
    return Model(resnet_graph(arch, params, source))
