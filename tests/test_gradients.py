"""Gradients of operations in NumPy are those of PyTorch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_pipeline import rand

torch = pytest.importorskip("torch")

from pqnet.graph import GraphBuilder, ValueInfo  # noqa: E402
from pqnet.graph.gradients import SMOOTH, TABLE, backward, has_gradient, reached  # noqa: E402
from pqnet.runtime.execute import evaluate_node  # noqa: E402
from pqnet.train.ops import TorchGraph  # noqa: E402

Build = Callable[..., Any]


def one(op: str, *params: Any, **attrs: Any) -> Build:
    roles = dict(zip(("weight", "bias", "mean", "var"), params, strict=False))
    return lambda b, *x: b.add(op, *x, params=roles, **attrs)


def of_exp(op: str, **attrs: Any) -> Build:
    """An operation on positive numbers."""
    return lambda b, x: b.add(op, b.add("exp", x), **attrs)


POSITIVE = ("log", "log1p", "log2", "log10", "sqrt", "rsqrt", "reciprocal")
CASES: list[tuple[str, Build, list[tuple[int, ...]]]] = [
    *((op, of_exp(op) if op in POSITIVE else one(op), [(20, 5)]) for op in sorted(SMOOTH - {"cast", "clamp"})),
    *((op, one(op), [(2, 3, 1), (4,)]) for op in ("add", "sub", "mul", "div", "maximum", "minimum")),
    ("cast", one("cast", dtype="float32"), [(2, 3)]),
    ("clamp", one("clamp", min=-0.5, max=0.5), [(20, 5)]),
    ("mul", one("mul", scalar=3.0), [(2, 3)]),
    ("sub", one("sub", scalar=2.0, reverse=True), [(2, 3)]),
    ("div", of_exp("div", scalar=2.0, reverse=True), [(2, 3)]),
    ("pow", of_exp("pow", scalar=1.5), [(2, 3)]),
    ("conv1d", one("conv1d", rand(6, 4, 3), rand(6), stride=(3,), padding=(1, 1)), [(2, 4, 9)]),
    (
        "conv2d",
        one("conv2d", rand(6, 2, 3, 3), rand(6), stride=(2, 1), padding=(1, 0, 2, 1), dilation=(1, 2), groups=2),
        [(2, 4, 9, 8)],
    ),
    ("conv2d", one("conv2d", rand(4, 1, 3, 3), stride=(2, 2), padding=(1, 1, 1, 1), groups=4), [(2, 4, 8, 7)]),
    ("conv2d", one("conv2d", rand(6, 4, 1, 1), rand(6)), [(2, 4, 5, 3)]),
    ("conv3d", one("conv3d", rand(6, 4, 1, 2, 3), rand(6), stride=(1, 2, 2)), [(2, 4, 3, 5, 6)]),
    ("conv_transpose1d", one("conv_transpose1d", rand(6, 4, 3), rand(6), stride=(2,)), [(2, 4, 5)]),
    (
        "conv_transpose2d",
        one(
            "conv_transpose2d",
            rand(6, 2, 3, 3),
            rand(6),
            stride=(2, 2),
            padding=(1, 1, 1, 0),
            output_padding=(1, 0),
            groups=2,
        ),
        [(2, 4, 5, 4)],
    ),
    ("conv_transpose3d", one("conv_transpose3d", rand(2, 4, 1, 2, 2), stride=(1, 2, 1)), [(2, 4, 2, 3, 3)]),
    ("linear", one("linear", rand(5, 4), rand(5)), [(2, 3, 4)]),
    ("matmul", one("matmul"), [(2, 3, 4), (4, 5)]),
    ("matmul", one("matmul"), [(4,), (2, 4, 5)]),
    ("matmul", one("matmul"), [(2, 3, 4), (4,)]),
    ("batch_norm", one("batch_norm", rand(4), rand(4), rand(4), rand(4) ** 2), [(2, 4, 3)]),
    ("batch_norm", one("batch_norm", rand(4), rand(4)), [(2, 4)]),
    ("rms_norm", one("rms_norm", rand(4, 3), axes=2), [(2, 4, 3)]),
    ("layer_norm", one("layer_norm", rand(4, 3), rand(4, 3), axes=2), [(2, 4, 3)]),
    ("group_norm", one("group_norm", rand(4), rand(4), groups=2), [(2, 4, 3)]),
    ("softmax", one("softmax", axis=1), [(2, 4, 3)]),
    ("log_softmax", one("log_softmax", axis=1), [(2, 4, 3)]),
    ("attention", one("attention"), [(2, 3, 4, 5), (2, 3, 6, 5), (1, 3, 6, 7), (4, 6)]),
    ("attention", one("attention", causal=True, scale=0.3), [(2, 4, 5), (2, 4, 5), (2, 4, 7)]),
    (
        "max_pool2d",
        one("max_pool2d", kernel=(3, 2), stride=(2, 2), padding=(1, 0, 1, 0), ceil_mode=True, dilation=(1, 2)),
        [(2, 3, 8, 7)],
    ),
    ("avg_pool2d", one("avg_pool2d", kernel=(3, 2), stride=(1, 2), padding=(1, 0, 1, 0)), [(2, 3, 8, 7)]),
    (
        "avg_pool2d",
        one("avg_pool2d", kernel=(3, 2), stride=(2, 2), padding=(1, 0, 1, 0), ceil_mode=True, count_include_pad=False),
        [(2, 3, 8, 7)],
    ),
    ("avg_pool2d", one("avg_pool2d", kernel=(3, 2), stride=(2, 2), divisor=5), [(2, 3, 8, 7)]),
    ("adaptive_avg_pool2d", one("adaptive_avg_pool2d", size=(3, 2)), [(2, 3, 8, 7)]),
    ("mean", one("mean", axes=(0, 2)), [(2, 3, 4)]),
    ("sum", one("sum", axes=(1,), keepdims=True), [(2, 3, 4)]),
    ("pad", one("pad", padding=(0, 0, -1, 2), value=3.0), [(2, 3)]),
    ("pad", one("pad", padding=(0, 0, 0, 0, 1, 2), mode="reflect"), [(2, 3, 4)]),
    ("slice", one("slice", axis=1, start=1, step=2), [(2, 5)]),
    ("concat", one("concat", axis=1), [(2, 5), (2, 3)]),
    ("split", lambda b, x: b.add_many("split", [x], 2, axis=1, sizes=(2, 3)), [(2, 5)]),
    ("expand", one("expand", shape=(4, 2, 5)), [(2, 1)]),
    ("reshape", one("reshape", shape=(5, 2)), [(2, 5)]),
    ("permute", one("permute", axes=(2, 0, 1)), [(2, 5, 3)]),
    (
        "index_select",
        lambda b, x: b.add("index_select", x, b.add("constant", params={"value": np.array([2, 0, 2])}), axis=1),
        [(2, 3)],
    ),
    (
        "embedding",
        lambda b, x: b.add("mul", x, b.add("embedding", b.add("arange", end=3), params={"weight": rand(4, 5)})),
        [(3, 5)],
    ),
]


def test_every_operation_with_a_gradient_is_compared() -> None:
    assert {op for op, *_ in CASES} | {"constant", "conv_transpose1d"} == set(TABLE)


@pytest.mark.parametrize(("op", "build", "shapes"), CASES, ids=[op for op, *_ in CASES])
def test_gradients_are_those_of_pytorch(op: str, build: Build, shapes: list[tuple[int, ...]]) -> None:
    b = GraphBuilder({f"x{i}": ValueInfo(shape) for i, shape in enumerate(shapes)})
    # Gradients of inputs are those of constants that are added to them.
    moved = [
        b.add("add", f"x{i}", b.add("constant", name=f"c{i}", params={"value": 0 * rand(*shape)}))
        for i, shape in enumerate(shapes)
    ]
    made = build(b, *moved)
    outputs = [made] if isinstance(made, str) else list(made)
    graph = b.build({value: value for value in outputs})
    inputs = {f"x{i}": rand(*shape, seed=i) for i, shape in enumerate(shapes)}
    values = dict(inputs)
    for node in graph.nodes:
        params = {role: graph.params[name] for role, name in node.params.items()}
        values |= dict(
            zip(node.outputs, evaluate_node(node, [values[v] for v in node.inputs], params, {}), strict=True)
        )
    seeds = {value: rand(*values[value].shape, seed=7) for value in outputs}

    module = TorchGraph(graph)
    found, _ = module.run([torch.from_numpy(x) for x in inputs.values()])
    sum((y * torch.from_numpy(seeds[v])).sum() for y, v in zip(found, outputs, strict=True)).backward()
    tensors = {name: getattr(module, module.key(name)) for name in graph.params}
    wanted = {name: t.grad for name, t in tensors.items() if isinstance(t, torch.nn.Parameter)}
    ours = backward(graph.nodes, values, graph.params, [n.attrs for n in graph.nodes], seeds, wanted)
    assert has_gradient(op)
    assert ours.keys() == wanted.keys()
    for name, grad in wanted.items():
        scale = float(grad.abs().max()) + 1e-6
        np.testing.assert_allclose(ours[name] / scale, grad.numpy() / scale, atol=3e-4, err_msg=name)


def test_what_no_wanted_parameter_reaches_needs_no_gradient() -> None:
    b = GraphBuilder({"x": ValueInfo((2, 3))})
    whole = b.add("floor", "x")
    y = b.add("linear", whole, name="fc", params={"weight": rand(4, 3), "bias": rand(4)})
    graph = b.build({"y": b.add("relu", y)})
    assert reached(graph.nodes, ["fc.bias"]) == {"fc", "relu"}
    x = rand(2, 3)
    values = {"x": x, "floor": np.floor(x)}
    for node in graph.nodes[1:]:
        params = {role: graph.params[name] for role, name in node.params.items()}
        values[node.outputs[0]] = evaluate_node(node, [values[v] for v in node.inputs], params, {})[0]
    found = backward(graph.nodes, values, graph.params, [{}, {}, {}], {"relu": np.ones((2, 4))}, ["fc.bias"])
    assert found.keys() == {"fc.bias"}
    np.testing.assert_array_equal(found["fc.bias"], (values["relu"] > 0).sum(0))
