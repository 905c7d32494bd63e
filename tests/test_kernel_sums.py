"""Products with packed weights of every codec: from their codes, with exactly the weights that they decode to."""

from math import prod
from typing import Any

import numpy as np
import pytest
from forced import FORCED, run_forced
from programs import GuardedSpace, untouched
from test_decoding import SIMPLE, SUMS
from test_engine import check_algorithms

import pqnet
from pqnet import PQ, Additive, Fixed, IntN, Scalar, Sparse
from pqnet.codecs import Codec, Packed, PackedAdditive, PackedPQ, PackedScalar, PackedSparse
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.runtime.memory import Store, Workspace
from pqnet.runtime.program import Program
from pqnet.runtime.tune import fixed

# Of weights whose reduction is cut in several pieces, and of sums in several orders.
LARGE = [
    Additive([PQ(40, 8, "channel"), PQ(300, 4, "channel")]),
    Additive([PQ(40, 12), PQ(7, 8, "channel"), Scalar(5), Sparse(0.02)]),
    Additive([PQ(7, 8, "channel"), PQ(40, 18), IntN(4, "group", symmetric=False, group=6)]),
    Additive([PQ(40, 16, "channel"), IntN(3, "group", symmetric=False, group=96), Sparse(0.01), Sparse(0.01)]),
    Fixed([-1.0, 0.5, 2.0], "learned", "group", 16),
    Sparse(0.05),
]


