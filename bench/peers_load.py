"""How a peer loads an ONNX model, from its bytes or a file; imports the peer only."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Run = Callable[[], np.ndarray]


def onnx_runtime(model: bytes | str, inputs: Mapping[str, np.ndarray], threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()  # all graph optimizations are on by default
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: np.asarray(session.run(None, dict(inputs))[0])


def openvino(model: bytes | str, inputs: Mapping[str, np.ndarray], threads: int) -> Run:
    import openvino as ov

    core = ov.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(model), "CPU", config)
    request = compiled.create_infer_request()
    return lambda: np.asarray(request.infer(dict(inputs), share_inputs=True, share_outputs=True)[0])


LOADERS: dict[str, Callable[[Any, Mapping[str, np.ndarray], int], Run]] = {
    "onnxruntime": onnx_runtime,
    "openvino": openvino,
}
