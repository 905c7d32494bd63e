"""Gradients of the operations of a graph, in NumPy: from those of a node's outputs to those of inputs and parameters.

They are for small corrections of networks that are nearly right, without PyTorch; `pqnet.train` is for training.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pqnet.graph.graph import Node
from pqnet.graph.layers import weight_op
from pqnet.graph.op import OPS, Attrs, Params, get_op
from pqnet.graph.ops.activation import FUNCTIONS
from pqnet.graph.ops.elementwise import FLOAT
from pqnet.graph.ops.pool import bins, window_sizes

__all__ = ["backward", "has_gradient", "reached"]

Arrays = Sequence[np.ndarray]
One = np.ndarray | Callable[[], np.ndarray]  # what costs much is a function: not all is asked for
Found = tuple[Sequence[One | None], Mapping[str, One]]  # of inputs and, by role, of parameters
Gradient = Callable[[Arrays, Arrays, Arrays, Params, Attrs], Found]

STEP = 1e-3  # by which arguments of smooth functions are moved to either side


def has_gradient(op: str) -> bool:
    """Tell whether `backward` goes through an operation."""
    return op in TABLE


def reached(nodes: Iterable[Node], params: Collection[str]) -> set[str]:
    """Return the values that nodes, in order, compute from some parameters."""
    found: set[str] = set()
    for node in nodes:
        if not found.isdisjoint(node.inputs) or any(name in params for name in node.params.values()):
            found.update(node.outputs)
    return found


def backward(
    nodes: Sequence[Node],
    values: Mapping[str, np.ndarray],
    params: Mapping[str, np.ndarray],
    attrs: Sequence[Attrs],
    seeds: Mapping[str, np.ndarray],
    wanted: Collection[str],
) -> dict[str, np.ndarray]:
    """Return the gradients of some parameters by name, float32, for those of some values.

    Parameters
    ----------
    nodes : sequence of Node
        In order, each of an operation of which `has_gradient` is true, or one that no wanted parameter reaches.
    values : dict of str to ndarray
        All that the nodes read and write.
    params : dict of str to ndarray
        By name; dense.
    attrs : sequence of dict
        Of each node, sizes known.
    seeds : dict of str to ndarray
        Gradients of values that the nodes write.
    wanted : collection of str
        Names of parameters; others count as constants.
    """
    changing = reached(nodes, wanted)
    at: dict[str, np.ndarray] = dict(seeds)
    found: dict[str, np.ndarray] = {}
    for node, known in zip(reversed(nodes), reversed(attrs), strict=True):
        if not any(v in at and v in changing for v in node.outputs):
            continue
        grads = [at.pop(v) if v in at else np.zeros_like(values[v]) for v in node.outputs]
        seen, written = ([values[v] for v in names] for names in (node.inputs, node.outputs))
        roles = {role: params[name] for role, name in node.params.items()}
        of_inputs, of_params = TABLE[node.op](grads, seen, written, roles, known)
        for name, grad in zip(node.inputs, of_inputs, strict=True):
            if grad is not None and name in changing:
                value = grad() if callable(grad) else grad
                at[name] = at[name] + value if name in at else value
        for role, grad in of_params.items():
            param = node.params.get(role, "")
            if param in wanted:
                value = grad() if callable(grad) else grad
                found[param] = found[param] + value if param in found else value
    return found


def _to_shape(grad: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum over what was broadcast."""
    grad = grad.sum(tuple(range(grad.ndim - len(shape))))
    axes = tuple(i for i, size in enumerate(shape) if size == 1 != grad.shape[i])
    return np.asarray(grad.sum(axes, keepdims=True) if axes else grad)


def _is_float(x: np.ndarray) -> bool:
    return x.dtype == np.float32


# Slopes that a difference would blur at a corner, or that cost less.
SLOPES: dict[str, Callable[[np.ndarray, Attrs], np.ndarray]] = {
    "relu": lambda x, a: x > 0,
    "leaky_relu": lambda x, a: np.where(x > 0, np.float32(1), np.float32(a["negative_slope"])),
    "clamp": lambda x, a: (
        (x > (-np.inf if a["min"] is None else a["min"])) & (x < (np.inf if a["max"] is None else a["max"]))
    ),
    "neg": lambda x, a: np.full((), -1, np.float32),
    "abs": lambda x, a: np.sign(x),
    "cast": lambda x, a: np.ones((), np.float32),
}


