"""Element-wise operations, activations and batch norms, chained into one step as far as nothing else reads between."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from pqnet.graph import Node
from pqnet.graph.op import broadcast_shape
from pqnet.kernels.ops import elementwise as kernel
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.builder import LOWERINGS, Builder, channel_major, lowers
from pqnet.runtime.copying import dense
from pqnet.runtime.fusion import ACTIVATIONS, activation_of, norm_factors
from pqnet.runtime.memory import View, merge_axes

COMMUTATIVE = {
    "add": kernel.ADD,
    "mul": kernel.MULTIPLY,
    "maximum": kernel.MAXIMUM,
    "minimum": kernel.MINIMUM,
}
# Value op operand, operand op value.
ORDERED = {
    "sub": (kernel.SUBTRACT, kernel.REVERSED_SUBTRACT),
    "div": (kernel.DIVIDE, kernel.REVERSED_DIVIDE),
    "pow": (kernel.POWER, kernel.REVERSED_POWER),
}
FUNCTIONS = {
    "exp": kernel.EXP,
    "log": kernel.LOG,
    "sqrt": kernel.SQRT,
    "rsqrt": kernel.RSQRT,
    "reciprocal": kernel.RECIPROCAL,
    "erf": kernel.ERF,
    "floor": kernel.FLOOR,
    "ceil": kernel.CEIL,
    "round": kernel.ROUND,
    "neg": kernel.NEG,
    "abs": kernel.ABS,
    "sign": kernel.SIGN,
    "expm1": kernel.EXPM1,
    "log1p": kernel.LOG1P,
    "log2": kernel.LOG2,
    "log10": kernel.LOG10,
    "sin": kernel.SIN,
    "cos": kernel.COS,
}
POWERS = {2.0: kernel.SQUARE, 3.0: kernel.CUBE, 0.5: kernel.SQRT, -0.5: kernel.RSQRT, -1.0: kernel.RECIPROCAL}
SOFTPLUS = 13
BOUNDS = (1, 2)  # kinds that only bound a value: relu, clamp
INSTRUCTIONS = 24  # of a chain
TASKS, TASK_CYCLES = 32, 40_000
# Of an instruction for a vector; exp and the like take about as many as a division.
CYCLES_SIMPLE, CYCLES_DIVISION = 4, 30


@dataclass(frozen=True)
class _Operand:
    """What broadcasts to the result: a view, or an array known by a key, whose first axis may hold two operands."""

    view: View | None
    key: Any = None
    array: np.ndarray | None = field(default=None, compare=False)

    def stored(self, b: Builder, shape: tuple[int, ...], order: Sequence[int]) -> tuple[View | int, tuple[int, ...]]:
        """Return the view, or the position of the constant, and steps along the axes of the result, stored in order."""
        if self.view is not None:
            wide = self.view.expand(shape)
            if wide.strides[_inner(shape, order)] not in (0, 1):
                missing = len(shape) - len(self.view.shape)
                wide = dense(b, self.view, [a - missing for a in order if a >= missing]).expand(shape)
            return wide, wide.strides
        assert self.array is not None
        missing = len(shape) - (self.array.ndim - 1)
        full = self.array.reshape(self.array.shape[:1] + (1,) * missing + self.array.shape[1:])
        at = b.constant((self.key, tuple(order)), lambda: full.transpose(0, *(a + 1 for a in order)))
        stored = np.zeros([full.shape[a + 1] for a in order], np.int8).transpose(np.argsort(order))
        return at, np.broadcast_to(stored, shape).strides


def _constant(number: Any) -> _Operand:
    array = np.asarray(number, np.float32)
    return _Operand(None, ("constant", array.shape, array.tobytes()), array[None])


@dataclass
class _Chain:
    """The first value, and instructions (operation, operand or kind, p, bounds) that change it."""

    b: Builder
    shape: tuple[int, ...]
    operands: list[_Operand] = field(default_factory=list)
    code: list[tuple[int, int, int, int]] = field(default_factory=list)
    cycles: int = CYCLES_SIMPLE

    def take(self, node: Node, value: str) -> bool:
        """Append a node that reads ``value``, the one of the chain; False if it is none for a chain."""
        b = self.b
        if len(self.operands) == kernel.OPERANDS or len(self.code) == INSTRUCTIONS:
            return False
        found = _activation(b, node)
        if found is not None and found[0] in BOUNDS and self.code and self.code[-1][3] == self._free():
            bounds = found[1] if found[0] == 2 else (0.0, np.inf)
            self.code[-1] = (*self.code[-1][:3], b.numbers(*bounds, 0.0, 0.0))
            return True
        if found is not None:
            cycles = CYCLES_SIMPLE if found[0] in (1, 2, 7, 8, 10) else CYCLES_DIVISION
            return self._append(kernel.ACTIVATE, found[0], b.numbers(*found[1], 0.0, 0.0), cycles)
        if node.op in FUNCTIONS:
            return self._append(kernel.FUNCTION, FUNCTIONS[node.op], 0, CYCLES_DIVISION)
        if node.op == "pow" and not b.attrs(node)["reverse"] and b.attrs(node)["scalar"] in POWERS:
            return self._append(kernel.FUNCTION, POWERS[b.attrs(node)["scalar"]], 0)
        if node.op == "batch_norm":
            pair = np.array(norm_factors(b, node), np.float32).reshape(2, -1, *(1,) * (len(self.shape) - 2))
            operand = _Operand(None, (node.name, "factors and terms"), pair)
            return self._append(kernel.FMA, self._operand(operand), pair[0].size)
        if node.op == "prelu":
            slope = b.floats(node, "weight")
            assert slope is not None
            slope = slope.reshape(1, -1, *(1,) * max(len(self.shape) - 2, 0))
            return self._append(kernel.PRELU, self._operand(_Operand(None, (node.name, "slopes"), slope)), 0)
        return self._take_binary(node, value)

    def _take_binary(self, node: Node, value: str) -> bool:
        if node.op not in COMMUTATIVE and node.op not in ORDERED:
            return False
        if len(node.inputs) == 1:
            operand, reverse = _constant(self.b.attrs(node)["scalar"]), self.b.attrs(node)["reverse"]
        else:
            reverse = node.inputs[0] != value
            other = node.inputs[0] if reverse else node.inputs[1]
            if other == value and self.code:
                return node.op == "mul" and self._append(kernel.FUNCTION, kernel.SQUARE, 0)
            operand = _constant(self.b.known[other]) if other in self.b.known else _Operand(self.b.view(other))
        op = COMMUTATIVE[node.op] if node.op in COMMUTATIVE else ORDERED[node.op][reverse]
        cycles = CYCLES_DIVISION if node.op in ("div", "pow") else CYCLES_SIMPLE
        return self._append(op, self._operand(operand), 0, cycles)

    def _operand(self, operand: _Operand) -> int:
        if operand not in self.operands:
            self.operands.append(operand)
        return self.operands.index(operand)

    def _free(self) -> int:
        """Return the bounds of a value that is not bounded."""
        return self.b.numbers(-np.inf, np.inf, 0.0, 0.0)

    def _append(self, op: int, which: int, p: int, cycles: int = CYCLES_SIMPLE) -> bool:
        self.code.append((op, which, p, self._free() if op < kernel.ACTIVATE else -1))
        self.cycles += cycles
        return True

    def emit(self, first: View, label: str) -> View | None:
        """Emit the step; None if the operands have too many different axes."""
        shape = self.shape
        order = first.order() if first.shape == shape else channel_major(len(shape))
        first = first.expand(shape)
        if shape and prod(shape) > 1 and first.strides[_inner(shape, order)] != 1:
            first = dense(self.b, first, order)
        stored = [o.stored(self.b, shape, order) for o in self.operands]
        # The rows of the result lie one behind another, so only the others' strides tell which axes can be one.
        strides = [[steps[a] for a in order] for steps in (first.strides, *(steps for _, steps in stored))]
        axes = merge_axes([shape[a] for a in order], *strides)
        if len(axes) > 4:
            return None
        out = self.b.new(shape, order)
        axes = [(1, *[0] * len(strides))] * (4 - len(axes)) + axes
        sizes, x_steps, *steps = zip(*axes, strict=True)
        pieces = prod(sizes[:3]) * -(-sizes[3] // kernel.PIECE)
        vectors = -(-min(sizes[3], kernel.PIECE) // WIDTH)
        per_task = max(-(-pieces // TASKS), min(pieces, -(-TASK_CYCLES // (vectors * self.cycles))))
        positions = [at for at, _ in stored] + [-1] * (kernel.OPERANDS - len(stored))
        arguments = {
            "x": first,
            "out": out,
            "sizes": sizes,
            "x_steps": x_steps[:3],
            "per_task": per_task,
            "table": self.b.table(self.code),
            "instructions": len(self.code),
            "in_data": [at if isinstance(at, View) else -1 for at in positions],
            "in_const": [-1 if isinstance(at, View) else at for at in positions],
            "steps": self.b.table(steps),
        }
        reads = [first, *(at for at in positions if isinstance(at, View))]
        self.b.emit(kernel.elementwise, label, -(-pieces // per_task), arguments, reads=reads, writes=[out])
        return out


def _activation(b: Builder, node: Node) -> tuple[int, tuple[float, ...]] | None:
    if node.op == "softplus":
        return SOFTPLUS, (b.attrs(node)["beta"], b.attrs(node)["threshold"])
    return activation_of(b, node)


def _inner(shape: Sequence[int], order: Sequence[int]) -> int:
    """Return the axis of the lanes."""
    return next((a for a in reversed(order) if shape[a] > 1), order[-1])


def _first_value(b: Builder, node: Node) -> str:
    """Return the input that a chain starts from: one of the result's shape and without holes, if there is one."""
    shape = b.info(node.outputs[0]).shape

    def rank(value: str) -> tuple[bool, int, bool]:
        view = b.view(value)
        return view.shape == shape, view.size, view.dense

    return max((v for v in node.inputs if v not in b.known), key=rank)


