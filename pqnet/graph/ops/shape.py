"""Operations that move elements and compute nothing: shapes, slices, joins, padding, selection."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pqnet._check import index_array
from pqnet.errors import PQNetError
from pqnet.graph.axes import Axes, Axis, Tracked, broadcast, cut, fix, fresh, join, reshape, unify
from pqnet.graph.op import Arrays, Attr, Attrs, Info, Params, broadcast_shape, check_axes, check_dtype, register
from pqnet.graph.ops.elementwise import as_scalar, check_scalar
from pqnet.graph.sizes import MAX_ATTRIBUTE, apply

MAX_INPUTS = 65536


def _infer_reshape(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    shape, wanted = x[0].shape, a["shape"]
    known = math.prod(d for d in wanted if d != -1)
    free = wanted.count(-1)
    if free > 1 or min(wanted, default=0) < -1:
        raise PQNetError(f"shape: expected sizes of which at most one is -1, got {wanted}")
    if math.prod(shape) != known if not free else not known or math.prod(shape) % known:
        raise PQNetError(f"shape: expected one for {math.prod(shape)} elements (input {shape}), got {wanted}")
    return Info(tuple(math.prod(shape) // known if d == -1 else d for d in wanted), x[0].dtype)


def _eval_reshape(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return x[0].reshape(a["shape"])


def _order_reshape(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    return reshape(x[0], _infer_reshape([Info(x[0].shape)], {}, a).shape)


register("reshape", infer=_infer_reshape, evaluate=_eval_reshape, order=_order_reshape, shape=Attr("dims"))


def _infer_permute(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    shape, axes = x[0].shape, a["axes"]
    if sorted(axes) != list(range(len(shape))):
        raise PQNetError(f"axes: expected a permutation of the {len(shape)} axes of {shape}, got {axes}")
    return Info(tuple(shape[axis] for axis in axes), x[0].dtype)


def _eval_permute(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return x[0].transpose(a["axes"])


def _order_permute(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    return tuple(x[0].axes[axis] for axis in a["axes"])


register("permute", infer=_infer_permute, evaluate=_eval_permute, order=_order_permute, axes=Attr("ints"))


def _resized(info: Info, axis: int, size: int) -> Info:
    return Info((*info.shape[:axis], size, *info.shape[axis + 1 :]), info.dtype)


def _infer_slice(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    check_axes([a["axis"]], len(x[0].shape))
    if a["step"] == 0:
        raise PQNetError("step: expected another number than 0")
    return _resized(x[0], a["axis"], apply(_taken, x[0].shape[a["axis"]], a["start"], a["stop"], a["step"]))


def _taken(size: int, start: int, stop: int | None, step: int) -> int:
    return len(range(size)[slice(start, stop, step)])


def _eval_slice(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    out: np.ndarray = x[0][(slice(None),) * a["axis"] + (slice(a["start"], a["stop"], a["step"]),)]
    return out


def _replaced(axes: Axes, axis: int, by: Axis) -> Axes:
    return (*axes[:axis], by, *axes[axis + 1 :])


def _order_slice(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    along = x[0].axes[a["axis"]]
    taken = range(x[0].shape[a["axis"]])[slice(a["start"], a["stop"], a["step"])]
    if a["step"] == 1 and len(taken):
        along = cut(cut(along, taken.stop)[0], taken.start)[1]
    else:
        fix(along)
        along = fresh(len(taken), fixed=True)
    return _replaced(x[0].axes, a["axis"], along)


register(
    "slice",
    infer=_infer_slice,
    evaluate=_eval_slice,
    order=_order_slice,
    axis=Attr("int"),
    start=Attr("dim", 0),
    stop=Attr("dim", None),
    step=Attr("int", 1),
)


def _infer_concat(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    axis = a["axis"]
    check_axes([axis], len(x[0].shape))
    for info in x[1:]:
        check_dtype(info, x[0].dtype)
        if len(info.shape) != len(x[0].shape) or _resized(info, axis, 0) != _resized(x[0], axis, 0):
            raise PQNetError(f"expected shapes that differ in axis {axis} only, got {x[0].shape} and {info.shape}")
    return _resized(x[0], axis, sum(info.shape[axis] for info in x))


def _eval_concat(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return np.concatenate(x, a["axis"])


def _order_concat(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    axis = a["axis"]
    for i, first in enumerate(x[0].axes):
        if i != axis:
            for other in x[1:]:
                unify(first, other.axes[i])
    return _replaced(x[0].axes, axis, join(value.axes[axis] for value in x))


register(
    "concat",
    infer=_infer_concat,
    evaluate=_eval_concat,
    inputs=(1, MAX_INPUTS),
    order=_order_concat,
    axis=Attr("int"),
)


def _infer_split(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> tuple[Info, ...]:
    axis, sizes = a["axis"], a["sizes"]
    check_axes([axis], len(x[0].shape))
    if min(sizes, default=-1) < 0 or sum(sizes) != x[0].shape[axis]:
        raise PQNetError(f"sizes: expected sizes that add up to {x[0].shape[axis]}, got {sizes}")
    return tuple(_resized(x[0], axis, size) for size in sizes)


def _eval_split(x: Arrays, p: Params, a: Attrs) -> tuple[np.ndarray, ...]:
    return tuple(np.split(x[0], np.cumsum(a["sizes"])[:-1], a["axis"]))


def _order_split(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> list[Axes]:
    parts, rest = [], x[0].axes[a["axis"]]
    for size in a["sizes"]:
        part, rest = cut(rest, size)
        parts.append(_replaced(x[0].axes, a["axis"], part))
    return parts


register(
    "split",
    infer=_infer_split,
    evaluate=_eval_split,
    order=_order_split,
    axis=Attr("int"),
    sizes=Attr("dims"),
)


def _infer_expand(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    if min(a["shape"], default=0) < 0 or broadcast_shape(x[0].shape, a["shape"]) != a["shape"]:
        raise PQNetError(f"shape: expected one to which {x[0].shape} broadcasts, got {a['shape']}")
    return Info(a["shape"], x[0].dtype)


def _eval_expand(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return np.broadcast_to(x[0], a["shape"])


def _order_expand(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    return broadcast([x[0], Tracked(a["shape"], tuple(map(fresh, a["shape"])))])


register("expand", infer=_infer_expand, evaluate=_eval_expand, order=_order_expand, shape=Attr("dims"))


def _infer_pad(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    shape, padding, mode = x[0].shape, a["padding"], a["mode"]
    if len(padding) != 2 * len(shape):
        raise PQNetError(f"padding: expected 2 numbers for each axis of {shape}, got {padding}")
    if max(map(abs, padding), default=0) > MAX_ATTRIBUTE:
        raise PQNetError(f"padding: expected numbers from {-MAX_ATTRIBUTE} to {MAX_ATTRIBUTE}, got {padding}")
    pairs = list(zip(padding[::2], padding[1::2], strict=True))
    out = tuple(size + before + after for size, (before, after) in zip(shape, pairs, strict=True))
    if mode != "constant":
        check_dtype(x[0], "float32")
        limits = [size - 1 if mode == "reflect" else size * max(padding) for size in shape]
        if any(min(pair) < 0 or max(pair) > max(limit, 0) for pair, limit in zip(pairs, limits, strict=True)):
            limit = "smaller than its axis" if mode == "reflect" else "on axes that have elements"
            raise PQNetError(f"padding: expected none negative and each {limit} ({shape}) for {mode}, got {padding}")
    elif any(size + min(pair) < 0 for size, pair in zip(shape, pairs, strict=True)) or min(out, default=0) < 0:
        raise PQNetError(f"padding: expected to crop no more than the input {shape} has, got {padding}")
    else:
        check_scalar(a["value"], x[0].dtype)
    return Info(out, x[0].dtype)


def _eval_pad(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    pairs = list(zip(a["padding"][::2], a["padding"][1::2], strict=True))
    if a["mode"] != "constant":
        return np.pad(x[0], pairs, mode="reflect" if a["mode"] == "reflect" else "edge")
    shape = [size + before + after for size, (before, after) in zip(x[0].shape, pairs, strict=True)]
    out = np.full(shape, as_scalar(a["value"], x[0].dtype.name), x[0].dtype)
    target = tuple(slice(max(b, 0), n - max(e, 0)) for n, (b, e) in zip(shape, pairs, strict=True))
    source = tuple(slice(max(-b, 0), n - max(-e, 0)) for n, (b, e) in zip(x[0].shape, pairs, strict=True))
    out[target] = x[0][source]
    return out


def _order_pad(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    found: list[Axis] = []
    for axis, size, before, after in zip(x[0].axes, x[0].shape, a["padding"][::2], a["padding"][1::2], strict=True):
        if (before, after) == (0, 0):
            found.append(axis)
        elif a["mode"] == "constant" and min(before, after) >= 0:
            found.append(join([fresh(before), axis, fresh(after)]))  # equal elements have no order
        else:
            fix(axis)
            found.append(fresh(size + before + after, fixed=True))
    return tuple(found)


register(
    "pad",
    infer=_infer_pad,
    evaluate=_eval_pad,
    order=_order_pad,
    padding=Attr("dims"),
    mode=Attr("str", "constant", options=("constant", "reflect", "replicate")),
    value=Attr("number", 0.0),
)


def _infer_select(x: Sequence[Info], p: Mapping[str, Info], a: Attrs) -> Info:
    check_axes([a["axis"]], len(x[0].shape))
    check_dtype(x[1], "int64", name="ids")
    if len(x[1].shape) != 1:
        raise PQNetError(f"ids: expected 1 axis, got shape {x[1].shape}")
    return _resized(x[0], a["axis"], x[1].shape[0])


def _eval_select(x: Arrays, p: Params, a: Attrs) -> np.ndarray:
    return np.take(x[0], index_array(x[1], "ids", below=x[0].shape[a["axis"]]), a["axis"])


def _order_select(x: Sequence[Tracked], p: Mapping[str, Tracked], a: Attrs) -> Axes:
    fix(x[0].axes[a["axis"]])
    return _replaced(x[0].axes, a["axis"], x[1].axes[0])


register(
    "index_select",
    infer=_infer_select,
    evaluate=_eval_select,
    inputs=2,
    order=_order_select,
    axis=Attr("int"),
)
