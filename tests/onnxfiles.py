"""ONNX models as text, what ONNX Runtime gives for them, and the networks of the packages that ship ONNX files."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from pqnet import Model

HEADER = '<ir_version: 8, opset_import: ["" : {}]>'


def parse(text: str, opset: int = 17) -> onnx.ModelProto:
    """Return the model of ``name (inputs) => (outputs) <constants> { nodes }``, in the syntax of onnx.parser."""
    return onnx.parser.parse_model(HEADER.format(opset) + text)


def runtime(source: onnx.ModelProto | bytes | str) -> onnxruntime.InferenceSession:
    """Return ONNX Runtime's session of a model, its bytes or its file, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    data = source.SerializeToString() if isinstance(source, onnx.ModelProto) else source
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def outputs(session: onnxruntime.InferenceSession, feed: dict[str, Any]) -> dict[str, np.ndarray]:
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


def assert_agrees(
    model: Model, session: onnxruntime.InferenceSession, feed: dict[str, Any], limit: float = 1e-5, **values: Any
) -> None:
    """Assert equal shapes, and values within a limit, relative to the largest of each output."""
    got = model.run(feed, threads=1)
    for name, want in outputs(session, {**feed, **values}).items():
        assert got[name].shape == want.shape, name
        largest = np.abs(want.astype(np.float64)).max(initial=0) or 1
        assert np.abs(got[name].astype(np.float64) - want).max(initial=0) <= limit * largest, name


def packaged(package: str, path: str) -> str:
    """Return the path of a file in an installed package; skip the test without it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip(f"the package {package} is not installed")
    return str(Path(spec.submodule_search_locations[0]) / path)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
