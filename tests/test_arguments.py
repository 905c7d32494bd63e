"""Arguments of steps by name, and the axes that steps walk along."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from pqnet.kernels.abi import DATA, MAYBE_DATA, SIZE, Arguments
from pqnet.runtime.memory import merge_axes

INNER = Arguments(n=SIZE, steps=SIZE.repeated(3))
OUTER = Arguments(x=DATA, first=INNER, second=INNER, others=MAYBE_DATA.repeated(2))
VALUES = {
    "x": 1,
    "first": {"n": 2, "steps": (3, 4, 5)},
    "second": {"n": 6, "steps": [7, 8, 9]},
    "others": (10, -1),
}


def read(g):
    last = g.second.steps[2]
    return g.x, g.first.n, g.first.steps[0], g.first.steps[2], g.second.n, last, g.others[0], g.others[1]


def test_kernels_read_what_programs_write_with_and_without_a_compiler():
    record = OUTER.record(VALUES)
    assert read(record) == njit(read)(record) == (1, 2, 3, 5, 6, 9, 10, -1)
    names = [name for name, _, _ in OUTER.flat(VALUES)]
    assert names[:3] == ["x", "first.n", "first.steps[0]"] and names[-1] == "others[1]" and len(names) == 11


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"n": 1}, r"missing \['steps'\]"),
        ({"n": 1, "steps": (1, 2, 3), "m": 0}, r"unknown \['m'\]"),
        ({"n": 1, "steps": (1, 2)}, "steps: expected 3 values, got 2"),
    ],
)
def test_arguments_that_do_not_fit_are_named(values, match):
    with pytest.raises(TypeError, match=match):
        INNER.record(values)


def test_names_that_records_have_themselves_are_refused():
    """Without a compiler ``g.size`` would be the size of the record."""
    with pytest.raises(TypeError, match="argument size"):
        Arguments(size=SIZE)


def offsets(axes):
    """Return the offsets of all elements, in order, in both values."""
    found = np.zeros((1, 2), np.int64)
    for size, *strides in axes:
        found = (found[:, None] + np.arange(size)[None, :, None] * np.array(strides)).reshape(-1, len(strides))
    return found


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([0, 1, 2, 6, 12]), st.sampled_from([-1, 1, 3, 12]))))
def test_merged_axes_have_the_same_elements_in_the_same_order(axes):
    axes = axes[:4]
    merged = merge_axes(*([axis[i] for axis in axes] for i in range(3)))
    assert np.array_equal(offsets(axes), offsets(merged))
    assert not any(a[1:] == tuple(s * b[0] for s in b[1:]) for a, b in pairwise(merged))
