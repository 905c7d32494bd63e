"""How `kernels.products.lut` computes a layer: the tables it needs, how its work is cut, the order of its codes."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import ceil, inf
from typing import NamedTuple

import numpy as np

from pqnet.kernels.products.lut import CHUNK, DEEP, SHORT, WORDS_AT_ONCE
from pqnet.kernels.products.tile import LANES
from pqnet.kernels.simd import WIDTH
from pqnet.runtime.algorithms.base import HOST
from pqnet.runtime.memory import round_up

__all__ = ["LutPlan", "Sizes", "Tiles", "choose_tiles", "lut_codes", "plan_lut", "table_rows"]

IN_PASS = (1, 2, 3, 4, 8)  # blocks whose tables exist at once
VECTORS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)  # of positions a tile
PARTS = (1, 2, 3, 4)  # of the outputs, each with its own tables
TASKS = 64  # at most
TABLES = 150 * 1024  # floats of tables that stay in the second-level cache
CACHE = 200 * 1024  # of tables and sums
# Fitted times, in cycles. Of a vector of a table: a codeword, each of its d numbers, an input. Of sums: a code, each
# vector of its row, what that costs more from tables outside the cache, a group of shifted codes, a pass over an
# output's vectors, over each of them in the second-level cache or the third. Of a task.
WORD, NUMBER, INPUT = 2.1, 1.3 if HOST.halves else 0.475, 11.0
CODE, ROW, LARGE, SHIFT, PASS, NEAR, FAR, TASK = 2.2, 1.4, 1.2, 5.0, 4.7, 3.1, 6.5, 2500.0


class Sizes(NamedTuple):
    """Sizes of a layer that decide how it is cut.

    Attributes
    ----------
    taps : tuple of int
        Offsets of the taps from the first; a single 0 if the blocks are those of the whole reduction.
    blocks : int
        Blocks of inputs that have tables: those of channels in ``channel`` layout, all otherwise.
    k, d : int
        Codewords and their size.
    outputs : int
        Of a group.
    images : int
        Groups times images.
    height, width, pitch : int
        Rows of an image, positions a row, distance of rows.
    """

    taps: tuple[int, ...]
    blocks: int
    k: int
    d: int
    outputs: int
    images: int
    height: int
    width: int
    pitch: int

    @property
    def ascending(self) -> list[int]:
        """Numbers of the taps in the order of their offsets."""
        return sorted(range(len(self.taps)), key=lambda tap: self.taps[tap])

    @property
    def places(self) -> list[tuple[int, int]]:
        """Row and column of the taps in the order of their offsets."""
        return [divmod(tap, self.pitch) for tap in sorted(self.taps)]

    @property
    def lane_pitches(self) -> list[int]:
        """Distances of rows of lanes that are worth a try: none between the rows, and whole vectors."""
        reach = min(self.width + max(column for _, column in self.places), self.pitch)
        return sorted({reach, round_up(reach, WIDTH)}) if self.height > 1 else [reach]

    def vectors(self, lane_pitch: int) -> int:
        """Return the vectors of an image's positions."""
        return ceil(((self.height - 1) * lane_pitch + self.width) / WIDTH)


class Tiles(NamedTuple):
    """How the work is cut: lanes of a row of pixels, vectors a tile, blocks a pass, outputs a task."""

    lane_pitch: int
    vectors: int
    in_pass: int
    o_block: int


class Run(NamedTuple):
    """Taps, from the first to the one behind the last, that share a table, and the lanes of this table."""

    first: int
    end: int
    lanes: int


@dataclass(frozen=True)
class LutPlan:
    """How `kernels.products.lut` computes a layer.

    Attributes
    ----------
    arguments : dict of str to int
        Those arguments of the kernel that sizes decide.
    tables, shifts, steps : int64 arrays, shapes (., 3), (., 3), (., 2)
        What the kernel's arguments of these names point to.
    order : tuple of tuple of int
        The taps, those with the same shift of the vectors together: the order in which a pass visits their codes.
    tasks, scratch : int
        Tasks, and floats of scratch.
    """

    arguments: dict[str, int]
    tables: np.ndarray
    shifts: np.ndarray
    steps: np.ndarray
    order: tuple[tuple[int, ...], ...]
    tasks: int
    scratch: int


def table_rows(k: int) -> int:
    """Return the rows of a table of k codewords, which are the codewords that the codebook needs, too."""
    return round_up(k, WORDS_AT_ONCE)


