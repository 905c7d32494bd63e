"""Plan-time half of the table ways: which tables a layer needs, how its work is cut, and its codes in the right order."""

from dataclasses import dataclass
from math import ceil

import numpy as np

from pqnet.codecs import PackedPQ
from pqnet.kernels.lut import DEEP
from pqnet.kernels.simd import WIDTH
from pqnet.kernels.tile import LANES, ROWS

__all__ = ["LutPlan", "lut_codes", "plan_lut"]

CACHE = 200 * 1024  # floats: what tables and sums may take of the second-level cache
CODES = 8  # codes of an output that a pass adds up at least


def _up(size: int, to: int) -> int:
    return -(-size // to) * to


@dataclass
class LutPlan:
    """How `kernels.lut` computes a layer.

    Attributes
    ----------
    blocks : int
        Blocks of inputs that have tables: those of channels in ``channel`` layout, all otherwise.
    taps : int
        Codes of an output for each of them.
    in_pass : int
        Blocks a pass; fixes the order of the codes, depends on the layer but not on the positions.
    order : array (taps,)
        The taps in the order in which a pass visits them.
    rows, tables, steps : arrays
        For the index buffer: offsets of the blocks' inputs, (offset, lanes, place) of each table of a block, and
        (row step, place) of each code of a pass.
    own : list
        Fields 38-45.
    tasks, scratch : int
        Tasks and floats of scratch.
    cost : float
        Estimated vector multiply-adds that take as long.
    """

    blocks: int
    taps: int
    in_pass: int
    order: np.ndarray
    rows: np.ndarray
    tables: np.ndarray
    steps: np.ndarray
    own: list[int]
    tasks: int
    scratch: int
    cost: float


def blocks_a_pass(k: int, taps: int, blocks: int) -> int:
    """Return how many blocks' tables exist at once."""
    return max(min(ceil(CODES / taps), blocks, CACHE // (2 * _up(k, ROWS) * WIDTH)), 1)


def _share(offsets: np.ndarray, lanes: int) -> list[tuple[int, int]]:
    """Cut ascending tap offsets into runs that share a table, so that all tables together have the fewest lanes."""
    n = offsets.size
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, n + 1):
        options = [(best[s][0] + lanes + _up(int(offsets[end - 1] - offsets[s]), WIDTH), s) for s in range(end)]
        best.append(min(options, key=lambda o: (o[0], -o[1])))
    runs, end = [], n
    while end:
        runs.append((best[end][1], end))
        end = best[end][1]
    return runs[::-1]


def plan_lut(
    inputs: np.ndarray, taps: np.ndarray, k: int, d: int, outputs: int, groups: int, batch: int, flat: int
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
    outputs, groups, batch, flat : int
        As in the shared fields.
    """
    blocks, n_taps = inputs.size // d, taps.size
    order = np.argsort(taps, kind="stable")
    in_pass = blocks_a_pass(k, n_taps, blocks)
    total = ceil(flat / WIDTH)
    best: tuple[float, int, int, list[int]] | None = None
    for vectors in range(1, min(total, 4 * DEEP) + 1):
        tiles = ceil(total / vectors)
        runs = _share(taps[order], vectors * WIDTH)
        widths = [vectors * WIDTH + _up(int(taps[order[e - 1]] - taps[order[s]]), WIDTH) for s, e in runs]
        table = sum(widths) * _up(k, ROWS) * in_pass
        for parts in (1, 2, 3, 4, 6, 8):
            o_block = ceil(outputs / parts)
            if (parts > 1 and o_block < 128) or (best and table + o_block * vectors * WIDTH > CACHE):
                continue
            tasks = groups * batch * tiles * parts
            build = blocks * d * k * sum(widths) / WIDTH
            add = o_block * blocks * n_taps * (vectors * ADD + CODE) + o_block * vectors * PASS * ceil(blocks / in_pass)
            time = sum(ceil(tasks / threads) * threads * (build + add + TASK) for threads in (2, 4))
            if best is None or time < best[0]:
                best = (time, vectors, o_block, widths)
    assert best is not None
    _, vectors, o_block, widths = best
    return _finish_plan(inputs, taps, order, k, d, outputs, groups * batch, total, in_pass, vectors, o_block)


# Costs in vector multiply-adds at the peak: an addition from the second-level cache, a code, a sum loaded and stored.
ADD, CODE, PASS, TASK = 2.6, 3.0, 4.0, 5000.0


def _finish_plan(
    inputs: np.ndarray,
    taps: np.ndarray,
    order: np.ndarray,
    k: int,
    d: int,
    outputs: int,
    images: int,
    total: int,
    in_pass: int,
    vectors: int,
    o_block: int,
) -> LutPlan:
    words, lanes = _up(k, ROWS), vectors * WIDTH
    ascending = taps[order]
    runs = _share(ascending, lanes)
    tables, steps, place = [], [], 0
    for s, e in runs:
        width = lanes + _up(int(ascending[e - 1] - ascending[s]), WIDTH)
        tables.append((int(ascending[s]), width, place))
        steps += [(width, place + int(ascending[i] - ascending[s])) for i in range(s, e)]
        place += words * width
    all_steps = [(width, i * place + at) for i in range(in_pass) for width, at in steps]
    tiles = ceil(total / vectors)
    o_tasks = ceil(outputs / o_block)
    task_tiles = ceil(images * tiles * o_tasks / 64)
    tasks = ceil(images * tiles / task_tiles) * o_tasks
    packed = _up(d * LANES, 16)
    sums = packed + in_pass * place
    widths = sum(width for _, width, _ in tables)
    blocks = inputs.size // d
    cost = images * (
        tiles * o_tasks * blocks * d * k * widths / WIDTH
        + outputs * blocks * taps.size * (total * ADD + tiles * CODE)
        + outputs * total * PASS * ceil(blocks / in_pass)
    )
    return LutPlan(
        blocks,
        taps.size,
        in_pass,
        order,
        inputs.astype(np.int32),
        np.array(tables, np.int32),
        np.array(all_steps, np.int32),
        [place, vectors, tiles, task_tiles, o_block, o_tasks, packed, sums],
        tasks,
        sums + o_block * lanes + LANES,
        float(cost),
    )


def lut_codes(packed: PackedPQ, groups: int, plan: LutPlan) -> np.ndarray:
    """Return the codes as bytes in the order of `kernels.lut`: group, pass, output, block of the pass, tap."""
    codes = packed.codes.reshape(groups, -1, plan.taps, plan.blocks)  # (ky, kx, c): taps outermost
    codes = codes[:, :, plan.order]
    parts = [
        codes[..., first : first + plan.in_pass].transpose(0, 1, 3, 2).reshape(groups, -1)
        for first in range(0, plan.blocks, plan.in_pass)
    ]
    return np.ascontiguousarray(np.concatenate(parts, 1)).view(np.uint8).reshape(-1)
