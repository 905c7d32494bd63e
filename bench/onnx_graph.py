"""A pqnet graph as an ONNX model with the same float32 arithmetic, so that other engines run the very same network.

Only the operations of the networks in `nets` are there. Weights are decoded, all sizes are fixed: peers plan best so.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pqnet import Packed
from pqnet.graph import Graph, Node

OPSET = 20  # the first with Gelu
DIRECT = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}
DTYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}

EXPORTERS: dict[str, Callable[["Exporter", Node], None]] = {}


class Exporter:
    """Collects the nodes and initializers of one ONNX model."""

    def __init__(self, graph: Graph, symbols: Mapping[str, int]) -> None:
        self.graph = graph.validate()
        self.infos = self.graph.infer_shapes(symbols)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def emit(self, op: str, inputs: list[str], output: str, **attrs: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attrs))
        return output

    def constant(self, name: str, array: np.ndarray) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def array(self, node: Node, role: str) -> np.ndarray | None:
        param = self.graph.params[node.params[role]] if role in node.params else None
        dense = param.decode() if isinstance(param, Packed) else param
        return dense.astype(np.float32) if dense is not None and dense.dtype == np.float16 else dense

    def param(self, node: Node, role: str, default: np.ndarray | None = None) -> str:
        """Return the name of a parameter as an ONNX constant; "" (absent) if there is none and no default."""
        array = self.array(node, role)
        if array is not None:
            return self.constant(node.params[role], array)
        return "" if default is None else self.constant(f"{node.name}.{role}", default)

    def shape(self, value: str) -> tuple[int, ...]:
        return self.infos[value].shape

    def build(self) -> onnx.ModelProto:
        for node in self.graph.nodes:
            if node.op not in EXPORTERS:
                raise ValueError(f"node {node.name!r}: no ONNX form of {node.op!r} here")
            EXPORTERS[node.op](self, node)
        for name, value in self.graph.outputs.items():
            self.emit("Identity", [value], f"output:{name}")
        inputs = [self._described(name, name) for name in self.graph.inputs]
        outputs = [self._described(f"output:{name}", value) for name, value in self.graph.outputs.items()]
        graph = helper.make_graph(self.nodes, "network", inputs, outputs, list(self.constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = 9
        onnx.checker.check_model(model)
        return model

    def _described(self, name: str, value: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, DTYPES[self.infos[value].dtype], self.shape(value))


def to_onnx(graph: Graph, symbols: Mapping[str, int] | None = None) -> onnx.ModelProto:
    """Return a graph as an ONNX model, its free sizes set to ``symbols`` (default: the graph's own)."""
    return Exporter(graph, {**graph.symbols, **(symbols or {})}).build()


def exports(*ops: str) -> Callable[[Callable[[Exporter, Node], None]], Callable[[Exporter, Node], None]]:
    def enter(function: Callable[[Exporter, Node], None]) -> Callable[[Exporter, Node], None]:
        EXPORTERS.update(dict.fromkeys(ops, function))
        return function

    return enter


@exports(*DIRECT)
def _direct(e: Exporter, n: Node) -> None:
    inputs = list(n.inputs)
    if n.attrs.get("scalar") is not None:
        scalar = e.constant(f"{n.name}.scalar", np.asarray(n.attrs["scalar"], np.float32))
        inputs.insert(0 if n.attrs.get("reverse") else 1, scalar)
    e.emit(DIRECT[n.op], inputs, n.outputs[0])


@exports("silu")
def _silu(e: Exporter, n: Node) -> None:
    gate = e.emit("Sigmoid", [n.inputs[0]], f"{n.name}.gate")
    e.emit("Mul", [n.inputs[0], gate], n.outputs[0])


@exports("gelu")
def _gelu(e: Exporter, n: Node) -> None:
    e.emit("Gelu", list(n.inputs), n.outputs[0], approximate=n.attrs["approximate"])


@exports("clamp")
def _clamp(e: Exporter, n: Node) -> None:
    ends = [
        "" if n.attrs[end] is None else e.constant(f"{n.name}.{end}", np.asarray(n.attrs[end], np.float32))
        for end in ("min", "max")
    ]
    e.emit("Clip", [n.inputs[0], *ends], n.outputs[0])


@exports("conv2d")
def _conv2d(e: Exporter, n: Node) -> None:
    weight, bias = e.param(n, "weight"), e.param(n, "bias")
    e.emit(
        "Conv",
        [n.inputs[0], weight] + [bias] * bool(bias),
        n.outputs[0],
        strides=n.attrs["stride"],
        pads=n.attrs["padding"],
        dilations=n.attrs["dilation"],
        group=n.attrs["groups"],
    )


@exports("batch_norm")
def _batch_norm(e: Exporter, n: Node) -> None:
    channels = e.shape(n.inputs[0])[1]
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    roles = [e.param(n, role, d) for role, d in (("weight", ones), ("bias", zeros), ("mean", zeros), ("var", ones))]
    e.emit("BatchNormalization", [n.inputs[0], *roles], n.outputs[0], epsilon=n.attrs["eps"])


@exports("layer_norm")
def _layer_norm(e: Exporter, n: Node) -> None:
    shape = e.shape(n.inputs[0])[-n.attrs["axes"] :]
    weight, bias = e.param(n, "weight", np.ones(shape, np.float32)), e.param(n, "bias")
    inputs = [n.inputs[0], weight] + [bias] * bool(bias)
    e.emit("LayerNormalization", inputs, n.outputs[0], axis=-n.attrs["axes"], epsilon=n.attrs["eps"])


@exports("max_pool2d")
def _max_pool(e: Exporter, n: Node) -> None:
    a = n.attrs
    e.emit(
        "MaxPool",
        [n.inputs[0]],
        n.outputs[0],
        kernel_shape=a["kernel"],
        strides=a["stride"],
        pads=a["padding"],
        dilations=a["dilation"],
        ceil_mode=int(a["ceil_mode"]),
    )


@exports("mean")
def _mean(e: Exporter, n: Node) -> None:
    if n.attrs["axes"] != (2, 3) or len(e.shape(n.inputs[0])) != 4:
        axes = e.constant(f"{n.name}.axes", np.asarray(n.attrs["axes"], np.int64))
        e.emit("ReduceMean", [n.inputs[0], axes], n.outputs[0], keepdims=int(n.attrs["keepdims"]))
    elif n.attrs["keepdims"]:
        e.emit("GlobalAveragePool", [n.inputs[0]], n.outputs[0])
    else:
        e.emit("Flatten", [e.emit("GlobalAveragePool", [n.inputs[0]], f"{n.name}.pooled")], n.outputs[0])


@exports("linear")
def _linear(e: Exporter, n: Node) -> None:
    bias = e.param(n, "bias")
    if len(e.shape(n.inputs[0])) == 2:
        inputs = [n.inputs[0], e.param(n, "weight")] + [bias] * bool(bias)
        e.emit("Gemm", inputs, n.outputs[0], transB=1)
        return
    weight = e.array(n, "weight")
    assert weight is not None
    right = e.constant(f"{n.params['weight']}.T", weight.T)
    product = e.emit("MatMul", [n.inputs[0], right], f"{n.name}.product" if bias else n.outputs[0])
    if bias:
        e.emit("Add", [product, bias], n.outputs[0])


@exports("matmul")
def _matmul(e: Exporter, n: Node) -> None:
    e.emit("MatMul", list(n.inputs), n.outputs[0])


@exports("softmax")
def _softmax(e: Exporter, n: Node) -> None:
    e.emit("Softmax", list(n.inputs), n.outputs[0], axis=n.attrs["axis"])


@exports("attention")
def _attention(e: Exporter, n: Node) -> None:
    """Write the products and the softmax out, as PyTorch's exporter does and as engines recognize it."""
    if n.attrs["causal"] or len(n.inputs) > 3:
        raise ValueError(f"node {n.name!r}: no ONNX form of masked attention here")
    q, k, v = n.inputs
    rank, size = len(e.shape(k)), e.shape(q)[-1]
    turned = e.emit("Transpose", [k], f"{n.name}.k", perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = e.emit("MatMul", [q, turned], f"{n.name}.scores")
    factor = 1 / math.sqrt(size) if n.attrs["scale"] is None else n.attrs["scale"]
    scaled = e.emit("Mul", [scores, e.constant(f"{n.name}.scale", np.asarray(factor, np.float32))], f"{n.name}.scaled")
    e.emit("MatMul", [e.emit("Softmax", [scaled], f"{n.name}.shares", axis=-1), v], n.outputs[0])


@exports("reshape")
def _reshape(e: Exporter, n: Node) -> None:
    shape = e.constant(f"{n.name}.shape", np.asarray(e.shape(n.outputs[0]), np.int64))
    e.emit("Reshape", [n.inputs[0], shape], n.outputs[0])


@exports("permute")
def _permute(e: Exporter, n: Node) -> None:
    e.emit("Transpose", [n.inputs[0]], n.outputs[0], perm=n.attrs["axes"])
