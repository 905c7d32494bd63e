"""Plan-time half of `kernels.lut` and `kernels.lut_rows`: which tables a layer needs, how its work is cut, and its codes in the right order."""

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
# Fitted times, in vector multiply-adds at their peak: of a table, a codeword and each of its d numbers, an input; a code
# and each vector of its row; a group of shifted codes and each of its vectors; a vector of sums loaded and stored from
# the second-level cache and from the third; a task.
WORD, NUMBER, INPUT = 3.0, 1.1, 15.0
CODE, ROW, SHIFT, SHIFTED, NEAR, FAR, TASK = 6.0, 2.7, 8.0, 2.0, 2.0, 10.0, 5000.0


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
    blocks, words = inputs.size // d, _up(k, ROWS)
    order = [int(t) for t in np.argsort(taps, kind="stable")]
    places = [divmod(int(taps[t]), pitch) for t in order]
    reach = min(width + max(column for _, column in places), pitch)
    pitches = {reach, _up(reach, WIDTH)} if height > 1 else {reach}
    best: tuple[float, float, int, int, int, int] | None = None
    for lane in sorted(pitches) if lane_pitch is None else [lane_pitch]:
        total = ceil(((height - 1) * lane + width) / WIDTH)
        for v in [v for v in VECTORS if v <= total] if vectors is None else [min(vectors, total)]:
            tiles = ceil(total / v)
            if vectors is None and v > 1 and ceil(total / tiles) < v:  # a smaller tile gives as few of them
                continue
            runs = _share(places, lane, v * WIDTH)
            floats = words * sum(step for _, _, step in runs)
            shifts = [((row - places[s][0]) * lane + column) % WIDTH for s, e, _ in runs for row, column in places[s:e]]
            n_shifted, n_groups = np.count_nonzero(shifts), len({*shifts} - {0})
            around = sum(step for _, _, step in runs) / WIDTH - len(runs) * v  # vectors of tables beside the tile's
            built = images * (len(runs) * total + tiles * around)
            rows = images * outputs * (total * taps.size + tiles * n_shifted)
            chunks = images * outputs * tiles * ceil(v / DEEP)
            for n in (
                (n for n in IN_PASS if n == 1 or (n <= blocks and n * floats <= TABLES))
                if in_pass is None
                else [in_pass]
            ):
                passes = ceil(blocks / n)
                for part in (p for p in PARTS if p == 1 or outputs >= 128 * p) if parts is None else [parts]:
                    o_block = ceil(outputs / part)
                    sums = NEAR if n * floats + o_block * v * WIDTH <= CACHE else FAR
                    tasks = images * tiles * part
                    cost = (
                        part * built * blocks * (k * (WORD + NUMBER * d) + INPUT * d)
                        + blocks * (rows * ROW + chunks * taps.size * CODE)
                        + passes * images * outputs * total * (sums + SHIFTED * n_groups)
                        + passes * chunks * SHIFT * n_groups
                        + tasks * TASK
                    )
                    time = (ceil(tasks / 2) * 2 + ceil(tasks / 4) / 4) * cost / tasks  # of two threads, a bit of four
                    if n * floats > TABLES:
                        time *= n * floats / TABLES
                    if best is None or time < best[0]:
                        best = (time, cost, lane, v, n, o_block)
    assert best is not None
    return _cut(inputs, order, places, words, d, outputs, images, height, width, best)


def _cut(
    inputs: np.ndarray,
    order: list[int],
    places: list[tuple[int, int]],
    words: int,
    d: int,
    outputs: int,
    images: int,
    height: int,
    width: int,
    choice: tuple[float, float, int, int, int, int],
) -> LutPlan:
    """Return the plan for a choice of (-, cost, lane pitch, vectors, blocks a pass, outputs a task)."""
    _, cost, lane_pitch, vectors, in_pass, o_block = choice
    tables, steps, floats = [], {}, 0
    for s, e, step in _share(places, lane_pitch, vectors * WIDTH):
        tables.append((places[s][0], step, floats))
        for tap, (row, column) in zip(order[s:e], places[s:e], strict=True):
            steps[tap] = (step, floats, (row - places[s][0]) * lane_pitch + column)
        floats += words * step
    by_shift: dict[int, list[int]] = {0: []}
    for tap in order:
        by_shift.setdefault(steps[tap][2] % WIDTH, []).append(tap)
    groups, all_steps = [], []
    for shift, same in sorted(by_shift.items()):
        if shift:
            groups.append((shift, len(same), len(all_steps)))
        for i in range(in_pass):
            all_steps += [(steps[t][0], i * floats + steps[t][1] + steps[t][2] - shift) for t in same]
    total = ceil(((height - 1) * lane_pitch + width) / WIDTH)
    tiles, o_tasks = ceil(total / vectors), ceil(outputs / o_block)
    task_tiles = ceil(images * tiles * o_tasks / TASKS)
    place = _up(max(d * LANES, 8 * CHUNK) + WIDTH, 16)
    return LutPlan(
        inputs.size // d,
        in_pass,
        [by_shift[shift] for shift in sorted(by_shift)],
        inputs.astype(np.int32),
        np.array(tables, np.int32).reshape(-1, 3),
        np.array(groups, np.int32).reshape(-1, 3),
        np.array(all_steps, np.int32).reshape(-1, 2),
        [floats, lane_pitch, vectors, tiles, task_tiles, o_block, o_tasks, place],
        ceil(images * tiles / task_tiles) * o_tasks,
        place + in_pass * floats + o_block * vectors * WIDTH + LANES,
        cost,
    )


def lut_codes(codes: np.ndarray, groups: int, plan: LutPlan) -> np.ndarray:
    """Return codes (O, M) as bytes in the order of `kernels.lut`: group, pass, output, shift, block of the pass, tap."""
    cube = codes.reshape(groups, -1, plan.taps, plan.blocks)  # ``channel`` blocks are in (ky, kx, c) order
    parts = []
    for first in range(0, plan.blocks, plan.in_pass):
        some = cube[..., first : first + plan.in_pass]
        same = [some[:, :, taps].transpose(0, 1, 3, 2).reshape(*some.shape[:2], -1) for taps in plan.shifts]
        parts.append(np.concatenate(same, 2).reshape(groups, -1))
    return np.ascontiguousarray(np.concatenate(parts, 1)).view(np.uint8).reshape(-1)


NEAREST = 6 * 1024  # floats of tables that stay in the first-level cache
# In cycles: a table's vector multiply-add, an input, a look-up of one position and of four, the epilogue of an output of
# several, two steps.
FILL, TAKE, LOOK_1, LOOK_4, LAST, STEPS = 1.1, 4.0, 1.0, 1.3, 20.0, 8000.0


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
