"""Comparisons, logic, choice, conversion and integer arithmetic: element-wise operations on values of any dtype."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from pqnet.graph import Node
from pqnet.graph.ops.elementwise import as_scalar, operand_dtype
from pqnet.kernels.ops import typed as kernel
from pqnet.runtime.builder import Builder, lowers, storage_order
from pqnet.runtime.memory import View, merge_axes

__all__ = ["additive_mask", "apply"]

TYPES = {
    "float32": kernel.FLOAT,
    "int64": kernel.LONG,
    "int32": kernel.INT,
    "int16": kernel.SHORT,
    "int8": kernel.SIGNED_BYTE,
    "uint8": kernel.BYTE,
    "bool": kernel.BYTE,
}
ARITHMETIC = {
    "add": kernel.ADD,
    "sub": kernel.SUBTRACT,
    "mul": kernel.MULTIPLY,
    "div": kernel.DIVIDE,
    "maximum": kernel.MAXIMUM,
    "minimum": kernel.MINIMUM,
    "floor_div": kernel.FLOOR_DIVIDE,
    "trunc_div": kernel.TRUNCATE_DIVIDE,
    "remainder": kernel.REMAINDER,
    "fmod": kernel.TRUNCATE_REMAINDER,
}
BITWISE = {
    "bitwise_and": kernel.BIT_AND,
    "bitwise_or": kernel.BIT_OR,
    "bitwise_xor": kernel.BIT_XOR,
    "shift_left": kernel.SHIFT_LEFT,
    "shift_right": kernel.SHIFT_RIGHT,
}
COMPARISONS = {
    "eq": kernel.EQUAL,
    "ne": kernel.NOT_EQUAL,
    "lt": kernel.LESS,
    "le": kernel.LESS_EQUAL,
    "gt": kernel.GREATER,
    "ge": kernel.GREATER_EQUAL,
}
LOGICAL = {"logical_and": kernel.AND, "logical_or": kernel.OR, "logical_not": kernel.NOT}
UNARY = {"neg": kernel.NEGATIVE, "abs": kernel.ABSOLUTE, "sign": kernel.SIGN, "bitwise_not": kernel.BIT_NOT}
TASKS, WORK = 32, 32768  # tasks of a step at most, elements a task at least

Operand = View | np.ndarray  # a constant is an array


@dataclass(frozen=True)
class _Placed:
    """Where an operand lies, and its steps along the axes of the result."""

    array: str  # of the kernel
    at: View | int
    dtype: str
    steps: tuple[int, ...]

    def arguments(self, steps: Sequence[int]) -> dict[str, Any]:
        """Return the arguments of `kernels.ops.typed.OPERAND`, with the steps along merged axes."""
        places = {f"in_{name}": self.at if name == self.array else -1 for name in ("data", "const", "codes", "index")}
        return {**places, "type": TYPES[self.dtype], "steps": steps}


NOTHING = _Placed("", -1, "float32", ())


def _place(b: Builder, operand: Operand, shape: tuple[int, ...], floats: bool) -> _Placed:
    """Return an operand broadcast to a shape; constants are stored as bytes, floats or int64."""
    if isinstance(operand, View):
        return _Placed("data", operand, operand.dtype, operand.expand(shape).strides)
    steps = tuple(s // operand.itemsize for s in np.broadcast_to(operand, shape).strides)
    key = "constant", operand.shape, operand.dtype.name, operand.tobytes()
    if operand.dtype == np.bool:
        return _Placed("codes", b.code_bytes(key, lambda: operand.view(np.uint8)), "bool", steps)
    if floats:
        return _Placed("const", b.constant(key, lambda: operand.astype(np.float32)), "float32", steps)
    return _Placed("index", b.table(operand), "int64", steps)


def apply(
    b: Builder,
    label: str,
    operation: int,
    operands: Sequence[Operand],
    shape: tuple[int, ...],
    dtype: str,
    *,
    floats: bool,
    order: Sequence[int] | None = None,
) -> View | None:
    """Append the step that applies an operation to operands which broadcast to a shape.

    Parameters
    ----------
    b : Builder
    label : str
    operation : int
        One of `kernels.ops.typed`.
    operands : sequence of View or array
        x, then y, then a condition, as far as the operation has them.
    shape : tuple of int
    dtype : str
        Of the result.
    floats : bool
        Whether to compute with x and y as float32, else as int64.
    order : sequence of int, optional
        Storage order of the result; default that of an operand which has its shape.

    Returns
    -------
    View, or None if the operands have too many different axes
    """
    if order is None:
        full = [v for v in operands if isinstance(v, View) and v.shape == shape]
        same = [v for v in full if v.dtype == dtype] or full
        order = same[0].order() if same else storage_order(len(shape), dtype)
    placed = [_place(b, v if isinstance(v, View) else np.asarray(v, order="C"), shape, floats) for v in operands]
    axes = merge_axes([shape[a] for a in order], *([p.steps[a] for a in order] for p in placed))
    if len(axes) > 4:
        return None
    out = b.new(shape, order, dtype)
    sizes, *steps = zip(*[(1, *[0] * len(placed))] * (4 - len(axes)), *axes, strict=True)
    pieces = prod(sizes[:3]) * -(-sizes[3] // kernel.PIECE)
    per_task = max(-(-pieces // TASKS), min(pieces, WORK // min(sizes[3], kernel.PIECE)))
    given = [p.arguments(s) for p, s in zip(placed, steps, strict=True)]
    given += [NOTHING.arguments([0] * 4)] * (3 - len(given))
    arguments = {
        **dict(zip(("x", "y", "condition"), given, strict=True)),
        "out": out,
        "out_type": TYPES[dtype],
        "operation": operation,
        "floats": int(floats),
        "sizes": sizes,
        "per_task": per_task,
    }
    reads = [v for v in operands if isinstance(v, View)]
    tasks = -(-pieces // per_task)
    b.emit(kernel.typed, label, tasks, arguments, reads=reads, writes=[out], scratch=kernel.SCRATCH)
    return out


def _operands(b: Builder, node: Node, dtype: str) -> list[Operand]:
    """Return the inputs of a node, those known as arrays, and its scalar in the dtype in which they meet."""
    found: list[Operand] = [b.known[v] if v in b.known else b.view(v) for v in node.inputs]
    attrs = b.attrs(node)
    if attrs.get("scalar") is not None:
        number = np.array(as_scalar(attrs["scalar"], dtype), np.float32 if dtype == "float32" else np.int64)
        found.insert(0 if attrs.get("reverse") else 1, number)
    return found


def _meeting_dtype(b: Builder, node: Node) -> str:
    return operand_dtype([b.info(v).dtype for v in node.inputs], [b.attrs(node).get("scalar")])


@lowers(*ARITHMETIC, typed=True)
def arithmetic(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower arithmetic of integers, or of floats with integers, and divisions with remainder."""
    shape, dtype = b.info(node.outputs[0])
    operands = _operands(b, node, dtype)
    return apply(b, node.name, ARITHMETIC[node.op], operands, shape, dtype, floats=dtype == "float32")


