"""Products for a few positions, straight from codewords."""

from pqnet.codecs import PackedPQ
from pqnet.codecs.layout import block_columns
from pqnet.kernels.dots import dots
from pqnet.runtime.builder import Builder
from pqnet.runtime.lower.product import Product, code_rows, codebook_floats, codeword_step, round_up, stored_bytes
from pqnet.runtime.views import View

__all__ = ["dots_cost", "emit_dots"]

CODE, START = 3.0, 6000.0  # cycles for a code, and of a step


def dots_cost(weight: PackedPQ, positions: int) -> float:
    """Return about how many cycles of one core the product takes."""
    return START + positions * weight.n_blocks * CODE


def emit_dots(b: Builder, p: Product) -> None:
    """Append the step; the weight is packed, its blocks of at most 16 numbers."""
    weight = p.weight
    assert isinstance(weight, PackedPQ)
    name, k, d = p.node.params["weight"], p.reduction, weight.codec.d
    step, size = codeword_step(d), weight.codes.itemsize
    blocks = k // d
    o_block = max(-(-p.outputs // 8), min(p.outputs, -(-16384 // blocks)))
    o_tasks = -(-p.outputs // o_block)
    own = [
        b.code_bytes((name, "rows"), lambda: code_rows(weight)),
        b.constant((name, "codebook"), lambda: codebook_floats(weight)),
        *(d, step, size, size * blocks, o_block, o_tasks, round_up(blocks * step, 16)),
    ]
    b.emit(
        dots,
        p.node.name,
        o_tasks * p.groups,
        [*p.fields(b, p.offsets[block_columns(weight.shape, weight.codec.layout)]), *own],
        reads=[p.x, *(v for v in p.tail if isinstance(v, View))],
        writes=[p.out],
        scratch=blocks * step + 64,
        way="dots",
        stored=stored_bytes(weight),
    )
