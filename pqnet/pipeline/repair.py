"""Block reconstruction: what is float in a quantized block, fitted so that it gives the outputs of the float block."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pqnet._progress import ticking
from pqnet._threads import ordered_map
from pqnet.codecs import PackedPQ
from pqnet.codecs.layout import from_blocks, to_blocks
from pqnet.errors import PQNetError
from pqnet.graph import Graph, Node, weight_op
from pqnet.graph.affine import FreeAffine
from pqnet.graph.blocks import Block, find_blocks
from pqnet.graph.gradients import backward, has_gradient, reached
from pqnet.graph.graph import Param
from pqnet.graph.op import get_op, resolve_attrs
from pqnet.pipeline.batches import Batch
from pqnet.pipeline.padding import masked, real_positions, without_padding
from pqnet.pipeline.run import Run, layer_costs
from pqnet.pipeline.sweep import Values
from pqnet.runtime.execute import dense_param, evaluate_node, run_graph, values_to_free

__all__ = ["BlockRepair", "fitted_params"]

ITERATIONS = 12  # of conjugate gradients at most
PATIENCE = 2  # iterations that bring samples put aside no nearer, after which a block is done
DAMPING = 1e-2  # of curvatures, as a share of the mean of a parameter's

T = TypeVar("T")
FIRST_STEP = 0.05  # in units of 1 / curvature
TRIALS = 4  # of the length of a step
LINEAR = 2.0  # factor up to which a step may become longer or shorter without another look
SHORTER = 0.1  # at least so long from one look to the next

Numbers = dict[str, np.ndarray]  # float64, by parameter; of a packed weight its codewords


def fitted_params(graph: Graph, block: Block) -> list[str]:
    """Return what is fitted of a block: codewords, biases, scales and shifts of norms, that nothing else uses."""
    found = []
    for node in graph.nodes[block.start : block.stop]:
        layer, norm = get_op(node.op).weight is not None, node.op.endswith("_norm")
        for role, name in node.params.items():
            affine = role == "bias" if layer else norm and role in ("weight", "bias")
            if (affine or isinstance(graph.params[name], PackedPQ)) and graph.readers.params[name] == 1:
                found.append(name)
    return found


class BlockRepair:
    """Visits the first node of each block, in a sweep over a quantized network and the float one.

    Numbers are fitted by conjugate gradients to the float block's outputs, from what the network gives the block after
    those before it were fitted. Of samples put aside, with numbers as a file holds them, the best are taken, and none
    if the error of these does not fall.
    """

    def __init__(self, run: Run, teacher: Graph, data: Sequence[Batch], learned: int) -> None:
        self.run, self.teacher, self.data = run, teacher, data
        self.learned, self.judged = range(learned), range(learned, len(data))
        self.symbols = [run.graph.bind_symbols({name: a.shape for name, a in batch.items()}) for batch in data]
        self.real = [real_positions(batch) for batch in data]
        self.blocks = {run.graph.nodes[b.start].name: b for b in find_blocks(run.graph, run.codecs)}

    def costs(self) -> dict[str, float]:
        """Return about how long each block takes, as `layer_costs` has it for a layer."""
        run = self.run
        costs = layer_costs(run.graph, run.codecs)
        return {name: sum(costs.get(layer, 0.0) for layer in block.layers) for name, block in self.blocks.items()}

    def visit(self, node: Node, values: Values, taught: Values) -> None:
        """Fit a block, if there are gradients of all that its numbers reach."""
        self.run.begin(node)
        block, graph = self.blocks[node.name], self.run.graph
        names, nodes = fitted_params(graph, block), graph.nodes[block.start : block.stop]
        changing = reached(nodes, names)
        report: dict[str, Any] = {"layers": list(block.layers)}
        if names and all(has_gradient(n.op) for n in nodes if not changing.isdisjoint(n.outputs)):
            params, before, after = _Fit(self, block, names, values, taught).search()
            graph.params.update(params)
            report |= {"before": before, "after": after}
        self.run.block_done(node, report)

    def keep_if_better(self, before: Mapping[str, Param]) -> None:
        """Take back all if the network's outputs, of samples put aside, are no nearer than with those of before."""
        run = self.run
        first = replace(run.graph, params=dict(before))
        if self._error(run.graph) < self._error(first):
            for block in run.blocks.values():
                if block.get("after") != block.get("before"):
                    for name in block["layers"]:
                        run.report[name] |= {"output_error": None, "weight_error": None}  # those of before
        else:
            run.graph.params.update(before)
            for block in run.blocks.values():
                block.update({"after": block["before"]} if "before" in block else {})

    def _error(self, graph: Graph) -> float:
        """Return the summed relative error of a network's outputs on samples put aside."""
        free = values_to_free(graph)

        def one(i: int) -> np.ndarray:
            ours, theirs = (run_graph(g, free, dict(self.data[i])) for g in (graph, self.teacher))
            real = self.real[i]
            rows = [
                (_energy([without_padding(ours[n] - y, real)]), _energy([without_padding(y, real)]))
                for n, y in theirs.items()
                if y.dtype.kind == "f"
            ]
            return np.array(rows).reshape(-1, 2)

        errors, energies = np.sum(list(ordered_map(one, self.judged, self.run.threads)), 0).T
        return float((errors / np.maximum(energies, 1e-30)).sum())


