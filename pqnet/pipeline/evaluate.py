"""Running many samples in batches, and the share of them that is classified right."""

from collections.abc import Mapping

import numpy as np

from pqnet._progress import progress_bar
from pqnet.errors import PQNetError
from pqnet.runtime import Model

__all__ = ["accuracies", "class_scores", "count_samples", "fixed_batch", "run_batches"]


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
