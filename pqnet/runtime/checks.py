"""Whether the arguments of a step stay inside of the arrays that they point into: for ``PQNET_CHECK=1``."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pqnet.errors import PQNetError
from pqnet.kernels.abi import Kind
from pqnet.runtime.builder import Step
from pqnet.runtime.memory import ITEMSIZE, SLACK, Piece, View

__all__ = ["check_step"]


def check_step(step: Step, arena: int, pieces: Sequence[Piece], index: np.ndarray, scratch: int) -> None:
    """Raise PQNetError if an argument of a step, or an element of a value that it reads or writes, lies outside.

    Parameters
    ----------
    step : Step
        Its buffers are placed.
    arena : int
        Bytes of the arena.
    pieces : sequence of Piece
        Parameters of the program.
    index : int64 ndarray
        Tables of the program.
    scratch : int
        Floats of each thread's scratch.
    """
    for view in (*step.reads, *step.writes):
        low, high = view.reach
        if low < 0 or (high + 1) * ITEMSIZE[view.dtype] > view.buffer.nbytes:
            raise _outside(step, "a value", f"elements {low} .. {high} of a buffer of {view.buffer.nbytes} bytes")
    for name, kind, value in step.kernel.arguments.flat(step.arguments):
        at = value.position if isinstance(value, View) else value
        if not -(2**63) <= at < 2**63:
            raise _outside(step, name, f"{at}, which 64 bits do not hold")
        place = at * ITEMSIZE[value.dtype] // 4 if isinstance(value, View) else at
        if kind.array and not (kind.optional and at == -1) and not _inside(kind, place, arena, pieces, index, scratch):
            raise _outside(step, name, f"{kind.array}[{at}]")
    _check_windows(step, arena, index)


def _inside(kind: Kind, at: int, arena: int, pieces: Sequence[Piece], index: np.ndarray, scratch: int) -> bool:
    if kind.array == "data":
        return 0 <= at <= arena // 4
    if kind.array == "index":
        return 0 <= at <= index.size
    if kind.array == "scratch":
        return 0 <= at <= scratch
    dtype = np.float32 if kind.array == "const" else np.uint8
    return any(p.position <= at <= p.position + p.size for p in pieces if p.array.dtype == dtype)


def _check_windows(step: Step, arena: int, index: np.ndarray) -> None:
    """Raise if a window of a layer reaches out of the arena."""
    layer: Any = step.arguments.get("layer")
    if layer is None or not layer["reduction"]:
        return
    x = layer["x"].position if isinstance(layer["x"], View) else layer["x"]
    offsets = index[layer["offsets"] : layer["offsets"] + layer["reduction"]]
    rows = layer["image"] // layer["width"]
    steps = (
        (layer["groups"], layer["group_step"]),
        (layer["batch"], layer["image_step"]),
        (rows, layer["pitch"]),
        (layer["width"], 1),
    )
    last = sum((n - 1) * s for n, s in steps)
    if x + int(offsets.min()) < 0 or x + last + int(offsets.max()) >= arena // 4 + SLACK:
        raise _outside(step, "a window", f"data[{x + int(offsets.min())} .. {x + last + int(offsets.max())}]")


def _outside(step: Step, what: str, where: str) -> PQNetError:
    return PQNetError(f"step {step.label!r} ({step.kernel.name}): {what} lies outside of its memory: {where}")
