"""CPU features: what the CPU has and Numba compiles for, and what is forced."""

import os
import subprocess
import sys

import pytest

from pqnet.kernels import cpu

WIDE = ["sse2", "fma", "avx", "avx2", "avxvnni", "avx512f", "avx512dq", "avx512vbmi", "avx512vnni", "avx512bf16"]
AMX = ["amx-tile", "amx-int8", "amx-bf16"]
AVX512 = {"avx512f", "avx512vbmi", "avx512_vnni", "avx512_bf16"}


@pytest.fixture
def machine(monkeypatch):
    """Return a function that has another CPU, settings of Numba and PQNET_SIMD hold, and returns ISA and extensions."""

    def set_up(there, features=None, avx=1, forced=None):
        monkeypatch.setattr(cpu.llvm, "get_host_cpu_features", lambda: {name: name in there for name in WIDE + AMX})
        monkeypatch.setattr(cpu.config, "CPU_FEATURES", features)
        monkeypatch.setattr(cpu.config, "ENABLE_AVX", avx)
        monkeypatch.setattr(cpu, "features", cpu.features.__wrapped__)
        if forced is None:
            monkeypatch.delenv("PQNET_SIMD", raising=False)
        else:
            monkeypatch.setenv("PQNET_SIMD", forced)
        monkeypatch.setattr(cpu, "ISA", cpu.detect())
        return cpu.ISA, {name for name in cpu.EXTENSIONS if cpu.has(name)}

    return set_up


@pytest.mark.parametrize(
    ("there", "isa", "extensions"),
    [
        (WIDE + AMX, "avx512", {*cpu.EXTENSIONS}),
        (WIDE, "avx512", AVX512 | {"avx_vnni"}),
        (["sse2", "fma", "avx", "avx2", "avxvnni"], "avx2", {"avx_vnni"}),
        (["sse2", "fma", "avx", "avx2"], "avx2", set()),
        (["sse2", "avx", "avx2"], "generic", set()),  # without products and sums in one
        ([], "generic", set()),
    ],
)
def test_the_widest_instruction_set_of_the_cpu_is_used(machine, there, isa, extensions):
    assert machine(there) == (isa, extensions)


@pytest.mark.parametrize(
    ("forced", "extensions"),
    [("avx512", {*cpu.EXTENSIONS}), ("avx2", {"avx_vnni"}), ("generic", set())],
)
def test_a_forced_instruction_set_has_no_wider_extensions(machine, forced, extensions):
    assert machine(WIDE + AMX, forced=forced) == (forced, extensions)


def test_a_forced_instruction_set_that_the_cpu_lacks_has_no_extensions(machine):
    assert machine(["sse2"], forced="avx512") == ("avx512", set())


@pytest.mark.parametrize(
    ("settings", "isa", "extensions"),
    [
        ({"features": ""}, "generic", set()),  # as with NUMBA_CPU_NAME=generic
        ({"features": "+sse2,+fma,+avx,+avx2"}, "avx2", set()),
        ({"features": "+fma, +avx2, +avx512f,+avx512dq,-avx512f"}, "avx2", set()),
        ({"features": "+fma,+avx2,+avx512f,+avx512dq,+avx512vnni"}, "avx512", {"avx512f", "avx512_vnni"}),
        ({"avx": 0}, "generic", set()),
        ({"avx": 0, "forced": "avx512"}, "avx512", set()),
    ],
)
def test_settings_of_numba_hold(machine, settings, isa, extensions):
    assert machine(WIDE + AMX, **settings) == (isa, extensions)


def test_settings_of_numba_add_nothing_that_the_cpu_lacks(machine):
    assert machine(["sse2"], features="+fma,+avx2,+avx512f,+avx512dq") == ("generic", set())


def test_an_unknown_cpu_has_nothing(monkeypatch):
    def unknown():
        raise RuntimeError("failed to get host cpu features.")

    monkeypatch.setattr(cpu.llvm, "get_host_cpu_features", unknown)
    assert cpu.features.__wrapped__() == frozenset()


def test_unknown_instruction_set_says_which_are_known(machine):
    with pytest.raises(ValueError, match="PQNET_SIMD: expected one of avx512, avx2, generic, got 'mmx'"):
        machine(WIDE, forced="mmx")


NARROW = """
import numpy as np
from numba import njit
from pqnet.kernels.fit.kmeans_search import append_up_to
from pqnet.kernels.simd import WIDTH, load, splat

@njit
def find(values, ids):
    return append_up_to(ids, 0, 0, load(values, 0), splat(np.float32(0.5)))

ids = np.zeros(2 * WIDTH, np.int32)
count = find(np.arange(WIDTH, dtype=np.float32) % 3, ids)
print(WIDTH, *ids[:count])
"""


def test_wide_vectors_are_compiled_for_a_cpu_that_has_none():
    environment = os.environ | {"PQNET_SIMD": "avx512", "NUMBA_CPU_NAME": "generic"}
    done = subprocess.run([sys.executable, "-c", NARROW], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["16", "0", "3", "6", "9", "12", "15"]
