"""Walks an exported program: folds what is constant, calls the rules for the rest, and stores parameters once."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from pqnet.errors import PQNetError, UnsupportedOpError
from pqnet.graph import GraphBuilder
from pqnet.graph.op import DTYPES
from pqnet_converters.torch.aten.registry import RULES
from pqnet_converters.torch.scalars import known_symbols
from pqnet_converters.torch.sizes import Expression, fraction_text, of_quotients, size_text

__all__ = ["Importer", "Tensor", "dtype_name", "out_of_place"]

Dim = int | str
CHECKS = ("aten._assert_", "aten.sym_constrain_range")
SILENT = (*CHECKS, "aten.sym_")
LOOKUPS = tuple(f"aten.{op}" for op in ("embedding.default", "index.Tensor", "index_select.default", "gather.default"))
REPETITIONS = ("aten.expand.default", "aten.repeat.default")
SMALL = 4096  # elements: a constant of no more is stored whatever it is made of
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the exported program: a value of the graph being built, or a constant.

    ``origin`` is the name in the module's state dict, if the constant is a parameter or a view of one; ``path`` is
    that of the module which computed it, and ``learned`` counts the floats of parameters that a constant is made of.
    """

    shape: tuple[Dim, ...]
    dtype: str
    value: str | None = None
    data: torch.Tensor | None = None
    origin: str | None = None
    path: str = ""
    learned: int = 0

    @property
    def rank(self) -> int:
        return len(self.shape)


def out_of_place(target: Any) -> str:
    """Return the full name of an operation, of one in place that of the one that it amounts to."""
    name = str(target)
    return name.replace("_.", ".", 1) if name.startswith("aten.") and target._schema.is_mutable else name


def dtype_name(dtype: torch.dtype, where: str) -> str:
    """Return the graph's dtype for a torch dtype: any real float is float32, integers and booleans stay."""
    if dtype in FLOATS:
        return "float32"
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        way = "; a Fourier transform of a fixed size can be written as products with cosines and sines"
        raise PQNetError(
            f"{where}: expected a tensor of real floats, {', '.join(DTYPES[1:])}, got {dtype}"
            + (way if dtype.is_complex else "")
        )
    return name


