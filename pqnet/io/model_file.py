"""A model as a file: what of a `Graph` becomes JSON, what becomes arrays, and the checks on the way back."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from pqnet._check import describe, error, integer, rng_seed
from pqnet.codecs import PACKED, Packed, codec_from_attrs
from pqnet.errors import FormatError, PQNetError, UnsupportedOpError
from pqnet.graph.graph import Graph, Node, Param, ValueInfo
from pqnet.graph.op import DTYPES, Attr, get_op
from pqnet.graph.sizes import MAX_ELEMENTS
from pqnet.io.container import (
    check_name,
    checked_file,
    container_bytes,
    container_content,
    container_nbytes,
    read_file,
    write_container,
)
from pqnet.io.drawing import draw_images
from pqnet.io.files import Path
from pqnet.io.signature import check_signature

__all__ = [
    "Golden",
    "graph_content",
    "graph_from_bytes",
    "graph_nbytes",
    "graph_of",
    "graph_to_bytes",
    "load_graph",
    "params_content",
    "params_from",
    "relative_differences",
    "save_graph",
]

MAX_DRAWN = 1 << 28  # float32 numbers that a golden record may draw: 1 GiB

MAX_IMAGES = 16  # they are drawn one by one

_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}  # JSON has no words for them


@dataclass(frozen=True, eq=False)
class Golden:
    """An input of a network and the outputs it must give, to check a copy of the network on another machine.

    Parameters
    ----------
    shapes : dict of str to tuple of int
        Inputs that are drawn from ``seed``: standard normal float32 numbers. They take no room in a file.
    seed : int, optional
        Needed if ``shapes`` names any.
    arrays : dict of str to array
        Inputs stored as they are: indices, masks, recorded data.
    outputs : dict of str to array
        What the network gives, all of it or some.
    images : sequence of str
        Those of ``shapes`` that are drawn as images, from 0 to 1; see `draw_images`.

    Examples
    --------
    >>> import numpy as np
    >>> from pqnet.graph import ValueInfo
    >>> from pqnet.io import Golden
    >>> golden = Golden.draw({"input": ValueInfo((2, 3))}, seed=0)
    >>> golden = golden.with_outputs({"output": np.maximum(golden.inputs()["input"], 0)})
    >>> golden.shapes, golden.outputs["output"].shape
    ({'input': (2, 3)}, (2, 3))
    """

    shapes: Mapping[str, tuple[int, ...]]
    seed: int | None = None
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    outputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    images: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.seed is not None or self.shapes:
            rng_seed(self.seed, "golden.seed")
        drawn = 0
        for name, shape in self.shapes.items():
            drawn += math.prod(integer(size, f"golden.shapes[{name!r}]", 0, MAX_ELEMENTS) for size in shape)
        if drawn > MAX_DRAWN:
            raise error("golden.shapes", f"at most {MAX_DRAWN} numbers to draw", drawn, "use a smaller batch")
        for name in self.images:
            shape = self.shapes.get(name, ())
            if len(shape) != 4 or shape[0] > MAX_IMAGES:
                wanted = f"inputs of shape (N, C, H, W), N at most {MAX_IMAGES}, among those drawn"
                raise error("golden.images", wanted, f"{name!r} of shape {tuple(shape)}")
        for name, array in (*self.arrays.items(), *self.outputs.items()):
            if not isinstance(array, np.ndarray):
                raise error(f"golden array {name!r}", "an array", describe(array))

    @classmethod
    def draw(
        cls, inputs: Mapping[str, ValueInfo], seed: int = 0, arrays: Mapping[str, np.ndarray] | None = None
    ) -> Self:
        """Return a record without outputs for inputs of given shapes and dtypes.

        Parameters
        ----------
        inputs : dict of str to ValueInfo
            All sizes known. Integer inputs become zeros, which index any table; bool inputs become True.
        seed : int
        arrays : dict of str to array, optional
            Inputs to store as they are instead.

        Raises
        ------
        PQNetError
            If the size of an input that has to be drawn is not a number.
        """
        rng_seed(seed)
        shapes: dict[str, tuple[int, ...]] = {}
        stored = dict(arrays or {})
        for name, info in inputs.items():
            if name in stored:
                continue
            shape = tuple(integer(size, f"inputs[{name!r}].shape", 0, MAX_ELEMENTS) for size in info.shape)
            if info.dtype == "float32":
                shapes[name] = shape
            else:
                stored[name] = np.full(shape, info.dtype == "bool", info.dtype)
        return cls(shapes, seed if shapes else None, stored)

    def with_outputs(self, outputs: Mapping[str, np.ndarray]) -> Self:
        """Return the record with the outputs that a network gives for its inputs."""
        return replace(self, outputs=dict(outputs))

    def inputs(self) -> dict[str, np.ndarray]:
        """Return the inputs by name; the drawn ones are the same at every call."""
        rng = np.random.default_rng(self.seed)
        drawn = {
            name: draw_images(rng, shape) if name in self.images else rng.standard_normal(shape, dtype=np.float32)
            for name, shape in self.shapes.items()
        }
        return {**drawn, **self.arrays}

    def largest_difference(self, outputs: Mapping[str, np.ndarray]) -> float:
        """Return the largest of `relative_differences` of outputs from the recorded ones."""
        if set(self.outputs) <= set(outputs):  # large ones may not be recorded
            outputs = {name: outputs[name] for name in self.outputs}
        return max(relative_differences(outputs, self.outputs).values(), default=0.0)


def relative_differences(outputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Compare the outputs of a network with those that are expected.

    Parameters
    ----------
    outputs, expected : dict of str to array
        The same names and shapes.

    Returns
    -------
    dict of str to float
        For each output the largest difference, relative to the largest finite magnitude of the expected array. Equal
        infinities and NaN in the same places are no difference; where only one is finite it is infinite.

    Raises
    ------
    PQNetError
        If names or shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from pqnet.io import relative_differences
    >>> relative_differences({"y": np.array([1.0, np.nan])}, {"y": np.array([2.0, np.nan])})
    {'y': 0.5}
    """
    if set(outputs) != set(expected):
        raise error("outputs", f"the names {sorted(expected)}", sorted(outputs))
    return {name: _relative_difference(name, outputs[name], want) for name, want in expected.items()}


