"""Attention with queries as lanes."""

import math

from pqnet.graph import Node
from pqnet.kernels.ops.attention import attention
from pqnet.kernels.products.tile import LANES, ROWS
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.copying import dense
from pqnet.runtime.lower.typed import additive_mask
from pqnet.runtime.memory import View


def _tokens_inside(b: Builder, view: View) -> View:
    """Return a value (B, H, tokens, features) whose tokens are contiguous."""
    return view if view.strides[2] == 1 or view.shape[2] == 1 else dense(b, view, (1, 3, 0, 2))


def _with_heads(view: View) -> View:
    """Return a value with two leading axes; a missing one has size 1."""
    if len(view.shape) == 4:
        return view
    return view.with_axes((view.shape[0], 1, *view.shape[1:]), (view.strides[0], 0, *view.strides[1:]))


def _mask_with_heads(mask: View, lead: tuple[int, ...]) -> View:
    """Return a mask with four axes, of which the first two have their size or 1."""
    missing = len(lead) + 2 - len(mask.shape)
    return _with_heads(mask.with_axes((1,) * missing + mask.shape, (0,) * missing + mask.strides))


def _mask(b: Builder, value: str, mask: View, queries: int, keys: int) -> View | None:
    """Return a mask as terms of the scores, (B, H, queries, keys) or broadcast to it, its queries side by side.

    Layers often share a mask: it is brought into this form once.
    """
    made_from = "attention mask", value, mask.shape
    if made_from in b.derived:
        return b.derived[made_from]
    mask = mask.expand((*mask.shape[:2], queries, keys))
    order = 0, 1, 3, 2
    if mask.dtype == "bool":
        found = additive_mask(b, mask, order, f"{value} as terms")
    elif mask.dtype == "float32":
        found = mask if mask.strides[2] == 1 else dense(b, mask, order)
    else:
        found = None
    if found is not None:
        b.derived[made_from] = found
    return found


@lowers("attention", typed=True)
def lower_attention(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower attention of one or two leading axes, equal for queries, keys and values."""
    lead = x[0].shape[:-2]
    if len(lead) not in (1, 2) or any(view.shape[:-2] != lead for view in x[1:3]):
        return None
    a, mask = b.attrs(node), None
    if len(x) == 4:
        mask = _mask(b, node.inputs[3], _mask_with_heads(x[3], lead), x[0].shape[-2], x[2].shape[-2])
        if mask is None:
            return None
    q, k, v = (_tokens_inside(b, _with_heads(view)) for view in x[:3])
    batch, heads, queries, inner = q.shape
    keys, outer = v.shape[2:]
    out = b.new((batch, heads, queries, outer), (1, 3, 0, 2))
    both = q, k, v, out
    arguments = {
        **dict(zip("qkv", both, strict=False)),
        "out": out,
        "batch_steps": [view.strides[0] for view in both],
        "head_steps": [view.strides[1] for view in both],
        "feature_steps": [view.strides[3] for view in both],
        "heads": heads,
        "queries": queries,
        "keys": keys,
        "inner": inner,
        "outer": outer,
        "scale": b.numbers(1 / math.sqrt(inner) if a["scale"] is None else a["scale"]),
        "causal": int(a["causal"]),
        "mask": -1,
        "mask_batch": 0,
        "mask_head": 0,
        "mask_key": 0,
    }
    reads = [q, k, v]
    if mask is not None:
        mask = mask.expand((batch, heads, queries, keys))
        steps = zip(("mask_batch", "mask_head", "mask_key"), (mask.strides[i] for i in (0, 1, 3)), strict=True)
        arguments |= {"mask": mask, **dict(steps)}
        reads.append(mask)
    tasks, scratch = batch * heads * -(-queries // LANES), (inner + keys + 3 * ROWS) * LANES
    b.emit(attention, node.name, tasks, arguments, reads=reads, writes=[out], scratch=scratch)
    return out.reshape(b.info(node.outputs[0]).shape)
