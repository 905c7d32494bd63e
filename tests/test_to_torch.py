"""The module that a graph becomes: which parameters it holds, under which names, and what it refuses.

That it computes the same as the graph is what test_ops.py tests.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pqnet import PQNetError
from pqnet.codecs import PQ, PackedPQ
from pqnet.graph import Graph, GraphBuilder, ValueInfo
from pqnet_converters.torch.to_torch import to_torch


def shared_weight_graph(weight: Any) -> Graph:
    b = GraphBuilder({"ids": ValueInfo(("batch",), "int64")}, {"batch": 2})
    h = b.add("embedding", "ids", name="a.b", params={"weight": weight})
    h = b.add("batch_norm", h, name="norm", params={"mean": np.ones(4, np.float32), "var": np.float16([1, 2, 3, 4])})
    b.params["forward"], b.params["a_b_weight"] = np.ones(4, np.float32), np.arange(4)
    h = b.add("add", h, b.add("constant", params={"value": "forward"}))
    h = b.add("add", h, b.add("constant", params={"value": "a_b_weight"}))
    return b.build({"logits": b.add("linear", h, params={"weight": "a.b.weight"}), "hidden": h})


def test_module_shares_decodes_and_names_parameters() -> None:
    rng = np.random.default_rng(0)
    packed = PackedPQ(PQ(k=8, d=2), (6, 4), rng.integers(0, 8, (6, 2)), rng.standard_normal((8, 2)))
    module = to_torch(SimpleNamespace(graph=shared_weight_graph(packed)))
    assert {n: p.shape for n, p in module.named_parameters()} == {"a_b_weight": (6, 4), "forward_": (4,)}
    assert sorted(n for n, _ in module.named_buffers()) == ["a_b_weight_", "norm_mean", "norm_var"]
    assert module.norm_var.dtype == torch.float32
    np.testing.assert_array_equal(module.a_b_weight.detach().numpy(), packed.decode())
    logits, hidden = module(torch.tensor([5, 0, 1]))
    np.testing.assert_allclose(logits.detach().numpy(), hidden.detach().numpy() @ packed.decode().T, rtol=1e-5)
    logits.sum().backward()
    assert module.a_b_weight.grad.shape == (6, 4)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ((), r"inputs: expected 1 tensors \(ids\), got 0"),
        ((torch.zeros(2),), r"input 'ids': expected a tensor of torch.int64, got torch.float32"),
        ((np.zeros(2, np.int64),), "input 'ids': expected a tensor of torch.int64, got ndarray"),
        ((torch.zeros(2, 2, dtype=torch.int64),), r"input 'ids': expected shape \(any > 0\), got \(2, 2\)"),
    ],
)
def test_module_refuses_other_inputs(inputs: tuple[Any, ...], match: str) -> None:
    with pytest.raises(PQNetError, match=match):
        to_torch(shared_weight_graph(np.ones((6, 4), np.float32)))(*inputs)


def test_to_torch_refuses_other_objects() -> None:
    with pytest.raises(PQNetError, match=r"model: expected a pqnet.Model or a Graph, got list"):
        to_torch([])
