"""Numbers of every dtype, exact and at their limits, against PyTorch: many expressions to an exported module."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from forge import reseal  # noqa: E402
from torch import nn  # noqa: E402

import pqnet  # noqa: E402
from pqnet import FormatError, PQNetError  # noqa: E402
from pqnet.graph import GraphBuilder, ValueInfo  # noqa: E402
from pqnet.graph.op import get_op  # noqa: E402
from pqnet.io import load_graph, save_graph  # noqa: E402
from pqnet.train import to_module  # noqa: E402
from pqnet_converters import from_torch  # noqa: E402

Expression = Callable[[Any, Any], Any]
INTEGERS = ("int64", "int32", "int16", "int8", "uint8")
HUGE = 2**53 + 1
TOP, LOW = torch.iinfo(torch.int64).max, torch.iinfo(torch.int64).min
INF = float("inf")


class Expressions(nn.Module):
    """Returns a tuple of functions of its two inputs."""

    def __init__(self, *expressions: Expression) -> None:
        super().__init__()
        self.expressions = expressions

    def forward(self, x: Any, y: Any) -> Any:
        return tuple(e(x, y) for e in self.expressions)


# Kernels take denormal numbers for zero, also those that are yet to be multiplied, by 89 at most.
SMALLEST = 89 * float(np.finfo(np.float32).smallest_normal)


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
            np.testing.assert_allclose(a, b.float().numpy(), rtol=tolerance, atol=SMALLEST, err_msg=f"expression {i}")
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
    lambda x, y: x**0.5,
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
    lambda x, y: (x.sqrt() + x.exp().log()).isnan(),
    lambda x, y: x.float().sigmoid() + F.silu(x.float() / 50),
]
SHIFTS: list[Expression] = [  # which torch.export refuses for booleans
    lambda x, y: (x << 1) + (x >> 1),
    lambda x, y: (x << (y & 3)) - (x >> (y & 15)),
    lambda x, y: x << 9,
    lambda x, y: x >> 63,
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


FAMILIES = {  # all of them for the dtype of images; an export takes seconds
    "uint8": (ARITHMETIC, SHIFTS, COMPARISONS, REDUCTIONS, MOVES),
    "int8": (ARITHMETIC, SHIFTS),
    "int16": (COMPARISONS, REDUCTIONS),
    "int32": (ARITHMETIC, REDUCTIONS),
    "int64": (SHIFTS, MOVES),
    "bool": (ARITHMETIC, REDUCTIONS),
}


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_those_of_pytorch(dtype: str) -> None:
    x, y = limits(dtype)
    expressions = [e for family in FAMILIES[dtype] for e in taken(x, y, family)]
    assert len(expressions) > 0.9 * sum(map(len, FAMILIES[dtype]))
    model = compare(x, y, expressions)
    if dtype == "uint8":  # the layer for training too
        for got, want in zip(to_module(model)(x, y), Expressions(*expressions)(x, y), strict=True):
            assert torch.allclose(got, want.to(got.dtype), equal_nan=True)


def test_booleans_are_those_of_pytorch() -> None:
    x = torch.tensor([[True, False, True], [False, False, True]])
    y = torch.tensor([[True, True, False], [False, True, True]])
    compare(x, y, [e for family in FAMILIES["bool"] for e in taken(x, y, family)])


# ---- integers that float64 does not hold

HUGE_INTEGERS: list[Expression] = [
    lambda x, y: x + HUGE,
    lambda x, y: HUGE - x,
    lambda x, y: x * HUGE,
    lambda x, y: x ^ HUGE,
    lambda x, y: x == HUGE,
    lambda x, y: x < HUGE,
    lambda x, y: (x >= TOP) | (x == LOW),
    lambda x, y: x > HUGE - 0.5,
    lambda x, y: x > y,
    lambda x, y: x.masked_fill(x < 3, HUGE),
    lambda x, y: x.masked_fill(x < 3, TOP).amin(1),
    lambda x, y: x.masked_fill(x > 3, LOW).amax(1),
    lambda x, y: x.clamp(-HUGE, HUGE),
    lambda x, y: (x + 4).clamp(max=HUGE),
    lambda x, y: torch.where(x < 3, x, TOP),
    lambda x, y: torch.maximum(x, torch.tensor(HUGE)),
    lambda x, y: x + torch.tensor([HUGE, 1, 2, 3, TOP]),
    lambda x, y: x.eq(torch.tensor(HUGE)),
    lambda x, y: F.pad(x, (1, 1), value=HUGE),
    lambda x, y: torch.full_like(x, HUGE) + x.new_full((x.shape[0], 1), LOW),
    lambda x, y: x.sum(1) + x.cumsum(1)[:, 2] + x.flip(1).cumsum(1)[:, 3] + x.prod(1),
    lambda x, y: x // 3 + x % 10 + x // y - x % y + x.fmod(1000),
    lambda x, y: x.max(1)[0] + x.argmax(1),
    lambda x, y: x / y,
    lambda x, y: x.int(),
    lambda x, y: x * 1.0,
]


def test_integers_beyond_float64_are_exact_in_graph_file_and_run(tmp_path: Path) -> None:
    x = torch.tensor([[HUGE, HUGE - 1, 5, TOP, LOW], [1, 2, 3, -HUGE, TOP - 1]])
    y = torch.tensor([[HUGE - 1, HUGE, 7, 1, -1], [HUGE, -HUGE, 3, 2, TOP]])
    model = compare(x, y, HUGE_INTEGERS)
    model.save(tmp_path / "huge.h5")
    again = pqnet.load(tmp_path / "huge.h5")
    assert [n.attrs for n in again.graph.nodes] == [n.attrs for n in model.graph.nodes]
    for a, b in zip(again(x.numpy(), y.numpy()), model(x.numpy(), y.numpy()), strict=True):
        np.testing.assert_array_equal(a, b)


# ---- floats

FLOATS: list[Expression] = [
    *(lambda x, y, f=f: f(x) for f in (torch.exp, torch.expm1, torch.log, torch.log1p, torch.log2, torch.log10)),
    *(lambda x, y, f=f: f(x) for f in (torch.sqrt, torch.rsqrt, torch.reciprocal, torch.sin, torch.cos, torch.exp2)),
    *(lambda x, y, f=f: f(x) for f in (torch.floor, torch.ceil, torch.round, torch.trunc, torch.sign, torch.abs)),
    *(lambda x, y, f=f: f(x) for f in (torch.isnan, torch.isinf, torch.isfinite, torch.sigmoid, F.silu, F.mish)),
    *(lambda x, y, f=f: f(x) for f in (F.relu, F.hardsigmoid, F.leaky_relu, F.softplus, F.logsigmoid)),
    lambda x, y: x + y,
    lambda x, y: x * y,
    lambda x, y: x / y,
    lambda x, y: x // y,
    lambda x, y: x % y,
    lambda x, y: x.fmod(y),
    lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    lambda x, y: x.abs() ** y,
    lambda x, y: x**3 + 2**x,
    lambda x, y: torch.maximum(x - x, y),
    lambda x, y: torch.minimum(x, y).clamp(-1, 2),
    lambda x, y: (x < y) ^ (x - x != y),
    lambda x, y: x.cumsum(1),
    lambda x, y: x.clamp(min=0).log().cumsum(1),
    lambda x, y: y.cumprod(1),
    lambda x, y: y.prod(1),
    lambda x, y: x.sum(1),
    lambda x, y: x.mean(0),
    lambda x, y: (x - x).amax(1),
    lambda x, y: x.argmax(1) + (x - x).argmin(1),
    lambda x, y: x.softmax(1),
    lambda x, y: torch.full_like(x, -INF).softmax(1),
    lambda x, y: x.clamp(-5, 5).masked_fill(y < 0, -INF).log_softmax(1),
    lambda x, y: x.clamp(-5, 5).masked_fill(y < 9e9, torch.finfo(torch.float32).min).softmax(1),
    lambda x, y: torch.nan_to_num(x - x),
    lambda x, y: x * 1.2e-38,
    lambda x, y: x / 1e30 / 1e10,
    lambda x, y: x.logsumexp(1) + y.logsumexp(1),
    *(lambda x, y, d=d: x.to(getattr(torch, d)) for d in (*INTEGERS, "bool")),
    *(lambda x, y, d=d: (x - x).to(getattr(torch, d)) for d in (*INTEGERS, "bool")),
]


def test_floats_at_their_limits_are_those_of_pytorch() -> None:
    small = [0.0, -0.0, 1.2e-38, -1.2e-38, 1e-8, -1e-8, 1e-4, 0.5, 1, -1, 300.7, -3]
    large = [25, -25, 88, -88, -89, 3e9, 1e20, INF, -INF, 40000, 3e38, -3e38]
    y = [[1.0, -1, 2, 3, -2, 0.1, 0.3, INF, -INF, 1, -1, 0.7], [1e-3, 1e3, 2, -2, 0.5, 1, -0.5, 2, 2, 1, 3, 3]]
    compare(torch.tensor([small, large]), torch.tensor(y), FLOATS)


@pytest.mark.parametrize("op", ["sum", "mean", "cumsum", "prod", "cumprod", "var"])
def test_sums_of_many_floats_round_as_those_of_float64(op: str) -> None:
    x = np.random.default_rng(0).uniform(0.5, 1.5, (3, 100_000)).astype(np.float32)
    x += np.float32(1000) if op not in ("prod", "cumprod") else 0
    axis: dict[str, Any] = {"axis": 1} if op.startswith("cum") else {"axes": (1,), "keepdims": False}
    got = get_op(op).evaluate([x], {}, axis | {"correction": 1})
    want = x.astype(np.float64).var(1, ddof=1) if op == "var" else getattr(np, op)(x.astype(np.float64), 1)
    np.testing.assert_array_equal(got, want.astype(np.float32))


# ---- inputs, files


def graph_of(dtype: str, **attrs: Any) -> Any:
    b = GraphBuilder({"x": ValueInfo(("batch", 2), dtype)}, {"batch": 1})
    return b.build({"y": b.add("add", "x", **attrs)})


@pytest.mark.parametrize("dtype", INTEGERS)
def test_inputs_have_to_fit_into_their_dtype(dtype: str) -> None:
    limits, model = np.iinfo(dtype), pqnet.Model(graph_of(dtype, scalar=1))
    ends = np.array([[limits.min, limits.max]], dtype)
    (got,) = model.run({"x": ends.astype(np.int64)}).values()
    np.testing.assert_array_equal(got, ends + np.array(1, dtype))
    wide = [[limits.min, limits.max + 1]]
    if dtype == "int64":
        wide = np.array(wide[0][1:] * 2, np.uint64)[None]  # type: ignore[assignment]
    with pytest.raises(PQNetError, match=rf"input 'x': expected integers of {dtype}, from {limits.min} to .*, got"):
        model.run({"x": wide})
    with pytest.raises(PQNetError, match="input 'x': expected an array of integers, got float64"):
        model.run({"x": [[0.0, 1.0]]})


@pytest.mark.parametrize("dtype", INTEGERS)
def test_files_keep_the_dtype(tmp_path: Path, dtype: str) -> None:
    b = GraphBuilder({"x": ValueInfo(("batch", 2), dtype)}, {"batch": 1})
    table = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max], dtype)
    y = b.add("bitwise_xor", "x", b.add("constant", params={"value": table}))
    model = pqnet.Model(b.build({"y": b.add("cast", y, dtype=dtype)}))
    model = model.with_golden(model.draw_golden())
    model.save(tmp_path / "m.h5")
    again = pqnet.load(tmp_path / "m.h5")
    assert again.inputs["x"][1] == again.outputs["y"][1] == dtype
    assert again.golden is not None and again.golden.arrays["x"].dtype == dtype
    np.testing.assert_array_equal(again(np.zeros((1, 2), dtype)), table[None])


def test_files_have_the_lowest_version_whose_readers_understand_them(tmp_path: Path) -> None:
    for graph, version in (
        (graph_of("int64", scalar=2.0), 1),
        (graph_of("int64", scalar=2**53), 1),
        (graph_of("int64", scalar=HUGE), 2),
        (graph_of("uint8", scalar=2), 1),  # they refuse the dtype of the input
    ):
        save_graph(tmp_path / "m.h5", graph)
        data = (tmp_path / "m.h5").read_bytes()
        assert data[6:8] == bytes([version, 0])
        load_graph(tmp_path / "m.h5")
    save_graph(tmp_path / "m.h5", graph_of("int64", scalar=HUGE))
    with pytest.raises(FormatError, match="expected format version 2, got 1"):
        load_graph(reseal(tmp_path / "m.h5"))


def test_whole_numbers_in_old_files_are_integers() -> None:
    model = pqnet.Model(graph_of("int64", scalar=2.0))
    np.testing.assert_array_equal(model(np.array([[TOP - 2, HUGE]])), [[TOP, HUGE + 2]], strict=True)
