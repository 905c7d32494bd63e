"""Reductions over axes."""

from typing import Any

from pqnet_converters.torch.aten.elementwise import as_bool, as_float
from pqnet_converters.torch.aten.registry import rule
from pqnet_converters.torch.importer import Importer, Tensor


def _axes(x: Tensor, axes: Any) -> tuple[int, ...]:
    """Return axes counted from the front; none given means all."""
    given = (axes,) if isinstance(axes, int) else tuple(axes or range(x.rank))
    return tuple(sorted(a % x.rank for a in given))


@rule("aten.mean.dim")
def mean(b: Importer, x: Tensor, axes: Any, keepdims: bool, *_: Any) -> str:
    return b.emit("mean", as_float(b, x), axes=_axes(x, axes), keepdims=keepdims)


@rule("aten.mean.default")
def mean_all(b: Importer, x: Tensor, *_: Any) -> str:
    return mean(b, x, None, False)


def _accumulated(b: Importer, op: str, x: Tensor, **attrs: Any) -> str:
    """Emit a sum or product in the dtype of its result; those of integers are int64 first, and then cut."""
    dtype = b.out_dtype()
    source = b.cast(x, dtype) if dtype in ("float32", "bool") or x.dtype == "float32" else x
    value = b.emit(op, source, **attrs)
    return value if dtype in ("float32", "int64") else b.emit("cast", value, dtype=dtype)


@rule("aten.sum.dim_IntList")
def sum_axes(b: Importer, x: Tensor, axes: Any, keepdims: bool, *_: Any) -> str:
    return _accumulated(b, "sum", x, axes=_axes(x, axes), keepdims=keepdims)


@rule("aten.sum.default")
def sum_all(b: Importer, x: Tensor, *_: Any) -> str:
    return sum_axes(b, x, None, False)


@rule("aten.prod.dim_int")
def prod_axis(b: Importer, x: Tensor, axis: int, keepdims: bool, *_: Any) -> str:
    return _accumulated(b, "prod", x, axes=_axes(x, axis), keepdims=keepdims)


@rule("aten.prod.default")
def prod_all(b: Importer, x: Tensor, *_: Any) -> str:
    return _accumulated(b, "prod", x, axes=_axes(x, None))


@rule("aten.cumsum.default")
def cumsum(b: Importer, x: Tensor, axis: int, *_: Any) -> str:
    return _accumulated(b, "cumsum", x, axis=axis % x.rank)


@rule("aten.cumprod.default")
def cumprod(b: Importer, x: Tensor, axis: int, *_: Any) -> str:
    return _accumulated(b, "cumprod", x, axis=axis % x.rank)


def _first(b: Importer, x: Tensor, k: Any, axis: int, largest: bool) -> tuple[str, ...]:
    """Give the k largest or smallest elements in order, equal ones in theirs, and where they are."""
    numbers = b.cast(x, "uint8") if x.dtype == "bool" else x
    values, places = b.emit_many("topk", (numbers,), 2, axis=axis % x.rank, k=k, largest=largest)
    return values if x.dtype != "bool" else b.emit("cast", values, dtype="bool"), places


@rule("aten.topk.default")
def topk(b: Importer, x: Tensor, k: Any, axis: int, largest: bool, *_: Any) -> tuple[str, ...]:
    return _first(b, x, k, axis, largest)


@rule("aten.sort.default")
def sort(b: Importer, x: Tensor, axis: int, descending: bool) -> tuple[str, ...]:
    return _first(b, x, x.shape[axis], axis, descending)


@rule("aten.sort.stable")
def stable_sort(b: Importer, x: Tensor, stable: Any, axis: int, descending: bool) -> tuple[str, ...]:
    return sort(b, x, axis, descending)


def _extreme(b: Importer, op: str, x: Tensor, axes: Any, keepdims: bool) -> str:
    return b.emit(op, x, axes=_axes(x, axes), keepdims=keepdims)


@rule("aten.amax.default")
def amax(b: Importer, x: Tensor, axes: Any, keepdims: bool) -> str:
    return _extreme(b, "max", x, axes, keepdims)


@rule("aten.amin.default")
def amin(b: Importer, x: Tensor, axes: Any, keepdims: bool) -> str:
    return _extreme(b, "min", x, axes, keepdims)


@rule("aten.max.default")
def max_all(b: Importer, x: Tensor) -> str:
    return _extreme(b, "max", x, None, False)


