"""A network as plain data: typed operations in order, and the parameters that they use."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from pqnet._cached import cached_property
from pqnet._check import describe, error, integer
from pqnet.codecs import Packed
from pqnet.errors import PQNetError
from pqnet.graph.layers import is_weight, weight_op, weight_ops
from pqnet.graph.op import DTYPES, Info, complete_attrs, get_op, resolve_attrs
from pqnet.graph.sizes import MAX_ELEMENTS, check_shape_limits, resolve_dim

__all__ = ["Graph", "GraphBuilder", "Node", "ValueInfo"]

Dim = int | str
Param = np.ndarray | Packed


@dataclass(frozen=True)
class ValueInfo:
    """Shape and dtype of a graph input; a str in the shape names a free symbol, such as ``"batch"``."""

    shape: tuple[Dim, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Node:
    """One operation. ``inputs`` and ``outputs`` name values; ``params`` maps a role to a parameter's name."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)


class Readers(NamedTuple):
    """Who reads what in a graph: ``values``, nodes by value; ``params``, how often each; ``axes`` of every value."""

    values: Mapping[str, list[Node]]
    params: Mapping[str, int]
    axes: Mapping[str, int]


@dataclass
class Graph:
    """A network: inputs, nodes in execution order, outputs, parameters.

    Parameters
    ----------
    inputs : dict of str to ValueInfo
        In calling order.
    outputs : dict of str to str
        Output name to value name, in return order.
    nodes : list of Node
        Every value is produced before it is used.
    params : dict of str to array or Packed
        float32, float16, int64, int32, int16, int8, uint8 or bool arrays, or packed weights.
    symbols : dict of str to int
        The free sizes of the input shapes, each with a size that is known to work.
    meta : dict
        Plain data (JSON types): provenance, recipe, preprocessing, labels.
    conditions : tuple of str
        Integer expressions of the symbols that are 0 or more at all sizes that the network takes: what its nodes
        compute is right there alone, such as ``"512-tokens"``.
    """

    inputs: dict[str, ValueInfo]
    outputs: dict[str, str]
    nodes: list[Node]
    params: dict[str, Param]
    symbols: dict[str, int] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    conditions: tuple[str, ...] = ()

    def validate(self) -> "Graph":
        """Return a checked copy: attributes completed, names unique, every value defined, all shapes fitting."""
        nodes, defined, names = [], set(self.inputs), set()
        if not self.inputs or not self.outputs:
            raise PQNetError(f"graph: expected inputs and outputs, got {len(self.inputs)} and {len(self.outputs)}")
        self._check_inputs()
        for node in self.nodes:
            op = get_op(node.op)
            where = f"node {node.name!r} ({node.op})"
            if node.name in names:
                raise PQNetError(f"{where}: the name is used twice")
            names.add(node.name)
            for value in node.inputs:
                if value not in defined:
                    raise PQNetError(f"{where}: input value {value!r} is not defined before it")
            for value in node.outputs:
                if value in defined:
                    raise PQNetError(f"{where}: value {value!r} is defined twice")
                defined.add(value)
            if not op.min_inputs <= len(node.inputs) <= op.max_inputs:
                raise PQNetError(f"{where}: expected {op.min_inputs} to {op.max_inputs} inputs, got {len(node.inputs)}")
            self._check_params(node, op.params, where)
            try:
                nodes.append(replace(node, attrs=complete_attrs(op, node.attrs), params=dict(node.params)))
            except PQNetError as reason:
                raise PQNetError(f"{where}: {reason}") from None
        for name, value in self.outputs.items():
            if value not in defined:
                raise PQNetError(f"output {name!r}: value {value!r} is not defined")
        used = used_params(nodes)
        if unused := sorted(set(self.params) - used):
            raise PQNetError(f"parameters {unused[:5]} are used by no node")
        graph = replace(self, nodes=nodes, params=dict(self.params))
        graph.infer_shapes(graph.symbols)
        graph._check_conditions(graph.symbols)
        return graph

    def _check_conditions(self, symbols: Mapping[str, int]) -> None:
        for condition in self.conditions:
            if resolve_dim(condition, symbols) < 0:
                sizes = ", ".join(f"{name} {size}" for name, size in symbols.items() if name in condition)
                raise PQNetError(
                    f"inputs: expected sizes at which {condition} is not negative, got {sizes}; only for these was the "
                    "network converted"
                )

    def _check_inputs(self) -> None:
        used: set[str] = set()
        for name, info in self.inputs.items():
            if info.dtype not in DTYPES:
                raise PQNetError(f"input {name!r}: expected dtype {' or '.join(DTYPES)}, got {info.dtype!r}")
            for size in info.shape:
                if not (type(size) is int or (isinstance(size, str) and size.isidentifier())):
                    raise error(f"input {name!r}", "sizes that are numbers or names of free symbols", describe(size))
                used |= {size} if isinstance(size, str) else set()
        for name, size in self.symbols.items():
            integer(size, f"symbol {name!r}", 1, MAX_ELEMENTS)
        if used != set(self.symbols):
            raise error("symbols", f"a size that works for each of {sorted(used)}, which the inputs name", self.symbols)

    def _check_params(self, node: Node, roles: Mapping[str, bool], where: str) -> None:
        if unknown := set(node.params) - set(roles):
            raise PQNetError(f"{where}: unknown parameter roles {sorted(unknown)}; expected {sorted(roles)}")
        for role, required in roles.items():
            if role not in node.params:
                if required:
                    raise PQNetError(f"{where}: parameter {role!r} is missing")
                continue
            name = node.params[role]
            if name not in self.params:
                raise PQNetError(f"{where}: parameter {name!r} is not in the graph")
            param = self.params[name]
            if isinstance(param, Packed) and not is_weight(node.op, role):
                ops = tuple(weight_ops())
                raise PQNetError(f"{where}: parameter {name!r} is packed, but only weights of {ops} may be")
            dtypes = (*DTYPES, "float16")
            if not isinstance(param, Packed) and not (
                isinstance(param, np.ndarray) and param.dtype.name in dtypes and param.dtype.isnative
            ):
                raise error(f"{where}: parameter {name!r}", f"a {', '.join(dtypes)} or packed array", describe(param))

    def infer_shapes(self, symbols: Mapping[str, int]) -> dict[str, Info]:
        """Return shape and dtype of every value for given free sizes, or raise naming the node that does not fit."""
        infos = {
            name: Info(tuple(resolve_dim(d, symbols) for d in info.shape), info.dtype)
            for name, info in self.inputs.items()
        }
        for name, info in infos.items():
            check_shape_limits(info.shape, f"input {name!r}")
        for node in self.nodes:
            op = get_op(node.op)
            params = {role: param_info(self.params[name]) for role, name in node.params.items()}
            try:
                attrs = resolve_attrs(op, node.attrs, symbols)
                result = op.infer([infos[v] for v in node.inputs], params, attrs)
            except PQNetError as reason:
                raise type(reason)(f"node {node.name!r} ({node.op}): {reason}") from None
            except (ArithmeticError, LookupError, TypeError, ValueError) as reason:  # a shape rule met absurd numbers
                raise PQNetError(f"node {node.name!r} ({node.op}): the network is not valid: {reason}") from reason
            results = (result,) if isinstance(result, Info) else result
            if len(results) != len(node.outputs):
                raise PQNetError(f"node {node.name!r}: expected {len(results)} outputs, got {len(node.outputs)}")
            for value, info in zip(node.outputs, results, strict=True):
                check_shape_limits(info.shape, f"node {node.name!r} ({node.op})")
                infos[value] = info
        return infos

    def bind_symbols(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Return the free sizes that the shapes of the inputs imply, or raise PQNetError."""
        symbols: dict[str, int] = {}
        for name, info in self.inputs.items():
            shape, want = shapes[name], info.shape
            if len(shape) != len(want):
                raise PQNetError(f"input {name!r}: expected shape {_readable(want)}, got {shape}")
            for size, dim in zip(shape, want, strict=True):
                free = isinstance(dim, str)
                expected = symbols.setdefault(dim, size) if isinstance(dim, str) else dim
                if size != expected or (free and size < 1):
                    fixed = isinstance(dim, int) and size > 0
                    remedy = (
                        "; it was converted for this size only: leave the axis free there (dynamic)" if fixed else ""
                    )
                    where = f" ({dim!r} is {expected} in another input)" if free and size > 0 else ""
                    raise PQNetError(f"input {name!r}: expected shape {_readable(want)}, got {shape}{where}{remedy}")
        self._check_conditions(symbols)
        return symbols

    @cached_property
    def readers(self) -> Readers:
        """Who reads each value and parameter, found once: nodes do not change, and parameters keep their shapes."""
        values: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                values.setdefault(value, []).append(node)
        params = Counter(name for node in self.nodes for name in node.params.values())
        return Readers(values, params, {v: len(info.shape) for v, info in self.infer_shapes(self.symbols).items()})

    def layers(self) -> dict[str, Node]:
        """Return the nodes whose weight a codec may replace, by name.

        A weight that several of them share appears at its first user; one that is also used in another way does not.
        """
        uses = [(n, role, p) for n in self.nodes for role, p in n.params.items()]
        first = {p: n for n, role, p in reversed(uses) if is_weight(n.op, role)}
        other = {p for n, role, p in uses if not is_weight(n.op, role)}
        names = {n.name for p, n in first.items() if p not in other}
        return {n.name: n for n in self.nodes if n.name in names}

    def uses(self) -> dict[str, list[Node]]:
        """Return for each layer the nodes that compute with its weight as it does, itself first.

        What their inputs look like to the weight can be added up; a table of tokens that is also the weight of a
        linear layer is one layer's alone.
        """
        layers = self.layers()
        owners = {node.params["weight"]: name for name, node in layers.items()}
        found: dict[str, list[Node]] = {name: [] for name in layers}
        for node in self.nodes:
            name = owners.get(node.params.get("weight", ""))
            if name is not None and is_weight(node.op, "weight"):
                shape = tuple(self.params[node.params["weight"]].shape)
                ours, first = (weight_op(n.op).moment_shape(shape, n.attrs) for n in (node, layers[name]))
                found[name] += [node] if ours == first else []
        return found


def used_params(nodes: Iterable[Node]) -> set[str]:
    """Return the names of the parameters that nodes use."""
    return {name for node in nodes for name in node.params.values()}


def param_info(param: Param) -> Info:
    """Return shape and dtype of a parameter as operations see it: stored float16 counts as float32."""
    dtype = "float32" if isinstance(param, Packed) or param.dtype.kind == "f" else param.dtype.name
    return Info(tuple(param.shape), dtype)


def _readable(shape: Sequence[Dim]) -> str:
    return "(" + ", ".join("any > 0" if isinstance(d, str) else str(d) for d in shape) + ")"


class GraphBuilder:
    """Builds a graph node by node.

    Examples
    --------
    >>> import numpy as np
    >>> from pqnet.graph import GraphBuilder
    >>> b = GraphBuilder({"input": ValueInfo(("batch", 4))}, {"batch": 2})
    >>> y = b.add("linear", "input", name="fc", params={"weight": np.ones((3, 4), np.float32)})
    >>> graph = b.build({"output": b.add("relu", y)})
    >>> [node.name for node in graph.nodes]
    ['fc', 'relu']
    """

    def __init__(self, inputs: Mapping[str, ValueInfo], symbols: Mapping[str, int] | None = None) -> None:
        self.inputs, self.symbols = dict(inputs), dict(symbols or {})
        self.nodes: list[Node] = []
        self.params: dict[str, Param] = {}
        self._names: set[str] = set(self.inputs)

    def unique(self, name: str) -> str:
        """Return ``name``, with a number appended if it is taken."""
        out, i = name, 1
        while out in self._names:
            out, i = f"{name}_{i}", i + 1
        self._names.add(out)
        return out

    def add(
        self,
        op: str,
        *inputs: str,
        name: str | None = None,
        params: Mapping[str, Param | str] | None = None,
        **attrs: Any,
    ) -> str:
        """Append a node with one output and return the output's name; see `add_many`."""
        return self.add_many(op, inputs, 1, name=name, params=params, **attrs)[0]

    def add_many(
        self,
        op: str,
        inputs: Iterable[str],
        n_outputs: int,
        *,
        name: str | None = None,
        params: Mapping[str, Param | str] | None = None,
        **attrs: Any,
    ) -> tuple[str, ...]:
        """Append a node and return the names of its outputs.

        A parameter given as an array is stored as ``"{name}.{role}"``; given as a str it names a stored one.
        """
        name = self.unique(name or op)
        roles: dict[str, str] = {}
        for role, param in (params or {}).items():
            roles[role] = param if isinstance(param, str) else f"{name}.{role}"
            if not isinstance(param, str):
                self.params[roles[role]] = param
        outputs = (name,) if n_outputs == 1 else tuple(self.unique(f"{name}:{i}") for i in range(n_outputs))
        self.nodes.append(Node(op, name, tuple(inputs), outputs, attrs, roles))
        return outputs

    def build(
        self, outputs: Mapping[str, str], meta: Mapping[str, Any] | None = None, conditions: Sequence[str] = ()
    ) -> Graph:
        """Return the checked graph."""
        used = used_params(self.nodes)
        params = {n: p for n, p in self.params.items() if n in used}
        meta = dict(meta or {})
        return Graph(self.inputs, dict(outputs), self.nodes, params, self.symbols, meta, tuple(conditions)).validate()
