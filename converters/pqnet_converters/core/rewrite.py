"""A graph whose nodes are matched with patterns and replaced."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from pqnet.graph import Graph, Node
from pqnet.graph.graph import used_params
from pqnet.graph.op import Info, complete_attrs, get_op
from pqnet.graph.sizes import Size

__all__ = ["Operand", "Pattern", "Rewriter"]

Operand: TypeAlias = str | float  # a value, or a number that is known
Pattern: TypeAlias = str | float | tuple[Any, ...]

COMMUTATIVE = {"add", "mul", "maximum", "minimum", "eq", "ne"}
PASSES = 20


class Rewriter:
    """Looks into a graph and replaces nodes of it; values keep their names and shapes.

    Parameters
    ----------
    graph : Graph
        Checked.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.params = graph, dict(graph.params)
        self.nodes = list(graph.nodes)
        free = {name: Size.of(size, (size + 1, 2 * size)) for name, size in graph.symbols.items()}
        self.infos: dict[str, Info] = graph.infer_shapes(free)
        self._names = {name for node in graph.nodes for name in (node.name, *node.outputs)} | set(graph.inputs)
        self._index()

    def _index(self) -> None:
        self._makers = {value: node for node in self.nodes for value in node.outputs}
        self._users = Counter(value for node in self.nodes for value in node.inputs)
        self._users.update(self.graph.outputs.values())

    # ---- what patterns ask

    def maker(self, value: Operand, *ops: str) -> Node | None:
        """Return the node that makes a value, if it is one of these operations."""
        node = self._makers.get(value) if isinstance(value, str) else None
        return node if node is not None and (not ops or node.op in ops) else None

    def alone(self, value: str) -> bool:
        """Tell whether one node uses a value, and nothing else."""
        return self._users[value] == 1

    def constant(self, value: Operand) -> np.ndarray | None:
        """Return the elements of a value that is a constant."""
        node = self.maker(value, "constant")
        found = None if node is None else self.params[node.params["value"]]
        return found if isinstance(found, np.ndarray) else None

    def parameter(self, value: Operand) -> str:
        """Return the name of the parameter that a constant value is."""
        node = self.maker(value, "constant")
        assert node is not None
        return node.params["value"]

    def shape(self, value: Operand) -> tuple[int, ...]:
        """Return the shape of a value, at the sample of the free sizes, on which those depend that are `Size`."""
        return self.infos[value].shape if isinstance(value, str) else ()

    def operands(self, node: Node) -> list[Operand]:
        """Return what a node computes with, in order: values, and numbers for scalars and constants of one."""
        found: list[Operand] = list(node.inputs)
        if node.attrs.get("scalar") is not None:
            found.insert(0 if node.attrs.get("reverse") else 1, node.attrs["scalar"])
        for i, operand in enumerate(found):
            array = self.constant(operand)
            if array is not None and array.size == 1 and array.ndim <= 1 and len(found) > 1:
                found[i] = array.reshape(-1)[0].item()
        return found

    def match(self, pattern: Pattern, operand: Operand, found: dict[str, Operand]) -> bool:
        """Tell whether an operand is what a pattern says, and note what its names stand for.

        A str stands for any operand, the same wherever it occurs; a number for itself, within 1e-3; a tuple for an
        operation, its operands, and last, if it is a dict, attributes. Operands that may change places may.
        """
        if isinstance(pattern, str):
            return found.setdefault(pattern, operand) == operand
        if not isinstance(pattern, tuple):
            return not isinstance(operand, str) and math.isclose(operand, pattern, rel_tol=1e-3)
        op, *parts = pattern
        attrs = parts.pop() if parts and isinstance(parts[-1], dict) else {}
        node = self.maker(operand, op)
        if node is None or not all(_same(node.attrs[name], value) for name, value in attrs.items()):
            return False
        operands = self.operands(node)
        if len(operands) != len(parts):
            return False
        orders = (operands, operands[::-1]) if op in COMMUTATIVE and len(parts) == 2 else (operands,)
        for order in orders:
            trial = dict(found)
            if all(self.match(p, o, trial) for p, o in zip(parts, order, strict=True)):
                found.update(trial)
                return True
        return False

    def first(self, patterns: Iterable[Pattern], operand: Operand) -> dict[str, Operand] | None:
        """Return what the names of the first pattern that fits stand for."""
        for pattern in patterns:
            found: dict[str, Operand] = {}
            if self.match(pattern, operand, found):
                return found
        return None

    def constant_side(self, node: Node) -> tuple[str, str] | None:
        """Return the value and the constant that a node of two inputs combines."""
        if len(node.inputs) == 2:
            for value, other in (node.inputs, node.inputs[::-1]):
                if self.constant(other) is not None and self.constant(value) is None:
                    return value, other
        return None

    # ---- what they make

    def beside(self, node: Node, op: str) -> str:
        """Return the name of an operation in the module of a node."""
        head, dot, _ = node.name.rpartition(".")
        return f"{head}{dot}{op}"

    def name(self, stem: str) -> str:
        """Return a name that no node or value has."""
        name, i = stem, 1
        while name in self._names:
            name, i = f"{stem}_{i}", i + 1
        self._names.add(name)
        return name

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        stem: str,
        params: dict[str, str] | None = None,
        output: str | None = None,
        **attrs: Any,
    ) -> Node:
        """Return a new node; its value has its name unless it takes the place of another."""
        name = self.name(stem)
        complete = complete_attrs(get_op(op), attrs)
        return Node(op, name, tuple(inputs), (output or name,), complete, params or {})

    def store(self, name: str, array: np.ndarray) -> str:
        """Store a new parameter and return its name."""
        stem, i = name, 1
        while name in self.params:
            name, i = f"{stem}_{i}", i + 1
        self.params[name] = array
        return name

    # ---- the walk

    def run(self, table: Iterable[tuple[tuple[str, ...], Callable[["Rewriter", Node], list[Node] | None]]]) -> Graph:
        """Replace nodes by what the functions of a table give for them, until none gives anything."""
        rules: dict[str, list[Callable[[Rewriter, Node], list[Node] | None]]] = {}
        for ops, function in table:
            for op in ops:
                rules.setdefault(op, []).append(function)
        for _ in range(PASSES):
            self._merge_equal()
            if not self._pass(rules):
                break
        self._drop_unused()
        used = used_params(self.nodes)
        params = {name: p for name, p in self.params.items() if name in used}
        return replace(self.graph, nodes=self.nodes, params=params).validate()

    def _pass(self, rules: dict[str, list[Callable[["Rewriter", Node], list[Node] | None]]]) -> bool:
        changed = False
        for i in reversed(range(len(self.nodes))):  # the largest pattern is seen from its end
            node = self.nodes[i]
            if not any(self._users[v] for v in node.outputs):
                continue
            made = next((made for rule in rules.get(node.op, ()) if (made := rule(self, node)) is not None), None)
            if made is not None:
                self.nodes[i : i + 1] = made
                self._note(made)
                self._index()
                changed = True
        self._drop_unused()
        return changed

    def _note(self, made: list[Node]) -> None:
        for node in made:
            if any(isinstance(v, str) for a in node.attrs.values() for v in (a if isinstance(a, tuple) else ())):
                continue  # its value takes the place of another, whose shape is known
            params = {r: Info(self.params[p].shape, "float32") for r, p in node.params.items()}
            if node.outputs[0] not in self.infos and all(v in self.infos for v in node.inputs):
                info = get_op(node.op).infer([self.infos[v] for v in node.inputs], params, node.attrs)
                assert isinstance(info, Info)
                self.infos[node.outputs[0]] = info

    def _merge_equal(self) -> None:
        """Keep one of nodes that compute the same."""
        kept: dict[Any, Node] = {}
        renamed: dict[str, str] = {}
        nodes, outputs = [], set(self.graph.outputs.values())
        for node in self.nodes:
            node = replace(node, inputs=tuple(renamed.get(v, v) for v in node.inputs))
            key = node.op, node.inputs, str(sorted(node.attrs.items())), tuple(sorted(node.params.items()))
            other = kept.setdefault(key, node)
            if other is node or outputs.intersection(node.outputs):
                nodes.append(node)
            else:
                renamed.update(zip(node.outputs, other.outputs, strict=True))
        self.nodes = nodes
        self._index()

    def _drop_unused(self) -> None:
        wanted, kept = set(self.graph.outputs.values()), []
        for node in reversed(self.nodes):
            if wanted.intersection(node.outputs):
                wanted.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]
        self._index()


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, float | int) and isinstance(value, float | int) and not isinstance(wanted, bool):
        return math.isclose(value, wanted, rel_tol=1e-3, abs_tol=1e-12)
    return bool(value == wanted)
