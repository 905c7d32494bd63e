"""A network as an ONNX model."""

from typing import Any

import onnx

from pqnet.errors import PQNetError
from pqnet.graph import Graph
from pqnet_converters.onnx.writer import Writer

__all__ = ["to_onnx"]

LARGEST = 1 << 31  # bytes of a model that is one message


def to_onnx(model: Any) -> Any:
    """Turn a network into an ONNX model.

    Parameters
    ----------
    model : pqnet.Model or Graph
        Packed weights stay small: their codes and codebooks are stored, and decoded by ``Gather`` when a runtime loads
        the model. Free sizes stay free.

    Returns
    -------
    onnx.ModelProto
        Of opset 18; ``onnx.save(model, path)`` writes it.

    Raises
    ------
    UnsupportedOpError
        For operations that have no ONNX form, all named.
    PQNetError
        If ``model`` is neither a model nor a graph, or would be larger than 2 GiB.

    Examples
    --------
    >>> import numpy as np
    >>> from pqnet.graph import GraphBuilder, ValueInfo
    >>> from pqnet_converters import from_onnx, to_onnx
    >>> b = GraphBuilder({"input": ValueInfo(("batch", 4))}, {"batch": 1})
    >>> y = b.add("linear", "input", name="fc", params={"weight": np.ones((3, 4), np.float32)})
    >>> proto = to_onnx(b.build({"output": y}))
    >>> [node.op_type for node in proto.graph.node]
    ['Gemm', 'Identity']
    >>> from_onnx(proto.SerializeToString())(np.ones((2, 4))).shape
    (2, 3)
    """
    graph = getattr(model, "graph", model)
    if not isinstance(graph, Graph):
        raise PQNetError(f"model: expected a pqnet.Model or a Graph, got {type(model).__name__}")
    made = Writer(graph.validate()).model("pqnet")
    if made.ByteSize() >= LARGEST:
        raise PQNetError(f"model: expected less than 2 GiB as ONNX, got {made.ByteSize()} bytes; quantize it first")
    onnx.checker.check_model(made)
    return made