@rule("aten.min.default")
def min_all(b: Importer, x: Tensor) -> str:
    return _extreme(b, "min", x, None, False)


def _with_place(b: Importer, op: str, x: Tensor, axis: int, keepdims: bool) -> tuple[str | None, str | None]:
    """Give the extreme value and where it is, whichever is used."""
    return (
        _extreme(b, op, x, axis, keepdims) if b.used(0) else None,
        b.emit(f"arg{op}", x, axis=axis % x.rank, keepdims=keepdims) if b.used(1) else None,
    )


@rule("aten.max.dim")
def max_dim(b: Importer, x: Tensor, axis: int, keepdims: bool) -> tuple[str | None, str | None]:
    return _with_place(b, "max", x, axis, keepdims)


@rule("aten.min.dim")
def min_dim(b: Importer, x: Tensor, axis: int, keepdims: bool) -> tuple[str | None, str | None]:
    return _with_place(b, "min", x, axis, keepdims)


def _place(b: Importer, op: str, x: Tensor, axis: int | None, keepdims: bool) -> str:
    if axis is None:  # torch counts over the flattened tensor
        return b.emit("reshape", b.emit(op, b.emit("reshape", x, shape=(-1,)), axis=0), shape=b.out_shape())
    return b.emit(op, x, axis=axis % x.rank, keepdims=keepdims)


@rule("aten.argmax.default")
def argmax(b: Importer, x: Tensor, axis: int | None, keepdims: bool) -> str:
    return _place(b, "argmax", x, axis, keepdims)


@rule("aten.argmin.default")
def argmin(b: Importer, x: Tensor, axis: int | None, keepdims: bool) -> str:
    return _place(b, "argmin", x, axis, keepdims)


def _of_truth(b: Importer, op: str, x: Tensor, axes: Any, keepdims: bool) -> str:
    """Reduce the elements as booleans; torch returns those of uint8 as uint8."""
    found = _extreme(b, op, as_bool(b, x), axes, keepdims)
    return found if b.out_dtype() == "bool" else b.emit("cast", found, dtype=b.out_dtype())


@rule("aten.any.dim", "aten.any.dims")
def any_axes(b: Importer, x: Tensor, axes: Any, keepdims: bool) -> str:
    return _of_truth(b, "max", x, axes, keepdims)


@rule("aten.any.default")
def any_all(b: Importer, x: Tensor) -> str:
    return any_axes(b, x, None, False)


@rule("aten.all.dim", "aten.all.dims")
def all_axes(b: Importer, x: Tensor, axes: Any, keepdims: bool) -> str:
    return _of_truth(b, "min", x, axes, keepdims)


@rule("aten.all.default")
def all_all(b: Importer, x: Tensor) -> str:
    return all_axes(b, x, None, False)


def _variance(b: Importer, x: Tensor, axes: Any, correction: Any, keepdims: bool) -> str:
    correction = 1 if correction is None else b.number(correction)
    if correction != int(correction):
        raise b.refuse(f"expected a whole correction of the variance, got {correction}")
    return b.emit("var", x, axes=_axes(x, axes), correction=int(correction), keepdims=keepdims)


@rule("aten.var.correction")
def var(b: Importer, x: Tensor, axes: Any, correction: Any, keepdims: bool) -> str:
    return _variance(b, x, axes, correction, keepdims)


@rule("aten.var_mean.correction")
def var_mean(b: Importer, x: Tensor, axes: Any, correction: Any, keepdims: bool) -> tuple[str, str]:
    return _variance(b, x, axes, correction, keepdims), mean(b, x, axes, keepdims)


@rule("aten.linalg_vector_norm.default")
def vector_norm(b: Importer, x: Tensor, order: Any, axes: Any, keepdims: bool, *_: Any) -> str:
    order = b.number(order)
    span: dict[str, Any] = {"axes": _axes(x, axes), "keepdims": keepdims}
    if order == 2:
        return b.emit("sqrt", b.emit("sum", b.emit("mul", x, x), **span))
    size = b.emit("abs", x)
    if order in (float("inf"), float("-inf")):
        return b.emit("max" if order > 0 else "min", size, **span)
    if order == 0:
        raise b.refuse("expected a norm of an order other than 0")
    if order == 1:
        return b.emit("sum", size, **span)
    return b.emit("pow", b.emit("sum", b.emit("pow", size, scalar=order), **span), scalar=1 / order)
