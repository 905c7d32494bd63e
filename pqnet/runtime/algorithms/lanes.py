"""Products for as many positions as a vector has lanes, straight from codewords; see `kernels.products.lanes`."""

from math import ceil

import numpy as np

from pqnet.kernels.products.lanes import NUMBERS, OUTPUTS, multiply_in_lanes
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.algorithms.base import HOST, Algorithm, Call, Host, block_order, codebook_floats, codeword_step
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import View, round_up
from pqnet.runtime.windows import Windows, windows_of

# Cycles for a code and for each number of its codeword; of a step.
CODE, NUMBER, START = 0.2, 1.0 if HOST.halves else 0.62, 3000.0
TASKS, WORK = 16, 2048  # tasks at most, codes a task at least


class Lanes(Algorithm):
    """Multiply-adds of numbers of codewords and vectors of positions, where the registers hold a block of inputs."""

    name = "lanes"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether kernels can read the codes, and the positions lie side by side in one vector."""
        weight = layer.codes
        few = layer.positions <= WIDTH and (layer.batch == 1 or layer.pointwise) and not layer.depthwise
        return host.isa == "avx512" and few and weight is not None and weight.codec.d in NUMBERS

    def cost(self, layer: Layer) -> float:
        """Return the cost of all codes."""
        weight = layer.codes
        assert weight is not None
        blocks = layer.groups * round_up(layer.outputs, OUTPUTS) * layer.reduction // weight.codec.d
        return START + blocks * (CODE + NUMBER * weight.codec.d)

    def windows(self, b: Builder, layer: Layer, x: View) -> Windows:
        """Return windows whose positions follow each other."""
        return windows_of(b, layer, x, one_run=True)

    def steps(self, b: Builder, call: Call) -> None:
        """Append the step."""
        layer, weight = call.layer, call.layer.codes
        assert weight is not None
        d = weight.codec.d
        blocks, panels = layer.reduction // d, ceil(layer.outputs / OUTPUTS)
        per_task = max(ceil(panels * layer.groups / TASKS), min(panels, ceil(WORK / (blocks * OUTPUTS))))
        o_tasks = ceil(panels / per_task)
        key = "lanes", layer.name, layer.groups
        arguments = {
            "layer": call.windows.arguments(b, block_order(weight)),
            "end": call.end.arguments(b),
            "codes": b.code_bytes(key, lambda: panel_codes(weight.codes, layer.groups)),
            "code_bytes": 1 if weight.codec.k <= 256 else 2,
            "codebook": b.constant((layer.name, "codebook"), lambda: codebook_floats(weight.codebook)),
            "stride": codeword_step(d),
            "d": d,
            "positions": layer.positions,
            "panels": panels,
            "per_task": per_task,
            "o_tasks": o_tasks,
        }
        b.emit(
            multiply_in_lanes,
            layer.node.name,
            o_tasks * layer.groups,
            arguments,
            reads=call.reads,
            writes=[call.end.out],
            scratch=OUTPUTS * WIDTH,
            algorithm=self.name,
            stored=layer.stored_bytes,
        )


def panel_codes(codes: np.ndarray, groups: int) -> np.ndarray:
    """Return codes (O, M) as bytes in the order of `multiply_in_lanes`: group, panel, block, output of the panel."""
    cube = codes.reshape(groups, -1, codes.shape[1])
    padded = np.zeros((groups, round_up(cube.shape[1], OUTPUTS), codes.shape[1]), codes.dtype)
    padded[:, : cube.shape[1]] = cube
    ordered = padded.reshape(groups, -1, OUTPUTS, codes.shape[1]).swapaxes(2, 3)
    return np.ascontiguousarray(ordered).view(np.uint8).reshape(-1)
