"""What is known of every layer from the model alone: bytes, codec, recorded errors, and how codewords are used."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pqnet import Model
from pqnet.codecs import Packed, PackedPQ, PackedScalar
from pqnet.codecs.additive import PackedAdditive
from pqnet.graph.ranges import input_ranges, output_shift, token_scales
from pqnet.runtime.integers import input_scaling

__all__ = ["CodeUse", "code_use", "describe_layers", "plain", "recorded", "signature_rows"]


class CodeUse(NamedTuple):
    """How the codes of a weight make use of its codewords, or of its values if it is scalar.

    Attributes
    ----------
    codewords, used : int
        How many there are, and of how many there is a code; of several codebooks, in all.
    bits, entropy : float
        Of a code: log2 of the number of codewords, and -sum p log2 p of their shares; of several codebooks, the sums.
    """

    codewords: int
    used: int
    bits: float
    entropy: float


def recorded(model: Model) -> Mapping[str, Any]:
    """Return what quantization wrote into the file; nothing for float networks, and where others wrote nonsense."""
    found = model.graph.meta.get("quantization")
    return found if isinstance(found, Mapping) else {}


def describe_layers(model: Model) -> dict[str, dict[str, Any]]:
    """Return for each layer what `pqnet inspect` shows, as plain data."""
    size, layers = model.size(), recorded(model).get("layers")
    done = layers if isinstance(layers, Mapping) else {}
    found = {}
    for name, node in model.graph.layers().items():
        param, part = model.graph.params[node.params["weight"]], size.per_layer[name]
        known = done[name] if isinstance(done.get(name), Mapping) else {}
        found[name] = {
            "op": node.op,
            "shape": list(param.shape),
            "codec": param.codec.to_attrs() if isinstance(param, Packed) else None,
            "bytes": part.codes + part.codebooks + part.other,
            "dense_bytes": part.dense,
            "output_error": known.get("output_error"),
            "iterations": known.get("iterations"),
            "integers": _integers(model, name),
        }
    return found


def _integers(model: Model, name: str) -> dict[str, Any] | None:
    """Return what the file has for a layer to compute with 8-bit integers; None for layers that do without."""
    limits = input_ranges(model.graph).get(name)
    if limits is None:
        return None
    factor, zero = input_scaling(limits)
    shift = output_shift(model.graph, name)
    return {
        "scales": "token" if name in token_scales(model.graph) else "tensor",
        "range": list(limits),
        "scale": 1 / factor,
        "zero_point": int(zero),
        "largest_shift": 0.0 if shift is None else float(np.abs(shift).max(initial=0)),
    }


def signature_rows(model: Model) -> list[list[str]]:
    """Return name, direction, dtype and shape of every input and output, as texts."""
    return [
        [name, what, dtype, " x ".join("any" if n is None else str(n) for n in shape) or "scalar"]
        for what, values in (("input", model.inputs), ("output", model.outputs))
        for name, (shape, dtype) in values.items()
    ]


def plain(value: Any) -> str:
    """Return plain data of a file as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def code_use(param: Any) -> CodeUse | None:
    """Count how often each codeword of a weight is used; None for weights without codewords (float, sparse)."""
    parts = param.parts if isinstance(param, PackedAdditive) else (param,)
    codewords, used, bits, entropy = 0, 0, 0.0, 0.0
    for part in parts:
        if not isinstance(part, PackedPQ | PackedScalar):
            continue
        k = int(part.codec.k)
        share = np.bincount(part.codes.reshape(-1), minlength=k) / part.codes.size
        positive = share[share > 0]
        codewords, used = codewords + k, used + positive.size
        bits, entropy = bits + float(np.log2(k)), entropy + max(0.0, -float(positive @ np.log2(positive)))
    return CodeUse(codewords, used, bits, entropy) if codewords else None
