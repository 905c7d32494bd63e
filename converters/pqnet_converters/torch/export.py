"""Exports modules as functional programs, decomposed as far as there is no rule."""

import inspect
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pqnet._progress import tick
from pqnet.errors import PQNetError
from pqnet_converters.torch.aten import RULES
from pqnet_converters.torch.importer import out_of_place
from pqnet_converters.torch.sizes import Axes

__all__ = ["export", "inference", "replaced_forward"]

CREATED = ("aten.new_zeros.default", "aten.new_ones.default")  # of the sizes given
NUMBERS = (torch.Tensor, int, float, bool, str, torch.SymInt, torch.SymFloat, torch.SymBool, type(None))


def export(module: torch.nn.Module, examples: Mapping[str, torch.Tensor], free: Axes, by_name: bool) -> Any:
    """Return the exported program of a module; its examples are positional, or keywords."""
    args, kwargs = ((), dict(examples)) if by_name else (tuple(examples.values()), {})
    try:
        with _tensors_only(module), inference(module), _named(module, list(kwargs)):
            tick("torch.export")
            program = torch.export.export(
                module,
                args,
                kwargs,
                dynamic_shapes=_shapes(module, args, kwargs, examples, free),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            if not _translatable(program):
                table = torch.export.default_decompositions()
                for op in [op for op in table if str(op) in RULES]:
                    del table[op]
                program = program.run_decompositions(table)
    except Exception as reason:  # whatever the module's own code and the exporter raise
        raise PQNetError(f"module: expected one that torch.export takes, got: {_first_line(reason)}") from reason
    signature = program.graph_signature
    changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if changed:
        raise PQNetError(f"module: expected a forward without side effects, got one that changes {changed}")
    return program


def _translatable(program: Any) -> bool:
    """Tell whether all nodes can be translated as they are; decomposing a program takes longer than exporting it."""
    inputs = set(program.graph_signature.user_inputs)
    fixed: set[Any] = set()  # what depends on no input is computed as it is
    own: set[Any] = set()  # of that, memory that the program made: changing it in place changes no parameter
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name not in inputs:
            fixed.add(node)
        elif node.op == "call_function":
            made = str(node.target) in CREATED and len(node.all_input_nodes) == 1  # what it is like, and no free size
            if made or (fixed.issuperset(node.all_input_nodes) and isinstance(node.target, torch._ops.OpOverload)):
                fixed.add(node)
                if made or not _is_view(node.target) or own.intersection(node.all_input_nodes[:1]):
                    own.add(node)
            changes = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
            if not (node in own if changes and node in fixed else node in fixed or _has_rule(node)):
                return False
    return True


def _has_rule(node: Any) -> bool:
    if node.target is operator.getitem or str(node.target).startswith(("aten._assert_", "aten.dropout_")):
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return not isinstance(node.meta.get("val"), torch.Tensor | tuple | list) and "val" in node.meta
    if not node.target._schema.is_mutable:
        return str(node.target) in RULES or str(node.target).startswith("aten.sym_")
    # In place: the same as out of place where nothing else sees the tensor, as itself or as a view.
    changed = node.args[0] if node.args else None
    if not isinstance(changed, torch.fx.Node) or list(changed.users) != [node]:
        return False
    if changed.op != "call_function" or not isinstance(changed.target, torch._ops.OpOverload):
        return False
    fresh = not _is_view(changed.target) or changed.target._schema.is_mutable
    return fresh and out_of_place(node.target) in RULES


def _is_view(op: Any) -> bool:
    """Tell whether an operation's result may share memory with its input."""
    return "dropout" in str(op) or any(result.alias_info is not None for result in op._schema.returns)


def _shapes(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    examples: Mapping[str, torch.Tensor],
    free: Axes,
) -> Any:
    """Return the free axes as torch.export takes them: what sizes it finds to be possible is asked for afterwards."""
    shapes = torch.export.ShapesCollection()
    for name, x in examples.items():
        if free[name]:
            shapes[x] = {axis: torch.export.Dim.AUTO(max=_most(dim)) for axis, dim in free[name].items()}
    return shapes.dynamic_shapes(module, args, kwargs) if any(free.values()) else None


def _most(dim: Any) -> int | None:
    return dim.max if isinstance(dim.max, int) else None


def _first_line(reason: Exception) -> str:
    lines = [line.strip(" -") for line in str(reason).splitlines() if line.strip()]
    text = lines[0] if lines else type(reason).__name__
    if "data-dependent" in text or "Could not guard" in text or "unbacked" in text:
        text += (
            "; sizes or branches that depend on the values of tensors cannot be exported: convert the part of the "
            "module that has none (a backbone, say), or pass the option that makes them fixed"
        )
    return text


@contextmanager
def inference(module: torch.nn.Module) -> Iterator[None]:
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
def replaced_forward(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module be called by another function, and leave it as it was."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextmanager
def _named(module: torch.nn.Module, names: list[str]) -> Iterator[None]:
    """Give a forward that takes any keywords the names of those it is called with: torch.export asks for them."""
    signature = inspect.signature(module.forward)
    if not names or not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        yield
        return
    forward = module.forward

    def named(*args: Any, **kwargs: Any) -> Any:
        return forward(**dict(zip(names, args, strict=False)), **kwargs)

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    named.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with replaced_forward(module, named):
        yield


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
            f"outputs left out: {what} is no tensor; use_cache=False (of the module's config) gives none, and "
            "pqnet_converters.from_transformers keeps it as arrays",
            stacklevel=5,
        )
