"""Random valid networks with inputs, for properties that hold for every network.

Every node is computed twice while a network is made: from its inputs, and from inputs with errors as large as float32
arithmetic in another order may make. Nodes that enlarge these errors too much (a floor next to a whole number, a norm
of equal numbers) or leave the range of ordinary numbers are not taken, so that results may be compared by `same`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import pqnet
from pqnet import PQNetError
from pqnet._threads import blas_limit
from pqnet.codecs import Packed, PackedAdditive, PackedPQ, PackedScalar, PackedSparse
from pqnet.graph import Graph, GraphBuilder, Info, Node, ValueInfo
from pqnet.graph.op import complete_attrs, get_op
from pqnet.runtime.execute import dense_param, evaluate_node, run_graph, values_to_free

__all__ = ["cut", "random_graph", "reference", "same", "wrong_part"]

Run = Callable[[Graph, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

LARGEST_SIZE = 30_000  # elements of a value
LARGEST = 1e3  # magnitude
NOISE, TOLERANCE = 1e-5, 5e-4  # relative to the largest magnitude: of one operation; of a value
KS = (2, 3, 4, 9, 10, 11, 12, 16, 19, 20, 27, 33, 64, 76, 91, 108, 200, 256, 300, 362, 512)
CHANNELS = (1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 24, 32, 40, 48, 64)
SCALAR_CODECS = (
    *(pqnet.Scalar(5), pqnet.Fixed("ternary", "closed", "channel"), pqnet.Fixed("pow2", "none", exponent=2)),
    *(pqnet.IntN(4, "channel"), pqnet.IntN(8), pqnet.IntN(3, "channel", symmetric=False)),
)
ACTIVATIONS = ("relu", "sigmoid", "tanh", "silu", "hardsigmoid", "hardswish", "mish", "leaky_relu", "elu", "gelu")
FUNCTIONS = (
    "softplus",
    "abs",
    "neg",
    "erf",
    "sin",
    "cos",
    "sign",
    "floor",
    "round",
    "exp",
    "sqrt",
    "log",
    "reciprocal",
)


def random_graph(seed: int) -> tuple[Graph, dict[str, np.ndarray]]:
    """Return a network of 1 to about 20 nodes and inputs for it; the same for the same seed."""
    with blas_limit(1):
        maker = Maker(np.random.default_rng(seed))
        for _ in range(maker.number(1, 8)):
            maker.step()
        return maker.build(), maker.inputs


def reference(graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what the operations mean in NumPy."""
    with blas_limit(1):
        return run_graph(graph, values_to_free(graph), dict(inputs))


