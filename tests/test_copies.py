"""Models and plain data go to other processes by pickle, and are copied: equal, and independent of the original."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_bad_codes import CODECS, IDS, network

import pqnet
from pqnet import FormatError, Recipe
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.graph.permute import Channels
from pqnet.io import Golden, graph_from_bytes, graph_to_bytes

COPIERS = pytest.mark.parametrize("copier", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
Copier = Callable[[Any], Any]


@pytest.fixture(scope="module")
def packed() -> pqnet.Model:
    return pqnet.quantize(network(), Recipe(CODECS), IDS, metric="none", progress=False)


@COPIERS
def test_models(packed: pqnet.Model, copier: Copier) -> None:
    again = copier(packed)
    assert again(IDS).tobytes() == packed(IDS).tobytes() and again.golden is None
    assert graph_to_bytes(again.graph) == graph_to_bytes(packed.graph)
    name = "scalar.bias"
    again.graph.params[name] += 1
    assert not np.array_equal(again.graph.params[name], packed.graph.params[name])
    with_golden = copier(pqnet.Model(packed.graph, packed.draw_golden()))
    assert isinstance(with_golden.golden, Golden)
    assert with_golden.golden.largest_difference(with_golden.run(with_golden.golden.inputs(), threads=1)) < 1e-5


def test_bytes_are_those_of_the_file(packed: pqnet.Model) -> None:
    packed.save("model.h5")
    data = graph_to_bytes(packed.graph, packed.golden)
    with open("model.h5", "rb") as file:
        assert file.read() == data
    assert graph_from_bytes(data)[0].nodes == packed.graph.nodes
    for damaged, message in [
        (data[:-1], "data: the file is damaged: expected"),
        (data[:-1] + bytes([data[-1] ^ 1]), "data: the file is damaged: its content"),
        (b"hello", "data: expected a pqnet file"),
    ]:
        with pytest.raises(FormatError, match=message):
            graph_from_bytes(damaged)


@COPIERS
def test_plain_data(packed: pqnet.Model, copier: Copier) -> None:
    recipe = Recipe({"default": pqnet.PQ(16, 4), **CODECS})
    assert copier(recipe) == recipe
    graph = copier(packed.graph)
    assert graph.nodes == packed.graph.nodes and graph.inputs == packed.graph.inputs
    for name, param in packed.graph.params.items():
        if isinstance(param, pqnet.Packed):
            assert graph.params[name] == param
        else:
            assert graph.params[name].tobytes() == param.tobytes()
    statistics = pqnet.calibrate(network(), IDS)
    statistics.save("one.h5")
    copier(statistics).save("two.h5")
    with open("one.h5", "rb") as one, open("two.h5", "rb") as two:
        assert one.read() == two.read()


def test_channels_of_thousands_of_residuals() -> None:
    """All layers write to one stream: one set of channels, found without recursion."""
    builder = GraphBuilder({"x": ValueInfo(("n", 3))}, {"n": 2})
    stream = builder.add("linear", "x", params={"weight": np.ones((4, 3), np.float32)})
    for _ in range(1200):
        branch = builder.add("linear", stream, params={"weight": np.ones((4, 4), np.float32)})
        stream = builder.add("add", branch, stream)
    last = builder.add("linear", stream, params={"weight": np.ones((5, 4), np.float32)})
    assert Channels.find(builder.build({"y": last})).sizes == (4,)