@lowers(*COMMUTATIVE, *ORDERED, *FUNCTIONS, *ACTIVATIONS, "softplus", "batch_norm", "prelu")
def chain(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a node and those behind it that only it feeds."""
    if not b.info(node.outputs[0]).shape:
        return None
    value = _first_value(b, node)
    first, steps = b.view(value), _Chain(b, b.info(node.outputs[0]).shape)
    if not steps.take(node, value):
        return None
    taken, value = [node], node.outputs[0]
    while len(set(map(id, users := b.users(value)))) == 1 and not b.is_output(value):
        user = users[0]
        infos = [b.info(v) for v in (*user.inputs, *user.outputs)]
        lowering = LOWERINGS.get(user.op)
        if (
            lowering is None
            or lowering.emit is not chain
            or b.is_done(user)
            or any(i.dtype != "float32" for i in infos)
        ):
            break
        if broadcast_shape(*(i.shape for i in infos)) != steps.shape:
            break
        if not all(b.ready(v) for v in user.inputs if v != value) or not steps.take(user, value):
            break
        taken.append(user)
        value = user.outputs[0]
    out = steps.emit(first, node.name if len(taken) == 1 else f"{node.name} .. {taken[-1].name}")
    if out is not None:
        for later in taken[1:]:
            b.finish(later, out)
    return out
