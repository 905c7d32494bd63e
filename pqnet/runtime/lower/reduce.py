"""Sums and extremes of integers and booleans, positions of extremes, products and variances."""

from math import prod

from pqnet.graph import Node
from pqnet.kernels.ops import reduce as kernel
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.copying import dense
from pqnet.runtime.lower.typed import TYPES
from pqnet.runtime.memory import View, merge_axes

OPERATIONS = {
    "sum": kernel.SUM,
    "max": kernel.MAXIMUM,
    "min": kernel.MINIMUM,
    "argmax": kernel.FIRST_MAXIMUM,
    "argmin": kernel.FIRST_MINIMUM,
    "prod": kernel.PRODUCT,
}
TASKS, WORK = 32, 32768  # tasks of a step at most, elements a task at least


@lowers(*OPERATIONS, "var", typed=True)
def reduce(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a reduction along axes."""
    attrs, source = b.attrs(node), x[0]
    shape, dtype = b.info(node.outputs[0])
    if dtype == "float32" and node.op not in ("prod", "var"):  # `lower.axis` has these
        return None
    axes = (attrs["axis"],) if "axis" in attrs else attrs["axes"]
    kept = [a for a in source.order() if a not in axes]
    row = merge_axes(*([v[a] for a in sorted(axes)] for v in (source.shape, source.strides)))
    outer = merge_axes(*([v[a] for a in kept] for v in (source.shape, source.strides)))
    if len(row) > 1 or len(outer) > 3:
        kept = [a for a in range(len(source.shape)) if a not in axes]
        return reduce(b, node, [dense(b, source, [*kept, *sorted(axes)])])  # type: ignore[no-any-return]
    n, x_step = row[0] if row else (1, 1)
    sizes, x_steps = zip(*[(1, 0)] * (3 - len(outer)), *outer, strict=True)
    full = b.new([1 if a in axes else s for a, s in enumerate(source.shape)], (*sorted(axes), *kept), dtype)
    common = {"x": source, "out": full, "sizes": sizes, "x_steps": x_steps, "n": n, "x_step": x_step}
    wide = dtype == "float32"
    units = prod(sizes[:2]) * -(-sizes[2] // kernel.LANES) if wide else prod(sizes)
    per_task = min(max(WORK // (n * (min(sizes[2], kernel.LANES) if wide else 1)), -(-units // TASKS), 1), units)
    tasks = -(-units // per_task)
    if wide:
        own = {"product": int(node.op == "prod"), "divisor": max(n - attrs.get("correction", 0), 0)}
        step, scratch = kernel.reduce_wide, kernel.SCRATCH
    else:
        own = {"type": TYPES[source.dtype], "out_type": TYPES[dtype], "operation": OPERATIONS[node.op]}
        step, scratch = kernel.reduce_typed, 0
    arguments = {**common, **own, "per_task": per_task}
    b.emit(step, node.name, tasks, arguments, reads=[source], writes=[full], scratch=scratch)
    return full.reshape(shape)