class Importer:
    """Builds the graph of an exported program.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        Functional, decomposed down to the operations that have rules.
    builder : GraphBuilder
        Its inputs are declared.
    inputs : dict of str to str
        Placeholder name to graph input name.
    sizes : dict of str to str
        The program's symbols for free sizes, as integer expressions of the builder's.
    """

    def __init__(
        self, program: Any, builder: GraphBuilder, inputs: Mapping[str, str], sizes: Mapping[str, str]
    ) -> None:
        self.program, self.builder, self.inputs, self._sizes = program, builder, inputs, sizes
        self._known = known_symbols(program)
        self._size_values: dict[str, str] = {}  # expression -> the value that is it
        self._env: dict[Any, Any] = {}
        self._stored: dict[Any, str] = {}  # what a stored tensor is (storage, view, form) -> parameter name
        self._constants: dict[str, str] = {}  # parameter name -> value that a constant node gives it
        self._alive: list[torch.Tensor] = []  # storage addresses identify tensors only while they live
        self._named: dict[Any, str] = {}
        for name, tensor in {**program.state_dict, **program.constants}.items():
            if isinstance(tensor, torch.Tensor):
                self._named.setdefault(_identity(tensor), name)
        self.node: Any = None
        self.path = ""

    def run(self) -> list[str]:
        """Translate every node and return the values of the program's outputs."""
        outputs: list[str] = []
        for node in self.program.graph.nodes:
            self.node, self.path = node, _module_path(node)
            if node.op == "placeholder":
                self._env[node] = self._placeholder(node)
            elif node.op == "output":
                outputs = [self._output(v) for v in node.args[0] if v is not None]
            elif str(node.target).startswith(CHECKS):
                continue  # what export checked, it checked
            elif not isinstance(node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat | int):
                self._env[node] = self._call(node)
        return outputs

    # ---- what rules use

    def emit(
        self, op: str, *inputs: Tensor | str, name: str = "", params: Mapping[str, str] | None = None, **attrs: Any
    ) -> str:
        """Append a node and return its value's name; constants among the inputs get a `constant` node."""
        return self.emit_many(op, inputs, 1, name=name, params=params, **attrs)[0]

    def emit_many(
        self,
        op: str,
        inputs: tuple[Tensor | str, ...],
        n_outputs: int,
        *,
        name: str = "",
        params: Mapping[str, str] | None = None,
        **attrs: Any,
    ) -> tuple[str, ...]:
        """Append a node with several outputs; see `emit`."""
        values = [self.value(x) for x in inputs]
        name = name or (f"{self.path}.{op}" if self.path else op)
        return self.builder.add_many(op, values, n_outputs, name=name, params=params, **attrs)

    def value(self, x: Tensor | str) -> str:
        """Return the name of the graph value of a tensor."""
        if isinstance(x, str):
            return x
        if x.value is not None:
            return x.value
        name = self.param(x, "constant", path=x.path)
        if name not in self._constants:
            self._constants[name] = self.builder.add("constant", name=name, params={"value": name})
        return self._constants[name]

    def param(
        self,
        x: Tensor,
        role: str,
        convert: Callable[[torch.Tensor], torch.Tensor] | None = None,
        form: str = "",
        path: str | None = None,
    ) -> str:
        """Store a constant as a parameter and return its name: its own in the state dict where it has one.

        ``convert`` brings it into the form that the graph wants; ``form`` names that form, so that a tensor used
        twice is stored once. ``path`` is what an unnamed one is called after, by default the current module.
        """
        if x.data is None:
            raise self.refuse(f"expected a constant {role}, got one that is computed from the network's input")
        key = (_identity(x.data), form)
        if key not in self._stored:
            array = self._array(convert(x.data) if convert else x.data, x.origin or role)
            path = self.path if path is None else path
            name = x.origin or (f"{path}.{role}" if path else role)
            stem, i = name, 1
            while name in self.builder.params:
                name, i = f"{stem}_{i}", i + 1
            self.builder.params[name] = array
            self._stored[key] = name
            self._alive.append(x.data)
        return self._stored[key]

    def layer_name(self, weight: Tensor) -> str:
        """Return what users call a layer: its module's path, or its weight's name without the word weight.

        The top module has no path: its layer is called after the operation.
        """
        own = self.program.state_dict.get(f"{self.path}.weight".lstrip("."))
        if weight.origin is None or (own is not None and self._named[_identity(own)] == weight.origin):
            return self.path
        return re.sub(r"[._]weight$", "", weight.origin)

    def is_zero(self, x: Tensor) -> bool:
        """Return whether a tensor is known to be all zeros."""
        if x.data is not None:
            return not bool(x.data.any())
        made = next((node for node in reversed(self.builder.nodes) if x.value in node.outputs), None)
        return made is not None and made.op == "full" and made.attrs["value"] == 0

    def out_shape(self, output: int | None = None) -> tuple[Dim, ...]:
        """Return the shape that torch gives the result (or one of several results) of the current node."""
        return self._shape(self._result(output))

    def out_dtype(self, output: int | None = None) -> str:
        """Return the dtype of the result, in the graph's terms."""
        return dtype_name(self._result(output).dtype, str(self.node.target))

    def operand_dtype(self) -> str:
        """Return the dtype in which torch lets the first two arguments of the current node meet, in the graph's terms.

        Numbers and tensors without axes do not widen the dtype of other tensors, which the graph's rule cannot know.
        """
        values = [arg.meta["val"] if isinstance(arg, torch.fx.Node) else arg for arg in self.node.args[:2]]
        return dtype_name(torch.result_type(*values), str(self.node.target))

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        """Return a tensor in another dtype of the graph."""
        if x.dtype == dtype:
            return x
        if x.data is not None:
            return Tensor(x.shape, dtype, data=x.data.to(getattr(torch, dtype)), path=x.path)
        return Tensor(x.shape, dtype, value=self.emit("cast", x, dtype=dtype))

    def used(self, output: int) -> bool:
        """Return whether anything uses one of several results of the current node."""
        return any(user.target is operator.getitem and user.args[1] == output for user in self.node.users)

    def number(self, x: Any) -> int | float | None:
        """Return the number that an argument is, if it is a number or a constant without axes."""
        if isinstance(x, Tensor):
            return x.data.item() if x.data is not None and x.rank == 0 else None
        if isinstance(x, str):
            raise self.refuse(f"expected a fixed number, got one that depends on a free size ({x})")
        return x  # type: ignore[no-any-return]

    def fixed(self, size: Dim) -> int:
        """Return a size that must not be free."""
        if isinstance(size, str):
            raise self.refuse(f"expected a fixed size, got one that depends on a free one ({size})")
        return size

    def size(self, expression: str) -> Tensor:
        """Return a size that depends on free ones as a tensor without axes."""
        if expression not in self._size_values:
            one = self.emit("arange", name="size", start=expression, end=f"({expression})+1")
            self._size_values[expression] = self.emit("reshape", one, name="size", shape=())
        return Tensor((), "int64", value=self._size_values[expression])

    def refuse(self, reason: str) -> UnsupportedOpError:
        """Build the error for an operation that the graph cannot express."""
        return UnsupportedOpError(f"{self.node.target} in {self.path or 'the top module'}: {reason}")

    # ---- the walk

    def _placeholder(self, node: Any) -> Any:
        if node.name in self.inputs:
            return self._wrap(self.inputs[node.name], node.meta["val"])
        signature = self.program.graph_signature
        target = next(spec.target for spec in signature.input_specs if getattr(spec.arg, "name", "") == node.name)
        tensor = self.program.state_dict.get(target)
        data = self.program.constants[target] if tensor is None else tensor
        learned = data.numel() if data.is_floating_point() else 0
        return self._wrap(data.detach(), data, self._named[_identity(data)], learned)

    def _output(self, output: Any) -> str:
        if output not in self._env:
            raise PQNetError(f"module: expected a forward that returns tensors, got one that returns {output!r}")
        return self.value(self._env[output])

    def _call(self, node: Any) -> Any:
        if node.target is operator.getitem:
            result = self._env[node.args[0]][node.args[1]]
            if result is None:
                self.node = node.args[0]
                raise self.refuse(f"its output {node.args[1]} is not supported")
            return result
        args = torch.fx.node.map_aggregate(node.args, self._argument)
        kwargs = torch.fx.node.map_aggregate(node.kwargs, self._argument)
        if _foldable(node.target, (args, kwargs)) and not self._grows(node, (args, kwargs)):
            return self._fold(node, args, kwargs)
        op = out_of_place(node.target)
        if op not in RULES:
            raise self._missing(node)
        schema = node.target._schema.arguments
        bound = [args[i] if i < len(args) else kwargs.get(arg.name, arg.default_value) for i, arg in enumerate(schema)]
        result = RULES[op](self, *bound)
        if isinstance(result, tuple):
            return tuple(self._wrap(r, val) for r, val in zip(result, node.meta["val"], strict=True))
        return self._wrap(result, node.meta.get("val"))

    def _missing(self, first: Any) -> UnsupportedOpError:
        """Build the error for a node without a rule: all operations without one, each with its first module."""
        missing = {str(first.target): first}
        dependent = {node for node in self.program.graph.nodes if node.name in self.inputs}
        for node in self.program.graph.nodes:
            if node.op == "call_function" and dependent.intersection(node.all_input_nodes):
                dependent.add(node)
                aten = isinstance(node.target, torch._ops.OpOverload)
                if aten and str(node.target) not in RULES and not str(node.target).startswith(SILENT):
                    missing.setdefault(str(node.target), node)
        reason = (
            f'there is no rule for this operation; write one, decorated with @rule("{first.target}") from '
            "pqnet_converters.torch.aten, as in converters/pqnet_converters/torch/aten/elementwise.py"
        )
        if torch.Tag.nondeterministic_seeded in getattr(first.target, "tags", ()):
            reason = "it draws random numbers in every run; pass them as an input, if forward takes one (noise, ...)"
        others = [f"{op} in {_module_path(node) or 'the top module'}" for op, node in list(missing.items())[1:]]
        return self.refuse(reason + (f"; nor are there rules for {', '.join(others)}" if others else ""))

    def _argument(self, arg: Any) -> Any:
        if not isinstance(arg, torch.fx.Node):
            return arg
        val = arg.meta.get("val")
        if isinstance(val, torch.SymInt | int):
            return self._dim(val)
        if isinstance(val, torch.SymFloat) and arg not in self._env:
            self._env[arg] = self._real(val)
        if arg not in self._env:
            raise self.refuse(f"expected a fixed number, got one that depends on the input ({val})")
        return self._env[arg]

    def _grows(self, node: Any, arguments: Any) -> bool:
        """Tell whether a constant would be larger than what it is made of: a table of positions by pairs, repetitions.

        The engine computes it once for each input size; the file keeps the table.
        """
        val = node.meta.get("val")
        if str(node.target) in REPETITIONS and val.numel() > SMALL:
            return bool(val.numel() > arguments[0][0].data.numel())
        return str(node.target) in LOOKUPS and 0 < _learned(arguments) < val.numel() > SMALL

    def _fold(self, node: Any, args: Any, kwargs: Any) -> Any:
        """Compute a node whose tensors are all constant."""

        def real(arg: Any) -> Any:
            return arg.data if isinstance(arg, Tensor) else arg

        learned = _learned((args, kwargs))
        parents = [a for a in _leaves((args, kwargs)) if isinstance(a, Tensor) and a.origin]

        def wrap(data: torch.Tensor) -> Any:
            views = (p.origin for p in parents if p.data is not None and _same_elements(data, p.data))
            return self._wrap(data, data, next(views, None), learned)

        with torch.no_grad():
            result = node.target(*torch.fx.node.map_aggregate(args, real), **torch.fx.node.map_aggregate(kwargs, real))
        return tuple(map(wrap, result)) if isinstance(result, tuple | list) else wrap(result)

    def _wrap(self, result: Any, val: Any, origin: str | None = None, learned: int = 0) -> Any:
        if result is None or isinstance(result, Tensor):
            return result
        dtype = dtype_name(val.dtype, origin or str(self.node.target))
        if isinstance(result, torch.Tensor):
            return Tensor(tuple(result.shape), dtype, data=result, origin=origin, path=self.path, learned=learned)
        return Tensor(self._shape(val), dtype, value=result)

    def _result(self, output: int | None) -> Any:
        val = self.node.meta["val"]
        return val if output is None else val[output]

    def _shape(self, val: torch.Tensor) -> tuple[Dim, ...]:
        return tuple(self._dim(size) for size in val.shape)

    def _dim(self, size: Any) -> Dim:
        if isinstance(size, int):
            return size
        if size.node.expr.is_number:
            return int(size.node.expr)
        text = size_text(size.node.expr.subs(self._known), self._sizes)
        if text is None:
            raise self._refuse_size(size, f"an integer expression of {sorted(self.builder.symbols)}")
        return Expression(text)

    def _refuse_size(self, size: Any, expected: str) -> UnsupportedOpError:
        if free_unbacked_symbols(size):
            return self.refuse(
                f"expected a fixed number, got one that depends on the values of the input ({size}); convert the part "
                "of the module before it, or pass the option that makes it fixed"
            )
        return self.refuse(f"expected {expected}, got the size {size}")

    def _real(self, number: Any) -> Tensor | float:
        """Return a number that depends on free sizes as a tensor without axes."""
        if number.node.expr.is_number:
            return float(number.node.expr)
        found = fraction_text(of_quotients(number.node.expr.subs(self._known)), self._sizes)
        if found is None:
            raise self._refuse_size(number, "a fixed number, or a quotient of free sizes")
        top, bottom = (self.cast(self.size(text), "float32") for text in found)
        return top if found[1] == "1" else Tensor((), "float32", value=self.emit("div", top, bottom))

    def _array(self, data: torch.Tensor, name: str) -> np.ndarray:
        dtype = np.dtype(dtype_name(data.dtype, name))
        wide = data.detach().cpu().to(getattr(torch, dtype.name))
        return np.array(wide.numpy(), dtype, order="C")  # a copy: the module may be trained on


def _identity(tensor: torch.Tensor) -> Any:
    """Return what tells two tensors apart: tied parameters and equal views of one storage are the same."""
    strides = tuple(s if n > 1 else 0 for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    storage = tensor.untyped_storage().data_ptr()
    return storage, tensor.storage_offset(), tuple(tensor.shape), strides, tensor.dtype


def _same_elements(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(a.numel() == b.numel() and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr())


def _foldable(target: Any, arguments: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.returns or "empty" in str(target):
        return False
    if torch.Tag.nondeterministic_seeded in target.tags:
        return False
    return not any(
        isinstance(leaf, Expression) or (isinstance(leaf, Tensor) and leaf.data is None) for leaf in _leaves(arguments)
    )


def _learned(arguments: Any) -> int:
    """Return how many floats of parameters constants are made of."""
    return sum({id(leaf): leaf.learned for leaf in _leaves(arguments) if isinstance(leaf, Tensor)}.values())


def _leaves(tree: Any) -> list[Any]:
    leaves: list[Any] = []
    torch.fx.node.map_aggregate(tree, lambda leaf: leaves.append(leaf))
    return leaves


def _module_path(node: Any) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return "" if path.startswith("_") else re.sub(r"@\d+", "", path)
