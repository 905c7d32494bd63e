"""Imports any network that torch.export takes."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from pqnet.errors import PQNetError
from pqnet.graph import Graph, GraphBuilder, Node, ValueInfo
from pqnet_converters.torch.aten import RULES
from pqnet_converters.torch.importer import Importer, dtype_name

if TYPE_CHECKING:
    from pqnet.runtime import Model

__all__ = ["from_torch", "graph_from_torch"]

Examples: TypeAlias = torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor]


def from_torch(
    module: torch.nn.Module,
    example_inputs: Examples,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
) -> "Model":
    """Import a PyTorch module for inference.

    The module is exported in eval mode; it is not changed, and its weights are copied. Layers are called after
    their modules, parameters as in the module's state dict; tied weights are stored once; half, bfloat16 and
    double become float32, integers keep their width. What depends on no input is computed once (weight norm, position
    tables, masks).

    Parameters
    ----------
    module : torch.nn.Module
        Its forward takes and returns tensors (tuples, lists and dicts of tensors in the output are flattened).
    example_inputs : tensor, sequence of tensors, or dict of str to tensor
        What forward is called with: positional arguments or, for a dict, keyword arguments.
    input_names : sequence of str, optional
        Default: the keywords; "input" for one tensor, else "input0", "input1", ...
    output_names : sequence of str, optional
        Default: "output" for one output, else "output0", "output1", ...
    dynamic_batch : bool
        Leave the size of axis 0 free, the same for all inputs. The other sizes are those of the examples.

    Returns
    -------
    Model

    Raises
    ------
    UnsupportedOpError
        For an operation without a rule; the message says how to add one.
    PQNetError
        For anything else that cannot be imported.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from pqnet_converters import from_torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU())
    >>> model = from_torch(net, torch.zeros(1, 8))
    >>> model(np.zeros((5, 8), np.float32)).shape
    (5, 4)
    """
    from pqnet.runtime import Model

    return Model(graph_from_torch(module, example_inputs, input_names, output_names, dynamic_batch))


def graph_from_torch(
    module: torch.nn.Module,
    example_inputs: Examples,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
) -> Graph:
    """Import a PyTorch module as a graph; see `from_torch`."""
    if not isinstance(module, torch.nn.Module):
        raise PQNetError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    examples = _examples(example_inputs, dynamic_batch)
    names = _names(input_names, list(examples), "input_names")
    if isinstance(example_inputs, Mapping):
        program = _export(module, (), examples, dynamic_batch)
        order = list(program.call_spec.in_spec.child(1).context)  # torch.export may change it
    else:
        program = _export(module, tuple(examples.values()), {}, dynamic_batch)
        order = list(examples)
    placeholder = dict(zip(order, program.graph_signature.user_inputs, strict=True))
    inputs = {placeholder[key]: name for key, name in zip(examples, names, strict=True)}  # in calling order
    vals = {node.name: node.meta["val"] for node in program.graph.nodes if node.name in inputs}
    batch = str(vals[next(iter(inputs))].shape[0]) if dynamic_batch else ""
    infos = {
        name: ValueInfo(
            tuple("batch" if dynamic_batch and axis == 0 else int(n) for axis, n in enumerate(vals[p].shape)),
            dtype_name(vals[p].dtype, f"example_inputs {name!r}"),
        )
        for p, name in inputs.items()
    }
    builder = GraphBuilder(infos, {"batch": next(iter(examples.values())).shape[0]} if dynamic_batch else {})
    values = Importer(program, builder, inputs, batch).run()
    builder.nodes = _needed(builder.nodes, values)
    default = ["output"] if len(values) == 1 else [f"output{i}" for i in range(len(values))]
    outputs = dict(zip(_names(output_names, default, "output_names"), values, strict=True))
    return builder.build(outputs, {"source": f"torch {type(module).__qualname__}"})


def _needed(nodes: list[Node], outputs: Sequence[str]) -> list[Node]:
    """Return the nodes that outputs depend on; what a rule made no use of, zero states say, is left out."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _examples(example_inputs: Examples, dynamic_batch: bool) -> dict[str, torch.Tensor]:
    """Return the examples by name; a batch of one is repeated, because torch.export would take it as fixed."""
    if isinstance(example_inputs, torch.Tensor):
        examples = {"input": example_inputs}
    elif isinstance(example_inputs, Mapping):
        examples = dict(example_inputs)
    elif isinstance(example_inputs, Sequence):
        one = len(example_inputs) == 1
        examples = {"input" if one else f"input{i}": x for i, x in enumerate(example_inputs)}
    else:
        examples = {}
    if not examples or not all(isinstance(x, torch.Tensor) for x in examples.values()):
        got = [type(x).__name__ for x in examples.values()] or type(example_inputs).__name__
        raise PQNetError(f"example_inputs: expected a tensor, or a sequence or a dict of tensors, got {got}")
    if not dynamic_batch:
        return examples
    sizes = {x.shape[0] if x.dim() else 0 for x in examples.values()}
    if len(sizes) != 1 or 0 in sizes:
        shapes = {name: tuple(x.shape) for name, x in examples.items()}
        raise PQNetError(
            f"example_inputs: expected one batch size along axis 0 of all, got {shapes}; pass dynamic_batch=False"
        )
    return {name: torch.cat([x, x]) if x.shape[0] == 1 else x for name, x in examples.items()}


def _names(given: Sequence[str] | None, default: list[str], what: str) -> list[str]:
    names = default if given is None else list(given)
    fitting = len(names) == len(set(names)) == len(default) and all(isinstance(name, str) for name in names)
    if isinstance(given, str) or not fitting:
        raise PQNetError(f"{what}: expected {len(default)} different names, got {given!r}")
    return names


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


def _export(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool) -> Any:
    """Return the module as a functional program, decomposed as far as there is no rule."""
    try:
        with _inference(module):
            shapes = None
            if dynamic:
                batch, free = torch.export.Dim("batch", min=1), torch.export.ShapesCollection()
                for x in (*args, *kwargs.values()):
                    free[x] = {0: batch}
                shapes = free.dynamic_shapes(module, args, kwargs)
            program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
            table = torch.export.default_decompositions()
            for op in [op for op in table if str(op) in RULES]:
                del table[op]
            program = program.run_decompositions(table)
    except Exception as reason:  # whatever the module's own code and the exporter raise
        lines = [line.strip(" -") for line in str(reason).splitlines() if line.strip()]
        if lines and lines[0].startswith("Constraints violated (batch)"):
            why = lines[1].split(". ")[0]
            raise PQNetError(
                f"module: expected one that works for every batch size, got: {why}; pass dynamic_batch=False to fix "
                "the batch size to that of example_inputs"
            ) from reason
        text = lines[0] if lines else type(reason).__name__
        raise PQNetError(f"module: expected one that torch.export takes, got: {text}") from reason
    signature = program.graph_signature
    changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if changed:
        raise PQNetError(f"module: expected a forward without side effects, got one that changes {changed}")
    return program
