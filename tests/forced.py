"""Programs under other instruction sets than the processor's best, or without a compiler: in processes of their own."""

import os
import subprocess
import sys

import pytest

FORCED = [
    {"PQNET_SIMD": "avx2"},
    pytest.param({"PQNET_SIMD": "avx512"}, marks=pytest.mark.exhaustive),
    pytest.param({"PQNET_SIMD": "generic"}, marks=pytest.mark.exhaustive),
    {"NUMBA_DISABLE_JIT": "1"},
]


def run_forced(code: str, settings: dict[str, str]) -> str:
    """Run a program that may import tests, with other environment variables; return what it prints."""
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n{code}"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, f"{settings}: {run.stderr}"
    return run.stdout.strip()