def _relative_difference(name: str, array: np.ndarray, want: np.ndarray) -> float:
    if array.shape != want.shape:
        raise error(f"output {name!r}", f"shape {want.shape}", array.shape)
    a, b = array.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(b)
    if not np.isfinite(a[finite]).all() or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return math.inf
    largest = np.abs(b[finite]).max(initial=0)
    return float(np.abs(a[finite] - b[finite]).max(initial=0) / (largest or 1.0))


def save_graph(path: Path, graph: Graph, golden: Golden | None = None) -> None:
    """Write a graph as a model file.

    Parameters
    ----------
    path : str or path
        File to create, or to replace at once when all is written.
    graph : Graph
        Parameters keep their stored dtype and packed weights their codes. Equal graphs give equal bytes, if their
        dicts have equal order.
    golden : Golden, optional
        Must name every input of the graph and outputs of it, and fit their shapes and dtypes.

    Raises
    ------
    PQNetError
        If the graph is not valid, ``golden`` does not fit it, or the file cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> from pqnet.graph import GraphBuilder, ValueInfo
    >>> from pqnet.io import load_graph, save_graph
    >>> b = GraphBuilder({"input": ValueInfo(("batch", 4))}, {"batch": 2})
    >>> y = b.add("linear", "input", name="fc", params={"weight": np.ones((3, 4), np.float32)})
    >>> save_graph("example.h5", b.build({"output": y}))
    >>> graph, golden = load_graph("example.h5")
    >>> list(graph.params), golden
    (['fc.weight'], None)
    """
    write_container(path, "model", *_readable_content(graph, golden))


