"""Which choice for each layer: least summed error at a total number of bytes."""

from collections.abc import Iterator, Sequence

import numpy as np

__all__ = ["allocations"]


def allocations(
    sizes: Sequence[np.ndarray], errors: Sequence[np.ndarray], low: int, high: int, cells: int
) -> Iterator[list[int]]:
    """Yield choices of one option for each item, of least summed error first.

    A dynamic program over the total: sizes are counted in cells, rounded up, so that totals are never above ``high``
    and with ``high < cells`` the first choice is the best one there is. Exact, where a search along the convex hulls of
    the items leaves bytes over.

    Parameters
    ----------
    sizes, errors : sequences of arrays
        Of each item's options; sizes are integers.
    low, high : int
        Bounds of the total size, in whole cells.
    cells : int
        Into how many ``high`` is divided, at most.

    Yields
    ------
    list of int
        The index of each item's option, for one number of cells after the other.
    """
    unit = max(1, -(-high // cells))
    total = high // unit
    best = np.full(total + 1, np.inf)
    best[0] = 0.0
    picked = []
    for size, error in zip(sizes, errors, strict=True):
        after, pick = np.full(total + 1, np.inf), np.full(total + 1, -1, np.int32)
        for option, (cost, more) in enumerate(zip(-(-size // unit), error, strict=True)):
            if cost <= total:
                reached = best[: total + 1 - cost] + more
                better = reached < after[cost:]
                after[cost:][better] = reached[better]
                pick[cost:][better] = option
        picked.append(pick)
        best = after
    for at in low // unit + np.argsort(best[low // unit :], kind="stable"):
        if not np.isfinite(best[at]):
            return
        yield _choice(picked, sizes, int(at), unit)


def _choice(picked: Sequence[np.ndarray], sizes: Sequence[np.ndarray], at: int, unit: int) -> list[int]:
    choice = []
    for pick, size in zip(reversed(picked), reversed(sizes), strict=True):
        choice.append(int(pick[at]))
        at -= -(-int(size[choice[-1]]) // unit)
    return choice[::-1]
