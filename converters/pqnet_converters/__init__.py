"""Thin importers and exporters: PyTorch modules, ONNX files, published checkpoints, recorded activations.

What a source needs (PyTorch, say) is imported when a function for it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pqnet_converters.checkpoints.kill_the_bits import from_kill_the_bits as from_kill_the_bits
    from pqnet_converters.checkpoints.pqf import from_pqf as from_pqf
    from pqnet_converters.onnx.from_onnx import from_onnx as from_onnx
    from pqnet_converters.onnx.to_onnx import to_onnx as to_onnx
    from pqnet_converters.torch.activations import statistics_from_activations as statistics_from_activations
    from pqnet_converters.torch.from_torch import from_torch as from_torch
    from pqnet_converters.torch.from_torchvision import from_torchvision as from_torchvision
    from pqnet_converters.torch.to_torch import to_torch as to_torch
    from pqnet_converters.transformers.from_transformers import from_transformers as from_transformers

_CHECKPOINTS = ("from_kill_the_bits", "from_pqf")
_ONNX = ("from_onnx", "to_onnx")
_TORCH = ("from_torch", "from_torchvision", "statistics_from_activations", "to_torch")
_TRANSFORMERS = ("from_transformers",)

__all__ = [*_CHECKPOINTS, *_ONNX, *_TORCH, *_TRANSFORMERS]


def __getattr__(name: str) -> Any:
    if name in _CHECKPOINTS:
        import pqnet_converters.checkpoints as home
    elif name in _ONNX:
        import pqnet_converters.onnx as home  # type: ignore[no-redef]
    elif name in _TORCH:
        import pqnet_converters.torch as home  # type: ignore[no-redef]
    elif name in _TRANSFORMERS:
        import pqnet_converters.transformers as home  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
