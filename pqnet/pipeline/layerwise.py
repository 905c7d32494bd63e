"""Quantization during one sweep over data: every layer sees what the layers already quantized give it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pqnet._threads import ordered_map
from pqnet.codecs.layout import block_columns
from pqnet.errors import ConfigError
from pqnet.graph import Node
from pqnet.graph.affine import FreeAffine, shortcut_of
from pqnet.pipeline.moments import (
    build_metric,
    input_rows,
    layer_metric,
    output_gap,
    output_rows,
    row_moments,
    row_weights,
    token_counts,
    token_error,
)
from pqnet.pipeline.run import Run
from pqnet.pipeline.sweep import Values

__all__ = ["FromData"]

# Of the moment, as a share of its mean diagonal, where targets are solved for: what the student's inputs cannot express
# stays with the float weight.
TARGET_DAMPING = 1e-2
ROUNDING = 1e-5  # of moments: sums of float32 products

# Of a batch: what the student's filters see, what the teacher's see, and by how much the teacher's shortcut, to which
# the outputs are added, is ahead of the student's, in units of the outputs; each (G, n, ..).
_Rows = Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass
class _Inputs:
    """Moments of what a layer sees: the student's inputs s, the teacher's t, the shortcut's lag r; float64."""

    moment: np.ndarray  # E[s s'], (G, Kin, Kin)
    cross: np.ndarray  # E[t s']
    lag: np.ndarray  # E[r s'], (G, O / G, Kin)
    mean: np.ndarray  # E[s], (G, Kin)
    taught_mean: np.ndarray  # E[t]
    lag_mean: np.ndarray  # E[r], (G, O / G)

    @classmethod
    def measure(cls, rows: _Rows, batches: int, threads: int) -> "_Inputs":
        """Sum over all batches, in their order."""

        def one(i: int) -> tuple[list[np.ndarray], int]:
            parts = rows(i)
            seen = parts[0]
            moments = [np.matmul(part.swapaxes(1, 2), seen) for part in parts[: 1 if parts[1] is seen else 2]]
            moments = [moments[0], moments[-1], np.matmul(parts[2].swapaxes(1, 2), seen)]
            return moments + [part.sum(1, np.float64) for part in parts], seen.shape[1]

        found = ordered_map(one, range(batches), threads)
        first, count = next(found)
        total = [part.astype(np.float64) for part in first]
        for more, n in found:
            for sums, part in zip(total, more, strict=True):
                sums += part
            count += n
        return cls(*(sums / count for sums in total))

    def centred(self) -> "_Inputs":
        """Return the moments about the means, with as much noise on both sides' inputs as rounding leaves."""
        about = self.mean[:, None, :]
        means = (self.mean, self.taught_mean, self.lag_mean)
        moment, cross, lag = (
            m - mean[:, :, None] * about for m, mean in zip((self.moment, self.cross, self.lag), means, strict=True)
        )
        size = np.trace(self.moment, axis1=1, axis2=2)[:, None, None] / moment.shape[1]
        noise = ROUNDING * size * np.eye(moment.shape[1])
        return _Inputs(moment + noise, cross + noise, lag, *means)

    def target(self, weight: np.ndarray) -> np.ndarray:
        """Return the weight whose outputs from the student's inputs come nearest to the teacher's and the lag.

        T = (W E[t s'] + E[r s']) E[s s']^-1, damped.
        """
        n = self.moment.shape[1]
        scale = np.maximum(np.trace(self.moment, axis1=1, axis2=2) / n, 1e-30)
        damping = TARGET_DAMPING * scale[:, None, None] * np.eye(n)
        filters = weight.reshape(len(scale), -1, n).astype(np.float64)
        right = (np.matmul(filters, self.cross + damping) + self.lag).swapaxes(1, 2)
        target = np.linalg.solve(self.moment + damping, right).swapaxes(1, 2)
        return target.astype(np.float32).reshape(weight.shape)

    def products(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return a_o' E[s s'] b_o for every output, (O,)."""
        left, right = (w.reshape(len(self.moment), -1, self.moment.shape[1]) for w in (a, b))
        total: np.ndarray = np.einsum("goi,goi->go", np.matmul(left, self.moment), right).reshape(-1)
        return total

    def mean_shift(self, weight: np.ndarray, packed: np.ndarray) -> np.ndarray:
        """Return what must be added to the student's outputs for them to have the wanted means, (O,)."""

        def means(filters: np.ndarray, inputs: np.ndarray) -> np.ndarray:
            grouped = filters.reshape(len(inputs), -1, inputs.shape[1]).astype(np.float64)
            found: np.ndarray = np.matmul(grouped, inputs[:, :, None]).reshape(-1)
            return found

        shift: np.ndarray = means(weight, self.taught_mean) - means(packed, self.mean) + self.lag_mean.reshape(-1)
        return shift


