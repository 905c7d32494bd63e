"""Calibration data in the forms that users have it, as checked batches."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from pqnet import _check
from pqnet.errors import PQNetError
from pqnet.graph import Graph
from pqnet.runtime.execute import check_inputs

__all__ = ["Batch", "check_samples", "hold_out", "iterate_batches", "known_samples", "named_inputs"]

Batch = dict[str, np.ndarray]
HELD_OUT = 8  # samples, of which one is put aside
BATCH_BYTES = 8 << 20  # of input a batch: small enough for caches and threads, large enough for BLAS


def iterate_batches(graph: Graph, data: Any) -> Iterator[Batch]:
    """Yield checked batches from an array, a dict of arrays, or an iterable of either.

    An array or dict holds all samples along axis 0 and is cut into batches; items of an iterable are taken as they are.
    """
    if isinstance(data, np.ndarray | Mapping):
        yield from _cut(graph, named_inputs(graph, data))
        return
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise _check.error("calibration", "an array, a dict of arrays or an iterable of batches", _check.describe(data))
    empty = True
    for item in data:
        empty = False
        batch = check_inputs(graph, named_inputs(graph, item))
        graph.bind_symbols({name: a.shape for name, a in batch.items()})
        yield batch
    if empty:
        raise _check.error("calibration", "at least one batch", "an empty iterable")


def known_samples(data: Any) -> int | None:
    """Return how many samples there are, of whatever form that is checked later; None if that is not known yet."""
    if isinstance(data, Mapping):
        return max((known_samples(item) or 0 for item in data.values()), default=0) or None
    if isinstance(data, list | tuple):
        counts = [known_samples(item) for item in data]
        return sum(n for n in counts if n is not None) if counts and None not in counts else None
    return len(data) if isinstance(data, np.ndarray) and data.ndim else None


def named_inputs(graph: Graph, item: Any, what: str = "calibration") -> Mapping[str, Any]:
    """Return arrays by input name; one alone is that of the only input."""
    if isinstance(item, Mapping):
        return item
    if len(graph.inputs) != 1:
        raise PQNetError(f"{what}: expected dicts with the keys {list(graph.inputs)}, got {_check.describe(item)}")
    return {next(iter(graph.inputs)): item}


def check_samples(graph: Graph, data: Mapping[str, Any], what: str = "calibration") -> tuple[Batch, int]:
    """Return checked inputs with samples along axis 0, and how many there are."""
    arrays = check_inputs(graph, data)
    lengths = {len(a) if a.ndim else 0 for a in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        shapes = {name: a.shape for name, a in arrays.items()}
        raise PQNetError(f"{what}: expected the same positive number of samples in every input, got {shapes}")
    return arrays, lengths.pop()


def _cut(graph: Graph, data: Mapping[str, Any]) -> Iterator[Batch]:
    arrays, n = check_samples(graph, data)
    fixed = {info.shape[0] for info in graph.inputs.values() if isinstance(info.shape[0], int)}
    size = max(1, min(64, BATCH_BYTES * n // max(1, sum(a.nbytes for a in arrays.values()))))
    if fixed:
        size = int(fixed.pop())
        if n % size:
            raise PQNetError(f"calibration: expected a multiple of the model's fixed batch {size}, got {n} samples")
    graph.bind_symbols({name: (min(size, n), *a.shape[1:]) for name, a in arrays.items()})
    for start in range(0, n, size):
        yield {name: a[start : start + size] for name, a in arrays.items()}


def hold_out(graph: Graph, batches: list[Batch]) -> tuple[list[Batch], int]:
    """Put aside every eighth sample, from the fifth on, to judge with what the others led to.

    Returns the batches of the others, those put aside behind them, and how many come first. Where the network takes
    batches of a fixed size only, samples are batches. Nothing is put aside of fewer than eight samples.
    """
    first = {info.shape[0] if info.shape else None for info in graph.inputs.values()}
    free = len(first) == 1 and isinstance(first.pop(), str)
    sizes = [len(next(iter(batch.values()))) if free else 1 for batch in batches]
    if sum(sizes) < HELD_OUT:
        return batches, len(batches)
    kept: list[Batch] = []
    aside: list[Batch] = []
    start = 0
    for batch, size in zip(batches, sizes, strict=True):
        held = np.arange(start, start + size) % HELD_OUT == HELD_OUT // 2
        for side, which in ((kept, ~held), (aside, held)):
            if which.all():
                side.append(batch)
            elif which.any():
                side.append({name: a[which] for name, a in batch.items()})
        start += size
    return kept + aside, len(kept)
