"""Reads weights in the forms that people have them: state dicts, bare or in a checkpoint, and safetensors."""

import importlib.util
from pathlib import Path
from typing import Any

import torch

from pqnet import PQNetError

__all__ = ["load_weights"]

NESTED = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "params", "weights")
PREFIXES = ("module.", "_orig_mod.", "model.")  # of what wraps modules: parallel training, compilation, trainers


def load_weights(module: torch.nn.Module, path: str) -> None:
    """Load a file of tensors into a module; names that the module does not have are printed."""
    if not Path(path).is_file():
        raise PQNetError(f"--weights: expected a readable file, got {path}")
    try:
        state = _state(_read(path))
        wanted = module.state_dict()
        state = _without_prefix(state, wanted)
        missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
        unexpected = [name for name in state if name not in wanted]
        if missing and not all(_is_tied(module, name, state) for name in missing):
            raise PQNetError(f"it lacks {_some(missing)}" + (f", and has {_some(unexpected)}" if unexpected else ""))
        module.load_state_dict({name: x for name, x in state.items() if name in wanted}, strict=False)
    except PQNetError as reason:
        raise PQNetError(f"--weights: {path} does not fit the module: {reason}") from None
    except Exception as reason:  # the unpickler and load_state_dict raise many kinds
        raise PQNetError(f"--weights: {path} does not fit the module: {' '.join(str(reason).split())[:300]}") from None
    if unexpected:
        print(f"weights: the module has no place for {_some(unexpected)}: left out")


def _read(path: str) -> Any:
    if Path(path).suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True)
    if importlib.util.find_spec("safetensors") is None:
        raise PQNetError("reading .safetensors needs the package safetensors: pip install safetensors")
    from safetensors.torch import load_file

    return load_file(path)


def _state(found: Any) -> dict[str, torch.Tensor]:
    """Return the tensors by name, of a checkpoint those of its first part that holds some."""
    while isinstance(found, dict) and not any(isinstance(x, torch.Tensor) for x in found.values()):
        inner = next((found[key] for key in NESTED if isinstance(found.get(key), dict)), None)
        if inner is None:
            raise PQNetError(f"expected a dict of tensors, or one below {', '.join(NESTED)}, got {list(found)[:8]}")
        found = inner
    if not isinstance(found, dict):
        raise PQNetError(f"expected a dict of tensors, got {type(found).__name__}")
    return {name: x for name, x in found.items() if isinstance(x, torch.Tensor)}


def _without_prefix(state: dict[str, torch.Tensor], wanted: dict[str, Any]) -> dict[str, torch.Tensor]:
    for _ in PREFIXES:
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None or any(name in wanted for name in state):
            return state
        state = {name.removeprefix(prefix): x for name, x in state.items()}
    return state


def _is_tied(module: torch.nn.Module, name: str, state: dict[str, Any]) -> bool:
    """Tell whether a tensor is one with another that the file has."""
    tensors = module.state_dict()
    own = tensors[name].data_ptr()
    return any(other in state and x.data_ptr() == own for other, x in tensors.items() if other != name)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
