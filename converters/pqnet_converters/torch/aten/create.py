"""Tensors made of sizes; those of fixed sizes are folded before a rule is asked."""

from typing import Any

import torch

from pqnet_converters.torch.aten.elementwise import as_number
from pqnet_converters.torch.aten.registry import rule
from pqnet_converters.torch.importer import Importer, Tensor
from pqnet_converters.torch.sizes import Expression


def _full(b: Importer, value: Any) -> str:
    dtype = b.out_dtype()
    size = b.size(value) if isinstance(value, Expression) else value
    if b.number(size) is None:
        return b.emit("expand", b.cast(size, dtype), shape=b.out_shape())
    return b.emit("full", shape=b.out_shape(), value=as_number(b.number(size), dtype), dtype=dtype)


@rule("aten.full.default")
def full(b: Importer, size: Any, value: Any, *_: Any) -> str:
    return _full(b, value)


@rule("aten.full_like.default")
def full_like(b: Importer, x: Tensor, value: Any, *_: Any) -> str:
    return _full(b, value)


@rule("aten.empty.memory_format")
def empty(b: Importer, *_: Any) -> str:
    """Memory without a meaning: zeros are as good as any."""
    return _full(b, 0)


def _filled(value: int) -> Any:
    def filled(b: Importer, x: Tensor, size: Any, *_: Any) -> Tensor | str:
        shape = b.out_shape()
        if any(isinstance(n, str) for n in shape):
            return _full(b, value)
        dtype = b.out_dtype()
        return Tensor(shape, dtype, data=torch.full([int(n) for n in shape], value, dtype=getattr(torch, dtype)))

    return filled


rule("aten.new_zeros.default")(_filled(0))
rule("aten.new_ones.default")(_filled(1))


@rule("aten.scalar_tensor.default")
def scalar_tensor(b: Importer, value: Any, *_: Any) -> str:
    return _full(b, value)


@rule("aten.arange.default")
def arange_to(b: Importer, end: Any, *_: Any) -> Tensor | str:
    return arange(b, 0, end, 1)


@rule("aten.arange.start")
def arange_from(b: Importer, start: Any, end: Any, *_: Any) -> Tensor | str:
    return arange(b, start, end, 1)


@rule("aten.arange.start_step")
def arange(b: Importer, start: Any, end: Any, step: Any, *_: Any) -> Tensor | str:
    limits = {"start": start, "end": end, "step": step}
    for name, limit in limits.items():
        if isinstance(limit, float) and limit.is_integer():
            limits[name] = int(limit)
    return b.cast(Tensor(b.out_shape(), "int64", value=b.emit("arange", **limits)), b.out_dtype())
