"""Operations that walk along rows of a value and give rows: running sums and products, the largest elements."""

from dataclasses import dataclass
from math import prod

from pqnet.graph import Node
from pqnet.kernels.ops.running import running
from pqnet.kernels.ops.topk import topk
from pqnet.runtime.builder import Builder, lowers
from pqnet.runtime.copying import dense
from pqnet.runtime.lower.typed import TYPES
from pqnet.runtime.memory import View, merge_axes

TASKS, WORK = 32, 16384  # tasks of a step at most, elements a task at least


@dataclass(frozen=True)
class _Rows:
    """A value as rows along an axis, and its results as rows of ``taken`` elements; both on three outer axes."""

    x: View
    axis: int
    like: View  # shape and strides of the results
    sizes: tuple[int, ...]
    x_steps: tuple[int, ...]
    steps: tuple[int, ...]

    @classmethod
    def along(cls, b: Builder, x: View, axis: int, taken: int) -> "_Rows":
        """Return the rows of a value, copied if its storage has more outer axes."""
        shape = (*x.shape[:axis], taken, *x.shape[axis + 1 :])
        like = View.dense_in(x.buffer, shape, x.order())
        kept = [a for a in x.order() if a != axis]
        outer = merge_axes(*([v[a] for a in kept] for v in (x.shape, x.strides, like.strides)))
        if len(outer) > 3:
            return cls.along(b, dense(b, x, [*sorted(kept), axis]), axis, taken)
        return cls(x, axis, like, *zip(*[(1, 0, 0)] * (3 - len(outer)), *outer, strict=True))

    @property
    def per_task(self) -> int:
        """Rows of a task."""
        rows = prod(self.sizes)
        return min(max(WORK // self.x.shape[self.axis], -(-rows // TASKS), 1), rows)

    @property
    def tasks(self) -> int:
        """Tasks of the step."""
        return -(-prod(self.sizes) // self.per_task)

    def arguments(self) -> dict[str, View | int | tuple[int, ...]]:
        """Return the arguments that the kernels have in common."""
        return {
            "x": self.x,
            "type": TYPES[self.x.dtype],
            "sizes": self.sizes,
            "x_steps": self.x_steps,
            "steps": self.steps,
            "n": self.x.shape[self.axis],
            "x_step": self.x.strides[self.axis],
            "step": self.like.strides[self.axis],
            "per_task": self.per_task,
        }


@lowers("cumsum", "cumprod", typed=True)
def accumulate(b: Builder, node: Node, x: list[View]) -> View:
    """Lower a running sum or product."""
    axis, (shape, dtype) = b.attrs(node)["axis"], b.info(node.outputs[0])
    rows = _Rows.along(b, x[0], axis, shape[axis])
    out = b.new(shape, rows.x.order(), dtype)
    arguments = rows.arguments() | {"out": out, "product": int(node.op == "cumprod")}
    b.emit(running, node.name, rows.tasks, arguments, reads=[rows.x], writes=[out])
    return out


@lowers("topk", typed=True)
def largest(b: Builder, node: Node, x: list[View]) -> tuple[View, View]:
    """Lower the choice of the largest or smallest elements."""
    a, shape = b.attrs(node), b.info(node.outputs[0]).shape
    rows = _Rows.along(b, x[0], a["axis"], a["k"])
    values, indices = (b.new(shape, rows.x.order(), b.info(output).dtype) for output in node.outputs)
    arguments = rows.arguments() | {"values": values, "indices": indices, "k": a["k"], "largest": int(a["largest"])}
    scratch = 2 * a["k"]  # floats: an int64 for each element taken
    b.emit(topk, node.name, rows.tasks, arguments, reads=[rows.x], writes=[values, indices], scratch=scratch)
    return values, indices
