"""Building a program: steps, where their operands live, and the parameters that they read."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from pqnet._check import error
from pqnet.codecs import Packed
from pqnet.errors import PQNetError
from pqnet.graph import Graph, Node
from pqnet.graph.op import Info, get_op, resolve_attrs
from pqnet.kernels.abi import StepKernel
from pqnet.runtime.memory import ITEMSIZE, Buffer, Piece, Store, View

if TYPE_CHECKING:
    from pqnet.runtime.layer import Layer

__all__ = [
    *("LOWERINGS", "TYPED", "Builder", "Check", "Choose", "HostStep", "Lowering"),
    *("Rounds", "Step", "Upload", "lowers"),
]

# Picks one of the algorithms for a layer; given the layer, the arithmetic and the expected cost of each.
Choose = Callable[["Layer", str, Mapping[str, float]], str]


@dataclass(frozen=True)
class Lowering:
    """How nodes of an operation become steps.

    ``emit(builder, node, views)`` returns the view of the result, a tuple of several, or None if NumPy has to compute
    this node. Those of TYPED are given nodes of any dtypes; those of LOWERINGS, which are asked first, only nodes all
    of whose values are float32.
    """

    emit: Callable[["Builder", Node, list[View]], View | tuple[View, ...] | None]


LOWERINGS: dict[str, Lowering] = {}
TYPED: dict[str, Lowering] = {}


def lowers(*ops: str, typed: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the lowering of these operations."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        (TYPED if typed else LOWERINGS).update(dict.fromkeys(ops, Lowering(function)))
        return function

    return decorate


@dataclass(eq=False)
class Check:
    """What must be true before a node's result is used: its indices, whose range ``view`` holds, lie below a size."""

    node: Node
    view: View
    below: int

    def verify(self, limits: np.ndarray) -> None:
        """Raise PQNetError if the range does not fit, as NumPy's form of the node does."""
        low, high = (int(limit) for limit in limits)
        if low < 0 or high >= self.below:
            reason = error("ids", f"entries in [0, {self.below})", f"range [{low}, {high}]")
            raise PQNetError(f"node {self.node.name!r} ({self.node.op}): {reason}")


@dataclass(eq=False)
class Rounds:
    """Steps that follow each other and are run, one after the other, so many times."""

    times: int


@dataclass(eq=False)
class Step:
    """One kernel over ``tasks`` tasks; a View among the arguments stands for its position in the arena.

    Its arguments are the same in all rounds. If it is ``numbered``, its kernel sees in which it is: tasks are counted
    on from round to round.
    """

    kernel: StepKernel
    label: str
    tasks: int
    arguments: Mapping[str, Any]
    reads: Sequence[View]
    writes: Sequence[View]
    scratch: int = 0
    algorithm: str = ""
    nbytes: int = 0  # of the values and parameters that it reads and writes
    check: Check | None = None  # of what it wrote
    numbered: bool = False
    rounds: Rounds | None = None


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


class Table:
    """The int64 tables of a program one behind another, equal ones once."""

    def __init__(self) -> None:
        self.offsets: dict[bytes, int] = {}
        self.parts: list[np.ndarray] = []
        self.size = 0

    def add(self, numbers: Any) -> int:
        """Return the offset of a table."""
        part = np.ascontiguousarray(numbers, np.int64).reshape(-1)
        key = part.tobytes()
        if key not in self.offsets:
            self.offsets[key] = self.size
            self.parts.append(part)
            self.size += part.size
        return self.offsets[key]

    def array(self) -> np.ndarray:
        """Return all tables in one array, with slack behind."""
        return np.concatenate([*self.parts, np.zeros(16, np.int64)])


