"""Pooling by windows."""

from functools import partial
from math import prod

import numpy as np

from pqnet.graph import Node
from pqnet.graph.ops.pool import window_sizes
from pqnet.kernels.ops.pool import AVERAGE, LARGEST, pool
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.copying import dense
from pqnet.runtime.memory import View

TASKS = 32
WORK = 16384  # pixels a task, at least


@lowers("max_pool2d", "avg_pool2d")
def window_pool(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower max or average pooling."""
    a = b.attrs(node)
    source = x[0] if x[0].strides[3] == 1 or x[0].shape[3] == 1 else dense(b, x[0], (1, 0, 2, 3))
    batch, channels, height, width = source.shape
    rows, columns = b.info(node.outputs[0]).shape[2:]
    (kh, kw), (sy, sx), (top, left) = a["kernel"], a["stride"], a["padding"][:2]
    dy, dx = a.get("dilation", (1, 1))
    high, across = (rows - 1) * sy + (kh - 1) * dy + 1, (columns - 1) * sx + (kw - 1) * dx + 1
    high, across = max(high, top + height), max(across, left + width)
    average = node.op == "avg_pool2d"
    factors = [-1, -1]
    if average:
        sizes = [window_sizes((height, width)[i], (rows, columns)[i], i, a) for i in (0, 1)]
        if a["divisor"] is not None:
            sizes = [np.full(rows, a["divisor"], np.float32), np.ones(columns, np.float32)]
        factors = [b.constant((node.name, i, source.shape), partial(np.reciprocal, sizes[i])) for i in (0, 1)]
    planes = channels * batch
    per_task = max(-(-planes // TASKS), min(planes, -(-WORK // (high * across))))
    out = b.new((batch, channels, rows, columns), (1, 0, 2, 3))
    arguments = {
        "x": source,
        "out": out,
        "channel_step": source.strides[1],
        "image_step": source.strides[0],
        "row_step": source.strides[2],
        "height": height,
        "width": width,
        "channels": channels,
        "batch": batch,
        "per_task": per_task,
        "rows": rows,
        "columns": columns,
        "kernel": (kh, kw),
        "stride": (sy, sx),
        "dilation": (dy, dx),
        "top": top,
        "left": left,
        "padded_width": across,
        "mode": AVERAGE if average else LARGEST,
        "row_factors": factors[0],
        "column_factors": factors[1],
    }
    scratch = rows * across + prod((2, WIDTH, sx + 2)) + across
    b.emit(pool, node.name, -(-planes // per_task), arguments, reads=[source], writes=[out], scratch=scratch)
    return out
