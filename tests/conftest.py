"""Hypothesis profiles, and a scratch directory for the examples in docstrings."""

import os

import pytest
from hypothesis import settings

settings.register_profile("default", deadline=None, derandomize=True)
os.environ.setdefault("PQNET_TUNE", "0")  # algorithms by the rule: measurements differ from run to run
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _scratch_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
