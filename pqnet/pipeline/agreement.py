"""How far the outputs of a network agree with those of another, sample by sample, and how sure that is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pqnet import _check
from pqnet._progress import ticking
from pqnet.errors import ConfigError, PQNetError
from pqnet.pipeline.batches import Batch
from pqnet.pipeline.padding import masked, real_positions
from pqnet.runtime import Model

__all__ = ["METRICS", "Agreement", "lower_bound", "samples_needed"]

METRICS = ("top1", "cosine", "error")
SURE = 1.2816  # standard deviations below which one in ten falls
UNIT = 1e-3  # by which the lengths of embeddings differ from 1

Outputs = Mapping[str, np.ndarray]


class Runs(Protocol):
    """What computes outputs by name from inputs by name: a `Model`, or one that an engine runs in its own way."""

    def run(self, inputs: Mapping[str, np.ndarray], *, threads: int | None = None) -> dict[str, np.ndarray]:
        """Compute the outputs."""
        ...


@dataclass(frozen=True)
class Agreement:
    """Compares outputs of a network with the float network's.

    Attributes
    ----------
    metrics : dict of str to str
        By output. ``top1``: the share of positions where the largest number is the same one; its classes are axis 1 of
        (samples, classes) and of maps, else the last axis. ``cosine``: between the outputs of a sample. ``error``: 1
        less the squared error, as a share of the squared deviation of the float outputs from their mean. ``same``:
        whether integers and booleans are equal.
    spread : dict of str to float
        Mean squared deviation of the float outputs of a sample from the mean over samples.
    """

    metrics: dict[str, str]
    spread: dict[str, float]

    @classmethod
    def of(cls, model: Model, batches: Sequence[Batch], metric: str | None, threads: int | None) -> "Agreement":
        """Choose how to compare, by what the float outputs are if there is no ``metric``.

        Class scores, (samples, classes), by ``top1``; outputs of one number by ``error``; all others, and embeddings of
        length 1, by ``cosine``.
        """
        _check.choice(metric, "metric", (None, *METRICS))
        sums: dict[str, list[np.ndarray | float]] = {}
        metrics: dict[str, str] = {}
        samples = 0
        for batch in ticking("float outputs, batch", batches, len(batches)):
            n = len(next(iter(batch.values())))
            samples += n
            for name, y in model.run(batch, threads=threads).items():
                if y.shape[:1] != (n,):
                    raise PQNetError(
                        f"output {name!r}: expected one entry for each of {n} samples, got shape {y.shape}"
                    )
                metrics.setdefault(name, _metric_for(y) if metric is None or y.dtype.kind != "f" else metric)
                wide = y.astype(np.float64)
                if not np.isfinite(wide).all():
                    raise PQNetError(
                        f"output {name!r}: expected finite numbers of the float network, got NaN or infinity"
                    )
                total, square = sums.get(name, [0.0, 0.0])
                sums[name] = [total + wide.sum(0), square + float(np.square(wide).sum())]
        if metric == "top1" and not any(kind == "top1" for kind in metrics.values()):
            raise ConfigError("metric: expected another than 'top1' for a network without float outputs, got 'top1'")
        spread = {
            name: max(float(square - np.square(total).sum() / samples) / samples, 1e-30)
            for name, (total, square) in sums.items()
        }
        return cls(metrics, spread)

    @property
    def parts(self) -> str:
        """Say what is compared."""
        kinds = sorted(set(self.metrics.values()))
        return kinds[0] if len(kinds) == 1 else ", ".join(f"{n}: {kind}" for n, kind in self.metrics.items())

    def scores(self, model: Runs, teacher: Runs, batches: Sequence[Batch], threads: int | None) -> np.ndarray:
        """Return what is kept of each sample's outputs, 1 at best, of the output that is kept least: float64, (n,)."""
        found = []
        for batch in ticking("outputs, batch", batches, len(batches)):
            ours, theirs = (m.run(batch, threads=threads) for m in (model, teacher))
            real = real_positions(batch)
            each = [self._of_output(name, ours[name], theirs[name], real) for name in self.metrics]
            found.append(np.min(each, axis=0))
        return np.concatenate(found)

    def _of_output(self, name: str, ours: np.ndarray, theirs: np.ndarray, real: np.ndarray | None) -> np.ndarray:
        kind, mask = self.metrics[name], masked(theirs, real)
        if kind in ("top1", "same"):
            axis = 1 if theirs.ndim in (2, 4) else -1
            equal = ours == theirs if kind == "same" else ours.argmax(axis) == theirs.argmax(axis)
            if mask is None or equal.shape[: mask.ndim] != mask.shape:
                share: np.ndarray = equal.reshape(len(equal), -1).mean(1)
                return share
            weights = mask.astype(np.float64)
            each: np.ndarray = (equal * weights).sum(1) / np.maximum(weights.sum(1), 1)
            return each
        a, b = (x.astype(np.float64) for x in (ours, theirs))
        if mask is not None:
            keep = mask.reshape(*mask.shape, *[1] * (a.ndim - mask.ndim))
            a, b = a * keep, b * keep
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        if kind == "error":
            kept: np.ndarray = np.nan_to_num(1 - np.square(a - b).sum(1) / self.spread[name], nan=-math.inf)
            return kept
        length = np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))
        cosine = np.where(length > 0, (a * b).sum(1) / np.maximum(length, 1e-300), (a == b).all(1))
        alike: np.ndarray = np.nan_to_num(cosine, nan=-1.0)
        return alike


def _metric_for(y: np.ndarray) -> str:
    if y.dtype.kind != "f":
        return "same"
    if y.ndim < 2 or y[0].size == 1:
        return "error"
    if y.ndim > 2 or np.abs(np.square(y, dtype=np.float64).sum(1) - 1).max() < UNIT:
        return "cosine"
    return "top1"


def lower_bound(scores: np.ndarray) -> float:
    """Return what the mean score of other samples exceeds in nine cases of ten: Wilson's bound if all are 0 or 1."""
    n, mean = len(scores), float(scores.mean())
    if not np.isin(scores, (0.0, 1.0)).all():
        return mean - SURE * float(scores.std(ddof=1)) / math.sqrt(n) if n > 1 else -math.inf
    z = SURE**2 / n
    return (mean + z / 2 - SURE * math.sqrt((mean * (1 - mean) + z / 4) / n)) / (1 + z)


def samples_needed(bound: float) -> int:
    """Return how many samples, all right, it takes for a `lower_bound`."""
    return math.ceil(SURE**2 * bound / (1 - bound)) if bound > 0 else 1
