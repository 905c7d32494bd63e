"""Float weights for a few positions, with outputs side by side; see `kernels.products.columns`."""

import numpy as np

from pqnet.kernels.products.columns import columns
from pqnet.kernels.products.tile import LANES, SMALL_ROWS
from pqnet.runtime.algorithms.base import Algorithm, Call, Host
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import round_up

# Cycles for an element of the reduction in a panel, of one position and of several, and in a window; of a step.
ONE, SEVERAL, TAKE, START = 6.0, 9.0, 2.0, 3000.0
TASKS, WORK = 16, 1 << 16  # tasks at most, multiply-adds of a position a task at least


class Columns(Algorithm):
    """Products with float weights for at most four positions."""

    name = "columns"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether the weight is an array, and there are few positions."""
        return isinstance(layer.weight, np.ndarray) and layer.positions <= SMALL_ROWS and not layer.depthwise

    def cost(self, layer: Layer) -> float:
        """Return the cost of all panels."""
        panels = layer.groups * -(-layer.outputs // LANES)
        each = panels * (ONE if layer.positions == 1 else SEVERAL) + layer.groups * layer.positions * TAKE
        return START + layer.reduction * each

    def steps(self, b: Builder, call: Call) -> None:
        """Append the step."""
        layer = call.layer
        panels = -(-layer.outputs // LANES)
        per_task = max(-(-panels // max(TASKS // layer.groups, 1)), min(panels, -(-WORK // (layer.reduction * LANES))))
        o_tasks = -(-panels // per_task)
        sums = round_up(max(per_task, SMALL_ROWS) * LANES, 16)  # behind those of one position, or one panel of several
        windows = sums + SMALL_ROWS * LANES

        def weight() -> np.ndarray:
            rows = np.asarray(layer.weight, np.float32).reshape(layer.groups, layer.outputs, layer.reduction)
            padded = np.zeros((layer.groups, panels * LANES, layer.reduction), np.float32)
            padded[:, : layer.outputs] = rows
            return padded.reshape(layer.groups, panels, LANES, -1).swapaxes(2, 3)

        arguments = {
            "layer": call.windows.arguments(b),
            "end": call.end.arguments(b),
            "weight": b.constant(("columns", layer.name, layer.groups), weight),
            "panels": panels,
            "per_task": per_task,
            "o_tasks": o_tasks,
            "sums": sums,
            "windows": windows,
        }
        b.emit(
            columns,
            layer.node.name,
            o_tasks * layer.groups,
            arguments,
            reads=call.reads,
            writes=[call.end.out],
            scratch=windows + round_up(SMALL_ROWS * layer.reduction, 16),
            algorithm=self.name,
            stored=layer.stored_bytes,
        )
