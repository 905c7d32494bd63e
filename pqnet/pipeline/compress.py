"""The smallest file whose outputs agree with the float network's: plans of several sizes, tried on held-out samples."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pqnet import _check
from pqnet._progress import progress_bar
from pqnet._threads import default_threads
from pqnet.errors import ConfigError, PQNetError, enough_memory
from pqnet.io import graph_nbytes, output_folder
from pqnet.pipeline.agreement import Agreement, lower_bound, samples_needed
from pqnet.pipeline.batches import Batch, check_samples, iterate_batches, named_inputs
from pqnet.pipeline.plan import Measured, Plan, measure
from pqnet.pipeline.quantize import quantize
from pqnet.pipeline.target import float_weights
from pqnet.runtime import Model

if TYPE_CHECKING:
    from pqnet.pipeline.cluster import Client

__all__ = ["Compressed", "Try", "compress"]

FOLDS = 3  # parts of the samples, each judged by what the others led to; fewer if that many are judged:
ENOUGH_JUDGED = 1000
FIRST = 10  # times smaller is what is tried first
CLOSE = 1.06  # between a size that keeps enough and one that does not, where the search ends
MOST_TRIES = 12
FASTEST = 3.0  # by which a try is larger or smaller than the one before, at most
INSIDE = 0.2  # of the way between two known sizes (in logarithms), from either end, that a try keeps away
# By which power of the size the loss falls before two tries have shown it: errors as 1 / size^2, the share of other
# decisions as their root.
STEEPNESS = {"top1": 1.0, "same": 1.0, "score": 1.0, "cosine": 2.0, "error": 2.0}

Score = Callable[[Model], Any]
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Try:
    """A size that was tried.

    Attributes
    ----------
    nbytes : int
        Of the file.
    error : float
        Predicted squared error of the outputs, see `Plan`.
    kept : float
        Mean agreement of held-out samples with the float network, 1 at best. Of the first part of them only where that
        is not enough.
    bound : float
        What the agreement on other samples exceeds in nine cases of ten.
    enough : bool
        Whether ``kept`` is at least what was asked for, and ``bound`` misses it by no more than it misses 1.
    """

    nbytes: int
    error: float
    kept: float
    bound: float
    enough: bool


@dataclass(frozen=True)
class Compressed:
    """The smallest network that was found to keep enough.

    Attributes
    ----------
    model : Model
        Made from all samples.
    metric : str
        How outputs were compared: ``top1``, ``cosine``, ``error``, or ``score``, a function of the caller.
    tries : tuple of Try
        In the order in which they were made.
    """

    model: Model
    metric: str
    tries: tuple[Try, ...]


@enough_memory("give fewer samples")
def compress(
    model: Model,
    data: Any,
    keep: float = 0.99,
    *,
    metric: str | None = None,
    score: Score | None = None,
    held_out: Any = None,
    prefer: str = "error",
    golden: bool = False,
    checkpoint: str | Path | None = None,
    on_try: Callable[[Try], None] | None = None,
    client: "Client | None" = None,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = True,
) -> Compressed:
    """Make the smallest file whose outputs agree with the float network's on samples that it was not made from.

    The codecs' errors are measured once, and plans of several sizes are quantized and judged, until the smallest that
    keeps enough is known to 6 %. A third of the samples is held out, and judges what the others led to; where that is
    enough, so does each other third in turn. The smallest plan is then quantized once more, from all samples.

    Parameters
    ----------
    model : Model
        The float network.
    data : array or dict of arrays
        Samples along axis 0, without labels, like those of later use; not those that the network was trained on, where
        it is surer of itself and keeps more. For ``keep=0.99`` it takes 81 at least, better 400; of very many, no more
        than 1000 are held out.
    keep : float
        Above 0 and below 1: how much of the outputs is kept, see ``metric``. The held-out samples have to keep this
        much, and so many of them that others lose no more than twice as much in nine cases of ten.
    metric : {None, "top1", "cosine", "error"}
        ``top1``: the share of samples (or positions) with the same largest number. ``cosine``: the cosine between
        outputs. ``error``: 1 less the squared error, relative to the variance of the outputs. None: ``top1`` of
        (samples, classes), ``error`` of single numbers, ``cosine`` of all else and of embeddings of length 1. With
        several outputs, each sample counts as the worst of its own.
    score : callable, optional
        Instead: ``score(model)`` returns a positive number, or an array with one for each of your samples, better if
        larger; ``keep`` is what is kept of the float network's. Its samples should not be among ``data``.
    held_out : array or dict of arrays, optional
        Samples to judge by, instead of parts of ``data``.
    prefer : {"error", "latency"}
        Of `plan`.
    golden : bool
        Count, and leave room for, the golden record that `pqnet compress` adds.
    checkpoint : str or Path, optional
        Folder of finished layers, as for `quantize`: a call that is repeated goes on where it stopped.
    on_try : callable, optional
        Called with each `Try` as soon as it is known.
    client : distributed.Client, optional
        Measure layers and search codes on the workers of a Dask cluster, to the same bytes.
    seed : int
        Of the choice of held-out samples, and of the codes.
    threads : int, optional
        Default: all cores, on a cluster those of a worker.
    progress : bool
        Show how far it is: a bar on a terminal, a line every 30 seconds elsewhere.

    Returns
    -------
    Compressed

    Raises
    ------
    ConfigError
        More to keep than so many held-out samples can tell, or than any plan keeps.
    PQNetError
        Data that do not fit the model, NaN.

    Examples
    --------
    >>> import pqnet
    >>> from pqnet.demo import load_images, model_path
    >>> found = pqnet.compress(pqnet.load(model_path()), load_images()[0][:400], keep=0.9)
    >>> found.model.size().ratio > 20
    True
    """
    float_weights(model)
    if isinstance(keep, bool) or not isinstance(keep, float) or not 0 < keep < 1:
        raise ConfigError(str(_check.error("keep", "a share above 0 and below 1, such as 0.99", _check.describe(keep))))
    if score is not None and (metric is not None or held_out is not None or not callable(score)):
        raise ConfigError("score: expected a function, and neither metric nor held_out with it, got others")
    _check.choice(golden, "golden", (False, True))
    if checkpoint is not None:
        output_folder(checkpoint, "checkpoint")
    seed = _check.rng_seed(seed)
    options: dict[str, Any] = {"client": client, "seed": seed, "threads": threads, "progress": progress}
    with progress_bar(progress, "compress", "try") as bar:
        samples, folds = _folds(model, data, keep, metric, score, held_out, seed, default_threads(threads))
        measured = measure(model, samples, prefer=prefer, **options)

        def quantized(plan: Plan, data: Batch) -> Model:
            small = quantize(model, plan.recipe, data, checkpoint=checkpoint, **options)
            return small.with_golden(small.draw_golden(seed)) if golden else small

        def attempt(plan: Plan) -> tuple[Callable[[], Model], Try]:
            bar.begin(f"{plan.nbytes} bytes")
            small, made = _judged(plan, folds, quantized, keep)
            bar.update()
            if on_try is not None:
                on_try(made)
            return (lambda: small) if folds[-1].samples is samples else partial(quantized, plan, samples), made

        by = folds[0].judge.metric
        best, tries = _search(measured, attempt, keep, STEEPNESS.get(by, 1.0), golden)
        if best is None:
            found = [f"{t.nbytes} bytes keep {t.kept:.4f}" for t in sorted(tries, key=lambda t: t.kept)[-1:]]
            raise ConfigError(
                f"keep: expected a share that a quantized network keeps, got {keep:g}; "
                f"{''.join(found) or 'no plan is smaller'} ({by}); ask for less, or give more samples"
            )
        bar.begin("the smallest that is enough")
        return Compressed(best(), by, tuple(tries))


def _judged(
    plan: Plan, folds: Sequence["_Fold"], quantized: Callable[[Plan, Batch], Model], keep: float
) -> tuple[Model, Try]:
    """Return the network of a plan, made for the last part of the samples that judged it, and what it keeps."""
    scores = np.empty(0)
    for fold in folds:
        small = quantized(plan, fold.samples)
        scores = np.append(scores, fold.judge.scores(small))
        if scores.mean() < keep:
            break
    kept, bound = float(scores.mean()), lower_bound(scores) if len(scores) > 1 else float(scores.mean())
    enough = kept >= keep and bound >= 2 * keep - 1
    return small, Try(graph_nbytes(small.graph, small.golden), plan.error, kept, bound, enough)


# -- what is kept ----------------------------------------------------------------------------------------------


class _ByOutputs:
    """Judges a network by its outputs on held-out samples."""

    def __init__(self, model: Model, batches: list[Batch], metric: str | None, threads: int) -> None:
        self.model, self.batches, self.threads = model, batches, threads
        self.agreement = Agreement.of(model, batches, metric, threads)
        self.metric = self.agreement.parts

    def scores(self, small: Model) -> np.ndarray:
        return self.agreement.scores(small, self.model, self.batches, self.threads)


class _ByScore:
    """Judges a network by a function of the caller, relative to the float network's."""

    metric = "score"

    def __init__(self, model: Model, score: Score) -> None:
        self.score = score
        self.whole = self._given(model)
        self.mean = float(self.whole.mean())
        if not self.mean > 0:
            raise ConfigError(f"score: expected a positive number for the float network, got {self.mean:g}")

    def scores(self, small: Model) -> np.ndarray:
        scores = self._given(small)
        if scores.shape != self.whole.shape:
            raise PQNetError(f"score: expected {self.whole.shape} numbers as for the float network, got {scores.shape}")
        kept: np.ndarray = 1 + (scores - self.whole) / self.mean
        return kept

    def _given(self, model: Model) -> np.ndarray:
        return _check.float_array(np.atleast_1d(self.score(model)), "score", ndim=1, dtype=np.float64)


