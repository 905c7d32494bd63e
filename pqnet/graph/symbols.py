"""Which sizes of a network's outputs follow from the free symbols of its inputs."""

from collections.abc import Mapping

from pqnet.errors import PQNetError
from pqnet.graph.graph import Graph
from pqnet.graph.op import Info
from pqnet.graph.sizes import Size

__all__ = ["Signature", "output_signature"]

Signature = dict[str, tuple[tuple[int | None, ...], str]]
Points = list[dict[str, int]]


def output_signature(graph: Graph) -> Signature:
    """Return shape and dtype of every output of a validated graph.

    Shapes are inferred once, with sizes that know what they are at other sizes of the symbols, and once more for each
    smaller size at which alone an output would have another shape: a network may not take it.

    Returns
    -------
    dict of str to (tuple of int or None, str)
        In return order; None stands for an axis whose size depends on a symbol.

    Examples
    --------
    >>> from pqnet.graph import GraphBuilder, ValueInfo
    >>> b = GraphBuilder({"x": ValueInfo(("n", 4))}, {"n": 3})
    >>> y = b.add("slice", "x", axis=0, stop="n//2")
    >>> output_signature(b.build({"y": y}))
    {'y': ((None, 4), 'float32')}
    """
    larger, smaller = _larger(graph.symbols), _smaller(graph.symbols)
    points = larger + smaller
    symbols = {name: Size.of(size, tuple(p[name] for p in points)) for name, size in graph.symbols.items()}
    infos = graph.infer_shapes(symbols)
    tried: dict[int, dict[str, Info] | None] = {}

    def free(value: str, axis: int, size: int) -> bool:
        if not isinstance(size, Size):
            return False
        differs = [i for i, other in enumerate(size.elsewhere) if other is not None and other != size]
        if differs[0] < len(larger):
            return True
        for i in differs:
            if i not in tried:
                tried[i] = _shapes(graph, points[i])
            found = tried[i]
            if found is not None and found[value].shape[axis] != size:
                return True
        return False

    signature: Signature = {}
    for name, value in graph.outputs.items():
        shape, dtype = infos[value]
        signature[name] = tuple(None if free(value, i, s) else int(s) for i, s in enumerate(shape)), dtype
    return signature


def _shapes(graph: Graph, symbols: Mapping[str, int]) -> dict[str, Info] | None:
    try:
        return graph.infer_shapes(symbols)
    except PQNetError:
        return None


def _larger(symbols: Mapping[str, int]) -> Points:
    """Return points where one symbol is larger; the last so much that every quotient of it is."""
    more = [(1, 1), (1, 2), (1, 3), (1, 5), (1, 7), (2, 0), (3, 0), (1 << 20, 1)]
    return [{**symbols, name: size * factor + term} for name, size in symbols.items() for factor, term in more]


def _smaller(symbols: Mapping[str, int]) -> Points:
    points: Points = []
    for name, size in symbols.items():
        points += [{**symbols, name: n} for n in sorted({1, 2, 3, size // 2, size - 1}) if 0 < n < size]
    return points
