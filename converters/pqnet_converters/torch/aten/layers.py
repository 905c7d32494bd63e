"""Layers with weights, matrix products and attention."""

from typing import Any

import torch

from pqnet_converters.torch.aten.registry import rule
from pqnet_converters.torch.importer import Importer, Tensor


@rule("aten.linear.default")
def linear(b: Importer, x: Tensor | str, weight: Tensor, bias: Tensor | None) -> str:
    if weight.data is None:
        product = b.emit("matmul", x, b.emit("permute", weight, axes=(1, 0)))
        return product if bias is None else b.emit("add", product, bias)
    params = {"weight": b.param(weight, "weight")}
    if bias is not None:
        params["bias"] = b.param(bias, "bias")
    return b.emit("linear", x, name=b.layer_name(weight), params=params)


def _transposed(w: Tensor) -> Tensor:
    """Return the filter form (O, I) of a constant (I, O) matrix; a view, so that tied weights are recognised."""
    assert w.data is not None
    view = w.data.view(w.data.shape[-2:]).t()
    return Tensor(tuple(view.shape), w.dtype, data=view, origin=w.origin)


@rule("aten.matmul.default", "aten.mm.default", "aten.bmm.default")
def matmul(b: Importer, x: Tensor, y: Tensor) -> str:
    if y.data is not None and x.rank >= y.rank >= 2 and all(size == 1 for size in y.shape[:-2]):
        return linear(b, x, _transposed(y), None)
    return b.emit("matmul", x, y)


def _scaled(b: Importer, x: Tensor | str, factor: Any) -> Tensor | str:
    number = b.number(factor)
    return x if number == 1 else b.emit("mul", x, scalar=number)


@rule("aten.addmm.default", "aten.baddbmm.default")
def addmm(b: Importer, bias: Tensor, x: Tensor, y: Tensor, beta: Any, alpha: Any) -> str:
    row = bias.data is not None and y.data is not None and bias.shape == y.shape[1:] and y.rank == 2
    if row and b.number(beta) == b.number(alpha) == 1:
        return linear(b, x, _transposed(y), bias)
    product = matmul(b, x, y)
    if b.number(beta) == 0:
        return b.emit("mul", product, scalar=b.number(alpha))
    return b.emit("add", _scaled(b, product, alpha), _scaled(b, bias, beta))


def _each(numbers: Any, n: int) -> tuple[int, ...]:
    """Return one number for each axis, of which torch lets one stand for all."""
    return tuple(numbers) * (n if len(numbers) == 1 else 1)


@rule("aten.convolution.default")
def convolution(
    b: Importer,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> str:
    n = x.rank - 2

    def filters(w: torch.Tensor) -> torch.Tensor:
        if not transposed:
            return w
        grouped = w.unflatten(0, (groups, -1))  # (groups, Cin / groups, O / groups, *kernel)
        return grouped.transpose(1, 2).flatten(0, 1)

    params = {"weight": b.param(weight, "weight", filters, f"filters of {groups} groups" if transposed else "filters")}
    if bias is not None:
        params["bias"] = b.param(bias, "bias")
    attrs: dict[str, Any] = {"output_padding": _each(output_padding, n)} if transposed else {}
    return b.emit(
        f"conv_transpose{n}d" if transposed else f"conv{n}d",
        x,
        name=b.layer_name(weight),
        params=params,
        stride=_each(stride, n),
        padding=tuple(padding) if len(padding) == 2 * n else _each(padding, n) * 2,  # before and behind, or both
        dilation=_each(dilation, n),
        groups=groups,
        **attrs,
    )


@rule("aten.embedding.default")
def embedding(b: Importer, weight: Tensor, ids: Tensor, *_: Any) -> str:
    return b.emit(
        "embedding", b.cast(ids, "int64"), name=b.layer_name(weight), params={"weight": b.param(weight, "weight")}
    )


@rule("aten.scaled_dot_product_attention.default")
def attention(
    b: Importer,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout: float,
    causal: bool,
    scale: Any,
    gqa: bool,
) -> str:
    heads = (_repeated(b, k, q), _repeated(b, v, q)) if gqa else (k, v)
    attrs: dict[str, Any] = {} if scale is None else {"scale": b.number(scale)}
    masks = () if mask is None else (mask,)
    return b.emit("attention", q, *heads, *masks, causal=causal, **attrs)


def _repeated(b: Importer, x: Tensor, q: Tensor) -> Tensor | str:
    """Repeat each key or value head for the query heads that share it (grouped-query attention)."""
    heads, n = b.fixed(x.shape[-3]), b.fixed(q.shape[-3])
    if heads == n:
        return x
    lead, tail = x.shape[:-3], x.shape[-2:]
    single = b.emit("reshape", x, shape=(*lead, heads, 1, *tail))
    shared = b.emit("expand", single, shape=(*lead, heads, n // heads, *tail))
    return b.emit("reshape", shared, shape=(*lead, n, *tail))
