"""Reads the folder of a network: config.json and its weights, without network access."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from pqnet import PQNetError

__all__ = ["load_folder"]

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # whole, or in parts that an index of this name lists


def load_folder(folder: str | Path, architecture: str | None = None) -> Any:
    """Return the module of a folder, in float32; weights that it does not have are random, and named.

    Parameters
    ----------
    folder : str or Path
        With config.json and model.safetensors or pytorch_model.bin.
    architecture : str, optional
        Class of the package transformers; by default the first that config.json names.
    """
    path = Path(folder)
    config = _config(path)
    given = architecture or next(iter(config.get("architectures") or ()), None)
    kind: Any = getattr(transformers, given, None) if isinstance(given, str) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise PQNetError(
            f"{path / 'config.json'}: expected the name of a network of transformers {transformers.__version__} under "
            f"'architectures', got {given!r} of model type {config.get('model_type')!r}; --architecture names one, and "
            "pqnet convert torch takes modules of your own code"
        )
    found = [path / name for stem in WEIGHTS for name in (stem, f"{stem}.index.json") if (path / name).is_file()]
    make: Any = kind
    module: Any
    missing: list[str] | None = None
    with _quiet():
        try:
            if not found:
                torch.manual_seed(0)
                own = make.config_class.from_pretrained(path, local_files_only=True)
                module = make(own).float()
            else:
                module, report = make.from_pretrained(
                    path, local_files_only=True, output_loading_info=True, dtype=torch.float32
                )
                missing = sorted(report["missing_keys"])
        except Exception as reason:  # of what files hold: JSON, sizes, tensors
            text = " ".join(str(reason).split())[:300]
            raise PQNetError(f"{path}: {given} cannot be made from it: {type(reason).__name__}: {text}") from None
    if missing is None:
        warnings.warn(f"weights: random, {path} has no {' or '.join(WEIGHTS)}", stacklevel=2)
    elif missing:
        some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        warnings.warn(f"weights: {found[0].name} lacks {some}: random", stacklevel=2)
    return module


def _config(path: Path) -> dict[str, Any]:
    """Return config.json of a folder."""
    if not (path / "config.json").is_file():
        has = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else "no such folder"
        raise PQNetError(f"{path}: expected a folder with config.json, as save_pretrained writes it, got {has}")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise PQNetError(f"{path / 'config.json'}: expected readable JSON, got: {reason}") from None
    if not isinstance(config, dict):
        raise PQNetError(f"{path / 'config.json'}: expected an object, got {type(config).__name__}")
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the package's progress bars and reports off the terminal: what matters of them is said here."""
    theirs: Any = transformers.utils.logging
    before, bars = logging.root.manager.disable, theirs.is_progress_bar_enabled()
    logging.disable()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(before)
        if bars:
            theirs.enable_progress_bar()
