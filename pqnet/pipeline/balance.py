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
from pqnet.pipeline.moments import build_metric, output_squares
from pqnet.pipeline.noise import quantized_alike
from pqnet.pipeline.sensitivity import network_gains, single_samples
from pqnet.pipeline.statistics import Moments
from pqnet.runtime import Model

__all__ = ["BALANCED", "balance"]

BALANCED = ("small-blocks", "large-blocks")  # presets of no one paper
SAMPLES, GAIN_SAMPLES = 16, 8  # of moments, and of how much of each layer's error reaches the outputs
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
    moments = calibrate(Model(graph), samples, seed=seed, threads=threads, progress=False).layers
    corrected = {name for name, node in layers.items() if FreeAffine.find(graph, node) is not None}
    weights = {name: np.asarray(graph.params[node.params["weight"]], np.float32) for name, node in layers.items()}

    def about(name: str) -> np.ndarray:
        return moments[name].centred() if name in corrected else moments[name].mean

    def perturbed(node: Node) -> np.ndarray:
        metric = build_metric("full", about(node.name)[:, None])
        assert metric is not None
        return quantized_alike(weights[node.name], metric[:, 0], PERTURBED, seed)

    gains = network_gains(graph, single_samples(graph, samples, GAIN_SAMPLES), perturbed, layers, threads, corrected)
    share = _n_samples(data) / _n_samples(samples)
    options = {}
    for name, weight in weights.items():
        rows = min(moments[name].count * share, ROWS_OF_SAMPLE * _n_samples(data))
        alone, shaped = _error_of_noise(weight, moments[name], about(name), rows)
        options[name] = {
            codec: gains[name] * error * (shaped if _is_searched(codec, weight.shape) else alone)
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


def _error_of_noise(weight: np.ndarray, moments: Moments, about: np.ndarray, rows: float) -> tuple[float, float]:
    """Return what noise of the size of the weights adds to the outputs, as a share of their energy.

    Noise alike on all weights of a filter; and as the second-order search has it, that is less where inputs are large,
    as far as correlations over so many rows can be relied on.
    """
    n, wide = about.shape[1], about.astype(np.float64)
    level = np.maximum(np.trace(wide, axis1=1, axis2=2) / n, 1e-30)
    factor = np.linalg.cholesky(wide / level[:, None, None] + DAMPING * np.eye(n))
    geometric = np.exp(2 * np.log(np.diagonal(factor, axis1=1, axis2=2)).mean(1))  # mean of the eigenvalues
    squares = np.square(weight, dtype=np.float64).reshape(len(wide), -1).sum(1)
    energy = float(output_squares(moments.mean.astype(np.float64), weight).sum())
    if energy <= 0:
        return 0.0, 0.0
    alone, doubt = float(squares @ level) / energy, n / (n + rows)
    shaped = max(float(squares @ (level * geometric)) / energy, SHAPED * alone)
    return alone, doubt * alone + (1 - doubt) * shaped
