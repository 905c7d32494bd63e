"""Products for a few positions, straight from codewords."""

from pqnet.kernels.products.dots import dots
from pqnet.runtime.algorithms.base import Algorithm, Call, Host, block_order, code_arguments
from pqnet.runtime.builder import Builder
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import round_up

CODE, START = 3.0, 6000.0  # cycles for a code, and of a step
POSITIONS, BLOCK = 16, 16  # at most
TASKS, WORK = 8, 16384  # tasks at most, codes a task at least


class Dots(Algorithm):
    """Dot products of codewords and blocks of the input, one position after the other."""

    name = "dots"

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether there are few positions, and codewords of at most 16 elements."""
        weight = layer.codes
        few = layer.positions <= POSITIONS and not layer.depthwise
        return weight is not None and weight.codec.d <= BLOCK and few

    def cost(self, layer: Layer) -> float:
        """Return the cost of all codes."""
        weight = layer.codes
        assert weight is not None
        return START + layer.positions * weight.n_blocks * CODE

    def steps(self, b: Builder, call: Call) -> None:
        """Append the step."""
        layer, weight = call.layer, call.layer.codes
        assert weight is not None
        own = code_arguments(b, layer, weight)
        blocks = layer.reduction // weight.codec.d
        o_block = max(-(-layer.outputs // TASKS), min(layer.outputs, -(-WORK // blocks)))
        o_tasks = -(-layer.outputs // o_block)
        sums = round_up(blocks * own["stride"], 16)
        arguments = {"layer": call.windows.arguments(b, block_order(weight)), "end": call.end.arguments(b)}
        b.emit(
            dots,
            layer.node.name,
            o_tasks * layer.groups,
            arguments | {"weight": own, "o_block": o_block, "o_tasks": o_tasks, "sums": sums},
            reads=call.reads,
            writes=[call.end.out],
            scratch=sums + 64,
            algorithm=self.name,
            stored=layer.stored_bytes,
        )