@lowers(*BITWISE, typed=True)
def bitwise(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower an operation on the bits of integers."""
    shape, dtype = b.info(node.outputs[0])
    return apply(b, node.name, BITWISE[node.op], _operands(b, node, dtype), shape, dtype, floats=False)


@lowers(*COMPARISONS, typed=True)
def compare(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a comparison."""
    dtype = _meeting_dtype(b, node)
    operands, shape = _operands(b, node, dtype), b.info(node.outputs[0]).shape
    return apply(b, node.name, COMPARISONS[node.op], operands, shape, "bool", floats=dtype == "float32")


@lowers(*LOGICAL, typed=True)
def logical(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower logic; numbers count as true unless they are 0."""
    dtype = _meeting_dtype(b, node)
    operands, shape = _operands(b, node, dtype), b.info(node.outputs[0]).shape
    return apply(b, node.name, LOGICAL[node.op], operands, shape, "bool", floats=dtype == "float32")


@lowers(*UNARY, typed=True)
def unary(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a function of one integer."""
    shape, dtype = b.info(node.outputs[0])
    if dtype == "float32":
        return None
    return apply(b, node.name, UNARY[node.op], [x[0]], shape, dtype, floats=False)


@lowers("where", typed=True)
def where(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a choice between two values."""
    shape, dtype = b.info(node.outputs[0])
    condition, yes, no = _operands(b, node, dtype)
    return apply(b, node.name, kernel.CHOOSE, [yes, no, condition], shape, dtype, floats=dtype == "float32")


@lowers("cast", typed=True)
def cast(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a conversion to another dtype."""
    dtype = b.info(node.outputs[0]).dtype
    floats = "float32" in (x[0].dtype, dtype)
    if dtype == x[0].dtype:
        return x[0]
    if dtype == "bool":
        return apply(b, node.name, kernel.TRUTH, [x[0]], x[0].shape, dtype, floats=floats)
    operation = kernel.SAME
    if x[0].dtype == "float32":
        operation = kernel.WHOLE if dtype == "int64" else kernel.WHOLE_32
    return apply(b, node.name, operation, [x[0]], x[0].shape, dtype, floats=floats)


@lowers("clamp", typed=True)
def clamp(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower the limits of integers."""
    shape, dtype = b.info(node.outputs[0])
    out: View | None = x[0]
    for operation, limit in ((kernel.MAXIMUM, "min"), (kernel.MINIMUM, "max")):
        value = b.attrs(node)[limit]
        if value is not None and out is not None:
            number = np.array(value, np.float32 if dtype == "float32" else np.int64)
            out = apply(b, node.name, operation, [out, number], shape, dtype, floats=dtype == "float32")
    return out


def additive_mask(b: Builder, mask: View, order: Sequence[int], label: str) -> View | None:
    """Return 0 where a mask is true and -inf elsewhere, its axes stored in ``order``."""
    terms = [np.array(value, np.float32) for value in (0, -np.inf)]
    return apply(b, label, kernel.CHOOSE, [*terms, mask], mask.shape, "float32", floats=True, order=order)