class Sharing:
    """Cuts taps into runs that share a table, so that all tables have the fewest lanes."""

    def __init__(self, sizes: Sizes, lane_pitch: int) -> None:
        self.places, self.lane_pitch = sizes.places, lane_pitch
        tops = [row for row, _ in self.places]
        # Taps of the same row always share: cutting between them never saves lanes.
        self.cuts = [0, *(i for i in range(1, len(tops)) if tops[i] != tops[i - 1]), len(tops)]
        widest = [max(x for _, x in self.places[s:e]) for s, e in pairwise(self.cuts)]
        rows = len(widest)
        self.reach = {
            (s, e): round_up((tops[self.cuts[e - 1]] - tops[self.cuts[s]]) * lane_pitch + max(widest[s:e]), WIDTH)
            for s in range(rows)
            for e in range(s + 1, rows + 1)
        }

    def runs(self, lanes: int) -> tuple[Run, ...]:
        """Return the best runs for tiles of so many lanes."""
        rows = len(self.cuts) - 1
        best: list[tuple[int, int]] = [(0, 0)]
        for end in range(1, rows + 1):
            best.append(min((best[s][0] + lanes + self.reach[s, end], s) for s in range(end)))
        runs, end = [], rows
        while end:
            start = best[end][1]
            runs.append(Run(self.cuts[start], self.cuts[end], lanes + self.reach[start, end]))
            end = start
        return tuple(reversed(runs))

    def shifts(self, runs: tuple[Run, ...]) -> list[int]:
        """Return how many lanes each tap is to the right of the place in the table that is read."""
        return [
            ((row - self.places[run.first][0]) * self.lane_pitch + column) % WIDTH
            for run in runs
            for row, column in self.places[run.first : run.end]
        ]


class Costs:
    """What tasks cost that have tiles of ``vectors`` vectors."""

    def __init__(self, sizes: Sizes, total: int, vectors: int, runs: tuple[Run, ...], shifts: list[int]) -> None:
        lanes = sum(run.lanes for run in runs)
        shifted, groups = sum(shift > 0 for shift in shifts), len({*shifts} - {0})
        self.tiles = sizes.images * ceil(total / vectors)
        vectors_of_tables = sizes.images * len(runs) * total + self.tiles * (lanes / WIDTH - len(runs) * vectors)
        self.tables = vectors_of_tables * sizes.blocks * (sizes.k * (WORD + NUMBER * sizes.d) + INPUT * sizes.d)
        self.rows = sizes.blocks * sizes.outputs * (sizes.images * total * len(shifts) + self.tiles * shifted)
        chunks = sizes.outputs * self.tiles * ceil(vectors / DEEP)
        self.codes = chunks * sizes.blocks * len(shifts) * CODE
        self.sums = sizes.images * sizes.outputs * total
        self.passes = chunks * (PASS + SHIFT * groups)
        self.blocks, self.floats, self.lanes = sizes.blocks, table_rows(sizes.k) * lanes, vectors * WIDTH

    def best(self, in_passes: list[int], o_block: int, parts: int) -> tuple[float, int]:
        """Return the least cost of all tasks, and the blocks a pass; ``in_passes`` ascend.

        More blocks a pass mean fewer passes, as long as the tables and the sums are in the second-level cache.
        """
        fitting = [n for n in in_passes if n == 1 or n * self.floats <= TABLES]
        near = [n for n in fitting if not self.far(n, o_block)]
        return min((self.cost(n, o_block, parts), n) for n in {fitting[-1], *near[-1:]})

    def far(self, in_pass: int, o_block: int) -> bool:
        """Tell whether tables and sums leave the second-level cache."""
        return in_pass * self.floats + o_block * self.lanes > CACHE

    def cost(self, in_pass: int, o_block: int, parts: int) -> float:
        """Return about how many cycles all tasks take."""
        row = ROW + LARGE * (in_pass * self.floats > TABLES)
        each_pass = self.sums * (FAR if self.far(in_pass, o_block) else NEAR) + self.passes
        tables = parts * (self.tables + self.tiles * TASK)
        return tables + self.rows * row + self.codes + ceil(self.blocks / in_pass) * each_pass


