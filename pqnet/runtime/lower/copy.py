"""Operations that are copies: concat, pad."""

from pqnet.graph import Node
from pqnet.graph.ops.elementwise import as_scalar
from pqnet.runtime.builder import Builder, lowers, storage_order
from pqnet.runtime.copying import emit_copy, emit_fill
from pqnet.runtime.memory import View, take_in


@lowers("concat", typed=True)
def concat(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a concatenation: inputs that are stored as they lie in it are computed there, others are copied."""
    axis, start, parts = b.attrs(node)["axis"], 0, []
    shape = b.info(node.outputs[0]).shape
    out = b.new(shape, storage_order(len(shape), x[0].dtype), x[0].dtype)
    for view in x:
        parts.append((view, out.slice(axis, start, view.shape[axis])))
        start += view.shape[axis]
    for (view, part), taken in zip(parts, take_in(out, parts), strict=True):
        if not taken:
            emit_copy(b, view, part, node.name)
    return out


@lowers("pad", typed=True)
def pad(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower padding: the input is copied to its place, then the borders are made axis by axis."""
    a = b.attrs(node)
    shape = b.info(node.outputs[0]).shape
    out = b.new(shape, storage_order(len(shape), x[0].dtype), x[0].dtype)
    source, inside = x[0], out
    for axis, (before, after) in enumerate(zip(a["padding"][::2], a["padding"][1::2], strict=True)):
        source = source.slice(axis, max(-before, 0), source.shape[axis] + min(before, 0) + min(after, 0))
        inside = inside.slice(axis, max(before, 0), source.shape[axis])
    emit_copy(b, source, inside, node.name)
    done = inside
    for axis, (before, after) in enumerate(zip(a["padding"][::2], a["padding"][1::2], strict=True)):
        size = done.shape[axis]
        for count, first, near in ((before, -before, 0), (after, size, size - 1)):
            if count <= 0:
                continue
            border = done.slice(axis, first, count)
            if a["mode"] == "constant":
                emit_fill(b, as_scalar(a["value"], out.dtype), border, node.name)
            elif a["mode"] == "replicate":
                emit_copy(b, done.slice(axis, near, 1).expand(border.shape), border, node.name)
            else:  # a mirror at the last pixel
                start = count if first < 0 else size - 2
                emit_copy(b, done.slice(axis, start, count, -1), border, node.name)
        grown = max(before, 0) + size + max(after, 0)
        done = done.slice(axis, -max(before, 0), grown)
    return out
