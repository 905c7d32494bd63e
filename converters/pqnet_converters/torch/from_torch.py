"""Imports any network that torch.export takes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch

from pqnet.errors import PQNetError
from pqnet.graph import Graph, GraphBuilder, Node, ValueInfo
from pqnet_converters.core.patterns import NORMS, simplify
from pqnet_converters.torch.export import export
from pqnet_converters.torch.importer import Importer, dtype_name
from pqnet_converters.torch.sizes import Dynamic, conditions, free_axes, graph_sizes, widened

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
    dynamic: Dynamic | None = None,
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
        Leave the size of axis 0 free, the same for all inputs that ``dynamic`` says nothing else about.
    dynamic : dict, optional
        Other free axes: name of the input -> axis -> name of its size, such as ``{"ids": {0: "batch", 1: "tokens"}}``
        (or a `torch.export.Dim`); axes of one name have one size, None fixes an axis, and sizes that are not named
        are those of the examples. A list of such axes in calling order is taken too, and of one input its axes alone.

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
    >>> model = from_torch(torch.nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 16, 16), dynamic={2: "height", 3: "width"})
    >>> model(np.zeros((1, 3, 20, 12), np.float32)).shape
    (1, 4, 18, 10)
    """
    from pqnet.runtime import Model

    return Model(graph_from_torch(module, example_inputs, input_names, output_names, dynamic_batch, dynamic))


def graph_from_torch(
    module: torch.nn.Module,
    example_inputs: Examples,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
    dynamic: Dynamic | None = None,
) -> Graph:
    """Import a PyTorch module as a graph; see `from_torch`."""
    if not isinstance(module, torch.nn.Module):
        raise PQNetError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    examples = _examples(example_inputs)
    names = _names(input_names, list(examples), "input_names")
    free = free_axes(examples, names, dynamic, dynamic_batch)
    examples = widened(examples, free)
    program = export(module, examples, free, isinstance(example_inputs, Mapping))
    keys = list(examples)
    if isinstance(example_inputs, Mapping):
        given = program.call_spec.in_spec
        named = given.child(1) if hasattr(given, "child") else given.children_specs[1]  # PyTorch 2.9 has no child
        keys = list(named.context)  # torch.export may change their order
    placeholders = dict(zip(keys, program.graph_signature.user_inputs, strict=True))
    vals = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    shapes, sizes, texts = graph_sizes({key: vals[placeholders[key]] for key in examples}, free)
    infos = {
        name: ValueInfo(shapes[key], dtype_name(vals[placeholders[key]].dtype, f"example_inputs {name!r}"))
        for key, name in zip(examples, names, strict=True)  # in calling order
    }
    builder = GraphBuilder(infos, sizes)
    inputs = {placeholders[key]: name for key, name in zip(examples, names, strict=True)}
    values = Importer(program, builder, inputs, texts).run()
    builder.nodes = _needed(builder.nodes, values)
    default = ["output"] if len(values) == 1 else [f"output{i}" for i in range(len(values))]
    outputs = dict(zip(_names(output_names, default, "output_names"), values, strict=True))
    graph = builder.build(outputs, {"source": f"torch {type(module).__qualname__}"}, conditions(program, texts))
    # PyTorch has most layers as one operation; norms without means are often written out.
    return simplify(graph, [NORMS]) if any(node.op in ("rsqrt", "sqrt") for node in graph.nodes) else graph


def _needed(nodes: list[Node], outputs: Sequence[str]) -> list[Node]:
    """Return the nodes that outputs depend on; what a rule made no use of, zero states say, is left out."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _examples(example_inputs: Examples) -> dict[str, torch.Tensor]:
    """Return the examples by name."""
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
    return examples


def _names(given: Sequence[str] | None, default: list[str], what: str) -> list[str]:
    names = default if given is None else list(given)
    fitting = len(names) == len(set(names)) == len(default) and all(isinstance(name, str) for name in names)
    if isinstance(given, str) or not fitting:
        raise PQNetError(f"{what}: expected {len(default)} different names, got {given!r}")
    return names
