"""Walks the nodes of an ONNX graph: calls their rules, keeps what each value is, and names what the rules emit."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pqnet.errors import PQNetError, UnsupportedOpError
from pqnet.graph import GraphBuilder
from pqnet_converters.core.importer import Importer, Tensor, as_known
from pqnet_converters.core.naming import clean, layer_name, module_path
from pqnet_converters.core.sizes import SymInt
from pqnet_converters.onnx.reader import OnnxGraph, OnnxNode
from pqnet_converters.onnx.registry import RULES

__all__ = ["OnnxImporter", "SameSize"]

Env = dict[str, Tensor | None]


class SameSize(Exception):
    """Two free symbols have to be one: the network adds up, joins or compares axes of these sizes."""


class OnnxImporter(Importer):
    """Builds the graph of an ONNX network.

    Parameters
    ----------
    builder : GraphBuilder
        Its inputs are declared.
    symbols : dict of str to SymInt
    network : OnnxGraph
    values : dict of str to array
        Inputs that are not inputs of the graph, but known.
    """

    def __init__(
        self,
        builder: GraphBuilder,
        symbols: Mapping[str, Any],
        network: OnnxGraph,
        values: Mapping[str, np.ndarray],
    ) -> None:
        super().__init__(builder, symbols)
        self.network, self.values, self.opset = network, values, network.opset
        self.node = OnnxNode("", "", "", (), (), {})
        self.env: Env = {}
        self.counts: dict[str, str] = {}  # value whose number of rows depends on data -> the value that is that number

    def run(self) -> list[Tensor]:
        """Translate every node and return the outputs."""
        inputs: Env = {}
        for declared in self.network.inputs:
            known = self.values.get(declared.name)
            inputs[declared.name] = self.input(declared.name) if known is None else as_known(known, declared.dtype)
        return self.body(self.network, inputs)

    def body(self, graph: OnnxGraph, inputs: Mapping[str, Tensor | None]) -> list[Tensor]:
        """Translate a graph, or the body of a control operation, which sees all values around it."""
        outer, node, path = self.env, self.node, self.path
        self.env = {**outer, **inputs}
        for name, array in graph.constants.items():
            self.env[name] = Tensor(array.shape, array.dtype.name, data=array, origin=clean(name))
        for each in graph.nodes:
            self._translate(each)
        found = [self._get(declared.name, "output") for declared in graph.outputs]
        self.env, self.node, self.path = outer, node, path
        return found

    def _get(self, name: str, what: str) -> Tensor:
        if name not in self.env:
            raise PQNetError(f"ONNX file: the model is not valid: {what} {name!r} is computed by no node before it")
        tensor = self.env[name]
        if tensor is None:
            raise self.refuse(f"its output {name!r} has no rule, but is used")
        return tensor

    def _translate(self, node: OnnxNode) -> None:
        self.node, self.path = node, module_path(node.name, node.op)
        where = f"node {node.name or (node.outputs or ('',))[0]!r} ({node.op})"
        rule = RULES.get(node.key)
        if rule is None:
            raise self._missing()
        inputs = [self._get(name, f"the input of {where},") if name else None for name in node.inputs]
        try:
            result = rule(self, *inputs)
        except UnsupportedOpError as reason:
            raise reason if str(reason).startswith("node ") else UnsupportedOpError(f"{where}: {reason}") from None
        except PQNetError as reason:
            raise reason if str(reason).startswith("node ") else type(reason)(f"{where}: {reason}") from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as reason:
            raise PQNetError(f"{where}: the model is not valid: {type(reason).__name__}: {reason}") from reason
        results = result if isinstance(result, tuple) else (result,)
        for name, tensor in zip(node.outputs, results, strict=False):
            if name:
                self.env[name] = tensor
        for name in node.outputs[len(results) :]:
            if name:
                self.env[name] = None

    def _missing(self) -> UnsupportedOpError:
        """Build the error that lists every operation without a rule, and where it is."""
        missing: dict[str, list[str]] = {}
        for node in self.network.walk():
            if node.key not in RULES:
                missing.setdefault(node.key, []).append(node.name or (node.outputs or ("",))[0])
        listed = "; ".join(f"{op} ({len(names)}: {', '.join(names[:3])})" for op, names in sorted(missing.items()))
        return UnsupportedOpError(
            f"ONNX operations without a rule: {listed}; a rule is a function decorated with @rule(name) from "
            "pqnet_converters.onnx.rules, as in converters/pqnet_converters/onnx/rules/elementwise.py"
        )

    # ---- what rules ask

    def attr(self, name: str, default: Any = None) -> Any:
        """Return an attribute of the current node."""
        return self.node.attrs.get(name, default)

    def wanted(self, output: int) -> bool:
        """Return whether an output of the current node has a name: one without is not used."""
        return output < len(self.node.outputs) and bool(self.node.outputs[output])

    def ints(self, name: str, x: Tensor | None, default: Any = None) -> Any:
        """Return a list of integers that is an attribute in older operator sets and an input in newer ones."""
        if x is not None:
            return self.numbers(x, name)
        found = self.attr(name)
        if found is None:
            return default
        return found if isinstance(found, list) else [found]

    def layer(self, weight: Tensor) -> str:
        """Return the name of a layer with this weight."""
        return layer_name(weight.origin or "", self.node.name, self.node.op)

    def refuse(self, reason: str) -> UnsupportedOpError:
        return UnsupportedOpError(reason)

    def same(self, x: Any, y: Any) -> None:
        """Take two free sizes for one, where they must be equal."""
        if isinstance(x, SymInt) and isinstance(y, SymInt) and x.expr != y.expr:
            names = {x.expr.text, y.expr.text}
            if names <= set(self.symbols):
                raise SameSize(x.expr.text, y.expr.text)

    def sources(self, x: Tensor) -> list[str]:
        """Return the inputs of the graph on which a value depends."""
        seen = self._origins(x)
        return [name for name in self.builder.inputs if name in seen]

    def shape_of(self, x: Tensor) -> tuple[Any, ...]:
        """Return the shape of a tensor as the network may ask for it: the padding of rows is not of the network."""
        if self.counts and self._origins(x) & self.counts.keys():
            raise self.refuse("the number of rows that NonMaxSuppression finds depends on what is in the input")
        return x.shape

    def _origins(self, x: Tensor) -> set[str]:
        """Return the value of a tensor and all that it depends on."""
        makers = {v: node for node in self.builder.nodes for v in node.outputs}
        waiting, seen = [x.value or ""], set[str]()
        while waiting:
            value = waiting.pop()
            if value not in seen:
                waiting += makers[value].inputs if value in makers else ()
            seen.add(value)
        return seen


def axis_of(axis: int, rank: int) -> int:
    """Return an axis counted from the front."""
    if not -rank <= axis < max(rank, 1):
        raise PQNetError(f"axis: expected one of the {rank} axes, got {axis}")
    return axis % max(rank, 1)


def axes_of(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Return axes counted from the front, in order."""
    return tuple(sorted(axis_of(int(a), rank) for a in axes))