class _State(NamedTuple):
    """Where a search is: the error of the samples learned from, half its gradient, what is missing of each batch."""

    error: float
    slope: Numbers
    missing: list[list[np.ndarray]]


@dataclass(frozen=True)
class _Shift:
    """What keeps the mean of a layer's outputs where it is if its weight changes: another parameter, the bias.

    To fit codewords about the means of inputs that are far from zero takes many times fewer iterations.
    """

    bias: str
    gain: np.ndarray  # of the bias for that of the layer's outputs, (O,)
    mean: np.ndarray  # of what the filters see, (G, Kin)

    def of_weight(self, change: np.ndarray) -> np.ndarray:
        """Return the change of the bias that goes with one of the weight."""
        filters = change.reshape(len(self.mean), -1, self.mean.shape[1]).astype(np.float64)
        found: np.ndarray = -self.gain * np.matmul(filters, self.mean[:, :, None]).reshape(-1)
        return found

    def slope(self, of_bias: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return the gradient of the weight that is by way of the bias."""
        rows: np.ndarray = (-self.gain * of_bias).reshape(len(self.mean), -1, 1)
        return np.asarray(rows * self.mean[:, None]).reshape(shape)


class _Fit:
    """A block on all batches: what it gives for other numbers, and how far that is from the float block's outputs."""

    def __init__(self, repair: BlockRepair, block: Block, names: Sequence[str], values: Values, taught: Values) -> None:
        self.repair, self.outputs, self.values = repair, block.outputs, values
        params = repair.run.graph.params
        self.nodes = repair.run.graph.nodes[block.start : block.stop]
        used = {name for node in self.nodes for name in node.params.values()}
        self.present = {name: dense_param(params[name]) for name in used}
        self.stored = {name: params[name] for name in names}
        self.start: Numbers = {
            name: np.asarray(p.codebook if isinstance(p, PackedPQ) else p, np.float64)
            for name, p in self.stored.items()
        }
        theirs = {name: dense_param(repair.teacher.params[name]) for name in used}
        self.wanted = self._of_batches(lambda i: self._outputs(self._run(theirs, taught, i)), range(len(values)))
        self.shifts = self._shifts()
        energies = [sum(_energy([y[j]]) for y in self.wanted) for j in range(len(block.outputs))]
        self.scales = [np.float32(1 / np.sqrt(energy)) if energy > 0 else np.float32(0) for energy in energies]

    def search(self) -> tuple[dict[str, Param], float, float]:
        """Return better parameters, none if there are none, and the relative error of the outputs before and after."""
        first = least = self._judge(self.stored)
        best: dict[str, Param] = {}
        curvatures, at, now = self._curvatures(), self.start, self._state(self.start)
        direction = {name: np.zeros_like(values) for name, values in at.items()}
        last: tuple[Numbers, float] | None = None  # slope of the iteration before, and its square
        step, misses = FIRST_STEP, 0
        for _ in ticking("iteration", range(ITERATIONS), ITERATIONS):
            scaled = {name: slope / curvatures[name] for name, slope in now.slope.items()}
            square = _product(scaled, now.slope)
            turn = 0.0 if last is None else max(0.0, (square - _product(scaled, last[0])) / last[1])
            direction = {name: turn * direction[name] - values for name, values in scaled.items()}
            step = self._step(at, direction, step, now) if square > 0 else 0.0
            at = self._moved(at, direction, step)
            try:
                found = self._as_stored(at)
            except PQNetError:  # numbers that a file cannot hold
                break
            error = self._judge(found)
            misses = 0 if error < least else misses + 1
            if error < least:
                best, least = found, error
            after = self._state(at)
            if misses == PATIENCE or not after.error < now.error:
                break
            last, now = (now.slope, square), after
        return best, first, least

    def _step(self, at: Numbers, direction: Numbers, step: float, now: _State) -> float:
        """Return the length of a step of least error, as far as outputs change in proportion to it."""
        for _ in range(TRIALS):
            longer = self._best_factor(self._moved(at, direction, step), now)
            step *= max(longer, SHORTER)
            if 1 / LINEAR < longer < LINEAR:
                break
        return step

    def _shifts(self) -> dict[str, _Shift]:
        """Return by weight what makes up for the means of its outputs, if a number that is fitted does."""
        graph = self.repair.run.graph
        found: dict[str, tuple[Node, FreeAffine]] = {}
        for node in self.nodes:
            weight = node.params.get("weight", "")
            if isinstance(self.stored.get(weight), PackedPQ) and weight_op(node.op).is_product:
                affine = FreeAffine.find(graph, node)
                if affine is not None and affine.node.params.get("bias") in self.start:
                    found[weight] = node, affine

        def seen(i: int) -> list[np.ndarray]:
            values = self._run(self.present, self.values, i)
            return [_mean_seen(node, self.stored[name].shape, values) for name, (node, _) in found.items()]

        sizes = [len(self.wanted[i][0]) for i in self.repair.learned]
        parts = zip(*self._of_batches(seen, self.repair.learned), strict=True)
        means = [np.average(np.stack(part), 0, sizes) for part in parts]
        return {
            name: _Shift(affine.node.params["bias"], affine.gain, mean)
            for (name, (_, affine)), mean in zip(found.items(), means, strict=True)
        }

    def _moved(self, numbers: Numbers, direction: Numbers, step: float) -> Numbers:
        """Return numbers after a step, biases such that weights about the means of what they see have made it."""
        found = {name: values + step * direction[name] for name, values in numbers.items()}
        for name, shift in self.shifts.items():
            found[shift.bias] += shift.of_weight(self._dense_one(name, step * direction[name]))
        return found

    def _of_batches(self, function: Callable[[int], T], batches: range) -> list[T]:
        return list(ordered_map(function, batches, self.repair.run.threads))

    def _run(self, params: Mapping[str, np.ndarray], side: Values, i: int) -> dict[str, np.ndarray]:
        """Return all values of the block on batch i."""
        values = dict(side[i])
        for node in self.nodes:
            roles = {role: params[name] for role, name in node.params.items()}
            results = evaluate_node(node, [values[v] for v in node.inputs], roles, self.repair.symbols[i])
            values.update(zip(node.outputs, results, strict=True))
        return values

    def _outputs(self, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [values[name] for name in self.outputs]

    def _missing(self, values: Mapping[str, np.ndarray], i: int) -> list[np.ndarray]:
        """Return outputs less the float block's, as shares of the size of these; nothing at padding of texts."""
        found = []
        for y, wanted, scale in zip(self._outputs(values), self.wanted[i], self.scales, strict=True):
            missing = (y - wanted) * scale
            if (real := masked(missing, self.repair.real[i])) is not None:
                missing[~real] = 0
            found.append(missing)
        return found

    def _dense(self, numbers: Numbers) -> dict[str, np.ndarray]:
        """Return all parameters of the block for other numbers, not rounded as a file would have them."""
        params = dict(self.present)
        return params | {name: self._dense_one(name, values.astype(np.float32)) for name, values in numbers.items()}

    def _dense_one(self, name: str, values: np.ndarray) -> np.ndarray:
        packed = self.stored[name]
        if not isinstance(packed, PackedPQ):
            return values
        return from_blocks(values[packed.codes], packed.shape, packed.codec.layout)

    def _as_stored(self, numbers: Numbers) -> dict[str, Param]:
        found: dict[str, Param] = {}
        for name, values in numbers.items():
            old = self.stored[name]
            if isinstance(old, PackedPQ):
                scale = old.arrays()["scale"][0] if old.codec.codebook_dtype == "int8" else None
                found[name] = PackedPQ(old.codec, old.shape, old.codes, values.astype(np.float32), scale)
            else:
                found[name] = values.astype(np.asarray(old).dtype)
        return found

    def _judge(self, stored: Mapping[str, Param]) -> float:
        """Return the relative error of samples put aside."""
        params = self.present | {name: dense_param(param) for name, param in stored.items()}

        def one(i: int) -> tuple[float, float]:
            wanted = [y * scale for y, scale in zip(self.wanted[i], self.scales, strict=True)]
            return _energy(self._missing(self._run(params, self.values, i), i)), _energy(wanted)

        error, energy = np.sum(self._of_batches(one, self.repair.judged), 0)
        return float(error / energy) if energy > 0 else 0.0

    def _slopes(
        self,
        values: Mapping[str, np.ndarray],
        params: Mapping[str, np.ndarray],
        seeds: Sequence[np.ndarray],
        i: int,
    ) -> Numbers:
        """Return the gradient of the numbers for that of the outputs, of batch i."""
        symbols = self.repair.symbols[i]
        attrs = [resolve_attrs(get_op(node.op), node.attrs, symbols) for node in self.nodes]
        found = backward(self.nodes, values, params, attrs, dict(zip(self.outputs, seeds, strict=True)), self.start)
        for name, shift in self.shifts.items():
            if shift.bias in found:
                found[name] = found[name] + shift.slope(found[shift.bias], found[name].shape)
        return {name: self._of_numbers(name, found[name]) for name in self.start if name in found}

    def _of_numbers(self, name: str, grad: np.ndarray) -> np.ndarray:
        packed = self.stored[name]
        if not isinstance(packed, PackedPQ):
            return grad.astype(np.float64)
        blocks = to_blocks(grad, packed.codec.d, packed.codec.layout).reshape(-1, packed.codec.d)
        codes = packed.codes.reshape(-1)
        return np.stack([np.bincount(codes, column, packed.codec.k) for column in blocks.T], 1)

    def _state(self, numbers: Numbers) -> _State:
        params = self._dense(numbers)

        def one(i: int) -> tuple[list[np.ndarray], Numbers]:
            values = self._run(params, self.values, i)
            missing = self._missing(values, i)
            seeds = [array * scale for array, scale in zip(missing, self.scales, strict=True)]
            return missing, self._slopes(values, params, seeds, i)

        total, missing = {name: np.zeros_like(values) for name, values in numbers.items()}, []
        for part, slopes in ordered_map(one, self.repair.learned, self.repair.run.threads):
            missing.append(part)
            for name, slope in slopes.items():
                total[name] += slope
        return _State(sum(map(_energy, missing)), total, missing)

    def _curvatures(self) -> Numbers:
        """Return the diagonal of J' J of the outputs' derivatives J, about: the mean square of J' v for random signs v.

        And a little more, for numbers that no sample has an influence on.
        """
        params = self._dense(self.start)

        def one(i: int) -> Numbers:
            values, rng = self._run(params, self.values, i), np.random.default_rng((self.repair.run.options.seed, i))
            signs = [
                scale * (1 - 2 * rng.integers(0, 2, y.shape)).astype(np.float32)
                for y, scale in zip(self._outputs(values), self.scales, strict=True)
            ]
            return self._slopes(values, params, signs, i)

        total = {name: np.zeros_like(values) for name, values in self.start.items()}
        for slopes in ordered_map(one, self.repair.learned, self.repair.run.threads):
            for name, slope in slopes.items():
                total[name] += np.square(slope)
        return {name: values + DAMPING * values.mean() + 1e-30 for name, values in total.items()}

    def _best_factor(self, numbers: Numbers, now: _State) -> float:
        """Return by how much to make a step longer, to ``numbers`` from where something is missing, for least error."""
        params = self._dense(numbers)

        def one(i: int) -> tuple[float, float]:
            found = self._missing(self._run(params, self.values, i), i)
            changes = [new - old for new, old in zip(found, now.missing[i], strict=True)]
            along = sum(float(np.vdot(change, old)) for change, old in zip(changes, now.missing[i], strict=True))
            return along, _energy(changes)

        along, energy = np.sum(self._of_batches(one, self.repair.learned), 0)
        return float(-along / energy) if energy > 0 else 0.0


def _mean_seen(node: Node, shape: tuple[int, ...], values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the mean of what the filters of a layer see, (G, Kin)."""
    rule = weight_op(node.op)
    assert rule.windows is not None
    seen = rule.windows(values[node.inputs[0]], shape[2:], node.attrs)
    mean: np.ndarray = seen.mean((0, *range(len(shape), seen.ndim)), np.float64)
    return mean.reshape(rule.groups(node.attrs), -1)


def _energy(arrays: Sequence[np.ndarray]) -> float:
    return sum(float(np.square(a, dtype=np.float64).sum()) for a in arrays)


def _product(a: Numbers, b: Numbers) -> float:
    return sum(float(np.vdot(a[name], b[name])) for name in a)
