"""Plan-time half of `kernels.lut` and `kernels.lut_rows`.

Which tables a layer needs, how its work is cut, its codes in the order in which they are read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np

from pqnet.kernels.lut import CHUNK, DEEP
from pqnet.kernels.lut_rows import TURN
from pqnet.kernels.simd import WIDTH
from pqnet.kernels.tile import LANES, ROWS

__all__ = ["LutPlan", "RowsPlan", "lut_codes", "plan_lut", "plan_rows", "rows_codebook", "rows_codes"]

IN_PASS = (1, 2, 3, 4, 8)  # blocks whose tables exist at once
VECTORS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)  # of positions a tile
PARTS = (1, 2, 3, 4)  # of the outputs, each with its own tables
TASKS = 64  # at most
TABLES = 150 * 1024  # floats of tables that stay in the second-level cache
CACHE = 200 * 1024  # of tables and sums
# Fitted times, in vector multiply-adds at their peak. Of a vector of a table: a codeword, each of its d numbers, an
# input. Of sums: a code, each vector of its row, what that costs more from tables outside the cache, a group of shifted
# codes, a pass over an output's vectors, over each of them in the second-level cache or the third. Of a task.
WORD, NUMBER, INPUT = 4.2, 0.95, 22.0
CODE, ROW, LARGE, SHIFT, PASS, NEAR, FAR, TASK = 4.4, 2.8, 2.4, 10.0, 9.4, 6.2, 13.0, 5000.0


def _up(size: int, to: int) -> int:
    return -(-size // to) * to


@dataclass
class LutPlan:
    """How `kernels.lut` computes a layer.

    Attributes
    ----------
    blocks : int
        Blocks of inputs that have tables: those of channels in ``channel`` layout, all otherwise.
    in_pass : int
        Blocks a pass.
    shifts : list of list of int
        The taps, those with the same shift of the vectors together: the order in which a pass visits their codes.
    rows, tables, groups, steps : arrays
        For the index buffer: what fields 32, 35, 37 and 39 of the kernel point to.
    own : list of int
        Fields 40-47.
    tasks, scratch : int
        Tasks, and floats of scratch.
    cost : float
        Estimated time of all tasks, in vector multiply-adds at the peak of a core.
    """

    blocks: int
    in_pass: int
    shifts: list[list[int]]
    rows: np.ndarray
    tables: np.ndarray
    groups: np.ndarray
    steps: np.ndarray
    own: list[int]
    tasks: int
    scratch: int
    cost: float

    @property
    def taps(self) -> int:
        """Codes of an output for each block of inputs."""
        return sum(len(same) for same in self.shifts)


def _share(places: list[tuple[int, int]], lane_pitch: int, lanes: int) -> list[tuple[int, int, int]]:
    """Cut ascending taps (row, column) into runs that share a table, so that all tables have the fewest lanes.

    Returns first tap, tap behind the last, lanes of each.
    """

    def width(s: int, e: int) -> int:
        return lanes + _up((places[e - 1][0] - places[s][0]) * lane_pitch + max(x for _, x in places[s:e]), WIDTH)

    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(places) + 1):
        best.append(min((best[s][0] + width(s, end), s) for s in range(end)))
    runs, end = [], len(places)
    while end:
        start = best[end][1]
        runs.append((start, end, width(start, end)))
        end = start
    return runs[::-1]


def plan_lut(
    inputs: np.ndarray,
    taps: np.ndarray,
    k: int,
    d: int,
    outputs: int,
    images: int,
    height: int,
    width: int,
    pitch: int,
    lane_pitch: int | None = None,
    vectors: int | None = None,
    in_pass: int | None = None,
    parts: int | None = None,
) -> LutPlan:
    """Choose tables and tiles of a layer from its sizes.

    Parameters
    ----------
    inputs : array
        Offsets of a group's inputs at the first tap in the order of the blocks: channels in ``channel`` layout, the
        whole reduction otherwise.
    taps : array
        Offsets of the taps; one 0 if the blocks are those of the whole reduction.
    k, d : int
        Codewords and their size.
    outputs, images, height, width, pitch : int
        Outputs of a group; groups times images, and their rows, positions a row and distance of rows.
    lane_pitch, vectors, in_pass, parts : int, optional
        What to use instead of the choice.
    """
    order = [int(t) for t in np.argsort(taps, kind="stable")]
    layer = _Layer(inputs, order, [divmod(int(taps[t]), pitch) for t in order], k, d, outputs, images, height, width)
    reach = min(width + max(column for _, column in layer.places), pitch)
    pitches = {reach, _up(reach, WIDTH)} if height > 1 else {reach}
    best: tuple[float, float, int, int, int, int] | None = None
    for lane in sorted(pitches) if lane_pitch is None else [lane_pitch]:
        total = layer.vectors(lane)
        # Tiles of equal size, as many as those of this one.
        even = {ceil(total / ceil(total / v)) for v in VECTORS}
        for v in sorted(even) if vectors is None else [min(vectors, total)]:
            floats, cost = layer.costs(lane, v)
            fitting = [n for n in IN_PASS if n == 1 or (n <= layer.blocks and n * floats <= TABLES)]
            for n in fitting if in_pass is None else [in_pass]:
                for part in [p for p in PARTS if p == 1 or outputs >= 128 * p] if parts is None else [parts]:
                    o_block = ceil(outputs / part)
                    work = cost(n, o_block)
                    tasks = images * ceil(total / v) * part
                    time = (ceil(tasks / 2) * 2 + ceil(tasks / 4) / 4) * work / tasks  # of two threads, a bit of four
                    if best is None or time < best[0]:
                        best = (time, work, lane, v, n, o_block)
    assert best is not None
    return layer.cut(*best[1:])


@dataclass
class _Layer:
    """Sizes of a layer: `plan_lut`'s arguments, its taps ascending as (row, column)."""

    inputs: np.ndarray
    order: list[int]
    places: list[tuple[int, int]]
    k: int
    d: int
    outputs: int
    images: int
    height: int
    width: int

    @property
    def blocks(self) -> int:
        """Blocks of inputs that have tables."""
        return self.inputs.size // self.d

    def vectors(self, lane_pitch: int) -> int:
        """Return the vectors of an image's positions."""
        return ceil(((self.height - 1) * lane_pitch + self.width) / WIDTH)

    def costs(self, lane_pitch: int, v: int) -> tuple[int, Callable[[int, int], float]]:
        """Return for tiles of ``v`` vectors the floats of a block's tables, and the cost of all tasks.

        That is a function of the blocks a pass and the outputs a task.
        """
        runs = _share(self.places, lane_pitch, v * WIDTH)
        lanes = sum(step for _, _, step in runs)
        shifts = [
            ((row - self.places[s][0]) * lane_pitch + column) % WIDTH
            for s, e, _ in runs
            for row, column in self.places[s:e]
        ]
        shifted, groups = sum(shift > 0 for shift in shifts), len({*shifts} - {0})
        total, taps = self.vectors(lane_pitch), len(self.places)
        tiles = ceil(total / v)
        tables = self.images * (len(runs) * total + tiles * (lanes / WIDTH - len(runs) * v)) * self.blocks
        rows = self.images * self.outputs * (total * taps + tiles * shifted)
        chunks = self.images * self.outputs * tiles * ceil(v / DEEP)
        sums = self.images * self.outputs * total

        floats = _up(self.k, ROWS) * lanes

        def cost(in_pass: int, o_block: int) -> float:
            passes = ceil(self.blocks / in_pass)
            large, far = in_pass * floats > TABLES, in_pass * floats + o_block * v * WIDTH > CACHE
            return (
                ceil(self.outputs / o_block) * tables * (self.k * (WORD + NUMBER * self.d) + INPUT * self.d)
                + self.blocks * (rows * (ROW + LARGE * large) + chunks * taps * CODE)
                + passes * (sums * (FAR if far else NEAR) + chunks * (PASS + SHIFT * groups))
                + self.images * tiles * ceil(self.outputs / o_block) * TASK
            )

        return floats, cost

    def cut(self, cost: float, lane_pitch: int, vectors: int, in_pass: int, o_block: int) -> LutPlan:
        """Return the plan for a choice."""
        tables, steps, floats = [], {}, 0
        for s, e, step in _share(self.places, lane_pitch, vectors * WIDTH):
            top = self.places[s][0]
            tables.append((top, step, floats))
            for tap, (row, column) in zip(self.order[s:e], self.places[s:e], strict=True):
                steps[tap] = (step, floats, (row - top) * lane_pitch + column)
            floats += _up(self.k, ROWS) * step
        by_shift: dict[int, list[int]] = {0: []}
        for tap in self.order:
            by_shift.setdefault(steps[tap][2] % WIDTH, []).append(tap)
        groups: list[tuple[int, int, int]] = []
        all_steps: list[tuple[int, int]] = []
        for shift, same in sorted(by_shift.items()):
            if shift:
                groups.append((shift, len(same), len(all_steps)))
            for i in range(in_pass):
                all_steps += [(steps[t][0], i * floats + steps[t][1] + steps[t][2] - shift) for t in same]
        tiles, o_tasks = ceil(self.vectors(lane_pitch) / vectors), ceil(self.outputs / o_block)
        task_tiles = ceil(self.images * tiles * o_tasks / TASKS)
        place = _up(max(self.d * LANES, 8 * CHUNK) + WIDTH, 16)
        return LutPlan(
            self.blocks,
            in_pass,
            [by_shift[shift] for shift in sorted(by_shift)],
            self.inputs.astype(np.int32),
            np.array(tables, np.int32).reshape(-1, 3),
            np.array(groups, np.int32).reshape(-1, 3),
            np.array(all_steps, np.int32).reshape(-1, 2),
            [floats, lane_pitch, vectors, tiles, task_tiles, o_block, o_tasks, place],
            ceil(self.images * tiles / task_tiles) * o_tasks,
            place + in_pass * floats + o_block * vectors * WIDTH + LANES,
            cost,
        )


