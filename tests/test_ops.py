"""Every operation: its NumPy meaning and its shape rule against PyTorch, for one node at a time."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import naive
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pqnet.graph import OPS, Graph, GraphBuilder, Info, ValueInfo, weight_op
from pqnet.graph.op import get_op, resolve_attrs
from pqnet.graph.ops.elementwise import erf
from pqnet.train.ops import TABLE
from pqnet_converters.torch.to_torch import to_torch

few = settings(max_examples=40, deadline=None, database=None, derandomize=True)
Params = Mapping[str, np.ndarray]


def build(op: str, inputs: Sequence[np.ndarray], params: Params, n_outputs: int = 1, **attrs: Any) -> Graph:
    """Return a graph of one node; one without inputs gets an unused one, because a graph needs some."""
    infos = {f"x{i}": ValueInfo(x.shape, x.dtype.name) for i, x in enumerate(inputs)}
    b = GraphBuilder(infos or {"unused": ValueInfo((1,))})
    return b.build({v: v for v in b.add_many(op, infos, n_outputs, params=params, **attrs)})


def evaluate(graph: Graph, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the values that the one node of a graph computes from inputs that it must not change."""
    node, symbols = graph.nodes[0], {}
    if inputs:
        symbols = graph.bind_symbols({name: x.shape for name, x in zip(graph.inputs, inputs, strict=True)})
    for array in inputs:
        array.flags.writeable = False
    params = {role: graph.params[name] for role, name in node.params.items()}
    result = get_op(node.op).evaluate(inputs, params, resolve_attrs(get_op(node.op), node.attrs, symbols))
    results = result if isinstance(result, tuple) else (result,)
    infos = graph.infer_shapes(symbols)
    for value, array in zip(node.outputs, results, strict=True):
        assert isinstance(array, np.ndarray)
        assert Info(array.shape, array.dtype.name) == infos[value]
    return dict(zip(node.outputs, results, strict=True))


def close(got: np.ndarray, want: np.ndarray) -> None:
    """Assert equality within 1e-5 of each number; of 0.2 where terms of about 1 have cancelled."""
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6 if want.dtype.kind == "f" else 0)


PAIRS = {"topk", "nms", "heatmap_peaks"}


def check(op: str, *inputs: np.ndarray, params: Params | None = None, **attrs: Any) -> None:
    """Assert that NumPy meaning, shape rule and PyTorch agree on shape, dtype and values."""
    n_outputs = len(attrs["sizes"]) if op == "split" else 2 if op in PAIRS else 1
    graph = build(op, inputs, params or {}, n_outputs, **attrs)
    fed = inputs or [np.zeros(1, np.float32)]
    result = to_torch(graph).requires_grad_(False)(*(torch.from_numpy(x.copy()) for x in fed))
    wanted = result if isinstance(result, tuple) else (result,)
    for got, want in zip(evaluate(graph, inputs).values(), wanted, strict=True):
        assert got.shape == tuple(want.shape) and got.dtype == want.numpy().dtype
        close(got, want.numpy())


