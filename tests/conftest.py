"""Hypothesis profiles, threads of BLAS, and a scratch directory for the examples in docstrings."""

import os
import signal

import pytest
from hypothesis import settings
from threadpoolctl import threadpool_limits

settings.register_profile("default", deadline=None, derandomize=True)
os.environ.setdefault("PQNET_TUNE", "0")  # algorithms by the rule: measurements differ from run to run
os.environ.setdefault("PQNET_CHECK", "1")  # every argument of every step stays within its array
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _scratch_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def two_blas_threads():
    """Give BLAS two threads; it has one where the tests run in several processes."""
    with threadpool_limits(2, "blas"):
        yield
