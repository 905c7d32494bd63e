"""What the checkpoint files of compressed ResNets have in common."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pqnet import PQ, FormatError, PackedPQ, PQNetError
from pqnet_converters.checkpoints.resnet import Layer

__all__ = ["array", "layer_called", "packed", "read"]


def read(path: str | Path) -> dict[str, Any]:
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


def array(value: Any, where: str) -> np.ndarray:
    if not isinstance(value, torch.Tensor) or value.dtype not in (torch.float16, torch.float32, torch.int64):
        got = f"{value.dtype} tensor" if isinstance(value, torch.Tensor) else type(value).__name__
        raise FormatError(f"{where}: expected a float16 or float32 tensor, got {got}")
    return np.ascontiguousarray(value.detach().numpy())


def layer_called(layers: Mapping[str, Layer], name: str, arch: str, where: str) -> Layer:
    if name not in layers:
        raise FormatError(f"{where}: no quantized layer of {arch}")
    return layers[name]


def packed(layer: Layer, codes: Any, codebook: Any, where: str) -> PackedPQ:
    """Build a packed weight from codes of shape (O, M) and a codebook of shape (K, d)."""
    words = array(codebook, f"{where} codebook")
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
