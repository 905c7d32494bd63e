"""Recurrent layers as steps of the engine: against their meaning, against PyTorch, and by every kind of weight."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from forced import FORCED, run_forced
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import GuardedSpace, untouched
from random_graphs import reference
from test_kernel_sums import packed
from test_ops import GATES

import pqnet
from pqnet import PQ, Additive, IntN, Model, Sparse
from pqnet.codecs import Codec, Packed
from pqnet.graph import Graph, GraphBuilder, ValueInfo
from pqnet.runtime.builder import HostStep
from pqnet.runtime.memory import Store, Workspace
from pqnet.runtime.program import Program, Segment

CODECS: list[Codec | None] = [
    None,
    None,
    PQ(5, 1),
    IntN(4),
    IntN(4, "group", symmetric=False, group=1),
    Additive([PQ(3, 1), Sparse(0.2)]),
]


def layers(
    op: str, batch: int, steps: int, size: int, codec: Codec | None, given_states: bool, seed: int = 0, **attrs: Any
) -> tuple[Graph, dict[str, np.ndarray]]:
    """Return two layers, one after the other, whose outputs are all outputs of the network; and inputs."""
    rng, rows, n_states = np.random.default_rng(seed), GATES[op] * size, 2 if op == "lstm" else 1

    def numbers(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def weight() -> np.ndarray | Packed:
        if codec is None:
            return numbers(rows, size) / np.float32(2 * np.sqrt(size))
        try:
            return packed(codec, (rows, size), seed, 0.5 / size)
        except pqnet.ConfigError:  # fewer weights than codewords
            return numbers(rows, size)

    x = {"x": numbers(batch, steps, rows)}
    x |= {f"s{i}": numbers(batch, size) for i in range(n_states if given_states else 0)}
    b = GraphBuilder({name: ValueInfo(array.shape) for name, array in x.items()})
    first = b.add_many(op, list(x), 1 + n_states, params={"weight": weight(), "bias": numbers(rows)}, **attrs)
    product = b.add("linear", first[0], params={"weight": numbers(rows, size) / np.float32(np.sqrt(size))})
    second = b.add_many(op, [product], 1 + n_states, params={"weight": weight()}, **attrs)
    relu = b.add("relu", second[0])  # follows the layer, not the product in it
    return b.build({f"y{i}": value for i, value in enumerate([*first, *second, relu])}), x


def check(graph: Graph, x: dict[str, np.ndarray]) -> Program:
    """Compare a network with its meaning, on 1, 2 and 4 threads, in guarded memory."""
    program, space = Program(graph, {}, Store()), GuardedSpace()
    got, want = program.run(x, space, 1), reference(graph, x)
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=2e-5, err_msg=name)
    assert untouched(program, space.arena)
    assert not any(isinstance(segment, HostStep) for segment in program.segments)
    for threads in (2, 4):
        again = program.run(x, Workspace(), threads)
        assert all(array.tobytes() == again[name].tobytes() for name, array in got.items()), threads
    return program


@settings(max_examples=40)
@given(
    st.sampled_from(list(GATES)),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from(CODECS),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_layers_of_any_size(
    op: str, batch: int, steps: int, size: int, codec: Codec | None, given_states: bool, reverse: bool, seed: int
) -> None:
    attrs = {"nonlinearity": ["tanh", "relu"][seed % 2]} if op == "rnn" else {}
    check(*layers(op, batch, steps, size, codec, given_states, seed, reverse=reverse, **attrs))


@pytest.mark.parametrize("op", GATES)
def test_states_that_several_tasks_compute(op: str) -> None:
    program = check(*layers(op, 17, 3, 130, IntN(4), False))
    assert max(step.tasks for _, _, step in program.kernel_steps() if step.algorithm == op) > 1


def test_thousands_of_steps_are_a_compact_program() -> None:
    long, short = (Program(layers("gru", 1, steps, 2, None, False)[0], {}, Store()) for steps in (4000, 4))
    segments = [next(s for s in program.segments if isinstance(s, Segment)) for program in (long, short)]
    assert len(segments[0].steps) == len(segments[1].steps) and segments[0].size > 16_000
    assert long.nbytes - short.nbytes <= 64 * (segments[0].size - segments[1].size)
    graph, x = layers("gru", 1, 4000, 2, None, False)
    check(graph, x)


def test_one_profile_entry_stands_for_all_rounds_of_a_step() -> None:
    graph, x = layers("lstm", 2, 7, 5, None, False)
    times = [t for t in Model(graph).profile(x, threads=1, runs=1) if t.algorithm == "lstm"]
    assert [t.label.endswith("(cell)") for t in times] == [True, True]
    assert times[0].nbytes % 7 == 0


SCRIPT = """
from test_kernel_recurrent import IntN, check, layers
for op in ("rnn", "lstm", "gru"):
    check(*layers(op, 2, 3, 9, None, True, reverse=True))
    check(*layers(op, 1, 2, 6, IntN(4, "group", group=2), False))
"""


@pytest.mark.parametrize("settings_", FORCED)
def test_the_same_under_each_instruction_set_and_without_a_compiler(settings_: dict[str, str]) -> None:
    run_forced(SCRIPT, settings_)


# ---- against PyTorch


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_taggers_from_pytorch(kind: str) -> None:
    torch = pytest.importorskip("torch")
    from pqnet_converters import from_torch

    class Tagger(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.cell = getattr(torch.nn, kind)(12, 16, 2, batch_first=True, bidirectional=True)
            self.head = torch.nn.Linear(32, 5)

        def forward(self, x: Any) -> Any:
            return self.head(self.cell(x)[0])

    torch.manual_seed(0)
    net, x = Tagger().eval(), torch.randn(3, 11, 12)
    model = from_torch(net, torch.zeros(1, 11, 12))
    params = dict(model.graph.params)
    for i, node in enumerate(n for n in model.graph.layers().values() if n.op == kind.lower()):
        name, codec = node.params["weight"], [PQ(32, 4), Additive([PQ(16, 8), Sparse(0.05)])][i % 2]
        params[name] = packed(codec, params[name].shape, i, 0.1)
    small = Model(replace(model.graph, params=params))
    for ours in (model, small):
        with torch.no_grad():
            state = {k: torch.from_numpy(dense(ours.graph.params[k])) for k in net.state_dict() if k in params}
            assert len(state) == len(net.state_dict())
            net.load_state_dict(state)
            np.testing.assert_allclose(ours(x.numpy()), net(x).numpy(), atol=1e-5)
        steps = ours.profile({next(iter(ours.inputs)): x.numpy()}, runs=1)
        assert "numpy" not in {step.algorithm for step in steps}


def dense(param: np.ndarray | Packed) -> np.ndarray:
    return param.decode() if isinstance(param, Packed) else np.array(param)
