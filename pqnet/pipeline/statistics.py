"""What calibration measured: second moments of every layer's inputs, savable and mergeable."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pqnet import _check
from pqnet.errors import FormatError, PQNetError
from pqnet.graph import Graph, Node, weight_op
from pqnet.io import network_digest, read_container, write_container
from pqnet.pipeline.moments import with_diagonal
from pqnet.pipeline.observers import Histogram

__all__ = ["Moments", "Statistics", "load_statistics"]

COUNTS = "counts of "  # before the name of a node: its array in files
ROUNDING = 2.0**-23  # of float32, as a share of a number


@dataclass(frozen=True)
class Moments:
    """Inputs of one layer in numbers.

    Attributes
    ----------
    mean : float32 ndarray
        Shape (G, Kin, Kin): E[x x'] of the patches of each convolution group, in (C, *kernel) order. For an embedding
        shape (V,): the share of each token.
    count : int
        Patches or tokens that the mean is over.
    first : float32 ndarray, optional
        Shape (G, Kin): E[x]. None for an embedding, or where it is not known.
    covariance : float32 ndarray, optional
        Shape (G, Kin, Kin): E[(x - E x) (x - E x)'], which the difference of ``mean`` and the product of ``first`` has
        no digits of where inputs vary little about what they are. None where it is not known.
    """

    mean: np.ndarray
    count: int
    first: np.ndarray | None = None
    covariance: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _check.float_array(self.mean, "Moments.mean", ndim=(1, 3)))
        _check.integer(self.count, "Moments.count", 1)
        for name, shape in (("first", self.mean.shape[:-1]), ("covariance", self.mean.shape)):
            value = getattr(self, name)
            if value is not None:
                array = _check.float_array(value, f"Moments.{name}", ndim=len(shape))
                object.__setattr__(self, name, array)
                if array.shape != shape:
                    raise _check.error(f"Moments.{name}", f"float32 of shape {shape}", _check.describe(array))

    @classmethod
    def about(cls, first: np.ndarray, covariance: np.ndarray, count: int) -> "Moments":
        """Return the moments of inputs with these means, (G, Kin), and this covariance, (G, Kin, Kin)."""
        wide = first.astype(np.float64)
        mean = covariance + wide[:, :, None] * wide[:, None, :]
        with np.errstate(over="ignore"):  # what float32 does not hold is refused as infinite
            return cls(mean.astype(np.float32), count, first.astype(np.float32), covariance.astype(np.float32))

    def centred(self) -> np.ndarray:
        """Return E[(x - E x) (x - E x)'], or E[x x'] where the means are not known."""
        if self.covariance is not None or self.first is None:
            return self.mean if self.covariance is None else self.covariance
        first = self.first.astype(np.float64)
        difference = self.mean - first[:, :, None] * first[:, None, :]
        at = np.arange(first.shape[1])
        # Less than float32 keeps of the mean square is chance, and may be negative.
        lost = ROUNDING * self.mean[:, at, at]
        return with_diagonal(difference, np.maximum(difference[:, at, at], 0.0) + len(at) * lost).astype(np.float32)

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of the samples of both."""
        count = self.count + other.count
        ours, theirs = self.count / count, other.count / count

        def mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return (a * np.float64(ours) + b * np.float64(theirs)).astype(np.float32)

        first = covariance = None
        if self.first is not None and other.first is not None:
            first = mean(self.first, other.first)
            if self.covariance is not None and other.covariance is not None:
                apart = self.first.astype(np.float64) - other.first
                between = ours * theirs * apart[:, :, None] * apart[:, None, :]
                covariance = (mean(self.covariance, other.covariance) + between).astype(np.float32)
        return Moments(mean(self.mean, other.mean), count, first, covariance)


class Statistics:
    """Second moments of the inputs of a network's layers, by layer name.

    Parameters
    ----------
    layers : dict of str to Moments
    network : str, optional
        Fingerprint of the network that they are of, see `pqnet.io.network_digest`. None fits every network.
    inputs : dict of str to Histogram, optional
        The numbers of inputs that may become integers, by node name; see ``activations`` of `calibrate`.

    Examples
    --------
    >>> import pqnet
    >>> from pqnet.demo import load_images, model_path
    >>> model, images = pqnet.load(model_path()), load_images()[0]
    >>> a, b = pqnet.calibrate(model, images[:50]), pqnet.calibrate(model, images[50:100])
    >>> a.merge(b).layers["fc"].count
    100
    """

    def __init__(
        self, layers: Mapping[str, Moments], network: str | None = None, inputs: Mapping[str, Histogram] | None = None
    ) -> None:
        if not isinstance(layers, Mapping) or not all(isinstance(m, Moments) for m in layers.values()):
            raise _check.error("layers", "a dict of Moments by layer name", _check.describe(layers))
        if not isinstance(inputs, Mapping | None) or not all(isinstance(h, Histogram) for h in (inputs or {}).values()):
            raise _check.error("inputs", "a dict of Histogram by node name", _check.describe(inputs))
        self.layers, self.network, self.inputs = dict(layers), network, dict(inputs or {})

    def check(self, graph: Graph) -> None:
        """Raise PQNetError unless they are of a network: of another checkpoint moments may fit and mislead."""
        if self.network is not None and self.network != network_digest(graph):
            raise PQNetError(
                "calibration: expected statistics of this network, got those of one with other weights or nodes; "
                "calibrate this network again, or pass Statistics(statistics.layers) to use them all the same"
            )

    def merge(self, other: "Statistics") -> "Statistics":
        """Return the statistics of both calibration sets together; they must be of the same network.

        Numbers of inputs are known if both know those of the same nodes.
        """
        if not isinstance(other, Statistics) or self._shapes() != other._shapes():
            raise PQNetError("statistics: expected statistics of the same layers and shapes to merge, got others")
        networks = {s.network for s in (self, other) if s.network is not None}
        if len(networks) > 1:
            raise PQNetError("statistics: expected statistics of the same network to merge, got those of two")
        known = None not in (self.network, other.network)
        merged = {name: a.merge(other.layers[name]) for name, a in self.layers.items()}
        both = self.inputs.keys() == other.inputs.keys()
        inputs = {name: a.merge(other.inputs[name]) for name, a in self.inputs.items()} if both else None
        return Statistics(merged, self.network if known else None, inputs)

    def save(self, path: str | Path) -> None:
        """Write to one HDF5 file; symmetric matrices are stored as their lower triangles, first moments behind them.

        Of layers whose covariance is known that is stored, and its name. Of inputs, counts and ends.
        """
        header = {name: [int(m.count), *m.mean.shape] for name, m in self.layers.items()}
        known: dict[str, Any] = {} if self.network is None else {"network": self.network}
        if centred := [name for name, m in self.layers.items() if m.covariance is not None]:
            known["centred"] = centred
        arrays = {name: _stored(m) for name, m in self.layers.items()}
        if self.inputs:
            known["inputs"] = {name: [seen.low, seen.high] for name, seen in self.inputs.items()}
            arrays |= {COUNTS + name: seen.counts for name, seen in self.inputs.items()}
        write_container(path, "statistics", {"layers": header, **known}, arrays)

    def for_layer(self, node: Node, shape: tuple[int, ...]) -> Moments:
        """Return the moments of a layer whose weight has ``shape``, or raise PQNetError."""
        moments = self.layers.get(node.name)
        expected = weight_op(node.op).moment_shape(shape, node.attrs)
        if moments is None or moments.mean.shape != expected:
            got = "none" if moments is None else f"shape {moments.mean.shape}"
            want = f"moments of shape {expected} for layer {node.name!r}"
            raise PQNetError(f"calibration: expected {want}, got {got}; calibrate this network again")
        return moments

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: m.mean.shape for name, m in self.layers.items()}


def _stored(moments: Moments) -> np.ndarray:
    if moments.mean.ndim == 1:
        return moments.mean
    matrix = moments.mean if moments.covariance is None else moments.covariance
    triangle = matrix[:, *np.tril_indices(matrix.shape[1])]
    return np.hstack([triangle] if moments.first is None else [triangle, moments.first])


def _restored(stored: np.ndarray, shape: tuple[int, ...], count: int, centred: bool) -> Moments:
    if len(shape) == 1:
        return Moments(stored, count)
    matrix = np.empty(shape, np.float32)
    rows, columns = np.tril_indices(shape[1])
    triangle, first = stored[:, : len(rows)], stored[:, len(rows) :]
    matrix[:, rows, columns] = triangle
    matrix[:, columns, rows] = triangle
    if centred and first.size:
        return Moments.about(first, matrix, count)
    return Moments(matrix, count, first if first.size else None)


def load_statistics(path: str | Path) -> Statistics:
    """Load statistics that `Statistics.save` wrote.

    Raises
    ------
    FormatError
        The file is damaged or holds no statistics.
    PQNetError
        There is no readable file at ``path``.
    """
    header, arrays = read_container(path, "statistics")
    layers, described = {}, header.get("layers")
    network, centred = header.pop("network", None), header.pop("centred", [])  # older files have neither
    inputs = _histograms(path, header.pop("inputs", {}), arrays)
    if not isinstance(network, str | None):
        raise FormatError(f"{path}: expected the fingerprint of a network, got {_check.describe(network)}")
    if not isinstance(centred, list) or not set(map(str, centred)) <= set(arrays):
        raise FormatError(f"{path}: expected names of layers that are centred, got {_check.describe(centred)}")
    if set(header) != {"layers"} or not isinstance(described, dict) or set(described) != set(arrays):
        raise FormatError(f"{path}: expected one array for every layer of the header, got {sorted(arrays)[:5]}")
    for name, numbers in described.items():
        fits = isinstance(numbers, list) and all(type(n) is int and n > 0 for n in numbers)
        if not fits or len(numbers) not in (2, 4) or (len(numbers) == 4 and numbers[2] != numbers[3]):
            raise FormatError(f"{path}: layer {name!r}: expected [count, V] or [count, G, Kin, Kin], got {numbers}")
        count, *shape = numbers
        stored, want = arrays[name], tuple(shape[:1])
        if len(shape) > 1:
            triangle = shape[1] * (shape[1] + 1) // 2
            want += (triangle if stored.shape[1:] == (triangle,) else triangle + shape[1],)
        if stored.shape != want or stored.dtype != np.float32 or not np.isfinite(stored).all():
            raise FormatError(
                f"{path}: layer {name!r}: expected finite float32 of shape {want}, got {stored.dtype} {stored.shape}"
            )
        layers[name] = _restored(stored, tuple(shape), count, name in centred)
    return Statistics(layers, network, inputs)


def _histograms(path: str | Path, ends: Any, arrays: dict[str, np.ndarray]) -> dict[str, Histogram]:
    """Take the counts of inputs out of the arrays of a file."""
    found = {}
    try:
        for name, (low, high) in dict(ends).items():
            found[name] = Histogram(arrays.pop(COUNTS + name), float(low), float(high))
    except (KeyError, TypeError, ValueError) as reason:  # PQNetError is a ValueError
        raise FormatError(f"{path}: expected counts and two ends of the inputs of nodes, got {reason}") from None
    return found
