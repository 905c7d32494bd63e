"""Which channels of a network may change places, and the network with its channels in another order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pqnet.codecs import Packed
from pqnet.graph.axes import Axes, Segment, Tracked, fix, fresh, resolve
from pqnet.graph.graph import Graph, param_info
from pqnet.graph.op import get_op, resolve_attrs

__all__ = ["Channels", "Orders"]

Orders = Mapping[int, np.ndarray]  # of some sets of channels, by number: which channel comes where


@dataclass(frozen=True)
class Place:
    """Where a part of an axis lies: elements ``start`` on, ``repeat`` neighbours for each channel of a set."""

    channels: int
    start: int
    repeat: int


@dataclass(frozen=True)
class Channels:
    """The sets of channels that may change places among themselves, and what must follow them.

    Parameters
    ----------
    sizes : tuple of int
        Number of channels of each set.
    places : dict of (str, int) to tuple of Place
        The parts of a parameter's axis, by its name and the axis, that follow a set; all others keep their order.
    """

    sizes: tuple[int, ...]
    places: Mapping[tuple[str, int], tuple[Place, ...]]

    @classmethod
    def find(cls, graph: Graph) -> "Channels":
        """Follow the order of elements from operation to operation; inputs and outputs of the network keep theirs."""
        numbers: dict[Segment, int] = {}
        places: dict[tuple[str, int], tuple[Place, ...]] = {}
        for name, axes in _param_axes(graph).items():
            for i, axis in enumerate(axes):
                found, start = [], 0
                for piece in resolve(axis):
                    if not piece.segment.fixed:
                        number = numbers.setdefault(piece.segment, len(numbers))
                        found.append(Place(number, start, piece.repeat))
                    start += piece.size
                if found:
                    places[name, i] = tuple(found)
        return cls(tuple(segment.size for segment in numbers), places)

    def starts(self, name: str, axis: int, channels: int) -> tuple[int, ...]:
        """Return where a set lies on a parameter's axis, one element for each channel."""
        places = self.places.get((name, axis), ())
        return tuple(place.start for place in places if place.channels == channels and place.repeat == 1)

    def order(self, name: str, axis: int, size: int, orders: Orders) -> np.ndarray:
        """Return which element of a parameter's axis of ``size`` comes where, for new orders of some of the sets."""
        index = np.arange(size)
        for place in self.places.get((name, axis), ()):
            if place.channels in orders:
                order = orders[place.channels]
                moved = place.start + order[:, None] * place.repeat + np.arange(place.repeat)
                index[place.start : place.start + moved.size] = moved.reshape(-1)
        return index

    def apply(self, graph: Graph, orders: Orders) -> Graph:
        """Return the graph of the same function whose sets of channels are in new orders: new channel i is order[i]."""
        params = dict(graph.params)
        for (name, axis), places in self.places.items():
            if any(place.channels in orders for place in places):
                param = np.asarray(params[name])
                params[name] = np.take(param, self.order(name, axis, param.shape[axis], orders), axis)
        return replace(graph, params=params)


def _param_axes(graph: Graph) -> dict[str, Axes]:
    params: dict[str, Tracked] = {}
    for name, param in graph.params.items():
        packed = isinstance(param, Packed)
        params[name] = Tracked(param_info(param).shape, tuple(fresh(size, fixed=packed) for size in param.shape))
    shapes = {name: info.shape for name, info in graph.infer_shapes(graph.symbols).items()}
    values = {name: tuple(fresh(size, fixed=True) for size in shapes[name]) for name in graph.inputs}
    for node in graph.nodes:
        op = get_op(node.op)
        inputs = [Tracked(shapes[v], values[v]) for v in node.inputs]
        roles = {role: params[name] for role, name in node.params.items()}
        if op.order is None:
            _fix_all([*inputs, *roles.values()])
            results: Sequence[Axes] = [tuple(fresh(size, fixed=True) for size in shapes[v]) for v in node.outputs]
        else:
            found = op.order(inputs, roles, resolve_attrs(op, node.attrs, graph.symbols))
            results = found if isinstance(found, list) else [found]
        for value, axes in zip(node.outputs, results, strict=True):
            # Where an operation computes elements from several, its rule gives no axis, or that of the input.
            known = zip(axes, shapes[value], strict=True)
            values[value] = tuple(a if sum(p.size for p in a) == n else fresh(n, fixed=True) for a, n in known)
    _fix_all([Tracked(shapes[v], values[v]) for v in graph.outputs.values()])
    return {name: tracked.axes for name, tracked in params.items()}


def _fix_all(values: Sequence[Tracked]) -> None:
    for value in values:
        for axis in value.axes:
            fix(axis)
