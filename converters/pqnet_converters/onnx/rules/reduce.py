"""Reductions over axes, positions of extremes, the largest elements, running sums."""

from collections.abc import Callable

from pqnet_converters.core.importer import Tensor, as_known
from pqnet_converters.onnx.importer import OnnxImporter, axes_of, axis_of
from pqnet_converters.onnx.registry import rule

Function = Callable[[OnnxImporter, Tensor], Tensor]


def _same(b: OnnxImporter, x: Tensor) -> Tensor:
    return x


def _reduction(op: str, before: Function = _same, after: Function = _same) -> Callable[..., Tensor]:
    def reduce(b: OnnxImporter, x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = b.ints("axes", axes)
        if not given and b.attr("noop_with_empty_axes", 0):
            return after(b, before(b, x))
        over = axes_of(given or range(x.rank), x.rank)
        y = before(b, x)
        if op == "mean" and y.dtype != "float32":
            y = b.cast(y, "float32")
        if over:
            y = b.emit(op, y, axes=over, keepdims=bool(b.attr("keepdims", 1)))
        return b.cast(after(b, y), x.dtype)

    return reduce


def _absolute(b: OnnxImporter, x: Tensor) -> Tensor:
    return b.emit("abs", x)


def _square(b: OnnxImporter, x: Tensor) -> Tensor:
    return b.emit("mul", x, x)


def _exp(b: OnnxImporter, x: Tensor) -> Tensor:
    return b.emit("exp", b.cast(x, "float32"))


def _log(b: OnnxImporter, x: Tensor) -> Tensor:
    return b.emit("log", b.cast(x, "float32"))


def _root(b: OnnxImporter, x: Tensor) -> Tensor:
    return b.emit("sqrt", b.cast(x, "float32"))


for _op in ("Mean", "Sum", "Max", "Min", "Prod"):
    rule(f"Reduce{_op}")(_reduction(_op.lower()))
rule("ReduceL1")(_reduction("sum", _absolute))
rule("ReduceL2")(_reduction("sum", _square, _root))
rule("ReduceSumSquare")(_reduction("sum", _square))
rule("ReduceLogSum")(_reduction("sum", _same, _log))


@rule("ReduceLogSumExp")
def log_sum_exp(b: OnnxImporter, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """With the largest taken out before, so that nothing overflows."""
    given = b.ints("axes", axes)
    if not given and b.attr("noop_with_empty_axes", 0):
        return x
    over, numbers = axes_of(given or range(x.rank), x.rank), b.cast(x, "float32")
    if not over:
        return x
    top = b.emit("clamp", b.emit("max", numbers, axes=over, keepdims=True), min=-3.4e38, max=3.4e38)
    total = b.emit("sum", b.emit("exp", b.emit("sub", numbers, top)), axes=over, keepdims=True)
    y = b.emit("add", b.emit("log", total), top)
    if not b.attr("keepdims", 1):
        y = b.reshape(y, [s for i, s in enumerate(y.shape) if i not in over])
    return b.cast(y, x.dtype)


def _place(op: str) -> Callable[[OnnxImporter, Tensor], Tensor]:
    def place(b: OnnxImporter, x: Tensor) -> Tensor:
        axis, keepdims = axis_of(b.attr("axis", 0), x.rank), bool(b.attr("keepdims", 1))
        if not b.attr("select_last_index", 0):
            return b.emit(op, x, axis=axis, keepdims=keepdims)
        backwards = b.slice(x, axis, None, None, -1)
        found = b.emit(op, backwards, axis=axis, keepdims=keepdims)
        return b.binary("sub", as_known(x.shape[axis] - 1, "int64"), found)

    return place


rule("ArgMax")(_place("argmax"))
rule("ArgMin")(_place("argmin"))


@rule("TopK")
def topk(b: OnnxImporter, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = axis_of(b.attr("axis", -1), x.rank)
    count = b.attr("k") if k is None else b.number(k)
    return b.emit_many("topk", (x,), 2, axis=axis, k=count, largest=bool(b.attr("largest", 1)))


@rule("CumSum")
def cumsum(b: OnnxImporter, x: Tensor, axis: Tensor) -> Tensor:
    a, backwards = axis_of(b.number(axis), x.rank), b.attr("reverse", 0)
    y = b.slice(x, a, None, None, -1) if backwards else x
    total = b.cast(b.emit("cumsum", y, axis=a), x.dtype)
    if b.attr("exclusive", 0):
        total = b.emit("sub", total, y)
    return b.slice(total, a, None, None, -1) if backwards else total