class Builder:
    """Collects the steps of one graph at known sizes, for one kind of arithmetic (``compute``)."""

    def __init__(
        self, graph: Graph, symbols: Mapping[str, int], store: Store, choose: Choose, compute: str = "float32"
    ) -> None:
        self.graph, self.symbols, self.store, self.choose, self.compute = graph, dict(symbols), store, choose, compute
        self.infos = graph.infer_shapes(symbols)
        self.steps: list[Step | HostStep | Upload] = []
        self.buffers: list[Buffer] = []
        self.known: dict[str, np.ndarray] = {}  # values that do not depend on the inputs
        self.pieces: dict[int, Piece] = {}
        self.index = Table()
        self.derived: dict[Hashable, View] = {}  # values in another form, by what they are made from
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
        """Return the offset of ``make()`` among the float parameters; ``key`` names all that it depends on."""
        return self._piece(key, make, np.float32)

    def numbers(self, *numbers: float) -> int:
        """Return the offset of some numbers among the float parameters."""
        array = np.array(numbers, np.float32)
        return self.constant(("numbers", array.tobytes()), lambda: array)

    def code_bytes(self, key: Hashable, make: Callable[[], Any]) -> int:
        """Return the offset of ``make()`` (uint8) among the codes; ``key`` names all that it depends on."""
        return self._piece(key, make, np.uint8)

    def stored(self, key: Hashable, array: np.ndarray) -> int:
        """Return the offset of a float32 or uint8 array that is not copied: kernels may not read beyond its end."""
        return self._piece((key, "not copied"), lambda: array, array.dtype.type, slack=False)

    def _piece(self, key: Hashable, make: Callable[[], Any], dtype: type[np.generic], slack: bool = True) -> int:
        piece = self.store.piece(key, make, dtype, slack)
        self.pieces[id(piece)] = piece
        return piece.position

    def table(self, numbers: Any) -> int:
        """Return the offset of an int64 table."""
        return self.index.add(numbers)

    def new(self, shape: Sequence[int], order: Sequence[int] | None = None, dtype: str = "float32") -> View:
        """Return a new value, stored densely with its axes in ``order`` from outermost to innermost."""
        now = len(self.steps)
        buffer = Buffer(max(prod(shape), 1) * ITEMSIZE[dtype], now, now)
        self.buffers.append(buffer)
        return View.dense_in(buffer, shape, range(len(shape)) if order is None else order, dtype)

    def emit(
        self,
        kernel: StepKernel,
        label: str,
        tasks: int,
        arguments: Mapping[str, Any],
        *,
        reads: Sequence[View],
        writes: Sequence[View],
        scratch: int = 0,
        algorithm: str = "",
        stored: int = 0,
        check: Check | None = None,
        numbered: bool = False,
    ) -> None:
        """Append a step; ``scratch`` floats are needed by each thread, ``stored`` bytes of parameters are read."""
        for view in (*reads, *writes):
            view.buffer.last = max(view.buffer.last, len(self.steps))
        nbytes = stored + sum(view.nbytes for view in (*reads, *writes))
        own = algorithm or kernel.name
        step = Step(kernel, label, tasks, arguments, reads, writes, scratch, own, nbytes, check, numbered)
        self.steps.append(step)

    def repeat(self, first: int, times: int) -> None:
        """Run the steps from number ``first`` on so many times; what they carry from round to round is older."""
        rounds = Rounds(times)
        for step in self.steps[first:]:
            assert isinstance(step, Step)  # NumPy computes nothing between them
            step.rounds = rounds
            for view in (*step.reads, *step.writes):
                if view.buffer.first < first:
                    view.buffer.last = max(view.buffer.last, len(self.steps) - 1)

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
        """Return where a computed value lives in the arena, putting it there if NumPy holds it."""
        if value not in self._views:
            shape, dtype = self.infos[value]
            view = self.new(shape, storage_order(len(shape), dtype), dtype)
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


def storage_order(ndim: int, dtype: str) -> tuple[int, ...]:
    """Return the order in which a new value is stored: floats as layers read them, anything else row by row."""
    return channel_major(ndim) if dtype == "float32" else tuple(range(ndim))
