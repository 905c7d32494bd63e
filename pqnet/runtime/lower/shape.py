"""Operations that only look at values in another way: views of the same memory, as far as strides can say it."""

from pqnet.graph import Node
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.copying import dense
from pqnet.runtime.memory import View


@lowers("reshape", typed=True)
def reshape(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a reshape; a value that strides cannot give another shape is copied."""
    shape = b.info(node.outputs[0]).shape
    found = x[0].reshape(shape)
    return found if found is not None else dense(b, x[0], range(len(x[0].shape))).reshape(shape)


@lowers("permute", typed=True)
def permute(b: Builder, node: Node, x: list[View]) -> View | None:
    """Lower a permutation of axes."""
    return x[0].permute(b.attrs(node)["axes"])


@lowers("slice", typed=True)
def slice_(b: Builder, node: Node, x: list[View]) -> View:
    """Lower a slice; one that runs backwards is copied."""
    a = b.attrs(node)
    taken = range(x[0].shape[a["axis"]])[slice(a["start"], a["stop"], a["step"])]
    part = x[0].slice(a["axis"], taken.start, len(taken), taken.step)
    return part if taken.step > 0 else dense(b, part, x[0].order())


@lowers("split", typed=True)
def split(b: Builder, node: Node, x: list[View]) -> tuple[View, ...]:
    """Lower a split."""
    a, start, parts = b.attrs(node), 0, []
    for size in a["sizes"]:
        parts.append(x[0].slice(a["axis"], start, size))
        start += size
    return tuple(parts)


@lowers("expand", typed=True)
def expand(b: Builder, node: Node, x: list[View]) -> View:
    """Lower a broadcast."""
    return x[0].expand(b.attrs(node)["shape"])
