"""Copies between strided values, and the operations that are copies, against NumPy."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import GuardedSpace, guarded_arena, run_tasks, untouched

from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.kernels.ops.copy import ROWS, SINGLE, TRANSPOSED
from pqnet.runtime.builder import Builder
from pqnet.runtime.copying import emit_copy, emit_fill
from pqnet.runtime.execute import run_graph, values_to_free
from pqnet.runtime.memory import SLACK, Store, View, Workspace, place_buffers
from pqnet.runtime.program import Program, Segment
from pqnet.runtime.tune import rule


def buffers_of(sizes):
    """Return a builder with a buffer for each size."""
    b = GraphBuilder({"x": ValueInfo((1,))})
    builder = Builder(b.build({"y": b.add("relu", "x")}), {}, Store(), rule)
    return builder, [builder.new((size,)) for size in sizes]


def run(builder, arena, order):
    """Run the steps with their tasks in an order."""
    segment, index = Segment(builder.steps), builder.index.array()
    for i, step in enumerate(segment.steps):
        scratch = np.full(step.scratch + SLACK, np.nan, np.float32)
        run_tasks(segment, i, order(range(step.tasks)), builder.pieces.values(), index, arena, scratch)


def view_of(buffer, shape, order, margin, steps):
    """Return a view with its axes in a storage order, some with steps, at a distance from the buffer's start."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step * steps[axis]
        step *= shape[axis] * steps[axis]
    return View(buffer, margin, tuple(shape), tuple(strides)), step + 2 * margin


@st.composite
def pairs(draw):
    rank = draw(st.integers(1, 6))
    most = {1: 90000, 2: 90, 3: 40, 4: 12, 5: 6, 6: 4}[rank]
    shape = [draw(st.integers(1, most)) for _ in range(rank)]
    orders = [draw(st.permutations(range(rank))) for _ in range(2)]
    steps = [[draw(st.sampled_from([1, 1, 1, 2])) for _ in range(rank)] for _ in range(2)]
    broadcast = [draw(st.integers(0, 5)) == 0 for _ in range(rank)]
    return shape, orders, steps, broadcast


@settings(max_examples=300)
@given(pairs())
def test_any_two_views(case):
    shape, orders, steps, broadcast = case
    sizes = [view_of(None, shape, orders[i], 3, steps[i])[1] for i in (0, 1)]
    builder, buffers = buffers_of(sizes)
    source, target = (view_of(buffers[i].buffer, shape, orders[i], 3, steps[i])[0] for i in (0, 1))
    strides = tuple(0 if flat else s for flat, s in zip(broadcast, source.strides, strict=True))
    source = View(source.buffer, source.offset, source.shape, strides)
    emit_copy(builder, source, target, "copy")
    for buffer in (source.buffer, target.buffer):
        buffer.first, buffer.last = 0, len(builder.steps)
    arena = guarded_arena(place_buffers(builder.buffers))
    whole = buffers[0].array(arena)
    whole[:] = np.random.default_rng(0).standard_normal(whole.size)
    want = arena.copy()
    target.array(want)[...] = source.array(want)
    for order in (list, lambda tasks: list(reversed(tasks))):
        again = arena.copy()
        run(builder, again, order)
        assert np.array_equal(again, want)


@pytest.mark.parametrize(
    ("strides", "mode"), [((40, 1), ROWS), ((1, 70), TRANSPOSED), ((80, 2), SINGLE), ((0, 1), ROWS), ((1, 0), None)]
)
def test_modes(strides, mode):
    builder, (x, out) = buffers_of([8000, 8000])
    emit_copy(builder, View(x.buffer, 0, (70, 40), strides), View(out.buffer, 0, (70, 40), (40, 1)), "copy")
    assert mode is None or builder.steps[0].arguments["mode"] == mode


def test_large_copies_make_several_tasks():
    for shape, strides in [
        ((1000, 1000), (1, 1000)),
        ((1000, 1000), (1024, 1)),
        ((1000, 1000), (1000, 1)),
        ((64, 100, 100), (10000, 1, 100)),
    ]:
        builder, (x, out) = buffers_of([1 << 20, 1 << 20])
        target = View.dense_in(out.buffer, shape, range(len(shape)))
        emit_copy(builder, View(x.buffer, 0, shape, strides), target, "copy")
        assert 8 <= builder.steps[0].tasks <= 64


def test_fill():
    builder, (out,) = buffers_of([1000])
    target = View(out.buffer, 5, (3, 4, 21), (300, 50, 1))
    emit_fill(builder, 2.5, target, "fill")
    emit_fill(builder, -1.0, View(out.buffer, 900, (4,), (3,)), "fill")
    out.buffer.last = 9
    arena = guarded_arena(place_buffers(builder.buffers))
    want = arena.copy()
    target.array(want)[...] = 2.5
    View(out.buffer, 900, (4,), (3,)).array(want)[...] = -1
    run(builder, arena, list)
    assert np.array_equal(arena, want)


def check(b, outputs, inputs):
    graph = b.build(outputs)
    want = run_graph(graph, values_to_free(graph), inputs)
    program, space = Program(graph, {}, Store()), GuardedSpace()
    got = program.run(inputs, space, 1)
    assert untouched(program, space.arena)
    again = program.run(inputs, Workspace(), 3)
    for name, value in want.items():
        assert np.array_equal(got[name], value), name
        assert np.array_equal(again[name], value), name
    assert not [s for s in program.segments if getattr(s, "node", None)], "a node was left to NumPy"


@pytest.mark.parametrize("axis", range(4))
def test_concat(axis):
    shapes = [[3, 5, 6, 7] for _ in range(3)]
    for i, shape in enumerate(shapes):
        shape[axis] = (4, 1, 9)[i]
    x = {f"x{i}": np.random.default_rng(i).random(s).astype(np.float32) for i, s in enumerate(shapes)}
    b = GraphBuilder({name: ValueInfo(a.shape) for name, a in x.items()})
    check(b, {"y": b.add("concat", *x, axis=axis), "z": b.add("relu", b.add("concat", "x1", "x1", axis=axis))}, x)


@settings(max_examples=60)
@given(st.integers(1, 4), st.sampled_from(["constant", "reflect", "replicate"]), st.data(), st.floats(-3, 3, width=16))
def test_pad(rank, mode, data, value):
    shape = [data.draw(st.integers(1, 7)) for _ in range(rank)]
    low = 0 if mode != "constant" else -1
    padding = []
    for size in shape:
        most = {"constant": 4, "replicate": 4, "reflect": size - 1}[mode]
        padding += [data.draw(st.integers(max(low, -((size - 1) // 2)), most)) for _ in range(2)]
    x = np.random.default_rng(0).random(shape).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    check(b, {"y": b.add("pad", "x", padding=tuple(padding), mode=mode, value=value)}, {"x": x})


def test_enlargement():
    x = np.random.default_rng(0).random((2, 3, 5, 19)).astype(np.float32)
    for factors in itertools.product((1, 2, 3), (1, 2, 4)):
        b = GraphBuilder({"x": ValueInfo(x.shape)})
        check(b, {"y": b.add("interpolate", "x", size=(5 * factors[0], 19 * factors[1]))}, {"x": x})
