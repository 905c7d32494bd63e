"""Where values live while a network runs: strided views of buffers, and the arena that holds the buffers."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

__all__ = ["SLACK", "Buffer", "View", "place_buffers"]

ALIGNMENT = 16  # floats: a cache line
SLACK = 256  # floats behind the arena and the parameters that kernels may read, never use


@dataclass(eq=False)
class Buffer:
    """A range of the arena that is taken from step ``first`` to step ``last``."""

    size: int
    first: int
    last: int
    offset: int = -1


@dataclass(frozen=True)
class View:
    """A value: shape in the axes of the graph, strides in elements; axes of size 1 have any stride."""

    buffer: Buffer
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def dense_in(cls, buffer: Buffer, shape: Sequence[int], order: Sequence[int]) -> "View":
        """Return the view that fills a buffer, its axes stored in ``order`` from outermost to innermost."""
        strides, step = [0] * len(shape), 1
        for axis in reversed(order):
            strides[axis] = step
            step *= shape[axis]
        return cls(buffer, 0, tuple(shape), tuple(strides))

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

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
        shape, strides = (tuple(t[a] for a in axes) for t in (self.shape, self.strides))
        return View(self.buffer, self.offset, shape, strides)

    def slice(self, axis: int, start: int, size: int, step: int = 1) -> "View":
        """Return ``size`` elements along an axis from ``start`` on."""
        shape, strides = list(self.shape), list(self.strides)
        offset = self.offset + start * strides[axis]
        shape[axis], strides[axis] = size, strides[axis] * step
        return View(self.buffer, offset, tuple(shape), tuple(strides))

    def expand(self, shape: Sequence[int]) -> "View":
        """Return the view broadcast to a shape."""
        missing = len(shape) - len(self.shape)
        sizes, strides = (1,) * missing + self.shape, (0,) * missing + self.strides
        steps = tuple(0 if s == 1 and want != 1 else t for s, t, want in zip(sizes, strides, shape, strict=True))
        return View(self.buffer, self.offset, tuple(shape), steps)

    def reshape(self, shape: Sequence[int]) -> "View | None":
        """Return the same elements, in row-major order of the axes, in another shape; None if no strides do that."""
        pairs = [(s, t) for s, t in zip(self.shape, self.strides, strict=True) if s != 1]
        merged: list[tuple[int, int]] = []
        for size, stride in pairs:
            if merged and merged[-1][1] == stride * size:
                merged[-1] = (merged[-1][0] * size, stride)
            else:
                merged.append((size, stride))
        strides, pieces = [0] * len(shape), list(merged)
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
        return View(self.buffer, self.offset, tuple(shape), tuple(strides)) if left == 1 and not pieces else None

    def array(self, arena: np.ndarray) -> np.ndarray:
        """Return the value as a NumPy view of an arena whose buffers are placed."""
        start = arena[self.buffer.offset + self.offset :]
        return np.lib.stride_tricks.as_strided(start, self.shape, tuple(4 * s for s in self.strides))


def place_buffers(buffers: Sequence[Buffer]) -> int:
    """Give every buffer an offset such that those alive at the same time do not overlap; return the arena's size."""
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: -b.size):
        size = -(-buffer.size // ALIGNMENT) * ALIGNMENT
        at = SLACK  # kernels may read a little before a value, too
        for other in sorted((p for p in placed if p.first <= buffer.last and buffer.first <= p.last), key=_start):
            if at + size <= other.offset:
                break
            at = max(at, other.offset + -(-other.size // ALIGNMENT) * ALIGNMENT)
        buffer.offset = at
        placed.append(buffer)
    return max((b.offset + b.size for b in placed), default=SLACK)


def _start(buffer: Buffer) -> int:
    return buffer.offset
