"""Attention and rotary positions, where they are one operation (opset 23)."""

from typing import Any

from pqnet_converters.core.importer import Tensor, as_known
from pqnet_converters.onnx.importer import OnnxImporter
from pqnet_converters.onnx.registry import rule


def _heads(b: OnnxImporter, x: Tensor, heads: int | None) -> Tensor:
    """Give (batch, steps, heads * size) the axes (batch, heads, steps, size)."""
    if x.rank == 4:
        return x
    if not heads:
        raise b.refuse("expected q_num_heads and kv_num_heads for inputs of 3 axes")
    batch, steps, width = x.shape
    return b.permute(b.reshape(x, (batch, steps, heads, width // heads)), (0, 2, 1, 3))


def _repeated(b: OnnxImporter, x: Tensor, heads: Any) -> Tensor:
    """Repeat each key or value head for the query heads that share it."""
    batch, own, steps, size = x.shape
    if own == heads:
        return x
    wide = b.emit("expand", b.reshape(x, (batch, own, 1, steps, size)), shape=(batch, own, heads // own, steps, size))
    return b.reshape(wide, (batch, heads, steps, size))


@rule("Attention")
def attention(
    b: OnnxImporter,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *lengths: Tensor | None,
) -> tuple[Tensor | None, ...]:
    if any(x is not None for x in lengths) or b.attr("softcap", 0.0) or b.wanted(3):
        raise b.refuse("softcap, lengths of padded sequences and the output of scores have no rule")
    flat = q.rank == 3
    q = _heads(b, q, b.attr("q_num_heads"))
    k, v = (_heads(b, x, b.attr("kv_num_heads")) for x in (k, v))
    if past_key is not None and past_value is not None:
        k, v = b.emit("concat", past_key, k, axis=2), b.emit("concat", past_value, v, axis=2)
    present = (k, v)
    causal = bool(b.attr("is_causal", 0))
    k, v = (_repeated(b, x, q.shape[1]) for x in (k, v))
    if causal and (mask is not None or past_key is not None):
        mask, causal = _causal(b, q.shape[2], k.shape[2], past_key, mask), False
    more = () if mask is None else (mask,)
    attrs: dict[str, Any] = {} if b.attr("scale") is None else {"scale": b.attr("scale")}
    y = b.emit("attention", q, k, v, *more, causal=causal, **attrs)
    if flat:
        batch, heads, steps, size = y.shape
        y = b.reshape(b.permute(y, (0, 2, 1, 3)), (batch, steps, heads * size))
    return y, *present


def _causal(b: OnnxImporter, queries: Any, keys: Any, past: Tensor | None, mask: Tensor | None) -> Tensor:
    """Return a mask that hides later keys, and what another mask hides."""
    offset = 0 if past is None else past.shape[2]
    row = b.reshape(b.emit("arange", start=offset, end=offset + queries), (queries, 1))
    seen = b.emit("ge", row, b.emit("arange", end=keys))
    if mask is None:
        return seen
    if mask.dtype == "bool":
        return b.emit("logical_and", mask, seen)
    return b.emit("where", seen, mask, as_known(float("-inf"), "float32"))


@rule("RotaryEmbedding")
def rotary(b: OnnxImporter, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    heads, flat = b.attr("num_heads", 0), x.rank == 3
    x = _heads(b, x, heads)
    batch, count, steps, size = x.shape
    if positions is not None:
        ids = b.reshape(b.cast(positions, "int64"), (-1,))
        cos, sin = (
            b.reshape(b.emit("index_select", t, ids, axis=0), (*positions.shape, t.shape[-1])) for t in (cos, sin)
        )
    half = cos.shape[-1]
    cos, sin = (b.reshape(t, (t.shape[0], 1, *t.shape[1:])) for t in (cos, sin))
    turned, kept = b.slice(x, 3, 0, 2 * half), b.slice(x, 3, 2 * half, size)
    if b.attr("interleaved", 0):
        pairs = b.reshape(turned, (batch, count, steps, half, 2))
        left, right = (b.reshape(b.slice(pairs, 4, i, i + 1), (batch, count, steps, half)) for i in (0, 1))
    else:
        left, right = b.slice(turned, 3, 0, half), b.slice(turned, 3, half, 2 * half)
    real = b.emit("sub", b.emit("mul", left, cos), b.emit("mul", right, sin))
    imaginary = b.emit("add", b.emit("mul", left, sin), b.emit("mul", right, cos))
    if b.attr("interleaved", 0):
        parts = [b.reshape(t, (batch, count, steps, half, 1)) for t in (real, imaginary)]
        y = b.reshape(b.emit("concat", *parts, axis=4), (batch, count, steps, 2 * half))
    else:
        y = b.emit("concat", real, imaginary, axis=3)
    if 2 * half != size:
        y = b.emit("concat", y, kept, axis=3)
    if flat:
        y = b.reshape(b.permute(y, (0, 2, 1, 3)), (batch, steps, count * size))
    return y
