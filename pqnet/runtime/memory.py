"""Where values and parameters lie while a network runs: views of buffers in the arena, pieces of the store."""

import threading
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from pqnet._threads import reset_after_fork
from pqnet.errors import PQNetError

__all__ = [
    "SLACK",
    "Buffer",
    "Piece",
    "Store",
    "View",
    "Workspace",
    "aligned",
    "merge_axes",
    "place_buffers",
    "take_in",
]

ALIGNMENT = 64  # bytes: a cache line
SLACK = 256  # floats behind the arena, the parameters and each scratch that kernels may read, never use
ITEMSIZE = {"bfloat16": 2} | {
    name: np.dtype(name).itemsize for name in ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")
}
VIEWS = 1024  # NumPy views of the arena that a workspace keeps


def aligned(size: int, dtype: Any) -> np.ndarray:
    """Return zeros on a 64-byte boundary."""
    item = np.dtype(dtype).itemsize
    raw: np.ndarray = np.zeros(size + ALIGNMENT // item, dtype)
    start = (-raw.ctypes.data % ALIGNMENT) // item
    return raw[start : start + size]


def round_up(size: int, to: int) -> int:
    """Return the least multiple of ``to`` that is not below ``size``."""
    return -(-size // to) * to


def merge_axes(shape: Sequence[int], *strides: Sequence[int]) -> list[tuple[int, ...]]:
    """Return (size, stride, stride, ..) of fewer axes with the same elements in the same order.

    Parameters
    ----------
    shape : sequence of int
        Sizes of the axes, from the outermost to the innermost; those of size 1 are left out.
    *strides : sequence of int
        Strides of the axes of one or more values; neighbouring axes become one where that is one stride in every value.

    Examples
    --------
    >>> merge_axes((2, 3, 4), (12, 4, 1), (24, 8, 1))
    [(6, 4, 8), (4, 1, 1)]
    """
    merged: list[tuple[int, ...]] = []
    for size, *steps in zip(shape, *strides, strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1:] == tuple(step * size for step in steps):
            merged[-1] = (merged[-1][0] * size, *steps)
        else:
            merged.append((size, *steps))
    return merged


@dataclass(eq=False)
class Buffer:
    """A range of the arena, in bytes, that is taken from step ``first`` to step ``last``.

    It may be a part of another one, which begins ``start`` bytes before it.
    """

    nbytes: int
    first: int
    last: int
    offset: int = -1
    whole: "Buffer | None" = None
    start: int = 0

    @property
    def within(self) -> list[tuple["Buffer", int]]:
        """Itself and the buffers that it is a part of, outermost last, each with how far it begins before this one."""
        found, start = [(self, 0)], 0
        while (last := found[-1][0]).whole is not None:
            start += last.start
            found.append((last.whole, start))
        return found


@dataclass(frozen=True)
class View:
    """A value: shape in the axes of the graph, offset and strides in elements; axes of size 1 have any stride."""

    buffer: Buffer
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str = "float32"

    @classmethod
    def dense_in(cls, buffer: Buffer, shape: Sequence[int], order: Sequence[int], dtype: str = "float32") -> "View":
        """Return the view that fills a buffer, its axes stored in ``order`` from outermost to innermost."""
        strides, step = [0] * len(shape), 1
        for axis in reversed(order):
            strides[axis] = step
            step *= shape[axis]
        return cls(buffer, 0, tuple(shape), tuple(strides), dtype)

    def with_axes(self, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> "View":
        """Return other elements of the same buffer, ``offset`` elements further."""
        return View(self.buffer, self.offset + offset, tuple(shape), tuple(strides), self.dtype)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * ITEMSIZE[self.dtype]

    @property
    def position(self) -> int:
        """Where the first element lies in the arena seen as elements of this dtype; buffers are placed."""
        return self.buffer.offset // ITEMSIZE[self.dtype] + self.offset

    @property
    def reach(self) -> tuple[int, int]:
        """The least and the largest offset of an element in the buffer; of an empty view, its own offset twice."""
        if 0 in self.shape:
            return self.offset, self.offset
        spans = [(n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)]
        return self.offset + sum(min(s, 0) for s in spans), self.offset + sum(max(s, 0) for s in spans)

    def order(self) -> tuple[int, ...]:
        """Return the axes from outermost to innermost storage; axes of size 1 and broadcast ones come first."""
        inner = [self.strides[a] if self.shape[a] > 1 and self.strides[a] else 1 << 62 for a in range(len(self.shape))]
        return tuple(sorted(range(len(self.shape)), key=lambda a: (-inner[a], a)))

    @property
    def dense(self) -> bool:
        """Whether the elements fill a contiguous range, each once."""
        step = 1
        for axis in reversed(self.order()):
            if self.shape[axis] > 1 and self.strides[axis] != step:
                return False
            step *= self.shape[axis]
        return True

    def permute(self, axes: Sequence[int]) -> "View":
        """Return the view with its axes in another order."""
        return self.with_axes([self.shape[a] for a in axes], [self.strides[a] for a in axes])

    def slice(self, axis: int, start: int, size: int, step: int = 1) -> "View":
        """Return ``size`` elements along an axis from ``start`` on."""
        shape, strides = list(self.shape), list(self.strides)
        offset = start * strides[axis]
        shape[axis], strides[axis] = size, strides[axis] * step
        return self.with_axes(shape, strides, offset)

    def expand(self, shape: Sequence[int]) -> "View":
        """Return the view broadcast to a shape."""
        missing = len(shape) - len(self.shape)
        sizes, strides = (1,) * missing + self.shape, (0,) * missing + self.strides
        steps = tuple(0 if s == 1 and want != 1 else t for s, t, want in zip(sizes, strides, shape, strict=True))
        return self.with_axes(shape, steps)

    def reshape(self, shape: Sequence[int]) -> "View | None":
        """Return the same elements, in row-major order of the axes, in another shape; None if no strides do that."""
        strides, pieces = [0] * len(shape), merge_axes(self.shape, self.strides)
        left, step = 1, 0  # of the piece being cut
        for axis in reversed(range(len(shape))):
            if shape[axis] == 1:
                continue
            if left == 1:
                if not pieces:
                    return None
                left, step = pieces.pop()
            if left % shape[axis]:
                return None
            strides[axis] = step
            step *= shape[axis]
            left //= shape[axis]
        return self.with_axes(shape, strides) if left == 1 and not pieces else None

    def array(self, arena: np.ndarray) -> np.ndarray:
        """Return the value as a NumPy view of an arena of bytes whose buffers are placed; bfloat16 as uint16."""
        kind = np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)
        start = arena.view(kind)[self.position :]
        return np.lib.stride_tricks.as_strided(start, self.shape, tuple(kind.itemsize * s for s in self.strides))


def take_in(out: View, parts: Sequence[tuple[View, View]]) -> list[bool]:
    """Make values parts of a larger one, where they are stored as they lie there; tell of each whether it is.

    Parameters
    ----------
    out : View
        Fills a buffer of its own.
    parts : sequence of (View, View)
        Each value, and its part of ``out``; parts do not overlap.
    """
    starts: dict[Buffer, set[int]] = {}  # where the outermost buffers of the values would begin
    covered: dict[Buffer, int] = {}
    outermost = [value.buffer.within[-1] for value, _ in parts]
    for (value, part), (buffer, before) in zip(parts, outermost, strict=True):
        alike = all(a == b for a, b, n in zip(value.strides, part.strides, value.shape, strict=True) if n > 1)
        item = ITEMSIZE[value.dtype]
        fits = alike and value.dense and value.dtype == out.dtype and buffer is not out.buffer
        starts.setdefault(buffer, set()).add((part.offset - value.offset) * item - before if fits else -1)
        covered[buffer] = covered.get(buffer, 0) + value.nbytes
    # All of a buffer has to be taken by the values in it: the rest belongs to other parts.
    taken = {b for b, at in starts.items() if len(at) == 1 and min(at) >= 0 and covered[b] == b.nbytes}
    for buffer in taken:
        buffer.whole, buffer.start = out.buffer, min(starts[buffer])
    return [buffer in taken for buffer, _ in outermost]


def place_buffers(buffers: Sequence[Buffer]) -> int:
    """Give every buffer an offset such that those alive at the same time do not overlap; return the arena's bytes.

    Steps are walked in order; a buffer takes the smallest hole that it fits in, of several the first. A buffer that is
    part of another lies there, and the other is alive as long as any of its parts.
    """
    for buffer in buffers:
        outer = buffer.within[-1][0]
        outer.first, outer.last = min(outer.first, buffer.first), max(outer.last, buffer.last)
    end = _place([buffer for buffer in buffers if buffer.whole is None])
    for buffer in buffers:
        outer, start = buffer.within[-1]
        buffer.offset = outer.offset + start
    return end


def _place(buffers: Sequence[Buffer]) -> int:
    """Place buffers none of which is a part of another."""
    end = 4 * SLACK  # kernels may read a little before a value, too
    holes: list[tuple[int, int]] = []  # (bytes, offset), sorted
    sides: dict[int, int] = {}  # offset of a hole: its bytes
    before: dict[int, int] = {}  # end of a hole: its offset

    def fill(size: int, at: int) -> None:
        holes.pop(bisect_left(holes, (size, at)))
        del sides[at], before[at + size]

    def leave(size: int, at: int) -> None:
        if at in before:
            first = before[at]
            size, at = size + sides[first], first
            fill(sides[first], first)
        if at + size in sides:
            behind = sides[at + size]
            fill(behind, at + size)
            size += behind
        insort(holes, (size, at))
        sides[at], before[at + size] = size, at

    ends = sorted(buffers, key=lambda b: b.last)
    done = 0
    for buffer in sorted(buffers, key=lambda b: (b.first, -b.nbytes)):
        while done < len(ends) and ends[done].last < buffer.first:
            leave(round_up(ends[done].nbytes, ALIGNMENT), ends[done].offset)
            done += 1
        size = round_up(buffer.nbytes, ALIGNMENT)
        found = bisect_left(holes, (size, 0))
        if found < len(holes):
            room, buffer.offset = holes[found]
            fill(room, buffer.offset)
            if room > size:
                leave(room - size, buffer.offset + size)
        elif end in before:  # the last hole grows
            buffer.offset = before[end]
            fill(end - buffer.offset, buffer.offset)
            end = buffer.offset + size
        else:
            buffer.offset, end = end, end + size
    return end


class Piece:
    """An array that kernels read by its address; ``position`` counts the address in elements.

    With ``slack`` it is a copy with room behind it, which kernels may read; else the content itself where it can be.
    """

    __slots__ = ("__weakref__", "array", "position", "size")

    def __init__(self, content: Any, dtype: type[np.generic], slack: bool = True) -> None:
        content = np.ascontiguousarray(content, dtype).reshape(-1)
        self.size, self.array = content.size, content
        if slack or content.ctypes.data % content.itemsize:
            self.array = aligned(content.size + 4 * SLACK // content.itemsize, dtype)
            self.array[: content.size] = content
        self.position: int = self.array.ctypes.data // content.itemsize


class Store:
    """What the programs of a model share: parameters as kernels read them, algorithms chosen for layers, norms.

    Each piece is written once; pieces that no program uses are dropped.
    """

    def __init__(self) -> None:
        self._pieces: WeakValueDictionary[Hashable, Piece] = WeakValueDictionary()
        self.chosen: dict[Hashable, str] = {}
        self.norms: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # factors and terms of batch norms, by node
        self._renew()
        reset_after_fork(self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def piece(self, key: Hashable, make: Callable[[], Any], dtype: type[np.generic], slack: bool = True) -> Piece:
        """Return the piece with this key, which names all that its content depends on; ``make`` gives a new one."""
        with self._lock:
            found = self._pieces.get((key, dtype))
            if found is None:
                found = self._pieces[key, dtype] = Piece(make(), dtype, slack)
            return found


class Workspace:
    """The memory of one run at a time: the arena, in bytes, and each thread's scratch, in floats."""

    def __init__(self) -> None:
        self.arena = aligned(0, np.uint8)
        self.scratch: list[np.ndarray] = []
        self.used = 0  # bytes that the last program needed
        self._arrays: dict[View, np.ndarray] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of arena and scratch."""
        return self.arena.nbytes + sum(s.nbytes for s in self.scratch)

    def fit(self, arena: int, scratch: int, threads: int) -> None:
        """Make room for a program that needs so many bytes, and so many floats of scratch; memory only grows."""
        self.used = arena + 4 * scratch * threads
        try:
            if self.arena.size < arena + 4 * SLACK:
                self._arrays.clear()
                self.arena = aligned(round_up(arena + 4 * SLACK, 8), np.uint8)
            if len(self.scratch) < threads or self.scratch[0].size < scratch:
                self.scratch = [aligned(scratch, np.float32) for _ in range(max(threads, len(self.scratch)))]
        except MemoryError:
            raise PQNetError(
                f"inputs: expected shapes for which there is memory, got some that take {self.used} bytes between the "
                "layers; run fewer or smaller samples at once"
            ) from None

    def spoil(self) -> None:
        """Fill all memory with bytes that are NaN as float32."""
        for array in (self.arena, *self.scratch):
            array.view(np.uint8)[:] = 255

    def array(self, view: View) -> np.ndarray:
        """Return a value as a NumPy view of the arena."""
        if view not in self._arrays:
            if len(self._arrays) > VIEWS:
                self._arrays.clear()
            self._arrays[view] = view.array(self.arena)
        return self._arrays[view]
