"""Tables of places that lead out of a value are found when a program is built, not when a kernel follows them."""

import numpy as np
import pytest

from pqnet import PQNetError
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.runtime.algorithms import taps
from pqnet.runtime.lower import matmul, resize
from pqnet.runtime.memory import Store
from pqnet.runtime.program import Program
from pqnet.runtime.tune import fixed


def build(op, shapes, **attrs):
    b = GraphBuilder({f"x{i}": ValueInfo(shape) for i, shape in enumerate(shapes)})
    params = attrs.pop("params", {})
    return b.build({"y": b.add(op, *b.inputs, params=params, **attrs)})


def check(graph, match):
    with pytest.raises(PQNetError, match=match):
        Program(graph, {}, Store(), fixed("taps"))


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("which, what", [(0, "a matrix of"), (1, "a matrix of"), (2, "a product")])
@pytest.mark.parametrize("by", [-8, 4])
def test_places_of_matrices(rows, which, what, by, monkeypatch):
    graph = build("matmul", [(3, rows, 8), (3, 8, 40)])
    Program(graph, {}, Store())
    places = matmul._places

    def moved(b, *args):
        at = places(b, *args)
        table = np.concatenate(b.index.parts)[at : at + 9].reshape(3, 3)
        table[2 if by > 0 else 0, which] += by
        return b.table(table)

    monkeypatch.setattr(matmul, "_places", moved)
    check(graph, f"matmul.*{what}.* lies outside")


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_places_of_pixels(axis, mode, monkeypatch):
    graph = build("interpolate", [(2, 3, 5, 5)], size=(7, 8), mode=mode)
    Program(graph, {}, Store())
    taps_of = resize.taps_of

    def moved(size, out, *args):
        pixels, weights = taps_of(size, out, *args)
        return (pixels + (pixels == size - 1) if out == (7, 8)[axis] else pixels), weights

    monkeypatch.setattr(resize, "taps_of", moved)
    check(graph, "resize.*a pixel lies outside")


@pytest.mark.parametrize(
    "number, by, what", [(0, 1, "a product of a tap"), (1, 36, "a sum"), (2, 9, "a product of a tap")]
)
def test_rectangles_of_taps(number, by, what, monkeypatch):
    weight = np.ones((4, 5, 3, 3), np.float32)
    graph = build("conv2d", [(1, 5, 6, 6)], params={"weight": weight}, dilation=(5, 5), padding=(5,) * 4)
    Program(graph, {}, Store(), fixed("taps"))
    emit = taps.Builder.emit

    def moved(b, kernel, label, tasks, arguments, **options):
        if kernel.name == "add_taps":
            at, n = arguments["rectangles"], 4 * arguments["count"]
            table = np.concatenate(b.index.parts)[at : at + n].reshape(-1, 4)
            table[-1, number] += by
            arguments = arguments | {"rectangles": b.table(table)}
        return emit(b, kernel, label, tasks, arguments, **options)

    monkeypatch.setattr(taps.Builder, "emit", moved)
    check(graph, f"add_taps.*{what} lies outside")
