"""Windows are read where they lie, row by row; see `kernels.products.direct`."""

from typing import Any

import numpy as np

from pqnet.kernels.products.direct import direct
from pqnet.kernels.products.tile import LANES, ROWS, SMALL_ROWS
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.algorithms.base import Algorithm, Call, Host, in_planes
from pqnet.runtime.algorithms.gemm import DECODE_PLANES, PRODUCT, decode_cycles, weight_arguments
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import View, round_up
from pqnet.runtime.windows import Windows, plane_cycles, windows_of

MOST_REDUCTION = 512  # a panel of more would leave the first-level cache
# Cycles of a register tile beside its products; of a panel and its factors beside its codes; of a task.
TILE, PANEL, START = 90.0, 150.0, 1000.0
TASKS, VECTORS_OF_TASK = 8, 48  # tasks at least, if they have a tile each; vectors at most


class Direct(Algorithm):
    """Products of the panels of each group with all positions, none of which is packed."""

    name = "direct"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether rows of positions have whole vectors, and a reduction is in one piece."""
        wide = not layer.pointwise and layer.out_size[1] >= WIDTH and layer.reduction <= MOST_REDUCTION
        known = layer.codes is not None or isinstance(layer.weight, np.ndarray)
        return wide and known and not layer.depthwise

    def cost(self, layer: Layer) -> float:
        """Return the cost of the tiles of all panels."""
        k, (high, wide) = layer.reduction, layer.out_size
        vectors = layer.batch * high * -(-wide // WIDTH)
        tasks = _tasks(layer.groups, vectors)
        whole, few = divmod(layer.outputs, ROWS)
        panels = whole + (0 if few == 0 else 0.5 if few <= SMALL_ROWS < ROWS else 1)
        tiles = tasks * -(-vectors // tasks * WIDTH // LANES)
        decode = 0.0
        if layer.codes is not None:
            planes = in_planes(layer.codes.codebook)
            decode = DECODE_PLANES if planes else decode_cycles(layer.codes.codec.d)
        group = tiles * (panels * k * PRODUCT + (whole + (few > 0)) * TILE) + tasks * panels * (k * decode + PANEL)
        return layer.groups * (group + tasks * START) + plane_cycles(layer, narrow=False)

    def windows(self, b: Builder, layer: Layer, x: View) -> Windows:
        """Return windows of planes that have the columns of a kernel once."""
        return windows_of(b, layer, x, narrow=False)

    def steps(self, b: Builder, call: Call) -> None:
        """Append the step."""
        layer, windows = call.layer, call.windows
        weight, order = weight_arguments(b, layer)
        across, step = -(-windows.width // WIDTH), layer.reduction + 16
        vectors = windows.batch * windows.height * across  # fewer than the rule has where rows follow each other
        tasks = _tasks(layer.groups, vectors)
        factors = round_up(ROWS * step + 64, 16)
        sums = factors + round_up(2 * ROWS + 2, 16)
        arguments: dict[str, Any] = {
            "layer": windows.arguments(b, order),
            "end": call.end.arguments(b),
            "weight": weight,
            "across": across,
            "vectors": vectors,
            "q_tasks": tasks,
            "panel": 0,
            "panel_step": step,
            "factors": factors,
            "sums": sums,
        }
        b.emit(
            direct,
            layer.node.name,
            layer.groups * tasks,
            arguments,
            reads=call.reads,
            writes=[call.end.out],
            scratch=sums + ROWS * LANES,
            algorithm=self.name,
            stored=layer.stored_bytes,
        )


def _tasks(groups: int, vectors: int) -> int:
    """Return how many tasks the vectors of a group are cut into."""
    wanted = max(-(-TASKS // groups), -(-vectors // VECTORS_OF_TASK))
    return max(min(round_up(wanted, 2), vectors // (LANES // WIDTH)), 1)