@dataclass(frozen=True)
class _Fold:
    """Samples to quantize by, and who judges what comes out."""

    samples: Batch
    judge: _ByOutputs | _ByScore


def _folds(
    model: Model,
    data: Any,
    keep: float,
    metric: str | None,
    score: Score | None,
    held_out: Any,
    seed: int,
    threads: int,
) -> tuple[Batch, list[_Fold]]:
    """Return all samples to quantize by, and how tries are judged."""
    samples, n = check_samples(model.graph, named_inputs(model.graph, data, "data"), "data")
    if score is not None:
        return samples, [_Fold(samples, _ByScore(model, score))]
    needed = samples_needed(2 * keep - 1)

    def judge(apart: Batch) -> _ByOutputs:
        return _ByOutputs(model, list(iterate_batches(model.graph, apart)), metric, threads)

    if held_out is None:
        if n < max(needed, FOLDS):
            most = math.floor(1000 * _tellable(n)) / 1000
            raise ConfigError(
                f"data: expected {max(needed, FOLDS)} samples at least to tell keep={keep:g}, got {n}; give more "
                f"samples, or ask for {most:g}"
            )
        return samples, [_Fold(rest, judge(apart)) for rest, apart in _parted(model, samples, n, seed)]
    apart, given = check_samples(model.graph, named_inputs(model.graph, held_out, "held_out"), "held_out")
    if given < needed:
        raise ConfigError(f"held_out: expected {needed} samples at least to tell keep={keep:g}, got {given}")
    return samples, [_Fold(samples, judge(apart))]


