"""Selection along an axis by indices."""

from math import prod

import numpy as np

from pqnet.graph import Node
from pqnet.kernels.ops import gather as kernel
from pqnet.runtime.builder import Builder, Check, lowers
from pqnet.runtime.copying import dense
from pqnet.runtime.memory import ITEMSIZE, View, merge_axes

__all__ = ["checked_ids"]

TASKS, WORK = 32, 16384  # tasks of a step at most, elements a task at least


def checked_ids(b: Builder, node: Node, ids: View, below: int) -> View:
    """Return indices stored row by row, after a step that finds their range: it is checked when the program runs."""
    order = range(len(ids.shape))
    if View.dense_in(ids.buffer, ids.shape, order).strides != ids.strides:
        ids = dense(b, ids, order)
    limits = b.new((2,), dtype="int64")
    arguments = {"ids": ids, "out": limits, "n": ids.size}
    check = Check(node, limits, below)
    b.emit(kernel.find_range, node.name, 1, arguments, reads=[ids], writes=[limits], check=check)
    return ids


@lowers("index_select", typed=True)
def index_select(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower the selection of indices along an axis."""
    source, axis = x[0], b.attrs(node)["axis"]
    shape, dtype = b.info(node.outputs[0])
    content = b.known.get(node.inputs[0])
    if content is not None:  # lies row by row where constants are
        source = View.dense_in(source.buffer, source.shape, range(len(source.shape)), dtype)
    below = source.shape[axis]
    order = [a for a in source.order() if a != axis]
    out = View.dense_in(source.buffer, shape, source.order())  # for its strides
    axes = merge_axes([shape[a] for a in order], *([v.strides[a] for a in order] for v in (source, out)))
    if len(axes) > 4:
        return None
    known = b.known.get(node.inputs[1])
    if known is not None and (known.min() < 0 or known.max() >= below):
        return None  # NumPy says what is wrong with them
    ids = checked_ids(b, node, x[1], below) if known is None else None
    out = b.new(shape, source.order(), dtype)
    sizes, x_steps, steps = zip(*[(1, 0, 0)] * (4 - len(axes)), *axes, strict=True)
    n = shape[axis]
    rows = prod(sizes[:3]) * n
    per_task = min(max(WORK // sizes[3], -(-rows // TASKS), 1), rows)
    arguments = {
        **_source(b, source, content),
        "out": out,
        "ids": -1 if ids is None else ids,
        "table": -1 if known is None else b.table(known),
        "n": n,
        "below": below,
        "x_step": source.strides[axis],
        "step": out.strides[axis],
        "sizes": sizes,
        "x_steps": x_steps,
        "steps": steps,
        "element": ITEMSIZE[dtype],
        "per_task": per_task,
    }
    reads = [view for view in (source if content is None else None, ids) if view is not None]
    b.emit(kernel.gather, node.name, -(-rows // per_task), arguments, reads=reads, writes=[out])
    return out


def _source(b: Builder, view: View, content: np.ndarray | None) -> dict[str, View | int]:
    """Return the arguments that say where the source is, by its content if that is known."""
    nowhere: dict[str, View | int] = {"x": -1, "floats": -1, "numbers": -1}
    if content is None:
        return nowhere | {"x": view}
    if view.dtype == "float32":
        key = "constant", content.shape, content.dtype.name, content.tobytes()
        return nowhere | {"floats": b.constant(key, lambda: content)}
    return nowhere | {"numbers": b.table(content)}
