"""Quantization during one sweep over data: every layer sees what the layers already quantized give it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from pqnet._progress import tick, ticking
from pqnet._threads import default_threads, ordered_map
from pqnet.codecs.layout import block_columns
from pqnet.errors import ConfigError
from pqnet.graph import Graph, Node, weight_op
from pqnet.graph.affine import FreeAffine, shortcut_of
from pqnet.graph.graph import Param
from pqnet.graph.op import get_op, resolve_attrs
from pqnet.pipeline.batches import Batch
from pqnet.pipeline.cluster import Tasks
from pqnet.pipeline.moments import (
    build_metric,
    channel_statistics,
    input_rows,
    measured_doubt,
    output_energies,
    output_rows,
    positions_needed,
    relative,
    row_moments,
    share_to_doubt,
    token_counts,
    with_diagonal,
)
from pqnet.pipeline.padding import real_positions
from pqnet.pipeline.run import Run
from pqnet.pipeline.scaled import pack_scaled
from pqnet.pipeline.sweep import Values
from pqnet.pipeline.uses import Uses

__all__ = ["FromData"]

# Of each input's mean square, that are tried where targets are solved for, from the least on until samples put aside
# gain less; of few samples, only the last ones find what others have too.
TARGET_DAMPINGS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
ROUNDING = 1e-7  # of inputs, as a share of their mean square
ROWS = 4096  # that are multiplied at a time


class _Rows:
    """What the filters of a layer are multiplied with on both sides, gathered from batches as often as asked for.

    Where several nodes share the weight, what all of them are given.
    """

    def __init__(
        self,
        run: Run,
        sides: "_Sides",
        node: Node,
        weight: np.ndarray,
        values: Values,
        taught: Values,
        affine: FreeAffine | None,
        real: Sequence[np.ndarray | None],
    ) -> None:
        self.node, self.shape, self.seed, self.real = node, weight.shape, run.options.seed, real
        self.sides, self.uses, self.values, self.taught = sides, sides.uses.of(node), values, taught
        self.params = dict(sides.student.params)  # the layer's weight is float, whatever it is replaced by
        self.same = values is taught or (len(self.uses) == 1 and all(values[0][v] is taught[0][v] for v in node.inputs))
        sizes = [len(batch[node.inputs[0]]) for batch in values]
        self.starts = np.cumsum([0, *sizes])
        self.convolution_groups = weight_op(node.op).groups(node.attrs)
        rows = int(self.starts[-1]) * len(self.uses)
        self.wanted = positions_needed(math.prod(weight.shape[1:]), rows, self.convolution_groups)
        shapes = run.graph.infer_shapes(run.graph.symbols)
        output = shapes[node.outputs[0]].shape
        self.rows_of_batch = len(self.uses) * max(sizes) * min(weight_op(node.op).positions(output), self.wanted)
        self.shortcut = shortcut_of(run.graph, node, affine) if len(self.uses) == 1 else None
        if self.shortcut is not None and (
            self.shortcut not in values[0]  # not computed yet
            or shapes[self.shortcut].shape != output
            or taught[0][self.shortcut] is values[0][self.shortcut]
        ):
            self.shortcut = None
        gain = np.ones(len(weight)) if affine is None else affine.gain
        gain = np.where(np.abs(gain) > 1e-12, gain, np.inf).astype(np.float32)
        self.gain = gain.reshape(self.convolution_groups, 1, -1)

    def seen(self, i: int) -> np.ndarray:
        """Return what the student's filters see of batch i, (G, n, Kin)."""
        return self._inputs(self.values, i)

    def _inputs(self, side: Values, i: int) -> np.ndarray:
        params = self.params if side is self.values else self.sides.teacher.params
        operands = self.sides.uses.operands(self.node, params, side[i], self.sides.symbols[i])
        start, real = int(self.starts[i]), self.real[i]
        found = [
            input_rows(node, self.shape, x, start, self.seed, self.wanted, real)
            for node, x in zip(self.uses, operands, strict=True)
        ]
        return _joined(found)

    def _lag(self, i: int) -> np.ndarray:
        ahead, behind = (
            output_rows(
                self.node,
                side[i][str(self.shortcut)],
                self.convolution_groups,
                int(self.starts[i]),
                self.seed,
                self.wanted,
                self.real[i],
            )
            for side in (self.taught, self.values)
        )
        ahead -= behind
        lag: np.ndarray = ahead / self.gain
        return lag

    def groups(self, batches: range) -> list[range]:
        """Return which of some batches are multiplied together: sums of few products would only move memory."""
        n = max(1, ROWS // max(1, self.rows_of_batch))
        return [batches[i : i + n] for i in range(0, len(batches), n)]

    def together(self, batches: range) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return of several batches what the student's filters see, what the teacher's see, and the shortcut's lag.

        The lag, (G, n, O / G), is by how much the teacher's shortcut, to which the outputs are added, is ahead of the
        student's, in units of the outputs; None if there is none.
        """
        seen = _joined([self.seen(i) for i in batches])
        wanted = seen if self.same else _joined([self._inputs(self.taught, i) for i in batches])
        lag = None if self.shortcut is None else _joined([self._lag(i) for i in batches])
        return seen, wanted, lag


def _joined(rows: list[np.ndarray]) -> np.ndarray:
    """Join rows (G, n, c) of several batches; those of one are not copied."""
    return rows[0] if len(rows) == 1 else np.concatenate(rows, 1)


@dataclass
class _Inputs:
    """Moments of what a layer sees: the student's inputs s, the teacher's t, the shortcut's lag r; float64.

    What the student is behind by, u = W (t - s) of the float weight W, is summed as a difference: less to multiply than
    second moments of t and s, and nothing is lost to rounding where they are near. Nor where inputs vary little: all
    but the means are about these, and of what was near zero before products were taken.
    """

    moment: np.ndarray  # E[s s'], (G, Kin, Kin)
    behind: np.ndarray  # E[u s'], (G, O / G, Kin)
    lag: np.ndarray  # E[r s'], (G, O / G, Kin)
    mean: np.ndarray  # E[s], (G, Kin)
    behind_mean: np.ndarray  # E[u], (G, O / G)
    lag_mean: np.ndarray  # E[r], (G, O / G)
    behind_energy: np.ndarray  # E[u^2], (G, O / G)
    count: int  # rows

    @classmethod
    def measure(cls, weight: np.ndarray, rows: _Rows, batches: range, threads: int) -> "_Inputs":
        """Sum over batches, in their order."""
        first = rows.seen(batches[0])
        near = first.sum(1, keepdims=True) / np.float32(max(1, first.shape[1]))

        def one(batches: range) -> tuple[dict[str, np.ndarray], int]:
            seen, wanted, lag = rows.together(batches)
            sums, others = {}, {} if lag is None else {"lag": lag}
            if wanted is not seen:
                filters = weight.reshape(len(seen), -1, seen.shape[2])
                u = np.matmul(np.subtract(wanted, seen, out=wanted), filters.swapaxes(1, 2))
                sums["behind_energy"] = np.einsum("gno,gno->go", u, u, dtype=np.float64)
                others["behind"] = u
            seen -= near
            sums |= {"moment": np.matmul(seen.swapaxes(1, 2), seen), "mean": seen.sum(1, dtype=np.float64)}
            for name, y in others.items():
                sums[name] = np.matmul(y.swapaxes(1, 2), seen)
                sums[f"{name}_mean"] = y.sum(1, dtype=np.float64)
            return sums, seen.shape[1]

        parts = rows.groups(batches)
        found, count = _means(ticking("inputs", ordered_map(one, parts, threads), len(parts)))
        groups, n = found["mean"].shape
        outputs = groups, len(weight) // groups
        for name, shape in {"behind": (*outputs, n), "lag": (*outputs, n), "behind_energy": outputs}.items():
            found.setdefault(name, np.zeros(shape))
        for name in ("behind", "lag"):
            found.setdefault(f"{name}_mean", np.zeros(outputs))
            found[name] -= found[f"{name}_mean"][:, :, None] * found["mean"][:, None, :]
        found["behind_energy"] -= np.square(found["behind_mean"])
        found["moment"] -= found["mean"][:, :, None] * found["mean"][:, None, :]
        found["mean"] += near[:, 0]
        return cls(**found, count=count)

    def about(self, affine: FreeAffine | None) -> "_Inputs":
        """Return second moments about the means, where something makes up for errors of these, or else about zero.

        The former with as much noise on each input as rounding leaves of what a network computes.
        """
        if affine is None:
            means = {"moment": self.mean, "behind": self.behind_mean, "lag": self.lag_mean}
            zero = {name: getattr(self, name) + mean[:, :, None] * self.mean[:, None] for name, mean in means.items()}
            return replace(self, **zero)
        energy = np.diagonal(self.moment, axis1=1, axis2=2)
        noisy = energy + ROUNDING * (energy + np.square(self.mean))
        return replace(self, moment=self.moment + (noisy - energy)[:, :, None] * np.eye(self.mean.shape[1]))

    def doubt(self, others: "_Inputs | None") -> float:
        """Return the share of the moments that is chance: what is to be expected, or what samples put aside show."""
        expected = share_to_doubt(self.mean.shape[1], self.count)
        return expected if others is None else max(expected, measured_doubt(self.moment, others.moment))

    def target(self, weight: np.ndarray, gain: np.ndarray, others: "_Inputs | None") -> np.ndarray:
        """Return the weight whose outputs from the student's inputs come nearest to the teacher's and the lag.

        T = W + a (E[u s'] + E[r s']) E[s s']^-1, damped: both damping and the step a, 1 without others, are what suits
        the others best, samples put aside, whose outputs count by the squares of their gains. What the student's inputs
        cannot express stays with the float weight.
        """
        if not (self.behind.any() or self.lag.any()):
            return weight
        change = self._change(others, np.square(gain).reshape(self.behind.shape[:2]))
        moved: np.ndarray = (weight + change.reshape(weight.shape)).astype(np.float32)
        return moved

    def _change(self, others: "_Inputs | None", counts: np.ndarray) -> np.ndarray:
        """Return by how much the target differs from the weight, (G, O / G, Kin)."""
        at, wanted = np.arange(self.mean.shape[1]), (self.behind + self.lag).swapaxes(1, 2)

        def damped(damping: float) -> np.ndarray:
            moment = with_diagonal(self.moment, (1 + damping) * self.moment[:, at, at])
            solved: np.ndarray = np.linalg.solve(moment, wanted).swapaxes(1, 2)
            return solved

        if others is None:
            return damped(max(TARGET_DAMPINGS[0], self.doubt(None)))
        best, most = np.zeros(self.behind.shape), 0.0
        for damping in TARGET_DAMPINGS:
            change = damped(damping)
            along = float((counts * ((others.behind + others.lag) * change).sum(2)).sum())
            bend = float((counts * (np.matmul(change, others.moment) * change).sum(2)).sum())
            saved = along**2 / bend if min(along, bend) > 0 else 0.0
            if saved < most:
                break
            if saved > most:
                best, most = along / bend * change, saved
        return best

    def mean_gap(self, change: np.ndarray) -> np.ndarray:
        """Return by how much the means of the teacher's outputs are ahead if weights differ by a change, (O,)."""
        filters = change.reshape(*self.behind_mean.shape, -1).astype(np.float64)
        gap: np.ndarray = self.behind_mean + np.matmul(filters, self.mean[:, :, None])[:, :, 0]
        return gap.reshape(-1)

    def errors(self, weight: np.ndarray, packed: np.ndarray, shift: np.ndarray) -> tuple[float, float]:
        """Return E|W t|^2, and E|W t - (V s + b)|^2 for the packed weight V: of u + (W - V) s - b.

        Both from moments about the means.
        """

        def second(change: np.ndarray, shift: np.ndarray) -> float:
            filters = change.reshape(self.behind.shape).astype(np.float64)
            spread = self.behind_energy.sum() + ((2 * self.behind + np.matmul(filters, self.moment)) * filters).sum()
            return float(spread + np.square(self.mean_gap(change) - shift).sum())

        return second(weight, np.zeros_like(shift)), second(weight - packed, shift)


class _Sides(NamedTuple):
    """Where weights are used, student and teacher, and the free sizes of each batch."""

    uses: Uses
    student: Graph
    teacher: Graph
    symbols: list[dict[str, int]]


@dataclass
class _Search:
    """A layer whose codes are being looked for, under all second moments."""

    weight: np.ndarray
    affine: FreeAffine | None
    found: _Inputs
    others: _Inputs | None
    result: Callable[[], "_Found"]


class _Found(NamedTuple):
    dense: np.ndarray  # scaled
    scale: np.ndarray
    packed: Param
    report: dict[str, Any]


def _pack(threads: int | None, item: tuple[Run, Node, np.ndarray, np.ndarray, float, FreeAffine | None]) -> _Found:
    """Look for the codes of a layer, here or on a worker."""
    run, node, target, moment, doubt, affine = item
    run = replace(run, threads=default_threads(threads))
    dense, scale = pack_scaled(run, node, target, moment, doubt, affine)
    return _Found(dense, scale, run.graph.params[node.params["weight"]], run.report[node.name])


class FromData:
    """Visits the nodes of a sweep, see `pqnet.pipeline.sweep`.

    On a cluster, layers that have the same inputs, or whose inputs are there for another reason, are packed at once.
    """

    def __init__(
        self, run: Run, teacher: Graph, data: Sequence[Batch], learned: int, tasks: Tasks, threads: int | None
    ) -> None:
        """Quantize from the first ``learned`` batches, and judge by the others, or by all if there are none."""
        self.run, self.options, self.tasks, self.threads = run, run.options, tasks, threads
        self._ahead: dict[str, _Search] = {}
        self.learned = range(learned)
        self.judged = range(learned, len(data)) or self.learned
        symbols = [run.graph.bind_symbols({name: a.shape for name, a in batch.items()}) for batch in data]
        self.sides = _Sides(Uses(teacher), run.graph, teacher, symbols)
        self.real = [real_positions(batch) for batch in data]
        norms = [node.name for node in run.graph.nodes if node.op == "batch_norm"]
        self.visited = {*run.codecs, *(norms if run.options.reestimate_norm else ())}

    def visit(self, node: Node, values: Values, taught: Values) -> None:
        """Quantize a layer, or measure a batch norm."""
        if node.op == "batch_norm":
            tick(node.name)
            self._reestimate(node, [batch[node.inputs[0]] for batch in values])
            return
        self.run.begin(node)
        if weight_op(node.op).looked_up:
            self._embedding(node, values)
        else:
            self._matrix(node, values, taught)

    def _embedding(self, node: Node, values: Values) -> None:
        vocabulary = len(self.run.weight(node))
        counts = np.zeros(vocabulary)
        for batch, symbols, real in zip(values, self.sides.symbols, self.real, strict=True):
            for ids in self.sides.uses.operands(node, self.run.graph.params, batch, symbols):
                counts += token_counts(ids, vocabulary, real)
        self.run.pack_tokens(node, counts)

    def _matrix(self, node: Node, values: Values, taught: Values) -> None:
        run = self.run
        if self.options.metric == "full":
            energy, error = self._second_order(node, values, taught)
        else:
            weight = run.weight(node)
            rows = _Rows(run, self.sides, node, weight, values, taught, None, self.real)
            dense = run.pack(node, weight, self._block_metric(node, weight.shape, rows)).decode()

            def energies(i: int) -> np.ndarray:
                return output_energies(rows.seen(i), [weight, weight - dense])

            found = ordered_map(energies, self.judged, run.threads)
            energy, error = sum(ticking("outputs", found, len(self.judged)), np.zeros(2))
        run.report[node.name]["output_error"] = relative(float(error), float(energy))

    def _second_order(self, node: Node, values: Values, taught: Values) -> tuple[float, float]:
        """Pack a layer; return the energy of its outputs and of their error."""
        run = self.run
        search = self._ahead.pop(node.name, None) or self._search(node, values, taught)
        for other in self._wave(node, values):
            self._ahead[other.name] = self._search(other, values, taught)
        found = search.result()
        run.graph.params[node.params["weight"]] = found.packed
        run.done(node, found.report)
        weight, shift = search.weight, np.zeros(len(search.weight))
        if search.affine is not None:
            shift = search.found.mean_gap(weight - found.dense) + search.found.lag_mean.reshape(-1)
            search.affine.apply(found.scale, shift)
        return (search.others or search.found).errors(weight, found.dense, shift)

    def _search(self, node: Node, values: Values, taught: Values) -> _Search:
        """Measure what a layer sees, and begin to look for its codes."""
        run, weight = self.run, self.run.weight(node)
        affine = FreeAffine.find(run.graph, node) if self.options.correct_bias else None
        rows = _Rows(run, self.sides, node, weight, values, taught, affine, self.real)
        found = _Inputs.measure(weight, rows, self.learned, run.threads)
        others = _Inputs.measure(weight, rows, self.judged, run.threads) if self.judged != self.learned else None
        about = found.about(affine)
        judge = None if others is None else others.about(affine)
        gain = np.ones(len(weight)) if affine is None else affine.gain
        target = about.target(weight, gain, judge) if self.options.target == "teacher" else weight
        # Of the network, no more goes along than the layer.
        layer = replace(run.graph, params={node.params["weight"]: weight})
        alone = replace(run, graph=layer, bar=None, report={})
        free = None if affine is None else replace(affine, graph=layer)
        item = (alone, node, target, about.moment, about.doubt(judge), free)
        return _Search(weight, affine, found, others, self.tasks.begin(partial(_pack, self.threads), item))

    def _wave(self, node: Node, values: Values) -> list[Node]:
        """Return layers that, although later in the network, are given now what they are given in their turn."""
        run, found = self.run, list[Node]()
        if self.tasks.client is None:
            return found
        for other in run.graph.layers().values():
            if len(self._ahead) + len(found) + 1 >= self.tasks.capacity():
                break
            if (
                other.name != node.name
                and other.name in run.codecs
                and other.name not in self._ahead.keys() | run.report.keys()
                and weight_op(other.op).is_product
                and not weight_op(other.op).looked_up
                and all(value in values[0] for value in other.inputs)
                and len(self.sides.uses.of(other)) == 1
            ):
                affine = FreeAffine.find(run.graph, other) if self.options.correct_bias else None
                shortcut = shortcut_of(run.graph, other, affine)
                if shortcut is None or shortcut in values[0]:  # else it may be there in the layer's turn
                    attrs = resolve_attrs(get_op(other.op), other.attrs, self.sides.symbols[0])
                    found.append(replace(other, attrs=attrs))
        return found

    def _block_metric(self, node: Node, shape: tuple[int, ...], rows: _Rows) -> np.ndarray | None:
        """Measure no more of the moments than the blocks on the diagonal."""
        if self.options.metric == "none":
            return None
        d, layout = self.run.codecs[node.name].metric_blocks(shape)
        columns = block_columns(shape, layout)

        def moments(i: int) -> tuple[dict[str, np.ndarray], int]:
            seen = rows.seen(i)
            return {"blocks": row_moments(seen, columns, d)}, seen.shape[1]

        parts = ordered_map(moments, self.learned, self.run.threads)
        found, _ = _means(ticking("inputs", parts, len(self.learned)))
        return build_metric(self.options.metric, found["blocks"])

    def _reestimate(self, node: Node, inputs: list[np.ndarray]) -> None:
        if "mean" not in node.params or "var" not in node.params:
            raise ConfigError(
                f"reestimate_norm: expected batch norms with running statistics, got folded ones in {node.name!r}; "
                "quantize the float model, or pass reestimate_norm=False"
            )
        mean, var, count = channel_statistics(inputs, self.run.threads)
        var *= count / max(count - 1, 1)
        self.run.graph.params[node.params["mean"]] = mean.astype(np.float32)
        self.run.graph.params[node.params["var"]] = var.astype(np.float32)


def _means(parts: Iterator[tuple[dict[str, np.ndarray], int]]) -> tuple[dict[str, np.ndarray], int]:
    """Return the sums of named arrays over all parts, float64, divided by how many rows they are of, and these."""
    first, count = next(parts)
    total = {name: sums.astype(np.float64) for name, sums in first.items()}
    for more, n in parts:
        for name, sums in more.items():
            total[name] += sums
        count += n
    for sums in total.values():
        sums /= count
    return total, count
