"""Programs run packed weights from their codes: each weight operation with each codec, and no decoded copy anywhere."""

from typing import Any

import numpy as np
import pytest
from programs import GuardedSpace, untouched
from test_engine import FORCED, run_forced
from test_kernel_sums import packed
from test_ops import GATES

from pqnet import PQ, Additive, ConfigError, Fixed, IntN, Scalar, Sparse
from pqnet.codecs import Codec, Decoding, Packed
from pqnet.graph import Graph, GraphBuilder, ValueInfo
from pqnet.graph.layers import weight_ops
from pqnet.runtime.execute import run_graph, values_to_free
from pqnet.runtime.memory import Store, Workspace
from pqnet.runtime.program import HostStep, Program

# Blocks of all sizes and layouts: whole filters, and such that no cut of codewords gives the taps of a phase.
CODECS = [
    *(PQ(16, d, "spatial") for d in (1, 2, 3, 4, 8, 9)),
    PQ(16, 4, "channel"),
    Scalar(30),
    Fixed("ternary", "learned", "channel"),
    IntN(4, "group", symmetric=False, group=3),
    Sparse(0.05),
    Additive([PQ(16, 9), Scalar(8)]),
    Additive([PQ(16, 8, "channel"), PQ(16, 4), Sparse(0.02)]),
    Additive([PQ(16, 3), IntN(3, "group", group=9), PQ(16, 9), Sparse(0.02)]),
]
PLAIN = {"conv1d": (4,), "conv2d": (3, 3), "conv3d": (2, 3, 2)}  # kernels
# Strides, dilations and groups that cut filters in several ways.
PHASES: list[dict[str, Any]] = [{"stride": 2}, {"stride": 3, "dilation": 2}, {"stride": 2, "groups": 2}]


def graphs(op: str, codec: Codec, outputs: int) -> list[tuple[Graph, dict[str, np.ndarray], Packed]]:
    """Return networks of one operation, with inputs and the packed weight, as far as the codec fits."""
    rng, found = np.random.default_rng(0), []

    def add(shape: tuple[int, ...], x_shape: tuple[int, ...], results: int = 1, **attrs: Any) -> None:
        try:
            weight = packed(codec, shape, size=0.1)
        except ConfigError:
            return
        x = rng.standard_normal(x_shape).astype(np.float32)
        x = rng.integers(0, shape[0], x_shape) if op == "embedding" else x
        b = GraphBuilder({"x": ValueInfo(x.shape, x.dtype.name)})
        values = b.add_many(op, ["x"], results, params={"weight": weight}, **attrs)
        found.append((b.build(dict(zip("yzw", values, strict=False))), {"x": x}, weight))

    if op in GATES:
        add((GATES[op] * outputs, outputs), (2, 3, GATES[op] * outputs), 3 if op == "lstm" else 2)
    elif op in ("linear", "embedding"):
        add((outputs, 72), (5, 72) if op == "linear" else (5,))
    else:
        kernel = PLAIN[op.replace("_transpose", "")]
        size = (6, 5, 4)[: len(kernel)]
        for given in PHASES if "transpose" in op else [{}, {"groups": 2}]:
            attrs = {name: (value,) * len(kernel) for name, value in given.items() if name != "groups"}
            groups = given.get("groups", 1)
            add((outputs, 8, *kernel), (1, 8 * groups, *size), groups=groups, **attrs)
        depthwise = [{"stride": 2}, {"stride": 3}, {"padding": 1}]
        for given in depthwise:
            attrs = {name: (value,) * len(kernel) * (1 + (name == "padding")) for name, value in given.items()}
            add((outputs, 1, *kernel), (2, outputs, *size), groups=outputs, **attrs)
    return found


def check(graph: Graph, x: dict[str, np.ndarray], weight: Packed, compute: str) -> None:
    """Compare with NumPy, and look at the arrays of the program."""
    want = run_graph(graph, values_to_free(graph), x)
    with pytest.MonkeyPatch.context() as patch:

        def refuse(self: Decoding) -> np.ndarray:
            raise AssertionError("a weight was decoded")

        patch.setattr(Decoding, "decode", refuse)
        program, space = Program(graph, {}, Store(), compute=compute), GuardedSpace()
        got = program.run(x, space, 1)
        again = program.run(x, Workspace(), 2)
    tolerance = 1e-5 if compute == "float32" else 1e-2
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=tolerance * np.abs(value).max())
        assert np.array_equal(got[name], again[name])
    assert untouched(program, space.arena)
    if np.prod(weight.shape) < 1 << 10:
        return
    # Of one code for each number the codes take a byte a number; a decoded copy takes two or four.
    arrays = [piece.size * piece.array.itemsize for piece in program.pieces] + [program.index.nbytes]
    arrays += [array.nbytes for array in program.known.values()]
    assert max(arrays) < 1.9 * np.prod(weight.shape), weight


@pytest.mark.parametrize("op", weight_ops())
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_no_array_of_a_program_is_as_large_as_the_decoded_weight(op: str, compute: str) -> None:
    kinds = 0
    for codec in CODECS if compute == "float32" else CODECS[::4]:
        made = graphs(op, codec, 288)
        kinds += bool(made)
        for graph, x, weight in made:
            check(graph, x, weight, compute)
    assert kinds >= (6 if compute == "float32" else 2)


def test_nothing_is_left_to_numpy() -> None:
    for op in weight_ops():
        for graph, _, weight in (case for codec in CODECS for case in graphs(op, codec, 8)):
            whole = op == "embedding" and weight.codewords() is None  # whose rows NumPy decodes, but no other
            steps = Program(graph, {}, Store()).segments
            assert whole or not any(isinstance(s, HostStep) for s in steps), (op, weight)


SCRIPT = """
from test_packed_programs import CODECS, check, graphs
for op, codecs in (("conv_transpose2d", CODECS[3:4] + CODECS[-2:]), ("conv2d", CODECS[-3:])):
    for codec in codecs:
        for case in graphs(op, codec, 6):
            check(*case, "float32")
"""


@pytest.mark.parametrize("settings", FORCED)
def test_the_same_under_each_instruction_set_and_without_a_compiler(settings: dict[str, str]) -> None:
    run_forced(SCRIPT, settings)
