"""The bytes of a preset, moved between layers to where the network's outputs gain most."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from pqnet.codecs import PQ, Codec, IntN
from pqnet.graph import Graph, Node, weight_op
from pqnet.graph.affine import FreeAffine
from pqnet.pipeline.allocate import allocations
from pqnet.pipeline.batches import Batch
from pqnet.pipeline.calibrate import calibrate
from pqnet.pipeline.moments import doubted, output_squares
from pqnet.pipeline.noise import quantized_alike
from pqnet.pipeline.scaled import by_filter, filter_sizes
from pqnet.pipeline.sensitivity import network_gains, single_samples
from pqnet.runtime import Model

__all__ = ["BALANCED", "balance"]

BALANCED = ("small-blocks", "large-blocks")  # presets of no one paper
SAMPLES, EVERY = 24, 3  # one of so many for how much of each layer's error reaches the outputs, others for moments
CODEWORDS = [2**i for i in range(5, 12)]  # K that are tried, if there are four blocks for each
# Squared error of a normal number in the best levels at equal distances, for 2 to 8 bits (Max, 1960).
OF_INTEGERS = {2: 0.1188, 3: 0.0374, 4: 0.01154, 5: 0.0035, 6: 0.00104, 7: 0.000304, 8: 0.000087}
INT8 = 1.002  # error of codewords of 8 bits, beside those of float16
PERTURBED = 0.06  # relative squared error of a layer's outputs at which it is measured what reaches the network's
SHAPED = 0.35  # share of the error that the second-order search leaves of k-means's at best
DAMPING = 3e-2  # of moments, as a share of their mean diagonal, where that share is predicted
# Of one sample, as far as its positions tell about correlations: of these, more inputs than rows leave little to use.
ROWS_OF_SAMPLE = 8
LEAST_GAIN = 0.02  # of the error expected of the network, below which a preset stays as it is
CELLS = 20000


def balance(
    graph: Graph, codecs: Mapping[str, Codec], data: list[Batch], seed: int, threads: int
) -> dict[str, Codec] | None:
    """Choose anew how many codewords the layers have, so that the outputs change least at no more bytes in all.

    The blocks stay. Codewords may become integers of 8 bits; layers so small that codewords take most of their bytes,
    and filters that are one block each, as depthwise ones are, may become integers with a scale for each filter.

    Every layer is made wrong once, alone, to measure how much of its error reaches the outputs. How wrong a codec makes
    it is predicted: of K codewords of d numbers K^(-2 / d) of what weights, on their own, add to the outputs.

    Parameters
    ----------
    graph : Graph
        Float.
    codecs : dict of str to Codec
        Of a preset; those of embeddings stay.
    data : list of dict of arrays
    seed, threads : int

    Returns
    -------
    dict of str to Codec or None
        None if hardly anything is expected of it.
    """
    layers = {n: node for n, node in graph.layers().items() if n in codecs and not weight_op(node.op).looked_up}
    samples = single_samples(graph, data, SAMPLES)
    apart = samples[::EVERY] if len(samples) >= EVERY else samples  # noise that moments shape is judged by others
    known = [batch for i, batch in enumerate(samples) if i % EVERY] or samples
    moments = calibrate(Model(graph), known, seed=seed, threads=threads, progress=False).layers
    found = {name: FreeAffine.find(graph, node) for name, node in layers.items()}
    affines = {name: affine for name, affine in found.items() if affine is not None}
    weights = {name: np.asarray(graph.params[node.params["weight"]], np.float32) for name, node in layers.items()}
    in_all = _n_samples(data)

    def second(name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the moments that errors are seen under, and those that the search will know after all samples."""
        seen = (moments[name].centred() if name in affines else moments[name].mean).astype(np.float64)
        rows = min(moments[name].count / _n_samples(known), ROWS_OF_SAMPLE) * in_all
        return seen, doubted(seen, seen.shape[1] / (seen.shape[1] + rows))

    def as_packed(name: str, moment: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a weight with filters of one size, if they are packed so, these sizes, and how much outputs count."""
        affine = affines.get(name)
        size, importance = filter_sizes(moment, weights[name], affine, affine is not None and affine.scalable)
        return weights[name] / by_filter(size, weights[name]), size, importance

    def perturbed(node: Node) -> list[np.ndarray]:
        moment = second(node.name)[1]
        weight, size, _ = as_packed(node.name, moment)
        noisy = quantized_alike(weight, moment, PERTURBED, seed)
        return [(noisy * by_filter(size, noisy)).astype(np.float32)]

    factors = {name: affine.gain for name, affine in affines.items()}
    gains = network_gains(graph, apart, perturbed, layers, threads, factors)
    options = {}
    for name in weights:
        seen, later = second(name)
        weight, _, importance = as_packed(name, later)
        energy = float(importance @ output_squares(moments[name].mean.astype(np.float64), weight))
        of_noise = _energies_of_noise(weight, importance, seen, later)
        alone, shaped = (e / energy if energy > 0 else 0.0 for e in of_noise)
        options[name] = {
            codec: gains[name][0].gain * error * (shaped if _is_searched(codec, weight.shape) else alone)
            for codec, error in _options(codecs[name], weight.shape)
        }
    return _choose(codecs, options, {name: weight.shape for name, weight in weights.items()})


def _n_samples(batches: list[Batch]) -> int:
    return sum(max((len(a) for a in batch.values() if a.ndim), default=1) for batch in batches)


def _choose(
    codecs: Mapping[str, Codec], options: Mapping[str, Mapping[Codec, float]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Codec] | None:
    """Return the options of least summed error at no more bytes than the codecs; None if that is hardly less."""
    sizes = [np.array([c.nbytes(shapes[name]).total for c in found]) for name, found in options.items()]
    errors = [np.array(list(found.values())) for found in options.values()]
    room = sum(codecs[name].nbytes(shapes[name]).total for name in options)
    best = next(allocations(sizes, errors, 0, room, CELLS), None)
    now = sum(found[codecs[name]] for name, found in options.items())
    if best is None or sum(e[i] for e, i in zip(errors, best, strict=True)) >= (1 - LEAST_GAIN) * now:
        return None
    return {**codecs, **{name: list(found)[i] for (name, found), i in zip(options.items(), best, strict=True)}}


def _options(codec: Codec, shape: tuple[int, ...]) -> Iterator[tuple[Codec, float]]:
    """Yield what may become of a layer, its own codec first, with the error of weights of mean square 1."""
    if not isinstance(codec, PQ):
        yield codec, 0.0
        return
    room, blocks = codec.nbytes(shape).total, math.prod(shape) // codec.d
    for k in (codec.k, *(k for k in CODEWORDS if 4 * k <= blocks and k != codec.k)):
        error = k ** (-2 / codec.d)
        yield replace(codec, k=k), error
        if codec.codebook_dtype == "float16":
            yield replace(codec, k=k, codebook_dtype="int8"), INT8 * error
    integers = {bits: IntN(bits, per="channel", observer="output") for bits in OF_INTEGERS}
    if _whole(codec, shape) or any(other.nbytes(shape).total <= room for other in integers.values()):
        yield from ((other, OF_INTEGERS[bits]) for bits, other in integers.items())


def _whole(codec: PQ, shape: tuple[int, ...]) -> bool:
    """Tell whether each filter is one block."""
    return codec.d == math.prod(shape[1:])


def _is_searched(codec: Codec, shape: tuple[int, ...]) -> bool:
    """Tell whether errors of blocks of a filter may make up for one another."""
    return isinstance(codec, PQ) and not _whole(codec, shape)


def _energies_of_noise(
    weight: np.ndarray, importance: np.ndarray, seen: np.ndarray, known: np.ndarray
) -> tuple[float, float]:
    """Return the energy that noise of the size of the weights adds to the outputs.

    Noise alike on all weights of a filter; and as the second-order search has it under the moments that it knows, that
    is less where inputs are large. Outputs count by their importance.
    """
    n = seen.shape[1]
    level = np.maximum(np.trace(seen, axis1=1, axis2=2) / n, 1e-30)
    metric = known / level[:, None, None] + DAMPING * np.eye(n)
    factor = np.linalg.cholesky(metric)
    geometric = np.exp(2 * np.log(np.diagonal(factor, axis1=1, axis2=2)).mean(1))  # mean of the eigenvalues
    spread = np.trace(np.linalg.solve(metric, seen), axis1=1, axis2=2) / n  # level where the search knows all
    squares = np.square(by_filter(np.sqrt(importance), weight) * weight, dtype=np.float64).reshape(len(seen), -1).sum(1)
    alone = float(squares @ level)
    return alone, max(float(squares @ (spread * geometric)), SHAPED * alone)
