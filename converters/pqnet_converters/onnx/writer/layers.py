"""Layers with weights, matrix products, attention, norms."""

import math
from typing import Any

import numpy as np

from pqnet.graph import Node
from pqnet_converters.onnx.writer.writer import Writer, writes

Values = list[str]


@writes("linear")
def linear(w: Writer, node: Node, x: Values) -> str:
    weight, bias = w.param(node.params["weight"]), w.role(node, "bias")
    if len(w.info(x[0]).shape) == 2:
        return str(w.add("Gemm", x[0], weight, *([] if bias is None else [bias]), transB=1))
    product = w.add("MatMul", x[0], w.add("Transpose", weight, perm=[1, 0]))
    return product if bias is None else str(w.add("Add", product, bias))


@writes("matmul")
def matmul(w: Writer, node: Node, x: Values) -> str:
    return str(w.add("MatMul", *x))


def _window(node: Node) -> dict[str, Any]:
    a = node.attrs
    return {
        "strides": list(a["stride"]),
        "pads": list(a["padding"]),
        "dilations": list(a["dilation"]),
        "group": a["groups"],
    }


@writes("conv1d", "conv2d", "conv3d")
def conv(w: Writer, node: Node, x: Values) -> str:
    roles = [r for r in (w.role(node, "weight"), w.role(node, "bias")) if r is not None]
    return str(w.add("Conv", x[0], *roles, **_window(node)))