@lru_cache(maxsize=4096)
def choose_tiles(sizes: Sizes) -> tuple[Tiles, float]:
    """Choose how a layer is cut; return that and about how many cycles of one core it takes."""
    fewest = {ceil(sizes.blocks / n): n for n in sorted(IN_PASS, reverse=True) if n <= sizes.blocks}
    in_passes = sorted(fewest.values())
    o_blocks = [(p, ceil(sizes.outputs / p)) for p in PARTS if p == 1 or sizes.outputs >= 128 * p]
    least, chosen, total_cost = inf, Tiles(0, 0, 0, 0), inf
    for lane_pitch in sizes.lane_pitches:
        total, sharing = sizes.vectors(lane_pitch), Sharing(sizes, lane_pitch)
        shifts: dict[tuple[int, ...], list[int]] = {}
        # Tiles of equal size, as many as those of this one.
        for vectors in sorted({ceil(total / ceil(total / v)) for v in VECTORS}):
            runs = sharing.runs(vectors * WIDTH)
            starts = tuple(run.first for run in runs)
            if starts not in shifts:
                shifts[starts] = sharing.shifts(runs)
            costs = Costs(sizes, total, vectors, runs, shifts[starts])
            for parts, o_block in o_blocks:
                cost, in_pass = costs.best(in_passes, o_block, parts)
                tasks = costs.tiles * parts
                time = (ceil(tasks / 2) * 2 + ceil(tasks / 4) / 4) * cost / tasks  # of two threads, a bit of four
                if time < least:
                    least, chosen, total_cost = time, Tiles(lane_pitch, vectors, in_pass, o_block), cost
    return chosen, total_cost


def plan_lut(sizes: Sizes, tiles: Tiles) -> LutPlan:
    """Return the plan of a layer that is cut in this way."""
    words, order, places = table_rows(sizes.k), sizes.ascending, sizes.places
    tables, steps, floats = [], {}, 0
    for run in Sharing(sizes, tiles.lane_pitch).runs(tiles.vectors * WIDTH):
        top = places[run.first][0]
        tables.append((top, run.lanes, floats))
        for i in range(run.first, run.end):
            row, column = places[i]
            steps[order[i]] = (run.lanes, floats, (row - top) * tiles.lane_pitch + column)
        floats += words * run.lanes
    by_shift: dict[int, list[int]] = {0: []}
    for tap in order:
        by_shift.setdefault(steps[tap][2] % WIDTH, []).append(tap)
    groups: list[tuple[int, int, int]] = []
    all_steps: list[tuple[int, int]] = []
    for shift, same in sorted(by_shift.items()):
        if shift:
            groups.append((shift, len(same), len(all_steps)))
        for i in range(tiles.in_pass):
            all_steps += [(steps[t][0], i * floats + steps[t][1] + steps[t][2] - shift) for t in same]
    image_tiles = ceil(sizes.vectors(tiles.lane_pitch) / tiles.vectors)
    o_tasks = ceil(sizes.outputs / tiles.o_block)
    task_tiles = ceil(sizes.images * image_tiles * o_tasks / TASKS)
    first_table = round_up(max(sizes.d * LANES, SHORT * CHUNK) + WIDTH, 16)
    return LutPlan(
        {
            "code_bytes": 1 if sizes.k <= 256 else 2,
            "d": sizes.d,
            "words": words,
            "blocks": sizes.blocks,
            "in_pass": tiles.in_pass,
            "taps": len(sizes.taps),
            "n_tables": len(tables),
            "n_shifts": len(groups),
            "block_floats": floats,
            "lane_pitch": tiles.lane_pitch,
            "vectors": tiles.vectors,
            "image_tiles": image_tiles,
            "task_tiles": task_tiles,
            "o_block": tiles.o_block,
            "o_tasks": o_tasks,
            "first_table": first_table,
        },
        np.array(tables, np.int64).reshape(-1, 3),
        np.array(groups, np.int64).reshape(-1, 3),
        np.array(all_steps, np.int64).reshape(-1, 2),
        tuple(tuple(by_shift[shift]) for shift in sorted(by_shift)),
        ceil(sizes.images * image_tiles / task_tiles) * o_tasks,
        first_table + tiles.in_pass * floats + tiles.o_block * tiles.vectors * WIDTH + LANES,
    )


def lut_codes(codes: np.ndarray, groups: int, plan: LutPlan) -> np.ndarray:
    """Return codes (O, M) as bytes in the order of `kernels.products.lut`.

    That is group, pass, output, shift, block of the pass, tap.
    """
    blocks, in_pass = plan.arguments["blocks"], plan.arguments["in_pass"]
    cube = codes.reshape(groups, -1, plan.arguments["taps"], blocks)  # ``channel`` blocks are in (ky, kx, c) order
    parts = []
    for first in range(0, blocks, in_pass):
        some = cube[..., first : first + in_pass]
        same = [some[:, :, list(taps)].transpose(0, 1, 3, 2).reshape(*some.shape[:2], -1) for taps in plan.order]
        parts.append(np.concatenate(same, 2).reshape(groups, -1))
    return np.ascontiguousarray(np.concatenate(parts, 1)).view(np.uint8).reshape(-1)
