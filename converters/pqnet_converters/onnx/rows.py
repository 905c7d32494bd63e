"""Rows whose number depends on data: padded with zeros in the graph, and counted by an output of their own.

What is computed from each row alone is right in the rows that count, whatever becomes of the others; an operation that
mixes rows would see the padding, and is refused.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pqnet.errors import UnsupportedOpError
from pqnet.graph import Node
from pqnet.graph.op import Info, get_op
from pqnet.graph.ops.elementwise import elementwise

__all__ = ["padded_axes"]

# Along one axis or some; the others are left as they are.
ALONG = frozenset(("softmax", "log_softmax", "slice", "split", "concat", "topk"))
REDUCED = frozenset(("sum", "mean", "prod", "max", "min", "argmax", "argmin"))


def padded_axes(nodes: Sequence[Node], infos: Mapping[str, Info], counts: Mapping[str, str]) -> dict[str, str]:
    """Return for each value that has rows of padding the value that counts the others.

    Parameters
    ----------
    nodes : sequence of Node
        In execution order.
    infos : mapping of str to Info
        Of all values.
    counts : mapping of str to str
        Values that are padded behind their first axis' rows, and what counts these.

    Raises
    ------
    UnsupportedOpError
        A node mixes rows of padding with others.
    """
    found = {value: (0, count) for value, count in counts.items()}
    for node in nodes:
        padded = [found.get(value) for value in node.inputs]
        given = [each for each in padded if each is not None]
        if not given or any(value in counts for value in node.outputs):
            continue
        axes = [None if each is None else each[0] for each in padded]
        shapes = [infos[value].shape for value in node.inputs]
        axis = _axis_behind(node, axes, shapes, [infos[value].shape for value in node.outputs])
        if axis is None or len({count for _, count in given}) > 1:
            raise UnsupportedOpError(
                f"node {node.name!r} ({node.op}): expected an operation on each row alone after NonMaxSuppression, "
                "whose number of rows depends on what is in the input; let the network end before it"
            )
        found.update(dict.fromkeys(node.outputs, (axis, given[0][1])))
    return {value: count for value, (_, count) in found.items()}


def _axis_behind(node: Node, axes: list[int | None], shapes: list[Any], results: list[Any]) -> int | None:
    """Return the axis of the results that has the rows, None if they are mixed."""
    at = next(i for i, axis in enumerate(axes) if axis is not None)
    axis, shape, rank, attrs = axes[at] or 0, shapes[at], len(results[0]), node.attrs
    if node.op in ALONG:
        return axis if attrs["axis"] != axis and all(a in (None, axis) for a in axes) else None
    if node.op == "expand" or get_op(node.op).order is elementwise:
        places = {rank - len(s) + a for s, a in zip(shapes, axes, strict=True) if a is not None}
        return places.pop() if len(places) == 1 else None
    if node.op in REDUCED:
        over = attrs["axes"] if "axes" in attrs else (attrs["axis"],)
        return None if axis in over else axis - (0 if attrs["keepdims"] else sum(a < axis for a in over))
    if node.op == "reshape":
        before = math.prod(shape[:axis])
        fitting = (j for j in range(rank) if math.prod(results[0][:j]) == before and results[0][j] == shape[axis])
        return next(fitting, None)
    if node.op == "permute":
        return int(list(attrs["axes"]).index(axis))
    if node.op == "index_select":
        if at == 1 and axes[0] is None:
            return int(attrs["axis"])
        return axis if axes[1] is None and axis != attrs["axis"] else None
    weight = get_op(node.op).weight
    if weight is None or weight.kernel_axes or not weight.is_product:
        return None
    return axis if weight.looked_up or axis != weight.channel_axis(len(shape)) else None
