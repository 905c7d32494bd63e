"""Resizing, and pooling to a grid of bins, against their NumPy meaning."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lowered_ops import check, floats

from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.runtime.memory import Store, Workspace
from pqnet.runtime.program import Program

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 3)),
    SIZES,
    SIZES,
    st.sampled_from(["nearest", "bilinear", "bicubic"]),
    st.sampled_from([{}, {"align_corners": True}, {"antialias": True}]),
    st.booleans(),
)
def test_resizing(lead, before, after, mode, more, permuted):
    x = floats((*lead, *before))
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    y = b.add("permute", "x", axes=(0, 1, 3, 2)) if permuted else "x"
    check(b, {"y": b.add("interpolate", y, size=after, mode=mode, **(more if mode != "nearest" else {}))}, {"x": x})


def test_resizing_by_scales():
    x = floats((2, 3, 6, 7))
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    scales = {"scale_height": 1.3, "scale_width": 0.65}
    outputs = {mode: b.add("interpolate", "x", size=(7, 4), mode=mode, **scales) for mode in ("nearest", "bicubic")}
    check(b, outputs, {"x": x})


def test_large_images_are_cut_in_bands():
    x = floats((1, 2, 90, 150))
    for mode, aa, size in (
        ("nearest", False, (180, 300)),
        ("bilinear", False, (400, 333)),
        ("bilinear", False, (45, 50)),
        ("bicubic", False, (400, 333)),
        ("bicubic", True, (45, 50)),
    ):
        b = GraphBuilder({"x": ValueInfo(x.shape)})
        y = b.add("interpolate", "x", size=size, mode=mode, antialias=aa)
        check(b, {"y": y}, {"x": x})
        tasks = [step.tasks for _, _, step in Program(b.build({"y": y}), {}, Store()).kernel_steps()]
        assert (max(tasks) > 2) == (size[0] > 100)


@settings(max_examples=40)
@given(st.sampled_from(["adaptive_avg_pool2d", "adaptive_max_pool2d"]), st.integers(1, 3), SIZES, SIZES)
def test_pooling_to_a_grid(op, channels, before, after):
    x = floats((2, channels, *before))
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    check(b, {"y": b.add(op, "x", size=after)}, {"x": x})


def test_pooling_to_a_grid_sees_infinities():
    x = floats((1, 1, 5, 7))
    x[0, 0, 2, 3], x[0, 0, 0, 6] = np.inf, -np.inf
    for op in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
        b = GraphBuilder({"x": ValueInfo(x.shape)})
        graph = b.build({"y": b.add(op, "x", size=(3, 3))})
        got = Program(graph, {}, Store()).run({"x": x}, Workspace(), 1)["y"]
        bins = [(i * n // 3, -(-(i + 1) * n // 3)) for n in (5, 7) for i in range(3)]
        reduce = np.mean if "avg" in op else np.max
        want = [[reduce(x[0, 0, slice(*r), slice(*c)]) for c in bins[3:]] for r in bins[:3]]
        np.testing.assert_allclose(got[0, 0], want, rtol=1e-5)
