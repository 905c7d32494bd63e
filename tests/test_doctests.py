"""Every example in a docstring runs and gives what it says."""

import doctest
import importlib
import pkgutil

import pytest

import pqnet

MODULES = [m.name for m in pkgutil.walk_packages(pqnet.__path__, "pqnet.") if not m.name.endswith("__main__")]
LONG = {"pqnet.pipeline.compress": pytest.mark.exhaustive}  # a dozen networks are quantized


@pytest.mark.parametrize("name", ["pqnet", *(pytest.param(name, marks=LONG.get(name, ())) for name in MODULES)])
def test_examples(name):
    if name.startswith("pqnet.train"):
        pytest.importorskip("torch")
    assert doctest.testmod(importlib.import_module(name), verbose=False).failed == 0


def test_public_functions_have_examples():
    """The names of ``import pqnet`` that are functions or codecs show how they are called."""
    names = [
        "assign",
        "calibrate",
        "conv2d",
        "diff",
        "embedding",
        "linear",
        "load",
        "patch",
        "plan",
        "quantize",
        "sign",
    ]
    names += ["weighted_kmeans", "write_report"]
    names += ["PQ", "Scalar", "Fixed", "IntN", "Additive", "Sparse", "Model", "Recipe", "Statistics"]
    public = [getattr(pqnet, name) for name in names]
    finder = doctest.DocTestFinder(recurse=False)
    assert not [p.__name__ for p in public if not any(test.examples for test in finder.find(p))]


def test_examples_of_the_converters():
    pytest.importorskip("torch")
    import pqnet_converters

    for module in pkgutil.walk_packages(pqnet_converters.__path__, "pqnet_converters."):
        assert doctest.testmod(importlib.import_module(module.name), verbose=False).failed == 0
