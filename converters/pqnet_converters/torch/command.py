"""``pqnet convert torch``."""

import argparse
import contextlib
import io
import logging
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from pqnet import Model, PQNetError
from pqnet.graph.op import DTYPES
from pqnet_converters.torch.from_torch import from_torch

__all__ = ["torch_command"]

AGREEMENT = 1e-3  # largest difference from PyTorch, relative to the largest output, that a conversion may show


class TorchCommand:
    """``pqnet convert torch``: any module that ``torch.export`` takes."""

    text = "Convert a PyTorch module."
    example = "pqnet convert torch my_pkg.models:resnet50 --weights w.pth --input 1x3x224x224 -o model.h5"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "module", help="package.module:name of a torch.nn.Module, or of a callable that returns one"
        )
        parser.add_argument("--weights", help="state dict to load into it (tensors only)")
        parser.add_argument(
            "--input",
            action="append",
            required=True,
            metavar="[NAME=]SHAPE",
            help="shape of an example, 1x3x224x224; 1x128:int64 for token ids; NAME= for keyword inputs; repeatable",
        )
        parser.add_argument("--fixed-batch", action="store_true", help="keep the example's batch size")

    def convert(self, args: argparse.Namespace) -> Model:
        """Convert, run both on the same inputs, and record PyTorch's outputs in the file."""
        module = _module(args.module)
        if args.weights:
            _load_weights(module, args.weights)
        module.float()  # half, bfloat16 and double become float32, as the examples are
        torch.manual_seed(args.seed)
        with _quiet():
            model = from_torch(module, _examples(args.input), dynamic_batch=not args.fixed_batch)
        golden = model.draw_golden(args.seed)
        inputs = {name: torch.from_numpy(a) for name, a in golden.inputs().items()}
        keyword = any("=" in item for item in args.input)
        with torch.no_grad():
            result = module.eval()(**inputs) if keyword else module.eval()(*inputs.values())
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        recorded = golden.with_outputs({name: t.numpy() for name, t in zip(model.outputs, tensors, strict=True)})
        worst = recorded.largest_difference(golden.outputs)
        if not worst <= AGREEMENT:
            raise PQNetError(
                f"convert torch: outputs differ from PyTorch's by {worst:.3g}, expected at most {AGREEMENT}"
            )
        print(f"largest relative difference from PyTorch {worst:.2g}")
        return model.with_golden(recorded)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch's log and listings off the terminal: what matters of them is in the error."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _module(path: str) -> torch.nn.Module:
    sys.path.insert(0, "")  # modules of the working directory, as python -m finds them
    try:
        found = pkgutil.resolve_name(path)
        module = found if isinstance(found, torch.nn.Module) else found()
    except Exception as reason:  # whatever the user's code raises
        raise PQNetError(
            f"module: expected package.module:name that can be imported and called, got {path!r}: "
            f"{type(reason).__name__}: {reason}"
        ) from reason
    finally:
        sys.path.remove("")
    if not isinstance(module, torch.nn.Module):
        raise PQNetError(
            f"module: expected a torch.nn.Module or a callable that returns one, got {type(module).__name__}"
        )
    return module


def _load_weights(module: torch.nn.Module, path: str) -> None:
    if not Path(path).is_file():
        raise PQNetError(f"--weights: expected a readable file, got {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(state.get("state_dict", state))
    except Exception as reason:  # the unpickler and load_state_dict raise many kinds
        raise PQNetError(f"--weights: {path} does not fit the module: {' '.join(str(reason).split())[:300]}") from None


def _examples(items: list[str]) -> Any:
    """Return example tensors for ``[NAME=]SHAPE[:DTYPE]`` arguments: a tuple, or a dict if they are named."""
    named: dict[str, torch.Tensor] = {}
    for i, item in enumerate(items):
        name, equals, spec = item.rpartition("=")
        sizes, _, dtype = spec.partition(":")
        try:
            shape = tuple(int(s) for s in sizes.split("x"))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1 or dtype not in ("", *DTYPES) or (equals and not name):
            raise PQNetError(f"--input: expected [NAME=]SHAPE such as 1x3x224x224 or ids=1x128:int64, got {item!r}")
        real = dtype in ("", "float32")
        tensor = torch.randn(shape) if real else torch.full(shape, dtype == "bool", dtype=getattr(torch, dtype))
        named[name or str(i)] = tensor
    names_given = sum("=" in item for item in items)
    if names_given not in (0, len(items)) or len(named) != len(items):
        raise PQNetError(f"--input: expected a name for every input or for none, each once, got {items}")
    return named if names_given else tuple(named.values())


torch_command = TorchCommand()
