"""Operations that move elements, or write them."""

import numpy as np

from pqnet.graph import Node
from pqnet_converters.onnx.writer.writer import Writer, writes

Values = list[str]
LAST = np.iinfo(np.int64)


@writes("reshape")
def reshape(w: Writer, node: Node, x: Values) -> str:
    return w.reshape(x[0], node.attrs["shape"])


@writes("permute")
def permute(w: Writer, node: Node, x: Values) -> str:
    return w.permute(x[0], node.attrs["axes"])


@writes("slice")
def slice_(w: Writer, node: Node, x: Values) -> str:
    a = node.attrs
    stop = a["stop"] if a["stop"] is not None else LAST.max if a["step"] > 0 else LAST.min
    return str(w.add("Slice", x[0], w.size(a["start"]), w.size(stop), w.ints(a["axis"]), w.ints(a["step"])))


@writes("concat")
def concat(w: Writer, node: Node, x: Values) -> str:
    return str(w.add("Concat", *x, axis=node.attrs["axis"]))


@writes("split")
def split(w: Writer, node: Node, x: Values) -> tuple[str, ...]:
    sizes = node.attrs["sizes"]
    made = w.add("Split", x[0], w.sizes(sizes), axis=node.attrs["axis"], outputs=len(sizes))
    return (made,) if isinstance(made, str) else made


@writes("expand")
def expand(w: Writer, node: Node, x: Values) -> str:
    return str(w.add("Expand", x[0], w.sizes(node.attrs["shape"])))


@writes("pad")
def pad(w: Writer, node: Node, x: Values) -> str:
    a, dtype = node.attrs, w.info(x[0]).dtype
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    pads = w.ints(*a["padding"][::2], *a["padding"][1::2])
    if a["mode"] != "constant":
        return str(w.add("Pad", x[0], pads, mode=modes[a["mode"]]))
    held = "uint8" if dtype == "bool" else dtype
    value = w.constant(a["value"] if dtype != "bool" else bool(a["value"]), held)
    return w.cast(w.add("Pad", w.cast(x[0], dtype, held), pads, value), held, dtype)


@writes("index_select")
def index_select(w: Writer, node: Node, x: Values) -> str:
    return str(w.add("Gather", x[0], x[1], axis=node.attrs["axis"]))


@writes("scatter")
def scatter(w: Writer, node: Node, x: Values) -> str:
    return str(w.add("ScatterElements", *x, axis=node.attrs["axis"], reduction=node.attrs["reduction"]))


@writes("embedding")
def embedding(w: Writer, node: Node, x: Values) -> str:
    return str(w.add("Gather", w.param(node.params["weight"]), x[0], axis=0))