def same(got: np.ndarray, want: np.ndarray) -> bool:
    """Tell whether a result is right: of the right form, and as near as float32 arithmetic in another order is."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    if got.dtype != np.float32:
        return bool(np.array_equal(got, want))
    limit = 4 * TOLERANCE * np.abs(want).max(initial=1e-6)
    return bool((np.abs(got - want) <= limit).all())  # never of NaN


def cut(graph: Graph, value: str) -> Graph:
    """Return the part of a network that computes one value, all inputs kept."""
    needed, nodes = {value}, []
    for node in reversed(graph.nodes):
        if needed & set(node.outputs):
            needed |= set(node.inputs)
            nodes.append(node)
    used = {name for node in nodes for name in node.params.values()}
    params = {name: param for name, param in graph.params.items() if name in used}
    return Graph(graph.inputs, {"y": value}, nodes[::-1], params, graph.symbols).validate()


def wrong_part(graph: Graph, inputs: Mapping[str, np.ndarray], run: Run) -> Graph | None:
    """Return the part that computes the first value which an engine gets wrong, or None."""
    for node in graph.nodes:
        for value in node.outputs:
            part = cut(graph, value)
            if not same(run(part, inputs)["y"], reference(part, inputs)["y"]):
                return part
    return None


class Maker:
    """A network that grows."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.inputs: dict[str, np.ndarray] = {}
        self.values: dict[str, np.ndarray] = {}
        self.disturbed: dict[str, np.ndarray] = {}  # with errors
        kind = self.pick(["images"] * 7 + ["tokens"] * 3 + ["rows"] * 2 + ["ids"])
        batch = self.number(1, 6) if self.chance(0.8) else 17
        shape = self._input_shape(kind, batch)
        infos = {}
        for name in ("x", "z")[: 1 + self.chance(0.3)]:
            ids = kind == "ids"
            draw = rng.integers(0, 30, shape) if ids else rng.standard_normal(shape).astype(np.float32)
            self.inputs[name] = draw
            infos[name] = (shape, "int64" if ids else "float32")
        symbolic = self.chance(0.5)
        self.builder = GraphBuilder(
            {n: ValueInfo(("n" if symbolic else batch, *s[1:]), dtype) for n, (s, dtype) in infos.items()},
            {"n": batch} if symbolic else {},
        )
        for name, array in self.inputs.items():
            self.values[name] = array
            self.disturbed[name] = self._with_error(array)
        for name in self.inputs if kind == "ids" else ():
            table = self.weight((30, self.pick([4, 6, 8, 16, 24, 36])))
            self.add("embedding", name, params={"weight": table})

    def _input_shape(self, kind: str, batch: int) -> tuple[int, ...]:
        if kind == "ids":
            return batch, self.number(1, 12)
        channels = self.pick(CHANNELS)
        if kind == "rows":
            return batch, self.number(1, 90)
        if kind == "tokens":
            return batch, self.number(1, 20), self.pick(CHANNELS)
        size = [self.number(1, 40) for _ in range(2)]
        while batch * channels * size[0] * size[1] > LARGEST_SIZE:
            size = [max(s // 2, 1) for s in size]
        return batch, channels if np.prod(size) > 1 else self.pick(CHANNELS), *size

    # -- choices

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def divisor(self, n: int, most: int = 64) -> int:
        return int(self.pick([i for i in range(1, min(n, most) + 1) if n % i == 0]))

    def weight(self, shape: tuple[int, ...]) -> Any:
        """Return a weight, dense or packed."""
        dense = self.rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
        way = self.rng.random()
        if way < 0.3:
            return dense.astype(np.float16) if way < 0.05 else dense
        if way < 0.4 and dense.size >= 16:
            return self.other_codec(shape)
        return self.product_codes(shape)

    def other_codec(self, shape: tuple[int, ...]) -> Packed:
        """Return a weight of numbers with codes of their own, of few numbers that are not 0, or a sum of these."""
        size = int(np.prod(shape))
        count = self.number(1, max(size // 5, 1))
        places = np.sort(self.rng.choice(size, count, replace=False))
        sparse = PackedSparse(pqnet.Sparse(count=count), shape, places, self.numbers(count) / 2)
        if self.chance(0.3):
            return sparse
        codec = self.pick(SCALAR_CODECS).check(shape)
        codes = self.rng.integers(0, codec.k, (shape[0], size // shape[0]))
        stored: dict[str, np.ndarray] = {}
        if codec.levels is None:
            stored["codebook"] = self.numbers(codec.k, 1) / 4
        if codec.scaled:
            stored["scales"] = self.rng.uniform(0.1, 1, codec.scale_grid(shape)) / codec.k
        if codec.has_zeros:
            stored["zeros"] = self.rng.integers(0, codec.k, codec.scale_grid(shape))
        scalar = PackedScalar(codec, shape, codes, **stored)
        if self.chance(0.7):
            return scalar
        return PackedAdditive(pqnet.Additive([scalar.codec, sparse.codec]), [scalar, sparse])

    def product_codes(self, shape: tuple[int, ...]) -> PackedPQ:
        """Return a weight whose blocks are those of a codebook."""
        layout = self.pick(["spatial", "channel"])
        along = shape[1] if layout == "channel" else int(np.prod(shape[1:]))
        d = 8 if along % 8 == 0 and self.chance(0.5) else self.divisor(along, 32)
        blocks = int(np.prod(shape)) // d
        k = min(self.pick(KS), blocks)
        book = self.rng.standard_normal((k, d)) / np.sqrt(np.prod(shape[1:]))
        codec = pqnet.PQ(k, d, layout, self.pick(["float16", "float32", "int8"]))
        return PackedPQ(codec, shape, self.rng.integers(0, k, (shape[0], blocks // shape[0])), book.astype(np.float32))

    def numbers(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)

    # -- growing

    def _with_error(self, array: np.ndarray) -> np.ndarray:
        if array.dtype != np.float32:
            return array
        with np.errstate(invalid="ignore"):  # infinities are refused later
            noise = self.rng.uniform(-NOISE, NOISE, array.shape) * np.abs(array).max(initial=0)
            return (array + noise).astype(np.float32)

    def add(self, op: str, *inputs: str, params: Mapping[str, Any] | None = None, **attrs: Any) -> str | None:
        """Append a node and return its first output, or None if it would not fit or be too sensitive to errors."""
        rule = get_op(op)
        arrays = {r: self.builder.params[p] if isinstance(p, str) else p for r, p in (params or {}).items()}
        infos = {role: Info(tuple(p.shape), dense_param(p).dtype.name) for role, p in arrays.items()}
        try:
            full = complete_attrs(rule, attrs)
            found = rule.infer([Info(self.values[v].shape, self.values[v].dtype.name) for v in inputs], infos, full)
            shapes = [info.shape for info in (found if isinstance(found, list | tuple) and op == "split" else [found])]
            if any(np.prod(shape, dtype=float) > LARGEST_SIZE or 0 in shape for shape in shapes):
                return None
            node = Node(op, op, inputs, (op,), full)
            rows = op == "embedding"  # are decoded alone
            computed = {r: p if rows and isinstance(p, Packed) else dense_param(p) for r, p in arrays.items()}
            results, errors = (
                evaluate_node(node, [side[v] for v in inputs], computed, {}) for side in (self.values, self.disturbed)
            )
        except PQNetError:
            return None
        errors = tuple(map(self._with_error, errors))
        if not all(map(self._steady, results, errors)):
            return None
        names = self.builder.add_many(op, inputs, len(results), params=params, **attrs)
        self.values.update(zip(names, results, strict=True))
        self.disturbed.update(zip(names, errors, strict=True))
        return names[0]

    def _steady(self, value: np.ndarray, disturbed: np.ndarray) -> bool:
        if value.dtype != np.float32:
            return np.array_equal(value, disturbed)
        largest = np.abs(value).max(initial=1e-6)
        return bool(
            np.isfinite(disturbed).all()
            and largest < LARGEST
            and (np.abs(value - disturbed) <= TOLERANCE * largest).all()
        )

    def step(self) -> None:
        """Append a few nodes after one of the last values."""
        floats = [name for name, array in self.values.items() if array.dtype == np.float32 and array.ndim]
        value = floats[-1] if self.chance(0.7) else self.pick(floats)
        moves: list[Callable[[str], str | None]] = [self.moved, self.combined, self.normed]
        if self.values[value].ndim == 4:
            moves += [self.convolved] * 8 + [self.regrouped] * 2 + [self.pooled] * 2
        elif self.values[value].ndim == 3:
            moves += [self.linear] * 5 + [self.attended] * 2
        else:
            moves += [self.linear] * 4
        made = self.pick(moves)(value)
        while made is not None and self.chance(0.6):  # what engines fuse with the layer before it
            if self.values[made].dtype != np.float32 or not self.values[made].ndim:
                break
            made = self.pick([self.normed, self.activated, self.activated, self.combined])(made)

    def build(self) -> Graph:
        """Return the network; its outputs are the last value and perhaps some others."""
        names = list(self.values)
        outputs = [names[-1], *(self.pick(names) for _ in range(self.pick([0, 0, 1, 2])))]
        return self.builder.build({f"y{i}": name for i, name in enumerate(outputs)})

    # -- what may follow a value

    def convolved(self, value: str) -> str | None:
        _, channels, *_ = self.values[value].shape
        op = "conv_transpose2d" if self.chance(0.1) else "conv2d"
        kernel = self.pick([(1, 1), (1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (1, 3), (2, 4), (3, 1)])
        groups = self.pick([1, 1, 1, self.divisor(channels), channels])
        outputs = groups * self.pick([1, 1, 2, 3, 4, 8, 11, 16, 33]) if groups > 1 else self.pick((*CHANNELS, 96, 130))
        plain = self.chance(0.5)
        dilation = (1, 1) if plain or self.chance(0.5) else (self.number(1, 3), self.number(1, 3))
        attrs: dict[str, Any] = {
            "stride": (1, 1) if plain and self.chance(0.8) else (self.number(1, 3), self.number(1, 3)),
            "dilation": dilation,
            "padding": tuple(dilation[i] * (kernel[i] // 2) for i in (0, 1)) * 2
            if plain
            else tuple(self.number(0, 4) for _ in range(4)),
            "groups": groups,
        }
        if op == "conv_transpose2d":
            attrs["output_padding"] = self.pick([(0, 0), (1, 0), (1, 1)])
        params: dict[str, Any] = {"weight": self.shared(channels, attrs)}
        if params["weight"] is None:
            params["weight"] = self.weight((outputs, channels // groups, *kernel))
            if self.chance(0.6):
                params["bias"] = self.numbers(outputs)
        return self.add(op, value, params=params, **attrs)

    def shared(self, channels: int, attrs: dict[str, Any]) -> str | None:
        """Return now and then the weight of another layer that takes so many channels, perhaps with other groups."""
        fitting = []
        for name, param in self.builder.params.items():
            if name.endswith("weight") and len(param.shape) == 4 and channels % param.shape[1] == 0:
                groups = channels // param.shape[1]
                if param.shape[0] % groups == 0:
                    fitting.append((name, groups))
        if not fitting or self.chance(0.6):
            return None
        name, attrs["groups"] = self.pick(fitting)
        return str(name)

    def regrouped(self, value: str) -> str | None:
        """Use the weight of one convolution for several groups of channels too."""
        layers = [node for node in self.builder.nodes if node.op == "conv2d" and "groups" in node.attrs]
        if not layers:
            return self.convolved(value)
        layer = self.pick(layers)
        outputs, _, *kernel = self.builder.params[layer.params["weight"]].shape
        copies = self.divisor(outputs // layer.attrs["groups"], 4)
        wide = self.add("concat", *[layer.inputs[0]] * copies, axis=1)
        attrs = {"groups": copies * layer.attrs["groups"], "padding": tuple(k // 2 for k in kernel) * 2}
        return wide and self.add("conv2d", wide, params={"weight": layer.params["weight"]}, **attrs)

    def pooled(self, value: str) -> str | None:
        size = self.values[value].shape[2:]
        match self.pick(["window", "window", "adaptive", "mean", "resize", "pad"]):
            case "window":
                kernel = self.number(1, 4), self.number(1, 4)
                padding = tuple(min(self.number(0, 2), kernel[i % 2] - 1) for i in range(4))
                attrs = {"kernel": kernel, "stride": (self.number(1, 3), self.number(1, 3)), "padding": padding}
                attrs |= {"ceil_mode": self.chance(0.3)}
                if self.chance(0.5):
                    return self.add("max_pool2d", value, **attrs, dilation=(self.number(1, 2), 1))
                return self.add("avg_pool2d", value, **attrs, count_include_pad=self.chance(0.5))
            case "adaptive":
                bins = self.pick([(1, 1), (2, 3), (min(size), 1)])
                return self.add(self.pick(["adaptive_avg_pool2d", "adaptive_max_pool2d"]), value, size=bins)
            case "mean":  # squeeze and excite
                gate = self.add("mean", value, axes=(2, 3), keepdims=True)
                gate = gate and self.convolved(gate)
                gate = gate and self.add(self.pick(["sigmoid", "hardsigmoid"]), gate)
                return gate and (self.add("mul", value, gate) or gate)
            case "resize":
                target = tuple(s * 2 if self.chance(0.5) else self.number(1, 40) for s in size)
                mode = self.pick(["nearest", "bilinear"])
                corners = mode == "bilinear" and self.chance(0.3)
                return self.add("interpolate", value, size=target, mode=mode, align_corners=corners)
        mode = self.pick(["constant", "reflect", "replicate"])
        padding = (0, 0, 0, 0, *(self.number(-1 if mode == "constant" else 0, 3) for _ in range(4)))
        return self.add("pad", value, padding=padding, mode=mode, value=self.pick([0.0, 1.5]) * (mode == "constant"))

    def linear(self, value: str) -> str | None:
        inputs = self.values[value].shape[-1]
        outputs = self.pick((*CHANNELS, 96, 130))
        params: dict[str, Any] = {}
        for name, param in self.builder.params.items():
            if name.endswith("weight") and len(param.shape) == 2 and param.shape[1] == inputs and self.chance(0.3):
                params["weight"] = name  # of another layer, or the table of an embedding
        if not params:
            params["weight"] = self.weight((outputs, inputs))
            if self.chance(0.6):
                params["bias"] = self.numbers(outputs)
        return self.add("linear", value, params=params)

    def attended(self, value: str) -> str | None:
        _, tokens, channels = self.values[value].shape
        heads = self.divisor(channels, 8)

        def split_heads(name: str | None) -> str | None:
            parts = name and self.add("reshape", name, shape=(-1, tokens, heads, channels // heads))
            return parts and self.add("permute", parts, axes=(0, 2, 1, 3))

        parts = []
        for _ in range(3):
            product = self.add("linear", value, params={"weight": self.weight((channels, channels))})
            parts.append(split_heads(product))
        if not all(parts):
            return None
        more, attrs = [], {"causal": self.chance(0.3)}
        if not attrs["causal"] and self.chance(0.4):
            shape = self.pick([(tokens, tokens), (1, 1, 1, tokens)])
            mask = self.rng.random(shape) < 0.8 if self.chance(0.5) else self.numbers(*shape)
            more = [self.add("constant", params={"value": mask})]
        made = self.add("attention", *map(str, (*parts, *more)), **attrs)
        made = made and self.add("permute", made, axes=(0, 2, 1, 3))
        made = made and self.add("reshape", made, shape=(-1, tokens, channels))
        return made and self.linear(made)

    def normed(self, value: str) -> str | None:
        shape = self.values[value].shape
        eps = self.pick([1e-5, 1e-3, 0.1])
        match self.pick(["batch", "batch", "layer", "group", "softmax", "prelu"]):
            case "batch" if len(shape) > 1:
                roles = {role: self.numbers(shape[1]) for role in ("weight", "bias", "mean") if self.chance(0.8)}
                roles["var"] = self.rng.uniform(0.5, 2, shape[1]).astype(np.float32)
                return self.add("batch_norm", value, params=roles, eps=eps)
            case "group" if len(shape) > 1:
                roles = {role: self.numbers(shape[1]) for role in ("weight", "bias") if self.chance(0.8)}
                return self.add("group_norm", value, params=roles, groups=self.divisor(shape[1]), eps=eps)
            case "layer":
                axes = self.number(1, min(2, len(shape)))
                roles = {role: self.numbers(*shape[-axes:]) for role in ("weight", "bias") if self.chance(0.8)}
                return self.add("layer_norm", value, params=roles, axes=axes, eps=eps)
            case "prelu" if len(shape) > 1:
                return self.add("prelu", value, params={"weight": self.numbers(self.pick([1, shape[1]]))})
        return self.add(self.pick(["softmax", "log_softmax"]), value, axis=self.number(0, len(shape) - 1))

    def activated(self, value: str) -> str | None:
        if self.chance(0.2):
            return self.add("clamp", value, min=self.pick([None, 0.0, -1.0]), max=self.pick([6.0, 0.5]))
        if self.chance(0.2):
            return self.add("gelu", value, approximate="tanh")
        return self.add(self.pick(ACTIVATIONS if self.chance(0.7) else FUNCTIONS), value)

    def combined(self, value: str) -> str | None:
        """Meet another value, a constant or a number, element by element or along an axis."""
        shape = self.values[value].shape
        others = [n for n, a in self.values.items() if a.shape == shape and a.dtype == np.float32]
        op = self.pick(["add", "add", "add", "sub", "mul", "maximum", "minimum", "div", "pow"])
        if op == "pow" or self.chance(0.2):
            reverse = op != "pow" and self.chance(0.3)
            return self.add(op, value, scalar=self.pick([2.0, -0.5, 3.0]) if op != "pow" else 2.0, reverse=reverse)
        if self.chance(0.2):
            small = tuple(s if self.chance(0.5) else 1 for s in shape)[self.number(0, len(shape)) :]
            other = self.add("constant", params={"value": self.numbers(*small)})
        elif self.chance(0.3):
            return self.add("concat", value, self.pick(others), axis=self.number(0, len(shape) - 1))
        else:
            other = self.pick(others)
        pair = (value, other) if self.chance(0.5) else (other, value)
        if self.chance(0.1):
            condition = self.add(self.pick(["lt", "ge", "eq"]), *map(str, pair))
            return condition and self.add("where", condition, *map(str, pair))
        return self.add(op, *map(str, pair))

    def moved(self, value: str) -> str | None:
        """Put the elements into another order or shape, take some of them, or sum them up."""
        array = self.values[value]
        rank, axis = array.ndim, self.number(0, array.ndim - 1)
        size = array.shape[axis]
        match self.pick(["permute", "reshape", "flatten", "slice", "split", "reduce", "select", "expand", "arg"]):
            case "permute":
                return self.add("permute", value, axes=tuple(map(int, self.rng.permutation(rank))))
            case "reshape":
                part = self.divisor(size)
                return self.add("reshape", value, shape=(*array.shape[:axis], part, -1, *array.shape[axis + 1 :]))
            case "flatten" if rank > 1:
                start = self.number(0, rank - 2)
                return self.add("reshape", value, shape=(*array.shape[:start], -1, *array.shape[start + 2 :]))
            case "slice":
                start, stop, step = self.number(0, size - 1), self.pick([None, size, -1]), self.pick([1, 1, 2, 3, -1])
                ends = {"start": start, "stop": stop} if step > 0 else {"start": -1, "stop": None}
                return self.add("slice", value, axis=axis, step=step, **ends)
            case "split":
                first = self.number(0, size)
                return self.add("split", value, axis=axis, sizes=(first, size - first))
            case "reduce":
                axes = tuple(sorted({axis, self.number(0, rank - 1)}))
                op = self.pick(["mean", "sum", "max", "min", "var"])
                return self.add(op, value, axes=axes, keepdims=self.chance(0.5) or len(axes) == rank)
            case "select":
                ids = self.add("constant", params={"value": self.rng.integers(0, size, self.number(1, 6))})
                return self.add("index_select", value, str(ids), axis=axis)
            case "expand" if size == 1:
                wide = (*array.shape[:axis], self.number(1, 5), *array.shape[axis + 1 :])
                return self.add("expand", value, shape=wide)
        return self.add("argmax", value, axis=axis, keepdims=True)
