"""What a layer's inputs look like to its weights: patch rows, their second moments, the metrics made of them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pqnet import _check
from pqnet._threads import ordered_map
from pqnet.codecs import Codec
from pqnet.codecs.layout import block_columns
from pqnet.errors import PQNetError
from pqnet.graph import Graph, Node, weight_op
from pqnet.kernels.fit.patches import gather_patches
from pqnet.pipeline.padding import masked
from pqnet.runtime.execute import node_params

__all__ = [
    "METRICS",
    "build_metric",
    "channel_statistics",
    "diagonal_blocks",
    "doubted",
    "input_rows",
    "layer_metric",
    "measured_doubt",
    "operand",
    "output_energies",
    "output_error",
    "output_rows",
    "output_squares",
    "positions_needed",
    "relative",
    "row_moments",
    "row_weights",
    "share_to_doubt",
    "token_counts",
    "token_error",
    "with_diagonal",
]

ROWS, ROWS_OF_GROUP, ROWS_OF_INPUT = 1 << 16, 1 << 13, 32  # in all, where the number of samples is known
METRICS = ("none", "pooled", "block", "full")
# Share of moments that is never believed, and weight of inputs that calibration never saw beside the median one.
DAMPING = 1e-4
DOUBT = 0.5  # of Kin / (Kin + n), for moments over n rows: these are not independent, nor are inputs alike
# Larger inputs, and NaN, are those of a network that overflows: sums of their products would leave float32.
LARGEST = 1e12


def positions_needed(n_inputs: int, samples: int | None = None, groups: int = 1) -> int:
    """Return how many positions of one sample enter a layer's moments: 256, or half its inputs if that is more.

    Neighbouring patches overlap, so a few hundred images at this rate determine the matrix; all positions are used
    where a sample has no more. With a known number of samples no more are taken than give 65,536 rows, or 8192 of a
    convolution in groups, which has these many for each; or 32 for each input if that is more.
    """
    most = max(256, n_inputs // 2)
    rows = ROWS if groups == 1 else ROWS_OF_GROUP
    return most if samples is None else min(most, -(-max(rows, ROWS_OF_INPUT * n_inputs) // samples))


def _pick(available: int, wanted: int, sample: int, seed: int) -> np.ndarray:
    """Return the positions of one sample that are used: one at random from each of equal strata."""
    if available <= wanted:
        return np.arange(available)
    jitter = np.random.default_rng((seed, sample)).random(wanted)
    return ((np.arange(wanted) + jitter) * (available / wanted)).astype(np.int64)


def operand(graph: Graph, node: Node, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return what the weight of a node is multiplied with in one batch: its input, or what a recurrent one remembers.

    ``values`` hold the node's inputs by name; its attributes are resolved.
    """
    of_operation = weight_op(node.op).operand
    if of_operation is None:
        return values[node.inputs[0]]
    return of_operation([values[v] for v in node.inputs], node_params(graph, node), node.attrs)


def input_rows(
    node: Node,
    shape: tuple[int, ...],
    x: np.ndarray,
    first_sample: int,
    seed: int,
    wanted: int,
    real: np.ndarray | None = None,
) -> np.ndarray:
    """Return what the filters of a layer are multiplied with.

    Parameters
    ----------
    node : Node
        Whose weight is multiplied, its attributes resolved.
    shape : tuple of int
        Shape of its weight, in filter form.
    x : float32 ndarray
        What the weight is multiplied with in one batch, see `operand`.
    first_sample : int
        Index of the batch's first sample in the whole calibration set; with ``seed`` it fixes the positions taken.
    seed : int
    wanted : int
        Positions of a sample, see `positions_needed`.
    real : bool ndarray, optional
        Which positions of texts are no padding, see `pqnet.pipeline.padding`; only these are taken.

    Returns
    -------
    float32 ndarray, shape (G, n, Kin)
        For each convolution group, n patches in (C, *kernel) order.
    """
    low, high = x.min(initial=0), x.max(initial=0)
    if not -LARGEST <= low <= high <= LARGEST:
        raise PQNetError(
            f"calibration: expected inputs of layer {node.name!r} up to {LARGEST:g}, got {low:.3g} to {high:.3g}; "
            "scale the data as for training"
        )
    rule = weight_op(node.op)
    assert rule.windows is not None  # of tables, rows are counted
    windows = rule.windows(x, shape[2:], node.attrs)
    sizes = windows.shape[len(shape) :]
    real = None if rule.channels_first else real
    at = _picked(x, windows.shape[0], math.prod(sizes), wanted, first_sample, seed, real)
    return _patches(windows, sizes, at, rule.groups(node.attrs))


