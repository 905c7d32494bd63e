"""Running many samples in batches, and the share of them that is classified right."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pqnet import _check
from pqnet._progress import progress_bar
from pqnet.errors import PQNetError
from pqnet.io import FileArray
from pqnet.pipeline.batches import from_files, named_inputs, open_samples
from pqnet.pipeline.cluster import Tasks, dask_blocks
from pqnet.runtime import Model

if TYPE_CHECKING:
    from pqnet.pipeline.cluster import Client

__all__ = [
    "accuracies",
    "class_scores",
    "count_samples",
    "cut_samples",
    "fixed_batch",
    "run_batches",
    "run_dask",
    "run_many",
]

PIECE = 8  # batches that one task runs


def count_samples(arrays: Mapping[str, np.ndarray]) -> int:
    """Return how many samples all arrays have along axis 0."""
    lengths = {a.shape[0] if a.ndim else 0 for a in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise PQNetError(f"inputs: expected equally many samples, at least one, got {sorted(lengths)}")
    return lengths.pop()


def fixed_batch(model: Model) -> int | None:
    """Return the number of samples that a model takes at a time, None if any."""
    return next((shape[0] for shape, _ in model.inputs.values() if shape and shape[0] is not None), None)


def run_batches(
    model: Model, arrays: Mapping[str, np.ndarray], size: int, threads: int | None = None, progress: bool = False
) -> dict[str, np.ndarray]:
    """Run a model on samples along axis 0, ``size`` at a time or as many as it takes, and join its outputs."""
    samples = count_samples(arrays)
    size = fixed_batch(model) or size
    parts = []
    with progress_bar(progress, "run", "sample", samples) as bar:
        for start in range(0, samples, size):
            part = model.run({n: a[start : start + size] for n, a in arrays.items()}, threads=threads)
            n = min(size, samples - start)
            for name, output in part.items():
                if samples > size and output.shape[:1] != (n,):
                    raise PQNetError(
                        f"output {name!r}: expected one entry along axis 0 for each of the {n} samples of a batch, got "
                        f"shape {output.shape}; run one batch: fewer samples, or all of them by --batch"
                    )
            parts.append(part)
            bar.update(n)
    return parts[0] if len(parts) == 1 else {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}


def cut_samples(model: Model, arrays: Mapping[str, Any], size: int) -> Iterator[Mapping[str, Any]]:
    """Cut samples into pieces of several batches of a size, for `run_many`; what lies in files is not read."""
    samples, rows = count_samples(arrays), PIECE * (fixed_batch(model) or size)
    for start in range(0, samples, rows):
        at = slice(start, start + rows)
        yield {name: a.part(at) if isinstance(a, FileArray) else a[at] for name, a in arrays.items()}


def run_many(
    model: Model, inputs: Iterable[Any], *, batch: int = 32, client: "Client | None" = None, threads: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Run a model on each of many inputs, here or on a cluster.

    Parameters
    ----------
    model : Model
    inputs : iterable of array, dict of arrays, or path
        Each of any number of samples along axis 0. Paths of .npy, .npz or HDF5 files are opened by who runs them.
    batch : int
        Samples at a time, if the model takes any number.
    client : distributed.Client, optional
        Run on the workers of a Dask cluster: one task for each of the inputs.
    threads : int, optional
        Default: all cores, on a cluster those of a worker.

    Yields
    ------
    dict of str to ndarray
        The outputs of each of the inputs, in order.

    Examples
    --------
    >>> import pqnet
    >>> from pqnet.demo import load_images, model_path
    >>> from pqnet.pipeline import run_many
    >>> images = load_images()[1]
    >>> [out["logits"].shape for out in run_many(pqnet.load(model_path()), [images[:5], images[5:8]])]
    [(5, 10), (3, 10)]
    """
    size, tasks = _check.integer(batch, "batch", 1), Tasks(client)
    run = partial(_run_one, size, threads)
    yield from tasks.map(run, (_named(model, item) for item in inputs), tasks.share(model))


def _named(model: Model, item: Any) -> Mapping[str, Any]:
    if isinstance(item, str | Path):
        item = open_samples(item, list(model.inputs))
        if not isinstance(item, Mapping):
            raise PQNetError("inputs: expected files, got a folder; give the paths of its files")
    named = named_inputs(model.graph, item, "inputs")
    return {name: a.part(slice(None)) if isinstance(a, FileArray) else a for name, a in named.items()}


def _run_one(size: int, threads: int | None, inputs: Mapping[str, Any], model: Model) -> dict[str, np.ndarray]:
    [read] = from_files([inputs])
    return run_batches(model, {name: np.asarray(a) for name, a in read.items()}, size, threads)


def run_dask(
    model: Model, inputs: Any, *, batch: int = 32, client: "Client | None" = None, threads: int | None = None
) -> dict[str, Any]:
    """Return the outputs of a model for a Dask array, as Dask arrays: nothing is computed before these are.

    Parameters
    ----------
    model : Model
    inputs : dask.array.Array, or dict of such by input name
        Samples along axis 0. Its blocks along this axis are those of the outputs.
    batch, client, threads
        As for `run_many`; the model is sent to the workers of the client once.

    Returns
    -------
    dict of str to dask.array.Array
    """
    arrays = named_inputs(model.graph, inputs, "inputs")
    if unknown := [name for name in model.inputs if not hasattr(arrays.get(name), "chunks")]:
        got = _check.describe(arrays.get(unknown[0]))
        raise PQNetError(f"input {unknown[0]!r}: expected a Dask array, got {got}; `run_many` takes others")
    arrays = {name: arrays[name] for name in model.inputs}

    def outputs(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[tuple[int, ...], str]]:
        infos = model.graph.infer_shapes(model.graph.bind_symbols(dict(shapes)))
        return {
            name: (tuple(map(int, infos[value].shape)), infos[value].dtype)
            for name, value in model.graph.outputs.items()
        }

    run = partial(_run_one, _check.integer(batch, "batch", 1), threads)
    return dask_blocks(run, arrays, outputs, model, client)


def class_scores(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the outputs that are of classes, of which labels count; at least one."""
    found = {n: y for n, y in outputs.items() if y.dtype.kind == "f" and y.ndim == 2 and y.shape[1] > 1}
    if not found:
        got = ", ".join(f"{n} {y.dtype} {y.shape}" for n, y in outputs.items())
        raise PQNetError(f"labels: expected an output of shape (samples, classes), got {got}")
    return found


def accuracies(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the shares of samples whose label is the class of the largest number, and among the five largest."""
    classes = logits.shape[1]
    if outside := np.flatnonzero((labels < 0) | (labels >= classes)).tolist():
        got = f"{labels[outside[0]]} for sample {outside[0]}"
        raise PQNetError(f"labels: expected class numbers below {classes}, as many as the output has, got {got}")
    theirs = np.take_along_axis(logits, labels[:, None], 1)
    rank = (~(logits < theirs)).sum(1) - 1  # of equal numbers the label's comes last, and NaN is never right
    return {f"top-{n}": float(np.mean(rank < n)) for n in (1, 5) if n < classes}