def _parted(model: Model, samples: Batch, n: int, seed: int) -> Iterator[tuple[Batch, Batch]]:
    """Yield samples to quantize by and samples to judge by, in whole batches if the network takes no less.

    No sample judges twice.
    """
    fixed = [info.shape[0] for info in model.graph.inputs.values() if isinstance(info.shape[0], int)]
    unit = fixed[0] if fixed else 1
    order = np.random.default_rng((seed, n)).permutation(n // unit)
    parts = np.array_split(order, FOLDS)
    parts = [part[: max(1, ENOUGH_JUDGED // unit)] for part in parts[: -(-ENOUGH_JUDGED // len(parts[-1]) // unit)]]
    for part in parts:
        held = np.isin(np.arange(n) // unit, part)
        yield {k: a[~held] for k, a in samples.items()}, {k: a[held] for k, a in samples.items()}


def _tellable(samples: int) -> float:
    """Return the largest ``keep`` that so many held-out samples can tell."""
    return max((keep / 1000 for keep in range(1, 1000) if samples_needed(2 * keep / 1000 - 1) <= samples), default=0.0)


# -- the search over sizes -------------------------------------------------------------------------------------


def _search(
    measured: Measured, attempt: Callable[[Plan], tuple[_Made, Try]], keep: float, steepness: float, golden: bool
) -> tuple[_Made | None, list[Try]]:
    """Return what an attempt made of the smallest size that keeps enough, None if there is none, and all tries.

    A size is guessed from those tried, as losses fall with a power of the size, and kept between the largest that does
    not keep enough and the smallest that does.
    """
    files = measured.files(golden)
    least, most = files.nbytes(files.smallest(measured.fast)), files.most
    low, high, best = least / CLOSE, float(most), None
    tries: list[Try] = []
    size = min(max(most / FIRST, least * 1.02), most * 0.95)
    while len(tries) < MOST_TRIES:
        plan = _plan_near(measured, size, low, high, golden)
        if plan is None:
            break
        model, made = attempt(plan)
        tries.append(made)
        if made.enough:
            high, best = min(high, made.nbytes), model
        else:
            low = max(low, made.nbytes)
        if high / low <= CLOSE:
            break
        size = _next_size(tries, keep, steepness, low, high)
    return best, tries


def _next_size(tries: Sequence[Try], keep: float, steepness: float, low: float, high: float) -> float:
    """Return the size at which the loss should be what is allowed, well inside the bounds."""
    last = tries[-1]
    others = [t for t in tries[:-1] if t.nbytes != last.nbytes]

    def loss(tried: Try) -> float:
        return max(1 - tried.kept, (1 - keep) / 30)

    if others:
        near = min(others, key=lambda t: abs(math.log(t.nbytes / last.nbytes)))
        slope = -math.log(loss(last) / loss(near)) / math.log(last.nbytes / near.nbytes)
        steepness = min(max(slope, 0.5), 6.0)
    guess = last.nbytes * min(max((loss(last) / (0.9 * (1 - keep))) ** (1 / steepness), 1 / FASTEST), FASTEST)
    margin = max(math.log(CLOSE) / 3, INSIDE * math.log(high / low))
    inside = math.log(low) + margin, math.log(high) - margin
    return math.exp(min(max(math.log(guess), inside[0]), inside[1]))


def _plan_near(measured: Measured, size: float, low: float, high: float, golden: bool) -> Plan | None:
    """Return a plan of about a size, larger than what does not keep enough; of small networks there are few."""
    for factor in (1.0, 1.03, 1.06, 0.97, 1.12, 1.25, 1.5, 2.0):
        if low < size * factor < high:
            try:
                plan = measured.plan(int(size * factor), golden=golden, share=0.0)
            except ConfigError:
                continue
            if low < plan.nbytes < high:
                return plan
    return None