@writes("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(w: Writer, node: Node, x: Values) -> str:
    """The graph's filters (O, Cin / groups, *kernel) are ONNX's (Cin, O / groups, *kernel)."""
    weight, bias, groups = w.param(node.params["weight"]), w.role(node, "bias"), node.attrs["groups"]
    outputs, inputs, *kernel = w.shape_of(node, "weight")
    apart = w.add("Reshape", weight, w.ints(groups, outputs // groups, inputs, *kernel))
    turned = w.permute(apart, (0, 2, 1, *range(3, 3 + len(kernel))))
    filters = w.add("Reshape", turned, w.ints(groups * inputs, outputs // groups, *kernel))
    more: dict[str, Any] = {"output_padding": list(node.attrs["output_padding"])}
    return str(w.add("ConvTranspose", x[0], filters, *([] if bias is None else [bias]), **_window(node), **more))


@writes("attention")
def attention(w: Writer, node: Node, x: Values) -> str:
    query, keys, values, *mask = x
    q, k = w.info(query).shape, w.info(keys).shape
    scale = 1 / math.sqrt(q[-1]) if node.attrs["scale"] is None else node.attrs["scale"]
    axes = [*range(len(k) - 2), len(k) - 1, len(k) - 2]
    scaled = query if scale == 1 else w.add("Mul", query, w.constant(scale, "float32"))
    scores = w.add("MatMul", scaled, w.permute(keys, axes))
    hidden = w.constant(-math.inf, "float32")
    if node.attrs["causal"]:
        shape = w.add("Shape", scores)
        row, column = (
            w.add("Squeeze", w.add("Slice", shape, w.ints(i), w.ints(end)), w.ints(0))
            for i, end in ((-2, -1), (-1, 1 << 40))
        )
        zero, one = w.constant(0, "int64"), w.constant(1, "int64")
        rows = w.add("Unsqueeze", w.add("Range", zero, row, one), w.ints(1))
        seen = w.add("GreaterOrEqual", rows, w.add("Range", zero, column, one))
        scores = w.add("Where", seen, scores, hidden)
    elif mask and w.info(mask[0]).dtype == "bool":
        scores = w.add("Where", mask[0], scores, hidden)
    elif mask:
        scores = w.add("Add", scores, mask[0])
    weights = w.add("Softmax", scores, axis=-1)
    if mask:  # a query that may attend to nothing gets zeros
        weights = w.add("Where", w.add("IsNaN", weights), w.constant(0.0, "float32"), weights)
    return str(w.add("MatMul", weights, values))


@writes("batch_norm")
def batch_norm(w: Writer, node: Node, x: Values) -> str:
    channels = int(w.info(x[0]).shape[1])
    defaults = {"weight": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}
    roles = [
        w.role(node, role) or w.constant(np.full(channels, default), "float32", f"{node.name}.{role}")
        for role, default in defaults.items()
    ]
    return str(w.add("BatchNormalization", x[0], *roles, epsilon=node.attrs["eps"]))


@writes("layer_norm")
def layer_norm(w: Writer, node: Node, x: Values) -> str:
    axes = node.attrs["axes"]
    shape = tuple(map(int, w.info(x[0]).shape[-axes:]))
    weight = w.role(node, "weight") or w.constant(np.ones(shape), "float32", f"{node.name}.weight")
    bias = w.role(node, "bias")
    roles = [weight] if bias is None else [weight, bias]
    return str(w.add("LayerNormalization", x[0], *roles, axis=-axes, epsilon=node.attrs["eps"]))


@writes("rms_norm")
def rms_norm(w: Writer, node: Node, x: Values) -> str:
    axes = w.ints(*range(-node.attrs["axes"], 0))
    squares = w.add("ReduceMean", w.add("Mul", x[0], x[0]), axes, keepdims=1)
    eps = w.constant(np.array(node.attrs["eps"]), "float32")
    y = w.add("Div", x[0], w.add("Sqrt", w.add("Add", squares, eps)))
    weight = w.role(node, "weight")
    return str(y if weight is None else w.add("Mul", y, weight))


@writes("group_norm")
def group_norm(w: Writer, node: Node, x: Values) -> str:
    groups, rank = node.attrs["groups"], len(w.info(x[0]).shape)
    rows = w.add("Reshape", x[0], w.ints(0, groups, -1))
    ones, zeros = (w.constant(np.full(groups, v), "float32") for v in (1.0, 0.0))
    normed = w.add("InstanceNormalization", rows, ones, zeros, epsilon=node.attrs["eps"])
    y = w.add("Reshape", normed, w.add("Shape", x[0]))
    for role, op in (("weight", "Mul"), ("bias", "Add")):
        param = w.role(node, role)
        if param is not None:
            y = w.add(op, y, w.add("Reshape", param, w.ints(-1, *(1,) * (rank - 2))) if rank > 2 else param)
    return str(y)


@writes("rnn")
def rnn(w: Writer, node: Node, x: Values) -> tuple[str, ...]:
    activation = "Tanh" if node.attrs["nonlinearity"] == "tanh" else "Relu"
    return _recurrent(w, node, x, "RNN", (0,), activations=[activation])


@writes("lstm")
def lstm(w: Writer, node: Node, x: Values) -> tuple[str, ...]:
    return _recurrent(w, node, x, "LSTM", (0, 3, 1, 2))


@writes("gru")
def gru(w: Writer, node: Node, x: Values) -> tuple[str, ...]:
    return _recurrent(w, node, x, "GRU", (1, 0, 2), linear_before_reset=1)


def _recurrent(w: Writer, node: Node, x: Values, name: str, order: tuple[int, ...], **attrs: Any) -> tuple[str, ...]:
    """Write a recurrence; ``order`` has the place in the graph (i, f, g, o; r, z, n) of each gate in ONNX's order.

    The graph multiplies the inputs before: ONNX's product with them only puts the gates into its order.
    """
    rows, state = w.shape_of(node, "weight")
    gates = np.concatenate([np.arange(g * state, (g + 1) * state) for g in order])
    chosen = w.constant(gates, "int64", f"{node.name}.gates")
    on = w.constant([0.0, 1.0], "float32")
    inputs = w.add("Unsqueeze", w.add("OneHot", chosen, w.ints(rows), on), w.ints(0))
    recurrence = w.add("Unsqueeze", w.add("Gather", w.param(node.params["weight"]), chosen, axis=0), w.ints(0))
    bias = w.role(node, "bias")
    zeros = w.constant(np.zeros(rows), "float32")
    both = [zeros, zeros if bias is None else w.add("Gather", bias, chosen, axis=0)]
    biases = w.add("Unsqueeze", w.add("Concat", *both, axis=0), w.ints(0))
    initial = [w.add("Unsqueeze", v, w.ints(0)) for v in x[1:]]
    attrs |= {"hidden_size": state, "direction": "reverse" if node.attrs["reverse"] else "forward"}
    steps = w.permute(x[0], (1, 0, 2))
    n = len(node.outputs)
    output, *finals = w.add(name, steps, inputs, recurrence, biases, "", *initial, outputs=n, **attrs)
    output = w.permute(w.add("Squeeze", output, w.ints(1)), (1, 0, 2))
    return output, *(w.add("Squeeze", final, w.ints(0)) for final in finals)
