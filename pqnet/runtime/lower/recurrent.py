"""Recurrent layers: for each step in time the product with the state, by the algorithm of a linear layer, and a cell.

Values that a step in time reads and writes have the samples innermost: elements of the state side by side, each for all
samples, and moment after moment.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pqnet.graph import Node
from pqnet.kernels.abi import StepKernel
from pqnet.kernels.ops import recurrent as kernel
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.copying import dense, emit_copy, emit_fill
from pqnet.runtime.layer import Layer
from pqnet.runtime.lower.layers import emit_layer
from pqnet.runtime.memory import View, round_up

PART = 1024  # elements of a state that a task computes, at least
TASKS = 8
TIME_MAJOR = (1, 2, 0)  # storage order of (batch, steps, features)


def _stored(b: Builder, x: View, order: Sequence[int]) -> View:
    """Return a value stored densely with its axes in an order: itself, if it is."""
    wanted = View.dense_in(x.buffer, x.shape, order).strides
    is_so = all(n == 1 or s == w for n, s, w in zip(x.shape, x.strides, wanted, strict=True))
    return x if is_so else dense(b, x, order)


def _lower(b: Builder, node: Node, x: list[View], cell: StepKernel, more: Mapping[str, Any]) -> tuple[View, ...]:
    """Emit the copies and a round of steps, to be run once for every moment."""
    batch, steps, state = b.info(node.outputs[0]).shape
    products, out = _stored(b, x[0], TIME_MAJOR), b.new((batch, steps, state), TIME_MAJOR)
    states = [b.new((batch, state), (1, 0)) for _ in node.outputs[1:]]
    for i, view in enumerate(states):
        if len(x) > 1:
            emit_copy(b, x[1 + i], view, f"{node.name} (initial state)")
        else:
            emit_fill(b, 0.0, view, f"{node.name} (initial state)")
    first = len(b.steps)
    # Not a node of the graph: nothing but the cell follows it.
    layer = Layer.of_rows(b, Node("linear", node.name, (), (), {}, node.params), (batch, state))
    product = _stored(b, emit_layer(b, layer, states[0]), (1, 0))
    reverse, n = b.attrs(node)["reverse"], batch * state
    part = round_up(max(-(-n // TASKS), PART), WIDTH)
    tasks = -(-n // part)
    moments = {
        "x": products,
        "product": product,
        "state": states[0],
        "out": out,
        "n": n,
        "steps": steps,
        "reverse": int(reverse),
        "tasks": tasks,
        "part": part,
    }
    own = {"memory": states[1]} if len(states) > 1 else {}
    reads, writes = [products, product, *states], [*states, out]
    b.emit(
        cell,
        f"{node.name} (cell)",
        tasks,
        {"moments": moments, **own, **more},
        reads=reads,
        writes=writes,
        numbered=True,
    )
    b.repeat(first, steps)
    return out, *states


@lowers("rnn")
def rnn(b: Builder, node: Node, x: list[View]) -> tuple[View, ...]:
    """Lower a layer without gates."""
    return _lower(b, node, x, kernel.rnn, {"relu": int(b.attrs(node)["nonlinearity"] == "relu")})


@lowers("lstm")
def lstm(b: Builder, node: Node, x: list[View]) -> tuple[View, ...]:
    """Lower an LSTM."""
    return _lower(b, node, x, kernel.lstm, {})


@lowers("gru")
def gru(b: Builder, node: Node, x: list[View]) -> tuple[View, ...]:
    """Lower a GRU."""
    return _lower(b, node, x, kernel.gru, {})
