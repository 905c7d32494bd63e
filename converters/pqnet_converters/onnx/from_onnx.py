"""Imports ONNX networks."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pqnet.errors import PQNetError, UnsupportedOpError
from pqnet.graph import Graph, GraphBuilder, ValueInfo
from pqnet_converters.core.patterns import simplify
from pqnet_converters.core.sizes import symbol
from pqnet_converters.onnx.importer import OnnxImporter, SameSize
from pqnet_converters.onnx.reader import Declared, OnnxGraph, read
from pqnet_converters.onnx.rows import padded_axes
from pqnet_converters.onnx.rules import RULES as RULES

if TYPE_CHECKING:
    from pqnet.runtime import Model

__all__ = ["from_onnx", "graph_from_onnx"]

Source: TypeAlias = str | Path | bytes
Shape: TypeAlias = Sequence[int | str]

# Sizes that free axes are tried at, until the network takes them: what it knows of them is in its code alone.
SIZES = (64, 48, 224, 32, 256, 320, 128, 512, 576, 640, 1024, 16, 8, 4096, 16000, 3)
TRIES = 60


def from_onnx(
    source: Source,
    *,
    shapes: Mapping[str, Shape] | None = None,
    values: Mapping[str, Any] | None = None,
) -> "Model":
    """Import an ONNX network for inference.

    Layers are called after their weights or, where an exporter gave these made-up names, their modules. Tied weights
    are stored once; half, bfloat16 and double become float32, quantized weights are dequantized. Axes that the file
    leaves free stay free; what follows from sizes and constants is computed once. Batch norms, activations, layer
    norms and attention are recognized in the forms in which exporters write them. Where the number of rows of outputs
    depends on the input (NonMaxSuppression), these have as many rows as there may be, and a further output ``count``
    says how many of them, the first, are the network's.

    Parameters
    ----------
    source : str, Path or bytes
        The file, or what is in it. Data beside the file is read from its folder only.
    shapes : dict of str to sequence of int or str, optional
        For inputs by name: a number fixes an axis, a str names a free one; axes of one name have one size.
    values : dict of str to array, optional
        For inputs by name, such as a sampling rate, by which the network branches: the value that they always have.
        These are no inputs of the model.

    Returns
    -------
    Model

    Raises
    ------
    UnsupportedOpError
        Operations without a rule, all named; strings, sequences, shapes that depend on data; another operator set.
    FormatError
        A damaged file, or data beside it that is missing or elsewhere.
    PQNetError
        For anything else that cannot be imported.

    Examples
    --------
    >>> import numpy as np
    >>> import onnx
    >>> from pqnet_converters import from_onnx
    >>> graph = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     net (float[batch, 4] x) => (float[batch, 4] y) { y = Relu(x) }
    ... ''')
    >>> model = from_onnx(graph.SerializeToString())
    >>> model.inputs
    {'x': ((None, 4), 'float32')}
    >>> model(-np.ones((1, 4))).tolist()
    [[0.0, 0.0, 0.0, 0.0]]
    """
    from pqnet.runtime import Model

    return Model(graph_from_onnx(source, shapes, values))


def graph_from_onnx(
    source: Source, shapes: Mapping[str, Shape] | None = None, values: Mapping[str, Any] | None = None
) -> Graph:
    """Import an ONNX network as a graph; see `from_onnx`."""
    network = read(source)
    known = _values(network, values or {})
    infos = _inputs(network, shapes or {}, known)
    if not infos:
        raise PQNetError("values: expected a network that keeps an input, got values for all")
    first: PQNetError | None = None
    for sample in _samples(infos, network):
        try:
            graph = _imported(network, infos, sample, known)
            pinned = _pinned(graph)
            if not pinned:
                return graph
            infos = {name: replace(i, shape=tuple(pinned.get(d, d) for d in i.shape)) for name, i in infos.items()}  # type: ignore[arg-type]
            return _imported(network, infos, sample, known)
        except UnsupportedOpError:
            raise
        except PQNetError as reason:
            first = first or reason
    assert first is not None
    tried = next(_samples(infos, network))
    if not tried:
        raise first
    raise type(first)(
        f"{first} (with the free sizes {tried}, and with others; fix or name sizes: shapes={{name: [...]}}, "
        "--input NAME=SHAPE)"
    ) from first


def _imported(
    network: OnnxGraph, infos: dict[str, ValueInfo], sample: dict[str, int], values: Mapping[str, np.ndarray]
) -> Graph:
    """Import at one sample of the free sizes; symbols that have to be equal become one."""
    while True:
        names = {d for info in infos.values() for d in info.shape if isinstance(d, str)}
        symbols = {name: sample[name] for name in sample if name in names}
        builder = GraphBuilder(infos, symbols)
        importer = OnnxImporter(builder, {n: symbol(n, s) for n, s in symbols.items()}, network, values)
        try:
            outputs = importer.run()
            break
        except SameSize as same:
            one, other = same.args
            infos = {
                name: replace(info, shape=tuple(one if d == other else d for d in info.shape))
                for name, info in infos.items()
            }
    names_ = [declared.name for declared in network.outputs]
    if len(set(names_)) < len(names_) or not names_:
        raise PQNetError(f"ONNX file: expected outputs of different names, got {names_}")
    found = {name: importer.value(x) for name, x in zip(names_, outputs, strict=True)}
    source = {"source": f"onnx opset {network.opset}, {network.producer or 'unknown producer'}"}
    if importer.counts:
        found |= _counts(builder, found, importer.counts)
    builder.nodes = _needed(builder, found.values())
    return simplify(builder.build(found, source))


def _counts(builder: GraphBuilder, outputs: Mapping[str, str], counts: Mapping[str, str]) -> dict[str, str]:
    """Return an output for each number of rows on which those of the network depend."""
    builder.nodes = _needed(builder, [*outputs.values(), *counts.values()])
    infos = builder.build({**outputs, **{f"{value}.count": value for value in counts.values()}}).infer_shapes(
        builder.symbols
    )
    padded = padded_axes(builder.nodes, infos, counts)
    wanted = dict.fromkeys(padded[value] for value in outputs.values() if value in padded)
    names = (name for i in count() if (name := f"count{i or ''}") not in outputs)
    return dict(zip(names, wanted, strict=False))


def _needed(builder: GraphBuilder, outputs: Iterable[str]) -> list[Any]:
    """Return the nodes that outputs depend on."""
    wanted, kept = set(outputs), []
    for node in reversed(builder.nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _values(network: OnnxGraph, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    declared = {d.name: d for d in network.inputs}
    if unknown := sorted(set(values) - set(declared)):
        raise PQNetError(f"values: expected names of inputs among {sorted(declared)}, got {unknown}")
    found = {}
    for name, value in values.items():
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise PQNetError(f"values[{name!r}]: expected numbers, got {value!r}")
        shape = declared[name].shape
        if shape is not None and len(shape) != array.ndim:
            array = array.reshape((1,) * len(shape)) if array.size == 1 else array
            if array.ndim != len(shape):
                raise PQNetError(f"values[{name!r}]: expected {len(shape)} axes, got shape {array.shape}")
        found[name] = array.astype(declared[name].dtype)
    return found


def _inputs(network: OnnxGraph, shapes: Mapping[str, Shape], values: Mapping[str, Any]) -> dict[str, ValueInfo]:
    """Return the inputs, their free axes named by what the file or ``shapes`` call them."""
    declared = [d for d in network.inputs if d.name not in values]
    if unknown := sorted(set(shapes) - {d.name for d in declared}):
        raise PQNetError(f"shapes: expected names of inputs among {[d.name for d in declared]}, got {unknown}")
    return {d.name: ValueInfo(tuple(_shape(d, shapes.get(d.name))), d.dtype) for d in declared}


def _shape(declared: Declared, given: Shape | None) -> Iterator[int | str]:
    if declared.shape is None and given is None:
        raise UnsupportedOpError(
            f"input {declared.name!r}: expected a known number of axes, got none; give its shape: "
            f"shapes={{{declared.name!r}: [...]}}, --input {declared.name}=SHAPE"
        )
    own = declared.shape if declared.shape is not None else (None,) * len(given or ())
    if given is not None and len(given) != len(own):
        raise PQNetError(f"shapes[{declared.name!r}]: expected {len(own)} sizes, got {list(given)}")
    for axis, size in enumerate(own):
        wanted = size if given is None else given[axis]
        if isinstance(wanted, int) and isinstance(size, int) and wanted != size:
            raise PQNetError(f"shapes[{declared.name!r}]: the file fixes axis {axis} at {size}, got {wanted}")
        if isinstance(wanted, bool) or (isinstance(wanted, int) and wanted < 1):
            raise PQNetError(f"shapes[{declared.name!r}]: expected sizes of at least 1 or names, got {wanted}")
        if isinstance(size, int) or isinstance(wanted, int):
            yield size if isinstance(size, int) else wanted  # type: ignore[misc]
        else:
            yield _identifier(wanted or "") or _identifier(f"{declared.name}_{axis}")


def _identifier(name: str) -> str:
    """Return a name as symbols have it; nothing if there is none in it, as in "?"."""
    word = re.sub(r"\W+", "_", name).strip("_")
    return word if word.isidentifier() or not word else f"n{word}"


def _pinned(graph: Graph) -> dict[str, int]:
    """Return the symbols whose sample alone the network takes, as far as a few other sizes tell: it was made for it."""
    pinned = {}
    for name, size in graph.symbols.items():
        others = {size + 1, size - 1, 2 * size, 3 * size, size + 32, size // 2} - {0, size}
        if not any(_fits(graph, {**graph.symbols, name: other}) for other in others):
            pinned[name] = size
    return pinned


def _fits(graph: Graph, symbols: Mapping[str, int]) -> bool:
    try:
        graph.infer_shapes(symbols)
    except PQNetError:
        return False
    return True


def _written(network: OnnxGraph) -> list[int]:
    """Return sizes that the network names, the commonest first: those of its example may be in shapes or in tables."""
    values = list(network.constants.values())
    values += [value for node in network.walk() for value in node.attrs.values() if isinstance(value, np.ndarray)]
    shapes = Counter(n for a in values if a.dtype == np.int64 and 0 < a.size <= 8 for n in a.reshape(-1).tolist())
    tables = Counter(n for a in values if a.dtype == np.float32 and a.ndim < 4 for n in a.shape)
    found = [n for counted in (shapes, tables) for n, _ in counted.most_common(12)]
    return [n for n in dict.fromkeys(found) if 1 < n < 1 << 16 and n not in SIZES]


def _samples(infos: Mapping[str, ValueInfo], network: OnnxGraph) -> Iterator[dict[str, int]]:
    """Yield sizes of the symbols to try: 2 samples and images of one size first, then all combinations of a few."""
    axes: dict[str, bool] = {}  # whether it is a first axis
    for info in infos.values():
        for axis, d in enumerate(info.shape):
            if isinstance(d, str):
                axes[d] = axes.get(d, False) or axis == 0
    if not axes:
        yield {}
        return
    seen = set()

    def fresh(sample: dict[str, int]) -> bool:
        key = tuple(sample.values())
        return not (key in seen or seen.add(key))  # type: ignore[func-returns-value]

    rest = [name for name, first in axes.items() if not first]
    sizes = (*SIZES, *_written(network), 1)
    for batch, size in product((2, 1), sizes if rest else (2,)):
        if fresh(sample := {name: batch if first else size for name, first in axes.items()}):
            yield sample
    for chosen in islice(product((*sizes, 2), repeat=len(axes)), TRIES):
        if fresh(sample := dict(zip(axes, chosen, strict=True))):
            yield sample
