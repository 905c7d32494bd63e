"""Resizing. What `interpolate` of the graph means goes there; all else is computed from positions, axis by axis."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pqnet_converters.core.importer import Tensor, as_known
from pqnet_converters.core.sizes import Symbolic, compare, floor
from pqnet_converters.onnx.importer import OnnxImporter, axis_of
from pqnet_converters.onnx.registry import rule

MODES = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}


@rule("Upsample")
def upsample(b: OnnxImporter, x: Tensor, scales: Tensor | None = None) -> Tensor:
    factors = b.attr("scales", []) if scales is None else b.numbers(scales, "scales") or []
    out = [floor(n * f) for n, f in zip(x.shape, factors, strict=True)]
    where = "asymmetric"
    return _resized(b, x, out, list(factors), list(range(x.rank)), b.attr("mode", "nearest"), where, "floor")


@rule("Resize")
def resize(
    b: OnnxImporter,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    if b.opset < 11:
        roi, scales = None, roi  # opset 10 has no region
    where = b.attr("coordinate_transformation_mode", "half_pixel" if b.opset > 10 else "asymmetric")
    near = b.attr("nearest_mode", "round_prefer_floor" if b.opset > 10 else "floor")
    axes = [axis_of(a, x.rank) for a in b.attr("axes", list(range(x.rank)))]
    out, factors = list(x.shape), [None] * x.rank
    wanted = b.numbers(sizes, "sizes") if sizes is not None and sizes.shape != (0,) else None
    if wanted is not None:
        wanted = _keeping_aspect(b, x, axes, wanted)
        for axis, size in zip(axes, wanted, strict=True):
            out[axis] = size
    else:
        given = b.numbers(scales, "scales") or []
        for axis, factor in zip(axes, given, strict=True):
            out[axis], factors[axis] = floor(x.shape[axis] * factor), factor
    moved = [a for a in axes if compare(out[a], x.shape[a]) != 0 or factors[a] not in (None, 1)]
    if where == "tf_crop_and_resize":
        return _cropped(b, x, out, axes, roi)
    return _resized(b, x, out, factors, moved, b.attr("mode", "nearest"), where, near)


def _keeping_aspect(b: OnnxImporter, x: Tensor, axes: list[int], wanted: list[Any]) -> list[Any]:
    policy = b.attr("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return wanted
    choose = min if policy == "not_larger" else max
    have = [b.fixed(x.shape[a]) for a in axes]
    scale = choose(w / n for w, n in zip(wanted, have, strict=True))
    return [int(np.floor(scale * n + 0.5)) for n in have]


def _resized(
    b: OnnxImporter, x: Tensor, out: list[Any], factors: list[Any], axes: list[int], mode: str, where: str, near: str
) -> Tensor:
    if not axes:
        return x
    attrs: dict[str, Any] = {"align_corners": where == "align_corners", "antialias": bool(b.attr("antialias", 0))}
    image = x.dtype == "float32" and x.rank == 4 and min(axes) >= 2
    if image and _is_interpolate(b, x, out, factors, mode, where, near):
        return b.emit(
            "interpolate", x, size=tuple(out[2:]), mode=MODES[mode], **_scales(x, out, factors, where), **attrs
        )
    for axis in axes:
        position, scale = _position(b, x.shape[axis], out[axis], factors[axis], where), 1.0
        if mode == "nearest":
            x = _select(b, x, axis, ROUNDINGS[near](b, position))
            continue
        if attrs["antialias"]:
            given = factors[axis]
            scale = min(b.fixed(out[axis]) / b.fixed(x.shape[axis]) if given is None else float(given), 1.0)
        x = _filtered(b, x, axis, position, mode, scale)
    return x


def _scales(x: Tensor, out: list[Any], factors: list[Any], where: str) -> dict[str, float]:
    """Return factors that are not the quotients of the sizes: pixels are placed by them."""
    found = {}
    for name, axis in (("scale_height", 2), ("scale_width", 3)):
        factor = factors[axis]
        if factor is not None and where != "align_corners" and compare(x.shape[axis] * factor, out[axis]) != 0:
            found[name] = float(factor)
    return found


def _is_interpolate(
    b: OnnxImporter, x: Tensor, out: list[Any], factors: list[Any], mode: str, where: str, near: str
) -> bool:
    """Tell whether the graph's operation reads the same pixels."""
    whole = all(
        isinstance(f, Symbolic) is False and f is not None and float(f).is_integer()
        if f is not None
        else not isinstance(n, Symbolic) and not isinstance(m, Symbolic) and m % n == 0
        for n, m, f in zip(x.shape[2:], out[2:], factors[2:], strict=True)
    )
    if any(isinstance(f, float) and compare(n * f, m) is None for n, m, f in zip(x.shape, out, factors, strict=True)):
        return False
    if mode == "nearest":
        halves = where in ("half_pixel", "pytorch_half_pixel") and near in ("round_prefer_floor", "round_prefer_ceil")
        odd = near == "round_prefer_floor" or all(int(f or 1) % 2 for f in factors[2:])
        return (where == "asymmetric" and near == "floor") or (whole and halves and odd)
    if bool(b.attr("exclude_outside", 0)) != bool(b.attr("antialias", 0)):
        return False
    if mode == "cubic" and b.attr("cubic_coeff_a", -0.75) != -0.75:
        return False
    if where == "pytorch_half_pixel":
        return all(isinstance(m, Symbolic) or m > 1 for m in out[2:])
    return where in ("half_pixel", "align_corners")


