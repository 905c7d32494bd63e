"""Exports modules as functional programs, decomposed as far as there is no rule."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes
from torch.utils import _pytree as pytree

from pqnet.errors import PQNetError
from pqnet_converters.torch.aten import RULES
from pqnet_converters.torch.sizes import Axes

__all__ = ["export"]

TRIES = 3  # each with the sizes that the one before found to be possible
NUMBERS = (torch.Tensor, int, float, bool, str, torch.SymInt, torch.SymFloat, torch.SymBool, type(None))


def export(module: torch.nn.Module, examples: Mapping[str, torch.Tensor], free: Axes, by_name: bool) -> Any:
    """Return the exported program of a module; its examples are positional, or keywords."""
    args, kwargs = ((), dict(examples)) if by_name else (tuple(examples.values()), {})
    try:
        with _tensors_only(module), _inference(module):
            program = _export(module, args, kwargs, _shapes(module, args, kwargs, examples, free))
            table = torch.export.default_decompositions()
            for op in [op for op in table if str(op) in RULES]:
                del table[op]
            program = program.run_decompositions(table)
    except PQNetError:
        raise
    except Exception as reason:  # whatever the module's own code and the exporter raise
        raise PQNetError(f"module: expected one that torch.export takes, got: {_first_line(reason)}") from reason
    signature = program.graph_signature
    changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if changed:
        raise PQNetError(f"module: expected a forward without side effects, got one that changes {changed}")
    return program


def _shapes(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    examples: Mapping[str, torch.Tensor],
    free: Axes,
) -> Any:
    shapes = torch.export.ShapesCollection()
    for name, x in examples.items():
        if free[name]:
            shapes[x] = free[name]
    return shapes.dynamic_shapes(module, args, kwargs) if any(free.values()) else None


def _export(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> Any:
    """Export; a free size that is possible only as a multiple, or up to a limit, is tried again as such."""
    for left in reversed(range(TRIES)):
        try:
            return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
        except torch._dynamo.exc.UserError as reason:
            text = str(reason)
            if not text.startswith("Constraints violated"):
                raise
            if fixed := re.search(r"^\s*(\w+) = (-?\d+)$", text, re.M):
                raise _fixed_size(fixed[1], text) from reason
            if not left:
                raise
            shapes = refine_dynamic_shapes_from_suggested_fixes(text, shapes)
    raise AssertionError


def _fixed_size(name: str, text: str) -> PQNetError:
    lines = [line.strip(" -") for line in text.splitlines()[1:] if line.strip()]
    why = next((line for line in lines if re.search(rf"\b{name}\b", line)), lines[0]).split(". ")[0]
    if name == "batch":
        return PQNetError(
            f"module: expected one that works for every batch size, got: {why}; pass dynamic_batch=False to fix "
            "the batch size to that of example_inputs"
        )
    return PQNetError(
        f"module: expected one that works for every size of {name!r}, got: {why}; leave {name!r} out of dynamic to fix "
        "it to that of example_inputs"
    )


def _first_line(reason: Exception) -> str:
    lines = [line.strip(" -") for line in str(reason).splitlines() if line.strip()]
    if lines and lines[0].startswith("Constraints violated") and len(lines) > 1:
        return lines[1].split(". ")[0]
    text = lines[0] if lines else type(reason).__name__
    if "data-dependent" in text or "Could not guard" in text or "unbacked" in text:
        text += (
            "; sizes or branches that depend on the values of tensors cannot be exported: convert the part of the "
            "module that has none (a backbone, say), or pass the option that makes them fixed"
        )
    return text


@contextmanager
def _inference(module: torch.nn.Module) -> Iterator[None]:
    """Put the module into eval mode without gradients or fused layers, and restore everything."""
    training = {m: m.training for m in module.modules()}
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    module.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for m, flag in training.items():
            m.training = flag


@contextmanager
def _tensors_only(module: torch.nn.Module) -> Iterator[None]:
    """Leave out of the module's outputs what holds no plain tensors, caches of decoders, and say so."""
    left_out: dict[str, str] = {}

    def plain(_: Any, __: Any, output: Any) -> Any:
        pairs, tree = pytree.tree_flatten_with_path(output)
        strange = {i: leaf for i, (_, leaf) in enumerate(pairs) if not isinstance(leaf, NUMBERS)}
        for i, leaf in strange.items():
            left_out[pytree.keystr(pairs[i][0]) or "output"] = type(leaf).__name__
        leaves = [None if i in strange else leaf for i, (_, leaf) in enumerate(pairs)]
        return pytree.tree_unflatten(leaves, tree) if strange else output

    hook = module.register_forward_hook(plain)
    try:
        yield
    finally:
        hook.remove()
    if left_out:
        what = ", ".join(f"{key} ({kind})" for key, kind in left_out.items())
        warnings.warn(
            f"outputs left out: {what} is no tensor; use_cache=False (of the module's config) gives none", stacklevel=5
        )
