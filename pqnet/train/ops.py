"""The operations of a graph in PyTorch, and the module that runs a graph with them."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pqnet.codecs import Packed
from pqnet.errors import PQNetError
from pqnet.graph import Graph
from pqnet.graph.op import DTYPES as GRAPH_DTYPES
from pqnet.graph.op import INTEGERS, get_op, resolve_attrs
from pqnet.graph.ops.elementwise import as_scalar, operand_dtype
from pqnet.train.detection import heatmap_peaks, nms, paste_masks, roi_align
from pqnet.train.parallel import world

__all__ = ["TABLE", "TorchGraph"]

Attrs = Mapping[str, Any]
Params = Mapping[str, Tensor]
TorchOp = Callable[[Sequence[Tensor], Params, Attrs], Any]

MOMENTUM = 0.1  # of running statistics, PyTorch's default; graphs do not record it
# Instead of an eps of 0, which newer versions of PyTorch refuse: any variance above 1e-22 is the same number with it.
LEAST_EPS = 1e-30
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in GRAPH_DTYPES}


class TorchGraph(nn.Module):  # type: ignore[misc]
    """Runs the nodes of a graph with PyTorch's operations; see `pqnet.train.to_module`.

    Floats are parameters, but for the running statistics of batch norms, which like integers are buffers. Their
    names are those of the graph with ``_`` for each dot; a parameter that several nodes use exists once.

    The module starts in ``eval()`` mode. In ``train()`` mode batch norms that have statistics use those of the batch
    and update the running ones with momentum 0.1, as PyTorch's do; with several processes (`torch.distributed`), those
    of the batches of all, as ``nn.SyncBatchNorm``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        graph = getattr(model, "graph", model)
        if not isinstance(graph, Graph):
            raise PQNetError(f"model: expected a pqnet.Model or a Graph, got {type(model).__name__}")
        self.graph = graph.validate()
        self._keys: dict[str, str] = {}
        statistics = {node.params[role] for node in graph.nodes for role in ("mean", "var") if role in node.params}
        for name, param in graph.params.items():
            array = param.decode() if isinstance(param, Packed) else param
            tensor = torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else array.dtype))
            key = name.replace(".", "_")
            while hasattr(self, key):
                key += "_"
            self._keys[name] = key
            if tensor.is_floating_point() and name not in statistics:
                self.register_parameter(key, nn.Parameter(tensor))
            else:
                self.register_buffer(key, tensor)
        self.eval()

    def key(self, name: str) -> str:
        """Return the name that a parameter of the graph has in the module."""
        return self._keys[name]

    def forward(self, *inputs: Tensor) -> Any:
        outputs, _ = self.run(inputs)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def run(self, inputs: Sequence[Tensor], inside: Sequence[str] = ()) -> tuple[list[Tensor], list[Tensor]]:
        """Return the outputs and, by their names in the graph, some of the values that nodes write."""
        values = self.run_to(len(self.graph.nodes), inputs)
        return [values[value] for value in self.graph.outputs.values()], [values[value] for value in inside]

    def run_to(self, stop: int, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return all values by name after so many nodes."""
        symbols = self.graph.bind_symbols(self._check(inputs))
        values = dict(zip(self.graph.inputs, inputs, strict=True))
        for node in self.graph.nodes[:stop]:
            attrs = resolve_attrs(get_op(node.op), node.attrs, symbols)
            params = {role: getattr(self, self._keys[name]) for role, name in node.params.items()}
            live = self.training and node.op == "batch_norm" and {"mean", "var"} <= params.keys()
            run = _batch_norm_of_batch if live else TABLE[node.op]
            # Values made from nothing need to know where; for all others such a context would cost more than they do.
            with nullcontext() if node.inputs else torch.device(inputs[0].device):
                result = run([values[v] for v in node.inputs], params, attrs)
            values.update(zip(node.outputs, (result,) if isinstance(result, Tensor) else result, strict=True))
        return values

    def _check(self, inputs: Sequence[Tensor]) -> dict[str, tuple[int, ...]]:
        wanted = self.graph.inputs
        if len(inputs) != len(wanted):
            raise PQNetError(f"inputs: expected {len(wanted)} tensors ({', '.join(wanted)}), got {len(inputs)}")
        for tensor, (name, info) in zip(inputs, wanted.items(), strict=True):
            if not isinstance(tensor, Tensor) or tensor.dtype != DTYPES[info.dtype]:
                got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise PQNetError(f"input {name!r}: expected a tensor of {DTYPES[info.dtype]}, got {got}")
        return {name: tuple(tensor.shape) for name, tensor in zip(wanted, inputs, strict=True)}


def _padded(x: Tensor, padding: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last axes by so much before each, then after each: (top, left, bottom, right) of images."""
    n = len(padding) // 2
    pairs = [number for i in reversed(range(n)) for number in (padding[i], padding[n + i])]
    return F.pad(x, pairs, value=value) if any(padding) else x


def _conv(function: Callable[..., Tensor]) -> TorchOp:
    def run(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
        n = len(a["stride"])
        before, after = a["padding"][:n], a["padding"][n:]
        image, padding = (x[0], before) if before == after else (_padded(x[0], a["padding"]), 0)
        return function(image, p["weight"], p.get("bias"), a["stride"], padding, a["dilation"], a["groups"])

    return run


def _conv_transpose(function: Callable[..., Tensor]) -> TorchOp:
    def run(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
        weight, groups, n = p["weight"], a["groups"], len(a["stride"])
        o, c, *kernel = weight.shape
        weight = weight.reshape(groups, o // groups, c, *kernel).transpose(1, 2)
        weight = weight.reshape(groups * c, o // groups, *kernel)
        full = function(x[0], weight, None, a["stride"], 0, 0, groups, a["dilation"])
        before, after = a["padding"][:n], a["padding"][n:]
        margin = [*(-m for m in before), *(e - m for e, m in zip(a["output_padding"], after, strict=True))]
        out = _padded(full, margin)
        return out + p["bias"].reshape(-1, *(1,) * n) if "bias" in p else out

    return run


def _rnn_step(x: Tensor, product: Tensor, states: tuple[Tensor, ...], a: Attrs) -> tuple[Tensor, ...]:
    return (torch.tanh(x + product) if a["nonlinearity"] == "tanh" else F.relu(x + product),)


def _lstm_step(x: Tensor, product: Tensor, states: tuple[Tensor, ...], a: Attrs) -> tuple[Tensor, ...]:
    i, f, g, o = (x + product).chunk(4, 1)
    memory = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * memory.tanh(), memory


def _gru_step(x: Tensor, product: Tensor, states: tuple[Tensor, ...], a: Attrs) -> tuple[Tensor, ...]:
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, 1), product.chunk(3, 1)
    candidate = torch.tanh(xn + (xr + hr).sigmoid() * hn)
    return (torch.lerp(candidate, states[0], (xz + hz).sigmoid()),)


def _recurrent(step: Callable[..., tuple[Tensor, ...]], n_states: int) -> TorchOp:
    """Return a recurrent operation, see `pqnet.graph.ops.recurrent`."""

    def run(x: Sequence[Tensor], p: Params, a: Attrs) -> tuple[Tensor, ...]:
        products, weight = x[0], p["weight"]
        zero = products.new_zeros(products.shape[0], weight.shape[1])
        states, outputs = tuple(x[1:]) or (zero,) * n_states, []
        steps = products.unbind(1)
        for product in reversed(steps) if a["reverse"] else steps:
            states = step(product, F.linear(states[0], weight, p.get("bias")), states, a)
            outputs.append(states[0])
        found = outputs[::-1] if a["reverse"] else outputs
        return (torch.stack(found, 1) if found else zero[:, None][:, :0], *states)

    return run


def _embedding(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    ids, rows = x[0], len(p["weight"])
    if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < rows):
        raise PQNetError(f"ids: expected numbers from 0 to {rows - 1}, got {int(ids.min())} to {int(ids.max())}")
    return F.embedding(ids, p["weight"])


def _meeting(x: Sequence[Tensor], scalars: Sequence[float | None]) -> str:
    return operand_dtype(["float32" if t.is_floating_point() else _name(t) for t in x], scalars)


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _binary(function: Callable[[Tensor, Tensor], Tensor], meet: str | None = None) -> TorchOp:
    def run(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
        scalar = a["scalar"]
        dtype = meet or _meeting(x, [scalar])
        operands = [tensor.to(DTYPES[dtype]) for tensor in x]
        if scalar is not None:
            number = torch.tensor(as_scalar(scalar, dtype), dtype=DTYPES[dtype])  # without axes: it fits any device
            operands.insert(0 if a.get("reverse") else 1, number)
        return function(*operands)

    return run


def _unary(function: Callable[..., Tensor]) -> TorchOp:
    """Return an operation whose attributes are the function's keywords."""
    return lambda x, p, a: function(*x, **a)


def _clamp(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    ends = (a["min"], a["max"])
    dtype = _meeting(x, ends)
    low, high = ends
    if dtype in INTEGERS:  # PyTorch takes no limits that the dtype does not hold
        limits = torch.iinfo(DTYPES[dtype])
        low, high = (None if end is None else min(max(int(end), limits.min), limits.max) for end in ends)
    return torch.clamp(x[0].to(DTYPES[dtype]), low, high)


def _where(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    both_bool = x[1].dtype == x[2].dtype == torch.bool
    dtype = DTYPES["bool" if both_bool else _meeting(x[1:], ())]
    return torch.where(x[0], x[1].to(dtype), x[2].to(dtype))


def _full(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    return torch.full(a["shape"], as_scalar(a["value"], a["dtype"]), dtype=DTYPES[a["dtype"]])


def _batch_norm(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    like = x[0].new_ones(x[0].shape[1], dtype=torch.float32)  # as parameters are, whatever autocast makes of inputs
    mean, var = p.get("mean", torch.zeros_like(like)), p.get("var", like)
    return F.batch_norm(x[0], mean, var, p.get("weight"), p.get("bias"), eps=a["eps"] or LEAST_EPS)


def _batch_norm_of_batch(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    """Normalise by the statistics of the batch, and update the running ones."""
    mean, var, weight, bias = p["mean"], p["var"], p.get("weight"), p.get("bias")
    if world() == 1:
        if x[0].numel() == len(mean):
            raise PQNetError(
                "batch: expected more than one number for each channel of a batch norm that trains, got one"
            )
        return F.batch_norm(x[0], mean, var, weight, bias, True, MOMENTUM, a["eps"] or LEAST_EPS)
    axes, column = [0, *range(2, x[0].dim())], (-1, *(1,) * (x[0].dim() - 2))
    count = x[0].new_tensor([x[0].numel() / len(mean)])
    *_, size = sums = _SumOfProcesses.apply(torch.cat([x[0].sum(axes), count]))
    centred = x[0] - (sums[:-1] / size).reshape(column)
    variance = _SumOfProcesses.apply(centred.square().sum(axes)) / size
    with torch.no_grad():
        mean.lerp_(sums[:-1] / size, MOMENTUM)
        var.lerp_(variance * size / (size - 1), MOMENTUM)
    scale = (variance + a["eps"]).rsqrt() if weight is None else (variance + a["eps"]).rsqrt() * weight
    out = centred * scale.reshape(column)
    return out if bias is None else out + bias.reshape(column)


class _SumOfProcesses(torch.autograd.Function):  # type: ignore[misc]
    """The sum of a tensor over all processes: every process's loss depends on it, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


def _layer_norm(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    return F.layer_norm(x[0], x[0].shape[-a["axes"] :], p.get("weight"), p.get("bias"), a["eps"])


def _rms_norm(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    return F.rms_norm(x[0], x[0].shape[-a["axes"] :], p.get("weight"), a["eps"])


def _group_norm(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    return F.group_norm(x[0], a["groups"], p.get("weight"), p.get("bias"), a["eps"])


def _is_native_padding(a: Attrs) -> bool:
    """Tell whether PyTorch's pooling takes the padding: the same on both sides, at most half the kernel."""
    return a["padding"][:2] == a["padding"][2:] and all(2 * a["padding"][i] <= a["kernel"][i] for i in (0, 1))


def _pooled_size(x: Tensor, a: Attrs) -> tuple[slice, slice]:
    """Return the windows that start on the input or on the padding before it, which ceil_mode keeps."""
    return tuple(  # type: ignore[return-value]
        slice((x.shape[2 + i] + a["padding"][i] - 1) // a["stride"][i] + 1 if a["ceil_mode"] else None) for i in (0, 1)
    )


def _max_pool2d(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    if _is_native_padding(a):
        return F.max_pool2d(x[0], a["kernel"], a["stride"], a["padding"][:2], a["dilation"], a["ceil_mode"])
    padded = _padded(x[0], a["padding"], -math.inf)
    out = F.max_pool2d(padded, a["kernel"], a["stride"], 0, a["dilation"], a["ceil_mode"])
    return out[:, :, *_pooled_size(x[0], a)]


def _avg_pool2d(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    include, divisor = a["count_include_pad"], a["divisor"]
    kernel, stride, ceil_mode = a["kernel"], a["stride"], a["ceil_mode"]
    if _is_native_padding(a):
        return F.avg_pool2d(x[0], kernel, stride, a["padding"][:2], ceil_mode, include, divisor)

    def sums(padded: Tensor) -> Tensor:
        return F.avg_pool2d(padded, kernel, stride, 0, ceil_mode, divisor_override=1)[:, :, *_pooled_size(x[0], a)]

    total = sums(_padded(x[0], a["padding"]))
    return total / (divisor or sums(_padded(torch.ones_like(x[0][:1, :1]), a["padding"], float(include))))


def _interpolate(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    function = getattr(torch.ops.aten, ("_upsample_{}2d_aa" if a["antialias"] else "upsample_{}2d").format(a["mode"]))
    corners = () if a["mode"] == "nearest" else (a["align_corners"],)
    scaled: Tensor = function(x[0], a["size"], *corners, a["scale_height"], a["scale_width"])
    return scaled


def _prod(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    out = x[0]
    for axis in a["axes"]:
        out = out.prod(axis, keepdim=True)
    return out if a["keepdims"] else out.squeeze(a["axes"])


def _running(function: Callable[..., Tensor]) -> TorchOp:
    return lambda x, p, a: function(x[0], a["axis"])


def _topk(x: Sequence[Tensor], p: Params, a: Attrs) -> tuple[Tensor, Tensor]:
    # The first of equal ones, which topk does not promise.
    values, places = torch.sort(x[0], dim=a["axis"], descending=a["largest"], stable=True)
    return values.narrow(a["axis"], 0, a["k"]), places.narrow(a["axis"], 0, a["k"])


def _position(function: Callable[..., Tensor]) -> TorchOp:
    def run(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
        values = x[0].to(torch.uint8) if x[0].dtype == torch.bool else x[0]  # PyTorch finds no place of a boolean
        return function(values, a["axis"], keepdim=a["keepdims"])

    return run


def _reduction(function: Callable[..., Tensor]) -> TorchOp:
    return lambda x, p, a: function(x[0], a["axes"], keepdim=a["keepdims"])


def _var(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    return torch.var(x[0], a["axes"], correction=a["correction"], keepdim=a["keepdims"])


def _slice(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    taken = slice(a["start"], a["stop"], a["step"])
    if a["step"] > 0:
        return x[0][(slice(None),) * a["axis"] + (taken,)]
    positions = range(x[0].shape[a["axis"]])[taken]  # PyTorch has no negative steps
    return x[0].index_select(a["axis"], torch.tensor(list(positions), dtype=torch.int64, device=x[0].device))


def _pad(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    out, pairs = x[0], list(zip(a["padding"][::2], a["padding"][1::2], strict=True))
    if a["mode"] == "constant":
        flat = [n for pair in reversed(pairs) for n in pair]
        return F.pad(out, flat, value=a["value"])
    for axis, pair in enumerate(pairs):  # one axis at a time, for PyTorch reflects and replicates the last ones only
        if any(pair):
            rows = out.movedim(axis, -1)
            padded = F.pad(rows.reshape(1, -1, rows.shape[-1]), pair, mode=a["mode"])
            out = padded.reshape(*rows.shape[:-1], -1).movedim(-1, axis)
    return out


REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    target, ids, updates = x
    if a["reduction"] == "none":
        return target.scatter(a["axis"], ids, updates)
    return target.scatter_reduce(a["axis"], ids, updates, REDUCTIONS[a["reduction"]])


def _attention(x: Sequence[Tensor], p: Params, a: Attrs) -> Tensor:
    batch = torch.broadcast_shapes(*(t.shape[:-2] for t in x[:3]))
    q, k, v = (t.expand(*batch, *t.shape[-2:]) for t in x[:3])
    mask = x[3] if len(x) == 4 else None
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=a["causal"], scale=a["scale"])


TABLE: dict[str, TorchOp] = {
    "conv1d": _conv(F.conv1d),
    "conv2d": _conv(F.conv2d),
    "conv3d": _conv(F.conv3d),
    "conv_transpose1d": _conv_transpose(F.conv_transpose1d),
    "conv_transpose2d": _conv_transpose(F.conv_transpose2d),
    "conv_transpose3d": _conv_transpose(F.conv_transpose3d),
    "linear": lambda x, p, a: F.linear(x[0], p["weight"], p.get("bias")),
    "rnn": _recurrent(_rnn_step, 1),
    "lstm": _recurrent(_lstm_step, 2),
    "gru": _recurrent(_gru_step, 1),
    "matmul": _unary(torch.matmul),
    "embedding": _embedding,
    "relu": _unary(F.relu),
    "sigmoid": _unary(torch.sigmoid),
    "tanh": _unary(torch.tanh),
    "silu": _unary(F.silu),
    "hardswish": _unary(F.hardswish),
    "hardsigmoid": _unary(F.hardsigmoid),
    "mish": _unary(F.mish),
    "leaky_relu": _unary(F.leaky_relu),
    "elu": _unary(F.elu),
    "gelu": _unary(F.gelu),
    "softplus": _unary(F.softplus),
    "clamp": _clamp,
    "prelu": lambda x, p, a: F.prelu(x[0], p["weight"]),
    "softmax": lambda x, p, a: torch.softmax(x[0], a["axis"]),
    "log_softmax": lambda x, p, a: torch.log_softmax(x[0], a["axis"]),
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "div": _binary(torch.div, "float32"),
    "floor_div": _binary(torch.floor_divide),
    "trunc_div": _binary(partial(torch.div, rounding_mode="trunc")),
    "remainder": _binary(torch.remainder),
    "fmod": _binary(torch.fmod),
    "bitwise_and": _binary(torch.bitwise_and),
    "bitwise_or": _binary(torch.bitwise_or),
    "bitwise_xor": _binary(torch.bitwise_xor),
    "bitwise_not": _unary(torch.bitwise_not),
    "shift_left": _binary(torch.bitwise_left_shift),
    "shift_right": _binary(torch.bitwise_right_shift),
    "pow": _binary(torch.pow),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "eq": _binary(torch.eq),
    "ne": _binary(torch.ne),
    "lt": _binary(torch.lt),
    "le": _binary(torch.le),
    "gt": _binary(torch.gt),
    "ge": _binary(torch.ge),
    "logical_and": _unary(torch.logical_and),
    "logical_or": _unary(torch.logical_or),
    "logical_not": _unary(torch.logical_not),
    "where": _where,
    "exp": _unary(torch.exp),
    "expm1": _unary(torch.expm1),
    "log": _unary(torch.log),
    "log1p": _unary(torch.log1p),
    "log2": _unary(torch.log2),
    "log10": _unary(torch.log10),
    "sqrt": _unary(torch.sqrt),
    "rsqrt": _unary(torch.rsqrt),
    "erf": _unary(torch.erf),
    "neg": _unary(torch.neg),
    "abs": _unary(torch.abs),
    "reciprocal": _unary(torch.reciprocal),
    "sin": _unary(torch.sin),
    "cos": _unary(torch.cos),
    "floor": _unary(torch.floor),
    "ceil": _unary(torch.ceil),
    "round": _unary(torch.round),
    "sign": _unary(torch.sign),
    "cast": lambda x, p, a: x[0].to(DTYPES[a["dtype"]]),
    "constant": lambda x, p, a: p["value"],
    "full": _full,
    "arange": lambda x, p, a: torch.arange(a["start"], a["end"], a["step"], dtype=torch.int64),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": lambda x, p, a: F.adaptive_avg_pool2d(x[0], a["size"]),
    "adaptive_max_pool2d": lambda x, p, a: F.adaptive_max_pool2d(x[0], a["size"]),
    "mean": _reduction(torch.mean),
    "sum": _reduction(torch.sum),
    "prod": _prod,
    "cumsum": _running(torch.cumsum),
    "cumprod": _running(torch.cumprod),
    "topk": _topk,
    "max": _reduction(torch.amax),
    "min": _reduction(torch.amin),
    "argmax": _position(torch.argmax),
    "argmin": _position(torch.argmin),
    "var": _var,
    "interpolate": _interpolate,
    "reshape": lambda x, p, a: x[0].reshape(a["shape"]),
    "permute": lambda x, p, a: x[0].permute(a["axes"]),
    "slice": _slice,
    "concat": lambda x, p, a: torch.cat(list(x), a["axis"]),
    "split": lambda x, p, a: torch.split(x[0], a["sizes"], a["axis"]),
    "expand": lambda x, p, a: x[0].broadcast_to(a["shape"]),
    "pad": _pad,
    "index_select": lambda x, p, a: torch.index_select(x[0], a["axis"], x[1]),
    "scatter": _scatter,
    "attention": _attention,
    "nms": nms,
    "roi_align": roi_align,
    "paste_masks": paste_masks,
    "heatmap_peaks": heatmap_peaks,
}
