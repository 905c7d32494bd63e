"""Writes the nodes of a graph as ONNX nodes: values, constants, sizes, and parameters as they are stored."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from pqnet.codecs import Packed
from pqnet.errors import UnsupportedOpError
from pqnet.graph import Graph, Node
from pqnet.graph.op import Info
from pqnet.graph.sizes import Size, postfix
from pqnet_converters.onnx.writer.weights import write_packed

__all__ = ["OPSET", "WRITERS", "Writer", "writes"]

OPSET = 18
IR_VERSION = 8
ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int16": TensorProto.INT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}
SMALL = 64  # elements of a constant up to which equal ones are stored once

WRITERS: dict[str, Callable[["Writer", Node, list[str]], Any]] = {}

Function = TypeVar("Function", bound=Callable[..., Any])


def writes(*ops: str) -> Callable[[Function], Function]:
    """Register a function as the ONNX form of some operations of graphs.

    It gets the `Writer`, the node and the names of its inputs, and returns the name of the result, or a tuple of them.
    """

    def add(function: Function) -> Function:
        WRITERS.update(dict.fromkeys(ops, function))
        return function

    return add


class Writer:
    """Builds an ONNX model from a graph.

    Parameters
    ----------
    graph : Graph
        Checked.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        free = {name: Size.of(size, (size + 1, 2 * size)) for name, size in graph.symbols.items()}
        self.infos: dict[str, Info] = graph.infer_shapes(free)
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._names = {v for node in graph.nodes for v in node.outputs} | set(graph.inputs) | set(graph.outputs)
        self._small: dict[tuple[Any, ...], str] = {}
        self._params: dict[str, str] = {}
        self._sizes: dict[str, str] = {}
        self.node: Node | None = None

    def model(self, name: str) -> Any:
        """Write all nodes and return the model, or raise UnsupportedOpError that lists what has no ONNX form."""
        missing: dict[str, list[str]] = {}
        for node in self.graph.nodes:
            if node.op not in WRITERS:
                missing.setdefault(node.op, []).append(node.name)
        if missing:
            listed = "; ".join(f"{op} ({', '.join(names[:3])})" for op, names in sorted(missing.items()))
            raise UnsupportedOpError(f"operations without an ONNX form: {listed}")
        for node in self.graph.nodes:
            self.node = node
            result = WRITERS[node.op](self, node, list(node.inputs))
            for value, made in zip(node.outputs, result if isinstance(result, tuple) else (result,), strict=True):
                self._rename(made, value)
        for output, value in self.graph.outputs.items():
            if output != value:
                self.nodes.append(helper.make_node("Identity", [value], [output], name=self.name(f"{output}.output")))
        inputs = [
            helper.make_tensor_value_info(n, ELEMENTS[i.dtype], list(i.shape)) for n, i in self.graph.inputs.items()
        ]
        outputs = [self._output(output, self.infos[value]) for output, value in self.graph.outputs.items()]
        made = helper.make_graph(self.nodes, name, inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION, producer_name="pqnet")

    def _output(self, name: str, info: Info) -> Any:
        shape = [None if isinstance(n, Size) else int(n) for n in info.shape]
        return helper.make_tensor_value_info(name, ELEMENTS[info.dtype], shape)

    def _rename(self, made: str, value: str) -> None:
        """Give what a node made the name of its value."""
        last = self.nodes[-1] if self.nodes else None
        if last is not None and made in last.output and made not in self.graph.inputs:
            last.output[list(last.output).index(made)] = value
        else:  # another name of an input or parameter
            self.nodes.append(helper.make_node("Identity", [made], [value], name=self.name(f"{value}.value")))

    # ---- what the functions use

    def name(self, stem: str) -> str:
        """Return a name that nothing has."""
        name, i = stem, 1
        while name in self._names:
            name, i = f"{stem}_{i}", i + 1
        self._names.add(name)
        return name

    def add(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        """Append a node and return the name of its output, or the names of several."""
        stem = f"{self.node.name}.{op}" if self.node is not None else op
        names = [self.name(stem if outputs == 1 else f"{stem}.{i}") for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=names[0], **attrs))
        return names[0] if outputs == 1 else tuple(names)

    def constant(self, value: Any, dtype: str, stem: str = "constant") -> str:
        """Return the name of an initializer."""
        array = np.asarray(value, dtype)
        key = (array.shape, dtype, array.tobytes()) if array.size <= SMALL else ()
        if key and key in self._small:
            return self._small[key]
        name = self.name(stem)
        self.initializers.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        if key:
            self._small[key] = name
        return name

    def ints(self, *values: int) -> str:
        """Return the name of a constant of int64 numbers."""
        return self.constant(values, "int64")

    def param(self, name: str) -> str:
        """Return the name of a parameter's value, float32 unless it is of integers; stored as the graph stores it."""
        if name not in self._params:
            param = self.graph.params[name]
            if isinstance(param, Packed):
                self._params[name] = write_packed(self, name, param)
            elif param.dtype == np.float16:
                stored = self.constant(param, "float16", name)
                self._params[name] = self.add("Cast", stored, to=TensorProto.FLOAT)
            else:
                self._params[name] = self.constant(param, param.dtype.name, self._free(name))
        return self._params[name]

    def _free(self, name: str) -> str:
        return name if name not in self._names else f"{name}.value"

    def role(self, node: Node, role: str) -> str | None:
        """Return the name of a node's parameter."""
        return self.param(node.params[role]) if role in node.params else None

    def shape_of(self, node: Node, role: str) -> tuple[int, ...]:
        """Return the shape of a node's parameter."""
        return tuple(self.graph.params[node.params[role]].shape)

    def info(self, value: str) -> Info:
        """Return shape and dtype of a value of the graph."""
        return self.infos[value]

    def cast(self, value: str, have: str, want: str) -> str:
        """Return a value in another dtype."""
        return value if have == want else str(self.add("Cast", value, to=ELEMENTS[want]))

    # ---- sizes

    def size(self, dim: Any) -> str:
        """Return the name of a size as a value of one int64 number."""
        if not isinstance(dim, str):
            return self.ints(int(dim))
        if dim not in self._sizes:
            stack: list[str] = []
            for step in postfix(dim):
                if isinstance(step, int):
                    stack.append(self.ints(step))
                elif isinstance(step, str):
                    stack.append(self._symbol(step))
                elif step is operator.neg:
                    stack.append(self.add("Neg", stack.pop()))
                else:
                    right, left = stack.pop(), stack.pop()
                    stack.append(self._combined(step, left, right))
            self._sizes[dim] = stack[0]
        return self._sizes[dim]

    def _combined(self, step: Callable[..., int], left: str, right: str) -> str:
        names = {operator.add: "Add", operator.sub: "Sub", operator.mul: "Mul"}
        if step in names:
            return str(self.add(names[step], left, right))
        if step is operator.floordiv:  # ONNX cuts quotients, Mod has the sign of the divisor
            return str(self.add("Div", self.add("Sub", left, self.add("Mod", left, right)), right))
        return str(self.add("Max" if step(1, 2) == 2 else "Min", left, right))

    def _symbol(self, symbol: str) -> str:
        if symbol not in self._sizes:
            name, axis = next((n, i.shape.index(symbol)) for n, i in self.graph.inputs.items() if symbol in i.shape)
            self._sizes[symbol] = self.add("Gather", self.add("Shape", name), self.ints(axis))
        return self._sizes[symbol]

    def sizes(self, dims: Sequence[Any]) -> str:
        """Return the name of a shape as a value."""
        if not any(isinstance(d, str) for d in dims):
            return self.ints(*map(int, dims))
        parts = [self.size(d) for d in dims]
        return parts[0] if len(parts) == 1 else str(self.add("Concat", *parts, axis=0))

    def reshape(self, value: str, shape: Sequence[Any]) -> str:
        """Give a value another shape; one size that depends on symbols is left to ONNX."""
        open_ = [i for i, d in enumerate(shape) if isinstance(d, str)]
        if len(open_) == 1 and -1 not in shape and 0 not in shape:
            shape = [-1 if i in open_ else d for i, d in enumerate(shape)]
        if 0 in shape:
            return str(self.add("Reshape", value, self.sizes(shape), allowzero=1))
        return str(self.add("Reshape", value, self.sizes(shape)))

    def permute(self, value: str, axes: Sequence[int]) -> str:
        """Move the axes of a value."""
        return str(self.add("Transpose", value, perm=list(axes)))

    def refuse(self, reason: str) -> UnsupportedOpError:
        """Build the error for what ONNX cannot express."""
        assert self.node is not None
        return UnsupportedOpError(f"node {self.node.name!r} ({self.node.op}): {reason}")
