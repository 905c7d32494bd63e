"""The engines that pqnet is compared with, all on the same number of threads: name -> function of nothing."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from onnx_graph import to_onnx
from peers_load import LOADERS, Run

from pqnet.graph import Graph
from pqnet.graph.passes import merge_batch_norm

PEERS = (*LOADERS, "torch")


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


def make_peers(names: Iterable[str], graph: Graph, inputs: Mapping[str, np.ndarray], threads: int) -> dict[str, Run]:
    """Return the engines by name, each with the float network ``graph`` loaded."""
    symbols = graph.bind_symbols({name: array.shape for name, array in inputs.items()})
    model = to_onnx(graph, symbols).SerializeToString()
    return {
        name: torch_eager(graph, inputs, threads) if name == "torch" else LOADERS[name](model, inputs, threads)
        for name in names
    }