def graph_to_bytes(graph: Graph, golden: Golden | None = None) -> bytes:
    """Return the content of the file that `save_graph` makes of the same arguments; `graph_from_bytes` reads it."""
    return container_bytes("model", *_readable_content(graph, golden))


def graph_nbytes(graph: Graph, golden: Golden | None = None) -> int:
    """Return the bytes of the file that `save_graph` makes of the same arguments."""
    return container_nbytes("model", *graph_content(graph.validate(), golden))


def load_graph(path: Path, key: Path | None = None) -> tuple[Graph, Golden | None]:
    """Return graph and golden record of a model file, with ``key`` only if it is signed, see `pqnet.io.signature`.

    Raises
    ------
    FormatError
        If the file is damaged, forged, of another version or kind, or what it holds is no valid network.
    UnsupportedOpError
        If the network uses an operation that this pqnet does not have.
    PQNetError
        If the file is missing or cannot be read.
    """
    data = read_file(path) if key is None else checked_file(path)
    if key is not None:
        check_signature(path, data, key)
    return graph_of(*container_content(data, "model", str(path)), str(path))


def graph_from_bytes(data: bytes) -> tuple[Graph, Golden | None]:
    """Return graph and golden record from the content of a model file, or raise as `load_graph` does."""
    return graph_of(*container_content(data, "model", "data"), "data")


def graph_of(header: dict[str, Any], arrays: Mapping[str, np.ndarray], name: str) -> tuple[Graph, Golden | None]:
    """Return graph and golden record of the content of a container; ``name`` is for its errors."""
    try:
        return _from_file(header, arrays)
    except UnsupportedOpError as reason:
        raise UnsupportedOpError(f"{name}: {reason}") from None
    except PQNetError as reason:
        raise FormatError(f"{name}: {reason}") from None


# -- writing -------------------------------------------------------------------------------------------------


