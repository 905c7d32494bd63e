"""The order of the elements along an axis: which of them may change places, and with which of other axes.

An axis is a sequence of pieces, each a segment whose elements change places among themselves, every element standing
for ``repeat`` neighbours. Axes that meet in an operation are unified: cut where the other is cut, then in one order.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = [
    *("Axes", "Axis", "Piece", "Segment", "Tracked", "cut", "fix", "fresh", "join", "resolve", "unify"),
    *("broadcast", "keep_pixels", "reshape"),
]

LONGEST = 4096  # pieces of an axis


class Segment:
    """Elements in one order; another segment found to be in the same order, or two halves, may replace it."""

    __slots__ = ("fixed", "parts", "size")

    def __init__(self, size: int, *, fixed: bool = False) -> None:
        self.size, self.fixed = size, fixed
        self.parts: tuple[Piece, ...] = ()


class Piece(NamedTuple):
    """A segment as it lies on an axis."""

    segment: Segment
    repeat: int

    @property
    def size(self) -> int:
        """Number of elements of the axis."""
        return self.segment.size * self.repeat


Axis = tuple[Piece, ...]
Axes = tuple[Axis, ...]


class Tracked(NamedTuple):
    """Shape and axes of a value or parameter."""

    shape: tuple[int, ...]
    axes: Axes


def fresh(size: int, *, fixed: bool = False) -> Axis:
    """Return an axis of one segment; elements without company have no order to change."""
    return (Piece(Segment(size, fixed=fixed or size < 2), 1),) if size else ()


def resolve(axis: Axis) -> Axis:
    """Return the axis in terms of segments that nothing replaced."""
    for segment, _ in axis:
        _shorten(segment)
    return _one_level(axis)


def _one_level(axis: Axis) -> Axis:
    found: list[Piece] = []
    for piece in axis:
        parts = piece.segment.parts
        found += [Piece(part, piece.repeat * inner) for part, inner in parts] if parts else [piece]
    return tuple(found)


def _shorten(segment: Segment) -> None:
    """Make the parts of a segment such as nothing replaced; a network of residuals chains thousands of segments."""
    waiting = [segment]
    while waiting:
        replaced = [part.segment for part in waiting[-1].parts if part.segment.parts]
        deeper = [other for other in replaced if any(part.segment.parts for part in other.parts)]
        if not deeper:
            waiting[-1].parts = _one_level(waiting[-1].parts)
            waiting.pop()
        waiting += deeper


def fix(axis: Axis) -> None:
    """Keep the elements of an axis in their order."""
    for segment, _ in resolve(axis):
        segment.fixed = True


def cut(axis: Axis, at: int) -> tuple[Axis, Axis]:
    """Return the axis before and after its element ``at``, which no order of it then passes."""
    position = 0
    for segment, repeat in resolve(axis):
        inside = at - position
        if 0 < inside < segment.size * repeat:
            if inside % repeat:  # in the midst of one element
                fix(axis)
                return fresh(at, fixed=True), fresh(sum(piece.size for piece in axis) - at, fixed=True)
            sizes = inside // repeat, segment.size - inside // repeat
            segment.parts = join(fresh(size, fixed=segment.fixed) for size in sizes)
            return cut(axis, at)
        position += segment.size * repeat
    pieces = resolve(axis)
    ends = [sum(p.size for p in pieces[:i]) for i in range(len(pieces) + 1)]
    return pieces[: ends.index(at)], pieces[ends.index(at) :]


def unify(a: Axis, b: Axis) -> Axis:
    """Give two axes of one size the same order; return it."""
    while True:
        left, right = resolve(a), resolve(b)
        step = next((i for i, (p, q) in enumerate(zip(left, right, strict=False)) if p != q), None)
        if step is None:
            return left
        p, q = sorted((left[step], right[step]), key=lambda piece: piece.repeat)
        size = min(p.size, q.size)
        if p.size != q.size:
            cut((p,), size)
            cut((q,), size)
        elif q.repeat % p.repeat == 0:
            q.segment.fixed = p.segment.fixed or q.segment.fixed
            p.segment.parts = (Piece(q.segment, q.repeat // p.repeat),)
        if resolve(a) == left and resolve(b) == right:  # neither could be cut there
            fix(left)
            fix(right)
            return left


def join(axes: Iterable[Axis]) -> Axis:
    """Return the axis of several, one after the other."""
    return tuple(piece for axis in axes for piece in axis)


def broadcast(values: Sequence[Tracked]) -> Axes:
    """Give values that meet element by element the same orders; return the axes of the result."""
    rank = max(len(value.shape) for value in values)
    result = []
    for i in range(-rank, 0):
        meeting = [v for v in values if len(v.shape) >= -i]
        wide = [v for v in meeting if v.shape[i] != 1] or meeting[:1]
        axis = wide[0].axes[i]
        for other in wide[1:]:
            axis = unify(axis, other.axes[i])
        result.append(axis)
    return tuple(result)


def keep_pixels(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Mapping[str, Any]) -> Axes:
    """Rule of operations that treat every channel of images alike and move pixels."""
    for axis in x[0].axes[2:]:
        fix(axis)
    return x[0].axes


def reshape(value: Tracked, shape: tuple[int, ...]) -> Axes:
    """Return the axes of a value's elements in another shape."""
    if 0 in shape:
        return tuple(fresh(size, fixed=True) for size in shape)
    found: list[Axis] = []
    i, j = 0, 0
    while i < len(value.shape) or j < len(shape):
        i, start = i + 1, i
        j, first = j + 1, j
        before, after = math.prod(value.shape[start:i]), math.prod(shape[first:j])
        while before != after:  # the least numbers of axes that hold the same elements
            if before < after:
                before, i = before * value.shape[i], i + 1
            else:
                after, j = after * shape[j], j + 1
        sizes = shape[first:j]
        found += _split(_merge(Tracked(value.shape[start:i], value.axes[start:i])), sizes)
    return tuple(found)


def _free(axis: Axis) -> bool:
    return not all(segment.fixed for segment, _ in resolve(axis))


def _merge(value: Tracked) -> Axis:
    """Return the axis into which all axes of a value make one."""
    free = [i for i, axis in enumerate(value.axes) if _free(axis)]
    if len(free) == 1:
        axis = resolve(value.axes[free[0]])
        outer, inner = math.prod(value.shape[: free[0]]), math.prod(value.shape[free[0] + 1 :])
        if outer * len(axis) <= LONGEST:
            return tuple(Piece(segment, repeat * inner) for segment, repeat in axis) * outer
    for axis in value.axes:
        fix(axis)
    return fresh(math.prod(value.shape), fixed=True)


def _split(axis: Axis, sizes: tuple[int, ...]) -> list[Axis]:
    """Return the axes that make one together; where one is not in some order of its own, all its parts share one."""
    if len(sizes) < 2:
        return [axis] if sizes else []
    inner = math.prod(sizes[1:])
    if all(repeat % inner == 0 for _, repeat in resolve(axis)):
        outer = tuple(Piece(segment, repeat // inner) for segment, repeat in resolve(axis))
        return [outer, *(fresh(size, fixed=True) for size in sizes[1:])]
    if not _free(axis) or sizes[0] > LONGEST:
        fix(axis)
        return [fresh(size, fixed=True) for size in sizes]
    part, rest = cut(axis, inner)
    for _ in range(sizes[0] - 1):
        other, rest = cut(rest, inner)
        part = unify(part, other)
    return [fresh(sizes[0], fixed=True), *_split(part, sizes[1:])]
