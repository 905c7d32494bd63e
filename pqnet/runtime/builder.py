"""Building a program: steps, where their operands live, and the parameters that they read."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from pqnet.codecs import Packed
from pqnet.graph import Graph, Node
from pqnet.graph.op import Info, get_op, resolve_attrs
from pqnet.runtime.views import SLACK, Buffer, View

__all__ = ["LOWERINGS", "Builder", "Choose", "HostStep", "Step", "Store", "Upload", "aligned", "lowers"]

Field = int | View
LOWERINGS: dict[str, Callable[["Builder", Node, list[View]], View | tuple[View, ...] | None]] = {}


# Picks one of the ways to run a layer; given the node, the shape of its input and the expected cost of each way.
Choose = Callable[[Graph, Node, tuple[int, ...], Mapping[str, float]], str]


def lowers(*ops: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the way to turn nodes of these operations into steps."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for op in ops:
            LOWERINGS[op] = function
        return function

    return decorate


@dataclass(eq=False)
class Step:
    """One kernel over ``tasks`` tasks; a View among the fields stands for its offset in the arena."""

    kernel: Any
    label: str
    tasks: int
    fields: Sequence[Field]
    scratch: int = 0
    way: str = ""
    nbytes: int = 0  # of the values and parameters that it reads and writes


@dataclass(eq=False)
class HostStep:
    """A node that NumPy computes between kernels: arrays by value name in, arrays out."""

    node: Node
    label: str


@dataclass(eq=False)
class Upload:
    """Copies an array that NumPy holds into the arena."""

    value: str
    view: View


class Pool:
    """An array that grows: pieces by key, each on a cache line of its own."""

    def __init__(self, dtype: type[np.generic], align: int) -> None:
        self.dtype, self.align = dtype, align
        self.offsets: dict[Hashable, int] = {}
        self.pieces: list[np.ndarray] = []
        self.size = 0
        self._array: np.ndarray | None = None

    def add(self, key: Hashable, make: Callable[[], Any]) -> int:
        """Return the offset of the piece with this key; ``make`` gives it when it is new."""
        if key not in self.offsets:
            piece = np.ascontiguousarray(make(), self.dtype).reshape(-1)
            self.offsets[key] = self.size
            self.pieces.append(piece)
            self.size += -(-piece.size // self.align) * self.align
            self._array = None
        return self.offsets[key]

    def array(self) -> np.ndarray:
        """Return all pieces in one array on a 64-byte boundary, with slack behind."""
        if self._array is None:
            whole = aligned(self.size + SLACK, self.dtype)
            at = 0
            for piece in self.pieces:
                whole[at : at + piece.size] = piece
                at += -(-piece.size // self.align) * self.align
            self._array, self.pieces = whole, [whole[: self.size]] if self.size else []
        return self._array


def aligned(size: int, dtype: type) -> np.ndarray:
    """Return zeros on a 64-byte boundary."""
    item = np.dtype(dtype).itemsize
    raw: np.ndarray = np.zeros(size + 64 // item, dtype)
    start = (-raw.ctypes.data % 64) // item
    return raw[start : start + size]


@dataclass
class Store:
    """The parameters of a model as kernels read them; shared by the programs of all input shapes."""

    const: Pool = field(default_factory=lambda: Pool(np.float32, 16))
    codes: Pool = field(default_factory=lambda: Pool(np.uint8, 64))


class Builder:
    """Collects the steps of one graph at known sizes."""

    def __init__(self, graph: Graph, symbols: Mapping[str, int], store: Store, choose: Choose) -> None:
        self.graph, self.symbols, self.store, self.choose = graph, dict(symbols), store, choose
        self.infos = graph.infer_shapes(symbols)
        self.steps: list[Step | HostStep | Upload] = []
        self.buffers: list[Buffer] = []
        self.known: dict[str, np.ndarray] = {}  # values that do not depend on the inputs
        self.index = Pool(np.int32, 16)
        self._views: dict[str, View] = {}
        self._host: set[str] = set(graph.inputs)
        self._done: set[str] = set()
        self._users: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for value in node.inputs:
                self._users.setdefault(value, []).append(node)
        self._outputs = set(graph.outputs.values())

    def attrs(self, node: Node) -> Mapping[str, Any]:
        """Return the attributes of a node with all sizes known."""
        return resolve_attrs(get_op(node.op), node.attrs, self.symbols)

    def info(self, value: str) -> Info:
        """Return shape and dtype of a value."""
        return self.infos[value]

    def param(self, node: Node, role: str) -> np.ndarray | Packed | None:
        """Return a parameter of a node."""
        return self.graph.params[node.params[role]] if role in node.params else None

    def floats(self, node: Node, role: str) -> np.ndarray | None:
        """Return a parameter of a node as float32 array."""
        param = self.param(node, role)
        if param is None:
            return None
        return param.decode() if isinstance(param, Packed) else np.asarray(param, np.float32)

    def constant(self, key: Hashable, make: Callable[[], Any]) -> int:
        """Return the offset of ``make()`` among the float parameters; cached by ``key``."""
        return self.store.const.add(key, make)

    def code_bytes(self, key: Hashable, make: Callable[[], Any]) -> int:
        """Return the offset of ``make()`` (uint8) among the codes; cached by ``key``."""
        return self.store.codes.add(key, make)

    def indices(self, array: Any) -> int:
        """Return the offset of an offset table."""
        table = np.ascontiguousarray(array, np.int32)
        return self.index.add(table.tobytes(), lambda: table)

    def new(self, shape: Sequence[int], order: Sequence[int] | None = None) -> View:
        """Return a new value, stored densely with its axes in ``order`` from outermost to innermost."""
        now = len(self.steps)
        buffer = Buffer(max(prod(shape), 1), now, now)
        self.buffers.append(buffer)
        return View.dense_in(buffer, shape, range(len(shape)) if order is None else order)

    def emit(
        self,
        kernel: Any,
        label: str,
        tasks: int,
        fields: Sequence[Field],
        *,
        reads: Sequence[View],
        writes: Sequence[View],
        scratch: int = 0,
        way: str = "",
        stored: int = 0,
    ) -> None:
        """Append a step; ``scratch`` floats are needed by each thread, ``stored`` bytes of parameters are read."""
        for view in (*reads, *writes):
            view.buffer.last = max(view.buffer.last, len(self.steps))
        nbytes = stored + 4 * sum(view.size for view in (*reads, *writes))
        self.steps.append(Step(kernel, label, tasks, list(fields), scratch, way or kernel.__name__, nbytes))

    def users(self, value: str) -> list[Node]:
        """Return the nodes that read a value, once for each time they do."""
        return self._users.get(value, [])

    def is_output(self, value: str) -> bool:
        """Tell whether the graph returns a value."""
        return value in self._outputs

    def ready(self, value: str) -> bool:
        """Tell whether a value is computed by the steps so far."""
        return value in self._views or value in self._host or value in self.known

    def is_done(self, node: Node) -> bool:
        """Tell whether the steps so far compute a node."""
        return node.name in self._done

    def view(self, value: str) -> View:
        """Return where a computed float32 value lives in the arena, putting it there if NumPy holds it."""
        if value not in self._views:
            shape = self.infos[value].shape
            view = self.new(shape, channel_major(len(shape)))
            self.steps.append(Upload(value, view))
            self._views[value] = view
        return self._views[value]

    def place(self, value: str) -> View | None:
        """Return the view of a value if it lives in the arena."""
        return self._views.get(value)

    def finish(self, node: Node, *views: View) -> None:
        """Mark a node as computed, its outputs being ``views``."""
        self._done.add(node.name)
        self._views.update(zip(node.outputs, views, strict=True))

    def forget(self, node: Node) -> None:
        """Mark a node as computed now, once for all runs."""
        self._done.add(node.name)

    def finish_on_host(self, node: Node) -> None:
        """Leave a node to NumPy, now."""
        for value in node.inputs:
            if value in self._views:
                self._views[value].buffer.last = max(self._views[value].buffer.last, len(self.steps))
        self.steps.append(HostStep(node, node.name))
        self._done.add(node.name)
        self._host.update(node.outputs)


def channel_major(ndim: int) -> tuple[int, ...]:
    """Return the storage order with the features outermost: axis 1 of images, the last axis of anything else."""
    if ndim < 2:
        return tuple(range(ndim))
    first = 1 if ndim == 4 else ndim - 1
    return (first, *(a for a in range(ndim) if a != first))
