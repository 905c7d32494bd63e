"""Sizes that a module keeps in tensors without axes: as numbers of free sizes again, where torch.export forgot them.

``torch.tensor(x.shape[1])`` is a tensor to torch.export, and what is cut to such a length has a size that "depends on
data". It does not: it is an expression of the input's sizes.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from sympy import sympify
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._sympy.value_ranges import bound_sympy

__all__ = ["known_symbols"]

MADE, ITEMS = "aten.scalar_tensor.default", ("aten.item.default", "aten._local_scalar_dense.default")
SAME = ("aten.to.", "aten._to_copy.", "aten.detach", "aten.lift_fresh_copy.", "aten.clone.", "aten.alias.")
ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "rsub": lambda a, b: b - a,
}


def known_symbols(program: Any) -> dict[Any, Any]:
    """Return what symbols of an exported program that seem to depend on data are in terms of the others, as sympy."""
    scalars: dict[Any, Any] = {}  # node -> the number that its tensor holds
    known: dict[Any, Any] = {}
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        op, val = str(node.target), node.meta.get("val")
        if op in ITEMS and node.args[0] in scalars and isinstance(val, torch.SymInt):
            known[val.node.expr] = scalars[node.args[0]]
        elif op == "aten.slice.Tensor":
            known.update(_sliced(node, known, program.range_constraints))
        elif (number := _scalar(node, scalars)) is not None:
            scalars[node] = number
    return known


def _scalar(node: Any, scalars: dict[Any, Any]) -> Any:
    """Return the number that a tensor without axes holds, None where it is not known."""
    op, val = str(node.target), node.meta.get("val")
    if not isinstance(val, torch.Tensor) or val.dim() or val.dtype != torch.int64:
        return None
    if op == MADE:
        return _expression(node.args[0])
    if op.startswith(SAME):
        return scalars.get(node.args[0])
    kind = op.removeprefix("aten.").split(".")[0]
    if kind not in ARITHMETIC or len(node.args) != 2 or node.kwargs:
        return None
    sides = [scalars[a] if a in scalars else _expression(a) for a in node.args]
    return None if None in sides else ARITHMETIC[kind](*sides)


def _expression(arg: Any) -> Any:
    val = arg.meta.get("val") if isinstance(arg, torch.fx.Node) else arg
    if isinstance(val, torch.SymInt):
        return val.node.expr
    return val if isinstance(val, int) else None


def _sliced(node: Any, known: dict[Any, Any], ranges: Any) -> dict[Any, Any]:
    """Return the size of a slice whose ends are known, and within the axis at all sizes."""
    arguments: list[Any] = list(node.args)
    source, axis, start, stop, step = arguments + [0, None, None, 1][len(arguments) - 1 :]
    size, whole = node.meta["val"].shape[axis], source.meta["val"].shape[axis]
    if not free_unbacked_symbols(size) or not size.node.expr.is_Symbol or step != 1:
        return {}
    ends = [sympify(_expression(end)) for end in (start or 0, whole if stop is None else stop, whole)]
    if any(end is None for end in ends):
        return {}
    first, last, most = (end.subs(known) for end in ends)
    if any(bound_sympy(room, ranges).lower < 0 for room in (first, last - first, most - last)):
        return {}
    return {size.node.expr: last - first}
