"""Imports any network that torch.export takes."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from pqnet._check import describe, error
from pqnet.errors import PQNetError
from pqnet.graph import Graph, GraphBuilder, ValueInfo
from pqnet_converters.aten import RULES
from pqnet_converters.aten.importer import Importer, dtype_name

if TYPE_CHECKING:
    from pqnet.runtime import Model

__all__ = ["from_torch", "graph_from_torch"]

Examples = torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor]


def from_torch(
    module: torch.nn.Module,
    example_inputs: Examples,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
) -> "Model":
    """Import a PyTorch module for inference.

    The module is exported in eval mode; it is not changed, and its weights are copied. Layers are called after their
    modules, parameters as in the module's state dict; tied weights are stored once; half, bfloat16 and double
    become float32. What depends on no input is computed once (weight norm, position tables, masks).

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
        Leave the size of axis 0 of all inputs free (one size for all of them). Other sizes are those of the examples.

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
        raise error("module", "a torch.nn.Module", describe(module))
    examples = _examples(example_inputs, dynamic_batch)
    keywords = isinstance(example_inputs, Mapping)
    args, kwargs = ((), examples) if keywords else (tuple(examples.values()), {})
    with _exporting(module):
        program = _export(module, args, kwargs, dynamic_batch)
    _check_mutation(program)
    order = list(program.call_spec.in_spec.child(1).context) if keywords else list(examples)
    names = dict(zip(examples, _names(input_names, list(examples), "input_names"), strict=True))
    vals = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    placeholders = dict(zip(order, program.graph_signature.user_inputs, strict=True))
    inputs = {name: placeholders[key] for key, name in names.items()}  # in calling order
    batch = _batch_symbol([vals[p] for p in inputs.values()]) if dynamic_batch else None
    infos = {
        name: ValueInfo(
            ("batch", *map(int, vals[p].shape[1:])) if dynamic_batch else tuple(map(int, vals[p].shape)),
            dtype_name(vals[p].dtype, f"example_inputs {name!r}"),
        )
        for name, p in inputs.items()
    }
    symbols = {"batch": next(iter(examples.values())).shape[0]} if dynamic_batch else {}
    builder = GraphBuilder(infos, symbols)
    values = Importer(program, builder, {p: name for name, p in inputs.items()}, batch).run()
    default = ["output"] if len(values) == 1 else [f"output{i}" for i in range(len(values))]
    outputs = dict(zip(_names(output_names, default, "output_names"), values, strict=True))
    return builder.build(outputs, {"source": f"torch {type(module).__qualname__}"})


def _examples(example_inputs: Examples, dynamic_batch: bool) -> dict[str, torch.Tensor]:
    """Return the examples by name; a batch of one is repeated, because torch.export would take its size as fixed."""
    if isinstance(example_inputs, torch.Tensor):
        examples = {"input": example_inputs}
    elif isinstance(example_inputs, Mapping):
        examples = dict(example_inputs)
    elif isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str):
        several = len(example_inputs) > 1
        examples = {f"input{i}" if several else "input": x for i, x in enumerate(example_inputs)}
    else:
        raise error("example_inputs", "a tensor, a sequence or a dict of tensors", describe(example_inputs))
    if not examples:
        raise error("example_inputs", "at least one tensor", "none")
    for name, x in examples.items():
        if not isinstance(x, torch.Tensor):
            raise error(f"example_inputs {name!r}", "a tensor", describe(x))
    if not dynamic_batch:
        return examples
    sizes = {x.shape[0] if x.dim() else None for x in examples.values()}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        shapes = {name: tuple(x.shape) for name, x in examples.items()}
        raise error("example_inputs", "one batch size along axis 0", shapes, "or pass dynamic_batch=False")
    return {n: torch.cat([x, x]) if x.shape[0] == 1 else x for n, x in examples.items()}


def _names(given: Sequence[str] | None, default: list[str], what: str) -> list[str]:
    if given is None:
        return default
    if isinstance(given, str) or len(given) != len(default) or len(set(given)) != len(default):
        raise error(what, f"{len(default)} different names", describe(given))
    return list(given)


@contextmanager
def _exporting(module: torch.nn.Module) -> Iterator[None]:
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
    shapes = None
    if dynamic:
        batch, free = torch.export.Dim("batch", min=1), torch.export.ShapesCollection()
        for x in (*args, *kwargs.values()):
            free[x] = {0: batch}
        shapes = free.dynamic_shapes(module, args, kwargs)
    try:
        program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
        table = torch.export.default_decompositions()
        for op in [op for op in table if str(op) in RULES]:
            del table[op]
        return program.run_decompositions(table)
    except torch._dynamo.exc.UserError as reason:
        if not dynamic or "batch" not in str(reason):
            raise PQNetError(f"module: torch.export refused it: {_first_line(reason)}") from reason
        raise PQNetError(
            f"module: it works only for some batch sizes ({_first_line(reason)}); pass dynamic_batch=False to fix "
            "the batch size to that of the examples"
        ) from reason
    except Exception as reason:
        raise PQNetError(f"module: torch.export refused it: {_first_line(reason)}") from reason


def _first_line(reason: BaseException) -> str:
    lines = [line.strip(" -") for line in str(reason).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(reason).__name__


def _check_mutation(program: Any) -> None:
    changed = {**program.graph_signature.buffers_to_mutate, **program.graph_signature.user_inputs_to_mutate}
    if changed:
        raise error("module", "a forward that changes nothing", f"one that changes {sorted(changed.values())}")


def _batch_symbol(vals: list[Any]) -> Any:
    return vals[0].shape[0].node.expr