def lut_codes(codes: np.ndarray, groups: int, plan: LutPlan) -> np.ndarray:
    """Return codes (O, M) as bytes in the order of `kernels.lut`.

    That is group, pass, output, shift, block of the pass, tap.
    """
    cube = codes.reshape(groups, -1, plan.taps, plan.blocks)  # ``channel`` blocks are in (ky, kx, c) order
    parts = []
    for first in range(0, plan.blocks, plan.in_pass):
        some = cube[..., first : first + plan.in_pass]
        same = [some[:, :, taps].transpose(0, 1, 3, 2).reshape(*some.shape[:2], -1) for taps in plan.shifts]
        parts.append(np.concatenate(same, 2).reshape(groups, -1))
    return np.ascontiguousarray(np.concatenate(parts, 1)).view(np.uint8).reshape(-1)


NEAREST = 6 * 1024  # floats of tables that stay in the first-level cache
# Fitted times, in cycles: a table's vector multiply-add, an input; a look-up of one position and of four, the epilogue
# of an output of several; the two steps.
FILL, TAKE, LOOK_1, LOOK_4, LAST, STEPS = 1.9, 4.0, 1.15, 1.75, 20.0, 6000.0


@dataclass
class RowsPlan:
    """How `kernels.lut_rows` computes a layer for a few positions.

    Attributes
    ----------
    words : int
        Numbers of a table.
    floats : int
        Of all tables, in the arena.
    filled, looked_up : list of int
        Fields 26-30 of `fill_tables` and 25-31 of `look_up_outputs`.
    fill_tasks, tasks, scratch : int
        Tasks of the two steps, and floats of scratch of the second.
    cost : float
        Estimated cycles of one core.
    """

    words: int
    floats: int
    filled: list[int]
    looked_up: list[int]
    fill_tasks: int
    tasks: int
    scratch: int
    cost: float


