"""What programs of many sizes share and give back, and who waits for whom while one is made."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import close, packed_weight, reference

import pqnet
from pqnet import PQNetError
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.runtime import memory
from pqnet.runtime.algorithms import ALGORITHMS
from pqnet.runtime.engine import PROGRAMS, SMALL_WORKSPACE, Engine
from pqnet.runtime.memory import Buffer, Store, Workspace, place_buffers
from pqnet.runtime.program import Program
from pqnet.runtime.tune import fixed, rule


def images_of_any_size(channels=8):
    """Return a network of two convolutions and a mean over images whose batch, height and width are free."""
    rng = np.random.default_rng(0)
    b = GraphBuilder({"x": ValueInfo(("n", 3, "h", "w"))}, {"n": 1, "h": 8, "w": 8})
    first = packed_weight(rng, (channels, 3, 3, 3), 9, 12, "spatial")
    y = b.add("conv2d", "x", params={"weight": first}, padding=(1, 1, 1, 1))
    second = rng.standard_normal((channels, channels, 3, 3)).astype(np.float32)
    y = b.add("relu", b.add("conv2d", y, params={"weight": second}, padding=(1, 1, 1, 1)))
    return b.build({"y": b.add("mean", y, axes=(2, 3))})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_layers_with_different_groups_share_a_packed_weight(algorithm):
    rng = np.random.default_rng(1)
    for (o, c, kernel, k, d), size in (((16, 16, 3, 16, 8), 9), ((128, 16, 1, 200, 8), 1)):
        weight = packed_weight(rng, (o, c, kernel, kernel), d, k, "spatial")
        b = GraphBuilder({"x": ValueInfo((1, c, size, size)), "z": ValueInfo((1, 2 * c, size, size))})
        padding = (kernel // 2,) * 4
        one = b.add("conv2d", "x", name="one", params={"weight": weight}, padding=padding)
        two = b.add("conv2d", "z", name="two", params={"weight": "one.weight"}, padding=padding, groups=2)
        graph = b.build({"y": b.add("add", one, two)})
        shapes = {name: graph.inputs[name].shape for name in ("x", "z")}
        inputs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        got = Program(graph, {}, Store(), fixed(algorithm)).run(inputs, Workspace(), 1)["y"]
        assert close(got, reference(graph, inputs))


def test_offsets_of_large_batches_are_right():
    b = GraphBuilder({"x": ValueInfo(("n", 64, 56, 56))}, {"n": 1})
    graph = b.build({"y": b.add("conv2d", "x", params={"weight": np.ones((1, 64, 1, 1), np.float32)})})
    program = Program(graph, {"n": 11000}, Store())  # its checks compare every window with the arena
    assert program.checked and program.index.min() >= 0 and program.index.max() > 2**31


def test_parameters_are_written_once_for_all_sizes():
    store, graph = Store(), images_of_any_size()
    programs = [Program(graph, {"n": 1, "h": size, "w": size + 3}, store) for size in (16, 20, 24, 29)]
    large = [{piece for piece in program.pieces if piece.size > 300} for program in programs]
    assert large[0] and all(pieces == large[0] for pieces in large)
    del programs, large
    assert not store._pieces  # nobody uses them


def test_programs_are_kept_within_bounds_and_come_again():
    graph = images_of_any_size(6)
    engine = Engine(graph, rule)
    arrays = [{"x": np.full((1, 3, 4 + i % 40, 4 + i // 40), 1, np.float32)} for i in range(PROGRAMS + 20)]
    first = engine.run(arrays[0], 1)["y"]
    for array in arrays:
        engine.run(array, 1)
    assert len(engine._programs) <= PROGRAMS
    assert np.array_equal(engine.run(arrays[0], 1)["y"], first)


def test_the_memory_of_a_large_input_is_given_back():
    engine = Engine(images_of_any_size(), rule)
    large, small = (np.ones((n, 3, 64, 64), np.float32) for n in (150, 1))
    engine.run({"x": large}, 1)
    assert max(space.nbytes for space in engine._spaces) > SMALL_WORKSPACE
    for _ in range(40):
        engine.run({"x": small}, 1)
    assert sum(space.nbytes for space in engine._spaces) <= SMALL_WORKSPACE


def test_known_sizes_do_not_wait_for_a_program_that_is_being_made():
    waiting, go_on = threading.Event(), threading.Event()

    def choose(layer, compute, costs):
        if layer.size == (11, 11):
            waiting.set()
            assert go_on.wait(60)
        return rule(layer, compute, costs)

    engine = Engine(images_of_any_size(), choose)
    known, new = (np.ones((1, 3, size, size), np.float32) for size in (8, 11))
    want, results = engine.run({"x": known}, 1)["y"], []
    threads = [threading.Thread(target=lambda: results.append(engine.run({"x": new}, 1)["y"])) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert waiting.wait(60)
    assert np.array_equal(engine.run({"x": known}, 1)["y"], want)
    assert not results
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert len(results) == 3 and all(np.array_equal(result, results[0]) for result in results)


def test_a_program_that_could_not_be_made_is_tried_again():
    attempts = []

    def choose(layer, compute, costs):
        attempts.append(layer)
        if len(attempts) == 1:
            raise KeyboardInterrupt
        return rule(layer, compute, costs)

    engine, x = Engine(images_of_any_size(), choose), np.ones((1, 3, 9, 9), np.float32)
    with pytest.raises(KeyboardInterrupt):
        engine.run({"x": x}, 1)
    assert not engine._programs
    assert engine.run({"x": x}, 1)["y"].shape == (1, 8)


def test_memory_that_is_not_there_is_a_clear_error(monkeypatch):
    there = memory.aligned

    def aligned(size, dtype):
        if dtype is np.uint8:  # the arena
            raise MemoryError
        return there(size, dtype)

    model = pqnet.Model(images_of_any_size())
    model(np.ones((1, 3, 8, 8), np.float32))
    monkeypatch.setattr(memory, "aligned", aligned)
    with pytest.raises(PQNetError, match=r"got some that take \d+ bytes .* run fewer or smaller samples at once"):
        model(np.ones((9, 3, 99, 99), np.float32))


def test_denormal_numbers_count_as_zero_and_the_caller_keeps_them():
    b = GraphBuilder({"x": ValueInfo((4,))})
    model = pqnet.Model(b.build({"y": b.add("mul", "x", scalar=0.5)}))
    x = np.array([1e-39, 1.0, -1e-42, 1.5e-38], np.float32)
    assert np.array_equal(model(x), np.array([0, 0.5, 0, 0], np.float32))
    assert float(x[0] * np.float32(0.5)) != 0  # arithmetic outside of kernels is as it was


@st.composite
def lives(draw):
    steps = draw(st.integers(1, 30))
    found = []
    for _ in range(draw(st.integers(1, 40))):
        first = draw(st.integers(0, steps))
        found.append((draw(st.integers(1, 3000)), first, draw(st.integers(first, steps))))
    return found


@given(lives())
@settings(max_examples=200)
def test_buffers_that_live_at_the_same_time_do_not_overlap(found):
    buffers = [Buffer(*life) for life in found]
    end = place_buffers(buffers)
    for i, a in enumerate(buffers):
        assert a.offset % 64 == 0 and a.offset + a.nbytes <= end
        for b in buffers[:i]:
            if a.first <= b.last and b.first <= a.last:
                assert a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset


def test_a_chain_takes_no_more_memory_than_its_largest_neighbours():
    buffers = [Buffer(64 * (1 + i % 7), i, i + 1) for i in range(1000)]
    assert place_buffers(buffers) <= 4 * memory.SLACK + 3 * 64 * 7
