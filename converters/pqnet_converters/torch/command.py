"""``pqnet convert torch``."""

import argparse
import contextlib
import io
import logging
import pkgutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from pqnet import Model, PQNetError
from pqnet.graph.op import DTYPES
from pqnet_converters.torch.detection.boxes import Detector
from pqnet_converters.torch.export import inference
from pqnet_converters.torch.from_torch import from_torch
from pqnet_converters.torch.from_torchvision import as_detector, import_detector, is_detector
from pqnet_converters.torch.weights import load_weights

__all__ = ["print_sizes", "quiet", "recorded", "torch_command"]

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
            help="shape of an example, 1x3x224x224; 1x128:int64 for token ids; names for free sizes, 1x3xHxW or "
            "ids=BxT:int64; NAME= for keyword inputs; repeatable",
        )
        parser.add_argument(
            "--size",
            action="append",
            default=[],
            metavar="NAME=N",
            help="size that a free axis has in the example (default: 16, of images 224 and 256); repeatable",
        )
        parser.add_argument("--fixed-batch", action="store_true", help="keep the example's batch size")

    def convert(self, args: argparse.Namespace) -> Model:
        """Convert, run both on the same inputs, and record PyTorch's outputs in the file.

        Of a detector of torchvision, whose last boxes may be others for a rounding error, the scores are compared; its
        image is of simple shapes.
        """
        module = _module(args.module)
        if args.weights:
            load_weights(module, args.weights)
        else:
            print("weights: those that the module is made with, random unless it loads its own; --weights gives others")
        module.float()  # half, bfloat16 and double become float32, as the examples are
        torch.manual_seed(args.seed)
        with quiet():
            examples, dynamic = _examples(args.input, args.size)
            detector = _detector(module, examples, dynamic)
            if detector is not None:
                return _converted_detector(detector, not args.fixed_batch, args.seed)
            model = from_torch(module, examples, dynamic_batch=not args.fixed_batch, dynamic=dynamic)
        print_sizes(model)
        keyword = any("=" in item for item in args.input)

        def call(inputs: dict[str, torch.Tensor]) -> Any:
            with inference(module):
                return module(**inputs) if keyword else module(*inputs.values())

        return recorded(model, call, args.seed, "convert torch")


def recorded(model: Model, call: Callable[[dict[str, torch.Tensor]], Any], seed: int, where: str) -> Model:
    """Return a model with PyTorch's outputs for a seeded input in its file, which it has to agree with."""
    golden = model.draw_golden(seed)
    result = call({name: torch.from_numpy(a) for name, a in golden.inputs().items()})
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    theirs = golden.with_outputs({name: t.numpy() for name, t in zip(model.outputs, tensors, strict=True)})
    worst = theirs.largest_difference(golden.outputs)
    if not worst <= AGREEMENT:
        raise PQNetError(f"{where}: outputs differ from PyTorch's by {worst:.3g}, expected at most {AGREEMENT}")
    print(f"largest relative difference from PyTorch {worst:.2g}")
    return model.with_golden(theirs)


def _detector(module: torch.nn.Module, examples: Any, dynamic: list[dict[int, str]]) -> Detector | None:
    """Return one of torchvision's detectors for the size of the example, None for another module."""
    shapes = [tuple(x.shape) for x in (examples.values() if isinstance(examples, dict) else examples)]
    if not is_detector(module):
        return None
    if len(shapes) != 1 or len(shapes[0]) != 4 or set(dynamic[0]) - {0}:
        raise PQNetError(
            f"--input: expected one batch of images of a fixed size for a detector, such as 1x3x480x640, got {shapes}"
            + (f" with {' and '.join(dynamic[0].values())} free" if any(dynamic) else "")
        )
    return as_detector(module, shapes[0][2:])


def _converted_detector(detector: Detector, dynamic_batch: bool, seed: int) -> Model:
    """Return the model with PyTorch's detections in its file, or with its own where their order is another."""
    model = import_detector(detector, dynamic_batch)
    golden = model.draw_golden(seed)
    with torch.no_grad():
        found = detector(torch.from_numpy(golden.inputs()["images"]))
    theirs = golden.with_outputs({name: found[name].numpy() for name in model.outputs})
    worst = float(np.abs(golden.outputs["scores"] - theirs.outputs["scores"]).max(initial=0))
    if not worst <= AGREEMENT:
        raise PQNetError(f"convert torch: scores differ from PyTorch's by {worst:.3g}, expected at most {AGREEMENT}")
    print_sizes(model)
    print(f"largest difference from PyTorch's scores {worst:.2g}, of {int(theirs.outputs['count'].sum())} detections")
    return model.with_golden(theirs if theirs.largest_difference(golden.outputs) <= AGREEMENT else golden)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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


def print_sizes(model: Model) -> None:
    """Say which sizes the network takes."""
    for name, info in model.graph.inputs.items():
        free = [size for size in info.shape if isinstance(size, str)]
        shape = ", ".join(map(str, info.shape))
        print(f"input {name}: ({shape}), " + (f"{' and '.join(free)} free" if free else "all sizes fixed"))


def _examples(items: list[str], sizes: list[str]) -> tuple[Any, list[dict[int, str]]]:
    """Return examples for ``[NAME=]SHAPE[:DTYPE]``, a tuple, or a dict if they are named, and their free axes."""
    known = _sizes(sizes)
    named: dict[str, torch.Tensor] = {}
    free: list[dict[int, str]] = []
    for i, item in enumerate(items):
        name, equals, spec = item.rpartition("=")
        text, _, dtype = spec.partition(":")
        parts = text.split("x")
        fits = all(part.isidentifier() or (part.isascii() and part.isdecimal() and int(part) > 0) for part in parts)
        if not fits or dtype not in ("", *DTYPES) or (equals and not name):
            raise PQNetError(
                f"--input: expected [NAME=]SHAPE such as 1x3x224x224 or 1x3xHxW, or ids=1x128:int64, got {item!r}"
            )
        real = dtype in ("", "float32")
        shape = [
            known.setdefault(part, _usual_size(len(parts), axis, real)) if part.isidentifier() else int(part)
            for axis, part in enumerate(parts)
        ]
        free.append({axis: part for axis, part in enumerate(parts) if part.isidentifier()})
        tensor = torch.randn(shape) if real else torch.full(shape, dtype == "bool", dtype=getattr(torch, dtype))
        named[name or str(i)] = tensor
    if unknown := {size.partition("=")[0] for size in sizes} - {part for axes in free for part in axes.values()}:
        raise PQNetError(f"--size: expected names of free sizes in --input, got {sorted(unknown)[0]!r}")
    names_given = sum("=" in item for item in items)
    if names_given not in (0, len(items)) or len(named) != len(items):
        raise PQNetError(f"--input: expected a name for every input or for none, each once, got {items}")
    return (named if names_given else tuple(named.values())), free


def _usual_size(rank: int, axis: int, real: bool) -> int:
    """Return a size that most networks take: of a batch, of an image, of a sound, or of a text."""
    if axis == 0:
        return 2
    if real and rank >= 4:
        return 256 if axis == rank - 1 else 224
    return 16000 if real and rank == 2 else 16


def _sizes(items: list[str]) -> dict[str, int]:
    found = {}
    for item in items:
        name, _, number = item.partition("=")
        if not (name.isidentifier() and number.isascii() and number.isdecimal() and int(number) > 0):
            raise PQNetError(f"--size: expected NAME=N such as H=224, got {item!r}")
        found[name] = int(number)
    return found


torch_command = TorchCommand()
