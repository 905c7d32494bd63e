"""Numbers of every dtype, exact and at their limits, against PyTorch: many expressions to an exported module."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import pqnet  # noqa: E402
from pqnet import PQNetError  # noqa: E402
from pqnet.train import to_module  # noqa: E402
from pqnet_converters import from_torch  # noqa: E402

Expression = Callable[[Any, Any], Any]
INTEGERS = ("int64", "int32", "int16", "int8", "uint8")
HUGE = 2**53 + 1
TOP, LOW = torch.iinfo(torch.int64).max, torch.iinfo(torch.int64).min
INF, NAN = float("inf"), float("nan")


class Expressions(nn.Module):
    """Returns a tuple of functions of its two inputs."""

    def __init__(self, *expressions: Expression) -> None:
        super().__init__()
        self.expressions = expressions

    def forward(self, x: Any, y: Any) -> Any:
        return tuple(e(x, y) for e in self.expressions)


def taken(x: Any, y: Any, expressions: list[Expression]) -> list[Expression]:
    """Return the expressions that PyTorch computes for these inputs, with their numbers."""
    good = []
    for expression in expressions:
        try:
            expression(x, y)
        except RuntimeError:  # no such operation for the dtype, or a division by 0
            continue
        good.append(expression)
    return good


def compare(x: Any, y: Any, expressions: list[Expression], tolerance: float = 3e-7) -> Any:
    """Import, run, and compare dtype and every number with PyTorch: integers exactly; return the model."""
    model = from_torch(Expressions(*expressions), (x, y))
    got = model(x.numpy(), y.numpy())
    wanted = Expressions(*expressions)(x, y)
    for i, (a, b) in enumerate(zip(got if isinstance(got, tuple) else (got,), wanted, strict=True)):
        assert a.dtype == (np.float32 if b.is_floating_point() else b.numpy().dtype), f"expression {i}"
        if a.dtype == np.float32:
            np.testing.assert_allclose(a, b.float().numpy(), rtol=tolerance, atol=1e-45, err_msg=f"expression {i}")
        else:
            np.testing.assert_array_equal(a, b.numpy(), err_msg=f"expression {i}")
    return model


def limits(dtype: str) -> tuple[Any, Any]:
    """Return two tensors of integers, the least and the largest among them; the second without 0."""
    kind, ends = getattr(torch, dtype), torch.iinfo(getattr(torch, dtype))
    half = ends.max // 2
    x = [ends.min, ends.max, ends.max - 1, half, half + 1, 0, 1, 7, 100, 3]
    y = [ends.max, ends.max, 1, 3, half, 7, 2, 3, 99, max(ends.min, -3)]
    return torch.tensor([x, y], dtype=kind), torch.tensor([y, [v or 5 for v in x]], dtype=kind)


ARITHMETIC: list[Expression] = [
    lambda x, y: x + y,
    lambda x, y: x - y,
    lambda x, y: x * y,
    lambda x, y: x / y,
    lambda x, y: x / 255,
    lambda x, y: torch.div(x, 3, rounding_mode="floor"),
    lambda x, y: torch.div(x, 3, rounding_mode="trunc"),
    lambda x, y: torch.div(x, y, rounding_mode="trunc") + x.fmod(3) + torch.fmod(x, y),
    lambda x, y: x // 7 + x // y,
    lambda x, y: x % 7 - x % y,
    lambda x, y: x % -7 - 7 % y,
    lambda x, y: x + 200,
    lambda x, y: 200 - x,
    lambda x, y: 255.0 - x,
    lambda x, y: x * 65537,
    lambda x, y: x * 0.5 + 1,
    lambda x, y: torch.add(x, y, alpha=3) - torch.rsub(x, y, alpha=2),
    lambda x, y: -x + x.abs() * x.sign(),
    lambda x, y: x**2 + x**3,
    lambda x, y: 2 ** (y % 7),
    lambda x, y: x ** (y % 3),
    lambda x, y: x ** 0.5,
    lambda x, y: torch.maximum(x, y) - torch.minimum(x, y),
    lambda x, y: torch.maximum(x, torch.tensor(3)),
    lambda x, y: x.clamp(2, 90),
    lambda x, y: x.clamp(max=5) + x.clamp_min(1),
    lambda x, y: x.clamp(max=2.5),
    lambda x, y: torch.clamp(x, y, y + 3),
    lambda x, y: x.relu() + x.floor() + x.ceil() + x.round(),
    lambda x, y: torch.addcmul(x, x, y, value=3),
    lambda x, y: torch.lerp(x.float(), y.float(), 0.25),
    lambda x, y: x & y | 5 ^ x,
    lambda x, y: ~x + (x & -2),
    lambda x, y: (x << 1) + (x >> 1),
    lambda x, y: (x << (y & 3)) - (x >> (y & 15)),
    lambda x, y: x << 9,
    lambda x, y: x >> 63,
    lambda x, y: (x.sqrt() + x.exp().log()).isnan(),
    lambda x, y: x.float().sigmoid() + F.silu(x.float() / 50),
]
COMPARISONS: list[Expression] = [
    lambda x, y: (x == y) ^ (x != y),
    lambda x, y: x < y,
    lambda x, y: x >= y,
    lambda x, y: x <= 100,
    lambda x, y: x > 100.5,
    lambda x, y: x == 100.0,
    lambda x, y: x.float() == y,
    lambda x, y: x.long() < y,
    lambda x, y: torch.where(x > y, x, y),
    lambda x, y: torch.where(x > y, x, 3),
    lambda x, y: torch.where(x > y, x, 0.5),
    lambda x, y: torch.where(x > y, x, y.long()),
    lambda x, y: torch.where(x > y, torch.tensor(3, dtype=torch.uint8), x),
    lambda x, y: x.masked_fill(x > y, 7),
    lambda x, y: x.masked_fill(x > y, torch.tensor(7)),
    lambda x, y: torch.logical_and(x, y).logical_or(x == 1).logical_not(),
    lambda x, y: x.bool() & (y > 3),
    lambda x, y: x.isnan(),
]
REDUCTIONS: list[Expression] = [
    lambda x, y: x.sum(1),
    lambda x, y: x.sum(),
    lambda x, y: x.sum(1, dtype=torch.int32),
    lambda x, y: x.sum(1, dtype=torch.float32),
    lambda x, y: x.prod(1),
    lambda x, y: x.prod(),
    lambda x, y: x.cumsum(1),
    lambda x, y: x.cumsum(0, dtype=torch.uint8),
    lambda x, y: x.cumprod(1),
    lambda x, y: x.amax(1),
    lambda x, y: x.amin(1),
    lambda x, y: x.max() - x.min(),
    lambda x, y: x.max(1)[0] * x.max(1)[1],
    lambda x, y: x.argmax(1) + x.argmin(0).sum(),
    lambda x, y: x.float().mean(1) + x.float().std(1),
    lambda x, y: x.any(1) & x.all(1),
    lambda x, y: x.count_nonzero(1),
]
MOVES: list[Expression] = [
    lambda x, y: torch.cat([x, y], 1),
    lambda x, y: torch.cat([x, y.float()], 1),
    lambda x, y: torch.stack([x, y], 1),
    lambda x, y: x.flip(1).roll(1, 1).T.flatten(),
    lambda x, y: F.pad(x, (1, 2), value=7),
    lambda x, y: F.pad(x, (-1, 2)),
    lambda x, y: x.repeat_interleave(2, 1)[:, ::3],
    lambda x, y: torch.full_like(x, 3) + torch.zeros_like(y),
    lambda x, y: x.new_ones(x.shape[0], 2),
    lambda x, y: torch.arange(x.shape[0], dtype=x.dtype),
    lambda x, y: x.gather(1, (x.long() % 7)),
    lambda x, y: x[:, (x[0] % 7).long()],
    lambda x, y: F.embedding(x % 7, torch.arange(14.0).reshape(7, 2)),
    lambda x, y: torch.arange(20)[(x % 5).int()],
    lambda x, y: torch.arange(20.0).index_select(0, (x[0] % 5).int()),
    lambda x, y: F.one_hot(x.long() % 5, 5),
    lambda x, y: x.triu() + x.tril(),
    *(lambda x, y, d=d: x.to(getattr(torch, d)) for d in (*INTEGERS, "float32", "bool")),
]
FAMILIES = {"arithmetic": ARITHMETIC, "comparisons": COMPARISONS, "reductions": REDUCTIONS, "moves": MOVES}


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_those_of_pytorch(dtype: str) -> None:
    x, y = limits(dtype)
    expressions = [e for family in FAMILIES.values() for e in taken(x, y, family)]
    assert len(expressions) > 80
    compare(x, y, expressions)
