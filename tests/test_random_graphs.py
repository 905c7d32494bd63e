"""Random networks: the engine against the meaning of the operations in NumPy."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from random_graphs import random_graph, reference, same, wrong_part

import pqnet
from pqnet import PQNetError
from pqnet.graph.symbols import output_signature
from pqnet.runtime.algorithms import ALGORITHMS


def check(seed: int) -> None:
    """Raise unless a network gives what NumPy gives, the same bits on two threads, and from its pickled form."""
    graph, inputs = random_graph(seed)
    model, want = pqnet.Model(graph), reference(graph, inputs)
    got, again = model.run(inputs, threads=1), model.run(inputs, threads=2)
    assert list(got) == list(want)
    for name, array in want.items():
        part = None if same(got[name], array) else wrong_part(graph, inputs, lambda g, x: pqnet.Model(g).run(x))
        assert same(got[name], array), f"seed {seed}, output {name}: {(part or graph).nodes[-3:]}"
        assert got[name].tobytes() == again[name].tobytes(), f"seed {seed}, output {name}: two threads"
    if seed % 10 == 0:
        copy = pickle.loads(pickle.dumps(model)).run(inputs)
        assert all(copy[name].tobytes() == array.tobytes() for name, array in got.items()), f"seed {seed}: a copy"


def check_in_process(first: int, last: int, **environment: str) -> None:
    """Check the networks of some seeds in another process, such as with PQNET_SIMD=avx2."""
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_random_graphs as t\n"
    code += f"for seed in range({first}, {last}): t.check(seed)"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, f"{environment}: {run.stderr[-2000:]}"


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_random_networks(first: int) -> None:
    for seed in range(first, first + 20):
        check(seed)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_random_networks_by_every_algorithm(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PQNET_ALGORITHM", algorithm)
    for seed in range(100, 125):
        check(seed)


@pytest.mark.parametrize("isa", ["avx2", "generic"])
def test_random_networks_under_other_instruction_sets(isa: str) -> None:
    check_in_process(0, 45, PQNET_SIMD=isa)


def test_networks_are_those_of_their_seeds() -> None:
    for seed in range(5):
        (one, x), (two, z) = random_graph(seed), random_graph(seed)
        assert one.nodes == two.nodes and all(np.array_equal(x[name], z[name]) for name in x)
        assert len(one.nodes) > 0


def test_free_sizes_of_outputs_are_those_that_vary() -> None:
    seen = set()
    for seed in range(60):
        graph, _ = random_graph(seed)
        for name, (shape, dtype) in output_signature(graph).items():
            found = {graph.infer_shapes(graph.symbols)[graph.outputs[name]]}
            for batch in range(1, 36) if graph.symbols else ():
                try:
                    found.add(graph.infer_shapes({"n": batch})[graph.outputs[name]])
                except PQNetError:
                    continue
            sizes = [set(along) for along in zip(*(info.shape for info in found), strict=True)]
            if len(found) > 1 or not graph.symbols:
                assert shape == tuple(None if len(along) > 1 else along.pop() for along in sizes), seed
            assert {dtype} == {info.dtype for info in found}
            seen.add(None in shape)
    assert seen == {True, False}
