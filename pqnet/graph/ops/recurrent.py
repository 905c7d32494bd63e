"""Recurrent layers: what is left of RNN, LSTM and GRU when the product with their inputs is a linear layer of its own.

The input weight sees all steps at once, so it is a ``linear`` node over (batch, steps, features) whose output
``(batch, steps, gates * state)`` is the first input here; the weight of the operation is the recurrent one, which is
multiplied with what the layer remembers before each step. Gates are in PyTorch's order: i, f, g, o of an LSTM and
r, z, n of a GRU.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pqnet.errors import PQNetError
from pqnet.graph.axes import Axes, Tracked, fix, join, unify
from pqnet.graph.layers import WeightOp, rows_of_axis
from pqnet.graph.op import Arrays, Attr, Attrs, Info, Params, check_dtype, check_shape, register

__all__ = ["CELLS", "Cell"]

# From one step to the next: cell(input's product, state's product, states, attrs) -> states, the first is the output.
Step = Callable[[np.ndarray, np.ndarray, tuple[np.ndarray, ...], Attrs], tuple[np.ndarray, ...]]


class Cell(NamedTuple):
    """Number of gates and of states of a recurrent layer, and its step."""

    gates: int
    states: int
    step: Step


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def _rnn(x: np.ndarray, product: np.ndarray, states: tuple[np.ndarray, ...], a: Attrs) -> tuple[np.ndarray, ...]:
    total = x + product
    return (np.tanh(total) if a["nonlinearity"] == "tanh" else np.maximum(total, 0),)


def _lstm(x: np.ndarray, product: np.ndarray, states: tuple[np.ndarray, ...], a: Attrs) -> tuple[np.ndarray, ...]:
    i, f, g, o = np.split(x + product, 4, axis=1)
    memory = _sigmoid(f) * states[1] + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(memory), memory


def _gru(x: np.ndarray, product: np.ndarray, states: tuple[np.ndarray, ...], a: Attrs) -> tuple[np.ndarray, ...]:
    (xr, xz, xn), (hr, hz, hn) = np.split(x, 3, axis=1), np.split(product, 3, axis=1)
    update, candidate = _sigmoid(xz + hz), np.tanh(xn + _sigmoid(xr + hr) * hn)
    return (candidate + update * (states[0] - candidate),)


CELLS = {"rnn": Cell(1, 1, _rnn), "lstm": Cell(4, 2, _lstm), "gru": Cell(3, 1, _gru)}


def _infer(cell: Cell, x: Sequence[Info], p: Mapping[str, Info]) -> tuple[Info, ...]:
    weight, products = p["weight"], x[0]
    for info in x:
        check_dtype(info, "float32")
    check_dtype(weight, "float32", name="weight")
    if len(weight.shape) != 2 or weight.shape[0] != cell.gates * weight.shape[1]:
        want = f"({cell.gates} * state, state)" if cell.gates > 1 else "(state, state)"
        raise PQNetError(f"weight: expected shape {want}, got {weight.shape}")
    rows, state = weight.shape
    if len(products.shape) != 3 or products.shape[2] != rows:
        raise PQNetError(f"expected products of the inputs of shape (batch, steps, {rows}), got {products.shape}")
    if len(x) not in (1, 1 + cell.states):
        raise PQNetError(f"expected no initial state or {cell.states}, got {len(x) - 1}")
    for info in x[1:]:
        check_shape(info, (products.shape[0], state), "initial state")
    check_shape(p.get("bias"), (rows,), "bias")
    final = Info((products.shape[0], state))
    return (Info((*products.shape[:2], state)), *(final,) * cell.states)


def _run(cell: Cell, x: Arrays, p: Params, a: Attrs) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Return the outputs and what was remembered before each step, (batch, steps, state), and the final states."""
    weight = p["weight"]
    batch, steps, _ = x[0].shape
    state = weight.shape[1]
    states = tuple(x[1:]) or tuple(np.zeros((batch, state), np.float32) for _ in range(cell.states))
    outputs, before = (np.empty((batch, steps, state), np.float32) for _ in range(2))
    for t in reversed(range(steps)) if a["reverse"] else range(steps):
        before[:, t] = states[0]
        product = states[0] @ weight.T
        if "bias" in p:
            product += p["bias"]
        states = cell.step(x[0][:, t], product, states, a)
        outputs[:, t] = states[0]
    return outputs, before, states


def _order(cell: Cell, x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> list[Axes]:
    """All gates have the elements of the state in one order."""
    rows, state = p["weight"].axes
    batch, steps, products = x[0].axes
    gates = join([state] * cell.gates)
    for axis in (products, rows, *(p["bias"].axes if "bias" in p else ())):
        unify(axis, gates)
    fix(steps)
    for value in x[1:]:
        batch = unify(batch, value.axes[0])
        unify(state, value.axes[1])
    return [(batch, steps, state), *((batch, state),) * cell.states]


def _register(name: str, cell: Cell, **attrs: Attr) -> None:
    def evaluate(x: Arrays, p: Params, a: Attrs) -> tuple[np.ndarray, ...]:
        outputs, _, states = _run(cell, x, p, a)
        return outputs, *states

    def operand(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
        return _run(cell, x, p, a)[1]

    register(
        name,
        infer=lambda x, p, a: _infer(cell, x, p),
        evaluate=evaluate,
        inputs=(1, 1 + cell.states),
        params={"weight": True, "bias": False},
        order=lambda x, p, a: _order(cell, x, p, a),
        weight=WeightOp("recurrent", rows_of_axis, operand=np.errstate(all="ignore")(operand), is_product=False),
        reverse=Attr("bool", False),
        **attrs,
    )


for _name, _cell in CELLS.items():
    _more = {"nonlinearity": Attr("str", "tanh", options=("tanh", "relu"))} if _name == "rnn" else {}
    _register(_name, _cell, **_more)
