"""Rows of tables by ids, from dense tables or straight from packed codes."""

from functools import partial
from typing import Any

import numpy as np

from pqnet.codecs import Packed, PackedPQ
from pqnet.codecs.packing import code_bits
from pqnet.graph import Node
from pqnet.kernels.ops.embedding import embedding
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.algorithms.base import codebook_floats, codeword_step
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.lower.gather import checked_ids
from pqnet.runtime.memory import View, round_up

WORK = 32768  # elements a task, at least


def _table(b: Builder, node: Node) -> tuple[dict[str, Any], int] | None:
    """Return the arguments of `kernels.ops.embedding.EMBEDDING` that say where rows are, and the bytes of a row.

    None if a packed table cannot be read row by row.
    """
    name, weight = node.params["weight"], b.param(node, "weight")
    assert weight is not None
    rows, features = weight.shape
    found = {"below": rows, "features": features}
    if not isinstance(weight, Packed):
        stored = b.stored((name, "rows"), np.ascontiguousarray(weight, np.float32))
        own = {"dense": 1, "table": stored, "codes": -1, "bits": 0, "block": 1, "word_step": 1, "scales": -1}
        return found | own, 4 * features
    words = weight.codewords()
    if words is None:
        return None
    packed, scales = words
    assert isinstance(packed, PackedPQ)
    bits, size = code_bits(packed.codec.k), packed.codec.d
    own = {
        "dense": 0,
        "table": b.constant((name, "codebook"), partial(codebook_floats, packed.codebook)),
        "codes": b.stored((name, "stream"), packed.arrays()["codes"]),
        "bits": bits,
        "block": size,
        "word_step": codeword_step(size),
        "scales": -1 if scales is None else b.constant((name, "scales"), lambda: scales),
    }
    return found | own, -(-features // size * bits // 8)


@lowers("embedding", typed=True)
def lower_embedding(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower the choice of rows; the result has its features outermost, as layers read it."""
    table = _table(b, node)
    if table is None:
        return None
    arguments, row_bytes = table
    shape = b.info(node.outputs[0]).shape
    features, tokens = shape[-1], x[0].size
    ids = checked_ids(b, node, x[0], arguments["below"])
    out = b.new(shape, (len(shape) - 1, *range(len(shape) - 1)))
    pitch = round_up(features + arguments["word_step"], WIDTH)
    per_task = max(WORK // (features * WIDTH), 1)
    arguments |= {"ids": ids, "out": out, "tokens": tokens, "pitch": pitch, "per_task": per_task}
    tasks, scratch = -(-tokens // (per_task * WIDTH)), WIDTH * (pitch + WIDTH)
    read = tokens * row_bytes
    b.emit(embedding, node.name, tasks, arguments, reads=[ids], writes=[out], scratch=scratch, stored=read)
    return out
