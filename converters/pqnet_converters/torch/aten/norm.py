"""Normalisations."""

from typing import Any

import numpy as np

from pqnet_converters.torch.aten.registry import rule
from pqnet_converters.torch.importer import Importer, Tensor


def _params(b: Importer, **roles: Tensor | None) -> dict[str, str]:
    return {role: b.param(x, role) for role, x in roles.items() if x is not None}


@rule("aten._native_batch_norm_legit_no_training.default")
def batch_norm(
    b: Importer,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[str, None, None]:
    params = _params(b, weight=weight, bias=bias, mean=mean, var=var)
    return b.emit("batch_norm", x, name=b.path, params=params, eps=eps), None, None


@rule("aten._native_batch_norm_legit.default", "aten._native_batch_norm_legit.no_stats")
def batch_norm_of_batch(b: Importer, *_: Any) -> None:
    raise b.refuse("expected a batch norm with running statistics, got one that uses those of the batch")


@rule("aten.rms_norm.default")
def rms_norm(b: Importer, x: Tensor, shape: list[int], weight: Tensor | None, eps: float | None) -> str:
    small = float(np.finfo(np.float32).eps) if eps is None else eps
    return b.emit("rms_norm", x, name=b.path, params=_params(b, weight=weight), axes=len(shape), eps=small)


@rule("aten.layer_norm.default")
def layer_norm(
    b: Importer, x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float, *_: Any
) -> str:
    params = _params(b, weight=weight, bias=bias)
    return b.emit("layer_norm", x, name=b.path, params=params, axes=len(shape), eps=eps)


@rule("aten.group_norm.default")
def group_norm(
    b: Importer, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, *_: Any
) -> str:
    params = _params(b, weight=weight, bias=bias)
    return b.emit("group_norm", x, name=b.path, params=params, groups=groups, eps=eps)


@rule("aten.instance_norm.default")
def instance_norm(
    b: Importer,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> str:
    if use_input_stats:
        return group_norm(b, x, b.fixed(x.shape[1]), weight, bias, eps)
    params = _params(b, weight=weight, bias=bias, mean=mean, var=var)
    return b.emit("batch_norm", x, name=b.path, params=params, eps=eps)
