"""A network as a PyTorch module with decoded float32 weights: for comparison, and to hand a network over."""

from typing import Any

from pqnet.train import TorchGraph

__all__ = ["to_torch"]


def to_torch(model: Any) -> TorchGraph:
    """Turn a network into a PyTorch module.

    Parameters
    ----------
    model : pqnet.Model or Graph
        Packed weights are decoded; `pqnet.train.to_module` keeps their codes.

    Returns
    -------
    pqnet.train.TorchGraph
        A module that takes the inputs in the graph's order as tensors and returns one tensor, or a tuple of them.

    Raises
    ------
    PQNetError
        If ``model`` is neither a model nor a graph.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from pqnet.graph import GraphBuilder, ValueInfo
    >>> b = GraphBuilder({"input": ValueInfo(("batch", 4))}, {"batch": 1})
    >>> y = b.add("linear", "input", name="fc", params={"weight": np.ones((3, 4), np.float32)})
    >>> module = to_torch(b.build({"output": y}))
    >>> module(torch.ones(2, 4)).shape, list(module.state_dict())
    (torch.Size([2, 3]), ['fc_weight'])
    """
    return TorchGraph(model)
