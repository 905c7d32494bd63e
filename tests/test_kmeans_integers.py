"""Nearest codewords by 16-bit integers: the same as in float32, whatever the blocks are."""

import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
from numba import njit

import pqnet
from pqnet.fit import integers, problem
from pqnet.kernels.cpu import ISA, has
from pqnet.kernels.fit import kmeans_integers
from pqnet.kernels.fit.kmeans_search import ALL_TILE, transpose
from pqnet.kernels.simd import WIDTH

needs_integers = pytest.mark.skipif(not has("avx512_vnni"), reason="this processor multiplies no 16-bit integers")


def both(monkeypatch, blocks, codebook, **options):
    found = []
    for work in (0, np.inf):
        monkeypatch.setattr(problem, "INTEGER_WORK", work)
        found.append(pqnet.assign(blocks, codebook, threads=2, **options))
    return found


@needs_integers
@pytest.mark.parametrize("n, d, k", [(9000, 5, 3), (8193, 6, 17), (20001, 9, 250), (3000, 18, 1000), (70, 33, 256)])
@pytest.mark.parametrize("kind", ["normal", "heavy", "lattice", "far", "equal", "metric"])
def test_codes_are_those_of_float32(n, d, k, kind, monkeypatch):
    rng = np.random.default_rng(d)
    blocks, options = rng.standard_normal((n, d)).astype(np.float32), {}
    codebook = rng.standard_normal((k, d)).astype(np.float32)
    codebook[k // 2] = codebook[1]  # the first of equal ones
    if kind == "heavy":  # most of the blocks beyond the integers, or next to nothing
        blocks *= np.exp(3 * rng.standard_normal((n, 1))).astype(np.float32)
    elif kind == "lattice":  # ties
        blocks, codebook = np.round(2 * blocks), np.round(2 * codebook)
    elif kind == "far":
        blocks, codebook = blocks + 9, codebook + 9
    elif kind == "equal":
        blocks[:], codebook[1:] = blocks[0], codebook[0]
    elif kind == "metric":
        root = rng.standard_normal((d, d))
        options["metric"] = root @ root.T
    a, b = both(monkeypatch, blocks, codebook, **options)
    assert np.array_equal(a, b)
    assert np.array_equal(a, pqnet.assign(blocks, codebook, threads=1, **options))


@needs_integers
def test_integers_decide_most_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    blocks = rng.standard_normal((20000, 9)).astype(np.float32)
    listed = []
    inner = kmeans_integers.nearest_by_integers

    def spy(*args):
        inner(*args)
        rows = inspect.signature(inner).bind(*args).arguments["tmp_rows"]
        listed.extend(np.argmax(row == -1) for row in rows)

    monkeypatch.setattr(kmeans_integers, "nearest_by_integers", spy)
    monkeypatch.setattr(problem, "INTEGER_WORK", 0)
    pqnet.assign(blocks, blocks[:256], threads=1)
    assert 0 < sum(listed) < 0.05 * len(blocks)


@needs_integers
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_blocks_that_are_not_finite_are_told(bad, monkeypatch):
    monkeypatch.setattr(problem, "INTEGER_WORK", 0)
    blocks = np.random.default_rng(0).standard_normal((20000, 6)).astype(np.float32)
    blocks[777, 2] = bad
    with pytest.raises(pqnet.PQNetError, match="blocks"):
        pqnet.assign(blocks, blocks[:16])


def test_other_processors_stay_with_float32(monkeypatch):
    monkeypatch.setattr(integers, "has", lambda *_: False)
    monkeypatch.setattr(problem, "INTEGER_WORK", 0)
    blocks = np.random.default_rng(0).standard_normal((3000, 5)).astype(np.float32)
    asked = problem.Problem(blocks, None, None, None, 1)
    assert asked._as_integers(asked.codewords(blocks[:16])) is None
    assert len(pqnet.assign(blocks, blocks[:16])) == 3000


PROGRAM = f"""
import numpy as np, pqnet
from pqnet.fit import problem
problem.INTEGER_WORK = 0
blocks = np.random.default_rng(0).standard_normal(({5 * ALL_TILE + 9}, 5))
print(*pqnet.assign(blocks, blocks[:37], threads=1))
far = (.01 * blocks + 100 * np.sign(blocks[:, :1])).astype(np.float32)
for work in (0, 1e9):
    problem.INTEGER_WORK = work
    print(*pqnet.assign(far, far[:37] * np.float32(1 + 1e-6), threads=1))
"""


def run_program(settings):
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, env=os.environ | settings, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def usual_codes():
    return run_program({})


@pytest.mark.parametrize("settings", [{"PQNET_SIMD": "avx2"}, {"PQNET_SIMD": "avx512"}, {"NUMBA_DISABLE_JIT": "1"}])
def test_every_width_and_the_plain_twin_give_the_same_codes(settings, usual_codes):
    if settings.get("PQNET_SIMD") == ISA:
        pytest.skip("this is what the processor runs without the setting")
    assert run_program(settings) == usual_codes


@njit
def turn(source, at, step, columns, out, to, out_step):
    transpose(source, at, step, columns, out, to, out_step)


@pytest.mark.parametrize("step", [1, 4, 9, 33])
def test_transpose_writes_its_columns_and_nothing_else(step):
    source = np.arange(40 * WIDTH, dtype=np.float32)
    for columns in range(1, WIDTH + 1):
        out, want = np.full((2, (WIDTH + 2) * 2 * WIDTH), -1.0, np.float32)
        turn(source, 3, step, columns, out, 5, 2 * WIDTH)
        for j in range(columns):
            want[5 + 2 * j * WIDTH :][:WIDTH] = source[3 + j + step * np.arange(WIDTH)]
        assert np.array_equal(out, want)