def _position(b: OnnxImporter, size: Any, out: Any, factor: Any, where: str) -> Tensor:
    """Return where the pixels of the result lie on an axis, float32."""
    scale = _quotient(b, out, size) if factor is None else as_known(float(factor), "float32")
    index = b.cast(b.emit("arange", end=out), "float32")
    if where == "asymmetric":
        return b.binary("div", index, scale)
    if where == "align_corners":
        if not isinstance(out, Symbolic) and out == 1:
            return b.emit("mul", index, scalar=0.0)
        return b.binary("mul", index, _quotient(b, size - 1, out - 1))
    if where == "pytorch_half_pixel" and not isinstance(out, Symbolic) and out == 1:
        return b.emit("mul", index, scalar=0.0)
    shift = 0.0
    if where == "half_pixel_symmetric" and factor is not None:
        wide = b.fixed(size) * factor
        shift = size / 2 * (1 - int(out) / wide)
    elif where not in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel"):
        raise b.refuse(f"the coordinate transformation {where!r} has no rule")
    return b.emit("add", b.binary("div", b.emit("add", index, scalar=0.5), scale), scalar=shift - 0.5)


def _quotient(b: OnnxImporter, x: Any, y: Any) -> Tensor:
    return b.binary("div", as_known(x, "float32"), as_known(y, "float32"))


def _select(b: OnnxImporter, x: Tensor, axis: int, ids: Tensor) -> Tensor:
    """Take pixels of an axis, those beyond its ends from these."""
    last = as_known(x.shape[axis] - 1, "int64")
    inside = b.binary("minimum", b.emit("clamp", b.cast(ids, "int64"), min=0), last)
    return b.emit("index_select", x, inside, axis=axis)


ROUNDINGS: dict[str, Callable[[OnnxImporter, Tensor], Tensor]] = {
    "floor": lambda b, x: b.emit("floor", x),
    "ceil": lambda b, x: b.emit("ceil", x),
    "round_prefer_floor": lambda b, x: b.emit("ceil", b.emit("sub", x, scalar=0.5)),
    "round_prefer_ceil": lambda b, x: b.emit("floor", b.emit("add", x, scalar=0.5)),
}


