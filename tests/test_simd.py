"""The SIMD values: every operation against NumPy, at native and forced widths, and without a compiler."""

import os
import subprocess
import sys

import numpy as np
import pytest
from numba import njit

from pqnet.kernels import cpu, simd

FLOATS = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
INTS = np.random.default_rng(1).integers(-9, 9, (4, 64)).astype(np.int32)


@njit
def floats(a, b, c, at, out):
    x, y, z = simd.load(a, at), simd.load(b, at), simd.load(c, at)
    w = simd.WIDTH
    simd.store(out, 0, simd.add(x, y))
    simd.store(out, w, simd.subtract(x, y))
    simd.store(out, 2 * w, simd.multiply(x, y))
    simd.store(out, 3 * w, simd.fma(x, y, z))
    simd.store(out, 4 * w, simd.select_less(x, y, z, x))
    simd.store(out, 5 * w, simd.splat(a[at]))


@njit
def ints(a, b, p, q, at, out):
    w = simd.WIDTH
    x, y = simd.load_int(p, at), simd.load_int(q, at)
    simd.store_int(out, 0, simd.add_int(x, y))
    simd.store_int(out, w, simd.select_less_int(simd.load(a, at), simd.load(b, at), x, y))
    simd.store_int(out, 2 * w, simd.splat_int(p[at]))


@pytest.mark.parametrize("at", [0, 1, 7])  # unaligned too
def test_operations_are_those_of_numpy(at):
    w = simd.WIDTH
    a, b, c, _ = FLOATS
    out = np.full(6 * w + 2, 9.0, np.float32)
    floats(a, b, c, at, out[1:-1])
    x, y, z = (v[at : at + w] for v in (a, b, c))
    fused = (x.astype(np.float64) * y + z).astype(np.float32)
    want = [x + y, x - y, x * y, fused, np.where(x < y, z, x), np.full(w, x[0])]
    got = out[1:-1].reshape(6, w)
    for i, row in enumerate(want):
        if i == 3:
            np.testing.assert_allclose(got[i], row, rtol=2e-7)
        else:
            assert np.array_equal(got[i], row)
    assert out[0] == out[-1] == 9  # nothing around it is touched


def test_integers():
    w = simd.WIDTH
    out = np.empty(3 * w, np.int32)
    ints(FLOATS[0], FLOATS[1], INTS[0], INTS[1], 3, out)
    a, b, p, q = (v[3 : 3 + w] for v in (FLOATS[0], FLOATS[1], INTS[0], INTS[1]))
    assert np.array_equal(out.reshape(3, w), [p + q, np.where(a < b, p, q), np.full(w, p[0])])


@njit
def four_sums(a, at, out, more):
    w = simd.WIDTH
    x, y, z, v = simd.load(a, at), simd.load(a, at + w), simd.load(a, at + 2 * w), simd.load(a, at + 3 * w)
    simd.store_sums(x, y, z, v, out, 1, more)
    simd.store(out, 8, simd.zip_first(x, y))
    simd.store(out, 8 + w, simd.zip_second(x, y))


def test_sums_of_four_vectors_and_vectors_zipped():
    w = simd.WIDTH
    a, out = FLOATS.reshape(-1), np.full(8 + 2 * w, 3, np.float32)
    four_sums(a, 1, out, 0)
    x = a[1 : 1 + 4 * w].reshape(4, w)
    np.testing.assert_allclose(out[1:5], x.sum(1), rtol=1e-5, atol=1e-5)
    assert (out[[0, 5, 6, 7]] == 3).all()
    assert np.array_equal(out[8:], x[:2].T.reshape(-1))
    four_sums(a, 1, out, 1)
    np.testing.assert_allclose(out[1:5], 2 * x.sum(1), rtol=1e-5, atol=1e-5)


def test_nan_is_never_less():
    a, nan = np.zeros(64, np.float32), np.full(64, np.nan, np.float32)
    out = np.empty(3 * simd.WIDTH, np.int32)
    ints(nan, a, INTS[0], INTS[1], 0, out)
    assert np.array_equal(out[simd.WIDTH : 2 * simd.WIDTH], INTS[1][: simd.WIDTH])


PROGRAM = """
import numpy as np, pqnet
from pqnet.kernels import simd
rng = np.random.default_rng(0)
blocks, codebook = rng.standard_normal((700, 5)), rng.standard_normal((37, 5))
root = rng.standard_normal((3, 5, 5))
metric, groups = root @ root.transpose(0, 2, 1), rng.integers(0, 3, 700)
codes = [pqnet.assign(blocks, codebook), pqnet.assign(blocks, codebook, metric=metric, groups=groups)]
codes.append(pqnet.assign(blocks[:4], codebook, metric=metric, groups=groups[:4]))
print(simd.ISA, simd.WIDTH, *np.concatenate(codes))
"""


def run(**environment):
    command = [sys.executable, "-c", PROGRAM]
    text = subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True).stdout
    isa, width, *codes = text.split()
    return isa, int(width), codes


def test_every_width_and_the_reference_give_the_same_codes():
    _, _, native = run()
    for isa, width in cpu.WIDTHS.items():
        assert run(PQNET_SIMD=isa) == (isa, width, native)
    assert run(NUMBA_DISABLE_JIT="1")[2] == native
