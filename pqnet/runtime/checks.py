"""Whether the arguments of a step stay inside of the arrays that they point into: for ``PQNET_CHECK=1``."""

from collections.abc import Iterator, Mapping, Sequence
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
    for what, view, low, high in _TABLES.get(step.kernel.name, _nothing)(step.arguments, index):
        first = view.offset * ITEMSIZE[view.dtype] + low * ITEMSIZE["float32"]
        end = view.offset * ITEMSIZE[view.dtype] + (high + 1) * ITEMSIZE["float32"]
        if first < 0 or end > view.buffer.nbytes:
            raise _outside(step, what, f"bytes {first} .. {end} of a buffer of {view.buffer.nbytes}")


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


# Values that a step reads or writes at places that a table of the program gives: what they are, the view behind whose
# first element they lie, and the least and the largest distance from it, in floats.
_Reach = tuple[str, View, int, int]


def _nothing(g: Mapping[str, Any], index: np.ndarray) -> Iterator[_Reach]:
    """Yield nothing: a kernel without such tables."""
    yield from ()


def _products(g: Mapping[str, Any], index: np.ndarray) -> Iterator[_Reach]:
    """Yield the reach of all matrices of a batch, whose places behind the first are in a table."""
    rows, out = g.get("rows", 1), g["end"]["out"]
    inner, lanes = g["inner"] - 1, g["lanes"] - 1
    reaches = (
        ("a matrix of rows", g["a"], (rows - 1, g.get("a_row", 0)), (inner, g["a_inner"])),
        ("a matrix of lanes", g["x"], (inner, g["x_inner"]), (lanes, g.get("x_lane", 1))),
        ("a product", out, (rows - 1, g["end"]["out_step"]), (lanes, 1)),
    )
    places = index[g["places"] : g["places"] + 3 * g["batch"]].reshape(-1, 3)
    for (what, view, *steps), column in zip(reaches, places.T, strict=True):
        spans = [count * step for count, step in steps]
        low, high = (sum(limit(span, 0) for span in spans) for limit in (min, max))
        yield what, view, int(column.min()) + low, int(column.max()) + high


def _mixed_images(g: Mapping[str, Any], index: np.ndarray) -> Iterator[_Reach]:
    """Yield the reach of the pixels that rows and columns of an image are mixed of."""
    numbers = index[g["row_numbers"] : g["row_numbers"] + g["rows"] * g["row_taps"]]
    columns = index[g["column_places"] : g["column_places"] + g["column_taps"] * g["padded"]]
    rows = index[g["row_places"] + numbers]
    spans = (g["planes"] // g["batch"] - 1) * g["channel_step"], (g["batch"] - 1) * g["image_step"]
    low, high = (sum(limit(span, 0) for span in spans) for limit in (min, max))
    yield "a pixel", g["x"], int(rows.min() + columns.min()) + low, int(rows.max() + columns.max()) + high


def _rectangles(g: Mapping[str, Any], index: np.ndarray) -> Iterator[_Reach]:
    """Yield the reach of the products of all taps, and of the positions that they are added to."""
    found = index[g["rectangles"] : g["rectangles"] + 4 * g["count"]].reshape(-1, 4)
    first, to, rows, columns = found.T
    last = (g["outputs"] - 1) * g["length"]
    yield "a product of a tap", g["sums"], int(first.min()), int((first + rows * columns).max()) - 1 + last
    last = (g["outputs"] - 1) * g["end"]["out_step"]
    yield "a sum", g["end"]["out"], int(to.min()), int((to + (rows - 1) * g["width"] + columns).max()) - 1 + last


_TABLES = {"matmul": _products, "vector_matmul": _products, "resize": _mixed_images, "add_taps": _rectangles}


def _outside(step: Step, what: str, where: str) -> PQNetError:
    return PQNetError(f"step {step.label!r} ({step.kernel.name}): {what} lies outside of its memory: {where}")