def _patches(windows: np.ndarray, sizes: tuple[int, ...], at: list[np.ndarray], groups: int) -> np.ndarray:
    """Return what windows (B, C, *kernel, *sizes) show at positions of each sample, by flat index: (G, n, Kin)."""
    if len(sizes) == windows.ndim - 2:  # no kernel
        rows = windows.reshape(*windows.shape[:2], -1).swapaxes(1, 2)
        return _by_group(np.concatenate([sample[i] for sample, i in zip(rows, at, strict=True)]), groups)
    if len(sizes) > 2:
        patches = [
            sample[..., *np.unravel_index(i, sizes)].reshape(groups, -1, len(i)).swapaxes(1, 2)
            for sample, i in zip(windows, at, strict=True)
        ]
        return np.ascontiguousarray(np.concatenate(patches, 1))
    if len(sizes) == 1:
        windows = windows[:, :, None, :, None, :]
    places, width = np.stack(at), sizes[-1]
    out = np.empty((groups, places.size, math.prod(windows.shape[1:4]) // groups), np.float32)
    gather_patches(windows, places // width, places % width, groups, out)
    return out


def output_rows(
    node: Node, y: np.ndarray, groups: int, first_sample: int, seed: int, wanted: int, real: np.ndarray | None = None
) -> np.ndarray:
    """Return what lies at the positions of `input_rows` in an array of the shape of the layer's output.

    float32, shape (G, n, O / G).
    """
    rule = weight_op(node.op)
    real = None if rule.channels_first else real
    rows = np.moveaxis(y, rule.channel_axis(y.ndim), -1)
    rows = rows.reshape(y.shape[0] if y.ndim > 1 else 1, -1, rows.shape[-1])
    at = _picked(y, rows.shape[0], rows.shape[1], wanted, first_sample, seed, real)
    return _by_group(np.concatenate([sample[i] for sample, i in zip(rows, at, strict=True)]), groups)


def _by_group(rows: np.ndarray, groups: int) -> np.ndarray:
    """Cut rows (n, groups * c) into those of each group, (groups, n, c)."""
    return np.ascontiguousarray(rows.reshape(len(rows), groups, -1).swapaxes(0, 1))


def _picked(
    x: np.ndarray, samples: int, available: int, wanted: int, first_sample: int, seed: int, real: np.ndarray | None
) -> list[np.ndarray]:
    """Return which of the available positions of each sample are taken, without padding of texts ``x``."""
    if (real := masked(x, real)) is None:
        return [_pick(available, wanted, first_sample + i, seed) for i in range(samples)]
    keep = np.repeat(real, available // real.shape[1], axis=1)
    kept = [np.flatnonzero(row) for row in keep]
    return [at[_pick(len(at), wanted, first_sample + i, seed)] for i, at in enumerate(kept)]


def row_moments(rows: np.ndarray, columns: np.ndarray, d: int) -> np.ndarray:
    """Return the sums of x x' over rows, for each block of d columns: float64, shape (G, M, d, d).

    ``columns`` is the order of the layout; one block of all columns (d = Kin) gives the whole second moment.
    """
    groups, n, n_inputs = rows.shape
    if not np.array_equal(columns, np.arange(n_inputs)):
        rows = rows[:, :, columns]
    blocks = rows.reshape(groups, n, n_inputs // d, d).transpose(0, 2, 1, 3)
    blocks = np.ascontiguousarray(blocks)
    products: np.ndarray = np.matmul(blocks.swapaxes(-1, -2), blocks)
    return products.astype(np.float64)


def token_counts(ids: np.ndarray, vocabulary: int, real: np.ndarray | None = None) -> np.ndarray:
    """Return how often each row of an embedding is used, at positions that are no padding: float64, shape (V,)."""
    ids = _check.index_array(ids, "ids", below=vocabulary)
    if real is not None and ids.shape == real.shape:
        ids = ids[real]
    return np.bincount(ids.reshape(-1), minlength=vocabulary).astype(np.float64)


def output_energies(rows: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """Return, for each of several weights in filter form, the sum over rows x and filters w of (w . x)**2."""
    filters = (w.reshape(len(rows), -1, rows.shape[2]) for w in weights)
    outputs = (np.matmul(rows, f.swapaxes(-1, -2)) for f in filters)
    return np.array([np.einsum("gno,gno->gn", y, y).sum(dtype=np.float64) for y in outputs])


def channel_statistics(inputs: Sequence[np.ndarray], threads: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return mean and variance of each channel (axis 1) over several arrays, and of how many numbers; float64."""
    axes = (0, *range(2, inputs[0].ndim))

    def sums(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        wide = x.astype(np.float64)
        return wide.sum(axes), np.square(wide).sum(axes), x.size // x.shape[1]

    parts = list(ordered_map(sums, inputs, threads))
    count = sum(n for _, _, n in parts)
    mean = np.sum([total for total, _, _ in parts], axis=0) / count
    square = np.sum([squares for _, squares, _ in parts], axis=0) / count
    with np.errstate(invalid="ignore"):  # of infinite inputs, which the next layer names
        return mean, np.maximum(square - mean**2, 0.0), count


def diagonal_blocks(moment: np.ndarray, shape: tuple[int, ...], d: int, layout: str) -> np.ndarray:
    """Cut the blocks of a layout out of whole second moments (G, Kin, Kin): (G, M, d, d)."""
    columns = block_columns(shape, layout).reshape(-1, d)
    return moment[:, columns[:, :, None], columns[:, None, :]]


def layer_metric(
    kind: str, moment: np.ndarray, shape: tuple[int, ...], codec: Codec, doubt: float = 0.0
) -> np.ndarray | None:
    """Make the metric of a layer from whole second moments (G, Kin, Kin) in (C, *kernel) order; see `build_metric`."""
    blocks = codec.metric_blocks(shape, whole=kind == "full")
    return build_metric(kind, diagonal_blocks(moment, shape, *blocks), doubt)


def build_metric(kind: str, moments: np.ndarray, doubt: float = 0.0) -> np.ndarray | None:
    """Turn mean second moments (G, M, d, d) into the metric of `pqnet.fit.fit_pq`.

    ``none``: no metric. ``pooled``: their mean, exactly as "And the Bit Goes Down" has it (its E-step over sampled
    activations is a distance under this one matrix). ``block``: one matrix for each block position and group.
    ``full``: alike; there M = 1 and d = Kin. These two are made definite by `doubted`.
    """
    if _check.choice(kind, "metric", METRICS) == "none":
        return None
    if kind == "pooled":
        pooled: np.ndarray = moments.mean((0, 1)).astype(np.float32)
        return pooled if np.trace(pooled) > 0 else np.eye(len(pooled), dtype=np.float32)
    metric: np.ndarray = doubted(moments, doubt).astype(np.float32)
    return metric


def doubted(moments: np.ndarray, doubt: float) -> np.ndarray:
    """Return second moments (..., d, d) of which a share is not believed: float64, definite.

    The share of what is off their diagonals is left out, at least `DAMPING`; each input is taken by its own size, for
    some may be in millions and others of size one. Inputs that calibration never saw weigh a little, as a share of the
    median of those that it saw; without any, all weigh one.
    """
    share = max(DAMPING, doubt)
    out = (1 - share) * moments.astype(np.float64)
    return with_diagonal(out, np.diagonal(moments, axis1=-2, axis2=-1).astype(np.float64))


def with_diagonal(moments: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Return second moments (..., d, d) with another diagonal, (..., d), and a little on it for inputs never seen."""
    seen = energy[energy > 0]
    level = DAMPING * float(np.median(seen)) if seen.size else 1.0
    out, at = moments.copy(), np.arange(moments.shape[-1])
    out[..., at, at] = np.maximum(energy, 0.0) + level
    return out


def share_to_doubt(inputs: int, rows: int) -> float:
    """Return the share of second moments of a number of inputs, over a number of rows, that is chance."""
    return DOUBT * inputs / (inputs + rows)


def measured_doubt(moments: np.ndarray, others: np.ndarray) -> float:
    """Return the share of second moments (G, Kin, Kin) that moments over other samples do not confirm.

    What brings the correlations nearest to the true ones, if each set is right on average: the least squares of
    ``(1 - share) * moments`` off the diagonal, of which the others are an independent measurement.
    """
    at = np.arange(moments.shape[1])

    def correlations(m: np.ndarray) -> np.ndarray:
        energy = np.diagonal(m, axis1=1, axis2=2)
        size = np.sqrt(np.where(energy > 0, energy, np.inf))
        found: np.ndarray = m / (size[:, :, None] * size[:, None, :])
        found[:, at, at] = 0.0
        return found

    ours, theirs = correlations(moments), correlations(others)
    total = float(np.square(ours).sum())
    return float(np.clip(1 - (ours * theirs).sum() / total, 0.0, 1.0)) if total > 0 else 0.0


def row_weights(metric: str, counts: np.ndarray) -> np.ndarray | None:
    """Tokens weigh as often as they occur, those that calibration did not see as if seen once."""
    return None if metric == "none" else (counts + 1.0).astype(np.float32)


def token_error(counts: np.ndarray, weight: np.ndarray, packed: np.ndarray) -> float:
    """Return the relative squared error of the rows of an embedding, weighted by how often they are used."""
    return relative(*(float(counts @ np.square(w, dtype=np.float64).sum(1)) for w in (weight - packed, weight)))


def output_squares(moment: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the mean square of each of a layer's outputs under whole second moments (G, Kin, Kin): float64, (O,)."""
    filters = weight.reshape(len(moment), -1, moment.shape[1])
    squares: np.ndarray = (np.matmul(filters, moment) * filters).sum(2, dtype=np.float64).reshape(-1)
    return squares


def output_error(moment: np.ndarray, weight: np.ndarray, packed: np.ndarray) -> float:
    """Return the relative squared error of a layer's outputs under whole second moments (G, Kin, Kin)."""
    return relative(*(float(output_squares(moment, w).sum()) for w in (weight - packed, weight)))


def relative(error: float, energy: float) -> float:
    """Return an error as a share of what it is an error of; 0 of nothing."""
    return error / energy if energy > 0 else 0.0
