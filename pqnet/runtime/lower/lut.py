"""Plan-time half of `kernels.lut`: which tables a layer needs, how its work is cut, and its codes in the right order."""

from dataclasses import dataclass
from math import ceil

import numpy as np

from pqnet.kernels.lut import CHUNK, DEEP
from pqnet.kernels.simd import WIDTH
from pqnet.kernels.tile import LANES, ROWS

__all__ = ["LutPlan", "lut_codes", "plan_lut"]

CACHE = 200 * 1024  # floats that tables and sums may take of the second-level cache
CODES = 8  # codes of an output that a pass adds up at least
# In vector multiply-adds at the peak: a codeword's vector of a table, one more of its d numbers, the addition of a
# row, a code, a shifted sum, a sum loaded and stored; of a task.
BUILD, DEPTH, ADD, CODE, SHIFT, PASS, TASK = 5.0, 1.0, 3.4, 3.0, 1.0, 4.0, 5000.0


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
        Estimated time of one thread, in vector multiply-adds at its peak.
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


def blocks_a_pass(k: int, taps: int, blocks: int) -> int:
    """Return how many blocks' tables exist at once."""
    return max(min(ceil(CODES / taps), blocks, CACHE // (2 * _up(k, ROWS) * WIDTH)), 1)


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
    blocks = inputs.size // d
    at_once = blocks_a_pass(k, taps.size, blocks) if in_pass is None else in_pass
    reach = min(width + max(int(t) % pitch for t in taps), pitch)
    pitches = {reach, _up(reach, 8), _up(reach, WIDTH)} if lane_pitch is None else {lane_pitch}
    best: LutPlan | None = None
    best_time = 0.0
    for lane in sorted(pitches if height > 1 else {reach}):
        total = ceil(((height - 1) * lane + width) / WIDTH)
        for v in range(1, min(total, 4 * DEEP) + 1) if vectors is None else [min(vectors, total)]:
            for part in (1, 2, 3, 4, 6, 8) if parts is None else [parts]:
                o_block = ceil(outputs / part)
                if part > 1 and o_block < 128 and parts is None:
                    continue
                plan = _cut(inputs, taps, k, d, outputs, images, total, lane, pitch, at_once, v, o_block)
                if best and plan.scratch > CACHE and plan.scratch >= best.scratch:
                    continue
                time = sum(ceil(plan.tasks / n) * n * plan.cost / plan.tasks for n in (2, 4))
                if best is None or time < best_time or best.scratch > max(CACHE, plan.scratch):
                    best, best_time = plan, time
    assert best is not None
    return best


def _cut(
    inputs: np.ndarray,
    taps: np.ndarray,
    k: int,
    d: int,
    outputs: int,
    images: int,
    total: int,
    lane_pitch: int,
    pitch: int,
    in_pass: int,
    vectors: int,
    o_block: int,
) -> LutPlan:
    """Return the plan for given tiles."""
    words, lanes, blocks = _up(k, ROWS), vectors * WIDTH, inputs.size // d
    order = [int(t) for t in np.argsort(taps, kind="stable")]
    places = [divmod(int(taps[t]), pitch) for t in order]
    tables, steps, floats = [], {}, 0
    for s, e, step in _share(places, lane_pitch, lanes):
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
    tiles, o_tasks = ceil(total / vectors), ceil(outputs / o_block)
    task_tiles = ceil(images * tiles * o_tasks / 64)
    tasks = ceil(images * tiles / task_tiles) * o_tasks
    place = _up(max(d * LANES, 8 * CHUNK) + WIDTH, 16)
    passes = ceil(blocks / in_pass)
    rows = sum(step for _, step, _ in tables) / WIDTH - len(tables) * vectors  # vectors beside those of the tile
    built = images * o_tasks * (len(tables) * total + tiles * rows)
    added = images * outputs * (total * taps.size + tiles * sum(n for _, n, _ in groups))
    chunks = ceil(vectors / DEEP)
    cost = (
        built * blocks * k * (BUILD + DEPTH * d)
        + blocks * (added * ADD + images * outputs * tiles * chunks * taps.size * CODE)
        + passes * images * outputs * total * (PASS + SHIFT * len(groups))
        + tasks * TASK
    )
    return LutPlan(
        blocks,
        in_pass,
        [by_shift[shift] for shift in sorted(by_shift)],
        inputs.astype(np.int32),
        np.array(tables, np.int32),
        np.array(groups, np.int32).reshape(-1),
        np.array(all_steps, np.int32),
        [floats, lane_pitch, vectors, tiles, task_tiles, o_block, o_tasks, place],
        tasks,
        place + in_pass * floats + o_block * lanes + LANES,
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
