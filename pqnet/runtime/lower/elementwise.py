"""Element-wise operations, activations and batch norms, chained into one step as far as nothing else reads between."""

from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from pqnet.graph import Node
from pqnet.graph.op import broadcast_shape
from pqnet.kernels.elementwise import (
    ACTIVATE,
    ADD,
    DIVIDE,
    FMA,
    MAXIMUM,
    MINIMUM,
    MULTIPLY,
    OPERANDS,
    PIECE,
    SUBTRACT,
    elementwise,
)
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.builder import LOWERINGS, Builder, lowers
from pqnet.runtime.lower.epilogue import activation_of, norm_factors
from pqnet.runtime.views import View

BINARY = {"add": ADD, "sub": SUBTRACT, "mul": MULTIPLY, "div": DIVIDE, "maximum": MAXIMUM, "minimum": MINIMUM}
UNARY: dict[str, int] = {}
REGISTERS = 16
ROWS = 32  # tasks of a step, at most
WORK = 16384  # elements a task, at least


@dataclass(frozen=True)
class _Operand:
    """What broadcasts to the result: a value, or else numbers, known by a key."""

    view: View | None
    key: Any = None
    numbers: np.ndarray | None = field(default=None, compare=False)
    at: int = 0  # offset of the numbers
    strides: tuple[int, ...] = ()

    def laid_out(self, b: Builder, shape: tuple[int, ...], order: tuple[int, ...]) -> "_Operand":
        """Return the operand with steps along the axes of the result; numbers are stored in its order."""
        if self.view is not None:
            wide = self.view.expand(shape)
            inner = next((a for a in reversed(order) if shape[a] > 1), None)
            if inner is not None and wide.strides[inner] not in (0, 1):
                wide = b.dense(self.view.expand(shape), order)
            return replace(self, view=wide, strides=wide.strides)
        assert self.numbers is not None
        full = self.numbers.reshape((1,) * (len(shape) - self.numbers.ndim) + self.numbers.shape)
        at = b.constant((self.key, order), lambda: full.transpose(order))
        stored = np.zeros([full.shape[a] for a in order], np.int8).transpose(np.argsort(order))
        return replace(self, at=at, strides=np.broadcast_to(stored, shape).strides)


@dataclass
class _Chain:
    """Instructions on registers; the first registers are the operands."""

    b: Builder
    shape: tuple[int, ...]
    operands: list[_Operand] = field(default_factory=list)
    code: list[tuple[int, int, int, int, int]] = field(default_factory=list)

    def value(self, view: View) -> int:
        """Return the register of a value that broadcasts to the result."""
        return self._add(_Operand(view))

    def array(self, key: Any, array: np.ndarray) -> int:
        """Return the register of numbers that broadcast to the result."""
        return self._add(_Operand(None, key, np.asarray(array, np.float32)))

    def scalar(self, number: float) -> int:
        """Return the register of one number."""
        return self.array(("scalar", float(number)), np.array(number))

    def _add(self, operand: _Operand) -> int:
        if operand not in self.operands:
            self.operands.append(operand)
        return self.operands.index(operand)

    def emit(self, operation: int, a: int, b: int = 0, c: int = 0) -> int:
        """Append an instruction; return the register of its result."""
        target = OPERANDS + len(self.code)
        self.code.append((operation, target, a, b, c))
        return target

    def full(self) -> bool:
        """Tell whether another node might not fit."""
        return len(self.operands) + 2 > OPERANDS or OPERANDS + len(self.code) + 2 > REGISTERS


