"""Where the nodes of a network lie when it is drawn: boxes in rows by depth, sizes as widths, lines between."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from pqnet.graph import Graph, Node
from pqnet.graph.op import Info

__all__ = ["Box", "Drawing", "Line", "draw"]

WIDTH, HEIGHT, GAP = 270, 52, 26  # of a box, and between rows
COLUMN = WIDTH + 40
BAR = WIDTH - 20  # width of the largest weight
THICK = 7.0  # line of the largest value
LETTERS = 36  # that fit into a box


@dataclass
class Box:
    """Nodes that follow one another, the first of them perhaps a layer; or an input or output of the network."""

    title: str
    text: str
    label: str  # in full, for those who hover or listen
    kind: str  # layer, other or end
    row: int = 0
    x: float = 0.0  # of the middle
    dense: float = 0.0  # widths of bars: the weight as float32, and as it is stored
    stored: float = 0.0

    @property
    def y(self) -> float:
        """Upper edge."""
        return self.row * (HEIGHT + GAP)


@dataclass(frozen=True)
class Line:
    """A value on its way from a box to another: an SVG path, its width, and what it is."""

    path: str
    width: float
    label: str


@dataclass(frozen=True)
class Drawing:
    """Boxes and lines, and the rectangle that holds them."""

    boxes: list[Box]
    lines: list[Line]
    left: float
    width: float
    height: float


def draw(graph: Graph, nbytes: Mapping[str, tuple[int, int]], texts: Mapping[str, str]) -> Drawing:
    """Lay out a network.

    Parameters
    ----------
    graph : Graph
    nbytes : dict of str to (int, int)
        Bytes of the weight of each layer, as stored and as float32.
    texts : dict of str to str
        What the box of each layer says below its name.

    Returns
    -------
    Drawing
        With the inputs in the first row, and every box below those that it reads.
    """
    infos = graph.infer_shapes(graph.symbols)
    boxes = [Box(_short(n), _shape(infos[n]), f"input {n}, {_shape(infos[n])}", "end") for n in graph.inputs]
    home = {name: i for i, name in enumerate(graph.inputs)}  # box in which a value is made
    edges: list[tuple[int, int, str]] = []
    for nodes in _chains(graph, set(nbytes)):
        first, box = nodes[0], len(boxes)
        boxes.append(_box(nodes, nbytes.get(first.name), max([d for _, d in nbytes.values()] or [1]), texts))
        inside = {value for node in nodes for value in node.outputs}
        read = dict.fromkeys(v for node in nodes for v in node.inputs if v not in inside)
        edges += [(home[value], box, value) for value in read]
        home |= dict.fromkeys(inside, box)
    for name, value in graph.outputs.items():
        edges.append((home[value], len(boxes), value))
        boxes.append(Box(_short(name), _shape(infos[value]), f"output {name}, {_shape(infos[value])}", "end"))
    _place(boxes, edges)
    widest = max([prod(infos[value].shape) for *_, value in edges] or [1])
    lines = [_line(boxes[a], boxes[b], infos[value], value, widest) for a, b, value in edges]
    left = min(box.x for box in boxes) - COLUMN / 2
    right = max(box.x for box in boxes) + COLUMN / 2
    bottom = max(box.y for box in boxes) + HEIGHT
    return Drawing(boxes, lines, left, right - left, bottom)


def _chains(graph: Graph, layers: set[str]) -> list[list[Node]]:
    """Join nodes without a weight of their own to the only node before them, if nothing else reads what that makes."""
    readers: dict[str, int] = {}
    for value in [*(v for node in graph.nodes for v in set(node.inputs)), *graph.outputs.values()]:
        readers[value] = readers.get(value, 0) + 1
    chains: list[list[Node]] = []
    ends: dict[str, list[Node]] = {}  # the chain of which a value is the end
    for node in graph.nodes:
        chain = ends.get(node.inputs[0]) if len(set(node.inputs)) == 1 else None
        if chain is not None and node.name not in layers and readers[node.inputs[0]] == 1:
            chain.append(node)
            del ends[node.inputs[0]]
        else:
            chain = [node]
            chains.append(chain)
        if len(node.outputs) == 1:
            ends[node.outputs[0]] = chain
    return chains


def _box(nodes: list[Node], nbytes: tuple[int, int] | None, largest: int, texts: Mapping[str, str]) -> Box:
    ops = " → ".join(node.op for node in nodes)
    name = nodes[0].name
    if nbytes is None:
        return Box(_short(name), _short(ops, head=True), f"{name}: {ops}", "other")
    stored, dense = nbytes
    label = f"{name}: {ops}; {texts[name]}; {stored:,} bytes, {dense:,} as float32"
    return Box(
        _short(name),
        _short(f"{nodes[0].op} · {texts[name]}", head=True),
        label,
        "layer",
        dense=max(2.0, BAR * dense / largest),
        stored=max(1.0, BAR * stored / largest),
    )


def _place(boxes: list[Box], edges: list[tuple[int, int, str]]) -> None:
    """Put every box a row below the lowest that it reads, and below the middle of these as far as there is room.

    What no input leads to, such as positions, is right above its first reader.
    """
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for a, b, _ in edges:
        above.setdefault(b, []).append(a)
        below.setdefault(a, []).append(b)
    constant: set[int] = set()
    for i, box in enumerate(boxes):  # boxes are in the order of execution
        box.row = 1 + max((boxes[a].row for a in above.get(i, [])), default=-1)
        if constant.issuperset(above.get(i, [])) and not (box.kind == "end" and i not in above):
            constant.add(i)
    for i in sorted(constant, reverse=True):
        boxes[i].row = min((boxes[b].row for b in below.get(i, [])), default=boxes[i].row + 1) - 1
    rows: dict[int, list[int]] = {}
    for i, box in enumerate(boxes):
        rows.setdefault(box.row, []).append(i)
    for _, members in sorted(rows.items()):
        wanted = {i: sum(boxes[a].x for a in above.get(i, [])) / max(1, len(above.get(i, []))) for i in members}
        members.sort(key=lambda i: wanted[i])
        middle = sum(wanted.values()) / len(wanted)
        for place, i in enumerate(members):
            boxes[i].x = wanted[i] if len(members) == 1 else middle + (place - (len(members) - 1) / 2) * COLUMN


def _line(a: Box, b: Box, info: Info, name: str, widest: int) -> Line:
    x0, y0, x1, y1 = a.x, a.y + HEIGHT, b.x, b.y
    if b.row - a.row > 1 and abs(x1 - x0) < WIDTH:  # around the boxes between
        side = max(x0, x1) + WIDTH / 2 + min(18, 6 * (b.row - a.row).bit_length() - 6)  # long ones around short ones
        path = (
            f"M{x0:.0f} {y0:.0f}C{x0:.0f} {y0 + GAP:.0f} {side:.0f} {y0:.0f} {side:.0f} {y0 + GAP:.0f}"
            f"V{y1 - GAP:.0f}C{side:.0f} {y1:.0f} {x1:.0f} {y1 - GAP:.0f} {x1:.0f} {y1:.0f}"
        )
    else:
        path = f"M{x0:.0f} {y0:.0f}C{x0:.0f} {y0 + GAP:.0f} {x1:.0f} {y1 - GAP:.0f} {x1:.0f} {y1:.0f}"
    return Line(path, max(1.0, THICK * prod(info.shape) / max(1, widest)), f"{name}: {_shape(info)}")


def _shape(info: Info) -> str:
    return f"{info.dtype} {'x'.join(map(str, info.shape)) or 'scalar'}"


def _short(text: str, head: bool = False) -> str:
    """Cut a text to the width of a box, by default in front: the ends of names differ."""
    if len(text) <= LETTERS:
        return text
    return text[: LETTERS - 1] + "…" if head else "…" + text[1 - LETTERS :]
