"""Recurrent layers: of each direction a linear layer over all steps, and the recurrent operation."""

from typing import Any

import numpy as np

from pqnet_converters.core.importer import Tensor, as_known
from pqnet_converters.core.sizes import compare
from pqnet_converters.onnx.importer import OnnxImporter
from pqnet_converters.onnx.registry import rule

# Of each gate in the graph's order, the place that it has in ONNX's: i, o, f, c of an LSTM and z, r, h of a GRU.
ORDERS = {"rnn": (0,), "lstm": (0, 2, 3, 1), "gru": (1, 0, 2)}
DEFAULTS = {"rnn": ["Tanh"], "lstm": ["Sigmoid", "Tanh", "Tanh"], "gru": ["Sigmoid", "Tanh"]}


def _checked(b: OnnxImporter, op: str, x: Tensor, lengths: Tensor | None, peepholes: Tensor | None) -> dict[str, Any]:
    """Return the attributes of the operation; refuse what it does not know."""
    directions = 2 if b.attr("direction", "forward") == "bidirectional" else 1
    names = [n.capitalize() for n in b.attr("activations", DEFAULTS[op] * directions)]
    attrs: dict[str, Any] = {}
    if op == "rnn" and set(names) == {"Relu"}:
        attrs["nonlinearity"] = "relu"
    elif names != DEFAULTS[op] * directions:
        raise b.refuse(f"expected the activations {DEFAULTS[op]}, got {names}")
    if b.attr("clip") is not None or b.attr("input_forget", 0):
        raise b.refuse("clipped cells and coupled gates have no rule")
    if peepholes is not None and (peepholes.constant is None or peepholes.constant.any()):
        raise b.refuse("peepholes have no rule")
    steps = x.shape[1 if b.attr("layout", 0) else 0]
    if lengths is not None and (lengths.data is None or any(compare(n, steps) for n in lengths.data.reshape(-1))):
        raise b.refuse("expected sequences of one length, got lengths that differ or are computed")
    return attrs


def _gates(op: str, array: np.ndarray) -> np.ndarray:
    """Put the gates along the first axis into the graph's order."""
    parts = np.split(array, len(ORDERS[op]))
    return np.concatenate([parts[i] for i in ORDERS[op]])


