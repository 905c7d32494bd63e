"""Reads an ONNX file as plain data, and checks it before anything is built."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from pqnet.errors import FormatError, PQNetError, UnsupportedOpError
from pqnet_converters.core.importer import graph_dtype

__all__ = ["OPSETS", "Declared", "OnnxGraph", "OnnxNode", "element_dtype", "read"]

OPSETS = range(9, 24)  # what rules are written for
STANDARD = ("", "ai.onnx")
T = onnx.TensorProto


@dataclass(frozen=True)
class Declared:
    """A declared input or output: sizes are numbers, names of free symbols, or None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class OnnxNode:
    """One operation; an attribute that is a graph is an `OnnxGraph`, one that is a tensor an array."""

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Name under which rules are registered: that of the domain before those that are not standard."""
        return self.op if self.domain in STANDARD else f"{self.domain}::{self.op}"


@dataclass(frozen=True)
class OnnxGraph:
    """A graph, or the body of a control operation."""

    inputs: tuple[Declared, ...]
    outputs: tuple[Declared, ...]
    nodes: tuple[OnnxNode, ...]
    constants: Mapping[str, np.ndarray]
    opset: int = 0
    producer: str = ""

    def walk(self) -> Iterator[OnnxNode]:
        """Yield all nodes, those of bodies too."""
        for node in self.nodes:
            yield node
            for value in node.attrs.values():
                if isinstance(value, OnnxGraph):
                    yield from value.walk()


def read(source: str | Path | bytes) -> OnnxGraph:
    """Read a network from a file or from its bytes.

    Raises
    ------
    FormatError
        The file is damaged or no ONNX model, or what it refers to is missing or lies outside its folder.
    UnsupportedOpError
        It is of another operator set, or has values that are no tensors of real numbers.
    PQNetError
        There is no readable file.
    """
    folder = None
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    else:
        path = Path(source)
        try:
            data = path.read_bytes()
        except OSError as reason:
            raise PQNetError(f"path: expected a readable ONNX file, got {path}: {reason.strerror}") from None
        folder = path.parent
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise FormatError(
            "ONNX file: expected a model, got data that is damaged, truncated or of another kind"
        ) from None
    _check_text(model)
    if not model.HasField("graph") or not model.opset_import:
        raise FormatError("ONNX file: expected a model with a graph and an operator set, got none; is it truncated?")
    opset = max((o.version for o in model.opset_import if o.domain in STANDARD), default=OPSETS[-1])
    if opset not in OPSETS:
        way = "onnx.version_converter can convert it" if opset < OPSETS[0] else "export it with an older opset"
        raise UnsupportedOpError(f"ONNX file: expected opset {OPSETS[0]} to {OPSETS[-1]}, got {opset}; {way}")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    try:
        return _Reader(folder).graph(model.graph, opset, model.producer_name)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as reason:
        if isinstance(reason, PQNetError):
            raise
        raise FormatError(f"ONNX file: the model is not valid: {reason}") from reason


def _check_text(message: Any) -> None:
    """Raise unless all names are text: those that are not UTF-8 come from protobuf as bytes."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for item in [value] if isinstance(value, str | bytes) or hasattr(value, "ListFields") else value:
            if field.type == field.TYPE_STRING and not isinstance(item, str):
                raise FormatError(f"ONNX file: {field.name}: expected UTF-8, got {item[:60]!r}")
            if field.type == field.TYPE_MESSAGE:
                _check_text(item)