def _filtered(b: OnnxImporter, x: Tensor, axis: int, position: Tensor, mode: str, scale: float = 1.0) -> Tensor:
    """Add up the pixels around each position, weighed by a kernel that is 1 / scale times as wide."""
    reach, low = 1 if mode == "linear" else 2, b.emit("floor", position)
    part, start = b.emit("sub", position, low), floor(-reach / scale) + 1
    last = as_known(x.shape[axis] - 1, "float32")
    taps, weights = [], []
    for number in range(start, 2 - start):
        away = b.emit("abs", b.emit("sub", part, scalar=float(number)))
        distance = away if scale == 1 else b.emit("mul", away, scalar=scale)
        taps.append(b.emit("add", low, scalar=float(number)))
        weights.append(_triangle(b, distance) if mode == "linear" else _cubic(b, distance))
    if b.attr("exclude_outside", 0):
        for i, tap in enumerate(taps):
            inside = b.emit("logical_and", b.emit("ge", tap, scalar=0), b.binary("le", tap, last))
            weights[i] = b.emit("mul", weights[i], b.cast(inside, "float32"))
    if scale != 1 or b.attr("exclude_outside", 0):
        total = b.total(weights)
        weights = [b.emit("div", weight, total) for weight in weights]
    shape = (-1, *(1,) * (x.rank - 1 - axis))
    pairs = zip(taps, weights, strict=True)
    return b.total([b.emit("mul", _select(b, x, axis, tap), b.reshape(w, shape)) for tap, w in pairs])


def _triangle(b: OnnxImporter, distance: Tensor) -> Tensor:
    return b.emit("clamp", b.emit("sub", distance, scalar=1.0, reverse=True), min=0.0)


def _cubic(b: OnnxImporter, distance: Tensor) -> Tensor:
    """Keys' kernel: two polynomials of the distance."""
    a, zero = b.attr("cubic_coeff_a", -0.75), as_known(0.0, "float32")
    near = _polynomial(b, distance, (a + 2, -(a + 3), 0, 1))
    far = _polynomial(b, distance, (a, -5 * a, 8 * a, -4 * a))
    far = b.emit("where", b.emit("lt", distance, scalar=2.0), far, zero)
    return b.emit("where", b.emit("le", distance, scalar=1.0), near, far)


def _polynomial(b: OnnxImporter, x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    y = b.emit("mul", x, scalar=float(coefficients[0]))
    for c in coefficients[1:-1]:
        y = b.emit("mul", b.emit("add", y, scalar=float(c)), x)
    return b.emit("add", y, scalar=float(coefficients[-1]))


def _cropped(b: OnnxImporter, x: Tensor, out: list[Any], axes: list[int], roi: Tensor | None) -> Tensor:
    """Resize a known region; pixels outside of the input have the extrapolation value."""
    region = b.numbers(roi, "region of interest") or []
    starts, ends = region[: len(axes)], region[len(axes) :]
    fill, outside = b.attr("extrapolation_value", 0.0), []
    for axis, start, end in zip(axes, starts, ends, strict=True):
        size, n = b.fixed(x.shape[axis]), b.fixed(out[axis])
        if (size, start, end) == (n, 0, 1):
            continue
        step = (end - start) * (size - 1) / (n - 1) if n > 1 else 0
        first = start * (size - 1) if n > 1 else 0.5 * (start + end) * (size - 1)
        position = (first + np.arange(n) * step).astype(np.float32)
        outside.append((axis, (position < 0) | (position > size - 1)))
        places, mode = as_known(position, "float32"), b.attr("mode", "nearest")
        if mode == "nearest":
            x = _select(b, x, axis, ROUNDINGS[b.attr("nearest_mode", "round_prefer_floor")](b, places))
        else:
            x = _filtered(b, x, axis, places, mode)
    for axis, beyond in outside:
        if beyond.any():
            mask = as_known(beyond.reshape(-1, *(1,) * (x.rank - 1 - axis)), "bool")
            x = b.emit("where", mask, as_known(fill, x.dtype), x)
    return x
