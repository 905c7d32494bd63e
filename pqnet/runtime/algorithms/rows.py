"""Scalar tables for a few positions: a table for each block, one look-up a code; see `kernels.products.lut_rows`."""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np

from pqnet.kernels.products.lut_rows import TURN, fill_tables, look_up_outputs
from pqnet.kernels.products.tile import LANES
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.algorithms.base import Algorithm, Call, Host, block_order
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import View, round_up
from pqnet.runtime.windows import Windows, windows_of

__all__ = ["Rows", "RowsPlan", "plan_rows", "rows_codebook", "rows_codes"]

POSITIONS = 4  # at most, of `kernels.products.lut_rows`
TASKS = 64  # at most
NEAREST = 6 * 1024  # floats of tables that stay in the first-level cache
# Fitted times, in cycles: a table's vector multiply-add, an input; a look-up of one position and of four, the epilogue
# of an output of several; the two steps.
FILL, TAKE, LOOK_1, LOOK_4, LAST, STEPS = 1.9, 4.0, 1.15, 1.75, 20.0, 6000.0
FILL_TASK, LOOK_TASK = 400_000, 6000  # multiply-adds, look-ups of a turn: a task at least


@dataclass(frozen=True)
class RowsPlan:
    """How `kernels.products.lut_rows` computes a layer for a few positions.

    Attributes
    ----------
    floats : int
        Of all tables, in the arena.
    fill, look_up : dict of str to int
        Those arguments of `fill_tables` and `look_up_outputs` that sizes decide.
    fill_tasks, tasks, scratch : int
        Tasks of the two steps, and floats of scratch of the second.
    cost : float
        Estimated cycles of one core.
    """

    floats: int
    fill: dict[str, int]
    look_up: dict[str, int]
    fill_tasks: int
    tasks: int
    scratch: int
    cost: float


class Rows(Algorithm):
    """Tables of numbers, for at most four positions that lie side by side."""

    name = "rows"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether kernels can read the codes, and the few positions can lie side by side."""
        few = layer.positions <= POSITIONS and (layer.batch == 1 or layer.pointwise)
        return layer.codes is not None and few and not layer.depthwise

    def cost(self, layer: Layer) -> float:
        """Return the expected cycles."""
        return _plan(layer).cost

    def windows(self, b: Builder, layer: Layer, x: View) -> Windows:
        """Return windows whose positions follow each other."""
        return windows_of(b, layer, x, one_run=True)

    def steps(self, b: Builder, call: Call) -> None:
        """Append the two steps."""
        layer, weight, plan = call.layer, call.layer.codes, _plan(call.layer)
        assert weight is not None
        tables = b.new((plan.floats,))
        shared = {"layer": call.windows.arguments(b, block_order(weight)), "tables": tables}
        codebook = b.constant(("rows codebook", layer.name), lambda: rows_codebook(weight.codebook, plan.fill["words"]))
        codes = b.code_bytes(("rows", layer.name, layer.groups), lambda: rows_codes(weight.codes, layer.groups))
        b.emit(
            fill_tables,
            f"{layer.node.name} (tables)",
            plan.fill_tasks,
            {**shared, **plan.fill, "codebook": codebook},
            reads=[call.windows.x],
            writes=[tables],
            algorithm=self.name,
        )
        b.emit(
            look_up_outputs,
            layer.node.name,
            plan.tasks,
            {**shared, **plan.look_up, "codes": codes, "end": call.end.arguments(b)},
            reads=[tables, *call.end.reads],
            writes=[call.end.out],
            scratch=plan.scratch,
            algorithm=self.name,
            stored=layer.stored_bytes,
        )


def _plan(layer: Layer) -> RowsPlan:
    weight = layer.codes
    assert weight is not None
    blocks = layer.reduction // weight.codec.d
    return plan_rows(blocks, weight.codec.k, weight.codec.d, layer.outputs, layer.groups, layer.positions)


@lru_cache(maxsize=4096)
def plan_rows(blocks: int, k: int, d: int, outputs: int, groups: int, positions: int) -> RowsPlan:
    """Cut the work of a few positions; ``blocks`` and ``outputs`` are those of a group."""
    words, width = round_up(k, 4 * WIDTH), 1 if positions == 1 else 4
    near = max(min(NEAREST // (words * width), blocks), 1)
    per_task = max(ceil(groups * blocks / TASKS), ceil(FILL_TASK / (width * words * d)))
    turns = ceil(outputs / TURN)
    parts = max(min(TASKS // groups, turns, ceil(turns * blocks / LOOK_TASK)), 1)
    task_turns = ceil(turns / parts)
    o_tasks = ceil(turns / task_turns)
    filled = groups * blocks * d * width * (words / WIDTH * FILL + TAKE)
    looked_up = groups * turns * TURN * (blocks * (LOOK_1 if width == 1 else LOOK_4) + (1 if width == 1 else LAST))
    sizes = {"words": words, "blocks": blocks}
    return RowsPlan(
        groups * blocks * words * width,
        {**sizes, "d": d, "per_task": per_task},
        {**sizes, "code_bytes": 1 if k <= 256 else 2, "near": near, "turns": task_turns, "o_tasks": o_tasks},
        ceil(groups * blocks / per_task),
        groups * o_tasks,
        task_turns * TURN * width + LANES,
        filled + looked_up + STEPS,
    )


def rows_codes(codes: np.ndarray, groups: int) -> np.ndarray:
    """Return codes (O, M) as bytes in the order of `look_up_outputs`: group, turn of outputs, block, output."""
    cube = codes.reshape(groups, -1, codes.shape[1])
    padded = np.zeros((groups, round_up(cube.shape[1], TURN), codes.shape[1]), codes.dtype)
    padded[:, : cube.shape[1]] = cube
    ordered = padded.reshape(groups, -1, TURN, codes.shape[1]).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(ordered).view(np.uint8).reshape(-1)


def rows_codebook(codebook: np.ndarray, words: int) -> np.ndarray:
    """Return a codebook (k, d) transposed and in float32, (d, words), zeros behind the last codeword."""
    k, d = codebook.shape
    out = np.zeros((d, words), np.float32)
    out[:, :k] = codebook.T
    return out