def _recurrent(
    op: str,
    b: OnnxImporter,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    initial: list[Tensor | None],
    peepholes: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    attrs = _checked(b, op, x, lengths, peepholes)
    w, r = b.known(weight, "weight"), b.known(recurrence, "weight")
    biases = None if bias is None else b.known(bias, "bias")
    if op == "gru" and not b.attr("linear_before_reset", 0) and (biases is None or biases.any() or r.any()):
        return _reset_before(b, x, w, r, biases, initial[0])
    layout, direction = b.attr("layout", 0), b.attr("direction", "forward")
    value = x if layout else b.permute(x, (1, 0, 2))
    outputs, finals = [], []
    name = b.layer(weight)
    for d in range(len(w)):
        part = f".{('forward', 'reverse')[d]}" if len(w) > 1 else ""
        rows = len(w[d])
        input_bias = None if biases is None or not biases[d, :rows].any() else _gates(op, biases[d, :rows])
        state_bias = None if biases is None or not biases[d, rows:].any() else _gates(op, biases[d, rows:])
        products = b.emit(
            "linear",
            value,
            name=f"{name}{part}.input",
            params={"weight": _float(_gates(op, w[d])), "bias": _float(input_bias)},
        )
        for state in initial:
            if state is not None:
                b.same(value.shape[0], state.shape[0 if layout else 1])
        output, *final = b.emit_many(
            op,
            (products, *_initial(b, initial, d, layout)),
            1 + len(initial),
            name=f"{name}{part}.state",
            params={"weight": _float(_gates(op, r[d])), "bias": _float(state_bias)},
            reverse=direction == "reverse" or d == 1,
            **attrs,
        )
        outputs.append(output)
        finals.append(final)
    return _results(b, outputs, finals, layout)


def _float(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else as_known(array, "float32")


def _initial(b: OnnxImporter, initial: list[Tensor | None], direction: int, layout: int) -> list[Tensor]:
    """Return the initial states of one direction; none where they are zero, which is what layers start from."""
    if all(s is None or (s.constant is not None and not s.constant.any()) or _is_zero(b, s) for s in initial):
        return []
    given = [s for s in initial if s is not None]
    states = [s if s is not None else b.emit("mul", given[0], scalar=0.0) for s in initial]
    axis = 1 if layout else 0
    rows = [b.slice(s, axis, direction, direction + 1) for s in states]
    return [b.reshape(row, [n for i, n in enumerate(row.shape) if i != axis]) for row in rows]


def _is_zero(b: OnnxImporter, x: Tensor) -> bool:
    made = next((node for node in reversed(b.builder.nodes) if x.value in node.outputs), None)
    return made is not None and made.op == "full" and made.attrs["value"] == 0


def _results(
    b: OnnxImporter, outputs: list[Tensor], finals: list[list[Tensor]], layout: int
) -> tuple[Tensor | None, ...]:
    """Give outputs (steps, directions, batch, state) and final states (directions, batch, state)."""
    found: list[Tensor | None] = []
    axis = 2 if layout else 1
    if b.wanted(0):
        parts = [y if layout else b.permute(y, (1, 0, 2)) for y in outputs]
        parts = [b.reshape(y, (*y.shape[:axis], 1, *y.shape[axis:])) for y in parts]
        found.append(parts[0] if len(parts) == 1 else b.emit("concat", *parts, axis=axis))
    else:
        found.append(None)
    for i in range(len(finals[0])):
        if not b.wanted(1 + i):
            found.append(None)
            continue
        axis = 1 if layout else 0
        states = [f[i] for f in finals]
        shaped = [b.reshape(s, (*s.shape[:axis], 1, *s.shape[axis:])) for s in states]
        found.append(shaped[0] if len(shaped) == 1 else b.emit("concat", *shaped, axis=axis))
    return tuple(found)


STEPS = 64  # of a GRU that is unrolled


def _reset_before(
    b: OnnxImporter, x: Tensor, w: np.ndarray, r: np.ndarray, biases: np.ndarray | None, initial: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Unroll a GRU that resets the state before the product with it; the graph's resets the product."""
    layout = b.attr("layout", 0)
    value = x if layout else b.permute(x, (1, 0, 2))
    steps = b.fixed(value.shape[1], "number of steps of a GRU with linear_before_reset=0")
    if steps > STEPS:
        raise b.refuse(f"expected a GRU with linear_before_reset=1 or of at most {STEPS} steps, got {steps} steps")
    outputs, finals, state = [], [], r.shape[2]
    for d in range(len(w)):
        gates = np.zeros((2, 3 * state), np.float32) if biases is None else biases[d].reshape(2, 3 * state)
        weights = _float(_gates("gru", w[d]))
        assert weights is not None
        products = b.emit("linear", value, params={"weight": weights, "bias": _float(_gates("gru", gates.sum(0)))})
        z, reset, n = np.split(r[d], 3)
        both, own = _float(np.concatenate([reset, z])), _float(n)
        found = _initial(b, [initial], d, layout)
        h = found[0] if found else b.emit("full", shape=(value.shape[0], state), value=0.0)
        each: list[Tensor] = []
        backwards = d == 1 or b.attr("direction", "forward") == "reverse"
        for t in reversed(range(steps)) if backwards else range(steps):
            now = b.reshape(b.slice(products, 1, t, t + 1), (value.shape[0], 3 * state))
            left, right = b.slice(now, 1, 0, 2 * state), b.slice(now, 1, 2 * state, 3 * state)
            rz = b.emit("sigmoid", b.emit("add", left, b.emit("linear", h, params={"weight": both})))
            rt, zt = b.slice(rz, 1, 0, state), b.slice(rz, 1, state, 2 * state)
            held = b.emit("linear", b.emit("mul", rt, h), params={"weight": own})
            new = b.emit("tanh", b.emit("add", right, held))
            h = b.emit("add", new, b.emit("mul", zt, b.emit("sub", h, new)))
            each.append(b.reshape(h, (value.shape[0], 1, state)))
        ordered = each[::-1] if backwards else each
        outputs.append(ordered[0] if len(ordered) == 1 else b.emit("concat", *ordered, axis=1))
        finals.append([h])
    return _results(b, outputs, finals, layout)


@rule("LSTM")
def lstm(
    b: OnnxImporter,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    return _recurrent("lstm", b, x, w, r, bias, lengths, [h, c], peepholes)


@rule("GRU")
def gru(
    b: OnnxImporter,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    return _recurrent("gru", b, x, w, r, bias, lengths, [h])


@rule("RNN")
def rnn(
    b: OnnxImporter,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    return _recurrent("rnn", b, x, w, r, bias, lengths, [h])
