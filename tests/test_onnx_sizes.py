"""Sizes that depend on free symbols: the arithmetic of expressions against that of numbers."""

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pqnet.graph.sizes import resolve_dim
from pqnet_converters.core.sizes import SymInt, SymRatio, ceil, compare, floor, maximum, minimum, symbol

SAMPLE = {"h": 37, "w": 64}
POINTS = ({"h": 1, "w": 1}, {"h": 5, "w": 130}, {"h": 1000, "w": 3}, SAMPLE)

# A tree of operations: evaluated on symbols, and at every point on plain numbers.
Tree = Any
leaves = st.one_of(st.sampled_from(["h", "w"]), st.integers(-40, 40))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["+", "-", "*", "max", "min"]), inner, inner),
        st.tuples(st.just("//"), inner, st.integers(1, 40)),
        st.tuples(st.just("half"), inner, st.just(0)),
    ),
    max_leaves=7,
)
OPERATIONS = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "//": lambda x, y: x // y,
    "max": maximum,
    "min": minimum,
    "half": lambda x, _: ceil(x * Fraction(3, 2)) - floor(x / 2),
}


def evaluate(tree: Tree, values: dict[str, Any]) -> Any:
    if isinstance(tree, tuple):
        return OPERATIONS[tree[0]](evaluate(tree[1], values), evaluate(tree[2], values))
    return values[tree] if isinstance(tree, str) else tree


def plain(tree: Tree, values: dict[str, int]) -> int:
    """The same in Python's own numbers."""
    if not isinstance(tree, tuple):
        return values[tree] if isinstance(tree, str) else tree
    op, x, y = tree[0], plain(tree[1], values), plain(tree[2], values)
    own = {"max": max(x, y), "min": min(x, y), "half": math.ceil(Fraction(3 * x, 2)) - math.floor(Fraction(x, 2))}
    return own[op] if op in own else OPERATIONS[op](x, y)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(trees)
def test_expressions_are_what_numbers_give(tree: Tree) -> None:
    found = evaluate(tree, {name: symbol(name, size) for name, size in SAMPLE.items()})
    if not isinstance(found, SymInt):
        assert {plain(tree, point) for point in POINTS} == {found}
        return
    assert int(found) == plain(tree, SAMPLE)
    if len(found.expr.text) <= 1000:
        for point in POINTS:
            assert resolve_dim(found.text, point) == plain(tree, point)


def test_strided_layers_stay_short() -> None:
    h = symbol("h", 64)
    for _ in range(5):
        h = (h + 2 - 3) // 2 + 1
    assert h.text == "(h+31)//32" and int(h) == 2


def test_quotients_that_have_no_rest_are_polynomials() -> None:
    h, w = symbol("h", 64), symbol("w", 48)
    assert repr((h * w * 12) // (h * 4)) == "3*w" and repr((h * h - w * w) // (h + w)) == "h-w"


def test_halves_become_sizes_again() -> None:
    h = symbol("h", 65)
    half = h / 2
    assert isinstance(half, SymRatio) and floor(half).text == "h//2" and (half * 2).text == "h"


@pytest.mark.parametrize(
    ("difference", "sign"),
    [
        (lambda h: (h, 0), 1),
        (lambda h: (h // 2, h), -1),
        (lambda h: (h, 2), None),
        (lambda h: (h + h, 2 * h), 0),
        (lambda h: ((h + 255) // 256 * 256, h - 1), 1),  # that the limits of its parts do not tell
        (lambda h: (maximum(h // 256, 1), h + 1), -1),
    ],
)
def test_comparisons(difference: Any, sign: int | None) -> None:
    assert compare(*difference(symbol("h", 64))) == sign