def f(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def pos(*shape: int) -> np.ndarray:
    return np.asarray(np.abs(f(*shape)) + np.float32(0.1))


def ints(*shape: int, low: int = -5, high: int = 6) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(low, high, shape)


def mask(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).random(shape) < 0.6


FINITE = np.array([0, -0.0, 1e-30, -1e-4, 3, -3, 25, -25, 100, -100], np.float32)
SPECIAL = np.append(FINITE, np.float32([np.inf, -np.inf, np.nan]))
CUBE = f(2, 3, 5)
IMAGE = f(2, 6, 9, 7)
AFFINE = {"weight": f(6), "bias": f(6, seed=1)}
FLOAT_UNARY = ["exp", "expm1", "sin", "cos", "floor", "ceil", "round", "erf", "neg", "abs", "sign", "reciprocal"]
ACTIVATIONS = ["relu", "sigmoid", "tanh", "silu", "hardswish", "hardsigmoid", "mish", "leaky_relu", "elu", "gelu"]
ACTIVATIONS += ["softplus"]
ARITHMETIC = ["add", "sub", "mul", "div", "pow", "maximum", "minimum"]
REMAINDERS = ["floor_div", "trunc_div", "remainder", "fmod"]  # which PyTorch does not take of integers over 0
BITWISE = ["bitwise_and", "bitwise_or", "bitwise_xor", "shift_left", "shift_right"]
COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge"]

Case = tuple[str, tuple[np.ndarray, ...], dict[str, np.ndarray], dict[str, Any]]


def case(op: str, *inputs: np.ndarray, params: dict[str, np.ndarray] | None = None, **attrs: Any) -> Case:
    return op, inputs, params or {}, attrs


CASES: list[Case] = [
    *(case(op, x) for op in FLOAT_UNARY + ACTIVATIONS for x in (CUBE, FINITE, f(), f(0, 3))),
    *(case(op, SPECIAL) for op in FLOAT_UNARY + ACTIVATIONS if op != "gelu"),  # PyTorch: gelu(inf) is NaN
    *(case(op, f(70001)) for op in ("gelu", "silu")),
    *(
        case(op, x)
        for op in ("log", "log1p", "log2", "log10", "sqrt", "rsqrt")
        for x in (pos(2, 3), np.float32([0, -1, np.inf]), pos())
    ),
    *(case(op, ints(2, 5)) for op in ("neg", "abs", "sign")),
    case("gelu", CUBE, approximate="tanh"),
    case("gelu", FINITE, approximate="tanh"),
    case("leaky_relu", CUBE, negative_slope=1.5),
    case("elu", CUBE, alpha=0.3),
    case("softplus", 20 * CUBE, beta=0.5, threshold=3.0),
    *(case("clamp", CUBE, **ends) for ends in ({"min": 0}, {"max": 0.5}, {"min": -0.5, "max": 0.5})),
    *(case("clamp", x, min=-2, max=3) for x in (ints(4, 5), SPECIAL, f(), mask(3))),
    case("clamp", ints(4, 5), min=1.5),
    case("clamp", CUBE, min=2, max=1),
    case("clamp", ints(9).astype(np.uint8), min=-5, max=300),
    *(case("prelu", f(2, 3, *tail), params={"weight": f(n)}) for tail in ((), (5,), (4, 5)) for n in (1, 3)),
    *(case("prelu", x, params={"weight": f(1)}) for x in (f(5), f())),
    *(case(op, 5 * CUBE, axis=axis) for op in ("softmax", "log_softmax") for axis in (0, 1, 2)),
    *(case(op, CUBE - 300, axis=2) for op in ("softmax", "log_softmax")),
    case("softmax", np.float32([[-np.inf, 1, 2], [-np.inf] * 3, [1e30, 2, 1e30]]), axis=1),
    *(case(op, pos(2, 3), f(3, seed=1)) for op in ARITHMETIC + COMPARISONS),
    *(case(op, ints(4, 1, 5), ints(1, 3, 5)) for op in ARITHMETIC + COMPARISONS),
    *(case(op, ints(4, 5), f(4, 1)) for op in [*ARITHMETIC, "lt"] if op != "pow"),
    *(case(op, mask(4, 5), mask(5)) for op in [*ARITHMETIC, "eq"]),
    *(case(op, f(), f()) for op in ARITHMETIC + COMPARISONS if op != "pow"),
    *(case(op, pos(2, 3), scalar=0.7, reverse=reverse) for op in ARITHMETIC for reverse in (False, True)),
    *(case(op, ints(7), scalar=s, reverse=r) for op in ARITHMETIC for s in (2, -1.5) for r in (False, True)),
    *(case(op, x, scalar=2) for op in COMPARISONS for x in (ints(3, 5), CUBE, mask(3), f())),
    *(case(op, ints(3, 5), scalar=1.5) for op in COMPARISONS),
    *(
        case(op, x, scalar=s)
        for op in REMAINDERS
        for x in (CUBE, ints(7), ints(7).astype(np.int16))
        for s in (2, -3, 1.5)
    ),
    *(
        case(
            op,
            ints(7),
            ints(7, low=1),
        )
        for op in REMAINDERS
    ),
    *(case(op, ints(7).astype(d), scalar=s) for op in BITWISE for d in ("int64", "int8", "uint8") for s in (3, 9)),
    *(case(op, ints(4, 5), ints(5)) for op in BITWISE),
    *(case("bitwise_not", ints(7).astype(d)) for d in ("int64", "int8", "uint8")),
    *(
        case(op, x, axis=1)
        for op in ("cumsum", "cumprod")
        for x in (CUBE, ints(4, 5), ints(4, 5).astype(np.uint8), mask(4, 5))
    ),
    *(
        case("topk", x, axis=axis, k=k, largest=largest)
        for x in (CUBE, ints(2, 3, 40), ints(2, 3, 4).astype(np.uint8))
        for axis, k in ((2, 4), (1, 3), (0, 0))
        for largest in (False, True)
    ),
    *(case("topk", np.append(SPECIAL, SPECIAL), axis=0, k=k, largest=b) for k in (4, 26) for b in (False, True)),
    *(case("pow", x, scalar=s) for x in (CUBE, ints(9)) for s in (0, 1, 2, 3, -1)),
    *(case("mul", x, scalar=s) for x in (ints(3), f(3)) for s in (1e30, math.inf, 2.0**62)),
    *(case(op, a, b) for op in ("logical_and", "logical_or") for a in (mask(4), SPECIAL[-4:]) for b in (ints(3, 4),)),
    *(case("logical_not", x) for x in (mask(4), SPECIAL, ints(5), np.array(True))),
    *(case("where", mask(3, 1), a, b) for a in (f(3, 4), ints(4), mask(4)) for b in (f(), ints(3, 4), mask(3, 1))),
    *(case("cast", x, dtype=d) for x in (CUBE, ints(4), mask(4)) for d in ("float32", "int64", "bool")),
    *(case("constant", params={"value": v}) for v in (CUBE, ints(3), mask(3), f())),
    *(case("full", shape=s, value=2, dtype=d) for s in ((), (2, 0, 3)) for d in ("float32", "int64", "bool")),
    *(case("full", shape=(2, 3), value=v) for v in (-math.inf, 0.1)),
    *(case("arange", start=s, end=e, step=k) for s, e, k in ((0, 5, 1), (2, 9, 3), (9, 2, -3), (4, 4, 1))),
    *(case("linear", f(*s, 5), params={"weight": f(3, 5), "bias": f(3)}) for s in ((), (4,), (2, 3), (0,), (0, 2))),
    case("linear", f(4, 5), params={"weight": f(3, 5)}),
    *(
        case("matmul", f(*a), f(*b, seed=1))
        for a, b in [
            ((5,), (5,)),
            ((4, 5), (5,)),
            ((5,), (2, 5, 3)),
            ((4, 5), (5, 3)),
            ((2, 4, 5), (5, 3)),
            ((2, 4, 5), (5,)),
        ]
    ),
    *(case("matmul", f(*s, 4, 5), f(*t, 5, 3)) for s, t in (((2, 1), (3,)), ((3,), (2, 3)), ((0,), ()), ((2,), (1,)))),
    *(case("embedding", ints(*s, low=0, high=9), params={"weight": f(9, 4)}) for s in ((), (3,), (2, 3), (0,))),
    *(case("batch_norm", f(2, 6, *tail), params=AFFINE | {"mean": f(6), "var": pos(6)}) for tail in ((), (4,), (4, 5))),
    *(case("batch_norm", IMAGE, params=p, eps=0.1) for p in ({}, AFFINE, {"mean": f(6)}, {"var": pos(6)})),
    case("batch_norm", f(2, 6, 2, 3, 4), params=AFFINE),
    *(case("rms_norm", CUBE + 9, params=p) for p in ({}, {"weight": f(5)})),
    case("rms_norm", CUBE, params={"weight": f(*CUBE.shape[-2:])}, axes=2, eps=1e-3),
    *(case("layer_norm", CUBE + 9, params=p) for p in ({}, {"weight": f(5)}, {"weight": f(5), "bias": f(5, seed=1)})),
    *(case("layer_norm", CUBE, params={"weight": f(*CUBE.shape[-n:])}, axes=n, eps=1e-3) for n in (2, 3)),
    *(case("group_norm", x, params=AFFINE, groups=g) for x in (IMAGE, f(2, 6)) for g in (1, 2, 3)),
    case("group_norm", IMAGE, groups=6, eps=1e-2),
    *(case("adaptive_avg_pool2d", IMAGE, size=s) for s in ((1, 1), (3, 7), (4, 3), (1, 2), (10, 20))),
    *(case("adaptive_max_pool2d", IMAGE, size=s) for s in ((1, 1), (3, 7), (4, 3), (1, 2), (10, 20))),
    *(
        case(op, CUBE, axes=axes, keepdims=keep)
        for op in ("mean", "sum", "prod", "max", "min", "var")
        for axes in ((0,), (2,), (0, 2), (2, 0, 1))
        for keep in (False, True)
    ),
    *(case(op, SPECIAL, axes=(0,)) for op in ("sum", "max", "min")),
    *(case(op, ints(4, 5), axes=(1,)) for op in ("sum", "prod", "max", "min")),
    *(case(op, mask(4, 5), axes=(0, 1)) for op in ("sum", "prod", "max", "min")),
    *(case(op, f(0, 3), axes=axes) for op in ("sum", "mean") for axes in ((0,), (1,))),
    *(case("var", CUBE, axes=(2,), correction=c) for c in (0, 2)),
    *(
        case(op, x, axis=1, keepdims=k)
        for op in ("argmax", "argmin")
        for x in (CUBE, ints(4, 9))
        for k in (False, True)
    ),
    *(case(op, SPECIAL, axis=0) for op in ("argmax", "argmin")),
    *(case("reshape", CUBE, shape=s) for s in ((30,), (-1, 6), (5, 1, 6), (2, 3, -1, 5))),
    *(case("reshape", f(), shape=s) for s in ((), (1, 1), (-1,))),
    case("reshape", f(0, 3), shape=(-1, 3)),
    *(case("permute", CUBE, axes=axes) for axes in ((2, 0, 1), (0, 1, 2), (1, 0, 2))),
    *(case("concat", *xs, axis=1) for xs in ((CUBE,), (CUBE, f(2, 1, 5), f(2, 0, 5)), (mask(2, 3), mask(2, 4)))),
    *(case("split", CUBE, axis=2, sizes=s) for s in ((5,), (2, 3), (1, 0, 4))),
    *(case("expand", f(3, 1), shape=s) for s in ((3, 1), (3, 4), (2, 3, 4), (3, 0))),
    *(case("index_select", x, ids, axis=1) for x in (CUBE, ints(2, 4)) for ids in (np.array([2, 0, 2]), ints(0))),
    *(
        case("scatter", x, ids, x[1:], axis=a, reduction=r)
        for x in (f(3, 4), ints(3, 4))
        for a, ids in ((0, np.array([[2, 0, 1, 2], [0, 1, 2, 1]])), (1, np.array([[3, 0, 1, 2], [0, 3, 2, 1]])))
        for r in ("none", "add", "mul", "max", "min")
    ),
    case("scatter", CUBE, np.array([[[1, 1]], [[0, 0]]]), f(2, 1, 2), axis=1, reduction="add"),
    *(case("pad", x, padding=(1, 2, -1, 0), value=3) for x in (f(2, 3), ints(2, 3), mask(2, 3))),
    *(case("pad", x, padding=(-1, 3, -3, 1), value=-math.inf) for x in (f(2, 3), mask(2, 3))),
    case("attention", f(2, 3, 4, 8), f(2, 3, 5, 8), f(2, 3, 5, 6)),
    case("attention", f(4, 8), f(5, 8), f(5, 6), scale=0.3),
    case("attention", f(1, 3, 4, 8), f(2, 1, 5, 8), f(3, 5, 6), mask(4, 5)),
    case("attention", f(1, 1, 4, 8), f(1, 1, 5, 8), f(2, 3, 5, 6), mask(2, 1, 4, 5)),
    case("attention", f(2, 3, 4, 8), f(2, 3, 5, 8), f(2, 3, 5, 6), f(3, 1, 5)),
    case("attention", f(1, 2, 4, 8), f(1, 2, 4, 8), f(1, 2, 4, 8), np.tri(4, k=-1, dtype=bool)),
    case(
        "attention",
        f(1, 2, 3, 8),
        f(1, 2, 3, 8),
        f(1, 2, 3, 8),
        np.float32([[-np.inf] * 3, [0, 1, -np.inf], [0] * 3]),
    ),
    *(case("attention", f(2, n, 8), f(2, s, 8), f(2, s, 8), causal=True) for n, s in ((4, 4), (3, 5), (5, 3))),
    case("nms", 9 * pos(2, 5, 4).cumsum(2), f(2, 5), k=3, iou_threshold=0.2),
    *(
        case("roi_align", 4 * f(3, 4), ints(3, low=0, high=2), f(1, 5, 6, 7), f(1, 5, 3, 4), size=(2, 3), aligned=a)
        for a in (False, True)
    ),
    case("paste_masks", pos(3, 4, 4), 9 * pos(3, 4).cumsum(1), size=(12, 9)),
    case("heatmap_peaks", f(3, 2, 4, 4), 9 * pos(3, 4).cumsum(1)),
]


@pytest.mark.parametrize(("op", "inputs", "params", "attrs"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
def test_meaning_and_shape_rule_are_those_of_pytorch(
    op: str, inputs: tuple[np.ndarray, ...], params: dict[str, np.ndarray], attrs: dict[str, Any]
) -> None:
    check(op, *inputs, params=params, **attrs)


def test_every_operation_has_a_case_and_a_torch_function() -> None:
    drawn = {"max_pool2d", "avg_pool2d", "interpolate", "slice"}
    drawn |= {f"{op}{n}d" for op in ("conv", "conv_transpose") for n in (1, 2, 3)} | {"rnn", "lstm", "gru"}
    assert {op for op, *_ in CASES} | drawn == set(OPS) == set(TABLE)


def sizes(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def convolutions(draw: st.DrawFn, axes: st.SearchStrategy[int]) -> dict[str, Any]:
    """Draw image, filters, bias and attributes of a convolution, the size of its output not yet assured."""
    n, groups = draw(axes), draw(st.sampled_from([1, 1, 2, 3]))
    channels, filters = draw(st.integers(1, 3)), draw(st.integers(1, 2)) * groups
    if draw(st.booleans()):
        channels, filters = 1, groups  # depthwise

    def some(low: int, high: int, length: int = n) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=length, max_size=length)))

    return {
        "x": f(draw(st.integers(0, 2)), groups * channels, *some(1, 7 if n < 3 else 4)),
        "weight": f(filters, channels, *some(1, 3 if n < 3 else 2)),
        "bias": draw(st.sampled_from([None, f(filters)])),
        "stride": some(1, 3),
        "padding": some(0, 3 if n < 3 else 1, 2 * n),
        "dilation": some(1, 2),
        "groups": groups,
    }


def check_convolution(op: str, c: dict[str, Any]) -> None:
    x, weight, bias = c.pop("x"), c.pop("weight"), c.pop("bias")
    name = f"{op}{x.ndim - 2}d"
    params = {"weight": weight} | ({} if bias is None else {"bias": bias})
    check(name, x, params=params, **c)
    (got,) = evaluate(build(name, [x], params, **c), [x]).values()
    close(got, getattr(naive, op)(x, weight, bias, **c))


AXES = st.sampled_from([2, 2, 1, 3])


@settings(few, max_examples=60)
@given(convolutions(AXES))
def test_convolutions(c: dict[str, Any]) -> None:
    n = c["x"].ndim - 2
    for i in range(n):
        extent = c["dilation"][i] * (c["weight"].shape[2 + i] - 1) + 1
        assume(c["x"].shape[2 + i] + c["padding"][i] + c["padding"][n + i] >= extent)
    check_convolution("conv", c)


@settings(few, max_examples=60)
@given(convolutions(AXES), st.lists(st.integers(0, 2), min_size=3, max_size=3))
def test_transposed_convolutions(c: dict[str, Any], output_padding: list[int]) -> None:
    n = c["x"].ndim - 2
    c["output_padding"] = tuple(output_padding[:n])
    for i in range(n):
        full = (c["x"].shape[2 + i] - 1) * c["stride"][i] + c["dilation"][i] * (c["weight"].shape[2 + i] - 1) + 1
        assume(full + output_padding[i] > c["padding"][i] + c["padding"][n + i])
    check_convolution("conv_transpose", c)


GATES = {"rnn": 1, "lstm": 4, "gru": 3}


@few
@given(st.sampled_from(list(GATES)), st.integers(0, 2), st.integers(0, 4), st.integers(1, 3), st.data())
def test_recurrent_layers(op: str, batch: int, steps: int, size: int, data: st.DataObject) -> None:
    reverse, bias, given_states = (data.draw(st.booleans()) for _ in range(3))
    rows, n_states = GATES[op] * size, 2 if op == "lstm" else 1
    attrs: dict[str, Any] = {"reverse": reverse}
    attrs |= {"nonlinearity": data.draw(st.sampled_from(["tanh", "relu"]))} if op == "rnn" else {}
    products, states = f(batch, steps, rows), [f(batch, size, seed=i) for i in range(n_states)]
    params = {"weight": f(rows, size, seed=2)} | ({"bias": f(rows)} if bias else {})
    inputs = [products, *(states if given_states else [])]
    graph = build(op, inputs, params, 1 + n_states, **attrs)
    got = list(evaluate(graph, inputs).values())
    start = states if given_states else [np.zeros_like(s) for s in states]
    output, finals, seen = naive.recurrent(op, products, start, params["weight"], params.get("bias"), **attrs)
    for ours, theirs in zip(got, [output, *finals], strict=True):
        close(ours, theirs)
    operand = weight_op(op).operand
    assert operand is not None
    close(operand(inputs, params, graph.nodes[0].attrs), seen)
    wanted = to_torch(graph).requires_grad_(False)(*(torch.from_numpy(x.copy()) for x in inputs))
    for ours, theirs in zip(got, wanted, strict=True):
        close(ours, theirs.numpy())


@st.composite
def poolings(draw: st.DrawFn) -> tuple[np.ndarray, dict[str, Any]]:
    kernel, stride, dilation = draw(sizes(1, 4)), draw(sizes(1, 3)), draw(sizes(1, 2))
    ceil_mode = draw(st.booleans())
    limits = [dilation[i] * (kernel[i] - 1) for i in (0, 1)]
    before = tuple(draw(st.integers(0, limit)) for limit in limits)
    after = before if draw(st.booleans()) else tuple(draw(st.integers(0, limit)) for limit in limits)
    shape = draw(sizes(1, 9))
    for i in (0, 1):
        assume(shape[i] + before[i] + after[i] + (stride[i] - 1 if ceil_mode else 0) > limits[i])
    attrs = {"kernel": kernel, "stride": stride, "dilation": dilation, "padding": before + after}
    return f(1, 2, *shape), attrs | {"ceil_mode": ceil_mode}


@settings(few, max_examples=60)
@given(poolings())
def test_max_pool2d(drawn: tuple[np.ndarray, dict[str, Any]]) -> None:
    check("max_pool2d", drawn[0], **drawn[1])


@settings(few, max_examples=60)
@given(poolings(), st.booleans(), st.sampled_from([None, None, 3, -2]))
def test_avg_pool2d(drawn: tuple[np.ndarray, dict[str, Any]], include: bool, divisor: int | None) -> None:
    x, attrs = drawn
    assume(attrs.pop("dilation") == (1, 1))
    check("avg_pool2d", x, **attrs, count_include_pad=include, divisor=divisor)


def test_max_pool2d_keeps_nan() -> None:
    x = f(1, 1, 4, 4)
    x[0, 0, 1, 2] = np.nan
    check("max_pool2d", x, kernel=(2, 2), stride=(1, 1))


@settings(few, max_examples=100)
@given(
    sizes(1, 12),
    sizes(1, 25),
    st.sampled_from(["nearest", "bilinear", "bicubic"]),
    st.sampled_from([{}, {"align_corners": True}, {"antialias": True}, {"align_corners": True, "antialias": True}]),
)
def test_interpolate(shape: tuple[int, int], size: tuple[int, int], mode: str, more: dict[str, bool]) -> None:
    check("interpolate", f(2, 3, *shape), size=size, mode=mode, **(more if mode != "nearest" else {}))


@few
@given(
    sizes(2, 12),
    st.tuples(st.floats(0.5, 3), st.floats(0.5, 3)),
    st.sampled_from([("nearest", False), *((mode, aa) for mode in ("bilinear", "bicubic") for aa in (False, True))]),
)
def test_interpolate_by_scales(shape: tuple[int, int], scales: tuple[float, float], mode: tuple[str, bool]) -> None:
    size = [int(n * scale) for n, scale in zip(shape, scales, strict=True)]
    more = dict(zip(("scale_height", "scale_width"), scales, strict=True))
    check("interpolate", f(2, 3, *shape), size=size, mode=mode[0], antialias=mode[1], **more)


def test_antialiased_filters_meet_infinities_at_the_pixels_that_they_see() -> None:
    x = np.zeros((1, 1, 1, 31), np.float32)
    x[..., 0], x[..., -1] = np.inf, -np.inf
    attrs = {"size": (1, 7), "mode": "bilinear", "antialias": True}
    got = evaluate(build("interpolate", [x], {}, **attrs), [x])
    np.testing.assert_array_equal(*got.values(), [[[[np.inf, 0, 0, 0, 0, 0, -np.inf]]]])


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_interpolate_reads_large_images_where_pytorch_does(align_corners: bool, mode: str, antialias: bool) -> None:
    attrs = {"align_corners": align_corners, "mode": mode, "antialias": antialias}
    check("interpolate", f(1, 1, 480, 640), size=(301, 299), **attrs)


@few
@given(st.data(), st.sampled_from([*ARITHMETIC, *COMPARISONS]))
def test_elementwise_broadcasting(data: st.DataObject, op: str) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
    shapes = []
    for _ in range(2):
        own = [data.draw(st.sampled_from([1, size])) for size in shape]
        shapes.append(own[data.draw(st.integers(0, len(own))) :])
    check(op, pos(*shapes[0]), f(*shapes[1], seed=1))


@few
@given(st.data(), st.sampled_from(["constant", "reflect", "replicate"]))
def test_pad(data: st.DataObject, mode: str) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    padding: list[int] = []
    for size in shape:
        low, high = {"constant": (-(size // 2), 3), "reflect": (0, size - 1), "replicate": (0, 3)}[mode]
        padding += data.draw(st.lists(st.integers(low, high), min_size=2, max_size=2))
    check("pad", f(*shape), padding=padding, mode=mode, value=1.5)


@settings(few, max_examples=60)
@given(
    st.integers(0, 1),
    st.integers(-8, 8),
    st.one_of(st.none(), st.integers(-8, 8)),
    st.integers(-3, 3).filter(lambda step: step != 0),
)
def test_slice(axis: int, start: int, stop: int | None, step: int) -> None:
    check("slice", f(6, 5), axis=axis, start=start, stop=stop, step=step)


def test_erf_is_within_3e_7() -> None:
    x = np.concatenate([np.linspace(-6, 6, 20001), np.geomspace(1e-30, 1, 100)]).astype(np.float32)
    np.testing.assert_allclose(erf(x), [math.erf(v) for v in x], rtol=3e-7)


def test_var_of_too_few_numbers_is_nan_or_infinite() -> None:
    graph = build("var", [f(2, 1)], {}, axes=(1,), correction=1)
    (got,) = evaluate(graph, [f(2, 1)]).values()
    assert np.isnan(got).all()


@pytest.mark.parametrize("batch", [2, 5])
def test_sizes_follow_the_free_symbols(batch: int) -> None:
    b = GraphBuilder({"x": ValueInfo(("batch", 6, 2))}, {"batch": 3})
    rows = b.add("reshape", "x", shape=("12*batch",))
    parts = b.add_many("split", [rows], 2, axis=0, sizes=("4*batch", "8*batch"))
    tail = b.add("slice", parts[1], axis=0, start="batch - 2", stop="4*batch + (batch // 2)")
    image = b.add("reshape", parts[0], shape=(1, 1, "2*batch", 2))
    outputs = {
        "tail": tail,
        "image": b.add("interpolate", image, size=("batch", "-1 + 2*batch")),
        "ids": b.add("arange", end="batch"),
        "grid": b.add("expand", b.add("full", shape=("batch", 1), value=2), shape=("batch", 3)),
    }
    graph = b.build(outputs)
    x = f(batch, 6, 2)
    flat = x.reshape(-1)
    tensors = to_torch(graph)(torch.from_numpy(x.copy()))
    infos = graph.infer_shapes({"batch": batch})
    for value, tensor in zip(outputs.values(), tensors, strict=True):
        assert infos[value].shape == tuple(tensor.shape)
    values: dict[str, np.ndarray] = {"x": x}
    for node in graph.nodes:
        op = get_op(node.op)
        attrs = resolve_attrs(op, node.attrs, {"batch": batch})
        result = op.evaluate([values[v] for v in node.inputs], {}, attrs)
        values.update(zip(node.outputs, result if isinstance(result, tuple) else (result,), strict=True))
    np.testing.assert_array_equal(values[tail], flat[4 * batch :][batch - 2 : 4 * batch + batch // 2])
    for value, tensor in zip(outputs.values(), tensors, strict=True):
        close(values[value], tensor.numpy())