class FromData:
    """Visits the nodes of a sweep, see `pqnet.pipeline.sweep`."""

    def __init__(self, run: Run) -> None:
        self.run, self.options = run, run.options
        self.shapes = run.graph.infer_shapes(run.graph.symbols)

    def visit(self, node: Node, values: Values, taught: Values) -> None:
        """Quantize a layer, or measure a batch norm."""
        if node.name in self.run.codecs:
            if node.op == "embedding":
                self._embedding(node, values[node.inputs[0]])
            else:
                self._matrix(node, values, taught)
        elif node.op == "batch_norm" and self.options.reestimate_norm:
            self._reestimate(node, values[node.inputs[0]])

    def _embedding(self, node: Node, inputs: list[np.ndarray]) -> None:
        run, weight = self.run, self.run.weight(node)
        counts = np.sum([token_counts(ids, len(weight)) for ids in inputs], axis=0)
        packed = run.pack(node, weight, row_weights=row_weights(self.options.metric, counts))
        run.report[node.name]["output_error"] = token_error(counts, weight, packed.decode())

    def _matrix(self, node: Node, values: Values, taught: Values) -> None:
        run, weight, full = self.run, self.run.weight(node), self.options.metric == "full"
        affine = FreeAffine.find(run.graph, node) if full and self.options.correct_bias else None
        rows = self._rows(node, weight, values, taught, affine)
        batches = len(values[node.inputs[0]])
        if full:
            dense, shift = self._second_order(node, weight, rows, batches, affine)
        else:
            metric = self._block_metric(node, weight.shape, rows, batches)
            dense, shift = run.pack(node, weight, metric).decode(), np.zeros(len(weight))

        def gaps(i: int) -> np.ndarray:
            seen, wanted, _ = rows(i)
            return output_gap(wanted, weight, seen, dense, shift)

        energy, error = sum(ordered_map(gaps, range(batches), run.threads), np.zeros(2))
        run.report[node.name]["output_error"] = float(error / energy) if energy > 0 else 0.0

    def _rows(self, node: Node, weight: np.ndarray, values: Values, taught: Values, affine: FreeAffine | None) -> _Rows:
        graph, seed = self.run.graph, self.options.seed
        seen, wanted = values[node.inputs[0]], taught[node.inputs[0]]
        starts = np.cumsum([0, *(len(x) for x in seen)])
        n_inputs, groups = int(np.prod(weight.shape[1:])), node.attrs.get("groups", 1)
        shortcut = shortcut_of(graph, node, affine)
        if shortcut is not None and self.shapes[shortcut].shape != self.shapes[node.outputs[0]].shape:
            shortcut = None
        behind, ahead = (side.get(shortcut or "") for side in (values, taught))
        gain = np.ones(len(weight)) if affine is None else affine.gain
        gain = np.where(np.abs(gain) > 1e-12, gain, np.inf).astype(np.float32).reshape(groups, 1, -1)

        def rows(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            first = int(starts[i])
            x = input_rows(node, weight.shape, seen[i], first, seed)
            t = x if wanted[i] is seen[i] else input_rows(node, weight.shape, wanted[i], first, seed)
            if behind is None or ahead is None or behind is ahead:
                return x, t, np.zeros((groups, x.shape[1], len(weight) // groups), np.float32)
            lag = output_rows(node, ahead[i] - behind[i], n_inputs, groups, first, seed)
            return x, t, lag / gain

        return rows

    def _second_order(
        self, node: Node, weight: np.ndarray, rows: _Rows, batches: int, affine: FreeAffine | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pack a layer; return the weight and the shift with which the network then computes its outputs."""
        run = self.run
        found = _Inputs.measure(rows, batches, run.threads)
        about = found if affine is None else found.centred()
        target = about.target(weight) if self.options.target == "teacher" else weight
        metric = layer_metric("full", about.moment, weight.shape, run.codecs[node.name])
        if affine is None or not affine.scalable or self.options.reestimate_norm:
            dense, scale = run.pack(node, target, metric).decode(), np.ones(len(weight))
        else:
            # Filters of one size share codewords best; the norm gives each its own back.
            energy = about.products(target, target)
            size = np.sqrt(np.maximum(energy, 1e-12 * energy.max())) if energy.max() > 0 else np.ones(len(energy))
            importance = np.maximum(size**2 / np.mean(size**2), 1e-6)
            dense = run.pack(node, target / _by_output(size, weight), metric, importance).decode()
            fitted = about.products(target, dense) / np.maximum(about.products(dense, dense), 1e-30)
            scale = np.where(fitted > 0, fitted, size)
            dense = (dense * _by_output(scale, weight)).astype(np.float32)
        shift = np.zeros(len(weight))
        if affine is not None:
            shift = found.mean_shift(weight, dense)
            affine.apply(scale, shift)
        return dense, shift

    def _block_metric(self, node: Node, shape: tuple[int, ...], rows: _Rows, batches: int) -> np.ndarray | None:
        """Measure no more of the moments than the blocks on the diagonal."""
        if self.options.metric == "none":
            return None
        d, layout = self.run.codecs[node.name].metric_blocks(shape)
        columns = block_columns(shape, layout)

        def moments(i: int) -> tuple[np.ndarray, int]:
            seen = rows(i)[0]
            return row_moments(seen, columns, d), seen.shape[1]

        parts = ordered_map(moments, range(batches), self.run.threads)
        total, count = next(parts)
        for part, n in parts:
            total += part
            count += n
        return build_metric(self.options.metric, total / count)

    def _reestimate(self, node: Node, inputs: list[np.ndarray]) -> None:
        if "mean" not in node.params or "var" not in node.params:
            raise ConfigError(
                f"reestimate_norm: expected batch norms with running statistics, got folded ones in {node.name!r}; "
                "quantize the float model, or pass reestimate_norm=False"
            )
        axes = (0, *range(2, inputs[0].ndim))

        def sums(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
            wide = x.astype(np.float64)
            return wide.sum(axes), np.square(wide).sum(axes), x.size // x.shape[1]

        parts = list(ordered_map(sums, inputs, self.run.threads))
        count = sum(n for _, _, n in parts)
        mean = np.sum([total for total, _, _ in parts], axis=0) / count
        square = np.sum([squares for _, squares, _ in parts], axis=0) / count
        with np.errstate(invalid="ignore"):  # of infinite inputs, which the next layer names
            var = np.maximum(square - mean**2, 0.0) * (count / max(count - 1, 1))
        self.run.graph.params[node.params["mean"]] = mean.astype(np.float32)
        self.run.graph.params[node.params["var"]] = var.astype(np.float32)


def _by_output(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return values.reshape(-1, *[1] * (weight.ndim - 1))