class _Reader:
    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.files: dict[Path, np.ndarray] = {}

    def graph(self, graph: Any, opset: int, producer: str = "") -> OnnxGraph:
        constants = {t.name: self.array(t, f"initializer {t.name!r}") for t in graph.initializer}
        if graph.sparse_initializer:
            raise UnsupportedOpError(
                f"initializer {graph.sparse_initializer[0].values.name!r}: sparse tensors have no rule"
            )
        inputs = tuple(_declared(v, "input") for v in graph.input if v.name not in constants)
        outputs = tuple(_declared(v, "output") for v in graph.output)
        nodes = tuple(self.node(n, opset) for n in graph.node)
        return OnnxGraph(inputs, outputs, nodes, constants, opset, producer)

    def node(self, node: Any, opset: int) -> OnnxNode:
        where = node.name or (node.output[0] if node.output else node.op_type)
        attrs = {a.name: self.attribute(a, opset, where) for a in node.attribute}
        name = _scoped(node) or node.name
        return OnnxNode(node.op_type, node.domain, name, tuple(node.input), tuple(node.output), attrs)

    def attribute(self, attribute: Any, opset: int, where: str) -> Any:
        kind = attribute.type
        if kind == onnx.AttributeProto.GRAPH:
            return self.graph(attribute.g, opset)
        if kind == onnx.AttributeProto.TENSOR:
            return self.array(attribute.t, f"node {where!r}: attribute {attribute.name!r}")
        if kind == onnx.AttributeProto.SPARSE_TENSOR:
            raise UnsupportedOpError(f"node {where!r}: attribute {attribute.name!r}: sparse tensors have no rule")
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            return value.decode(errors="replace")
        if isinstance(value, Iterable) and not isinstance(value, str):
            return [v.decode(errors="replace") if isinstance(v, bytes) else v for v in value]
        return value

    def array(self, tensor: Any, where: str) -> np.ndarray:
        if tensor.data_type == T.STRING:
            raise UnsupportedOpError(f"{where}: a tensor of strings; tokenize before the network")
        if tensor.data_type not in T.DataType.values() or tensor.data_type == T.UNDEFINED:
            raise FormatError(f"{where}: expected a known data type, got number {tensor.data_type}")
        dtype = element_dtype(tensor.data_type, where)
        if tensor.data_location == T.EXTERNAL:
            array = self.external(tensor, where)
        else:
            try:
                array = numpy_helper.to_array(tensor)
            except (TypeError, ValueError) as reason:
                raise FormatError(f"{where}: damaged or truncated data: {reason}") from None
        if tuple(array.shape) != tuple(tensor.dims):
            raise FormatError(f"{where}: expected data of shape {tuple(tensor.dims)}, got {array.shape}")
        return np.asarray(array).astype(dtype, copy=False)

    def external(self, tensor: Any, where: str) -> np.ndarray:
        """Read a tensor from a file beside the model; never from elsewhere."""
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        if self.folder is None:
            raise FormatError(
                f"{where}: its data is in the file {location!r} beside the model; "
                "pass the path of the model, not its bytes"
            )
        folder = self.folder.resolve()
        path = (folder / location).resolve()
        if not location or not path.is_relative_to(folder) or path == folder:
            raise FormatError(f"{where}: expected its data in a file in the folder of the model, got {location!r}")
        if path not in self.files:
            try:
                self.files[path] = np.memmap(path, np.uint8, mode="r")
            except (OSError, ValueError) as reason:
                raise FormatError(
                    f"{where}: its data is missing: cannot read {location!r} beside the model: {reason}"
                ) from None
        whole = self.files[path]
        count = int(np.prod(tensor.dims, dtype=np.int64))
        bits = {T.INT4: 4, T.UINT4: 4}.get(tensor.data_type, 0) or 8 * onnx.helper.tensor_dtype_to_np_dtype(
            tensor.data_type
        ).itemsize
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -(-count * bits // 8)))
        if offset < 0 or length != -(-count * bits // 8) or offset + length > whole.size:
            raise FormatError(
                f"{where}: expected {count} elements in {location!r} from byte {offset}, "
                f"got {whole.size} bytes in the file"
            )
        copy = T()
        copy.data_type, copy.raw_data = tensor.data_type, whole[offset : offset + length].tobytes()
        copy.dims.extend(tensor.dims)
        return np.asarray(numpy_helper.to_array(copy))


def _scoped(node: Any) -> str:
    """Return the name of a node after its module, where PyTorch's newer exporter notes that; like the older's names."""
    scopes = next((p.value for p in getattr(node, "metadata_props", ()) if p.key == "pkg.torch.onnx.name_scopes"), "")
    parts = re.findall(r"'([^']*)'", scopes)
    if len(parts) < 2 or not parts[-2] or parts[-2].startswith("_"):
        return ""
    return f"/{parts[-2].replace('.', '/')}/{node.op_type}"


def element_dtype(number: int, where: str) -> str:
    """Return the graph's dtype for the number that ONNX gives to an element type."""
    name = T.DataType.Name(number).lower()
    return graph_dtype({"float": "float32", "double": "float64"}.get(name, name), where)


def _declared(value: Any, what: str) -> Declared:
    where = f"{what} {value.name!r}"
    kind = value.type.WhichOneof("value")
    if kind not in ("tensor_type", None):
        raise UnsupportedOpError(f"{where}: expected a tensor, got a {kind.removesuffix('_type')}; it has no rule")
    tensor = value.type.tensor_type
    if tensor.elem_type == T.STRING:
        raise UnsupportedOpError(f"{where}: a tensor of strings; tokenize before the network")
    dtype = element_dtype(tensor.elem_type, where) if tensor.elem_type else "float32"
    if not tensor.HasField("shape"):
        return Declared(value.name, dtype, None)
    return Declared(value.name, dtype, tuple(_size(d) for d in tensor.shape.dim))


def _size(dim: Any) -> int | str | None:
    if dim.WhichOneof("value") == "dim_param":
        return dim.dim_param or None
    return dim.dim_value if dim.dim_value > 0 else None