def _take(b: Builder, chain: _Chain, node: Node, current: dict[str, int]) -> int | None:
    """Append one node to the chain; ``current`` has the registers of values made in it. None if it cannot."""
    if any(b.info(v).dtype != "float32" for v in (*node.inputs, *node.outputs)):
        return None

    def register(value: str) -> int:
        if value in current:
            return current[value]
        if value in b.known:
            return chain.array(("known", value, b.known[value].tobytes()), b.known[value])
        return chain.value(b.view(value))

    found = activation_of(b, node)
    if found is None and node.op in UNARY:
        found = UNARY[node.op], ()
    if found is not None:
        kind, numbers = found
        at = b.constant(("activation", numbers), lambda: (*numbers, 0.0, 0.0))
        return chain.emit(ACTIVATE, register(node.inputs[0]), kind, at)
    attrs = b.attrs(node)
    if node.op in BINARY:
        x = register(node.inputs[0])
        y = register(node.inputs[1]) if len(node.inputs) == 2 else chain.scalar(attrs["scalar"])
        return chain.emit(BINARY[node.op], *((y, x) if attrs["reverse"] else (x, y)))
    if node.op == "pow" and attrs["scalar"] == 2 and not attrs["reverse"]:
        x = register(node.inputs[0])
        return chain.emit(MULTIPLY, x, x)
    if node.op == "batch_norm":
        scale, shift = norm_factors(b, node)
        column = (-1, *(1,) * (len(chain.shape) - 2))
        a = chain.array((node.name, "factor"), scale.astype(np.float32).reshape(column))
        c = chain.array((node.name, "term"), shift.astype(np.float32).reshape(column))
        return chain.emit(FMA, register(node.inputs[0]), a, c)
    return None


@lowers(*BINARY, *UNARY, "pow", "batch_norm", *("relu", "clamp", "silu", "sigmoid", "gelu", "hardswish", "hardsigmoid"))
@lowers("tanh", "leaky_relu", "elu", "mish")
def chain(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a node and those behind it that only it feeds."""
    steps = _Chain(b, b.info(node.outputs[0]).shape)
    register = _take(b, steps, node, {})
    if register is None:
        return None
    taken, value = [node], node.outputs[0]
    while len(set(map(id, users := b.users(value)))) == 1 and not b.is_output(value) and not steps.full():
        user = users[0]
        if LOWERINGS.get(user.op) is not chain:
            break
        others = [v for v in user.inputs if v != value]
        shapes = broadcast_shape(*(b.info(v).shape for v in user.inputs))
        if shapes != steps.shape or not all(b.place(v) or v in b.known for v in others) or b.is_done(user):
            break
        following = _take(b, steps, user, {value: register})
        if following is None:
            break
        register, value = following, user.outputs[0]
        taken.append(user)
    out = _emit(b, steps, node.name if len(taken) == 1 else f"{node.name} .. {taken[-1].name}")
    if out is None:
        return None
    for later in taken[1:]:
        b.finish(later, out)
    return out


def _emit(b: Builder, chain: _Chain, label: str) -> View | None:
    whole = [o.view for o in chain.operands if o.view is not None and o.view.shape == chain.shape and o.view.dense]
    order = whole[0].order() if whole else tuple(range(len(chain.shape)))
    operands = [o.laid_out(b, chain.shape, order) for o in chain.operands]
    out = b.new(chain.shape, order)
    sizes, steps = _collapse(
        [chain.shape[a] for a in order], [[s[a] for a in order] for s in (out.strides, *(o.strides for o in operands))]
    )
    if len(sizes) > 4:
        return None
    sizes = [1] * (4 - len(sizes)) + sizes
    padded = [[0] * (4 - len(s)) + s for s in steps]
    rows = prod(sizes[:3])
    per_task = max(-(-rows // ROWS), min(rows, -(-WORK // sizes[3])))
    fields: list[int | View] = [*sizes, per_task, len(operands)]
    fields += [b.indices(np.array(chain.code)), len(chain.code), out, *padded[0][:3], 0]
    for operand, step in zip(operands, padded[1:], strict=True):
        fields += [int(operand.view is None), operand.at if operand.view is None else operand.view, *step]
    b.emit(
        elementwise,
        label,
        -(-rows // per_task),
        fields,
        reads=[o.view for o in operands if o.view is not None],
        writes=[out],
        scratch=REGISTERS * (PIECE + WIDTH) + PIECE,
    )
    return out


def _collapse(sizes: list[int], steps: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """Merge neighbouring axes that all operands walk through in one stride; axes of size 1 vanish."""
    kept = [i for i, size in enumerate(sizes) if size > 1]
    if not kept:
        return [1], [[1] if i == 0 else [0] for i in range(len(steps))]
    out, strides = [sizes[kept[0]]], [[s[kept[0]]] for s in steps]
    for i in kept[1:]:
        if all(t[-1] == s[i] * sizes[i] for s, t in zip(steps, strides, strict=True)):
            out[-1] *= sizes[i]
            for s, t in zip(steps, strides, strict=True):
                t[-1] = s[i]
        else:
            out.append(sizes[i])
            for s, t in zip(steps, strides, strict=True):
                t.append(s[i])
    return out, strides
