"""Training data by step, so that a run that goes on after a stop sees what it would have seen."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pqnet.errors import ConfigError, PQNetError
from pqnet.graph import Graph
from pqnet.pipeline.batches import check_samples, named_inputs

__all__ = ["Batch", "Batches", "image_batches", "take_batch"]


class Batch(NamedTuple):
    """Checked inputs by name, samples along axis 0, and labels if there are any."""

    inputs: dict[str, np.ndarray]
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def part(self, which: Any) -> "Batch":
        """Return some of the samples."""
        return Batch({n: a[which] for n, a in self.inputs.items()}, None if self.labels is None else self.labels[which])

    def tensors(self, device: torch.device) -> tuple[list[Tensor], Tensor | None]:
        """Return inputs, in order, and labels on a device."""
        labels = None if self.labels is None else torch.from_numpy(np.ascontiguousarray(self.labels)).to(device)
        return [torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in self.inputs.values()], labels


def take_batch(graph: Graph, data: Any, what: str) -> Batch:
    """Check samples: an array, a dict of arrays, or a pair of either with labels, int64 of shape (N,)."""
    labels = None
    if isinstance(data, tuple):
        if len(data) != 2:
            raise PQNetError(f"{what}: expected samples or a pair of samples and labels, got a tuple of {len(data)}")
        data, labels = data
    inputs, n = check_samples(graph, named_inputs(graph, data, what), what)
    if labels is not None:
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iu" or labels.shape != (n,):
            got = f"{labels.dtype} of shape {labels.shape}"
            raise PQNetError(f"{what}: expected one integer label for each sample, got {got}")
        labels = labels.astype(np.int64)
    return Batch({name: inputs[name] for name in graph.inputs}, labels)


class Batches:
    """Batches by step, and samples that training does not see.

    Parameters
    ----------
    graph : Graph
    data : array, dict of arrays, pair with labels, sequence of such batches, or callable
        Samples, of which every step draws ``batch_size``, each once an epoch, in an order of the seed; or batches to
        take in turn; or a function that returns the batch of a step.
    held_out : the first three of these, or None
        None: a tenth of the samples, at most 1000, which are then not trained on.
    batch_size, seed : int
    """

    def __init__(self, graph: Graph, data: Any, held_out: Any, batch_size: int, seed: int) -> None:
        self.graph, self.data, self.size, self.seed = graph, data, batch_size, seed
        self.samples: Batch | None = None
        if isinstance(data, list):
            if not data:
                raise PQNetError("batches: expected at least one batch, got an empty list")
        elif not callable(data):
            if not isinstance(data, np.ndarray | Mapping | tuple):
                wanted = (
                    "an array, a dict of arrays, a pair with labels, a list of such batches or a function of a step"
                )
                raise PQNetError(f"batches: expected {wanted}, got {type(data).__name__}")
            self.samples = take_batch(graph, data, "batches")
        if held_out is not None:
            self.held_out = take_batch(graph, held_out, "held_out")
        elif self.samples is None:
            raise PQNetError("held_out: expected samples to judge by, as batches are no arrays to set some apart from")
        else:
            self.samples, self.held_out = self._set_apart(self.samples)

    def _set_apart(self, samples: Batch) -> tuple[Batch, Batch]:
        n = len(samples)
        apart = min(1000, n // 10)
        if apart == 0:
            raise PQNetError(f"batches: expected at least 10 samples, a tenth of which is held out, got {n}")
        order = np.random.default_rng((self.seed, n)).permutation(n)
        return samples.part(np.sort(order[apart:])), samples.part(np.sort(order[:apart]))

    def at(self, step: int) -> Batch:
        """Return the batch of a step."""
        if self.samples is None:
            item = self.data[step % len(self.data)] if isinstance(self.data, list) else self.data(step)
            return take_batch(self.graph, item, f"batches, step {step}")
        n = len(self.samples)
        places = step * self.size + np.arange(self.size)
        epochs = places // n
        order = {e: np.random.default_rng((self.seed, int(e))).permutation(n) for e in np.unique(epochs)}
        return self.samples.part(np.array([order[e][p % n] for e, p in zip(epochs, places, strict=True)]))

    def some(self, n: int) -> list[dict[str, np.ndarray]]:
        """Return batches of about n samples in all, none of arrays or a list twice."""
        if self.samples is not None:
            order = np.random.default_rng((self.seed, 0)).permutation(len(self.samples))
            some = self.samples.part(np.sort(order[:n]))
            return [some.part(slice(i, i + self.size)).inputs for i in range(0, len(some), self.size)]
        taken: list[Batch] = []
        most = len(self.data) if isinstance(self.data, list) else n
        while sum(map(len, taken)) < n and len(taken) < most:
            taken.append(self.at(len(taken)))
        return [batch.inputs for batch in taken]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all numbers that batches are made of; of a function, those of its first batch."""
        if self.samples is not None:
            parts = [self.samples]
        else:
            parts = [self.at(step) for step in range(len(self.data) if isinstance(self.data, list) else 1)]
        found: dict[str, np.ndarray] = {}
        for i, part in enumerate((*parts, self.held_out)):
            found |= {f"{i} {name}": array for name, array in part.inputs.items()}
            if part.labels is not None:
                found[f"{i}"] = part.labels
        return found


def image_batches(
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    batch_size: int = 128,
    pad: int = 4,
    flip: bool = True,
    seed: int = 0,
) -> Callable[[int], Any]:
    """Return a function that draws the batch of a step from images, moved and mirrored at random.

    Parameters
    ----------
    images : float32 ndarray, shape (N, C, H, W)
    labels : int ndarray, shape (N,), optional
    batch_size : int
    pad : int
        Each image moves by up to so many pixels along both axes; what enters is zero.
    flip : bool
        Mirror half of them, left to right.
    seed : int

    Returns
    -------
    callable
        The batch of a step, for ``batches`` of `distill`.

    Examples
    --------
    >>> import numpy as np
    >>> draw = image_batches(np.ones((10, 3, 8, 8), np.float32), batch_size=4, pad=1)
    >>> draw(7).shape
    (4, 3, 8, 8)
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype != np.float32:
        raise PQNetError(f"images: expected float32 of shape (N, C, H, W), got {images.dtype} of shape {images.shape}")
    n, _, h, w = images.shape
    if type(pad) is not int or not 0 <= pad < min(h, w):
        raise ConfigError(f"pad: expected an integer from 0 to {min(h, w) - 1}, got {pad!r}")
    if type(batch_size) is not int or batch_size < 1 or n == 0:
        raise ConfigError(f"batch_size: expected a positive integer, and images, got {batch_size!r} of {n} images")
    if labels is not None and np.shape(labels) != (n,):
        raise PQNetError(f"labels: expected one for each of {n} images, got shape {np.shape(labels)}")

    def draw(step: int) -> Any:
        rng = np.random.default_rng((seed, step))
        picked = rng.choice(n, batch_size, replace=n < batch_size)
        moves = rng.integers(-pad, pad + 1, (batch_size, 2))
        mirrored = rng.random(batch_size) < 0.5
        batch = np.zeros((batch_size, *images.shape[1:]), np.float32)
        for out, i, (down, right), mirror in zip(batch, picked, moves, mirrored, strict=True):
            image = images[i, :, :, ::-1] if flip and mirror else images[i]
            to, source = (
                (slice(max(0, y), h + min(0, y)), slice(max(0, x), w + min(0, x)))
                for y, x in ((down, right), (-down, -right))
            )
            out[:, *to] = image[:, *source]
        return batch if labels is None else (batch, np.asarray(labels)[picked])

    return draw