def _readable_content(graph: Graph, golden: Golden | None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what a file holds for a graph, after a look whether it can be read again."""
    header, arrays = graph_content(graph.validate(), golden)
    _graph_from(header, graph.params, golden)
    return header, arrays


def params_content(params: Mapping[str, Param]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the records and arrays that a file holds for parameters; `params_from` is the inverse."""
    records: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, param in params.items():
        if isinstance(param, Packed):
            records[name] = {"codec": param.codec.to_attrs(), "shape": list(param.shape)}
            arrays |= {f"params/{name}/{key}": array for key, array in param.arrays().items()}
        else:
            records[name] = None
            arrays[f"params/{name}/values"] = param
    return records, arrays


def graph_content(graph: Graph, golden: Golden | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the header and arrays that a file holds for a validated graph."""
    used = dict.fromkeys(name for node in graph.nodes for name in node.params.values())
    params, arrays = params_content({name: graph.params[name] for name in used})
    header: dict[str, Any] = {
        "inputs": {n: {"shape": list(i.shape), "dtype": i.dtype} for n, i in graph.inputs.items()},
        "outputs": graph.outputs,
        "symbols": graph.symbols,
        "nodes": [_node_record(node) for node in graph.nodes],
        "params": params,
        "meta": graph.meta,
    }
    if graph.conditions:
        header["conditions"] = list(graph.conditions)
    if golden is not None:
        header["golden"] = {"seed": golden.seed, "shapes": {n: list(s) for n, s in golden.shapes.items()}}
        header["golden"] |= {"images": list(golden.images)} if golden.images else {}
        arrays |= {f"golden/inputs/{n}": a for n, a in golden.arrays.items()}
        arrays |= {f"golden/outputs/{n}": a for n, a in golden.outputs.items()}
    return header, arrays


def _node_record(node: Node) -> dict[str, Any]:
    """Return a node of a validated graph as plain data, without what `Graph.validate` completes."""
    op = get_op(node.op)
    attrs = {n: _plain(node.attrs[n]) for n, attr in op.attrs.items() if node.attrs[n] != attr.default}
    params = {role: node.params[role] for role in op.params if role in node.params}
    record = {"op": node.op, "name": node.name, "inputs": list(node.inputs), "outputs": list(node.outputs)}
    return record | ({"attrs": attrs} if attrs else {}) | ({"params": params} if params else {})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# -- reading -------------------------------------------------------------------------------------------------


def _from_file(header: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[Graph, Golden | None]:
    """Build graph and golden record from what a file holds, or raise."""
    stored: dict[str, np.ndarray] = {}
    recorded: dict[str, dict[str, np.ndarray]] = {"inputs": {}, "outputs": {}}
    for path, array in arrays.items():
        match path.split("/", 2):
            case ["golden", "inputs" | "outputs" as part, name] if "golden" in header:
                recorded[part][name] = array
            case _:
                stored[path] = array
    params = params_from(header.get("params"), stored)
    golden = None
    if "golden" in header:
        given = _record(header["golden"], "golden")
        fields = _record({"images": []} | given, "golden", seed=object, shapes=dict, images=list)
        shapes = {n: _shape(s, f"golden input {n!r}") for n, s in fields["shapes"].items()}
        images = [check_name(n, "golden.images") for n in fields["images"]]
        golden = Golden(shapes, fields["seed"], recorded["inputs"], recorded["outputs"], images)
    return _graph_from(header, params, golden), golden


def params_from(records: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, Param]:
    """Rebuild parameters from `params_content`; anything that does not fit raises FormatError."""
    stored: dict[str, dict[str, np.ndarray]] = {}
    for path, array in arrays.items():
        first, _, rest = path.partition("/")
        if first != "params" or not rest:
            raise FormatError(f"array {path!r} belongs to nothing")
        name, _, key = rest.rpartition("/")
        stored.setdefault(name, {})[key] = array
    records = _record(records, "params")
    if unknown := sorted(set(stored) - set(records)):
        raise FormatError(f"the arrays of {unknown[:5]} belong to no parameter")
    return {name: _param(name, record, stored.get(name, {})) for name, record in records.items()}


def _param(name: str, record: Any, arrays: Mapping[str, np.ndarray]) -> Param:
    where = f"parameter {name!r}"
    if record is None:
        if set(arrays) != {"values"}:
            raise FormatError(f"{where}: expected an array 'values', got {sorted(arrays)}")
        return arrays["values"]
    fields = _record(record, where, codec=dict, shape=list)
    attrs, shape = fields["codec"], _shape(fields["shape"], where)
    if not isinstance(attrs.get("codec"), str):
        raise FormatError(f"{where}: expected the name of a codec, got {describe(attrs.get('codec'))}")
    try:
        codec = codec_from_attrs(attrs)
        packed = PACKED[codec.name].from_arrays(codec, shape, arrays)
    except PQNetError as reason:
        raise FormatError(f"{where}: {reason}") from None
    if packed.codec.to_attrs() != attrs:
        raise FormatError(f"{where}: expected the codec as it applies to shape {shape}, got {attrs}")
    return packed


def _graph_from(header: Mapping[str, Any], params: Mapping[str, Param], golden: Golden | None) -> Graph:
    """Build the graph and check golden record against it; the fields of the header are checked one by one."""
    optional = ({} if golden is None else {"golden": dict}) | ({"conditions": list} if "conditions" in header else {})
    types = {"inputs": dict, "outputs": dict, "symbols": dict, "nodes": list, "params": dict, "meta": dict}
    fields = _record(header, "header", **types, **optional)
    symbols = fields["symbols"]
    graph = Graph(
        inputs={n: _value_info(v, f"input {n!r}", symbols) for n, v in fields["inputs"].items()},
        outputs={n: check_name(v, f"output {n!r}") for n, v in fields["outputs"].items()},
        nodes=[_node(v, f"nodes[{i}]") for i, v in enumerate(fields["nodes"])],
        params=dict(params),
        symbols=symbols,
        meta=fields["meta"],
        conditions=tuple(check_name(c, "condition") for c in fields.get("conditions", ())),
    )
    for name in (*graph.inputs, *graph.outputs, *graph.params):
        check_name(name, "name")
    graph = graph.validate()
    if golden is not None:
        _check_golden(golden, graph)
    return graph


def _value_info(value: Any, where: str, symbols: Mapping[str, int]) -> ValueInfo:
    fields = _record(value, where, shape=list, dtype=str)
    if fields["dtype"] not in DTYPES:
        raise FormatError(f"{where}: expected dtype {', '.join(DTYPES)}, got {fields['dtype']!r}")
    for dim in fields["shape"]:
        if dim not in symbols if isinstance(dim, str) else not _is_size(dim):
            raise FormatError(f"{where}: expected sizes or symbols among {sorted(symbols)}, got {describe(dim)}")
    return ValueInfo(tuple(fields["shape"]), fields["dtype"])


def _node(value: Any, where: str) -> Node:
    fields = _record(
        {"attrs": {}, "params": {}} | _record(value, where),
        where,
        op=str,
        name=str,
        inputs=list,
        outputs=list,
        attrs=dict,
        params=dict,
    )
    where = f"node {check_name(fields['name'], f'{where}.name')!r}"
    op = get_op(fields["op"])
    attrs = {n: _attr(op.attrs.get(n), v) for n, v in fields["attrs"].items()}
    return Node(
        op.name,
        fields["name"],
        tuple(check_name(v, f"{where}: input") for v in fields["inputs"]),
        tuple(check_name(v, f"{where}: output") for v in fields["outputs"]),
        attrs,
        {role: check_name(v, f"{where}: {role}") for role, v in fields["params"].items()},
    )


def _attr(attr: Attr | None, value: Any) -> Any:
    real = attr is not None and attr.kind in ("float", "number")
    return _FLOATS.get(value, value) if real and isinstance(value, str) else value


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_ELEMENTS


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(_is_size(size) for size in value):
        raise FormatError(f"{where}: expected a shape, got {describe(value)}")
    return tuple(value)


def _record(value: Any, where: str, **types: type) -> dict[str, Any]:
    """Return a JSON object whose keys are exactly those of ``types`` (any if there are none), of these types."""
    if not isinstance(value, dict):
        raise FormatError(f"{where}: expected a JSON object, got {describe(value)}")
    if types and set(value) != set(types):
        raise FormatError(f"{where}: expected the keys {sorted(types)}, got {sorted(value)[:20]}")
    for key, kind in types.items():
        if not isinstance(value[key], kind) or isinstance(value[key], bool):
            raise FormatError(f"{where}.{key}: expected {kind.__name__}, got {describe(value[key])}")
    return value


def _check_golden(golden: Golden, graph: Graph) -> None:
    """Raise unless a golden record has the inputs of a graph and outputs of it, in fitting shapes and dtypes."""
    shapes = dict(golden.shapes) | {n: a.shape for n, a in golden.arrays.items()}
    if set(shapes) != set(graph.inputs) or set(golden.shapes) & set(golden.arrays):
        raise error("golden", f"the inputs {sorted(graph.inputs)}, each once", sorted([*golden.shapes, *golden.arrays]))
    if not golden.outputs or set(golden.outputs) - set(graph.outputs):
        raise error("golden", f"the outputs {sorted(graph.outputs)}", sorted(golden.outputs), "fill in .outputs")
    infos = graph.infer_shapes(graph.bind_symbols(shapes))
    dtypes = dict.fromkeys(golden.shapes, "float32") | {n: a.dtype.name for n, a in golden.arrays.items()}
    for name, dtype in dtypes.items():
        if dtype != graph.inputs[name].dtype:
            raise error(f"golden input {name!r}", graph.inputs[name].dtype, dtype)
    for name, array in golden.outputs.items():
        info = infos[graph.outputs[name]]
        if array.shape != info.shape or array.dtype.name != info.dtype:
            raise error(f"golden output {name!r}", f"{info.dtype} of shape {info.shape}", describe(array))