def _function(name: str) -> Gradient:
    """Return the gradient of a function of each element."""

    def run(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
        if not _is_float(x[0]):
            return [None], {}
        if name in SLOPES:
            return [g[0] * SLOPES[name](x[0], a)], {}
        step = np.maximum(np.abs(x[0]), 1) * np.float32(STEP)
        high, low = (np.asarray(get_op(name).evaluate([at], p, a)) for at in (x[0] + step, x[0] - step))
        return [g[0] * (high - low) / (2 * step)], {}

    return run


PARTIALS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "add": lambda a, b: (1, 1),
    "sub": lambda a, b: (1, -1),
    "mul": lambda a, b: (b, a),
    "div": lambda a, b: (1 / b, -a / np.square(b)),
    "maximum": lambda a, b: (a >= b, a < b),
    "minimum": lambda a, b: (a <= b, a > b),
}


def _binary(name: str) -> Gradient:
    def run(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
        operands: list[Any] = list(x)
        if a["scalar"] is not None:
            operands.insert(0 if a.get("reverse") else 1, np.float32(a["scalar"]))
        partials: Sequence[Any] = PARTIALS[name](*operands)
        if a["scalar"] is not None:
            partials = [partials[1 if a.get("reverse") else 0]]
        return [_to_shape(g[0] * d, v.shape) if _is_float(v) else None for d, v in zip(partials, x, strict=True)], {}

    return run


def _power(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    if a["scalar"] is None or a["reverse"]:
        return [None] * len(x), {}
    return [g[0] * np.float32(a["scalar"]) * x[0] ** np.float32(a["scalar"] - 1)], {}


def _moved(name: str) -> Gradient:
    """Return the gradient of an operation that moves elements: it is found by moving their numbers."""

    def run(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
        if not _is_float(x[0]):
            return [None] * len(x), {}
        moved = 1 if name != "concat" else len(x)
        ends = np.cumsum([1, *(v.size for v in x[:moved])])
        numbers = [np.arange(e - v.size, e).reshape(v.shape) for e, v in zip(ends[1:], x[:moved], strict=True)]
        made = get_op(name).evaluate([*numbers, *x[moved:]], p, {**a, "value": 0} if name == "pad" else a)
        total = np.zeros(ends[-1])
        for at, grad in zip(made if isinstance(made, tuple) else (made,), g, strict=True):
            total += np.bincount(at.reshape(-1), grad.reshape(-1), ends[-1])
        parts = np.split(total.astype(np.float32), ends[:-1])[1:]
        return [*(part.reshape(v.shape) for part, v in zip(parts, x, strict=False)), *(None for _ in x[moved:])], {}

    return run


def _constant(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    return [], {"value": g[0]}


def _reshape(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    return [g[0].reshape(x[0].shape)], {}


def _permute(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    return [g[0].transpose(np.argsort(a["axes"]))], {}


def _sum(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    grad = g[0] if a["keepdims"] else np.expand_dims(g[0], a["axes"])
    return [np.broadcast_to(grad, x[0].shape)], {}


def _mean(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    count = math.prod(x[0].shape[axis] for axis in a["axes"])
    return _sum([g[0] / np.float32(count)], x, y, p, a)


def _linear(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    rows, seen = (v.reshape(-1, v.shape[-1]) for v in (g[0], x[0]))
    return [(rows @ p["weight"]).reshape(x[0].shape)], {"weight": rows.T @ seen, "bias": rows.sum(0)}


def _matmul(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    left, right = (v.reshape(shape) for v, shape in zip(x, _matrices(x), strict=True))
    grad = g[0].reshape(*np.broadcast_shapes(left.shape[:-2], right.shape[:-2]), left.shape[-2], right.shape[-1])
    pairs = (grad @ right.swapaxes(-1, -2), left), (left.swapaxes(-1, -2) @ grad, right)
    return [_to_shape(d, v.shape).reshape(of.shape) for (d, v), of in zip(pairs, x, strict=True)], {}


def _matrices(x: Arrays) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of the operands of a product with two axes at least: vectors are a row and a column."""
    return np.atleast_2d(x[0]).shape, x[1].shape if x[1].ndim > 1 else (x[1].size, 1)


def _embedding(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    grad = np.zeros(p["weight"].shape, np.float32)
    np.add.at(grad, x[0].reshape(-1), g[0].reshape(-1, g[0].shape[-1]))
    return [None], {"weight": grad}


def _conv(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    n = len(a["stride"])
    room = (
        size + a["padding"][i] + a["padding"][n + i] - a["dilation"][i] * (p["weight"].shape[2 + i] - 1) - 1
        for i, size in enumerate(x[0].shape[2:])
    )
    left = tuple(size % stride for size, stride in zip(room, a["stride"], strict=True))  # that no window reaches

    def back() -> np.ndarray:
        attrs = {**a, "output_padding": left}
        return np.asarray(get_op(f"conv_transpose{n}d").evaluate([g[0]], _mirrored(p["weight"], a["groups"]), attrs))

    return [back], _of_products(f"conv{n}d", g[0], x[0], p["weight"], a)


def _conv_transpose(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    n = len(a["stride"])

    def back() -> np.ndarray:
        found = np.asarray(get_op(f"conv{n}d").evaluate([g[0]], _mirrored(p["weight"], a["groups"]), a))
        return found[:, :, *(slice(size) for size in x[0].shape[2:])]  # the rest is of output_padding

    return [back], _of_products(f"conv_transpose{n}d", g[0], x[0], p["weight"], a)


def _mirrored(weight: np.ndarray, groups: int) -> dict[str, np.ndarray]:
    """Return the weight, in filter form, of the convolution that goes the other way."""
    o, c, *kernel = weight.shape
    swapped = weight.reshape(groups, o // groups, c, *kernel).swapaxes(1, 2)
    return {"weight": swapped.reshape(groups * c, o // groups, *kernel)}


def _of_products(op: str, grad: np.ndarray, x: np.ndarray, weight: np.ndarray, a: Attrs) -> dict[str, One]:
    """Return the gradients of weight and bias of a convolution for that of what it gives."""
    windows = weight_op(op).windows
    assert windows is not None
    kernel, axes = weight.shape[2:], (0, *range(2, grad.ndim))
    return {
        "weight": lambda: _of_filters(grad, windows(x, kernel, a), weight.shape, a["groups"]),
        "bias": grad.sum(axes),
    }


def _of_filters(grad: np.ndarray, windows: np.ndarray, shape: tuple[int, ...], groups: int) -> np.ndarray:
    """Return the gradient of filters for that of what they give, (B, O, *positions), and what they see."""
    (o, c, *kernel), batch = shape, len(grad)
    if c == 1 and o == groups:
        rows = grad.reshape(batch, o, -1)
        taps = (windows[:, :, *tap].reshape(batch, o, -1) for tap in np.ndindex(*kernel))
        return np.stack([np.einsum("bop,bop->o", rows, tap) for tap in taps], 1).reshape(shape)
    total = np.zeros((groups, o // groups, c * math.prod(kernel)), np.float32)
    for rows, seen in zip(grad, windows, strict=True):
        patches = seen.reshape(groups, c * math.prod(kernel), -1)
        total += rows.reshape(groups, o // groups, -1) @ patches.swapaxes(1, 2)
    return total.reshape(shape)


def _batch_norm(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    ones = np.ones(x[0].shape[1], np.float32)
    column = (-1, *(1,) * (x[0].ndim - 2))
    size = 1 / np.sqrt(p.get("var", ones) + a["eps"])
    axes = (0, *range(2, x[0].ndim))
    shift = g[0].sum(axes)
    along = (g[0] * x[0]).sum(axes) - shift * p.get("mean", 0 * ones)
    of_params = {"weight": size * along, "bias": shift}
    return [g[0] * (p.get("weight", ones) * size).reshape(column)], {r: of_params[r] for r in of_params if r in p}


def _standardized(g: np.ndarray, rows: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradient of rows for that of what they are with mean 0 and variance 1, and these."""
    about = rows - rows.mean(-1, keepdims=True)
    size = np.sqrt(np.square(about).mean(-1, keepdims=True) + np.float32(eps))
    unit = about / size
    return (g - g.mean(-1, keepdims=True) - unit * (g * unit).mean(-1, keepdims=True)) / size, unit


def _layer_norm(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    leading = x[0].shape[: -a["axes"]]
    flat = (*leading, math.prod(x[0].shape[-a["axes"] :]))
    grad = g[0] * p["weight"] if "weight" in p else g[0]
    back, unit = _standardized(grad.reshape(flat), x[0].reshape(flat), a["eps"])
    axes = tuple(range(len(leading)))
    of_params = {"weight": (g[0] * unit.reshape(x[0].shape)).sum(axes), "bias": g[0].sum(axes)}
    return [back.reshape(x[0].shape)], {role: of_params[role] for role in p}


def _rms_norm(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    axes = tuple(range(-a["axes"], 0))
    size = np.sqrt(np.square(x[0]).mean(axes, keepdims=True) + np.float32(a["eps"]))
    unit, grad = x[0] / size, g[0] * p["weight"] if "weight" in p else g[0]
    back = (grad - unit * (grad * unit).mean(axes, keepdims=True)) / size
    return [back], {role: (g[0] * unit).sum(tuple(range(x[0].ndim - a["axes"]))) for role in p}


def _group_norm(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    shape, axes = x[0].shape, (0, *range(2, x[0].ndim))
    grad = g[0] * p["weight"].reshape(-1, *(1,) * (x[0].ndim - 2)) if "weight" in p else g[0]
    flat = (shape[0], a["groups"], -1)
    back, unit = _standardized(grad.reshape(flat), x[0].reshape(flat), a["eps"])
    of_params = {"weight": (g[0] * unit.reshape(shape)).sum(axes), "bias": g[0].sum(axes)}
    return [back.reshape(shape)], {role: of_params[role] for role in p}


def _softmax(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    return [y[0] * (g[0] - (g[0] * y[0]).sum(a["axis"], keepdims=True))], {}


def _log_softmax(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    return [g[0] - np.exp(y[0]) * g[0].sum(a["axis"], keepdims=True)], {}


def _attention(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    q, k, v = x[:3]
    scale = np.float32(1 / math.sqrt(q.shape[-1]) if a["scale"] is None else a["scale"])
    shares = get_op("attention").evaluate([q, k, np.eye(k.shape[-2], dtype=np.float32), *x[3:]], p, a)
    assert isinstance(shares, np.ndarray)
    scores = g[0] @ v.swapaxes(-1, -2)
    scores = shares * (scores - (scores * shares).sum(-1, keepdims=True))
    back = scale * (scores @ k), scale * (scores.swapaxes(-1, -2) @ q), shares.swapaxes(-1, -2) @ g[0], scores
    return [_to_shape(d, w.shape) if _is_float(w) else None for d, w in zip(back, x, strict=False)], {}


def _pool(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    """Give each window's gradient to all its pixels alike, or, without counts, to the first that is the largest."""
    mean, (rows, columns) = "count_include_pad" in a, y[0].shape[2:]
    dilation = a.get("dilation", (1, 1))
    sizes = [
        max((n - 1) * a["stride"][i] + dilation[i] * (a["kernel"][i] - 1) + 1, x[0].shape[2 + i] + a["padding"][i])
        for i, n in enumerate((rows, columns))
    ]
    inner = tuple(slice(a["padding"][i], a["padding"][i] + x[0].shape[2 + i]) for i in (0, 1))
    padded = np.full((*x[0].shape[:2], *sizes), -np.inf, np.float32)
    padded[:, :, *inner] = x[0]
    total, left, grad = np.zeros_like(padded), np.ones(y[0].shape, bool), g[0]
    if mean:
        counts = [window_sizes(x[0].shape[2 + i], n, i, a) for i, n in enumerate((rows, columns))]
        grad = grad / (counts[0][:, None] * counts[1] if a["divisor"] is None else np.float32(a["divisor"]))
    for tap in np.ndindex(*a["kernel"]):
        at = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilation, (rows, columns), a["stride"], strict=True)
        )
        if mean:
            total[:, :, *at] += grad
            continue
        hit = left & (padded[:, :, *at] == y[0])
        total[:, :, *at] += grad * hit
        left &= ~hit
    return [total[:, :, *inner]], {}


def _adaptive_mean(g: Arrays, x: Arrays, y: Arrays, p: Params, a: Attrs) -> Found:
    shares = []
    for size, count in zip(x[0].shape[2:], a["size"], strict=True):
        starts, stops = (ends[:, None] for ends in bins(size, count))
        inside = (np.arange(size) >= starts) & (np.arange(size) < stops)
        shares.append((inside / (stops - starts)).astype(np.float32))
    return [np.einsum("bcij,ih,jw->bchw", g[0], *shares, optimize=True)], {}


SMOOTH = {*FUNCTIONS, *FLOAT, *SLOPES} - {"floor", "ceil", "round"}
TABLE: dict[str, Gradient] = {
    **{name: _function(name) for name in SMOOTH},
    **{name: _binary(name) for name in PARTIALS},
    **{name: _moved(name) for name in ("concat", "expand", "index_select", "pad", "slice", "split")},
    **{f"conv{n}d": _conv for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _conv_transpose for n in (1, 2, 3)},
    "adaptive_avg_pool2d": _adaptive_mean,
    "attention": _attention,
    "avg_pool2d": _pool,
    "batch_norm": _batch_norm,
    "constant": _constant,
    "embedding": _embedding,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "log_softmax": _log_softmax,
    "matmul": _matmul,
    "max_pool2d": _pool,
    "mean": _mean,
    "permute": _permute,
    "pow": _power,
    "reshape": _reshape,
    "softmax": _softmax,
    "sum": _sum,
}
assert TABLE.keys() <= OPS.keys()
