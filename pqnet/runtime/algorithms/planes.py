"""Scalar tables in registers for one position: sixty-four look-ups at once; see `kernels.products.lut_planes`."""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np

from pqnet.kernels.products.lut_planes import TILE, look_up_planes, order_codes, sum_parts
from pqnet.runtime.algorithms.base import Algorithm, Call, Host, block_order
from pqnet.runtime.algorithms.rows import rows_codebook
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import round_up

__all__ = ["Planes", "PlanesPlan", "plan_planes", "planes_codes"]

TASK = 10_000  # cycles, at least, of a task that looks up parts of the blocks
PARTS = (8, 4, 2, 1)
CHUNK = 64  # tiles whose sums stay in the first-level cache
LAST = 32  # tiles a task of the last step
# Fitted cycles: of sixteen numbers of a table, for each of their d; of a tile; of a tile of a part; of both steps.
NUMBER, LOOK, SUM, STEPS = 0.75, 8.5, 6.0, 4000.0


@dataclass(frozen=True)
class PlanesPlan:
    """How `kernels.products.lut_planes` computes a layer.

    Attributes
    ----------
    floats : int
        Of sums, in the arena.
    look_up, add : dict of str to int
        Those arguments of `look_up_planes` and `sum_parts` that sizes decide.
    tasks, sum_tasks, scratch : int
        Tasks of the two steps, and floats of scratch of either.
    cost : float
        Estimated cycles of one core.
    """

    floats: int
    look_up: dict[str, int]
    add: dict[str, int]
    tasks: int
    sum_tasks: int
    scratch: int
    cost: float


class Planes(Algorithm):
    """Tables in registers, for one position and codes of one byte, where the processor permutes bytes."""

    name = "planes"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether kernels can read the codes, of one byte each, and the processor has the instructions."""
        weight = layer.codes
        small = weight is not None and weight.codec.k <= 256 and layer.positions == 1
        return host.byte_tables and small and not layer.depthwise

    def cost(self, layer: Layer) -> float:
        """Return the expected cycles."""
        return _plan(layer).cost

    def steps(self, b: Builder, call: Call) -> None:
        """Append the two steps."""
        layer, weight, plan = call.layer, call.layer.codes, _plan(call.layer)
        assert weight is not None
        sums = b.new((plan.floats,))
        words = plan.look_up["words"]
        arguments = plan.look_up | {
            "layer": call.windows.arguments(b, block_order(weight)),
            "codes": b.code_bytes(
                ("planes", layer.name, layer.groups), lambda: planes_codes(weight.codes, layer.groups)
            ),
            "codebook": b.constant(("planes codebook", layer.name), lambda: rows_codebook(weight.codebook, words)),
            "sums": sums,
        }
        b.emit(
            look_up_planes,
            layer.node.name,
            plan.tasks,
            arguments,
            reads=[call.windows.x],
            writes=[sums],
            scratch=plan.scratch,
            algorithm=self.name,
            stored=layer.stored_bytes,
        )
        b.emit(
            sum_parts,
            f"{layer.node.name} (sums)",
            plan.sum_tasks,
            {**plan.add, "end": call.end.arguments(b), "sums": sums},
            reads=[sums, *call.end.reads],
            writes=[call.end.out],
            scratch=plan.scratch,
            algorithm=self.name,
        )


def _plan(layer: Layer) -> PlanesPlan:
    weight = layer.codes
    assert weight is not None
    blocks = layer.reduction // weight.codec.d
    return plan_planes(blocks, weight.codec.k, weight.codec.d, layer.outputs, layer.groups)


@lru_cache(maxsize=4096)
def plan_planes(blocks: int, k: int, d: int, outputs: int, groups: int, parts: int | None = None) -> PlanesPlan:
    """Cut the work of one position; ``blocks`` and ``outputs`` are those of a group."""
    words, tiles = 128 if k <= 128 else 256, ceil(outputs / TILE)
    task_tiles = ceil(tiles / ceil(tiles / CHUNK))
    o_tasks = ceil(tiles / task_tiles)
    work = blocks * (o_tasks * words / 16 * (NUMBER * d + 1) + tiles * LOOK * words / 256)
    if parts is None:
        parts = next((p for p in PARTS if p <= blocks and work >= p * o_tasks * TASK), 1)
    part_blocks = ceil(blocks / parts)
    parts = ceil(blocks / part_blocks)
    last = ceil(tiles / ceil(tiles / LAST))
    return PlanesPlan(
        parts * groups * tiles * TILE,
        {
            "d": d,
            "words": words,
            "blocks": blocks,
            "part_blocks": part_blocks,
            "parts": parts,
            "tiles": task_tiles,
            "o_tasks": o_tasks,
        },
        {"outputs": outputs, "groups": groups, "parts": parts, "tiles": last, "o_tasks": ceil(tiles / last)},
        groups * o_tasks * parts,
        groups * ceil(tiles / last),
        max(2 * words, last * TILE),
        groups * (work + parts * tiles * SUM) + STEPS,
    )


def planes_codes(codes: np.ndarray, groups: int) -> np.ndarray:
    """Return codes (O, M) in the order of `look_up_planes`: group, block, tile, output as `order_codes` has them."""
    cube = codes.reshape(groups, -1, codes.shape[1])
    padded = np.zeros((groups, codes.shape[1], round_up(cube.shape[1], TILE)), np.uint8)
    padded[:, :, : cube.shape[1]] = cube.transpose(0, 2, 1)
    tiles = padded.reshape(groups, codes.shape[1], -1, TILE)
    ordered: np.ndarray = order_codes(tiles)  # type: ignore[no-untyped-call]
    return ordered.reshape(-1)
