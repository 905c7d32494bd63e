"""Attention with queries as lanes."""

import math

from pqnet.graph import Node
from pqnet.kernels.attention import attention
from pqnet.kernels.tile import LANES, ROWS
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.lower.copy import dense
from pqnet.runtime.views import View


def _tokens_inside(b: Builder, view: View) -> View:
    """Return a value (B, H, tokens, features) whose tokens are contiguous."""
    return view if view.strides[2] == 1 or view.shape[2] == 1 else dense(b, view, (1, 3, 0, 2))


@lowers("attention")
def lower_attention(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower attention of one or two leading axes, equal for queries, keys and values."""
    lead = x[0].shape[:-2]
    if len(lead) not in (1, 2) or any(view.shape[:-2] != lead for view in x[1:3]):
        return None
    if len(lead) == 1:
        x = [View(v.buffer, v.offset, (v.shape[0], 1, *v.shape[1:]), (v.strides[0], 0, *v.strides[1:])) for v in x]
    a = b.attrs(node)
    q, k, v = (_tokens_inside(b, view) for view in x[:3])
    batch, heads, queries, inner = q.shape
    keys, outer = v.shape[2:]
    mask: list[int | View] = [-1, 0, 0, 0]
    reads = [q, k, v]
    if len(x) == 4:
        wide = x[3].expand((batch, heads, queries, keys))
        if wide.strides[2] != 1:
            wide = dense(b, x[3], range(len(x[3].shape))).expand((batch, heads, queries, keys))
            wide = dense(b, wide, (0, 1, 3, 2))
        mask = [wide, wide.strides[0], wide.strides[1], wide.strides[3]]
        reads.append(wide)
    out = b.new((batch, heads, queries, outer), (1, 3, 0, 2))
    scale = 1 / math.sqrt(inner) if a["scale"] is None else a["scale"]
    fields: list[int | View] = [q, k, v, out]
    for view in (q, k, v, out):
        fields += [view.strides[0], view.strides[1], view.strides[3]]
    fields += [
        heads,
        queries,
        keys,
        inner,
        outer,
        b.constant(("scalar", scale), lambda: scale),
        int(a["causal"]),
        *mask,
    ]
    scratch = (inner + keys + 3 * ROWS) * LANES
    b.emit(
        attention, node.name, batch * heads * -(-queries // LANES), fields, reads=reads, writes=[out], scratch=scratch
    )
    return out.reshape(b.info(node.outputs[0]).shape)
