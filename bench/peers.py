"""The engines that pqnet is compared with, all on the same number of threads: name -> function of nothing."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx_graph import to_onnx

from pqnet.graph import Graph
from pqnet.graph.passes import merge_batch_norm

Run = Callable[[], np.ndarray]


def onnx_runtime(model: bytes | str, inputs: Mapping[str, np.ndarray], threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()  # all graph optimizations are on by default
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, dict(inputs))[0]


def openvino(model: bytes | str, inputs: Mapping[str, np.ndarray], threads: int) -> Run:
    import openvino as ov

    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = ov.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", config)
    request = compiled.create_infer_request()
    return lambda: request.infer(dict(inputs), share_inputs=True, share_outputs=True)[0]


def torch_eager(graph: Graph, inputs: Mapping[str, np.ndarray], threads: int) -> Run:
    import torch

    from pqnet_converters import to_torch

    torch.set_num_threads(threads)
    module = to_torch(merge_batch_norm(graph.validate())).eval()  # eager PyTorch folds nothing itself
    tensors = [torch.from_numpy(array) for array in inputs.values()]

    def run() -> np.ndarray:
        with torch.inference_mode():
            out: Any = module(*tensors)
            return np.asarray((out[0] if isinstance(out, tuple) else out).numpy())

    return run


PEERS = ("onnxruntime", "openvino", "torch")


def make_peers(names: list[str], graph: Graph, inputs: Mapping[str, np.ndarray], threads: int) -> dict[str, Run]:
    """Return the engines by name, each with the float network ``graph`` loaded."""
    symbols = graph.bind_symbols({name: array.shape for name, array in inputs.items()})
    model = to_onnx(graph, symbols).SerializeToString()
    makers: dict[str, Callable[[], Run]] = {
        "onnxruntime": lambda: onnx_runtime(model, inputs, threads),
        "openvino": lambda: openvino(model, inputs, threads),
        "torch": lambda: torch_eager(graph, inputs, threads),
    }
    return {name: makers[name]() for name in names}