def packed(codec: Codec, shape: tuple[int, ...], seed: int = 0, size: float = 1.0) -> Packed:
    """Return a weight of random codes, which needs no search, and of numbers of about this size."""
    rng, n = np.random.default_rng(seed), prod(shape)
    codec = codec.check(shape)
    if isinstance(codec, Additive):
        return PackedAdditive(codec, [packed(part, shape, seed + 1 + i, size) for i, part in enumerate(codec.parts)])
    if isinstance(codec, Sparse):
        count = codec.count or 0
        places = np.sort(rng.choice(n, count, replace=False))
        return PackedSparse(codec, shape, places, size * rng.standard_normal(count))
    if isinstance(codec, PQ):
        codes = rng.integers(0, codec.k, (shape[0], n // shape[0] // codec.d))
        return PackedPQ(codec, shape, codes, (size * rng.standard_normal((codec.k, codec.d))).astype(np.float32))
    assert isinstance(codec, Scalar | Fixed | IntN)
    stored: dict[str, np.ndarray] = {}
    if codec.levels is None:
        stored["codebook"] = (size * rng.standard_normal((codec.k, 1))).astype(np.float32)
    if codec.scaled:
        stored["scales"] = (size / codec.k * rng.uniform(0.1, 1, codec.scale_grid(shape))).astype(np.float32)
    if codec.has_zeros:
        stored["zeros"] = rng.integers(0, codec.k, codec.scale_grid(shape))
    return PackedScalar(codec, shape, rng.integers(0, codec.k, (shape[0], n // shape[0])), **stored)


def layer(weight: Packed, batch: int, groups: int = 1) -> tuple[Any, dict[str, np.ndarray]]:
    """Return a layer that sees one weight after the other: as many samples as an output has weights, each of one 1."""
    inputs = prod(weight.shape[1:])
    eye = np.eye(inputs, dtype=np.float32)[:batch].reshape(-1, *weight.shape[1:])
    x = np.concatenate([eye] * groups, axis=1)
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    attrs = {} if len(weight.shape) == 2 else {"groups": groups}
    return b.build({"y": b.add("linear" if not attrs else "conv2d", "x", params={"weight": weight}, **attrs)}), {"x": x}


def check(codec: Codec, shape: tuple[int, ...], batch: int, groups: int = 1) -> Program:
    """Compare what a layer sees of a weight with what it decodes to, bit by bit; and no piece may be as large as it."""
    weight = packed(codec, shape)
    graph, x = layer(weight, batch, groups)
    algorithm = "decode" if weight.codewords() is not None else "sums"
    program, space = Program(graph, {}, Store(), fixed(algorithm)), GuardedSpace()
    assert {s.algorithm for _, _, s in program.kernel_steps()} <= {algorithm, "copy", "prepare"}
    got = program.run(x, space, 1)["y"]
    assert np.array_equal(got.reshape(len(got), -1), weight.decode().reshape(shape[0], -1).T[:batch]), codec
    assert untouched(program, space.arena)
    assert np.array_equal(program.run(x, Workspace(), 2)["y"], got)
    return program


CASES = [(codec, shape) for codec in [*SIMPLE, *SUMS] for shape in [(7, 12), (6, 4, 3, 3)]]


@pytest.mark.parametrize(("codec", "shape"), CASES, ids=str)
def test_small_weights_bit_by_bit(codec: Codec, shape: tuple[int, ...]) -> None:
    try:
        codec.check(shape)
    except pqnet.ConfigError:
        pytest.skip("the codec does not fit")
    for batch in (prod(shape[1:]), 1):
        check(codec, shape, batch)


@pytest.mark.parametrize("codec", LARGE, ids=str)
def test_large_weights_bit_by_bit_and_never_dense(codec: Codec) -> None:
    for shape, batch, groups in [((24, 96, 3, 3), 864, 1), ((20, 96, 3, 3), 70, 2), ((33, 576), 3, 1)]:
        program = check(codec, shape, batch, groups)
        assert max(piece.array.nbytes for piece in program.pieces) < 4 * prod(shape) + 4096
        largest = max(4 * p.size if p.array.dtype == np.float32 else p.size for p in program.pieces)
        assert largest < 2.1 * prod(shape), codec  # codes of two bytes are the largest, a dense copy is twice that


def test_algorithms_that_decode_weights_as_a_whole_refuse_packed_ones() -> None:
    for codec in [*SIMPLE, *SUMS, *LARGE]:
        for shape in [(24, 96, 3, 3), (24, 96)]:
            try:
                weight = packed(codec, shape)
            except pqnet.ConfigError:
                continue
            graph, _ = layer(weight, 4)
            for name in ("dense", "winograd"):
                program = Program(graph, {}, Store(), fixed(name))
                assert (name == "winograd" and weight.codewords()) or name not in [
                    s.algorithm for _, _, s in program.kernel_steps()
                ]


SEVERAL = [
    Additive([PQ(40, 8, "channel"), PQ(300, 4, "channel")]),
    Additive([PQ(7, 9), IntN(3), PQ(9, 8, "channel"), Scalar(5)]),
]


@pytest.mark.parametrize("codec", SEVERAL, ids=str)
def test_parts_of_a_sum_one_after_the_other(codec: Codec) -> None:
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    for batch, size, outputs, groups, act in [(1, 1, 90, 1, "gelu"), (3, 1, 30, 2, "relu"), (2, 6, 33, 1, "tanh")]:
        x = {"x": numbers(batch, 24 * groups, size, size), "z": numbers(batch, outputs * groups, size, size)}
        b = GraphBuilder({name: ValueInfo(array.shape) for name, array in x.items()})
        params = {"weight": packed(codec, (outputs * groups, 24, 3, 3), size=0.1), "bias": numbers(outputs * groups)}
        y = b.add("conv2d", "x", params=params, padding=(1,) * 4, groups=groups)
        norm = {"weight": numbers(outputs * groups), "mean": numbers(outputs * groups)}
        y = b.add("batch_norm", y, params=norm | {"var": np.ones(outputs * groups, np.float32)})
        graph = b.build({"y": b.add(act, b.add("add", y, "z"))})
        seen = check_algorithms(graph, x)
        assert len(seen) == 2 and any("sums" in algorithms for algorithms in seen), seen


SCRIPT = """
from test_kernel_sums import LARGE, check
for codec in LARGE:
    check(codec, (3, 96, 3, 3), 3)
"""


@pytest.mark.parametrize("settings", FORCED)
def test_the_same_under_each_instruction_set_and_without_a_compiler(settings: dict[str, str]) -> None:
    run_forced(SCRIPT, settings)
