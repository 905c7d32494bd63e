"""ONNX's own tests of single operations: all of the operations that have a rule."""

import re
import warnings
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx.backend.test.case.node as cases
import pytest

from pqnet import UnsupportedOpError
from pqnet.runtime.execute import run_graph, values_to_free
from pqnet_converters.onnx.from_onnx import graph_from_onnx
from pqnet_converters.onnx.reader import OPSETS

LEAST = 950  # tests that pass

# What is another number by design, or a case that no network of pqnet has.
OTHERWISE = {
    "bitwise_not_3d": "uint16 is int32 here",
    "align_corners": "a size is whole here, as in ONNX Runtime",
    "(bf16|fp16)": "half precision is float32 here",
    "(empty_set|zero_size_splits|tr[iu][lu]_zero)": "no input has an axis of size 0",
}

# Operations and options without a rule.
WITHOUT = (
    "Acos|AffineGrid|Asin|Atan|BlackmanWindow|CenterCropPad|Col2Im|DFT|DeformConv|Det|GridSample|HammingWindow"
    "|HannWindow|ImageDecoder|MaxUnpool|MelWeightMatrix|NegativeLogLikelihoodLoss|STFT"
    "|SoftmaxCrossEntropyLoss"
)
REFUSED = (
    rf"without a rule: ({WITHOUT}) ",
    "expected opset 9 to 23",
    "a tensor of strings|strings have no rule",
    "got a sequence|got a optional|sequences and optional values have no rule",
    "random numbers have no rule",
    "mode 'max' has no rule",
    "softcap, lengths of padded sequences and the output of scores have no rule",
    "peepholes have no rule",
    r"pooling with dilation has no rule|pooling over 1 or 2 axes|storage_order 1|its output 'z' has no rule",
    r"training mode|\(Dropout\): expected one known number",
    "ones that depend on their data|depends on what is in the input|known number of rounds",
)


def with_opset(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a model of a newer operator set as one of the newest that is read, if the operation is the same there."""
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            return None
        if opset.version > OPSETS[-1]:
            for node in model.graph.node:
                versions = (opset.version, OPSETS[-1])
                try:
                    old, new = (onnx.defs.get_schema(node.op_type, v, node.domain).since_version for v in versions)
                except onnx.defs.SchemaError:
                    return None
                if old != new:
                    return None
            opset.version = OPSETS[-1]
    return model


def run(model: onnx.ModelProto, inputs: dict[str, Any]) -> list[np.ndarray]:
    """Run an imported model; what has to be known, shapes say, is given at import."""
    data, others = model.SerializeToString(), list(inputs)[1:]
    whole = [n for n in others if isinstance(inputs[n], np.ndarray) and inputs[n].dtype.kind in "iub"]
    for known in ([], whole, others):
        try:
            graph = graph_from_onnx(data, values={n: inputs[n] for n in known})
            break
        except UnsupportedOpError:
            if known == others:
                raise
    feed = {n: np.asarray(x).astype(graph.inputs[n].dtype) for n, x in inputs.items() if n not in known}
    found = run_graph(graph, values_to_free(graph), feed)
    rows = found.pop("count", None)  # of those that NonMaxSuppression finds
    return [value if rows is None else value[: int(rows)] for value in found.values()]


@pytest.fixture(scope="module")
def node_cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the reference implementations that compute what is expected
        return [case for case in cases.collect_testcases(None) if with_opset(case.model) is not None]


def test_all_of_the_operations_with_a_rule_pass(node_cases: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    counted, wrong = Counter[str](), []
    for case in node_cases:
        if any(re.search(pattern, case.name) for pattern in OTHERWISE):
            continue
        arrays, expected = case.data_sets[0]
        names = [value.name for value in case.model.graph.input]
        try:
            got = run(case.model, dict(zip(names, arrays, strict=True)))
        except UnsupportedOpError as reason:
            counted["without a rule"] += 1
            if not any(re.search(pattern, str(reason)) for pattern in REFUSED):
                wrong.append(f"{case.name}: {reason}")
            continue
        for ours, theirs in zip(got, expected, strict=True):
            want = np.asarray(theirs)
            limits = {"rtol": case.rtol, "atol": max(case.atol, 1e-6)}
            if ours.shape != want.shape or not np.allclose(ours, want.astype(ours.dtype), **limits, equal_nan=True):
                wrong.append(f"{case.name}: {ours} is not {want}")
        counted["pass"] += 1
    with capsys.disabled():
        print(f"\nonnx {onnx.__version__}: node tests: {counted}")
    assert not wrong, "\n".join(wrong)
    assert counted["pass"] >= LEAST
