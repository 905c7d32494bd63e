"""Attention with queries as lanes, or, of a few queries, with features as lanes."""

import math
from math import prod

from pqnet.graph import Node
from pqnet.kernels.ops.attention import attention, attention_of_few
from pqnet.kernels.products.tile import LANES, ROWS
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.copying import dense
from pqnet.runtime.lower.typed import additive_mask
from pqnet.runtime.memory import View, round_up

FEW = 8  # queries that cost less one by one than LANES together
LEAD = 3  # leading axes: batch, heads, groups of heads with the same keys and values


def _tokens_inside(b: Builder, view: View) -> View:
    """Return a value with its leading axes whose tokens are contiguous."""
    return view if view.strides[3] == 1 or view.shape[3] == 1 else dense(b, view, (1, 2, 4, 0, 3))


def _features_inside(view: View) -> bool:
    """Tell whether the features of a token are contiguous."""
    return view.strides[4] == 1 or view.shape[4] == 1


def _with_lead(view: View, lead: int) -> View:
    """Return a value with LEAD leading axes; it has ``lead`` of them, missing ones are put behind these."""
    more = LEAD - lead
    shape, strides = view.shape, view.strides
    return view.with_axes(
        (*shape[:lead], *(1,) * more, *shape[lead:]), (*strides[:lead], *(0,) * more, *strides[lead:])
    )


def _mask_with_lead(mask: View, lead: int) -> View:
    """Return a mask with all leading axes, each of its size or 1."""
    missing = lead + 2 - len(mask.shape)
    return _with_lead(mask.with_axes((1,) * missing + mask.shape, (0,) * missing + mask.strides), lead)


def _mask(b: Builder, value: str, mask: View, queries: int, keys: int) -> View | None:
    """Return a mask as terms of the scores, (*lead, queries, keys) or broadcast to it, its queries side by side.

    Layers often share a mask: it is brought into this form once.
    """
    made_from = "attention mask", value, mask.shape
    if made_from in b.derived:
        return b.derived[made_from]
    mask = mask.expand((*mask.shape[:LEAD], queries, keys))
    order = 0, 1, 2, 4, 3
    if mask.dtype == "bool":
        found = additive_mask(b, mask, order, f"{value} as terms")
    elif mask.dtype == "float32":
        found = mask if mask.strides[3] == 1 else dense(b, mask, order)
    else:
        found = None
    if found is not None:
        b.derived[made_from] = found
    return found


@lowers("attention", typed=True)
def lower_attention(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower attention of up to three leading axes, those of the queries; keys and values may be shared along them."""
    lead = x[0].shape[:-2]
    same = all(len(view.shape) == len(x[0].shape) for view in x[1:3])
    if not 1 <= len(lead) <= LEAD or not same or b.info(node.outputs[0]).shape[:-2] != lead:
        return None
    a, mask = b.attrs(node), None
    if len(x) == 4:
        mask = _mask(b, node.inputs[3], _mask_with_lead(x[3], len(lead)), x[0].shape[-2], x[2].shape[-2])
        if mask is None:
            return None
    q, k, v = (_with_lead(view, len(lead)) for view in x[:3])
    few = q.shape[3] <= FEW and _features_inside(k) and _features_inside(v)
    if not few:
        q, k, v = (_tokens_inside(b, view) for view in (q, k, v))
    *sizes, queries, inner = q.shape
    keys, outer = v.shape[3:]
    k, v = (view.expand((*sizes, *view.shape[3:])) for view in (k, v))
    out = b.new((*sizes, queries, outer), (1, 2, 4, 0, 3))
    reads = [q, k, v]
    if mask is not None:
        mask = mask.expand((*sizes, queries, keys))
        reads.append(mask)
    arguments = {
        "q": q,
        "k": k,
        "v": v,
        "out": out,
        "mask": -1 if mask is None else mask,
        "heads": sizes[1],
        "groups": sizes[2],
        "queries": queries,
        "keys": keys,
        "inner": inner,
        "outer": outer,
        **{f"{name}_steps": view.strides for name, view in (("q", q), ("k", k), ("v", v), ("out", out))},
        "mask_steps": (0,) * 5 if mask is None else mask.strides,
        "scale": b.numbers(1 / math.sqrt(inner) if a["scale"] is None else a["scale"]),
        "causal": int(a["causal"]),
    }
    tasks = prod(sizes)
    if few:
        scratch = round_up(inner, WIDTH) + round_up(keys, WIDTH) + 4 * WIDTH
        b.emit(attention_of_few, node.name, tasks, arguments, reads=reads, writes=[out], scratch=scratch)
    else:
        tasks, scratch = tasks * -(-queries // LANES), (inner + keys + 3 * ROWS) * LANES
        b.emit(attention, node.name, tasks, arguments, reads=reads, writes=[out], scratch=scratch)
    return out.reshape(b.info(node.outputs[0]).shape)
