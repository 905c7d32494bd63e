"""Vector tables for pointwise convolutions with codes of one byte; see `kernels.products.lut_pointwise`."""

from functools import lru_cache
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from pqnet.kernels.products.lut_pointwise import (
    HALF,
    MOST_D,
    MOST_IN_PASS,
    OUTPUTS_AT_ONCE,
    WORDS_AT_ONCE,
    lut_pointwise,
)
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.algorithms.base import HOST, Algorithm, Call, Host, block_order
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import View, round_up
from pqnet.runtime.windows import Windows, windows_of

__all__ = ["LutPointwise", "PointwisePlan", "plan_pointwise", "pointwise_codebook", "pointwise_codes"]

TABLES = 64 * 1024  # bytes of the tables of a pass
PARTS = (1, 2, 4)  # of the outputs, each with its own tables
# Fitted cycles: of a row of a table, each of its numbers, an input; of a code, of an output in a pass, its epilogue; a
# task.
WORD, NUMBER, INPUT = 0.1, 1.02 if HOST.halves else 0.55, 4.0
CODE, PASS, LAST, TASK = 1.9, 0.5, 8.0, 1000.0


class PointwisePlan(NamedTuple):
    """How `kernels.products.lut_pointwise` computes a layer: its arguments, tasks, floats of scratch, cycles."""

    arguments: dict[str, int]
    tasks: int
    scratch: int
    cost: float


class LutPointwise(Algorithm):
    """Tables of one vector of positions, for layers that have many more outputs than a codeword costs."""

    name = "lut_pointwise"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether kernels can read the codes, of one byte each, and a window is a pixel."""
        weight = layer.codes
        short = weight is not None and weight.codec.k <= 256 and 2 <= weight.codec.d <= MOST_D
        return short and layer.pointwise and not layer.depthwise

    def cost(self, layer: Layer) -> float:
        """Return the expected cycles."""
        return _plan(layer).cost

    def windows(self, b: Builder, layer: Layer, x: View) -> Windows:
        """Return windows whose positions follow each other."""
        return windows_of(b, layer, x, one_run=True)

    def steps(self, b: Builder, call: Call) -> None:
        """Append the step."""
        layer, weight, plan = call.layer, call.layer.codes, _plan(call.layer)
        assert weight is not None
        in_pass, words = plan.arguments["in_pass"], plan.arguments["words"]
        key = "pointwise", layer.name, layer.groups, in_pass
        arguments: dict[str, Any] = plan.arguments | {
            "layer": call.windows.arguments(b, block_order(weight)),
            "end": call.end.arguments(b),
            "codes": b.code_bytes(key, lambda: pointwise_codes(weight.codes, layer.groups, in_pass)),
            "codebook": b.constant(("pointwise", layer.name), lambda: pointwise_codebook(weight.codebook, words)),
        }
        b.emit(
            lut_pointwise,
            layer.node.name,
            plan.tasks,
            arguments,
            reads=call.reads,
            writes=[call.end.out],
            scratch=plan.scratch,
            algorithm=self.name,
            stored=layer.stored_bytes,
        )


def _plan(layer: Layer) -> PointwisePlan:
    weight = layer.codes
    assert weight is not None
    codec, blocks = weight.codec, layer.reduction // weight.codec.d
    return plan_pointwise(blocks, codec.k, codec.d, layer.outputs, layer.groups, layer.positions)


@lru_cache(maxsize=4096)
def plan_pointwise(blocks: int, k: int, d: int, outputs: int, groups: int, positions: int) -> PointwisePlan:
    """Cut the work of a layer; ``blocks`` and ``outputs`` are those of a group."""
    words, padded, tiles = round_up(k, WORDS_AT_ONCE), round_up(outputs, OUTPUTS_AT_ONCE), ceil(positions / WIDTH)
    in_pass = max(min(TABLES // (4 * WIDTH * words), MOST_IN_PASS, blocks), 1)
    fill = blocks * (words * (WORD + NUMBER * d) + INPUT * d)
    last = positions - (tiles - 1) * WIDTH
    share = tiles - 1 + (0.55 if last <= HALF else 1.0)  # of a tile's cycles
    best: tuple[float, int, float] | None = None
    for parts in PARTS:
        o_block = round_up(ceil(outputs / parts), OUTPUTS_AT_ONCE)
        task = fill + o_block * (blocks * CODE + ceil(blocks / in_pass) * PASS + LAST) + TASK
        tasks = groups * tiles * ceil(outputs / o_block)
        time = (ceil(tasks / 2) * 2 + ceil(tasks / 4) / 4) * task  # of two threads, a bit of four
        if best is None or time < best[0]:
            best = time, o_block, groups * share * ceil(outputs / o_block) * task
    assert best is not None
    _, o_block, cost = best
    o_tasks = ceil(outputs / o_block)
    tables = d * WIDTH
    sums = tables + in_pass * words * WIDTH
    arguments = {
        "d": d,
        "words": words,
        "blocks": blocks,
        "in_pass": in_pass,
        "outputs": padded,
        "positions": positions,
        "tiles": tiles,
        "o_block": o_block,
        "o_tasks": o_tasks,
        "inputs": 0,
        "tables": tables,
        "sums": sums,
    }
    return PointwisePlan(arguments, groups * tiles * o_tasks, sums + (o_block + 1) * WIDTH, cost)


def pointwise_codes(codes: np.ndarray, groups: int, in_pass: int) -> np.ndarray:
    """Return codes (O, M) as `lut_pointwise` reads them: group, pass, output, block of the pass; zeros pad outputs."""
    cube = codes.reshape(groups, -1, codes.shape[1])
    padded = np.zeros((groups, round_up(cube.shape[1], OUTPUTS_AT_ONCE), codes.shape[1]), np.uint8)
    padded[:, : cube.shape[1]] = cube
    passes = [padded[:, :, i : i + in_pass].reshape(groups, -1) for i in range(0, codes.shape[1], in_pass)]
    return np.concatenate(passes, axis=1).reshape(-1)


def pointwise_codebook(codebook: np.ndarray, words: int) -> np.ndarray:
    """Return a codebook (k, d) in float32 with zeros behind the last codeword."""
    k, d = codebook.shape
    out = np.zeros((words, d), np.float32)
    out[:k] = codebook
    return out