def plan_rows(blocks: int, k: int, d: int, outputs: int, groups: int, positions: int) -> RowsPlan:
    """Cut the work of a few positions; ``blocks`` and ``outputs`` are those of a group."""
    words, width = _up(k, 4 * WIDTH), 1 if positions == 1 else 4
    some = max(min(NEAREST // (words * width), blocks), 1)
    per_fill = max(ceil(groups * blocks / TASKS), ceil(400_000 / (width * words * d)))
    turns = ceil(outputs / TURN)
    parts = max(min(TASKS // groups, turns, ceil(turns * blocks / 6000)), 1)
    per_task = ceil(turns / parts)
    filled = groups * blocks * d * width * (words / WIDTH * FILL + TAKE)
    looked_up = groups * turns * TURN * (blocks * (LOOK_1 if width == 1 else LOOK_4) + (1 if width == 1 else LAST))
    return RowsPlan(
        words,
        groups * blocks * words * width,
        [d, words, positions, blocks, per_fill],
        [1 if k <= 256 else 2, words, positions, blocks, some, per_task, ceil(turns / per_task)],
        ceil(groups * blocks / per_fill),
        groups * ceil(turns / per_task),
        per_task * TURN * width + LANES,
        filled + looked_up + STEPS,
    )


def rows_codes(codes: np.ndarray, groups: int) -> np.ndarray:
    """Return codes (O, M) as bytes in the order of `look_up_outputs`: group, turn of outputs, block, output."""
    cube = codes.reshape(groups, -1, codes.shape[1])
    padded = np.zeros((groups, _up(cube.shape[1], TURN), codes.shape[1]), codes.dtype)
    padded[:, : cube.shape[1]] = cube
    ordered = padded.reshape(groups, -1, TURN, codes.shape[1]).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(ordered).view(np.uint8).reshape(-1)


def rows_codebook(codebook: np.ndarray) -> np.ndarray:
    """Return a codebook (k, d) in float32 as `fill_tables` reads it: transposed, padded with zeros."""
    k, d = codebook.shape
    out = np.zeros((d, _up(k, 4 * WIDTH)), np.float32)
    out[:, :k] = codebook.T
    return out
