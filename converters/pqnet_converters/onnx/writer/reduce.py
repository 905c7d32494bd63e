"""Reductions, positions, pooling and resizing."""

from typing import Any

import numpy as np

from pqnet.graph import Node
from pqnet.graph.ops.pool import bins
from pqnet.graph.sizes import Size
from pqnet_converters.onnx.writer.writer import Writer, writes

Values = list[str]
REDUCTIONS = {"mean": "ReduceMean", "sum": "ReduceSum", "prod": "ReduceProd", "max": "ReduceMax", "min": "ReduceMin"}


@writes(*REDUCTIONS)
def reduce(w: Writer, node: Node, x: Values) -> str:
    have, want = w.info(x[0]).dtype, w.info(node.outputs[0]).dtype
    held = {"bool": "int32", "int16": "int32"}.get(want, want)
    y = w.add(
        REDUCTIONS[node.op],
        w.cast(x[0], have, held),
        w.ints(*node.attrs["axes"]),
        keepdims=int(node.attrs["keepdims"]),
    )
    return w.cast(y, held, want)


@writes("var")
def var(w: Writer, node: Node, x: Values) -> str:
    axes, correction = node.attrs["axes"], node.attrs["correction"]
    over, sizes = w.ints(*axes), [w.info(x[0]).shape[a] for a in axes]
    deviation = w.add("Sub", x[0], w.add("ReduceMean", x[0], over, keepdims=1))
    square = w.add("Mul", deviation, deviation)
    keep = int(node.attrs["keepdims"])
    if correction == 0:
        return str(w.add("ReduceMean", square, over, keepdims=keep))
    if any(isinstance(n, Size) for n in sizes):
        raise w.refuse("a variance with a correction, over axes of free size, has no ONNX form")
    total = w.add("ReduceSum", square, over, keepdims=keep)
    return str(w.add("Div", total, w.constant(max(int(np.prod(sizes)) - correction, 0), "float32")))


@writes("argmax", "argmin")
def place(w: Writer, node: Node, x: Values) -> str:
    have = w.info(x[0]).dtype
    value = w.cast(x[0], have, {"bool": "uint8", "int16": "int32"}.get(have, have))
    op = "ArgMax" if node.op == "argmax" else "ArgMin"
    return str(w.add(op, value, axis=node.attrs["axis"], keepdims=int(node.attrs["keepdims"])))


@writes("topk")
def topk(w: Writer, node: Node, x: Values) -> tuple[str, ...]:
    a = node.attrs
    made: tuple[str, ...] = w.add("TopK", x[0], w.size(a["k"]), axis=a["axis"], largest=int(a["largest"]), outputs=2)
    return made


@writes("cumsum")
def cumsum(w: Writer, node: Node, x: Values) -> str:
    have, want = w.info(x[0]).dtype, w.info(node.outputs[0]).dtype
    return str(w.add("CumSum", w.cast(x[0], have, want), w.constant(node.attrs["axis"], "int64")))


def _pool(node: Node) -> dict[str, Any]:
    a = node.attrs
    return {
        "kernel_shape": list(a["kernel"]),
        "strides": list(a["stride"]),
        "pads": list(a["padding"]),
        "ceil_mode": int(a["ceil_mode"]),
    }


@writes("max_pool2d")
def max_pool(w: Writer, node: Node, x: Values) -> str:
    return str(w.add("MaxPool", x[0], dilations=list(node.attrs["dilation"]), **_pool(node)))


@writes("avg_pool2d")
def avg_pool(w: Writer, node: Node, x: Values) -> str:
    divisor, include = node.attrs["divisor"], node.attrs["count_include_pad"]
    if divisor is not None and (node.attrs["ceil_mode"] or not include):
        raise w.refuse("a divisor together with ceil_mode, or without the padding, has no ONNX form")
    y = w.add("AveragePool", x[0], count_include_pad=int(include), **_pool(node))
    if divisor is None:
        return str(y)
    return str(w.add("Mul", y, w.constant(float(np.prod(node.attrs["kernel"])) / divisor, "float32")))


@writes("adaptive_avg_pool2d", "adaptive_max_pool2d")
def adaptive(w: Writer, node: Node, x: Values) -> str:
    """Where bins are not all of the input, each is reduced alone."""
    mean = node.op == "adaptive_avg_pool2d"
    if tuple(node.attrs["size"]) == (1, 1):
        return str(w.add("GlobalAveragePool" if mean else "GlobalMaxPool", x[0]))
    value, shape = x[0], w.info(x[0]).shape
    for axis, count in ((3, node.attrs["size"][1]), (2, node.attrs["size"][0])):
        if isinstance(shape[axis], Size):
            raise w.refuse("bins of an axis of free size have no ONNX form but for one; fix the size")
        parts = []
        for start, stop in zip(*(ends.tolist() for ends in bins(int(shape[axis]), count)), strict=True):
            part = w.add("Slice", value, w.ints(start), w.ints(stop), w.ints(axis))
            parts.append(w.add("ReduceMean" if mean else "ReduceMax", part, w.ints(axis), keepdims=1))
        value = parts[0] if len(parts) == 1 else w.add("Concat", *parts, axis=axis)
    return value


@writes("interpolate")
def interpolate(w: Writer, node: Node, x: Values) -> str:
    a, shape = node.attrs, w.info(x[0]).shape
    modes = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}
    where = "asymmetric" if a["mode"] == "nearest" else "align_corners" if a["align_corners"] else "half_pixel"
    attrs: dict[str, Any] = {"mode": modes[a["mode"]], "coordinate_transformation_mode": where, "nearest_mode": "floor"}
    if a["antialias"]:
        attrs |= {"antialias": 1, "exclude_outside": 1}
    scales = [a["scale_height"], a["scale_width"]]
    if any(s is not None for s in scales):
        known = [
            s if s is not None else int(n) / int(m)
            for s, n, m in zip(scales, w.info(node.outputs[0]).shape[2:], shape[2:], strict=True)
        ]
        return str(w.add("Resize", x[0], "", w.constant([1.0, 1.0, *known], "float32"), **attrs))
    lead = w.add("Slice", w.add("Shape", x[0]), w.ints(0), w.ints(2))
    size = w.add("Concat", lead, w.sizes(a["size"]), axis=0)
    return str(w.add("Resize", x[0], "", "", size, **attrs))
