"""Recurrent layers: of each direction a linear layer over all steps, and the recurrent operation."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from pqnet_converters.torch.aten.layers import linear
from pqnet_converters.torch.aten.registry import rule
from pqnet_converters.torch.importer import Importer, Tensor


def _recurrent(
    op: str,
    b: Importer,
    x: Tensor,
    initial: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
    **attrs: Any,
) -> tuple[Tensor | str | None, ...]:
    """Emit all layers; return their output and final states, as PyTorch's operations do."""
    directions = 2 if bidirectional else 1
    each = 4 if has_biases else 2
    if len(params) != layers * directions * each:
        raise b.refuse("expected a layer without projections, got proj_size; there is no operation for it")
    value: Tensor | str = x if batch_first else b.emit("permute", x, axes=(1, 0, 2))
    batch, finals = x.shape[0 if batch_first else 1], []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            at = layer * directions + direction
            w_input, w_state, *biases = params[at * each : (at + 1) * each]
            b_input, b_state = biases or (None, None)
            roles = {"weight": b.param(w_state, "weight")}
            if b_state is not None:
                roles["bias"] = b.param(b_state, "bias")
            products = linear(b, value, w_input, b_input)
            output, *final = b.emit_many(
                op,
                (products, *_initial(b, initial, at, batch)),
                1 + len(initial),
                name=b.layer_name(w_state),
                params=roles,
                reverse=direction == 1,
                **attrs,
            )
            outputs.append(output)
            finals.append(final)
        value = outputs[0] if directions == 1 else b.emit("concat", *outputs, axis=2)
    result = value if batch_first else b.emit("permute", value, axes=(1, 0, 2))
    shape = (1, batch, params[1].shape[1])
    found: list[Tensor | str | None] = [result]
    for i in range(len(initial)):
        parts = [b.emit("reshape", final[i], shape=shape) for final in finals] if b.used(1 + i) else []
        found.append((parts[0] if len(parts) == 1 else b.emit("concat", *parts, axis=0)) if parts else None)
    return tuple(found)


def _initial(b: Importer, initial: Sequence[Tensor], at: int, batch: Any) -> list[str]:
    """Return the initial states of one layer and direction; none if they are zero, which is what layers start from."""
    if all(b.is_zero(states) for states in initial):
        return []
    own = [b.emit("slice", states, axis=0, start=at, stop=at + 1) for states in initial]
    return [b.emit("reshape", x, shape=(batch, states.shape[2])) for x, states in zip(own, initial, strict=True)]


@rule("aten.lstm.input")
def lstm(
    b: Importer,
    x: Tensor,
    initial: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor | str | None, ...]:
    return _recurrent("lstm", b, x, initial, params, has_biases, layers, bidirectional, batch_first)


def _one_state(
    op: str,
    attrs: dict[str, Any],
    b: Importer,
    x: Tensor,
    initial: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor | str | None, ...]:
    return _recurrent(op, b, x, [initial], params, has_biases, layers, bidirectional, batch_first, **attrs)


rule("aten.gru.input")(partial(_one_state, "gru", {}))
rule("aten.rnn_tanh.input")(partial(_one_state, "rnn", {"nonlinearity": "tanh"}))
rule("aten.rnn_relu.input")(partial(_one_state, "rnn", {"nonlinearity": "relu"}))
